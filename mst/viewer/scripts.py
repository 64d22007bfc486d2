"""The viewers' scripts: ES modules here, one script in a page, which then needs no other file."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Each after those that it imports.
MODULES = (
    "slices",
    "page",
    "source",
    "panel",
    "chart",
    "solid",
    "projection",
    "gif",
    "save",
    "controls",
    "viewer",
    "start",
)
IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export ((?:async )?function|class|const) (\w+)", re.MULTILINE)


@cache
def script() -> str:
    """All modules as one script. A page that holds it twice runs it once; `MstViewer` is what they export."""
    parts = []
    for name in MODULES:
        text = (HERE / f"{name}.js").read_text(encoding="utf-8")
        exported = ", ".join(name for _, name in EXPORT.findall(text))
        text = EXPORT.sub(r"\1 \2", IMPORT.sub(r"const \1 = modules.\2;", text))
        parts.append(f"modules.{name} = (() => {{\n{text}return {{ {exported} }};\n}})();\n")
    return (
        '(() => {\n"use strict";\nif (window.MstViewer) return;\nconst modules = {};\n'
        + "".join(parts)
        + "window.MstViewer = Object.assign({}, ...Object.values(modules));\n})();\n"
    )
