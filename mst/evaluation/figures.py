"""Figures of finished predictions: the content of metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

import numpy as np
from sklearn.metrics import brier_score_loss

from mst.cohort import Row
from mst.saliency.metrics import MEASURES, YES_OR_NO
from mst.statistics import (
    OperatingPoint,
    auc,
    calibration_curve,
    delong_test,
    mcnemar_test,
    operating_point,
    proportion_ci95,
    wilcoxon_test,
    youden_point,
)

FOLD_FIGURES = ("auc", "sensitivity", "specificity", "accuracy")
DIGITS = 9  # as many as predictions.csv has, so that a threshold is still one of the scores


def summarise(rows: Sequence[Row], classes: Sequence[str], checkpoints: Mapping[str, str]) -> dict[str, Any]:
    """What is reported of a cohort's predictions.

    The last class is the positive one. Cases of no class (indeterminate) do not count in the figures of
    classification, but do in those of saliency.

    Args:
        rows: of predictions.csv.
        classes: of the study.
        checkpoints: each model's checkpoint, by the model's short name.

    Returns:
        "n", "models", "comparison" (where there are two models) and "baseline_diameter_auc" (where each case of
        a class has a mask); see README.md.

    Raises:
        ValueError: there are cases of one class only.
    """
    labelled = [row for row in rows if row["label"] in (classes[0], classes[-1])]
    truth = truth_of(labelled, classes)
    folds = sorted({row["fold"] for row in labelled})
    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "classes": list(classes),
        "n": {
            "cases": len(rows),
            "patients": len({row["patient"] for row in rows}),
            **{label: sum(row["label"] == label for row in rows) for label in (*classes, "indeterminate")},
            "with_mask": sum(row["diameter_mm"] != "" for row in rows),
        },
        "centred_by": {
            by: sum(row["center_by"] == by for row in rows)
            for by in sorted({row["center_by"] for row in rows})
        },
        "models": {},
    }
    for name, checkpoint in checkpoints.items():
        figures = _classification(truth, column(labelled, f"{name}_probability"))
        if len(folds) > 1:
            figures["folds"] = _folds(labelled, folds, name, classes)
        if saliency := _saliency(rows, name):
            figures["saliency"] = saliency
        found["models"][name] = {"checkpoint": checkpoint, **figures}
    if len(checkpoints) == 2:
        found["comparison"] = _comparison(rows, labelled, truth, *checkpoints)
    if all(row["diameter_mm"] for row in labelled):
        baseline = auc(truth, column(labelled, "diameter_mm"))
        found["baseline_diameter_auc"] = baseline.value
        found["baseline_diameter_auc_ci95"] = list(baseline.ci95)
    return _rounded(found)


def truth_of(rows: Sequence[Row], classes: Sequence[str]) -> np.ndarray:
    """bool [n], True for the last class."""
    return np.array([row["label"] == classes[-1] for row in rows], bool)


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """A column's numbers, float [n]."""
    return np.array([float(row[name]) for row in rows])


def _classification(truth: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    area, youden = auc(truth, probability), youden_point(truth, probability)
    return {
        "auc": area.value,
        "auc_ci95": list(area.ci95),
        "auc_se": area.se,
        "threshold": youden.threshold,
        **_decisions(youden),
        "brier": brier_score_loss(truth, probability),
        "calibration": [asdict(point) for point in calibration_curve(truth, probability)],
        # What the dashboard calls the more probable class.
        "at_half": {"threshold": 0.5, **_decisions(operating_point(truth, probability, 0.5))},
    }


def _decisions(point: OperatingPoint) -> dict[str, Any]:
    (right_negative, _), (_, right_positive) = point.confusion
    negatives, positives = map(sum, point.confusion)
    return {
        "sensitivity": point.sensitivity,
        "sensitivity_ci95": list(proportion_ci95(right_positive, positives)),
        "specificity": point.specificity,
        "specificity_ci95": list(proportion_ci95(right_negative, negatives)),
        "accuracy": point.accuracy,
        "accuracy_ci95": list(proportion_ci95(right_negative + right_positive, negatives + positives)),
        "confusion": [list(row) for row in point.confusion],
    }


def _folds(
    labelled: Sequence[Row], folds: Sequence[str], name: str, classes: Sequence[str]
) -> dict[str, Any]:
    """Each fold's figures, with Youden's point of that fold, and their mean and standard deviation.

    A fold with one class alone has none, which is None.
    """
    each: dict[str, list[float | None]] = {figure: [] for figure in FOLD_FIGURES}
    for fold in folds:
        members = [row for row in labelled if row["fold"] == fold]
        truth = truth_of(members, classes)
        if truth.all() or not truth.any():
            figures: dict[str, Any] = dict.fromkeys(FOLD_FIGURES)
        else:
            figures = _classification(truth, column(members, f"{name}_probability"))
        for figure in FOLD_FIGURES:
            each[figure].append(figures[figure])
    summary: dict[str, Any] = {"names": list(folds)}
    for figure, values in each.items():
        known = [value for value in values if value is not None]
        summary[figure] = {
            "each": values,
            "mean": float(np.mean(known)) if known else None,
            "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        }
    return summary


def _saliency(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """Of the cases with a mask; {} where there is none.

    A map that is zero everywhere has no surface, and does not count in the mean distance.
    """
    masked = [row for row in rows if row.get(f"{name}_pointing_game")]
    if not masked:
        return {}
    found: dict[str, Any] = {"n": len(masked)}
    for measure in MEASURES:
        values = column([row for row in masked if row[f"{name}_{measure}"]], f"{name}_{measure}")
        found[measure] = float(values.mean()) if len(values) else None
        if measure in YES_OR_NO:
            found[f"{measure}_ci95"] = list(proportion_ci95(int(values.sum()), len(values)))
        else:
            found[f"{measure}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else None
    return found


def _comparison(
    rows: Sequence[Row], labelled: Sequence[Row], truth: np.ndarray, first: str, second: str
) -> dict[str, Any]:
    """The first model against the second, on the same cases."""
    test = delong_test(truth, *(column(labelled, f"{name}_probability") for name in (first, second)))
    found: dict[str, Any] = {
        "models": [first, second],
        "auc_difference": test.value,
        "auc_difference_ci95": list(test.ci95),
        "delong_z": test.z,
        "delong_p": test.p,
    }
    saliency = {}
    for measure in MEASURES:
        names = [f"{name}_{measure}" for name in (first, second)]
        pairs = [row for row in rows if all(row.get(name) for name in names)]
        if not pairs:
            continue
        a, b = (column(pairs, name) for name in names)
        exact = measure in YES_OR_NO
        saliency[measure] = {
            "test": "McNemar" if exact else "Wilcoxon",
            "n": len(pairs),
            "difference": float((a - b).mean()),
            "p": mcnemar_test(a > 0, b > 0) if exact else wilcoxon_test(a, b),
        }
    if saliency:
        found["saliency"] = saliency
    return found


def _rounded(value: Any) -> Any:
    """The same with short numbers; None for what is no number, since JSON knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        # A p value keeps its digits however small it is.
        return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
    return value
