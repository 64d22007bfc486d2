"""Pushing to and loading from the hub, against a local stand-in; and each way in which it can fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

from fake_hub import FakeHub

SCRIPT = """
import json, sys, torch, mst
from mst.models import ResNet3D
torch.manual_seed(0)
model = ResNet3D(depth=10, width=4, first_kernel=3, grid={"shape": [8, 24, 24]}).eval()
model.push_to_hub("me/small-resnet", token="hf_test")
again = mst.load_model("me/small-resnet")
volume = torch.randn(1, 1, 8, 24, 24)
answers = {"same": torch.equal(model(volume), again(volume)), "grid": again.grid}
for name in ("me/gated", "me/nowhere", "me/empty", "me/pickled", "not a repository"):
    try:
        mst.load_model(name)
        answers[name] = "loaded"
    except mst.CheckpointError as error:
        answers[name] = str(error)
print(json.dumps(answers))
"""
OFFLINE = """
import mst
try:
    mst.load_model("me/small-resnet")
except mst.CheckpointError as error:
    print(error)
"""


def _run(script: str, endpoint: str, home: Path, **more: str) -> str:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **more}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=240
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
        answers = json.loads(_run(SCRIPT, hub.url, tmp_path))
        assert {"config.json", "model.safetensors", "README.md"} <= set(hub.files["me/small-resnet"])
    assert answers["same"]
    assert answers["grid"] == {"shape": [8, 24, 24]}
    assert "accept its licence" in answers["me/gated"]
    assert "was not found" in answers["me/nowhere"]
    assert "not a checkpoint" in answers["me/empty"]
    assert "pickle" in answers["me/pickled"]
    assert "neither" in answers["not a repository"] or "no checkpoint folder" in answers["not a repository"]


def test_without_a_network_the_message_names_the_local_way(tmp_path: Path) -> None:
    # Nothing listens at port 9 of this machine: the connection is refused.
    answer = _run(OFFLINE, "http://127.0.0.1:9", tmp_path)
    assert "no connection to the hub" in answer
    assert "local checkpoint folder" in answer
