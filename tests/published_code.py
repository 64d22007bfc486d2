"""The paper's published code, written again in plain tensor operations, and checkpoints in its layout.

Nothing here uses the project's models or transformers, so that agreement means something. Sources:
github.com/mueller-franzes/MST (mst/models/dino.py, mst/models/resnet.py) and facebookresearch/dinov2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
HYPER = {"in_ch": 1, "spatial_dims": 3, "pretrained": True, "rotary_positional_encoding": None}


def checkpoint(state: State, **hyper: Any) -> dict[str, Any]:
    """A Lightning checkpoint as the published code writes it, classes in hyper_parameters included."""
    named = {"loss": torch.nn.CrossEntropyLoss, "optimizer": torch.optim.AdamW}
    return {
        "epoch": 3,
        "global_step": 99,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "hyper_parameters": {**HYPER, "out_ch": 2, **hyper, **named},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}],
        "lr_schedulers": [],
        "callbacks": {"ModelCheckpoint{'monitor': 'val/loss'}": {"best_model_score": torch.tensor(0.5)}},
        "loops": {},
    }


class Maker:
    """Makes tensors of a sensible size, so that differences are not lost in saturation."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.state: State = {}

    def add(self, name: str, *shape: int, kind: str = "weight") -> None:
        x = torch.randn(shape, generator=self.generator)
        fan_in = math.prod(shape[1:]) or 1
        self.state[name] = {
            "weight": lambda: x * (2.0 if "qkv" in name or "in_proj" in name else 1.4) / fan_in**0.5,
            "bias": lambda: 0.05 * x,
            "scale": lambda: 1 + 0.1 * x,
            "token": lambda: 0.3 * x,
            "variance": lambda: 0.5 + x.abs(),
        }[kind]()

    def linear(self, name: str, outputs: int, inputs: int) -> None:
        self.add(f"{name}.weight", outputs, inputs)
        self.add(f"{name}.bias", outputs, kind="bias")

    def norm(self, name: str, width: int) -> None:
        self.add(f"{name}.weight", width, kind="scale")
        self.add(f"{name}.bias", width, kind="bias")

    def batch_norm(self, name: str, width: int) -> None:
        self.norm(name, width)
        self.add(f"{name}.running_mean", width, kind="bias")
        self.add(f"{name}.running_var", width, kind="variance")
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(100)

    def fusion(self, width: int) -> None:
        layer = "slice_fusion.layers.0."
        self.add(layer + "self_attn.in_proj_weight", 3 * width, width)
        self.add(layer + "self_attn.in_proj_bias", 3 * width, kind="bias")
        self.linear(layer + "self_attn.out_proj", width, width)
        self.linear(layer + "linear1", width, width)
        self.linear(layer + "linear2", width, width)
        for norm in (layer + "norm1", layer + "norm2", "slice_fusion.norm"):
            self.norm(norm, width)
        self.add("cls_token", 1, 1, width, kind="token")


def dino_state(
    seed: int,
    width: int = 384,
    layers: int = 2,
    *,
    registers: int = 0,
    bottleneck: bool = False,
    positions: bool = False,
    fusion: str = "transformer",
    stored: int = 37,
    chunked: bool = False,
    layer_scale: bool = True,
    classes: int = 2,
) -> State:
    make = Maker(seed)
    make.add("encoder.cls_token", 1, 1, width, kind="token")
    make.add("encoder.pos_embed", 1, 1 + stored * stored, width, kind="token")
    make.add("encoder.mask_token", 1, width, kind="token")
    if registers:
        make.add("encoder.register_tokens", 1, registers, width, kind="token")
    make.add("encoder.patch_embed.proj.weight", width, 3, 14, 14)
    make.add("encoder.patch_embed.proj.bias", width, kind="bias")
    for index in range(layers):
        block = f"encoder.blocks.{'0.' if chunked else ''}{index}."
        make.norm(block + "norm1", width)
        make.linear(block + "attn.qkv", 3 * width, width)
        make.linear(block + "attn.proj", width, width)
        make.norm(block + "norm2", width)
        make.linear(block + "mlp.fc1", 4 * width, width)
        make.linear(block + "mlp.fc2", width, 4 * width)
        if layer_scale:
            make.add(block + "ls1.gamma", width, kind="scale")
            make.add(block + "ls2.gamma", width, kind="scale")
    make.norm("encoder.norm", width)
    if bottleneck:
        make.linear("bottleneck", width // 4, width)
        width //= 4
    if fusion == "transformer":
        if positions:
            make.add("slice_pos_emb.weight", 256, width, kind="token")
        make.fusion(width)
    make.linear("linear", classes, width * (32 if fusion == "linear" else 1))
    return make.state


def _positions(state: State, side: int) -> Tensor:
    stored = state["encoder.pos_embed"]
    count = math.isqrt(stored.shape[1] - 1)
    if count == side:
        return stored
    grid = stored[:, 1:].reshape(1, count, count, -1).permute(0, 3, 1, 2)
    if "encoder.register_tokens" in state:  # dinov2_vits14_reg: antialias, no offset
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    else:
        grid = F.interpolate(grid, scale_factor=((side + 0.1) / count,) * 2, mode="bicubic")
    return torch.cat([stored[:, :1], grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)], 1)


def _norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _dino(state: State, slices: Tensor) -> tuple[Tensor, Tensor]:
    """Slices [N, 1, H, W] -> (class tokens [N, width], the last block's class row [N, heads, patches])."""
    chunk = "0." if "encoder.blocks.0.0.norm1.weight" in state else ""
    weight = state["encoder.patch_embed.proj.weight"]
    x = F.conv2d(slices.repeat(1, 3, 1, 1), weight, state["encoder.patch_embed.proj.bias"], stride=14)
    side, width = x.shape[-1], weight.shape[0]
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["encoder.cls_token"].expand(len(x), -1, -1), x], 1) + _positions(state, side)
    registers = state.get("encoder.register_tokens")
    if registers is not None:
        x = torch.cat([x[:, :1], registers.expand(len(x), -1, -1), x[:, 1:]], 1)
    heads = width // 64
    index, row = 0, torch.empty(0)
    while f"encoder.blocks.{chunk}{index}.norm1.weight" in state:
        block = f"encoder.blocks.{chunk}{index}."
        y = _norm(state, block + "norm1", x, 1e-6)
        n, t, _ = y.shape
        qkv = _linear(state, block + "attn.qkv", y).reshape(n, t, 3, heads, 64).permute(2, 0, 3, 1, 4)
        attention = (qkv[0] * 64**-0.5 @ qkv[1].transpose(-2, -1)).softmax(-1)
        y = _linear(state, block + "attn.proj", (attention @ qkv[2]).transpose(1, 2).reshape(n, t, width))
        x = x + y * state.get(block + "ls1.gamma", torch.ones(()))
        y = _linear(state, block + "mlp.fc1", _norm(state, block + "norm2", x, 1e-6))
        y = _linear(state, block + "mlp.fc2", F.gelu(y))
        x = x + y * state.get(block + "ls2.gamma", torch.ones(()))
        row = attention[:, :, 0, 1 + (0 if registers is None else registers.shape[1]) :]
        index += 1
    return _norm(state, "encoder.norm", x, 1e-6)[:, 0], row


def _fuse(state: State, x: Tensor, mask: Tensor | None, heads: int) -> tuple[Tensor, Tensor]:
    """Slice vectors [B, D, width] -> (the class token [B, width], slice weights [B, D])."""
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1)
    layer = "slice_fusion.layers.0."
    y = _norm(state, layer + "norm1", x, 1e-5)
    b, t, width = y.shape
    qkv = y @ state[layer + "self_attn.in_proj_weight"].T + state[layer + "self_attn.in_proj_bias"]
    q, k, v = (part.reshape(b, t, heads, -1).transpose(1, 2) for part in qkv.chunk(3, -1))
    scores = q @ k.transpose(-2, -1) * (width // heads) ** -0.5
    if mask is not None:
        hidden = F.pad(mask, (1, 0), value=False)
        scores = scores.masked_fill(hidden[:, None, None], float("-inf"))
    attention = scores.softmax(-1)
    x = x + _linear(state, layer + "self_attn.out_proj", (attention @ v).transpose(1, 2).reshape(b, t, width))
    y = _linear(state, layer + "linear1", _norm(state, layer + "norm2", x, 1e-5))
    x = x + _linear(state, layer + "linear2", F.relu(y))
    row = attention[:, :, 0, 1:]
    return _norm(state, "slice_fusion.norm", x, 1e-5)[:, 0], (row / row.sum(-1, keepdim=True)).mean(1)


@torch.no_grad()
def dino_forward(
    state: State, volume: Tensor, mask: Tensor | None = None, heads: int = 12
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(logits [B, C], map [B, D, h, w], slice weights [B, D]), every slice encoded whether padding or not.

    The published code has a map for the slice transformer alone; for the other fusions this gives the in-slice
    attention (times 1 / D for the average, which weighs each slice alike).
    """
    batch, _, depth = volume.shape[:3]
    x, row = _dino(state, volume.flatten(0, 2)[:, None])
    if "bottleneck.weight" in state:
        x = _linear(state, "bottleneck", x)
    x = x.reshape(batch, depth, -1)
    row = row.clone()
    row[..., 0] = 0
    row = (row / row.sum(-1, keepdim=True)).mean(1)
    native = row.reshape(batch, depth, volume.shape[-2] // 14, volume.shape[-1] // 14)
    if "slice_fusion.norm.weight" in state:
        if "slice_pos_emb.weight" in state:
            x = x + state["slice_pos_emb.weight"][:depth]
        x, weights = _fuse(state, x, mask, heads)
        return _linear(state, "linear", x), native * weights[..., None, None], weights
    if state["linear.weight"].shape[1] == x.shape[-1]:
        weights = torch.full((batch, depth), 1 / depth)
        return _linear(state, "linear", x.mean(1)), native / depth, weights
    return _linear(state, "linear", x.flatten(1)), native, None


BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}


def resnet_state(
    seed: int,
    depth: int,
    dims: int,
    *,
    width: int = 64,
    shortcut: str = "B",
    shortcut_bias: bool = True,
    sequential: bool = False,
    classes: int = 2,
) -> State:
    """ResNet (dims 3), or ResNetSliceTrans (dims 2), whose 2D network is torchvision's."""
    make = Maker(seed)
    prefix = "model.0." if sequential else "model."
    make.add(prefix + "conv1.weight", width, 1 if dims == 3 else 3, *[7] * dims)
    make.batch_norm(prefix + "bn1", width)
    expansion, inputs = (4 if depth == 50 else 1), width
    for stage, blocks in enumerate(BLOCKS[depth]):
        planes = width * 2**stage
        for index in range(blocks):
            block = f"{prefix}layer{stage + 1}.{index}."
            shapes = [(planes, inputs, 3), (planes, planes, 3)]
            if depth == 50:
                shapes = [(planes, inputs, 1), (planes, planes, 3), (planes * 4, planes, 1)]
            for number, (outputs, channels, kernel) in enumerate(shapes, 1):
                make.add(f"{block}conv{number}.weight", outputs, channels, *[kernel] * dims)
                make.batch_norm(f"{block}bn{number}", outputs)
            reduced = stage > 0 or inputs != planes * expansion
            if index == 0 and reduced and shortcut == "B":
                make.add(f"{block}downsample.0.weight", planes * expansion, inputs, *[1] * dims)
                if dims == 3 and shortcut_bias:
                    make.add(f"{block}downsample.0.bias", planes * expansion, kind="bias")
                make.batch_norm(f"{block}downsample.1", planes * expansion)
            inputs = planes * expansion
    if dims == 2:
        make.fusion(inputs)
        make.linear("linear", classes, inputs)
    else:
        make.linear("model.4" if sequential else "model.fc", classes, inputs)
    return make.state


def _batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    keys = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"{name}.{key}"] for key in keys))


def _resnet_features(state: State, x: Tensor, prefix: str, stride: int) -> Tensor:
    dims = x.ndim - 2
    conv = F.conv3d if dims == 3 else F.conv2d
    pool = F.max_pool3d if dims == 3 else F.max_pool2d
    x = conv(x, state[prefix + "conv1.weight"], stride=stride, padding=3)
    x = pool(F.relu(_batch_norm(state, prefix + "bn1", x)), 3, 2, 1)
    for stage in range(1, 5):
        index = 0
        while f"{prefix}layer{stage}.{index}.conv1.weight" in state:
            block = f"{prefix}layer{stage}.{index}."
            step = 2 if stage > 1 and index == 0 else 1
            count = 3 if block + "conv3.weight" in state else 2
            strided = 2 if count == 3 else 1  # a bottleneck strides in its second convolution
            y = x
            for number in range(1, count + 1):
                weight = state[f"{block}conv{number}.weight"]
                y = conv(y, weight, stride=step if number == strided else 1, padding=weight.shape[-1] // 2)
                y = _batch_norm(state, f"{block}bn{number}", y)
                y = F.relu(y) if number < count else y
            if block + "downsample.0.weight" in state:
                down = block + "downsample."
                x = conv(x, state[down + "0.weight"], state.get(down + "0.bias"), stride=step)
                x = _batch_norm(state, down + "1", x)
            elif x.shape != y.shape:
                x = x[(..., *[slice(None, None, step)] * dims)]
                x = F.pad(x, (0, 0) * dims + (0, y.shape[1] - x.shape[1]))
            x = F.relu(y + x)
            index += 1
    return x


def _gradcam_plus_plus(features: Tensor, gradient: Tensor) -> Tensor:
    space = tuple(range(2, features.ndim))
    total = features.sum(space, keepdim=True)
    alpha = gradient**2 / (2 * gradient**2 + total * gradient**3 + 1e-6)
    weights = (F.relu(gradient) * alpha).sum(space, keepdim=True)
    cam = F.relu((weights * features).sum(1))
    cam = cam - cam.min()  # over the whole batch, as there
    return cam / cam.max()


def resnet_forward(state: State, volume: Tensor, stride: int = 1) -> tuple[Tensor, Tensor]:
    """(logits [B, C], map [B, d, h, w]) of the published ResNet."""
    prefix = "model.0." if "model.0.conv1.weight" in state else "model."
    head = "model.4" if prefix == "model.0." else "model.fc"
    features = _resnet_features(state, volume, prefix, stride).requires_grad_()
    logits = _linear(state, head, features.mean((2, 3, 4)))
    (gradient,) = torch.autograd.grad(logits.gather(1, logits.argmax(1, keepdim=True)).sum(), features)
    return logits.detach(), _gradcam_plus_plus(features.detach(), gradient)


def resnet_slices_forward(
    state: State, volume: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(logits [B, C], map [B, D, h, w], slice weights [B, D]) of the published ResNetSliceTrans."""
    batch, _, depth = volume.shape[:3]
    features = _resnet_features(state, volume.flatten(0, 2)[:, None].repeat(1, 3, 1, 1), "model.", 2)
    features.requires_grad_()
    pooled = features.mean((2, 3))
    (gradient,) = torch.autograd.grad(pooled.gather(1, pooled.argmax(1, keepdim=True)).sum(), features)
    x, weights = _fuse(state, pooled.detach().reshape(batch, depth, -1), mask, 16)
    cam = _gradcam_plus_plus(features.detach(), gradient)
    native = cam.reshape(batch, depth, *cam.shape[1:]) * weights[..., None, None]
    return _linear(state, "linear", x), native, weights
