"""The explore page: open a scan, point at a spot, see what both models make of it and where they looked."""

from __future__ import annotations

import logging
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder

from mst.coordinates import parse_center
from mst.dashboard import cards
from mst.dashboard.checkpoints import checkpoint_folders
from mst.dashboard.gate import EXAMPLES_FOLDER, UNEXPECTED
from mst.dashboard.store import belong_together, open_scan, recall, remember
from mst.dashboard.work import as_mask, predict
from mst.data.examples import EXAMPLES, example_file
from mst.dicom_export import why_not
from mst.models import CheckpointError, list_checkpoints
from mst.models.loading import checkpoint_grid
from mst.prediction import LABELS, MODELS, Prediction, choose_spot
from mst.preprocess import locate
from mst.results import display_window, prediction_record, results_payload, scan_notes, write_results
from mst.scans import Scan, ScanError
from mst.tasks import TASKS, Task, get_task
from mst.viewer import locator_html, viewer_html

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

    inputs = [scan, task, center, mask, side, pre]
    uploaded = gr.State([])
    show: dict[str, Any] = {
        "fn": _show_scan,
        "inputs": [*inputs, *choices.values()],
        "outputs": [status, locator],
        "api_visibility": "private",
    }
    scan.change(
        _newest_upload,
        [scan, uploaded, task],
        [scan, uploaded, center, results],
        api_visibility="private",
        show_progress="hidden",
    ).then(**show, show_progress_on=[locator])
    # One chain: the scan is shown again only once the page has the study's own checkpoints.
    task.change(
        _choose_task,
        task,
        [side, pre, center, results, *choices.values(), *(button for _, button in examples)],
        api_visibility="private",
        show_progress="hidden",
    ).then(**show, show_progress_on=[locator])
    pre.change(
        lambda: ("", ""), None, [center, results], api_visibility="private", show_progress="hidden"
    ).then(**show, show_progress_on=[locator])
    for trigger in (mask.change, side.change, center.submit, *(choice.input for choice in choices.values())):
        trigger(**show, show_progress="hidden")
    for example, button in examples:
        button.click(
            lambda key=example.key: [str(example_file(key, _examples_folder()))],
            None,
            scan,
            api_visibility="private",
        )
    made = run.click(
        _explain,
        [*inputs, *choices.values(), tta],
        [status, results, downloads, *buttons],
        api_visibility="private",
        show_progress_on=[results],
        scroll_to_output=True,
    )
    # The files are written once the page already shows the result: a large scan takes seconds to compress.
    made.success(_write_files, None, buttons, api_visibility="private", show_progress="hidden")
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
    except (ScanError, CheckpointError, ValueError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Exception as error:
        log.exception("the web API failed")
        raise gr.Error(UNEXPECTED, print_exception=False) from error


def _choose_task(key: str) -> list[Any]:
    """(side, pre, centre, results, one update a model, one an example) for a study."""
    task = get_task(key)
    return [
        gr.update(visible=bool(task.sides), value=None),
        gr.update(visible=task.key == "breast-mri", value=None),
        "",
        "",
        *(gr.update(**_checkpoint_choices(task, name)) for name in MODELS),
        *(gr.update(visible=example.task == key) for example in EXAMPLES),
    ]


def _newest_upload(files: list[str] | None, before: list[str], key: str) -> tuple[Any, list[str], str, str]:
    """(scan, uploaded, centre, results): Gradio adds an upload to what is there; a new scan should replace it."""
    files = files or []
    new = [file for file in files if file not in before]
    kept = new if new and not belong_together(before, new, get_task(key)) else files
    return (gr.skip() if kept == files else kept), kept, "", ""


def _show_scan(
    files: list[str] | None,
    key: str,
    center: str,
    mask: str | None,
    side: str | None,
    pre: list[str] | None,
    *checkpoints: str | None,
) -> tuple[Any, Any]:
    """(status, locator) for an upload, with the region that the chosen checkpoints look at."""
    if not files:
        return "", cards.EMPTY
    try:
        task = get_task(key)
        scan = open_scan(files, task, pre or ())
        lesion = as_mask(mask, scan) if mask else None
        spot = choose_spot(scan, task, parse_center(center), lesion, side)
        window = display_window(scan, task)
        html = locator_html(
            scan.canonical(),
            window=(window.low, window.high),
            unit=task.unit,
            center=spot.center,
            box_mm=_box(scan, task, [name for name in checkpoints if name]),
        )
        return cards.scan_facts(scan, [*scan.notes, *scan_notes(scan, task)]), html
    except (ScanError, ValueError) as error:
        return cards.alert(str(error)), gr.skip()
    except Exception:
        log.exception("a scan could not be shown")
        return cards.alert(UNEXPECTED), gr.skip()


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
    request: gr.Request,
    progress: gr.Progress = gr.Progress(),  # noqa: B008  (Gradio finds it by this default)
) -> Any:
    """(status, results, downloads, one update a download button) for the run button."""
    hidden = [gr.update(visible=False, value=None) for _ in FILES]
    kept = [gr.skip(), gr.skip(), *(gr.skip() for _ in FILES)]
    try:
        task = get_task(key)
        progress(0.05, desc="Reading the scan")
        scan = open_scan(files or [], task, pre or ())
        facts = cards.scan_facts(scan, [*scan.notes, *scan_notes(scan, task)])
        if not any(list_checkpoints(task.key).values()):
            return [facts, cards.no_checkpoint(task), gr.update(visible=False), *hidden]
        lesion = as_mask(mask, scan) if mask else None
        steps = {name: 0.2 + 0.35 * index for index, name in enumerate(MODELS)}
        results = predict(
            scan,
            task.key,
            parse_center(center),
            lesion,
            side=side,
            models={"mst": mst, "resnet": resnet},
            tta=tta,
            on_model=lambda name: progress(steps[name], desc=f"{LABELS[name]} looks at the scan"),
        )
        progress(0.9, desc="Drawing")
        remember(str(request.session_hash), (scan, task, results, lesion))
        viewer = viewer_html(results_payload(scan, task, results, lesion))
        return [
            facts,
            cards.prediction_cards(task, results) + viewer,
            gr.update(visible=True),
            *(gr.update(interactive=False, visible=_made(name, scan, results)) for name in FILES),
        ]
    except (ScanError, CheckpointError, ValueError) as error:
        return [cards.alert(str(error)), *kept]
    except Exception:
        log.exception("a scan could not be explained")
        return [cards.alert(UNEXPECTED), *kept]


def _write_files(request: gr.Request) -> list[Any]:
    """One update a download button, once the files of the session's last result are written."""
    kept = recall(str(request.session_hash))
    if kept is None:
        return [gr.update(visible=False) for _ in FILES]
    scan, task, results, mask = kept
    folder = Path(tempfile.mkdtemp(prefix="result-", dir=_cache_folder()))
    files = write_results(folder, scan, task, results, mask, tell=gr.Info)
    objects = [path for name, path in files.items() if name.endswith(".dcm")]
    if objects:
        # One file to send to an archive, and far smaller: the objects themselves are not compressed.
        with zipfile.ZipFile(folder / DICOM_ZIP, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in objects:
                archive.write(path, path.name)
                path.unlink()
        files[DICOM_ZIP] = folder / DICOM_ZIP
    return [
        gr.update(value=str(files[name]), visible=True, interactive=True)
        if name in files
        else gr.update(visible=False)
        for name in FILES
    ]


def _made(file: str, scan: Scan, results: Mapping[str, Prediction]) -> bool:
    """Whether a result of these models has that file."""
    if file == DICOM_ZIP:
        return scan.source is not None and why_not(scan) is None
    return not file.endswith("_saliency.nii.gz") or file.split("_")[0] in results


def _checkpoint_choices(task: Task, model: str) -> dict[str, Any]:
    names = list(checkpoint_folders(task, model))
    if not names:
        return {"choices": [("none at hand", "")], "value": ""}
    return {"choices": names, "value": names[0]}


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
