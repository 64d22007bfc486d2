"""Speed and memory of the models, as ratios within one run.

Seconds say as much of the machine as of the code, and on a busy one nothing at all. So both sides of a ratio are
measured in turn, again and again, and each round gives one ratio: what slows a round slows both. The scan is noise,
since no step takes longer on one picture than on another.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mst.findings import cached_model, predict, resolve_checkpoints
from mst.models.base import ScanClassifier
from mst.models.loading import checkpoint_name
from mst.preprocess import AXES, ModelInput, prepare
from mst.results import results_payload
from mst.saliency import explain
from mst.saliency.flips import explain_flips
from mst.scans import Scan
from mst.tasks import Task, get_task
from mst.words import short_label

STATUS = Path("/proc/self/status")  # Linux; elsewhere memory is not measured
QUARTILES = (25, 50, 75)
LARGE = (512, 512, 300)  # voxels of a whole CT


def bench(
    task: str = "chest-ct",
    models: Mapping[str, str | Path | None] | None = None,
    repeats: int = 7,
    on_round: Callable[[int, int], None] = lambda done, count: None,
) -> dict[str, Any]:
    """Measures the models of a study on this machine.

    Args:
        task: "chest-ct", "breast-mri" or "knee-mri".
        models: {"mst": checkpoint, "resnet": checkpoint} as for `mst.predict`.
        repeats: rounds, after one that is not counted.
        on_round: called with the number of finished rounds and of all.

    Returns:
        "speed" and "memory": {what: {"median", "lower", "upper", "rounds"}}, ratios and their quartiles over the
        rounds. Memory is the largest resident memory of a process of its own, with the model and all libraries in
        it; it is measured once, and {} where the system does not tell.

    Raises:
        CheckpointError: there is no checkpoint for the study, or one cannot be loaded or is for another.
        ValueError: fewer than one round.
    """
    if repeats < 1:
        raise ValueError(f"there must be at least one round, not {repeats}")
    study = get_task(task)
    chosen = resolve_checkpoints(study, models)
    scan = noise_scan(study)
    loaded = {name: cached_model(checkpoint) for name, checkpoint in chosen.items()}
    results = predict(scan, study.key, models=chosen)  # first, since it refuses checkpoints that do not fit
    given = {name: prepare(scan, study, tuple(scan.center), model.grid) for name, model in loaded.items()}
    large = large_scan(scan)
    steps: dict[str, Callable[[], object]] = {
        "viewer": lambda: results_payload(scan, study, results),
        "predict": lambda: predict(scan, study.key, models=chosen),
        "large predict": lambda: predict(large, study.key, tuple(scan.center), models=chosen),
    }
    for name, model in loaded.items():
        of_model = _steps(model, scan, study, given[name])
        steps |= {f"{name} {step}": run for step, run in of_model.items()}
    pairs: dict[str, tuple[str, str]] = {}
    for name in loaded:
        label = short_label(name, loaded[name].title)
        pairs[f"{label}: answer and map / answer alone"] = (f"{name} explain", f"{name} answer")
        pairs[f"{label}: eight flips / one"] = (f"{name} flips", f"{name} explain")
        pairs[f"{label}: cutting out the region / answer and map"] = (f"{name} prepare", f"{name} explain")
    if len(loaded) > 1:
        first, second = loaded
        labels = " / ".join(short_label(name, loaded[name].title) for name in loaded)
        pairs[f"answer alone, {labels}"] = (f"{first} answer", f"{second} answer")
        pairs[f"answer and map, {labels}"] = (f"{first} explain", f"{second} explain")
    pairs["the viewer's data / the whole prediction"] = ("viewer", "predict")
    pairs[f"the whole prediction in {_voxels(large)} voxels / in {_voxels(scan)}"] = (
        "large predict",
        "predict",
    )
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number:  # the first round also fills caches
                seconds[name].append(time.perf_counter() - start)
        on_round(number + 1, repeats + 1)
    speed = {
        what: _spread(np.array(seconds[over]) / np.array(seconds[under]))
        for what, (over, under) in pairs.items()
    }
    return {
        "task": study.key,
        "checkpoints": {name: checkpoint_name(checkpoint) for name, checkpoint in chosen.items()},
        "speed": speed,
        "memory": _memory(study, chosen),
    }


def noise_scan(task: Task) -> Scan:
    """A scan that is as large as the study's region and some more, with values over the study's whole range."""
    low, high = task.clamp or (0.0, 1000.0)
    spacing, size = [1.0, 1.0, 1.0], [1, 1, 1]
    for (axis, _), step, count in zip(AXES[task.plane], task.grid.spacing_mm, task.grid.shape, strict=True):
        spacing[axis], size[axis] = step or 1.0, round(1.25 * count)
    values = np.random.default_rng(0).uniform(low, high, size).astype(np.float32)
    modality = "CT" if task.unit == "HU" else "MR"
    return Scan(values, np.diag([*spacing, 1.0]), modality, "noise")


def large_scan(scan: Scan) -> Scan:
    """A scan as large as a whole CT, which is a small one repeated, the small one in its midst."""
    around = [max(0, whole - count) for whole, count in zip(LARGE, scan.shape, strict=True)]
    before = [count // 2 for count in around]
    voxels = np.pad(scan.voxels, [(a, b - a) for a, b in zip(before, around, strict=True)], mode="wrap")
    affine = scan.affine.copy()
    affine[:3, 3] = scan.voxel_to_world(-np.array(before))
    return Scan(voxels, affine, scan.modality, "large noise")


def _voxels(scan: Scan) -> str:
    return " x ".join(str(count) for count in scan.shape)


def _steps(
    model: ScanClassifier, scan: Scan, task: Task, given: ModelInput
) -> dict[str, Callable[[], object]]:
    def answer() -> None:
        with torch.inference_mode():
            model(given.volume, given.padding_mask)

    return {
        "prepare": lambda: prepare(scan, task, tuple(scan.center), model.grid),
        "answer": answer,
        "explain": lambda: explain(model, given.volume, padding_mask=given.padding_mask),
        "flips": lambda: explain_flips(model, given.volume, padding_mask=given.padding_mask),
    }


def _spread(ratios: np.ndarray) -> dict[str, float]:
    lower, median, upper = np.percentile(ratios, QUARTILES)
    return {
        "median": round(float(median), 3),
        "lower": round(float(lower), 3),
        "upper": round(float(upper), 3),
        "rounds": len(ratios),
    }


def _memory(task: Task, chosen: Mapping[str, str]) -> dict[str, dict[str, float]]:
    if not STATUS.is_file():
        return {}
    found = {}
    # Each model in a process of its own: a process never gets smaller again.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, checkpoint in chosen.items():
            answer, explain_too = pool.apply(_peaks, (task.key, checkpoint))
            what = f"{short_label(name, cached_model(checkpoint).title)}: answer and map / answer alone"
            found[what] = _spread(np.array([explain_too / answer]))
    return found


def _peaks(task: str, checkpoint: str) -> tuple[float, float]:
    """Largest resident memory of this process in kB, after an answer alone and after one with its map."""
    study = get_task(task)
    model, scan = cached_model(checkpoint), noise_scan(study)
    given = prepare(scan, study, tuple(scan.center), model.grid)
    steps = _steps(model, scan, study, given)
    peaks = []
    for step in ("answer", "explain"):
        steps[step]()
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        peaks.append(float(line.split()[1]))
    return peaks[0], peaks[1]
