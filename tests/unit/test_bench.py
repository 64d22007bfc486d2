"""The ratios of `mst bench`: what is measured and how it is told, never how fast it was."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_study import ENCODER, GRID

from mst import bench
from mst.cli import main
from mst.models import ResNet3D, SliceTransformer
from mst.models.loading import save_model
from mst.tasks import TASKS


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny checkpoint of each kind, which stands for the project's own."""
    torch.manual_seed(0)
    mst = SliceTransformer(grid=GRID, encoder=ENCODER, slice_heads=2)
    save_model(mst, tmp_path / "models" / "chest-ct-mst")
    save_model(
        ResNet3D(grid=GRID, depth=10, width=4, first_kernel=3), tmp_path / "models" / "chest-ct-resnet"
    )
    monkeypatch.setenv("MST_CHECKPOINTS", str(tmp_path / "models"))
    return tmp_path / "models"


def test_ratios_are_told_and_written(checkpoints: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(bench, "_memory", lambda *given: {"MST: more / less": bench._spread(np.array([1.5]))})
    assert main(["bench", "--repeats", "2", "--out", str(tmp_path / "bench.json")]) == 0
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "bench.json").read_text())
    for title in ("speed", "memory"):
        for what, ratio in found[title].items():
            assert what in told
            assert 0 < ratio["lower"] <= ratio["median"] <= ratio["upper"]
    assert {ratio["rounds"] for ratio in found["speed"].values()} == {2}
    assert {"MST: eight flips / one", "answer alone, MST / 3D ResNet"} <= found["speed"].keys()


@pytest.mark.skipif(not bench.STATUS.is_file(), reason="this system does not tell memory")
def test_memory_is_that_of_processes_of_their_own(checkpoints: Path) -> None:
    found = bench._memory(TASKS["chest-ct"], {"resnet": str(checkpoints / "chest-ct-resnet")})
    assert list(found) == ["3D ResNet: answer and map / answer alone"]
    # The map comes after the answer, in a process that holds the libraries too.
    assert 1 <= found["3D ResNet: answer and map / answer alone"]["median"] < 2


def test_one_model_alone_can_be_measured(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STATUS", checkpoints / "nothing")  # a system that does not tell memory
    monkeypatch.setenv("MST_CHECKPOINTS", str(checkpoints / "none"))
    rounds = []
    found = bench.bench(
        models={"resnet": checkpoints / "chest-ct-resnet"},
        repeats=1,
        on_round=lambda *done: rounds.append(done),
    )
    assert found["memory"] == {}
    assert not any("MST" in what for what in found["speed"])
    assert rounds == [(1, 2), (2, 2)]


@pytest.mark.parametrize("task", list(TASKS))
def test_the_noise_is_larger_than_the_region_along_each_axis(task: str) -> None:
    study = TASKS[task]
    scan = bench.noise_scan(study)
    axes = [axis for axis, _ in bench.AXES[study.plane]]
    for axis, count, step in zip(axes, study.grid.shape, study.grid.spacing_mm, strict=True):
        assert scan.shape[axis] > count
        assert scan.spacing[axis] == pytest.approx(step or 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "knee-mri"], "There is no checkpoint for Knee MRI"),
        (["--task", "knee-mri", "--resnet", "{models}/chest-ct-resnet"], "was trained for chest-ct, not for"),
        (["--repeats", "0"], "0 is not a positive number"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(
    arguments: list[str], message: str, checkpoints: Path, capsys
) -> None:
    try:
        status = main(["bench", *(text.format(models=checkpoints) for text in arguments)])
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr().err
    assert status == 2
    assert message in told
    assert told.count("\n") == 1
