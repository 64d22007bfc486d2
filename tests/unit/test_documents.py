"""What the documents claim is what the checkpoints' metrics say."""

import re
from pathlib import Path

import pytest
import yaml
from tool_modules import load_tool

from mst.models import checkpoint_metrics, list_checkpoints, load_model

ROOT = Path(__file__).resolve().parents[2]


def test_the_readmes_figures_are_the_checkpoints() -> None:
    tool = load_tool("readme_figures")
    assert tool.figures(tool.shipped()) in (ROOT / "README.md").read_text(encoding="utf-8"), (
        "run make figures"
    )


def test_the_front_matter_is_a_spaces() -> None:
    front = yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---")[1])
    pinned = dict(
        re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    )
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == pinned["gradio"]
    assert (ROOT / front["app_file"]).is_file()


@pytest.mark.parametrize("name", sorted(folder.name for folder in (ROOT / "checkpoints").iterdir()))
def test_a_shipped_checkpoint_is_whole(name: str) -> None:
    folder = ROOT / "checkpoints" / name
    assert folder in [f for folders in list_checkpoints("chest-ct").values() for f in folders]
    model = load_model(folder)
    metrics = checkpoint_metrics(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert model.classes == ["benign", "malignant"]
    assert f"{metrics['auc']:.2f}" in card
    assert "LIDC-IDRI" in card
    assert "CC BY 3.0" in card
