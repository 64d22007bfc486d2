"""One model asked by many at once: each gets the answer that it would get alone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch

import mst
from mst.data.examples import example_scan
from mst.findings import checkpoints
from mst.models import ResNet3D, ScanClassifier, SliceTransformer, load_model
from mst.saliency import Explanation, explain
from mst.saliency.flips import explain_flips

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 6,
    "num_channels": 1,
}
VARIANTS = {
    "as published": {},
    "registers": {"encoder": {**ENCODER, "num_register_tokens": 3, "use_swiglu_ffn": True}},
    "late class token": {"class_layers": 1, "slice_layers": 2, "slice_positions": 8},
    "bottleneck": {"bottleneck": 16},
    "linear": {"fusion": "linear", "fusion_slices": 8},
    "average": {"fusion": "average"},
}


def _volumes(count: int, side: int) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Volumes and padding masks, each another; every third volume has no padding."""
    cases = []
    for number in range(count):
        volume = torch.randn(1, 1, 8, side, side, generator=torch.Generator().manual_seed(number))
        mask = torch.zeros(1, 8, dtype=torch.bool)
        mask[0, : number % 3] = mask[0, 8 - number % 2 :] = True
        cases.append((volume, mask if mask.any() else None))
    return cases


def _differences(one: Explanation, other: Explanation) -> list[float]:
    pairs = [
        (one.logits, other.logits),
        (one.saliency, other.saliency),
        (one.native_saliency, other.native_saliency),
    ]
    if one.slice_weights is None or other.slice_weights is None:
        assert one.slice_weights is other.slice_weights
    else:
        pairs.append((one.slice_weights, other.slice_weights))
    return [float((a - b).abs().max()) if a.shape == b.shape else float("inf") for a, b in pairs]


def _check_at_once(model: ScanClassifier, side: int, threads: int, rounds: int) -> None:
    cases = _volumes(threads, side)
    asks: tuple[Callable[..., Explanation], ...] = (explain, explain_flips)
    alone = [[ask(model, volume, padding_mask=mask) for ask in asks] for volume, mask in cases]
    start = Barrier(threads)

    def ask_again(number: int) -> float:
        volume, mask = cases[number]
        worst = 0.0
        try:
            for turn in range(rounds):
                start.wait()
                which = (turn + number) % 2  # so that both meet
                seen = asks[which](model, volume, padding_mask=mask)
                worst = max(worst, *_differences(seen, alone[number][which]))
        except BaseException:
            start.abort()  # or the others would wait for this one for ever
            raise
        return worst

    with ThreadPoolExecutor(threads) as pool:
        assert max(pool.map(ask_again, range(threads))) <= 1e-6
    assert not model.training


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("name", ["chest-ct-mst", "chest-ct-mst-resnet", "chest-ct-resnet"])
def test_the_shipped_models_answer_many_at_once_as_one(name: str, threads: int) -> None:
    _check_at_once(load_model(CHECKPOINTS / name), 40, threads, 4)


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_slice_transformer_answers_many_at_once_as_one(variant: str, threads: int) -> None:
    torch.manual_seed(4)
    settings = {"encoder": ENCODER, "slice_heads": 4, "grid": {"shape": [8, 24, 24]}} | VARIANTS[variant]
    _check_at_once(SliceTransformer(**settings).eval(), 24, threads, 6)


@pytest.mark.parametrize("threads", [2, 8])
def test_a_3d_resnet_answers_many_at_once_as_one(small_resnet: ResNet3D, threads: int) -> None:
    _check_at_once(small_resnet, 24, threads, 6)


@pytest.mark.parametrize("name", ["small_mst", "small_resnet", "small_mst_resnet"])
def test_explaining_never_switches_the_model_that_others_use(name: str, request) -> None:
    model = request.getfixturevalue(name)
    volume, mask = _volumes(2, 24)[1]
    switched = []
    model.train = lambda mode=True: switched.append(mode)  # eval() calls it
    explain(model, volume, padding_mask=mask)
    del model.train
    assert switched == []
    model.train()
    with pytest.raises(ValueError, match=r"training mode; call its eval\(\) first"):
        explain(model, volume, padding_mask=mask)
    assert model.training


@pytest.mark.parametrize("name", ["small_mst", "small_resnet", "small_mst_resnet"])
def test_a_caller_in_inference_mode_gets_the_same(name: str, request) -> None:
    model = request.getfixturevalue(name)
    volume, mask = _volumes(2, 24)[1]
    alone = explain(model, volume, padding_mask=mask)
    with torch.inference_mode():
        seen = explain(model, volume.clone(), padding_mask=mask)
    assert max(_differences(seen, alone)) <= 1e-6


def test_many_whole_predictions_at_once_and_each_checkpoint_is_loaded_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = []
    plain = checkpoints.load_model

    def counted(source: str) -> ScanClassifier:
        loads.append(source)
        return plain(source)

    scans = [example_scan("chest-round"), example_scan("chest-spiculated")]
    places = [tuple(scan.center + shift) for scan in scans for shift in (0, 7)]
    asks = [(scans[index // 2], place, bool(index % 2)) for index, place in enumerate(places)] * 2
    alone = [mst.predict(scan, center=place, tta=tta) for scan, place, tta in asks[:4]]
    monkeypatch.setattr(checkpoints, "load_model", counted)
    checkpoints._kept.clear()
    with ThreadPoolExecutor(len(asks)) as pool:
        seen = list(pool.map(lambda ask: mst.predict(ask[0], center=ask[1], tta=ask[2]), asks))
    assert len(loads) == 2
    for one, other in zip(seen, alone * 2, strict=True):
        for name in ("mst", "resnet"):
            assert abs(one[name].logits - other[name].logits).max() <= 1e-6
            assert abs(one[name].saliency - other[name].saliency).max() <= 1e-6
            assert abs(one[name].map.profile - other[name].map.profile).max() <= 1e-6
