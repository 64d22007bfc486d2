"""A CT whose values are not Hounsfield units is told, and can be shifted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mst.cli import main
from mst.data.examples import EXAMPLES, example_scan
from mst.results import display_window, scan_warnings
from mst.scans import Scan, write_nifti
from mst.scans.hounsfield import USUAL_SHIFT, hounsfield_shift, shifted
from mst.tasks import TASKS

CHEST = TASKS["chest-ct"]


@pytest.mark.parametrize("key", [example.key for example in EXAMPLES if example.task == "chest-ct"])
def test_a_ct_that_was_stored_without_negative_numbers_is_known(key: str) -> None:
    scan = example_scan(key)
    assert hounsfield_shift(scan) == 0
    assert scan_warnings(scan, CHEST) == []
    raised = replace(scan, voxels=scan.voxels + 1024)
    assert hounsfield_shift(raised) == USUAL_SHIFT
    assert any("Hounsfield units + 1024" in warning for warning in scan_warnings(raised, CHEST))
    assert display_window(raised, CHEST).name == "Automatic", "in the lung window all of it would be white"
    back = shifted(raised, USUAL_SHIFT)
    np.testing.assert_array_equal(back.voxels, scan.voxels)
    assert scan_warnings(back, CHEST) == []


def test_values_that_nobody_can_say_the_meaning_of() -> None:
    scan = Scan(np.random.default_rng(0).uniform(0, 1, (20, 20, 20)).astype(np.float32), np.eye(4))
    assert hounsfield_shift(scan) is None
    assert any("may not be Hounsfield units" in warning for warning in scan_warnings(scan, CHEST))


def test_the_command_line_shifts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    scan = example_scan("chest-spiculated")
    write_nifti(scan.voxels, scan.affine, tmp_path / "right.nii.gz")
    write_nifti(scan.voxels + 1024, scan.affine, tmp_path / "raised.nii.gz")
    for name, options in (("right", []), ("raised", ["--hu-shift", "-1024"])):
        given = ["predict", str(tmp_path / f"{name}.nii.gz"), "--task", "chest-ct", *options]
        assert main([*given, "--out", str(tmp_path / name)]) == 0
    right, raised = (
        json.loads((tmp_path / name / "prediction.json").read_text()) for name in ("right", "raised")
    )
    for name, entry in right["models"].items():
        assert raised["models"][name]["probabilities"] == pytest.approx(entry["probabilities"], abs=1e-5)
    assert any("-1024 was added" in note for note in raised["scan"]["notes"])
