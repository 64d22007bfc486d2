"""How far answers lie off, over flips, shifts of the spot and the folds' calibrations; the same words everywhere."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Tensor

import mst
from mst.cli import main
from mst.dashboard.cards import prediction_cards
from mst.models import ResNet3D, SliceTransformer
from mst.models.loading import save_model
from mst.preprocess import prepare
from mst.results import answer_notes, prediction_record, write_results
from mst.scans import Scan
from mst.statistics import Calibration
from mst.tasks import TASKS
from mst.uncertainty import Interval, answer_interval, fold_calibrations

CHEST = TASKS["chest-ct"]
FOLDS = {"offset": 0, "folds": [{"temperature": 0.5, "offset": 0}, {"temperature": 2, "offset": 0}]}
GRID = {"shape": [8, 24, 24], "spacing_mm": [4.0, 2.0, 2.0]}


@pytest.fixture(scope="module")
def scan() -> Scan:
    """Values that grow by 1 HU a millimetre to the patient's right, so that an answer can say where it looked."""
    x = np.arange(60, dtype=np.float32)[:, None, None] - 430
    return Scan(np.ascontiguousarray(np.broadcast_to(x, (60, 60, 60))), np.diag([-1.0, -1.0, 1.0, 1.0]))


def answering(
    odds: Callable[[Tensor], Tensor], temperature: float = 1.0, slices: bool = False
) -> SimpleNamespace:
    """A model whose log odds are a function of the volume."""
    kind = SliceTransformer if slices else ResNet3D
    model = object.__new__(
        type("Answering", (kind,), {"__call__": lambda self, volume, mask: _logits(odds(volume))})
    )
    torch.nn.Module.__init__(model)
    model.classes, model.temperature, model.grid = ["benign", "malignant"], temperature, GRID
    return model


def _logits(odds: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(odds), odds], dim=1)


def interval_of(
    model: SimpleNamespace,
    scan: Scan,
    place: tuple[float, float, float] = (-30, -30, 30),
    folds: Sequence[Calibration] = (),
    answer: float = 0.5,
) -> tuple[Interval, float, float]:
    given = prepare(scan, CHEST, place, GRID)
    found = answer_interval(model, scan, CHEST, place, given, (1 - answer, answer), folds)
    low, high = found.classes["malignant"]
    assert found.classes["benign"] == pytest.approx((1 - high, 1 - low))
    return found, _log_odds(low), _log_odds(high)


def _log_odds(p: float) -> float:
    return math.log(p / (1 - p))


def test_an_answer_that_does_not_depend_on_the_view_is_one_number(scan: Scan) -> None:
    model = answering(lambda volume: torch.full((len(volume),), 0.6), temperature=2)
    found, low, high = interval_of(model, scan, answer=expit(0.3))
    assert (found.views, found.folds) == (8 + 6, 0)
    assert (low, high) == pytest.approx((0.3, 0.3))


def test_shifts_of_the_spot_are_by_two_millimetres(scan: Scan) -> None:
    low, high = CHEST.clamp
    hounsfield = (high - low) / 2
    model = answering(lambda volume: volume.mean(dim=(1, 2, 3, 4)) * hounsfield + (low + high) / 2 + 400)
    _, first, last = interval_of(model, scan)
    # Twelve of the fourteen views have a mean of -400 HU; one lies 2 HU lower and one higher. The 5% of fourteen
    # answers lie 0.65 of the way from the first to the second.
    ends = [1 / (1 + math.exp(-value)) for value in (-2, 0, 2)]
    assert first == pytest.approx(_log_odds(ends[0] + 0.65 * (ends[1] - ends[0])), rel=0.02)
    assert last == pytest.approx(_log_odds(ends[2] + 0.65 * (ends[1] - ends[2])), rel=0.02)


def test_flips_count(scan: Scan) -> None:
    model = answering(
        lambda volume: (
            (volume[..., :12].mean(dim=(1, 2, 3, 4)) > volume[..., 12:].mean(dim=(1, 2, 3, 4))) * 2.0
        )
    )
    _, low, high = interval_of(model, scan)
    assert (low, high) == pytest.approx((0, 2))


def test_the_folds_calibrations_widen_it(scan: Scan) -> None:
    model = answering(lambda volume: torch.full((len(volume),), 1.0), temperature=9)
    folds = [Calibration(1), Calibration(0.5, 0.5), Calibration(2)]
    found, low, high = interval_of(model, scan, folds=folds, answer=expit(1))
    assert found.folds == 3
    assert (low, high) == pytest.approx((0.5, 3))


def test_it_holds_the_answer_itself(scan: Scan) -> None:
    model = answering(lambda volume: torch.full((len(volume),), 1.0))
    assert interval_of(model, scan, answer=expit(0.2))[1:] == pytest.approx((0.2, 1))
    assert interval_of(model, scan, answer=expit(1.2))[1:] == pytest.approx((1, 1.2))


def test_shifts_that_leave_the_scan_are_left_out(scan: Scan) -> None:
    model = answering(lambda volume: torch.zeros(len(volume)))
    assert interval_of(model, scan, (0, -30, 30))[0].views == 8 + 5
    assert interval_of(model, scan, (0, 0, 0))[0].views == 8 + 3


def test_a_slice_transformer_without_positions_is_not_asked_twice_for_the_same(
    scan: Scan, small_mst: SliceTransformer
) -> None:
    given = prepare(scan, CHEST, (-30, -30, 30), small_mst.grid)
    assert answer_interval(small_mst, scan, CHEST, (-30, -30, 30), given, (0.5, 0.5)).views == 4 + 6


def test_a_folds_offset_is_what_it_asks_for_beyond_the_models_own() -> None:
    own = {"temperature": 0.5, "offset": -0.3, "folds": [{"temperature": 0.4, "offset": -0.1}]}
    (fold,) = fold_calibrations({"calibration": own})
    assert (fold.temperature, fold.offset) == pytest.approx((0.4, 0.2))


@pytest.mark.parametrize(
    "folds",
    [
        None,
        "many",
        [0.5, 2],
        [{"temperature": 1}],
        [{"temperature": "a", "offset": 0}],
        [{"temperature": 1, "offset": float("nan")}],
        [{"temperature": 1, "offset": 0}, {"temperature": 0, "offset": 0}],
        3,
        {},
    ],
)
def test_calibrations_that_cannot_be_used_are_none(folds: object) -> None:
    assert fold_calibrations({"calibration": {"offset": 0, "folds": folds}}) == []
    assert fold_calibrations({"calibration": folds}) == fold_calibrations({}) == []


def test_it_is_told_wherever_answers_are(
    tmp_path: Path, small_resnet: ResNet3D, scan: Scan, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models" / "chest-ct-resnet"
    save_model(small_resnet, folder)
    (folder / "metrics.json").write_text(json.dumps({"calibration": FOLDS}))
    plain = mst.predict(scan, models={"resnet": folder})["resnet"]
    assert plain.interval is None
    results = mst.predict(scan, models={"resnet": folder}, interval=True)
    result = results["resnet"]
    assert result.interval is not None
    assert result.probabilities == plain.probabilities
    low, high = result.interval.classes["malignant"]
    assert low < result.probabilities["malignant"] < high
    note = (
        f"Over flips, shifts of the spot by 2 mm and the calibrations of 2 folds, malignant is between {low:.0%} and "
        f"{high:.0%}."
    )
    assert answer_notes(CHEST, result) == [note]
    entry = prediction_record(scan, CHEST, results)["models"]["resnet"]
    assert entry["interval"]["malignant"] == [round(low, 4), round(high, 4)]
    assert entry["notes"] == [note]
    card = prediction_cards(CHEST, results)
    assert note in card
    assert f'<i style="left:{100 * low:.1f}%;right:{100 - 100 * high:.1f}%"></i>' in card
    files = write_results(tmp_path / "out", scan, CHEST, results)
    assert note in files["report.html"].read_text(encoding="utf-8")
    source = tmp_path / "scan.nii.gz"
    mst.scans.write_nifti(scan.voxels, scan.affine, source)
    asked = [
        "predict",
        source,
        "--task",
        "chest-ct",
        "--out",
        tmp_path / "o",
        "--resnet",
        folder,
        "--interval",
    ]
    assert main(list(map(str, asked))) == 0
    assert f"3D ResNet: {note}" in capsys.readouterr().out
