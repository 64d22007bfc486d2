"""NRRD: .nrrd, and .nhdr with its data file (teem.sourceforge.net/nrrd/format.html)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mst.errors import ScanError
from mst.scans.checks import check_count, check_shape
from mst.scans.headers import (
    LEFT_AND_RIGHT,
    MAX_HEADER,
    NO_SPACING,
    UNITS_MM,
    data_file,
    numbers,
    whole_numbers,
)
from mst.scans.rawdata import ByteStream, Packing, check_promise, cut_off, read_text_volume, read_volume
from mst.scans.scan import Caution, Scan, stem

TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(
        ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"
    ),
    "float": "f4",
    "double": "f8",
}
PACKINGS: dict[str, Packing] = {
    "raw": "none",
    **dict.fromkeys(("gzip", "gz"), "deflate"),
    **dict.fromkeys(("bzip2", "bz2"), "bzip2"),
}
TEXT = ("ascii", "text", "txt")
# Which way the file's axes point, as signs that turn its coordinates to right, front and head.
SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
LPS = (-1, -1, 1)  # taken where a file does not say
SPATIAL = ("domain", "space", "")  # kinds of axes; "" and "???" say nothing
COLOURS = ("rgb", "rgba", "hsv", "xyz")


@dataclass(frozen=True)
class NrrdHeader:
    """A header's fields, and where its data begin.

    Attributes:
        fields: by their names in lower case without spaces ("datafile"); key/value pairs are left out.
        size: bytes of the header, with the empty line that ends it.
    """

    fields: dict[str, str] = field(default_factory=dict)
    size: int = 0

    @property
    def data_file(self) -> str:
        """The name of a detached header's data file; "" where the data follow the header."""
        return self.fields.get("datafile", "")


def read_header(path: Path) -> NrrdHeader:
    """Reads an NRRD header once, line by line.

    Raises:
        ScanError: it is none, a line is neither field nor comment, or a field stands there twice.
    """
    with path.open("rb") as file:
        if not file.read(4) == b"NRRD":
            raise ScanError(f"{path.name} is not an NRRD file, although its name says so.")
        file.seek(0)
        file.readline(64)
        fields: dict[str, str] = {}
        while True:
            line = file.readline(MAX_HEADER)
            if file.tell() > MAX_HEADER:
                raise ScanError(f"{path.name} has a header that is too long; export it again.")
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            # An attached header ends with an empty line, a detached one may end with the file.
            if not text:
                break
            if text.startswith("#"):
                continue
            key, colon, value = text.partition(":")
            if not colon:
                raise ScanError(f"{path.name} is damaged: a line of its header cannot be understood.")
            if value.startswith("="):
                continue  # a key/value pair, which may hold anything
            key = "".join(key.split()).lower()
            if key in fields:
                raise ScanError(f"{path.name} is damaged: its header gives {key} twice; export it again.")
            fields[key] = value.strip()
            if key == "datafile" and value.split()[:1] == ["LIST"]:
                break  # names of files follow
        return NrrdHeader(fields, file.tell())


def read_nrrd(path: Path, at_hand: Sequence[Path] = ()) -> Scan:
    """Reads an NRRD volume; of several, the first.

    Args:
        path: the file or the header.
        at_hand: the other files of the upload, among which a header's data file is looked for.

    Raises:
        ScanError: it is damaged, or no scalar volume.
    """
    header = read_header(path)
    fields, name = header.fields, path.name
    for needed in ("dimension", "type", "sizes", "encoding"):
        if needed not in fields:
            raise ScanError(f"{name} is damaged: its header does not give its {needed}; export it again.")
    (dimension,) = whole_numbers(name, "dimension", fields["dimension"], 1)
    if dimension > 16:
        raise ScanError(f"{name} is damaged: its header's dimension cannot be understood; export it again.")
    sizes = whole_numbers(name, "sizes", fields["sizes"], dimension)
    kinds = fields.get("kinds", "").lower().replace("???", "").split() if "kinds" in fields else []
    spatial, components = _axes(name, sizes, kinds, _directions(name, fields, dimension))
    shape = [sizes[axis] for axis in spatial] if len(spatial) == 3 else sizes
    check_count(name, shape)
    check_shape(name, shape)
    repeats = int(np.prod(sizes, dtype=object)) // int(np.prod(shape[:3], dtype=object))
    affine, notes = _place(name, fields, dimension, spatial)
    if repeats > 1:
        notes.insert(0, f"The file holds {repeats} volumes (4D); the first one was read.")
    voxels = _voxels(path, header, at_hand, shape, repeats, components)
    return Scan(voxels, affine, name=stem(path.name), notes=tuple(notes))


def _axes(
    name: str, sizes: list[int], kinds: list[str], directions: list[list[float] | None] | None
) -> tuple[list[int], int]:
    """(the three axes of space, numbers at each voxel before the next voxel).

    Axes that are not of space may come before or after them: a list of volumes, times, colours.
    """
    axes = list(range(len(sizes)))
    if directions is not None and any(d is None for d in directions):
        space = [axis for axis in axes if directions[axis] is not None]
    elif len(kinds) == len(sizes) and any(kind not in SPATIAL for kind in kinds):
        space = [axis for axis in axes if kinds[axis] in SPATIAL]
    else:
        space = axes[:3]
    others = [axis for axis in axes if axis not in space]
    named = [kinds[axis] if axis < len(kinds) else "" for axis in others]
    if any(kind.split("-")[0] in COLOURS for kind in named if kind):
        raise ScanError(f"{name} is a colour (RGB) image; a scan with one grey value a voxel is needed.")
    if any("complex" in kind for kind in named):
        raise ScanError(f"{name} holds complex numbers; export its magnitude.")
    if any(
        sizes[axis] > 1 and ("vector" in kind or "matrix" in kind)
        for axis, kind in zip(others, named, strict=True)
    ):
        raise ScanError(f"{name} is a colour (RGB) or vector image; one grey value a voxel is needed.")
    if len(space) != 3 or space != list(range(space[0], space[0] + 3)):
        if len(space) < 3 or sum(n > 1 for n in sizes) < 3:
            check_shape(name, sizes)
            raise ScanError(f"{name} is a 2D image; a 3D scan with several slices is needed.")
        raise ScanError(f"{name} has axes in an order that is not read; save it as one 3D scan.")
    before = int(np.prod([sizes[axis] for axis in range(space[0])], dtype=object))
    if before > 1 and not any(named):
        raise ScanError(f"{name} is a colour (RGB) or vector image; one grey value a voxel is needed.")
    return space, before


def _directions(name: str, fields: dict[str, str], dimension: int) -> list[list[float] | None] | None:
    """A vector for each axis, None for one that is not of space; None where the header gives none at all."""
    text = fields.get("spacedirections")
    if text is None:
        return None
    vectors: list[list[float] | None] = []
    rest = text.strip()
    while rest and len(vectors) <= dimension:
        if rest[:4].lower() == "none":
            vectors.append(None)
            rest = rest[4:].lstrip()
            continue
        inside, closing, after = rest.removeprefix("(").partition(")")
        if not rest.startswith("(") or not closing:
            break
        vectors.append(numbers(name, "space directions", inside.replace(",", " "), 3))
        rest = after.lstrip()
    if rest or len(vectors) != dimension:
        raise ScanError(
            f"{name} is damaged: its header's space directions cannot be understood; export it again."
        )
    return vectors


def _place(
    name: str, fields: dict[str, str], dimension: int, spatial: list[int]
) -> tuple[np.ndarray, list[str]]:
    """The affine, voxel index -> RAS millimetres, and what had to be assumed for it."""
    notes: list[str] = []
    directions = _directions(name, fields, dimension)
    space = fields.get("space", "").lower().removesuffix("-time").removesuffix("t")
    signs = SPACES.get(space)
    own = np.eye(4)
    if directions is not None:
        for column, axis in enumerate(spatial):
            own[:3, column] = directions[axis] or [0, 0, 0]
        if "spaceorigin" in fields:
            origin = fields["spaceorigin"].strip().removeprefix("(").removesuffix(")")
            own[:3, 3] = numbers(name, "space origin", origin.replace(",", " "), 3)
        scale = _units(name, fields.get("spaceunits", ""), notes)
    else:
        spacings = fields.get("spacings", "").split()
        if len(spacings) == dimension:
            words = " ".join(spacings[axis] for axis in spatial)
            if "nan" in words.lower():
                notes.append(Caution(NO_SPACING))
            else:
                own[:3, :3] = np.diag(np.abs(numbers(name, "spacings", words, 3)))
        elif spacings:
            numbers(name, "spacings", fields["spacings"], dimension)
        else:
            notes.append(Caution(NO_SPACING))
        scale = _units(name, fields.get("units", ""), notes)
        signs = None
    if np.any(np.sqrt((own[:3, :3] ** 2).sum(axis=0)) == 0):
        raise ScanError(f"{name} gives a voxel size of zero; export it again with its spacing.")
    if signs is None:
        notes.append(LEFT_AND_RIGHT)
    own[:3] *= scale
    return np.diag([*(signs or LPS), 1.0]) @ own, notes


def _units(name: str, text: str, notes: list[str]) -> float:
    """Millimetres a unit, from units in quotation marks, one an axis."""
    units = {unit.strip().lower() for unit in text.split('"')[1::2]} - {
        "",
        "???",
        "none",
        "intensity",
        "s",
        "ms",
    }
    if not units:
        return 1.0
    scales = {UNITS_MM.get(unit) for unit in units}
    if len(scales) > 1 or None in scales:
        raise ScanError(f"{name} gives lengths in units that are not known; export it in millimetres.")
    (scale,) = scales
    assert scale is not None
    if scale != 1.0:
        notes.append(
            f"The file's lengths are in {', '.join(sorted(units))}; they were turned to millimetres."
        )
    return scale


def _voxels(
    path: Path, header: NrrdHeader, at_hand: Sequence[Path], shape: list[int], repeats: int, components: int
) -> np.ndarray:
    fields, name = header.fields, path.name
    source, offset = path, header.size
    if header.data_file:
        if header.data_file.split()[0].upper() == "LIST":
            raise ScanError(f"{name} spreads its data over many files; save it as one file.")
        source, offset = data_file(path, header.data_file, at_hand), 0
    encoding = fields["encoding"].lower()
    if encoding not in PACKINGS and encoding not in TEXT:
        raise ScanError(
            f"{name} has its data encoded as {encoding[:40]!r}, which is not read; save it as raw or gzip."
        )
    kind = TYPES.get(" ".join(fields["type"].lower().split()))
    if kind is None:
        raise ScanError(f"{name} holds voxels of a type that is not read; save it as a scan of numbers.")
    packing = PACKINGS.get(encoding, "none")
    order = fields.get("endian", "little").lower()
    if order not in ("little", "big"):
        raise ScanError(f"{name} is damaged: its header's endian cannot be understood; export it again.")
    dtype = np.dtype(("<" if order == "little" else ">") + kind)
    if fields.get("lineskip", "0") != "0":
        raise ScanError(f"{name} skips lines before its data, which is not read; save it again without.")
    count = int(np.prod(shape[:3], dtype=np.int64))
    skip = fields.get("byteskip", "0")
    promised = count * repeats * (1 if encoding in TEXT else dtype.itemsize)
    if skip == "-1" and packing == "none":  # the data are the file's last bytes
        offset, skip = max(source.stat().st_size - promised, 0), "0"
    if not skip.isdecimal() or len(skip) > 12:
        raise ScanError(f"{name} is damaged: its header's byte skip cannot be understood; export it again.")
    check_promise(source, name, offset, promised, packing)
    with ByteStream(source, packing, offset, name) as stream:
        stream.skip(int(skip))
        if encoding in TEXT:
            size = source.stat().st_size - offset - int(skip)
            if size < count:
                raise cut_off(name)
            return read_text_volume(stream, size, shape[:3], components)
        voxels = read_volume(stream, dtype, shape, components=components)
        stream.finish(count * (repeats - 1) * dtype.itemsize)
        return voxels
