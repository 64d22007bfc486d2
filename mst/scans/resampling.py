"""One scan on another scan's grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import map_coordinates

from mst.errors import ScanError
from mst.scans.checks import checked
from mst.scans.scan import Scan


def subtract(post: Scan, pre: Scan) -> Scan:
    """Post-contrast minus pre-contrast, on the post-contrast scan's grid (linear interpolation).

    Raises:
        ScanError: the two do not overlap, or do not differ.
    """
    before = onto(pre, post, order=1)
    if not np.any(before):
        raise ScanError(
            "The pre-contrast and the post-contrast scan do not overlap; are they of one patient?"
        )
    note = f"Pre-contrast scan {pre.name} was subtracted from {post.name}."
    return checked(
        replace(post, voxels=post.voxels - before, notes=(*post.notes, *pre.notes, note)), "The subtraction"
    )


def onto(moving: Scan, fixed: Scan, order: int) -> np.ndarray:
    """A scan's voxels on another scan's grid, zero where it does not reach."""
    if moving.shape == fixed.shape and np.allclose(moving.affine, fixed.affine, atol=1e-3):
        return moving.voxels
    matrix = np.linalg.inv(moving.affine) @ fixed.affine
    grids = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in fixed.shape[:2]), indexing="ij")
    out = np.zeros(fixed.shape, np.float32)
    # Slice by slice: the coordinates of a whole chest CT would take gigabytes.
    for k in range(fixed.shape[2]):
        index = matrix[:3, :2] @ np.stack([grid.ravel() for grid in grids]) + (
            matrix[:3, 2:3] * k + matrix[:3, 3:]
        )
        out[:, :, k] = map_coordinates(moving.voxels, index, order=order, mode="constant").reshape(
            out.shape[:2]
        )
    return out
