"""From a manifest of cases to predictions, figures and a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mst.cohort import checkpoints_by_case, predict_cohort
from mst.data import read_manifest
from mst.evaluation.figures import summarise
from mst.evaluation.plots import roc_png
from mst.evaluation.report import evaluation_html
from mst.files import write_whole
from mst.findings import cached_model, resolve_checkpoints
from mst.models.loading import checkpoint_name
from mst.tasks import get_task

METRICS, ROC, REPORT = "metrics.json", "roc.png", "report.html"


def evaluate(
    manifest: str | Path,
    out: str | Path,
    task: str = "chest-ct",
    models: Mapping[str, str | Path | None] | None = None,
    *,
    off_centre_mm: float = 0.0,
    tta: bool = False,
    on_case: Callable[[int, int], None] = lambda done, count: None,
) -> dict[str, Any]:
    """Runs the models over a manifest's cases and writes predictions.csv, metrics.json, roc.png and report.html.

    A region is centred on the manifest's `center_x`, `center_y`, `center_z`, else on the mask's centroid, else on
    the scan's middle. Cases that are in predictions.csv already are not computed again, unless their files, their
    centre or a checkpoint have changed.

    Args:
        manifest: a CSV with the columns `image` and `label`, or its folder; see `mst.data.manifest`.
        out: the folder for the results.
        task: "chest-ct", "breast-mri" or "knee-mri".
        models: {"mst": checkpoint, "resnet": checkpoint} as for `mst.predict`. "{fold}" in a checkpoint's name is
            replaced by the case's fold, so that each case can be judged by a model that has not seen it.
        off_centre_mm: shifts each region by a random distance up to this along each axis, the same for every run
            and both models: a map that only ever looks at the middle then finds no lesion.
        tta: average over the eight flips.
        on_case: called with the number of finished cases and of all, for a progress display.

    Returns:
        The content of metrics.json.

    Raises:
        ManifestError: a manifest that cannot be used, or a case that cannot be read. All other cases are
            finished and kept; the message names the row and its file.
        CheckpointError: a checkpoint cannot be loaded or is for another study.
        OSError: the results cannot be written; what was written before stays whole.
    """
    study, out = get_task(task), Path(out)
    cases = read_manifest(manifest, study.classes)
    given = resolve_checkpoints(study, models)
    ordered = predict_cohort(cases, out, study, given, off_centre_mm=off_centre_mm, tta=tta, on_case=on_case)
    metrics: dict[str, Any] = {
        "task": task,
        "manifest": Path(manifest).name,
        "off_centre_mm": off_centre_mm,
        "tta": tta,
    }
    names = {name: checkpoint_name(pattern) for name, pattern in given.items()}
    metrics |= summarise(ordered, study.classes, names)
    for name, pattern in given.items():
        checkpoint = checkpoints_by_case(name, pattern, cases[:1])[cases[0].name]
        metrics["models"][name]["title"] = cached_model(checkpoint).title
    write_whole(out / ROC, roc_png(ordered, metrics))
    write_whole(out / REPORT, evaluation_html(ordered, metrics))
    # Last, so that whoever finds metrics.json finds the rest as well.
    write_whole(out / METRICS, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    return metrics
