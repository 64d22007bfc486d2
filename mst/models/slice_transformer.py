"""The Medical Slice Transformer: a 2D encoder on every slice and a transformer over the slices.

Müller-Franzes et al., "Medical Slice Transformer", arXiv 2411.15802, section 2 and figure 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from mst.models.base import ScanClassifier


@dataclass
class SliceAttention:
    """The two attention maps that the MST's saliency is made of.

    Attributes:
        logits: [B, C].
        patches: [B, D, heads, h, w]; the encoder's last block, from each slice's class token to its patches,
            after the softmax. Zero for slices that are padding.
        slices: [B, heads, D]; the slice transformer's last layer, from its class token to the slices, after
            the softmax. Zero for slices that are padding.
    """

    logits: Tensor
    patches: Tensor
    slices: Tensor


class SliceTransformer(ScanClassifier):
    """MST with a DINOv2 encoder.

    Each slice goes through `transformers.Dinov2Model`; its class token stands for the slice. A learnt class
    token is put before the slices, a pre-norm transformer encoder mixes them, and a linear layer reads the
    class token.

    Args:
        task, classes, grid, temperature: see `ScanClassifier`.
        encoder: arguments of `transformers.Dinov2Config`; {} is ViT-B/14. `paper_encoder` gives the paper's.
        slice_layers: layers of the slice transformer (paper: 1).
        slice_heads: its attention heads.
        slice_feedforward: width of its feed-forward layer; None: the encoder's width (paper).
        slice_positions: number of learnt slice positions; 0 (paper): the slices carry no position, so their
            order does not matter.
        zero_first_patch: set the first patch's attention to zero, as the paper's code does.
    """

    method = "attention"

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
        architecture: str = "slice-transformer",
    ) -> None:
        super().__init__(task, classes, grid, temperature)
        self.zero_first_patch = zero_first_patch
        settings: dict[str, Any] = {"attn_implementation": "sdpa", **(encoder or {})}
        self.encoder = Dinov2Model(Dinov2Config(**settings))
        width = self.encoder.config.hidden_size
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.slice_positions = (
            nn.Parameter(torch.zeros(1, slice_positions, width)) if slice_positions else None
        )
        layer = nn.TransformerEncoderLayer(
            width,
            slice_heads,
            slice_feedforward or width,
            dropout=0.0,
            batch_first=True,
            norm_first=True,
        )
        self.slice_fusion = nn.TransformerEncoder(
            layer, slice_layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.linear = nn.Linear(width, len(classes))

    def encode_slices(self, volume: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """One feature vector a slice.

        Args:
            volume: float32 [B, 1, D, H, W].
            padding_mask: bool [B, D], True where a slice is padding; such slices are not encoded.

        Returns:
            float32 [B, D, width]; zero where a slice is padding.
        """
        batch, _, depth, height, width = volume.shape
        slices = volume.reshape(batch * depth, 1, height, width)
        kept = None if padding_mask is None else ~padding_mask.reshape(-1)
        if kept is not None:
            slices = slices[kept]
        # DINOv2 was trained on colour; a grey slice is given to its three channels alike.
        slices = slices.expand(-1, self.encoder.config.num_channels, -1, -1)
        features = self.encoder(pixel_values=slices).pooler_output
        if kept is not None:
            full = features.new_zeros(batch * depth, features.shape[-1])
            full[kept] = features
            features = full
        return features.reshape(batch, depth, -1)

    def classify_slices(self, features: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Slice features [B, D, width] and padding_mask bool [B, D] -> logits [B, C]."""
        batch, depth, _ = features.shape
        if self.slice_positions is not None:
            features = features + self.slice_positions[:, :depth]
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), features], dim=1)
        if padding_mask is not None:
            padding_mask = nn.functional.pad(
                padding_mask, (1, 0), value=False
            )  # the class token is no padding
        tokens = self.slice_fusion(tokens, src_key_padding_mask=padding_mask)
        return self.linear(tokens[:, 0])

    def forward(self, volume: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Volume float32 [B, 1, D, H, W], padding_mask bool [B, D] (True: padding) -> logits [B, C]."""
        return self.classify_slices(self.encode_slices(volume, padding_mask), padding_mask)

    @torch.no_grad()
    def attend(self, volume: Tensor, padding_mask: Tensor | None = None) -> SliceAttention:
        """One forward pass that also keeps the two attention maps of the saliency.

        Everything runs through scaled_dot_product_attention, which never forms the attention matrix. Of the
        two layers that are shown, only the class token's row of it is computed, from the queries and keys of
        the pass itself.
        """
        batch, _, depth, height, width = volume.shape
        layer: Any = self.slice_fusion.layers[-1]
        last: Any = self.encoder.encoder.layer[-1].attention
        with (
            _outputs(last.q_proj, last.k_proj) as kept,
            _inputs(self.slice_fusion.layers[-1].norm1) as tokens,
        ):
            logits = self(volume, padding_mask)
        heads = int(last.num_attention_heads)
        patches = _class_row(kept[0], kept[1], heads)[..., 1 + self._registers :]
        patch = int(self.encoder.config.patch_size)  # type: ignore[arg-type]
        rows, columns = height // patch, width // patch
        attention = patches.reshape(-1, heads, rows, columns)
        if padding_mask is not None:
            full = attention.new_zeros(batch * depth, heads, rows, columns)
            full[~padding_mask.reshape(-1)] = attention
            attention = full

        normed = layer.norm1(tokens[0])
        query, key, _ = nn.functional.linear(
            normed, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias
        ).chunk(3, dim=-1)
        hidden = None if padding_mask is None else nn.functional.pad(padding_mask, (1, 0), value=False)
        slices = _class_row(query, key, layer.self_attn.num_heads, hidden)[..., 1:]
        return SliceAttention(logits, attention.reshape(batch, depth, heads, rows, columns), slices)

    @property
    def _registers(self) -> int:
        return int(getattr(self.encoder.config, "num_register_tokens", 0))


def paper_encoder(size: str = "s") -> dict[str, Any]:
    """`Dinov2Config` arguments of the published DINOv2 encoders with patches of 14 pixels.

    Args:
        size: "s" (the paper's), "b" or "l".
    """
    width, layers, heads = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}[size]
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": 518,
        "patch_size": 14,
        "num_channels": 3,
        "layer_norm_eps": 1e-6,
    }


def _class_row(query: Tensor, key: Tensor, heads: int, hidden: Tensor | None = None) -> Tensor:
    """Attention of the first token to all: query, key [N, T, width] -> [N, heads, T], rows sum to 1."""
    head_width = query.shape[-1] // heads
    first = query[:, :1].unflatten(-1, (heads, head_width)).transpose(1, 2)  # [N, heads, 1, head_width]
    keys = key.unflatten(-1, (heads, head_width)).permute(0, 2, 3, 1)  # [N, heads, head_width, T]
    scores = (first @ keys).squeeze(2) * head_width**-0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None], float("-inf"))
    return scores.softmax(dim=-1)


@contextmanager
def _outputs(*modules: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Keeps what the modules put out during the block, by their position in the call."""
    kept: dict[int, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, index=index: kept.__setitem__(index, output))
        for index, module in enumerate(modules)
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _inputs(*modules: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Keeps what the modules are given during the block, by their position in the call."""
    kept: dict[int, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _m, args, index=index: kept.__setitem__(index, args[0]))
        for index, module in enumerate(modules)
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
