"""Volumes as a viewer's script unpacks them: whole numbers, as differences where those are smaller, compressed."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

MIN_LEVELS = 100  # grey levels that 8 bits must leave within the first window


class SliceStream:
    """Slices of a canonical scan in 16 bits, as a viewer asks for them.

    Attributes:
        low, high: intensities of the first and the last code. Whole numbers stay as they are.
    """

    def __init__(self, voxels: np.ndarray) -> None:
        self._voxels = voxels
        # Slab by slab: a whole CT needs no second array of its size.
        slabs = [voxels[first : first + 16] for first in range(0, len(voxels), 16)]
        ends = [(float(slab.min()), float(slab.max())) for slab in slabs]
        if not np.isfinite(ends).all():
            ends = [(float(slab.min()), float(slab.max())) for slab in map(numbers, slabs)]
        self.low, self.high = min(low for low, _ in ends), max(high for _, high in ends)
        if self.high - self.low < 65_535 and all(_are_whole(slab) for slab in slabs):
            self.high = self.low + 65_535
        elif self.high <= self.low:
            self.high = self.low + 1.0

    def block(self, axis: int, first: int, count: int) -> bytes:
        """Slices as `packed` packs them, always as differences: zlib of [slices, the other two axes in order].

        Raises:
            IndexError: the scan has no such slices.
        """
        if axis not in (0, 1, 2) or count < 1 or not 0 <= first <= self._voxels.shape[axis] - count:
            raise IndexError(f"no slices {first} to {first + count} along axis {axis}")
        taken = np.moveaxis(self._voxels, axis, 0)[first : first + count]
        codes = _codes(numbers(taken), 16, self.low, self.high)
        # Sent once and to one viewer: time counts more than bytes.
        return zlib.compress(_planes(_steps(codes)), 1)


def packed(volume: np.ndarray, bits: int, low: float, high: float) -> dict[str, Any]:
    """A volume as unsigned integers of low..high, zlib-compressed, in base64.

    Neighbours resemble each other: where their differences are smaller than the values, those are packed, the
    sign as the last bit. Of 16 bits, all low bytes come before all high ones.
    """
    if high <= low:
        high = low + 1.0
    codes = _codes(volume, bits, low, high)
    steps = np.diff(codes, axis=1).astype(np.int16 if bits == 16 else np.int8)
    delta = codes.shape[1] > 1 and bool(steps.std() < codes.std())
    data = base64.b64encode(zlib.compress(_planes(_steps(codes) if delta else codes), 6)).decode()
    return {"bits": bits, "low": low, "high": high, "delta": delta, "data": data}


def _codes(volume: np.ndarray, bits: int, low: float, high: float) -> np.ndarray:
    """Intensities as unsigned integers, `low` as 0 and `high` as the greatest."""
    top = 2**bits - 1
    scaled = (volume - np.float32(low)) * np.float32(top / (high - low)) + np.float32(0.5)
    return np.clip(scaled, 0, top).astype(np.uint16 if bits == 16 else np.uint8)


def _steps(codes: np.ndarray) -> np.ndarray:
    """Differences to the neighbour before along the second axis, with the sign as the last bit."""
    steps: Any = np.diff(codes, axis=1, prepend=np.zeros_like(codes[:, :1]))
    steps = steps.astype(np.int16 if codes.dtype == np.uint16 else np.int8)
    return ((steps << 1) ^ (steps >> (8 * codes.itemsize - 1))).astype(codes.dtype)


def _planes(codes: np.ndarray) -> bytes:
    """The codes' bytes; of 16 bits, all low ones before all high ones."""
    if codes.dtype == np.uint16:
        return (codes & 255).astype(np.uint8).tobytes() + (codes >> 8).astype(np.uint8).tobytes()
    return np.ascontiguousarray(codes).tobytes()


def _are_whole(voxels: np.ndarray) -> bool:
    whole = np.rint(voxels)
    return bool(np.all((whole == voxels) | ~np.isfinite(voxels)))


def numbers(voxels: np.ndarray) -> np.ndarray:
    """As float32, with zeros for what is no number."""
    return np.nan_to_num(np.asarray(voxels, np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def gray(volume: np.ndarray, bits: int, spans: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The scan's intensities as integers.

    16 bits keep every whole number as it is. 8 bits cover all windows as far as the scan has such values,
    but never so much that the first window is left with fewer than MIN_LEVELS.
    """
    low, high = float(volume.min()), float(volume.max())
    if bits == 16:
        whole = np.array_equal(volume, np.round(volume)) and high - low < 65_535
        return packed(volume, 16, low, low + 65_535 if whole else high)
    first_low, first_high = spans[0]
    width = first_high - first_low
    wanted_low = max(low, min(s[0] for s in spans) - 0.1 * width)
    wanted_high = min(high, max(s[1] for s in spans) + 0.1 * width)
    spare = max(255 / MIN_LEVELS * width - width, 0.0)
    below, above = max(first_low - wanted_low, 0.0), max(wanted_high - first_high, 0.0)
    share = min(1.0, spare / (below + above)) if below + above else 0.0
    shown_low = first_low - share * below if wanted_low < first_low else wanted_low
    shown_high = first_high + share * above if wanted_high > first_high else wanted_high
    return packed(volume, 8, shown_low, shown_high)


def shrink(volume: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Averages blocks of voxels; what does not fill a block at the far end is left out."""
    for axis, factor in enumerate(factors):
        if factor > 1:
            whole = volume.shape[axis] // factor * factor
            # Views a step apart: no copy of the volume before it is smaller.
            parts = [np.moveaxis(volume, axis, 0)[first:whole:factor] for first in range(factor)]
            total = parts[0].astype(np.float32)
            for part in parts[1:]:
                total += part
            volume = np.moveaxis(total / np.float32(factor), 0, axis)
    return volume


def unpack(entry: dict[str, Any], shape: Sequence[int]) -> np.ndarray:
    """A packed volume as the script sees it: float32 of that shape, or of its own where it is coarser."""
    codes: np.ndarray = np.frombuffer(zlib.decompress(base64.b64decode(entry["data"])), np.uint8)
    if entry["bits"] == 16:
        low, high = codes.reshape(2, -1).astype(np.uint16)
        codes = low | high << 8
    codes = codes.reshape(entry.get("shape", shape))
    if entry["delta"]:
        codes = np.cumsum((codes >> 1) ^ (0 - (codes & 1)), axis=1, dtype=codes.dtype)
    top = 2 ** entry["bits"] - 1
    return (entry["low"] + codes.astype(np.float32) / top * (entry["high"] - entry["low"])).astype(np.float32)
