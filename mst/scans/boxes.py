"""Parts of a voxel grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def on_box(volume: np.ndarray, start: Sequence[int] | np.ndarray, box: np.ndarray) -> np.ndarray:
    """What a volume that lies somewhere in a grid holds in a box of the grid; zero where it does not reach.

    Args:
        volume: [x, y, z].
        start: (3,), the grid's voxel where it begins.
        box: int [3, 2], the box's first voxel along each axis and the one after the last.

    Returns:
        a new array as large as the box, of the volume's type.

    >>> on_box(np.ones((1, 1, 2)), (0, 0, 1), np.array([[0, 1], [0, 1], [0, 3]])).tolist()
    [[[0.0, 1.0, 1.0]]]
    """
    start, box = np.asarray(start), np.asarray(box)
    low = np.maximum(box[:, 0], start)
    high = np.maximum(np.minimum(box[:, 1], start + volume.shape), low)
    found = np.zeros(box[:, 1] - box[:, 0], volume.dtype)
    found[_slices(low - box[:, 0], high - box[:, 0])] = volume[_slices(low - start, high - start)]
    return found


def box_of(mask: np.ndarray) -> np.ndarray:
    """int [3, 2]: the smallest box that holds all of a mask; of an empty one, its first voxel.

    >>> box_of(np.array([[[False, True, True]]])).tolist()
    [[0, 1], [0, 1], [1, 3]]
    """
    held = [np.flatnonzero(mask.any(axis=tuple(o for o in range(3) if o != axis))) for axis in range(3)]
    return np.array([(places[0], places[-1] + 1) if len(places) else (0, 1) for places in held])


def _slices(low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
