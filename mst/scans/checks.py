"""What any scan must fulfil, whatever file it comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mst.errors import ScanError
from mst.scans.scan import Scan

MIN_VOXELS = 4  # along each axis: fewer cannot be sliced in three planes
MAX_VOXELS = 600_000_000  # 2.4 GB as float32
MIN_SPACING_MM, MAX_SPACING_MM = 0.01, 50.0


def lean(affine: np.ndarray) -> float:
    """Degrees by which a scan's axes differ from right angles, at most: what a tilted gantry makes of a stack.

    Args:
        affine: (4, 4), whose axes span a volume.
    """
    axes = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    cosines = np.abs((axes.T @ axes)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(np.clip(cosines.max(), 0, 1))))


def check_shape(name: str, shape: Sequence[int]) -> None:
    """Refuses what a header says is no volume, or one too large, before its voxels are read."""
    if len(shape) < 3:
        raise ScanError(f"{name} is a 2D image; a 3D scan with several slices is needed.")
    check_count(name, shape)


def check_slices(name: str, shape: Sequence[int]) -> None:
    """Refuses a volume that cannot be sliced in three planes."""
    if sum(n > 1 for n in shape[:3]) < 3:
        raise ScanError(f"{name} is a single slice; a 3D scan with several slices is needed.")
    if min(shape[:3]) < MIN_VOXELS:
        raise ScanError(
            f"{name} has {' x '.join(map(str, shape[:3]))} voxels; at least {MIN_VOXELS} along each axis are needed."
        )


def check_count(name: str, shape: Sequence[int]) -> None:
    if int(np.prod(shape[:3], dtype=np.int64)) > MAX_VOXELS:
        raise ScanError(
            f"{name} says that it holds {' x '.join(map(str, shape[:3]))} voxels, more than this tool reads; "
            "crop or resample it first."
        )


def checked(scan: Scan, name: str, thin: bool = False) -> Scan:
    """Refuses what is not one usable volume.

    Args:
        thin: whether a volume of one to three slices is usable too.

    Raises:
        ScanError: too few slices, impossible spacing, NaN or infinite voxels, or all voxels alike.
    """
    check_shape(name, scan.shape)
    if not thin:
        check_slices(name, scan.shape)
    spacing = scan.spacing
    if not np.isfinite(scan.affine).all() or not all(MIN_SPACING_MM <= s <= MAX_SPACING_MM for s in spacing):
        sizes = " x ".join(f"{s:g}" for s in spacing)
        raise ScanError(
            f"{name} gives a voxel size of {sizes} mm, which is impossible; export it again with its spacing."
        )
    direction = scan.affine[:3, :3] / spacing
    if abs(np.linalg.det(direction)) < 0.2:
        raise ScanError(f"{name} gives axes that do not span a volume; export it again with its orientation.")
    # The sum is finite when every voxel is, and costs no copy of the volume.
    if not np.isfinite(scan.voxels.sum(dtype=np.float64)):
        bad = int((~np.isfinite(scan.voxels)).sum())
        raise ScanError(f"{name} holds {bad} voxels that are not numbers (NaN or infinite); export it again.")
    if scan.voxels.min() == scan.voxels.max():
        raise ScanError(f"All voxels of {name} have the same value; there is nothing to see in it.")
    return scan
