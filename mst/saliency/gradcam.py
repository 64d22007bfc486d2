"""Grad-CAM and Grad-CAM++ on the 3D ResNet's last feature map.

The gradient is taken from the head back to that map alone: the network before it runs once, without a graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mst.models.base import ScanClassifier
from mst.models.resnet3d import ResNet3D


def gradcam(
    model: ScanClassifier, volume: Tensor, target: int | None, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor, None]:
    """Grad-CAM: feature maps weighted by their mean gradient (Selvaraju et al., arXiv 1610.02391, eq. 1-2).

    Returns:
        logits [B, C], map [B, d, h, w] scaled to 0..1 for each volume, None.

    Raises:
        ValueError: the model is not a 3D ResNet.
    """
    logits, features, gradient = _feature_gradient(model, volume, target, padding_mask)
    weights = gradient.mean(dim=(2, 3, 4), keepdim=True)
    return logits, _scaled((weights * features).sum(dim=1).relu()), None


def gradcam_plus_plus(
    model: ScanClassifier, volume: Tensor, target: int | None, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor, None]:
    """Grad-CAM++: weights each position's positive gradient (Chattopadhay et al., arXiv 1710.11063, eq. 10, 19).

    Returns:
        logits [B, C], map [B, d, h, w] scaled to 0..1 for each volume, None.

    Raises:
        ValueError: the model is not a 3D ResNet.
    """
    logits, features, gradient = _feature_gradient(model, volume, target, padding_mask)
    squared, cubed = gradient**2, gradient**3
    total = features.sum(dim=(2, 3, 4), keepdim=True)
    # The published code's maps come from this epsilon; gradients are so small that it shapes the map.
    alpha = squared / (2 * squared + total * cubed + 1e-6)
    weights = (alpha * gradient.relu()).sum(dim=(2, 3, 4), keepdim=True)
    return logits, _scaled((weights * features).sum(dim=1).relu()), None


def _feature_gradient(
    model: ScanClassifier, volume: Tensor, target: int | None, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, last feature map and the target logit's gradient on it, each without a graph."""
    if not isinstance(model, ResNet3D):
        raise ValueError("Grad-CAM needs a 3D ResNet; use attention for a slice transformer")
    with torch.no_grad():
        features = model.features(volume, padding_mask)
    features = features.detach().requires_grad_()
    with torch.enable_grad():
        logits = model.head(features)
        chosen = (
            logits.argmax(dim=1)
            if target is None
            else torch.full_like(logits[:, 0], target, dtype=torch.long)
        )
        (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), features)
    return logits.detach(), features.detach(), gradient


def _scaled(saliency: Tensor) -> Tensor:
    """Each volume's map, shifted and scaled to 0..1; a map that is the same everywhere becomes zero."""
    low = saliency.amin(dim=(1, 2, 3), keepdim=True)
    high = saliency.amax(dim=(1, 2, 3), keepdim=True)
    return (saliency - low) / (high - low).clamp_min(torch.finfo(saliency.dtype).tiny)
