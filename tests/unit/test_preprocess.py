"""The way into a model and back: geometry, orientation, normalisation."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import zoom

from mst.preprocess import prepare, side_center
from mst.scans import Scan, ScanError
from mst.tasks import TASKS

CHEST, BREAST, KNEE = TASKS["chest-ct"], TASKS["breast-mri"], TASKS["knee-mri"]
COMPACT = {"shape": [16, 32, 32], "spacing_mm": [2.0, 1.5, 1.5]}


def _scan(shape=(60, 50, 40), spacing=(1.0, 1.2, 2.0), seed=0) -> Scan:
    generator = np.random.default_rng(seed)
    coarse = generator.normal(-400, 300, [n // 5 + 2 for n in shape])
    voxels = zoom(coarse, [n / m for n, m in zip(shape, coarse.shape, strict=True)], order=1)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-30, 12, 100)
    return Scan(voxels.astype(np.float32), affine)


def orientations() -> list[str]:
    """The 48 ways to order and flip three axes, as codes such as "PIR"."""
    pairs = ("RL", "AP", "SI")
    return [
        "".join(pairs[axis][flip] for axis, flip in zip(order, flips, strict=True))
        for order in permutations(range(3))
        for flips in product((0, 1), repeat=3)
    ]


def reorient(scan: Scan, codes: str) -> Scan:
    image = nib.Nifti1Image(scan.voxels, scan.affine)
    target = nib.orientations.axcodes2ornt(codes)
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.io_orientation(scan.affine), target)
    )
    return Scan(np.asarray(turned.dataobj, np.float32), turned.affine)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda t: t.key)
def test_the_input_is_the_same_in_all_48_orientations(task) -> None:
    scan = _scan()
    center = scan.center + (3.2, -4.1, 5.3)
    grid = COMPACT if task is CHEST else {"shape": [16, 32, 32]}
    expected = prepare(scan, task, center, grid)
    marker = torch.rand(expected.volume.shape[2:]).numpy()
    back = expected.region.to_scan(marker)
    for codes in orientations():
        turned = reorient(scan, codes)
        assert turned.orientation == codes
        given = prepare(turned, task, center, grid)
        assert torch.allclose(given.volume, expected.volume, atol=1e-5)
        own = turned.from_canonical(given.region.to_scan(marker))
        assert own.shape == turned.shape
        assert np.allclose(reorient(Scan(own, turned.affine), "RAS").voxels, back, atol=1e-5)


def test_presets_are_the_papers() -> None:
    for task in TASKS.values():
        assert task.grid.shape == (32, 224, 224)
        assert "arXiv 2411.15802" in task.source
    assert CHEST.clamp == (-1000, 1000)
    assert BREAST.grid.spacing_mm == (3.0, 0.7, 0.7)
    assert KNEE.plane == "sagittal"
    assert KNEE.grid.crop_voxels == (150, 150)


@pytest.mark.parametrize(
    ("task", "size"), [(CHEST, (32, 224, 224)), (BREAST, (32, 224, 224)), (KNEE, (32, 224, 224))]
)
def test_the_papers_input_size(task, size) -> None:
    given = prepare(_scan(), task, _scan().center)
    assert tuple(given.volume.shape) == (1, 1, *size)
    assert given.volume.dtype == torch.float32


def test_axial_slices_show_right_on_the_left_and_front_on_top() -> None:
    scan = _scan((64, 64, 32), (1, 1, 1))
    voxels = np.full(scan.shape, -1000, np.float32)
    voxels[52:56, 48:52, 20:22] = 1000  # to the patient's right, front, towards the head
    given = prepare(
        Scan(voxels, scan.affine), CHEST, scan.center, {"shape": [32, 64, 64], "spacing_mm": [1, 1, 1]}
    )
    depth, row, column = (given.volume[0, 0] == 1).nonzero().float().mean(0).tolist()
    assert depth > 16
    assert row < 32
    assert column < 32


def test_chest_values_are_clamped_to_minus_one_and_one() -> None:
    voxels = np.linspace(-3000, 3000, 40**3, dtype=np.float32).reshape(40, 40, 40)
    given = prepare(
        Scan(voxels, np.eye(4)), CHEST, (19.5, 19.5, 19.5), {"shape": [40, 40, 40], "spacing_mm": [1, 1, 1]}
    )
    volume = given.volume[0, 0].flip(1, 2).permute(2, 1, 0)
    assert torch.allclose(volume, torch.from_numpy(np.clip(voxels, -1000, 1000) / 1000), atol=1e-5)


@pytest.mark.parametrize("task", [BREAST, KNEE], ids=lambda t: t.key)
def test_mri_is_z_scored_whatever_its_scale(task) -> None:
    shape = (160, 160, 40) if task is BREAST else (40, 160, 160)
    scan = _scan(shape, (0.7, 0.7, 3.0))
    one = prepare(scan, task, scan.center, {"shape": [16, 32, 32]})
    other = prepare(Scan(scan.voxels * 7 + 500, scan.affine), task, scan.center, {"shape": [16, 32, 32]})
    assert abs(float(one.volume.mean())) < 1e-3
    assert abs(float(one.volume.std()) - 1) < 1e-2
    assert torch.allclose(one.volume, other.volume, atol=1e-3)


def test_missing_knee_slices_are_padded_and_masked() -> None:
    scan = _scan((20, 150, 150), (4.0, 0.6, 0.6))
    given = prepare(scan, KNEE, scan.center)
    assert given.padding_mask is not None
    assert given.padding_mask.sum() == 12
    assert given.volume[0, 0][given.padding_mask[0]].abs().max() == 0
    # Samples fall on the scan's own slices: nothing is interpolated across them.
    assert np.allclose(given.region.positions[0] % 1, 0)


def test_a_knee_crop_spans_150_voxels() -> None:
    scan = _scan((32, 256, 256), (4.0, 0.5, 0.5))
    region = prepare(scan, KNEE, scan.center).region
    assert np.allclose(region.size_mm(scan.canonical()), (128, 75, 75))


def test_saliency_comes_back_to_where_it_was_and_zero_outside() -> None:
    scan = _scan((80, 80, 60), (1.0, 1.0, 1.0))
    center = scan.voxel_to_world((30.5, 45.5, 25.5))
    given = prepare(scan, CHEST, center, {"shape": [24, 32, 32], "spacing_mm": [1, 1, 1]})
    volume = np.zeros((24, 32, 32), np.float32)
    depth, row, column = 15, 9, 20
    volume[depth, row, column] = 1
    back = given.region.to_scan(volume)
    peak = np.unravel_index(back.argmax(), back.shape)
    expected = [
        given.region.positions[2][column],
        given.region.positions[1][row],
        given.region.positions[0][depth],
    ]
    assert np.allclose(peak, expected, atol=0.51)
    ones = given.region.to_scan(np.ones((24, 32, 32), np.float32))
    bounds = given.region.bounds
    inside = np.zeros(scan.shape, bool)
    inside[tuple(slice(*b) for b in bounds)] = True
    assert (ones[inside] == 1).all()
    assert (ones[~inside] == 0).all()
    assert inside.sum() == 24 * 32 * 32


def test_a_coarser_grid_averages_instead_of_skipping() -> None:
    voxels = np.zeros((64, 64, 64), np.float32)
    voxels[::2] = 1000
    voxels[1::2] = -1000
    voxels += np.linspace(-50, 50, 64, dtype=np.float32)
    given = prepare(
        Scan(voxels, np.eye(4)), CHEST, (31.5,) * 3, {"shape": [8, 8, 8], "spacing_mm": [4, 4, 4]}
    )
    assert given.volume.abs().max() < 0.1


def test_a_region_over_the_edge_is_air() -> None:
    voxels = np.random.default_rng(0).normal(0, 100, (40, 40, 40)).astype(np.float32)
    given = prepare(
        Scan(voxels, np.eye(4)), CHEST, (0, 20, 20), {"shape": [32, 32, 32], "spacing_mm": [1, 1, 1]}
    )
    assert (given.volume[0, 0, :, :, 17:] == -1).all()


def test_a_region_beyond_the_scan_is_refused() -> None:
    with pytest.raises(ScanError, match="outside the scan"):
        prepare(_scan(), CHEST, (500, 500, 500), COMPACT)


@pytest.mark.parametrize("axis", range(3))
def test_a_scan_thinner_than_the_samples_lie_apart_is_seen(axis: int) -> None:
    scan = _scan((40, 40, 40), (1.25, 1.25, 1.25))
    thin = Scan(scan.voxels.take([20], axis=axis), scan.affine)
    grid = {"shape": [16, 16, 16], "spacing_mm": [1.5, 1.5, 1.5]}
    given = prepare(thin, CHEST, thin.center, grid)
    assert given.volume.max() > -1
    away = np.array(thin.center)
    away[axis] += 30
    with pytest.raises(ScanError, match="outside the scan"):
        prepare(thin, CHEST, away, grid)


def test_a_constant_region_is_refused() -> None:
    voxels = np.zeros((100, 100, 100), np.float32)
    voxels[0] = 1
    with pytest.raises(ScanError, match="same value"):
        prepare(Scan(voxels, np.eye(4)), CHEST, (80, 80, 80), COMPACT)


def test_left_is_the_patients_left() -> None:
    scan = _scan()
    for codes in ("RAS", "LPS", "SRA"):
        turned = reorient(scan, codes)
        assert side_center(turned, "left")[0] < scan.center[0] < side_center(turned, "right")[0]


def test_a_grid_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="colour"):
        CHEST.grid.override({"colour": 3})
