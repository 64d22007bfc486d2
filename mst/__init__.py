"""Explainable classification of 3D scans: the Medical Slice Transformer beside a 3D ResNet."""

from mst.models import CheckpointError, load_model
from mst.saliency import Explanation, explain
from mst.scan import Scan, ScanError, read_scan

__all__ = ["CheckpointError", "Explanation", "Scan", "ScanError", "explain", "load_model", "read_scan"]
