"""Makes small scans in the formats that scanners and programs write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

SHAPE = (14, 12, 10)  # columns, rows, slices
SPACING = (0.8, 1.1, 2.5)  # between columns, rows, slices
AXIAL = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])  # LPS: along a row, down a column, normal


def tilted() -> np.ndarray:
    """Directions of an oblique stack."""
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    lean = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return AXIAL @ turn @ lean


def volume(seed: int = 0) -> np.ndarray:
    """Whole numbers like a CT's, [columns, rows, slices]; one voxel stands out."""
    voxels = np.random.default_rng(seed).integers(-900, 300, SHAPE)
    voxels[3, 8, 2] = 1500
    return voxels


def lps_affine(directions: np.ndarray = AXIAL) -> np.ndarray:
    """Voxel index (column, row, slice) -> LPS millimetres."""
    affine = np.eye(4)
    affine[:3, :3] = directions.T * SPACING
    affine[:3, 3] = (-20.0, 31.0, -55.5)
    return affine


def ras_affine(directions: np.ndarray = AXIAL) -> np.ndarray:
    """Voxel index (column, row, slice) -> RAS millimetres."""
    return np.diag([-1.0, -1, 1, 1]) @ lps_affine(directions)


def dicom_series(
    folder: Path,
    directions: np.ndarray = AXIAL,
    skip: tuple[int, ...] = (),
    seed: int = 0,
    slope: float = 2.0,
    series: str | None = None,
    description: str = "THORAX 1.0",
    count: int = SHAPE[2],
    prefix: str = "",
) -> list[Path]:
    """A classic series, one file a slice, under names and numbers that say nothing of the order."""
    folder.mkdir(parents=True, exist_ok=True)
    voxels, affine = volume(seed), lps_affine(directions)
    order = np.random.default_rng(5).permutation(count)
    series, study, frame = series or generate_uid(), generate_uid(), generate_uid()
    paths = []
    for number, k in enumerate(order):
        if k in skip:
            continue
        data = _image(CTImageStorage, study, series, frame, description)
        data.InstanceNumber = number + 1
        data.ImagePositionPatient = [float(v) for v in affine[:3, 3] + k * affine[:3, 2]]
        data.ImageOrientationPatient = [float(v) for v in directions[:2].ravel()]
        data.PixelSpacing = [SPACING[1], SPACING[0]]
        data.SliceThickness = 9.0  # wrong, as it often is: positions decide
        # Each slice has a slope of its own, as PET and some MRI have.
        factor = slope if k % 2 else slope / 2
        data.RescaleSlope, data.RescaleIntercept = factor, -1024.0
        stored = np.round((voxels[:, :, k].T + 1024) / factor)
        _pixels(data, stored)
        path = folder / f"{prefix}IM{number:03d}"
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def enhanced_dicom(path: Path, directions: np.ndarray = AXIAL) -> Path:
    """The same volume as one enhanced multi-frame file, its frames out of order."""
    voxels, affine = volume(), lps_affine(directions)
    data = _image(EnhancedCTImageStorage, generate_uid(), generate_uid(), generate_uid(), "ENHANCED")
    measures, orientation, scaling = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[0]], 2.5
    orientation.ImageOrientationPatient = [float(v) for v in directions[:2].ravel()]
    scaling.RescaleSlope, scaling.RescaleIntercept, scaling.RescaleType = 1.0, -1024.0, "HU"
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelValueTransformationSequence = Sequence([scaling])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    order = np.random.default_rng(1).permutation(SHAPE[2])
    groups = []
    for k in order:
        place, group = Dataset(), Dataset()
        place.ImagePositionPatient = [float(v) for v in affine[:3, 3] + k * affine[:3, 2]]
        group.PlanePositionSequence = Sequence([place])
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = Sequence(groups)
    data.NumberOfFrames = SHAPE[2]
    _pixels(data, np.stack([voxels[:, :, k].T + 1024 for k in order]))
    data.save_as(path, enforce_file_format=True)
    return path


def _image(kind: str, study: str, series: str, frame: str, description: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = series, study, frame
    data.Modality, data.SeriesDescription, data.SeriesNumber = "CT", description, 4
    data.PatientName, data.PatientID = "Secret^Name", "12345"
    return data


def _pixels(data: Dataset, stored: np.ndarray) -> None:
    data.Rows, data.Columns = stored.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = stored.astype("<u2").tobytes()
