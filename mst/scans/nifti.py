"""NIfTI-1 and NIfTI-2: .nii, compressed or not (nifti.nimh.nih.gov)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from mst.errors import ScanError
from mst.scans.checks import check_count, check_shape
from mst.scans.headers import LEFT_AND_RIGHT, data_file
from mst.scans.rawdata import ByteStream, Packing, check_promise, cut_off, read_volume
from mst.scans.scan import Caution, Scan, stem, suffix

# nibabel would otherwise print to standard error beside the one sentence that a user gets.
nib.imageglobals.logger.setLevel(logging.CRITICAL)

GZIP = b"\x1f\x8b"
# Scanners' and programs' quaternions are rounded; nibabel's own bound refuses some that are a millionth off.
ROUNDING = 1e-3


class _Nifti1(nib.Nifti1Header):
    quaternion_threshold = ROUNDING  # type: ignore[assignment]


class _Nifti2(nib.Nifti2Header):
    quaternion_threshold = ROUNDING  # type: ignore[assignment]


# Size of the header as its first four bytes give it -> (its class, where the voxel size stands in it)
KINDS = {348: _Nifti1, 540: _Nifti2}


def read_nifti(path: Path, at_hand: Sequence[Path] = ()) -> Scan:
    """Reads a NIfTI volume; of several, the first.

    Args:
        path: the file, or the header of a pair .hdr and .img.
        at_hand: the other files of the upload, among which a header's data file is looked for.

    Raises:
        ScanError: it is damaged, or no scalar volume.
    """
    name = path.name
    packing = _packing(path)
    if packing == "none" and suffix(name) == ".nii.gz" and not _is_nifti(path):
        raise ScanError(f"{name} is not a compressed NIfTI file, although its name says so.")
    with ByteStream(path, packing, name=name) as stream:
        header = _header(stream)
        dtype, shape = header.get_data_dtype(), tuple(int(n) for n in header.get_data_shape())
        if dtype.fields:
            raise ScanError(f"{name} is a colour (RGB) image; a scan with one grey value a voxel is needed.")
        if dtype.kind == "c":
            raise ScanError(f"{name} holds complex numbers; export its magnitude.")
        if dtype.kind not in "iuf":
            raise ScanError(f"{name} holds voxels of a type that is not read; save it as a scan of numbers.")
        check_shape(name, shape)
        check_count(name, shape)
        repeats = max(int(np.prod(shape[3:], dtype=object)), 1)
        one = int(np.prod(shape[:3], dtype=np.int64)) * dtype.itemsize
        start = int(header.get_data_offset())
        affine, notes = _place(name, header)
        if repeats > 1:
            notes.insert(0, f"The file holds {repeats} volumes (4D); the first one was read.")
        slope, intercept = header.get_slope_inter()
    source = path
    if suffix(name) == ".hdr":
        source, packing = _image_of(path, at_hand)
    elif start < header.sizeof_hdr:
        raise ScanError(f"{name} is damaged: its header says that it holds the data; export it again.")
    check_promise(source, name, 0, start + one, packing)
    with ByteStream(source, packing, name=name) as stream:
        stream.skip(start)
        voxels = read_volume(
            stream,
            dtype,
            shape[:3],
            slope=1.0 if slope is None else float(slope),
            intercept=0.0 if intercept is None else float(intercept),
        )
        stream.finish(one * (repeats - 1))
    return Scan(voxels, affine, name=stem(name), notes=tuple(notes))


def write_nifti(volume: np.ndarray, affine: np.ndarray, path: str | Path) -> None:
    """Writes a volume [I, J, K] as float32 NIfTI in RAS millimetres."""
    nib.save(nifti_image(np.asarray(volume, np.float32), affine), path)


def nifti_image(volume: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A volume [I, J, K] as a NIfTI image of its own data type, in RAS millimetres."""
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    # A sheared affine (tilted gantry) has no quaternion: the nearest one is stored, and marked as unknown.
    rotation = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    orthogonal = np.allclose(rotation.T @ rotation, np.eye(3), atol=1e-4)
    image.set_qform(affine, code="scanner" if orthogonal else "unknown")
    return image


def _is_nifti(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    return any(int.from_bytes(start, order) in KINDS for order in ("little", "big"))


def _image_of(path: Path, at_hand: Sequence[Path]) -> tuple[Path, Packing]:
    """The data file of a pair's header, which has the header's name, and how it is packed."""
    for ending in (".img", ".IMG", ".img.gz"):
        try:
            source = data_file(path, stem(path.name) + ending, at_hand)
        except ScanError:
            continue
        return source, _packing(source)
    raise ScanError(
        f"{path.name} needs its data file {stem(path.name)}.img; upload both together, or as a zip."
    )


def _packing(path: Path) -> Packing:
    with path.open("rb") as file:
        return "deflate" if file.read(2) == GZIP else "none"


def _header(stream: ByteStream) -> nib.Nifti1Header:
    """The header at the start of a stream, which is then read to the header's end.

    Raises:
        ScanError: it is none, or its voxel size is zero, which nibabel would silently make a one.
    """
    name = stream.name
    not_nifti = ScanError(f"{name} is not a NIfTI file, although its name says so.")
    try:
        start = stream.read(4)
    except ScanError as error:
        raise (cut_off(name) if stream.packing != "none" else not_nifti) from error
    size, swapped = int.from_bytes(start, "little"), int.from_bytes(start, "big")
    kind = KINDS.get(size) or KINDS.get(swapped)
    if kind is None:
        raise not_nifti
    block = start + stream.read((size if size in KINDS else swapped) - 4)
    try:
        header = kind(block, endianness="<" if size in KINDS else ">", check=False)
        magic = bytes(header["magic"].tobytes())[:3]
        header.get_data_dtype()
    except (HeaderDataError, ValueError, KeyError) as error:
        raise not_nifti from error
    if magic not in ((b"ni1", b"ni2") if suffix(name) == ".hdr" else (b"n+1", b"n+2")):
        if suffix(name) == ".hdr":
            raise ScanError(
                f"{name} is the header of an Analyze pair, which does not say left and right; save the scan as NIfTI."
            )
        raise not_nifti
    zooms = np.array(header["pixdim"][1:4], float)
    if not np.isfinite(zooms).all() or np.any(zooms == 0):
        raise ScanError(f"{name} gives a voxel size of zero or less; export it again with its spacing.")
    return header


def _place(name: str, header: nib.Nifti1Header) -> tuple[np.ndarray, list[str]]:
    """The affine, voxel index -> RAS millimetres, and what had to be assumed for it.

    The sform counts before the qform, as in nibabel.
    """
    notes: list[str] = []
    sform = header.get_sform(coded=True)[0]
    try:
        # A negative voxel size is its writer's slip; nibabel refuses to make a qform of it.
        header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
        qform = header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        if sform is None:
            raise ScanError(
                f"{name} is damaged: its orientation cannot be understood; export it again."
            ) from error
        qform = None
    if sform is not None and not sform[:3, :3].any() and qform is not None:
        sform = None  # marked as valid, but never filled in
        notes.append("The file's sform is empty; its qform was taken.")
    if sform is not None and qform is not None and _codes(sform) != _codes(qform):
        notes.append(
            Caution(
                "The file contradicts itself about left and right, or front and back: its axes point to "
                f"{_codes(sform)} by its sform, which was taken, and to {_codes(qform)} by its qform."
            )
        )
    affine = sform if sform is not None else qform
    if affine is None:
        affine = header.get_base_affine()
        notes.append(LEFT_AND_RIGHT)
    affine = np.array(affine, float)
    affine[:3] *= {"meter": 1000.0, "micron": 0.001}.get(_unit(header), 1.0)
    return affine, notes


def _unit(header: nib.Nifti1Header) -> str:
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:
        return "unknown"


def _codes(affine: np.ndarray) -> str:
    return "".join(code or "?" for code in nib.orientations.aff2axcodes(affine))
