"""One region of a scan through any number of models: their answers, and the maps of what these rest on."""

from mst.findings.checkpoints import (
    MODELS,
    cached_model,
    check_study,
    checkpoints_for,
    resolve_checkpoints,
)
from mst.findings.finding import Finding, Prediction, SaliencyMap, Spot
from mst.findings.pipeline import find, predict
from mst.findings.spots import as_mask, choose_spot

__all__ = [
    "MODELS",
    "Finding",
    "Prediction",
    "SaliencyMap",
    "Spot",
    "as_mask",
    "cached_model",
    "check_study",
    "checkpoints_for",
    "choose_spot",
    "find",
    "predict",
    "resolve_checkpoints",
]
