"""The cases of a manifest through the models, one after the other.

Every case takes the path of the dashboard (`mst.predict`). What is finished stays in predictions.csv, so that a
cohort that was cut off goes on where it stopped.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mst import __version__
from mst.data import Case, ManifestError
from mst.errors import CheckpointError, InputError
from mst.files import write_whole
from mst.findings import Finding, cached_model, check_study, choose_spot, predict, resolve_checkpoints
from mst.models.loading import checkpoint_identity, checkpoint_name
from mst.results import write_results
from mst.saliency.metrics import MEASURES
from mst.scans import Scan, read_mask, read_scan
from mst.tasks import Task

PREDICTIONS = "predictions.csv"
ABOUT = ("case", "patient", "fold", "label", "center_x", "center_y", "center_z", "center_by", "diameter_mm")
OF_MODEL = ("probability", "prediction", *MEASURES)
OF_LESION = ("lesion_probability", "lesion_seen")  # of models that can tell
FOLD = "{fold}"
HEADERS, HEADER_BYTES = (".mhd", ".mha", ".nhdr", ".nrrd"), 64 * 1024  # whose voxels may lie in a file beside
Row = dict[str, str]  # of predictions.csv


def predict_cohort(
    cases: Sequence[Case],
    out: Path,
    task: Task,
    models: Mapping[str, str | Path | None] | None = None,
    *,
    off_centre_mm: float = 0.0,
    tta: bool = False,
    folders: bool = False,
    on_case: Callable[[int, int], None] = lambda done, count: None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> list[Row]:
    """Runs the models over cases and writes predictions.csv, a row a case.

    A region is centred on the case's centre, else on the mask's centroid, else on the scan's middle. Cases that are
    in predictions.csv already are not computed again, unless their files, their centre or a checkpoint have changed.

    Args:
        cases: from `mst.data.read_manifest`.
        out: the folder for the results; it is made.
        task: the study.
        models: {"mst": checkpoint, "resnet": checkpoint} as for `mst.predict`. "{fold}" in a checkpoint's name is
            replaced by the case's fold, so that each case can be judged by a model that has not seen it.
        off_centre_mm: shifts each region by a random distance up to this along each axis, the same for every run
            and both models.
        tta: average over the eight flips.
        folders: whether each case also gets a folder in `out` with what `mst.results.write_results` writes; the
            column `folder` names it.
        on_case: called with the number of finished cases and of all, for a progress display.
        tell: called with a sentence on a case whose DICOM files could not be written.

    Returns:
        The rows, in the cases' order.

    Raises:
        ManifestError: a case cannot be read. All other cases are finished and kept; the message names the row and
            its file.
        CheckpointError: a checkpoint cannot be loaded, is for another study or was changed meanwhile.
        OSError: the results cannot be written; what was written before stays whole.
    """
    given = resolve_checkpoints(task, models)
    checkpoints = {name: checkpoints_by_case(name, pattern, cases) for name, pattern in given.items()}
    out.mkdir(parents=True, exist_ok=True)
    used = sorted({checkpoint for by_case in checkpoints.values() for checkpoint in by_case.values()})
    identities = {checkpoint: checkpoint_identity(checkpoint) for checkpoint in used}
    prints = {checkpoint: _fingerprint(checkpoint, task) for checkpoint in used}
    keys = {}
    for case in cases:
        weights = {name: prints[by_case[case.name]] for name, by_case in checkpoints.items()}
        keys[case.name] = _key(case, [__version__, task.key, off_centre_mm, tta, weights])
    places = _folders(cases) if folders else {}
    rows = {
        name: row
        for name, row in _read_rows(out / PREDICTIONS).items()
        if row["key"] == keys.get(name) and (not folders or _is_whole(out, row, places[name]))
    }
    failed: list[ManifestError] = []
    # Fold by fold, so that each fold's models are loaded once.
    for case in sorted(cases, key=lambda case: case.fold):
        if case.name not in rows:
            chosen = {name: by_case[case.name] for name, by_case in checkpoints.items()}
            try:
                row, scan, mask, results = _predict_case(case, task, chosen, off_centre_mm, tta)
            except ManifestError as error:
                failed.append(error)
                continue
            for checkpoint in chosen.values():
                # The row's key names the weights that were there at the start.
                if checkpoint_identity(checkpoint) != identities[checkpoint]:
                    raise CheckpointError(
                        f"{checkpoint_name(checkpoint)} was changed while the cases were predicted; what was finished "
                        "before is kept, so start again."
                    )
            if folders:
                row["folder"] = places[case.name]
                notes: list[str] = []
                write_results(out / places[case.name], scan, task, results, mask, tell=notes.append)
                for note in notes:
                    tell(f"{case.name}: {note}")
            rows[case.name] = row | {"key": keys[case.name]}
            write_whole(out / PREDICTIONS, _as_csv(_ordered(rows, cases), list(given), folders))
        on_case(len(rows), len(cases))
    if failed:
        others = ", ".join(str(error).split(":")[0].rsplit(", ", 1)[-1] for error in failed[1:])
        raise ManifestError(str(failed[0]) + (f" Also unusable: {others}." if others else ""))
    ordered = _ordered(rows, cases)
    write_whole(out / PREDICTIONS, _as_csv(ordered, list(given), folders))
    return ordered


def checkpoints_by_case(name: str, pattern: str, cases: Sequence[Case]) -> dict[str, str]:
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


def _folders(cases: Sequence[Case]) -> dict[str, str]:
    """A folder's name for each case, its own name as far as a file system takes it."""
    names: dict[str, str] = {}
    taken = {PREDICTIONS}
    for case in cases:
        # A file system counts bytes, of which a letter may have four.
        name = re.sub(r"[^\w.-]+", "_", case.name).encode(errors="ignore")[:100].decode(errors="ignore")
        name = again = name.strip(".") or "case"
        number = 1
        # Some file systems take capitals and small letters for the same.
        while again.lower() in taken:
            number += 1
            again = f"{name}-{number}"
        taken.add(again.lower())
        names[case.name] = again
    return names


def _is_whole(out: Path, row: Row, folder: str) -> bool:
    """Whether a finished case's folder is there, by the name that it has now; prediction.json is written last."""
    return row.get("folder") == folder and (out / folder / "prediction.json").is_file()


def _fingerprint(checkpoint: str, task: Task) -> str:
    """Of a checkpoint's weights and settings, wherever it lies."""
    model = cached_model(checkpoint)
    check_study(model, checkpoint, task)
    settings = (model.title, model.classes, model.grid, model.temperature, model.lesion_threshold)
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _key(case: Case, settings: Sequence[Any]) -> str:
    """What a prediction depends on: the files, the centre, the checkpoints and the settings."""
    stamps = []
    for path in (case.image, case.mask):
        files = _files_of(path) if path else []
        stamps.append([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    text = json.dumps([stamps, case.name, case.center, settings])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _files_of(path: Path) -> list[Path]:
    """Every file that reading a scan takes in: those of a folder, or a file and what its header names beside it."""
    if path.is_dir():
        return sorted(path.rglob("*"))
    if path.suffix.lower() not in HEADERS:
        return [path]
    with path.open("rb") as file:
        text = file.read(HEADER_BYTES).decode("latin-1")
    # Whatever a line says after its "=" or ":" may be a file. One too many does no harm.
    said = {re.split(r"[=:]+", line)[-1].strip() for line in re.split(r"[\r\n]+", text)}
    beside = {path.parent / name for name in said if 0 < len(name) < 256 and name not in (".", "..")}
    return [path, *sorted(file for file in beside - {path} if file.is_file())]


def _predict_case(
    case: Case, task: Task, checkpoints: Mapping[str, str], off_centre_mm: float, tta: bool
) -> tuple[Row, Scan, np.ndarray | None, dict[str, Finding]]:
    """One row of predictions.csv, and what it was made of.

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
    except (InputError, OSError, MemoryError) as error:
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
        if result.lesion_probability is not None:
            row[f"{name}_lesion_probability"] = _text(result.lesion_probability)
            row[f"{name}_lesion_seen"] = _text(result.lesion_seen)
        for measure in MEASURES:
            row[f"{name}_{measure}"] = _text((result.metrics or {}).get(measure))
    return row, scan, mask, results


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


def _as_csv(rows: Sequence[Row], models: Sequence[str], folders: bool) -> str:
    columns = [*ABOUT, *(["folder"] if folders else [])]
    for name in models:
        columns += [f"{name}_{column}" for column in OF_MODEL]
        if any(row.get(f"{name}_lesion_seen") for row in rows):
            columns += [f"{name}_{column}" for column in OF_LESION]
    file = io.StringIO()
    writer = csv.DictWriter(file, [*columns, "key"], restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _read_rows(path: Path) -> dict[str, Row]:
    """Finished rows by case; {} where there is no such file, or it is not one of ours."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["case"]: row for row in csv.DictReader(file) if _is_finished(row)}
    except (FileNotFoundError, UnicodeDecodeError, csv.Error):
        return {}


def _is_finished(row: Row) -> bool:
    """Whether a row is as it was written; one that was edited since is computed again."""
    numbers = (
        "diameter_mm",
        *ABOUT[4:7],
        *(c for c in row if c and c.endswith(("_probability", "_lesion_seen", *MEASURES))),
    )
    try:
        found = {c: float(row[c] or 0) for c in numbers}
        shares = all(0 <= value <= 1 for c, value in found.items() if c.endswith("_probability"))
        return bool(row["case"] and row["key"]) and shares and all(map(np.isfinite, found.values()))
    except (KeyError, TypeError, ValueError):
        return False
