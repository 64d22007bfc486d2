"""MetaImage: .mha, and .mhd with its data file (itk.org/Wiki/ITK/MetaIO/Documentation)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from mst.errors import ScanError
from mst.scans.checks import check_count, check_shape
from mst.scans.headers import MAX_HEADER, NO_SPACING, UNITS_MM, data_file, numbers, whole_numbers
from mst.scans.rawdata import ByteStream, Packing, check_promise, read_text_volume, read_volume
from mst.scans.scan import Caution, Scan, stem

TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # as ITK writes and reads it
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR"}
# Names of one field, the one that counts first.
BIG_ENDIAN = ("binarydatabyteordermsb", "elementbyteordermsb")
MATRIX = ("transformmatrix", "rotation", "orientation")
OFFSET = ("offset", "position", "origin")
SPACING = ("elementspacing", "elementsize")
LOCAL = "LOCAL"


def read_header(path: Path) -> tuple[dict[str, str], int]:
    """Reads a MetaImage header once, line by line, to the field ElementDataFile, which ends it.

    Returns:
        (fields by their names in lower case, bytes of the header).

    Raises:
        ScanError: it is none, or a field stands there twice.
    """
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while "elementdatafile" not in fields:
            line = file.readline(MAX_HEADER)
            key, equals, value = line.decode("latin-1").partition("=")
            key = key.strip().lower()
            # ITK adds what it knew of another format, under names such as "dim[0]".
            plain = key.isascii() and key.isprintable() and key
            if not line or not equals or not plain or file.tell() > MAX_HEADER:
                raise ScanError(f"{path.name} is not a MetaImage file, although its name says so.")
            if key in fields:
                raise ScanError(f"{path.name} is damaged: its header gives {key} twice; export it again.")
            fields[key] = value.strip()
        return fields, file.tell()


def read_metaimage(path: Path, at_hand: Sequence[Path] = ()) -> Scan:
    """Reads a MetaImage volume; of several, the first.

    Args:
        path: the file or the header.
        at_hand: the other files of the upload, among which a header's data file is looked for.

    Raises:
        ScanError: it is damaged, or no scalar volume.
    """
    fields, size = read_header(path)
    name = path.name
    for needed, words in (("dimsize", "size"), ("elementtype", "type of voxels")):
        if needed not in fields:
            raise ScanError(f"{name} is damaged: its header does not give its {words}; export it again.")
    sizes = whole_numbers(name, "DimSize", fields["dimsize"])
    dimension = len(sizes)
    if dimension > 16 or fields.get("ndims", str(dimension)) != str(dimension):
        raise ScanError(f"{name} is damaged: its header's NDims cannot be understood; export it again.")
    shape = sizes[:3]
    check_count(name, shape)
    channels = whole_numbers(name, "ElementNumberOfChannels", fields.get("elementnumberofchannels", "1"), 1)[
        0
    ]
    kind = fields["elementtype"].upper()
    if channels > 1 or kind.endswith("_ARRAY"):
        raise ScanError(f"{name} is a colour (RGB) or vector image; one grey value a voxel is needed.")
    check_shape(name, sizes)
    if kind not in TYPES:
        raise ScanError(f"{name} holds voxels of a type that is not read; save it as a scan of numbers.")
    affine, notes = _place(name, fields, dimension)
    repeats = int(np.prod(sizes[3:], dtype=object))
    if repeats > 1:
        notes.insert(0, f"The file holds {repeats} volumes (4D); the first one was read.")
    big = _first(fields, BIG_ENDIAN).lower() == "true"
    dtype = np.dtype((">" if big else "<") + TYPES[kind])
    voxels = _voxels(path, fields, size, at_hand, dtype, shape, repeats)
    modality = MODALITIES.get(fields.get("modality", "").upper())
    return Scan(voxels, affine, modality=modality, name=stem(name), notes=tuple(notes))


def _place(name: str, fields: dict[str, str], dimension: int) -> tuple[np.ndarray, list[str]]:
    """The affine, voxel index -> RAS millimetres, and what had to be assumed for it."""
    notes: list[str] = []
    spacing = np.ones(3)
    if text := _first(fields, SPACING):
        spacing = np.array(numbers(name, "ElementSpacing", text, dimension)[:3])
    else:
        notes.append(Caution(NO_SPACING))
    if np.any(spacing == 0):
        raise ScanError(f"{name} gives a voxel size of zero; export it again with its spacing.")
    matrix = np.eye(3)
    if text := _first(fields, MATRIX):
        # A row of the file is the direction of an axis.
        whole = np.array(numbers(name, "TransformMatrix", text, dimension**2)).reshape(dimension, dimension)
        matrix = whole[:3, :3].T
    lps = np.eye(4)
    lps[:3, :3] = matrix * spacing
    if text := _first(fields, OFFSET):
        lps[:3, 3] = numbers(name, "Offset", text, dimension)[:3]
    unit = fields.get("distanceunits", "").lower()
    scale = 1.0 if unit in ("?", "") else UNITS_MM.get(unit)
    if scale is None:
        raise ScanError(f"{name} gives lengths in units that are not known; export it in millimetres.")
    lps[:3] *= scale
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    told = fields.get("anatomicalorientation", "").upper()
    if len(told) >= 3 and set(told[:3]) <= set("RLAPIS") and abs(np.linalg.det(affine[:3, :3])) > 0:
        # Letters say where an axis comes from; some programs write where it goes to, which contradicts nothing.
        towards = "".join(nib.orientations.aff2axcodes(affine))
        if told[:3] not in (_opposite(towards), towards):
            notes.append(
                Caution(
                    f"The file contradicts itself: AnatomicalOrientation {told[:3]} does not fit its TransformMatrix, "
                    "which was taken; left and right, or front and back, may be swapped."
                )
            )
    return affine, notes


def _voxels(
    path: Path,
    fields: dict[str, str],
    size: int,
    at_hand: Sequence[Path],
    dtype: np.dtype,
    shape: list[int],
    repeats: int,
) -> np.ndarray:
    name, named = path.name, fields["elementdatafile"]
    source, offset = path, size
    if named.upper() != LOCAL:
        if named.split() and named.split()[0].upper() == "LIST":
            raise ScanError(f"{name} spreads its data over many files; save it as one file.")
        source, offset = data_file(path, named, at_hand), 0
    count = int(np.prod(shape, dtype=np.int64))
    text = fields.get("binarydata", "true").lower() == "false"
    packed = fields.get("compresseddata", "false").lower() == "true"
    promised = count * repeats * (1 if text else dtype.itemsize)
    skip = fields.get("headersize", "0")
    if skip == "-1" and not packed:  # the data are the file's last bytes
        offset = max(source.stat().st_size - promised, offset)
    elif skip.isdecimal() and len(skip) <= 12:
        offset += int(skip) if source != path else 0
    else:
        raise ScanError(f"{name} is damaged: its header's HeaderSize cannot be understood; export it again.")
    packing: Packing = "deflate" if packed else "none"
    check_promise(source, name, offset, promised, packing)
    with ByteStream(source, packing, offset, name) as stream:
        if text:
            return read_text_volume(stream, source.stat().st_size - offset, shape)
        voxels = read_volume(stream, dtype, shape)
        stream.finish(count * (repeats - 1) * dtype.itemsize)
        return voxels


def _first(fields: dict[str, str], names: Sequence[str]) -> str:
    return next((fields[name] for name in names if fields.get(name)), "")


def _opposite(codes: str) -> str:
    return codes.translate(str.maketrans("RLAPIS", "LRPASI"))
