"""Grad-CAM and Grad-CAM++ on a ResNet's last feature map.

The gradient is taken from what is explained back to that map alone: the network before it runs once, without a
graph. For the 3D ResNet, the class's logit is explained. For the 2D ResNet with a slice transformer, each slice's map
explains that slice's strongest feature, as the published code does, and is weighed by the slice transformer's
attention; like attention, it is the same for every class.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mst.models.base import ScanClassifier
from mst.models.resnet3d import ResNet3D
from mst.models.resnet_slices import ResNetSliceTransformer
from mst.models.slices import kept_slices, on_all_slices
from mst.saliency.attention import mean_slice_weights

# (features [N, channels, ...], gradient on them) -> weights [N, channels, 1, ...]
Weighing = Callable[[Tensor, Tensor], Tensor]


def gradcam(
    model: ScanClassifier, volume: Tensor, target: int | None, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Grad-CAM: feature maps weighted by their mean gradient (Selvaraju et al., arXiv 1610.02391, eq. 1-2).

    Returns:
        the scan's vector [B, width], map [B, d, h, w] scaled to 0..1 for each volume and then, for a slice transformer,
        weighed by the slices; slice weights [B, D], None for the 3D ResNet.

    Raises:
        ValueError: the model has no ResNet.
    """
    return _cam(model, volume, target, padding_mask, _mean_gradient)


def gradcam_plus_plus(
    model: ScanClassifier, volume: Tensor, target: int | None, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Grad-CAM++: weights each position's positive gradient (Chattopadhay et al., arXiv 1710.11063, eq. 10, 19).

    Returns:
        the scan's vector [B, width], map [B, d, h, w] scaled to 0..1 for each volume and then, for a slice transformer,
        weighed by the slices; slice weights [B, D], None for the 3D ResNet.

    Raises:
        ValueError: the model has no ResNet.
    """
    return _cam(model, volume, target, padding_mask, _positive_gradient)


def _mean_gradient(features: Tensor, gradient: Tensor) -> Tensor:
    return gradient.mean(dim=tuple(range(2, gradient.ndim)), keepdim=True)


def _positive_gradient(features: Tensor, gradient: Tensor) -> Tensor:
    space = tuple(range(2, gradient.ndim))
    squared, cubed = gradient**2, gradient**3
    total = features.sum(dim=space, keepdim=True)
    # The published code's maps come from this epsilon; gradients are so small that it shapes the map.
    alpha = squared / (2 * squared + total * cubed + 1e-6)
    # Where the gradient is negative, the divisor may be zero; alpha counts for nothing there.
    return torch.where(gradient > 0, alpha * gradient, 0).sum(dim=space, keepdim=True)


def _cam(
    model: ScanClassifier, volume: Tensor, target: int | None, padding_mask: Tensor | None, weigh: Weighing
) -> tuple[Tensor, Tensor, Tensor | None]:
    if isinstance(model, ResNet3D):
        vector, features, gradient = _class_gradient(model, volume, target, padding_mask)
        return vector, _scaled((weigh(features, gradient) * features).sum(dim=1).relu()), None
    if isinstance(model, ResNetSliceTransformer):
        return _slice_cam(model, volume, padding_mask, weigh)
    raise ValueError("Grad-CAM needs a ResNet; use attention for a slice transformer with a DINOv2 encoder")


def _class_gradient(
    model: ResNet3D, volume: Tensor, target: int | None, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The scan's vector, last feature map and the target logit's gradient on it, each without a graph."""
    # Tensors made in inference mode, which a caller may be in, can never get a gradient.
    with torch.inference_mode(False), torch.no_grad():
        features = model.features(volume, padding_mask)
    with torch.inference_mode(False), torch.enable_grad():
        features = features.detach().requires_grad_()
        vector = model.pool(features)
        logits = model.classify(vector)
        chosen = (
            logits.argmax(dim=1)
            if target is None
            else torch.full_like(logits[:, 0], target, dtype=torch.long)
        )
        (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), features)
    return vector.detach(), features.detach(), gradient


@torch.no_grad()
def _slice_cam(
    model: ResNetSliceTransformer, volume: Tensor, padding_mask: Tensor | None, weigh: Weighing
) -> tuple[Tensor, Tensor, Tensor]:
    """A map of each slice's strongest feature, times the slice's weight."""
    features = model.feature_maps(kept_slices(volume, padding_mask))
    pooled = features.mean(dim=(2, 3))
    vector, attention = model.weigh_slices(on_all_slices(pooled, volume, padding_mask), padding_mask)
    assert attention is not None
    # The gradient of a mean over h * w positions, of the strongest channel alone.
    chosen = torch.zeros_like(pooled).scatter(1, pooled.argmax(dim=1, keepdim=True), 1.0)
    gradient = (chosen / features[0, 0].numel())[..., None, None].expand_as(features)
    cam = (weigh(features, gradient) * features).sum(dim=1).relu()
    weights = mean_slice_weights(attention)
    hidden = None if padding_mask is None else padding_mask[..., None, None]
    native = _scaled(on_all_slices(cam, volume, padding_mask), hidden)
    return vector, native * weights[..., None, None], weights


def _scaled(saliency: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Each volume's map, shifted and scaled to 0..1; a map that is the same everywhere becomes zero.

    Args:
        saliency: [B, d, h, w].
        hidden: bool, broadcastable to it; where True, it is left out of the scale and set to zero.
    """
    seen = saliency if hidden is None else saliency.masked_fill(hidden, float("inf"))
    low = seen.amin(dim=(1, 2, 3), keepdim=True)
    high = saliency.amax(dim=(1, 2, 3), keepdim=True)
    scaled = (saliency - low) / (high - low).clamp_min(torch.finfo(saliency.dtype).tiny)
    return scaled if hidden is None else scaled.masked_fill(hidden, 0.0)
