"""From a manifest of cases to predictions, figures and a report.

Every case takes the path of the dashboard (`mst.predict`). What is finished stays in predictions.csv, so that a
cohort that was cut off goes on where it stopped.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mst import __version__
from mst.data import Case, ManifestError, read_manifest
from mst.evaluation.figures import SALIENCY, Row, summarise
from mst.evaluation.plots import roc_png
from mst.evaluation.report import evaluation_html
from mst.files import write_whole
from mst.models import CheckpointError
from mst.prediction import cached_model, choose_spot, predict, resolve_checkpoints
from mst.scan import Scan, ScanError, read_mask, read_scan
from mst.tasks import Task, get_task

PREDICTIONS, METRICS, ROC, REPORT = "predictions.csv", "metrics.json", "roc.png", "report.html"
ABOUT = ("case", "patient", "fold", "label", "center_x", "center_y", "center_z", "center_by", "diameter_mm")
OF_MODEL = ("probability", "prediction", *SALIENCY)
FOLD = "{fold}"


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
    checkpoints = {name: _by_case(name, pattern, cases) for name, pattern in given.items()}
    out.mkdir(parents=True, exist_ok=True)
    used = sorted({checkpoint for by_case in checkpoints.values() for checkpoint in by_case.values()})
    prints = {checkpoint: _fingerprint(checkpoint, study) for checkpoint in used}
    keys = {}
    for case in cases:
        weights = {name: prints[by_case[case.name]] for name, by_case in checkpoints.items()}
        keys[case.name] = _key(case, [__version__, task, off_centre_mm, tta, weights])
    rows = {name: row for name, row in _read_rows(out / PREDICTIONS).items() if row["key"] == keys.get(name)}
    failed: list[ManifestError] = []
    # Fold by fold, so that each fold's models are loaded once.
    for case in sorted(cases, key=lambda case: case.fold):
        if case.name not in rows:
            chosen = {name: by_case[case.name] for name, by_case in checkpoints.items()}
            try:
                row = _predict_case(case, study, chosen, off_centre_mm, tta)
            except ManifestError as error:
                failed.append(error)
                continue
            rows[case.name] = row | {"key": keys[case.name]}
            write_whole(out / PREDICTIONS, _as_csv(_ordered(rows, cases), list(given)))
        on_case(len(rows), len(cases))
    if failed:
        others = ", ".join(str(error).split(":")[0].rsplit(", ", 1)[-1] for error in failed[1:])
        raise ManifestError(str(failed[0]) + (f" Also unusable: {others}." if others else ""))
    ordered = _ordered(rows, cases)
    write_whole(out / PREDICTIONS, _as_csv(ordered, list(given)))
    metrics: dict[str, Any] = {
        "task": task,
        "manifest": Path(manifest).name,
        "off_centre_mm": off_centre_mm,
        "tta": tta,
    }
    metrics |= summarise(ordered, study.classes, {name: _named(pattern) for name, pattern in given.items()})
    for name, by_case in checkpoints.items():
        metrics["models"][name]["title"] = cached_model(by_case[cases[0].name]).title
    write_whole(out / ROC, roc_png(ordered, metrics))
    write_whole(out / REPORT, evaluation_html(ordered, metrics))
    # Last, so that whoever finds metrics.json finds the rest as well.
    write_whole(out / METRICS, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    return metrics


def _by_case(name: str, pattern: str, cases: Sequence[Case]) -> dict[str, str]:
    """The checkpoint of each case."""
    for case in cases:
        if FOLD in pattern and not case.fold:
            raise ManifestError(f"{case.source}: --{name} asks for the {FOLD}, but the column fold is empty.")
    return {case.name: pattern.replace(FOLD, case.fold) for case in cases}


def _ordered(rows: Mapping[str, Row], cases: Sequence[Case]) -> list[Row]:
    """Finished rows in the manifest's order. Patient, fold and label are the manifest's, also where corrected since."""
    return [
        rows[case.name] | {"patient": case.patient, "fold": case.fold, "label": case.label}
        for case in cases
        if case.name in rows
    ]


def _named(checkpoint: str) -> str:
    return Path(checkpoint).name if Path(checkpoint).is_dir() else checkpoint


def _fingerprint(checkpoint: str, task: Task) -> str:
    """Of a checkpoint's weights and settings, wherever it lies."""
    model = cached_model(checkpoint)
    if model.task != task.key:
        raise CheckpointError(f"{_named(checkpoint)} was trained for {model.task}, not for {task.key}.")
    digest = hashlib.sha256(repr((model.title, model.classes, model.grid, model.temperature)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _key(case: Case, settings: Sequence[Any]) -> str:
    """What a prediction depends on: the files, the centre, the checkpoints and the settings."""
    stamps = []
    for path in (case.image, case.mask):
        files = sorted(path.rglob("*")) if path and path.is_dir() else [path] if path else []
        stamps.append([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    text = json.dumps([stamps, case.name, case.center, settings])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _predict_case(
    case: Case, task: Task, checkpoints: Mapping[str, str], off_centre_mm: float, tta: bool
) -> Row:
    """One row of predictions.csv.

    Raises:
        ManifestError: the case cannot be read or classified.
    """
    file = case.image
    try:
        scan = read_scan(case.image)
        mask = None
        if case.mask is not None:
            file = case.mask
            mask = read_mask(case.mask, scan, same_shape=True)
            file = case.image
        spot = choose_spot(scan, task, case.center, mask)
        center = _shifted(spot.center, scan, case.name, off_centre_mm)
        results = predict(scan, task.key, center, mask, models=checkpoints, tta=tta)
    except CheckpointError:
        raise
    except (ScanError, ValueError, OSError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        named = text if file.name in text else f"{file.name}: {text}"
        raise ManifestError(f"{case.source}: {named}") from error
    row = {
        "case": case.name,
        **dict(zip(("center_x", "center_y", "center_z"), map(_text, center), strict=True)),
        "center_by": spot.chosen_by,
        "diameter_mm": "" if mask is None else _text(_diameter(mask, scan)),
    }
    for name, result in results.items():
        row[f"{name}_probability"] = _text(result.probabilities[task.classes[-1]])
        row[f"{name}_prediction"] = result.prediction
        for measure in SALIENCY:
            row[f"{name}_{measure}"] = _text((result.metrics or {}).get(measure))
    return row


def _shifted(center: Sequence[float], scan: Scan, name: str, most: float) -> tuple[float, float, float]:
    """A centre up to `most` millimetres off along each axis, within the scan; it depends on the case's name alone."""
    shift = np.random.default_rng([0, *name.encode()]).uniform(-most, most, 3)
    while np.any(shift) and not scan.contains(np.asarray(center) + shift):
        shift = shift / 2 if np.abs(shift).max() > 0.1 else np.zeros(3)
    x, y, z = (float(v) for v in np.asarray(center) + shift)
    return x, y, z


def _diameter(mask: np.ndarray, scan: Scan) -> float:
    """Of the sphere with the mask's volume, in millimetres."""
    return float((6 * mask.sum() * np.prod(scan.spacing) / np.pi) ** (1 / 3))


def _text(value: float | bool | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else f"{value:.9g}"


def _as_csv(rows: Sequence[Row], models: Sequence[str]) -> str:
    columns = [*ABOUT, *(f"{name}_{column}" for name in models for column in OF_MODEL), "key"]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _read_rows(path: Path) -> dict[str, Row]:
    """Finished rows by case; {} where there is no such file, or it is not one of ours."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["case"]: row for row in csv.DictReader(file) if row.get("case") and row.get("key")}
    except (FileNotFoundError, UnicodeDecodeError, csv.Error):
        return {}
