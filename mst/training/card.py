"""The model card of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mst.models.base import ScanClassifier


def write_card(model: ScanClassifier, config: dict[str, Any], metrics: dict[str, Any], folder: Path) -> Path:
    path = folder / "README.md"
    path.write_text("", encoding="utf-8")
    return path
