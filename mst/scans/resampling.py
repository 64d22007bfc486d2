"""One scan on another scan's grid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mst.errors import ScanError
from mst.scans.checks import checked
from mst.scans.scan import Scan

REACH = 0.5 + 1e-3  # voxels from a voxel's centre to its face, with room for rounding
LEAST_OVERLAP = 0.05  # of a post-contrast scan's voxels: fewer are another part of the body
BEFORE = re.compile(r"(?<![a-z])(pre|precontrast|before|native|nativ|unenhanced|noncontrast)(?![a-z])")


def split_contrast(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """(post, pre) of two volumes by the words in their names.

    >>> split_contrast(["express_post.nii.gz", "express_pre.nii.gz"])
    (['express_post.nii.gz'], ['express_pre.nii.gz'])

    Raises:
        ScanError: none of the names says "pre", or both do.
    """
    before = [
        file for file in files if BEFORE.search(Path(file).name.lower().replace("-contrast", "contrast"))
    ]
    if len(before) != 1:
        raise ScanError(
            "Of the two scans it is not clear which one is before contrast: put the word pre into the name of one, or "
            "give the pre-contrast scan in its own place."
        )
    return [file for file in files if file not in before], before


def subtract(post: Scan, pre: Scan) -> Scan:
    """Post-contrast minus pre-contrast, on the post-contrast scan's grid (linear interpolation).

    Where the pre-contrast scan does not reach, nothing is known of what contrast did: the difference is zero there.

    Raises:
        ScanError: the two do not overlap, or do not differ.
    """
    before = onto(pre, post, order=1, outside=np.nan)
    missing = np.isnan(before)
    if missing.mean() > 1 - LEAST_OVERLAP:
        raise ScanError(
            "The pre-contrast and the post-contrast scan do not overlap; are they of one patient?"
        )
    notes = [f"Pre-contrast scan {pre.name} was subtracted from {post.name}."]
    if missing.any():
        notes.append(
            f"The pre-contrast scan covers {100 * (1 - missing.mean()):.0f}% of the post-contrast one; the rest is "
            "left empty."
        )
    difference = np.where(missing, np.float32(0), post.voxels - before)
    return checked(
        replace(post, voxels=difference, notes=(*post.notes, *pre.notes, *notes)), "The subtraction"
    )


def onto(moving: Scan, fixed: Scan, order: int, outside: float = 0.0) -> np.ndarray:
    """A scan's voxels on another scan's grid.

    A voxel reaches to its faces, half a voxel from its centre: a shift of a tenth of a millimetre leaves no slice out.

    Args:
        moving, fixed: the scans.
        order: 0 for the nearest voxel, 1 for linear interpolation.
        outside: the value where `moving` does not reach.

    Returns:
        float32, shape `fixed.shape`.
    """
    # Here, since it takes a third of a second to import and reading a scan does not need it.
    from scipy.ndimage import affine_transform

    if moving.shape == fixed.shape and np.allclose(moving.affine, fixed.affine, atol=1e-3):
        return moving.voxels
    matrix = np.linalg.inv(moving.affine) @ fixed.affine
    out = affine_transform(
        moving.voxels, matrix[:3, :3], matrix[:3, 3], fixed.shape, np.float32, order, mode="nearest"
    )
    i, j = np.ogrid[: fixed.shape[0], : fixed.shape[1]]
    # Slice by slice: the coordinates of a whole chest CT would take gigabytes.
    for k in range(fixed.shape[2]):
        reached = np.ones(fixed.shape[:2], bool)
        for count, (a, b, c, offset) in zip(moving.shape, matrix[:3], strict=True):
            at = a * i + b * j + (c * k + offset)
            reached &= (at >= -REACH) & (at <= count - 1 + REACH)
        out[:, :, k][~reached] = outside
    return out
