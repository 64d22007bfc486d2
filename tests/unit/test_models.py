"""The models: sizes from config, saving and loading, masking, and errors a user can act on."""

import json
from pathlib import Path

import pytest
import torch
from small_study import ONE_BLOCK

from mst.models import CheckpointError, ResNet3D, SliceTransformer, list_checkpoints, load_model
from mst.models.loading import save_model
from mst.models.slice_transformer import paper_encoder


def test_the_papers_sizes_have_the_papers_parameter_names() -> None:
    encoder = {**paper_encoder("s"), "image_size": 224}
    with torch.device("meta"):
        names = dict(SliceTransformer(encoder=encoder).state_dict())
        resnets = {depth: ResNet3D(depth=depth) for depth in (10, 18, 34, 50)}
    assert names["slice_fusion.layers.0.self_attn.in_proj_weight"].shape == (1152, 384)
    assert names["slice_fusion.layers.0.linear1.weight"].shape == (384, 384)
    assert names["encoder.embeddings.patch_embeddings.projection.weight"].shape == (384, 3, 14, 14)
    assert names["linear.weight"].shape == (2, 384)
    assert resnets[34].state_dict()["model.fc.weight"].shape == (2, 512)
    assert resnets[50].state_dict()["model.fc.weight"].shape == (2, 2048)


@pytest.mark.parametrize("name", ["small_mst", "small_resnet", "small_mst_resnet"])
def test_a_saved_model_loads_and_computes_the_same(name: str, request, tmp_path: Path) -> None:
    model = request.getfixturevalue(name)
    volume = torch.randn(2, 1, 8, 24, 24)
    folder = save_model(model, tmp_path / "checkpoint")
    again = load_model(folder)
    assert torch.equal(again(volume), model(volume))
    assert again.classes == ["benign", "malignant"]
    assert again.grid == {"shape": [8, 24, 24], "spacing_mm": [4.0, 2.0, 2.0]}
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert not (tmp_path / "checkpoint.writing").exists()


def test_from_pretrained_takes_a_folder(small_mst: SliceTransformer, tmp_path: Path) -> None:
    small_mst.save_pretrained(tmp_path / "m")
    again = SliceTransformer.from_pretrained(tmp_path / "m")
    volume = torch.randn(1, 1, 8, 24, 24)
    assert torch.equal(again(volume), small_mst(volume))


@pytest.mark.parametrize("name", ["small_mst", "small_mst_resnet"])
def test_padded_slices_do_not_change_the_logits(name: str, request) -> None:
    small_mst = request.getfixturevalue(name)
    volume = torch.randn(2, 1, 8, 24, 24)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[:, 6:] = True
    mask[1, 0] = True
    changed = volume.clone()
    changed[mask[:, None, :, None, None].expand_as(volume)] = 99.0
    assert torch.allclose(small_mst(volume, mask), small_mst(changed, mask), atol=1e-6)
    assert torch.allclose(small_mst(volume[:1], mask[:1]), small_mst(volume[:1, :, :6]), atol=1e-5)


def test_padded_slices_are_not_encoded(small_mst: SliceTransformer) -> None:
    seen = []
    hook = small_mst.encoder.embeddings.register_forward_pre_hook(lambda _m, args: seen.append(len(args[0])))
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[0, 5:] = True
    small_mst(torch.randn(1, 1, 8, 24, 24), mask)
    hook.remove()
    assert seen == [5]


def test_slice_order_does_not_matter_without_positions(small_mst: SliceTransformer) -> None:
    volume = torch.randn(1, 1, 8, 24, 24)
    assert torch.allclose(small_mst(volume), small_mst(volume.flip(2)), atol=1e-5)


def test_slice_positions_make_the_order_matter() -> None:
    torch.manual_seed(0)
    model = SliceTransformer(
        encoder=ONE_BLOCK,
        slice_heads=2,
        slice_positions=8,
    ).eval()
    torch.nn.init.normal_(model.slice_positions)
    volume = torch.randn(1, 1, 8, 24, 24)
    assert not torch.allclose(model(volume), model(volume.flip(2)), atol=1e-4)


def _with_fusion(fusion: str) -> SliceTransformer:
    torch.manual_seed(0)
    encoder = ONE_BLOCK
    return SliceTransformer(
        encoder=encoder, fusion=fusion, fusion_slices=8, bottleneck=4, slice_heads=2
    ).eval()


@pytest.mark.parametrize("fusion", ["average", "linear", "transformer"])
def test_every_fusion_saves_and_loads(fusion: str, tmp_path: Path) -> None:
    model = _with_fusion(fusion)
    volume = torch.randn(2, 1, 8, 24, 24)
    again = load_model(save_model(model, tmp_path / "checkpoint"))
    assert torch.equal(again(volume), model(volume))
    assert model.ordered == (fusion == "linear")


def test_a_wrong_number_of_slices_is_explained() -> None:
    with pytest.raises(ValueError, match="takes 8 slices, not 7"):
        _with_fusion("linear")(torch.randn(1, 1, 7, 24, 24))
    with pytest.raises(ValueError, match="no slice fusion 'magic'"):
        _with_fusion("magic")


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"without config\.json"):
        load_model(tmp_path)


def test_missing_folder_and_no_repository() -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        load_model("./nowhere")


def test_unknown_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "unet"}))
    with pytest.raises(CheckpointError, match="unet"):
        load_model(tmp_path)


def test_damaged_weights(small_resnet: ResNet3D, tmp_path: Path) -> None:
    folder = save_model(small_resnet, tmp_path / "c")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(folder)


def test_weights_of_another_size(small_resnet: ResNet3D, tmp_path: Path) -> None:
    folder = save_model(small_resnet, tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "width": 8}))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model(folder)


def test_a_pickle_is_never_read(small_resnet: ResNet3D, tmp_path: Path) -> None:
    folder = save_model(small_resnet, tmp_path / "c")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_model(folder)


def test_a_file_is_no_checkpoint_folder(tmp_path: Path) -> None:
    (tmp_path / "published.ckpt").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match="mst convert"):
        load_model(tmp_path / "published.ckpt")


def test_checkpoints_one_folder_deeper_are_listed_too(small_resnet, tmp_path: Path, monkeypatch) -> None:
    save_model(small_resnet, tmp_path / "paper" / "resnet")
    monkeypatch.setenv("MST_CHECKPOINTS", str(tmp_path))
    assert list_checkpoints("chest-ct")["resnet3d"] == [tmp_path / "paper" / "resnet"]


def test_checkpoints_are_listed_by_study(small_mst, small_resnet, tmp_path: Path, monkeypatch) -> None:
    save_model(small_mst, tmp_path / "one")
    save_model(small_resnet, tmp_path / "two")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "config.json").write_text("not json")
    monkeypatch.setenv("MST_CHECKPOINTS", str(tmp_path))
    assert [p.name for p in list_checkpoints("chest-ct")["slice-transformer"]] == ["one"]
    assert [p.name for p in list_checkpoints("chest-ct")["resnet3d"]] == ["two"]
    assert not any(list_checkpoints("knee-mri").values())
