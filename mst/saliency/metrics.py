"""How well a saliency map points at a lesion, where the lesion's mask is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

TOLERANCE_MM = 2.0
QUANTILE = 0.999  # as in the paper's code


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
        1608.00507); "share_inside": the part of the map's sum inside the mask; "dice", "iou": of the mask and
        the voxels above the map's 0.999 quantile; "top_slice_in_lesion": whether the slice of most weight
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
        "top_slice_in_lesion": bool(np.asarray(mask.any(axis=others))[int(np.argmax(weights))]),
    }
