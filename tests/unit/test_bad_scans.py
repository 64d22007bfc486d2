"""Each kind of bad input gets one clear sentence: no traceback, no temporary path, no exception's name."""

import gzip
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from scan_files import dicom_series, enhanced_dicom, ras_affine, volume

from mst.scans import ScanError, read_scan

GOOD = volume().astype(np.float32)
Maker = Callable[[Path], Path | list[Path]]


def nifti(voxels: np.ndarray, affine: np.ndarray | None = None, name: str = "s.nii.gz") -> Maker:
    def make(folder: Path) -> Path:
        nib.save(nib.Nifti1Image(voxels, ras_affine() if affine is None else affine), folder / name)
        return folder / name

    return make


def content(name: str, data: bytes) -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def cut(name: str, part: float, **options: bool) -> Maker:
    def make(folder: Path) -> Path:
        path = folder / name
        if ".nii" in name:
            nib.save(nib.Nifti1Image(GOOD, ras_affine()), path)
        else:
            sitk.WriteImage(sitk.GetImageFromArray(GOOD.T), str(path), **options)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * part)])
        return path

    return make


def changed(name: str, offset: int, data: bytes) -> Maker:
    def make(folder: Path) -> Path:
        raw = bytearray(nib.Nifti1Image(GOOD, np.eye(4)).to_bytes())
        raw[offset : offset + len(data)] = data
        (folder / name).write_bytes(raw)
        return folder / name

    return make


def header_only(name: str, shape: tuple[int, int, int]) -> Maker:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    raw = header.binaryblock + b"\0" * 4
    return content(name, gzip.compress(raw) if name.endswith("gz") else raw)


def meta(name: str, size: str, *lines: str) -> Maker:
    text = ["ObjectType = Image", "NDims = 3", f"DimSize = {size}", *lines, "ElementType = MET_FLOAT"]
    return content(name, "\n".join([*text, "ElementDataFile = LOCAL", ""]).encode())


def nrrd(name: str, encoding: str) -> Maker:
    return content(
        name,
        f"NRRD0004\ntype: float\ndimension: 3\nsizes: 1000 1000 550\nencoding: {encoding}\nendian: little\n\n".encode(),
    )


def zipped(files: dict[str, bytes]) -> Maker:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "s.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return folder / "s.zip"

    return make


def vector(name: str) -> Maker:
    def make(folder: Path) -> Path:
        image = sitk.GetImageFromArray(
            np.random.default_rng(0).integers(0, 9, (8, 8, 8, 3), np.uint8), isVector=True
        )
        sitk.WriteImage(image, str(folder / name))
        return folder / name

    return make


def dicom(
    change: Callable[[pydicom.Dataset], None], which: slice = slice(0, 1), **options: tuple[int, ...]
) -> Maker:
    def make(folder: Path) -> Path:
        for path in dicom_series(folder / "d", **options)[which]:
            data = pydicom.dcmread(path)
            change(data)
            data.save_as(path)
        return folder / "d"

    return make


def _wider(data: pydicom.Dataset) -> None:
    data.Rows, data.Columns = 20, 20
    data.PixelData = bytes(800)


def _colour(data: pydicom.Dataset) -> None:
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    data.PixelData = bytes(3 * data.Rows * data.Columns)


def _without_place(data: pydicom.Dataset) -> None:
    del data.ImagePositionPatient


def _half_the_pixels(data: pydicom.Dataset) -> None:
    data.PixelData = data.PixelData[:100]


def _turned(data: pydicom.Dataset) -> None:
    data.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def _nothing(data: pydicom.Dataset) -> None:
    pass


with_nan, with_infinity = GOOD.copy(), GOOD.copy()
with_nan[1, 2, 3] = np.nan
with_infinity[1, 2, 3] = np.inf
rgb = np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])

CASES: dict[str, tuple[Maker, str]] = {
    "empty file": (content("s.nii.gz", b""), "is empty"),
    "empty zip entry": (zipped({"s.nii": b""}), "is empty"),
    "missing file": (lambda folder: folder / "gone.nii", "no file gone.nii"),
    "no files": (lambda folder: [], "No file"),
    "truncated nii.gz": (cut("s.nii.gz", 0.5), "cut off"),
    "truncated within the header": (cut("s.nii.gz", 0.01), "cut off"),
    "truncated nii": (cut("s.nii", 0.7), "cut off"),
    "truncated nrrd": (cut("s.nrrd", 0.7), "cut off"),
    "truncated compressed nrrd": (cut("s.nrrd", 0.7, useCompression=True), "cut off"),
    "truncated mha": (cut("s.mha", 0.7), "cut off"),
    "truncated compressed mha": (cut("s.mha", 0.7, useCompression=True), "cut off"),
    "text named nii": (content("s.nii", b"these are notes " * 50), "not a NIfTI"),
    "short text named nii": (content("s.nii", b"hi"), "not a NIfTI"),
    "text named nii.gz": (content("s.nii.gz", b"these are notes " * 50), "not a compressed NIfTI"),
    "text named nrrd": (content("s.nrrd", b"notes " * 50), "not an NRRD"),
    "text named mha": (content("s.mha", b"notes " * 50), "not a MetaImage"),
    "a picture": (content("s.png", b"\x89PNG\r\n" + bytes(99)), "not a scan"),
    "zip without images": (zipped({"a.txt": b"hello", "b/c.pdf": b"%PDF"}), "holds no scan"),
    "damaged zip": (content("s.zip", b"PK\x03\x04" + os.urandom(200)), "damaged zip"),
    "dicom with a missing slice": (dicom(_nothing, skip=(4,)), "gap"),
    "dicom with mixed sizes": (dicom(_wider), "different sizes"),
    "dicom with mixed directions": (dicom(_turned), "different directions"),
    "dicom in colour": (dicom(_colour, slice(None)), "colour"),
    "dicom without places": (dicom(_without_place), "where its slices lie"),
    "dicom with half a picture": (dicom(_half_the_pixels), "cut off"),
    "dicom of one slice": (lambda folder: dicom_series(folder)[0], "single slice"),
    "a real single CT slice": (lambda folder: Path(str(get_testdata_file("CT_small.dcm"))), "single slice"),
    "a DICOM report": (lambda folder: Path(str(get_testdata_file("reportsi.dcm"))), "no images"),
    "NaN": (nifti(with_nan), "not numbers"),
    "infinite": (nifti(with_infinity), "not numbers"),
    "constant": (nifti(np.full((9, 9, 9), 7, np.float32)), "same value"),
    "two-dimensional": (nifti(GOOD[0]), "2D image"),
    "one slice": (nifti(GOOD[:, :, :1]), "single slice"),
    "two slices": (nifti(GOOD[:, :, :2]), "at least"),
    "RGB": (nifti(rgb), "colour"),
    "RGB mha": (vector("s.mha"), "colour"),
    "RGB nrrd": (vector("s.nrrd"), "colour"),
    "complex numbers": (nifti(GOOD.astype(np.complex64)), "complex"),
    "zero spacing": (changed("s.nii", 80, struct.pack("<f", 0)), "voxel size"),
    "NaN spacing": (changed("s.nii", 80, struct.pack("<f", float("nan"))), "voxel size"),
    "absurd spacing": (nifti(GOOD, np.diag([900.0, 1, 1, 1])), "impossible"),
    "tiny spacing": (nifti(GOOD, np.diag([1e-5, 1e-5, 1e-5, 1])), "impossible"),
    "flat axes": (
        changed("s.nii", 254, struct.pack("<h", 1) + bytes(26) + struct.pack("<12f", *([1.0, 0, 0, 0] * 3))),
        "impossible",
    ),
    "zero spacing in mha": (meta("s.mha", "8 8 8", "ElementSpacing = 0 1 1"), "voxel size|cut off"),
    "3 GB header, nii": (header_only("s.nii", (1000, 1000, 800)), "more than"),
    "3 GB header, nii.gz": (header_only("s.nii.gz", (1000, 1000, 800)), "more than"),
    "2 GB header, nii": (header_only("s.nii", (1000, 1000, 550)), "cut off"),
    "2 GB header, nii.gz": (header_only("s.nii.gz", (1000, 1000, 550)), "cut off"),
    "3 GB header, mha": (meta("s.mha", "1000 1000 800"), "more than"),
    "2 GB header, mha": (meta("s.mha", "1000 1000 550"), "cut off"),
    "2 GB header, compressed mha": (meta("s.mha", "1000 1000 550", "CompressedData = True"), "cut off"),
    "2 GB header, nrrd": (nrrd("s.nrrd", "raw"), "cut off"),
    "2 GB header, compressed nrrd": (nrrd("s.nrrd", "gzip"), "cut off"),
    "header without its data": (
        content("s.mhd", b"NDims = 3\nDimSize = 8 8 8\nElementType = MET_UCHAR\nElementDataFile = s.raw\n"),
        "needs its data file",
    ),
    "header that points elsewhere": (
        content(
            "s.mhd", b"NDims = 3\nDimSize = 8 8 8\nElementType = MET_UCHAR\nElementDataFile = /etc/passwd\n"
        ),
        "another folder",
    ),
    "nhdr that points upwards": (
        content(
            "s.nhdr",
            b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 8 8 8\nencoding: raw\ndata file: ../x.raw\n\n",
        ),
        "another folder",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_explained_in_one_sentence(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    make, words = CASES[case]
    given = make(tmp_path)
    with pytest.raises(ScanError, match=words) as caught:
        read_scan(given)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert message.count(". ") == 0
    assert "/" not in message.replace("://", "")
    for word in ("Error", "Traceback", "None", "tmp"):
        assert word not in message
    assert capfd.readouterr().err == "", "a library wrote to standard error"


def test_truncated_enhanced_dicom(tmp_path: Path) -> None:
    path = enhanced_dicom(tmp_path / "e.dcm")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ScanError, match="cut off"):
        read_scan(path)


def test_a_zip_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    make = zipped({"../../escaped.nii": b"x" * 400})
    with pytest.raises(ScanError):
        read_scan(make(inner))
    assert not list(tmp_path.rglob("escaped.nii"))
