"""What is drawn in the PDF report: slices under a map's colours, maps slice by slice, and bars.

Pixels are made with numpy and Pillow, all else is ReportLab's lines and letters. Neither keeps anything between two
drawings, so threads can make reports at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from PIL import Image
from reportlab.lib.colors import HexColor
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable
from scipy.ndimage import binary_dilation, binary_erosion

from mst.findings import SaliencyMap
from mst.letters import MUTED, TEXT, style, write
from mst.preprocess import AXES
from mst.scans import Scan
from mst.scans.boxes import on_box
from mst.tasks import Plane, Window
from mst.words import SHOWN_FROM

LINE, BLACK, WHITE = "#d5dae2", "#000000", "#ffffff"
NAME, SMALL = style(7.5), style(6.5, MUTED)
GAP, SCALE = 3 * mm, 20 * mm  # between pictures; the colour bar with what is beside it
LANE, NAMES = 8.5 * mm, 30 * mm  # a model's bars in the chart of slices; what is to the left of them
DOTS_PER_POINT = 200 / 72
MARGIN = 0.2  # round the region, as a part of it
OPACITY = 0.6  # of a map, as the viewer first shows one
MAP = colormaps["viridis"]
# The letters at both ends of a canonical axis: where its index grows to, and where it comes from.
LETTERS = ("RL", "AP", "SI")


def seen(volume: np.ndarray, plane: Plane) -> np.ndarray:
    """A canonical volume [x, y, z] as [slices, rows, columns]: radiological convention, rows downwards."""
    flips = tuple(slice(None, None, -1 if flip else 1) for _, flip in AXES[plane])
    return volume.transpose([axis for axis, _ in AXES[plane]])[flips]


def letters(plane: Plane) -> str:
    """The patient's directions at the left, right, upper and lower edge of a slice."""
    _, (row, row_flip), (column, column_flip) = AXES[plane]
    return LETTERS[column][:: 1 if column_flip else -1] + LETTERS[row][:: 1 if row_flip else -1]


def peak(shown: SaliencyMap) -> int:
    """The canonical slice, in the study's plane, that holds a map's maximum."""
    along = AXES[shown.region.plane][0][0]
    inside = np.unravel_index(int(shown.values.argmax()), shown.values.shape)[along]
    return int(shown.region.bounds[along, 0] + inside)


class Drawn(Flowable):
    """What a function draws, from (0, 0) to the width and height in points."""

    def __init__(self, width: float, height: float, drawing: Callable[[Canvas], None]) -> None:
        super().__init__()
        self.width, self.height, self._drawing = width, height, drawing

    def draw(self) -> None:
        self._drawing(self.canv)


@dataclass(frozen=True)
class Pictures:
    """The pictures of one report.

    Attributes:
        scan: canonical.
        plane: of its slices.
        window: that it is shown in.
        lesion: a mask, bool on the canonical scan; None: there is none.
        bounds: int [3, 2], the canonical voxels of all the models' regions together.
    """

    scan: Scan
    plane: Plane
    window: Window
    lesion: np.ndarray | None
    bounds: np.ndarray

    def boxes(self, at: int) -> list[np.ndarray]:
        """What is drawn of a slice: twice what is in and round the region, first all of it where that is far more.

        Returns:
            int [3, 2] each, canonical voxels, one along the slices.
        """
        along = AXES[self.plane][0][0]
        margin = np.ceil(MARGIN * np.ptp(self.bounds, axis=1)).astype(int)[:, None]
        part = np.clip(self.bounds + margin * (-1, 1), 0, np.array(self.scan.shape)[:, None])
        whole = np.array([(0, count) for count in self.scan.shape])
        part[along] = whole[along] = at, at + 1
        far_more = np.prod(self.size_mm(part)) < 0.5 * np.prod(self.size_mm(whole))
        return [whole, part, part] if far_more else [part, part]

    def size_mm(self, box: np.ndarray) -> tuple[float, float]:
        """Width and height of what is drawn."""
        size = np.ptp(box, axis=1) * self.scan.spacing
        _, (row, _), (column, _) = AXES[self.plane]
        return float(size[column]), float(size[row])

    def highest(self, width: float) -> float:
        """How high the pictures of a slice are where they fill a width, in points."""
        sizes = [self.size_mm(box) for box in self.boxes(0)]
        return (width - SCALE - GAP * (len(sizes) - 1)) / sum(wide / high for wide, high in sizes)

    def slices(self, shown: SaliencyMap, width: float, height: float) -> Drawn:
        """The slice where a map peaks, alone and under the map, and what the map's colours mean."""
        boxes = self.boxes(peak(shown))
        share = shown.values / (float(shown.values.max()) or 1.0)
        region = np.ones(np.ptp(self.bounds, axis=1))

        def draw(canvas: Canvas) -> None:
            x = 0.0
            for number, box in enumerate(boxes, start=1):
                outlined = [] if self.lesion is None else [on_box(self.lesion, (0, 0, 0), box)]
                if number < len(boxes) - 1:
                    outlined.append(on_box(region, self.bounds[:, 0], box))
                over = on_box(share, shown.region.bounds[:, 0], box) if number == len(boxes) else None
                wide_mm, high_mm = self.size_mm(box)
                wide = height * wide_mm / high_mm
                rows = round(height * DOTS_PER_POINT)
                pixels = self.pixels(box, (max(1, round(wide * DOTS_PER_POINT)), rows), over, outlined)
                canvas.drawImage(ImageReader(_image(pixels)), x, 0, wide, height)
                _marks(canvas, letters(self.plane), wide_mm, x, wide, height)
                x += wide + GAP
            _colours(canvas, x, height)

        return Drawn(width, height, draw)

    def pixels(
        self, box: np.ndarray, size: tuple[int, int], share: np.ndarray | None, outlined: Sequence[np.ndarray]
    ) -> np.ndarray:
        """A part of a slice in its window, from 0 to 1: [rows, columns], with a map [rows, columns, 3].

        Args:
            box: its canonical voxels.
            size: columns and rows.
            share: a map in the box as parts of its maximum; None: the scan alone.
            outlined: volumes in the box, each not 0 within.
        """

        def drawn(volume: np.ndarray) -> np.ndarray:
            image = Image.fromarray(np.ascontiguousarray(seen(volume, self.plane)[0], np.float32))
            return np.asarray(image.resize(size, Image.Resampling.BILINEAR))

        low, high = self.window.low, self.window.high
        pixels = np.clip((drawn(on_box(self.scan.voxels, (0, 0, 0), box)) - low) / (high - low), 0, 1)
        if share is not None:
            over = drawn(share)
            # Nothing below the threshold, then more opaque as the map grows.
            above = (over - SHOWN_FROM) / (1 - SHOWN_FROM)
            opacity = OPACITY * np.where(above >= 0, np.minimum(1, 0.35 + 1.6 * above), 0)[..., None]
            pixels = (1 - opacity) * pixels[..., None] + opacity * MAP(over)[..., :3]
        for volume in outlined:
            inside = drawn(volume)
            inside = (inside > 0) & (inside >= 0.5 * inside.max())  # something is left of a single voxel, too
            # White on a dark edge, to be seen on lung and bone alike.
            pixels[binary_dilation(inside, iterations=3) & ~binary_erosion(inside)] = 0
            pixels[binary_dilation(inside, iterations=2) & ~inside] = 1
        return pixels

    def profiles(self, lanes: Sequence[tuple[str, str, SaliencyMap]], width: float) -> Drawn:
        """How much each slice of the scan counts, as bars; the one that holds the map's maximum is darker.

        Args:
            lanes: a model's name, its colour and its map.
        """
        along = AXES[self.plane][0][0]
        count = self.scan.shape[along]
        step, height = (width - NAMES) / count, len(lanes) * LANE + 10
        ill = () if self.lesion is None else np.flatnonzero(np.moveaxis(self.lesion, along, 0).any((1, 2)))

        def draw(canvas: Canvas) -> None:
            for s in ill:
                _fill(canvas, NAMES + s * step, 10, step, height - 10, LINE)
            for number, (name, colour, shown) in enumerate(lanes, start=1):
                bottom = height - number * LANE
                kind = "map's maximum" if shown.slice_weights is None else "slice weights"
                write(canvas, 0, bottom + LANE - 10, name, NAME)
                write(canvas, 0, bottom + LANE - 19, kind, SMALL)
                profile, top = shown.profile, peak(shown)
                for s in np.flatnonzero(profile > 0):
                    high, solid = 0.88 * LANE * float(profile[s] / profile.max()), 1.0 if s == top else 0.5
                    _fill(canvas, NAMES + (s + 0.12) * step, bottom, 0.76 * step, high, colour, solid)
                _fill(canvas, NAMES, bottom - 0.25, width - NAMES, 0.5, MUTED)
            every = next(n for n in (5, 10, 20, 50, 100, 200, 500, count) if count <= 10 * n)
            for s in (1, *range(every, count + 1, every)):
                write(canvas, NAMES + (s - 0.5) * step, 1, str(s), SMALL, align=0.5)
            write(canvas, 0, 1, f"{self.plane} slice", SMALL)

        return Drawn(width, height, draw)


def bar(width: float, share: float, colour: str, between: tuple[float, float] | None) -> Drawn:
    """A probability, and as a thin line between which it lies."""

    def draw(canvas: Canvas) -> None:
        _fill(canvas, 0, 0, width, 8, LINE)
        _fill(canvas, 0, 0, width * share, 8, colour)
        if between:
            low, high = width * between[0], width * between[1]
            _line(canvas, [(low, 4, high, 4), (low, 2, low, 6), (high, 2, high, 6)], TEXT, WHITE, 0.8)

    return Drawn(width, 8, draw)


def _marks(canvas: Canvas, ends: str, wide_mm: float, x: float, wide: float, high: float) -> None:
    """The patient's directions and a scale bar on a picture."""
    middle, half = x + wide / 2, high / 2 - 2.7
    places = ((x + 6, half), (x + wide - 6, half), (middle, high - 8.5), (middle, 4.0))
    texts = [(*place, letter, style(7.5, WHITE)) for place, letter in zip(places, ends, strict=True)]
    length = max((n for n in (1, 2, 5, 10, 20, 50, 100) if n <= 0.35 * wide_mm), default=wide_mm / 4)
    end = x + 5 + length * wide / wide_mm
    _line(canvas, [(x + 5, 5, end, 5)], WHITE, BLACK, 1.4)
    for at, y, text, look in (*texts, ((x + 5 + end) / 2, 9.5, f"{length:g} mm", style(6.5, WHITE))):
        room = stringWidth(text, look.fontName, look.fontSize) + 3
        _fill(canvas, at - room / 2, y - 2, room, 1.3 * look.fontSize, BLACK, 0.45)
        write(canvas, at, y, text, look, align=0.5)


def _colours(canvas: Canvas, x: float, high: float) -> None:
    """Colours against the part of the map's maximum; hatched where nothing is drawn."""
    share = np.linspace(1, 0, 400)[:, None] * np.ones(28)
    hatched = np.where(np.add.outer(np.arange(400), np.arange(28)) % 12 < 2, 0.6, 1.0)[..., None]
    pixels = np.where(share[..., None] < SHOWN_FROM, hatched, MAP(share)[..., :3])
    wide = 3.5 * mm
    canvas.drawImage(ImageReader(_image(pixels)), x, 0, wide, high)
    canvas.setStrokeColor(HexColor(MUTED))
    canvas.setLineWidth(0.5)
    canvas.rect(x, 0, wide, high, fill=0)
    for y, text in ((high - 6, "maximum"), (SHOWN_FROM * high - 2.3, f"{100 * SHOWN_FROM:.0f}%"), (1, "0")):
        write(canvas, x + wide + 3, y, text, SMALL)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * pixels + 0.5).astype(np.uint8))


def _fill(
    canvas: Canvas, x: float, y: float, wide: float, high: float, colour: str, alpha: float = 1
) -> None:
    canvas.setFillColor(HexColor(colour), alpha)
    canvas.rect(x, y, wide, high, stroke=0, fill=1)


def _line(canvas: Canvas, lines: Sequence[Sequence[float]], colour: str, edge: str, width: float) -> None:
    """Lines with an edge of another colour, to be seen on any ground."""
    for ink, wide in ((edge, width + 1.2), (colour, width)):
        canvas.setStrokeColor(HexColor(ink))
        canvas.setLineWidth(wide)
        canvas.lines(lines)
