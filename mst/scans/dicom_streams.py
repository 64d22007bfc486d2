"""Whether a compressed DICOM frame is whole and of the promised size, before a decoder sees it.

Decoders fill what is missing of a cut picture with grey, unpack whatever size the picture's own header names, and
some end the process. RLE: DICOM PS3.5 annex G; JPEG and JPEG-LS: ITU T.81 annex B, T.87 annex C; JPEG 2000:
ISO 15444-1 annex A.
"""

from __future__ import annotations

import struct

from pydicom.uid import HTJ2K, JPEG2000, UID, HTJ2KLossless, HTJ2KLosslessRPCL, JPEG2000Lossless, RLELossless

JPEG_2000 = {JPEG2000, JPEG2000Lossless, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL}
RLE_HEADER = 64  # bytes
SOI, EOI, SOS, JPEG_LS_FRAME = 0xD8, 0xD9, 0xDA, 0xF7
FRAME_HEADERS = {*range(0xC0, 0xD0), JPEG_LS_FRAME} - {0xC4, 0xC8, 0xCC}
RESTARTS = range(0xD0, 0xD8)
SOC, SIZ, SOT, EOC = 0xFF4F, 0xFF51, 0xFF90, 0xFFD9


class BrokenStreamError(ValueError):
    """A compressed frame that is not whole or not of the promised size."""


def check_frame(syntax: UID, content: bytes, rows: int, columns: int, bits: int) -> None:
    """Looks a frame over.

    Args:
        syntax: an encapsulated transfer syntax; one that is not known here is left to its decoder.
        content: the frame.
        rows, columns, bits: what the DICOM header promises: size, and bits allocated for a pixel.

    Raises:
        BrokenStreamError: it ends too early, or holds a picture of another size or in colour.
    """
    try:
        if syntax == RLELossless:
            _check_rle(content, rows * columns, bits // 8)
        elif syntax in JPEG_2000:
            _check_jpeg_2000(content, rows, columns)
        else:
            _check_jpeg(content, rows, columns)
    except (IndexError, struct.error) as error:
        raise BrokenStreamError("cut off") from error


def _check_rle(content: bytes, pixels: int, planes: int) -> None:
    count, *starts = struct.unpack_from("<16L", content)
    if count != planes or not 1 <= count <= 15:
        raise BrokenStreamError("another number of segments than bytes in a pixel")
    ends = [*starts[1:count], len(content)]
    for start, end in zip(starts[:count], ends, strict=True):
        if not RLE_HEADER <= start <= end <= len(content):
            raise BrokenStreamError("segments that overlap or lie outside")
        _check_segment(content[start:end], pixels)


def _check_segment(segment: bytes, pixels: int) -> None:
    """Whether a segment unpacks to exactly so many bytes; one byte may follow to make its length even."""
    at = unpacked = 0
    while unpacked < pixels:
        head = segment[at]
        if head < 128:
            at += head + 2
            unpacked += head + 1
        elif head > 128:
            at += 2
            unpacked += 257 - head
        else:
            at += 1
    if unpacked != pixels or at > len(segment):
        raise BrokenStreamError("a segment that unpacks to another length")
    # What follows may only be padding.
    if segment[at:].strip(b"\0\x80"):
        raise BrokenStreamError("more data than promised")


def _check_jpeg(content: bytes, rows: int, columns: int) -> None:
    """Walks from marker to marker to the end of the image."""
    if content[:2] != bytes((0xFF, SOI)):
        raise BrokenStreamError("no JPEG")
    at, lossless_ls, sized = 2, False, False
    while True:
        while content[at] == 0xFF and content[at + 1] == 0xFF:  # fill bytes
            at += 1
        if content[at] != 0xFF:
            raise BrokenStreamError("no marker where one should be")
        marker = content[at + 1]
        if marker == EOI:
            if not sized or content[at + 2 :].strip(b"\0\xff"):
                raise BrokenStreamError("no picture, or one that ends too early")
            return
        (length,) = struct.unpack_from(">H", content, at + 2)
        if marker in FRAME_HEADERS:
            _, lines, samples, components = struct.unpack_from(">BHHB", content, at + 4)
            if (lines, samples, components) != (rows, columns, 1):
                raise BrokenStreamError("another size than promised")
            lossless_ls, sized = marker == JPEG_LS_FRAME, True
        at += 2 + length
        if marker == SOS:
            at = _next_marker(content, at, lossless_ls)


def _next_marker(content: bytes, at: int, lossless_ls: bool) -> int:
    """Where the first marker after a scan's data lies: restarts belong to the data, and so do stuffed bytes."""
    while True:
        at = content.find(b"\xff", at)
        if at < 0:
            raise BrokenStreamError("cut off")
        following = content[at + 1]
        stuffed = following < 0x80 if lossless_ls else following == 0
        if not stuffed and following not in RESTARTS:
            return at
        at += 2 if following != 0xFF else 1


def _check_jpeg_2000(content: bytes, rows: int, columns: int) -> None:
    """Walks from tile part to tile part: each says how long it is."""
    start = content.find(b"\xff\x4f\xff\x51")  # after the boxes of a JP2 file, if there are any
    if start < 0:
        raise BrokenStreamError("no JPEG 2000")
    right, down, left, up = struct.unpack_from(">4L", content, start + 8)
    (components,) = struct.unpack_from(">H", content, start + 40)
    if (down - up, right - left, components) != (rows, columns, 1):
        raise BrokenStreamError("another size than promised")
    at, tiles = start + 2, 0
    while True:
        if tiles and at >= len(content.rstrip(b"\0")):
            return  # some writers leave out the last marker; all tile parts are there
        (marker, length) = struct.unpack_from(">HH", content, at) if at + 4 <= len(content) else (EOC, 0)
        if marker == EOC or content[at : at + 2] == b"\xff\xd9":
            if not tiles:
                raise BrokenStreamError("no picture")
            return
        if marker == SOT:
            (part,) = struct.unpack_from(">L", content, at + 6)
            tiles += 1
            if part == 0:  # to the end of the picture
                if not content.rstrip(b"\0").endswith(b"\xff\xd9"):
                    raise BrokenStreamError("cut off")
                return
            at += part
            if part < 14 or at > len(content):
                raise BrokenStreamError("cut off")
        elif tiles:
            raise BrokenStreamError("no tile part where one should be")
        else:
            at += 2 + length
