"""A prediction as a PDF for the file: what both models said, where each looked, and how far to trust it.

Two A4 pages, more only where a scan has many notes. Text can be selected and searched; fonts are embedded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    CondPageBreak,
    Flowable,
    Frame,
    KeepTogether,
    PageTemplate,
    Paragraph,
    Table,
)

import mst
from mst.findings import Finding
from mst.letters import FONT, MUTED, TEXT, in_order, style, write
from mst.pictures import LINE, Pictures, bar, peak
from mst.scans import Scan
from mst.tasks import Task, Window
from mst.words import (
    DISCLAIMER,
    DOUBTFUL,
    LONGEST_NAME,
    MEASURES,
    METHOD_LABELS,
    PRINT_COLORS,
    SHOWN_FROM,
    clipped,
    measured,
    short_label,
)

SOFTWARE = "Medical Slice Transformer dashboard"
WARNING, DOUBT, DIMMED = "#7a3e05", "#a02d1f", "#9aa3b2"
GROUND, PANEL = {WARNING: "#fdf3e4", DOUBT: "#fbe9e6"}, "#f5f7f9"
SIDE, TOP, BOTTOM = 18 * mm, 22 * mm, 23 * mm  # margins
WIDTH, HEIGHT = A4[0] - 2 * SIDE, A4[1] - TOP - BOTTOM
GUTTER, PAD = 5 * mm, 9  # between the models' answers, within them
LOWEST, HIGHEST = 40 * mm, 80 * mm  # pictures
HOW_TO_READ = (
    "Attention and Grad-CAM show what a model attended to, not why, and not where a lesion ends. The two maps have no "
    "common unit: each is coloured up to its own maximum. The probabilities are those of two neural networks for the "
    "region above alone; the models answer for any region, whether or not it shows a lesion. A model that can tell "
    "whether there is one says so beside its answer."
)


BODY, SMALL = style(8.5), style(7.5, MUTED)
CAPTION = style(7, MUTED, spaceBefore=4)
HEADING = style(10.5, bold=True, spaceBefore=12, spaceAfter=4, keepWithNext=1)


@dataclass(frozen=True)
class _Model:
    """What the report says and shows of one model.

    Attributes:
        title, short: what it is called, in full and where there is little room.
        tags: why its answer means nothing, if it does.
        notes: what it tells beside its answer.
        colour: its own, or a grey where its answer means nothing.
    """

    result: Finding
    title: str
    short: str
    tags: list[str]
    notes: list[str]
    colour: str

    @property
    def known(self) -> str:
        """How good it was found to be."""
        auc, interval = self.result.validation.get("auc"), self.result.validation.get("auc_ci95")
        if not isinstance(auc, int | float):
            return "No measured AUC comes with this checkpoint"
        spread = f" (95% CI {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        return f"Measured AUC {auc:.2f}{spread}"


def report_pdf(
    record: Mapping[str, Any],
    scan: Scan,
    task: Task,
    results: Mapping[str, Finding],
    window: Window,
    mask: np.ndarray | None = None,
) -> bytes:
    """The report.

    Args:
        record: the content of prediction.json.
        scan: that was classified.
        task: its study.
        results: at least one model's.
        window: that the slices are shown in.
        mask: a lesion mask, bool on the scan's own grid, drawn as an outline.

    Returns:
        The PDF's bytes.
    """
    models = [_model(name, result, record) for name, result in results.items()]
    name = clipped(record["scan"]["name"], LONGEST_NAME)
    verdict = [*_question(record, task), *_verdict(record, models)]
    story = [
        *verdict,
        *_pictures(models, scan, task, window, mask, HEIGHT - _height(verdict)),
        CondPageBreak(75 * mm),
        *_notes(record),
        *_against_the_mask(models),
        *_scan(record, name, scan, models),
        *_checkpoints(models),
        Paragraph("How to read this", HEADING),
        Paragraph(HOW_TO_READ, BODY),
    ]
    file = io.BytesIO()
    document = BaseDocTemplate(
        file,
        pagesize=A4,
        pageTemplates=[PageTemplate(frames=[Frame(SIDE, BOTTOM, WIDTH, HEIGHT, 0, 0, 0, 0)])],
        title=f"{task.title} - {name}",
        subject=f"{task.question} {DISCLAIMER}",
        author=SOFTWARE,
        creator=f"{SOFTWARE} {mst.__version__}",
        keywords=["saliency", "research only", "not a medical device"],
        lang="en",
        initialFontName=FONT,
    )
    document.build(story, canvasmaker=partial(_Pages, name=in_order(name)))
    return file.getvalue()


def _model(name: str, result: Finding, record: Mapping[str, Any]) -> _Model:
    entry = record["models"][name]
    title, short = clipped(entry["title"], LONGEST_NAME), short_label(name, result.title)
    tags = [DOUBTFUL] * bool(record["scan"]["warnings"]) + entry.get("warnings", [])
    return _Model(result, title, short, tags, entry.get("notes", []), DIMMED if tags else PRINT_COLORS[name])


class _Pages(Canvas):
    """Pages that wait for the last one, since each says how many there are."""

    def __init__(self, *args: Any, name: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._name = name
        self._made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
        self._waiting: list[dict[str, Any]] = []

    def showPage(self) -> None:  # noqa: N802
        self._waiting.append(dict(self.__dict__))
        self._startPage()  # type: ignore[attr-defined]

    def save(self) -> None:
        for number, page in enumerate(self._waiting, start=1):
            self.__dict__.update(page)
            self._edges(f"Page {number} of {len(self._waiting)}")
            super().showPage()
        super().save()

    def _edges(self, number: str) -> None:
        """The head with the scan's name, and the foot with the disclaimer."""
        right, head, foot = A4[0] - SIDE, A4[1] - 14 * mm, 14 * mm
        name = self._name
        while stringWidth(name, FONT, SMALL.fontSize) > WIDTH - 35 * mm:
            name = name[:-2] + "…"
        write(self, SIDE, head, name, SMALL)
        write(self, right, head, self._made, SMALL, align=1)
        write(self, SIDE, foot, DISCLAIMER, style(7.5, WARNING, bold=True))
        write(self, right, foot, number, SMALL, align=1)
        write(self, SIDE, foot - 11, f"{SOFTWARE}, version {mst.__version__}", CAPTION)
        self.setFillColor(HexColor(LINE))
        for y in (head - 6, foot + 11):
            self.rect(SIDE, y, WIDTH, 0.5, stroke=0, fill=1)


def _text(text: str, look: ParagraphStyle = BODY, bullet: str | None = None) -> Paragraph:
    """Text that may be a file's or a model's and hold anything: shown as it stands, never as markup."""
    # Soft hyphens, which nobody sees, would cost the square of their number.
    return Paragraph(escape(in_order(clipped(text).replace("\xad", ""))), look, bullet)


def _cells(
    rows: Sequence[list[Any]], widths: Sequence[float], padding: Sequence[float], *more: Any, **settings: Any
) -> Table:
    """Cells side by side; `padding` is at the left, top, right and bottom, `more` is ReportLab's own style."""
    every = ((0, 0), (-1, -1))
    look: list[Any] = [("VALIGN", *every, "TOP"), ("FONTNAME", *every, FONT)]
    for side, points in zip(("LEFT", "TOP", "RIGHT", "BOTTOM"), padding, strict=True):
        look.append((f"{side}PADDING", *every, points))
    return Table(rows, widths, style=[*look, *more], splitInRow=1, **settings)


def _height(story: Sequence[Flowable]) -> float:
    """How much of a page it takes at most, in points."""
    return sum(part.wrap(WIDTH, HEIGHT)[1] + part.getSpaceBefore() + part.getSpaceAfter() for part in story)


def _question(record: Mapping[str, Any], task: Task) -> Iterator[Flowable]:
    """What was asked, and what nobody should miss, on a ground of its colour."""
    yield Paragraph(task.title, style(18, bold=True))
    yield Paragraph(task.question, style(11, MUTED, spaceAfter=8))
    warnings = [(warning, DOUBT) for warning in record["scan"]["warnings"]]
    for text, colour in ((DISCLAIMER, WARNING), *warnings):
        ground = ("BACKGROUND", (0, 0), (-1, -1), HexColor(GROUND[colour]))
        said = _text(text, style(8, colour, bold=True))
        yield _cells([[said]], [WIDTH], (PAD, 2, PAD, 4), ground, spaceAfter=6)


def _verdict(record: Mapping[str, Any], models: Sequence[_Model]) -> Iterator[Flowable]:
    """The answers in a sentence, and each model's as bars."""
    if said := record.get("agreement"):
        colour = MUTED if record["scan"]["warnings"] else TEXT
        yield _text(said, style(12, colour, bold=True, spaceBefore=8))
    yield _text(models[0].result.spot.text, style(8.5, MUTED, spaceBefore=2, spaceAfter=7))
    wide = (WIDTH - GUTTER * (len(models) - 1)) / len(models)
    cells: list[Any] = []
    look: list[Any] = []
    for model in models:
        cell = (len(cells), 0)
        look.append(("BACKGROUND", cell, cell, HexColor(PANEL)))
        look.append(("LINEABOVE", cell, cell, 2, HexColor(model.colour), "butt"))
        cells += [_answer(model, wide - 2 * PAD), ""]
    yield _cells([cells[:-1]], ([wide, GUTTER] * len(models))[:-1], (PAD, 6, PAD, 7), *look)


def _answer(model: _Model, wide: float) -> list[Flowable]:
    """A model's probabilities as bars, dimmed where a tag says that they are worth nothing."""
    result, ink, trusted = model.result, MUTED if model.tags else TEXT, not model.tags
    columns = [21 * mm, wide - 36 * mm, 15 * mm]
    rows = []
    for label, probability in result.probabilities.items():
        bold = label == result.prediction and trusted
        between = result.interval.classes.get(label) if result.interval and trusted else None
        number = _text(f"{100 * probability:.1f}%", style(8.5, ink, bold=bold, alignment=2))
        drawn = bar(columns[1], probability, model.colour, between)
        rows.append([_text(label, style(8.5, ink, bold=bold)), drawn, number])
    middle = ("VALIGN", (0, 0), (-1, -1), "MIDDLE")
    checkpoint = f"Checkpoint {clipped(result.checkpoint, LONGEST_NAME)}"
    return [
        _text(model.title, style(10, ink, bold=trusted, spaceAfter=2)),
        *(_text(tag, style(8.5, DOUBT, bold=True, spaceAfter=2)) for tag in model.tags),
        _cells(rows, columns, (0, 2, 0, 2), middle, spaceAfter=3),
        *(_text(sentence, SMALL) for sentence in (*model.notes, model.known, checkpoint)),
    ]


def _pictures(
    models: Sequence[_Model], scan: Scan, task: Task, window: Window, mask: np.ndarray | None, room: float
) -> Iterator[Flowable]:
    """The slices where the models' maps peak, and how much each slice counts, within as many points if that can be."""
    lesion = None if mask is None else Scan(mask, scan.affine).canonical().voxels
    maps = [model.result.map for model in models]
    regions = np.stack([shown.region.bounds for shown in maps])
    bounds = np.stack([regions[..., 0].min(axis=0), regions[..., 1].max(axis=0)], axis=-1)
    pictures = Pictures(scan.canonical(), task.plane, window, lesion, bounds)
    unit = f" {task.unit}" if task.unit else ""
    caption = (
        f"{window.name} window, {window.low:.4g} to {window.high:.4g}{unit}. Radiological convention. "
        f"Each map is coloured above {100 * SHOWN_FROM:.0f}% of its maximum."
    )
    bars = "Bars are parts of each model's highest; the slice shown above is darker."
    if lesion is not None:
        caption += " White outline: lesion mask."
        bars += " Grey ground: slices of the lesion mask."
    heading = Paragraph("Where each model looked", HEADING)
    heads = [_shown(model, task) for model in models]
    below = [
        _text(caption, CAPTION),
        Paragraph("Slice by slice", HEADING),
        pictures.profiles([(model.short, model.colour, model.result.map) for model in models], WIDTH),
        _text(bars, CAPTION),
    ]
    left = (room - _height([heading, *heads, *below])) / len(models)
    # All pictures are equally high, so that their edges are in line.
    height = min(HIGHEST, max(LOWEST, left), pictures.highest(WIDTH))
    yield heading
    for head, shown in zip(heads, maps, strict=True):
        yield KeepTogether([head, pictures.slices(shown, WIDTH, height)])
    yield from below


def _shown(model: _Model, task: Task) -> Paragraph:
    """Which slice of a model's map is shown."""
    shown = model.result.map
    at, profile = peak(shown), shown.profile
    facts = f"{task.plane} slice {at + 1} of {len(profile)}, which holds the map's maximum"
    if (weighted := int(np.argmax(profile))) != at:
        facts += f" (most weighted: slice {weighted + 1})"
    head = f"{model.short} {METHOD_LABELS[shown.method]}: {facts}"
    return _text(head, style(8.5, bold=True, spaceBefore=6, spaceAfter=3))


def _table(
    heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], column: float, size: float = 8.5
) -> Table:
    """What is to be said of each thing, a hairline under each.

    Args:
        heads: above the columns and in which colour; none: no such row.
        rows: what it is of, then each column's text.
        column: of all but the first, the width in points.
    """
    cells: list[list[Any]] = []
    if heads:
        cells.append(["", *(_text(head, style(8.5, colour, bold=True)) for head, colour in heads)])
    for name, *texts in rows:
        cells.append([_text(name, style(size, MUTED)), *(_text(text, style(size)) for text in texts)])
    others = len(cells[0]) - 1
    lines = ("LINEBELOW", (0, 0), (-1, -1), 0.5, HexColor(LINE))
    return _cells(cells, [WIDTH - column * others, *[column] * others], (0, 2, 8, 3.5), lines)


def _notes(record: Mapping[str, Any]) -> Iterator[Flowable]:
    facts = record["scan"]
    # Those that say that nothing here is to be trusted stand beside the answers.
    notes = [*record["notes"], *(note for note in facts["notes"] if note not in facts["warnings"])]
    if notes:
        yield Paragraph("Notes", HEADING)
        yield from (_text(note, style(8.5, leftIndent=11, spaceAfter=2.5), "•") for note in notes)


def _against_the_mask(models: Sequence[_Model]) -> Iterator[Flowable]:
    found = [model.result.metrics or {} for model in models]
    if any(found):
        rows = [[label, *(measured(key, its.get(key)) for its in found)] for key, label in MEASURES.items()]
        yield Paragraph("Against the lesion mask", HEADING)
        yield _table([(model.short, model.colour) for model in models], rows, 37 * mm)


def _scan(record: Mapping[str, Any], name: str, scan: Scan, models: Sequence[_Model]) -> Iterator[Flowable]:
    facts, spot = record["scan"], models[0].result.spot.text
    rows = [
        ("Scan", name),
        ("Voxels", " × ".join(str(n) for n in facts["shape"])),
        ("Spacing", " × ".join(f"{s:g}" for s in facts["spacing_mm"]) + " mm"),
        ("Axes", f"{scan.orientation}" + (f", {scan.modality}" if scan.modality else "")),
        ("Region", f"{spot} Coordinates are RAS: x to the patient's right, y front, z head."),
    ]
    for model in models:
        size = np.ptp(model.result.region.bounds, axis=1) * scan.canonical().spacing
        extent = " × ".join(f"{n:.0f}" for n in size)
        rows.append((f"Seen by {model.short}", f"{extent} mm (right to left, back to front, foot to head)"))
    yield Paragraph("Scan and region", HEADING)
    yield _table([], rows, WIDTH - 40 * mm)


def _checkpoints(models: Sequence[_Model]) -> Iterator[Flowable]:
    rows = [["Checkpoint"], ["Saliency"], ["Performance"]]
    for model in models:
        result, protocol = model.result, clipped(model.result.validation.get("protocol", ""))
        rows[0].append(result.checkpoint)
        rows[1].append(f"{METHOD_LABELS[result.map.method]}, {result.seconds:.2f} s with the prediction")
        rows[2].append(model.known + (f": {protocol}" if protocol else ""))
    yield Paragraph("Models", HEADING)
    heads = [(model.title, model.colour) for model in models]
    yield _table(heads, rows, (WIDTH - 40 * mm) / len(models), 8)
