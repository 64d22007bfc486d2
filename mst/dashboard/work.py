"""What takes memory and time, reading and predicting, so many at once and no more, whoever asks and by which way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from threading import BoundedSemaphore
from typing import Any, ParamSpec, TypeVar

from mst import findings, scans
from mst.dashboard.checkpoints import checkpoint_named
from mst.findings import Finding
from mst.models import CheckpointError
from mst.models.loading import checkpoints_folder
from mst.scans import Scan
from mst.tasks import get_task

AT_ONCE = 2

P = ParamSpec("P")
R = TypeVar("R")
_places = BoundedSemaphore(AT_ONCE)


def limited(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which waits for one of `AT_ONCE` places. Such functions must not call each other."""

    @wraps(function)
    def wait_and_call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _places:
            return function(*args, **kwargs)

    return wait_and_call


read_scan = limited(scans.read_scan)
as_mask = limited(findings.as_mask)


@limited
def predict(
    scan: Scan, task: str, *args: Any, models: Mapping[str, str | None] | None = None, **kwargs: Any
) -> dict[str, Finding]:
    """`mst.predict` for the page: models by the names of `checkpoint_folders`, and no path in a message.

    Raises:
        ScanError, CheckpointError, ValueError: as `mst.predict`, and for a name that is not in the list.
    """
    study = get_task(task)
    chosen = {name: checkpoint_named(study, name, wanted) for name, wanted in (models or {}).items()}
    try:
        return findings.predict(scan, task, *args, models=chosen, **kwargs)
    except CheckpointError as error:
        # On the command line the folder is what one needs to know; a visitor only needs the name.
        raise CheckpointError(str(error).replace(f"{checkpoints_folder()}/", "")) from error
