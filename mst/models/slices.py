"""What the models of the MST family share: one 2D encoder on every slice, and the fusion of the slices.

Müller-Franzes et al., "Medical Slice Transformer", arXiv 2411.15802, section 2 and figure 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mst.models.base import ScanClassifier
from mst.models.encoders import class_row
from mst.tasks import Grid

FUSIONS = ("transformer", "average", "linear")


class SliceClassifier(ScanClassifier):
    """A classifier that encodes each slice to a vector and then fuses the vectors.

    A subclass makes `self.encoder`, calls `build_fusion`, and says in `encode` how slices become vectors.

    Fusion "transformer" (the paper's) puts a learnt class token before the slices, mixes them with a pre-norm
    transformer encoder and classifies the class token. "average" classifies the mean of the slices, "linear" all
    of them side by side. Only the transformer knows which slices are padding; as in the published code, the
    other two take a padded slice as `mst.preprocess` fills it, like the 3D ResNet does.
    """

    encoder: nn.Module
    fusion: str
    fusion_slices: int
    slice_positions: nn.Parameter | None

    def build_fusion(
        self,
        width: int,
        *,
        fusion: str = "transformer",
        layers: int = 1,
        heads: int = 12,
        feedforward: int | None = None,
        positions: int = 0,
        bottleneck: int | None = None,
        slices: int = 32,
    ) -> None:
        """Makes what follows the encoder.

        Args:
            width: of the encoder's vector.
            fusion: one of `FUSIONS`.
            layers, heads, feedforward: of the transformer; feedforward None: its width (paper).
            positions: learnt slice positions; 0 (paper): the order of the slices does not matter.
            bottleneck: the vectors are brought to this width first; None (paper): they are not.
            slices: how many slices "linear" takes.

        Raises:
            ValueError: no such fusion, or slice positions without the transformer.
        """
        if fusion not in FUSIONS:
            raise ValueError(f"there is no slice fusion {fusion!r}; choose one of {', '.join(FUSIONS)}")
        if positions and fusion != "transformer":
            raise ValueError("only the slice fusion 'transformer' has slice positions")
        self.fusion, self.fusion_slices = fusion, slices
        self.bottleneck = nn.Linear(width, bottleneck) if bottleneck else None
        width = bottleneck or width
        if fusion != "transformer":
            self.slice_positions = None
            self._build_heads(width * (slices if fusion == "linear" else 1))
            return
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.slice_positions = nn.Parameter(torch.zeros(1, positions, width)) if positions else None
        layer = nn.TransformerEncoderLayer(
            width, heads, feedforward or width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.slice_fusion = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self._build_heads(width)

    def _build_heads(self, width: int) -> None:
        self.linear = nn.Linear(width, len(self.classes))
        self.build_beside(width)

    @property
    def ordered(self) -> bool:
        """Whether the order of the slices matters to the logits."""
        return self.fusion == "linear" or self.slice_positions is not None

    def encode(self, slices: Tensor) -> Tensor:
        """Slices float32 [N, 1, H, W] -> their vectors [N, width]."""
        raise TypeError(f"{type(self).__name__} does not say how it encodes a slice")

    def hidden(self, padding_mask: Tensor | None) -> Tensor | None:
        """The padding mask as the fusion takes it: None where it makes no difference to this model."""
        return padding_mask if self.fusion == "transformer" else None

    def encode_slices(self, volume: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """One feature vector a slice.

        Args:
            volume: float32 [B, 1, D, H, W].
            padding_mask: bool [B, D], True where a slice is padding; such slices are not encoded.

        Returns:
            float32 [B, D, width]; zero where a slice is padding.
        """
        slices = kept_slices(volume, self.hidden(padding_mask))
        return self.as_features(self.encode(slices), volume, padding_mask)

    def as_features(self, encoded: Tensor, volume: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """The encoder's vectors [N, width] of the slices that are not padding -> as `encode_slices` returns them."""
        if self.bottleneck is not None:
            encoded = self.bottleneck(encoded)
        return on_all_slices(encoded, volume, self.hidden(padding_mask))

    def fuse_slices(self, features: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Slice features [B, D, width] and padding_mask bool [B, D] -> the scan's vector, which is classified.

        Raises:
            ValueError: more slices than the model has positions for, or another number than "linear" takes.
        """
        return self._trace_fusion(features, padding_mask)[0]

    def _trace_fusion(self, features: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As `fuse_slices`, and what the transformer's last layer was given, [B, 1 + D, width]; None without one."""
        batch, depth, _ = features.shape
        if self.fusion == "average":
            return features.mean(dim=1), None
        self._check_depth(depth)
        if self.fusion == "linear":
            return features.flatten(1), None
        if self.slice_positions is not None:
            features = features + self.slice_positions[:, :depth]
        given = tokens = torch.cat([self.cls_token.expand(batch, -1, -1), features], dim=1)
        hidden = _with_class(padding_mask)
        for layer in self.slice_fusion.layers:
            given, tokens = tokens, layer(tokens, src_key_padding_mask=hidden)
        norm: Any = self.slice_fusion.norm
        return norm(tokens)[:, 0], given

    def _check_depth(self, depth: int) -> None:
        if self.fusion == "linear" and depth != self.fusion_slices:
            raise ValueError(
                f"this model takes {self.fusion_slices} slices, not {depth}: its fusion is linear"
            )
        if self.slice_positions is not None and depth > self.slice_positions.shape[1]:
            raise ValueError(f"this model takes at most {self.slice_positions.shape[1]} slices, not {depth}")

    def check_grid(self, grid: Grid) -> None:
        """See `ScanClassifier`."""
        self._check_depth(grid.shape[0])

    def encode_scan(self, volume: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """See `ScanClassifier`."""
        return self.fuse_slices(self.encode_slices(volume, padding_mask), padding_mask)

    @property
    def class_head(self) -> nn.Linear:
        """See `ScanClassifier`."""
        return self.linear

    @torch.no_grad()
    def weigh_slices(
        self, features: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The scan's vector, and how much each slice weighs in it.

        Of the attention matrix of the transformer's last layer, only the class token's row is formed here, from what
        that layer was given.

        Args:
            features: float32 [B, D, width], from `encode_slices`.
            padding_mask: bool [B, D].

        Returns:
            the vector [B, width]; attention [B, heads, D] of the last layer from the class token to the slices,
            after the softmax over the slices and the class token itself, zero for padding. For "average" each slice
            has the same weight; for "linear" there is none: None.
        """
        if self.fusion != "transformer":
            depth = features.shape[1]
            even = features.new_full((features.shape[0], 1, depth), 1 / depth)
            return self.fuse_slices(features), even if self.fusion == "average" else None
        vector, given = self._trace_fusion(features, padding_mask)
        layer: Any = self.slice_fusion.layers[-1]
        assert given is not None
        query, key, _ = nn.functional.linear(
            layer.norm1(given), layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias
        ).chunk(3, dim=-1)
        row = class_row(query[:, :1], key, layer.self_attn.num_heads, _with_class(padding_mask))
        return vector, row[..., 1:]


def kept_slices(volume: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Volume [B, 1, D, H, W] -> its slices [N, 1, H, W] that are not padding, in order."""
    slices = volume.transpose(1, 2).flatten(0, 1)
    return slices if padding_mask is None else slices[~padding_mask.reshape(-1)]


def on_all_slices(values: Tensor, volume: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Values [N, ...] of the slices from `kept_slices` -> [B, D, ...], zero where a slice is padding."""
    batch, _, depth = volume.shape[:3]
    if padding_mask is not None:
        full = values.new_zeros(batch * depth, *values.shape[1:])
        full[~padding_mask.reshape(-1)] = values
        values = full
    return values.reshape(batch, depth, *values.shape[1:])


def _with_class(padding_mask: Tensor | None) -> Tensor | None:
    """The padding mask with the class token put before the slices; it is no padding."""
    return None if padding_mask is None else nn.functional.pad(padding_mask, (1, 0), value=False)
