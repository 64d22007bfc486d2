"""Long runs: several processes, early stopping, being killed, a full disk, the log, and pushing to the hub."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_hub import FakeHub
from safetensors.torch import load_file
from small_study import MST, MST_RESNET, RESNET, write_cases, write_config

import train
from mst.models import load_model
from mst.models.loading import CheckpointError, save_model
from mst.training import trainer as trainer_module
from mst.training.runs import Study, TrainingError, load_config, run
from mst.training.trainer import best_evaluation, last_checkpoint

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
STOPPING = {"every": 2, "patience": 2, "folds": 2}
# How much lesion the samples show differs between the processes.
MST_DENSE = {**MST, "dense": {"weight": 0.5, "ratings": {"malignancy": [1, 5]}}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("data"))


def _environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    paths = [str(ROOT), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"} | more


def _command(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=_environment(**environment),
        timeout=280,
    )


def _log(runs: Path, name: str) -> list[dict]:
    return json.loads((runs / name / "all" / "done.json").read_text())["log"]


def _curve(log: list[dict], key: str) -> list[float]:
    return [entry[key] for entry in log if key in entry]


def _same_weights(one: Path, other: Path, apart: float = 1e-5) -> None:
    """That two files hold the same; the first may hold more, which is not trained."""
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert all(name in second or name.startswith("familiar_") for name in first)
    for name, weight in second.items():
        assert torch.allclose(weight.float(), first[name].float(), rtol=apart, atol=apart), name


def _one_process_and_two(
    launcher: list[str], config: Path, data: Path, folder: Path
) -> tuple[dict[str, list], dict[str, list]]:
    """Trains on one process and on two; the curves of both runs."""
    name = load_config(config)["name"]
    run(load_config(config), data, folder / "one", folder / "runs-1")
    done = _command(
        *launcher,
        *("train.py", str(config), "--data", str(data)),
        *("--out", str(folder / "two"), "--runs", str(folder / "runs-2")),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{name} all") == 1  # the main process alone tells
    assert done.stdout.count("step 1 of") == 1
    one, two = (_log(folder / f"runs-{n}", name) for n in (1, 2))
    model, other = load_model(folder / "one"), load_model(folder / "two")
    volume = torch.randn(2, 1, 8, 24, 24)
    assert torch.allclose(model(volume), other(volume), atol=1e-3)
    assert sorted(path.name for path in (folder / "two").iterdir()) == sorted(
        path.name for path in (folder / "one").iterdir()
    )
    keys = ("loss", "eval_loss", "eval_auc")
    return {key: _curve(one, key) for key in keys}, {key: _curve(two, key) for key in keys}


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def test_two_processes_learn_what_one_does(data: Path, tmp_path: Path) -> None:
    # With batch norms, whose statistics must come from both processes, and an evaluation that is shared by both.
    config = write_config(
        tmp_path / "resnet.yaml", RESNET, batch=4, steps=6, early_stopping={**STOPPING, "patience": 9}
    )
    one, two = _one_process_and_two(TORCHRUN, config, data, tmp_path)
    assert len(two["loss"]) == 6
    for key, curve in one.items():
        # AdamW divides the first gradients by their own size, so float noise in the small ones grows.
        assert np.allclose(curve, two[key], atol=5e-5), key


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
@pytest.mark.parametrize(
    "model", [RESNET, MST, MST_DENSE, MST_RESNET], ids=["resnet", "mst", "dense", "mst-resnet"]
)
def test_each_model_learns_alike_on_two_processes(launcher, model, data: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "config.yaml",
        model,
        batch=4,
        steps=6,
        accumulate=2,
        early_stopping={**STOPPING, "patience": 9},
    )
    one, two = _one_process_and_two(launcher, config, data, tmp_path)
    assert len(two["loss"]) == 6
    for key, curve in one.items():
        assert np.allclose(curve, two[key], atol=1e-5), key


def test_a_run_that_is_killed_at_any_moment_ends_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    settings = {"steps": 60, "save_every": 4, "early_stopping": {"every": 4, "patience": 6, "folds": 2}}
    config = write_config(tmp_path / "resnet.yaml", RESNET, **settings)
    run(load_config(config), data, tmp_path / "whole", tmp_path / "runs-1")
    arguments = [str(config), "--data", str(data), "--out", str(tmp_path / "cut")]
    done = _command(str(TESTS / "killed_runs.py"), "1", "2", *arguments, "--runs", str(tmp_path / "runs-2"))
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    assert ends[:4] == ["killed"] * 4
    assert ends[-1] == "done"
    _same_weights(tmp_path / "whole", tmp_path / "cut")
    whole, cut = (_log(tmp_path / f"runs-{n}", "tiny-resnet") for n in (1, 2))
    for key in ("loss", "eval_auc"):
        assert np.allclose(_curve(whole, key), _curve(cut, key), atol=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("stopping", [True, False])
def test_many_kills(seed: int, stopping: bool, data: Path, tmp_path: Path) -> None:
    settings = {"steps": 60, "save_every": 3}
    if stopping:
        settings["early_stopping"] = {"every": 3, "patience": 8, "folds": 2}
    config = write_config(tmp_path / "mst.yaml", MST_RESNET, **settings)
    run(load_config(config), data, tmp_path / "whole", tmp_path / "runs-1")
    arguments = [str(config), "--data", str(data), "--out", str(tmp_path / "cut")]
    done = _command(
        str(TESTS / "killed_runs.py"), str(seed), "6", *arguments, "--runs", str(tmp_path / "runs-2")
    )
    assert json.loads(done.stdout.splitlines()[-1])[-1] == "done", done.stderr
    _same_weights(tmp_path / "whole", tmp_path / "cut")


def test_early_stopping_keeps_the_best_weights_of_patients_apart(data: Path, tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path / "r.yaml", RESNET, steps=40, early_stopping=STOPPING))
    study = Study(data, config, tmp_path / "runs")
    training, held_out = study.stopping_cases(config, "all")
    patients = [{case.case.patient for case in cases} for cases in (training, held_out)]
    assert patients[0]
    assert patients[1]
    assert not patients[0] & patients[1]
    assert len(training) + len(held_out) == len(study.cases)
    assert study.training_cases(config, "all")[0] == training
    run(config, data, tmp_path / "out", tmp_path / "runs")
    log = _log(tmp_path / "runs", "tiny-resnet")
    best = best_evaluation(log)
    assert best is not None
    step, auc = best
    evaluated = [entry["step"] for entry in log if "eval_auc" in entry]
    assert evaluated[-1] == step + 4 or evaluated[-1] == 40  # two evaluations without a better one
    best = tmp_path / "runs" / "tiny-resnet" / "all" / f"checkpoint-{step}"
    _same_weights(tmp_path / "out", best, apart=1e-3)  # what is published is float16
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["early_stopping"] == {"step": step, "validation_auc": round(auc, 4)}
    assert metrics["n_trained_on"] == len(study.stopping_cases(config, "all")[0]) < 8


def test_a_run_that_had_stopped_early_does_not_go_on(data: Path, tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path / "r.yaml", RESNET, steps=40, early_stopping=STOPPING))
    run(config, data, tmp_path / "whole", tmp_path / "runs")
    folder = tmp_path / "runs" / "tiny-resnet" / "all"
    log = json.loads((folder / "done.json").read_text())["log"]
    assert max(entry["step"] for entry in log) < 40
    (folder / "done.json").unlink()  # as if it had been killed right after its last checkpoint
    run(config, data, tmp_path / "again", tmp_path / "runs")
    _same_weights(tmp_path / "whole", tmp_path / "again")
    assert max(entry["step"] for entry in _log(tmp_path / "runs", "tiny-resnet")) < 40


def _full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("saver", ["safetensors.torch.save_file", "torch.save"])
def test_a_full_disk_leaves_the_last_checkpoint_whole(saver, data, tmp_path, monkeypatch, capsys) -> None:
    config = write_config(tmp_path / "resnet.yaml", RESNET)
    run(load_config(config), data, tmp_path / "whole", tmp_path / "runs-1")
    arguments = [str(config), "--data", str(data), "--out", str(tmp_path / "out")]
    arguments += ["--runs", str(tmp_path / "runs-2")]
    save_checkpoint = trainer_module.StudyTrainer._save_checkpoint

    def full_at_the_second(self, model, trial) -> None:
        with monkeypatch.context() as during:
            if self.state.global_step == 4:
                during.setattr(saver, _full)
            save_checkpoint(self, model, trial)

    monkeypatch.setattr(trainer_module.StudyTrainer, "_save_checkpoint", full_at_the_second)
    assert train.main(arguments) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("tiny-resnet/all/checkpoint-4 could not be written (the disk is full)")
    assert told.endswith("goes on from checkpoint-2.")
    assert "\n" not in told
    folder = tmp_path / "runs-2" / "tiny-resnet" / "all"
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(trainer_module.StudyTrainer, "_save_checkpoint", save_checkpoint)
    assert train.main(arguments) == 0
    _same_weights(tmp_path / "whole", tmp_path / "out")


LIMITED = """
import resource, signal, sys, train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (20_000, 400_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    print("status", train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_write_that_the_system_refuses_is_told_in_one_line(data: Path, tmp_path: Path) -> None:
    # The limit on a file's size stands for the disk's: the first refuses the weights, the second the optimiser's state.
    config = write_config(tmp_path / "resnet.yaml", RESNET)
    arguments = [
        str(config),
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--runs",
        str(tmp_path / "runs"),
    ]
    done = _command("-c", LIMITED, *arguments)
    assert done.stdout.count("status 2") == 2
    told = [line for line in done.stderr.splitlines() if "could not be written" in line]
    assert len(told) == 2
    assert all(line.startswith("tiny-resnet/all/checkpoint-2 could not be written (") for line in told)
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs").glob("*/*/checkpoint-*"))


def test_a_full_disk_leaves_the_published_checkpoint_whole(small_resnet, tmp_path, monkeypatch) -> None:
    folder = save_model(small_resnet, tmp_path / "model")
    before = load_file(folder / "model.safetensors")
    with torch.no_grad():
        small_resnet.model.fc.bias += 1
    monkeypatch.setattr("mst.models.base.ScanClassifier.save_pretrained", _full)
    with pytest.raises(CheckpointError, match=r"model could not be written \(No space left on device\)"):
        save_model(small_resnet, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    again = load_model(folder).state_dict()
    assert all(torch.equal(again[name], value) for name, value in before.items())


def test_only_whole_checkpoints_are_gone_on_from(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step < 10:
            (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert not (tmp_path / "checkpoint-10").exists()


def test_the_log_is_plain_lines_without_a_terminal_and_a_bar_on_one(
    data, tmp_path, capsys, monkeypatch
) -> None:
    config = write_config(tmp_path / "resnet.yaml", RESNET, early_stopping=STOPPING)
    run(load_config(config), data, tmp_path / "out", tmp_path / "runs-1")
    out = capsys.readouterr().out
    assert "  step 1 of 4: loss 0." in out
    assert "  step 2 of 4: validation AUC " in out
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(load_config(config), data, tmp_path / "out", tmp_path / "runs-2")
    shown = capsys.readouterr()
    assert "step 1 of 4" not in shown.out
    assert "tiny-resnet/all: 100%" in shown.err
    assert "loss=0." in shown.err
    assert "validation AUC=" in shown.err


def test_the_log_goes_to_tensorboard(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = write_config(tmp_path / "resnet.yaml", RESNET, tensorboard=True)
    run(load_config(config), data, tmp_path / "out", tmp_path / "runs")
    events = EventAccumulator(str(tmp_path / "runs" / "tiny-resnet" / "all" / "tensorboard"))
    events.Reload()
    written = [event.value for event in events.Scalars("train/loss")]
    assert np.allclose(written, _curve(_log(tmp_path / "runs", "tiny-resnet"), "loss"))


def test_what_a_log_needs_and_is_not_installed_is_told(data: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    for setting in ({"tensorboard": True}, {"wandb": "nodules"}):
        config = load_config(write_config(tmp_path / "resnet.yaml", RESNET, **setting))
        with pytest.raises(
            TrainingError, match=r"training\.\w+ needs the package (tensorboard|wandb): pip install"
        ):
            run(config, data, tmp_path / "out", tmp_path / "runs")


def test_the_log_goes_to_weights_and_biases(data: Path, tmp_path: Path, monkeypatch) -> None:
    logged, begun = [], []
    page = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    stub = types.ModuleType("wandb")
    stub.init = lambda **kwargs: begun.append(kwargs) or page  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stub)
    config = load_config(write_config(tmp_path / "resnet.yaml", RESNET, wandb="nodules"))
    run(config, data, tmp_path / "out", tmp_path / "runs")
    assert (begun[0]["project"], begun[0]["name"], begun[0]["resume"]) == (
        "nodules",
        "tiny-resnet/all",
        "allow",
    )
    losses = [values["loss"] for _, values in logged if "loss" in values]
    assert losses == _curve(_log(tmp_path / "runs", "tiny-resnet"), "loss")

    def refuse(**_: object) -> None:
        raise RuntimeError("api_key not configured")

    stub.init = refuse  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match=r"api_key not configured .*wandb login"):
        run(config | {"name": "other"}, data, tmp_path / "out", tmp_path / "runs")


PUSH = """
import json, os, sys, train
from huggingface_hub import constants
for token, endpoint, more in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"], constants.ENDPOINT = token, endpoint
    print("status", train.main(sys.argv[2:] + more), flush=True)
"""


def test_a_checkpoint_is_pushed_with_its_card(data: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "resnet.yaml", RESNET)
    out = tmp_path / "out"
    arguments = [str(config), "--data", str(data), "--out", str(out), "--runs", str(tmp_path / "runs")]
    push, nobody = ["--push-to-hub", "me/nodules"], "http://127.0.0.1:9"  # nothing listens there
    with FakeHub() as hub:
        hub.bad_tokens.add("hf_old")
        attempts = [
            ["", hub.url, push],  # trains, and is told that a token is missing
            ["hf_old", hub.url, push],
            ["hf_mine", nobody, push],
            ["hf_mine", hub.url, push],
            ["hf_mine", hub.url, ["--push-to-hub", "me/open", "--public"]],
            ["hf_mine", hub.url, ["--push-to-hub", "no name"]],
        ]
        home = str(tmp_path / "home")
        done = _command("-c", PUSH, json.dumps(attempts), *arguments, HF_ENDPOINT=hub.url, HF_HOME=home)
        statuses = [line[-1] for line in done.stdout.splitlines() if line.startswith("status")]
        assert statuses == ["2", "2", "2", "0", "0", "2"], done.stderr
        assert hub.private == {"me/nodules": True, "me/open": False}
        names = ["README.md", "config.json", "metrics.json", "model.safetensors"]
        assert sorted(set(hub.files["me/nodules"]) - {".gitattributes"}) == names
        for name in names:
            assert hub.files["me/nodules"][name] == (out / name).read_bytes()
    told = [line for line in done.stderr.splitlines() if "push" in line or "repository" in line]
    assert len(told) == 4
    assert all("is complete, but was not pushed to me/nodules" in line for line in told[:3])
    assert "no access token is at hand" in told[0]
    assert "the hub does not accept the access token" in told[1]
    assert "there is no connection to the hub" in told[2]
    assert told[3] == "'no name' is no repository on the hub; write owner/name."
    assert "Traceback" not in done.stderr
    assert done.stdout.count("step 4 of 4") == 1  # nothing was trained twice
    load_model(out)
