"""What models are trained for, and the class token that joins the last blocks alone."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_study import ENCODER

from mst.models import load_model
from mst.models.encoders import build_encoder, encode_tokens
from mst.models.loading import save_model
from mst.models.resnet3d import ResNet3D
from mst.models.slice_transformer import SliceTransformer
from mst.training.augment import Sample, View
from mst.training.datasets import PlaceTargets
from mst.training.objectives import STAGES, ClassTraining, DenseHeads, JointTraining, MapTraining

GRID = {"shape": [5, 24, 24], "spacing_mm": [2.0, 1.0, 1.0]}


def dense_targets() -> dict[str, torch.Tensor]:
    patches = torch.zeros(2, 5, 4, 4)
    patches[:, 2, 1, 1] = 1
    return {"patches": patches, "area": patches.mean(dim=(2, 3)), "ratings": torch.rand(2, 3)}


@pytest.mark.parametrize("count", [0, 2])
def test_a_class_token_in_all_blocks_is_dinov2(count: int) -> None:
    torch.manual_seed(0)
    encoder = build_encoder({**ENCODER, "num_register_tokens": count}).eval()
    slices = torch.randn(4, 1, 24, 24)
    expected = encoder(pixel_values=slices).last_hidden_state
    assert torch.equal(encode_tokens(encoder, slices), expected)
    assert torch.allclose(encode_tokens(encoder, slices, class_layers=3), expected, atol=1e-6)


def test_a_late_class_token_learns_of_the_slice_through_the_last_attention_alone() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(ENCODER).eval()
    slices = torch.randn(1, 1, 24, 24)
    before = encode_tokens(encoder, slices, class_layers=1)
    # Without the last block's attention, the class token is the same for every slice.
    last: Any = encoder.encoder.layer[-1]
    last.attention.o_proj.weight.data.zero_()
    last.attention.o_proj.bias.data.zero_()
    blind = encode_tokens(encoder, slices, class_layers=1)[:, 0]
    assert torch.allclose(blind, encode_tokens(encoder, torch.randn(1, 1, 24, 24), class_layers=1)[:, 0])
    assert not torch.allclose(blind, before[:, 0])


def test_a_model_with_a_late_class_token_is_kept_in_a_checkpoint(tmp_path) -> None:
    torch.manual_seed(0)
    model = SliceTransformer(encoder=ENCODER, grid=GRID, slice_heads=2, class_layers=1).eval()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    volume = torch.randn(1, 1, 5, 24, 24)
    assert torch.equal(loaded(volume), model(volume))
    seen = loaded.attend(volume)
    assert seen.patches.shape == (1, 5, 2, 4, 4)
    assert torch.allclose(model.classify(seen.vector), model(volume), atol=1e-6)


@pytest.mark.parametrize("blocks", [0, 4])
def test_more_class_layers_than_blocks_are_an_error(blocks: int) -> None:
    with pytest.raises(ValueError, match="class_layers"):
        SliceTransformer(encoder=ENCODER, class_layers=blocks, slice_heads=2)


def test_the_dense_objective_is_learnt_and_ignores_what_is_not_known() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(ENCODER)
    heads = DenseHeads(encoder, 3)
    slices, targets = torch.randn(10, 1, 24, 24), dense_targets()
    targets["ratings"][:, 1] = float("nan")
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = heads(encode_tokens(encoder, slices, class_layers=1), **targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    # No lesion at all: the ratings are asked of nothing.
    nothing = {"patches": torch.zeros(2, 5, 4, 4), "area": torch.zeros(2, 5), "ratings": targets["ratings"]}
    assert heads(encode_tokens(encoder, slices, class_layers=1), **nothing).isfinite()


def test_joint_training_trains_the_model_itself() -> None:
    torch.manual_seed(0)
    model = SliceTransformer(encoder=ENCODER, grid=GRID, slice_heads=2, class_layers=1)
    joint = JointTraining(model, 3)
    volume, padding = torch.randn(2, 1, 5, 24, 24), torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 4] = True
    probability = torch.tensor([0.0, 1.0])
    optimizer = torch.optim.AdamW(joint.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        joint(volume, padding, probability, **dense_targets()).backward()
        optimizer.step()
    found = model.eval()(volume, padding).softmax(dim=1)[:, 1]
    assert found[0] < 0.3
    assert found[1] > 0.7


def test_the_scan_is_asked_for_the_ratings_that_are_known() -> None:
    torch.manual_seed(0)
    model = SliceTransformer(encoder=ENCODER, grid=GRID, slice_heads=2, class_layers=1)
    joint = JointTraining(model, 3, scan_weight=0.5)
    alone = JointTraining(model, 3)
    alone.heads.load_state_dict(joint.heads.state_dict())
    volume, padding = torch.randn(2, 1, 5, 24, 24), torch.zeros(2, 5, dtype=torch.bool)
    probability, targets = torch.tensor([0.0, 1.0]), dense_targets()
    targets["ratings"] = torch.tensor([[0.25, float("nan"), 1.0], [float("nan"), float("nan"), 0.5]])
    gained = joint(volume, padding, probability, **targets) - alone(volume, padding, probability, **targets)
    told = joint.scan_head(model.fuse_slices(model.encode_slices(volume), padding)).sigmoid()
    wanted = [(told[0, 0], 0.25), (told[0, 2], 1.0), (told[1, 2], 0.5)]
    each = [-(target * p.log() + (1 - target) * (1 - p).log()) for p, target in wanted]
    assert torch.isclose(gained, 0.5 * torch.stack(each).mean(), atol=1e-5)
    targets["ratings"] = torch.full((2, 3), float("nan"))
    assert torch.isclose(
        joint(volume, padding, probability, **targets), alone(volume, padding, probability, **targets)
    )


def test_any_model_can_be_asked_for_the_ratings(small_resnet: ResNet3D) -> None:
    trained = ClassTraining(small_resnet, 3, 0.5).eval()
    volume, padding = torch.randn(2, 1, 8, 24, 24), torch.zeros(2, 8, dtype=torch.bool)
    probability = torch.tensor([0.0, 1.0])
    known = torch.tensor([[0.25, float("nan"), 1.0], [float("nan"), float("nan"), 0.5]])
    alone = ClassTraining(small_resnet).eval()(volume, padding, probability)
    gained = trained(volume, padding, probability, ratings=known) - alone
    told = trained.rating_head(small_resnet.encode_scan(volume)).sigmoid()
    wanted = [(told[0, 0], 0.25), (told[0, 2], 1.0), (told[1, 2], 0.5)]
    each = [-(target * p.log() + (1 - target) * (1 - p).log()) for p, target in wanted]
    assert torch.isclose(gained, 0.5 * torch.stack(each).mean(), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((33, 33, 33), {"first_stride": 2, "max_pool": False}),
        ((40, 40, 40), {"first_stride": 2, "max_pool": False}),
        ((8, 24, 24), {"max_pool": True}),
        ((32, 112, 112), {"first_stride": [2, 4, 4]}),
    ],
)
@pytest.mark.parametrize("stage", STAGES)
def test_a_3d_resnets_maps_are_asked_for_the_lesion_where_their_places_lie(
    shape: tuple[int, int, int], settings: dict[str, Any], stage: int
) -> None:
    model = ResNet3D(depth=10, width=2, first_kernel=3, **settings).eval()
    with torch.no_grad():
        size = model.stages(torch.zeros(1, 1, *shape))[stage - 1].shape[2:]
    place, stride = [n - 1 for n in size], model.stride(stage)
    mask = torch.zeros(shape)
    mask[tuple(min(i * step, n - 1) for i, step, n in zip(place, stride, shape, strict=True))] = 1
    view = View(1.0, 0.0, np.zeros(3), np.ones(3), False)
    case: Any = SimpleNamespace(case=SimpleNamespace(ratings={}), diameter_mm=None)
    sample = Sample(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.bool), mask, view)
    found = PlaceTargets({stage: stride}, {}).of(case, sample)
    assert found[f"places_{stage}"].shape == size
    assert found[f"places_{stage}"].nonzero().tolist() == [place]
    assert found["ratings"].isnan().all()


def test_a_3d_resnet_learns_where_the_lesion_is() -> None:
    torch.manual_seed(0)
    model = ResNet3D(depth=10, width=4, first_kernel=3, first_stride=2, max_pool=False)
    trained = MapTraining(model, 2, weight=5, scan_weight=0.5)
    volume, padding = torch.randn(4, 1, 17, 33, 33), torch.zeros(4, 17, dtype=torch.bool)
    mask = torch.zeros(4, 17, 33, 33)
    for number in range(3):  # the last one holds none
        mask[number, :8, 16 * number : 16 * number + 8, :8] = 1
    volume += 6 * mask[:, None]
    view = View(1.0, 0.0, np.zeros(3), np.ones(3), False)
    case: Any = SimpleNamespace(case=SimpleNamespace(ratings={}), diameter_mm=None)
    targets = PlaceTargets({stage: model.stride(stage) for stage in STAGES}, {})
    found = [
        targets.of(case, Sample(v[0], p, m, view)) for v, p, m in zip(volume, padding, mask, strict=True)
    ]
    given = {name: torch.stack([one[name] for one in found]) for name in found[0] if name != "ratings"}
    given |= {
        "probability": torch.tensor([0.0, 1.0, 0.0, 0.5]),
        "ratings": torch.tensor([[0.2, 0.9], [0.8, float("nan")], [0.5, 0.1], [float("nan")] * 2]),
        "lesion": torch.tensor([1.0, 1.0, 1.0, 0.0]),
    }
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = trained(volume, padding, **given)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    logits = trained.place_heads[0](model.stages(volume)[1].flatten(2).transpose(1, 2))[..., 0]
    inside = given["places_2"].flatten(1) == 1
    assert logits[inside].mean() > logits[given["places_2"].flatten(1) == 0].mean() + 1
    # Without any lesion there is nothing to rate.
    nothing = {
        name: torch.zeros_like(value) if name.startswith("places") else value for name, value in given.items()
    }
    assert trained(volume, padding, **nothing).isfinite()
