"""What a config may say: its settings, the paper's configs, and one clear line for whatever cannot be used."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_study import ENCODER, GRID, MST, RESNET, STILL, write_cases, write_config

import train
from mst.data import read_manifest
from mst.models import SliceTransformer
from mst.models.encoders import paper_encoder
from mst.scans import write_nifti
from mst.tasks import TASKS
from mst.training.augment import Augmentation
from mst.training.cases import load_cases
from mst.training.datasets import ValidationVolumes, VolumeDraws
from mst.training.runs import CONFIGS, Study, TrainingError, build_model, load_config, run
from mst.training.settings import TrainingSettings
from mst.training.trainer import StudyTrainer, fit, layer_share

CHEST = TASKS["chest-ct"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stepz=3", "r.yaml: training has no setting stepz; known: accumulate, batch"),
        ("training.steps=null", "training lacks steps"),
        ("training.steps=0.5", "training.steps is 0.5: input should be a valid integer"),
        ("training.batch=many", "training.batch is 'many': input should be a valid integer"),
        ("training.learning_rate=-1", "training.learning_rate is -1: input should be greater than 0"),
        ("training.schedule=linear", "training.schedule is 'linear': input should be 'cosine' or 'constant'"),
        ("training.bf16=maybe", "training.bf16 is 'maybe': input should be a valid boolean"),
        ("training.layer_decay=2", "training.layer_decay is 2: input should be less than or equal to 1"),
        (
            "training.early_stopping=true",
            "training.early_stopping is True: input should be a valid dictionary",
        ),
        ("training.early_stopping={every: 5}", "training.early_stopping lacks patience"),
        (
            "training.early_stopping={every: 5, patience: 2, metric: f1}",
            "training.early_stopping.metric is 'f1': input should be 'auc'",
        ),
        ("training.weight_decay=.inf", "training.weight_decay is inf: input should be a finite number"),
        ("training.clip_gradient=true", "training.clip_gradient is True: input should be a number"),
        ("training.fp16=true", "training: bf16 and fp16 exclude each other"),
        ("augment.zoom=[0.9]", "augment.zoom is [0.9]: field required"),
        ("augment.shift_mm=[1, 2]", "augment.shift_mm is [1, 2]: "),
        ("shares={rael: 1}", "shares.rael is 1: input should be 'real' or 'simulated'"),
        ("kind=[classifier]", "r.yaml: "),
        ("task=[chest-ct]", "r.yaml: "),
        ("training=3", "training is 3: input should be a valid dictionary"),
        ("augment={blur: 1}", "augment has no setting blur"),
        ("augment={zoom: 1}", "augment.zoom is 1: input should be a valid tuple"),
        ("task=spine-ct", "There is no study 'spine-ct'"),
        ("kind=detector", "the kind 'detector' is neither study nor classifier"),
        ("keep_slides=4", "r.yaml: the config has no setting keep_slides; known: augment, balanced"),
        ("dense={wait: 1}", "dense has no setting wait; known: ratings, scan_weight, weight"),
        ("dense={scan_weight: much}", "dense.scan_weight is 'much': input should be a valid number"),
        ("scan_ratings={scan_weight: 1}", "scan_ratings has no setting scan_weight; known: ratings, weight"),
        (
            "dense={ratings: {margin: [5, 1]}}",
            "dense.ratings.margin is [5, 1]: the first number should be below",
        ),
        ("dense={ratings: {margin: 5}}", "dense.ratings.margin is 5: input should be a valid tuple"),
    ],
)
def test_a_setting_that_is_of_no_use_is_told_by_name(
    override: str, message: str, tmp_path: Path, capsys
) -> None:
    config = write_config(tmp_path / "r.yaml", RESNET | {"augment": {}}, bf16=True)
    assert train.main([str(config), override, "--data", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_config_that_gives_no_model_is_told(tmp_path: Path) -> None:
    study = {"name": "s", "kind": "study", "task": "chest-ct", "steps": []}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    (tmp_path / "twice.yaml").write_text(yaml.safe_dump(study | {"steps": ["study.yaml"]}))
    bare = {key: value for key, value in RESNET.items() if key != "model"}
    write_config(tmp_path / "bare.yaml", bare)
    write_config(tmp_path / "after.yaml", bare | {"pretraining": "study.yaml"})
    for name, message in (
        ("bare", r"bare\.yaml: the config lacks a model"),
        ("after", r"after\.yaml: pretraining is no config that trains a model"),
        ("twice", r"twice\.yaml: not every one of the steps is a config that trains a model"),
    ):
        with pytest.raises(TrainingError, match=message):
            load_config(tmp_path / f"{name}.yaml")


def test_numbers_may_be_written_as_yaml_takes_for_text() -> None:
    settings = TrainingSettings.from_config({"steps": 3, "batch": 2, "learning_rate": "1e-6", "wandb": None})
    assert settings.learning_rate == 1e-6
    assert settings.samples == 6


def test_a_config_is_what_it_means(tmp_path: Path) -> None:
    """What is null is not said, and numbers are numbers however YAML took them."""
    changes = ["augment={zoom: null, noise: 1e-2}", "balanced=n", "frozen_layers=2.0", "keep_slices=0"]
    config = load_config(write_config(tmp_path / "r.yaml", RESNET), [*changes, "dense=null"])
    assert config["augment"] == {"noise": 0.01}
    assert config["balanced"] is False
    assert (config["frozen_layers"], config["keep_slices"]) == (2, 0)
    assert isinstance(config["frozen_layers"], int)
    assert "dense" not in config
    assert config["training"] == RESNET["training"]
    assert "weight_decay" not in config["training"]


def test_what_a_run_is_watched_by_may_change_while_it_goes_on(data: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "r.yaml", RESNET)
    run(load_config(config), data, tmp_path / "out", tmp_path / "runs")
    run(
        load_config(config, ["training.log_every=3", "training.workers=1"]),
        data,
        tmp_path / "out",
        tmp_path / "runs",
    )
    with pytest.raises(TrainingError, match="other settings"):
        run(load_config(config, ["training.accumulate=2"]), data, tmp_path / "out", tmp_path / "runs")


FULL_SIZE = [
    f"{task}-{kind}" + ("-paper" if task == "chest-ct" else "")
    for task in TASKS
    for kind in ("mst-dinov2", "resnet34")
]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_full_size_configs_have_the_papers_settings(name: str, tmp_path: Path) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    assert config["name"] == name
    mst = "dinov2" in name
    settings = TrainingSettings.from_config(config["training"])
    assert settings.learning_rate == (1e-6 if mst else 1e-4)
    assert (settings.batch, settings.weight_decay, settings.schedule) == (2, 0.01, "constant")
    assert settings.early_stopping is not None
    assert settings.early_stopping.metric == "auc"
    assert config["balanced"]
    varied = Augmentation.from_config(config["augment"])
    assert varied.flip
    assert (varied.invert, varied.rotate_deg) == (0.5, 90)
    assert varied.noise > 0
    assert np.max(varied.shift_mm) > 0
    if mst:  # the encoder lies on the hub; its shape is known
        assert config["model"]["encoder"] == "facebook/dinov2-small"
        config["model"]["encoder"] = {**paper_encoder("s"), "image_size": 224, "num_hidden_layers": 1}
    data = write_cases(tmp_path / "data", 2)
    classes = TASKS[config["task"]].classes
    table = (data / "cases.csv").read_text().replace("benign", classes[0]).replace("malignant", classes[-1])
    (data / "cases.csv").write_text(table)
    with torch.device("meta"):  # 63 million weights that nobody asks for
        model = build_model(config, Study(data, config, tmp_path / "runs"))
    assert TASKS[config["task"]].grid.override(model.grid).shape == (32, 224, 224)


@pytest.mark.parametrize("task", ["breast-mri", "knee-mri"])
def test_the_mri_studies_train_from_a_manifest_with_centres(task: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    study = TASKS[task]
    lines = ["image,label,center_x,center_y,center_z"]
    for number in range(4):
        values = rng.normal(100, 20, (40, 36, 20)).astype(np.float32)
        write_nifti(values, np.diag([1.0, 1.0, 2.0, 1.0]), tmp_path / f"i{number}.nii.gz")
        lines.append(f"i{number}.nii.gz,{study.classes[number % 2]},20,18,{16 + number}")
    (tmp_path / "cases.csv").write_text("\n".join(lines))
    grid: dict[str, Any] = {"shape": [8, 24, 24]}
    if study.grid.crop_voxels:
        grid["crop_voxels"] = [24, 24]
    model = RESNET["model"] | {"grid": grid}
    varied = load_config(CONFIGS / f"{task}-resnet34.yaml")["augment"]
    config = RESNET | {"name": "tiny", "task": task, "model": model, "augment": varied, "balanced": True}
    path = write_config(tmp_path / "c.yaml", config, early_stopping={"every": 2, "patience": 3, "folds": 2})
    run(load_config(path), tmp_path, tmp_path / "out", tmp_path / "runs")
    case = load_cases(read_manifest(tmp_path, study.classes), study)[3]
    assert case.center.tolist() == [20, 18, 19]


def test_inversion_changes_the_sign_and_nothing_else(data: Path) -> None:
    cases = load_cases(read_manifest(data, CHEST.classes)[:1], CHEST)
    plain = VolumeDraws(cases, GRID, Augmentation.from_config(STILL), 1)[0]["volume"]
    inverted = VolumeDraws(cases, GRID, Augmentation.from_config({**STILL, "invert": 1}), 1)[0]["volume"]
    assert torch.allclose(inverted, -plain)
    half = VolumeDraws(cases, GRID, Augmentation.from_config({**STILL, "invert": 0.5}), 40)
    signs = [bool(torch.allclose(half[number]["volume"], -plain)) for number in range(40)]
    assert 8 < sum(signs) < 32
    moved = Augmentation.from_config({**STILL, "shift_mm": [0, 6, 6]})
    assert not torch.allclose(VolumeDraws(cases, GRID, moved, 1)[0]["volume"], plain)


def test_validation_volumes_are_the_dashboards(data: Path) -> None:
    cases = load_cases(read_manifest(data, CHEST.classes)[:2], CHEST)
    volumes = ValidationVolumes(cases, GRID)
    assert [float(volumes[number]["target"]) for number in range(2)] == [0, 1]
    assert torch.equal(volumes[1]["volume"], cases[1].prepare(GRID).volume[0])


def _model() -> SliceTransformer:
    torch.manual_seed(0)
    return SliceTransformer(grid=GRID, encoder=ENCODER, slice_heads=2)


def test_layer_decay_gives_the_embeddings_least_and_the_last_layer_most(data: Path, tmp_path: Path) -> None:
    model = _model()
    names = {
        "encoder.embeddings.cls_token": 0.125,
        "encoder.encoder.layer.0.norm1.weight": 0.25,
        "encoder.encoder.layer.1.norm1.weight": 0.5,
        "encoder.encoder.layer.2.norm1.weight": 1.0,
        "encoder.layernorm.weight": 1.0,
        "linear.weight": 1.0,
    }
    known = dict(model.named_parameters())
    for name, share in names.items():
        assert name in known
        assert layer_share(name, model, 0.5) == share
        assert layer_share(name, model, None) == 1
    settings = {
        "steps": 1,
        "batch": 1,
        "learning_rate": 1e-2,
        "encoder_learning_rate": 1e-4,
        "layer_decay": 0.5,
    }
    rates: dict[int, float] = {}

    def keep(self) -> None:
        for group in self.optimizer.param_groups:
            rates.update({id(parameter): group["initial_lr"] for parameter in group["params"]})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StudyTrainer, "store_flos", keep)
        fit(model, _samples(data, 1), tmp_path / "run", settings, 0)
    for name, share in names.items():
        rate = 1e-4 if name.startswith("encoder.") else 1e-2
        assert rates[id(known[name])] == pytest.approx(rate * share)


def _samples(data: Path, count: int) -> VolumeDraws:
    return VolumeDraws(load_cases(read_manifest(data, CHEST.classes), CHEST), GRID, Augmentation(), count)


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"batch": 2, "accumulate": 2}, 1e-5),
        ({"batch": 4, "checkpoint_gradients": True}, 1e-6),
        ({"batch": 4, "workers": 2}, 0),
        ({"batch": 4, "bf16": True}, 0.1),
    ],
    ids=["accumulate", "checkpoint_gradients", "workers", "bf16"],
)
def test_how_a_step_is_computed_does_not_change_what_is_learnt(settings, tolerance, data, tmp_path) -> None:
    common = {"steps": 3, "batch": 4, "learning_rate": 1e-3, "log_every": 1}
    calls = []
    logs = []
    for number, more in enumerate(({}, settings)):
        model = _model()
        layer = model.encoder.encoder.layer[0].mlp  # within what is recomputed
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
        logs.append(fit(model, _samples(data, 12), tmp_path / str(number), common | more, 0))
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert np.allclose(*losses, atol=tolerance)
    if "checkpoint_gradients" in settings:  # each layer ran once more in every backward pass
        assert calls.count(1) == 2 * calls.count(0)


@pytest.mark.parametrize("name", ["checkpoint_gradients", "layer_decay", "fp16"])
def test_what_a_model_or_machine_cannot_do_is_told(name: str, data: Path, tmp_path: Path, capsys) -> None:
    if name == "fp16" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    config = write_config(tmp_path / "r.yaml", RESNET, **{name: 0.9 if name == "layer_decay" else True})
    arguments = [
        str(config),
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--runs",
        str(tmp_path / "runs"),
    ]
    assert train.main(arguments) == 2
    told = capsys.readouterr().err
    assert f"training.{name}" in told
    assert told.count("\n") == 1


def _broken(folder: Path, kind: str) -> str:
    """Breaks a study's cases in one way; returns what must be told of it."""
    with (folder / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0])
    if kind == "column":
        columns.remove("label")
        told = "cases.csv has no column label"
    elif kind == "file":
        (folder / "i3.nii.gz").unlink()
        told = "cases.csv, row 5: the image file i3.nii.gz does not exist"
    elif kind == "label":
        rows[2]["label"] = ""
        told = "cases.csv, row 4: the column label is empty"
    elif kind == "class":
        rows = [row for row in rows if row["label"] == "benign"]
        told = "cases.csv holds only the class benign"
    elif kind == "fold":
        columns.append("fold")
        for number, row in enumerate(rows):
            row["fold"] = str(number % 2)
        told = "cases.csv, row 3: the patient p0 is in fold 1, but in fold 0 in row 2"
    elif kind == "mask":
        write_nifti(
            np.eye(4, 5, dtype=np.float32)[..., None] * np.ones(6, np.float32),
            np.eye(4),
            folder / "m1.nii.gz",
        )
        told = "cases.csv, row 3: The mask m1.nii.gz has 4 x 5 x 6 voxels, its scan 48 x 48 x 24"
    elif kind == "damaged":
        (folder / "m2.nii.gz").write_bytes(b"nothing")
        told = "cases.csv, row 4: The mask cannot be used: m2.nii.gz is not a compressed NIfTI"
    else:
        shutil.rmtree(folder)
        told = "There is no manifest"
    if folder.is_dir():
        with (folder / "cases.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    return told


@pytest.mark.parametrize("kind", ["column", "file", "label", "class", "fold", "mask", "damaged", "nothing"])
def test_bad_cases_are_told_by_row_and_file(kind: str, data: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    expected = _broken(folder, kind)
    config = write_config(tmp_path / "r.yaml", RESNET)
    arguments = [
        str(config),
        "--data",
        str(folder),
        "--out",
        str(tmp_path / "out"),
        "--runs",
        str(tmp_path / "runs"),
    ]
    assert train.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith(expected)
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--part", "fold-9"], "There is no part fold-9; choose of all, fold-0, fold-1."),
        (["--part", "first"], "There is no part first"),
        (["--part", "fold-0", "--push-to-hub", "me/x"], "--push-to-hub needs the part 'all'"),
        (["training.early_stopping={every: 2, patience: 2, folds: 9}"], "9 folds need as many patients"),
    ],
)
def test_bad_usage_is_told_in_one_line(
    more: list[str], message: str, data: Path, tmp_path: Path, capsys
) -> None:
    config = write_config(tmp_path / "r.yaml", RESNET)
    arguments = [str(config), *more, "--data", str(data), "--out", str(tmp_path / "out")]
    assert train.main([*arguments, "--runs", str(tmp_path / "runs")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_told(data: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "runs").write_text("a file where the runs should go")
    config = write_config(tmp_path / "r.yaml", RESNET)
    arguments = [
        str(config),
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--runs",
        str(tmp_path / "runs"),
    ]
    assert train.main(arguments) == 2
    told = capsys.readouterr().err
    assert "could not be read or written" in told
    assert told.count("\n") == 1


def test_a_mst_with_every_option_ends_with_a_checkpoint(data: Path, tmp_path: Path) -> None:
    options = {"layer_decay": 0.8, "checkpoint_gradients": True, "accumulate": 2, "schedule": "constant"}
    options |= {"bf16": True, "early_stopping": {"every": 2, "patience": 2, "folds": 2}, "clip_gradient": 0}
    config = write_config(tmp_path / "mst.yaml", MST, **options)
    assert yaml.safe_load(config.read_text())["training"]["layer_decay"] == 0.8
    run(load_config(config), data, tmp_path / "out", tmp_path / "runs")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
