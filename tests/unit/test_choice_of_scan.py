"""Of several files in one upload, the scan is taken for the scan and the mask for the mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scan_files import dicom_series, ras_affine, volume

from mst.scans import ScanError, read_mask, read_scan, write_nifti
from mst.scans.resampling import onto, split_contrast, subtract
from mst.scans.scan import Scan

VOXELS = volume().astype(np.float32)
MASK = np.zeros(VOXELS.shape, np.float32)
MASK[4:8, 4:8, 3:6] = 1


def write(folder: Path, name: str, voxels: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_nifti(voxels, ras_affine(), folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("scan", "mask"), [("scan.nii.gz", "mask.nii.gz"), ("z.nii", "a.nii"), ("b.nii", "c.nii")]
)
@pytest.mark.parametrize("factor", [1, 7])
def test_a_scan_beside_its_mask(scan: str, mask: str, factor: int, tmp_path: Path) -> None:
    """Both of one size: neither the order of their names nor the mask's label decides."""
    write(tmp_path, scan, VOXELS)
    write(tmp_path, mask, MASK * factor)
    read = read_scan(tmp_path)
    np.testing.assert_array_equal(read.voxels, VOXELS)
    assert any(scan in note for note in read.notes), "what was taken is told"


def test_a_mask_larger_than_its_scan_is_still_the_mask(tmp_path: Path) -> None:
    write(tmp_path, "a.nii", VOXELS)
    write(tmp_path, "b.nii", np.pad(MASK, 5))
    np.testing.assert_array_equal(read_scan(tmp_path).voxels, VOXELS)


def test_a_dicom_series_beside_its_mask(tmp_path: Path) -> None:
    dicom_series(tmp_path / "d", slope=1.0)
    write(tmp_path / "d", "mask.nii.gz", MASK)
    scan = read_scan(tmp_path / "d")
    assert scan.modality == "CT"
    np.testing.assert_array_equal(scan.voxels, VOXELS)


def test_a_mask_alone_can_be_looked_at(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_scan(write(tmp_path, "mask.nii", MASK)).voxels, MASK)


def test_of_a_folder_given_as_mask_the_mask_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "a.nii", VOXELS)
    write(tmp_path, "b.nii", MASK)
    scan = read_scan(tmp_path)
    np.testing.assert_array_equal(read_mask(tmp_path, scan), MASK > 0)


def test_a_broken_volume_beside_a_good_one_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, "a.nii", VOXELS)
    (tmp_path / "b.nii").write_bytes(b"nothing of the kind" * 99)
    np.testing.assert_array_equal(read_scan(tmp_path).voxels, VOXELS)


@pytest.mark.parametrize("shift", [0.1, -0.1, 0.4])
def test_a_shift_of_less_than_half_a_voxel_leaves_no_slice_unsubtracted(shift: float) -> None:
    """Scanner positions of two series differ by a rounded tenth of a millimetre."""
    moved = ras_affine()
    moved[2, 3] += shift
    difference = subtract(Scan(VOXELS + 50, ras_affine()), Scan(np.full_like(VOXELS, 50), moved))
    np.testing.assert_allclose(difference.voxels, VOXELS, atol=1e-3)


def test_where_the_pre_contrast_scan_does_not_reach_nothing_is_made_up() -> None:
    post = Scan(VOXELS + 500, ras_affine())
    pre = Scan(np.full_like(VOXELS[:, :, :6], 500), ras_affine())
    difference = subtract(post, pre)
    np.testing.assert_allclose(difference.voxels[:, :, :6], VOXELS[:, :, :6])
    assert not difference.voxels[:, :, 6:].any()
    assert any("60%" in note for note in difference.notes)


def test_scans_that_do_not_overlap_are_not_subtracted() -> None:
    away = ras_affine()
    away[0, 3] += 500
    with pytest.raises(ScanError, match="overlap"):
        subtract(Scan(VOXELS, ras_affine()), Scan(VOXELS, away))


def test_onto_takes_the_nearest_voxel_of_a_mask() -> None:
    moved = ras_affine()
    moved[:3, 3] += 0.2
    np.testing.assert_array_equal(onto(Scan(MASK, moved), Scan(VOXELS, ras_affine()), order=0), MASK)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("express_post.nii.gz", "express_pre.nii.gz"),
        ("Presto-3.nii", "Presto-2-pre-contrast.nii"),
        ("T1 POST.mha", "T1 PRE.mha"),
        ("after.nrrd", "before.nrrd"),
    ],
)
def test_the_pre_contrast_scan_is_known_by_a_word_of_its_name(first: str, second: str) -> None:
    assert split_contrast([first, second]) == ([first], [second])
    assert split_contrast([second, first]) == ([first], [second])


@pytest.mark.parametrize(
    "files", [["express1.nii", "express2.nii"], ["pre1.nii", "pre2.nii"], ["pre_a.nii", "a_pre.nii"]]
)
def test_two_scans_whose_names_do_not_tell_are_not_guessed(files: list[str]) -> None:
    with pytest.raises(ScanError, match="before contrast"):
        split_contrast(files)


def test_a_mask_is_no_answer_where_its_scan_is_damaged(tmp_path: Path) -> None:
    whole = write(tmp_path, "scan.nii.gz", VOXELS)
    whole.write_bytes(whole.read_bytes()[:1000])
    write(tmp_path, "mask.nii.gz", MASK)
    with pytest.raises(ScanError, match=r"scan\.nii\.gz is cut off"):
        read_scan(tmp_path)
