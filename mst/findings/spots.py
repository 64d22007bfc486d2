"""Where the models are to look, and the mask that may say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mst.errors import InputError
from mst.findings.finding import ChosenBy, Spot
from mst.preprocess import mask_centroid, side_center
from mst.scans import Scan, ScanError, read_mask
from mst.tasks import Task


def choose_spot(
    scan: Scan,
    task: Task,
    center: Sequence[float] | None = None,
    mask: np.ndarray | None = None,
    side: str | None = None,
) -> Spot:
    """Decides where the models look: a given centre, else the mask's centroid, else a side, else the middle.

    Raises:
        ScanError: the given centre lies outside the scan.
        InputError: a side that the study does not offer, or a centre that is not three finite numbers.
    """
    if center is not None:
        point = np.asarray(center, float)
        if point.shape != (3,) or not np.isfinite(point).all():
            raise InputError("center must be three numbers: x, y, z in millimetres (RAS)")
        if not scan.contains(point):
            raise ScanError(
                f"The spot ({_millimetres(point)}) lies outside the scan, whose centre is at "
                f"({_millimetres(scan.center)})."
            )
        return _spot(point, "given", "the chosen spot")
    if mask is not None:
        return _spot(mask_centroid(mask, scan), "mask", "the centre of the lesion mask")
    if side:
        if side not in task.sides:
            raise InputError(
                f"{task.title} offers no side {side!r}"
                + (f"; choose {' or '.join(task.sides)}." if task.sides else ".")
            )
        return _spot(side_center(scan, side), "side", f"the middle of the patient's {side} half")
    return _spot(scan.center, "scan centre", "the centre of the scan, since no spot was chosen")


def as_mask(
    mask: np.ndarray | str | Path, scan: Scan, tell: Callable[[str], None] = lambda sentence: None
) -> np.ndarray:
    """A mask as bool on the scan's grid.

    Args:
        mask: an array, or a file.
        scan: that it was drawn on.
        tell: called with a sentence for what had to be decided, such as that several segments are taken together.

    Raises:
        ScanError: it is empty, or does not fit the scan.
    """
    if not isinstance(mask, np.ndarray):
        return read_mask(mask, scan, tell=tell)
    if mask.shape != scan.shape:
        raise ScanError(
            f"The mask has {_voxels(mask.shape)} voxels, the scan {_voxels(scan.shape)}; they must agree."
        )
    if not np.any(mask):
        raise ScanError("The mask is empty: it marks no voxel.")
    return mask.astype(bool)


def _spot(point: np.ndarray, chosen_by: ChosenBy, text: str) -> Spot:
    x, y, z = (round(float(v), 3) for v in point)
    return Spot((x, y, z), chosen_by, f"The models looked at {text}, ({_millimetres(point)}).")


def _millimetres(point: np.ndarray) -> str:
    return ", ".join(f"{v:.1f}" for v in point) + " mm"


def _voxels(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)
