"""The explore page: open a scan, point at a spot, see what both models make of it and where they looked.

How the page looks and what each part of it sets off; what happens then stands in events.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from mst.dashboard import cards, events
from mst.dashboard.store import Inputs, end_session, files_of, note_inputs
from mst.data.examples import EXAMPLES, example_file
from mst.findings import MODELS
from mst.scans.hounsfield import USUAL_SHIFT
from mst.tasks import TASKS
from mst.words import LABELS

BARE: dict[str, Any] = {"padding": False, "apply_default_css": False}
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def build_explore_page(app: gr.Blocks) -> None:
    """Lays out the page inside `gr.Blocks`, which is open, and wires it."""
    tasks = list(TASKS.values())
    gr.HTML(cards.HEADER, **BARE)
    with gr.Row(elem_id="workspace", equal_height=False):
        with gr.Column(scale=0, min_width=236, elem_id="controls"):
            scan = gr.File(label="Scan", file_count="multiple", elem_id="scan", height=118)
            gr.HTML(cards.FORMATS, **BARE)
            shift = gr.Checkbox(
                label=f"Add {USUAL_SHIFT} to all values, so that they are Hounsfield units",
                elem_id="shift",
                visible=False,
            )
            with gr.Group(elem_id="examples"):
                gr.HTML('<p class="mst-label">Or open a simulated example</p>', **BARE)
                examples = [
                    (e, gr.Button(e.title, size="sm", visible=e.task == tasks[0].key)) for e in EXAMPLES
                ]
            task = gr.Radio(
                [(t.title, t.key) for t in tasks], value=tasks[0].key, label="Study", elem_id="task"
            )
            # Open: what is closed is not in the page, and the viewer writes the spot into this field.
            with gr.Accordion("Where to look", open=True, elem_id="where"):
                center = gr.Textbox(
                    label="Centre, X, Y, Z in mm (RAS)",
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
                mask = gr.File(label="Lesion mask (optional)", elem_id="mask", height=118)
            with gr.Accordion("Models", open=False):
                choices = {
                    name: gr.Dropdown(
                        **events.checkpoint_choices(tasks[0], name),
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
        with gr.Column(scale=3, min_width=320, elem_id="stage"):
            viewer = gr.HTML(cards.OPENING, elem_id="viewer", **BARE)
            spot = gr.HTML("", elem_id="spot", **BARE)
        with gr.Column(scale=0, min_width=312, elem_id="inspector"):
            run = gr.Button("Explain this scan", variant="primary", elem_id="run", size="lg")
            status = gr.HTML("", elem_id="status", **BARE)
            results = gr.HTML("", elem_id="results", **BARE)
            with gr.Row(elem_id="downloads", visible=False) as downloads:
                buttons = [
                    gr.DownloadButton(label, size="sm", min_width=120, visible=False)
                    for label in events.FILES.values()
                ]
    gr.HTML(cards.FOOTER, **BARE)

    fields: dict[str, Any] = {
        "files": scan,
        "task": task,
        "center": center,
        "mask": mask,
        "side": side,
        "pre": pre,
        **choices,
        "tta": tta,
        "interval": interval,
        "shift": shift,
    }
    inputs = list(fields.values())
    run.click(None, inputs, None, js="(...inputs) => window.mstPage.asks(...inputs)")
    made = run.click(
        _given(events.explain, fields, progress=True),
        set(inputs),
        [status, spot, results, downloads, *buttons],
        api_visibility="private",
        show_progress_on=[results],
    )
    made.failure(None, None, None, js="() => window.mstPage.releases()")
    # The files are written once the page already shows the result: a large scan takes seconds to compress.
    written = made.success(events.write_files, None, buttons, **QUIET)

    uploaded, opening = gr.State([]), gr.State("")
    emptied = [status, viewer, spot, results, downloads]
    first = app.load(
        events.open_first_example,
        scan,
        [center, status, viewer, spot, results, downloads, *buttons],
        **QUIET,
    )
    first.then(
        _given(events.show_what_is_chosen, fields),
        set(inputs),
        [status, viewer, spot, shift, results, downloads],
        **QUIET,
    )
    first.then(None, inputs, None, js="(...inputs) => window.mstPage.adopts(...inputs)")

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
    others: list[Any] = [center, side, *choices.values(), tta, interval, shift]
    chosen = [mask.upload, mask.clear, mask.delete, *(field.input for field in others)]
    released: dict[str, Any] = {"fn": None, "js": "() => window.mstPage.releases()"}
    gr.on([*another, *(button.click for _, button in examples)], cancels=[made, written, first], **released)
    gr.on(chosen, cancels=[made], **released)
    gr.on(
        changes,
        _given(note, fields),
        set(inputs),
        None,
        concurrency_limit=None,
        trigger_mode="always_last",
        **QUIET,
    )

    show: dict[str, Any] = {
        "fn": _given(events.show_scan, fields),
        "inputs": set(inputs),
        "outputs": [status, viewer, spot, shift, results, downloads],
        "api_visibility": "private",
    }
    opened = [scan, task, pre]
    for replaced in (
        scan.change(
            events.take_upload,
            [*opened, uploaded, opening, center],
            [scan, uploaded, opening, center, mask, side, pre, shift, *emptied],
            **QUIET,
        ),
        # One chain: the scan is shown again only once the page has the study's own checkpoints.
        task.change(
            events.take_study,
            [scan, task],
            [side, pre, *choices.values(), *(button for _, button in examples), center, *emptied],
            **QUIET,
        ),
        pre.change(events.take_contrast, opened, emptied, **QUIET),
    ):
        replaced.then(**show, show_progress_on=[viewer])
    pointing = [mask.change, shift.input, center.submit, *(choice.input for choice in choices.values())]
    gr.on(pointing, **show, show_progress="hidden", trigger_mode="always_last")
    # A side that is chosen stands for its middle: the spot that was chosen before no longer counts.
    side.input(lambda: "", None, center, **QUIET).then(**show, show_progress="hidden")
    for example, button in examples:
        button.click(
            lambda key=example.key: ([str(example_file(key, events.examples_folder()))], key),
            None,
            [scan, opening],
            api_visibility="private",
        )
    _build_api()


def _given(
    handler: Callable[..., Any], fields: Mapping[str, Any], *, progress: bool = False
) -> Callable[..., Any]:
    """A handler of `Inputs` and a session as Gradio calls it, with the page's fields by component."""

    def read(values: dict[Any, Any], request: gr.Request) -> tuple[Inputs, str]:
        given = {name: values[field] for name, field in fields.items()}
        session = events.session_of(request)
        given["files"] = files_of(session, given["files"])
        given["pre"] = tuple(given["pre"] or ())
        given["center"] = (given["center"] or "").strip()
        return Inputs(**given), session

    def handle(values: dict[Any, Any], request: gr.Request) -> Any:
        return handler(*read(values, request))

    def handle_slowly(
        values: dict[Any, Any],
        request: gr.Request,
        telling: gr.Progress = gr.Progress(),  # noqa: B008  (Gradio finds it by this default)
    ) -> Any:
        return handler(*read(values, request), telling)

    return handle_slowly if progress else handle


def note(inputs: Inputs, session: str) -> None:
    """Notes what a page has open and chosen."""
    note_inputs(session, inputs)


def _build_api() -> None:
    """The web API's /predict, on components of its own so that its signature is the documented one."""
    files = gr.File(file_count="multiple", visible=False)
    task = gr.Textbox(value="chest-ct", visible=False)
    center = gr.Textbox(value="", visible=False)
    mask = gr.File(visible=False)
    record = gr.JSON(visible=False)
    gr.Button(visible=False).click(
        events.predict_files, [files, task, center, mask], record, api_name="predict"
    )


def end_visit(request: gr.Request) -> None:
    """Lets go what is kept for a session; for `gr.Blocks.unload`."""
    end_session(events.session_of(request))
