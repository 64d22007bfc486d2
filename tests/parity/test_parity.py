"""Our models against what the paper's published code computes (../shared/reference-parity, or MST_REFERENCE).

The reference data does not lie in the repository: without it these tests are skipped, with a warning. The tests of
tests/unit/test_published.py need no such data.
"""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mst.cli import main
from mst.models import ScanClassifier, load_model
from mst.saliency import explain

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = Path(os.environ.get("MST_REFERENCE") or ROOT.parent / "shared" / "reference-parity")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """make_checkpoint.py of the reference data."""
    script = REFERENCE / "make_checkpoint.py"
    if not script.is_file():
        message = "parity with the published code was NOT checked: no reference data (set MST_REFERENCE)"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    spec = importlib.util.spec_from_file_location("make_checkpoint", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(generator: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ScanClassifier]:
    """The three models, converted by the command, each when first asked for."""

    class Converted(dict):
        def __missing__(self, name: str) -> ScanClassifier:
            folder = tmp_path_factory.mktemp(name)
            manifest = json.loads((REFERENCE / f"manifest_{name}.json").read_text())
            torch.save(generator.checkpoint(manifest, 1), folder / "published.ckpt")
            assert main(["convert", str(folder / "published.ckpt"), str(folder / "out")]) == 0
            (folder / "published.ckpt").unlink()
            self[name] = load_model(folder / "out")
            return self[name]

    return Converted()


def _difference(ours: torch.Tensor, theirs: np.ndarray) -> float:
    """The largest difference, relative to the largest of theirs."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("name", ["mst", "mst_padded", "mst_resnet", "resnet"])
def test_the_published_codes_numbers(name: str, generator: ModuleType, models: dict) -> None:
    expected = np.load(REFERENCE / f"expected_{name}_seed1.npz")
    model = models[name.removesuffix("_padded")]
    volume, mask = generator.volume(1), None
    padded = expected["padded_slices"].tolist()
    if padded:
        mask = torch.zeros(1, volume.shape[2], dtype=torch.bool)
        mask[0, padded] = True
    encoded = []
    if name != "resnet":
        # DINOv2 is a model with an output object, the ResNet's last stage puts out a tensor: count its first layer.
        first = (
            model.encoder.conv1
            if name == "mst_resnet"
            else model.encoder.embeddings.patch_embeddings.projection
        )
        hook = first.register_forward_hook(lambda _m, _i, output: encoded.append(len(output)))
    out = explain(model, volume, padding_mask=mask)
    if name != "resnet":
        hook.remove()
        assert encoded == [volume.shape[2] - len(padded)]
    assert _difference(out.logits[0], expected["logits"]) <= 1e-4
    assert _difference(out.native_saliency[0], expected["saliency"]) <= 1e-3
    assert _difference(out.saliency[0, 0, ::4, ::8, ::8], expected["saliency_full_strided"]) <= 1e-3
    if out.slice_weights is None:
        assert name == "resnet"
    else:
        assert _difference(out.slice_weights[0], expected["slice_weights"]) <= 1e-3
