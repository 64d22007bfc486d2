"""Explainable classification of 3D scans: the Medical Slice Transformer beside a 3D ResNet.

>>> import mst
>>> sorted(mst.TASKS)
['breast-mri', 'chest-ct', 'knee-mri']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mst.findings import Finding, Prediction, SaliencyMap, find, predict
    from mst.models import CheckpointError, load_model
    from mst.saliency import Explanation, explain
    from mst.scans import Scan, ScanError, read_mask, read_scan
    from mst.tasks import TASKS

__version__ = "0.1.0"
__all__ = [
    "TASKS",
    "CheckpointError",
    "Explanation",
    "Finding",
    "Prediction",
    "SaliencyMap",
    "Scan",
    "ScanError",
    "explain",
    "find",
    "load_model",
    "predict",
    "read_mask",
    "read_scan",
]

# Loaded when first used: torch and transformers take seconds, and `mst --help` needs neither.
_HOMES = {
    "TASKS": "mst.tasks",
    "CheckpointError": "mst.models",
    "load_model": "mst.models",
    "Finding": "mst.findings",
    "Prediction": "mst.findings",
    "SaliencyMap": "mst.findings",
    "find": "mst.findings",
    "predict": "mst.findings",
    "Explanation": "mst.saliency",
    "explain": "mst.saliency",
    "Scan": "mst.scans",
    "ScanError": "mst.scans",
    "read_mask": "mst.scans",
    "read_scan": "mst.scans",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mst' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
