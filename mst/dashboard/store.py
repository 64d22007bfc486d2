"""What the page keeps in memory: scans and their slices, results until their files are written, each session's inputs.

Everything is bounded in bytes, expires when it is not used and goes with the session that it is for.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from sys import getsizeof
from tempfile import TemporaryDirectory
from threading import Lock, Timer
from typing import Any, NamedTuple

import numpy as np

from mst.dashboard.work import read_scan
from mst.findings import Finding
from mst.scans import Scan, ScanError, subtract
from mst.scans.hounsfield import USUAL_SHIFT, shifted
from mst.scans.resampling import split_contrast
from mst.tasks import Task
from mst.viewer import SliceStream, is_sent_whole

MAX_BYTES = 1_500_000_000
MAX_INPUT_BYTES = 16_000_000
LIFETIME_SECONDS = 3600.0
DAY_SECONDS = 24 * 3600.0
WHOLE_SCANS = (".nii", ".nii.gz", ".nrrd", ".mha", ".zip")

# A scan, its study, each model's prediction and the lesion mask, as `write_results` takes them.
Result = tuple[Scan, Task, Mapping[str, Finding], np.ndarray | None]


class Inputs(NamedTuple):
    """All that an answer depends on, as the page's fields say it."""

    files: tuple[str, ...]
    task: str
    center: str
    mask: str | None
    side: str | None
    pre: tuple[str, ...]
    mst: str | None
    resnet: str | None
    tta: bool
    interval: bool
    shift: bool


# A scan's files, the study's key and the pre-contrast scan's files.
Opened = tuple[Sequence[str] | None, str, Sequence[str] | None]


@dataclass
class _Entry:
    value: Any
    parts: dict[int, int]
    used: float
    sessions: set[str] = field(default_factory=set)


class Store:
    """Values by key, within a limit of bytes and for a time after their last use.

    Args:
        limit: bytes of all entries together; what several share counts once. The entry put last stays in any case.
        lifetime: seconds after its last use that an entry is let go.
        clock: seconds that never go back.
    """

    def __init__(self, limit: int, lifetime: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.lifetime = lifetime
        self.clock = clock
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = Lock()
        self._first = Lock()
        self._timer: Timer | None = None

    def __len__(self) -> int:
        self.expire()
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """What the entries take together."""
        with self._lock:
            return self._nbytes()

    def put(self, key: Hashable, value: Any, session: str | None = None) -> None:
        """Keeps a value; for a session, until that session ends."""
        entry = _Entry(value, dict(_parts(value, set())), self.clock())
        with self._lock:
            former = self._entries.pop(key, None)
            if former is not None:
                entry.sessions = former.sessions
            if session is not None:
                entry.sessions.add(session)
            self._entries[key] = entry
            self._expire()
            while len(self._entries) > 1 and self._nbytes() > self.limit:
                self._entries.popitem(last=False)
            self._wake()

    def get(self, key: Hashable, session: str | None = None) -> Any:
        """A key's value, which counts as a use, also for that session; None when there is none."""
        with self._lock:
            self._expire()
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            entry.used = self.clock()
            if session is not None:
                entry.sessions.add(session)
            return entry.value

    def put_first(self, key: Hashable, value: Any, session: str | None = None) -> bool:
        """Keeps a value unless the key has one already; whether it does now."""
        with self._first:
            if self.get(key, session) is not None:
                return False
            self.put(key, value, session)
            return True

    def take(self, key: Hashable) -> Any:
        """A key's value, which is not kept any longer; None when there is none."""
        with self._lock:
            self._expire()
            entry = self._entries.pop(key, None)
            return None if entry is None else entry.value

    def end(self, session: str) -> None:
        """Lets go what was kept for this session alone."""
        with self._lock:
            for key, entry in list(self._entries.items()):
                if session in entry.sessions:
                    entry.sessions.remove(session)
                    if not entry.sessions:
                        del self._entries[key]

    def expire(self) -> None:
        """Lets go what was not used for the lifetime."""
        with self._lock:
            self._expire()

    def _expire(self) -> None:
        limit = self.clock() - self.lifetime
        # The order is that of the last use.
        while self._entries and next(iter(self._entries.values())).used <= limit:
            self._entries.popitem(last=False)

    def _nbytes(self) -> int:
        return sum({part: n for entry in self._entries.values() for part, n in entry.parts.items()}.values())

    def _wake(self) -> None:
        """Entries expire also where nobody comes any more."""
        if self._timer is None and self._entries:
            oldest = next(iter(self._entries.values()))
            self._timer = Timer(max(1.0, oldest.used + self.lifetime - self.clock()), self._tick)
            self._timer.daemon = True
            self._timer.start()

    def _tick(self) -> None:
        with self._lock:
            self._timer = None
            self._expire()
            self._wake()


def _parts(value: Any, seen: set[int]) -> Iterator[tuple[int, int]]:
    """(identity, bytes) of everything that a value holds; arrays that are views of one memory are one part."""
    while isinstance(value, np.ndarray) and isinstance(value.base, np.ndarray):
        value = value.base
    if id(value) in seen or value is None or callable(value):
        return
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        yield id(value), value.nbytes
        return
    yield id(value), getsizeof(value, 0)
    if isinstance(value, Mapping):
        inner: list[Any] = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    else:
        inner = list(getattr(value, "__dict__", {}).values())
    for part in inner:
        yield from _parts(part, seen)


_kept = Store(MAX_BYTES, LIFETIME_SECONDS)
_first_shown = Lock()
# Apart, so that a large scan never makes a session forget what it has open.
_inputs = Store(MAX_INPUT_BYTES, LIFETIME_SECONDS)
# A folder goes with the last reference to it.
_folders = Store(MAX_INPUT_BYTES, DAY_SECONDS)


def open_scan(
    files: Sequence[str],
    task: Task,
    pre: Sequence[str] = (),
    session: str | None = None,
    *,
    shift: bool = False,
) -> Scan:
    """The scan in the uploaded files; for breast MRI, minus the pre-contrast scan where one is given.

    Two volumes uploaded together for breast MRI are taken for the post- and the pre-contrast scan, by their names.

    Args:
        files: of the scan.
        task: the study.
        pre: files of the pre-contrast scan.
        session: for which it is kept; None keeps it for its lifetime.
        shift: add `USUAL_SHIFT` to all values, for a CT that was stored without negative numbers.

    Raises:
        ScanError: the files hold no usable scan, or two whose names do not tell which is which.
    """
    if not files:
        raise ScanError("Choose a scan first: drop a file, a zip or all files of a DICOM series.")
    if not pre and task.key == "breast-mri" and len(files) == 2 and all(map(_is_whole, files)):
        files, pre = split_contrast(files)
    key = (_identity(files), _identity(pre), shift)
    scan: Scan | None = _kept.get(key, session)
    if scan is None:
        scan = read_scan(list(files) if len(files) > 1 else files[0])
        if pre:
            scan = subtract(scan, read_scan(list(pre) if len(pre) > 1 else pre[0]))
        if shift:
            scan = shifted(scan, USUAL_SHIFT)
        _kept.put(key, scan, session)
    return scan


def belong_together(before: Sequence[str], new: Sequence[str], task: Task) -> bool:
    """Whether files uploaded later add to those already there, rather than being another scan.

    Slices of a DICOM series and a header with its data do; a volume or a zip is a scan of its own, except for
    the second of two breast MRI scans (before and after contrast).
    """
    whole = [file for file in (*before, *new) if _is_whole(file)]
    if task.key == "breast-mri" and len(before) == len(new) == 1:
        return True
    return not before or not whole


def remember(session: str, inputs: Inputs, result: Result) -> None:
    """Keeps a session's last result, and what it was made from, until its files are written."""
    _kept.put(("result", session), (inputs, result), session)


def take_result(session: str) -> tuple[Inputs, Result] | None:
    """The session's last result, which is let go; None when there is none."""
    kept: tuple[Inputs, Result] | None = _kept.take(("result", session))
    return kept


def keep_folder(session: str, folder: TemporaryDirectory) -> None:
    """Keeps a result's files for their download until the session's next result, its end or a day later."""
    _folders.put(session, folder, session)


def note_inputs(session: str, inputs: Inputs) -> None:
    """Notes what a session's page has open and chosen now: the only thing that it may show an answer for."""
    _inputs.put(session, inputs, session)


def are_current(session: str, inputs: Inputs) -> bool:
    """Whether these are still a session's inputs; also where nothing is known of the session."""
    noted: Inputs | None = _inputs.get(session)
    return noted is None or noted == inputs


def note_problem(session: str, inputs: Inputs, problem: str | None) -> None:
    """Notes why there is no answer for these inputs; None while one is made."""
    _inputs.put(("problem", session), (inputs, problem), session)


def noted_problem(session: str, inputs: Inputs) -> str | None:
    """Why there was no answer for these inputs, where it was the last that the session asked for."""
    noted: tuple[Inputs, str | None] | None = _inputs.get(("problem", session))
    return noted[1] if noted is not None and noted[0] == inputs else None


def note_opened(session: str, opened: Opened) -> None:
    """Notes which scan and study a session's page opens: all that it may show a scan or offer files of."""
    _inputs.put(("opened", session), _plain(opened), session)


def has_opened(session: str, opened: Opened) -> bool:
    """Whether a session is known to have opened this scan and study, and has it open still."""
    return bool(_inputs.get(("opened", session)) == _plain(opened))


def has_any(session: str) -> bool:
    """Whether a session has opened anything."""
    return _inputs.get(("opened", session)) is not None


def is_opened(session: str, opened: Opened) -> bool:
    """Whether this is still the scan and study that a session has open, wherever it points."""
    noted = _inputs.get(("opened", session))
    return noted is None or noted == _plain(opened)


def open_first(session: str, opened: Opened) -> bool:
    """Notes that a session's page opens this, unless it has opened anything yet; whether it is noted."""
    return _inputs.put_first(("opened", session), _plain(opened), session)


def note_example(session: str, path: str | None) -> None:
    """Notes the example that a session's page opened with, though no file was chosen; None: no longer."""
    _folders.put(("example", session), path, session)


def example_of(session: str) -> str | None:
    """The example that a session's page opened with and still has open."""
    path: str | None = _folders.get(("example", session))
    return path


def files_of(session: str, files: Sequence[str] | None) -> tuple[str, ...]:
    """The files of the scan that a page has open: those chosen in it, else the example that it opened with."""
    example = example_of(session)
    return tuple(files or ([example] if example else ()))


def scan_key(inputs: Inputs) -> str:
    """What tells an open scan from others on the page: of its files, and of what is made of them.

    An upload's folder is a hash of what it holds. Its time says nothing: another visitor may upload the same again.
    """
    made_of = (inputs.files, inputs.pre, inputs.task, inputs.shift)
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:20]


def note_shown(session: str, key: str | None) -> None:
    """Notes which scan (`scan_key`) a session's viewer shows; None: none any more."""
    _inputs.put(("shown", session), key, session)


def is_shown(session: str, key: str) -> bool:
    """Whether a session's viewer shows this scan already, and can have its slices still."""
    former, token = _inputs.get(("slices", session)) or (None, "")
    gone = former == key and slices_of(token) is None
    return bool(_inputs.get(("shown", session)) == key) and not gone


@contextmanager
def showing(session: str) -> Iterator[None]:
    """One scan after the other is put into a session's viewer."""
    with _first_shown:
        lock: Any = _inputs.get(("showing", session)) or Lock()
        _inputs.put(("showing", session), lock, session)
    with lock:
        yield


def stream_slices(session: str, key: str, scan: Scan) -> tuple[SliceStream, str] | None:
    """The slices of a scan that is too large to be sent whole, and a token that only its page knows.

    In place of those of the session's scan before; None for a scan that is sent whole.

    Args:
        key: the scan's `scan_key`: under the same one it keeps its token.
    """
    former, token = _inputs.get(("slices", session)) or (None, "")
    if former == key and (kept := slices_of(token)) is not None:
        return kept, token
    if token:
        _kept.take(("slices", token))
    if is_sent_whole(scan):
        _inputs.take(("slices", session))
        return None
    stream, token = SliceStream(scan.canonical().voxels), secrets.token_urlsafe(24)
    _kept.put(("slices", token), stream, session)
    _inputs.put(("slices", session), (key, token), session)
    return stream, token


def slices_of(token: str) -> SliceStream | None:
    """The slices that a token stands for, as long as they are kept."""
    stream: SliceStream | None = _kept.get(("slices", token))
    return stream


def end_session(session: str) -> None:
    """Lets go everything that was kept for a session alone."""
    _kept.end(session)
    _inputs.end(session)
    _folders.end(session)


def _plain(opened: Opened) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    files, task, pre = opened
    return tuple(files or ()), task, tuple(pre or ())


def _is_whole(file: str) -> bool:
    return file.lower().endswith(WHOLE_SCANS)


def _identity(files: Sequence[str]) -> tuple:
    return tuple((file, Path(file).stat().st_mtime_ns, Path(file).stat().st_size) for file in files)
