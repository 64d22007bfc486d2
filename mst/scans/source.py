"""What is kept of the DICOM series that a scan was read from, so that other objects can refer to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

# What an object has in common with the images that it refers to.
IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID")
# What identifies patient, study and series; what else a header says of a person has no place in what is made here.
KEPT = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "SeriesNumber",
    "Modality",
    "PositionReferenceIndicator",
    "Rows",
    "Columns",
    *IDENTITY,
)


@dataclass(frozen=True)
class SourceSlice:
    """One slice of a scan in the DICOM series that it was read from.

    Attributes:
        identity: the UIDs of `IDENTITY` by keyword, "" where the file has none.
        frame: the slice's frame in an enhanced multi-frame file, from 0; None in a file of one image.
        position: of its first pixel's centre, LPS millimetres, shape (3,).
    """

    identity: dict[str, str]
    frame: int | None
    position: np.ndarray


@dataclass(frozen=True, repr=False)
class DicomSource:
    """What is kept of a DICOM series so that other objects can refer to it; no pixels.

    Attributes:
        header: of the first slice's file, of which `KEPT` is kept. It names the patient.
        slices: one for each slice of the scan, in the scan's order.
        orientation: direction cosines along a row and down a column, LPS, shape (2, 3).
        spacing: millimetres between rows, between columns.
        shape: rows, columns.
    """

    header: Dataset
    slices: tuple[SourceSlice, ...]
    orientation: np.ndarray
    spacing: tuple[float, float]
    shape: tuple[int, int]

    def pack(self) -> dict[str, Any]:
        """As plain values that go through JSON; see `unpack`. The header is in DICOM's JSON model (PS3.18 F)."""
        return {
            "header": self.header.to_json_dict(suppress_invalid_tags=True),
            "slices": [[piece.identity, piece.frame, piece.position.tolist()] for piece in self.slices],
            "orientation": self.orientation.tolist(),
            "spacing": list(self.spacing),
            "shape": list(self.shape),
        }

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> DicomSource:
        """What `pack` gave."""
        rows, columns = packed["spacing"]
        high, wide = packed["shape"]
        return cls(
            Dataset.from_json(packed["header"]),
            tuple(
                SourceSlice(identity, frame, np.array(position, float))
                for identity, frame, position in packed["slices"]
            ),
            np.array(packed["orientation"], float),
            (rows, columns),
            (high, wide),
        )


def kept(header: Dataset) -> Dataset:
    """A data set with no more of a header than `KEPT`. No value is decoded: a wrong one is no reason for a refusal."""
    tags = {tag_for_keyword(keyword) for keyword in KEPT}
    small = Dataset()
    for tag in list(header.keys()):
        if tag in tags:
            small[tag] = header.get_item(tag)
    return small
