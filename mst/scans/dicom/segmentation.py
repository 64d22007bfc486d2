"""Masks in DICOM: segmentation objects (PS3.3 C.8.20)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from mst.errors import ScanError
from mst.scans.checks import check_count
from mst.scans.dicom.headers import CONTOURS, SEGMENTATION, read_header, text, transfer_syntax, value_of
from mst.scans.dicom.planes import Plane, planes
from mst.scans.dicom.series import read_dicom
from mst.scans.dicom.volumes import one_geometry
from mst.scans.scan import Scan

MOST_LABELS = 12  # named in a sentence


def read_dicom_mask(files: Sequence[Path], segment: str | None = None) -> Scan:
    """The mask in DICOM files: a segmentation's segments, else a series whose pixels are a mask.

    Args:
        files: all DICOM files of the upload.
        segment: the label or number of the only segment that counts; None: all of them.

    Returns:
        On the segmentation's own grid; 1 where a segment is, else 0. Several segments are told in a note.

    Raises:
        ScanError: there is no mask, or no such segment.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        headers = [(path, read_header(path)) for path in files]
        found = [
            (p, h) for p, h in headers if h is not None and text(h, "SOPClassUID").startswith(SEGMENTATION)
        ]
        if found:
            return _segmentation(*max(found, key=lambda item: item[0].stat().st_size), segment)
        if any(h is not None and text(h, "SOPClassUID") == CONTOURS for _, h in headers):
            raise ScanError(
                "it is an RTSTRUCT, which holds contours and no voxels; export it as a DICOM SEG or as NIfTI."
            )
        return read_dicom(files)


def _segmentation(path: Path, header: Dataset, segment: str | None) -> Scan:
    labels = {
        int(value_of(item, "SegmentNumber") or 0): text(item, "SegmentLabel")
        for item in value_of(header, "SegmentSequence") or []
    }
    chosen = _chosen(labels, segment, path.name)
    try:
        pieces = planes(path, header, path.name)
    except ValueError as error:
        raise ScanError(f"the segmentation {path.name} is damaged; export it again.") from error
    if not pieces:
        raise ScanError(f"the segmentation {path.name} does not say where its frames lie.")
    alike, _ = one_geometry(pieces)
    if len(alike) < len(pieces):
        raise ScanError(f"the frames of the segmentation {path.name} have different directions or sizes.")
    marked = _frames(path, header, pieces, chosen)
    along = np.array([piece.along for piece in pieces])
    first = int(along.argmin())
    step = _step(header, along, pieces[0])
    places = np.round((along - along[first]) / step).astype(int)
    rows, columns = pieces[0].shape
    check_count(path.name, (columns, rows, int(places.max()) + 1))
    voxels = np.zeros((columns, rows, int(places.max()) + 1), np.float32, order="F")
    for picture, place in zip(marked, places, strict=True):
        voxels[:, :, place] = np.maximum(voxels[:, :, place], picture.T)
    lps = np.eye(4)
    lps[:3, 0] = pieces[0].orientation[0] * pieces[0].spacing[1]
    lps[:3, 1] = pieces[0].orientation[1] * pieces[0].spacing[0]
    lps[:3, 2] = np.cross(*pieces[0].orientation) * step
    lps[:3, 3] = pieces[first].position
    notes = []
    if len(labels) > 1 and segment is None:
        notes.append(f"The mask holds {len(labels)} segments, taken together: {_named(labels)}.")
    return Scan(
        voxels, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, modality="SEG", name=path.stem, notes=tuple(notes)
    )


def _chosen(labels: dict[int, str], segment: str | None, name: str) -> set[int]:
    """The numbers of the segments that count.

    Raises:
        ScanError: there is none of that label or number.
    """
    if segment is None:
        return set(labels)
    wanted = segment.strip().lower()
    found = {number for number, label in labels.items() if wanted in (str(number), label.lower())}
    if not found:
        raise ScanError(f"{name} has no segment {segment!r}; it has {_named(labels)}.")
    return found


def _named(labels: dict[int, str]) -> str:
    shown = [f"{label or 'without a name'} ({number})" for number, label in labels.items()][:MOST_LABELS]
    return ", ".join(shown) + (", ..." if len(labels) > MOST_LABELS else "")


def _frames(path: Path, header: Dataset, pieces: Sequence[Plane], chosen: set[int]) -> list[np.ndarray]:
    """Each frame's pixels, bool [rows, columns]: True where a chosen segment is."""
    try:
        data = pydicom.dcmread(path, force=True)
        transfer_syntax(data)
        pixels = np.asarray(data.pixel_array)
    except MemoryError:
        raise
    except Exception as error:
        raise ScanError(f"the segmentation {path.name} is cut off or damaged; export it again.") from error
    if pixels.size != len(pieces) * int(np.prod(pieces[0].shape)):
        raise ScanError(f"the segmentation {path.name} is cut off or damaged; export it again.")
    pixels = pixels.reshape(len(pieces), *pieces[0].shape)
    if text(header, "SegmentationType").upper() == "LABELMAP":
        return list(np.isin(pixels, sorted(chosen - {0})))
    shared = (value_of(header, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    found = []
    for picture, group in zip(pixels, header.PerFrameFunctionalGroupsSequence, strict=True):
        items = value_of(group, "SegmentIdentificationSequence") or value_of(
            shared, "SegmentIdentificationSequence"
        )
        number = int(value_of(items[0], "ReferencedSegmentNumber") or 0) if items else 0
        # A file with one segment need not say which one a frame is of.
        found.append((picture > 0) & (number in chosen or not number))
    return found


def _step(header: Dataset, along: np.ndarray, piece: Plane) -> float:
    """Millimetres from one slice of the grid to the next; frames that hold nothing are often left out."""
    distances = np.diff(np.unique(np.round(along, 3)))
    shared = (value_of(header, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    measures = (value_of(shared, "PixelMeasuresSequence") or [Dataset()])[0]
    told = value_of(measures, "SpacingBetweenSlices") or piece.thickness
    step = float(told) if told else float(distances.min()) if len(distances) else 1.0
    # What the file says must fit the frames; else the smallest distance does.
    if step <= 0 or (len(distances) and np.abs(distances / step - np.round(distances / step)).max() > 0.1):
        step = float(distances.min()) if len(distances) else 1.0
    return step
