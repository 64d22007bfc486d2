"""Checkpoints that are damaged, changed or missing: told by name, never skipped and never answered with."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mst
from mst.cli import main
from mst.data.examples import example_file, example_scan
from mst.findings import cached_model, resolve_checkpoints
from mst.models import checkpoint_metrics, list_checkpoints, load_model
from mst.models.loading import checkpoint_identity, save_model
from mst.results import prediction_record
from mst.scans import Scan
from mst.tasks import TASKS

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"
CHEST = TASKS["chest-ct"]


@pytest.fixture(scope="module")
def scan() -> Scan:
    return example_scan("chest-round")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped checkpoints that the models are taken from."""
    folder = tmp_path / "somewhere" / "checkpoints"
    shutil.copytree(SHIPPED, folder)
    monkeypatch.setenv("MST_CHECKPOINTS", str(folder))
    return folder


def _with_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _with_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["chest-ct-mst", "chest-ct-resnet", "chest-ct-mst-resnet"])
def test_weights_that_are_no_numbers_are_refused(base: Path, scan: Scan, name: str, value: float) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        list(weights.values())[-1].view(-1)[0] = value

    _with_weights(base / name, spoil)
    with pytest.raises(mst.CheckpointError, match=f"^{name}: some of its weights are no numbers"):
        load_model(base / name)
    slot = "resnet" if name == "chest-ct-resnet" else "mst"
    with pytest.raises(mst.CheckpointError, match=name):
        mst.predict(scan, models={slot: base / name})


def test_the_running_statistics_of_a_batch_norm_count_as_weights(base: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        next(tensor for key, tensor in weights.items() if key.endswith("running_var"))[0] = float("nan")

    _with_weights(base / "chest-ct-resnet", spoil)
    with pytest.raises(mst.CheckpointError, match="no numbers"):
        load_model(base / "chest-ct-resnet")


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize(
    ("name", "slot"), [("chest-ct-mst", "mst"), ("chest-ct-mst-resnet", "mst"), ("chest-ct-resnet", "resnet")]
)
def test_an_answer_that_is_no_number_is_no_verdict(
    base: Path, scan: Scan, name: str, slot: str, tta: bool
) -> None:
    def overflow(weights: dict[str, torch.Tensor]) -> None:
        for key in ("linear.weight", "model.fc.weight"):
            if key in weights:
                weights[key] = torch.full_like(
                    weights[key], 3e38, dtype=torch.float32
                )  # shipped ones have 16 bits

    _with_weights(base / name, overflow)
    with pytest.raises(
        mst.CheckpointError, match=rf"^{name}: the answer or its map holds values that are no"
    ):
        mst.predict(scan, models={slot: base / name}, tta=tta)


def test_a_setting_of_another_version_matters_only_where_it_was_used(small_mst, tmp_path: Path) -> None:
    save_model(small_mst, tmp_path / "model")
    _with_config(tmp_path / "model", gone=None)
    volume = torch.randn(1, 1, 8, 24, 24)
    assert torch.equal(load_model(tmp_path / "model")(volume), small_mst(volume))
    _with_config(tmp_path / "model", gone={"width": 8}, other=0)
    with pytest.raises(mst.CheckpointError, match=r"^model: .* does not know \('gone', 'other'\)"):
        load_model(tmp_path / "model")


METRICS = [
    "{",
    "[1, 2]",
    "null",
    '{"auc": NaN}',
    '{"auc": "0.9"}',
    '{"auc": true}',
    '{"auc": 1e999}',
    '{"auc": [0.9]}',
    '{"auc": 0.9, "auc_ci95": 0.8}',
    '{"auc": 0.9, "auc_ci95": [0.8]}',
    '{"auc": 0.9, "auc_ci95": ["low", "high"]}',
    '{"auc": 0.9, "auc_ci95": {"0": 0.8, "1": 0.9}}',
    '{"auc": 0.9, "protocol": {"a": 1}}',
    '{"auc": 0.9, "protocol": null}',
    '{"seconds": 3.2}',
    '{"seconds": {"median": 3.2}}',
    '{"seconds": {"median": "3.2", "cpu_cores": 2}}',
    '{"seconds": {"median": 0, "cpu_cores": 2}}',
    '{"seconds": {"median": 1e999, "cpu_cores": 2}}',
    '{"seconds": {"median": 3.2, "cpu_cores": 1.5}}',
    '{"seconds": {"median": 3.2, "cpu_cores": true}}',
    "[" * 100_000,
    "\ud83d",
]


@pytest.mark.parametrize("text", METRICS, ids=range(len(METRICS)))
def test_figures_that_are_none_are_told(base: Path, scan: Scan, text: str) -> None:
    (base / "chest-ct-mst" / "metrics.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    for ask in (lambda: checkpoint_metrics(base / "chest-ct-mst"), lambda: mst.predict(scan)):
        with pytest.raises(mst.CheckpointError, match=r"^chest-ct-mst: .*metrics\.json") as told:
            ask()
        assert str(base.parent) not in str(told.value)


def test_a_checkpoint_may_have_no_figures(base: Path, scan: Scan) -> None:
    (base / "chest-ct-mst" / "metrics.json").unlink()
    (base / "chest-ct-resnet" / "metrics.json").write_text('{"auc": null, "auc_ci95": null}')
    results = mst.predict(scan)
    record = prediction_record(scan, CHEST, results)
    assert "validation_auc" not in record["models"]["mst"]
    assert record["models"]["resnet"]["validation_auc"] is None
    assert record["notes"] == []


def _remove(*files: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / file).unlink() for file in files] and None


def _write(file: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(text) and None


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no weights": _remove("model.safetensors"),
    "no settings": _remove("config.json"),
    "nothing but a card": _remove("model.safetensors", "config.json", "metrics.json"),
    "broken settings": _write("config.json", '{"architecture": "slice-tr'),
    "settings that are a list": _write("config.json", "[]"),
    "settings without end": _write("config.json", "[" * 100_000),
    "broken weights": _write("model.safetensors", "no weights at all"),
    "broken figures": _write("metrics.json", "{"),
    "a temperature of zero": lambda folder: _with_config(folder, temperature=0),
    "no temperature": lambda folder: _with_config(folder, temperature=None),
    "one class": lambda folder: _with_config(folder, classes=["benign"]),
    "a class twice": lambda folder: _with_config(folder, classes=["benign", "benign"]),
    "an encoder that is none": lambda folder: _with_config(folder, encoder=[1]),
    "an encoder of no width": lambda folder: _with_config(folder, encoder={"hidden_size": 0}),
    "a grid of text": lambda folder: _with_config(folder, grid={"shape": "large"}),
    "a grid of nothing": lambda folder: _with_config(folder, grid={"shape": [0, 40, 40]}),
    "a grid of odd names": lambda folder: _with_config(folder, grid={"form": [32, 40, 40]}),
    "a grid between patches": lambda folder: _with_config(folder, grid={"shape": [32, 41, 40]}),
    "a spacing that is none": lambda folder: _with_config(folder, grid={"spacing_mm": [1, 1, -1]}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_told_and_never_skipped(
    base: Path, scan: Scan, damage: str, tmp_path: Path, capsys
) -> None:
    DAMAGE[damage](base / "chest-ct-mst")
    with pytest.raises(mst.CheckpointError, match="chest-ct-mst") as told:
        mst.predict(scan)
    assert "\n" not in str(told.value)
    assert not re.search(r"/\w+/", str(told.value)), told.value
    file = example_file("chest-round", tmp_path)
    assert main(["predict", str(file), "--task", "chest-ct", "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "chest-ct-mst" in errors
    assert not (tmp_path / "out" / "prediction.json").exists()


def test_what_lies_beside_the_checkpoints_harms_none(base: Path, scan: Scan) -> None:
    foreign = {"architectures": ["BertModel"], "model_type": "bert"}
    for name, text in {"bert": json.dumps(foreign), "notes": "{", "aaa": "[]"}.items():
        (base / name).mkdir()
        (base / name / "config.json").write_text(text)
    (base / "chest-ct-mst.writing").mkdir()
    (base / "a-try").mkdir()
    (base / "a-try" / "config.json").write_text('{"architecture": "resnet3d", "task": "chest-ct"}')
    assert [result.checkpoint for result in mst.predict(scan).values()] == ["chest-ct-mst", "chest-ct-resnet"]
    # It cannot be used, but it is there to be chosen, and says then what it lacks.
    assert base / "a-try" in list_checkpoints("chest-ct")["resnet3d"]
    with pytest.raises(mst.CheckpointError, match=r"a-try has no model\.safetensors"):
        mst.predict(scan, models={"resnet": base / "a-try"})


def test_a_model_that_is_not_there_is_noted(base: Path, tmp_path: Path, capsys) -> None:
    for name in ("chest-ct-mst", "chest-ct-mst-resnet"):
        shutil.rmtree(base / name)
    out = tmp_path / "out"
    scan = str(example_file("chest-round", tmp_path))
    assert main(["predict", scan, "--task", "chest-ct", "--out", str(out)]) == 0
    sentence = "There is no checkpoint of the Medical Slice Transformer for Chest CT"
    record = json.loads((out / "prediction.json").read_text())
    assert list(record["models"]) == ["resnet"]
    assert len(record["notes"]) == 1
    assert record["notes"][0].startswith(sentence)
    assert f"note: {sentence}" in capsys.readouterr().out
    assert sentence in (out / "report.html").read_text()
    (tmp_path / "cases.csv").write_text(f"image\n{scan}\n")
    assert main(["predict", "--manifest", str(tmp_path / "cases.csv"), "--out", str(tmp_path / "many")]) == 0
    assert f"note: {sentence}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "source",
    [
        "{base}/nowhere",
        "{base}/nowhere/",
        "{base}",
        "{base}/chest-ct-mst/README.md",
        "{base}/chest-ct-mst/../nowhere",
        "{base}/unreadable",
    ],
)
def test_messages_hold_no_path(base: Path, source: str) -> None:
    (base / "unreadable" / "config.json").mkdir(parents=True)
    with pytest.raises(mst.CheckpointError) as told:
        load_model(source.format(base=base))
    assert str(base.parent) not in str(told.value)
    assert "/" not in str(told.value).replace("(owner/name)", "")


def test_a_bit_that_was_flipped_does_not_answer_under_the_old_name(base: Path) -> None:
    folder = base / "chest-ct-mst"
    weights = folder / "model.safetensors"
    status = weights.stat()
    before, identity = cached_model(str(folder)), checkpoint_identity(folder)
    assert cached_model(str(folder)) is before
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    with weights.open("r+b") as file:
        file.write(content)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert weights.stat().st_mtime_ns == status.st_mtime_ns
    assert checkpoint_identity(folder) != identity
    after = cached_model(str(folder))
    assert any(
        not torch.equal(a, b)
        for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True)
    )


def test_a_changed_setting_counts_too(base: Path, scan: Scan) -> None:
    before = mst.predict(scan)["mst"].probabilities["malignant"]
    _with_config(base / "chest-ct-mst", temperature=50.0)
    after = mst.predict(scan)["mst"].probabilities["malignant"]
    assert abs(after - 0.5) < abs(before - 0.5)
    shutil.rmtree(base / "chest-ct-mst")
    with pytest.raises(mst.CheckpointError, match="no checkpoint folder chest-ct-mst"):
        mst.predict(scan, models={"mst": base / "chest-ct-mst"})


def test_the_models_name_decides_where_the_settings_are_lost(base: Path) -> None:
    for name in ("chest-ct-mst", "chest-ct-mst-resnet", "chest-ct-resnet"):
        (base / name / "config.json").unlink()
    found = {
        kind: [folder.name for folder in folders] for kind, folders in list_checkpoints("chest-ct").items()
    }
    assert found == {
        "slice-transformer": ["chest-ct-mst"],
        "resnet-slice-transformer": ["chest-ct-mst-resnet"],
        "resnet3d": ["chest-ct-resnet"],
    }
    assert not any(list_checkpoints("knee-mri").values())
    chosen = resolve_checkpoints(CHEST)
    assert {name: Path(folder).name for name, folder in chosen.items()} == {
        "mst": "chest-ct-mst",
        "resnet": "chest-ct-resnet",
    }


def test_a_model_loaded_in_inference_mode_can_be_explained_later(
    small_resnet, scan: Scan, tmp_path: Path
) -> None:
    folder = save_model(small_resnet, tmp_path / "in-inference-mode")
    models = {"mst": SHIPPED / "chest-ct-mst", "resnet": folder}
    with torch.inference_mode():
        first = mst.predict(scan, models=models)["resnet"]
    second = mst.predict(scan, models=models)["resnet"]
    assert abs(first.saliency - second.saliency).max() <= 1e-6
