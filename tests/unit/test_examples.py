"""The example scans: simulated, the same each time, and honest about their place."""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label
from small_study import round_outline

from mst.data.examples import EXAMPLES, Example, example_center, example_file
from mst.data.simulated import simulate_chest_ct
from mst.preprocess import locate
from mst.scans import Scan, read_scan
from mst.tasks import TASKS


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.key)
def test_an_example_is_a_scan_of_its_study(example: Example, tmp_path: Path) -> None:
    scan, mask = example.make()
    assert example.task in TASKS
    assert scan.modality == ("CT" if example.task == "chest-ct" else "MR")
    assert mask.shape == scan.shape
    assert 50 < mask.sum() < 0.05 * mask.size
    again, _ = example.make()
    assert np.array_equal(again.voxels, scan.voxels)
    path = example_file(example.key, tmp_path)
    assert path.stat().st_size < 3_000_000
    read = read_scan(path)
    assert np.array_equal(read.voxels, scan.voxels)
    assert np.allclose(read.affine, scan.affine, atol=1e-4)


def test_chest_examples_are_in_hounsfield_units_and_have_their_nodule_within_reach() -> None:
    for example in EXAMPLES:
        if example.task != "chest-ct":
            continue
        scan, mask = example.make()
        assert scan.voxels.min() >= -1024
        assert -900 < np.median(scan.voxels) < -800
        off = scan.voxel_to_world(np.argwhere(mask).mean(axis=0)) - scan.center
        assert np.abs(off).max() < 24


def test_keys_are_unique() -> None:
    assert len({example.key for example in EXAMPLES}) == len(EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.key)
def test_an_example_opens_on_its_lesion(example: Example) -> None:
    scan, mask = example.make()
    center = example_center(example.key)
    assert mask[tuple(np.round(scan.world_to_voxel(center)).astype(int))]
    task = TASKS[example.task]
    bounds = locate(scan.canonical(), task.plane, task.grid, center).bounds
    found = np.argwhere(Scan(mask.astype(np.float32), scan.affine).canonical().voxels > 0.5)
    assert (found >= bounds[:, 0]).all()
    assert (found < bounds[:, 1]).all()


def check_lung(scan: Scan, side: str) -> None:
    """Whether a block of lung lies on that side, its chest wall outwards and its ribs as they run in a patient."""
    outwards = {"right": 1, "left": -1}[side]  # in RAS x grows to the patient's right
    bone = scan.voxels > 300
    places = scan.voxel_to_world(np.argwhere(bone))
    assert np.sign(scan.center[0]) == outwards
    assert outwards * (places.mean(axis=0)[0] - scan.center[0]) > 20
    ribs, count = label(bone)
    slopes = []
    for rib in range(1, count + 1):
        x, y, z = scan.voxel_to_world(np.argwhere(ribs == rib)).T
        if np.ptp(y) > 60:
            slopes.append(np.polyfit(y, z, 1)[0])
            assert np.polyfit(y, outwards * x, 2)[0] < 0  # round: it bulges outwards
    assert len(slopes) >= 2
    assert max(slopes) < -0.3  # they run downwards to the front


def test_the_ribs_lie_on_the_outer_side_of_the_lung() -> None:
    outline = round_outline(10)
    for side in ("right", "left"):
        check_lung(simulate_chest_ct(5, outline, lung=side)[0], side)
    sides = {"chest-ground-glass": "left"}
    for example in EXAMPLES:
        if example.task == "chest-ct":
            check_lung(example.make()[0], sides.get(example.key, "right"))


def test_a_left_lung_is_a_right_one_in_a_mirror() -> None:
    right, of_right = simulate_chest_ct(5, round_outline(10), lung="right")
    left, of_left = simulate_chest_ct(5, round_outline(10), lung="left")
    assert np.array_equal(left.voxels, right.voxels[::-1])
    assert np.array_equal(of_left, of_right[::-1])
    assert left.center == pytest.approx(right.center * (-1, 1, 1))


def test_other_lesions_lie_on_the_side_that_is_told() -> None:
    assert example_center("breast")[0] < 0  # the patient's left
    knee = {example.key: example for example in EXAMPLES}["knee"].make()[0]
    assert knee.center[0] < 0
    assert example_center("knee")[0] > knee.center[0]  # the inner meniscus of a left knee
