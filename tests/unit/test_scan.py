"""Reading scans in every format, and where their voxels lie."""

import doctest
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import RLELossless, generate_uid
from scan_files import AXIAL, SHAPE, dicom_series, enhanced_dicom, lps_affine, ras_affine, tilted, volume
from test_preprocess import orientations, reorient

import mst.scans.scan
from mst.scans import Scan, ScanError, read_mask, read_scan, subtract, write_nifti

DIRECTIONS = pytest.mark.parametrize("directions", [AXIAL, tilted()], ids=["axial", "oblique"])


def check(scan: Scan, directions: np.ndarray = AXIAL, tolerance: float = 1e-3) -> None:
    """Whether a scan shows `volume()`, each voxel where it belongs."""
    assert scan.voxels.dtype == np.float32
    truth = volume()
    for index in ((3, 8, 2), (0, 0, 0), (13, 11, 9), (5, 2, 7)):
        world = ras_affine(directions) @ (*index, 1)
        found = scan.world_to_voxel(world[:3])
        assert np.allclose(found, np.round(found), atol=1e-2)
        value = scan.voxels[tuple(np.round(found).astype(int))]
        assert value == pytest.approx(truth[index], abs=1.01)
    assert sorted(np.round(scan.spacing, 3)) == pytest.approx([0.8, 1.1, 2.5], abs=tolerance)


def itk_image(directions: np.ndarray = AXIAL) -> sitk.Image:
    image = sitk.GetImageFromArray(volume().astype(np.int16).T)
    affine = lps_affine(directions)
    image.SetSpacing([0.8, 1.1, 2.5])
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection(directions.T.ravel().tolist())
    return image


def test_the_class_explains_itself() -> None:
    assert doctest.testmod(mst.scans.scan).failed == 0


@DIRECTIONS
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti(tmp_path: Path, directions: np.ndarray, suffix: str) -> None:
    image = nib.Nifti1Image(((volume() + 1024) // 2).astype(np.int16), ras_affine(directions))
    image.header.set_slope_inter(2, -1024)
    nib.save(image, tmp_path / f"s{suffix}")
    check(read_scan(tmp_path / f"s{suffix}"), directions)
    assert read_scan(str(tmp_path / f"s{suffix}")).name == "s"


@DIRECTIONS
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", ["nrrd", "nhdr", "mha", "mhd"])
def test_nrrd_and_metaimage(tmp_path: Path, directions: np.ndarray, suffix: str, compressed: bool) -> None:
    path = tmp_path / f"s.{suffix}"
    sitk.WriteImage(itk_image(directions), str(path), useCompression=compressed)
    check(read_scan(path), directions)


@pytest.mark.parametrize("suffix", ["nhdr", "mhd"])
def test_header_and_data_from_different_folders(tmp_path: Path, suffix: str) -> None:
    sitk.WriteImage(itk_image(), str(tmp_path / f"s.{suffix}"))
    parts = list(tmp_path.iterdir())
    moved = []
    for number, part in enumerate(parts):
        (tmp_path / str(number)).mkdir()
        moved.append(part.rename(tmp_path / str(number) / part.name))
    check(read_scan(moved))


@pytest.mark.parametrize("suffix", ["nhdr", "mhd"])
def test_a_zip_of_header_and_data(tmp_path: Path, suffix: str) -> None:
    sitk.WriteImage(itk_image(), str(tmp_path / f"s.{suffix}"))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for part in [p for p in tmp_path.iterdir() if p.stem == "s"]:
            archive.write(part, f"deep/er/{part.name}")
        archive.writestr("__MACOSX/deep/er/._s.mhd", b"junk")
        archive.writestr("deep/.DS_Store", b"junk")
        archive.writestr("notes.txt", b"read me")
    check(read_scan(tmp_path / "all.zip"))


@DIRECTIONS
def test_dicom_folder_in_any_order(tmp_path: Path, directions: np.ndarray) -> None:
    dicom_series(tmp_path / "dicom", directions)
    scan = read_scan(tmp_path / "dicom")
    check(scan, directions)
    assert scan.modality == "CT"
    assert scan.name == "THORAX 1.0"
    assert "Secret" not in repr((scan.name, scan.notes))


def test_dicom_as_several_files_and_as_a_zip(tmp_path: Path) -> None:
    paths = dicom_series(tmp_path / "dicom")
    check(read_scan(paths))
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for path in paths:
            archive.write(path, f"study/series/{path.name}")
        archive.writestr("study/readme.pdf", b"%PDF-1.4")
    check(read_scan(tmp_path / "d.zip"))


@DIRECTIONS
def test_enhanced_dicom(tmp_path: Path, directions: np.ndarray) -> None:
    check(read_scan(enhanced_dicom(tmp_path / "enhanced.dcm", directions)), directions)


def test_compressed_dicom(tmp_path: Path) -> None:
    for path in dicom_series(tmp_path):
        data = pydicom.dcmread(path)
        data.compress(RLELossless, generate_instance_uid=False)
        data.save_as(path)
    check(read_scan(tmp_path))


def test_dicom_without_preamble(tmp_path: Path) -> None:
    for path in dicom_series(tmp_path):
        path.write_bytes(path.read_bytes()[132:])
    check(read_scan(tmp_path))


def test_of_several_series_the_longest_is_taken_and_named(tmp_path: Path) -> None:
    dicom_series(tmp_path / "a", description="SCOUT", count=3, seed=9)
    dicom_series(tmp_path / "b")
    scan = read_scan(tmp_path)
    check(scan)
    assert "2 series" in scan.notes[0]
    assert "THORAX 1.0" in scan.notes[0]


def test_of_two_acquisitions_in_a_series_the_first_is_taken(tmp_path: Path) -> None:
    series = generate_uid()
    dicom_series(tmp_path, series=series, prefix="a")
    for path in dicom_series(tmp_path / "late", series=series, seed=3, prefix="b"):
        data = pydicom.dcmread(path)
        data.AcquisitionNumber, data.InstanceNumber = 2, int(data.InstanceNumber) + 100
        data.save_as(path)
    scan = read_scan(tmp_path)
    check(scan)
    assert "first one was taken" in scan.notes[0]


def test_a_four_dimensional_file_gives_its_first_volume_and_says_so(tmp_path: Path) -> None:
    both = np.stack([volume(), volume(7)], axis=-1).astype(np.float32)
    nib.save(nib.Nifti1Image(both, ras_affine()), tmp_path / "4d.nii.gz")
    scan = read_scan(tmp_path / "4d.nii.gz")
    check(scan)
    assert "2 volumes" in scan.notes[0]
    real = Path(nib.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    assert read_scan(real).shape == (128, 96, 24)


def test_a_trailing_axis_of_one_is_nothing_to_mention(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(volume()[..., None].astype(np.float32), ras_affine()), tmp_path / "s.nii")
    assert read_scan(tmp_path / "s.nii").notes == ()


def test_of_several_volumes_the_largest_is_taken(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(volume()[:6, :6, :6].astype(np.float32), np.eye(4)), tmp_path / "small.nii")
    nib.save(nib.Nifti1Image(volume().astype(np.float32), ras_affine()), tmp_path / "large.nii")
    scan = read_scan(tmp_path)
    check(scan)
    assert "large" in scan.notes[0]


def test_all_48_orientations_have_one_canonical_form() -> None:
    scan = Scan(volume().astype(np.float32), ras_affine())
    canonical = scan.canonical()
    assert canonical.orientation == "RAS"
    for codes in orientations():
        turned = reorient(scan, codes)
        assert np.array_equal(turned.canonical().voxels, canonical.voxels)
        assert np.allclose(turned.canonical().affine, canonical.affine)
        assert np.array_equal(turned.from_canonical(turned.canonical().voxels), turned.voxels)


@DIRECTIONS
def test_a_crop_keeps_spacing_and_places(tmp_path: Path, directions: np.ndarray) -> None:
    dicom_series(tmp_path, directions)
    scan = read_scan(tmp_path)
    start, stop = np.array([2, 0, 3]), np.array([9, 5, 4])
    crop = scan.cropped(start, stop)
    assert crop.shape == (7, 5, 1)
    assert np.array_equal(crop.voxels, scan.voxels[2:9, :5, 3:4])
    assert crop.spacing == scan.spacing
    assert np.allclose(crop.affine[:3, 3], scan.voxel_to_world(start), atol=1e-9)
    for index in ((0, 0, 0), (6, 4, 0), (3, 2, 0), (1.5, -0.5, 0.25)):
        assert np.allclose(crop.voxel_to_world(index), scan.voxel_to_world(start + index), atol=1e-9)
    assert (crop.modality, crop.name, crop.notes) == (scan.modality, scan.name, scan.notes)
    # Its slices are no longer the series', and the scan itself stays as it is.
    assert scan.source is not None
    assert crop.source is None
    whole = scan.cropped((0, 0, 0), scan.shape)
    assert np.array_equal(whole.voxels, scan.voxels)
    assert np.array_equal(whole.affine, scan.affine)


@pytest.mark.parametrize("box", [((-1, 0, 0), (3, 3, 3)), ((0, 0, 0), (3, 99, 3)), ((2, 2, 2), (5, 2, 5))])
def test_a_crop_must_lie_within_the_scan(box: tuple) -> None:
    with pytest.raises(ValueError, match="no box of a scan"):
        Scan(volume().astype(np.float32), ras_affine()).cropped(*box)


def test_a_mask_is_brought_to_the_scans_grid(tmp_path: Path) -> None:
    scan = Scan(volume().astype(np.float32), ras_affine())
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 7:10, 1:4] = 1
    nib.save(nib.Nifti1Image(mask, scan.affine), tmp_path / "same.nii.gz")
    assert np.array_equal(read_mask(tmp_path / "same.nii.gz", scan), mask > 0)
    turned = reorient(Scan(mask.astype(np.float32), scan.affine), "SPR")
    nib.save(nib.Nifti1Image(turned.voxels, turned.affine), tmp_path / "turned.nii.gz")
    assert np.array_equal(read_mask(tmp_path / "turned.nii.gz", scan), mask > 0)


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    scan = Scan(volume().astype(np.float32), ras_affine())
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), scan.affine), tmp_path / "empty.nii")
    with pytest.raises(ScanError, match="is empty"):
        read_mask(tmp_path / "empty.nii", scan)
    elsewhere = scan.affine.copy()
    elsewhere[:3, 3] += 500
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), elsewhere), tmp_path / "far.nii")
    with pytest.raises(ScanError, match="does not overlap"):
        read_mask(tmp_path / "far.nii", scan)


def test_subtraction_of_two_grids() -> None:
    pre = Scan(volume().astype(np.float32), ras_affine(), name="pre")
    post = Scan(pre.voxels + 5 * (pre.voxels > 0), pre.affine, name="post")
    difference = subtract(reorient(post, "SLA"), pre)
    assert np.allclose(difference.canonical().voxels, 5 * (pre.canonical().voxels > 0), atol=0.1)
    assert "subtracted" in difference.notes[-1]


@DIRECTIONS
def test_what_is_written_is_read_back(tmp_path: Path, directions: np.ndarray) -> None:
    write_nifti(volume(), ras_affine(directions), tmp_path / "w.nii.gz")
    check(read_scan(tmp_path / "w.nii.gz"), directions)
