"""Where a run's log goes: the terminal, TensorBoard, Weights & Biases. The main process alone writes any of it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from mst.training.settings import TrainingError


class Progress(TrainerCallback):
    """A progress bar with the loss; plain lines on standard output where standard error is no terminal.

    Args:
        name: of the run.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._bar: Any = None
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and sys.stderr.isatty():
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.name, dynamic_ncols=True
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        names = {"loss": "loss", "learning_rate": "learning rate", "eval_auc": "validation AUC"}
        known = {names[key]: f"{value:.4g}" for key, value in (logs or {}).items() if key in names}
        if not known or not state.is_world_process_zero:
            return
        self._shown |= known
        if self._bar is not None:
            self._bar.set_postfix(self._shown)
        else:
            told = ", ".join(f"{name} {value}" for name, value in known.items())
            print(f"  step {state.global_step} of {state.max_steps}: {told}", flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def tensorboard_log(folder: Path, step: int) -> Iterator[TrainerCallback]:
    """Writes a run's log into folder/tensorboard during the block.

    Args:
        folder: of the run.
        step: where the run goes on; what was logged beyond it, before the run was cut off, is dropped.

    Raises:
        TrainingError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            "training.tensorboard needs the package tensorboard: pip install '.[train]', or leave the setting out."
        ) from error
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
    try:
        yield TensorBoardCallback(writer)
    finally:
        writer.close()


@contextmanager
def wandb_log(project: str, name: str, folder: Path) -> Iterator[TrainerCallback]:
    """Sends a run's log to a project of Weights & Biases during the block; a run that goes on keeps its page there.

    Args:
        project: its name.
        name: of the run.
        folder: of the run; Weights & Biases keeps its own files there.

    Raises:
        TrainingError: the package is not installed, or there is no login.
    """
    try:
        import wandb
    except ImportError as error:
        raise TrainingError(
            "training.wandb needs the package wandb: pip install wandb, or leave the setting out."
        ) from error
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    try:
        run: Any = wandb.init(project=project, name=name, id=key, resume="allow", dir=str(folder))
    except Exception as error:  # wandb's own kinds differ between its versions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"training.wandb: {reason} (log in with `wandb login`, or leave the setting out)"
        ) from error
    try:
        yield _Wandb(run)
    finally:
        run.finish()


class _Wandb(TrainerCallback):
    def __init__(self, run: Any) -> None:
        self.run = run

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.run.log(dict(logs or {}), step=state.global_step)
