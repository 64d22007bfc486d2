"""The example scans: simulated, the same each time, and honest about their place."""

from pathlib import Path

import numpy as np
import pytest

from mst.data.examples import EXAMPLES, Example, example_file
from mst.scans import read_scan
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
