"""The DICOM series of a download from The Cancer Imaging Archive: a folder a patient, a folder a series below it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from mst.scans import Scan, ScanError, read_scan
from mst.scans.dicom_volumes import SAME_POSITION_MM


@dataclass(frozen=True)
class Series:
    """A folder with the slices of one series.

    Attributes:
        folder, files: where it lies; the files are sorted by name.
        uid: SeriesInstanceUID.
        modality: "CT", "MR", ...; "" where the files do not say.
        description: SeriesDescription.
    """

    folder: Path
    files: tuple[Path, ...]
    uid: str
    modality: str
    description: str

    def read(self) -> Scan:
        """The series as a scan, its slices sorted along their normal.

        Raises:
            ScanError: it is not one usable volume.
        """
        return read_scan(self.files)

    def slices(self) -> SliceIndex:
        """Where each of its images lies in the scan that `read` gives.

        Raises:
            ScanError: a file is damaged, says no place, or is of another series.
        """
        headers = [_header(path) for path in self.files]
        try:
            return self._index(headers)
        except ScanError:
            raise
        except (ValueError, TypeError, OverflowError) as error:
            # pydicom turns a header's text into numbers when they are asked for.
            raise ScanError(
                f"a header in {self.folder.name} holds a number that is none ({error}); download the series again."
            ) from error

    def _index(self, headers: Sequence[Dataset]) -> SliceIndex:
        for path, header in zip(self.files, headers, strict=True):
            if str(header.get("SeriesInstanceUID", "")) != self.uid:
                raise ScanError(f"{path.name} is of another series than the rest of {self.folder.name}.")
            if not header.get("ImagePositionPatient") or not header.get("ImageOrientationPatient"):
                raise ScanError(f"{path.name} does not say where its slice lies.")
        directions = np.array(headers[0].ImageOrientationPatient, float).reshape(2, 3)
        positions = np.array([header.ImagePositionPatient for header in headers], float)
        along = positions @ np.cross(*directions)
        order = np.argsort(along, kind="stable")
        # Several images at one place count once, as in mst.scans.dicom.
        rank = np.concatenate([[0], np.cumsum(np.diff(along[order]) > SAME_POSITION_MM)])
        place = np.empty(len(order), int)
        place[order] = rank
        heights = np.zeros(int(rank[-1]) + 1)
        heights[place] = positions[:, 2]
        numbers = [int(header.get("InstanceNumber") or 0) for header in headers]
        thickness = headers[0].get("SliceThickness")
        return SliceIndex(
            by_uid={str(h.get("SOPInstanceUID", "")): int(k) for h, k in zip(headers, place, strict=True)},
            in_order=tuple(int(place[i]) for i in np.argsort(numbers, kind="stable")),
            heights=heights,
            thickness_mm=float(thickness) if thickness else 0.0,
        )


@dataclass(frozen=True)
class SliceIndex:
    """Which image of a series is which slice k of its scan.

    Attributes:
        by_uid: SOPInstanceUID -> k.
        in_order: k of the images in the order of their InstanceNumber.
        heights: ImagePositionPatient's z in mm, float [K].
        thickness_mm: SliceThickness; 0 where the files do not say.
    """

    by_uid: dict[str, int]
    in_order: tuple[int, ...]
    heights: np.ndarray
    thickness_mm: float

    def at_height(self, z: float) -> int | None:
        """The slice at that z (mm), to half the distance of two slices; None where there is none."""
        away = np.abs(self.heights - z)
        k = int(away.argmin())
        step = float(np.median(np.abs(np.diff(self.heights)))) if len(self.heights) > 1 else 1.0
        return k if away[k] <= step / 2 else None


def find_series(folder: Path) -> Iterator[Series]:
    """The series below a patient's folder, one a folder, in the order of their names.

    Only the first file of each is opened.

    Raises:
        ScanError: a .dcm file is damaged.
    """
    for place, folders, names in os.walk(folder):
        folders.sort()
        # Beside the slices lie XML files, licences and the like.
        files = sorted(Path(place, name) for name in names if name.lower().endswith(".dcm"))
        if files:
            header = _header(files[0])
            yield Series(
                Path(place),
                tuple(files),
                str(header.get("SeriesInstanceUID", "")),
                str(header.get("Modality", "")),
                " ".join(str(header.get("SeriesDescription", "")).split()),
            )


def count_files(folder: Path) -> int:
    """How many files lie below a folder: a download that was completed later is another one."""
    return sum(len(names) for _, _, names in os.walk(folder))


def _header(path: Path) -> Dataset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that scanners write wrongly all the time
            return pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:  # pydicom has many for a damaged file
        raise ScanError(
            f"{path.parent.name}/{path.name} is damaged or no DICOM file; download it again."
        ) from error
