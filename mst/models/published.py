"""The paper's published weights (github.com/mueller-franzes/MST) as checkpoint folders of this project.

The published files are PyTorch Lightning checkpoints, and so pickles, which can run code. They are read by
`torch.load(weights_only=True)`; of the classes in their `hyper_parameters` only a few names are let through, and each
of those becomes an empty stand-in, so that not even the harmless class is used.

Three layouts are known, told apart by their tensors' names: DinoV2ClassifierSlice (`encoder.blocks...`), ResNet with
3D convolutions, and ResNetSliceTrans (2D convolutions and `slice_fusion`). What the tensors tell is taken from
them; `hyper_parameters` is asked only for what they cannot tell.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mst.models.base import ScanClassifier
from mst.models.encoders import SIZES, interpolate_positions, paper_encoder
from mst.models.loading import ARCHITECTURES, CONFIG, METRICS, save_model
from mst.models.resnet3d import DEPTHS
from mst.tasks import Task, get_task

SOURCE = "github.com/mueller-franzes/MST"
IMAGE_SIZE = 224  # pixels a side of the published models' slices, for all three studies
DINO_HEADS, RESNET_HEADS = 12, 16  # attention heads of the published slice transformers; no tensor tells them
PUBLISHED_SLICES = 32  # of the published models' input; the fusion "linear" is tied to it


class ConversionError(ValueError):
    """A file that cannot be converted; the message says why."""


class _Named:
    """Stands for a class in `hyper_parameters`: takes whatever the pickle gives it and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Named:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Settings(dict):
    """Stands for Lightning's AttributeDict, which is a dictionary."""


def _allowed() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """(stand-in, full name) of the classes that a published checkpoint may name."""
    losses = ("CrossEntropyLoss", "BCEWithLogitsLoss", "BCELoss", "MSELoss", "L1Loss", "NLLLoss")
    schedulers = (
        "StepLR",
        "MultiStepLR",
        "ExponentialLR",
        "CosineAnnealingLR",
        "CosineAnnealingWarmRestarts",
        "LinearLR",
        "OneCycleLR",
        "ReduceLROnPlateau",
        "LambdaLR",
        "ConstantLR",
        "SequentialLR",
    )
    names = [
        *(f"torch.nn.modules.loss.{name}" for name in losses),
        *(f"torch.optim.lr_scheduler.{name}" for name in schedulers),
        "torch.optim.adamw.AdamW",
        "torch.optim.adam.Adam",
        "torch.optim.sgd.SGD",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.WindowsPath",
        "pathlib.PureWindowsPath",
    ]
    settings = (
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict",
    )
    # Each stand-in is a class of its own, as torch.load keeps them by class.
    stands = [(name, _Named) for name in names] + [(name, _Settings) for name in settings]
    return [(type(name.rpartition(".")[2], (base,), {}), name) for name, base in stands]


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


def convert(
    source: str | Path, folder: str | Path, task: str = "chest-ct", classes: Sequence[str] | None = None
) -> ScanClassifier:
    """Turns a published checkpoint into a checkpoint folder.

    Args:
        source: a .ckpt file.
        folder: gets config.json, model.safetensors, metrics.json (no figure, as none was measured) and a model card.
        task: the study that the weights are for; the file does not say.
        classes: names of the classes, in the order of the logits; None: the study's.

    Returns:
        The model, in evaluation mode.

    Raises:
        ConversionError: the file is no such checkpoint, holds more than weights and settings, or is of a kind
            that is not supported; or the folder holds another checkpoint.
        ValueError: an unknown study.
    """
    source, folder, study = Path(source), Path(folder), get_task(task)
    _check_target(folder)
    published = read_published(source)
    try:
        plan = plan_conversion(published)
    except ConversionError as error:
        raise ConversionError(f"{source.name} cannot be converted: {error}.") from error
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ConversionError(
            f"{source.name} cannot be converted: its tensors are not those of the paper's code ({error})."
        ) from error
    names = list(classes or study.classes)
    count = plan.arguments.pop("outputs")
    if len(names) != count:
        raise ConversionError(
            f"{source.name} has {count} outputs, but {'these are' if classes else study.key + ' has'} {len(names)} "
            f"classes ({', '.join(names)}); name them in order with --classes A,B,..."
        )
    try:
        model = ARCHITECTURES[plan.architecture](task=study.key, classes=names, **plan.arguments)
    except (AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ConversionError(
            f"{source.name} cannot be converted: no {plan.published} has such tensors ({error})."
        ) from error
    wanted = model.state_dict()
    for name in (*plan.tensors, *wanted):
        if name not in plan.tensors or name not in wanted:
            what = "missing" if name in wanted else "not part of that model"
            raise ConversionError(
                f"{source.name} is not a whole {plan.published}: the tensor {name} is {what}."
            )
        if plan.tensors[name].shape != wanted[name].shape:
            raise ConversionError(
                f"{source.name} is not a whole {plan.published}: the tensor {name} has the shape "
                f"{list(plan.tensors[name].shape)}, not {list(wanted[name].shape)}."
            )
    model.load_state_dict(plan.tensors)
    save_model(model.eval(), folder)
    _write_metrics(source, published, plan, folder)
    _write_card(source, published, plan, model, study, folder)
    return model


def read_published(source: Path) -> Published:
    """Reads a published checkpoint without running anything that it holds.

    Raises:
        ConversionError: see `convert`.
    """
    if not source.is_file():
        raise ConversionError(f"There is no file {source}.")
    try:
        with torch.serialization.safe_globals(_allowed()):
            # Optimizer states make up two thirds of a file; mapped into memory they are never read.
            content = torch.load(
                source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source)
            )
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.[\w.]+)", str(error))
        if named:
            raise ConversionError(
                f"{source.name} was refused, and nothing in it was run: besides weights and settings it holds "
                f"{named[1]}, which could run code."
            ) from error
        raise ConversionError(
            f"{source.name} was refused, and nothing in it was run: it is no PyTorch checkpoint, or holds more than "
            "weights and settings."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ConversionError(
            f"{source.name} is no PyTorch checkpoint, or it is damaged (nothing in it was run)."
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ConversionError(f"{source.name} holds no state_dict, so it is no checkpoint of a model.")
    tensors = {}
    for name, value in state.items():
        # torch.compile and data parallelism put their own names in front; the loss's buffers are no part of the model.
        name = re.sub(r"(?:^|(?<=\.))(?:_orig_mod|module)\.", "", str(name))
        if not isinstance(value, Tensor) or name.startswith(("loss", "auc_roc", "acc.")):
            continue
        stored = value.untyped_storage().nbytes() if value.layout == torch.strided else 0
        if stored < value.numel() * value.element_size():
            # A few bytes can claim to be a tensor of terabytes, which copying would make them.
            raise ConversionError(f"{source.name}: the tensor {name} is larger than what is stored of it.")
        if value.is_floating_point():
            value = value.float()
            if not bool(torch.isfinite(value).all()):
                raise ConversionError(f"{source.name}: the tensor {name} has values that are no numbers.")
        tensors[name] = value.clone()
    settings = content.get("hyper_parameters")
    facts = ("epoch", "global_step", "pytorch-lightning_version")
    return Published(
        tensors,
        _plain(settings) if isinstance(settings, Mapping) else {},
        {key: content[key] for key in facts if isinstance(content.get(key), int | str)},
    )


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


def _plain(value: Any) -> Any:
    """Numbers, text, lists and dictionaries as they are; the name of anything else."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__name__", type(value).__name__)


def _check_target(folder: Path) -> None:
    """Refuses a folder with another checkpoint; an earlier conversion may be done again."""
    if folder.exists() and not folder.is_dir():
        raise ConversionError(f"{folder} is a file; name a folder for the checkpoint.")
    if not (folder / CONFIG).exists():
        return
    try:
        earlier = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = {}
    if not isinstance(earlier, dict) or "converted_from" not in earlier:
        raise ConversionError(f"{folder} holds another checkpoint already; name another folder.")


def _write_metrics(source: Path, published: Published, plan: Plan, folder: Path) -> None:
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    metrics = {
        "auc": None,
        "protocol": "not evaluated here: converted from published weights",
        "converted_from": {
            "file": source.name,
            "sha256": digest.hexdigest(),
            "model": plan.published,
            **{key.replace("-", "_"): value for key, value in published.facts.items()},
        },
        "date": date.today().isoformat(),
    }
    (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def _write_card(
    source: Path, published: Published, plan: Plan, model: ScanClassifier, task: Task, folder: Path
) -> None:
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    notes = [
        f"The file `{source.name}` does not say for which study it was trained; {task.key} was named when converting.",
        *plan.notes,
    ]
    if plan.architecture == "slice-transformer":
        notes.append(
            f"DINOv2's position embeddings were interpolated once, by DINOv2's own formula, to slices of "
            f"{IMAGE_SIZE} x {IMAGE_SIZE} pixels."
        )
    settings = json.dumps(published.settings, indent=2, ensure_ascii=False) if published.settings else "none"
    text = f"""---
license: other
library_name: medical-slice-transformer-dashboard
pipeline_tag: image-classification
tags:
  - medical-imaging
  - {task.key}
  - explainability
---

# {folder.resolve().name}

{plan.published} ({millions:.1f} million weights) for the question: {task.question}

**Research and teaching tool. Not a medical device: never use it for diagnosis or treatment.**

## Origin

Converted by `mst convert` from `{source.name}`, a checkpoint in the layout of the paper's published code
({SOURCE}; Müller-Franzes et al., Medical Slice Transformer, arXiv 2411.15802). The weights are those of that file,
under the licence that came with it; this project neither trained nor changed them.

| | |
| --- | --- |
| Input | {" x ".join(map(str, task.grid.shape))} voxels, {task.plane} slices, {task.region} |
| Output | {" or ".join(model.classes)}; saliency by {model.method} |

{chr(10).join("- " + note for note in notes)}

## Figures

None: nothing was measured with this conversion. The paper's figures hold for its own weights and data alone.

## Settings in the file

```json
{settings}
```

## Intended use

Teaching and research on how such models look at scans. Never for decisions about a patient.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
