"""Duke-Breast-Cancer-MRI: dynamic contrast-enhanced breast MRI of 922 patients, each breast a case.

Saha et al., "A machine learning approach to radiogenomics of breast cancer", British Journal of Cancer 119, 2018, doi
10.1038/s41416-018-0185-8; data doi 10.7937/TCIA.e3sv-re93 (The Cancer Imaging Archive, CC BY-NC 4.0).

The download has a folder a patient (Breast_MRI_001), below it a folder a series, and tables beside it:

- Clinical_and_Other_Features: `Patient ID`, `Tumor Location` (L or R), `Bilateral Information` (1: both breasts have
  cancer, 0: one, NC: not known), under a row of group titles and above a row that explains the codes.
- Annotation_Boxes: `Patient ID` and `Start Row`, `End Row`, `Start Column`, `End Column`, `Start Slice`, `End Slice`
  of the largest tumour. The table does not say how it counts. Taken is what public code does: rows and columns as array
  indices, slices by the number in the original file's name, from 1, all ends included.
- Breast-Cancer-MRI-filepath_filename-mapping: `original_path_and_filename` (DICOM_Images/Breast_MRI_001/post_1/
  Breast_MRI_001_post_1_005.dcm: which series is which phase, which image which slice), `classic_path` (patient/
  study/series/file) and `sop_instance_UID`. Without it phases are told by their series' descriptions.

Rules, as in Müller-Franzes et al., arXiv 2411.15802, whose preparation is public with ODELIA's code: the image is the
first post-contrast minus the pre-contrast series, at 0.7 x 0.7 x 3 mm; from front to back 179 mm of it, the front edge
10 rows before the foremost bright tissue of the pre-contrast series; cut in two in the middle. Kept is, other than
there, the whole height (the models take 96 mm round the middle) and no border is added.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mst.data.preparing import (
    Made,
    PrepareError,
    Progress,
    Summary,
    Tell,
    Unit,
    Volume,
    find_folder,
    table,
    write_cases,
)
from mst.data.series import Series, SliceIndex, count_files, find_series
from mst.scans import Scan, ScanError, subtract
from mst.tasks import Grid, get_task

PATIENT = re.compile(r"Breast_MRI_\d+")
ORIGINAL = re.compile(r"(Breast_MRI_\d+)/([^/]+)/[^/]*?_?(\d+)\.dcm$")
CLINICAL, BOXES = "Clinical_and_Other_Features", "Annotation_Boxes"
MAPPING = "Breast-Cancer-MRI-filepath_filename-mapping"
CLINICAL_COLUMNS = ("Patient ID", "Tumor Location", "Bilateral Information")
EDGES = ("Start Row", "End Row", "Start Column", "End Column", "Start Slice", "End Slice")
MAPPING_COLUMNS = ("original_path_and_filename", "classic_path", "sop_instance_UID")
COLUMNS = ("case", "patient", "image", "mask", "label", "side", "center_x", "center_y", "center_z")
UNKNOWN = ("", "NA", "NC", "NP", "NAN")
SIDES = ("left", "right")
PHASES = ("pre", "post_1")
SPACING_MM = (0.7, 0.7, 3.0)  # to the right, to the front, to the head
DEPTH_MM = 256 * 0.7  # from front to back
MARGIN_ROWS = 10
BRIGHT = 0.9  # quantile above which a voxel is tissue
# Descriptions as they are in the collection: "ax dyn pre", "ax dyn 1st pass"; "ax 3d dyn", "Ph1/ax 3d dyn".
IS_DYNAMIC = re.compile(r"\bdyn", re.IGNORECASE)
IS_LATER = re.compile(r"pass|ph\s*\d", re.IGNORECASE)
IS_FIRST = re.compile(r"1st pass|ph\s*1\b|ph1(?!\d)", re.IGNORECASE)


@dataclass(frozen=True)
class Box:
    """A row of Annotation_Boxes: first and last (included) row, column and slice; slices count from 1."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    slices: tuple[int, int]
    source: str = ""


@dataclass(frozen=True)
class Patient:
    """What the tables say of a patient.

    Attributes:
        location: "L", "R" or "" where it is not known.
        bilateral: whether both breasts have cancer; None where it is not known.
        box: of the largest tumour.
        source: "Clinical_and_Other_Features.xlsx, row 4", for messages.
    """

    location: str
    bilateral: bool | None
    box: Box | None
    source: str = ""


@dataclass
class Phase:
    """What the mapping says of a series: its UID and the slice numbers (from 1) of its images' SOPInstanceUIDs."""

    uid: str = ""
    numbers: dict[str, int] = field(default_factory=dict)


def prepare_duke(
    data: Path,
    out: Path,
    limit: int | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Summary:
    """Writes each breast's subtraction image, the tumour's box as a mask, and their manifest.

    Args:
        data: the download: Duke-Breast-Cancer-MRI, or a folder round it; the tables (.xlsx or .csv) in it, in a folder
            directly below it or beside the patients' folders.
        out: gets images/, masks/, done/ and cases.csv. A mask is written where the tumour's box lies. The region's
            centre is the image's middle in every case, so that it does not tell the label.
        limit: at most so many patients.
        progress, tell: as for `write_cases`.

    Raises:
        PrepareError: no patient's folder or no clinical table, a column missing, or a row that cannot be understood.
    """
    folders = find_folder(data, lambda path: PATIENT.fullmatch(path.name) is not None)
    if not folders:
        raise PrepareError(f"{data} holds no folder Breast_MRI_001 or the like; give TCIA's download.")
    folders = folders[:limit]
    clinical, boxed, mapped = (
        _find_table(name, data, folders[0].parent) for name in (CLINICAL, BOXES, MAPPING)
    )
    if clinical is None:
        raise PrepareError(f"{data} holds no {CLINICAL}.xlsx (or .csv); it tells which breast has cancer.")
    if boxed is None and tell:
        tell(f"There is no {BOXES}.xlsx (or .csv), so no case gets a mask.")
    if mapped is None and tell:
        tell(f"There is no {MAPPING}.xlsx (or .csv), so phases are told by their series' descriptions.")
    patients = _read_clinical(clinical, _read_boxes(boxed) if boxed else {})
    phases = _read_mapping(mapped, {folder.name for folder in folders}) if mapped else {}
    units = []
    for folder in folders:
        patient = patients.get(folder.name)
        key: dict[str, Any] = {
            "tables": _plain(patient),
            "mapped": sorted(phases.get(folder.name, {})),
            "spacing": list(SPACING_MM),
            "files": count_files(folder),
        }
        make = partial(_make, folder, patient, phases.get(folder.name, {}), clinical.name)
        units.append(Unit(folder.name, key, make))
    return write_cases(out, units, COLUMNS, progress, tell)


def labels_of(patient: Patient) -> dict[str, str]:
    """The label of each breast that the tables tell one of; "left" and "right" are the patient's."""
    without, with_cancer = get_task("breast-mri").classes
    if patient.bilateral:
        return dict.fromkeys(SIDES, with_cancer)
    side = {"L": "left", "R": "right"}.get(patient.location)
    if side is None:
        return {}
    if patient.bilateral is None:
        return {side: with_cancer}  # of the other breast nothing is known
    return {one: with_cancer if one == side else without for one in SIDES}


def resample(scan: Scan, spacing: tuple[float, float, float] = SPACING_MM) -> Scan:
    """A scan with its axes to the right, the front and the head (as nearly as they go), at another spacing in mm.

    Where the spacing is coarser than the scan's, the scan is smoothed first, as for the models' input.
    """
    # Imported late: it loads torch, and a bad table should be told before.
    from mst.preprocess import locate, sample

    canonical = scan.canonical()
    counts = [
        max(1, int(n * old / new + 1e-6))
        for n, old, new in zip(canonical.shape, canonical.spacing, spacing, strict=True)
    ]
    grid = Grid((counts[2], counts[1], counts[0]), (spacing[2], spacing[1], spacing[0]))
    region = locate(canonical, "axial", grid, canonical.center)
    values, _ = sample(canonical, region, outside=0.0)
    heights, rows, columns = region.positions
    affine = canonical.affine.copy()
    affine[:3, :3] *= np.array(spacing) / canonical.spacing
    affine[:3, 3] = canonical.voxel_to_world((columns.min(), rows.min(), heights.min()))
    # Rows run to the back and columns to the left in a model's input.
    return Scan(
        np.ascontiguousarray(values[:, ::-1, ::-1].transpose(2, 1, 0)), affine, scan.modality, scan.name
    )


def front_rows(reference: np.ndarray, depth: int, margin: int = MARGIN_ROWS) -> slice:
    """Which rows [right, front, head] to keep: `depth` of them, ending `margin` before the foremost bright tissue."""
    count = reference.shape[1]
    bright = np.flatnonzero((reference > np.quantile(reference, BRIGHT)).any(axis=(0, 2)))
    front = int(bright.max()) if len(bright) else count - 1
    stop = int(np.clip(front + margin, min(depth, count), count))
    return slice(max(stop - depth, 0), stop)


def box_bounds(box: Box, index: SliceIndex, phase: Phase, scan: Scan) -> np.ndarray:
    """The box's outer faces in continuous voxel indices of its series: float [3, 2].

    Raises:
        ScanError: it does not lie in the series.
    """
    if phase.numbers:
        places = {number: index.by_uid[uid] for uid, number in phase.numbers.items() if uid in index.by_uid}
    else:
        places = {}
    if not places:
        # The original files were numbered as the images are.
        places = dict(enumerate(index.in_order, start=1))
    slices = [places.get(number) for number in box.slices]
    (row, last_row), (column, last_column) = box.rows, box.columns
    inside = min(row, column) >= 0 and last_column < scan.shape[0] and last_row < scan.shape[1]
    if None in slices or not inside:
        shape = " x ".join(map(str, scan.shape))
        raise ScanError(
            f"{box.source}: the box reaches beyond the series of {shape} (columns, rows, slices)."
        )
    bounds = np.array([box.columns, box.rows, sorted(k for k in slices if k is not None)], float)
    return bounds + (-0.5, 0.5)


def _make(folder: Path, patient: Patient | None, phases: dict[str, Phase], clinical: str) -> Made:
    made = Made()
    if patient is None:
        raise ScanError(f"{clinical} has no row for it.")
    labels = labels_of(patient)
    if not labels:
        made.left_out["patients whose tumour's side is not known"] += 1
        return made
    series = _phases(folder, phases)
    pre, post = series["pre"].read(), series["post_1"].read()
    image, reference = resample(subtract(post, pre)), resample(pre)
    if image.shape != reference.shape:
        # The phases were scanned on different grids; rows are then found on the image itself.
        reference = image
    rows = front_rows(reference.voxels, round(DEPTH_MM / SPACING_MM[1]))
    mask = _box_mask(patient, series["pre"], phases.get("pre", Phase()), pre, image)
    middle = image.shape[0] // 2
    halves = {"left": slice(0, middle), "right": slice(middle, image.shape[0])}
    if mask is not None:
        side = max(SIDES, key=lambda one: mask[halves[one]].sum())
        if labels.get(side) != get_task("breast-mri").classes[1]:
            raise ScanError(
                f"{patient.source} has the tumour in the {'left' if patient.location == 'L' else 'right'} breast, "
                f"but {patient.box.source if patient.box else BOXES} in the {side} one."
            )
        mask[halves["right" if side == "left" else "left"]] = (
            False  # a box that reaches a little over the middle
        )
    if np.ptp(image.voxels) > 1000:
        # Scanners store whole numbers; half the disk space.
        image = replace(image, voxels=np.round(image.voxels))
    for side, label in labels.items():
        window = (halves[side], rows, slice(0, image.shape[2]))
        half = image.cropped([part.start for part in window], [part.stop for part in window])
        case = f"{folder.name}-{side}"
        row = {"case": case, "patient": folder.name, "label": label, "side": side}
        row |= {"image": f"images/{case}.nii.gz", "mask": ""}
        row |= {f"center_{axis}": f"{value:.2f}" for axis, value in zip("xyz", half.center, strict=True)}
        made.volumes.append(Volume(row["image"], half.voxels, half.affine))
        if mask is not None and mask[window].any():
            row["mask"] = f"masks/{case}.nii.gz"
            made.volumes.append(Volume(row["mask"], mask[window], half.affine))
        made.rows.append(row)
    if len(labels) < len(SIDES):
        made.left_out["breasts of which it is not known whether they have cancer"] += 1
    return made


def _box_mask(patient: Patient, series: Series, phase: Phase, pre: Scan, image: Scan) -> np.ndarray | None:
    """The patient's box on the image's grid, bool; None where there is none."""
    if patient.box is None:
        return None
    bounds = box_bounds(patient.box, series.slices(), phase, pre)
    corners = np.stack(np.meshgrid(*bounds, indexing="ij"), axis=-1).reshape(-1, 3)
    on_grid = image.world_to_voxel(pre.voxel_to_world(corners))
    mask = np.zeros(image.shape, bool)
    low = np.clip(np.ceil(on_grid.min(axis=0) - 1e-6), 0, None).astype(int)
    high = np.floor(on_grid.max(axis=0) + 1e-6).astype(int) + 1
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask if mask.any() else None


def _phases(folder: Path, phases: dict[str, Phase]) -> dict[str, Series]:
    """The pre-contrast and the first post-contrast series of a patient.

    Raises:
        ScanError: one of them is not there, or cannot be told from others.
    """
    found: dict[str, list[Series]] = defaultdict(list)
    for series in find_series(folder):
        if series.modality != "MR":
            continue  # segmentations, for a hundred patients
        if phases:
            for name in PHASES:
                if name in phases and phases[name].uid == series.uid:
                    found[name].append(series)
        elif IS_DYNAMIC.search(text := series.description or series.folder.name):
            if IS_FIRST.search(text):
                found["post_1"].append(series)
            elif not IS_LATER.search(text):
                found["pre"].append(series)
    for name, title in zip(PHASES, ("pre-contrast", "first post-contrast"), strict=True):
        if len(found[name]) != 1:
            what = "no" if not found[name] else f"{len(found[name])} that may be the"
            raise ScanError(f"there is {what} {title} series ({name}); download the patient again.")
    return {name: found[name][0] for name in PHASES}


def _find_table(name: str, *places: Path) -> Path | None:
    for place in places:
        for pattern in (f"{name}.*", f"*/{name}.*"):
            found = {path.suffix.lower(): path for path in place.glob(pattern)}
            for suffix in (".csv", ".xlsx"):  # who made a CSV of a slow table wants it to be read
                if suffix in found:
                    return found[suffix]
    return None


def _read_boxes(path: Path) -> dict[str, Box]:
    boxes: dict[str, Box] = {}
    for row, values in table(path, ("Patient ID", *EDGES)):
        source = f"{path.name}, row {row}"
        try:
            edges = [int(float(values[name])) for name in EDGES]
        except (ValueError, OverflowError):
            raise PrepareError(f"{source}: {', '.join(EDGES)} must be whole numbers.") from None
        box = Box((edges[0], edges[1]), (edges[2], edges[3]), (edges[4], edges[5]), source)
        if any(first > last for first, last in (box.rows, box.columns, box.slices)):
            raise PrepareError(f"{source}: the box ends before it starts.")
        if values["Patient ID"] in boxes:
            raise PrepareError(f"{source}: the patient {values['Patient ID']} has a box already.")
        boxes[values["Patient ID"]] = box
    return boxes


def _read_clinical(path: Path, boxes: dict[str, Box]) -> dict[str, Patient]:
    patients: dict[str, Patient] = {}
    for row, values in table(path, CLINICAL_COLUMNS):
        name, location, bilateral = (values[column] for column in CLINICAL_COLUMNS)
        if not PATIENT.fullmatch(name):
            continue  # the row that explains the codes
        source = f"{path.name}, row {row}"
        if name in patients:
            raise PrepareError(f"{source}: the patient {name} is there already.")
        if location.upper() not in ("L", "R", *UNKNOWN):
            raise PrepareError(f"{source}: the Tumor Location {location!r} is neither L nor R.")
        known = bilateral.upper() not in UNKNOWN
        if known and bilateral not in ("0", "1", "0.0", "1.0"):
            raise PrepareError(f"{source}: the Bilateral Information {bilateral!r} is neither 0 nor 1.")
        patients[name] = Patient(
            location.upper() if location.upper() in ("L", "R") else "",
            bilateral.startswith("1") if known else None,
            boxes.get(name),
            source,
        )
    if not patients:
        raise PrepareError(f"{path.name} has no row of a patient such as Breast_MRI_001.")
    return patients


def _read_mapping(path: Path, wanted: Iterable[str]) -> dict[str, dict[str, Phase]]:
    """Patient -> phase -> its series, of the wanted patients' first two phases."""
    names = set(wanted)
    found: dict[str, dict[str, Phase]] = defaultdict(dict)
    for row, values in table(path, MAPPING_COLUMNS):
        match = ORIGINAL.search(values["original_path_and_filename"])
        if match is None or match[1] not in names or match[2].lower() not in PHASES:
            continue
        parts = values["classic_path"].split("/")
        if len(parts) < 3:
            raise PrepareError(f"{path.name}, row {row}: {values['classic_path']!r} names no series.")
        phase = found[match[1]].setdefault(match[2].lower(), Phase(parts[-2]))
        phase.numbers[values["sop_instance_UID"]] = int(match[3])
    return dict(found)


def _plain(patient: Patient | None) -> dict[str, Any] | None:
    """As JSON gives it back: lists for tuples."""
    if patient is None:
        return None
    values = asdict(patient)
    del values["source"]
    if values["box"]:
        values["box"] = [list(patient.box.rows), list(patient.box.columns), list(patient.box.slices)]  # type: ignore[union-attr]
    return values
