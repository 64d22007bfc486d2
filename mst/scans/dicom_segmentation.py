"""DICOM Segmentation (SEG): the frames of its segments become one mask.

PS3.3 A.51 and C.8.20. Frames come in any order, a segment's empty frames may be missing, and segments may overlap.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mst.errors import ScanError
from mst.scans.checks import check_count
from mst.scans.dicom_files import (
    LABEL_MAP,
    MAX_LETTERS,
    DicomFile,
    item,
    items,
    number,
    numbers,
    series_name,
    text,
    whole_number,
)
from mst.scans.dicom_pixels import frames
from mst.scans.dicom_planes import frame_count
from mst.scans.scan import Scan

SAME_MM = 0.01
OFF_THE_GRID = 0.25  # of a step: a frame farther from its place lies on no common grid
LISTED = 12  # segments that a message names


@dataclass(frozen=True, eq=False)
class _Segment:
    file: DicomFile
    number: int
    label: str


@dataclass(frozen=True, eq=False)
class _Frame:
    """One frame of a segmentation, and the segment that it marks; None in a label map, which marks all."""

    file: DicomFile
    index: int
    segment: int | None
    position: np.ndarray
    orientation: np.ndarray
    spacing: tuple[float, float]
    shape: tuple[int, int]
    between: tuple[float, ...]  # what the file says of the distance between slices


def read_segmentation(files: Sequence[DicomFile], wanted: str | None) -> Scan:
    """The union of all segments, or one of them.

    Args:
        files: Segmentations, at least one.
        wanted: a segment's label or number; None: all of them.

    Returns:
        0 and 1, with an empty slice at both ends, so that the first and the last slice are not lost to rounding when
        the mask is brought to another grid.

    Raises:
        ScanError: the files are damaged, lie on different grids, or have no such segment.
    """
    segments = [segment for file in files for segment in _segments(file)]
    taken = _wanted(segments, wanted)
    every = [frame for file in files for frame in _frames(file)]
    numbers_of = {file: {s.number for s in taken if s.file is file} for file in files}
    chosen = [
        f for f in every if numbers_of[f.file] and (f.segment is None or f.segment in numbers_of[f.file])
    ]
    if not chosen:
        raise ScanError(f"{files[0].path.name} is a segmentation that marks nothing.")
    voxels, affine, partial = _drawn(every, chosen, numbers_of)
    notes = []
    labels = _labels(segments)
    if len(segments) > 1:
        which = "all of them were taken" if wanted is None else f"{_labels(taken)} was taken"
        notes.append(f"The segmentation holds {len(segments)} segments ({labels}); {which}.")
    if partial:
        notes.append("The segmentation says how far each voxel belongs to it; from one half on it was taken.")
    return Scan(voxels, affine, name=series_name(files[0].header), notes=tuple(notes))


def _segments(file: DicomFile) -> list[_Segment]:
    return [
        _Segment(file, whole_number(entry, "SegmentNumber"), text(entry, "SegmentLabel")[:MAX_LETTERS])
        for entry in items(file.header, "SegmentSequence")
    ]


def _wanted(segments: list[_Segment], wanted: str | None) -> list[_Segment]:
    if wanted is None or not wanted.strip():
        return segments
    name = wanted.strip().casefold()
    found = [s for s in segments if s.label.casefold() == name] or [
        s for s in segments if str(s.number) == name
    ]
    if not found:
        raise ScanError(
            f"The segmentation has no segment {wanted.strip()[:MAX_LETTERS]}; it holds {_labels(segments)}."
        )
    return found


def _labels(segments: Sequence[_Segment]) -> str:
    named = [segment.label or f"number {segment.number}" for segment in segments[:LISTED]]
    return ", ".join(named) + (f" and {len(segments) - LISTED} more" if len(segments) > LISTED else "")


def _frames(file: DicomFile) -> list[_Frame]:
    header = file.header
    shared = item(header, "SharedFunctionalGroupsSequence")
    shape = whole_number(header, "Rows"), whole_number(header, "Columns")
    groups = items(header, "PerFrameFunctionalGroupsSequence")
    if len(groups) != frame_count(header) or min(shape) < 1 or not file.whole:
        raise ScanError(f"The segmentation {file.path.name} is damaged or cut off; export it again.")
    is_label_map = text(header, "SOPClassUID") == LABEL_MAP or text(header, "SegmentationType") == "LABELMAP"
    found = []
    for index, group in enumerate(groups):
        position, orientation, measures, segment = (
            next((place for place in (item(g, key) for g in (group, shared)) if len(place)), item(group, key))
            for key in (
                "PlanePositionSequence",
                "PlaneOrientationSequence",
                "PixelMeasuresSequence",
                "SegmentIdentificationSequence",
            )
        )
        at = numbers(position, "ImagePositionPatient", 3)
        cosines = numbers(orientation, "ImageOrientationPatient", 6)
        spacing = numbers(measures, "PixelSpacing", 2)
        if at is None or cosines is None or spacing is None:
            raise ScanError(
                f"The segmentation {file.path.name} does not say where its frames lie; export it again."
            )
        between = [number(measures, key) for key in ("SpacingBetweenSlices", "SliceThickness")]
        found.append(
            _Frame(
                file,
                index,
                None if is_label_map else whole_number(segment, "ReferencedSegmentNumber", 1),
                at,
                cosines.reshape(2, 3),
                (float(spacing[0]), float(spacing[1])),
                shape,
                tuple(value for value in between if value and value > 0),
            )
        )
    return found


def _drawn(
    every: list[_Frame], chosen: list[_Frame], numbers_of: dict[DicomFile, set[int]]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """The mask and its affine (RAS), and whether voxels belong to it in part."""
    first = every[0]
    for frame in every:
        if (
            frame.shape != first.shape
            or not np.allclose(frame.orientation, first.orientation, atol=1e-3)
            or not np.allclose(frame.spacing, first.spacing, rtol=1e-3)
        ):
            raise ScanError(
                "The segmentation's frames differ in size or direction; give one segmentation at a time."
            )
    step = _step(every)
    heights = np.array([(frame.position - first.position) @ step / (step @ step) for frame in chosen])
    places = np.round(heights).astype(int)
    off = np.array([f.position - first.position - n * step for f, n in zip(chosen, places, strict=True)])
    if np.abs(off).max() > OFF_THE_GRID * max(float(np.linalg.norm(step)), *first.spacing):
        raise ScanError(
            "The segmentation's frames lie unevenly or on several grids; export it with even spacing, one at a time."
        )
    start, count = int(places.min()) - 1, int(np.ptp(places)) + 3
    rows, columns = first.shape
    check_count("The segmentation", (columns, rows, count))
    voxels = np.zeros((count, rows, columns), np.float32)
    partial = False
    by_file: dict[DicomFile, list[int]] = defaultdict(list)
    for k, frame in enumerate(chosen):
        by_file[frame.file].append(k)
    for file, members in by_file.items():
        whole = 1.0
        if text(file.header, "SegmentationType") == "FRACTIONAL":
            partial, whole = True, whole_number(file.header, "MaximumFractionalValue", 255)
        for k, picture in zip(members, frames(file, [chosen[k].index for k in members]), strict=True):
            if chosen[k].segment is None:
                marked = np.isin(picture, sorted(numbers_of[file]))
            else:
                marked = (picture >= whole / 2) & (picture > 0)
            np.maximum(voxels[places[k] - start], marked, out=voxels[places[k] - start])
    lps = np.eye(4)
    lps[:3, 0] = first.orientation[0] * first.spacing[1]
    lps[:3, 1] = first.orientation[1] * first.spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = first.position + start * step
    return voxels.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, partial


def _step(every: list[_Frame]) -> np.ndarray:
    """From one slice to the next, LPS millimetres; frames of slices that nothing marks may be missing."""
    normal = np.cross(*every[0].orientation)
    ordered = sorted(every, key=lambda frame: float(normal @ frame.position))
    along = np.array([normal @ frame.position for frame in ordered])
    steps = np.diff(along)
    steps = steps[steps > SAME_MM]
    said = every[0].between or (1.0,)
    if not len(steps):
        return normal * said[0]
    fits = [value for value in said if (np.abs(steps / value - np.round(steps / value)) < 0.1).all()]
    distance = next((value for value in fits if value <= steps.min() * 1.1), float(steps.min()))
    # Slices that lean (a tilted gantry) do not lie along their normal.
    way = (ordered[-1].position - ordered[0].position) / (along[-1] - along[0])
    count = max(round((along[-1] - along[0]) / distance), 1)
    return way * ((along[-1] - along[0]) / count)
