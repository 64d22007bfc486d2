"""MRNet: 1,250 knee MRI examinations of Stanford University Medical Center as cases.

Bien et al., "Deep-learning-assisted diagnosis for knee magnetic resonance imaging", PLOS Medicine 15(11), 2018, doi
10.1371/journal.pmed.1002699; download after registration at stanfordmlgroup.github.io/competitions/mrnet. Each
examination is `train/sagittal/0000.npy` (uint8 [slices, 256, 256]; also axial and coronal, not used here), with
answers in `train-abnormal.csv`, `train-acl.csv` and `train-meniscus.csv` (no header; number, 0 or 1); the same
for `valid`.

The files hold pictures without geometry. Written is what is certain, the plane: slices are sagittal, the picture's top
is the head and its left the front, as sagittal slices are shown everywhere. Assumed are the size of a voxel
(`SPACING_MM`) and that slices run from the patient's left to the right; neither can be known from the data, and the
models' grid for knees uses voxels, not millimetres.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from mst.data.preparing import (
    Made,
    PrepareError,
    Progress,
    Summary,
    Tell,
    Unit,
    Volume,
    find_folder,
    rows_of,
    write_cases,
)
from mst.scans import ScanError
from mst.scans.checks import MIN_VOXELS
from mst.tasks import get_task

SPLITS = ("train", "valid")
QUESTIONS = ("abnormal", "acl", "meniscus")
COLUMNS = ("case", "patient", "image", "mask", "label", "split", "question")
# A usual knee protocol (16 cm over 256 pixels, slices 3.5 mm apart); the data do not say.
SPACING_MM = (3.5, 0.625, 0.625)  # slices, columns, rows


def prepare_mrnet(
    data: Path,
    out: Path,
    question: str = "abnormal",
    limit: int | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Summary:
    """Writes the sagittal series and their manifest.

    Args:
        data: MRNet-v1.0, or a folder round it.
        out: gets images/, done/ and cases.csv.
        question: of `QUESTIONS`; its 0 and 1 become the study's two classes, whatever these are called.
        limit: at most so many examinations.
        progress, tell: as for `write_cases`.

    Raises:
        PrepareError: no such folder, table, or row in a table that is no number and 0 or 1.
    """
    if question not in QUESTIONS:
        raise PrepareError(f"MRNet has no question {question!r}; choose one of {', '.join(QUESTIONS)}.")
    root = next(
        iter(find_folder(data, lambda path: any((path / s / "sagittal").is_dir() for s in SPLITS))), None
    )
    if root is None:
        raise PrepareError(
            f"{data} holds no train/sagittal and no valid/sagittal; give the folder MRNet-v1.0."
        )
    units: list[Unit] = []
    for split in SPLITS:
        if not (root / split / "sagittal").is_dir():
            continue
        labels = _labels(root / f"{split}-{question}.csv")
        unlisted = sorted({path.stem for path in (root / split / "sagittal").glob("*.npy")} - set(labels))
        if unlisted and tell:
            some = ", ".join(unlisted[:3]) + (", ..." if len(unlisted) > 3 else "")
            tell(
                f"{split}-{question}.csv has no row for {len(unlisted)} of {split}/sagittal ({some}); left out."
            )
        for number, label in labels.items():
            path = root / split / "sagittal" / f"{number}.npy"
            name = f"mrnet-{number}"
            row = {
                "case": name,
                "patient": name,
                "image": f"images/{name}.nii.gz",
                "mask": "",
                "label": get_task("knee-mri").classes[label],
                "split": split,
                "question": question,
            }
            units.append(Unit(name, {"row": row, "spacing": list(SPACING_MM)}, partial(_make, path, row)))
    return write_cases(out, units[:limit], COLUMNS, progress, tell)


def knee_affine(shape: tuple[int, ...]) -> np.ndarray:
    """Voxel index (slice, column, row) -> RAS millimetres, the middle at the origin."""
    # Columns run to the back, rows to the feet.
    affine = np.diag([SPACING_MM[0], -SPACING_MM[1], -SPACING_MM[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _labels(path: Path) -> dict[str, int]:
    """Number -> 0 or 1, in the table's order."""
    if not path.is_file():
        raise PrepareError(f"There is no {path.name} in {path.parent}; it comes with MRNet-v1.0.")
    labels: dict[str, int] = {}
    for row, cells in rows_of(path):
        values = [cell.strip() for cell in cells]
        if not any(values):
            continue
        if len(values) != 2 or not values[0].isdigit() or values[1] not in ("0", "1"):
            raise PrepareError(
                f"{path.name}, row {row}: {','.join(cells)!r} is not an examination's number and 0 or 1."
            )
        number = values[0].zfill(4)  # spreadsheet programs drop leading zeros
        if number in labels:
            raise PrepareError(f"{path.name}, row {row}: the examination {number} is there already.")
        labels[number] = int(values[1])
    if not labels:
        raise PrepareError(f"{path.name} is empty.")
    return labels


def _make(path: Path, row: dict[str, str]) -> Made:
    if not path.is_file():
        raise ScanError(f"there is no {path.parent.name}/{path.name}, which the table lists.")
    try:
        slices = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ScanError(f"{path.name} is cut off or no NumPy array; download it again.") from error
    if slices.ndim != 3 or min(slices.shape) < MIN_VOXELS or slices.dtype.kind not in "uif":
        shape = " x ".join(map(str, slices.shape))
        raise ScanError(f"{path.name} holds {shape} of {slices.dtype}, not slices of 256 x 256 grey values.")
    voxels = slices.transpose(0, 2, 1)
    return Made([row], [Volume(row["image"], np.ascontiguousarray(voxels), knee_affine(voxels.shape))])
