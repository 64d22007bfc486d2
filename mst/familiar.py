"""How much a region is like those that a model was trained on.

Two questions: is what can be measured of it (how far its slices lie apart, how noisy it is, ...) within what the
training cases had; and does the model make of it something like what it makes of them. The second is the Mahalanobis
distance of the scan's vector from the training cases' (Lee et al., arXiv 1807.03888), with a shrunk covariance (Ledoit
and Wolf, Journal of Multivariate Analysis 88(2), 2004).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from mst.preprocess import AXES, Region
from mst.scans import Scan
from mst.tasks import Task

# What is measured -> how a sentence names it, and its unit; None: the study's own.
MEASURES: dict[str, tuple[str, str | None]] = {
    "slice_mm": ("distance of its slices", "mm"),
    "pixel_mm": ("size of its pixels", "mm"),
    "noise": ("noise", None),
    "darkest": ("darkest value", None),
    "brightest": ("brightest value", None),
}
SPAN = (0.005, 0.995)  # quantiles of the training cases that count as known
ROOM = 0.1  # of that span, beyond it on each side
LEAST_ROOM = 0.01  # of the value: where all training cases are alike
USUAL = 0.99  # share of unseen cases of the same kind that lie within the limit of the distance


def measure(scan: Scan, region: Region, task: Task) -> dict[str, float]:
    """What can be measured of a region, on the scan's own voxels.

    Args:
        scan: canonical.
        region: of the model's input in it.

    Returns:
        of `MEASURES` those that mean something in the study: values of MRI have no unit, so theirs do not.
    """
    order = [axis for axis, _ in AXES[region.plane]]
    found = {
        "slice_mm": float(scan.spacing[order[0]]),
        "pixel_mm": float(max(scan.spacing[axis] for axis in order[1:])),
    }
    block = scan.voxels[tuple(slice(int(low), int(high)) for low, high in region.bounds)].transpose(order)
    if task.unit and block.size:
        values = block.astype(np.float32)
        dark, bright = np.percentile(values, (1, 99))
        found |= {"noise": noise(values), "darkest": float(dark), "brightest": float(bright)}
    return found


def noise(values: np.ndarray) -> float:
    """About the noise's standard deviation in slices [D, H, W]: edges are few, so the median of second differences
    is that of the noise (after Immerkaer, Computer Vision and Image Understanding 64(2), 1996)."""
    if values.shape[2] < 3:
        return 0.0
    second = (values[..., :-2] - 2 * values[..., 1:-1] + values[..., 2:]) / np.sqrt(6)
    return float(np.median(np.abs(second)) * 1.4826)


def spans(measured: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Between which values each measure is known, from those of the training cases."""
    found = {}
    for name in MEASURES:
        values = [one[name] for one in measured if name in one]
        if values:
            low, high = (float(v) for v in np.quantile(values, SPAN))
            room = ROOM * (high - low) + LEAST_ROOM * max(abs(low), abs(high))
            found[name] = [round(low - room, 3), round(high + room, 3)]
    return found


def strange(measured: dict[str, float], known: dict[str, list[float]], unit: str) -> list[str]:
    """A phrase for each measure that is none of the known ones, such as "noise of 140 HU (known: 5 to 90)"."""
    phrases = []
    for name, value in measured.items():
        low, high = known.get(name, (-np.inf, np.inf))
        if not low <= value <= high:
            called, own = MEASURES[name]
            phrases.append(f"{called} {_short(value)} {own or unit} (known: {_short(low)} to {_short(high)})")
    return phrases


def fit_vectors(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """What a model makes of its training cases.

    Args:
        vectors: float32 [N, width].

    Returns:
        their mean [width], and the matrix [width, width] after which they have unit variance along all directions.
    """
    fitted = LedoitWolf().fit(vectors.numpy().astype(np.float64))
    values, directions = np.linalg.eigh(fitted.covariance_)
    whitening = directions @ np.diag(1 / np.sqrt(values.clip(1e-8))) @ directions.T
    return (
        torch.from_numpy(fitted.location_.astype(np.float32)),
        torch.from_numpy(whitening.astype(np.float32)),
    )


def distance(vector: Tensor, mean: Tensor, whitening: Tensor) -> Tensor:
    """How far vectors [B, width] lie from the training cases, [B]; about 1 for one of them."""
    return ((vector - mean) @ whitening.T).pow(2).mean(dim=1).sqrt()


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"
