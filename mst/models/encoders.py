"""The DINOv2 encoders of the MST: their sizes, their position embeddings, and loading one from the hub."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import httpx2
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import (
    AutoConfig,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from mst.errors import InputError

Encoder = Dinov2Model | Dinov2WithRegistersModel
# size -> (width, layers, heads); Oquab et al., DINOv2, arXiv 2304.07193, table 17 (S/14, B/14, L/14)
SIZES: dict[str, tuple[int, int, int]] = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
# What of a transformers config says how the encoder is built; the rest is of no use in a checkpoint.
SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "mlp_ratio",
    "image_size",
    "patch_size",
    "num_channels",
    "layer_norm_eps",
    "qkv_bias",
    "hidden_act",
    "use_swiglu_ffn",
)


class EncoderError(InputError):
    """A pre-trained encoder that cannot be had; the message says why."""


def paper_encoder(size: str = "s") -> dict[str, Any]:
    """Encoder settings of the published DINOv2 encoders with patches of 14 pixels.

    Args:
        size: "s" (the paper's), "b" or "l".
    """
    width, layers, heads = SIZES[size]
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": 518,
        "patch_size": 14,
        "num_channels": 3,
        "layer_norm_eps": 1e-6,
    }


def build_encoder(settings: dict[str, Any]) -> Encoder:
    """An encoder with random weights.

    Args:
        settings: arguments of `transformers.Dinov2Config`; with `num_register_tokens` above zero, of
            `transformers.Dinov2WithRegistersConfig` (Darcet et al., arXiv 2309.16588).
    """
    given: dict[str, Any] = {"attn_implementation": "sdpa", **settings}
    if given.get("num_register_tokens"):
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**given))
    given.pop("num_register_tokens", None)
    return Dinov2Model(Dinov2Config(**given))


def registers(encoder: Encoder) -> int:
    """How many register tokens stand between the class token and the patches."""
    return int(getattr(encoder.config, "num_register_tokens", 0) or 0)


def encode_tokens(
    encoder: Encoder,
    pixels: Tensor,
    class_layers: int | None = None,
    corners: Tensor | None = None,
) -> Tensor:
    """The tokens that an encoder makes of slices: the class token first, then registers, then patches.

    Args:
        encoder: any of `build_encoder`.
        pixels: float32 [N, 1, H, W]; a grey slice is given alike to all channels that the encoder takes.
        class_layers: in how many of the last blocks the class token takes part. None: in all, as in DINOv2.
            With 1, all that the class token learns of the slice passes through the last block's attention, so
            that its attention there says what it was made of (class attention: Touvron et al., Going deeper with
            image transformers, arXiv 2103.17239).
        corners: int64 [N, 2], where the pixels are a part of a slice: the row and column of its first patch among those
            that the encoder has positions for; None: they are whole slices.

    Returns:
        float32 [N, 1 + registers + patches, width], after the last layer norm.
    """
    return trace_tokens(encoder, pixels, class_layers, corners)[0]


def trace_tokens(
    encoder: Encoder,
    pixels: Tensor,
    class_layers: int | None = None,
    corners: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `encode_tokens`, and what the last block was given, from which `attention_of` tells what it attended to.

    Returns:
        Both float32 [N, 1 + registers + patches, width].
    """
    pixels = pixels.expand(-1, int(encoder.config.num_channels), -1, -1)
    layers: Any = encoder.encoder.layer
    alone = 0 if class_layers is None else len(layers) - class_layers
    if corners is None:
        tokens = encoder.embeddings(pixels)
    else:
        tokens = _embed_part(encoder, pixels, corners)
    if alone:
        first, others = tokens[:, :1], tokens[:, 1:]
        for layer in layers[:alone]:
            others = layer(others)
        tokens = torch.cat([first, others], dim=1)
    given = tokens
    for layer in layers[alone:]:
        given, tokens = tokens, layer(tokens)
    return encoder.layernorm(tokens), given


def _embed_part(encoder: Encoder, pixels: Tensor, corners: Tensor) -> Tensor:
    """Tokens of parts of slices, [N, 1 + patches, width], each with the position that it has in the whole slice."""
    if registers(encoder):
        raise ValueError("parts of slices are for encoders without registers")
    embeddings: Any = encoder.embeddings
    patches = embeddings.patch_embeddings(pixels)
    rows, columns = (size // int(encoder.config.patch_size) for size in pixels.shape[-2:])  # type: ignore[arg-type]
    positions = embeddings.position_embeddings[0]
    side = math.isqrt(len(positions) - 1)
    row = corners[:, :1, None] + torch.arange(rows, device=corners.device)[None, :, None]
    column = corners[:, 1:, None] + torch.arange(columns, device=corners.device)[None, None]
    patches = patches + positions[1:][(row * side + column).flatten(1)]
    first = (embeddings.cls_token[0] + positions[:1]).expand(len(patches), 1, -1)
    return torch.cat([first, patches], dim=1)


def attention_of(encoder: Encoder, given: Tensor) -> Tensor:
    """The last block's attention from the class token to the patches.

    Args:
        encoder: any of `build_encoder`.
        given: float32 [N, 1 + registers + patches, width], what its last block was given: from `trace_tokens`.

    Returns:
        float32 [N, heads, patches], after the softmax over all tokens.
    """
    layers: Any = encoder.encoder.layer
    attention, normed = layers[-1].attention, layers[-1].norm1(given)
    row = class_row(
        attention.q_proj(normed[:, :1]), attention.k_proj(normed), int(attention.num_attention_heads)
    )
    return row[..., 1 + registers(encoder) :]


def class_row(query: Tensor, key: Tensor, heads: int, hidden: Tensor | None = None) -> Tensor:
    """Attention of the first token to all.

    Args:
        query: [N, 1, width], the first token's.
        key: [N, T, width].
        heads: how many heads share the width.
        hidden: bool [N, T], True where a token is not attended to; None: no token.

    Returns:
        [N, heads, T]; each row sums to 1.
    """
    head_width = query.shape[-1] // heads
    first = query.unflatten(-1, (heads, head_width)).transpose(1, 2)  # [N, heads, 1, head_width]
    keys = key.unflatten(-1, (heads, head_width)).permute(0, 2, 3, 1)  # [N, heads, head_width, T]
    scores = (first @ keys).squeeze(2) * head_width**-0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None], float("-inf"))
    return scores.softmax(dim=-1)


def interpolate_positions(positions: Tensor, side: int, with_registers: bool) -> Tensor:
    """Position embeddings for another grid of patches, by DINOv2's own formula.

    DINOv2 interpolates bicubically. Its models without registers pass `scale_factor=(side + 0.1) / stored`, which
    samples at slightly other places than `size=` does; those with registers pass `size=` with antialiasing
    (`DinoVisionTransformer.interpolate_pos_encoding` and `dinov2/hub/backbones.py` in facebookresearch/dinov2).

    Args:
        positions: float32 [1, 1 + stored * stored, width], the class token's first.
        side: patches a side of the new grid, which is square.
        with_registers: whether the encoder has register tokens.

    Returns:
        float32 [1, 1 + side * side, width]; the very tensor where the grid is the stored one.

    Raises:
        ValueError: the stored grid is not square.
    """
    stored = math.isqrt(positions.shape[1] - 1)
    if stored * stored != positions.shape[1] - 1:
        raise ValueError(f"{positions.shape[1] - 1} position embeddings are no square grid")
    if stored == side:
        return positions
    grid = positions[:, 1:].float().reshape(1, stored, stored, -1).permute(0, 3, 1, 2)
    if with_registers:
        grid = interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    else:
        scale = (side + 0.1) / stored
        grid = interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    if grid.shape[-2:] != (side, side):
        raise ValueError(f"interpolation gave {list(grid.shape[-2:])} positions, not {side} x {side}")
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)], dim=1)


def hub_encoder(source: str, image_size: int | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A pre-trained DINOv2 from the hub or a local folder, for training an MST on top of it.

    Args:
        source: such as "facebook/dinov2-small", "facebook/dinov2-with-registers-base", or a folder.
        image_size: pixels a side of the slices; the position embeddings are interpolated to their grid.
            None: left as they are.

    Returns:
        (settings for `build_encoder`, weights by their names in it). The settings go into the checkpoint's
        config.json, so that a trained model needs the hub no more.

    Raises:
        EncoderError: it is no DINOv2, it cannot be reached, or it is damaged; the message says which.
    """
    try:
        config = AutoConfig.from_pretrained(source)
        kinds: dict[str, Any] = {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel}
        if config.model_type not in kinds:
            raise EncoderError(
                f"{source} is a {config.model_type} model; an encoder must be a DINOv2, such as "
                "facebook/dinov2-small or facebook/dinov2-with-registers-base"
            )
        # safetensors alone: a pickle could run code
        loaded: tuple[Any, dict[str, Any]] = kinds[config.model_type].from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        encoder, found = loaded
        if found["missing_keys"]:  # transformers would leave them at random and only warn
            missing = sorted(found["missing_keys"])
            raise EncoderError(f"{source} lacks {len(missing)} of its weights, {missing[0]} among them")
    except EncoderError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, httpx2.HTTPError) as error:
        what = "folder" if Path(source).is_dir() else "hub repository (or there is no connection to the hub)"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise EncoderError(f"{source}: no DINOv2 encoder could be read from this {what}: {reason}") from error
    settings = {key: getattr(config, key) for key in SHAPE if hasattr(config, key)}
    if count := registers(encoder):
        settings["num_register_tokens"] = count
    weights = {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}
    if image_size is not None:
        settings["image_size"] = image_size
        key = "embeddings.position_embeddings"
        weights[key] = interpolate_positions(weights[key], image_size // settings["patch_size"], count > 0)
    return settings, weights
