"""Pre-training of the slice transformer's 2D encoder.

The dense objective: from single slices, predict which patches hold the lesion, whether the slice shows one, and
how the lesion was rated. It teaches an encoder of a million weights from a few dozen cases, since every patch
of every slice in every plane is a training example.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from transformers import Dinov2Config, Dinov2Model

MIN_AREA = 0.002  # share of a slice that a lesion must fill for the slice to count as showing it


class DensePretraining(nn.Module):
    """A `Dinov2Model` with heads for the dense objective.

    Args:
        encoder: arguments of `transformers.Dinov2Config`.
        ratings: how many ratings are predicted (the diameter included).
        patch_weight: weight of patches that hold lesion against those that do not, as they are few.
    """

    def __init__(self, encoder: dict[str, Any], ratings: int, patch_weight: float = 4.0) -> None:
        super().__init__()
        settings: dict[str, Any] = {"attn_implementation": "sdpa", **encoder}
        self.encoder = Dinov2Model(Dinov2Config(**settings))
        width = self.encoder.config.hidden_size
        self.patch_head = nn.Linear(width, 1)
        self.slice_head = nn.Linear(width, 1 + ratings)
        self.register_buffer("patch_weight", torch.tensor(patch_weight), persistent=False)

    def forward(self, slices: Tensor, patches: Tensor, area: Tensor, ratings: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            slices: float32 [B, S, 1, H, W].
            patches: float32 [B, S, h, w], share of each patch that the lesion fills.
            area: float32 [B, S], share of each slice that it fills.
            ratings: float32 [B, R], 0..1; NaN where not known.
        """
        pixels = slices.flatten(0, 1).expand(-1, self.encoder.config.num_channels, -1, -1)
        out = self.encoder(pixel_values=pixels)
        patch_logits = self.patch_head(out.last_hidden_state[:, 1:])[..., 0]
        slice_logits = self.slice_head(out.pooler_output)
        share, shown = patches.flatten(0, 1).flatten(1), (area > MIN_AREA).flatten()
        loss = cross_entropy(patch_logits, share, pos_weight=torch.as_tensor(self.patch_weight))
        loss = loss + cross_entropy(slice_logits[:, 0], shown.float())
        targets = ratings[:, None].expand(-1, area.shape[1], -1).flatten(0, 1)
        known = shown[:, None] & ~targets.isnan()
        each = cross_entropy(slice_logits[:, 1:], targets.nan_to_num(), reduction="none")
        return loss + (each * known).sum() / known.sum().clamp_min(1)
