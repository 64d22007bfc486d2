"""From a checkpoint folder or a hub repository to a model, with errors a user can act on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError

from mst.models.base import ScanClassifier
from mst.models.resnet3d import ResNet3D
from mst.models.resnet_slices import ResNetSliceTransformer
from mst.models.slice_transformer import SliceTransformer

ARCHITECTURES: dict[str, type[ScanClassifier]] = {
    "slice-transformer": SliceTransformer,
    "resnet-slice-transformer": ResNetSliceTransformer,
    "resnet3d": ResNet3D,
}
CONFIG, WEIGHTS, METRICS = "config.json", "model.safetensors", "metrics.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message says what is wrong and what to do."""


def load_model(source: str | Path) -> ScanClassifier:
    """Loads a model in evaluation mode on the CPU.

    Args:
        source: a checkpoint folder (config.json, model.safetensors) or a repository id on the Hugging Face
            hub ("owner/name"). A folder that exists wins.

    Raises:
        CheckpointError: no such folder or repository, no access, no network, or a damaged checkpoint.
    """
    name = str(source)
    config = _read_config(name)
    architecture = config.get("architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError(
            f"{name}: the architecture in config.json is {architecture!r}; known are {known}."
        )
    try:
        if Path(name).is_dir():
            if not (Path(name) / WEIGHTS).is_file():
                raise CheckpointError(f"{name} has no {WEIGHTS}.")
            model_class = ARCHITECTURES[architecture]
            model = model_class._load_as_safetensor(
                model_class(**config), Path(name) / WEIGHTS, "cpu", strict=True
            )
        else:
            model = ARCHITECTURES[architecture].from_pretrained(name)
    except CheckpointError:
        raise
    except (SafetensorError, RuntimeError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{name}: the weights do not fit config.json, or the file is damaged ({_first_line(error)})."
        ) from error
    except (OSError, httpx.HTTPError) as error:
        raise _hub_error(name, error) from error
    return model.eval()


def checkpoint_metrics(source: str | Path) -> dict[str, Any]:
    """metrics.json of a checkpoint folder; {} where there is none."""
    path = Path(source) / METRICS
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def checkpoint_grid(folder: str | Path) -> dict[str, Any]:
    """The input grid in a checkpoint folder's config.json; {} where it has the study's own."""
    return _read_config(str(folder)).get("grid") or {}


def checkpoints_folder() -> Path:
    """Where the shipped checkpoints lie: MST_CHECKPOINTS, else `checkpoints` beside the package."""
    folder = os.environ.get("MST_CHECKPOINTS")
    return Path(folder) if folder else Path(__file__).resolve().parents[2] / "checkpoints"


def list_checkpoints(task: str | None = None) -> dict[str, list[Path]]:
    """The checkpoint folders at hand, by architecture.

    Args:
        task: only those for this study.

    Returns:
        An entry for each of `ARCHITECTURES`, such as {"slice-transformer": [folders], ...}, sorted by name.
    """
    found: dict[str, list[Path]] = {architecture: [] for architecture in ARCHITECTURES}
    for config_file in sorted(checkpoints_folder().glob(f"*/{CONFIG}")):
        try:
            config = json.loads(config_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        folder = config_file.parent
        if (
            config.get("architecture") in found
            and (folder / WEIGHTS).is_file()
            and task in (None, config.get("task"))
        ):
            found[config["architecture"]].append(folder)
    return found


def _read_config(name: str) -> dict[str, Any]:
    if Path(name).is_dir():
        path = Path(name) / CONFIG
        if not path.is_file():
            raise CheckpointError(f"{name} is a folder without {CONFIG}; it is not a checkpoint.")
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"There is no checkpoint folder {name}, and it is not a hub repository (owner/name) either."
        )
    else:
        try:
            path = Path(hf_hub_download(name, CONFIG))
        except (OSError, ValueError, httpx.HTTPError) as error:
            raise _hub_error(name, error) from error
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{name}: {CONFIG} is not valid JSON.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{name}: {CONFIG} does not hold a model's settings.")
    return config


def _hub_error(name: str, error: Exception) -> CheckpointError:
    if isinstance(error, GatedRepoError):
        text = "asks you to accept its licence: do so on its hub page, then log in with `hf auth login`"
    elif isinstance(error, RepositoryNotFoundError):
        text = "was not found on the hub (or is private: log in with `hf auth login`)"
    elif isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | httpx.TransportError):
        text = "could not be downloaded: there is no connection to the hub; use a local checkpoint folder instead"
    elif isinstance(error, EntryNotFoundError):
        text = f"has no {CONFIG} or {WEIGHTS}, so it is not a checkpoint of this project"
    elif isinstance(error, HFValidationError):
        text = "is neither a checkpoint folder nor a hub repository (owner/name)"
    else:
        text = f"could not be read ({_first_line(error)})"
    return CheckpointError(f"{name} {text}.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def save_model(model: ScanClassifier, folder: str | Path) -> Path:
    """Writes config.json and model.safetensors into a folder whole or not at all, and returns it.

    Other files in the folder (the model card, metrics.json) are left as they are.
    """
    folder = Path(folder)
    staging = folder.with_name(folder.name + ".writing")
    staging.mkdir(parents=True, exist_ok=True)
    # An empty card stops the mixin from writing a generic one; the training writes the real card.
    (staging / "README.md").touch()
    with torch.no_grad():
        model.save_pretrained(staging)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, CONFIG):
        (staging / name).replace(folder / name)
    (staging / "README.md").unlink()
    staging.rmdir()
    return folder
