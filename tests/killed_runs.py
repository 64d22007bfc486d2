"""Kills a training run again and again and starts it again, until it is done.

    python killed_runs.py SEED TIMES [train.py's arguments ...]

It is killed at four chosen moments of saving, then up to TIMES more at moments drawn with SEED.

The program is imported once; each attempt is a fork of this process, so that many fit into a test. Prints a JSON
list of how each attempt ended.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import torch

import train
from mst.training import trainer


def kill_itself() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def killed_while_saving(nth: int) -> None:
    """Dies in the middle of the nth file that `torch.save` writes, half of which is then there."""
    save = torch.save
    left = [nth]

    def half(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        save(value, file, *args, **kwargs)
        left[0] -= 1
        if left[0] == 0:
            os.truncate(file, Path(file).stat().st_size // 2)
            kill_itself()

    torch.save = half


def killed_before_it_is_whole() -> None:
    """Dies when a checkpoint is written but for the file that says so."""
    trainer.StudyTrainer._forget_old = lambda *_: None  # type: ignore[method-assign]
    trainer.processes.wait = kill_itself  # type: ignore[assignment]


def killed_while_forgetting() -> None:
    """Dies when it has begun to remove an old checkpoint."""
    trainer.shutil.rmtree = lambda *_, **__: kill_itself()  # type: ignore[assignment]


def attempt(arguments: list[str], prepare: Any = None, after: float | None = None) -> str:
    """Forks, trains, and kills after some seconds; returns "done" or "killed"."""
    child = os.fork()
    if child == 0:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  (for the rest of this process)
        if prepare:
            prepare()
        os._exit(train.main(arguments))
    ends = time.monotonic() + (after if after is not None else 120)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if os.WIFSIGNALED(status):
                return "killed"
            return "done" if os.WEXITSTATUS(status) == 0 else f"status {os.WEXITSTATUS(status)}"
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
            ends = float("inf")
        time.sleep(0.002)


if __name__ == "__main__":
    chance = random.Random(int(sys.argv[1]))
    times, rest = int(sys.argv[2]), sys.argv[3:]
    ends = [
        attempt(rest, lambda: killed_while_saving(1)),  # no checkpoint is whole yet
        attempt(rest, lambda: killed_while_saving(7)),
        attempt(rest, killed_before_it_is_whole),
        attempt(rest, killed_while_forgetting),
    ]
    for _ in range(times):
        ends.append(attempt(rest, after=chance.uniform(0.1, 2.5)))
        if ends[-1] == "done":
            break
    else:
        ends.append(attempt(rest))
    print(json.dumps(ends))
