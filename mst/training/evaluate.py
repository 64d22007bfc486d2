"""Predictions for cases that were kept from training, and what is reported of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from mst.files import write_whole
from mst.models.base import ScanClassifier
from mst.preprocess import AXES
from mst.saliency import explain
from mst.saliency.metrics import saliency_metrics
from mst.statistics import auc, brier_score, fit_temperature, with_temperature
from mst.training.cases import LoadedCase

OFFSET_MM = 10.0  # how far off-centre the second round of predictions is, at most, along each axis
PLACES = 5  # off-centre regions a case: from one to the next, the AUC of few cases changes by 0.05 and more
OFF = tuple(f"probability_off_{number + 1}" for number in range(PLACES))
COLUMNS = ("case", "label", "probability", "diameter_mm", *OFF, "pointing_off", "top_slice_off")


@torch.no_grad()
def predict_cases(model: ScanClassifier, cases: Sequence[LoadedCase], seed: int = 0) -> list[dict[str, Any]]:
    """One row a case, with the columns `COLUMNS`.

    `probability` is of the last class with the region centred on the lesion. The columns with "_off" in their names
    come from `PLACES` regions whose centres are up to 10 mm off along each axis: `pointing_off` says in what share of
    them the saliency's maximum lies within 2 mm of the mask, `top_slice_off` in what share the slice with the most
    saliency meets it.
    """
    rows = []
    model = model.eval()
    for case in cases:
        # The offset depends on the case's name, not on its place in the list.
        rng = np.random.default_rng([seed, *case.case.name.encode()])
        centred = case.prepare(model.grid)
        logits = model(centred.volume, centred.padding_mask)
        row: dict[str, Any] = {
            "case": case.case.name,
            "label": case.case.label,
            "probability": _probability(model, logits),
            "diameter_mm": "" if case.diameter_mm is None else round(case.diameter_mm, 2),
        }
        pointing, top_slice = [], []
        for column in OFF:
            shifted = case.prepare(model.grid, rng.uniform(-OFFSET_MM, OFFSET_MM, 3))
            with torch.enable_grad():
                seen = explain(model, shifted.volume, padding_mask=shifted.padding_mask)
            row[column] = _probability(model, seen.logits)
            if case.mask is None:
                continue
            region = shifted.region
            metrics = saliency_metrics(
                region.to_scan(seen.saliency[0, 0].numpy()),
                case.mask,
                case.scan.spacing,
                None if seen.slice_weights is None else region.profile(seen.slice_weights[0].numpy()),
                AXES[region.plane][0][0],
            )
            pointing.append(metrics["pointing_game"])
            top_slice.append(metrics["top_slice_in_lesion"])
        if pointing:
            row["pointing_off"] = float(np.mean(pointing))
            row["top_slice_off"] = float(np.mean(top_slice))
        rows.append(row)
    return rows


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
        "auc_off_centre": round(
            float(np.mean([roc_auc_score(*_column(labelled, column, classes)) for column in OFF])), 4
        ),
        "off_centre_places": PLACES,
        f"n_{classes[0]}": int((~truth).sum()),
        f"n_{classes[-1]}": int(truth.sum()),
    }
    for name in ("pointing_off", "top_slice_off"):
        hits = [float(row[name]) for row in rows if str(row.get(name, "")) != ""]
        if hits:
            found[f"{name}_centre"] = round(float(np.mean(hits)), 4)
    sized = [row for row in labelled if str(row["diameter_mm"]) != ""]
    if len(sized) == len(labelled):
        found["baseline_diameter_auc"] = round(
            float(roc_auc_score(*_column(labelled, "diameter_mm", classes))), 4
        )
    return found


def calibration(folds: Sequence[Sequence[dict[str, Any]]], classes: Sequence[str]) -> dict[str, float]:
    """The temperature that the held-out predictions ask for, and what it gains.

    Returns:
        "temperature" from all folds; "brier" with, for each fold, the temperature of the other folds, so that no case
        is judged by a temperature that it helped to choose; "brier_uncalibrated".
    """
    pairs = [
        _column([row for row in fold if row["label"] in (classes[0], classes[-1])], "probability", classes)
        for fold in folds
    ]
    truth, scores = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    calibrated = []
    for k, (_, held_out) in enumerate(pairs):
        others = [pair for i, pair in enumerate(pairs) if i != k] or pairs
        temperature = fit_temperature(*(np.concatenate(parts) for parts in zip(*others, strict=True)))
        calibrated.append(with_temperature(held_out, temperature))
    return {
        "temperature": round(fit_temperature(truth, scores), 3),
        "brier": round(brier_score(truth, np.concatenate(calibrated)), 4),
        "brier_uncalibrated": round(brier_score(truth, scores), 4),
    }


def _column(
    rows: Sequence[dict[str, Any]], name: str, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    truth = np.array([row["label"] == classes[-1] for row in rows])
    return truth, np.array([float(row[name]) for row in rows])
