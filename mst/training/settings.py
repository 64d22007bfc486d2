"""What a config may say, checked by pydantic before anything is read or trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mst.errors import InputError
from mst.tasks import get_task
from mst.training.augment import Augmentation

# Settings that change how a run is watched, kept or computed, but not what is learnt (up to float noise): a run
# may go on with others.
IDLE = {"save_every", "log_every", "workers", "checkpoint_gradients", "tensorboard", "wandb"}


class TrainingError(InputError):
    """A run that cannot begin or go on; the message says what to do."""


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] >= limits[1]:
        raise ValueError("the first number should be below the second")
    return limits


Count = Annotated[int, Field(ge=1, strict=True)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1e3)]
Weight = Annotated[float, Field(ge=0)]
Limits = Annotated[tuple[float, float], AfterValidator(_rising)]


class Settings(BaseModel):
    """A section of a config: nothing but what it names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    folds: Annotated[int, Field(ge=2)] = 5
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
    layer_decay: Annotated[float, Field(ge=1e-3, le=1)] | None = None
    weight_decay: Weight = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 0
    clip_gradient: Weight = 1.0
    accumulate: Count = 1
    checkpoint_gradients: bool = False
    bf16: bool = False
    fp16: bool = False
    early_stopping: EarlyStopping | None = None
    save_every: Count = 100
    log_every: Count = 20
    workers: Annotated[int, Field(ge=0)] = 0
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
        return _read(cls, section, "training")


class ScanRatings(Settings):
    """Which ratings are asked of the scan's vector, and how much that counts."""

    weight: Weight = 0.5
    ratings: dict[str, Limits] = {}


class Dense(ScanRatings):
    """The dense objective; `scan_weight` is how much telling the ratings from the scan's vector counts beside it."""

    scan_weight: Weight = 0.0


class Study(Settings):
    """Several configs, trained one after the other."""

    name: str
    kind: Literal["study"]
    file: str
    task: str
    folds: Annotated[int, Field(ge=2)] = 5
    seed: int = 0
    data: Any = None
    dataset: str = ""
    cross_validate: bool = False
    steps: list[dict[str, Any]] = []


class Classifier(Settings):
    """What `docs/training.md` says of a classifier's config."""

    name: str
    kind: Literal["classifier"]
    file: str
    task: str
    folds: Annotated[int, Field(ge=2)] = 5
    seed: int = 0
    data: Any = None
    dataset: str = ""
    cross_validate: bool = False
    simulated: dict[str, Any] | None = None
    shares: dict[Literal["real", "simulated"], Share] = {}
    balanced: bool = False
    augment: Augmentation = Augmentation()
    training: TrainingSettings
    pretraining: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    keep_slices: Count | None = None
    focus: Share = 0.0
    window: Count | None = None
    free: Share = 0.0
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    dense: Dense | None = None
    scan_ratings: ScanRatings | None = None

    @model_validator(mode="after")
    def _together(self) -> Classifier:
        if self.pretraining is None and self.model is None:
            raise ValueError("the config lacks a model, or a pretraining that gives one")
        if self.dense is not None and self.scan_ratings is not None:
            raise ValueError("scan_ratings and dense exclude each other: dense has a scan_weight")
        if self.window and self.dense is None:
            raise ValueError("window needs dense")
        if self.focus and not self.keep_slices:
            raise ValueError("focus is of the slices that keep_slices keeps")
        return self


def check_config(config: dict[str, Any]) -> None:
    """Checks what can be checked of a config, its pre-training and its steps without any data.

    Raises:
        TrainingError: the message names the file and the setting.
    """
    before = config.get("pretraining")
    for inner in (before, *config.get("steps", [])):
        if isinstance(inner, dict):
            check_config(inner)
    kinds: dict[Any, type[Settings]] = {"study": Study, "classifier": Classifier}
    try:
        get_task(config.get("task", ""))
        if config["kind"] not in kinds:
            raise TrainingError(f"the kind {config['kind']!r} is neither {' nor '.join(kinds)}")
        if before and not _trains(before):
            raise TrainingError("pretraining is no config that trains a model")
        if not all(_trains(step) for step in config.get("steps", [])):
            raise TrainingError("not every one of the steps is a config that trains a model")
        _read(kinds[config["kind"]], config, "")
    except InputError as error:
        raise TrainingError(f"{config['file']}: {error}") from error


def _trains(config: Any) -> bool:
    return isinstance(config, dict) and config.get("kind") == "classifier"


Section = TypeVar("Section", bound=Settings)


def _read(kind: type[Section], section: Any, name: str) -> Section:
    """A section of a config; what is null there counts as not said."""
    if not isinstance(section, Mapping):
        raise TrainingError(f"{name} is {section!r}, not a list of settings")
    try:
        return kind.model_validate(_said(section))
    except ValidationError as error:
        raise TrainingError(_told(error, kind, name)) from error


def _said(section: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _said(value) if isinstance(value, Mapping) else value
        for key, value in section.items()
        if value is not None
    }


def _told(error: ValidationError, kind: type[BaseModel], name: str) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(part for part in (name, *path[:-1]) if part) or "the config"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where} has no setting {path[-1]}; known: {', '.join(sorted(_fields(kind, path[:-1])))}"
    if first["type"].startswith("missing"):
        return f"{where} lacks {path[-1]}"
    said = first["msg"].removeprefix("Value error, ")
    said = said[0].lower() + said[1:]
    if not path:
        return f"{name}: {said}" if name else said
    return f"{'.'.join(part for part in (name, *path) if part)} is {first['input']!r}: {said}"


def _fields(kind: Any, path: list[str]) -> list[str]:
    """The names that a section within a section may hold."""
    for part in path:
        annotation = kind.model_fields[part].annotation
        kind = next((inner for inner in get_args(annotation) if hasattr(inner, "model_fields")), annotation)
    known = getattr(kind, "model_fields", None) or kind.__pydantic_fields__
    return list(known)
