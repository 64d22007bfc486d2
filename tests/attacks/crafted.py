"""Files that try to make the server open others, crash, or give away what lay in memory.

Each maker writes one upload into a folder; `target` is a file of the server that it is after.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (16, 16, 16)
Maker = Callable[[Path, Path], list[Path]]
META = "ObjectType = Image\nNDims = 3\nDimSize = 16 16 16\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 16 16 16\nspacings: 1 1 1\nencoding: raw\n"


def _text(name: str, text: Callable[[Path], str], tail: bytes = bytes(4096)) -> Maker:
    def make(folder: Path, target: Path) -> list[Path]:
        path = folder / name
        path.write_bytes(text(target).encode("latin-1") + tail)
        return [path]

    return make


def _meta(name: str, *lines: str, first: str = "", tail: bytes = bytes(4096)) -> Maker:
    return _text(name, lambda target: first + META + "\n".join(lines).format(target=target) + "\n", tail)


def _nrrd(name: str, *lines: str, first: str = "", tail: bytes = bytes(4096)) -> Maker:
    magic, rest = NRRD.split("\n", 1)
    return _text(
        name,
        lambda target: f"{magic}\n{first}{rest}" + "\n".join(lines).format(target=target) + "\n\n",
        tail,
    )


def _hdf5(name: str) -> Maker:
    """HDF5's signature 512 bytes into a file, where ITK looks for it, with a data set kept in another file."""

    def make(folder: Path, target: Path) -> list[Path]:
        path = folder / name
        start = (NRRD if "n" in name[-4:-2] else META).encode()
        path.write_bytes(start.ljust(512, b"\n") + b"\x89HDF\r\n\x1a\n" + str(target).encode() + bytes(4096))
        return [path]

    return make


def _link(name: str) -> Maker:
    def make(folder: Path, target: Path) -> list[Path]:
        header = folder / name
        (folder / "data.raw").symlink_to(target)
        text = (
            META + "ElementDataFile = data.raw\n"
            if name.endswith("mhd")
            else NRRD + "data file: data.raw\n\n"
        )
        header.write_text(text)
        return [header]

    return make


# Uploads that are after a file of the server. All must be refused, or read as what lies in them, never as the file.
READS_OTHERS: dict[str, Maker] = {
    "mhd: absolute path": _meta("a.mhd", "ElementDataFile = {target}"),
    "mhd: Comment before, LOCAL after": _meta(
        "a.mhd", "Comment = ElementDataFile = LOCAL", "ElementDataFile = {target}", "ElementDataFile = LOCAL"
    ),
    "mha: Comment in front of the path": _meta(
        "a.mha", "Comment =", "ElementDataFile = {target}", "ElementDataFile = LOCAL"
    ),
    "mhd: small letters first": _meta("a.mhd", "elementdatafile = LOCAL", "ElementDataFile = {target}"),
    "mha: small letters first": _meta("a.mha", "elementdatafile = LOCAL", "ElementDataFile = {target}"),
    "mhd: colon": _meta("a.mhd", "ElementDataFile: {target}", "ElementDataFile = LOCAL"),
    "mhd: path, then LOCAL": _meta("a.mhd", "ElementDataFile = {target}", "ElementDataFile = LOCAL"),
    "mhd: carriage return": _meta(
        "a.mhd", "Comment = x\rElementDataFile = {target}", "ElementDataFile = LOCAL"
    ),
    "mhd: upwards": _meta("a.mhd", "ElementDataFile = ../../../../../../../../..{target}"),
    "mhd: dot slash": _meta("a.mhd", "ElementDataFile = ./{target}"),
    "mhd: LIST": _meta("a.mhd", "ElementDataFile = LIST", "{target}"),
    "mhd: LIST of 2D": _meta("a.mhd", "ElementDataFile = LIST 2", "{target}"),
    "mhd: pattern": _meta("a.mhd", "ElementDataFile = {target}%s 1 1 1"),
    "mha: 64 KB of comments": _meta(
        "a.mha",
        "ElementDataFile = {target}",
        "ElementDataFile = LOCAL",
        first="Comment = " + "x" * 65536 + "\n",
    ),
    "nhdr: absolute path": _nrrd("a.nhdr", "data file: {target}"),
    "nhdr: key/value LOCAL first": _nrrd("a.nhdr", "datafile:=LOCAL", "data file: {target}"),
    "nhdr: empty content": _nrrd("a.nhdr", "content:", "data file: {target}"),
    "nrrd: empty content": _nrrd("a.nrrd", "content:", "data file: {target}"),
    "nhdr: 64 KB of comments": _nrrd("a.nhdr", "data file: {target}", first="# " + "x" * 65536 + "\n"),
    "nhdr: LIST": _nrrd("a.nhdr", "data file: LIST", "{target}"),
    "nhdr: list in small letters": _nrrd("a.nhdr", "data file: list", "{target}"),
    "nhdr: LIST behind datafile": _nrrd("a.nhdr", "datafile: LIST 3", "{target}"),
    "nhdr: pattern": _nrrd("a.nhdr", "data file: {target}%d 1 1 1"),
    "nhdr: carriage return": _nrrd("a.nhdr", "content: x\rdata file: {target}"),
    "nhdr: carriage return before the name": _nrrd("a.nhdr", "\rdata file: {target}"),
    "nhdr: twice": _nrrd("a.nhdr", "data file: a.nhdr", "datafile: {target}"),
    "nhdr: upwards": _nrrd("a.nhdr", "data file: ../../../../../../../../..{target}"),
    "nrrd named mha": _nrrd("a.mha", "data file: {target}"),
    "mhd named nrrd": _meta("a.nrrd", "ElementDataFile = {target}"),
    "HDF5 in mha": _hdf5("a.mha"),
    "HDF5 in mhd": _hdf5("a.mhd"),
    "HDF5 in nrrd": _hdf5("a.nrrd"),
    "HDF5 in nhdr": _hdf5("a.nhdr"),
}
# The same on a person's own machine, where a link may lie beside the header: inside an upload there is none.
LINKS: dict[str, Maker] = {"mhd: link": _link("a.mhd"), "nhdr: link": _link("a.nhdr")}


def _bad_dimension(folder: Path, target: Path) -> list[Path]:
    path = folder / "a.nrrd"
    path.write_bytes(
        b"NRRD0004\ntype: uchar\ndimension: 16\nsizes:" + b" 2" * 16 + b"\nencoding: raw\n\n" + bytes(99)
    )
    return [path]


def _nifti(change: Callable[[bytearray], None], name: str = "a.nii") -> Maker:
    def make(folder: Path, target: Path) -> list[Path]:
        voxels = np.arange(4096, dtype=np.int16).reshape(SHAPE)
        raw = bytearray(nib.Nifti1Image(voxels, np.eye(4)).to_bytes())
        change(raw)
        path = folder / name
        path.write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
        return [path]

    return make


def _set(offset: int, kind: str, *values: float) -> Callable[[bytearray], None]:
    return lambda raw: struct.pack_into("<" + kind, raw, offset, *values)


def _infinite_quaternion(raw: bytearray) -> None:
    struct.pack_into("<hh", raw, 252, 1, 0)
    struct.pack_into("<3f", raw, 256, *[float("inf")] * 3)


def _changed_meta(before: str, after: str) -> Maker:
    return _text("a.mha", lambda target: META.replace(before, after) + "ElementDataFile = LOCAL\n")


# Uploads that took the process down, or held it for minutes. Each is one sentence, or is read.
CRASHES: dict[str, Maker] = {
    "nrrd: 16 dimensions": _bad_dimension,
    "nrrd: a field of 2 KB": _nrrd("a.nrrd", "kinds: " + "x" * 2048),
    "nrrd: a number of 5,000 digits": _nrrd("a.nrrd", "byte skip: " + "9" * 5000),
    "nrrd: two runs of spaces": _text(
        "a.nrrd", lambda target: "NRRD0004\n" + "x" + " " * 32000 + "\n" + " " * 32000 + "x\n\n"
    ),
    "nrrd: no line end": _text("a.nrrd", lambda target: "NRRD0004\n" + "x" * 3_000_000),
    "nrrd: negative sizes": _text("a.nrrd", lambda target: NRRD.replace("16 16 16", "-16 16 16") + "\n"),
    "mha: a name of 300 letters": _meta("a.mha", "Name = " + "x" * 300, "ElementDataFile = LOCAL"),
    "mha: NDims -1": _text(
        "a.mha", lambda target: META.replace("NDims = 3", "NDims = -1") + "ElementDataFile = LOCAL\n"
    ),
    "mha: NDims 99": _text(
        "a.mha", lambda target: META.replace("NDims = 3", "NDims = 99") + "ElementDataFile = LOCAL\n"
    ),
    "mhd: %s behind LOCAL": _meta("a.mhd", "elementdatafile = LOCAL", "ElementDataFile = %s%s%s%n 1 9 1"),
    "mha: two runs of spaces": _meta(
        "a.mha", "a" + " " * 32000 + "=" + " " * 32000 + "b", "ElementDataFile = LOCAL"
    ),
    "mha: NaN spacing": _changed_meta("= 1 1 1", "= nan 1 1"),
    "mha: infinite matrix": _meta(
        "a.mha", "TransformMatrix = inf 0 0 0 1 0 0 0 1", "ElementDataFile = LOCAL"
    ),
    "nii: offset of 1e30": _nifti(_set(108, "f", 1e30)),
    "nii: offset that is no number": _nifti(_set(108, "f", float("nan"))),
    "nii: negative sizes": _nifti(_set(40, "8h", 3, -16, 16, 16, 1, 1, 1, 1)),
    "nii: 7 dimensions of 32,767": _nifti(_set(40, "8h", 7, *[32767] * 7)),
    "nii: type 9999": _nifti(_set(70, "h", 9999)),
    "nii: quaternion of infinity": _nifti(_infinite_quaternion),
    "nii: slope of infinity": _nifti(_set(112, "f", float("inf"))),
}


def damaged_mha(folder: Path) -> Path:
    """A compressed .mha in whose stream a hundred bytes are lost to zeros: its checksum is wrong, or it ends early."""
    voxels = np.random.default_rng(3).integers(0, 256, 4096, np.uint8).tobytes()
    packed = bytearray(zlib.compress(voxels))
    packed[1500:1600] = bytes(100)
    path = folder / "a.mha"
    path.write_bytes((META + "CompressedData = True\nElementDataFile = LOCAL\n").encode() + packed)
    return path
