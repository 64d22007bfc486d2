"""The MST's own saliency: in-slice attention times slice attention (arXiv 2411.15802, section 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from mst.models.base import ScanClassifier
from mst.models.slice_transformer import SliceTransformer


@torch.no_grad()
def slice_attention(
    model: ScanClassifier, volume: Tensor, target: int | None, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention saliency, the same for every class.

    Per head, the last encoder block's attention from the class token to the patches is normalised to sum to
    one over the slice; the slice transformer's attention from its class token is normalised to sum to one
    over the slices. Their product is averaged over the heads.

    Returns:
        logits [B, C], map [B, D, h, w], slice weights [B, D].

    Raises:
        ValueError: the model is not a slice transformer.
    """
    if not isinstance(model, SliceTransformer):
        raise ValueError("attention saliency needs a slice transformer; use gradcam or gradcam++")
    attention = model.attend(volume, padding_mask)
    patches = attention.patches.flatten(-2).clone()
    if model.zero_first_patch:
        patches[..., 0] = 0
    tiny = torch.finfo(patches.dtype).tiny
    patches = patches / patches.sum(dim=-1, keepdim=True).clamp_min(tiny)
    slices = attention.slices / attention.slices.sum(dim=-1, keepdim=True)
    weights = slices.mean(dim=1)  # [B, D]
    native = patches.unflatten(-1, attention.patches.shape[-2:]).mean(dim=2) * weights[..., None, None]
    return attention.logits, native, weights
