"""DICOM headers: which files are DICOM, what kind of object each is, and values that scanners wrote wrongly."""

from __future__ import annotations

import importlib
import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

logging.getLogger("pydicom").setLevel(logging.ERROR)

# Objects that lie over a scan, or describe one, by the start of their SOP class: never a scan themselves.
OVERLAYS = {
    "1.2.840.10008.5.1.4.1.1.66.": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a dose distribution (RTDOSE)",
    "1.2.840.10008.5.1.4.1.1.481.3": "contours (RTSTRUCT)",
    "1.2.840.10008.5.1.4.1.1.481.": "a treatment plan",
    "1.2.840.10008.5.1.4.1.1.88.": "a report",
    "1.2.840.10008.5.1.4.1.1.11.": "a presentation state",
    "1.2.840.10008.5.1.4.1.1.104.": "a document",
}
# Pictures that are seldom the scan that is meant, by the start of their SOP class: screenshots, ultrasound, X-rays.
PICTURES = (
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.6.",
    "1.2.840.10008.5.1.4.1.1.3.",
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.12.",
    "1.2.840.10008.5.1.4.1.1.77.",
)
X_RAYS = "1.2.840.10008.5.1.4.1.1.1"  # also how all others begin, up to the next dot
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66."
CONTOURS = "1.2.840.10008.5.1.4.1.1.481.3"
LAZY = (
    "pydicom.pixels.decoders.native",
    "pydicom.pixels.decoders.rle",
    "pydicom.pixels.decoders.pylibjpeg",
    "pydicom.pixels.decoders.pillow",
    "pydicom.pixels.decoders.gdcm",
    "pydicom.pixels.decoders.pyjpegls",
    "pylibjpeg",
    "openjpeg",
    "libjpeg",
    "rle",
    "PIL.Image",
)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its content; files without the preamble count if they hold an object."""
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    # Without the preamble, the file starts with a group 0002 or 0008 tag, little endian.
    if start[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    header = read_header(path)
    return header is not None and "SOPClassUID" in header


def read_header(path: Path) -> Dataset | None:
    """A file's header without its pixels; None where it cannot be read."""
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, force=True)
    except (InvalidDicomError, EOFError, ValueError, OSError, AttributeError, KeyError, NotImplementedError):
        return None


def whole(header: Dataset, keyword: str, default: int = 0) -> int:
    """A whole number of a header; `default` where there is none.

    Raises:
        ValueError: what stands there is no whole number.
    """
    value = value_of(header, keyword)
    if value is None or value == "":
        return default
    number = int(str(value).strip())
    if not -(1 << 31) < number < 1 << 31:
        raise ValueError(f"{keyword} is {number}")
    return number


def real(header: Dataset, keyword: str) -> float | None:
    """A finite number of a header; None where there is none, or what stands there is none."""
    try:
        number = float(str(value_of(header, keyword)).strip())
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def reals(header: Dataset, keyword: str, count: int) -> np.ndarray | None:
    """`count` finite numbers of a header, float [count]; None where there are not as many."""
    value = value_of(header, keyword)
    try:
        numbers = np.array([float(v) for v in value], float)
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None


def text(header: Dataset, keyword: str) -> str:
    """A value of a header as text, several joined by backslashes; "" where there is none."""
    value = value_of(header, keyword)
    if value is None:
        return ""
    if isinstance(value, pydicom.multival.MultiValue | list | tuple):
        return "\\".join(str(v).strip() for v in value)
    return str(value).strip()


def value_of(header: Dataset, keyword: str) -> Any:
    """A value of a header; None where there is none, or its scanner wrote it so wrongly that it cannot be read."""
    try:
        return header.get(keyword)
    except Exception:  # each kind of value has errors of its own
        return None


def starts(header: Dataset, prefixes: Any) -> str | None:
    """Which of these SOP classes, given by how they start, a header is of; the longest that fits."""
    kind = text(header, "SOPClassUID")
    found = [prefix for prefix in prefixes if kind.startswith(prefix)]
    if X_RAYS in found and kind != X_RAYS and not kind.startswith(X_RAYS + "."):
        found.remove(X_RAYS)
    return max(found, key=len, default=None)


def overlay(header: Dataset) -> str | None:
    """What kind of object over a scan a file is, in words; None where it may be a scan."""
    prefix = starts(header, OVERLAYS)
    return OVERLAYS[prefix] if prefix else None


def transfer_syntax(data: Dataset) -> None:
    """Gives a data set that lacks a meta header the transfer syntax that it was read by."""
    if "TransferSyntaxUID" not in data.file_meta:
        implicit = data.original_encoding[0]
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def preload() -> None:
    """Imports what decoding would otherwise import when it is first needed; see `mst.scans.decoding.preload`."""
    for name in LAZY:
        try:
            importlib.import_module(name)
        except ImportError:  # a decoder that is not installed
            continue
    from pydicom.pixels import decoders

    # A decoder looks for its plugins when it is first made use of.
    for name in dir(decoders):
        getattr(getattr(decoders, name), "is_available", None)
    # So does reading: the tables of tags and of character sets.
    data = Dataset()
    data.SpecificCharacterSet, data.PatientName = "ISO_IR 192", "A^B"
    data.ImagePositionPatient, data.StudyDate = [0.0, 1.0, 2.0], "20200101"
    content = DicomBytesIO()
    pydicom.dcmwrite(content, data, implicit_vr=False, little_endian=True)
    read = pydicom.dcmread(BytesIO(content.getvalue()), force=True)
    str(read), read.to_json_dict()
