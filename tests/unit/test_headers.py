"""NRRD, MetaImage and NIfTI: what their headers say is what the scan is, and what they leave open is told."""

from __future__ import annotations

import bz2
import gzip
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scan_files import ras_affine, tilted, volume

from mst.scans import Scan, ScanError, read_scan
from mst.scans.scan import Caution

VOXELS = volume().astype(np.int16)
SIZES = " ".join(map(str, VOXELS.shape))
DIRECTIONS = "(0.8,0,0) (0,1.1,0) (0,0,2.5)"
GEOMETRY = f"space: left-posterior-superior\nspace directions: {DIRECTIONS}\nspace origin: (-20,31,-55.5)\n"
PLACE = "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -20 31 -55.5\nElementSpacing = 0.8 1.1 2.5\n"


def nrrd(
    folder: Path,
    fields: str = GEOMETRY,
    encoding: str = "raw",
    kind: str = "int16",
    data: bytes | None = None,
    sizes: str = SIZES,
) -> Path:
    raw = VOXELS.tobytes(order="F") if data is None else data
    packed = {"gzip": gzip.compress, "bzip2": bz2.compress}.get(encoding, bytes)(raw)
    header = (
        f"NRRD0005\n# a comment\ntype: {kind}\ndimension: {len(sizes.split())}\nsizes: {sizes}\nencoding: {encoding}\n"
        f"{fields}key:=value: with a colon\n\n"
    )
    path = folder / "s.nrrd"
    path.write_bytes(header.encode() + packed)
    return path


def meta(
    folder: Path,
    fields: str = PLACE,
    kind: str = "MET_SHORT",
    data: bytes | None = None,
    sizes: str = SIZES,
) -> Path:
    raw = VOXELS.tobytes(order="F") if data is None else data
    header = (
        f"ObjectType = Image\nNDims = {len(sizes.split())}\nDimSize = {sizes}\n{fields}ElementType = {kind}\n"
    )
    path = folder / "s.mha"
    path.write_bytes((header + "ElementDataFile = LOCAL\n").encode() + raw)
    return path


def is_the_scan(scan: Scan) -> bool:
    return np.array_equal(scan.voxels, VOXELS) and np.allclose(scan.affine, ras_affine(), atol=1e-9)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_nrrd_encodings(encoding: str, tmp_path: Path) -> None:
    data = " ".join(map(str, VOXELS.ravel(order="F"))).encode() if encoding == "ascii" else None
    scan = read_scan(nrrd(tmp_path, GEOMETRY + "endian: little\n", encoding, data=data))
    assert is_the_scan(scan)
    assert scan.notes == ()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("signed char", "i1"),
        ("uchar", "u1"),
        ("unsigned short int", "u2"),
        ("int", "i4"),
        ("uint32_t", "u4"),
        ("long long", "i8"),
        ("uint64", "u8"),
        ("float", "f4"),
        ("double", "f8"),
    ],
)
@pytest.mark.parametrize("order", ["little", "big"])
def test_nrrd_types_in_both_byte_orders(kind: str, dtype: str, order: str, tmp_path: Path) -> None:
    voxels = np.abs(VOXELS % 100)
    data = voxels.astype(("<" if order == "little" else ">") + dtype).tobytes(order="F")
    scan = read_scan(nrrd(tmp_path, GEOMETRY + f"endian: {order}\n", kind=kind, data=data))
    np.testing.assert_array_equal(scan.voxels, voxels)


@pytest.mark.parametrize(
    ("space", "signs"), [("right-anterior-superior", (1, 1)), ("LAS", (-1, 1)), ("LPS", (-1, -1))]
)
def test_nrrd_spaces(space: str, signs: tuple[int, int], tmp_path: Path) -> None:
    scan = read_scan(nrrd(tmp_path, GEOMETRY.replace("left-posterior-superior", space)))
    expected = np.diag([*signs, 1, 1]) @ np.diag([-1.0, -1, 1, 1]) @ ras_affine()
    np.testing.assert_allclose(scan.affine, expected)


@pytest.mark.parametrize(
    "fields",
    ["spacings: 0.8 1.1 2.5\n", GEOMETRY.replace("space: left-posterior-superior", "space dimension: 3")],
)
def test_an_nrrd_that_does_not_say_left_says_so(fields: str, tmp_path: Path) -> None:
    scan = read_scan(nrrd(tmp_path, fields))
    np.testing.assert_allclose(scan.spacing, (0.8, 1.1, 2.5))
    assert any("left and right" in note for note in scan.notes)


@pytest.mark.parametrize(
    ("make", "fields"),
    [(nrrd, ""), (nrrd, "space: LPS\n"), (nrrd, "spacings: nan nan nan\n"), (meta, "Offset = 0 0 0\n")],
)
def test_no_voxel_size_is_a_reason_for_caution(make: type, fields: str, tmp_path: Path) -> None:
    scan = read_scan(make(tmp_path, fields))
    assert scan.spacing == (1, 1, 1)
    assert any(isinstance(note, Caution) and "voxel size" in note for note in scan.notes)


@pytest.mark.parametrize(
    ("make", "fields", "unit"),
    [
        (nrrd, GEOMETRY + 'space units: "um" "um" "um"\n', 0.001),
        (nrrd, GEOMETRY + 'space units: "µm" "µm" "µm"\n', 0.001),
        (nrrd, GEOMETRY + 'space units: "cm" "cm" "cm"\n', 10),
        (nrrd, 'spacings: 0.8 1.1 2.5\nunits: "m" "m" "m"\n', 1000),
        (meta, PLACE + "DistanceUnits = um\n", 0.001),
        (meta, PLACE + "DistanceUnits = mm\n", 1),
    ],
)
def test_lengths_are_turned_to_millimetres(make: type, fields: str, unit: float, tmp_path: Path) -> None:
    # A thousandth of a millimetre as spacing is refused as impossible, so the voxels are made larger first.
    larger = max(1.0, 0.05 / (0.8 * unit)) if unit < 1 else min(1.0, 20 / (2.5 * unit))
    for number in ("0.8", "1.1", "2.5"):
        fields = fields.replace(number, f"{float(number) * larger:.6f}")
    scan = read_scan(make(tmp_path, fields))
    np.testing.assert_allclose(scan.spacing, np.array([0.8, 1.1, 2.5]) * larger * unit, rtol=1e-4)


@pytest.mark.parametrize("make", [nrrd, meta])
def test_a_unit_that_is_not_known_is_refused(make: type, tmp_path: Path) -> None:
    fields = (
        GEOMETRY + 'space units: "inch" "inch" "inch"\n' if make is nrrd else PLACE + "DistanceUnits = inch\n"
    )
    with pytest.raises(ScanError, match="units"):
        read_scan(make(tmp_path, fields))


def test_an_nrrd_with_volumes_along_its_first_axis(tmp_path: Path) -> None:
    both = np.stack([VOXELS, VOXELS + 7])
    fields = "kinds: list domain domain domain\n" + GEOMETRY.replace("directions: ", "directions: none ")
    scan = read_scan(nrrd(tmp_path, fields, "gzip", data=both.tobytes(order="F"), sizes=f"2 {SIZES}"))
    assert is_the_scan(scan)
    assert any("2 volumes" in note for note in scan.notes)


def test_an_nrrd_with_volumes_along_its_last_axis(tmp_path: Path) -> None:
    both = np.stack([VOXELS, VOXELS + 7], axis=-1)
    fields = "kinds: domain domain domain time\n" + GEOMETRY.replace(DIRECTIONS, DIRECTIONS + " none")
    scan = read_scan(nrrd(tmp_path, fields, "gzip", data=both.tobytes(order="F"), sizes=f"{SIZES} 2"))
    assert is_the_scan(scan)
    assert any("2 volumes" in note for note in scan.notes)


def test_a_metaimage_with_what_itk_adds_of_another_format(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(VOXELS, ras_affine()), tmp_path / "s.nii")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "s.nii")), str(tmp_path / "s.mhd"))
    assert b"dim[0] =" in (tmp_path / "s.mhd").read_bytes()
    scan = read_scan(tmp_path / "s.mhd")
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    np.testing.assert_allclose(scan.affine, ras_affine(), atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_oblique_scans_are_read_as_itk_writes_them(
    ending: str, detached: bool, packed: bool, tmp_path: Path
) -> None:
    image = sitk.GetImageFromArray(VOXELS.T)
    image.SetSpacing((0.8, 1.1, 2.5))
    image.SetOrigin((-20.0, 31.0, -55.5))
    image.SetDirection(tilted().T.ravel())
    path = tmp_path / f"s.{'nhdr' if detached and ending == 'nrrd' else 'mhd' if detached else ending}"
    sitk.WriteImage(image, str(path), useCompression=packed)
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    np.testing.assert_allclose(scan.affine, ras_affine(tilted()), atol=1e-6)
    assert scan.notes == ()


@pytest.mark.parametrize("name", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
def test_metaimage_byte_orders(name: str, tmp_path: Path) -> None:
    data = VOXELS.astype(">i2").tobytes(order="F")
    assert is_the_scan(read_scan(meta(tmp_path, PLACE + f"{name} = True\n", data=data)))


def test_metaimage_as_text_and_of_several_volumes(tmp_path: Path) -> None:
    text = " ".join(map(str, VOXELS.ravel(order="F"))).encode()
    assert is_the_scan(read_scan(meta(tmp_path, PLACE + "BinaryData = False\n", data=text)))
    both = np.stack([VOXELS, VOXELS + 7], axis=-1).tobytes(order="F")
    place = "TransformMatrix = 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1\nOffset = -20 31 -55.5 0\n"
    place += "ElementSpacing = 0.8 1.1 2.5 1\n"
    scan = read_scan(meta(tmp_path, place, data=both, sizes=f"{SIZES} 2"))
    assert is_the_scan(scan)
    assert any("2 volumes" in note for note in scan.notes)


def test_a_metaimage_without_its_packed_size_is_read_all_the_same(tmp_path: Path) -> None:
    data = zlib.compress(VOXELS.tobytes(order="F"))
    assert is_the_scan(read_scan(meta(tmp_path, PLACE + "CompressedData = True\n", data=data)))


@pytest.mark.parametrize(
    ("told", "cautious"), [("RAI", False), ("LPS", False), ("LPI", True), ("???", False)]
)
def test_a_metaimage_that_contradicts_itself_says_so(told: str, cautious: bool, tmp_path: Path) -> None:
    scan = read_scan(meta(tmp_path, PLACE + f"AnatomicalOrientation = {told}\n"))
    assert is_the_scan(scan), "the matrix decides"
    assert any(isinstance(note, Caution) for note in scan.notes) == cautious


def test_a_data_file_with_a_percent_sign_in_its_name(tmp_path: Path) -> None:
    path = meta(tmp_path)
    header, data = path.read_bytes().split(b"LOCAL\n", 1)
    (tmp_path / "BestDiast 77 %.raw").write_bytes(data)
    (tmp_path / "s.mhd").write_bytes(header + b"BestDiast 77 %.raw\n")
    assert is_the_scan(read_scan(tmp_path / "s.mhd"))


@pytest.mark.parametrize("doubled", ["DimSize = 4 4 4\n", "dimsize = 4 4 4\n"])
def test_a_field_that_stands_twice_is_refused(doubled: str, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="twice"):
        read_scan(meta(tmp_path, PLACE + doubled))
    with pytest.raises(ScanError, match="twice"):
        read_scan(nrrd(tmp_path, GEOMETRY + "Sizes: 4 4 4\n"))


# --- NIfTI


def nifti(folder: Path, name: str = "s.nii", **codes: int) -> Path:
    image = nib.Nifti1Image(VOXELS, ras_affine())
    image.header.set_xyzt_units("mm")
    image.set_sform(ras_affine(), codes.get("sform", 1))
    image.set_qform(ras_affine(), codes.get("qform", 1))
    nib.save(image, folder / name)
    return folder / name


def patched(path: Path, offset: int, kind: str, *values: float) -> Path:
    raw = bytearray(path.read_bytes())
    struct.pack_into("<" + kind, raw, offset, *values)
    path.write_bytes(raw)
    return path


def test_qform_and_sform_that_contradict_each_other_say_so(tmp_path: Path) -> None:
    mirrored = np.diag([-1.0, 1, 1, 1]) @ ras_affine()
    path = nifti(tmp_path)
    scan = read_scan(patched(path, 280, "12f", *mirrored[:3].ravel()))
    np.testing.assert_allclose(scan.affine, mirrored, rtol=1e-6)
    assert any(isinstance(note, Caution) and "left and right" in note for note in scan.notes)


def test_an_sform_that_was_never_filled_in_gives_way_to_the_qform(tmp_path: Path) -> None:
    scan = read_scan(patched(nifti(tmp_path), 280, "12f", *[0.0] * 12))
    np.testing.assert_allclose(scan.affine, ras_affine(), rtol=1e-5)


def test_a_rounded_quaternion_and_a_negative_voxel_size_are_slips(tmp_path: Path) -> None:
    path = nifti(tmp_path, sform=0)
    b, c, d = struct.unpack_from("<3f", path.read_bytes(), 256)
    length = np.sqrt(b * b + c * c + d * d)
    scan = read_scan(patched(path, 256, "3f", *(np.array([b, c, d]) / length * 1.0000004)))
    np.testing.assert_allclose(scan.affine, ras_affine(), atol=1e-4)
    scan = read_scan(patched(nifti(tmp_path), 84, "f", -1.1))
    np.testing.assert_allclose(scan.affine, ras_affine(), rtol=1e-6)


def test_compression_is_seen_in_the_file_and_not_in_its_name(tmp_path: Path) -> None:
    packed, plain = nifti(tmp_path, "a.nii.gz"), nifti(tmp_path, "b.nii")
    np.testing.assert_array_equal(read_scan(packed.rename(tmp_path / "c.nii")).voxels, VOXELS)
    np.testing.assert_array_equal(read_scan(plain.rename(tmp_path / "d.nii.gz")).voxels, VOXELS)


def test_a_pair_of_header_and_image(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(VOXELS, ras_affine()), tmp_path / "s.img")
    for given in (tmp_path / "s.hdr", [tmp_path / "s.img", tmp_path / "s.hdr"]):
        np.testing.assert_array_equal(read_scan(given).voxels, VOXELS)


def test_gzip_members_and_padding(tmp_path: Path) -> None:
    raw = nifti(tmp_path).read_bytes()
    path = tmp_path / "m.nii.gz"
    path.write_bytes(gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]) + bytes(512))
    np.testing.assert_array_equal(read_scan(path).voxels, VOXELS)


def test_a_sheared_scan_says_how_far_it_leans(tmp_path: Path) -> None:
    affine = ras_affine()
    affine[1, 2] = 2.5 * np.tan(np.radians(18))
    image = nib.Nifti1Image(VOXELS, affine)
    nib.save(image, tmp_path / "s.nii")
    assert any("18 degrees" in note for note in read_scan(tmp_path / "s.nii").notes)


def test_a_name_of_thousands_of_letters_is_cut(tmp_path: Path) -> None:
    path = nifti(tmp_path, "x" * 200 + ".nii")
    assert len(read_scan(path).name) <= 64
