"""A scan through both models, with the checkpoints that the project ships."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_preprocess import orientations, reorient

import mst
from mst.dashboard.cards import prediction_cards, scan_facts
from mst.dashboard.events import checkpoint_choices
from mst.data.examples import example_scan
from mst.models.loading import save_model
from mst.preprocess import AXES
from mst.results import prediction_record, results_payload, scan_notes, scan_warnings, write_results
from mst.scans import Scan
from mst.tasks import TASKS
from mst.words import DISCLAIMER, DOUBTFUL, SHOWN_FROM

CHEST = TASKS["chest-ct"]


@pytest.fixture(scope="module")
def scan() -> Scan:
    return example_scan("chest-round")


@pytest.fixture(scope="module")
def results(scan: Scan) -> dict:
    return mst.predict(scan, center=tuple(scan.center + (4, -3, 6)))


def test_both_models_answer(scan: Scan, results: dict) -> None:
    assert list(results) == ["mst", "resnet"]
    for result in results.values():
        assert list(result.probabilities) == ["benign", "malignant"]
        assert sum(result.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert result.prediction == max(result.probabilities, key=result.probabilities.get)
        assert result.saliency.shape == scan.shape
        assert result.saliency.dtype == np.float32
        assert result.saliency.min() >= 0
        assert result.saliency.max() > 0
        assert 0 < result.validation["auc"] < 1
    assert results["mst"].slice_weights.sum() == pytest.approx(1, abs=1e-4)
    assert results["resnet"].slice_weights is None


def test_saliency_is_zero_outside_the_region(scan: Scan, results: dict) -> None:
    for result in results.values():
        outside = np.ones(scan.canonical().shape, bool)
        outside[tuple(slice(*b) for b in result.region.bounds)] = False
        assert outside.any()
        assert (Scan(result.saliency, scan.affine).canonical().voxels[outside] == 0).all()


def test_the_48_orientations_give_the_same_answer(scan: Scan, results: dict) -> None:
    center = results["mst"].spot.center
    expected = {name: Scan(r.saliency, scan.affine).canonical().voxels for name, r in results.items()}
    for codes in orientations():
        turned = reorient(scan, codes)
        for name, result in mst.predict(turned, center=center).items():
            for label, probability in result.probabilities.items():
                assert probability == pytest.approx(results[name].probabilities[label], abs=1e-4)
            own = Scan(result.saliency, turned.affine).canonical()
            assert np.allclose(own.voxels, expected[name], atol=1e-4 * expected[name].max())


def test_where_the_models_look(scan: Scan) -> None:
    mask = np.zeros(scan.shape, bool)
    mask[40:50, 50:60, 20:26] = True
    by_mask = mst.predict(scan, mask=mask)
    assert by_mask["mst"].spot.chosen_by == "mask"
    assert np.allclose(by_mask["mst"].spot.center, scan.voxel_to_world((44.5, 54.5, 22.5)), atol=1e-3)
    assert set(by_mask["mst"].metrics) >= {"pointing_game", "share_inside", "dice", "top_slice_in_lesion"}
    given = mst.predict(scan, center=tuple(scan.center), mask=mask)
    assert given["resnet"].spot.chosen_by == "given"
    middle = mst.predict(scan)
    assert middle["mst"].spot.chosen_by == "scan centre"
    assert "centre of the scan" in middle["mst"].spot.text


def test_slice_profile_lies_on_the_scans_slices(scan: Scan, results: dict) -> None:
    axis = AXES["axial"][0][0]
    for result in results.values():
        profile = result.map.profile
        assert profile.shape == (scan.canonical().shape[axis],)
        assert result.region.bounds[axis][0] <= profile.argmax() < result.region.bounds[axis][1]


def test_flip_averaging_changes_little_and_sums_to_one(scan: Scan, results: dict) -> None:
    averaged = mst.predict(scan, center=results["mst"].spot.center, tta=True)
    for result in averaged.values():
        assert sum(result.probabilities.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"center": (9999, 0, 0)}, "outside the scan"),
        ({"center": (1, 2)}, "three numbers"),
        ({"mask": np.zeros((3, 3, 3))}, "must agree"),
        ({"task": "foot-xray"}, "no study"),
        ({"side": "left"}, "no side"),
    ],
)
def test_wrong_arguments_are_explained(scan: Scan, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mst.predict(scan, **arguments)


def test_an_empty_mask_is_refused(scan: Scan) -> None:
    with pytest.raises(mst.ScanError, match="empty"):
        mst.predict(scan, mask=np.zeros(scan.shape))


def test_a_study_without_checkpoints_says_how_to_get_one() -> None:
    with pytest.raises(mst.CheckpointError, match=r"train\.py"):
        mst.predict(example_scan("breast"), "breast-mri")


def test_a_checkpoint_of_another_study_is_refused(scan: Scan, small_mst, tmp_path: Path) -> None:
    small_mst._hub_mixin_config["task"] = "knee-mri"
    small_mst.task = "knee-mri"
    folder = save_model(small_mst, tmp_path / "knee")
    with pytest.raises(mst.CheckpointError, match="knee-mri"):
        mst.predict(scan, models={"mst": folder})


def test_a_checkpoint_in_the_other_models_place_is_refused(scan: Scan, small_mst, tmp_path: Path) -> None:
    folder = save_model(small_mst, tmp_path / "mst")
    with pytest.raises(mst.CheckpointError, match="no 3D ResNet; name it as the mst model"):
        mst.predict(scan, models={"resnet": folder})


@pytest.mark.parametrize("tta", [False, True])
def test_the_mst_with_a_2d_resnet_is_a_full_member(
    scan: Scan, small_mst_resnet, tmp_path: Path, tta: bool
) -> None:
    folder = save_model(small_mst_resnet, tmp_path / "other")
    results = mst.predict(scan, models={"mst": folder}, tta=tta)
    assert list(results) == ["mst", "resnet"]
    result = results["mst"]
    assert result.title == "Medical Slice Transformer with a 2D ResNet"
    assert result.map.method == "gradcam++"
    assert result.slice_weights.shape == (8,)
    assert result.slice_weights.sum() == pytest.approx(1, abs=1e-4)
    assert result.saliency.shape == scan.shape
    assert result.saliency.max() > 0
    files = write_results(tmp_path / "out", scan, CHEST, results)
    record = json.loads(files["prediction.json"].read_text())
    assert record["models"]["mst"]["title"] == result.title
    page = files["report.html"].read_text()
    assert "Grad-CAM++" in page
    assert f"<h2>{result.title}</h2>" in page
    assert "<h2>Medical Slice Transformer</h2>" not in page
    assert f"<h3>{result.title}</h3>" in prediction_cards(CHEST, results)
    names = [(layer["short"], layer["label"]) for layer in results_payload(scan, CHEST, results)["layers"]]
    assert names == [
        ("MST (2D ResNet)", "MST (2D ResNet): Grad-CAM++"),
        ("3D ResNet", "3D ResNet: Grad-CAM++"),
    ]


def test_a_person_chooses_among_all_checkpoints_of_a_study(
    scan: Scan, small_mst, small_mst_resnet, small_resnet, tmp_path: Path, monkeypatch
) -> None:
    for name, model in (
        ("a-converted", small_mst),
        ("chest-ct-mst", small_mst),
        ("b-other", small_mst_resnet),
    ):
        save_model(model, tmp_path / name)
    save_model(small_resnet, tmp_path / "paper" / "resnet")
    monkeypatch.setenv("MST_CHECKPOINTS", str(tmp_path))
    offered = checkpoint_choices(CHEST, "mst")
    assert offered["choices"] == ["chest-ct-mst", "a-converted", "b-other"]
    # What others put beside the study's own checkpoint does not take its place unasked.
    assert offered["value"] == "chest-ct-mst"
    # Of its own, that which measures best is meant.
    save_model(small_mst, tmp_path / "chest-ct-mst-dinov2")
    assert checkpoint_choices(CHEST, "mst")["choices"][:2] == ["chest-ct-mst-dinov2", "chest-ct-mst"]
    shutil.rmtree(tmp_path / "chest-ct-mst-dinov2")
    assert checkpoint_choices(CHEST, "resnet")["choices"] == ["paper/resnet"]
    assert checkpoint_choices(TASKS["knee-mri"], "mst")["value"] == ""
    assert {name: r.checkpoint for name, r in mst.predict(scan).items()} == {
        "mst": "chest-ct-mst",
        "resnet": "resnet",
    }


def test_written_results_hold_what_the_design_names(scan: Scan, results: dict, tmp_path: Path) -> None:
    files = write_results(tmp_path / "out", scan, CHEST, results)
    assert set(files) == {
        "prediction.json",
        "report.html",
        "report.pdf",
        "mst_saliency.nii.gz",
        "resnet_saliency.nii.gz",
    }
    assert files["report.pdf"].read_bytes().startswith(b"%PDF-")
    record = json.loads(files["prediction.json"].read_text())
    assert record["task"] == "chest-ct"
    assert record["scan"]["shape"] == list(scan.shape)
    assert record["scan"]["spacing_mm"] == pytest.approx(scan.spacing, abs=1e-3)
    for entry in record["models"].values():
        assert {"checkpoint", "probabilities", "prediction", "seconds"} <= set(entry)
        assert "metrics" not in entry
    for name, result in results.items():
        image = nib.load(files[f"{name}_saliency.nii.gz"])
        assert image.shape == scan.shape
        assert np.allclose(image.affine, scan.affine, atol=1e-4)
        assert np.allclose(image.get_fdata(), result.saliency, atol=1e-6)
    report = files["report.html"].read_text()
    assert DISCLAIMER in report
    assert 'src="http' not in report


def test_an_mri_in_the_chest_ct_study_is_noted(scan: Scan, results: dict) -> None:
    notes = scan_notes(Scan(scan.voxels, scan.affine, modality="MR"), CHEST)
    assert notes
    assert "MR" in notes[0]
    bright = Scan(np.abs(scan.voxels) + 1, scan.affine, notes=("Read with care.",))
    assert "Hounsfield" in scan_notes(bright, CHEST)[0]
    record = prediction_record(bright, CHEST, results)
    assert "do not trust" in record["scan"]["notes"][-1]
    assert record["scan"]["warnings"] == record["scan"]["notes"][1:]
    assert prediction_record(scan, CHEST, results)["scan"]["warnings"] == []


def test_an_answer_that_is_not_to_be_trusted_is_dimmed_and_says_so(
    scan: Scan, results: dict, tmp_path: Path
) -> None:
    bright = Scan(np.abs(scan.voxels) + 1, scan.affine, notes=("Read with care.",))
    warning = scan_warnings(bright, CHEST)[0]
    cards = prediction_cards(CHEST, results, [warning])
    assert cards.index(warning) < cards.index('<div class="mst-cards">')
    assert 'class="mst-predictions mst-doubtful"' in cards
    assert cards.count(DOUBTFUL) == len(results)
    plain = prediction_cards(CHEST, results)
    assert "doubt" not in plain
    assert DOUBTFUL not in plain
    pages = []
    for one in (bright, scan):
        page = write_results(tmp_path, one, CHEST, results)["report.html"].read_text(encoding="utf-8")
        pages.append(page[page.index("<body") : page.index('<section class="mst-viewer"')])
    assert pages[0].count(warning) == 1
    assert pages[0].index("Read with care.") < pages[0].index(warning) < pages[0].index("<article>")
    assert pages[0].count(DOUBTFUL) == len(results)
    assert "mstr-doubtful" in pages[0]
    assert "doubtful" not in pages[1]


def test_cards_say_what_was_measured(scan: Scan, results: dict) -> None:
    measures = {"pointing_game": True, "top_slice_in_lesion": True, "share_inside": 0.344}
    for hit, words in ((True, "maximum lies within 2 mm of"), (False, "maximum does not lie within 2 mm of")):
        made = replace(results["mst"].map, metrics=measures | {"pointing_game": hit})
        result = replace(results["mst"], maps=(made,))
        assert words in prediction_cards(CHEST, {"mst": result})


def test_a_name_that_is_no_text_is_written_all_the_same(scan: Scan, results: dict, tmp_path: Path) -> None:
    odd = replace(scan, name="scan \udcff $x$ " + "W" * 5000, notes=("of \udcff",))
    files = write_results(tmp_path, odd, CHEST, results)
    record = json.loads(files["prediction.json"].read_text(encoding="utf-8"))
    assert record["scan"]["name"].startswith("scan \N{REPLACEMENT CHARACTER} $x$ WWW")
    assert "\udcff" not in scan_facts(odd, odd.notes)
    assert len(files["report.html"].read_text(encoding="utf-8").split("</title>")[0]) < 500


def test_all_outputs_show_a_map_from_the_same_value(scan: Scan, results: dict) -> None:
    payload = results_payload(scan, CHEST, results)
    assert payload["shownFrom"] == SHOWN_FROM
    # A quantile would show what is nothing, where a map is one peak.
    for name in ("mst", "resnet"):
        shown = results[name].saliency >= SHOWN_FROM * results[name].saliency.max()
        seen = (results[name].saliency > 0).sum()
        # The compact ResNet's map has three places along an axis and no peak to speak of.
        assert 0 < shown.sum() < (0.7 if name == "mst" else 1) * seen


@pytest.mark.parametrize("task", ["breast-mri", "knee-mri"])
def test_the_other_studies_run_once_they_have_checkpoints(
    task: str, small_mst, small_resnet, tmp_path: Path, monkeypatch
) -> None:
    study = TASKS[task]
    for name, model in (("mst", small_mst), ("resnet", small_resnet)):
        model._hub_mixin_config.update(task=task, classes=list(study.classes), grid={"shape": [32, 24, 24]})
        save_model(model, tmp_path / f"{task}-{name}")
    monkeypatch.setenv("MST_CHECKPOINTS", str(tmp_path))
    scan = example_scan("breast" if task == "breast-mri" else "knee")
    results = mst.predict(scan, task, side=study.sides[0] if study.sides else None)
    assert set(results) == {"mst", "resnet"}
    for result in results.values():
        assert set(result.probabilities) == set(study.classes)
        assert result.saliency.shape == scan.shape
        assert result.saliency.max() > 0
    if task == "breast-mri":
        left = np.argwhere(results["resnet"].saliency > 0)
        assert scan.voxel_to_world(left.mean(axis=0))[0] < scan.center[0]
