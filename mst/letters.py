"""The letters of the PDF report: fonts that know more than western ones, and how text is written in them."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Lock
from typing import Any

import matplotlib
from reportlab.lib.colors import HexColor
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfbase.pdfmetrics import registerFont, stringWidth
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

TEXT, MUTED = "#171b24", "#4c5566"
FONT, BOLD = "DejaVu Sans", "DejaVu Sans Bold"
FILES = {FONT: "DejaVuSans.ttf", BOLD: "DejaVuSans-Bold.ttf"}  # they come with Matplotlib
_LETTERS = r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]+"
_RIGHT_TO_LEFT = re.compile(rf"{_LETTERS}(?: {_LETTERS})*")


class _Glyphs(dict[int, int]):
    """A font's glyphs by letter; one that it lacks has the glyph that says so, and can be searched all the same."""

    def __contains__(self, letter: object) -> bool:
        return True

    def __missing__(self, letter: int) -> int:
        return 0


class _SharedFont(TTFont):
    """A font of several documents at once.

    ReportLab keeps each document's letters apart, but cuts them out of the font's file with one reading position for
    all of them. So one document at a time does that, which takes milliseconds; nothing else of a report needs a lock.
    """

    cutting = Lock()

    def __init__(self, name: str, file: Path) -> None:
        super().__init__(name, str(file))
        self.face.charToGlyph = _Glyphs(self.face.charToGlyph)

    def addObjects(self, doc: Any) -> None:  # noqa: N802
        with self.cutting:
            super().addObjects(doc)
        for name, made in doc.idToObject.items():
            if name.startswith("toUnicodeCMap:"):  # where a letter beyond 16 bits must be two halves
                made.content = re.sub(r"<(\w{5,6})>", _halves, made.content)


def _halves(code: re.Match[str]) -> str:
    return f"<{chr(int(code[1], 16)).encode('utf-16-be').hex()}>"


for _name, _file in FILES.items():
    registerFont(_SharedFont(_name, Path(matplotlib.get_data_path(), "fonts", "ttf", _file)))


def style(size: float, colour: str = TEXT, *, bold: bool = False, **more: Any) -> ParagraphStyle:
    """How text looks; `more` are ReportLab's own settings."""
    font = BOLD if bold else FONT
    given: dict[str, Any] = {"leading": 1.4 * size, "spaceShrinkage": 0, "bulletFontSize": size} | more
    return ParagraphStyle(
        "", fontName=font, bulletFontName=font, fontSize=size, textColor=HexColor(colour), **given
    )


def in_order(text: str) -> str:
    """Text as it is drawn from the left: words that run from right to left turned round, since ReportLab does not."""
    return _RIGHT_TO_LEFT.sub(lambda words: words[0][::-1], text)


def write(canvas: Canvas, x: float, y: float, text: str, look: ParagraphStyle, align: float = 0) -> None:
    """One line of text whose baseline is at y; x is its left end, or with `align` 0.5 or 1 its middle or right end."""
    canvas.setFont(look.fontName, look.fontSize)
    canvas.setFillColor(look.textColor)
    canvas.drawString(x - align * stringWidth(text, look.fontName, look.fontSize), y, text)
