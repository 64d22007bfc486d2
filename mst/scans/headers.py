"""What the two formats with a text header, NRRD and MetaImage, have in common.

An uploader's header is read once, strictly, by what is in this folder, and by nothing else: where two readers
understand a header differently, one of them can be made to open another file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mst.errors import ScanError

MAX_HEADER = 1 << 20  # bytes
MAX_FILE_NAME = 255
# Millimetres a unit, by its names in files.
UNITS_MM = {
    **dict.fromkeys(("", "mm", "millimeter", "millimetre", "millimeters", "millimetres"), 1.0),
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometre"), 0.001),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-6),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 10.0),
    **dict.fromkeys(("m", "meter", "metre"), 1000.0),
}
LEFT_AND_RIGHT = "The file does not say how the scan lies in the patient; left and right may be swapped."
NO_SPACING = (
    "The file does not give its voxel size; 1 mm was taken, so sizes and what the models see may be wrong."
)


def numbers(name: str, field: str, text: str, count: int | None = None) -> list[float]:
    """The numbers of a header's field.

    Raises:
        ScanError: a word is no finite number, or there are not `count` of them.
    """
    try:
        found = [float(word) for word in text.split()]
    except ValueError:
        found = []
    if not found or not np.isfinite(found).all() or count not in (None, len(found)):
        raise ScanError(f"{name} is damaged: its header's {field} cannot be understood; export it again.")
    return found


def whole_numbers(name: str, field: str, text: str, count: int | None = None) -> list[int]:
    """The positive whole numbers of a header's field.

    Raises:
        ScanError: there are others, or not `count` of them.
    """
    words = text.split()
    # No more digits than any size has: a number of thousands of digits costs time to read.
    if not words or any(not word.isdecimal() or len(word) > 12 for word in words):
        raise ScanError(f"{name} is damaged: its header's {field} cannot be understood; export it again.")
    found = [int(word) for word in words]
    if count not in (None, len(found)) or min(found) < 1:
        raise ScanError(f"{name} is damaged: its header's {field} cannot be understood; export it again.")
    return found


def data_file(path: Path, named: str, at_hand: Sequence[Path]) -> Path:
    """The file that a header names for its data, among those that came with it.

    Args:
        path: of the header.
        named: what it names.
        at_hand: the files of the upload. Beside the header itself is looked too: on a person's own machine the two
            lie together, and in an upload nothing else lies there.

    Raises:
        ScanError: the name leads elsewhere, or the file is not there. An upload must not make the server read its
            other files.
    """
    plain = named.removeprefix("./")
    if "/" in plain or "\\" in plain or "\0" in plain or plain in ("", ".", ".."):
        raise ScanError(f"{path.name} points to data in another folder; put both files into one.")
    if len(plain.encode()) > MAX_FILE_NAME:
        raise ScanError(f"{path.name} is damaged: it names a data file whose name is too long.")
    for candidate in (path.with_name(plain), *(p for p in at_hand if p.name == plain)):
        if candidate.is_file() and candidate != path:
            return candidate
    if "%" in plain:
        raise ScanError(f"{path.name} spreads its data over many files; save it as one file.")
    raise ScanError(f"{path.name} needs its data file {plain}; upload both together, or as a zip.")
