"""What every classifier here shares: its study, its input grid and how it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_model as load_safetensors
from torch import Tensor, nn

from mst.familiar import distance
from mst.tasks import Grid


class ScanClassifier(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="medical-slice-transformer-dashboard",
    tags=["medical-imaging", "explainability"],
    license="mit",
):
    """A network that classifies a volume [B, 1, D, H, W] into the classes of one study.

    `PyTorchModelHubMixin` keeps the constructor's arguments in config.json, so that `from_pretrained` of a
    folder or of a hub repository builds the same network; `save_pretrained` and `push_to_hub` write one.

    Attributes:
        task: the study's key in `mst.tasks.TASKS`.
        classes: names of the C classes, in the order of the logits.
        grid: overrides of the study's input grid ({"shape": [D, H, W], "spacing_mm": [...], ...}).
        temperature: what the logits are divided by before the softmax; 1 unless the model was calibrated.
        lesion_threshold: below which probability of a lesion none is seen, and the classes mean nothing; None: the
            model was not trained to tell.
        familiar: {"limit": the distance from the training cases within which nearly all of their kind lie, "spans":
            {measure: [least, most]}}, see `mst.familiar`; None: it is not known what they were like.
        width: of the scan's vector.
        lesion_head: from the scan's vector to one logit: is there a lesion in the volume at all; None as above.
    """

    method: str  # the saliency method that `mst.explain` uses when none is asked for
    title: str  # what people call the model
    width: int
    lesion_head: nn.Linear | None
    familiar_mean: Tensor
    familiar_whitening: Tensor

    def __init__(
        self,
        task: str,
        classes: list[str],
        grid: dict[str, Any] | None,
        temperature: float,
        lesion_threshold: float | None = None,
        familiar: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not all(isinstance(name, str) for name in classes) or len(set(classes)) < max(2, len(classes)):
            raise ValueError(f"the classes are {classes!r}, not two or more different names")
        if not 0 < float(temperature) < float("inf"):
            raise ValueError(f"the temperature is {temperature!r}, not a number above 0")
        if lesion_threshold is not None and not 0 <= float(lesion_threshold) <= 1:
            raise ValueError(f"lesion_threshold is {lesion_threshold!r}, not a probability")
        self.task = task
        self.classes = list(classes)
        self.grid = dict(grid or {})
        self.temperature = float(temperature)
        self.lesion_threshold = None if lesion_threshold is None else float(lesion_threshold)
        self.familiar = None if familiar is None else dict(familiar)
        self.lesion_head = None

    def build_beside(self, width: int) -> None:
        """Makes what a model has beside its classes: the head that tells lesions, and what it remembers of training."""
        self.width = width
        self.lesion_head = None if self.lesion_threshold is None else nn.Linear(width, 1)
        if self.familiar is not None:
            self._remember(torch.zeros(width), torch.eye(width))

    def _remember(self, mean: Tensor, whitening: Tensor) -> None:
        self.register_buffer("familiar_mean", mean)
        self.register_buffer("familiar_whitening", whitening)

    def set_familiar(self, familiar: dict[str, Any], mean: Tensor, whitening: Tensor) -> None:
        """Keeps what the training cases were like, also in the checkpoint; see `mst.familiar`."""
        self.familiar = dict(familiar)
        self._in_config("familiar", self.familiar)
        self._remember(mean, whitening)

    def distance(self, vector: Tensor) -> Tensor | None:
        """How far the scan's vector [B, width] lies from the training cases', [B]; None where they are not known."""
        if self.familiar is None:
            return None
        return distance(vector, self.familiar_mean, self.familiar_whitening)

    def encode_scan(self, volume: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Volume float32 [B, 1, D, H, W], padding_mask bool [B, D] (True: padding) -> the scan's vector [B, width]."""
        raise TypeError(f"{type(self).__name__} does not say how it encodes a scan")

    def classify(self, vector: Tensor) -> Tensor:
        """The scan's vector [B, width] -> logits [B, C]."""
        return self.class_head(vector)

    def forward(self, volume: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Volume float32 [B, 1, D, H, W], padding_mask bool [B, D] (True: padding) -> logits [B, C]."""
        return self.classify(self.encode_scan(volume, padding_mask))

    def lesion_logits(self, vector: Tensor) -> Tensor | None:
        """The scan's vector [B, width] -> logits [B] that there is a lesion; None where the model cannot tell."""
        return None if self.lesion_head is None else self.lesion_head(vector)[:, 0]

    def check_grid(self, grid: Grid) -> None:
        """Refuses a grid that the model cannot take.

        Raises:
            ValueError: it is another number of slices, rows or columns than the model is built for.
        """

    @property
    def class_head(self) -> nn.Linear:
        """From the scan's vector to the classes' logits."""
        raise TypeError(f"{type(self).__name__} does not say what classifies its scans")

    def calibrate(self, temperature: float, offset: float) -> None:
        """Calibrates the model, also as it is saved; see `mst.statistics.Calibration`.

        Args:
            temperature: goes into config.json.
            offset: is added to the bias of the last class.
        """
        self.temperature = float(temperature)
        self._in_config("temperature", self.temperature)
        with torch.no_grad():
            self.class_head.bias[-1] += offset

    def set_lesion_threshold(self, threshold: float) -> None:
        """Decides from which probability on a lesion is seen, also in the config.json that it is saved with."""
        self.lesion_threshold = float(threshold)
        self._in_config("lesion_threshold", self.lesion_threshold)

    def drop_lesion_head(self) -> None:
        """Lets the model tell lesions no more, also in the config.json that it is saved with."""
        self.lesion_threshold, self.lesion_head = None, None
        self._in_config("lesion_threshold", None)

    def _in_config(self, name: str, value: Any) -> None:
        config = self._hub_mixin_config
        assert isinstance(config, dict)
        config[name] = value

    @classmethod
    def _load_as_safetensor(  # type: ignore[override]
        cls, model: ScanClassifier, model_file: str | Path, map_location: str, strict: bool
    ) -> ScanClassifier:
        # Always strict: a checkpoint with a missing or a foreign tensor must not load half-initialised.
        load_safetensors(model, str(model_file), strict=True, device=map_location)
        return model.eval()

    @classmethod
    def _load_as_pickle(  # type: ignore[override]
        cls, model: ScanClassifier, model_file: str, *_: Any
    ) -> ScanClassifier:
        # The mixin falls back to a pickle where a repository has no safetensors; a pickle can run code.
        raise ValueError(f"{Path(model_file).name} is a pickle; only model.safetensors is read")
