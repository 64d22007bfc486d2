"""Decoding in a process of its own, as its user sees it: files in, a scan out.

The files that people upload are read by decoders written in C, C++ and Rust. One crafted file may crash them, exhaust
the memory, or have them open other files. So a process without torch waits with all readers loaded
(`mst.scans.worker`) and forks a child for each upload, which has limits on memory, time and files
(`mst.scans.sandbox`) and ends with it. The voxels come back in shared memory, everything else as JSON: nothing is
unpickled.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mst.errors import ScanError
from mst.scans.archives import MAX_UNZIPPED
from mst.scans.checks import MAX_VOXELS
from mst.scans.scan import Caution, Scan
from mst.scans.source import DicomSource

MEMORY = 4 * 1024**3  # bytes for one scan
SECONDS = 300  # for one scan
MAX_ANSWER = 64 * 1024**2  # bytes, voxels excluded
AVAILABLE = hasattr(os, "fork") and hasattr(socket, "send_fds")
# What the decoding process needs of the environment; the rest may hold secrets.
ENVIRONMENT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "OPENBLAS_CORETYPE",
)


class DecodingError(RuntimeError):
    """The decoding process cannot be started: a fault of the installation, not of a file."""


class Decoder:
    """The decoding process, started when it is first needed and again when it has ended."""

    start = (
        "import json, socket, sys; sys.path[:] = json.loads(sys.argv[2]); "
        "from mst.scans.worker import serve; serve(socket.socket(fileno=int(sys.argv[1])))"
    )

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):
            # A copy of this process, such as a worker of a data loader, must not talk into its parent's conversation.
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Knows of no decoding process any more, without ending it."""
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # Two at once use two cores; more would only share the memory.
        self._places = threading.BoundedSemaphore(max(os.cpu_count() or 1, 2))

    def decode(self, kind: str, paths: Sequence[Path], called: str, **options: Any) -> Scan:
        """Decodes an upload.

        Args:
            kind: "scan" or "mask".
            paths: its files; folders and zips too.
            called: what messages call it.
            options: further arguments of the decoder.

        Raises:
            ScanError: there is no usable scan in it, or decoding it failed badly.
            DecodingError: the decoding process does not start.
        """
        with (
            self._places,
            tempfile.TemporaryDirectory(prefix="scan-", ignore_cleanup_errors=True) as staging,
            tempfile.TemporaryDirectory(prefix="scan-", ignore_cleanup_errors=True) as links,
            _shared_memory() as memory,
        ):
            paths = _held(paths, Path(links))
            request = {
                "kind": kind,
                "called": called,
                "paths": [str(path.absolute()) for path in paths],
                "readable": [str(path) for path in _readable(paths)],
                "staging": staging,
                "memory": MEMORY,
                "seconds": SECONDS,
                "file_bytes": MAX_UNZIPPED,
                "options": options,
            }
            answer = self._ask(json.dumps(request).encode() + b"\n", memory)
            if answer is None:
                raise ScanError(
                    f"{called} could not be read: the file seems damaged, or reading it takes more time or memory than "
                    "one scan may take."
                )
            if "error" in answer:
                raise ScanError(str(answer["error"]))
            return _unpack(answer, memory)

    @property
    def process_number(self) -> int | None:
        """Of the decoding process; None where none is running."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """Ends the decoding process; the next upload starts a new one."""
        with self._lock:
            self._stop()

    def _ask(self, request: bytes, memory: int) -> dict[str, Any] | None:
        """The answer to a request; None where the child ended without one."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                child = self._fork(theirs.fileno(), memory)
            ours.settimeout(SECONDS + 5)
            data = bytearray()
            try:
                ours.sendall(request)
                while part := ours.recv(1 << 20):
                    data += part
                    if len(data) > MAX_ANSWER:
                        raise TimeoutError
            except (TimeoutError, ConnectionError):
                # It still holds its end, so the number is still its own.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                return None
        if not data.endswith(b"\n"):
            return None
        answer = json.loads(data)
        return answer if isinstance(answer, dict) else None

    def _fork(self, channel: int, memory: int) -> int:
        """Has the decoding process fork a child with these two handles; the child's process number."""
        with self._lock:
            for _ in range(2):
                if self._control is None:
                    self._start()
                assert self._control is not None
                try:
                    socket.send_fds(self._control, [b"f"], [channel, memory])
                    reply = self._control.recv(8, socket.MSG_WAITALL)
                    if len(reply) == 8:
                        return int(struct.unpack("<q", reply)[0])
                except OSError:
                    pass
                self._stop()
            raise DecodingError("the process that reads scans does not start; see above for its own words")

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", self.start, str(theirs.fileno()), json.dumps(sys.path)],
                pass_fds=[theirs.fileno()],
                env={name: value for name, value in os.environ.items() if name in ENVIRONMENT}
                | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process; the other ends when this one has
            )
        self._control = ours

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            if self._process is not None:
                self._process.kill()
                self._process.wait()
        self._control = self._process = None


_decoder = Decoder()
atexit.register(_decoder.close)


def decoder() -> Decoder:
    """The one decoding process of this program."""
    return _decoder


@contextlib.contextmanager
def _shared_memory() -> Any:
    """A handle of empty memory that two processes can share; it is gone when both have let go of it."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("scan")
        try:
            yield handle
        finally:
            os.close(handle)
    else:
        with tempfile.TemporaryFile(prefix="scan-") as file:
            yield file.fileno()


def _held(paths: Sequence[Path], links: Path) -> list[Path]:
    """These files under names that stay theirs until they are read.

    An upload that comes again takes the place of the file under its name, and an old one is deleted. A decoder that
    has just begun may open its file, not another of that name.

    Args:
        paths: files, which are linked where the system can, and folders.
        links: an empty folder.
    """
    from mst.scans.decoding import HEADERS

    held = []
    for number, path in enumerate(paths):
        if path.is_file() and path.suffix.lower() not in HEADERS:  # whose data lie beside them
            link = links / str(number) / path.name
            link.parent.mkdir()
            path = link if _link(path, link) else path
        held.append(path)
    return held


def _link(path: Path, link: Path) -> bool:
    """Whether the system could: not where the file lies on another disk, or is somebody else's."""
    for _ in range(10):
        try:
            os.link(path.resolve(), link)
        except FileNotFoundError:  # it was replaced just now
            continue
        except OSError:
            return False
        return True
    return False


def _readable(paths: Sequence[Path]) -> list[Path]:
    """What the decoding of these files may read: they, and what lies beside a header."""
    from mst.scans.decoding import HEADERS

    there = [path.absolute() for path in paths if path.exists()]
    # What a link leads to is what is meant.
    beside = [path.parent for path in there if path.suffix.lower() in HEADERS]
    return [path.resolve() for path in [*there, *beside]]


def _unpack(answer: dict[str, Any], memory: int) -> Scan:
    """The scan in an answer; what does not add up is a damaged file's doing."""
    shape = tuple(int(n) for n in answer["shape"])
    size = int(np.prod(shape, dtype=object)) * 4
    if len(shape) != 3 or min(shape) < 1 or size > MAX_VOXELS * 4 or os.fstat(memory).st_size != size:
        raise ScanError("The file could not be read: it seems damaged.")
    # Private: what is written here by mistake goes nowhere else.
    shared = mmap.mmap(memory, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    voxels = np.frombuffer(shared, np.float32).reshape(shape, order="F")
    return Scan(
        voxels,
        np.array(answer["affine"], float).reshape(4, 4),
        modality=answer["modality"],
        name=str(answer["name"]),
        notes=tuple(Caution(text) if caution else str(text) for text, caution in answer["notes"]),
        source=None if answer["source"] is None else DicomSource.unpack(answer["source"]),
    )
