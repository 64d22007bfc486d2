"""The models, and how a checkpoint folder or hub repository becomes one of them."""

from mst.errors import CheckpointError
from mst.models.base import ScanClassifier
from mst.models.loading import checkpoint_metrics, list_checkpoints, load_model
from mst.models.resnet3d import ResNet3D
from mst.models.resnet_slices import ResNetSliceTransformer
from mst.models.slice_transformer import SliceTransformer

__all__ = [
    "CheckpointError",
    "ResNet3D",
    "ResNetSliceTransformer",
    "ScanClassifier",
    "SliceTransformer",
    "checkpoint_metrics",
    "list_checkpoints",
    "load_model",
]
