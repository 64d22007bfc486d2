"""The layouts of the paper's published checkpoints, and the names and settings of the same models here.

Three layouts are known, told apart by their tensors' names: DinoV2ClassifierSlice (`encoder.blocks...`), ResNet with
3D convolutions, and ResNetSliceTrans (2D convolutions and `slice_fusion`). What the tensors tell is taken from
them; `hyper_parameters` is asked only for what they cannot tell.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mst.errors import InputError
from mst.models.encoders import SIZES, interpolate_positions, paper_encoder
from mst.models.resnet3d import DEPTHS

IMAGE_SIZE = 224  # pixels a side of the published models' slices, for all three studies
DINO_HEADS, RESNET_HEADS = 12, 16  # attention heads of the published slice transformers; no tensor tells them


class ConversionError(InputError):
    """A file that cannot be converted; the message says why."""


@dataclass
class Published:
    """What is read from a published checkpoint.

    Attributes:
        tensors: name -> float32 tensor (counters: int64), on the CPU.
        settings: the `hyper_parameters`, as far as they are numbers, text, lists and dictionaries.
        facts: "epoch", "global_step" and "pytorch-lightning_version", where the file has them.
    """

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Plan:
    """How a published checkpoint becomes one of ours.

    Attributes:
        published: the published class's name.
        architecture: ours.
        arguments: of our constructor.
        tensors: by our names.
        notes: what had to be decided, for the model card.
    """

    published: str
    architecture: str
    arguments: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


def plan_conversion(published: Published) -> Plan:
    """Tells the layout and variant of a published checkpoint.

    Raises:
        ConversionError: an unknown layout or a variant that is not supported, by its name.
    """
    tensors, settings = published.tensors, published.settings
    rotary = settings.get("rotary_positional_encoding")
    if rotary or any("rotary" in name for name in tensors):
        raise ConversionError(
            f"rotary_positional_encoding={rotary or 'on'} is not supported: the slice transformer here has learnt "
            "slice positions or none"
        )
    convolution = tensors.get("model.conv1.weight", tensors.get("model.0.conv1.weight"))
    if "encoder.patch_embed.proj.weight" in tensors:
        return _plan_dino(tensors, settings)
    if convolution is not None and "slice_fusion.norm.weight" in tensors and convolution.ndim == 4:
        return _plan_resnet_slices(tensors, settings)
    if convolution is not None and convolution.ndim == 5:
        return _plan_resnet(tensors, settings)
    if convolution is not None:
        raise ConversionError("a 2D ResNet without a slice transformer is not supported")
    raise ConversionError(
        "its tensors are of no model of the paper's code; known are DinoV2ClassifierSlice, ResNet (3D) and "
        "ResNetSliceTrans"
    )


def _plan_dino(tensors: dict[str, Tensor], settings: dict[str, Any]) -> Plan:
    width = tensors["encoder.patch_embed.proj.weight"].shape[0]
    size = next((size for size, shape in SIZES.items() if shape[0] == width), None)
    if size is None or any(".mlp.w12." in name for name in tensors):
        raise ConversionError(
            f"model_size={settings.get('model_size', 'unknown')} (width {width}) is not supported; known are "
            + ", ".join(f"{size} (width {shape[0]})" for size, shape in SIZES.items())
        )
    if "linear.weight" not in tensors:
        raise ConversionError("enable_linear=False is not supported: such a model gives no class")
    plan = Plan("DinoV2ClassifierSlice", "slice-transformer", {}, {})
    layers = _count(tensors, r"encoder\.blocks\.(?:\d+\.)?(\d+)\.norm1\.weight")
    patches = IMAGE_SIZE // tensors["encoder.patch_embed.proj.weight"].shape[-1]
    encoder = {
        **paper_encoder(size),
        "num_hidden_layers": layers,
        "image_size": IMAGE_SIZE,
        "patch_size": tensors["encoder.patch_embed.proj.weight"].shape[-1],
    }
    registers = tensors.get("encoder.register_tokens")
    if registers is not None:
        encoder["num_register_tokens"] = registers.shape[1]
    plan.tensors = _dino_tensors(tensors, layers, width)
    positions = "encoder.embeddings.position_embeddings"
    try:
        plan.tensors[positions] = interpolate_positions(
            plan.tensors[positions], patches, registers is not None
        )
    except (KeyError, ValueError) as error:
        raise ConversionError(f"its position embeddings cannot be used ({error})") from error

    plan.arguments = {"encoder": encoder, "outputs": tensors["linear.weight"].shape[0]}
    bottleneck = tensors.get("bottleneck.weight")
    if bottleneck is not None:
        plan.arguments["bottleneck"] = width = bottleneck.shape[0]
    if "slice_fusion.norm.weight" in tensors:
        _plan_fusion(plan, tensors, width, DINO_HEADS)
        return plan
    inputs = tensors["linear.weight"].shape[1]
    if inputs == width:
        plan.arguments["fusion"] = "average"
    elif inputs % width == 0:
        plan.arguments |= {"fusion": "linear", "fusion_slices": inputs // width}
    else:
        raise ConversionError(f"slice_fusion={settings.get('slice_fusion', 'unknown')} is not supported")
    return plan


def _plan_resnet_slices(tensors: dict[str, Tensor], settings: dict[str, Any]) -> Plan:
    plan = Plan("ResNetSliceTrans", "resnet-slice-transformer", {}, {})
    _refuse_settings(settings, ())
    convolution = tensors["model.conv1.weight"]
    plan.arguments = {
        "depth": _depth(tensors, "model."),
        "width": convolution.shape[0],
        "channels": convolution.shape[1],
        "first_kernel": convolution.shape[-1],
        "outputs": tensors["linear.weight"].shape[0],
    }
    plan.tensors = {
        "encoder." + name.removeprefix("model."): value
        for name, value in tensors.items()
        if name.startswith("model.")
    }
    _plan_fusion(plan, tensors, tensors["linear.weight"].shape[1], RESNET_HEADS)
    return plan


def _plan_resnet(tensors: dict[str, Tensor], settings: dict[str, Any]) -> Plan:
    plan = Plan("ResNet", "resnet3d", {}, {})
    _refuse_settings(settings, ("conv1_t_stride", "no_max_pool"))
    options = settings.get("kwargs_resnet") or {}
    prefix, stride = "model.", options.get("conv1_t_stride", 1)
    if "model.0.conv1.weight" in tensors:
        # pretrained=True: MedicalNet's network and a head behind it, in a Sequential
        prefix, stride, options = "model.0.", 2, {}
    if not isinstance(stride, int):
        stride = list(stride)
    convolution = tensors[prefix + "conv1.weight"]
    renamed = {}
    for name, value in tensors.items():
        name = name.replace("model.0.", "model.").replace("model.4.", "model.fc.")
        renamed[name] = value
    if "model.fc.weight" not in renamed:
        raise ConversionError("the tensor model.fc.weight is missing: such a model gives no class")
    if convolution.shape[1] != 1:
        raise ConversionError(f"in_ch={convolution.shape[1]} is not supported: scans here have one channel")
    plan.tensors = renamed
    plan.arguments = {
        "depth": _depth(tensors, prefix),
        "width": convolution.shape[0],
        "first_kernel": convolution.shape[-1],
        "first_stride": stride,
        "max_pool": not options.get("no_max_pool", False),
        "shortcut": "B" if "model.layer2.0.downsample.0.weight" in renamed else "A",
        "shortcut_bias": "model.layer2.0.downsample.0.bias" in renamed,
        "outputs": renamed["model.fc.weight"].shape[0],
    }
    return plan


def _plan_fusion(plan: Plan, tensors: dict[str, Tensor], width: int, heads: int) -> None:
    """Adds the slice transformer and the classifier to a plan."""
    if width % heads:
        # The published code cannot build this one; ViT-L's own number of heads is the natural reading.
        heads = 16
        plan.notes.append(
            f"The file does not say how many attention heads the slice transformer has, and the published code's 12 "
            f"do not divide its width of {width}; {heads} were assumed."
        )
    plan.arguments |= {
        "slice_layers": _count(tensors, r"slice_fusion\.layers\.(\d+)\.norm1\.weight"),
        "slice_heads": heads,
        "slice_feedforward": tensors["slice_fusion.layers.0.linear1.weight"].shape[0],
    }
    positions = tensors.get("slice_pos_emb.weight")
    if positions is not None:
        plan.arguments["slice_positions"] = positions.shape[0]
        plan.tensors["slice_positions"] = positions[None]
    for name, value in tensors.items():
        if name.startswith(("slice_fusion.", "linear.")) or name == "cls_token":
            plan.tensors[name] = value


def _dino_tensors(tensors: dict[str, Tensor], layers: int, width: int) -> dict[str, Tensor]:
    """DINOv2's tensors by the names of `transformers.Dinov2Model`, and what is not of the encoder as it is."""
    top = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "mask_token": "embeddings.mask_token",
        "register_tokens": "embeddings.register_tokens",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    inner = {"attn.proj.": "attention.o_proj.", "ls1.gamma": "layer_scale1.lambda1"}
    inner["ls2.gamma"] = "layer_scale2.lambda1"
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        # blocks may come in chunks, whose number stands before the block's
        block = re.fullmatch(r"encoder\.blocks\.(?:\d+\.)?(\d+)\.([a-z].*)", name)
        if block and block[2].startswith("attn.qkv."):
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                end = block[2].removeprefix("attn.qkv.")
                renamed[f"encoder.encoder.layer.{block[1]}.attention.{part}_proj.{end}"] = chunk.clone()
        elif block:
            rest = block[2]
            for theirs, ours in inner.items():
                rest = rest.replace(theirs, ours)
            renamed[f"encoder.encoder.layer.{block[1]}.{rest}"] = value
        elif name.startswith("encoder."):
            rest = name.removeprefix("encoder.")
            renamed["encoder." + top.get(rest, rest)] = value
        elif name.startswith(("bottleneck.", "linear.")):
            renamed[name] = value
        elif not name.startswith(("slice_fusion.", "slice_pos_emb.")) and name != "cls_token":
            renamed[name] = value  # foreign: told by name when the model is filled
    # Not needed to classify; transformers keeps one, and a file may lack it.
    renamed.setdefault("encoder.embeddings.mask_token", torch.zeros(1, width))
    for index in range(
        layers
    ):  # DINOv2 built without pre-training has no layer scale, which is a scale of one
        for scale in ("layer_scale1", "layer_scale2"):
            renamed.setdefault(f"encoder.encoder.layer.{index}.{scale}.lambda1", torch.ones(width))
    return renamed


def _depth(tensors: dict[str, Tensor], prefix: str) -> int:
    """The ResNet's depth, from its numbers of blocks."""
    pattern = re.escape(prefix) + r"layer{}\.(\d+)\.conv1\.weight"
    blocks = [_count(tensors, pattern.format(stage)) for stage in range(1, 5)]
    block = "bottleneck" if f"{prefix}layer1.0.conv3.weight" in tensors else "basic"
    for depth, shape in DEPTHS.items():
        if shape == (block, blocks):
            return depth
    raise ConversionError(
        f"a ResNet with {', '.join(map(str, blocks))} {block} blocks is not supported; known depths are "
        + ", ".join(map(str, DEPTHS))
    )


def _count(tensors: dict[str, Tensor], pattern: str) -> int:
    """How many numbers the pattern finds in the tensors' names; they must run from 0 on."""
    found = {int(match[1]) for name in tensors if (match := re.fullmatch(pattern, name))}
    if found != set(range(len(found))):
        # A name with a large number must not make a model with as many layers.
        raise ConversionError(f"the numbers in the names of its layers have gaps ({pattern})")
    return len(found)


def _refuse_settings(settings: dict[str, Any], known: Sequence[str]) -> None:
    # What the tensors show of them (kernel, shortcuts, width) is read from the tensors.
    shown = {"conv1_t_size", "shortcut_type", "bias_downsample", "widen_factor"} if known else set()
    for name in settings.get("kwargs_resnet") or {}:
        if name not in known and name not in shown:
            raise ConversionError(f"kwargs_resnet has {name}, which is not supported")
