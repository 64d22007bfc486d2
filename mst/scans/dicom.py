"""DICOM: of the series among some files, the best one becomes a scan.

What a file holds is read in `dicom_files` and `dicom_planes`, one volume of a series is picked in `dicom_volumes`,
and its pixels become intensities in `dicom_values`. DICOM's LPS axes are turned to RAS.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from mst.errors import ScanError
from mst.scans.checks import check_count
from mst.scans.dicom_files import (
    OBJECTS,
    STRUCTURES,
    DicomFile,
    is_dicom,
    is_segmentation,
    read_header,
    series_name,
    text,
    whole_number,
)
from mst.scans.dicom_pixels import preload
from mst.scans.dicom_planes import (
    COLOUR,
    CUT,
    DAMAGED,
    FILM,
    MOSAIC,
    NO_PLACE,
    NOUNS,
    Odd,
    Plane,
    frame_count,
    planes,
)
from mst.scans.dicom_segmentation import read_segmentation
from mst.scans.dicom_values import read_voxels
from mst.scans.dicom_volumes import MIN_SLICES, SAME_POSITION_MM, Stack, counted, is_localizer, pick_stack
from mst.scans.scan import Scan
from mst.scans.source import IDENTITY, DicomSource, SourceSlice, kept

__all__ = ["SAME_POSITION_MM", "is_dicom", "is_segmentation", "preload", "read_dicom", "read_dicom_mask"]

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS to RAS
PROJECTIONS = {
    "MIP",
    "MINIP",
    "MNIP",
    "MAXIP",
    "PROJECTION IMAGE",
    "VRT",
    "VOLREN",
    "VOLUME RENDERED",
    "SCREEN SAVE",
}
IMAGES = {
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.4",  # MR
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.128",  # PET
    "1.2.840.10008.5.1.4.1.1.130",
}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
PROPER, OTHER_MODALITY, NO_ORIGINAL, LOCALIZER = range(4)
NAMED = 3  # series that a note names


@dataclass(eq=False)
class _Series:
    """The files of a series, and the volume in it."""

    name: str
    planes: list[Plane] = field(default_factory=list)
    odd: list[Odd] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stack: Stack | None = None
    problem: ScanError | None = None

    @property
    def slices(self) -> int:
        return len(self.stack.planes) if self.stack else len(self.planes)

    @property
    def rank(self) -> int:
        """How far it is from what is looked for: a CT or MR volume as it was measured."""
        first = self.planes[0]
        if is_localizer(first):
            return LOCALIZER
        capture = text(first.header, "SOPClassUID").startswith(SECONDARY_CAPTURE)
        if capture or any(kind.startswith(tuple(PROJECTIONS)) for kind in first.kinds):
            return NO_ORIGINAL
        return PROPER if first.modality in ("CT", "MR") else OTHER_MODALITY

    @property
    def order(self) -> tuple:
        """Sorts series, the best first."""
        first = self.planes[0]
        usable = self.stack is not None and self.slices >= MIN_SLICES
        lowest = self.rank if self.rank >= NO_ORIGINAL else PROPER
        return (
            lowest,
            not usable,
            self.rank,
            -self.slices,
            "DERIVED" in first.kinds,
            whole_number(first.header, "SeriesNumber"),
            self.name,
            text(first.header, "SeriesInstanceUID"),
        )


def read_dicom(files: Sequence[Path]) -> Scan:
    """Reads the best volume among DICOM files: CT or MR rather than others, the one with most slices.

    Segmentations, dose, contours, screenshots, projections and localizers are left out where there is a volume, and
    so is a series that cannot be read; the notes say what was taken and what was left.

    Raises:
        ScanError: there is no volume, or slices of it are missing, damaged or do not fit each other.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values that scanners write wrongly all the time
        headers, unreadable = _headers(files)
        series, aside = _sorted(headers)
        if not series:
            raise _nothing(aside, headers, unreadable)
        for one in series:
            _pick(one)
        series.sort(key=lambda one: one.order)
        scan, chosen = _first_readable(series)
        notes = [
            *_why_this(chosen, series),
            *_left_aside(aside, unreadable),
            *chosen.notes,
            *scan.notes,
        ]
        return Scan(scan.voxels, scan.affine, scan.modality, scan.name, tuple(notes), scan.source)


def read_dicom_mask(files: Sequence[Path], segment: str | None = None) -> Scan:
    """Reads a mask from DICOM files: Segmentations (SEG), or else a series whose voxels above zero are marked.

    Args:
        files: DICOM files; others than Segmentations are left out where there is one.
        segment: label or number of the segment that is meant; None: the union of all.

    Returns:
        0 and 1 on the segmentation's own grid, with an empty slice at both ends; a note lists several segments.

    Raises:
        ScanError: there is no such segment (the message lists those that there are), the files hold contours
            (RTSTRUCT), or they are damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        headers, _ = _headers(files)
        marked = [file for file in headers if is_segmentation(file.header)]
        if marked:
            return read_segmentation(marked, segment)
        contours = [file for file in headers if OBJECTS.get(text(file.header, "SOPClassUID")) == STRUCTURES]
        if contours:
            raise ScanError(
                f"{contours[0].path.name} is an RTSTRUCT: it holds contours, which are not read; save the structure as "
                "a mask (DICOM SEG or NIfTI), for example with 3D Slicer, and give that."
            )
    scan = read_dicom(files)
    return Scan((scan.voxels > 0).astype(np.float32), scan.affine, name=scan.name, notes=scan.notes)


def _headers(files: Sequence[Path]) -> tuple[list[DicomFile], int]:
    """The files that can be read, of copies the largest, and how many are damaged."""
    found: dict[tuple[str, ...], DicomFile] = {}
    unreadable = 0
    for path in files:
        try:
            file = read_header(path)
            size = path.stat().st_size
        except Exception:  # of many kinds; one damaged file must not spoil the others
            unreadable += 1
            continue
        uid = text(file.header, "SOPInstanceUID")
        # With its place: anonymisers have given all slices one UID.
        identity = (
            uid or str(path),
            *(
                text(file.header, key)
                for key in ("InstanceNumber", "ImagePositionPatient", "SeriesInstanceUID")
            ),
        )
        if identity not in found or found[identity].path.stat().st_size < size:
            found[identity] = file
    return list(found.values()), unreadable


def _sorted(headers: Sequence[DicomFile]) -> tuple[list[_Series], list[tuple[str, Odd]]]:
    """The series that hold image planes, and everything else that is a picture, with its series' name."""
    by_uid: dict[str, _Series] = {}
    for file in headers:
        if "Rows" not in file.header and not _was_image(file):
            continue
        found, odd = planes(file)
        uid = text(file.header, "SeriesInstanceUID")
        one = by_uid.setdefault(uid, _Series(series_name(file.header)))
        one.planes += found
        one.odd += odd
    series = [one for one in by_uid.values() if one.planes]
    aside = [(one.name, piece) for one in by_uid.values() if not one.planes for piece in one.odd]
    return _joined(series), aside


def _was_image(file: DicomFile) -> bool:
    """Whether an object without a picture was one before it was cut off, and not a report, a plan, a directory."""
    meta = getattr(file.header, "file_meta", Dataset())
    kind = text(file.header, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID")
    return not file.whole and (kind in IMAGES or not kind)


def _joined(series: list[_Series]) -> list[_Series]:
    """Joins series of one image each that belong together: some anonymisers give each slice a series of its own."""
    single = [one for one in series if len(one.planes) == 1 and one.planes[0].frame is None]
    if len(single) < MIN_SLICES:
        return series
    alike: dict[tuple, list[_Series]] = defaultdict(list)
    keys = ["SOPClassUID", "PatientID", "SeriesNumber", "SeriesDescription", "Modality", "ImageType"]
    for key in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if len({text(one.planes[0].header, key) for one in single}) < len(single):  # else spoiled as well
            keys.append(key)
    for one in single:
        plane = one.planes[0]
        geometry = (plane.shape, *np.round([*plane.orientation.ravel(), *plane.spacing], 3).tolist())
        alike[(geometry, *(text(plane.header, key) for key in keys))].append(one)
    joined = []
    for members in alike.values():
        if len(members) < MIN_SLICES:
            continue
        note = f"Each of {len(members)} slices is a series of its own, as an anonymiser may make it; they were joined."
        joined.append(
            _Series(
                members[0].name,
                [plane for one in members for plane in one.planes],
                [piece for one in members for piece in one.odd],
                [note],
            )
        )
        series = [one for one in series if one not in members]
    return series + joined


def _pick(series: _Series) -> None:
    try:
        series.stack = pick_stack(series.planes, series.odd, series.name)
    except ScanError as error:
        series.problem = error


def _first_readable(series: list[_Series]) -> tuple[Scan, _Series]:
    """The first series that can be read; projections and localizers do not stand in for a damaged volume."""
    for one in series:
        if one.stack is None or (one.rank >= NO_ORIGINAL and series[0].rank < NO_ORIGINAL):
            continue
        if one.slices < MIN_SLICES and any(other.problem for other in series):
            continue
        try:
            return _scan(one, one.stack), one
        except ScanError as error:
            one.problem = error
    # What is said of the largest is what the user needs to mend.
    problems = [one for one in series if one.problem and one.rank == min(s.rank for s in series)] or series
    largest = max(problems, key=lambda one: len(one.planes))
    assert largest.problem is not None
    raise largest.problem


def _scan(series: _Series, stack: Stack) -> Scan:
    notes = list(stack.notes)
    voxels = read_voxels(stack.planes, stack.copies, notes)
    first = stack.planes[0]
    lps = np.eye(4)
    rows, columns = first.spacing
    lps[:3, 0] = first.orientation[0] * columns
    lps[:3, 1] = first.orientation[1] * rows
    lps[:3, 2] = stack.step
    lps[:3, 3] = first.position
    source: DicomSource | None = _source(stack)
    if not np.array_equal(stack.heights, np.arange(len(stack.planes))):
        voxels, source = _evened(voxels, stack.heights), None
    return Scan(voxels, FLIP @ lps, first.modality or None, series_name(first.header), tuple(notes), source)


def _evened(voxels: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Slices at whole steps, interpolated linearly from slices at these heights."""
    count = int(np.floor(heights[-1] + 1e-3)) + 1
    check_count("The DICOM series", (*voxels.shape[:2], count))
    even = np.empty((*voxels.shape[:2], count), np.float32, order="F")
    for k in range(count):
        above = int(np.clip(np.searchsorted(heights, k), 1, len(heights) - 1))
        part = np.clip((k - heights[above - 1]) / (heights[above] - heights[above - 1]), 0.0, 1.0)
        even[:, :, k] = (1 - part) * voxels[:, :, above - 1] + part * voxels[:, :, above]
    return even


def _source(stack: Stack) -> DicomSource:
    """What is kept of the slices that became the scan."""
    identities = {
        plane.file: {key: text(plane.header, key) for key in IDENTITY}
        for plane in {plane.file: plane for plane in stack.planes}.values()
    }
    first = stack.planes[0]
    return DicomSource(
        kept(first.header),
        tuple(SourceSlice(identities[plane.file], plane.frame, plane.position) for plane in stack.planes),
        first.orientation,
        first.spacing,
        first.shape,
    )


# Notes and refusals


def _why_this(chosen: _Series, series: list[_Series]) -> list[str]:
    """Which of several series was taken, and why the others were not."""
    if len(series) == 1:
        return []
    others = [one for one in series if one is not chosen]
    name = f"{chosen.name} ({chosen.slices} slices)"
    equal = [
        one for one in others if one.slices == chosen.slices and one.rank == chosen.rank and not one.problem
    ]
    larger = [one for one in others if one.slices > chosen.slices]
    if equal:
        listed = ", ".join([chosen.name, *(one.name for one in equal[: NAMED - 1])])
        note = f"Of {len(series)} series, {len(equal) + 1} have equally many slices ({listed}); taken was {name}."
    elif larger:
        note = f"Of {len(series)} series, {name} was taken."
    else:
        note = f"Of {len(series)} series, the one with most slices was taken: {name}."
    notes = [note]
    for one in larger[:NAMED]:
        if one.problem:
            notes.append(f"{one.name} ({one.slices} slices) was left out: {one.problem}")
        else:
            what = {
                OTHER_MODALITY: f"it is of another kind ({one.planes[0].modality or 'unknown'})",
                NO_ORIGINAL: "it holds projections or screenshots",
                LOCALIZER: "it is a localizer",
            }.get(one.rank, "it was not wanted")
            notes.append(f"{one.name} ({one.slices} slices) was left out: {what}.")
    return notes


def _left_aside(aside: Sequence[tuple[str, Odd]], unreadable: int) -> list[str]:
    """What is no scan, and what may have been a part of one."""
    notes = []
    broken = unreadable + sum(piece.why in (CUT, DAMAGED) for _, piece in aside)
    counts = Counter(NOUNS.get(piece.why, piece.why) for _, piece in aside if piece.why not in (CUT, DAMAGED))
    if counts:
        listed = ", ".join(counted(n, noun) for noun, n in counts.items())
        notes.append(f"Not taken as a scan: {listed}.")
    if broken:
        which = "1 file is" if broken == 1 else f"{broken} files are"
        was = "was left out; if it is one" if broken == 1 else "were left out; if they are some"
        notes.append(f"{which} damaged or cut off and {was} of the scan's slices, the scan ends too early.")
    return notes


def _nothing(aside: Sequence[tuple[str, Odd]], headers: Sequence[DicomFile], unreadable: int) -> ScanError:
    """Why there is no volume at all."""
    if aside:
        why, _ = Counter(piece.why for _, piece in aside).most_common(1)[0]
        name, piece = next((name, piece) for name, piece in aside if piece.why == why)
        file = piece.file.path.name
        sentences = {
            COLOUR: f"The DICOM series {name} is in colour; a scan with one grey value a voxel is needed.",
            FILM: f"The DICOM file {file} is a film of {frame_count(piece.file.header)} frames without their places "
            "in the patient; export the original CT or MRI series.",
            MOSAIC: f"The DICOM series {name} is a Siemens mosaic, with all slices side by side in one picture; "
            "convert it with dcm2niix and give the NIfTI file.",
            NO_PLACE: f"The DICOM series {name} does not say where its slices lie (it may be a screenshot or a plain "
            "X-ray); export the original CT or MRI series.",
            CUT: "The DICOM files are damaged or cut off; export or download them again.",
            DAMAGED: "The DICOM files are damaged or cut off; export or download them again.",
        }
        return ScanError(
            sentences.get(why)
            or f"The DICOM files hold a {why} and no scan; give the CT or MRI series that it belongs to."
        )
    if unreadable:
        return ScanError("The DICOM files are damaged or cut off; export or download them again.")
    if any(OBJECTS.get(text(file.header, "SOPClassUID")) == STRUCTURES for file in headers):
        return ScanError(
            "The DICOM files hold no images, only contours (RTSTRUCT); give the CT or MRI series that they belong to."
        )
    return ScanError("The DICOM files hold no images (only a report, a plan or a directory).")
