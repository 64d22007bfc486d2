"""One DICOM file: its header, what kind of object it is, and values read so that a wrong one does no harm."""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from mst.errors import ScanError

logging.getLogger("pydicom").setLevel(logging.CRITICAL)

PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}  # float, double float and whole numbers
MAX_HEADER = 32 * 1024**2  # bytes that a deflated header may unpack to
MAX_LETTERS = 64  # of a name that is shown; DICOM allows no more in a description
META_START = 132 + 12  # preamble, prefix and the element with the length of the file's meta information

# Objects that are no scans although they may hold a stack of pictures, by SOP class (PS3.4 B.5).
SEGMENTATION, STRUCTURES = "segmentation", "set of contours (RTSTRUCT)"
OBJECTS = {
    "1.2.840.10008.5.1.4.1.1.66.4": SEGMENTATION,
    "1.2.840.10008.5.1.4.1.1.66.7": SEGMENTATION,  # label map
    "1.2.840.10008.5.1.4.1.1.66.5": "surface segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "parametric map",
    "1.2.840.10008.5.1.4.1.1.481.1": "radiotherapy picture",
    "1.2.840.10008.5.1.4.1.1.481.2": "dose distribution",
    "1.2.840.10008.5.1.4.1.1.481.3": STRUCTURES,
}
BY_MODALITY = {"SEG": SEGMENTATION, "RTDOSE": "dose distribution", "RTSTRUCT": STRUCTURES}
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"


@dataclass(frozen=True, eq=False)
class DicomFile:
    """The header of a file.

    Attributes:
        path: of the file.
        header: everything before the pixels.
        whole: whether the pixels follow; an image without them was cut off.
    """

    path: Path
    header: Dataset
    whole: bool


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its content; files without the preamble count if they hold an object."""
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    # Without the preamble, the file starts with a group 0002 or 0008 tag, in either byte order.
    if start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    try:
        return "SOPClassUID" in read_header(path).header
    except Exception:  # whatever the library makes of something else
        return False


def read_header(path: Path) -> DicomFile:
    """Reads a file up to its pixels.

    Raises:
        Exception: of any kind, where the file is damaged.
    """
    with path.open("rb") as file:
        if _is_deflated(file):
            content, _ = _inflate(path, MAX_HEADER)
            header = _parsed(path, content, stop=lambda tag, vr, length: tag in PIXELS)
            return DicomFile(path, header, content.read(1) != b"")
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        return DicomFile(path, header, file.read(1) != b"")


def read_whole(path: Path, pixel_bytes: int) -> FileDataset:
    """Reads a file with its pixels.

    Args:
        path: of the file.
        pixel_bytes: that its header promises: no more is unpacked.

    Raises:
        ScanError: a deflated file unpacks to more than it says.
        Exception: of any kind, where the file is damaged.
    """
    with path.open("rb") as file:
        if not _is_deflated(file):
            return pydicom.dcmread(file, force=True)
    content, complete = _inflate(path, MAX_HEADER + pixel_bytes)
    if not complete:
        raise ScanError(
            f"The DICOM file {path.name} is cut off or unpacks to more than it says; export it again."
        )
    return _parsed(path, content)


def _is_deflated(file: BinaryIO) -> bool:
    start = file.read(1024)
    file.seek(0)
    return start[128:132] == b"DICM" and DeflatedExplicitVRLittleEndian.encode() in start


def _inflate(path: Path, limit: int) -> tuple[io.BytesIO, bool]:
    """At most so many bytes of a deflated file's data set, and whether that is all of it."""
    length = int(read_file_meta_info(path).FileMetaInformationGroupLength)
    with path.open("rb") as file:
        file.seek(META_START + length)
        unpack = zlib.decompressobj(-zlib.MAX_WBITS)
        content = io.BytesIO(unpack.decompress(file.read(), limit))
    return content, unpack.eof


def _parsed(
    path: Path, content: io.BytesIO, stop: Callable[[BaseTag, str | None, int], bool] | None = None
) -> FileDataset:
    dataset = read_dataset(content, is_implicit_VR=False, is_little_endian=True, stop_when=stop)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian  # what it is now
    return FileDataset(path, dataset, file_meta=meta, is_implicit_VR=False, is_little_endian=True)


def transfer_syntax(header: Dataset) -> UID:
    """How the pixels are stored; files without meta information tell by the way that they were read."""
    syntax = getattr(header, "file_meta", Dataset()).get("TransferSyntaxUID")
    if syntax:
        return UID(syntax)
    implicit, little = header.original_encoding
    names = {True: pydicom.uid.ImplicitVRLittleEndian, False: ExplicitVRLittleEndian}
    return names[implicit is not False] if little is not False else pydicom.uid.ExplicitVRBigEndian


def is_segmentation(header: Dataset) -> bool:
    """Whether an object is a DICOM Segmentation (SEG)."""
    return kind(header) == SEGMENTATION


def kind(header: Dataset) -> str | None:
    """What an object is that is never a scan: "segmentation", "dose distribution", ...; None for others."""
    by_class = OBJECTS.get(text(header, "SOPClassUID"))
    return by_class or BY_MODALITY.get(text(header, "Modality"))


def text(data: Dataset, keyword: str | int) -> str:
    """A value as one line; "" where there is none or it cannot be read."""
    try:
        value = _value(data, keyword)
        if value is None or isinstance(value, bytes):
            return ""
        parts = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
        return " ".join("\\".join(str(part) for part in parts).split())
    except Exception:  # the library's errors for wrong values are of many kinds
        return ""


def numbers(data: Dataset, keyword: str | int, count: int) -> np.ndarray | None:
    """So many finite numbers; None where there are none or they cannot be read."""
    try:
        value = _value(data, keyword)
        if value is None or (isinstance(value, str) and not value):
            return None
        result = np.atleast_1d(np.array(value, float))
    except Exception:
        return None
    return result if result.shape == (count,) and np.isfinite(result).all() else None


def number(data: Dataset, keyword: str | int) -> float | None:
    """A finite number; None where there is none or it cannot be read."""
    value = numbers(data, keyword, 1)
    return None if value is None else float(value[0])


def whole_number(data: Dataset, keyword: str | int, default: int = 0) -> int:
    """A whole number; the default where there is none or it cannot be read."""
    value = number(data, keyword)
    return default if value is None else int(value)


def _value(data: Dataset, keyword: str | int) -> Any:
    value = data.get(keyword)
    return getattr(value, "value", value) if isinstance(keyword, int) else value


def item(data: Dataset, keyword: str) -> Dataset:
    """A sequence's first item; an empty one where there is none."""
    found = items(data, keyword)
    return found[0] if found else Dataset()


def items(data: Dataset, keyword: str) -> list[Dataset]:
    """A sequence's items; none where it is missing or damaged."""
    try:
        value: Any = data.get(keyword)
        return list(value) if value else []
    except Exception:
        return []


def words(value: str) -> set[str]:
    """The values of a multi-valued text, in capitals."""
    return {part.strip().upper() for part in value.split("\\")}


def series_name(header: Dataset) -> str:
    """The series' description or number; never the patient's name."""
    description = text(header, "SeriesDescription")[:MAX_LETTERS].strip()
    return description or f"series {whole_number(header, 'SeriesNumber', 1)}"
