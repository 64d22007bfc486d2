"""A prediction as a PDF for the file: what both models said, where each looked, and how far to trust it.

Two A4 pages, more only where a scan has many notes. Text can be selected and searched; fonts are embedded.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import LoadFlags
from matplotlib.patches import Rectangle

import mst
from mst.drawing import drawing
from mst.findings import Finding
from mst.preprocess import AXES
from mst.scans import Scan
from mst.scans.boxes import on_box
from mst.tasks import Task, Window
from mst.words import (
    DISCLAIMER,
    DOUBTFUL,
    LABELS,
    LONGEST_NAME,
    MEASURES,
    METHOD_LABELS,
    SHOWN_FROM,
    clipped,
    measured,
    short_label,
)

SOFTWARE = "Medical Slice Transformer dashboard"
WIDTH, HEIGHT = 210.0, 297.0  # A4 in millimetres
LEFT, RIGHT, BOTTOM = 16.0, 194.0, 276.0
POINT = 25.4 / 72  # millimetres
TEXT, MUTED, LINE, PANEL, WARNING = "#171b24", "#4c5566", "#d5dae2", "#f5f7f9", "#7a3e05"
DOUBT, DIMMED = "#a02d1f", "#9aa3b2"
GROUND = {WARNING: "#fdf3e4", DOUBT: "#fbe9e6"}
FONT = "DejaVu Sans"
MISSING = 1.2  # width of the sign for a letter that the font lacks, as a part of the font's size
# Fonts are embedded whole enough to be searched, and a "$" in a name starts no formula.
SETTINGS = {"pdf.fonttype": 42, "font.family": FONT, "text.parse_math": False}
COLOURS = {"mst": "#0f7377", "resnet": "#b45309"}
MAP = colormaps["viridis"]
DOTS_PER_INCH = 220
# As the viewer first shows a map.
OPACITY, MARGIN = 0.6, 0.2
PAD = 3.5  # within an answer's panel
# The letters at both ends of a canonical axis: where its index grows to, and where it comes from.
LETTERS = (("R", "L"), ("A", "P"), ("S", "I"))
HOW_TO_READ = (
    "Attention and Grad-CAM show what a model attended to, not why, and not where a lesion ends. The two maps have no "
    "common unit: each is coloured up to its own maximum. The probabilities are those of two neural networks for the "
    "region above alone; the models answer for any region, whether or not it shows a lesion. A model that can tell "
    "whether there is one says so beside its answer."
)


@dataclass(frozen=True)
class _View:
    """One slice as it is drawn: radiological convention, rows downwards.

    Attributes:
        axes: the canonical axis that runs along slices, rows and columns, and whether it is flipped.
        index: of the slice, in the canonical scan.
        field: int [3, 2], the canonical voxels that are shown along each canonical axis.
        spacing: millimetres between voxels along the canonical axes.
    """

    axes: tuple[tuple[int, bool], tuple[int, bool], tuple[int, bool]]
    index: int
    field: np.ndarray
    spacing: tuple[float, float, float]

    def cut(self, volume: np.ndarray, start: Sequence[int] | np.ndarray = (0, 0, 0)) -> np.ndarray:
        """The slice of a canonical volume, [rows, columns].

        Args:
            start: the canonical voxel where the volume begins; around it, it is zero.
        """
        (along, _), (row, flip_row), (column, flip_column) = self.axes
        shown = self.field.copy()
        shown[along] = self.index, self.index + 1
        plane = on_box(volume, start, shown).take(0, along)
        if row > column:
            plane = plane.T
        return plane[:: -1 if flip_row else 1, :: -1 if flip_column else 1]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height."""
        (row, _), (column, _) = self.axes[1:]
        low, high = self.field.T
        return (high - low)[column] * self.spacing[column], (high - low)[row] * self.spacing[row]

    @property
    def letters(self) -> tuple[str, str, str, str]:
        """The patient's directions at the left, right, upper and lower edge."""
        (row, flip_row), (column, flip_column) = self.axes[1:]
        left, right = LETTERS[column] if flip_column else LETTERS[column][::-1]
        top, bottom = LETTERS[row] if flip_row else LETTERS[row][::-1]
        return left, right, top, bottom

    def box_mm(self, bounds: np.ndarray) -> tuple[float, float, float, float]:
        """Left, top, width and height of a region's bounds, millimetres from the upper left corner."""
        spans = []
        for axis, flip in (self.axes[2], self.axes[1]):
            low, high = self.field[axis]
            start, stop = bounds[axis]
            offset = (high - stop) if flip else (start - low)
            spans.append((offset * self.spacing[axis], (stop - start) * self.spacing[axis]))
        (x, width), (y, height) = spans
        return float(x), float(y), float(width), float(height)


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
    now = datetime.now().astimezone()
    name = clipped(record["scan"]["name"], LONGEST_NAME)
    with drawing(SETTINGS):
        document = _Document(name, now)
        _result(document, record, scan, task, results, window, mask)
        document.new_page()
        _details(document, record, scan, results)
        return document.saved(f"{task.title} - {name}", task.question)


class _Document:
    """A4 pages that are written from top to bottom, in millimetres from the upper left corner."""

    def __init__(self, name: str, now: datetime) -> None:
        self.name, self.now = name, now
        self.pages: list[Figure] = []
        self.y = 0.0
        self.new_page()

    def new_page(self) -> None:
        self.pages.append(Figure(figsize=(WIDTH / 25.4, HEIGHT / 25.4)))
        self.write(SOFTWARE, LEFT, 15, 7.5, MUTED)
        self.write(self.now.strftime("%Y-%m-%d %H:%M"), RIGHT, 15, 7.5, MUTED, align="right")
        self.rule(17.5)
        self.y = 26.0

    def write(
        self,
        text: str,
        x: float,
        y: float,
        size: float,
        colour: str = TEXT,
        *,
        bold: bool = False,
        align: str = "left",
    ) -> None:
        """One line of text whose baseline is at y."""
        self.pages[-1].text(
            x / WIDTH,
            1 - y / HEIGHT,
            text,
            fontsize=size,
            color=colour,
            weight="bold" if bold else "normal",
            ha=align,
            va="baseline",
        )

    def paragraph(
        self,
        text: str,
        size: float = 8.5,
        colour: str = TEXT,
        *,
        x: float = LEFT,
        right: float = RIGHT,
        bold: bool = False,
        after: float = 1.5,
    ) -> None:
        """Text broken into lines from the current height on; the height moves below it."""
        leading = 1.45 * size * POINT
        for line in _lines(text, right - x, size, bold):
            if self.y + leading > BOTTOM:
                self.new_page()
            self.y += leading
            self.write(line, x, self.y, size, colour, bold=bold)
        self.y += after

    def boxed(self, text: str, colour: str) -> None:
        """A sentence that nobody should miss, on a ground of its colour."""
        size, pad = 8.5, 3.0
        leading = 1.45 * size * POINT
        lines = _lines(text, RIGHT - LEFT - 2 * pad, size, bold=True)
        height = len(lines) * leading + 3.2
        self.box(LEFT, self.y, RIGHT - LEFT, height, GROUND[colour])
        for number, line in enumerate(lines, start=1):
            self.write(line, LEFT + pad, self.y + 0.5 + number * leading, size, colour, bold=True)
        self.y += height + 3.2

    def heading(self, text: str) -> None:
        if self.y > BOTTOM - 20:
            self.new_page()
        self.y += 4
        self.paragraph(text, 10.5, bold=True, after=1.0)

    def rows(self, rows: Sequence[Sequence[str]], columns: Sequence[float], size: float = 8.5) -> None:
        """A table: the first column muted, each column from its x to the next one's."""
        edges = [*columns[1:], RIGHT]
        for row in rows:
            cells = [
                _lines(text, edge - x - 3, size) for text, x, edge in zip(row, columns, edges, strict=True)
            ]
            height = max(map(len, cells)) * 1.4 * size * POINT + 1.6
            if self.y + height > BOTTOM:
                self.new_page()
            for number, (lines, x) in enumerate(zip(cells, columns, strict=True)):
                for index, line in enumerate(lines):
                    y = self.y + (index + 1) * 1.4 * size * POINT
                    self.write(line, x, y, size, MUTED if number == 0 else TEXT)
            self.y += height
            self.rule(self.y)

    def rule(self, y: float) -> None:
        self.box(LEFT, y, RIGHT - LEFT, 0.15, LINE)

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.pages[-1].add_artist(
            Rectangle(
                (x / WIDTH, 1 - (y + height) / HEIGHT),
                width / WIDTH,
                height / HEIGHT,
                transform=self.pages[-1].transFigure,
                facecolor=colour,
                edgecolor="none",
                zorder=-1,
            )
        )

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        axes = self.pages[-1].add_axes((x / WIDTH, 1 - (y + height) / HEIGHT, width / WIDTH, height / HEIGHT))
        axes.set_axis_off()
        return axes

    def saved(self, title: str, subject: str) -> bytes:
        """The PDF, once each page has its foot with the disclaimer."""
        count = len(self.pages)
        for number, page in enumerate(self.pages, start=1):
            foot = (
                (LEFT, "left", DISCLAIMER, 284, "bold", WARNING),
                (LEFT, "left", _shortened(self.name, 120, 7.5), 288.5, "normal", MUTED),
                (RIGHT, "right", f"Page {number} of {count}", 288.5, "normal", MUTED),
            )
            for x, align, text, y, weight, colour in foot:
                page.text(
                    x / WIDTH, 1 - y / HEIGHT, text, fontsize=7.5, color=colour, weight=weight, ha=align
                )
        file = io.BytesIO()
        metadata = {
            "Title": title,
            "Subject": f"{subject} {DISCLAIMER}",
            "Author": SOFTWARE,
            "Creator": f"{SOFTWARE} {mst.__version__}",
            "Keywords": "saliency, research only, not a medical device",
            "CreationDate": self.now,
        }
        with PdfPages(file, metadata=metadata) as pages:
            for page in self.pages:
                pages.savefig(page, dpi=DOTS_PER_INCH)
        return file.getvalue()


def _result(
    document: _Document,
    record: Mapping[str, Any],
    scan: Scan,
    task: Task,
    results: Mapping[str, Finding],
    window: Window,
    mask: np.ndarray | None,
) -> None:
    """The first page: the question, the answers and the slices behind them."""
    document.paragraph(task.title, 17, bold=True, after=0.5)
    document.paragraph(task.question, 11, MUTED, after=3)
    document.boxed(DISCLAIMER, WARNING)
    first = next(iter(results.values()))
    warnings = [str(warning) for warning in record["scan"]["warnings"]]
    for warning in warnings:
        document.boxed(warning, DOUBT)
    where = [record["agreement"]] if "agreement" in record else []
    document.paragraph(" ".join([*where, first.spot.text]), 9.5, MUTED if warnings else TEXT, after=3)
    _answers(document, record, results, doubtful=bool(warnings))
    document.y += 1
    document.heading("Where each model looked")
    canonical = scan.canonical()
    lesion = None if mask is None else Scan(mask, scan.affine).canonical().voxels
    regions = np.stack([result.region.bounds for result in results.values()])
    bounds = np.stack([regions[..., 0].min(axis=0), regions[..., 1].max(axis=0)], axis=-1)
    height = min((BOTTOM - 9 - document.y) / len(results) - 7.5, 80.0)
    for name, result in results.items():
        _slices(document, canonical, task, name, result, window, scan, lesion, bounds, height)
    unit = f" {task.unit}" if task.unit else ""
    caption = (
        f"{window.name} window, {window.low:.4g} to {window.high:.4g}{unit}. Radiological convention. "
        f"Each map is coloured above {100 * SHOWN_FROM:.0f}% of its maximum."
    )
    if lesion is not None:
        caption += " White outline: lesion mask."
    document.paragraph(caption, 7.5, MUTED, after=0)


def _answers(
    document: _Document, record: Mapping[str, Any], results: Mapping[str, Finding], doubtful: bool
) -> None:
    """The models' answers beside each other, equally high."""
    width, top = (RIGHT - LEFT - 6) / 2, document.y
    room = width - 2 * PAD
    # What is said of an answer alone, in lines, and whether it is that it means nothing.
    said = {}
    for name in results:
        entry = record["models"][name]
        warnings = [line for text in entry.get("warnings", []) for line in _lines(text, room, 8.5, bold=True)]
        notes = [line for text in entry.get("notes", []) for line in _lines(text, room, 8)]
        said[name] = (warnings, notes)
    height = max(
        13
        + 6.2 * len(result.probabilities)
        + 8
        + 4.5 * (doubtful + len(said[name][0]))
        + 4.2 * len(said[name][1])
        for name, result in results.items()
    )
    for number, (name, result) in enumerate(results.items()):
        warnings, notes = said[name]
        tags = [DOUBTFUL] * doubtful + warnings
        x = LEFT + number * (width + 6)
        document.box(x, top, width, height, PANEL)
        document.box(x, top, 0.9, height, DIMMED if tags else COLOURS[name])
        _answer(document, name, result, x, top, width, tags, notes)
    document.y = top + height


def _answer(
    document: _Document,
    name: str,
    result: Finding,
    x: float,
    y: float,
    width: float,
    tags: Sequence[str],
    notes: Sequence[str],
) -> None:
    """A model's probabilities as bars, with its measured AUC; dimmed where a tag says that they are worth nothing."""
    colour, text = (DIMMED, MUTED) if tags else (COLOURS[name], TEXT)
    y += 6.5
    title, room = result.title or LABELS[name], width - 2 * PAD
    size = 10.0 if len(_lines(title, room, 10, bold=True)) == 1 else 8.5
    document.write(_shortened(title, room, size, bold=True), x + PAD, y, size, text, bold=not tags)
    for tag in tags:
        y += 4.5
        document.write(tag, x + PAD, y, 8.5, DOUBT, bold=True)
    for label, probability in result.probabilities.items():
        y += 6.2
        likely = label == result.prediction and not tags
        document.write(label, x + PAD, y, 8.5, text, bold=likely)
        start, length = x + 26, width - 26 - 17
        document.box(start, y - 2.6, length, 3.1, LINE)
        document.box(start, y - 2.6, max(length * probability, 0.01), 3.1, colour)
        document.write(f"{100 * probability:.1f}%", x + width - PAD, y, 8.5, text, bold=likely, align="right")
    y += 7
    for line in (*notes, _known(result), _shortened(f"Checkpoint {result.checkpoint}", room, 8)):
        document.write(line, x + PAD, y, 8, MUTED)
        y += 4.2


def _known(result: Finding) -> str:
    auc, interval = result.validation.get("auc"), result.validation.get("auc_ci95")
    if not isinstance(auc, int | float):
        return "No measured AUC comes with this checkpoint"
    spread = f" (95% CI {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    return f"Measured AUC {auc:.2f}{spread}"


def _slices(
    document: _Document,
    canonical: Scan,
    task: Task,
    name: str,
    result: Finding,
    window: Window,
    scan: Scan,
    lesion: np.ndarray | None,
    bounds: np.ndarray,
    height: float,
) -> None:
    """The slice where a model's map peaks: alone, under the map, and where the region is a small part, whole."""
    saliency, start = result.map.values, result.region.bounds[:, 0]
    axes = AXES[task.plane]
    along = axes[0][0]
    peak = int(start[along] + np.unravel_index(int(saliency.argmax()), saliency.shape)[along])
    whole = np.array([(0, count) for count in canonical.shape])
    margin = np.ceil(MARGIN * (bounds[:, 1] - bounds[:, 0])).astype(int)
    field = np.stack(
        [np.maximum(bounds[:, 0] - margin, 0), np.minimum(bounds[:, 1] + margin, canonical.shape)], axis=-1
    )
    near = _View(axes, peak, field, canonical.spacing)
    full = _View(axes, peak, whole, canonical.spacing)
    views = [near, near]
    if np.prod(near.size_mm) < 0.5 * np.prod(full.size_mm):
        views = [full, near, near]
    most = float(saliency.max())
    label = f"{short_label(name, result.title)} {METHOD_LABELS[result.map.method]}"
    facts = f"{task.plane} slice {peak + 1} of {canonical.shape[along]}, which holds the map's maximum"
    weighted = int(np.argmax(result.map.profile))
    if weighted != peak:
        facts += f" (most weighted: slice {weighted + 1})"
    document.y += 1
    document.paragraph(f"{label}: {facts}", 8.5, bold=True, after=1.5)
    top, gap, bar = document.y, 3.0, 20.0
    room = RIGHT - LEFT - bar - gap * (len(views) - 1)
    # All pictures of a row are equally high, so that their edges are in line.
    drawn = min(height, room / sum(view.size_mm[0] / view.size_mm[1] for view in views))
    x = LEFT
    for number, view in enumerate(views):
        wide, high = view.size_mm
        axes_here = document.axes(x, top, drawn * wide / high, drawn)
        _grey(axes_here, view, canonical, window)
        if number == len(views) - 1:
            plane = view.cut(saliency, start) / (most or 1.0)
            axes_here.imshow(
                _coloured(plane, SHOWN_FROM), extent=(0, wide, high, 0), interpolation="bilinear"
            )
        if lesion is not None and view.cut(lesion).any():
            _outline(axes_here, view, lesion)
        if view is full:
            left, up, across, down = view.box_mm(bounds)
            for colour, linewidth in (("black", 1.6), ("white", 0.8)):
                axes_here.add_patch(Rectangle((left, up), across, down, fill=False, ec=colour, lw=linewidth))
        _marks(axes_here, view)
        x += drawn * wide / high + gap
    _colour_bar(document, x, top, drawn, SHOWN_FROM)
    document.y = top + drawn + 1


def _grey(axes: Axes, view: _View, canonical: Scan, window: Window) -> None:
    wide, high = view.size_mm
    axes.imshow(
        view.cut(canonical.voxels),
        cmap="gray",
        vmin=window.low,
        vmax=window.high,
        extent=(0, wide, high, 0),
        interpolation="bilinear",
    )
    axes.set(xlim=(0, wide), ylim=(high, 0), aspect="auto")


def _coloured(share: np.ndarray, cut: float) -> np.ndarray:
    """A map's colours, RGBA [rows, columns, 4]: nothing below the cut, then more opaque as the map grows."""
    colours = MAP(share)
    above = (share - cut) / max(1 - cut, 1e-6)
    colours[..., 3] = np.where(
        (share >= cut) & (share > 0), OPACITY * np.minimum(1, 0.35 + 1.6 * np.maximum(above, 0)), 0
    )
    return colours


def _outline(axes: Axes, view: _View, lesion: np.ndarray) -> None:
    plane = view.cut(lesion).astype(np.float32)
    wide, high = view.size_mm
    rows, columns = plane.shape
    x = (np.arange(columns) + 0.5) * wide / columns
    y = (np.arange(rows) + 0.5) * high / rows
    # White on a dark edge, to be seen on lung and bone alike.
    for colour, linewidth in (("black", 1.6), ("white", 0.8)):
        axes.contour(x, y, plane, levels=[0.5], colors=colour, linewidths=linewidth)


def _marks(axes: Axes, view: _View) -> None:
    """The patient's directions and a scale bar."""
    wide, high = view.size_mm
    left, right, top, bottom = view.letters
    places = (
        (0.025, 0.5, left, "left", "center"),
        (0.975, 0.5, right, "right", "center"),
        (0.5, 0.975, top, "center", "top"),
        (0.5, 0.025, bottom, "center", "bottom"),
    )
    back = {"facecolor": "black", "alpha": 0.45, "edgecolor": "none", "pad": 1.0}
    for x, y, letter, ha, va in places:
        axes.text(
            x, y, letter, ha=ha, va=va, transform=axes.transAxes, fontsize=7.5, color="white", bbox=back
        )
    length = max((mm for mm in (1, 2, 5, 10, 20, 50, 100) if mm <= 0.35 * wide), default=wide / 4)
    x, y = 0.04 * wide, 0.955 * high
    for colour, linewidth in (("black", 3.0), ("white", 1.6)):
        axes.plot([x, x + length], [y, y], color=colour, linewidth=linewidth, solid_capstyle="butt")
    axes.text(
        x,
        y - 0.02 * high,
        f"{length:g} mm",
        ha="left",
        va="bottom",
        fontsize=6.5,
        color="white",
        bbox=back,
    )


def _colour_bar(document: _Document, x: float, y: float, height: float, cut: float) -> None:
    """Colours against the part of the map's maximum."""
    axes = document.axes(x, y, 3.5, height)
    share = np.linspace(1, 0, 256)[:, None]
    colours = MAP(share)
    colours[share < cut] = (1, 1, 1, 1)
    axes.imshow(colours, extent=(0, 1, 0, 1), aspect="auto", interpolation="nearest")
    axes.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec=MUTED, lw=0.6, transform=axes.transAxes))
    ticks = [(1.0, "maximum"), (0.0, "0"), (cut, f"{100 * cut:.0f}%")]
    for at, text in ticks:
        axes.text(1.3, at, text, fontsize=6.5, color=MUTED, va={1.0: "top", 0.0: "bottom"}.get(at, "center"))


def _details(
    document: _Document, record: Mapping[str, Any], scan: Scan, results: Mapping[str, Finding]
) -> None:
    """The second page: scan, region, agreement with a mask, models and software."""
    document.y -= 6
    facts = record["scan"]
    first = next(iter(results.values()))
    canonical = scan.canonical()
    document.heading("Scan and region")
    rows = [
        ("Scan", document.name),
        ("Voxels", " × ".join(str(n) for n in facts["shape"])),
        ("Spacing", " × ".join(f"{s:g}" for s in facts["spacing_mm"]) + " mm"),
        ("Axes", f"{scan.orientation}" + (f", {scan.modality}" if scan.modality else "")),
        ("Region", first.spot.text + " Coordinates are RAS: x to the patient's right, y front, z head."),
    ]
    for name, result in results.items():
        size = (result.region.bounds[:, 1] - result.region.bounds[:, 0]) * canonical.spacing
        extent = " × ".join(f"{mm:.0f}" for mm in size)
        rows.append(
            (
                f"Seen by {short_label(name, result.title)}",
                f"{extent} mm (right to left, back to front, foot to head)",
            )
        )
    document.rows(rows, (LEFT, 52))
    # Those that say that nothing here is to be trusted stand beside the answers.
    unsaid = [note for note in facts["notes"] if note not in facts["warnings"]]
    if notes := [*record["notes"], *unsaid]:
        document.heading("Notes")
        for note in notes:
            document.write("•", LEFT, document.y + 1.45 * 8.5 * POINT, 8.5, MUTED)
            document.paragraph(str(note), x=LEFT + 4, after=0.8)
    if any(result.metrics for result in results.values()):
        document.heading("Against the lesion mask")
        table = [("", *(short_label(name, result.title) for name, result in results.items()))]
        for key, label in MEASURES.items():
            table.append((label, *(measured(key, (r.metrics or {}).get(key)) for r in results.values())))
        document.rows(table, (LEFT, *(120 + 37 * number for number in range(len(results)))))
    document.heading("Models")
    for name, result in results.items():
        document.y += 1
        document.paragraph(result.title or LABELS[name], 9, COLOURS[name], bold=True, after=0.5)
        protocol = clipped(result.validation.get("protocol", ""))
        rows = [
            ("Checkpoint", result.checkpoint),
            ("Saliency", f"{METHOD_LABELS[result.map.method]}, {result.seconds:.2f} s with the prediction"),
            ("Performance", _known(result) + (f": {protocol}" if protocol else "")),
        ]
        document.rows(rows, (LEFT, 52), size=8)
    document.heading("How to read this")
    document.paragraph(HOW_TO_READ, 8.5)
    document.paragraph(f"{SOFTWARE}, version {mst.__version__}.", 8.5, MUTED)


def _lines(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Text broken at spaces, and within words that are wider than the line.

    Each letter is measured once, so that a text of twice the length takes twice the time, whatever is in it.
    """
    room = width / (size * POINT)
    lines: list[str] = []
    line: list[str] = []
    used = 0.0
    space = _advance(" ", bold)
    for word in clipped(text).split(" "):
        advances = [_advance(letter, bold) for letter in word]
        wide = sum(advances)
        if line and used + space + wide <= room:
            line += [" ", word]
            used += space + wide
            continue
        if line:
            lines.append("".join(line))
        if wide <= room:
            line, used = [word], wide
            continue
        line, used = [], 0.0
        for letter, advance in zip(word, advances, strict=True):
            if line and used + advance > room:
                lines.append("".join(line))
                line, used = [], 0.0
            line.append(letter)
            used += advance
    return [*lines, "".join(line)]


def _shortened(text: str, width: float, size: float, bold: bool = False) -> str:
    """Text on one line, cut at the end where it is wider."""
    text = clipped(text)
    ends = np.cumsum([_advance(letter, bold) for letter in text]) * size * POINT
    if not text or ends[-1] <= width:
        return text
    fits = int(np.searchsorted(ends, width - _advance("…", bold) * size * POINT, side="right"))
    return text[:fits] + "…"


@lru_cache(maxsize=4096)
def _advance(letter: str, bold: bool) -> float:
    """How far a letter moves the line on, as a part of the font's size; kerning, which mostly saves room, left out."""
    font = get_font(findfont(FontProperties(family=FONT, weight="bold" if bold else "normal")))
    if not font.get_char_index(ord(letter)):
        return MISSING
    font.set_size(100, 72)
    return font.load_char(ord(letter), flags=LoadFlags.NO_HINTING).linearHoriAdvance / 65536 / 100
