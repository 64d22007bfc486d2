"""What the explore page does when something is opened, chosen or asked for; how it looks stands in explore.py.

Each function takes what the page's fields say (`Inputs`) and whose page it is, and gives updates of the page's parts.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder

from mst.coordinates import parse_center
from mst.dashboard import cards
from mst.dashboard.checkpoints import checkpoint_costs, checkpoint_folders
from mst.dashboard.gate import EXAMPLES_FOLDER, UNEXPECTED
from mst.dashboard.store import (
    Inputs,
    are_current,
    belong_together,
    example_of,
    has_any,
    has_opened,
    is_opened,
    is_shown,
    keep_folder,
    note_example,
    note_inputs,
    note_opened,
    note_problem,
    note_shown,
    noted_problem,
    open_first,
    open_scan,
    remember,
    scan_key,
    showing,
    stream_slices,
    take_result,
)
from mst.dashboard.work import as_mask, predict
from mst.data.examples import EXAMPLES, example_center, example_file
from mst.dicom_export import why_not
from mst.errors import InputError
from mst.files import safe_stem
from mst.findings import MODELS, Finding, choose_spot
from mst.models import list_checkpoints
from mst.models.loading import checkpoint_grid
from mst.preprocess import locate
from mst.results import (
    found_payload,
    mask_layer,
    opening_payload,
    prediction_record,
    scan_notes,
    scan_warnings,
    write_results,
)
from mst.scans import Scan
from mst.scans.hounsfield import hounsfield_shift
from mst.tasks import Task, get_task
from mst.viewer import found_html, mask_payload, settle_html, spot_html, viewer_html
from mst.words import LABELS

log = logging.getLogger(__name__)
DICOM_ZIP = "saliency_dicom.zip"
FILES = {
    "mst_saliency.nii.gz": "MST saliency (NIfTI)",
    "resnet_saliency.nii.gz": "ResNet saliency (NIfTI)",
    DICOM_ZIP: "Saliency (DICOM)",
    "prediction.json": "prediction.json",
    "report.html": "Report (HTML)",
    "report.pdf": "Report (PDF)",
}
FIRST_EXAMPLE = "chest-spiculated"
_explaining_example = Lock()


def predict_files(scan: list[str], task: str, center: str, mask: str | None) -> dict[str, Any]:
    """Classifies an uploaded scan with both models.

    Args:
        scan: the files of one scan: a volume, a zip, or all files of a DICOM series.
        task: "chest-ct", "breast-mri" or "knee-mri".
        center: "X,Y,Z" in RAS millimetres; "" for the mask's centroid or the scan's centre.
        mask: a lesion mask, or None.

    Returns:
        The content of prediction.json.
    """
    try:
        study = get_task(task)
        opened = open_scan(scan or [], study)
        results = predict(opened, study.key, parse_center(center), mask or None)
        return prediction_record(opened, study, results)
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Exception as error:
        log.exception("the web API failed")
        raise gr.Error(UNEXPECTED, print_exception=False) from error


# ---- opening


def take_upload(
    files: list[str] | None,
    key: str,
    pre: list[str] | None,
    before: list[str],
    opening: str,
    given_center: str,
    request: gr.Request,
) -> list[Any]:
    """What the scan's files change.

    Returns:
        (scan, uploaded, opening, centre, mask, side, pre-contrast scan, shift, *`emptied`).

    Gradio adds an upload to what is there; a new scan should replace it, and what was given for the one before goes
    with it. What was given before the first scan, while there was none or the page's own example, is for that scan.
    An example, whose key `opening` then is, opens on its lesion.
    """
    session = session_of(request)
    first = example_of(session)
    files = files or []
    new = [file for file in files if file not in before]
    adds = set(before) <= set(files) and belong_together(before, new, get_task(key))
    kept = new if new and not adds else files
    center = center_text(example_center(opening)) if opening else ""
    if kept == before:
        # The example that is open already is opened once more.
        return [gr.skip(), gr.skip(), "", center or gr.skip(), *(gr.skip() for _ in range(9))]
    note_example(session, None)
    another = bool(before) and not adds
    return [
        gr.skip() if kept == files else kept,
        kept,
        "",
        center if another or opening or (first and given_center == _lesion_text(first)) else gr.skip(),
        *(None if another else gr.skip() for _ in ("mask", "side", "pre-contrast scan")),
        gr.update(value=False, visible=False) if another else gr.skip(),
        *emptied(kept, key, None if another else pre, request),
    ]


def take_study(files: list[str] | None, key: str, request: gr.Request) -> list[Any]:
    """What another study of the open scan changes.

    Returns:
        Updates of side, pre-contrast scan, each model's choice and each example; then (centre, *`emptied`).
    """
    task = get_task(key)
    note_example(session_of(request), None)
    return [
        gr.update(visible=bool(task.sides), value=None),
        gr.update(visible=task.key == "breast-mri", value=None),
        *(gr.update(**checkpoint_choices(task, name)) for name in MODELS),
        *(gr.update(visible=example.task == key) for example in EXAMPLES),
        "",
        *emptied(files, key, None, request),
    ]


def take_contrast(files: list[str] | None, key: str, pre: list[str] | None, request: gr.Request) -> list[Any]:
    """`emptied` for another pre-contrast scan; Gradio also tells of one that is what it was."""
    if is_opened(session_of(request), (files, key, pre)):
        return [gr.skip() for _ in range(5)]
    return emptied(files, key, pre, request)


def emptied(files: list[str] | None, key: str, pre: list[str] | None, request: gr.Request) -> list[Any]:
    """(status, viewer, spot, results, downloads) until another scan is shown: nothing of the one before."""
    session = session_of(request)
    note_opened(session, (files, key, pre))
    note_shown(session, None)
    return ["", cards.opening() if files else cards.EMPTY, "", "", gr.update(visible=False)]


def show_scan(inputs: Inputs, session: str) -> list[Any]:
    """(status, viewer, spot, shift, results, downloads) for an upload, with the region that the chosen checkpoints
    look at.

    A shift to Hounsfield units is offered where the values ask for it. Answers go where another scan is shown.
    """
    unchanged = [gr.skip() for _ in range(6)]
    if not inputs.files:
        return ["", cards.EMPTY, "", gr.update(value=False, visible=False), *unchanged[4:]]
    # Of a scan that cannot be read there is nothing to show, and of the one before nothing either.
    viewer: Any = ""
    spot: Any = gr.skip()
    offered: Any = gr.skip()
    key = scan_key(inputs)
    try:
        task = get_task(inputs.task)
        scan = open_scan(inputs.files, task, inputs.pre, session, shift=inputs.shift)
        offered = gr.update(visible=inputs.shift or (task.unit == "HU" and bool(hounsfield_shift(scan))))
        viewer = gr.skip()
        with showing(session):
            if not is_opened(session, (inputs.files, inputs.task, inputs.pre)):
                return unchanged
            if not is_shown(session, key):
                viewer = viewer_html(opening_payload(scan, task, key, stream_slices(session, key, scan)))
                note_shown(session, key)
        status, spot = _pointed(inputs, scan, task)
    except InputError as error:
        status = cards.alert(str(error))
    except Exception:
        log.exception("a scan could not be shown")
        status = cards.alert(UNEXPECTED)
    if not is_opened(session, (inputs.files, inputs.task, inputs.pre)):
        return unchanged
    if viewer == "":
        note_shown(session, None)
    # Drawn a moment after it was asked in vain, the scan's facts do not wipe out why there is no answer.
    problem = noted_problem(session, inputs)
    gone = ["", gr.update(visible=False)] if isinstance(viewer, str) else unchanged[4:]
    return [cards.alert(problem) if problem else status, viewer, spot, offered, *gone]


def _pointed(inputs: Inputs, scan: Scan, task: Task) -> tuple[str, str]:
    """(status, spot): the scan's facts, and where the models are to look, with the mask that is given."""
    told: list[str] = []
    lesion = as_mask(inputs.mask, scan, told.append) if inputs.mask else None
    spot = choose_spot(scan, task, parse_center(inputs.center), lesion, inputs.side)
    drawn = None if lesion is None else mask_payload(mask_layer(lesion, scan))
    box = region_mm(scan, task, [name for name in (inputs.mst, inputs.resnet) if name])
    status = cards.scan_facts(scan, [*scan.notes, *told, *scan_notes(scan, task)])
    return status, spot_html(scan_key(inputs), center=spot.center, box_mm=box, mask=drawn)


def open_first_example(files: list[str] | None, request: gr.Request) -> list[Any]:
    """What a page shows as it is opened: an example that is explained already, or none with ?example=none.

    The field for a scan stays empty: one's own is the first thing to open.

    Returns:
        (centre, status, viewer, spot, results, downloads, one update a download button).
    """
    session = session_of(request)
    unchanged = [gr.skip() for _ in range(6 + len(FILES))]
    if files:
        return unchanged
    empty = [unchanged[0], "", cards.EMPTY, *unchanged[3:]]
    key = asked_example(request.query_params.get("example"))
    if key is None or not any(list_checkpoints("chest-ct").values()):
        return unchanged if example_of(session) or has_any(session) else empty
    try:
        scan, task, results = explained_example(key)
    except InputError as error:
        log.info("no example at first: %s", error)
        return empty
    path = str(example_file(key, examples_folder()))
    at = next(iter(results.values())).spot
    inputs = Inputs(
        (path,), task.key, center_text(at.center), None, None, (), None, None, False, False, False
    )
    # A scan of one's own may have been opened meanwhile.
    if not open_first(session, (inputs.files, task.key, None)):
        return unchanged
    note_example(session, path)
    open_scan(inputs.files, task, (), session)
    note_shown(session, scan_key(inputs))
    checkpoints = [result.checkpoint for result in results.values()]
    box = region_mm(scan, task, checkpoints)
    shown = [
        inputs.center,
        cards.scan_facts(scan, [*scan.notes, *scan_notes(scan, task)]),
        viewer_html(opening_payload(scan, task, scan_key(inputs), None)),
        spot_html(scan_key(inputs), center=at.center, box_mm=box),
        _answered(inputs, scan, task, results, None),
        gr.update(visible=True),
        *offered_files(example_files(key), _made(scan, results)),
    ]
    return shown if example_of(session) else unchanged


def show_what_is_chosen(inputs: Inputs, session: str) -> list[Any]:
    """`show_scan` once the first example came: nothing of it stays beside a scan of one's own, which may have been
    there before the example's answer."""
    taken = has_opened(session, (inputs.files, inputs.task, inputs.pre))
    if not inputs.files or inputs.files == (example_of(session),) or not taken:
        return [gr.skip() for _ in range(6)]
    note_shown(session, None)
    return show_scan(inputs, session)


def asked_example(name: str | None) -> str | None:
    """The key of the example that an address asks for, by a part of it; the usual one where there is none such."""
    if name == "none":
        return None
    chest = [example.key for example in EXAMPLES if example.task == "chest-ct"]
    return next((key for key in chest if name and key.removeprefix("chest-") == name), FIRST_EXAMPLE)


@lru_cache(maxsize=4)
def _explained(key: str) -> tuple[Scan, Task, Mapping[str, Finding]]:
    task = get_task(next(example.task for example in EXAMPLES if example.key == key))
    scan = open_scan([str(example_file(key, examples_folder()))], task)
    return scan, task, predict(scan, task.key, example_center(key))


def explained_example(key: str) -> tuple[Scan, Task, Mapping[str, Finding]]:
    """An example and what the models make of it: once for all visitors."""
    with _explaining_example:
        return _explained(key)


@lru_cache(maxsize=4)
def _example_folder(key: str) -> TemporaryDirectory:
    return TemporaryDirectory(prefix="result-", dir=cache_folder(), ignore_cleanup_errors=True)


def example_files(key: str) -> dict[str, Path]:
    """An example's result files, written once for all visitors, and again where they were cleared away."""
    scan, task, results = explained_example(key)
    with _explaining_example:
        folder = Path(_example_folder(key).name)
        stem = safe_stem(scan.name)
        files = {name: folder / f"{stem}_{name}" for name in FILES}
        if not all(files[name].exists() for name in _made(scan, results)):
            for name, path in write_results(folder, scan, task, results).items():
                path.rename(files[name])
        return {name: path for name, path in files.items() if path.exists()}


# ---- explaining


class _SupersededError(Exception):
    """Something else was chosen while an answer was made."""


def explain(inputs: Inputs, session: str, progress: Callable[..., Any]) -> list[Any]:
    """(status, spot, results, downloads, one update a download button) for the run button."""
    hidden = [gr.update(visible=False, value=None) for _ in FILES]
    kept = [gr.skip(), gr.skip(), *(gr.skip() for _ in FILES)]
    note_inputs(session, inputs)
    note_problem(session, inputs, None)
    settled = settle_html(scan_key(inputs)) if inputs.files else ""

    def step(share: float, doing: str) -> None:
        if not are_current(session, inputs):
            raise _SupersededError
        progress(share, desc=doing)

    try:
        task = get_task(inputs.task)
        step(0.05, "Reading the scan")
        scan = open_scan(inputs.files, task, inputs.pre, session, shift=inputs.shift)
        facts = cards.scan_facts(scan, [*scan.notes, *scan_notes(scan, task)])
        if not any(list_checkpoints(task.key).values()):
            step(1, "Drawing")
            return [facts, settled, cards.no_checkpoint(task), gr.update(visible=False), *hidden]
        told: list[str] = []
        lesion = as_mask(inputs.mask, scan, told.append) if inputs.mask else None
        facts = cards.scan_facts(scan, [*scan.notes, *told, *scan_notes(scan, task)])
        steps = {name: 0.2 + 0.35 * index for index, name in enumerate(MODELS)}
        results = predict(
            scan,
            task.key,
            parse_center(inputs.center),
            lesion,
            side=inputs.side,
            models={"mst": inputs.mst, "resnet": inputs.resnet},
            tta=inputs.tta,
            interval=inputs.interval,
            on_model=lambda name: step(steps[name], f"{LABELS[name]} looks at the scan"),
        )
        step(0.9, "Drawing")
        made = _made(scan, results)
        answer = [
            facts,
            gr.skip(),
            _answered(inputs, scan, task, results, lesion),
            gr.update(visible=True),
            *(gr.update(interactive=False, visible=name in made) for name in FILES),
        ]
        step(1, "Drawing")
        remember(session, inputs, (scan, task, results, lesion))
        return answer
    except _SupersededError:
        return [gr.skip(), settled, *kept]
    except InputError as error:
        problem = str(error)
    except Exception:
        log.exception("a scan could not be explained")
        problem = UNEXPECTED
    note_problem(session, inputs, problem)
    return [cards.alert(problem) if are_current(session, inputs) else gr.skip(), settled, *kept]


def _answered(
    inputs: Inputs, scan: Scan, task: Task, results: Mapping[str, Finding], mask: np.ndarray | None
) -> str:
    """The answers, and with them the maps for the viewer that shows the scan."""
    answers = cards.prediction_cards(task, results, scan_warnings(scan, task))
    return cards.answers(scan, results, answers) + found_html(
        found_payload(scan, task, results, mask, scan_key(inputs))
    )


def write_files(request: gr.Request) -> list[Any]:
    """One update a download button, once the files of the session's last result are written."""
    session = session_of(request)
    kept = take_result(session)
    if kept is None:
        return [gr.skip() for _ in FILES]
    inputs, (scan, task, results, mask) = kept
    del kept
    place = TemporaryDirectory(prefix="result-", dir=cache_folder(), ignore_cleanup_errors=True)
    folder = Path(place.name)
    files = write_results(folder, scan, task, results, mask, tell=gr.Info)
    objects = [path for name, path in files.items() if name.endswith(".dcm")]
    if objects:
        # One file to send to an archive, and far smaller: the objects themselves are not compressed.
        with zipfile.ZipFile(folder / DICOM_ZIP, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in objects:
                archive.write(path, path.name)
                path.unlink()
        files[DICOM_ZIP] = folder / DICOM_ZIP
    if not is_opened(session, (inputs.files, inputs.task, inputs.pre)):
        return [gr.skip() for _ in FILES]
    keep_folder(session, place)
    stem = safe_stem(scan.name)
    return offered_files(
        {name: path.rename(folder / f"{stem}_{name}") for name, path in files.items() if name in FILES}, files
    )


def offered_files(files: Mapping[str, Path], made: Sequence[str] | Mapping[str, Any]) -> list[Any]:
    """One update a download button: those that were made, to be downloaded."""
    return [
        gr.update(value=str(files[name]), visible=True, interactive=True)
        if name in made and name in files
        else gr.update(visible=False)
        for name in FILES
    ]


def _made(scan: Scan, results: Mapping[str, Finding]) -> list[str]:
    """The files that a result of these models has."""

    def has(file: str) -> bool:
        if file == DICOM_ZIP:
            return scan.source is not None and why_not(scan) is None
        return not file.endswith("_saliency.nii.gz") or file.split("_")[0] in results

    return [name for name in FILES if has(name)]


# ---- choosing


def session_of(request: gr.Request) -> str:
    """Whose page an event comes from."""
    return str(request.session_hash)


def _lesion_text(path: str) -> str:
    """Where an example's file has its lesion, as the centre's field has it."""
    return next(
        center_text(example_center(example.key))
        for example in EXAMPLES
        if str(example_file(example.key, examples_folder())) == path
    )


def center_text(center: Sequence[float]) -> str:
    """A spot as the centre's field has it."""
    return ", ".join(f"{value:.1f}" for value in center)


def checkpoint_choices(task: Task, model: str) -> dict[str, Any]:
    """What a model's dropdown offers for a study."""
    folders = checkpoint_folders(task, model)
    if not folders:
        return {"choices": [("none at hand", "")], "value": "", "info": None}
    names = list(folders)
    return {"choices": names, "value": names[0], "info": checkpoint_costs(folders)}


def region_mm(scan: Scan, task: Task, checkpoints: Sequence[str]) -> tuple[float, float, float]:
    """Millimetres that the region of these checkpoints' models spans along the canonical scan's axes.

    A name that is not this study's is left out: while the study changes, that of the study before still comes.
    """
    canonical = scan.canonical()
    folders = {name: folder for model in MODELS for name, folder in checkpoint_folders(task, model).items()}
    grids = [checkpoint_grid(folders[name]) for name in checkpoints if name in folders] or [{}]
    bounds = np.stack(
        [
            locate(canonical, task.plane, task.grid.override(grid), canonical.center).size_mm(canonical)
            for grid in grids
        ]
    )
    x, y, z = bounds.max(axis=0)
    return float(x), float(y), float(z)


def cache_folder() -> Path:
    """Gradio's own cache: it serves files from there, and `delete_cache` clears what is old."""
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def examples_folder() -> Path:
    """Where the examples' files lie."""
    folder = cache_folder() / EXAMPLES_FOLDER
    folder.mkdir(exist_ok=True)
    return folder
