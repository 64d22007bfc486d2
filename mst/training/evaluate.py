"""Predictions for cases that were kept from training, and what is reported of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import brier_score_loss, roc_auc_score

from mst.familiar import USUAL
from mst.files import write_whole
from mst.models.base import ScanClassifier
from mst.preprocess import AXES, prepare
from mst.saliency import explain
from mst.saliency.metrics import TOLERANCE_MM, saliency_metrics
from mst.scans import Scan
from mst.statistics import Calibration, auc, delong_test, fit_calibration
from mst.training.cases import LoadedCase

OFFSET_MM = 10.0  # how far off-centre the second round of predictions is, at most, along each axis
ROOM_MM = 3.0  # beyond the lesion on each side, for the regions off-centre
BESIDE_MM = (6.0, 20.0)  # from the lesion's face to the middle of a region without it
# Of lesions, the share that the threshold for "no lesion is seen" keeps: a little more than the 95% that are asked for.
KEPT_LESIONS = 0.96
PLACES = 5  # off-centre regions a case: from one to the next, the AUC of few cases changes by 0.05 and more
OFF = tuple(f"probability_off_{number + 1}" for number in range(PLACES))
# What knows nothing of the picture, or only its brightest voxel, and points all the same.
BASELINES = ("middle", "brightest", "random")
POINTING = ("pointing_off", *(f"pointing_{name}" for name in BASELINES))
TOP_SLICE = ("top_slice_off", "top_slice_middle", "top_slice_random")
LOCALISATION = (
    ("the map's maximum within 2 mm of the mask", "pointing_off_centre", "pointing"),
    ("the most weighted slice shows the lesion", "top_slice_off_centre", "top_slice"),
)
COLUMNS = (
    "case",
    "patient",
    "dataset",
    "label",
    "malignancy",
    "readers",
    "diameter_mm",
    "probability",
    "lesion",
    "lesion_cut",
    "lesion_free",
    "lesion_beside",
    "probability_cut",
    "distance",
    *OFF,
    *POINTING,
    *TOP_SLICE,
)


@torch.no_grad()
def predict_cases(
    model: ScanClassifier,
    cases: Sequence[LoadedCase],
    seed: int = 0,
    datasets: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """One row a case, with the columns `COLUMNS`.

    `probability` is of the last class with the region centred on the lesion, `lesion` that there is a lesion at all,
    the other columns with that name are told by `_lesion_answers`, `probability_cut` is as `probability` of the
    lesion's own slices alone, where the scan has more, and `distance` how far the case is from the training cases (see
    `mst.familiar`). The columns with "_off" in their names come from `PLACES` regions whose centres are up to 10 mm off
    along each axis, of cases with tissue on all sides:
    `pointing_off` says in what share of them the saliency's maximum lies within 2 mm of the mask, `top_slice_off` in
    what share the slice with the most saliency meets it. Beside each stands how often the region's middle, its
    brightest voxel or slice, and a random one would.

    Args:
        datasets: the name of each case's data set.
    """
    rows = []
    model = model.eval()
    for case in cases:
        # The offset depends on the case's name, not on its place in the list.
        rng = np.random.default_rng([seed, *case.case.name.encode()])
        offsets = rng.uniform(-OFFSET_MM, OFFSET_MM, (PLACES, 3))
        centred = case.prepare(model.grid)
        vector = model.encode_scan(centred.volume, centred.padding_mask)
        row: dict[str, Any] = {
            "case": case.case.name,
            "patient": case.case.patient,
            "dataset": (datasets or {}).get(case.case.name, ""),
            "label": case.case.label,
            "malignancy": case.case.ratings.get("malignancy", ""),
            "readers": case.case.ratings.get("readers", ""),
            "diameter_mm": "" if case.diameter_mm is None else round(case.diameter_mm, 2),
            "probability": _probability(model, model.classify(vector)),
        }
        if (apart := model.distance(vector)) is not None:
            row["distance"] = round(float(apart[0]), 4)
        if model.lesion_head is not None:
            row |= _lesion_answers(model, case, vector, rng)
        if case.mask is None or surrounded(case):
            row |= _off_centre(model, case, offsets)
        if case.mask is not None and surrounded(case):
            alone = prepare(cut_to_lesion(case), case.task, list(case.center), model.grid)
            vector = model.encode_scan(alone.volume, alone.padding_mask)
            row["probability_cut"] = _probability(model, model.classify(vector))
        rows.append(row)
    return rows


def _off_centre(model: ScanClassifier, case: LoadedCase, offsets: np.ndarray) -> dict[str, float]:
    """What `predict_cases` says of the regions off-centre."""
    row: dict[str, float] = {}
    hits: dict[str, list[float]] = {name: [] for name in (*POINTING, *TOP_SLICE)}
    near = None
    if case.mask is not None:
        distance: np.ndarray = distance_transform_edt(~case.mask, sampling=case.scan.spacing)
        near = distance <= TOLERANCE_MM
    for column, offset in zip(OFF, offsets, strict=True):
        shifted = case.prepare(model.grid, offset)
        with torch.enable_grad():
            seen = explain(model, shifted.volume, padding_mask=shifted.padding_mask)
        row[column] = _probability(model, seen.logits)
        if case.mask is None or near is None:
            continue
        region = shifted.region
        axis = AXES[region.plane][0][0]
        metrics = saliency_metrics(
            region.to_scan(seen.saliency[0, 0].numpy()),
            case.mask,
            case.scan.spacing,
            None if seen.slice_weights is None else region.profile(seen.slice_weights[0].numpy()),
            axis,
        )
        box = tuple(slice(int(low), int(high)) for low, high in region.bounds)
        middle = np.round(case.scan.world_to_voxel(case.center + offset)).astype(int)
        middle = np.clip(middle, 0, np.array(case.scan.shape) - 1)
        there, values = near[box], case.scan.voxels[box]
        shown = np.asarray(case.mask.any(axis=tuple(a for a in range(3) if a != axis)))
        hits["pointing_off"].append(metrics["pointing_game"])
        hits["pointing_middle"].append(float(near[tuple(middle)]))
        hits["pointing_brightest"].append(float(there.flat[int(values.argmax())]))
        hits["pointing_random"].append(there.mean())
        hits["top_slice_off"].append(metrics["top_slice_in_lesion"])
        hits["top_slice_middle"].append(shown[middle[axis]])
        hits["top_slice_random"].append(shown[box[axis]].mean())
    return row | {name: float(np.mean(found)) for name, found in hits.items() if found}


def _lesion_answers(
    model: ScanClassifier, case: LoadedCase, vector: torch.Tensor, rng: np.random.Generator
) -> dict[str, float]:
    """How probable a lesion is where there is one and where there is none, with the scan's end in view and without.

    That a scan ends near the lesion, or beside it, must not tell; so each is asked of both.
    """
    row = {"lesion": lesion_probability(model.lesion_logits(vector))}
    size = case.region(case.task.plane, model.grid).size_mm(case.scan)
    places = {
        "lesion_cut": cut_beside(case, rng, keep=True),
        "lesion_beside": cut_beside(case, rng, keep=False),
        "lesion_free": place_without_lesion(case, size, rng),
    }
    for name, found in places.items():
        if found is not None:
            scan, center = found
            given = prepare(scan, case.task, list(center), model.grid)
            there = model.encode_scan(given.volume, given.padding_mask)
            row[name] = lesion_probability(model.lesion_logits(there))
    return row


def _roomiest(case: LoadedCase) -> tuple[int, int, float, np.ndarray, np.ndarray]:
    """The axis and side with most tissue beside the lesion, how much, the lesion's first and last voxel."""
    assert case.mask is not None
    marked = np.argwhere(case.mask)
    first, last = marked.min(axis=0), marked.max(axis=0)
    spacing = np.asarray(case.scan.spacing)
    room = np.stack([first * spacing, (np.array(case.scan.shape) - 1 - last) * spacing], axis=1)
    axis, side = (int(n) for n in np.unravel_index(int(room.argmax()), room.shape))
    return axis, side, float(room[axis, side]), first, last


def cut_beside(case: LoadedCase, rng: np.random.Generator, keep: bool) -> tuple[Scan, np.ndarray] | None:
    """A part of a case's scan that ends at a plane beside the lesion, and a place in it.

    Args:
        keep: the part with the lesion, which is the place; else the part without it, and a place 6 to 20 mm from the
            plane.

    Returns:
        the part, and the place in RAS millimetres; None where there is too little room or no mask.
    """
    if case.mask is None:
        return None
    axis, side, room, first, last = _roomiest(case)
    spacing = np.asarray(case.scan.spacing)
    if room < 2 * BESIDE_MM[0] + 2:
        return None
    gap = rng.uniform(1, min(BESIDE_MM[1], room)) if keep else 1.0
    steps = int(np.ceil(gap / spacing[axis]))
    start, stop = np.zeros(3, int), np.array(case.scan.shape)
    # The plane lies beyond the lesion's last voxel, or before its first one.
    if bool(side) == keep:
        stop[axis] = last[axis] + 1 + steps if side else first[axis] - steps
    else:
        start[axis] = last[axis] + 1 + steps if side else first[axis] - steps
    start, stop = start.clip(0), stop.clip(None, case.scan.shape)
    part = case.scan.cropped(start, stop)
    if keep:
        return part, np.asarray(case.center)
    size = (stop - start) * spacing
    place = size * rng.uniform(0.3, 0.7, 3)
    depth = rng.uniform(BESIDE_MM[0], min(BESIDE_MM[1], size[axis] - BESIDE_MM[0]))
    place[axis] = depth if side else size[axis] - depth
    return part, part.voxel_to_world(place / spacing - 0.5)


def place_without_lesion(
    case: LoadedCase, size_mm: np.ndarray, rng: np.random.Generator
) -> tuple[Scan, np.ndarray] | None:
    """A place in a whole scan round which a region shows neither the lesion nor, along that axis, the scan's end.

    Args:
        size_mm: (3,), the region's, along the scan's axes.

    Returns:
        the scan and the place in RAS millimetres; None where there is too little room or no mask.
    """
    if case.mask is None:
        return None
    axis, side, room, first, last = _roomiest(case)
    spare = room - size_mm[axis] - 1
    if spare < 0:
        return None
    away = (1 + size_mm[axis] / 2 + rng.uniform(0, spare)) / case.scan.spacing[axis]
    index = np.asarray(case.scan.world_to_voxel(case.center), float)
    index[axis] = last[axis] + away if side else first[axis] - away
    return case.scan, case.scan.voxel_to_world(index)


def cut_to_lesion(case: LoadedCase) -> Scan:
    """The slices of a case's scan that show the lesion: what a stack that ends with the lesion would be."""
    assert case.mask is not None
    axis = AXES[case.task.plane][0][0]
    shown = np.flatnonzero(case.mask.any(axis=tuple(a for a in range(3) if a != axis)))
    start, stop = np.zeros(3, int), np.array(case.scan.shape)
    start[axis], stop[axis] = shown[0], shown[-1] + 1
    return case.scan.cropped(start, stop)


def lesion_probability(logits: torch.Tensor | None) -> float:
    assert logits is not None
    return round(float(logits.sigmoid()[0]), 6)


def surrounded(case: LoadedCase) -> bool:
    """Whether there is tissue on all sides of the lesion, as in a whole scan, and so something to point away to."""
    return bool(case.room(case.task.plane).min() >= ROOM_MM)


def _probability(model: ScanClassifier, logits: torch.Tensor) -> float:
    return round(float((logits / model.temperature).softmax(dim=1)[0, -1]), 6)


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes predictions as CSV, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def has_rows(path: Path) -> bool:
    """Whether a file of predictions is there, with the columns of today."""
    if not path.is_file():
        return False
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(next(csv.reader(file), ())) == COLUMNS


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads what `write_rows` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def summarise(folds: Sequence[Sequence[dict[str, Any]]], classes: Sequence[str]) -> dict[str, Any]:
    """Figures of the held-out predictions of one or more folds.

    The AUC separates the last class from the first; cases of no class (indeterminate) do not count in it. It is
    pooled over the folds, with DeLong's 95% interval, and given for each fold as well; off-centre it is the mean over
    the `PLACES`.
    """
    rows = [row for fold in folds for row in fold]
    labelled = [row for row in rows if row["label"] in (classes[0], classes[-1])]
    truth, scores = _column(labelled, "probability", classes)
    area = auc(truth, scores)
    each = []
    for fold in folds:
        fold_truth, fold_scores = _column(
            [row for row in fold if row["label"] in (classes[0], classes[-1])], "probability", classes
        )
        each.append(round(float(roc_auc_score(fold_truth, fold_scores)), 4))
    found: dict[str, Any] = {
        "auc": round(area.value, 4),
        "auc_ci95": [round(limit, 4) for limit in area.ci95],
        "auc_folds": each,
        "auc_folds_mean": round(float(np.mean(each)), 4),
        "auc_folds_sd": round(float(np.std(each, ddof=1)), 4) if len(each) > 1 else None,
        f"n_{classes[0]}": int((~truth).sum()),
        f"n_{classes[-1]}": int(truth.sum()),
    }
    off = [row for row in labelled if given(row, OFF[0])]
    if len({row["label"] for row in off}) == 2:
        areas = [roc_auc_score(*_column(off, column, classes)) for column in OFF]
        found |= {"auc_off_centre": round(float(np.mean(areas)), 4), "off_centre_places": PLACES}
    for name in (*POINTING, *TOP_SLICE):
        hits = [float(row[name]) for row in rows if given(row, name)]
        if hits:
            found[f"{name}_centre" if name.endswith("_off") else name] = round(float(np.mean(hits)), 4)
            found["n_off_centre"] = len(hits)
    sized = [row for row in labelled if given(row, "diameter_mm")]
    if len(sized) == len(labelled):
        found["baseline_diameter_auc"] = round(
            float(roc_auc_score(*_column(labelled, "diameter_mm", classes))), 4
        )
    if groups := by_rule(rows, classes):
        found["groups"] = groups
    if cut := cut_figures(rows, classes):
        found["cut_to_lesion"] = cut
    distances = [float(row["distance"]) for row in rows if given(row, "distance")]
    if distances:
        found["usual_distance"] = round(float(np.quantile(distances, USUAL)), 3)
    if lesion := lesion_figures(rows):
        found["lesion"] = lesion
    return found


def given(row: Mapping[str, Any], name: str) -> bool:
    return str(row.get(name, "")) != ""


# How a mean rating becomes a class: as it is, or rounded first (the paper's), halves to the even number.
RULES: dict[str, Callable[[float], float]] = {"mean": float, "rounded": round}


@dataclass(frozen=True)
class Group:
    """Cases of one data set whose ratings one rule makes classes of.

    Attributes:
        dataset, rule: names; `readers`: the fewest that have rated each case.
        cases: their names.
        truth: bool [n], the last class; scores, sizes: float [n], the model's probability of it and millimetres.
    """

    dataset: str
    rule: str
    readers: int
    cases: tuple[str, ...]
    truth: np.ndarray
    scores: np.ndarray
    sizes: np.ndarray

    @property
    def counts(self) -> str:
        return f"{int((~self.truth).sum())}, {int(self.truth.sum())}"


def groups_of(rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Rows by data set and rule, all of them and those that three readers or more have rated."""
    groups = []
    known = [
        row for row in rows if all(given(row, k) for k in ("dataset", "malignancy", "readers", "diameter_mm"))
    ]
    for dataset in sorted({row["dataset"] for row in known}):
        for readers in (1, 3):
            for rule, level in RULES.items():
                kept = [
                    row
                    for row in known
                    if row["dataset"] == dataset
                    and float(row["readers"]) >= readers
                    and level(float(row["malignancy"])) != 3
                ]
                truth = np.array([level(float(row["malignancy"])) > 3 for row in kept])
                if not _both(truth):
                    continue
                scores, sizes = (
                    np.array([float(row[name]) for row in kept]) for name in ("probability", "diameter_mm")
                )
                names = tuple(row["case"] for row in kept)
                groups.append(Group(dataset, rule, readers, names, truth, scores, sizes))
    return groups


def by_rule(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The AUC of each of `groups_of`, beside the diameter's, with DeLong's intervals and the paired test of the two."""
    found = []
    for group in groups_of(rows):
        area, by_size = auc(group.truth, group.scores), auc(group.truth, group.sizes)
        test = delong_test(group.truth, group.scores, group.sizes)
        found.append(
            {
                "dataset": group.dataset,
                "rule": group.rule,
                "readers": group.readers,
                f"n_{classes[0]}": int((~group.truth).sum()),
                f"n_{classes[-1]}": int(group.truth.sum()),
                "auc": round(area.value, 4),
                "auc_ci95": [round(limit, 4) for limit in area.ci95],
                "diameter_auc": round(by_size.value, 4),
                "diameter_auc_ci95": [round(limit, 4) for limit in by_size.ci95],
                "difference": round(test.value, 4),
                "difference_ci95": [round(limit, 4) for limit in test.ci95],
                "p": round(test.p, 4),
            }
        )
    return found


def _both(truth: np.ndarray) -> bool:
    return 1 < truth.sum() < len(truth) - 1


def cut_figures(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """What an answer owes to where the scan ends: whole scans against their lesions' own slices."""
    pairs = [row for row in rows if given(row, "probability_cut")]
    if not pairs:
        return {}
    whole, cut = (
        np.array([float(row[name]) for row in pairs]) for name in ("probability", "probability_cut")
    )
    found: dict[str, Any] = {
        "n": len(pairs),
        "mean_change": round(float((cut - whole).mean()), 4),
        "mean_absolute_change": round(float(np.abs(cut - whole).mean()), 4),
    }
    labelled = [row for row in pairs if row["label"] in (classes[0], classes[-1])]
    if len({row["label"] for row in labelled}) == 2:
        for key, column in (("auc_whole", "probability"), ("auc_cut", "probability_cut")):
            found[key] = round(float(roc_auc_score(*_column(labelled, column, classes))), 4)
    return found


def lesion_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How well lesions are told from regions without one; the threshold keeps 96% of these lesions.

    Returns:
        "kept" and "empty_called" of scans as they are ("lesion", "lesion_free") and, with "_cut", of scans that end
        in view ("lesion_cut", "lesion_beside"); {} where one of the two kinds is missing.
    """
    found = {
        name: np.array([float(row[name]) for row in rows if given(row, name)])
        for name in ("lesion", "lesion_cut", "lesion_free", "lesion_beside")
    }
    real = np.concatenate([found["lesion"], found["lesion_cut"]])
    empty = np.concatenate([found["lesion_free"], found["lesion_beside"]])
    if not len(real) or not len(empty):
        return {}
    threshold = float(np.floor(np.quantile(real, 1 - KEPT_LESIONS, method="lower") * 1000) / 1000)
    figures: dict[str, Any] = {"threshold": threshold}
    for ending, there, none in (("", "lesion", "lesion_free"), ("_cut", "lesion_cut", "lesion_beside")):
        seen, unseen = found[there], found[none]
        figures |= {f"n_lesions{ending}": len(seen), f"n_empty{ending}": len(unseen)}
        if len(seen):
            figures[f"kept{ending}"] = round(float((seen >= threshold).mean()), 4)
        if len(unseen):
            figures[f"empty_called{ending}"] = round(float((unseen < threshold).mean()), 4)
        if len(seen) and len(unseen):
            truth = np.concatenate([np.ones(len(seen), bool), np.zeros(len(unseen), bool)])
            figures[f"auc{ending}"] = round(float(roc_auc_score(truth, np.concatenate([seen, unseen]))), 4)
    return figures


def calibration(folds: Sequence[Sequence[dict[str, Any]]], classes: Sequence[str]) -> dict[str, Any]:
    """The calibration that the held-out predictions ask for, and what it gains; see `mst.statistics.Calibration`.

    Returns:
        "temperature" and "offset" from all folds; "brier" with, for each fold, the calibration of the other folds, so
        that no case is judged by one that it helped to choose; "brier_uncalibrated"; "folds", {"temperature",
        "offset"} of each fold alone, for `mst.uncertainty`.
    """
    pairs = [
        _column([row for row in fold if row["label"] in (classes[0], classes[-1])], "probability", classes)
        for fold in folds
    ]
    truth, scores = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    calibrated = []
    for k, (_, held_out) in enumerate(pairs):
        others = [pair for i, pair in enumerate(pairs) if i != k] or pairs
        found = fit_calibration(*(np.concatenate(parts) for parts in zip(*others, strict=True)))
        calibrated.append(found.of(held_out))
    return _rounded(fit_calibration(truth, scores)) | {
        "brier": round(brier_score_loss(truth, np.concatenate(calibrated)), 4),
        "brier_uncalibrated": round(brier_score_loss(truth, scores), 4),
        "folds": [_rounded(fit_calibration(*pair)) for pair in pairs],
    }


def _rounded(found: Calibration) -> dict[str, float]:
    return {"temperature": round(found.temperature, 3), "offset": round(found.offset, 3)}


def _column(
    rows: Sequence[Mapping[str, Any]], name: str, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    truth = np.array([row["label"] == classes[-1] for row in rows])
    return truth, np.array([float(row[name]) for row in rows])
