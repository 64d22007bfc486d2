"""From a checkpoint folder or a hub repository to a model, with errors a user can act on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from copy import deepcopy
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from threading import Lock
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

from mst.errors import CheckpointError
from mst.models.base import ScanClassifier
from mst.models.resnet3d import ResNet3D
from mst.models.resnet_slices import ResNetSliceTransformer
from mst.models.slice_transformer import SliceTransformer
from mst.tasks import TASKS

ARCHITECTURES: dict[str, type[ScanClassifier]] = {
    "slice-transformer": SliceTransformer,
    "resnet-slice-transformer": ResNetSliceTransformer,
    "resnet3d": ResNet3D,
}
# How the project's own folders are called: the study's key, a hyphen and one of these; the longer name first.
NAMED = {"mst-resnet": "resnet-slice-transformer", "mst": "slice-transformer", "resnet": "resnet3d"}
CONFIG, WEIGHTS, METRICS = "config.json", "model.safetensors", "metrics.json"
WRITING = ".writing"  # ends the name of a folder that is not whole yet


@dataclass(frozen=True)
class _Seen:
    """A file's content, known by what its folder says of it: as long as that stays, it is not read again."""

    stamp: tuple[int, ...]
    digest: str


_seen: dict[Path, _Seen] = {}
_lock = Lock()


def load_model(source: str | Path) -> ScanClassifier:
    """Loads a model in evaluation mode on the CPU.

    Args:
        source: a checkpoint folder (config.json, model.safetensors) or a repository id on the Hugging Face
            hub ("owner/name"). A folder that exists wins.

    Raises:
        CheckpointError: no such folder or repository, no access, no network, or a damaged checkpoint, one whose
            weights are not all finite included.
    """
    name, called = str(source), checkpoint_name(source)
    config = _read_config(name)
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError(
            f"{called}: the architecture in config.json is {architecture!r}; known are {known}."
        )
    settings = _known_settings(ARCHITECTURES[architecture], config, called)
    try:
        # A model that was made in inference mode could never be asked for a gradient afterwards.
        with torch.inference_mode(False):
            if Path(name).is_dir():
                if not (Path(name) / WEIGHTS).is_file():
                    raise CheckpointError(f"{called} has no {WEIGHTS}.")
                model_class = ARCHITECTURES[architecture]
                model = model_class._load_as_safetensor(
                    model_class(**settings), Path(name) / WEIGHTS, "cpu", strict=True
                )
            else:
                model = ARCHITECTURES[architecture].from_pretrained(name)
    except CheckpointError:
        raise
    except (HFValidationError, HfHubHTTPError) as error:
        raise _hub_error(name, error) from error
    except (OSError, httpx2.HTTPError) as error:
        if Path(name).is_dir():
            raise CheckpointError(f"{called} cannot be read ({_reason(error)}).") from error
        raise _hub_error(name, error) from error
    except Exception as error:
        # Settings of any kind may stand in a config.json, and fail in any way.
        raise CheckpointError(
            f"{called}: the weights do not fit config.json, or the file is damaged ({_reason(error)})."
        ) from error
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise CheckpointError(
            f"{called}: some of its weights are no numbers (NaN or infinite), so it can give no answer; "
            "download or train it again."
        )
    return model.eval()


def _known_settings(model_class: type[ScanClassifier], config: dict[str, Any], called: str) -> dict[str, Any]:
    """What of a config.json the model takes: a setting of another version that was left empty makes no difference.

    Raises:
        CheckpointError: there is one that was not left empty.
    """
    known = signature(model_class.__init__).parameters
    if foreign := sorted(key for key, value in config.items() if key not in known and value is not None):
        names = ", ".join(map(repr, foreign))[:200]
        raise CheckpointError(
            f"{called}: its {CONFIG} has settings that this version does not know ({names}); the model was made by "
            "another version. Use that one, or train the model again."
        )
    return {key: value for key, value in config.items() if key in known}


def checkpoint_name(source: str | Path) -> str:
    """What results and messages call a checkpoint: its folder's name, never a path, or its repository."""
    path = Path(source)
    if path.exists() or not _is_repository(str(source)):
        return path.name or path.resolve().name or "the root folder"
    return str(source)


def checkpoint_identity(source: str | Path) -> str:
    """A hash of a checkpoint folder's content: it changes when settings, weights or figures do.

    A file is read again only where its size, times or place on the disk have changed; the last of the times (ctime) is
    one that nobody can set back. "" for a repository, which is loaded once.
    """
    folder = Path(source)
    if not folder.is_dir():
        return ""
    digests = [_digest(folder / file) for file in (CONFIG, WEIGHTS, METRICS)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _digest(path: Path) -> str:
    try:
        status = path.stat()
        stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev)
        with _lock:
            known = _seen.get(path)
        if known is None or known.stamp != stamp:
            with path.open("rb") as file:
                known = _Seen(stamp, hashlib.file_digest(file, "sha256").hexdigest())
            with _lock:
                _seen[path] = known
    except OSError:
        return "-"
    return known.digest


def checkpoint_metrics(source: str | Path) -> dict[str, Any]:
    """metrics.json of a checkpoint folder or hub repository; {} where there is none.

    Returns:
        As it is in the file. Whatever the project reads of it has been checked: "auc", "pointing_off_centre" and
        "pointing_middle" (0 to 1, or None), "auc_ci95" (two such numbers, or None), "protocol" (text), "seconds"
        (None, or the "median" time of an answer on so many "cpu_cores").

    Raises:
        CheckpointError: it is not what it should be.
    """
    name, called = str(source), checkpoint_name(source)
    if Path(name).is_dir():
        path = Path(name) / METRICS
        if not path.exists():
            return {}
    else:
        try:
            path = _hub_file(name, METRICS)
        except (OSError, ValueError, httpx2.HTTPError):
            return {}  # the weights may be used without figures
    metrics = _read_object(path, called)
    for share in ("auc", "pointing_off_centre", "pointing_middle"):
        if not (metrics.get(share) is None or _is_share(metrics[share])):
            raise _damaged_metrics(called, f"{share} is not a number from 0 to 1")
    interval = metrics.get("auc_ci95")
    if interval is not None and not (
        isinstance(interval, list) and len(interval) == 2 and all(map(_is_share, interval))
    ):
        raise _damaged_metrics(called, "auc_ci95 is not two numbers from 0 to 1")
    if not isinstance(metrics.get("protocol", ""), str):
        raise _damaged_metrics(called, "protocol is not text")
    seconds = metrics.get("seconds")
    if seconds is not None and not (
        isinstance(seconds, dict)
        and _is_number(seconds.get("median"))
        and isinstance(seconds.get("cpu_cores"), int)
        and _is_number(seconds["cpu_cores"])
    ):
        raise _damaged_metrics(called, "seconds is not a median and a number of cpu_cores, both above 0")
    return metrics


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _damaged_metrics(called: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{called}: its {METRICS} is damaged ({what}); restore the file, or remove it to go without figures."
    )


def checkpoint_grid(folder: str | Path) -> dict[str, Any]:
    """The input grid in a checkpoint folder's config.json; {} where it has the study's own.

    Raises:
        CheckpointError: there is no such folder, or its config.json is damaged.
    """
    grid = _read_config(str(folder)).get("grid") or {}
    if not isinstance(grid, dict):
        raise CheckpointError(f"{checkpoint_name(folder)}: the grid in {CONFIG} is none.")
    return grid


def checkpoints_folder() -> Path:
    """Where the shipped checkpoints lie: MST_CHECKPOINTS, else `checkpoints` beside the package."""
    folder = os.environ.get("MST_CHECKPOINTS")
    return Path(folder) if folder else Path(__file__).resolve().parents[2] / "checkpoints"


def list_checkpoints(task: str | None = None) -> dict[str, list[Path]]:
    """The checkpoint folders at hand, by architecture.

    A folder that cannot be used is listed too, so that whoever would have used it is told: `load_model` says what it
    lacks. What it is for, its config.json says, or else its name, such as chest-ct-mst.

    Args:
        task: only those for this study.

    Returns:
        An entry for each of `ARCHITECTURES`, such as {"slice-transformer": [folders], ...}, sorted by name.
    """
    base = checkpoints_folder()
    found: dict[str, list[Path]] = {architecture: [] for architecture in ARCHITECTURES}
    # Two levels, so that a folder of one's own may hold several.
    for folder in sorted(path for depth in ("*", "*/*") for path in base.glob(depth) if path.is_dir()):
        if folder.name.endswith(WRITING):
            continue
        try:
            config = _read_config(str(folder))
            architecture, study = config.get("architecture"), config.get("task")
        except CheckpointError:
            architecture, study = _told_by_name(folder.name)
        if isinstance(architecture, str) and architecture in found and task in (None, study):
            found[architecture].append(folder)
    return found


def _told_by_name(name: str) -> tuple[str | None, str | None]:
    """(architecture, study) of a checkpoint folder, as far as its name tells."""
    for study in TASKS:
        for ending, architecture in NAMED.items():
            if name.startswith(f"{study}-{ending}"):
                return architecture, study
    return None, None


def _read_config(name: str) -> dict[str, Any]:
    called = checkpoint_name(name)
    if Path(name).is_dir():
        path = Path(name) / CONFIG
        if not path.is_file():
            raise CheckpointError(f"{called} is a folder without {CONFIG}; it is not a checkpoint.")
    elif Path(name).is_file():
        raise CheckpointError(
            f"{called} is a file, not a checkpoint folder. Weights of the paper's code become one by: "
            f"mst convert {called} FOLDER"
        )
    elif not _is_repository(name):
        raise CheckpointError(
            f"There is no checkpoint folder {called}, and it is not a hub repository (owner/name) either."
        )
    else:
        try:
            path = _hub_file(name, CONFIG)
        except (OSError, ValueError, httpx2.HTTPError) as error:
            raise _hub_error(name, error) from error
    return _read_object(path, called)


def _is_repository(name: str) -> bool:
    """Whether a name that is no folder here may be one on the hub."""
    return not name.startswith((".", "/", "~")) and "\\" not in name and name.count("/") == 1


def _read_object(path: Path, called: str) -> dict[str, Any]:
    """A JSON file of a checkpoint that holds an object.

    Raises:
        CheckpointError: it cannot be read, or holds something else, or a number that is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise CheckpointError(f"{called}: {path.name} cannot be read ({_reason(error)}).") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{called}: {path.name} is not valid JSON; restore the file.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{called}: {path.name} does not hold named values; restore the file.")
    return content


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


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
        text = f"could not be read ({_reason(error)})"
    return CheckpointError(f"{name} {text}.")


def _reason(error: Exception) -> str:
    """An error in a few words, without the folders of this machine that a library may name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"(?:[A-Za-z]:)?[\\/](?:[^\s'\"\\/]+[\\/])+", "", line)[:200]


def save_model(model: ScanClassifier, folder: str | Path, half: bool = False) -> Path:
    """Writes config.json and model.safetensors into a folder whole or not at all, and returns it.

    Other files in the folder (the model card, metrics.json) are left as they are.

    Args:
        half: write the weights in float16, half as large; `load_model` makes float32 of them again.

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
            (deepcopy(model).half() if half else model).save_pretrained(staging)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, CONFIG):
            (staging / name).replace(folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder.name} could not be written ({_reason(error)}). Make room, or check the folder's permissions, and "
            "try again; a checkpoint that was there before is as it was."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder
