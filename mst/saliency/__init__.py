"""Where a model looked: one `explain` for every method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mst.errors import CheckpointError
from mst.models.base import ScanClassifier
from mst.models.resnet3d import ResNet3D
from mst.models.resnet_slices import ResNetSliceTransformer
from mst.models.slice_transformer import SliceTransformer
from mst.saliency.attention import slice_attention
from mst.saliency.gradcam import gradcam, gradcam_plus_plus


@dataclass
class Explanation:
    """What `explain` returns.

    Attributes:
        logits: float32 [B, C].
        saliency: float32 [B, 1, D, H, W], `native_saliency` brought to the input's size (trilinear).
        native_saliency: float32 at the map's own resolution: [B, D, h, w] for the MST, [B, d, h, w] for the 3D
            ResNet's Grad-CAM.
        slice_weights: float32 [B, D], how much the MST's slice transformer attends to each slice (sums to 1);
            None for models whose slices have no weights.
        method: the method that made the map.
        distance: float32 [B], from the training cases, see `mst.familiar`; None where they are not known.
        lesion_logits: float32 [B], that there is a lesion in the volume at all; None for models that cannot tell.
    """

    logits: Tensor
    saliency: Tensor
    native_saliency: Tensor
    slice_weights: Tensor | None
    method: str
    lesion_logits: Tensor | None = None
    distance: Tensor | None = None


# What makes a method's map: (model, volume, target, padding_mask) -> (what the model classifies, native map, slice
# weights or None).
Run = Callable[[ScanClassifier, Tensor, int | None, Tensor | None], tuple[Tensor, Tensor, Tensor | None]]


@dataclass(frozen=True)
class Method:
    """A way to explain an answer.

    Attributes:
        run: makes the map.
        fits: the models that it can explain.
        by_class: those of them whose map depends on the class that is explained.
    """

    run: Run
    fits: tuple[type[ScanClassifier], ...]
    by_class: tuple[type[ScanClassifier], ...] = ()


_RESNETS = (ResNet3D, ResNetSliceTransformer)
METHODS: dict[str, Method] = {
    "attention": Method(slice_attention, (SliceTransformer,)),
    "gradcam": Method(gradcam, _RESNETS, (ResNet3D,)),
    "gradcam++": Method(gradcam_plus_plus, _RESNETS, (ResNet3D,)),
}


def fitting_methods(model: ScanClassifier, names: Iterable[str] = tuple(METHODS)) -> list[str]:
    """Those of some methods that can explain a model."""
    return [name for name in names if isinstance(model, METHODS[name].fits)]


def explain(
    model: ScanClassifier,
    volume: Tensor,
    method: str | None = None,
    target: int | None = None,
    padding_mask: Tensor | None = None,
) -> Explanation:
    """Classifies a batch of volumes and maps what each decision rests on.

    Args:
        model: from `mst.load_model`, in evaluation mode. Nothing is kept in it, so several threads may ask it at once.
        volume: float32 [B, 1, D, H, W], as the model takes it.
        method: "attention" (MST with DINOv2), "gradcam" or "gradcam++" (3D ResNet, MST with a 2D ResNet); None: the
            model's own.
        target: the class to explain; None: the predicted class of each volume. The maps of the MST, with either
            encoder, are the same for every class.
        padding_mask: bool [B, D], True where a slice is padding; None: no slice is.

    Raises:
        CheckpointError: the answer or the map is not finite.
        ValueError: an unknown method, one that the model has no part for, a class that does not exist,
            inputs of the wrong shape, or a model in training mode.
    """
    name = method or model.method
    if name not in METHODS:
        raise ValueError(f"unknown saliency method {name!r}; known are {', '.join(METHODS)}")
    if volume.ndim != 5 or volume.shape[1] != 1:
        raise ValueError(f"volume must be [B, 1, D, H, W], not {list(volume.shape)}")
    if target is not None and not 0 <= target < len(model.classes):
        raise ValueError(f"target must be a class index from 0 to {len(model.classes) - 1}, not {target}")
    if padding_mask is not None:
        if padding_mask.shape != (volume.shape[0], volume.shape[2]):
            raise ValueError(
                f"padding_mask must be [B, D] = {[volume.shape[0], volume.shape[2]]}, "
                f"not {list(padding_mask.shape)}"
            )
        if padding_mask.all(dim=1).any():
            raise ValueError("every slice of a volume is padding; there is nothing to classify")
    if model.training:
        # Not switched here: others may be asking the same model, and their answers would change with it.
        raise ValueError("the model is in training mode; call its eval() first")
    vector, native, weights = METHODS[name].run(model, volume, target, padding_mask)
    with torch.no_grad():
        logits, lesion = model.classify(vector), model.lesion_logits(vector)
        distance = model.distance(vector)
    if not all(bool(part.isfinite().all()) for part in (logits, lesion, native, weights) if part is not None):
        raise CheckpointError(
            "the answer or its map holds values that are no numbers (NaN or infinite), so there is no result; "
            "use another checkpoint."
        )
    with torch.no_grad():
        size = tuple(volume.shape[2:])
        saliency = interpolate(native[:, None].float(), size=size, mode="trilinear", align_corners=False)
    return Explanation(logits, saliency, native, weights, name, lesion, distance)
