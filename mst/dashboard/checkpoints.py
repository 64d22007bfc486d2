"""The checkpoints as the page names them: no folder of the server goes out, and no other comes in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mst.findings import checkpoints_for
from mst.models import CheckpointError, checkpoint_metrics
from mst.models.loading import checkpoints_folder
from mst.tasks import Task
from mst.words import LABELS, duration


def checkpoint_folders(task: Task, model: str) -> dict[str, Path]:
    """Name -> folder of what can stand for the model "mst" or "resnet", the one to use unasked first."""
    base = checkpoints_folder()
    return {folder.relative_to(base).as_posix(): folder for folder in checkpoints_for(task, model)}


def checkpoint_costs(folders: Mapping[str, Path]) -> str | None:
    """How long an answer of each of these checkpoints takes, as far as it was measured; None: of none it was.

    Beside the names rather than in them, for which a phone and the page's column have no room.
    """
    told = []
    for name, folder in folders.items():
        try:
            seconds = checkpoint_metrics(folder).get("seconds")
        except CheckpointError:
            continue  # told when it is used
        if seconds is not None:
            cores = seconds["cpu_cores"]
            told.append(
                f"{name}: {duration(seconds['median'])} on {cores} CPU core{'' if cores == 1 else 's'}"
            )
    return "; ".join(told) or None


def checkpoint_named(task: Task, model: str, name: str | None) -> Path | None:
    """The folder of a name; None for none, where the first at hand is meant.

    Raises:
        CheckpointError: the study has no checkpoint of that name for this model.
    """
    if not name:
        return None
    folders = checkpoint_folders(task, model)
    if name not in folders:
        raise CheckpointError(
            f"There is no checkpoint {name!r} of the {LABELS[model]} for {task.title}; choose one of the list."
        )
    return folders[name]
