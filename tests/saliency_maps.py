"""Maps for results that no model has made."""

import numpy as np

from mst.findings import SaliencyMap
from mst.preprocess import Region
from mst.scans import Scan


def saliency_map(scan: Scan, region: Region, native: np.ndarray, method: str = "attention") -> SaliencyMap:
    """A map that a model with a cell for each of its samples would give.

    Args:
        native: float32 [D, H, W], as the region.
    """
    return SaliencyMap(method, region, scan.affine, native, region.to_box(native))
