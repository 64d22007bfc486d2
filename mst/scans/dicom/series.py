"""From DICOM files to one scan: which series is the scan, and how its planes become voxels."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from mst.errors import ScanError
from mst.scans.checks import lean
from mst.scans.dicom.headers import PICTURES, overlay, read_header, starts, text, whole
from mst.scans.dicom.pixels import read_voxels
from mst.scans.dicom.planes import Plane, frames, planes
from mst.scans.dicom.volumes import SAME_POSITION_MM, even_steps, on_a_line, one_geometry, one_volume
from mst.scans.scan import Scan
from mst.scans.source import IDENTITY, DicomSource, SourceSlice, kept

__all__ = ["SAME_POSITION_MM", "read_dicom"]

LEAST_LEAN = 1.0  # degrees of a gantry's tilt: less is rounding
FEW = 4  # images: with fewer, files of a series each are no volume that an anonymiser took apart


@dataclass
class _Series:
    """Files that say they are one series.

    Attributes:
        members: (file, header) of each.
        joined: whether each file said that it is a series of its own.
    """

    members: list[tuple[Path, Dataset]]
    joined: bool = False

    @property
    def header(self) -> Dataset:
        return self.members[0][1]

    @property
    def images(self) -> int:
        return sum(frames(header) for _, header in self.members)

    @property
    def name(self) -> str:
        """The description or number; never the patient's name."""
        return text(self.header, "SeriesDescription") or f"series {text(self.header, 'SeriesNumber') or 1}"

    @property
    def rank(self) -> tuple[bool, bool, int, int]:
        """Series that rank higher are tried first: scans before pictures, many images before few."""
        kind = text(self.header, "ImageType").upper()
        picture = starts(self.header, PICTURES) is not None or text(self.header, "SamplesPerPixel") == "3"
        try:
            number = whole(self.header, "SeriesNumber")
        except ValueError:
            number = 0
        return not picture, "LOCALIZER" not in kind, self.images, -number


def read_dicom(files: Sequence[Path]) -> Scan:
    """Reads the scan among DICOM files: of several series the usable one with most images.

    Raises:
        ScanError: no file holds an image with its place in the patient, slices are missing, or the image is
            in colour.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values that scanners write wrongly all the time
        series, others, unreadable = _sorted_out(files)
        if not series:
            raise _no_images(others, unreadable)
        notes: list[str] = []
        error: ScanError | None = None
        for number, candidate in enumerate(series):
            try:
                scan = _read_series(candidate)
            except ScanError as why:
                error = error or why
                continue
            if candidate.joined:
                notes.append(
                    "Each file says that it is a series of its own; they were put together by their places."
                )
            if len(series) > 1:
                notes.append(_choice(series, number))
            if others:
                kinds = ", ".join(sorted(set(others)))
                notes.append(
                    f"Beside the scan, the files hold {kinds}, which {'was' if len(others) == 1 else 'were'} left out."
                )
            if unreadable:
                were = "1 file that is" if unreadable == 1 else f"{unreadable} files that are"
                notes.append(f"{were} damaged {'was' if unreadable == 1 else 'were'} left out.")
            return Scan(
                scan.voxels,
                scan.affine,
                modality=scan.modality,
                name=scan.name,
                notes=(*notes, *scan.notes),
                source=scan.source,
            )
        assert error is not None
        raise error


def _sorted_out(files: Sequence[Path]) -> tuple[list[_Series], list[str], int]:
    """(series that may be a scan, best first; what other objects there are, in words; unreadable files)."""
    found: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    seen: set[str] = set()
    others: list[str] = []
    unreadable = 0
    for path in files:
        header = read_header(path)
        if header is None:
            unreadable += 1
            continue
        if kind := overlay(header):
            others.append(kind)
            continue
        try:
            usable = whole(header, "Rows") > 0 and whole(header, "Columns") > 0 and frames(header) > 0
        except ValueError:
            unreadable += 1
            continue
        identity = text(header, "SOPInstanceUID") or str(path)
        if usable and identity not in seen:
            seen.add(identity)
            found[text(header, "SeriesInstanceUID")].append((path, header))
    series = [_Series(members) for members in found.values()]
    series += _joined(series)
    return sorted(series, key=lambda one: one.rank, reverse=True), others, unreadable


def _joined(series: list[_Series]) -> list[_Series]:
    """Volumes whose slices an anonymiser made series of their own; those leave the list."""
    groups: dict[tuple, list[_Series]] = defaultdict(list)
    for one in series:
        if len(one.members) == 1 and one.images == 1:
            header = one.header
            key = tuple(
                text(header, keyword)
                for keyword in (
                    "StudyInstanceUID",
                    "Modality",
                    "Rows",
                    "Columns",
                    "ImageOrientationPatient",
                    "PixelSpacing",
                )
            )
            groups[key].append(one)
    made = []
    for key, group in groups.items():
        if len(group) >= FEW and key[4]:
            for one in group:
                series.remove(one)
            made.append(_Series([member for one in group for member in one.members], joined=True))
    return made


def _no_images(others: Sequence[str], unreadable: int) -> ScanError:
    if others:
        kinds = ", ".join(sorted(set(others)))
        return ScanError(
            f"The DICOM files hold no images of a scan, but {kinds}; upload the CT or MRI series itself."
        )
    if unreadable:
        return ScanError("The DICOM files are damaged or cut off; export or download them again.")
    return ScanError("The DICOM files hold no images (only a report, a plan or a directory).")


def _choice(series: Sequence[_Series], taken: int) -> str:
    """What was taken of several series, and why."""
    one = series[taken]
    usable = [other for other in series[taken:] if other.rank[:2] == one.rank[:2]]
    equal = [other for other in usable if other.images == one.images]
    note = f"Of {len(series)} series, "
    if taken:
        left = ", ".join(other.name[:40] for other in series[:taken][:3])
        note += f"{one.name} was taken ({one.images} images), since larger ones are no usable scan ({left})."
    elif len(equal) > 1:
        names = ", ".join(other.name[:40] for other in equal[1:4])
        note += f"{one.name} was taken ({one.images} images); equally many have {names}: upload that alone to see it."
    else:
        note += f"the one with most slices was taken: {one.name} ({one.images} slices)."
    return note


def _read_series(series: _Series) -> Scan:
    """The scan in a series.

    Raises:
        ScanError: there is none.
    """
    name = series.name
    notes: list[str] = []
    grey, left_out = _grey(series)
    pieces: list[Plane] = []
    films: list[ScanError] = []
    for path, header in grey:
        try:
            found = planes(path, header, name)
        except ScanError as error:
            films.append(error)
            continue
        except ValueError:
            found = []
        if found:
            pieces += found
        else:
            left_out["unknown place"] += 1
    if not pieces:
        if films:
            raise films[0]
        raise ScanError(
            f"The DICOM series {name} does not say where its slices lie (it may be a screenshot or a plain "
            "X-ray); export the original CT or MRI series."
        )
    pieces, others = one_geometry(pieces)
    left_out += others
    slices = one_volume(pieces, notes)
    if len(slices) < 2:
        raise ScanError(f"The DICOM series {name} is a single slice; upload all files of the series.")
    even = even_steps(slices, name, left_out)
    on_a_line(slices, name)
    if left_out:
        kinds = "; ".join(
            f"{count} {'image' if count == 1 else 'images'} of {kind}" for kind, count in left_out.items()
        )
        notes.append(f"Left out of the series: {kinds}.")
    headers = dict(series.members)
    voxels = read_voxels(slices, headers, name, notes)
    affine = _affine(slices)
    first = headers[slices[0].path]
    source: DicomSource | None = _source(slices, headers)
    if not even:
        voxels, affine = _evened(voxels, slices, affine, notes)
        source = None  # its slices are no longer the source's
    if (angle := lean(affine)) >= LEAST_LEAN:
        notes.append(
            f"The gantry was tilted: the planes lean by {angle:.0f} degrees; places in millimetres take that into "
            "account, but slices are shown as they were taken."
        )
    modality = text(first, "Modality") or None
    return Scan(voxels, affine, modality=modality, name=name, notes=tuple(notes), source=source)


def _grey(series: _Series) -> tuple[list[tuple[Path, Dataset]], Counter[str]]:
    """The members with one grey value a pixel, and how many others there are by what they are of.

    Raises:
        ScanError: all are in colour.
    """
    grey: list[tuple[Path, Dataset]] = []
    left_out: Counter[str] = Counter()
    for path, header in series.members:
        colour = text(header, "SamplesPerPixel") not in ("", "1")
        palette = text(header, "PhotometricInterpretation").upper() == "PALETTE COLOR"
        if colour or palette:
            left_out["colour"] += 1
        else:
            grey.append((path, header))
    if not grey:
        raise ScanError(
            f"The DICOM series {series.name} is in colour; a scan with one grey value a voxel is needed."
        )
    return grey, left_out


def _affine(slices: Sequence[Plane]) -> np.ndarray:
    """Voxel index (column, row, slice) -> RAS millimetres."""
    lps = np.eye(4)
    rows, columns = slices[0].spacing
    lps[:3, 0] = slices[0].orientation[0] * columns
    lps[:3, 1] = slices[0].orientation[1] * rows
    lps[:3, 2] = (slices[-1].position - slices[0].position) / (len(slices) - 1)
    lps[:3, 3] = slices[0].position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _evened(
    voxels: np.ndarray, slices: Sequence[Plane], affine: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The slices brought to even steps of the smallest distance between two, linearly."""
    along = np.array([piece.along for piece in slices])
    steps = np.diff(along)
    count = round((along[-1] - along[0]) / float(steps.min())) + 1
    places = np.linspace(along[0], along[-1], count)
    below = np.clip(np.searchsorted(along, places, side="right") - 1, 0, len(along) - 2)
    share = ((places - along[below]) / steps[below]).astype(np.float32)
    even = np.empty((*voxels.shape[:2], count), np.float32, order="F")
    for index, (low, part) in enumerate(zip(below, share, strict=True)):
        even[:, :, index] = voxels[:, :, low] * (1 - part) + voxels[:, :, low + 1] * part
    affine = affine.copy()
    affine[:3, 2] *= (len(slices) - 1) / (count - 1)
    notes.append(
        f"The slices are spaced unevenly, {steps.min():.4g} to {steps.max():.4g} mm apart; they were resampled to "
        f"{(along[-1] - along[0]) / (count - 1):.4g} mm."
    )
    return even, affine


def _source(slices: Sequence[Plane], headers: dict[Path, Dataset]) -> DicomSource:
    """What is kept of the slices that became the scan."""
    first = slices[0]
    identities = {
        path: {key: text(headers[path], key) for key in IDENTITY} for path in {piece.path for piece in slices}
    }
    return DicomSource(
        kept(headers[first.path]),
        tuple(SourceSlice(identities[piece.path], piece.frame, piece.position) for piece in slices),
        first.orientation,
        first.spacing,
        first.shape,
    )
