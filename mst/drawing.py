"""Matplotlib for several evaluations at once.

Its settings belong to the whole process. Two figures that each change them for a while would put each other's back
half-way, and one of them would come out with the other's. So figures are made one after the other, without pyplot,
whose current figure is the process's as well; a figure takes about a second, nearly all of it in Python, which runs
one thread at a time anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from matplotlib import rc_context

# It would tell a read-only home folder, or a letter that its font lacks, on standard error.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

_one_at_a_time = Lock()


@contextmanager
def drawing(settings: dict[Any, Any]) -> Iterator[None]:
    """Everything from the first figure to the last byte happens within the block, with these of Matplotlib's settings.

    Must not be nested.
    """
    with _one_at_a_time, rc_context(settings):
        yield
