"""The MST's own saliency: in-slice attention times slice attention (arXiv 2411.15802, section 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from mst.models.base import ScanClassifier
from mst.models.slice_transformer import SliceTransformer


@torch.no_grad()
def slice_attention(
    model: ScanClassifier, volume: Tensor, target: int | None, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Attention saliency, the same for every class.

    Per head, the last encoder block's attention from the class token to the patches is normalised to sum to
    one over the slice; the slice transformer's attention from its class token is normalised to sum to one
    over the slices. Their product is averaged over the heads.

    Returns:
        the scan's vector [B, width], map [B, D, h, w], slice weights [B, D]. Where the slice fusion is linear there
        are no slice weights: None, and the map is the in-slice attention alone.

    Raises:
        ValueError: the model has no DINOv2 encoder.
    """
    if not isinstance(model, SliceTransformer):
        raise ValueError(
            "attention saliency needs a slice transformer with a DINOv2 encoder; use gradcam or gradcam++"
        )
    attention = model.attend(volume, padding_mask)
    patches = attention.patches.flatten(-2).clone()
    if model.zero_first_patch:
        patches[..., 0] = 0
    tiny = torch.finfo(patches.dtype).tiny
    patches = patches / patches.sum(dim=-1, keepdim=True).clamp_min(tiny)
    native = patches.unflatten(-1, attention.patches.shape[-2:]).mean(dim=2)
    if attention.slices is None:
        return attention.vector, native, None
    weights = mean_slice_weights(attention.slices)
    return attention.vector, native * weights[..., None, None], weights


def mean_slice_weights(attention: Tensor) -> Tensor:
    """Attention to the slices [B, heads, D] -> weights [B, D]: each head's sum to one, then their mean."""
    return (attention / attention.sum(dim=-1, keepdim=True)).mean(dim=1)
