"""Reading scans and masks, as the rest of the project does it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mst.errors import ScanError
from mst.scans.decoding import decode_mask, decode_scan, names
from mst.scans.isolation import AVAILABLE, decoder
from mst.scans.resampling import onto
from mst.scans.scan import Scan


def read_scan(path: str | Path | Sequence[str | Path], *, thin: bool = False) -> Scan:
    """Reads one 3D scan, in a process of its own: a crafted file can crash a decoder, but not the program.

    Args:
        path: a NIfTI, NRRD, MetaImage or DICOM file, a folder, a .zip of any of these, or a list of files
            that belong together (the slices of a DICOM series, a header and its data).
        thin: take a volume of one to three slices too: enough to train on, too little to look at.

    Returns:
        The scan, float32, with rescale slope and intercept applied. What had to be decided (which of several
        series, the first of several volumes) is in its `notes`.

    Raises:
        ScanError: there is no usable 3D scalar volume; the message is one sentence for the user.
    """
    given = _given(path)
    return _decode("scan", given, names(given), thin=thin)


def read_mask(
    path: str | Path | Sequence[str | Path],
    scan: Scan,
    *,
    same_shape: bool = False,
    segment: str | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> np.ndarray:
    """Reads a lesion mask and brings it to a scan's grid (nearest neighbour).

    Args:
        path: as for `read_scan`.
        scan: that it was drawn on.
        same_shape: refuse a mask that does not have the scan's number of voxels along each axis: among many
            cases, a mask of another shape is more often a mixed-up file than one to be resampled.
        segment: of a DICOM segmentation the label or number of the only segment that counts; None: all together.
        tell: called with a sentence for what had to be decided, such as that several segments are taken together.

    Returns:
        bool, shape `scan.shape`; True where the file's value is above zero.

    Raises:
        ScanError: the file cannot be read, the mask is empty or of another shape, or it does not overlap the
            scan.
    """
    given = _given(path)
    try:
        mask = _decode("mask", given, names(given), segment=segment)
    except ScanError as error:
        raise ScanError(f"The mask cannot be used: {error}") from error
    for note in mask.notes:
        tell(note)
    if not np.any(mask.voxels > 0):
        raise ScanError(f"The mask {names(given)} is empty: it marks no voxel.")
    shapes = [" x ".join(map(str, volume.canonical().shape)) for volume in (mask, scan)]
    if same_shape and shapes[0] != shapes[1]:
        raise ScanError(
            f"The mask {names(given)} has {shapes[0]} voxels, its scan {shapes[1]}; they must agree."
        )
    marked = onto(mask, scan, order=0) > 0
    if not marked.any():
        raise ScanError(f"The mask {names(given)} does not overlap the scan; was it drawn on another one?")
    return marked


def _given(path: str | Path | Sequence[str | Path]) -> list[Path]:
    given = [Path(p) for p in ([path] if isinstance(path, str | Path) else path)]
    if not given:
        raise ScanError("No file was given.")
    return given


def _decode(kind: str, given: list[Path], called: str, **options: Any) -> Scan:
    if AVAILABLE:
        return decoder().decode(kind, given, called, **options)
    # No fork on Windows: the readers' own care has to do.
    with tempfile.TemporaryDirectory(prefix="scan-") as staging:
        return (decode_scan if kind == "scan" else decode_mask)(given, Path(staging), **options)
