"""What is kept of the DICOM series that a scan was read from, so that other objects can refer to it."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import dcmwrite, write_dataset
from pydicom.uid import ExplicitVRLittleEndian

# It warns of values that scanners write wrongly all the time; whoever opens the scan can do nothing about them.
warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")
# What an object has in common with the images that it refers to.
IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID")
# All of a header that is kept: what says whose the images are, of which study and series, and their form. Whatever
# is kept ends up in the objects that are made from it, so nothing is that says more of the patient.
KEPT = (
    *IDENTITY,
    "SpecificCharacterSet",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "Rows",
    "Columns",
    "PixelSpacing",
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
        header: `KEPT` of the first slice's file. It names the patient.
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
        """Plain JSON values, from which `unpack` makes the same source; the header is a DICOM file in base64."""
        content = io.BytesIO()
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dcmwrite(content, pydicom.FileDataset("", self.header, file_meta=meta), enforce_file_format=False)
        return {
            "header": base64.b64encode(content.getvalue()).decode("ascii"),
            "slices": [
                {"identity": piece.identity, "frame": piece.frame, "position": piece.position.tolist()}
                for piece in self.slices
            ],
            "orientation": self.orientation.tolist(),
            "spacing": list(self.spacing),
            "shape": list(self.shape),
        }

    @staticmethod
    def unpack(packed: dict[str, Any]) -> DicomSource:
        """The source that was packed.

        Raises:
            ValueError, KeyError, TypeError: it is not what `pack` gives.
        """
        data = pydicom.dcmread(io.BytesIO(base64.b64decode(packed["header"], validate=True)), force=True)
        rows, columns = packed["shape"]
        between_rows, between_columns = packed["spacing"]
        return DicomSource(
            kept(data),
            tuple(
                SourceSlice(dict(piece["identity"]), piece["frame"], np.array(piece["position"], float))
                for piece in packed["slices"]
            ),
            np.array(packed["orientation"], float).reshape(2, 3),
            (float(between_rows), float(between_columns)),
            (int(rows), int(columns)),
        )


def kept(header: Dataset) -> Dataset:
    """A header's `KEPT` values; one that cannot be read or written again is left out."""
    result = Dataset()
    for keyword in KEPT:
        try:
            element = header[keyword]
            alone = Dataset()
            alone.add(element)
            writer = DicomBytesIO()
            writer.is_little_endian, writer.is_implicit_VR = True, False
            write_dataset(writer, alone)
        except Exception:  # a missing value, or one that its scanner wrote wrongly
            continue
        result.add(element)
    return result
