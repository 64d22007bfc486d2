"""Whether a region is like those that a model was trained on, and how that is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_study import write_cases

import mst
from mst.data import read_manifest
from mst.familiar import distance, fit_vectors, measure, noise, spans, strange
from mst.models import ResNet3D, load_model
from mst.models.loading import save_model
from mst.preprocess import locate
from mst.results import answer_notes
from mst.scans import Scan
from mst.tasks import TASKS
from mst.training.cases import load_cases
from mst.training.runs import remember

CHEST = TASKS["chest-ct"]


def test_noise_is_measured_in_spite_of_edges() -> None:
    rng = np.random.default_rng(0)
    slices = np.zeros((6, 40, 40), np.float32)
    slices[:, 10:30, 12:25] = 800
    slices += rng.normal(0, 30, slices.shape)
    assert noise(slices) == pytest.approx(30, rel=0.1)
    assert noise(slices[..., :2]) == 0


def test_the_distance_is_one_for_what_was_fitted() -> None:
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(8, 8))
    known = torch.from_numpy((rng.normal(size=(600, 8)) @ mixing + 3).astype(np.float32))
    mean, whitening = fit_vectors(known)
    assert float(distance(known, mean, whitening).pow(2).mean()) == pytest.approx(
        1, abs=0.2
    )  # a shrunk covariance is wider
    assert float(distance(mean[None], mean, whitening)) == 0
    assert float(distance(mean[None] + 30, mean, whitening)) > 3


def test_what_is_measured_is_told_against_what_is_known() -> None:
    known = spans([{"slice_mm": 1.0, "noise": 20.0}, {"slice_mm": 3.0, "noise": 60.0}])
    assert strange({"slice_mm": 2.0, "noise": 40.0}, known, "HU") == []
    assert strange({"slice_mm": 10.0, "noise": 40.0, "darkest": 5.0}, known, "HU") == [
        "distance of its slices 10 mm (known: 0.78 to 3.2)"
    ]
    (told,) = strange({"noise": 140.0}, known, "HU")
    assert told.startswith("noise 140 HU (known: 16 to 6")


def test_values_without_a_unit_are_not_measured() -> None:
    scan = Scan(np.random.default_rng(0).normal(size=(30, 30, 20)).astype(np.float32), np.eye(4))
    region = locate(scan, "axial", TASKS["breast-mri"].grid, scan.center)
    assert set(measure(scan, region, TASKS["breast-mri"])) == {"slice_mm", "pixel_mm"}
    assert set(measure(scan, region, CHEST)) == {"slice_mm", "pixel_mm", "noise", "darkest", "brightest"}


def test_a_prediction_says_in_what_a_scan_is_unlike_the_training_cases(tmp_path: Path) -> None:
    data = write_cases(tmp_path / "data")
    cases = load_cases(read_manifest(data, CHEST.classes), CHEST)
    torch.manual_seed(0)
    grid = {"shape": [8, 24, 24], "spacing_mm": [4.0, 2.0, 2.0]}
    model = ResNet3D(grid=grid, depth=10, width=4, first_kernel=3).eval()
    remember(model, cases)
    model.set_familiar(model.familiar | {"limit": 2.0}, model.familiar_mean, model.familiar_whitening)
    folder = save_model(model, tmp_path / "chest-ct-resnet", half=True)
    again = load_model(folder)
    assert again.familiar == model.familiar
    assert torch.allclose(again.familiar_whitening, model.familiar_whitening, rtol=1e-2, atol=1e-2)

    known = mst.read_scan(cases[0].case.image)
    models = {"mst": None, "resnet": folder}
    usual = mst.predict(known, center=cases[0].center, models=models)["resnet"]
    assert usual.unfamiliar == ()
    assert answer_notes(CHEST, usual) == []
    noisy = Scan(
        known.voxels + np.random.default_rng(0).normal(0, 400, known.shape).astype(np.float32), known.affine
    )
    strange_one = mst.predict(noisy, center=cases[0].center, models=models)["resnet"]
    assert any(phrase.startswith("noise ") for phrase in strange_one.unfamiliar)
    (told,) = answer_notes(CHEST, strange_one)
    assert told.startswith("Unlike what the model was trained on, so trust it less: ")
