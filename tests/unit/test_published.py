"""Weights of the paper's published code: every variant gives that code's numbers, and nothing in a file is run."""

import json
import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from published_code import (
    checkpoint,
    dino_forward,
    dino_state,
    resnet_forward,
    resnet_slices_forward,
    resnet_state,
)

from mst.cli import main
from mst.models import ResNet3D, ResNetSliceTransformer, SliceTransformer, list_checkpoints, load_model
from mst.models.encoders import interpolate_positions
from mst.models.published import ConversionError, convert
from mst.saliency import explain


def _volume(*shape: int) -> torch.Tensor:
    return torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(5))


def _mask(depth: int, *padded: int) -> torch.Tensor:
    mask = torch.zeros(1, depth, dtype=torch.bool)
    mask[0, list(padded)] = True
    return mask


def _convert(tmp_path: Path, state: dict, **hyper):
    torch.save(checkpoint(state, **hyper), tmp_path / "published.ckpt")
    convert(tmp_path / "published.ckpt", tmp_path / "out")
    return load_model(tmp_path / "out")


def _close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


DINO = {
    "plain": {},
    "registers": {"registers": 4},
    "bottleneck": {"bottleneck": True},
    "positions": {"positions": True},
    "all-three": {"registers": 4, "bottleneck": True, "positions": True},
    "average": {"fusion": "average"},
    "linear": {"fusion": "linear", "bottleneck": True},
    "base": {"width": 768, "layers": 1},
    "large": {"width": 1024, "layers": 1, "fusion": "average"},
    "no-pretraining": {"stored": 16, "chunked": True, "layer_scale": False},
}


@pytest.mark.parametrize("variant", DINO)
def test_a_dino_variant_gives_the_published_numbers(variant: str, tmp_path: Path) -> None:
    options = DINO[variant]
    state = dino_state(3, **options)
    model = _convert(tmp_path, state, slice_fusion=options.get("fusion", "transformer"))
    assert isinstance(model, SliceTransformer)
    depth = 32 if variant == "linear" else 4
    volume = _volume(depth, 224, 224)
    for mask in (None, _mask(depth, 0, depth - 1)):
        logits, native, weights = dino_forward(state, volume, mask)
        out = explain(model, volume, padding_mask=mask)
        _close(out.logits, logits, 1e-4)
        _close(out.native_saliency, native, 1e-3)
        if weights is None:
            assert out.slice_weights is None
        else:
            _close(out.slice_weights, weights, 1e-3)
        with torch.no_grad():
            _close(model(volume, mask), logits, 1e-4)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_a_2d_resnet_variant_gives_the_published_numbers(depth: int, tmp_path: Path) -> None:
    state = resnet_state(4, depth, 2)
    model = _convert(tmp_path, state, model=depth, spatial_dims=2)
    assert isinstance(model, ResNetSliceTransformer)
    volume = _volume(5, 64, 64)
    logits, native, weights = resnet_slices_forward(state, volume)
    out = explain(model, volume)
    _close(out.logits, logits, 1e-4)
    _close(out.native_saliency, native, 1e-3)
    _close(out.slice_weights, weights, 1e-3)
    mask = _mask(5, 0, 4)
    seen = []
    hook = model.encoder.layer4.register_forward_hook(lambda _m, _i, output: seen.append(len(output)))
    out = explain(model, volume, padding_mask=mask)
    hook.remove()
    assert seen == [3]
    logits, _, weights = resnet_slices_forward(state, volume, mask)
    _close(out.logits, logits, 1e-4)
    _close(out.slice_weights, weights, 1e-3)
    # The map is that of the slices that are left: the published one is scaled over the padded slices as well.
    _close(out.native_saliency[:, 1:4], resnet_slices_forward(state, volume[:, :, 1:4])[1], 1e-3)
    assert out.native_saliency[:, [0, 4]].abs().max() == 0


RESNETS = {
    "18": (18, {}, {}),
    "34": (34, {}, {}),
    "50": (50, {}, {}),
    "34-stride": (34, {}, {"kwargs_resnet": {"conv1_t_stride": 2}}),
    "18-medicalnet": (18, {"shortcut": "A", "sequential": True}, {"pretrained": True}),
    "50-medicalnet": (50, {"shortcut_bias": False, "sequential": True}, {"pretrained": True}),
}


@pytest.mark.parametrize("variant", RESNETS)
def test_a_3d_resnet_variant_gives_the_published_numbers(variant: str, tmp_path: Path) -> None:
    depth, options, hyper = RESNETS[variant]
    state = resnet_state(6, depth, 3, width=16, **options)
    model = _convert(tmp_path, state, **{"model": depth, "pretrained": False, **hyper})
    assert isinstance(model, ResNet3D)
    volume = _volume(16, 48, 48)
    logits, native = resnet_forward(state, volume, 1 if variant in ("18", "34", "50") else 2)
    out = explain(model, volume)
    _close(out.logits, logits, 1e-4)
    _close(out.native_saliency, native, 1e-3)
    assert out.slice_weights is None


def test_large_with_a_slice_transformer_says_what_was_assumed(tmp_path: Path) -> None:
    # The published code itself cannot build it: its 12 heads do not divide 1024.
    state = dino_state(3, 1024, 1)
    model = _convert(tmp_path, state, model_size="l")
    out = explain(model, _volume(3, 224, 224))
    _close(out.logits, dino_forward(state, _volume(3, 224, 224), heads=16)[0], 1e-4)
    assert "16 were assumed" in (tmp_path / "out" / "README.md").read_text()


def test_only_shown_slices_are_encoded(tmp_path: Path) -> None:
    model = _convert(tmp_path, dino_state(1, layers=1))
    seen = []
    hook = model.encoder.embeddings.register_forward_hook(lambda _m, _i, out: seen.append(len(out)))
    explain(model, _volume(4, 224, 224), padding_mask=_mask(4, 0, 3))
    hook.remove()
    assert seen == [2]


def test_positions_are_interpolated_once_and_stored_for_the_grid_used(tmp_path: Path) -> None:
    model = _convert(tmp_path, dino_state(1, layers=1))
    stored = model.encoder.embeddings.position_embeddings
    assert stored.shape == (1, 1 + 16 * 16, 384)
    assert model.encoder.config.image_size == 224
    positions = torch.randn(1, 1 + 37 * 37, 8)
    plain, registers = (interpolate_positions(positions, 16, kind) for kind in (False, True))
    assert not torch.allclose(plain, registers, atol=1e-3)
    assert interpolate_positions(plain, 16, False) is plain


def test_what_the_folder_holds(tmp_path: Path) -> None:
    _convert(tmp_path, dino_state(1, layers=1), model_size="s")
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "metrics.json",
        "model.safetensors",
    ]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["auc"] is None
    assert metrics["converted_from"]["epoch"] == 3
    card = (out / "README.md").read_text()
    assert "published.ckpt" in card
    assert "github.com/mueller-franzes/MST" in card
    assert "Not a medical device" in card
    assert '"loss": "CrossEntropyLoss"' in card


# --- files that are refused ---------------------------------------------------------------------------------


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, path: Path, call=os.mkdir) -> None:
        self.path, self.call = path, call

    def __reduce__(self):
        return self.call, (str(self.path),)


@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "callbacks", "root"])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_malicious_checkpoint_is_run(place: str, zipped: bool, tmp_path: Path, capsys) -> None:
    trap = tmp_path / "trap"
    content = checkpoint(resnet_state(1, 18, 3, width=4))
    if place == "root":
        content = Evil(trap)  # type: ignore[assignment]
    else:
        content[place]["evil"] = Evil(trap)
    torch.save(content, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=zipped)
    assert main(["convert", str(tmp_path / "evil.ckpt"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nothing in it was run" in error
    assert "mkdir" in error or not zipped  # PyTorch's older format is refused at an earlier place
    assert not trap.exists()
    assert not (tmp_path / "out").exists()
    # The trap works: a reader that trusts the file springs it.
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert trap.exists()


def test_an_allowed_class_is_never_made_nor_called(tmp_path: Path, monkeypatch) -> None:
    """A file that asks to make an optimizer or a loss gets an empty stand-in."""
    made = []
    content = checkpoint(resnet_state(1, 18, 3, width=4))
    content["hyper_parameters"]["loss"] = torch.nn.CrossEntropyLoss()
    content["hyper_parameters"]["sgd"] = torch.optim.SGD([torch.zeros(1)], lr=1)
    torch.save(content, tmp_path / "published.ckpt")
    for owner in (torch.nn.CrossEntropyLoss, torch.optim.SGD):
        monkeypatch.setattr(owner, "__setstate__", lambda *_: made.append(1))
    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "__init__", lambda *_: made.append(1))
    with pytest.raises(ConversionError, match=r"nothing in it was run.*collections\.defaultdict"):
        convert(tmp_path / "published.ckpt", tmp_path / "out")
    del content["hyper_parameters"]["sgd"]  # an optimizer holds a defaultdict, which is not let through
    torch.save(content, tmp_path / "published.ckpt")
    convert(tmp_path / "published.ckpt", tmp_path / "out")
    assert not made


def test_lightnings_own_dictionary_and_paths_are_let_through(tmp_path: Path, monkeypatch) -> None:
    module = types.ModuleType("lightning_fabric.utilities.data")
    settings_class = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.AttributeDict = settings_class  # type: ignore[attr-defined]
    content = checkpoint(resnet_state(1, 18, 3, width=4), kwargs_resnet={"conv1_t_stride": 2})
    content["hyper_parameters"] = settings_class(content["hyper_parameters"], root=Path("runs"))
    with monkeypatch.context() as patch:
        for name in ("lightning_fabric", "lightning_fabric.utilities", module.__name__):
            patch.setitem(sys.modules, name, module if name == module.__name__ else types.ModuleType(name))
        torch.save(content, tmp_path / "published.ckpt")
    assert convert(tmp_path / "published.ckpt", tmp_path / "out").model.conv1.stride == (2, 2, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no PyTorch checkpoint"),
        (b"these are notes", "no PyTorch checkpoint"),
        (pickle.dumps({"state_dict": 1}), "no state_dict|no PyTorch checkpoint"),
        (b"PK\x03\x04broken", "no PyTorch checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_told_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "notes.ckpt").write_bytes(content)
    with pytest.raises(ConversionError, match=message):
        convert(tmp_path / "notes.ckpt", tmp_path / "out")


def _without(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            checkpoint(dino_state(1, layers=1), rotary_positional_encoding="RoPE"),
            "rotary_positional_encoding=RoPE",
        ),
        (
            checkpoint(
                {
                    **dino_state(1, layers=1),
                    "slice_fusion.layers.0.self_attn.rotary_positional_encoding.freqs": torch.ones(4),
                }
            ),
            "rotary_positional_encoding",
        ),
        (checkpoint(dino_state(1, 1536, 1), model_size="g"), "model_size=g"),
        (checkpoint(_without(dino_state(1, layers=1), "linear.weight")), "enable_linear=False"),
        (checkpoint(dino_state(1, layers=1, classes=3)), "--classes"),
        (checkpoint(_without(dino_state(1, layers=1), "encoder.norm.weight")), "layernorm.weight is missing"),
        (
            checkpoint({**dino_state(1, layers=1), "sequence_adapter.0.weight": torch.ones(2)}),
            "sequence_adapter.0.weight is not part",
        ),
        (
            checkpoint(resnet_state(1, 18, 3, width=4), kwargs_resnet={"act": "prelu"}),
            "kwargs_resnet has act",
        ),
        (
            checkpoint(_without(resnet_state(1, 18, 3, width=4), "model.fc.weight")),
            "model.fc.weight is missing",
        ),
        (checkpoint({"weight": torch.ones(2)}), "no model of the paper's code"),
        (
            checkpoint({**resnet_state(1, 18, 3, width=4), "model.fc.bias": torch.tensor([1.0, torch.nan])}),
            "model.fc.bias has values that are no numbers",
        ),
        (
            checkpoint({**resnet_state(1, 18, 3, width=4), "model.fc.bias": torch.zeros(3)}),
            "model.fc.bias",
        ),
        ({"epoch": 1, "state_dict": {}}, "no state_dict"),
        (checkpoint({"model.fc.weight": torch.ones(1).expand(10**7, 10**7)}), "larger than what is stored"),
        (
            checkpoint({**dino_state(1, layers=1), "encoder.blocks.999999999.norm1.weight": torch.ones(384)}),
            "have gaps",
        ),
        (checkpoint({"encoder.patch_embed.proj.weight": torch.ones(384)}), "cannot be converted"),
        (
            checkpoint(_without(dino_state(1, layers=1), "slice_fusion.layers.0.linear1.weight")),
            "slice_fusion.layers.0.linear1.weight",
        ),
    ],
)
def test_what_is_not_supported_is_named(content: dict, message: str, tmp_path: Path, capsys) -> None:
    torch.save(content, tmp_path / "published.ckpt")
    assert main(["convert", str(tmp_path / "published.ckpt"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_classes_can_be_named(tmp_path: Path, capsys) -> None:
    torch.save(checkpoint(resnet_state(1, 18, 3, width=4, classes=3)), tmp_path / "p.ckpt")
    arguments = ["convert", str(tmp_path / "p.ckpt"), str(tmp_path / "out"), "--task", "breast-mri"]
    assert main([*arguments, "--classes", "no lesion, benign, malignant"]) == 0
    assert load_model(tmp_path / "out").classes == ["no lesion", "benign", "malignant"]
    assert main([*arguments, "--classes", "a,,c"]) == 2
    assert "--classes" in capsys.readouterr().err


def test_a_missing_file_and_a_taken_folder(tmp_path: Path, small_resnet: ResNet3D) -> None:
    from mst.models.loading import save_model

    with pytest.raises(ConversionError, match="no file"):
        convert(tmp_path / "gone.ckpt", tmp_path / "out")
    torch.save(checkpoint(resnet_state(1, 18, 3, width=4)), tmp_path / "p.ckpt")
    save_model(small_resnet, tmp_path / "trained")
    with pytest.raises(ConversionError, match="holds another checkpoint"):
        convert(tmp_path / "p.ckpt", tmp_path / "trained")
    with pytest.raises(ConversionError, match="is a file"):
        convert(tmp_path / "p.ckpt", tmp_path / "p.ckpt")
    convert(tmp_path / "p.ckpt", tmp_path / "out")
    convert(tmp_path / "p.ckpt", tmp_path / "out")  # once more is fine


def test_converted_weights_appear_for_their_study(tmp_path: Path, monkeypatch) -> None:
    torch.save(checkpoint(resnet_state(1, 18, 3, width=4)), tmp_path / "p.ckpt")
    assert (
        main(["convert", str(tmp_path / "p.ckpt"), str(tmp_path / "c" / "knee"), "--task", "knee-mri"]) == 0
    )
    monkeypatch.setenv("MST_CHECKPOINTS", str(tmp_path / "c"))
    assert [p.name for p in list_checkpoints("knee-mri")["resnet3d"]] == ["knee"]
    assert not any(list_checkpoints("chest-ct").values())
