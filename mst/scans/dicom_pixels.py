"""Decoding the pixels of DICOM files: every frame whole and of the promised size, or refused."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator, Sequence
from encodings.aliases import aliases

import numpy as np
from PIL import Image
from pydicom.charset import python_encoding
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_modality_lut, get_decoder
from pydicom.uid import AllTransferSyntaxes, JPEGLSLossless, JPEGLSNearLossless

from mst.errors import ScanError
from mst.scans.checks import check_count
from mst.scans.dicom_files import DicomFile, number, read_whole, transfer_syntax, whole_number
from mst.scans.dicom_planes import frame_count
from mst.scans.dicom_streams import BrokenStreamError, check_frame

JPEG_LS = {JPEGLSLossless, JPEGLSNearLossless}
OVERLAY_GROUPS = range(0x6000, 0x6020, 2)
OVERLAY_BIT_POSITION = 0x0102


def preload() -> None:
    """Loads everything that decoding any transfer syntax would load when it is first needed.

    A process that may open no file of its own any more can then still decode.
    """
    Image.init()
    # A header may name any encoding that Python has.
    for encoding in {*python_encoding.values(), *aliases.values()}:
        with contextlib.suppress(LookupError):  # some are of other systems
            codecs.lookup(encoding)
    for syntax in AllTransferSyntaxes:
        try:
            _ = get_decoder(syntax).is_available
        except NotImplementedError:  # films, which are not read
            continue


def frames(file: DicomFile, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """The stored numbers of some frames of a file, which is read once.

    Args:
        file: its header says what is promised.
        indices: of the frames, from 0.

    Yields:
        [rows, columns], whole numbers, or float32 where the file has a table that they stand for.

    Raises:
        ScanError: the file is damaged, cut off, compressed in an unknown way or not what it promises.
    """
    try:
        yield from _frames(file, indices)
    except (ScanError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # decoders have errors of their own; a panic in Rust is no Exception
        raise ScanError(
            f"The picture in the DICOM file {file.path.name} is cut off, damaged or compressed in an unknown way; "
            "export the series again."
        ) from error


def _frames(file: DicomFile, indices: Sequence[int]) -> Iterator[np.ndarray]:
    header, name = file.header, file.path.name
    rows, columns, count = whole_number(header, "Rows"), whole_number(header, "Columns"), frame_count(header)
    bits = whole_number(header, "BitsAllocated")
    check_count(name, (rows, columns, count))
    promised = -(-rows * columns * count * bits // 8)
    data = read_whole(file.path, promised)
    if "PixelData" not in data or min(rows, columns, count, bits) < 1 or max(indices) >= count:
        raise BrokenStreamError("no pixels")
    syntax = transfer_syntax(data)
    if "TransferSyntaxUID" not in getattr(data, "file_meta", ()):
        data.ensure_file_meta()
        data.file_meta.TransferSyntaxUID = syntax
    if syntax.is_encapsulated:
        for index in indices:
            check_frame(syntax, get_frame(data.PixelData, index, number_of_frames=count), rows, columns, bits)
    elif len(data.PixelData) >= promised + max(promised // count, 2):  # a few bytes more are padding
        raise BrokenStreamError("more pixels than promised")
    kept = _picture_bits(header, bits)
    # One decoder each: a second one would fill in where the first one saw that data are missing.
    decoding_plugin = "pyjpegls" if syntax in JPEG_LS else "pylibjpeg" if syntax.is_encapsulated else ""
    decoded = get_decoder(syntax).iter_array(
        data, indices=list(indices), raw=True, decoding_plugin=decoding_plugin
    )
    for array, _ in decoded:
        if array.shape != (rows, columns):
            raise BrokenStreamError("another size than promised")
        stored = array & array.dtype.type(kept) if kept else array
        if has_table(header):
            stored = np.asarray(apply_modality_lut(stored, data), np.float32)
        yield stored


def has_table(header: Dataset) -> bool:
    """Whether stored numbers become intensities by a table rather than by slope and intercept."""
    return "ModalityLUTSequence" in header and number(header, "RescaleSlope") is None


def _picture_bits(header: Dataset, allocated: int) -> int:
    """A mask of the bits that belong to the picture where drawings are kept in the others; 0: no drawings."""
    stored = whole_number(header, "BitsStored")
    drawn = any(whole_number(header, group << 16 | OVERLAY_BIT_POSITION) > 0 for group in OVERLAY_GROUPS)
    unsigned = whole_number(header, "PixelRepresentation") == 0
    return (1 << stored) - 1 if drawn and unsigned and 0 < stored < allocated else 0
