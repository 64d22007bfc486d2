"""One training run with `transformers.Trainer`, which goes on where it was cut off."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from mst.training import processes
from mst.training.logs import Progress, tensorboard_log, wandb_log
from mst.training.objectives import ClassTraining, JointTraining, MapTraining
from mst.training.settings import TrainingError, TrainingSettings

COMPLETE = "complete"  # an empty file, written into a checkpoint of the run after everything else
KEPT = 2  # newest checkpoints of a run that are kept; the best one stays as well
STATE, WEIGHTS = "trainer_state.json", "model.safetensors"


class StudyTrainer(Trainer):
    """`Trainer` for models that take our batches, with a learning rate of its own for the encoder.

    Args:
        settings: of the run.
    """

    def __init__(self, *args: Any, settings: TrainingSettings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = settings

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Soft cross-entropy for a classifier; a module with objectives of its own gives its loss."""
        if "target" not in inputs:
            return model(**inputs)
        mask = inputs["padding_mask"]
        # Validation of a model that is trained for more than its classes asks for these alone.
        classifier = classifier_of(model) if return_outputs else model
        logits = classifier(inputs["volume"], mask if mask.any() else None)
        target = inputs["target"]
        if logits.shape[1] == 2:  # soft: the probability of the last class
            target = torch.stack([1 - target, target], dim=1)
        else:
            target = (target * (logits.shape[1] - 1)).round().long()
        loss = nn.functional.cross_entropy(logits, target)
        return (loss, logits) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, logits [B, C] and targets [B] of a batch of validation cases."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, logits = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), logits.detach().float(), inputs["target"]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; no weight decay on biases, norms and tokens (vectors and their like)."""
        if self.optimizer is None:
            settings = self.settings
            groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
            trained: Any = model or self.model
            for full_name, parameter in trained.named_parameters():
                if parameter.requires_grad:
                    decay = parameter.squeeze().ndim >= 2
                    name = full_name.removeprefix("model.")  # the classifier within JointTraining
                    share = layer_share(name, classifier_of(trained), settings.layer_decay)
                    groups.setdefault((name.startswith("encoder."), decay, share), []).append(parameter)
            rates = {
                False: settings.learning_rate,
                True: settings.encoder_learning_rate or settings.learning_rate,
            }
            self.optimizer = torch.optim.AdamW(
                [
                    {
                        "params": group,
                        "lr": rates[encoder] * share,
                        "weight_decay": settings.weight_decay * decay,
                    }
                    for (encoder, decay, share), group in groups.items()
                ],
                lr=settings.learning_rate,
            )
        return self.optimizer

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        # A full disk reaches us as an OSError, as torch's RuntimeError or as safetensors' own error.
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise TrainingError(_not_written(folder, error)) from error
        processes.wait()  # each process writes the state of its random numbers
        if self.args.should_save:
            # A process killed while it writes leaves a folder without this file, which `fit` does not go on from.
            (folder / COMPLETE).touch()
            self._forget_old(folder.parent)

    def _forget_old(self, run: Path) -> None:
        """Removes all checkpoints but the newest and the best; `Trainer` does so before the new one is whole."""
        best = self.state.best_global_step
        for checkpoint in _checkpoints(run)[:-KEPT]:
            if _step(checkpoint) != best:
                (checkpoint / COMPLETE).unlink(
                    missing_ok=True
                )  # first, so that no part of it is gone on from
                shutil.rmtree(checkpoint, ignore_errors=True)


def classifier_of(model: nn.Module) -> nn.Module:
    """The classifier within what is trained, which may be the classifier itself."""
    inner = getattr(model, "module", model)  # of DistributedDataParallel
    return inner.model if isinstance(inner, JointTraining | ClassTraining | MapTraining) else model


def layer_share(name: str, model: nn.Module, layer_decay: float | None) -> float:
    """What part of the encoder's learning rate a weight of the MST has: decay ** (layers after its own).

    Args:
        name: of the weight in the model.
        model: with a DINOv2 as its `encoder`.
        layer_decay: None: 1 for all.
    """
    if layer_decay is None or not name.startswith("encoder."):
        return 1.0
    layers = int(model.encoder.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    if name.startswith("encoder.embeddings."):
        return layer_decay**layers
    number = re.match(r"encoder\.encoder\.layer\.(\d+)\.", name)
    return layer_decay ** (layers - 1 - int(number[1])) if number else 1.0


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run; half-written ones are removed."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / COMPLETE).is_file():
            shutil.rmtree(checkpoint)
    return max(_checkpoints(folder), key=_step, default=None)


def fit(
    model: nn.Module,
    samples: Dataset,
    folder: Path,
    settings: dict[str, Any] | TrainingSettings,
    seed: int,
    validation: Dataset | None = None,
) -> list[dict]:
    """Trains, from the last checkpoint in the folder if there is one.

    With early stopping the model ends with its best weights, else with its last ones. Several processes share
    each batch between them, so their number makes no difference to what is learnt.

    Args:
        model: a `ScanClassifier`, or a module whose forward pass gives the loss.
        samples: exactly `TrainingSettings.samples` of them, in the order in which they are used.
        folder: for the run's own checkpoints.
        settings: a config's `training`.
        seed: of dropout and the like.
        validation: for early stopping: samples with "target" 0 (first class) or 1 (last class).

    Returns:
        the log: {"step", "loss", "learning_rate", ...} each, evaluations {"step", "eval_auc", ...}.

    Raises:
        TrainingError: a setting that does not fit the model or the machine, or a checkpoint that cannot be written.
    """
    if not isinstance(settings, TrainingSettings):
        settings = TrainingSettings.from_config(settings)
    stopping = settings.early_stopping
    if stopping and validation is None:
        raise TrainingError("training.early_stopping needs a classifier: this run has nothing to validate.")
    with processes.main_first():
        resume = last_checkpoint(folder)
    if resume:
        print(f"going on from {resume.parent.name}/{resume.name}", flush=True)
        if stopping and (log := _stopped(resume, model)) is not None:
            return log
    arguments = _arguments(model, folder, settings, seed)
    name = f"{folder.parent.name}/{folder.name}"
    callbacks: list[TrainerCallback] = [Progress(name)]
    with ExitStack() as during:
        if processes.is_main():
            if settings.tensorboard:
                callbacks.append(
                    during.enter_context(tensorboard_log(folder, _step(resume) if resume else 0))
                )
            if settings.wandb:
                callbacks.append(during.enter_context(wandb_log(settings.wandb, name, folder)))
        if stopping:
            callbacks.append(EarlyStoppingCallback(stopping.patience))
        during.enter_context(processes.shared_batch_norm(model))
        during.enter_context(_gradient_checkpoints(model, settings))
        trainer = StudyTrainer(
            model=model,
            args=arguments,
            train_dataset=samples,
            eval_dataset=validation if stopping else None,
            compute_metrics=validation_auc if stopping else None,
            callbacks=callbacks,
            settings=settings,
        )
        for other in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(other)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        if stopping:
            _load_best(model, folder, trainer.state.best_global_step)
    return trainer.state.log_history


def validation_auc(predictions: EvalPrediction) -> dict[str, float]:
    """{"auc": of the last class against the first}, from logits [N, C] and targets [N] of 0 or 1."""
    logits = torch.from_numpy(np.asarray(predictions.predictions, dtype=np.float64))
    scores = logits.softmax(dim=1)[:, -1].numpy()
    return {"auc": float(roc_auc_score(np.asarray(predictions.label_ids) > 0.5, scores))}


def best_evaluation(log: list[dict]) -> tuple[int, float] | None:
    """(step, AUC) of a log's best evaluation, the first of equal ones; None where nothing was evaluated."""
    found = [(int(entry["step"]), float(entry["eval_auc"])) for entry in log if "eval_auc" in entry]
    return max(found, key=lambda entry: (entry[1], -entry[0]), default=None)


def _arguments(model: nn.Module, folder: Path, settings: TrainingSettings, seed: int) -> TrainingArguments:
    together = processes.count()
    if settings.batch % together:
        raise TrainingError(
            f"training.batch is {settings.batch} and cannot be shared by {together} processes alike: choose a "
            f"multiple of {together} (training.batch=...) or start another number of processes."
        )
    if settings.fp16 and not torch.cuda.is_available():
        raise TrainingError(
            "training.fp16 needs a GPU, and there is none here: use training.bf16=true instead."
        )
    share = settings.batch // together
    stopping = settings.early_stopping
    every = stopping.every if stopping else settings.save_every
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=share,
        per_device_eval_batch_size=1,  # so that its loss is the mean over the cases
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine" if settings.schedule == "cosine" else "constant_with_warmup",
        warmup_steps=settings.warmup,
        max_grad_norm=settings.clip_gradient,
        bf16=settings.bf16,
        fp16=settings.fp16,
        use_cpu=not torch.cuda.is_available(),
        # DINOv2's mask token is not trained here; to look for such weights takes time.
        ddp_find_unused_parameters=any(name.endswith("mask_token") for name, _ in model.named_parameters()),
        logging_steps=settings.log_every,
        save_steps=every,
        eval_strategy="steps" if stopping else "no",
        eval_steps=every if stopping else None,
        load_best_model_at_end=stopping is not None,
        metric_for_best_model="auc" if stopping else None,
        greater_is_better=True if stopping else None,
        # How often the AUC has not grown is part of the run's state.
        restore_callback_states_from_checkpoint=stopping is not None,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,  # `Progress` is the bar
        seed=seed,
    )
    if torch.cuda.is_available() and together == 1:
        # With several GPUs and one process, Trainer would run a batch on each of them: use torchrun for that.
        arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _stopped(checkpoint: Path, model: nn.Module) -> list[dict] | None:
    """The log of a run that early stopping had ended at a checkpoint, its best weights loaded; else None.

    `Trainer` itself would go on from there, since it does not ask its callbacks before the first step.
    """
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    kept = state["stateful_callbacks"][EarlyStoppingCallback.__name__]
    if kept["attributes"]["early_stopping_patience_counter"] < kept["args"]["early_stopping_patience"]:
        return None
    _load_best(model, checkpoint.parent, state["best_global_step"])
    return state["log_history"]


def _load_best(model: nn.Module, folder: Path, step: int | None) -> None:
    if step is None:
        raise TrainingError(
            f"{folder.parent.name}/{folder.name}: no evaluation gave an AUC to keep weights by."
        )
    model.load_state_dict(load_file(folder / f"checkpoint-{step}" / WEIGHTS))


@contextmanager
def _gradient_checkpoints(model: nn.Module, settings: TrainingSettings) -> Iterator[None]:
    """Lets the encoder recompute its activations during the block, where the settings ask for it."""
    encoder: Any = getattr(classifier_of(model), "encoder", None)
    dinov2 = hasattr(encoder, "activation_checkpointing_enable")
    for name in ("checkpoint_gradients", "layer_decay"):
        if getattr(settings, name) and not dinov2:
            raise TrainingError(f"training.{name} is for models with a DINOv2 encoder; this one has none.")
    if not settings.checkpoint_gradients:
        yield
        return
    encoder.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        encoder.activation_checkpointing_disable()


def _checkpoints(folder: Path) -> list[Path]:
    """A run's whole checkpoints, the oldest first."""
    return sorted((path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _not_written(folder: Path, error: Exception) -> str:
    """What to tell when a checkpoint of a run could not be saved."""
    reason = (
        getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
    )
    if getattr(error, "errno", None) == errno.ENOSPC or shutil.disk_usage(folder.parent).free < 1 << 20:
        reason = "the disk is full"
    whole = _checkpoints(folder.parent)
    return (
        f"{folder.parent.parent.name}/{folder.parent.name}/{folder.name} could not be written ({reason}). Make room "
        "and run the same command again: it "
        + (
            f"goes on from {whole[-1].name}."
            if whole
            else "begins anew, as no checkpoint was written before."
        )
    )
