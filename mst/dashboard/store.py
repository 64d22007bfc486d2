"""What the page keeps in memory: the scans opened last and each session's last result, within a limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock

import numpy as np

from mst.dashboard.work import read_scan
from mst.prediction import Prediction
from mst.scans import Scan, ScanError, subtract
from mst.tasks import Task

MAX_SCAN_BYTES = 1_500_000_000
MAX_RESULTS = 12
WHOLE_SCANS = (".nii", ".nii.gz", ".nrrd", ".mha", ".zip")

# A scan, its study, each model's prediction and the lesion mask, as `write_results` takes them.
Result = tuple[Scan, Task, Mapping[str, Prediction], np.ndarray | None]
_scans: OrderedDict[tuple, Scan] = OrderedDict()
_results: OrderedDict[str, Result] = OrderedDict()
_lock = Lock()


def open_scan(files: Sequence[str], task: Task, pre: Sequence[str] = ()) -> Scan:
    """The scan in the uploaded files; for breast MRI, minus the pre-contrast scan where one is given.

    Two volumes uploaded together for breast MRI are taken for the post- and the pre-contrast scan; the one
    with "pre" in its name is the pre-contrast one.

    Raises:
        ScanError: the files hold no usable scan.
    """
    if not files:
        raise ScanError("Choose a scan first: drop a file, a zip or all files of a DICOM series.")
    if not pre and task.key == "breast-mri" and len(files) == 2:
        files, pre = _split_contrast(files)
    key = (_identity(files), _identity(pre))
    with _lock:
        if key in _scans:
            _scans.move_to_end(key)
            return _scans[key]
    scan = read_scan(list(files) if len(files) > 1 else files[0])
    if pre:
        scan = subtract(scan, read_scan(list(pre) if len(pre) > 1 else pre[0]))
    with _lock:
        _scans[key] = scan
        while len(_scans) > 1 and sum(kept.voxels.nbytes for kept in _scans.values()) > MAX_SCAN_BYTES:
            _scans.popitem(last=False)
    return scan


def belong_together(before: Sequence[str], new: Sequence[str], task: Task) -> bool:
    """Whether files uploaded later add to those already there, rather than being another scan.

    Slices of a DICOM series and a header with its data do; a volume or a zip is a scan of its own, except for
    the second of two breast MRI scans (before and after contrast).
    """
    whole = [file for file in (*before, *new) if file.lower().endswith(WHOLE_SCANS)]
    if task.key == "breast-mri" and len(before) == len(new) == 1:
        return True
    return not before or not whole


def remember(session: str, result: Result) -> None:
    """Keeps a session's last result for its downloads."""
    with _lock:
        _results[session] = result
        _results.move_to_end(session)
        while len(_results) > MAX_RESULTS:
            _results.popitem(last=False)


def recall(session: str) -> Result | None:
    """The session's last result; None when there is none, or too many came after it."""
    with _lock:
        return _results.get(session)


def _split_contrast(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """(post, pre) of two uploaded volumes; both in the first list where the names do not tell."""
    named = [file for file in files if "pre" in Path(file).name.lower()]
    if len(named) != 1:
        return list(files), []
    return [file for file in files if file not in named], named


def _identity(files: Sequence[str]) -> tuple:
    return tuple((file, Path(file).stat().st_mtime_ns, Path(file).stat().st_size) for file in files)
