"""How well a saliency map points at a lesion, where the lesion's mask is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt

TOLERANCE_MM = 2.0
QUANTILE = 0.999  # as in the paper's code
YES_OR_NO = ("pointing_game", "top_slice_in_lesion")
MEASURES = (*YES_OR_NO, "share_inside", "dice", "iou", "average_surface_distance_mm")


def saliency_metrics(
    saliency: np.ndarray,
    mask: np.ndarray,
    spacing: tuple[float, float, float],
    profile: np.ndarray | None = None,
    slice_axis: int = 2,
) -> dict[str, Any]:
    """Compares a saliency map with a lesion's mask on the same voxel grid.

    Args:
        saliency: float [I, J, K], at least 0, over the region that was classified (the quantile is of it).
        mask: bool [I, J, K], True within the lesion.
        spacing: millimetres between voxels along (I, J, K).
        profile: float, one weight for each slice along `slice_axis`; None: the map's maximum in each slice.
        slice_axis: the axis that the slices lie along.

    Returns:
        "pointing_game": whether the map's maximum lies within 2 mm of the mask (Zhang et al., arXiv
        1608.00507); "share_inside": the part of the map's sum inside the mask; "dice", "iou",
        "average_surface_distance_mm": of the mask and the voxels above the map's 0.999 quantile, the distance
        being None where the map is zero everywhere; "top_slice_in_lesion": whether the slice of most weight
        holds a voxel of the mask.

    Raises:
        ValueError: shapes differ, or the mask is empty.
    """
    if saliency.shape != mask.shape:
        raise ValueError(f"the map is {saliency.shape}, the mask {mask.shape}")
    if not mask.any():
        raise ValueError("the mask is empty")
    mask = mask.astype(bool)
    total = float(saliency.sum())
    near = distance_transform_edt(~mask, sampling=spacing) <= TOLERANCE_MM
    hot = saliency > 0
    if hot.any():
        hot &= saliency >= np.quantile(saliency, QUANTILE)
    overlap, union = int((hot & mask).sum()), int((hot | mask).sum())
    others = tuple(axis for axis in range(3) if axis != slice_axis)
    weights = saliency.max(axis=others) if profile is None else profile
    return {
        "pointing_game": bool(total > 0 and near.flat[int(saliency.argmax())]),
        "share_inside": float(saliency[mask].sum() / total) if total > 0 else 0.0,
        "dice": 2 * overlap / (int(hot.sum()) + int(mask.sum())),
        "iou": overlap / union,
        "average_surface_distance_mm": average_surface_distance(hot, mask, spacing),
        "top_slice_in_lesion": bool(np.asarray(mask.any(axis=others))[int(np.argmax(weights))]),
    }


def average_surface_distance(
    first: np.ndarray, second: np.ndarray, spacing: tuple[float, float, float]
) -> float | None:
    """Mean distance in millimetres from each body's surface voxels to the other's surface, both ways together.

    Args:
        first, second: bool [I, J, K]; a surface voxel is one of a body's with a face that is not in it.
        spacing: millimetres between voxels along (I, J, K).

    Returns:
        None where a body is empty.
    """
    if not first.any() or not second.any():
        return None
    # The distances are only needed round the two bodies.
    held = [np.flatnonzero((first | second).any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
    box = tuple(slice(int(index[0]), int(index[-1]) + 1) for index in held)
    surfaces = [body[box] & ~binary_erosion(body[box]) for body in (first, second)]
    there, back = (distance_transform_edt(~surfaces[1 - i], sampling=spacing)[surfaces[i]] for i in range(2))
    return float(np.concatenate([there, back]).mean())
