"""Makes small public data sets, laid out as their downloads are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

RATED = (
    "subtlety",
    "internalStructure",
    "calcification",
    "sphericity",
    "margin",
    "lobulation",
    "spiculation",
)
RATED += ("texture", "malignancy")


def write_series(
    folder: Path,
    voxels: np.ndarray,
    *,
    spacing: Sequence[float] = (1.0, 1.0, 2.0),
    origin: Sequence[float] = (-20.0, -30.0, -50.0),
    head_first: bool = False,
    modality: str = "CT",
    patient: str = "P",
    description: str = "",
    uid: str | None = None,
    intercept: float = -1024.0,
    thickness: float | None = None,
) -> tuple[str, list[str]]:
    """A series as TCIA's downloader names it, 1-001.dcm and so on.

    Args:
        voxels: [columns, rows, slices], slices from the feet up.
        spacing: mm between columns, rows, slices.
        origin: LPS mm of the first voxel.
        head_first: whether image 1 is the highest slice.

    Returns:
        its SeriesInstanceUID, and its SOPInstanceUIDs from the lowest slice up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or generate_uid()
    kind = CTImageStorage if modality == "CT" else MRImageStorage
    count = voxels.shape[2]
    images = []
    for k in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID = uid, "1.2.3"
        data.Modality, data.SeriesDescription, data.PatientID = modality, description, patient
        data.InstanceNumber = count - k if head_first else k + 1
        data.ImagePositionPatient = [origin[0], origin[1], origin[2] + k * spacing[2]]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [spacing[1], spacing[0]], thickness or spacing[2]
        data.RescaleSlope, data.RescaleIntercept = 1.0, intercept
        data.Rows, data.Columns = voxels.shape[1], voxels.shape[0]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.PixelData = (voxels[:, :, k].T - intercept).astype("<u2").tobytes()
        data.save_as(folder / f"1-{data.InstanceNumber:03d}.dcm", enforce_file_format=True)
        images.append(str(data.SOPInstanceUID))
    return uid, images


def ring(center: tuple[int, int], radius: int) -> list[tuple[int, int]]:
    """The closed chain of pixels (column, row) of a square round a pixel, as readers click it."""
    (x, y), r = center, radius
    top = [(x + i, y - r) for i in range(-r, r + 1)]
    right = [(x + r, y + i) for i in range(-r + 1, r + 1)]
    bottom = [(x - i, y + r) for i in range(-r + 1, r + 1)]
    left = [(x - r, y - i) for i in range(-r + 1, r + 1)]
    return [*top, *right, *bottom, *left]


def roi(uid: str, z: float, points: list[tuple[int, int]], inclusion: bool = True) -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    return (
        f"<roi><imageZposition>{z} </imageZposition><imageSOP_UID>{uid}</imageSOP_UID>"
        f"<inclusion>{'TRUE' if inclusion else 'FALSE'}</inclusion>{edges}</roi>"
    )


def nodule(name: str, rois: Sequence[str], malignancy: int | str | None = 5, **ratings: int | str) -> str:
    """A reader's nodule; without a malignancy it is smaller than 3 mm and has no characteristics."""
    values: dict[str, int | str] = dict.fromkeys(RATED, 3) | {"calcification": 6} | ratings
    values["malignancy"] = malignancy or ""
    rated = "".join(f"<{key}>{value}</{key}>" for key, value in values.items())
    characteristics = "" if malignancy is None else f"<characteristics>{rated}</characteristics>"
    return f"<unblindedReadNodule><noduleID>{name}</noduleID>{characteristics}{''.join(rois)}</unblindedReadNodule>"


def write_reads(
    path: Path, series: str, sessions: Sequence[Sequence[str]], root: str = "LidcReadMessage"
) -> None:
    """The readers' XML as LIDC-IDRI has it."""
    readers = "".join(
        "<readingSession><annotationVersion>3.12</annotationVersion>"
        f"<servicingRadiologistID>anonymous</servicingRadiologistID>{''.join(nodules)}"
        "<nonNodule><nonNoduleID>9</nonNoduleID><imageZposition>-50</imageZposition><imageSOP_UID>1.2</imageSOP_UID>"
        "<locus><xCoord>3</xCoord><yCoord>3</yCoord></locus></nonNodule></readingSession>"
        for nodules in sessions
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<{root} uid="1.3.6.1" xmlns="http://www.nih.gov" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xsi:schemaLocation="http://www.nih.gov http://troll.rad.med.umich.edu/lidc/LidcReadMessage.xsd">'
        "<ResponseHeader><Version>1.8.1</Version><MessageId>-421198203</MessageId>"
        f"<SeriesInstanceUid>{series}</SeriesInstanceUid><StudyInstanceUID>1.2.3</StudyInstanceUID>"
        f"</ResponseHeader>{readers}</{root}>",
        encoding="utf-8",
    )
