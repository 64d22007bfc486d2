"""The image planes of a DICOM file, classic or enhanced multi-frame: where each lies and what is said of it.

Geometry as in DICOM PS3.3 C.7.6.2 (image plane) and C.7.6.16.2 (functional groups); LPS millimetres.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from pydicom.datadict import dictionary_description, keyword_for_tag
from pydicom.dataset import Dataset

from mst.scans.dicom_files import DicomFile, item, items, kind, number, numbers, text, whole_number, words

COMPONENTS = {"M": "magnitude", "P": "phase", "R": "real part", "I": "imaginary part"}
GE_COMPONENT = 0x0043102F  # GE's own tag: 0 magnitude, 1 phase, 2 real, 3 imaginary
POSITIONS = {"ImagePositionPatient", "ImageOrientationPatient", "InStackPositionNumber", "StackID"}

# Why a file or a frame is no slice of a volume: how a note counts it, and why a scan of it alone is refused.
COLOUR, FILM, MOSAIC, NO_PLACE, CUT, DAMAGED = "colour", "film", "mosaic", "no place", "cut", "damaged"
NOUNS = {
    COLOUR: "colour picture",
    FILM: "film",
    MOSAIC: "mosaic",
    NO_PLACE: "image without a place in the patient",
    CUT: "file that is cut off",
    DAMAGED: "damaged file",
}


@dataclass(frozen=True)
class Odd:
    """A file (or one of its frames) that is no slice of a volume.

    Attributes:
        file: the file.
        why: one of `NOUNS`, or an object's kind as in `dicom_files.OBJECTS`.
    """

    file: DicomFile
    why: str


@dataclass(frozen=True, eq=False)
class Plane:
    """One image plane: where it lies and where its pixels are.

    Attributes:
        file, frame: its file; its frame there, from 0, None in a file of one image.
        position: of the first pixel's centre, LPS millimetres, shape (3,).
        orientation: direction cosines along a row and down a column, shape (2, 3).
        spacing: millimetres between rows, between columns.
        shape: rows, columns.
        groups: what the file says of this frame alone, then of all its frames; the header comes last.
    """

    file: DicomFile
    frame: int | None
    position: np.ndarray
    orientation: np.ndarray
    spacing: tuple[float, float]
    shape: tuple[int, int]
    groups: tuple[Dataset, ...] = field(default=(), repr=False)

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def header(self) -> Dataset:
        return self.file.header

    @cached_property
    def along(self) -> float:
        """Where it lies along its own normal, millimetres."""
        return float(np.cross(*self.orientation) @ self.position)

    @cached_property
    def number(self) -> int | None:
        """Its place in the order in which the series was made; None where the file does not say."""
        if self.frame is not None:
            return self.frame
        value = number(self.header, "InstanceNumber")
        return None if value is None else int(value)

    @cached_property
    def in_stack(self) -> int | None:
        """A frame's place in its stack; None where the file does not say."""
        value = self.said("InStackPositionNumber")
        return int(value) if value.isdecimal() and len(value) < 12 else None

    @cached_property
    def modality(self) -> str:
        return text(self.header, "Modality")

    @cached_property
    def kinds(self) -> set[str]:
        """What its ImageType and FrameType say, in capitals."""
        return words(self.said("ImageType")) | words(self.said("FrameType"))

    @cached_property
    def component(self) -> str:
        """Which part of the complex MR signal it shows: "magnitude", "phase", ...; "" where nothing is said."""
        said = self.said("ComplexImageComponent").upper()
        kinds = {said} if said else words("\\".join(self.said("ImageType").split("\\")[2:]))
        for letter, component in COMPONENTS.items():
            whole = component.split()[0].upper()
            if letter in kinds or any(kind.startswith(whole) for kind in kinds):
                return component
        by_ge = text(self.header, GE_COMPONENT)
        return list(COMPONENTS.values())[int(by_ge)] if by_ge in ("0", "1", "2", "3") else ""

    @cached_property
    def inherited(self) -> dict[str, str]:
        """All plain values of the functional groups by keyword; a frame's own stand before the shared ones."""
        found: dict[str, str] = {}
        for group in self.groups:
            for keyword, value in _plain_values(group):
                found.setdefault(keyword, value)
        for index, name in enumerate(_dimensions(self.header)):
            values = found.get("DimensionIndexValues", "").split("\\")
            if name and index < len(values):
                found[f"dimension {name}"] = values[index]
        found.pop("DimensionIndexValues", None)
        return found

    def said(self, keyword: str) -> str:
        """What is said of this plane under a keyword, as one line; "" where nothing is."""
        return self.inherited.get(keyword) or text(self.header, keyword)

    def value(self, group: str, keyword: str) -> float | None:
        """A number from a functional group or, in a file of one image, the header."""
        if self.frame is None:
            return number(self.header, keyword)
        for place in self.groups:
            found = number(item(place, group), keyword)
            if found is not None:
                return found
        return number(self.header, keyword)


def planes(file: DicomFile) -> tuple[list[Plane], list[Odd]]:
    """The image planes of a file that holds pictures, and what in it is none."""
    header = file.header
    shape = (whole_number(header, "Rows"), whole_number(header, "Columns"))
    photometric = text(header, "PhotometricInterpretation").upper()
    object_kind = kind(header)
    frames = frame_count(header)
    if object_kind:
        return [], [Odd(file, object_kind)]
    if not file.whole:
        return [], [Odd(file, CUT)]
    if min(*shape, frames) < 1:
        return [], [Odd(file, DAMAGED)]
    if whole_number(header, "SamplesPerPixel", 1) > 1 or photometric.startswith(("PALETTE", "RGB", "YBR")):
        return [], [Odd(file, COLOUR)]
    if "MOSAIC" in words(text(header, "ImageType")):
        return [], [Odd(file, MOSAIC)]
    groups = items(header, "PerFrameFunctionalGroupsSequence")
    if not groups:
        if frames > 1:
            return [], [Odd(file, FILM)]
        plane = _plane(file, None, header, header, header, shape, ())
        return ([plane], []) if plane else ([], [Odd(file, NO_PLACE)])
    if len(groups) != frames:
        return [], [Odd(file, DAMAGED)]
    shared = item(header, "SharedFunctionalGroupsSequence")
    found: list[Plane] = []
    odd: list[Odd] = []
    for index, group in enumerate(groups):
        position, orientation, measures = (
            next((place for place in (item(g, key) for g in (group, shared)) if len(place)), Dataset())
            for key in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        )
        plane = _plane(file, index, position, orientation, measures, shape, (group, shared))
        if plane:
            found.append(plane)
        else:
            odd.append(Odd(file, NO_PLACE))
    return found, odd


def frame_count(header: Dataset) -> int:
    """How many frames a file says that it holds; 0 where that is no number."""
    if "NumberOfFrames" not in header:
        return 1
    try:
        if not header["NumberOfFrames"].value:
            return 1
    except Exception:  # of many kinds
        return 0
    return max(whole_number(header, "NumberOfFrames"), 0)


def _plane(
    file: DicomFile,
    frame: int | None,
    position: Dataset,
    orientation: Dataset,
    measures: Dataset,
    shape: tuple[int, int],
    groups: tuple[Dataset, ...],
) -> Plane | None:
    """None where its place is not said."""
    at = numbers(position, "ImagePositionPatient", 3)
    cosines = numbers(orientation, "ImageOrientationPatient", 6)
    spacing = numbers(measures, "PixelSpacing", 2)
    if at is None or cosines is None or spacing is None:
        return None
    directions = cosines.reshape(2, 3)
    if not 0.5 < float(np.linalg.norm(np.cross(*directions))) < 1.5:
        return None
    return Plane(file, frame, at, directions, (float(spacing[0]), float(spacing[1])), shape, groups)


def _plain_values(group: Dataset) -> Iterator[tuple[str, str]]:
    """The values in a functional group's sequences, whatever they are called."""
    for tag in list(group.keys()):
        keyword = keyword_for_tag(tag)
        try:
            nested = group[tag].VR == "SQ"
        except Exception:  # a damaged element says nothing
            continue
        if nested:
            for inner in items(group, keyword) if keyword else []:
                yield from _plain_values(inner)
        elif keyword:
            yield keyword, text(group, keyword)
        else:
            yield f"tag {tag}", text(group, int(tag))


def _dimensions(header: Dataset) -> list[str]:
    """A name for each dimension of a multi-frame file; "" for those that say where a frame lies."""
    names = []
    for dimension in items(header, "DimensionIndexSequence"):
        try:
            tag = dimension.DimensionIndexPointer
            keyword = keyword_for_tag(tag)
            known = dictionary_description(tag) if keyword else ""
        except Exception:
            keyword, known = "", ""
        label = text(dimension, "DimensionDescriptionLabel")[:32] or known or "without a name"
        names.append("" if keyword in POSITIONS else label)
    return names
