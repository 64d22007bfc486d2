"""The pixels of DICOM slices, as the numbers that the study means: Hounsfield units for CT."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from mst.errors import ScanError
from mst.scans.checks import check_count
from mst.scans.dicom.headers import text, transfer_syntax, value_of, whole
from mst.scans.dicom.planes import Plane, frames
from mst.scans.scan import Caution

AIR_HU = -1000.0
LOWEST_HU = -1024.0  # what 12 bits leave room for; lower numbers are a scanner's mark, not tissue
MARK_HU = -1100.0
NO_RESCALE = (
    "The CT does not say how its numbers become Hounsfield units (RescaleIntercept is missing); they were taken as "
    "they are."
)


def read_voxels(
    slices: Sequence[Plane], headers: dict[Path, Dataset], name: str, notes: list[str]
) -> np.ndarray:
    """The slices' numbers, rescaled, float32 [columns, rows, slices], in Fortran order.

    Args:
        slices: in their order.
        headers: of their files.
        name: of the series.
        notes: gets what had to be decided.

    Raises:
        ScanError: a picture cannot be decoded whole, or there are too many voxels.
    """
    rows, columns = slices[0].shape
    check_count(f"The DICOM series {name}", (columns, rows, len(slices)))
    for path in {piece.path for piece in slices}:
        check_count(path.name, (columns, rows, frames(headers[path])))
    voxels = np.empty((columns, rows, len(slices)), np.float32, order="F")
    hidden = np.zeros((columns, rows, len(slices)), bool, order="F")
    # Each file is decoded once, in whichever order its frames are wanted.
    for path in dict.fromkeys(piece.path for piece in slices):
        pixels = _decoded(path, headers[path])
        padding = _padding(headers[path])
        for index, piece in enumerate(slices):
            if piece.path == path:
                picture = pixels[piece.frame or 0].T
                voxels[:, :, index] = picture
                if padding is not None:
                    hidden[:, :, index] = (picture >= padding[0]) & (picture <= padding[1])
    first = headers[slices[0].path]
    is_ct = text(first, "Modality") == "CT"
    _rescale(voxels, slices, is_ct, notes)
    if text(first, "PhotometricInterpretation") == "MONOCHROME1" and not is_ct:
        seen = voxels[~hidden]
        np.subtract(seen.max() + seen.min(), voxels, out=voxels)
        notes.append(
            "The series is stored as a negative (MONOCHROME1); it was inverted, so that bright is much signal."
        )
    _fill(voxels, hidden, is_ct, notes)
    return voxels


def _decoded(path: Path, header: Dataset) -> np.ndarray:
    """All frames of a file, as stored, [frames, rows, columns].

    Raises:
        ScanError: they are not there whole.
    """
    damaged = ScanError(
        f"The picture in the DICOM file {path.name} is cut off, damaged or compressed in an unknown way; "
        "export the series again."
    )
    expected = (frames(header), whole(header, "Rows"), whole(header, "Columns"))
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            data = pydicom.dcmread(path, force=True)
            transfer_syntax(data)
            pixels = np.asarray(data.pixel_array)
    except MemoryError:
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except (
        BaseException
    ) as error:  # each decoder has errors of its own; one written in Rust panics with no Exception
        raise damaged from error
    # pydicom warns where a decoder gave less, or the file holds less, than its header says.
    if any(
        word in str(warning.message).lower()
        for warning in told
        for word in ("less than", "incomplete", "truncat")
    ):
        raise damaged
    if pixels.size != int(np.prod(expected)) or pixels.dtype.kind not in "iuf":
        raise damaged
    return pixels.reshape(expected)


def _padding(header: Dataset) -> tuple[float, float] | None:
    """The stored numbers, from and to, that mark what is no picture; None where there are none (PS3.3 C.7.5.1.1.2)."""
    value, limit = value_of(header, "PixelPaddingValue"), value_of(header, "PixelPaddingRangeLimit")
    if value is None or value == "":
        return None
    signed = value_of(header, "PixelRepresentation") == 1

    def stored(number: object) -> float:
        # Some scanners write the tag with the other sign than their pixels have.
        whole_number = int(str(number))
        if signed and whole_number >= 1 << 15:
            return float(whole_number - (1 << 16))
        return float(whole_number + (1 << 16)) if not signed and whole_number < 0 else float(whole_number)

    try:
        ends = sorted([stored(value), stored(value if limit in (None, "") else limit)])
    except ValueError:
        return None
    return ends[0], ends[1]


def _rescale(voxels: np.ndarray, slices: Sequence[Plane], is_ct: bool, notes: list[str]) -> None:
    """Applies each slice's slope and intercept in place; a CT's that are missing are judged by the values."""
    rules = [(piece.slope or 1.0, piece.intercept or 0.0) for piece in slices]
    lacking = [index for index, piece in enumerate(slices) if piece.intercept is None]
    known = [index for index, piece in enumerate(slices) if piece.intercept is not None]
    if is_ct and lacking and not known:
        notes.append(Caution(NO_RESCALE))
    elif is_ct and lacking:
        repaired = 0
        for index in lacking:
            nearest = min(known, key=lambda other: abs(other - index))
            stored, beside = (float(np.median(voxels[:, :, at])) for at in (index, nearest))
            slope, intercept = rules[nearest]
            expected = beside * slope + intercept
            if abs(stored * slope + intercept - expected) < abs(stored - expected):
                rules[index] = slope, intercept
                repaired += 1
        notes.append(
            Caution(
                f"{len(lacking)} of {len(slices)} slices do not say how their numbers become Hounsfield units; "
                + (
                    f"for {repaired} of them their neighbours' rule fits."
                    if repaired
                    else "they fit as they are."
                )
            )
        )
    for index, (slope, intercept) in enumerate(rules):
        if (slope, intercept) != (1.0, 0.0):
            voxels[:, :, index] = voxels[:, :, index] * np.float32(slope) + np.float32(intercept)


def _fill(voxels: np.ndarray, hidden: np.ndarray, is_ct: bool, notes: list[str]) -> None:
    """Gives what is no picture the value of air, or of an MRI's darkest voxel, in place."""
    if is_ct:
        marked = voxels < MARK_HU
        if hidden.any() and not hidden.all():
            # A CT whose padding is the number of air needs no word.
            told = bool(np.any(np.abs(voxels[hidden] - AIR_HU) > 100))
            voxels[hidden] = AIR_HU
        else:
            told = False
        marked &= ~hidden
        if marked.any():
            voxels[marked] = LOWEST_HU
            told = True
        if told:
            notes.append("Pixels outside the scanner's circle (padding) were given the value of air.")
    elif hidden.any() and not hidden.all():
        voxels[hidden] = voxels[~hidden].min()
        notes.append("Pixels that the file marks as padding were given the scan's lowest value.")
