"""How far an answer may lie off: over flips of the region, small shifts of the spot, and the folds of the training.

A spot is clicked by hand, a nodule has no side that must be on the left, and another fifth of the patients would have
given another calibration. None of that should change an answer much; the interval says how much it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mst.models.base import ScanClassifier
from mst.preprocess import ModelInput, prepare
from mst.saliency.flips import flipped, flips_of
from mst.scans import Scan
from mst.statistics import Calibration
from mst.tasks import Task

SHIFT_MM = 2.0  # to both sides, along each of the three axes
SHARE = 0.9  # of the answers lie in the interval


@dataclass(frozen=True)
class Interval:
    """Where the middle `SHARE` of a model's answers lie.

    Attributes:
        classes: class name -> (low, high), probabilities.
        views: how many flips and shifts there were.
        folds: how many calibrations each of them was seen through; 0: the model's own alone.
    """

    classes: dict[str, tuple[float, float]]
    views: int
    folds: int


def answer_interval(
    model: ScanClassifier,
    scan: Scan,
    task: Task,
    center: Sequence[float],
    given: ModelInput,
    answer: Sequence[float],
    folds: Sequence[Calibration] = (),
) -> Interval:
    """How a model's answer varies.

    Args:
        model: which answers.
        scan, task, center: as for `prepare`; shifts that would leave the scan are left out.
        given: what `prepare` made of them, for the flips.
        answer: the probabilities that the model gave, which the interval holds too.
        folds: what each fold's held-out answers asked for beyond the model's own calibration; none: that alone.
    """
    with torch.no_grad():
        logits = torch.cat([model(*view) for view in _views(model, scan, task, center, given)])
    answers = []
    for fold in folds or [Calibration(model.temperature)]:
        moved = logits.to(torch.float64, copy=True)
        moved[:, -1] += fold.offset
        answers.append((moved / fold.temperature).softmax(dim=1))
    low, high = np.quantile(torch.cat(answers).numpy(), ((1 - SHARE) / 2, (1 + SHARE) / 2), axis=0)
    ends = np.minimum(low, answer).tolist(), np.maximum(high, answer).tolist()
    return Interval(dict(zip(model.classes, zip(*ends, strict=True), strict=True)), len(logits), len(folds))


def fold_calibrations(metrics: Mapping[str, Any]) -> list[Calibration]:
    """What the folds in a checkpoint's metrics.json ask for beyond the model's own calibration.

    The model's own offset is in its weights. [] where there is none that can be used.
    """
    own = metrics.get("calibration")
    try:
        found = [
            Calibration(float(fold["temperature"]), float(fold["offset"]) - float(own["offset"]))  # type: ignore[index]
            for fold in own["folds"]  # type: ignore[index]
        ]
    except (KeyError, TypeError, ValueError):
        return []
    usable = all(0 < fold.temperature < np.inf and np.isfinite(fold.offset) for fold in found)
    return found if usable else []


def _views(
    model: ScanClassifier, scan: Scan, task: Task, center: Sequence[float], given: ModelInput
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    for axes in flips_of(model):
        yield flipped(given.volume, given.padding_mask, axes)
    for axis in range(3):
        for step in (-SHIFT_MM, SHIFT_MM):
            place = np.array(center, float)
            place[axis] += step
            if scan.contains(place):
                view = prepare(scan, task, place.tolist(), model.grid)
                yield view.volume, view.padding_mask
