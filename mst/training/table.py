"""The figures of all models of a study side by side, from their folds' predictions: printed when a training ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mst.statistics import auc, delong_test
from mst.training.evaluate import BASELINES, LOCALISATION, Group, groups_of, has_rows, read_rows, summarise

FILE = "predictions.csv"


def read_folds(run: Path, folds: int) -> list[list[dict[str, str]]] | None:
    """The predictions of a run's folds; None where one is missing."""
    files = [run / f"fold-{number}" / FILE for number in range(folds)]
    return [read_rows(file) for file in files] if all(has_rows(file) for file in files) else None


def table(models: Mapping[str, Sequence[Sequence[dict[str, Any]]]], classes: Sequence[str]) -> str:
    """AUCs by data set and rule beside the diameter's, paired tests, localisation beside blind guesses.

    Args:
        models: name -> its folds' rows of `mst.training.evaluate.predict_cases`.
        classes: the study's.

    Returns:
        Markdown tables, ready to be printed.
    """
    rows = {name: [row for fold in folds for row in fold] for name, folds in models.items()}
    parts = [
        _areas(rows, classes),
        _localisation(models, classes),
        _lesions(models, classes),
        _cut(models, classes),
    ]
    return "\n\n".join(part for part in parts if part)


def _areas(rows: Mapping[str, list[dict[str, Any]]], classes: Sequence[str]) -> str:
    names = list(rows)
    found: dict[tuple, dict[str, Group]] = {}
    for name in names:
        for group in groups_of(rows[name]):
            found.setdefault((group.dataset, group.rule, group.readers), {})[name] = group
    pairs = list(combinations(names, 2))
    lines = [
        _line(
            "AUC (95% CI)",
            f"{classes[0]}, {classes[-1]}",
            *names,
            "diameter alone",
            *(f"p: {first} - {second}" for first, second in pairs),
        ),
    ]
    for (dataset, rule, readers), groups in found.items():
        first = next(iter(groups.values()))
        called = f"{dataset}, {'paper' if rule == 'rounded' else 'mean'} rule"
        cells = [called + (f", {readers} readers or more" if readers > 1 else ""), f"{first.counts}"]
        cells += [
            _interval(groups[name].truth, groups[name].scores) if name in groups else "" for name in names
        ]
        cells.append(_interval(first.truth, first.sizes))
        for one, other in pairs:
            same = one in groups and other in groups and groups[one].cases == groups[other].cases
            if not same:
                cells.append("")
                continue
            test = delong_test(groups[one].truth, groups[one].scores, groups[other].scores)
            cells.append(f"{test.value:+.3f}, p {test.p:.3f}")
        lines.append(_line(*cells))
    return _markdown(lines) if found else ""


def _localisation(models: Mapping[str, Sequence[Sequence[dict[str, Any]]]], classes: Sequence[str]) -> str:
    lines = [_line("off-centre by up to 10 mm", *models, *(f"the {name} one" for name in BASELINES))]
    found = {name: summarise(folds, classes) for name, folds in models.items()}
    for title, key, stem in LOCALISATION:
        known = [metrics for metrics in found.values() if key in metrics]
        if not known:
            return ""
        cells = [f"{100 * metrics[key]:.0f}%" if key in metrics else "" for metrics in found.values()]
        blind = [known[0].get(f"{stem}_{name}") for name in BASELINES]
        lines.append(
            _line(title, *cells, *("" if value is None else f"{100 * value:.0f}%" for value in blind))
        )
    return _markdown(lines)


def _lesions(models: Mapping[str, Sequence[Sequence[dict[str, Any]]]], classes: Sequence[str]) -> str:
    lines = [_line("is there a lesion", "AUC", "lesions kept", "regions without one called so", "threshold")]
    for name, folds in models.items():
        lesion = summarise(folds, classes).get("lesion", {})
        for ending, called in (("", "whole scan"), ("_cut", "the scan ends in view")):
            if f"auc{ending}" in lesion:
                lines.append(
                    _line(
                        f"{name}, {called}",
                        f"{lesion[f'auc{ending}']:.3f}",
                        f"{100 * lesion[f'kept{ending}']:.1f}% of {lesion[f'n_lesions{ending}']}",
                        f"{100 * lesion[f'empty_called{ending}']:.1f}% of {lesion[f'n_empty{ending}']}",
                        f"{lesion['threshold']:.3f}",
                    )
                )
    return _markdown(lines) if len(lines) > 1 else ""


def _cut(models: Mapping[str, Sequence[Sequence[dict[str, Any]]]], classes: Sequence[str]) -> str:
    lines = [
        _line(
            "cut down to the lesion's own slices",
            "cases",
            "mean change",
            "mean absolute change",
            "AUC whole",
            "AUC cut",
        )
    ]
    for name, folds in models.items():
        cut = summarise(folds, classes).get("cut_to_lesion")
        if cut:
            areas = (f"{cut[key]:.3f}" if key in cut else "" for key in ("auc_whole", "auc_cut"))
            lines.append(
                _line(
                    name,
                    str(cut["n"]),
                    f"{cut['mean_change']:+.3f}",
                    f"{cut['mean_absolute_change']:.3f}",
                    *areas,
                )
            )
    return _markdown(lines) if len(lines) > 1 else ""


def _interval(truth: np.ndarray, scores: np.ndarray) -> str:
    area = auc(truth, scores)
    return f"{area.value:.3f} ({area.ci95[0]:.3f} to {area.ci95[1]:.3f})"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown(lines: Sequence[str]) -> str:
    columns = lines[0].count("|") - 1
    return "\n".join([lines[0], "|" + " --- |" * columns, *lines[1:]])
