"""What a config may say, checked before anything is read or trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mst.errors import InputError
from mst.tasks import get_task
from mst.training.augment import Augmentation
from mst.training.sections import (
    Count,
    Limits,
    Number,
    Rate,
    Settings,
    Share,
    Some,
    TrainingError,
    Weight,
    Whole,
    read_section,
)

# Settings that change how a run is watched, kept or computed, but not what is learnt (up to float noise): a run
# may go on with others.
IDLE = {"save_every", "log_every", "workers", "checkpoint_gradients", "tensorboard", "wandb"}


class EarlyStopping(Settings):
    """Stops when the AUC of cases held out from training grows no more, and keeps the weights of the best AUC.

    Attributes:
        every: steps between two evaluations. A checkpoint of the run is written at each.
        patience: evaluations without a better AUC before training stops.
        folds: one of so many folds, by patient, is held out from a run's training cases for it.
        metric: what is watched; "auc" alone.
    """

    every: Count
    patience: Count
    folds: Annotated[Whole, Field(ge=2)] = 5
    metric: Literal["auc"] = "auc"


class TrainingSettings(Settings):
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

    steps: Count
    batch: Count
    learning_rate: Rate
    encoder_learning_rate: Rate | None = None
    layer_decay: Annotated[Number, Field(ge=1e-3, le=1)] | None = None
    weight_decay: Weight = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Some = 0
    clip_gradient: Weight = 1.0
    accumulate: Count = 1
    checkpoint_gradients: bool = False
    bf16: bool = False
    fp16: bool = False
    early_stopping: EarlyStopping | None = None
    save_every: Count = 100
    log_every: Count = 20
    workers: Some = 0
    tensorboard: bool = False
    wandb: str | None = None

    @model_validator(mode="after")
    def _one_precision(self) -> TrainingSettings:
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 exclude each other")
        return self

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
        return read_section(cls, section, "training")


class ScanRatings(Settings):
    """Which ratings are asked of the scan's vector, and how much that counts."""

    weight: Weight = 0.5
    ratings: dict[str, Limits] = {}


class Dense(ScanRatings):
    """The dense objective; `scan_weight` is how much telling the ratings from the scan's vector counts beside it."""

    scan_weight: Weight = 0.0


class Config(Settings):
    """What any config says."""

    name: str
    kind: str
    file: str
    task: str
    folds: Count = 5
    seed: Whole = 0
    data: Any = None
    dataset: str = ""
    cross_validate: bool = False


class StudyConfig(Config):
    """Several configs, trained one after the other."""

    steps: list[dict[str, Any]] = []


class ClassifierConfig(Config):
    """What `docs/training.md` says of a classifier's config."""

    simulated: dict[str, Any] | None = None
    shares: dict[Literal["real", "simulated"], Weight] = {}
    balanced: bool = False
    augment: Augmentation = Augmentation()
    training: TrainingSettings
    pretraining: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    keep_slices: Some = 0
    focus: Share = 0.0
    window: Some = 0
    free: Share = 0.0
    frozen_layers: Some = 0
    dense: Dense | None = None
    scan_ratings: ScanRatings | None = None

    @model_validator(mode="after")
    def _together(self) -> ClassifierConfig:
        if self.pretraining is None and self.model is None:
            raise ValueError("the config lacks a model, or a pretraining that gives one")
        if self.dense is not None and self.scan_ratings is not None:
            raise ValueError("scan_ratings and dense exclude each other: dense has a scan_weight")
        if self.window and self.dense is None:
            raise ValueError("window needs dense")
        if self.focus and not self.keep_slices:
            raise ValueError("focus is of the slices that keep_slices keeps")
        return self


KINDS: dict[Any, type[Config]] = {"study": StudyConfig, "classifier": ClassifierConfig}


def checked_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config as it is meant: checked as far as can be without any data, its pre-training and its steps too.

    Returns:
        what it says, each value of its own kind; what it leaves open is not there.

    Raises:
        TrainingError: the message names the file and the setting.
    """
    before = config.get("pretraining")
    inner: dict[str, Any] = {}
    if isinstance(before, dict):
        inner["pretraining"] = checked_config(before)
    if isinstance(steps := config.get("steps"), list):
        inner["steps"] = [checked_config(step) if isinstance(step, dict) else step for step in steps]
    try:
        get_task(config.get("task", ""))
        if config["kind"] not in KINDS:
            raise TrainingError(f"the kind {config['kind']!r} is neither {' nor '.join(KINDS)}")
        if before and not _trains(before):
            raise TrainingError("pretraining is no config that trains a model")
        if not all(_trains(step) for step in inner.get("steps", [])):
            raise TrainingError("not every one of the steps is a config that trains a model")
        found = read_section(KINDS[config["kind"]], config, "")
    except (InputError, TypeError) as error:
        raise TrainingError(f"{config['file']}: {error}") from error
    return found.model_dump(mode="json", exclude_unset=True) | inner


def _trains(config: Any) -> bool:
    return isinstance(config, dict) and config.get("kind") == "classifier"
