"""What a prediction leaves behind: prediction.json, saliency as NIfTI and DICOM, the viewer's data and reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mst.files import replacing
from mst.findings import MODELS, Finding
from mst.scans import Scan, write_nifti
from mst.scans.hounsfield import hounsfield_shift
from mst.scans.scan import Caution
from mst.tasks import Task, Window
from mst.uncertainty import SHIFT_MM
from mst.viewer import (
    Layer,
    NativeMap,
    SliceStream,
    findings_payload,
    report_html,
    scan_payload,
    viewer_payload,
)
from mst.words import (
    DISCLAIMER,
    LABELS,
    LONGEST_NAME,
    METHOD_LABELS,
    between,
    clipped,
    none_seen,
    one_seen,
    percent,
    short_label,
    unlike,
)

SLICES_URL = "scan-slices"  # where a page asks for slices, relative to itself
# Everything that a result can consist of; whoever finds prediction.json finds the rest as well.
RESULT_FILES = (
    "prediction.json",
    "report.html",
    "report.pdf",
    *(
        f"{model}_{kind}"
        for model in MODELS
        for kind in ("saliency.nii.gz", "saliency.dcm", "segmentation.dcm")
    ),
)


def prediction_record(scan: Scan, task: Task, results: Mapping[str, Finding]) -> dict[str, Any]:
    """The content of prediction.json: plain numbers and text, no arrays of voxels."""
    first = next(iter(results.values()))
    record: dict[str, Any] = {
        "task": task.key,
        "scan": {
            "name": clipped(scan.name, LONGEST_NAME),
            "shape": list(scan.shape),
            "spacing_mm": [round(s, 4) for s in scan.spacing],
            "notes": [clipped(note) for note in (*scan.notes, *scan_notes(scan, task))],
            "warnings": [clipped(warning) for warning in scan_warnings(scan, task)],
        },
        "region": {
            "center_mm": list(first.spot.center),
            "chosen_by": first.spot.chosen_by,
            "text": first.spot.text,
        },
        "notes": missing_models(task, results),
        "models": {},
        "disclaimer": DISCLAIMER,
    }
    if said := agreement(task, results):
        record["agreement"] = said
    for name, result in results.items():
        entry: dict[str, Any] = {
            "checkpoint": result.checkpoint,
            "title": result.title or LABELS[name],
            "probabilities": result.probabilities,
            "prediction": result.prediction,
            "seconds": round(result.seconds, 3),
            "method": result.map.method,
        }
        if result.lesion_probability is not None:
            entry["lesion_probability"] = round(result.lesion_probability, 4)
        if result.interval is not None:
            entry["interval"] = {
                name: [round(end, 4) for end in ends] for name, ends in result.interval.classes.items()
            }
        if notes := answer_notes(task, result):
            entry["notes"] = notes
        if warnings := answer_warnings(task, result):
            entry["warnings"] = warnings
        if "auc" in result.validation:
            entry["validation_auc"] = result.validation["auc"]
            entry["validation_protocol"] = clipped(result.validation.get("protocol", ""))
        if result.slice_weights is not None:
            entry["slice_weights"] = [round(float(w), 6) for w in result.slice_weights]
        if result.metrics is not None:
            entry["metrics"] = result.metrics
        record["models"][name] = entry
    return record


def missing_models(task: Task, results: Collection[str]) -> list[str]:
    """A sentence for each model that gave no answer, since there is no checkpoint of it.

    Args:
        results: the short names of those that did.
    """
    return [
        f"There is no checkpoint of the {LABELS[name]} for {task.title} at hand, so there is no answer of it."
        for name in LABELS
        if name not in results
    ]


def answer_warnings(task: Task, result: Finding) -> list[str]:
    """Why one model's answer means nothing, whatever the scan: there is nothing to classify, as far as it can tell.

    Where there is one, every page and report dims that model's answer and says it beside it.
    """
    return [] if result.lesion_seen else [none_seen(task.lesion)]


def answer_notes(task: Task, result: Finding) -> list[str]:
    """What one model tells beside its answer: that there is something to classify, how far the answer may lie off,
    and in what the region is unlike those that it was trained on. [] where it cannot tell."""
    notes = []
    if result.lesion_probability is not None and result.lesion_seen:
        notes.append(one_seen(task.lesion, result.lesion_probability))
    if result.interval is not None and result.lesion_seen:
        label, (low, high) = list(result.interval.classes.items())[-1]
        notes.append(between(label, low, high, SHIFT_MM, result.interval.folds))
    if result.unfamiliar:
        notes.append(unlike(result.unfamiliar))
    return notes


def agreement(task: Task, results: Mapping[str, Finding]) -> str:
    """How the two models' answers stand to each other, in a sentence; "" where only one answered.

    Whether they say the same class and with what probability each, or not, or that one has nothing to classify.
    """
    if len(results) < 2:
        return ""
    called = {name: f"the {result.title or LABELS[name]}" for name, result in results.items()}
    answers = {
        name: f"{result.prediction} ({percent(result.probabilities[result.prediction])})"
        for name, result in results.items()
    }
    seeing = [name for name, result in results.items() if result.lesion_seen]
    if not seeing:
        return f"Neither model sees a {task.lesion} in this region; their answers mean nothing."
    if len(seeing) < len(results):
        blind = next(called[name] for name in results if name not in seeing)
        says = "says" if results[seeing[0]].lesion_probability is None else "sees one and says"
        return _sentence(
            f"{blind} sees no {task.lesion} in this region; {called[seeing[0]]} {says} {answers[seeing[0]]}"
        )
    first, second = results
    if results[first].prediction != results[second].prediction:
        each = f"{called[first]} says {answers[first]}, {called[second]} says {answers[second]}"
        return _sentence(f"the models disagree: {each}")
    chances = [percent(result.probabilities[result.prediction]) for result in results.values()]
    return _sentence(f"both models say {results[first].prediction} ({' and '.join(chances)})")


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def scan_notes(scan: Scan, task: Task) -> list[str]:
    """What a person should know before believing a prediction on this scan, `scan_warnings` among it."""
    return [warning for warning in scan_warnings(scan, task) if warning not in scan.notes]


def scan_warnings(scan: Scan, task: Task) -> list[str]:
    """Why the answers on this scan are not to be trusted at all: the scan is not what the models learnt from.

    Where there is one, every page and report dims the answers and says it beside them.
    """
    warnings = [str(note) for note in scan.notes if isinstance(note, Caution)]
    expected = "CT" if task.unit == "HU" else "MR"
    if scan.modality and scan.modality != expected:
        warnings.append(
            f"The file says {scan.modality}, but {task.title} expects {expected}: do not trust the result."
        )
    elif task.unit == "HU":
        shift = hounsfield_shift(scan)
        if shift:
            warnings.append(
                f"Air lies near 0 instead of -1000, so the values seem to be Hounsfield units + {-shift}: do not trust "
                f"the result before {shift} is added to them (the box below the upload, or --hu-shift {shift})."
            )
        elif shift is None and not scan.modality:
            warnings.append(
                "No voxel is as dark as lung or air, so the values may not be Hounsfield units: do not trust the "
                "result."
            )
    return warnings


def display_window(scan: Scan, task: Task) -> Window:
    """The window a scan is first shown in: the study's, or from the scan's 1 and 99 percentiles."""
    low, high = (float(v) for v in np.percentile(scan.voxels[::3, ::3, ::3], (1, 99)))
    if task.windows:
        first = task.windows[0]
        # A scan that is no CT would be all white or all black in a CT window, and so is one in other units.
        if low < first.high and high > first.low and not (task.unit == "HU" and hounsfield_shift(scan)):
            return first
    return Window("Automatic", low, max(high, low + 1e-3))


def opening_payload(
    scan: Scan, task: Task, key: str, slices: tuple[SliceStream, str] | None = None
) -> dict[str, Any]:
    """The data of a page's viewer for a scan alone; `found_payload` follows under the same key.

    Args:
        slices: of a scan that is not sent whole, and the token under which the page may ask for them.
    """
    stream, token = slices or (None, "")
    return scan_payload(
        scan.canonical(), key=key, stream=stream, url=f"{SLICES_URL}/{token}", **_seen(scan, task)
    )


def found_payload(
    scan: Scan, task: Task, results: Mapping[str, Finding], mask: np.ndarray | None, key: str
) -> dict[str, Any]:
    """What a page's viewer lays over the scan that it shows already."""
    layers, bounds = _layers(scan, results, mask)
    center = next(iter(results.values())).spot.center
    return findings_payload(scan.canonical(), layers, plane=task.plane, bounds=bounds, center=center, key=key)


def results_payload(
    scan: Scan, task: Task, results: Mapping[str, Finding], mask: np.ndarray | None = None
) -> dict[str, Any]:
    """The data of a report's viewer: a scan, as far as the region reaches, and its predictions."""
    layers, bounds = _layers(scan, results, mask)
    return viewer_payload(scan.canonical(), layers, bounds=bounds, **_seen(scan, task))


def mask_layer(mask: np.ndarray, scan: Scan) -> Layer:
    """A lesion's mask on the scan's grid as the viewer takes it."""
    return Layer("mask", "Lesion mask", Scan(mask, scan.affine).canonical().voxels)


def _layers(
    scan: Scan, results: Mapping[str, Finding], mask: np.ndarray | None
) -> tuple[list[Layer], np.ndarray | None]:
    """(what lies over the scan, [3, 2] bounds of all models' regions)."""
    layers = [
        Layer(
            key=name,
            label=f"{short_label(name, result.title)}: {METHOD_LABELS[result.map.method]}",
            volume=result.map.values,
            profile=result.map.profile,
            native=NativeMap(*result.region.cells(result.map.native)),
            short=short_label(name, result.title),
            start=result.region.bounds[:, 0],
        )
        for name, result in results.items()
    ]
    if mask is not None:
        layers.append(mask_layer(mask, scan))
    bounds = None
    if results:
        regions = np.stack([result.region.bounds for result in results.values()])
        bounds = np.stack([regions[..., 0].min(axis=0), regions[..., 1].max(axis=0)], axis=-1)
    return layers, bounds


def _seen(scan: Scan, task: Task) -> dict[str, Any]:
    """How a study shows a scan."""
    window = display_window(scan, task)
    return {
        "plane": task.plane,
        "window": (window.low, window.high),
        "windows": [(w.name, w.low, w.high) for w in task.windows] if window in task.windows else (),
        "unit": task.unit,
        "title": scan.name,
        "file_affine": scan.affine,
    }


def write_results(
    folder: Path,
    scan: Scan,
    task: Task,
    results: Mapping[str, Finding],
    mask: np.ndarray | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Path]:
    """Writes prediction.json, <model>_saliency.nii.gz, report.html and report.pdf.

    For a scan that was read from DICOM also <model>_saliency.dcm and <model>_segmentation.dcm, which refer to
    its series.

    A former result in the folder gives way as a whole, so that no file of it stays beside the new ones; other files
    are not touched.

    Args:
        folder: where to; it is made.
        scan, task, results: of `mst.predict`.
        mask: the lesion mask, bool on the scan's grid.
        tell: called with a sentence where the DICOM files could not be written; the rest is, all the same.

    Returns:
        The files by their names.

    Raises:
        OSError: the files cannot be written (a full disk, no permission); the folder is as it was before.
    """
    # Here, since both take a while to import and nothing else needs them.
    from mst.dicom_export import DicomExportError, write_dicom_saliency
    from mst.pdf_report import report_pdf

    record = prediction_record(scan, task, results)
    with replacing(folder, RESULT_FILES) as fresh:
        for name, result in results.items():
            write_nifti(result.saliency, scan.affine, fresh / f"{name}_saliency.nii.gz")
        payload = results_payload(scan, task, results, mask)
        report = report_html(record, payload, title=f"{task.title} - {record['scan']['name']}")
        (fresh / "report.html").write_text(report, encoding="utf-8")
        document = report_pdf(record, scan, task, results, display_window(scan, task), mask)
        (fresh / "report.pdf").write_bytes(document)
        if scan.source is not None:
            try:
                write_dicom_saliency(fresh, scan, results)
            except DicomExportError as error:
                tell(str(error))
        (fresh / "prediction.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        written = {path.name for path in fresh.iterdir()}
    return {name: folder / name for name in RESULT_FILES if name in written}
