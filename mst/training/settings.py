"""What a config's `training:` section may say, checked before anything is read or trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any

from mst.errors import InputError
from mst.tasks import get_task
from mst.training.augment import Augmentation

# Settings that change how a run is watched, kept or computed, but not what is learnt (up to float noise): a run
# may go on with others.
IDLE = {"save_every", "log_every", "workers", "checkpoint_gradients", "tensorboard", "wandb"}
SCHEDULES = ("cosine", "constant")


class TrainingError(InputError):
    """A run that cannot begin or go on; the message says what to do."""


@dataclass(frozen=True)
class EarlyStopping:
    """Stops when the AUC of cases held out from training grows no more, and keeps the weights of the best AUC.

    Attributes:
        every: steps between two evaluations. A checkpoint of the run is written at each.
        patience: evaluations without a better AUC before training stops.
        folds: one of so many folds, by patient, is held out from a run's training cases for it.
        metric: what is watched; "auc" alone.
    """

    every: int
    patience: int
    folds: int = 5
    metric: str = "auc"


@dataclass(frozen=True)
class TrainingSettings:
    """One run's optimisation.

    Attributes:
        steps: optimiser steps; with early stopping, the most.
        batch: samples of one forward pass, over all processes together.
        learning_rate: AdamW's, after the warm-up.
        encoder_learning_rate: for the 2D encoder; None: the same.
        layer_decay: the encoder's last layer has its full rate, each layer before it this much of the next one's,
            and the embeddings that of a layer before the first (Clark et al., ELECTRA, arXiv 2003.10555);
            None: all layers alike. DINOv2 encoders only.
        weight_decay: AdamW's, for matrices and kernels.
        schedule: of the rate: "cosine" down to zero, or "constant".
        warmup: steps of linear increase.
        clip_gradient: largest norm of a step's gradient; 0: not clipped.
        accumulate: forward passes a step, so that a step sees batch * accumulate samples.
        checkpoint_gradients: recompute the encoder's activations in the backward pass: less memory, more time.
        bf16, fp16: mixed precision; fp16 needs a GPU.
        early_stopping: see `EarlyStopping`; None: all steps are made and the last weights kept.
        save_every: steps between two checkpoints of the run (early stopping has its own).
        log_every: steps between two lines of the log.
        workers: processes that cut out samples ahead of time; 0: the training process does it.
        tensorboard: whether the log is also written for TensorBoard, into the run's folder.
        wandb: project of Weights & Biases that the log is sent to; None: nothing is sent.
    """

    steps: int
    batch: int
    learning_rate: float
    encoder_learning_rate: float | None = None
    layer_decay: float | None = None
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: int = 0
    clip_gradient: float = 1.0
    accumulate: int = 1
    checkpoint_gradients: bool = False
    bf16: bool = False
    fp16: bool = False
    early_stopping: EarlyStopping | None = None
    save_every: int = 100
    log_every: int = 20
    workers: int = 0
    tensorboard: bool = False
    wandb: str | None = None

    @property
    def samples(self) -> int:
        """How many samples a run draws at most."""
        return self.steps * self.batch * self.accumulate

    @classmethod
    def from_config(cls, section: Any) -> TrainingSettings:
        """From a config's `training`.

        Raises:
            TrainingError: a setting that there is none of, one that is missing, or one of a wrong kind.
        """
        values = _read(section, "training", cls, _TRAINING)
        if (stopping := values.get("early_stopping")) is not None:
            name = "training.early_stopping"
            values["early_stopping"] = EarlyStopping(**_read(stopping, name, EarlyStopping, _STOPPING))
        if values.get("bf16") and values.get("fp16"):
            raise TrainingError("training: bf16 and fp16 exclude each other.")
        return cls(**values)


def check_config(config: dict[str, Any]) -> None:
    """Checks what can be checked of a config, its pre-training and its steps without any data.

    Raises:
        TrainingError: the message names the file and the setting.
    """
    before = config.get("pretraining")
    for inner in (before, *config.get("steps", [])):
        if isinstance(inner, dict):
            check_config(inner)
    try:
        get_task(config.get("task", ""))
        if config["kind"] == "study":
            _known(config, "the config", {*_ANY, *_STUDY})
            if not all(_trains(step) for step in config.get("steps", [])):
                raise TrainingError("not every one of the steps is a config that trains a model.")
            return
        if config["kind"] != "classifier":
            raise TrainingError(f"the kind {config['kind']!r} is neither study nor classifier.")
        TrainingSettings.from_config(config.get("training"))
        _known(config, "the config", {*_ANY, *_CLASSIFIER})
        if before and not _trains(before):
            raise TrainingError("pretraining is no config that trains a model.")
        if not before and "model" not in config:
            raise TrainingError("the config lacks a model, or a pretraining that gives one.")
        Augmentation.from_config(config.get("augment"))
        if (dense := config.get("dense")) is not None:
            _check_ratings(dense, "dense", ("weight", "scan_weight"))
        if (scan_ratings := config.get("scan_ratings")) is not None:
            _check_ratings(scan_ratings, "scan_ratings", ("weight",))
            if dense is not None:
                raise TrainingError("scan_ratings and dense exclude each other: dense has a scan_weight.")
        if config.get("window") and config.get("dense") is None:
            raise TrainingError("window needs dense.")
        if config.get("focus") and not config.get("keep_slices"):
            raise TrainingError("focus is of the slices that keep_slices keeps.")
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{config['file']}: {error}") from error


def _trains(config: Any) -> bool:
    return isinstance(config, dict) and config.get("kind") == "classifier"


def _known(section: Any, name: str, known: set[str]) -> None:
    if not isinstance(section, dict):
        raise TrainingError(f"{name} is {section!r}, not a list of settings.")
    if unknown := sorted(str(key) for key in section if key not in known):
        raise TrainingError(f"{name} has no setting {', '.join(unknown)}; known: {', '.join(sorted(known))}")


def _check_ratings(section: Any, name: str, weights: tuple[str, ...]) -> None:
    _known(section, name, {*weights, "ratings"})
    for key in weights:
        value = section.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise TrainingError(f"{name}.{key} is {value!r}, not a number of at least 0")
    ratings = section.get("ratings", {})
    if not isinstance(ratings, dict):
        raise TrainingError(f"{name}.ratings is {ratings!r}, not columns with their lowest and highest value")
    for column, limits in ratings.items():
        numbers = (
            isinstance(limits, list) and len(limits) == 2 and all(isinstance(n, int | float) for n in limits)
        )
        if not numbers or limits[0] >= limits[1]:
            raise TrainingError(f"{name}.ratings.{column} is {limits!r}, not [lowest, highest]")


def _read(section: Any, name: str, cls: type, checks: dict[str, Check]) -> dict[str, Any]:
    """The section's values, each checked; None stands for "not set" where that is the default."""
    known = {field.name: field for field in fields(cls)}
    _known(section, name, set(known))
    needed = [key for key, field in known.items() if field.default is MISSING and section.get(key) is None]
    if needed:
        raise TrainingError(f"{name} lacks {', '.join(needed)}")
    values = {}
    for key, value in section.items():
        if value is None and known[key].default is None:
            continue
        try:
            values[key] = checks[key].read(value)
        except (ValueError, TypeError):
            raise TrainingError(f"{name}.{key} is {value!r}, not {checks[key].text}") from None
    return values


@dataclass(frozen=True)
class Check:
    """How a setting is read, and what it must be in words."""

    read: Callable[[Any], Any]
    text: str


def _whole(least: int) -> Check:
    def read(value: Any) -> int:
        if isinstance(value, bool) or int(value) != float(value) or int(value) < least:
            raise ValueError
        return int(value)

    return Check(read, f"a whole number of at least {least}")


def _number(least: float, most: float, text: str) -> Check:
    def read(value: Any) -> float:
        # YAML takes 1e-6 without a point for text.
        number = float(value)
        if isinstance(value, bool) or not least <= number <= most:
            raise ValueError
        return number

    return Check(read, text)


def _same(kind: type, text: str) -> Check:
    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return Check(read, text)


def _one_of(*choices: str) -> Check:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return value

    return Check(read, " or ".join(choices))


# The names that a config may have, by its kind.
_ANY = ("name", "kind", "file", "task", "folds", "seed", "data", "dataset", "cross_validate")
_STUDY = ("steps",)
_CLASSIFIER = (
    "simulated",
    "shares",
    "balanced",
    "augment",
    "training",
    "pretraining",
    "model",
    "keep_slices",
    "dense",
    "scan_ratings",
    "free",
    "focus",
    "window",
    "frozen_layers",
)
_RATE = _number(1e-30, 1e3, "a number above 0")
_SWITCH = _same(bool, "true or false")
_TRAINING = {
    "steps": _whole(1),
    "batch": _whole(1),
    "learning_rate": _RATE,
    "encoder_learning_rate": _RATE,
    "layer_decay": _number(1e-3, 1, "a number between 0 and 1"),
    "weight_decay": _number(0, 1e3, "a number of at least 0"),
    "schedule": _one_of(*SCHEDULES),
    "warmup": _whole(0),
    "clip_gradient": _number(0, 1e9, "a number of at least 0"),
    "accumulate": _whole(1),
    "checkpoint_gradients": _SWITCH,
    "bf16": _SWITCH,
    "fp16": _SWITCH,
    "early_stopping": _same(dict, "a list of settings (every, patience, folds)"),
    "save_every": _whole(1),
    "log_every": _whole(1),
    "workers": _whole(0),
    "tensorboard": _SWITCH,
    "wandb": _same(str, "the name of a project"),
}
_STOPPING = {"every": _whole(1), "patience": _whole(1), "folds": _whole(2), "metric": _one_of("auc")}
