"""Which checkpoints stand for the models of a study, and the few of them that are kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from mst.errors import CheckpointError
from mst.models import checkpoint_metrics, list_checkpoints, load_model
from mst.models.base import ScanClassifier
from mst.models.loading import ARCHITECTURES, checkpoint_identity, checkpoint_name
from mst.tasks import Task
from mst.words import LABELS

# A model's short name in results -> the architectures that may stand there, the preferred one first.
MODELS = {"mst": ("slice-transformer", "resnet-slice-transformer"), "resnet": ("resnet3d",)}
# What the project's own checkpoints of a study are called behind its name, the one that measures best first.
OWN = {"mst": ("mst-dinov2", "mst"), "resnet": ("resnet34", "resnet")}
MAX_KEPT = 6  # models in memory


def resolve_checkpoints(task: Task, models: Mapping[str, str | Path | None] | None = None) -> dict[str, str]:
    """Which checkpoint to use for each model.

    Raises:
        CheckpointError: none is given and none is at hand.
    """
    chosen = {name: str(checkpoint) for name, checkpoint in (models or {}).items() if checkpoint}
    if unknown := set(chosen) - set(MODELS):
        raise ValueError(f"there is no model {', '.join(sorted(unknown))}; choose from {', '.join(MODELS)}")
    for name in MODELS:
        at_hand = checkpoints_for(task, name)
        if name not in chosen and at_hand:
            chosen[name] = str(at_hand[0])
    if not chosen:
        raise CheckpointError(
            f"There is no checkpoint for {task.title} at hand: train one with train.py, or put one into the "
            "checkpoints folder."
        )
    return {name: chosen[name] for name in MODELS if name in chosen}


def checkpoints_for(task: Task, name: str) -> list[Path]:
    """The checkpoint folders at hand for a study that can stand for the model "mst" or "resnet".

    The first is used where none is named: the best of the project's own (`OWN`) that is there, so that weights put
    beside it never take its place unasked. Nor do they where it is damaged: loading it says so.
    """
    at_hand = list_checkpoints(task.key)
    folders = [folder for architecture in MODELS[name] for folder in at_hand[architecture]]
    own = [f"{task.key}-{ending}" for ending in OWN[name]]
    return sorted(folders, key=lambda folder: own.index(folder.name) if folder.name in own else len(own))


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint in memory: nothing in it changes any more, so that any number of threads may use it."""

    model: ScanClassifier
    metrics: dict[str, Any]
    identity: str


_kept: OrderedDict[str, LoadedModel] = OrderedDict()
_loading = Lock()


def cached_model(checkpoint: str) -> ScanClassifier:
    """Loads a checkpoint once; again when what is in its folder has changed.

    Raises:
        CheckpointError: it cannot be used.
    """
    return loaded(checkpoint).model


def loaded(checkpoint: str) -> LoadedModel:
    # One at a time: two threads that want the same model get the same.
    with _loading:
        identity = checkpoint_identity(checkpoint)
        kept = _kept.get(checkpoint)
        if kept is None or kept.identity != identity:
            kept = LoadedModel(load_model(checkpoint), checkpoint_metrics(checkpoint), identity)
            if checkpoint_identity(checkpoint) != identity:
                raise CheckpointError(
                    f"{checkpoint_name(checkpoint)} was changed while it was read; try again once it is whole."
                )
            _kept[checkpoint] = kept
        _kept.move_to_end(checkpoint)
        while len(_kept) > MAX_KEPT:
            _kept.popitem(last=False)
        return kept


def check_study(model: ScanClassifier, checkpoint: str, task: Task) -> None:
    """Refuses a model that was trained for another study, or that cannot take the grid in its settings.

    Raises:
        CheckpointError: it was, or it cannot.
    """
    if model.task != task.key:
        raise CheckpointError(
            f"{checkpoint_name(checkpoint)} was trained for {model.task}, not for {task.key}."
        )
    try:
        model.check_grid(task.grid.override(model.grid))
    except ValueError as error:
        raise CheckpointError(f"{checkpoint_name(checkpoint)}: its grid cannot be used ({error}).") from error


def check_slot(name: str, checkpoint: str, model: ScanClassifier) -> None:
    """Refuses a checkpoint in the other model's place: its result would carry the wrong name."""
    if not any(isinstance(model, ARCHITECTURES[architecture]) for architecture in MODELS[name]):
        other = next(key for key in MODELS if key != name)
        raise CheckpointError(
            f"{checkpoint_name(checkpoint)} is no {LABELS[name]}; name it as the {other} model instead."
        )
