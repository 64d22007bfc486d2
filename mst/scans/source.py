"""What is kept of the DICOM series that a scan was read from, so that other objects can refer to it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

# What an object has in common with the images that it refers to.
IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID")


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
        header: of the first slice's file, without what is private or large. It names the patient.
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
        """As plain values that go through JSON; see `unpack`."""
        content = BytesIO()
        pydicom.dcmwrite(content, self.header, implicit_vr=False, little_endian=True)
        return {
            "header": base64.b64encode(content.getvalue()).decode(),
            "slices": [[piece.identity, piece.frame, piece.position.tolist()] for piece in self.slices],
            "orientation": self.orientation.tolist(),
            "spacing": list(self.spacing),
            "shape": list(self.shape),
        }

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> DicomSource:
        """What `pack` gave."""
        header = pydicom.dcmread(BytesIO(base64.b64decode(packed["header"])), force=True)
        slices = tuple(
            SourceSlice(identity, frame, np.array(position, float))
            for identity, frame, position in packed["slices"]
        )
        rows, columns = packed["spacing"]
        return cls(
            header, slices, np.array(packed["orientation"], float), (rows, columns), tuple(packed["shape"])
        )
