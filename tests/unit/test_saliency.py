"""Saliency against its definition, computed the plain way."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance
from scipy.ndimage import gaussian_filter
from torch import nn

from mst.models import ResNet3D, ResNetSliceTransformer, SliceTransformer
from mst.saliency import explain
from mst.saliency.flips import explain_flips
from mst.saliency.metrics import average_surface_distance, saliency_metrics

VOLUME = torch.randn(2, 1, 8, 24, 24, generator=torch.Generator().manual_seed(0))


def _plain_attention(model: SliceTransformer, volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same two maps from models that form every attention matrix."""
    batch, _, depth, height, width = volume.shape
    model.encoder.set_attn_implementation("eager")
    out = model.encoder(pixel_values=volume.reshape(batch * depth, 1, height, width), output_attentions=True)
    model.encoder.set_attn_implementation("sdpa")
    patches = out.attentions[-1][:, :, 0, 1:].reshape(batch, depth, -1, (height // 6) * (width // 6))
    tokens = torch.cat(
        [model.cls_token.expand(batch, -1, -1), out.pooler_output.reshape(batch, depth, -1)], 1
    )
    layer = model.slice_fusion.layers[0]
    normed = layer.norm1(tokens)
    _, weights = layer.self_attn(normed, normed, normed, need_weights=True, average_attn_weights=False)
    return patches, weights[:, :, 0, 1:]


@torch.no_grad()
def test_attention_is_the_product_of_both_attentions(small_mst: SliceTransformer) -> None:
    out = explain(small_mst, VOLUME)
    patches, slices = _plain_attention(small_mst, VOLUME)
    patches = patches.clone()
    patches[..., 0] = 0  # as the published code does
    patches = patches / patches.sum(-1, keepdim=True)
    slices = slices / slices.sum(-1, keepdim=True)
    expected = patches.mean(2) * slices.mean(1)[..., None]
    assert torch.allclose(out.native_saliency, expected.reshape(2, 8, 4, 4), atol=1e-6)
    assert torch.allclose(out.slice_weights, slices.mean(1), atol=1e-6)
    assert torch.allclose(out.slice_weights.sum(1), torch.ones(2))
    assert torch.allclose(out.logits, small_mst(VOLUME), atol=1e-6)
    assert out.saliency.shape == VOLUME.shape


def test_only_the_shown_layers_attention_is_ever_formed(small_mst: SliceTransformer, monkeypatch) -> None:
    calls = []
    real = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    explain(small_mst, VOLUME)
    assert len(calls) >= len(small_mst.encoder.encoder.layer)


def test_padding_gets_no_saliency_and_changes_nothing(small_mst: SliceTransformer) -> None:
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[:, [0, 7]] = True
    out = explain(small_mst, VOLUME, padding_mask=mask)
    alone = explain(small_mst, VOLUME[:, :, 1:7])
    assert torch.allclose(out.native_saliency[:, 1:7], alone.native_saliency, atol=1e-6)
    assert out.native_saliency[:, [0, 7]].abs().max() == 0
    assert torch.allclose(out.slice_weights[:, 1:7], alone.slice_weights, atol=1e-6)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
@pytest.mark.parametrize("target", [None, 0, 1])
def test_gradcam_equals_full_back_propagation(
    small_resnet: ResNet3D, method: str, target: int | None
) -> None:
    out = explain(small_resnet, VOLUME, method=method, target=target)
    kept = {}
    hook = small_resnet.model.layer4.register_forward_hook(
        lambda _m, _i, o: (o.retain_grad(), kept.update(features=o))[0]
    )
    logits = small_resnet(VOLUME.clone().requires_grad_())
    hook.remove()
    chosen = logits.argmax(1) if target is None else torch.full((2,), target)
    logits.gather(1, chosen[:, None]).sum().backward()
    features, gradient = kept["features"].detach(), kept["features"].grad
    if method == "gradcam":
        weights = gradient.mean((2, 3, 4), keepdim=True)
    else:
        total = features.sum((2, 3, 4), keepdim=True)
        alpha = gradient**2 / (2 * gradient**2 + total * gradient**3 + 1e-6)
        weights = (alpha * gradient.relu()).sum((2, 3, 4), keepdim=True)
    expected = (weights * features).sum(1).relu()
    for one, plain in zip(out.native_saliency, expected, strict=True):
        span = plain.max() - plain.min()
        scaled = (plain - plain.min()) / span if span > 0 else torch.zeros_like(plain)
        assert torch.allclose(one, scaled, atol=1e-5)
    assert out.slice_weights is None


@pytest.mark.parametrize("method", [None, "gradcam", "gradcam++"])
def test_the_mst_resnets_map_is_each_slices_map_times_its_weight(
    small_mst_resnet: ResNetSliceTransformer, method: str | None
) -> None:
    out = explain(small_mst_resnet, VOLUME, method=method)
    assert out.method == (method or "gradcam++")
    assert out.saliency.shape == VOLUME.shape
    assert torch.allclose(out.logits, small_mst_resnet(VOLUME), atol=1e-6)
    assert torch.allclose(out.slice_weights.sum(1), torch.ones(2))
    # scaled to 0..1 over each scan, then weighed: the quotient has its maximum of 1 in each scan
    scaled = out.native_saliency / out.slice_weights[..., None, None]
    assert torch.allclose(scaled.amax((1, 2, 3)), torch.ones(2))
    alone = explain(small_mst_resnet, VOLUME[1:], method=method)
    assert torch.allclose(alone.native_saliency, out.native_saliency[1:], atol=1e-5)
    with pytest.raises(ValueError, match="needs a slice transformer with a DINOv2"):
        explain(small_mst_resnet, VOLUME, method="attention")


def test_gradcam_leaves_no_gradient_in_the_network(small_resnet: ResNet3D) -> None:
    explain(small_resnet, VOLUME)
    assert all(parameter.grad is None for parameter in small_resnet.parameters())


def test_gradcam_has_a_map_for_each_class(small_resnet: ResNet3D) -> None:
    maps = [explain(small_resnet, VOLUME, method="gradcam", target=c).native_saliency for c in (0, 1)]
    assert not torch.allclose(maps[0], maps[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "unknown saliency method"),
        ({"method": "gradcam"}, "needs a ResNet"),
        ({"target": 5}, "class index"),
        ({"padding_mask": torch.zeros(2, 3, dtype=torch.bool)}, "padding_mask"),
        ({"padding_mask": torch.ones(2, 8, dtype=torch.bool)}, "every slice"),
    ],
)
def test_wrong_arguments_are_explained(small_mst: SliceTransformer, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explain(small_mst, VOLUME, **arguments)


EIGHT = ([], [2], [3], [4], [2, 3], [2, 4], [3, 4], [2, 3, 4])


def _naive_flips(model, volume: torch.Tensor, mask: torch.Tensor | None):
    """(probabilities, maps, native maps, slice weights) averaged over eight separate passes, flipped back."""
    runs = []
    for axes in EIGHT:
        hidden = mask.flip(1) if mask is not None and 2 in axes else mask
        out = explain(model, volume.flip(axes), padding_mask=hidden)
        weights = out.slice_weights.flip(1) if 2 in axes else out.slice_weights
        native = out.native_saliency.flip([axis - 1 for axis in axes])
        runs.append((out.logits.softmax(1), out.saliency.flip(axes), native, weights))
    return [torch.stack(parts).mean(0) for parts in zip(*runs, strict=True)]


@pytest.mark.parametrize("name", ["small_mst", "small_mst_resnet"])
@pytest.mark.parametrize("padded", [[], [0, 1, 7]])
@pytest.mark.parametrize("positions", [False, True])
def test_flips_equal_eight_passes_at_half_the_cost(
    name: str, padded: list[int], positions: bool, request
) -> None:
    model = request.getfixturevalue(name)
    if positions:
        model.slice_positions = nn.Parameter(torch.randn(1, 8, 32))
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[:, padded] = True
    passes = []
    first = model.encoder.embeddings if name == "small_mst" else model.encoder.conv1
    hook = first.register_forward_hook(lambda *_: passes.append(1))
    one = explain_flips(model, VOLUME, padding_mask=mask)
    hook.remove()
    assert len(passes) == (8 if positions else 4)
    probabilities, maps, native, weights = _naive_flips(model, VOLUME, mask)
    assert torch.allclose(one.logits.softmax(1), probabilities, atol=1e-6)
    assert torch.allclose(one.saliency, maps, atol=1e-6)
    assert torch.allclose(one.native_saliency, native, atol=1e-6)
    assert torch.allclose(one.slice_weights, weights, atol=1e-6)


@pytest.mark.parametrize("target", [None, 0, 1])
def test_flips_of_the_resnet_average_eight_passes(small_resnet: ResNet3D, target: int | None) -> None:
    one = explain_flips(small_resnet, VOLUME[:1], target=target)
    maps = [
        explain(small_resnet, VOLUME[:1].flip(axes), target=target).saliency.flip(axes)
        for axes in ([], [2], [3], [4], [2, 3], [2, 4], [3, 4], [2, 3, 4])
    ]
    assert torch.allclose(one.saliency, torch.stack(maps).mean(0), atol=1e-5)


def test_metrics_of_a_perfect_and_of_a_wrong_map() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[8:12, 8:12, 8:12] = True
    perfect = saliency_metrics(mask.astype(float), mask, (1, 1, 1))
    assert perfect["pointing_game"]
    assert perfect["top_slice_in_lesion"]
    assert perfect["share_inside"] == 1
    assert perfect["dice"] == 1
    assert perfect["average_surface_distance_mm"] == 0
    wrong = np.zeros((20, 20, 20))
    wrong[0, 0, 0] = 1
    bad = saliency_metrics(wrong, mask, (1, 1, 1))
    assert not bad["pointing_game"]
    assert not bad["top_slice_in_lesion"]
    assert bad["dice"] == bad["iou"] == bad["share_inside"] == 0
    assert bad["average_surface_distance_mm"] > 10
    nowhere = saliency_metrics(np.zeros((20, 20, 20)), mask, (1, 1, 1))
    assert nowhere["average_surface_distance_mm"] is None


def test_the_surface_distance_is_monais() -> None:
    rng = np.random.default_rng(4)
    spacing = (0.7, 0.8, 2.5)
    first, second = (gaussian_filter(rng.normal(size=(24, 22, 12)), 2) > 0.06 for _ in range(2))
    expected = compute_average_surface_distance(
        *(torch.from_numpy(body)[None, None] for body in (first, second)), symmetric=True, spacing=spacing
    )
    assert average_surface_distance(first, second, spacing) == pytest.approx(float(expected), rel=1e-4)


def test_pointing_allows_two_millimetres() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[10, 10, 10] = True
    near, far = np.zeros((2, 20, 20, 20))
    near[12, 10, 10] = far[13, 10, 10] = 1
    assert saliency_metrics(near, mask, (1, 1, 1))["pointing_game"]
    assert not saliency_metrics(far, mask, (1, 1, 1))["pointing_game"]
