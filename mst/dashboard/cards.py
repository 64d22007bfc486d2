"""The small pieces of HTML that the page is made of. All text from files is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from uuid import uuid4

from mst.findings import Finding
from mst.results import agreement, answer_notes, answer_warnings
from mst.scans import Scan
from mst.tasks import Task
from mst.words import COLORS, DISCLAIMER, DOUBTFUL, LABELS, LONGEST_NAME, METHOD_LABELS, clipped, finds

HEADER = f"""
<header class="mst-header">
  <div>
    <h1>Medical Slice Transformer</h1>
    <p>See where two models look in a 3D scan.</p>
  </div>
  <p class="mst-disclaimer" role="note">{escape(DISCLAIMER)}</p>
</header>
"""

FOOTER = """
<footer class="mst-footer">
  <p>After Müller-Franzes et al., <cite>Medical Slice Transformer</cite>, arXiv 2411.15802. The chest CT checkpoints
  were trained on nodules of LIDC-IDRI (Armato et al. 2011, CC BY 3.0). Uploads stay on the machine that serves this
  page and are deleted after a day.</p>
</footer>
"""

FORMATS = """
<p class="mst-formats">NIfTI, NRRD, MetaImage or DICOM: one file, all files of a series, or a zip.</p>
"""

EMPTY = """
<section class="mst-empty">
  <ol>
    <li><strong>Open a scan.</strong> NIfTI, NRRD, MetaImage or DICOM, or one of the simulated examples.</li>
    <li><strong>Point at the spot.</strong> A click in any of the three planes tells the models where to look.</li>
    <li><strong>Compare.</strong> Scroll attention and Grad-CAM side by side, slice by slice and in 3D.</li>
  </ol>
</section>
"""


_TOP = ' class="mst-top"'
OPENING = '<section class="mst-empty" role="status"><p>Opening an example</p></section>'


def alert(message: str) -> str:
    """A message that something could not be done."""
    return f'<div class="mst-alert" role="alert">{escape(message)}</div>'


def scan_facts(scan: Scan, notes: Iterable[str]) -> str:
    """Name, size and spacing of the open scan, and what the reader decided."""
    size = " × ".join(str(n) for n in scan.shape)
    spacing = " × ".join(f"{s:.2f}" for s in scan.spacing)
    facts = [f"{size} voxels", f"{spacing} mm", scan.orientation]
    if scan.modality:
        facts.append(scan.modality)
    items = "".join(f"<li>{escape(clipped(note))}</li>" for note in notes)
    return (
        f'<div class="mst-facts" role="status"><p><strong>{escape(clipped(scan.name, LONGEST_NAME))}</strong> '
        f"<span>{escape(' · '.join(facts))}</span></p>" + (f"<ul>{items}</ul>" if items else "") + "</div>"
    )


def opening() -> str:
    """Stands where the scan will be, so that nothing of the one before it does."""
    return '<section class="mst-empty" role="status"><p>Opening the scan</p></section>'


def answers(scan: Scan, results: Mapping[str, Finding], content: str) -> str:
    """Answers with what they were made for, which page.js says as soon as something else is chosen."""
    at = ", ".join(f"{value:.1f}" for value in next(iter(results.values())).spot.center)
    made_for = f"These answers are for {scan.name} at {at} mm. Press Explain for the new choice."
    return (
        f'<div class="mst-answers" data-run="{uuid4().hex}" data-made-for="{escape(made_for)}">'
        f'<p class="mst-stale" role="status"></p>{content}</div>'
    )


def no_checkpoint(task: Task) -> str:
    """What to do about a study for which no model is at hand."""
    return f"""
<section class="mst-note" role="status">
  <h2>No model for {escape(task.title)} yet</h2>
  <p>This project ships checkpoints for chest CT only. The scan is shown above; to classify it,</p>
  <ul>
    <li>train a model with <code>python train.py CONFIG.yaml</code> on data of your own, or</li>
    <li>convert the paper's weights with
        <code>mst convert PUBLISHED.ckpt FOLDER --task {escape(task.key)}</code>, or</li>
    <li>put a checkpoint folder (<code>config.json</code>, <code>model.safetensors</code>) for
        <code>{escape(task.key)}</code> into <code>checkpoints/</code>, or name its folder in
        <code>MST_CHECKPOINTS</code>.</li>
  </ul>
</section>
"""


def prediction_cards(task: Task, results: Mapping[str, Finding], warnings: Sequence[str] = ()) -> str:
    """What the models say, on one axis from the first class to the last, then a card a model with what it rests on.

    The answer of a model that sees nothing to classify is dimmed and says so, and the other's is not.

    Args:
        task: the study.
        results: of `mst.predict`.
        warnings: `mst.results.scan_warnings`; where there is one, the answers are dimmed and it stands beside them.
    """
    first = next(iter(results.values()))
    doubtful = bool(warnings)
    cards = "".join(
        _card(name, task, results[name], doubtful) if name in results else _missing(name) for name in LABELS
    )
    verdict = agreement(task, results)
    verdict = f"<strong>{escape(verdict)}</strong>" if verdict else ""
    return f"""
<section class="mst-predictions{" mst-doubtful" if doubtful else ""}" aria-label="Predictions">
  <div class="mst-question"><h2>{escape(task.question)}</h2>{_warned(warnings)}
  <p class="mst-verdict">{verdict}</p>
  {_axis(task, results)}
  <p>{escape(first.spot.text)}</p></div>
  <div class="mst-cards">{cards}</div>
</section>
"""


def _axis(task: Task, results: Mapping[str, Finding]) -> str:
    """All answers beside each other: each a dot on its own line between the two classes, with its range."""
    low, high = task.classes
    lanes = "".join(
        f'<div class="mst-lane{"" if result.lesion_seen else " mst-doubtful"}" data-lane="{name}" role="meter" '
        f'aria-label="{escape(result.title or LABELS[name])}: {escape(high)}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * result.probabilities[high]:.0f}" style="--key:{COLORS[name]}">'
        f'{_range(result, high)}<b style="left:{100 * result.probabilities[high]:.1f}%"></b></div>'
        for name, result in results.items()
    )
    return (
        f'<div class="mst-axis">{lanes}<div class="mst-ends" aria-hidden="true"><span>{escape(low)}</span>'
        f"<span>50%</span><span>{escape(high)}</span></div></div>"
    )


def _warned(warnings: Sequence[str]) -> str:
    said = "".join(f"<p>{escape(clipped(warning))}</p>" for warning in warnings)
    return f'<div class="mst-warnings" role="alert">{said}</div>' if said else ""


def _range(result: Finding, label: str) -> str:
    if result.interval is None:
        return ""
    low, high = result.interval.classes[label]
    return f'<i style="left:{100 * low:.1f}%;right:{100 - 100 * high:.1f}%"></i>'


def _missing(name: str) -> str:
    return (
        f'<article class="mst-card" style="--key:{COLORS[name]}"><h3>{escape(LABELS[name])}</h3>'
        "<p>No checkpoint at hand for this study.</p></article>"
    )


def _card(name: str, task: Task, result: Finding, doubtful: bool) -> str:
    warnings = answer_warnings(task, result)
    notes = "".join(f"<p>{escape(note)}</p>" for note in answer_notes(task, result))
    classes = "".join(
        f"<span{_TOP if label == result.prediction else ''}>{escape(label)} <b>{100 * p:.1f}%</b></span>"
        for label, p in result.probabilities.items()
    )
    metrics = ""
    if result.metrics:
        hit = "lies" if result.metrics["pointing_game"] else "does not lie"
        top = "shows" if result.metrics["top_slice_in_lesion"] else "does not show"
        metrics = (
            f"<p>Against the mask: the map's maximum {hit} within 2 mm of the lesion; "
            f"{100 * result.metrics['share_inside']:.0f}% of the saliency is inside the lesion; "
            f"the most weighted slice {top} the lesion.</p>"
        )
    return f"""
<article class="mst-card{" mst-doubtful" if warnings else ""}" data-model="{name}" style="--key:{COLORS[name]}">
  <h3>{escape(result.title or LABELS[name])}</h3>
  {f'<strong class="mst-doubt">{escape(DOUBTFUL)}</strong>' if doubtful else ""}
  {_warned(warnings)}
  <p class="mst-classes">{classes}</p>
  {notes}
  <p class="mst-meta">{_trust(task, result)}</p>
  <p class="mst-meta"><span><code>{escape(result.checkpoint)}</code></span>
  <span>{escape(METHOD_LABELS[result.map.method])} in {result.seconds:.2f} s</span></p>
  {metrics}
</article>
"""


def _trust(task: Task, result: Finding) -> str:
    """How good the model was found to be, and how often its map lies on what it should."""
    known = result.validation
    auc = known.get("auc")
    if not isinstance(auc, int | float):
        return "<span>No measured AUC comes with this checkpoint</span>"
    interval = known.get("auc_ci95")
    spread = f" (95% CI {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    protocol = escape(clipped(known.get("protocol", "")))
    told = f'<span title="{protocol}">Measured AUC <strong>{auc:.2f}</strong>{spread}</span>'
    if known.get("pointing_off_centre") is not None:
        told += f"<span>{escape(finds(task.lesion, known['pointing_off_centre'], known.get('pointing_middle')))}</span>"
    return told
