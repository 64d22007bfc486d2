"""Training on stacks that end with the lesion, on regions without one, and on several data sets at once."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_study import write_cases

from mst.data import ManifestError, read_manifest, read_manifests
from mst.models import SliceTransformer, load_model
from mst.models.encoders import build_encoder, encode_tokens, paper_encoder
from mst.models.loading import save_model
from mst.preprocess import AXES
from mst.saliency import explain
from mst.scans import ScanError, read_scan
from mst.tasks import TASKS
from mst.training.augment import (
    Augmentation,
    cut,
    has_room,
    lesion_pixel,
    pick_view,
    sample_positions,
    slice_range,
)
from mst.training.cases import LoadedCase, load_cases
from mst.training.datasets import DenseTargets, VolumeDraws, reader_weights
from mst.training.evaluate import (
    COLUMNS,
    cut_beside,
    place_without_lesion,
    predict_cases,
    summarise,
    surrounded,
)
from mst.training.objectives import ClassTraining, class_loss
from mst.training.runs import Study, TrainingError, load_config, run
from mst.training.table import table

CHEST = TASKS["chest-ct"]
CLASSES = CHEST.classes
GRID = {"shape": [8, 24, 24], "spacing_mm": [4.0, 2.0, 2.0]}
PLAIN = Augmentation(shift_mm=2, zoom=(1, 1), rotate_deg=90, other_planes=0, continue_edges=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight simulated nodules in scans that go on around them."""
    return write_cases(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def stacks(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same nodules, of other patients, in stacks of the slices that show them."""
    folder = tmp_path_factory.mktemp("stacks")
    for number in range(8):
        image, mask = (nib.load(whole / f"{kind}{number}.nii.gz") for kind in "im")
        shown = np.flatnonzero(mask.get_fdata().any(axis=(0, 1)))
        last = shown[0] + 2 if number == 0 else shown[-1] + 1
        for kind, file in (("i", image), ("m", mask)):
            nib.save(file.slicer[:, :, shown[0] : last], folder / f"{kind}{number}.nii.gz")
    rows = list(csv.reader((whole / "cases.csv").open()))
    with (folder / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [*rows[0], "readers"]
            if number == 0
            else [f"s{row[0]}", f"s{row[1]}", *row[2:], str(1 + number % 4)]
            for number, row in enumerate(rows)
        )
    return folder


@pytest.fixture(scope="module")
def thin(stacks: Path) -> list[LoadedCase]:
    return load_cases(read_manifest(stacks, CLASSES), CHEST)


@pytest.fixture(scope="module")
def loaded(whole: Path) -> list[LoadedCase]:
    return load_cases(read_manifest(whole, CLASSES), CHEST)


def _telling(small_mst: SliceTransformer) -> SliceTransformer:
    """Such a model that also tells whether there is a lesion."""
    torch.manual_seed(0)
    encoder = dict(small_mst._hub_mixin_config["encoder"])
    return SliceTransformer(grid=GRID, encoder=encoder, slice_heads=4, lesion_threshold=0.5).eval()


def test_a_stack_of_few_slices_is_trained_on_but_not_shown(stacks: Path, thin: list[LoadedCase]) -> None:
    assert thin[0].scan.shape[2] == 2
    with pytest.raises(ScanError, match="at least 4 along each axis"):
        read_scan(stacks / "i0.nii.gz")
    one = nib.load(stacks / "i0.nii.gz").slicer[:, :, :1]
    nib.save(one, stacks / "one.nii.gz")
    with pytest.raises(ScanError, match="is a single slice"):
        read_scan(stacks / "one.nii.gz")
    assert read_scan(stacks / "one.nii.gz", thin=True).shape[2] == 1


def test_several_manifests_are_one_study_without_the_held_out(
    whole: Path, stacks: Path, tmp_path: Path
) -> None:
    cases, by_name, left_out, held_out = read_manifests([whole, stacks], CLASSES)
    assert len(cases) == 16
    assert not held_out
    assert not left_out
    assert [len(part) for part in by_name.values()] == [8, 8]
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    # A patient in one manifest's file is held out of the other's cases too.
    (folder / "held-out-patients.txt").write_text("p0\nsp3\n\n")
    study = Study([folder, stacks], {"task": "chest-ct"}, tmp_path / "runs")
    assert study.held_out == {"p0", "sp3"}
    assert not {case.patient for case in study.cases} & study.held_out
    assert len(study.cases) == 13
    # Simulated cases leave out who may be theirs, whatever they are called.
    assert {case.name for case in study.held_out_cases} == {"c0", "c1", "sc3"}
    assert set(study.datasets.values()) == {"copy", stacks.name}
    with pytest.raises(ManifestError, match="the case c0 is there already"):
        read_manifests([whole, folder], CLASSES)
    (folder / "held-out-patients.txt").write_text("\n".join(case.patient for case in cases))
    with pytest.raises(ManifestError, match="names every patient"):
        read_manifests([folder], CLASSES)


def test_what_many_readers_rated_is_drawn_more_often(
    thin: list[LoadedCase], loaded: list[LoadedCase]
) -> None:
    weights = reader_weights(thin)
    assert weights[:4] == pytest.approx([2 / 3, 3 / 4, 4 / 5, 1 / 2])
    assert (reader_weights(loaded) == 1).all()


def test_samples_without_a_lesion_hold_none(loaded: list[LoadedCase], thin: list[LoadedCase]) -> None:
    for cases in (loaded, thin):
        draws = VolumeDraws(
            cases,
            GRID,
            Augmentation(ends=0.3, elsewhere=0.5),
            60,
            dense=DenseTargets(6, {}),
            free=0.5,
            seed=3,
        )
        found = {0.0: [], 1.0: []}
        for sample in map(draws.__getitem__, range(len(draws))):
            found[float(sample["lesion"])].append(sample)
        assert all(len(samples) > 10 for samples in found.values())
        assert all(float(sample["patches"].max()) < 0.01 for sample in found[0.0])
        assert all(sample["ratings"].isnan().all() for sample in found[0.0])
        # They are no empty pictures either: there is tissue in them, as there is beside a lesion.
        assert all(float(sample["volume"].std()) > 0.01 for sample in found[0.0])
        assert np.mean([float(sample["patches"].max()) > 0 for sample in found[1.0]]) > 0.9


def test_slices_beyond_a_stack_are_masked_or_taken_from_beside_the_lesion(thin: list[LoadedCase]) -> None:
    case = thin[3]
    rng = np.random.default_rng(1)
    masked = pick_view(Augmentation(ends=1e-9, continue_edges=0), case, "axial", rng)
    _, inside, padding, _ = cut(case, GRID, "axial", PLAIN, masked)
    assert padding.any()
    assert not padding.all()
    assert not inside[padding].any()
    filling = Augmentation(elsewhere=1, continue_edges=0, shift_mm=1, other_planes=0)
    filled = pick_view(filling, case, "axial", rng)
    assert filled.beside is not None
    values, inside, padding, index = cut(case, GRID, "axial", filling, filled)
    assert not padding.any()
    # What was put there shows no lesion, and is tissue of the same stack.
    beyond = cut(case, GRID, "axial", filling, replace(filled, beside=None))[2]
    nearest = index.round().long()
    size = torch.tensor(case.mask_volume("axial").shape)
    there = ((nearest >= 0) & (nearest < size)).all(dim=-1)
    clamped = nearest.clamp(min=torch.zeros(3, dtype=torch.long), max=size - 1)
    marked = case.mask_volume("axial")[tuple(clamped.unbind(-1))] * there
    assert float(marked[beyond].sum()) == 0
    assert float(values[beyond].std()) > 0.01


def test_no_row_of_lesions_is_made_of_a_stack_that_ends_with_one(
    loaded: list[LoadedCase], thin: list[LoadedCase]
) -> None:
    always = Augmentation(continue_edges=1)
    views = [pick_view(always, case, "axial", np.random.default_rng(0)) for case in (loaded[0], thin[0])]
    assert [view.mirrored for view in views] == [True, False]


def test_a_view_is_followed_back_to_rows_columns_and_slices(loaded: list[LoadedCase]) -> None:
    case = loaded[1]
    rng = np.random.default_rng(5)
    spacing = [case.scan.spacing[axis] for axis, _ in AXES["axial"]]
    region = case.region("axial", GRID)
    for _ in range(5):
        view = pick_view(Augmentation(shift_mm=8), case, "axial", rng)
        row, column = lesion_pixel(region, spacing, view)
        low, high = slice_range(region, spacing[0], view, np.array([-0.1, 0.1]))
        index = sample_positions(
            region,
            spacing,
            view.zoom,
            view.angle,
            view.shift_mm,
            view.flips,
            np.array([(low + high) / 2]),
            (np.array([row]), np.array([column])),
        )
        middle = case.scan.world_to_voxel(case.center)[[axis for axis, _ in AXES["axial"]]]
        assert index[0, 0, 0].numpy() == pytest.approx(middle, abs=1e-2)


def test_part_of_a_slice_keeps_its_place(loaded: list[LoadedCase]) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(
        {
            **paper_encoder(),
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 84,
        }
    ).eval()
    with torch.no_grad():
        encoder.embeddings.position_embeddings.normal_()
    pixels = torch.randn(3, 1, 84, 84)
    with torch.no_grad():
        everything = encode_tokens(encoder, pixels)
        corner = torch.zeros(3, 2, dtype=torch.long)
        assert torch.allclose(encode_tokens(encoder, pixels, corners=corner), everything, atol=1e-5)
        # Before the blocks mix them, a part's tokens are those of the whole slice.
        encoder.encoder.layer = torch.nn.ModuleList()
        everything = encode_tokens(encoder, pixels)[:, 1:].reshape(3, 6, 6, -1)
        corners = torch.tensor([[0, 0], [1, 3], [4, 2]])
        parts = torch.stack(
            [pixels[i, :, 14 * r : 14 * r + 28, 14 * c : 14 * c + 42] for i, (r, c) in enumerate(corners)]
        )
        found = encode_tokens(encoder, parts, corners=corners)[:, 1:].reshape(3, 2, 3, -1)
        for i, (r, c) in enumerate(corners):
            assert torch.allclose(found[i], everything[i, r : r + 2, c : c + 3], atol=1e-5)


def test_windows_show_the_lesion_wherever_they_lie(loaded: list[LoadedCase]) -> None:
    augmentation = Augmentation(shift_mm=8, zoom=(1, 1), other_planes=0, continue_edges=0)
    draws = VolumeDraws(
        loaded,
        GRID,
        augmentation,
        40,
        dense=DenseTargets(4, {}),
        window=3,
        patch=4,
        keep_slices=4,
        focus=0.5,
        free=0.1,
    )
    corners = set()
    for sample in map(draws.__getitem__, range(len(draws))):
        assert sample["volume"].shape == (1, 4, 12, 12)
        assert sample["patches"].shape == (4, 3, 3)
        corners.add(tuple(sample["corner"].tolist()))
        if sample["lesion"] and float(sample["padding_mask"].float().mean()) < 1:
            assert float(sample["patches"].max()) > 0
    assert len(corners) > 4


def test_a_model_tells_whether_there_is_a_lesion(small_mst: SliceTransformer, tmp_path: Path) -> None:
    volume = torch.randn(2, 1, 8, 24, 24)
    assert small_mst.lesion_logits(small_mst.encode_scan(volume)) is None
    assert explain(small_mst, volume).lesion_logits is None
    model = _telling(small_mst)
    model.set_lesion_threshold(0.25)
    save_model(model, tmp_path / "checkpoint", half=True)
    assert (
        next(iter(load_file(tmp_path / "checkpoint" / "model.safetensors").values())).dtype == torch.float16
    )
    assert model.linear.weight.dtype == torch.float32
    again = load_model(tmp_path / "checkpoint")
    assert again.lesion_threshold == 0.25
    first, second = explain(model, volume), explain(again, volume)
    assert first.lesion_logits.shape == (2,)
    assert torch.allclose(first.lesion_logits, second.lesion_logits, atol=1e-2)  # float16 in the file
    # What kind of lesion it is, is asked of those alone that hold one.
    vector = model.encode_scan(volume)
    lesion = torch.tensor([1.0, 0.0])
    losses = [
        float(class_loss(model, vector.detach(), torch.tensor([0.9, other]), lesion).detach())
        for other in (0.1, 0.9)
    ]
    assert losses[0] == pytest.approx(losses[1])
    with pytest.raises(ValueError, match="not a probability"):
        SliceTransformer(
            encoder=dict(small_mst._hub_mixin_config["encoder"]), slice_heads=4, lesion_threshold=2
        )
    padding = torch.zeros(2, 8, dtype=torch.bool)
    loss = ClassTraining(model)(volume, padding, torch.tensor([0.9, 0.1]), lesion)
    loss.backward()
    assert model.lesion_head.weight.grad.abs().sum() > 0


def test_what_is_left_beside_a_lesion_shows_none(loaded: list[LoadedCase], thin: list[LoadedCase]) -> None:
    assert surrounded(loaded[0])
    assert not surrounded(thin[0])
    for case in (*loaded, *thin):
        assert has_room(case)
        for keep in (True, False):
            part, place = cut_beside(case, np.random.default_rng(0), keep)
            assert part.contains(place)
            at = case.scan.world_to_voxel(part.voxel_to_world(np.zeros(3))).round().astype(int)
            box = tuple(slice(a, a + n) for a, n in zip(at, part.shape, strict=True))
            assert np.array_equal(case.scan.voxels[box], part.voxels)
            assert case.mask[box].sum() == (case.mask.sum() if keep else 0)
            assert part.voxels.size < case.scan.voxels.size
        size = np.array([12.0, 12.0, 8.0])
        scan, place = place_without_lesion(case, size, np.random.default_rng(0))
        apart = np.abs(np.argwhere(case.mask) - scan.world_to_voxel(place)) * scan.spacing
        assert (apart > size / 2).any(axis=1).all()
        assert place_without_lesion(case, np.full(3, 200.0), np.random.default_rng(0)) is None


def test_figures_stand_beside_those_of_the_diameter_and_of_blind_guesses(
    small_mst: SliceTransformer, whole: Path, stacks: Path, tmp_path: Path
) -> None:
    model = _telling(small_mst)
    study = Study([whole, stacks], {"task": "chest-ct"}, tmp_path)
    cases = study.part_cases("all")[0]
    rows = predict_cases(model, cases, datasets=study.datasets)
    assert set(rows[0]) <= set(COLUMNS)
    assert all("lesion_beside" in row for row in rows)
    # Off-centre regions are for scans that go on on all sides: elsewhere the border alone tells where to look.
    assert [("pointing_off" in row) for row in rows] == [True] * 8 + [False] * 8
    assert all(0 <= row[f"pointing_{name}"] <= 1 for row in rows[:8] for name in ("middle", "random"))
    assert [("probability_cut" in row) for row in rows] == [True] * 8 + [False] * 8
    found = summarise([rows], CLASSES)
    assert found["cut_to_lesion"]["n"] == 8
    assert found["cut_to_lesion"]["mean_absolute_change"] >= abs(found["cut_to_lesion"]["mean_change"])
    shown = table({"one": [rows], "two": [rows]}, CLASSES)
    assert shown.count("+0.000, p 1.000") == len(found["groups"])
    assert all(title in shown for title in ("diameter alone", "the brightest one", "lesions kept", "AUC cut"))
    (group, *_) = [g for g in found["groups"] if g["readers"] == 1]
    assert (group["dataset"], group["n_benign"], group["n_malignant"]) == (stacks.name, 4, 4)
    assert group["diameter_auc"] == 1
    assert group["auc_ci95"][0] <= group["auc"] <= group["auc_ci95"][1]
    assert 0 <= group["p"] <= 1
    lesion = found["lesion"]
    assert lesion["n_lesions"] == lesion["n_lesions_cut"] == lesion["n_empty_cut"] == 16
    assert (lesion["kept"] + lesion["kept_cut"]) / 2 >= 0.95


def test_a_run_goes_on_from_one_that_knows_its_cases(whole: Path, stacks: Path, tmp_path: Path) -> None:
    model = {
        "architecture": "resnet3d",
        "grid": GRID,
        "depth": 10,
        "width": 4,
        "first_kernel": 3,
        "lesion_threshold": 0.5,
    }
    first = {"name": "first", "kind": "classifier", "task": "chest-ct", "folds": 2, "free": 0.3}
    first["training"] = {"steps": 2, "batch": 2, "learning_rate": 1e-3}
    second = first | {"name": "second", "pretraining": "first.yaml", "cross_validate": True}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first | {"model": model}))
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(second))
    (folder,) = run(
        load_config(tmp_path / "second.yaml"), [whole, stacks], tmp_path / "out", tmp_path / "runs"
    )
    metrics = json.loads((folder / "metrics.json").read_text())
    published = load_model(folder)
    assert published.lesion_threshold == metrics["lesion"]["threshold"]
    assert published.familiar["limit"] == metrics["usual_distance"]
    assert metrics["seconds"]["median"] > 0
    assert f"8 of {whole.name} and 8 of {stacks.name}" in metrics["protocol"]
    card = (folder / "README.md").read_text()
    for text in ("the paper's rule", "a random place", "It tells a lesion from what lies beside one"):
        assert text in card
    # Without the folds, nobody knows from when on a lesion is seen: then the model does not say.
    run(
        load_config(tmp_path / "first.yaml"),
        [whole, stacks],
        tmp_path / "alone",
        tmp_path / "runs-1",
        ["all"],
    )
    assert load_model(tmp_path / "alone").lesion_head is None

    blind = tmp_path / "blind"
    shutil.copytree(whole, blind)
    rows = list(csv.reader((blind / "cases.csv").open()))
    with (blind / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([row[:3] + row[4:] for row in rows])
    with pytest.raises(TrainingError, match="free needs cases with masks and tissue beside"):
        run(load_config(tmp_path / "first.yaml"), blind, tmp_path / "out", tmp_path / "runs-2")
    for change, message in (
        ("window=2", "window needs dense"),
        ("focus=0.5", "focus is of the slices that keep_slices keeps"),
    ):
        with pytest.raises(TrainingError, match=message):
            load_config(tmp_path / "first.yaml", [change])
