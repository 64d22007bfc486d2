"""The explore page: open a scan, point at a spot, see what both models make of it and where they looked."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
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
    end_session,
    is_opened,
    keep_folder,
    note_inputs,
    note_opened,
    note_problem,
    noted_problem,
    open_scan,
    remember,
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
    display_window,
    prediction_record,
    results_payload,
    scan_notes,
    scan_warnings,
    write_results,
)
from mst.scans import Scan
from mst.scans.hounsfield import USUAL_SHIFT, hounsfield_shift
from mst.tasks import TASKS, Task, get_task
from mst.viewer import locator_html, viewer_html
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


def build_explore_page() -> None:
    """Lays out the page inside an open `gr.Blocks` and wires it."""
    tasks = list(TASKS.values())
    gr.HTML(cards.HEADER, padding=False, apply_default_css=False)
    with gr.Row(elem_id="workspace", equal_height=False):
        with gr.Column(scale=1, min_width=300, elem_id="controls"):
            task = gr.Radio(
                [(t.title, t.key) for t in tasks], value=tasks[0].key, label="Study", elem_id="task"
            )
            scan = gr.File(
                label="Scan",
                file_count="multiple",
                elem_id="scan",
                height=140,
            )
            gr.HTML(cards.FORMATS, padding=False, apply_default_css=False)
            shift = gr.Checkbox(
                label=f"Add {USUAL_SHIFT} to all values, so that they are Hounsfield units",
                elem_id="shift",
                visible=False,
            )
            with gr.Group(elem_id="examples"):
                gr.HTML(
                    '<p class="mst-label">Or open a simulated example</p>',
                    padding=False,
                    apply_default_css=False,
                )
                examples = [
                    (e, gr.Button(e.title, size="sm", visible=e.task == tasks[0].key)) for e in EXAMPLES
                ]
            with gr.Accordion("Where to look", open=True):
                center = gr.Textbox(
                    label="Centre of the region, X, Y, Z in mm (RAS)",
                    placeholder="click in the scan, or leave empty for its centre",
                    elem_id="center",
                )
                side = gr.Radio(
                    [("Patient's left", "left"), ("Patient's right", "right")],
                    label="Breast",
                    elem_id="side",
                    visible=False,
                )
                pre = gr.File(
                    label="Pre-contrast scan (optional)",
                    file_count="multiple",
                    elem_id="pre",
                    visible=False,
                    height=130,
                )
                mask = gr.File(label="Lesion mask (optional)", elem_id="mask", height=130)
            with gr.Accordion("Models", open=False):
                choices = {
                    name: gr.Dropdown(
                        **_checkpoint_choices(tasks[0], name),
                        label=LABELS[name],
                        elem_id=f"checkpoint-{name}",
                        # Gradio would refuse, by an alert, the value of the study before, sent while this one's
                        # choices arrive; `checkpoint_named` knows what is in the list.
                        allow_custom_value=True,
                    )
                    for name in MODELS
                }
                tta = gr.Checkbox(label="Average over flips (test-time augmentation, slower)", elem_id="tta")
                interval = gr.Checkbox(
                    label="Range of each answer (flips, shifts of the spot by 2 mm, folds; slower)",
                    elem_id="interval",
                )
            run = gr.Button("Explain this scan", variant="primary", elem_id="run", size="lg")
        with gr.Column(scale=3, min_width=320, elem_id="stage"):
            status = gr.HTML("", elem_id="status", padding=False, apply_default_css=False)
            locator = gr.HTML(cards.EMPTY, elem_id="locator", padding=False, apply_default_css=False)
            results = gr.HTML("", elem_id="results", padding=False, apply_default_css=False)
            with gr.Row(elem_id="downloads", visible=False) as downloads:
                buttons = [
                    gr.DownloadButton(label, size="sm", min_width=140, visible=False)
                    for label in FILES.values()
                ]
    gr.HTML(cards.FOOTER, padding=False, apply_default_css=False)

    inputs: list[Any] = [scan, task, center, mask, side, pre, *choices.values(), tta, interval, shift]
    run.click(None, inputs, None, js="(...inputs) => window.mstPage.asks(...inputs)")
    made = run.click(
        _explain,
        inputs,
        [status, results, downloads, *buttons],
        api_visibility="private",
        show_progress_on=[results],
        scroll_to_output=True,
    )
    # The files are written once the page already shows the result: a large scan takes seconds to compress.
    written = made.success(_write_files, None, buttons, api_visibility="private", show_progress="hidden")

    # What is under way belongs to what was chosen when it began. The browser drops it as soon as anything changes;
    # the server, which cannot stop a thread, compares at its end. These listeners come before all others, since the
    # browser takes them in turn and waits for the server between them.
    changes = [field.change for field in inputs]
    gr.on(
        changes,
        None,
        inputs,
        None,
        js="(...inputs) => window.mstPage.changes(...inputs)",
        trigger_mode="multiple",
    )
    # Only what a person does cancels: the page's own fields follow a moment later, when the next run may have begun.
    another = [scan.upload, scan.clear, scan.delete, task.input, pre.upload, pre.clear, pre.delete]
    fields: list[Any] = [center, side, *choices.values(), tta, interval, shift]
    chosen = [mask.upload, mask.clear, mask.delete, *(field.input for field in fields)]
    gr.on([*another, *(button.click for _, button in examples)], None, cancels=[made, written])
    gr.on(chosen, None, cancels=[made])
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    gr.on(changes, _note_inputs, inputs, None, concurrency_limit=None, trigger_mode="always_last", **quiet)

    uploaded, opening = gr.State([]), gr.State("")
    show: dict[str, Any] = {
        "fn": _show_scan,
        "inputs": inputs,
        "outputs": [status, locator, shift],
        "api_visibility": "private",
    }
    emptied = [status, locator, results, downloads]
    opened = [scan, task, pre]
    for replaced in (
        scan.change(
            _take_upload,
            [*opened, uploaded, opening],
            [scan, uploaded, opening, center, mask, side, pre, shift, *emptied],
            **quiet,
        ),
        # One chain: the scan is shown again only once the page has the study's own checkpoints.
        task.change(
            _take_study,
            [scan, task],
            [side, pre, *choices.values(), *(button for _, button in examples), center, *emptied],
            **quiet,
        ),
        pre.change(_empty, opened, emptied, **quiet),
    ):
        replaced.then(**show, show_progress_on=[locator])
    pointing = [mask.change, shift.input, center.submit, *(choice.input for choice in choices.values())]
    gr.on(pointing, **show, show_progress="hidden", trigger_mode="always_last")
    # A side that is chosen stands for its middle: the spot that was chosen before no longer counts.
    side.input(lambda: "", None, center, **quiet).then(**show, show_progress="hidden")
    for example, button in examples:
        button.click(
            lambda key=example.key: ([str(example_file(key, _examples_folder()))], key),
            None,
            [scan, opening],
            api_visibility="private",
        )
    _build_api()


def _build_api() -> None:
    """The web API's /predict, on components of its own so that its signature is the documented one."""
    files = gr.File(file_count="multiple", visible=False)
    task = gr.Textbox(value="chest-ct", visible=False)
    center = gr.Textbox(value="", visible=False)
    mask = gr.File(visible=False)
    record = gr.JSON(visible=False)
    gr.Button(visible=False).click(predict_files, [files, task, center, mask], record, api_name="predict")


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


def _take_upload(
    files: list[str] | None,
    key: str,
    pre: list[str] | None,
    before: list[str],
    opening: str,
    request: gr.Request,
) -> list[Any]:
    """What the scan's files change.

    Returns:
        (scan, uploaded, opening, centre, mask, side, pre-contrast scan, shift, status, locator, results, downloads).

    Gradio adds an upload to what is there; a new scan should replace it, and what was given for the one before goes
    with it. What was given before the first scan is for that scan. An example, whose key `opening` then is, opens on
    its lesion.
    """
    files = files or []
    new = [file for file in files if file not in before]
    adds = set(before) <= set(files) and belong_together(before, new, get_task(key))
    kept = new if new and not adds else files
    center = ", ".join(f"{v:.1f}" for v in example_center(opening)) if opening else ""
    if kept == before:
        # The example that is open already is opened once more.
        return [gr.skip(), gr.skip(), "", center or gr.skip(), *(gr.skip() for _ in range(8))]
    another = bool(before) and not adds
    return [
        gr.skip() if kept == files else kept,
        kept,
        "",
        center if another or opening else gr.skip(),
        *(None if another else gr.skip() for _ in ("mask", "side", "pre-contrast scan")),
        gr.update(value=False, visible=False) if another else gr.skip(),
        *_empty(kept, key, None if another else pre, request),
    ]


def _take_study(files: list[str] | None, key: str, request: gr.Request) -> list[Any]:
    """What another study of the open scan changes.

    Returns:
        Updates of side, pre-contrast scan, each model's choice and each example; then (centre, status, locator,
        results, downloads).
    """
    task = get_task(key)
    return [
        gr.update(visible=bool(task.sides), value=None),
        gr.update(visible=task.key == "breast-mri", value=None),
        *(gr.update(**_checkpoint_choices(task, name)) for name in MODELS),
        *(gr.update(visible=example.task == key) for example in EXAMPLES),
        "",
        *_empty(files, key, None, request),
    ]


def _empty(files: list[str] | None, key: str, pre: list[str] | None, request: gr.Request) -> list[Any]:
    """(status, locator, results, downloads) until another scan is shown: nothing of the one before."""
    note_opened(_session(request), (files, key, pre))
    return ["", cards.opening() if files else cards.EMPTY, "", gr.update(visible=False)]


def _note_inputs(
    files: list[str] | None,
    key: str,
    center: str,
    mask: str | None,
    side: str | None,
    pre: list[str] | None,
    mst: str | None,
    resnet: str | None,
    tta: bool,
    interval: bool,
    shift: bool,
    request: gr.Request,
) -> None:
    inputs = _as_inputs(files, key, center, mask, side, pre, mst, resnet, tta, interval, shift)
    note_inputs(_session(request), inputs)


def _show_scan(
    files: list[str] | None,
    key: str,
    center: str,
    mask: str | None,
    side: str | None,
    pre: list[str] | None,
    mst: str | None,
    resnet: str | None,
    tta: bool,
    interval: bool,
    shift: bool,
    request: gr.Request,
) -> tuple[Any, Any, Any]:
    """(status, locator, shift) for an upload, with the region that the chosen checkpoints look at.

    A shift to Hounsfield units is offered where the values ask for it.
    """
    if not files:
        return "", cards.EMPTY, gr.update(value=False, visible=False)
    session = _session(request)
    # Of a scan that cannot be read there is nothing to show, and of the one before nothing either.
    locator: Any = ""
    offered: Any = gr.skip()
    try:
        task = get_task(key)
        scan = open_scan(files, task, pre or (), session, shift=shift)
        offered = gr.update(visible=shift or (task.unit == "HU" and bool(hounsfield_shift(scan))))
        locator = gr.skip()
        told: list[str] = []
        lesion = as_mask(mask, scan, told.append) if mask else None
        spot = choose_spot(scan, task, parse_center(center), lesion, side)
        window = display_window(scan, task)
        html = locator_html(
            scan.canonical(),
            window=(window.low, window.high),
            unit=task.unit,
            center=spot.center,
            box_mm=_box(scan, task, [name for name in (mst, resnet) if name]),
        )
        status, locator = cards.scan_facts(scan, [*scan.notes, *told, *scan_notes(scan, task)]), html
    except InputError as error:
        status = cards.alert(str(error))
    except Exception:
        log.exception("a scan could not be shown")
        status = cards.alert(UNEXPECTED)
    if not is_opened(session, (files, key, pre)):
        return gr.skip(), gr.skip(), gr.skip()
    # Drawn a moment after it was asked in vain, the scan's facts do not wipe out why there is no answer.
    problem = noted_problem(
        session, _as_inputs(files, key, center, mask, side, pre, mst, resnet, tta, interval, shift)
    )
    return cards.alert(problem) if problem else status, locator, offered


class _SupersededError(Exception):
    """Something else was chosen while an answer was made."""


def _explain(
    files: list[str] | None,
    key: str,
    center: str,
    mask: str | None,
    side: str | None,
    pre: list[str] | None,
    mst: str | None,
    resnet: str | None,
    tta: bool,
    interval: bool,
    shift: bool,
    request: gr.Request,
    progress: gr.Progress = gr.Progress(),  # noqa: B008  (Gradio finds it by this default)
) -> Any:
    """(status, results, downloads, one update a download button) for the run button."""
    hidden = [gr.update(visible=False, value=None) for _ in FILES]
    kept = [gr.skip(), gr.skip(), *(gr.skip() for _ in FILES)]
    session = _session(request)
    inputs = _as_inputs(files, key, center, mask, side, pre, mst, resnet, tta, interval, shift)
    note_inputs(session, inputs)
    note_problem(session, inputs, None)

    def step(share: float, doing: str) -> None:
        if not are_current(session, inputs):
            raise _SupersededError
        progress(share, desc=doing)

    try:
        task = get_task(key)
        step(0.05, "Reading the scan")
        scan = open_scan(files or [], task, pre or (), session, shift=shift)
        facts = cards.scan_facts(scan, [*scan.notes, *scan_notes(scan, task)])
        if not any(list_checkpoints(task.key).values()):
            step(1, "Drawing")
            return [facts, cards.no_checkpoint(task), gr.update(visible=False), *hidden]
        told: list[str] = []
        lesion = as_mask(mask, scan, told.append) if mask else None
        facts = cards.scan_facts(scan, [*scan.notes, *told, *scan_notes(scan, task)])
        steps = {name: 0.2 + 0.35 * index for index, name in enumerate(MODELS)}
        results = predict(
            scan,
            task.key,
            parse_center(center),
            lesion,
            side=side,
            models={"mst": mst, "resnet": resnet},
            tta=tta,
            interval=interval,
            on_model=lambda name: step(steps[name], f"{LABELS[name]} looks at the scan"),
        )
        step(0.9, "Drawing")
        viewer = viewer_html(results_payload(scan, task, results, lesion))
        shown = cards.answers(
            scan, results, cards.prediction_cards(task, results, scan_warnings(scan, task)) + viewer
        )
        answer = [
            facts,
            shown,
            gr.update(visible=True),
            *(gr.update(interactive=False, visible=_made(name, scan, results)) for name in FILES),
        ]
        step(1, "Drawing")
        remember(session, inputs, (scan, task, results, lesion))
        return answer
    except _SupersededError:
        return [gr.skip(), *kept]
    except InputError as error:
        problem = str(error)
    except Exception:
        log.exception("a scan could not be explained")
        problem = UNEXPECTED
    note_problem(session, inputs, problem)
    return [cards.alert(problem) if are_current(session, inputs) else gr.skip(), *kept]


def _write_files(request: gr.Request) -> list[Any]:
    """One update a download button, once the files of the session's last result are written."""
    session = _session(request)
    kept = take_result(session)
    if kept is None:
        return [gr.skip() for _ in FILES]
    inputs, (scan, task, results, mask) = kept
    del kept
    place = TemporaryDirectory(prefix="result-", dir=_cache_folder(), ignore_cleanup_errors=True)
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
    return [
        gr.update(value=str(files[name].rename(folder / f"{stem}_{name}")), visible=True, interactive=True)
        if name in files
        else gr.update(visible=False)
        for name in FILES
    ]


def _as_inputs(
    files: list[str] | None,
    key: str,
    center: str,
    mask: str | None,
    side: str | None,
    pre: list[str] | None,
    mst: str | None,
    resnet: str | None,
    tta: bool,
    interval: bool,
    shift: bool,
) -> Inputs:
    return Inputs(
        tuple(files or ()),
        key,
        center.strip(),
        mask,
        side,
        tuple(pre or ()),
        mst,
        resnet,
        tta,
        interval,
        shift,
    )


def _session(request: gr.Request) -> str:
    return str(request.session_hash)


def end_visit(request: gr.Request) -> None:
    """Lets go what is kept for a session; for `gr.Blocks.unload`."""
    end_session(_session(request))


def _made(file: str, scan: Scan, results: Mapping[str, Finding]) -> bool:
    """Whether a result of these models has that file."""
    if file == DICOM_ZIP:
        return scan.source is not None and why_not(scan) is None
    return not file.endswith("_saliency.nii.gz") or file.split("_")[0] in results


def _checkpoint_choices(task: Task, model: str) -> dict[str, Any]:
    folders = checkpoint_folders(task, model)
    if not folders:
        return {"choices": [("none at hand", "")], "value": "", "info": None}
    names = list(folders)
    return {"choices": names, "value": names[0], "info": checkpoint_costs(folders)}


def _box(scan: Scan, task: Task, checkpoints: Sequence[str]) -> tuple[float, float, float]:
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


def _cache_folder() -> Path:
    """Gradio's own cache: it serves files from there, and `delete_cache` clears what is old."""
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _examples_folder() -> Path:
    folder = _cache_folder() / EXAMPLES_FOLDER
    folder.mkdir(exist_ok=True)
    return folder
