"""The example scans of the dashboard, all simulated by this project.

The chest nodules have the shapes and ratings that radiologists of LIDC-IDRI gave them (see `mst.data.outlines`); the
shipped MST learnt from no picture and no outline of these patients.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from mst.data.outlines import Outline, read_named_outlines
from mst.data.simulated import simulate_chest_ct
from mst.data.simulator import simulate_breast_mri, simulate_knee_mri
from mst.scans import Scan

OUTLINES = Path(__file__).with_name("example_outlines.json")  # written by tools/example_outlines.py


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        key: its name in files.
        title: what a button says.
        task: the study it belongs to.
        make: gives the scan and the lesion's mask.
    """

    key: str
    title: str
    task: str
    make: Callable[[], tuple[Scan, np.ndarray]]


@lru_cache(maxsize=1)
def example_outlines() -> dict[str, Outline]:
    """The radiologists' outlines of the chest examples, by the examples' keys."""
    return read_named_outlines(OUTLINES)


def _chest(
    key: str, seed: int, at_pleura: bool = False, lung: Literal["right", "left"] = "right"
) -> Callable[[], tuple[Scan, np.ndarray]]:
    return lambda: simulate_chest_ct(seed, example_outlines()[key], at_pleura=at_pleura, lung=lung)


EXAMPLES: tuple[Example, ...] = (
    Example("chest-round", "Smooth round nodule, 9 mm", "chest-ct", _chest("chest-round", 3)),
    Example("chest-spiculated", "Spiculated nodule, 20 mm", "chest-ct", _chest("chest-spiculated", 2)),
    Example(
        "chest-pleural",
        "Lobulated nodule near the pleura, 14 mm",
        "chest-ct",
        _chest("chest-pleural", 11, at_pleura=True),
    ),
    Example(
        "chest-ground-glass",
        "Ground-glass nodule, 14 mm",
        "chest-ct",
        _chest("chest-ground-glass", 8, lung="left"),
    ),
    Example(
        "breast", "Both breasts, enhancing mass on the left", "breast-mri", lambda: simulate_breast_mri(2)
    ),
    Example("knee", "Left knee, sagittal", "knee-mri", lambda: simulate_knee_mri(4)),
)


@lru_cache(maxsize=2)
def example_with_mask(key: str) -> tuple[Scan, np.ndarray]:
    """An example and its lesion's mask (bool, on the scan's grid).

    Raises:
        KeyError: there is no example of that name.
    """
    return {example.key: example for example in EXAMPLES}[key].make()


@lru_cache
def example_center(key: str) -> tuple[float, float, float]:
    """Where an example's lesion is: the voxel of its mask that is nearest to the mask's centroid, RAS millimetres.

    An example opens on it: a scan of a nodule that lies beside its middle would else be explained on empty lung.

    Raises:
        KeyError: there is no example of that name.
    """
    scan, mask = example_with_mask(key)
    marked = scan.voxel_to_world(np.argwhere(mask))
    nearest = marked[np.argmin(((marked - marked.mean(axis=0)) ** 2).sum(axis=1))]
    x, y, z = (round(float(v), 1) for v in nearest)
    return x, y, z


def example_scan(key: str) -> Scan:
    """An example as a scan."""
    return example_with_mask(key)[0]


def example_file(key: str, folder: Path) -> Path:
    """An example as a NIfTI file in a folder, made once; the same bytes each time."""
    path = folder / f"simulated-{key}.nii.gz"
    if not path.exists():
        scan = example_scan(key)
        # Whole numbers of 16 bits: an eighth of the size, and nothing is lost.
        image = nib.Nifti1Image(scan.voxels.astype(np.int16), scan.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(scan.affine, code="scanner")
        image.set_qform(scan.affine, code="scanner")
        handle, partial = tempfile.mkstemp(suffix=".nii.gz", dir=folder)
        os.close(handle)
        nib.save(image, partial)
        Path(partial).replace(path)  # whole or not at all: two visitors may ask at once
    return path
