"""The bytes of a volume, as they lie in a file: unpacked, counted and checked, whole or not at all.

What a decoder leaves out it must not make up: a volume that ends early, or whose checksum is wrong, is refused, since
its missing voxels would be whatever lay in memory.
"""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np

from mst.errors import ScanError

Packing = Literal["none", "deflate", "bzip2"]
DEFLATE_RATIO = 1100  # deflate cannot shrink data more than about 1,032 times
CHUNK = 1 << 20
SLACK = 1 << 26  # bytes that may follow what a header promises: padding, extensions, a tape's blocks
EITHER = 47  # zlib's window size that takes gzip and zlib streams alike


class _Unpacker(Protocol):
    eof: bool

    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


def cut_off(name: str) -> ScanError:
    """The sentence for a file that ends before its data do."""
    return ScanError(f"{name} is cut off or damaged: its data end too early; download or export it again.")


def damaged(name: str) -> ScanError:
    """The sentence for a file whose data do not unpack to what was packed."""
    return ScanError(f"{name} is damaged: its data do not pass their checksum; download or export it again.")


class ByteStream:
    """A file's bytes from an offset on, unpacked as they are read.

    Args:
        path: the file.
        packing: how they are packed: "deflate" takes gzip (several members too) and zlib.
        offset: bytes of the file before them.
        name: what messages call the file.

    >>> import gzip, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "x.gz"
    ...     _ = path.write_bytes(gzip.compress(b"abcdef"))
    ...     with ByteStream(path, "deflate", name="x") as stream:
    ...         stream.read(4), stream.finish()
    (b'abcd', None)
    """

    def __init__(self, path: Path, packing: Packing = "none", offset: int = 0, name: str = "") -> None:
        self.name = name or path.name
        self.packing = packing
        self._file: BinaryIO = path.open("rb")
        self._file.seek(offset)
        self._packed = b""
        self._spare = b""
        self._unpacker = self._new_unpacker()

    def __enter__(self) -> ByteStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            ScanError: the file ends before, or is damaged.
        """
        parts = [self._spare[:count]]
        self._spare = self._spare[count:]
        missing = count - len(parts[0])
        while missing > 0:
            part = self._more(missing)
            if not part:
                raise cut_off(self.name)
            parts.append(part[:missing])
            self._spare = part[missing:]
            missing -= len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, count: int) -> None:
        """Leaves out `count` bytes."""
        while count > 0:
            count -= len(self.read(min(count, CHUNK)))

    def finish(self, expected: int = 0) -> None:
        """Reads on to the end of what is packed, where the checksum is.

        Args:
            expected: bytes that are known to follow, such as the further volumes of a 4D file.

        Raises:
            ScanError: the checksum is wrong, the file ends before it, or far more follows than expected.
        """
        if self.packing == "none":
            return
        left = expected + SLACK
        while part := self._more(CHUNK):
            left -= len(part)
            if left < 0:
                raise ScanError(f"{self.name} unpacks to far more than its header says; export it again.")

    def _more(self, most: int) -> bytes:
        """Some further bytes, b"" at the end."""
        if self.packing == "none":
            return self._file.read(min(most, CHUNK))
        try:
            while self._unpacker is not None:
                if not self._packed and not self._needs_none():
                    self._packed = self._file.read(CHUNK)
                    if not self._packed:
                        raise cut_off(self.name)
                part = self._unpack(max(most, 1))
                if self._unpacker.eof:
                    self._next_member()
                if part:
                    return part
        except (zlib.error, OSError, EOFError) as error:
            raise damaged(self.name) from error
        return b""

    def _needs_none(self) -> bool:
        return self.packing == "bzip2" and not getattr(self._unpacker, "needs_input", True)

    def _unpack(self, most: int) -> bytes:
        assert self._unpacker is not None
        part = self._unpacker.decompress(self._packed, min(most, 16 * CHUNK))
        self._packed = b"" if self.packing == "bzip2" else getattr(self._unpacker, "unconsumed_tail", b"")
        return part

    def _next_member(self) -> None:
        """Goes on with the next packed member where there is one; what else follows is padding."""
        rest = getattr(self._unpacker, "unused_data", b"") or b""
        if len(rest) < 3:
            rest += self._file.read(CHUNK)
        magic = b"\x1f\x8b\x08" if self.packing == "deflate" else b"BZh"
        self._unpacker = self._new_unpacker() if rest.startswith(magic) else None
        self._packed = rest

    def _new_unpacker(self) -> _Unpacker | None:
        if self.packing == "deflate":
            return zlib.decompressobj(EITHER)  # type: ignore[return-value]
        return bz2.BZ2Decompressor() if self.packing == "bzip2" else None  # type: ignore[return-value]


def check_promise(path: Path, name: str, offset: int, promised: int, packing: Packing) -> None:
    """Refuses a file that is too short for what its header promises, before any memory is taken for it.

    Raises:
        ScanError: it is.
    """
    at_most = path.stat().st_size - offset
    # bzip2 has no such bound that is of use; its stream is read piece by piece all the same.
    if packing != "bzip2" and at_most * (DEFLATE_RATIO if packing == "deflate" else 1) < promised:
        raise cut_off(name)


def read_volume(
    stream: ByteStream,
    dtype: np.dtype,
    shape: Sequence[int],
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
    components: int = 1,
) -> np.ndarray:
    """A volume whose first axis runs fastest, slice by slice, so that it is in memory once.

    Args:
        stream: at its first byte.
        dtype: of the numbers in the file, with their byte order.
        shape: (I, J, K).
        slope, intercept: a voxel is its number times the slope plus the intercept.
        components: numbers at each voxel, of which the first is taken.

    Returns:
        float32 [I, J, K], in Fortran order.

    Raises:
        ScanError: the data end too early or are damaged.
    """
    i, j, k = (int(n) for n in shape)
    voxels = np.empty((i, j, k), np.float32, order="F")
    for index in range(k):
        numbers = np.frombuffer(stream.read(i * j * components * dtype.itemsize), dtype)
        numbers = numbers[::components].reshape((i, j), order="F")
        if (slope, intercept) != (1.0, 0.0):
            numbers = numbers * slope + intercept
        voxels[:, :, index] = numbers
    return voxels


def read_text_volume(stream: ByteStream, size: int, shape: Sequence[int], components: int = 1) -> np.ndarray:
    """A volume of numbers written as text, as `read_volume`.

    Args:
        size: bytes of text.

    Raises:
        ScanError: there are fewer numbers than voxels, or a word is no number.
    """
    count = int(np.prod(shape)) * components
    try:
        numbers = np.array(stream.read(size).split(maxsplit=count)[:count], np.float64)
    except ValueError as error:
        raise ScanError(f"{stream.name} is damaged: among its voxels stands what is no number.") from error
    if len(numbers) < count:
        raise cut_off(stream.name)
    return np.asfortranarray(numbers[::components].reshape(shape, order="F"), dtype=np.float32)
