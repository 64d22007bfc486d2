"""The paper's published weights (github.com/mueller-franzes/MST) as checkpoint folders of this project.

The published files are PyTorch Lightning checkpoints, and so pickles, which can run code. They are read by
`torch.load(weights_only=True)`; of the classes in their `hyper_parameters` only a few names are let through, and each
of those becomes an empty stand-in, so that not even the harmless class is used.

What becomes of a file's tensors and settings is decided in `mst.models.layouts`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mst.models.base import ScanClassifier
from mst.models.layouts import IMAGE_SIZE, ConversionError, Plan, Published, plan_conversion
from mst.models.loading import ARCHITECTURES, CONFIG, METRICS, save_model
from mst.tasks import Task, get_task

SOURCE = "github.com/mueller-franzes/MST"
LONGEST_SETTINGS = 5000  # characters of a file's settings in the model card


class _Named:
    """Stands for a class in `hyper_parameters`: takes whatever the pickle gives it and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Named:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


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
    stands: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (type(name.rpartition(".")[2], (_Named,), {}), name) for name in names
    ]
    # Lightning's AttributeDict is a dictionary; torch.load fills an OrderedDict, but no other subclass of dict.
    stands += [(OrderedDict, name) for name in settings]
    return stands


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
        InputError: an unknown study.
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
    save_model(model.eval(), folder.resolve())
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
        with torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that is refused, one line is told and no more
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
    if len(settings) > LONGEST_SETTINGS:
        settings = settings[:LONGEST_SETTINGS] + "\n..."
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
