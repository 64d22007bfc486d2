"""The three studies: what is classified, how a scan becomes the models' input, how it is shown.

Each preset carries its source. A checkpoint may override parts of the grid (its config.json's "grid"), so
that a compact model takes a smaller input through the same code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from mst.errors import InputError

Plane = Literal["axial", "coronal", "sagittal"]
PAPER = "Müller-Franzes et al., Medical Slice Transformer, arXiv 2411.15802, section 2.2"


# How many numbers of which kind, and whether one may be missing.
GRID_VALUES: dict[str, tuple[int, Any, bool]] = {
    "shape": (3, int, False),
    "spacing_mm": (3, int | float, True),
    "crop_voxels": (2, int, False),
}


@dataclass(frozen=True)
class Grid:
    """The input grid of a model: slices, rows and columns round a centre.

    Attributes:
        shape: (D, H, W): slices, rows, columns.
        spacing_mm: millimetres between samples along (D, H, W); None along an axis takes the scan's own.
        crop_voxels: along (H, W), how many of the scan's own voxels the rows and columns span; None: no
            resizing, the spacing alone decides.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float | None, float | None, float | None]
    crop_voxels: tuple[int, int] | None = None

    def override(self, changes: dict[str, Any]) -> Grid:
        """The grid with some attributes replaced by a checkpoint's.

        Raises:
            InputError: an attribute that a grid does not have, or a value that it cannot have.
        """
        if unknown := set(changes) - set(GRID_VALUES):
            raise InputError(f"a grid has no {', '.join(sorted(map(str, unknown)))}")
        for key, value in changes.items():
            count, kind, optional = GRID_VALUES[key]
            if value is None and key == "crop_voxels":
                continue
            if not isinstance(value, list | tuple) or len(value) != count:
                raise InputError(f"a grid's {key} is {count} numbers, not {value!r}")
            for number in value:
                if number is None and optional:
                    continue
                if isinstance(number, bool) or not isinstance(number, kind) or not 0 < number < float("inf"):
                    raise InputError(f"a grid's {key} cannot hold {number!r}")
        values: dict[str, Any] = {key: tuple(value) if value else None for key, value in changes.items()}
        return replace(self, **values)


@dataclass(frozen=True)
class Window:
    """A display window.

    Attributes:
        name: "Lung", ...
        low, high: intensities shown black and white.
    """

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class Task:
    """One kind of study.

    Attributes:
        key: its name on the command line and in checkpoints.
        title, question: what the page says.
        classes: names of the classes, in the order of a model's logits.
        plane: the plane of the slices.
        grid: the models' input grid in the paper.
        normalisation: "clamp" maps `clamp` linearly to -1..1; "z-score" clips to the 0.5 and 99.5
            percentiles, then subtracts the mean and divides by the standard deviation.
        clamp: (low, high) in the scan's unit, for "clamp".
        sides: regions that can be chosen by name, left and right being the patient's.
        unit: of the intensities.
        windows: display windows, the first one the default; empty: from the scan's own percentiles.
        source: where the preset comes from.
        region: what the region is, for the page.
        lesion: what is classified, in a word, for studies whose models tell whether there is one.
    """

    key: str
    title: str
    question: str
    classes: tuple[str, ...]
    plane: Plane
    grid: Grid
    normalisation: Literal["clamp", "z-score"]
    source: str
    region: str
    lesion: str = "lesion"
    clamp: tuple[float, float] | None = None
    sides: tuple[str, ...] = ()
    unit: str = ""
    windows: tuple[Window, ...] = ()


TASKS: dict[str, Task] = {
    task.key: task
    for task in (
        Task(
            key="chest-ct",
            title="Chest CT: lung nodule",
            question="Is this lung nodule benign or malignant?",
            classes=("benign", "malignant"),
            plane="axial",
            # The paper crops LIDC-IDRI round the nodule. It names no spacing; this is the data set's median.
            grid=Grid((32, 224, 224), (1.25, 0.7, 0.7)),
            normalisation="clamp",
            clamp=(-1000.0, 1000.0),
            unit="HU",
            windows=(
                Window("Lung", -1350.0, 150.0),
                Window("Mediastinum", -160.0, 240.0),
                Window("Bone", -500.0, 1300.0),
                Window("Full", -1000.0, 1000.0),
            ),
            source=PAPER + " (LIDC-IDRI)",
            region="a region round the nodule",
            lesion="nodule",
        ),
        Task(
            key="breast-mri",
            title="Breast MRI: cancer",
            question="Is there breast cancer in this breast?",
            classes=("no cancer", "cancer"),
            plane="axial",
            grid=Grid((32, 224, 224), (3.0, 0.7, 0.7)),
            normalisation="z-score",
            sides=("left", "right"),
            source=PAPER + " (DUKE)",
            region="one breast",
        ),
        Task(
            key="knee-mri",
            title="Knee MRI: meniscus tear",
            question="Is there a meniscus tear in this knee?",
            classes=("no tear", "tear"),
            plane="sagittal",
            grid=Grid((32, 224, 224), (None, None, None), crop_voxels=(150, 150)),
            normalisation="z-score",
            source=PAPER + " (MRNet)",
            region="the middle of the knee",
        ),
    )
}


def get_task(key: str) -> Task:
    """The study of that name.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    if key not in TASKS:
        raise InputError(f"There is no study {key!r}; choose one of {', '.join(TASKS)}.")
    return TASKS[key]
