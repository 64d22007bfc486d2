"""From a checkpoint folder or a hub repository to a model, with errors a user can act on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import httpx2
import torch
from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
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
WRITING = ".writing"  # ends the name of a folder that is not whole yet


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
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
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
    except (HFValidationError, HfHubHTTPError) as error:
        raise _hub_error(name, error) from error
    except (SafetensorError, RuntimeError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{name}: the weights do not fit config.json, or the file is damaged ({_first_line(error)})."
        ) from error
    except (OSError, httpx2.HTTPError) as error:
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
    base = checkpoints_folder()
    found: dict[str, list[Path]] = {architecture: [] for architecture in ARCHITECTURES}
    # Two levels, so that a folder of one's own may hold several.
    for config_file in sorted([*base.glob(f"*/{CONFIG}"), *base.glob(f"*/*/{CONFIG}")]):
        try:
            config = json.loads(config_file.read_text(encoding="utf-8"))
            architecture, study = config.get("architecture"), config.get("task")
        except (OSError, ValueError, AttributeError):
            continue
        folder = config_file.parent
        if (
            isinstance(architecture, str)
            and architecture in found
            and folder.suffix != WRITING
            and (folder / WEIGHTS).is_file()
            and task in (None, study)
        ):
            found[architecture].append(folder)
    return found


def _read_config(name: str) -> dict[str, Any]:
    if Path(name).is_dir():
        path = Path(name) / CONFIG
        if not path.is_file():
            raise CheckpointError(f"{name} is a folder without {CONFIG}; it is not a checkpoint.")
    elif Path(name).is_file():
        raise CheckpointError(
            f"{name} is a file, not a checkpoint folder. Weights of the paper's code become one by: "
            f"mst convert {name} FOLDER"
        )
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"There is no checkpoint folder {name}, and it is not a hub repository (owner/name) either."
        )
    else:
        try:
            path = _hub_file(name, CONFIG)
        except (OSError, ValueError, httpx2.HTTPError) as error:
            raise _hub_error(name, error) from error
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{name}: {CONFIG} is not valid JSON.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{name}: {CONFIG} does not hold a model's settings.")
    return config


def _hub_file(name: str, file: str) -> Path:
    """A repository's file, from the hub or, where the hub cannot be reached, from its cache on this machine.

    `hf_hub_download` alone tries for half a minute to reach a hub that is not there; this asks once.
    """
    try:
        get_hf_file_metadata(hf_hub_url(name, file))
    except (httpx2.TransportError, OfflineModeIsEnabled):
        return Path(hf_hub_download(name, file, local_files_only=True))
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise
        return Path(hf_hub_download(name, file, local_files_only=True))
    return Path(hf_hub_download(name, file))


def _hub_error(name: str, error: Exception) -> CheckpointError:
    """What went wrong with a name that is no folder here, and so was looked for on the hub."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError) and (status == 401 or not get_token()):
        text = (
            "is only given to people who accepted its licence, and no access token is at hand: accept the licence "
            "on its hub page, then log in with `hf auth login` or set HF_TOKEN"
        )
    elif isinstance(error, GatedRepoError):
        text = (
            "is only given to people who accepted its licence, and your account has not (or waits for approval): "
            "open its hub page, accept its licence and try again"
        )
    elif isinstance(error, RepositoryNotFoundError):
        text = (
            "is neither a checkpoint folder here nor found on the hub (check the spelling; for a private "
            "repository, log in with `hf auth login`)"
        )
    elif status == 401:
        text = "was not opened: the hub does not accept your access token; log in again with `hf auth login`"
    elif isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        text = (
            f"has no {CONFIG} or {WEIGHTS}, so it is not a checkpoint of this project (weights of the paper's code "
            "become one by `mst convert`)"
        )
    elif isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | httpx2.TransportError):
        text = (
            "is no folder here, and could not be downloaded: there is no connection to the hub, or it does not "
            "answer; use a local checkpoint folder instead"
        )
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

    Raises:
        CheckpointError: it cannot be written, on a full disk for one; a checkpoint that was there before is whole.
    """
    folder = Path(folder)
    staging = folder.with_name(folder.name + WRITING)
    try:
        staging.mkdir(parents=True, exist_ok=True)
        # An empty card stops the mixin from writing a generic one; the training writes the real card.
        (staging / "README.md").touch()
        with torch.no_grad():
            model.save_pretrained(staging)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, CONFIG):
            (staging / name).replace(folder / name)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise CheckpointError(
            f"{folder} could not be written ({reason}). Make room, or check the folder's permissions, and try again; "
            "a checkpoint that was there before is as it was."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder
