"""Test-time augmentation: the eight flips of a volume, as in the paper's code."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from mst.models.base import ScanClassifier
from mst.models.slices import SliceClassifier
from mst.saliency import Explanation, explain


def flips_of(model: ScanClassifier) -> list[list[int]]:
    """The axes of a volume [B, 1, D, H, W] to turn round, for each of the flips that can change a model's answer.

    A slice transformer without slice positions does not see the order of the slices: four of the eight change nothing.
    """
    ordered = not isinstance(model, SliceClassifier) or model.ordered
    every = product((False, True) if ordered else (False,), (False, True), (False, True))
    return [[axis for axis, flip in zip((2, 3, 4), flips, strict=True) if flip] for flips in every]


def flipped(volume: Tensor, padding_mask: Tensor | None, axes: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """A volume [B, 1, D, H, W] and its padding mask [B, D], turned round along these axes of the volume."""
    if padding_mask is not None and 2 in axes:
        padding_mask = padding_mask.flip(1)
    return volume.flip(list(axes)), padding_mask


def explain_flips(
    model: ScanClassifier,
    volume: Tensor,
    method: str | None = None,
    target: int | None = None,
    padding_mask: Tensor | None = None,
) -> Explanation:
    """Explains a volume under its eight flips and averages probabilities and maps.

    Args:
        model, volume, method, target, padding_mask: as for `explain`; without a target, each flip's map explains
            the class predicted for that flip, as in the paper's code.

    Returns:
        As `explain`; the logits are the logarithm of the averaged probabilities, times the model's
        temperature, and so those of the lesion. `native_saliency` is averaged after flipping back.

    Raises:
        CheckpointError, ValueError: as `explain`.
    """
    runs = []
    for axes in flips_of(model):
        turned, mask = flipped(volume, padding_mask, axes)
        out = explain(model, turned, method, target, mask)
        weights = out.slice_weights
        if weights is not None and 2 in axes:
            weights = weights.flip(1)
        runs.append(
            (
                (out.logits / model.temperature).softmax(1),
                out.saliency.flip(axes),
                out.native_saliency.flip([axis - 1 for axis in axes]),
                weights,
                None if out.lesion_logits is None else out.lesion_logits.sigmoid(),
                out.distance,
            )
        )
    probabilities = torch.stack([run[0] for run in runs]).mean(0)
    lesions = [run[4] for run in runs if run[4] is not None]
    distances = [run[5] for run in runs if run[5] is not None]
    slice_weights = [run[3] for run in runs if run[3] is not None]
    return Explanation(
        # A probability may be too small for a float; its logarithm would be infinite.
        logits=probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log() * model.temperature,
        saliency=torch.stack([run[1] for run in runs]).mean(0),
        native_saliency=torch.stack([run[2] for run in runs]).mean(0),
        slice_weights=torch.stack(slice_weights).mean(0) if slice_weights else None,
        method=method or model.method,
        distance=torch.stack(distances).mean(0) if distances else None,
        lesion_logits=torch.stack(lesions).mean(0).logit(eps=1e-6) if lesions else None,
    )
