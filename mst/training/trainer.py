"""One training run with `transformers.Trainer`: fixed schedule, goes on where it was cut off."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

COMPLETE = "complete"  # an empty file, written into a checkpoint of the run after everything else


class StudyTrainer(Trainer):
    """`Trainer` for models that take our batches, with a learning rate of its own for the encoder.

    Args:
        encoder_learning_rate: for weights whose name starts with "encoder."; None: the same as the others.
    """

    def __init__(self, *args: Any, encoder_learning_rate: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.encoder_learning_rate = encoder_learning_rate

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Soft cross-entropy for a classifier; a pre-training module computes its own loss."""
        if "target" not in inputs:
            return model(**inputs)
        mask = inputs["padding_mask"]
        logits = model(inputs["volume"], mask if mask.any() else None)
        target = inputs["target"]
        if logits.shape[1] == 2:  # soft: the probability of the last class
            target = torch.stack([1 - target, target], dim=1)
        else:
            target = (target * (logits.shape[1] - 1)).round().long()
        return nn.functional.cross_entropy(logits, target)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; no weight decay on biases, norms and tokens (vectors and their like)."""
        if self.optimizer is None:
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
            trained: Any = model or self.model
            for name, parameter in trained.named_parameters():
                if parameter.requires_grad:
                    decay = parameter.squeeze().ndim >= 2
                    groups.setdefault((name.startswith("encoder."), decay), []).append(parameter)
            rates = {
                False: self.args.learning_rate,
                True: self.encoder_learning_rate or self.args.learning_rate,
            }
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": group, "lr": rates[encoder], "weight_decay": self.args.weight_decay * decay}
                    for (encoder, decay), group in groups.items()
                ],
                lr=self.args.learning_rate,
            )
        return self.optimizer

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        # A process killed while it writes leaves a folder without this file, which `fit` does not go on from.
        (Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}" / COMPLETE).touch()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run; half-written ones are removed."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / COMPLETE).is_file():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def fit(model: nn.Module, samples: Dataset, folder: Path, settings: dict[str, Any], seed: int) -> list[dict]:
    """Trains for a fixed number of steps, from the last checkpoint in the folder if there is one.

    Args:
        model: a `ScanClassifier`, or a module whose forward pass gives the loss.
        samples: exactly steps * batch of them, in the order in which they are used.
        folder: for the run's own checkpoints.
        settings: a config's `training`: steps, batch, learning_rate, and maybe encoder_learning_rate,
            weight_decay, warmup, save_every, log_every, bf16.
        seed: of dropout and the like.

    Returns:
        the log: {"step", "loss", "learning_rate", ...} each.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch"],
        gradient_accumulation_steps=settings.get("accumulate", 1),
        learning_rate=settings["learning_rate"],
        weight_decay=settings.get("weight_decay", 0.01),
        lr_scheduler_type="cosine",
        warmup_steps=settings.get("warmup", 0),
        max_grad_norm=1.0,
        bf16=settings.get("bf16", False),
        use_cpu=not torch.cuda.is_available(),
        logging_steps=settings.get("log_every", 20),
        save_steps=settings.get("save_every", 100),
        save_total_limit=2,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
        seed=seed,
    )
    trainer = StudyTrainer(
        model=model,
        args=arguments,
        train_dataset=samples,
        encoder_learning_rate=settings.get("encoder_learning_rate"),
    )
    resume = last_checkpoint(folder)
    if resume:
        print(f"going on from {resume.parent.name}/{resume.name}", flush=True)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer.state.log_history
