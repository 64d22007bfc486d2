"""The Medical Slice Transformer: DINOv2 on every slice and a transformer over the slices.

Müller-Franzes et al., "Medical Slice Transformer", arXiv 2411.15802, section 2 and figure 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from mst.models.encoders import (
    Encoder,
    attention_of,
    build_encoder,
    encode_tokens,
    paper_encoder,
    trace_tokens,
)
from mst.models.slices import SliceClassifier, kept_slices, on_all_slices
from mst.tasks import Grid

__all__ = ["SliceAttention", "SliceTransformer", "paper_encoder"]


@dataclass
class SliceAttention:
    """The two attention maps that the MST's saliency is made of.

    Attributes:
        vector: [B, width], what is classified.
        patches: [B, D, heads, h, w]; the encoder's last block, from each slice's class token to its patches,
            after the softmax. Zero for slices that are padding.
        slices: [B, heads, D]; the slice transformer's last layer, from its class token to the slices, after
            the softmax. Zero for slices that are padding. None where the fusion weighs no slices ("linear").
    """

    vector: Tensor
    patches: Tensor
    slices: Tensor | None


class SliceTransformer(SliceClassifier):
    """MST with a DINOv2 encoder.

    Each slice goes through `transformers.Dinov2Model`; its class token stands for the slice. See
    `SliceClassifier` for the fusion of the slices.

    Args:
        task, classes, grid, temperature, lesion_threshold, familiar: see `ScanClassifier`.
        encoder: arguments of `transformers.Dinov2Config`, or of `Dinov2WithRegistersConfig` where they name
            `num_register_tokens`; {} is ViT-B/14. `paper_encoder` gives the paper's.
        slice_layers: layers of the slice transformer (paper: 1).
        slice_heads: its attention heads.
        slice_feedforward: width of its feed-forward layer; None: its own width (paper).
        slice_positions: number of learnt slice positions; 0 (paper): the slices carry no position, so their
            order does not matter.
        zero_first_patch: set the first patch's attention to zero, as the paper's code does.
        fusion: "transformer" (paper), "average" or "linear".
        fusion_slices: how many slices the fusion "linear" takes.
        class_layers: in how many of the encoder's last blocks the class token takes part; None (DINOv2, paper):
            all. See `encode_tokens`.
        bottleneck: width that a linear layer brings the encoder's vector to first; None (paper): no such layer.
    """

    method = "attention"
    title = "Medical Slice Transformer"
    encoder: Encoder

    def __init__(
        self,
        task: str = "chest-ct",
        classes: list[str] = ["benign", "malignant"],  # noqa: B006  (kept as JSON in config.json)
        grid: dict[str, Any] | None = None,
        temperature: float = 1.0,
        encoder: dict[str, Any] | None = None,
        slice_layers: int = 1,
        slice_heads: int = 12,
        slice_feedforward: int | None = None,
        slice_positions: int = 0,
        zero_first_patch: bool = True,
        fusion: str = "transformer",
        fusion_slices: int = 32,
        bottleneck: int | None = None,
        class_layers: int | None = None,
        lesion_threshold: float | None = None,
        familiar: dict[str, Any] | None = None,
        architecture: str = "slice-transformer",
    ) -> None:
        super().__init__(task, classes, grid, temperature, lesion_threshold, familiar)
        self.zero_first_patch = zero_first_patch
        self.encoder = build_encoder(encoder or {})
        self.class_layers = class_layers
        if class_layers is not None and not 1 <= class_layers <= self.encoder.config.num_hidden_layers:
            raise ValueError(
                f"class_layers is {class_layers}; the encoder has {self.encoder.config.num_hidden_layers} blocks"
            )
        self.build_fusion(
            int(self.encoder.config.hidden_size),
            fusion=fusion,
            layers=slice_layers,
            heads=slice_heads,
            feedforward=slice_feedforward,
            positions=slice_positions,
            bottleneck=bottleneck,
            slices=fusion_slices,
        )

    @property
    def patch(self) -> int:
        """Pixels of the slice along a side of one of the encoder's patches."""
        return cast(int, self.encoder.config.patch_size)

    def check_grid(self, grid: Grid) -> None:
        """See `ScanClassifier`."""
        super().check_grid(grid)
        if any(size % self.patch for size in grid.shape[1:]):
            raise ValueError(
                f"slices of {grid.shape[1]} x {grid.shape[2]} do not divide into patches of {self.patch}"
            )

    def encode(self, slices: Tensor) -> Tensor:
        """Slices float32 [N, 1, H, W] -> their class tokens [N, width]."""
        return encode_tokens(self.encoder, slices, self.class_layers)[:, 0]

    @torch.no_grad()
    def attend(self, volume: Tensor, padding_mask: Tensor | None = None) -> SliceAttention:
        """One forward pass that also tells the two attention maps of the saliency.

        Encoder and fusion run as they do for the answer alone; they return what their last layers were given, and
        from that only the class token's row of the attention is computed. Nothing is kept in the model, so any
        number of threads may ask one model at once.
        """
        hidden = self.hidden(padding_mask)
        slices = kept_slices(volume, hidden)
        tokens, given = trace_tokens(self.encoder, slices, self.class_layers)
        features = self.as_features(tokens[:, 0], volume, padding_mask)
        vector, weights = self.weigh_slices(features, padding_mask)
        patches = attention_of(self.encoder, given)
        patches = patches.unflatten(-1, (volume.shape[-2] // self.patch, volume.shape[-1] // self.patch))
        return SliceAttention(vector, on_all_slices(patches, volume, hidden), weights)
