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
    temperatures: Sequence[float] = (),
) -> Interval:
    """How a model's answer varies.

    Args:
        model: which answers.
        scan, task, center: as for `prepare`; shifts that would leave the scan are left out.
        given: what `prepare` made of them, for the flips.
        temperatures: that each fold's held-out answers asked for, see `mst.statistics.fit_temperature`; none: the
            model's own alone.
    """
    with torch.no_grad():
        logits = torch.cat([model(*view) for view in _views(model, scan, task, center, given)])
    answers = torch.cat(
        [(logits.double() / value).softmax(dim=1) for value in temperatures or [model.temperature]]
    )
    ends = np.quantile(answers.numpy(), ((1 - SHARE) / 2, (1 + SHARE) / 2), axis=0)
    classes = {name: (float(low), float(high)) for name, low, high in zip(model.classes, *ends, strict=True)}
    return Interval(classes, len(logits), len(temperatures))


def fold_temperatures(metrics: Mapping[str, Any]) -> list[float]:
    """The folds' temperatures in a checkpoint's metrics.json; [] where there is none that can be used."""
    calibration = metrics.get("calibration")
    folds = calibration.get("folds") if isinstance(calibration, dict) else None
    try:
        found = [float(value) for value in folds or ()]
    except (TypeError, ValueError):
        return []
    return found if all(0 < value < np.inf for value in found) else []


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
