"""DICOM: the slices of a series, classic or enhanced multi-frame, become one volume.

Geometry as in DICOM PS3.3 C.7.6.2 (image plane) and C.7.6.16.2 (functional groups). DICOM's LPS axes are
turned to RAS.
"""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from mst.errors import ScanError
from mst.scans.scan import Scan
from mst.scans.source import IDENTITY, DicomSource, SourceSlice

logging.getLogger("pydicom").setLevel(logging.ERROR)

SAME_DIRECTION = 1e-3
SAME_POSITION_MM = 1e-2
# What tells repeated acquisitions at the same positions apart, in the order in which they are tried.
REPEATS = ("TemporalPositionIdentifier", "AcquisitionNumber", "EchoNumbers", "TriggerTime", "DiffusionBValue")
FIRST_BULKY_GROUP = 0x5000  # curves, waveforms, overlays and pixels
BULKY = (
    "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
    "IconImageSequence",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
)


@dataclass
class _Slice:
    """One image plane of a series: where it lies and where its pixels are."""

    path: Path
    frame: int | None
    position: np.ndarray  # LPS millimetres of the first pixel
    orientation: np.ndarray  # direction cosines, shape (2, 3): along a row, down a column
    spacing: tuple[float, float]  # millimetres between rows, between columns
    slope: float
    intercept: float
    shape: tuple[int, int]  # rows, columns
    repeat: dict[str, Any]
    number: int


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its content; files without the preamble count if they hold an image."""
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    # Without the preamble, the file starts with a group 0002 or 0008 tag, little endian.
    if start[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    try:
        return "SOPClassUID" in _header(path, force=True)
    except (InvalidDicomError, EOFError, ValueError, OSError, AttributeError):
        return False


def read_dicom(files: Sequence[Path]) -> Scan:
    """Reads the series with most slices among DICOM files.

    Raises:
        ScanError: no file holds an image with its place in the patient, slices are missing or differ in size
            or direction, or the image is in colour.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values that scanners write wrongly all the time
        series: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
        seen: set[str] = set()
        unreadable = 0
        for path in files:
            try:
                header = _header(path, force=True)
            except (InvalidDicomError, EOFError, ValueError, OSError):
                unreadable += 1
                continue
            identity = str(header.get("SOPInstanceUID") or path)
            if "Rows" in header and "Columns" in header and identity not in seen:
                seen.add(identity)
                series[str(header.get("SeriesInstanceUID", ""))].append((path, header))
        if not series:
            if unreadable:
                raise ScanError("The DICOM files are damaged or cut off; export or download them again.")
            raise ScanError("The DICOM files hold no images (only a report, a plan or a directory).")
        chosen = max(series.values(), key=lambda members: sum(_frames(header) for _, header in members))
        notes = []
        if len(series) > 1:
            notes.append(
                f"Of {len(series)} series, the one with most slices was taken: {_name(chosen[0][1])} "
                f"({sum(_frames(header) for _, header in chosen)} slices)."
            )
        return _read_series(chosen, notes)


def _read_series(members: list[tuple[Path, Dataset]], notes: list[str]) -> Scan:
    first = members[0][1]
    name = _name(first)
    if any(int(header.get("SamplesPerPixel", 1)) > 1 for _, header in members):
        raise ScanError(
            f"The DICOM series {name} is in colour; a scan with one grey value a voxel is needed."
        )
    slices = [piece for path, header in members for piece in _slices(path, header, name)]
    slices = _one_stack(_one_size(slices, name), name, notes)
    if len(slices) < 2:
        raise ScanError(f"The DICOM series {name} is a single slice; upload all files of the series.")
    step = _step(slices, name)
    voxels = _voxels(slices, name)
    lps = np.eye(4)
    rows, columns = slices[0].spacing
    lps[:3, 0] = slices[0].orientation[0] * columns
    lps[:3, 1] = slices[0].orientation[1] * rows
    lps[:3, 2] = step
    lps[:3, 3] = slices[0].position
    modality = str(first.get("Modality", "")) or None
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    source = _source(slices, dict(members))
    return Scan(voxels, affine, modality=modality, name=name, notes=tuple(notes), source=source)


def _source(slices: list[_Slice], headers: dict[Path, Dataset]) -> DicomSource:
    """What is kept of the slices that became the scan; the first one's header is cut down in place."""
    identities = {
        path: {key: str(headers[path].get(key) or "") for key in IDENTITY}
        for path in {piece.path for piece in slices}
    }
    first = slices[0]
    header = headers[first.path]
    # By tag, so that no value is decoded: one that its scanner wrote wrongly is no reason to refuse the scan.
    bulky = {tag_for_keyword(keyword) for keyword in BULKY}
    for tag in list(header.keys()):
        if tag.is_private or tag.group >= FIRST_BULKY_GROUP or tag in bulky:
            del header[tag]
    return DicomSource(
        header,
        tuple(SourceSlice(identities[piece.path], piece.frame, piece.position) for piece in slices),
        first.orientation,
        first.spacing,
        first.shape,
    )


def _slices(path: Path, header: Dataset, name: str) -> list[_Slice]:
    """The image planes of one file."""
    shape = (int(header.Rows), int(header.Columns))
    number = int(header.get("InstanceNumber") or 0)
    if _frames(header) == 1 and "PerFrameFunctionalGroupsSequence" not in header:
        if any(
            not header.get(key) for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        ):
            raise ScanError(
                f"The DICOM series {name} does not say where its slices lie (it may be a screenshot or a plain "
                "X-ray); export the original CT or MRI series."
            )
        return [
            _Slice(
                path,
                None,
                np.array(header.ImagePositionPatient, float),
                np.array(header.ImageOrientationPatient, float).reshape(2, 3),
                _pair(header.PixelSpacing),
                _number(header.get("RescaleSlope"), 1.0),
                _number(header.get("RescaleIntercept"), 0.0),
                shape,
                {key: str(header.get(key)) for key in REPEATS},
                number,
            )
        ]
    if "PerFrameFunctionalGroupsSequence" not in header:
        raise ScanError(
            f"The DICOM file {path.name} is a film of {_frames(header)} frames without their places in the "
            "patient; export the original CT or MRI series."
        )
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    pieces = []
    for index, group in enumerate(header.PerFrameFunctionalGroupsSequence):
        position = _group("PlanePositionSequence", group, shared)
        orientation = _group("PlaneOrientationSequence", group, shared)
        measures = _group("PixelMeasuresSequence", group, shared)
        scaling = _group("PixelValueTransformationSequence", group, shared)
        content = _group("FrameContentSequence", group, shared)
        if "ImagePositionPatient" not in position or "PixelSpacing" not in measures:
            raise ScanError(f"The DICOM file {path.name} does not say where its frames lie; export it again.")
        repeat = {
            key: str(content.get(key))
            for key in ("StackID", "TemporalPositionIndex", "FrameAcquisitionNumber")
        }
        pieces.append(
            _Slice(
                path,
                index,
                np.array(position.ImagePositionPatient, float),
                np.array(orientation.ImageOrientationPatient, float).reshape(2, 3),
                _pair(measures.PixelSpacing),
                _number(scaling.get("RescaleSlope"), 1.0),
                _number(scaling.get("RescaleIntercept"), 0.0),
                shape,
                repeat,
                index,
            )
        )
    return pieces


def _one_size(slices: list[_Slice], name: str) -> list[_Slice]:
    shapes = {piece.shape for piece in slices}
    if len(shapes) > 1:
        sizes = " and ".join(f"{columns} x {rows}" for rows, columns in sorted(shapes))
        raise ScanError(
            f"The DICOM series {name} mixes slices of different sizes ({sizes}); upload one series."
        )
    if any(not np.allclose(p.orientation, slices[0].orientation, atol=SAME_DIRECTION) for p in slices):
        raise ScanError(f"The DICOM series {name} mixes slices of different directions; upload one series.")
    if any(not np.allclose(p.spacing, slices[0].spacing, rtol=1e-3) for p in slices):
        raise ScanError(
            f"The DICOM series {name} mixes slices of different pixel spacing; upload one series."
        )
    return slices


def _one_stack(slices: list[_Slice], name: str, notes: list[str]) -> list[_Slice]:
    """The slices sorted along their normal; of several at each position (phases, echoes), the first stack."""
    along = {id(piece): _along(piece) for piece in slices}
    slices = sorted(slices, key=lambda piece: (along[id(piece)], piece.number))
    places = _distinct([along[id(piece)] for piece in slices])
    if places == len(slices):
        return slices
    for key in slices[0].repeat:
        groups: dict[str, list[_Slice]] = defaultdict(list)
        for piece in slices:
            groups[piece.repeat[key]].append(piece)
        stacks = [g for g in groups.values() if _distinct([along[id(p)] for p in g]) == len(g) == places]
        if len(stacks) > 1:
            first = min(stacks, key=lambda stack: min(piece.number for piece in stack))
            notes.append(
                f"The series holds {len(groups)} volumes at the same place; the first one was taken."
            )
            return first
    stack = [slices[0]]
    for piece in slices[1:]:
        if along[id(piece)] - along[id(stack[-1])] > SAME_POSITION_MM:
            stack.append(piece)
    notes.append(
        f"The series holds {len(slices)} slices at {len(stack)} places; the first one at each place was taken."
    )
    return stack


def _step(slices: list[_Slice], name: str) -> np.ndarray:
    """The vector from one slice to the next, LPS millimetres.

    Raises:
        ScanError: the steps differ, so slices are missing.
    """
    along = np.array([_along(piece) for piece in slices])
    steps = np.diff(along)
    usual = float(np.median(steps))
    wrong = np.abs(steps - usual) > max(0.1, 0.05 * usual)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ScanError(
            f"The DICOM series {name} has a gap: slices {at + 1} and {at + 2} are {steps[at]:.1f} mm apart, the others "
            f"{usual:.1f} mm; upload all slices of the series."
        )
    return (slices[-1].position - slices[0].position) / (len(slices) - 1)


def _voxels(slices: list[_Slice], name: str) -> np.ndarray:
    """Rescaled pixels, float32 [columns, rows, slices]."""
    rows, columns = slices[0].shape
    voxels = np.empty((columns, rows, len(slices)), np.float32)
    opened: tuple[Path, np.ndarray] | None = None
    for index, piece in enumerate(slices):
        try:
            if opened is None or opened[0] != piece.path:
                opened = (piece.path, pydicom.dcmread(piece.path, force=True).pixel_array)
        except Exception as error:  # each decoder has errors of its own
            raise ScanError(
                f"The picture in the DICOM file {piece.path.name} is cut off, damaged or compressed in an unknown way; "
                "export the series again."
            ) from error
        pixels = opened[1] if piece.frame is None or opened[1].ndim == 2 else opened[1][piece.frame]
        voxels[:, :, index] = pixels.T.astype(np.float32) * np.float32(piece.slope) + np.float32(
            piece.intercept
        )
    return voxels


def _header(path: Path, force: bool) -> Dataset:
    return pydicom.dcmread(path, stop_before_pixels=True, force=force)


def _frames(header: Dataset) -> int:
    return max(int(header.get("NumberOfFrames") or 1), 1)


def _name(header: Dataset) -> str:
    """The series' description or number; never the patient's name."""
    return str(header.get("SeriesDescription") or "").strip() or f"series {header.get('SeriesNumber') or 1}"


def _group(key: str, frame: Dataset, shared: Dataset) -> Dataset:
    items = frame.get(key) or shared.get(key) or [Dataset()]
    return items[0]


def _along(piece: _Slice) -> float:
    return float(np.cross(*piece.orientation) @ piece.position)


def _distinct(values: Iterable[float]) -> int:
    return int((np.diff(np.sort(list(values))) > SAME_POSITION_MM).sum()) + 1


def _pair(value: Any) -> tuple[float, float]:
    first, second = value
    return float(first), float(second)


def _number(value: Any, default: float) -> float:
    return default if value in (None, "") else float(value)
