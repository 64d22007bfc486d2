"""What a process that decodes strangers' files may do: little memory, little time, and no file but theirs.

Linux's Landlock (landlock(7), since 5.13) takes from a process all files but those that are named, and cannot be
undone; resource limits (getrlimit(2)) bound the rest. Where the system has no Landlock, the limits remain, and the
readers' own rule that a header may only name a file that was uploaded with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
from collections.abc import Sequence
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# System call numbers, the same on all of Linux's architectures since 5.13.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG, RULE_PATH_BENEATH, SET_NO_NEW_PRIVS = 1, 1, 38
READ_FILE, READ_DIR = 1 << 2, 1 << 3
# Rights that each version of Landlock can take away: files, then moving (2), truncating (3), devices (5).
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
NETWORK = 3  # binding and connecting TCP, version 4
SCOPES = 3  # abstract sockets and signals beyond the process, version 6


def landlock_version() -> int:
    """The version of Landlock that the system has; 0: none."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return max(int(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION_FLAG)), 0)
    except (OSError, AttributeError, TypeError):
        return 0


def restrict_files(readable: Sequence[Path], writable: Sequence[Path] = ()) -> bool:
    """Takes from this thread, and all it starts, every file but these; for ever.

    What is open already stays open.

    Args:
        readable: files and folders that may be read.
        writable: folders in which all may be done.

    Returns:
        Whether the system could: False where it has no Landlock, or does not let this process use it.

    Raises:
        OSError: a file is not there, or the system refused for another reason.
    """
    version = landlock_version()
    if not version:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    handled = RIGHTS[max(v for v in RIGHTS if v <= version)]
    attributes = struct.pack("<QQQ", handled, NETWORK if version >= 4 else 0, SCOPES if version >= 6 else 0)[
        : 8 if version < 4 else 16 if version < 6 else 24
    ]
    ruleset = libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return _refused()
    try:
        for path, rights in [(p, READ_FILE | READ_DIR) for p in readable] + [(p, handled) for p in writable]:
            folder = path.is_dir()
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = struct.pack("<Qi", rights if folder else rights & READ_FILE, handle)
                if libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0) < 0:
                    return _refused()
            finally:
                os.close(handle)
        if libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 or libc.syscall(RESTRICT_SELF, ruleset, 0) < 0:
            return _refused()
    finally:
        os.close(ruleset)
    return True


def _refused() -> bool:
    """False where the system has Landlock, but does not let this process use it, as in some containers.

    Raises:
        OSError: it refused for another reason.
    """
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
        return False
    raise OSError(number, "the decoding process could not be restricted")


def restrict_resources(memory: int, seconds: int, file_bytes: int) -> None:
    """Bounds this process; what goes beyond fails with MemoryError or OSError, or ends it.

    Args:
        memory: bytes that it may take beyond what it has now.
        seconds: of processor time, and of waiting.
        file_bytes: the largest file that it may write.
    """
    if resource is None:
        return
    for kind, limit in (
        (resource.RLIMIT_AS, _own_memory() + memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        with contextlib.suppress(ValueError, OSError):  # a lower limit was set from outside
            resource.setrlimit(kind, (limit, limit))
    # A write beyond the limit is then an error instead of a death.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


def _own_memory() -> int:
    """Bytes of address space that this process has taken."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return pages * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 1 << 30
