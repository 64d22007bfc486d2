"""Pushing to and loading from the hub, against a local stand-in; and each way in which it can fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

from fake_hub import FakeHub

from mst.data.examples import example_file
from mst.models.loading import save_model

SCRIPT = """
import json, sys, torch, mst
from mst.models import ResNet3D
torch.manual_seed(0)
model = ResNet3D(depth=10, width=4, first_kernel=3, grid={"shape": [8, 24, 24]}).eval()
model.push_to_hub("me/small-resnet", token="hf_test")
again = mst.load_model("me/small-resnet")
volume = torch.randn(1, 1, 8, 24, 24)
answers = {"same": torch.equal(model(volume), again(volume)), "grid": again.grid}
for name in ("me/gated", "me/nowhere", "me/empty", "me/pickled", "me/foreign", "not a repository", "me/..x"):
    try:
        mst.load_model(name)
        answers[name] = "loaded"
    except mst.CheckpointError as error:
        answers[name] = str(error)
print(json.dumps(answers))
"""
OFFLINE = """
import time, mst.models
start = time.monotonic()
try:
    mst.load_model("me/small-resnet")
except mst.CheckpointError as error:
    print(error, time.monotonic() - start)
"""


REFUSED = """
import json, os, mst
answers = {}
for token, name in [("", "ODELIA-AI/MST"), ("hf_mine", "ODELIA-AI/MST"), ("hf_old", "me/any"), ("", "me/broken")]:
    os.environ["HF_TOKEN"] = token
    try:
        mst.load_model(name)
        answers[token + name] = "loaded"
    except mst.CheckpointError as error:
        answers[token + name] = str(error)
print(json.dumps(answers))
"""


def _run(script: str, endpoint: str, home: Path) -> str:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_push_load_and_each_refusal(tmp_path: Path) -> None:
    with FakeHub() as hub:
        hub.gated.add("me/gated")
        hub.files["me/empty"] = {"README.md": b"# nothing"}
        hub.files["me/pickled"] = {
            "config.json": json.dumps({"architecture": "resnet3d"}).encode(),
            "pytorch_model.bin": b"\x80\x04.",
        }
        hub.files["me/foreign"] = {"config.json": json.dumps({"model_type": "bert"}).encode()}
        answers = json.loads(_run(SCRIPT, hub.url, tmp_path))
        assert {"config.json", "model.safetensors", "README.md"} <= set(hub.files["me/small-resnet"])
    assert answers["same"]
    assert answers["grid"] == {"shape": [8, 24, 24]}
    assert "no access token" in answers["me/gated"]
    assert "accept the licence" in answers["me/gated"]
    assert "nor found on the hub" in answers["me/nowhere"]
    assert "architecture in config.json is None" in answers["me/foreign"]
    assert "hub repository" in answers["me/..x"]
    assert "not a checkpoint" in answers["me/empty"]
    assert "pickle" in answers["me/pickled"]
    assert "neither" in answers["not a repository"] or "no checkpoint folder" in answers["not a repository"]


def test_without_a_network_the_message_names_the_local_way(tmp_path: Path) -> None:
    # Nothing listens at port 9 of this machine: the connection is refused.
    answer = _run(OFFLINE, "http://127.0.0.1:9", tmp_path)
    assert float(answer.rpartition(" ")[2]) < 5, "it should not try for long"
    assert "no connection to the hub" in answer
    assert "local checkpoint folder" in answer


def test_a_licence_that_was_not_accepted_is_told_from_a_missing_token(tmp_path: Path) -> None:
    with FakeHub() as hub:
        hub.gated.add("ODELIA-AI/MST")
        hub.bad_tokens.add("hf_old")
        hub.broken.add("me/broken")
        answers = json.loads(_run(REFUSED, hub.url, tmp_path))
    without, consent, bad, broken = answers.values()
    assert "no access token is at hand" in without
    assert "hf auth login" in without
    assert "your account has not" in consent
    assert "accept its licence" in consent
    assert "does not accept your access token" in bad
    assert "could not be downloaded" in broken
    assert len({without, consent, bad, broken}) == 4


def test_the_command_takes_a_hub_repository_and_refuses_in_one_line(
    small_mst_resnet, small_resnet, tmp_path: Path
) -> None:
    # The figures are the repository's too; where they are damaged, that is told.
    scan = example_file("chest-round", tmp_path)
    arguments = ["predict", str(scan), "--task", "chest-ct", "--out", str(tmp_path / "out"), "--tta"]
    arguments += ["--resnet", str(save_model(small_resnet, tmp_path / "resnet"))]
    command = f"""
import contextlib, io, json
from mst.cli import main
answers = []
for name in ("me/mst", "me/bare", "me/odd", "ODELIA-AI/MST"):
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        status = main({arguments!r} + ["--mst", name])
    figures = json.loads(open({str(tmp_path / "out" / "prediction.json")!r}).read())["models"]["mst"]
    answers.append([status, errors.getvalue(), figures["checkpoint"], figures.get("validation_auc")])
print(json.dumps(answers))
"""
    with FakeHub() as hub:
        folder = save_model(small_mst_resnet, tmp_path / "mst")
        hub.files["me/mst"] = {path.name: path.read_bytes() for path in folder.iterdir()}
        hub.files["me/bare"] = dict(hub.files["me/mst"])
        hub.files["me/odd"] = {**hub.files["me/mst"], "metrics.json": b'{"auc": "high"}'}
        hub.files["me/mst"]["metrics.json"] = b'{"auc": 0.875, "protocol": "measured elsewhere"}'
        hub.gated.add("ODELIA-AI/MST")
        works, bare, odd, gated = json.loads(_run(command, hub.url, tmp_path / "home"))
    assert works[0] == 0
    assert works[2:] == ["me/mst", 0.875]
    assert bare == [0, "", "me/bare", None]
    assert odd[0] == 2
    assert odd[1].startswith("mst predict: me/odd: its metrics.json is damaged")
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert record["models"]["mst"]["checkpoint"] == "me/bare"
    assert record["models"]["mst"]["title"] == "Medical Slice Transformer with a 2D ResNet"
    assert record["models"]["mst"]["method"] == "gradcam++"
    assert len(record["models"]["mst"]["slice_weights"]) == 8
    assert gated[0] == 2
    assert gated[1].count("\n") == 1
    assert "licence" in gated[1]
