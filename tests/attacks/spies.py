"""Decoders that do what one that was taken over would. They answer by a ScanError, the only text that comes back."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from mst.errors import ScanError


def peek(given: list[Path], staging: Path, what: str, target: str, parent: int) -> NoReturn:
    """Tells what it could read of its own upload, and of what is not its own."""
    own = given[0].read_bytes()
    (staging / "scratch").write_bytes(b"mine to write")
    places = {
        "file": target,
        "folder": str(Path(target).parent),
        "memory": f"/proc/{parent}/maps",
        "environment": f"/proc/{parent}/environ",
        "write": str(Path(target).with_name("left-behind")),
        "root": "/",
    }
    place = places[what]
    try:
        if what in ("folder", "root"):
            other: object = os.listdir(place)  # noqa: PTH208  (the system call itself)
        elif what == "write":
            other = Path(place).write_bytes(b"x")
        else:
            other = Path(place).read_bytes()[:20]
    except OSError as error:
        other = type(error).__name__
    raise ScanError(f"own {own!r}, other {other}")


def call(given: list[Path], staging: Path, port: int) -> NoReturn:
    """Tells whether it could connect to a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError as error:
        raise ScanError(type(error).__name__) from error
    raise ScanError("connected")


def die(given: list[Path], staging: Path, number: int) -> NoReturn:
    """Ends as a decoder that crashes."""
    os.kill(os.getpid(), number)
    raise ScanError("still alive")


class Panic(BaseException):
    """What a decoder in Rust raises: no Exception."""


def panic(given: list[Path], staging: Path) -> NoReturn:
    raise Panic


def gorge(given: list[Path], staging: Path) -> NoReturn:
    """Takes memory until there is no more."""
    taken = []
    while True:
        taken.append(bytearray(1 << 28))


def spin(given: list[Path], staging: Path) -> NoReturn:
    while True:
        pass


def sleep(given: list[Path], staging: Path) -> NoReturn:
    time.sleep(3600)
    raise ScanError("woke up")


def about(given: list[Path], staging: Path) -> NoReturn:
    """Tells what is loaded, and the environment."""
    raise ScanError(" ".join(sorted({name.split(".")[0] for name in sys.modules})) + repr(dict(os.environ)))


DECODERS: dict[str, Any] = {
    "peek": peek,
    "call": call,
    "die": die,
    "panic": panic,
    "gorge": gorge,
    "spin": spin,
    "sleep": sleep,
    "about": about,
}
