"""Image planes: where each picture of a DICOM file lies in the patient, and what tells it from others."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from mst.errors import ScanError
from mst.scans.dicom.headers import real, reals, text, value_of, whole

# What tells apart volumes that were put into one series, in the order in which it is tried -> what people call it.
# Of an enhanced file each is looked for in the frame's own functional groups.
APART = {
    "ConvolutionKernel": "kernel",
    "ImageType": "image type",
    "FrameType": "image type",
    "ComplexImageComponent": "image type",
    "DiffusionBValue": "b-value",
    "EchoNumbers": "echo",
    "EchoTime": "echo time",
    "EffectiveEchoTime": "echo time",
    "InversionTime": "inversion time",
    "TemporalPositionIdentifier": "time point",
    "TemporalPositionIndex": "time point",
    "TriggerTime": "heart phase",
    "NominalCardiacTriggerDelayTime": "heart phase",
    "NominalPercentageOfCardiacPhase": "heart phase",
    "DiffusionGradientOrientation": "diffusion direction",
    "ContrastBolusAgent": "contrast agent",
    "AcquisitionNumber": "acquisition",
    "FrameAcquisitionNumber": "acquisition",
    "SliceThickness": "slice thickness",
    "AcquisitionTime": "acquisition time",
    "AcquisitionDateTime": "acquisition time",
    "FrameAcquisitionDateTime": "acquisition time",
    "ContentTime": "time",
    "SeriesTime": "time",
    "StackID": "stack",
    "file": "file",
}
# Functional groups in which these stand, at one level or two.
GROUPS = (
    "FrameContentSequence",
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "CTReconstructionSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "MRModifierSequence",
    "CardiacSynchronizationSequence",
    "TemporalPositionSequence",
)


@dataclass
class Plane:
    """One image plane of a series: where it lies and where its pixels are.

    Attributes:
        path, frame: the file, and the frame in it from 0; None in a file of one image.
        position: LPS millimetres of the first pixel's centre, shape (3,).
        orientation: direction cosines, shape (2, 3): along a row, down a column.
        spacing: millimetres between rows, between columns.
        slope, intercept: of the modality LUT; None where the file has none.
        shape: rows, columns.
        thickness: of the slice in millimetres; None where the file does not say.
        apart: the values of `APART` by keyword, those that it has.
        number: the order that the file itself gives.
    """

    path: Path
    frame: int | None
    position: np.ndarray
    orientation: np.ndarray
    spacing: tuple[float, float]
    slope: float | None
    intercept: float | None
    shape: tuple[int, int]
    thickness: float | None
    apart: dict[str, str] = field(default_factory=dict)
    number: int = 0

    @property
    def along(self) -> float:
        """How far along the plane's normal it lies, in millimetres."""
        return float(np.cross(*self.orientation) @ self.position)


def frames(header: Dataset) -> int:
    """How many frames a file holds.

    Raises:
        ValueError: the header says it in a way that is no number.
    """
    return max(whole(header, "NumberOfFrames", 1), 1)


def planes(path: Path, header: Dataset, name: str) -> list[Plane]:
    """The image planes of one file; [] where it does not say where it lies.

    Raises:
        ScanError: it is a film, or a mosaic.
        ValueError: its header holds what is no number.
    """
    shape = (whole(header, "Rows"), whole(header, "Columns"))
    number = whole(header, "InstanceNumber")
    groups = value_of(header, "PerFrameFunctionalGroupsSequence")
    if "MOSAIC" in text(header, "ImageType").upper().split("\\"):
        raise ScanError(
            f"The DICOM series {name} is a mosaic, with many slices in one picture; export it as single slices."
        )
    if not groups:
        if frames(header) > 1:
            raise ScanError(
                f"The DICOM file {path.name} is a film of {frames(header)} frames without their places in the "
                "patient; export the original CT or MRI series."
            )
        piece = _plane(path, None, shape, header, header, header, header, number)
        if piece is None:
            return []
        piece.apart = {key: text(header, key) for key in APART if text(header, key)} | {"file": path.name}
        return [piece]
    shared = (value_of(header, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    pieces = []
    for index, group in enumerate(groups):
        position, orientation, measures, scaling = (
            _group(key, group, shared)
            for key in (
                "PlanePositionSequence",
                "PlaneOrientationSequence",
                "PixelMeasuresSequence",
                "PixelValueTransformationSequence",
            )
        )
        piece = _plane(path, index, shape, position, orientation, measures, scaling, index)
        if piece is None:
            raise ScanError(f"The DICOM file {path.name} does not say where its frames lie; export it again.")
        piece.apart = _apart(group, shared) | {"file": path.name}
        pieces.append(piece)
    return pieces


def _plane(
    path: Path,
    frame: int | None,
    shape: tuple[int, int],
    position: Dataset,
    orientation: Dataset,
    measures: Dataset,
    scaling: Dataset,
    number: int,
) -> Plane | None:
    """A plane from the data sets that hold its parts; None where its place is missing or impossible."""
    where = reals(position, "ImagePositionPatient", 3)
    directions = reals(orientation, "ImageOrientationPatient", 6)
    spacing = reals(measures, "PixelSpacing", 2)
    if where is None or directions is None or spacing is None:
        return None
    rows = directions.reshape(2, 3)
    if min(spacing) <= 0 or np.linalg.norm(np.cross(*rows)) < 0.5:
        return None
    return Plane(
        path,
        frame,
        where,
        rows,
        (float(spacing[0]), float(spacing[1])),
        real(scaling, "RescaleSlope"),
        real(scaling, "RescaleIntercept"),
        shape,
        real(measures, "SliceThickness"),
        number=number,
    )


def _apart(group: Dataset, shared: Dataset) -> dict[str, str]:
    """What tells a frame from others, out of its functional groups."""
    found: dict[str, str] = {}
    for name in GROUPS:
        part = _group(name, group, shared)
        for key in APART:
            if value := text(part, key):
                found.setdefault(key, value)
        for inner in part:
            if inner.VR == "SQ" and inner.value and name == "MRDiffusionSequence":
                for key in APART:
                    if value := text(inner.value[0], key):
                        found.setdefault(key, value)
    return found


def _group(key: str, frame: Dataset, shared: Dataset) -> Dataset:
    items = value_of(frame, key) or value_of(shared, key) or [Dataset()]
    return items[0]
