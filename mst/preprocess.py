"""A scan to a model's input, and a map on that input back to the scan's own voxels.

The scan is first brought to canonical axes (a permutation and flips, no resampling), so that two files of one
scan in different orientations give the same input. The input grid then lies along the scan's own axes, which
makes both directions separable: one linear interpolation per axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from mst.scans import Scan, ScanError
from mst.tasks import Grid, Plane, Task

# For each plane, the canonical axis (0: to the right, 1: to the front, 2: to the head) that runs along
# (slices, rows, columns), and whether it is flipped. Rows run downwards on the screen and columns to the
# right, in radiological convention: an axial slice has the patient's right on the left, front on top.
AXES: dict[Plane, tuple[tuple[int, bool], tuple[int, bool], tuple[int, bool]]] = {
    "axial": ((2, False), (1, True), (0, True)),
    "coronal": ((1, False), (2, True), (0, True)),
    "sagittal": ((0, False), (2, True), (1, True)),
}
MIN_STD = 1e-6


@dataclass(frozen=True)
class Region:
    """Where a model's input lies in a canonical scan.

    Attributes:
        plane: of the slices.
        shape: (D, H, W).
        positions: for each of (D, H, W), the continuous voxel index of every sample along its canonical axis.
        scan_shape: the canonical scan's shape.
    """

    plane: Plane
    shape: tuple[int, int, int]
    positions: tuple[np.ndarray, np.ndarray, np.ndarray]
    scan_shape: tuple[int, int, int]

    @property
    def padding(self) -> np.ndarray:
        """bool [D]: slices that lie outside the scan."""
        axis = AXES[self.plane][0][0]
        position = self.positions[0]
        return ~_within(position, self.scan_shape[axis])

    @property
    def bounds(self) -> np.ndarray:
        """The region's voxels in the canonical scan: int [3, 2], start and stop along each axis."""
        bounds = np.zeros((3, 2), int)
        for (axis, _), position in zip(AXES[self.plane], self.positions, strict=True):
            half = _step(position) / 2
            low = np.ceil(position.min() - half - 1e-6)
            high = np.floor(position.max() + half + 1e-6) + 1
            if high <= low:  # between two voxels that are larger than the region: the nearer one
                low = np.round(position.mean())
                high = low + 1
            bounds[axis] = np.clip((low, high), 0, self.scan_shape[axis])
        return bounds

    def size_mm(self, scan: Scan) -> np.ndarray:
        """How far the samples reach along the canonical scan's axes in millimetres, shape (3,)."""
        size = np.zeros(3)
        for (axis, _), position in zip(AXES[self.plane], self.positions, strict=True):
            size[axis] = len(position) * _step(position) * scan.spacing[axis]
        return size

    def to_box(self, volume: np.ndarray) -> np.ndarray:
        """A map [D, H, W] on the input, brought to the canonical scan's voxels within `bounds`: float32 [x, y, z]."""
        bounds = self.bounds
        block = np.asarray(volume, np.float32)
        for dimension, (axis, _) in enumerate(AXES[self.plane]):
            voxels = np.arange(*bounds[axis])
            block = _resample(block, dimension, _inverse(self.positions[dimension], voxels))
        order = [axis for axis, _ in AXES[self.plane]]
        return np.ascontiguousarray(block.transpose(np.argsort(order)))

    def to_scan(self, volume: np.ndarray) -> np.ndarray:
        """As `to_box`, on all of the canonical scan's voxels; zero outside the region."""
        whole = np.zeros(self.scan_shape, np.float32)
        whole[tuple(slice(*b) for b in self.bounds)] = self.to_box(volume)
        return whole

    def cells(self, native: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A map [d, h, w] at its own resolution, along the canonical scan's axes.

        Returns:
            values [x, y, z]; the first cell's lower edge and a cell's size in voxels, shape (3,) each. Voxel i
            reaches from i - 0.5 to i + 0.5.
        """
        start, size = np.zeros(3), np.zeros(3)
        for dimension, (axis, flip) in enumerate(AXES[self.plane]):
            position = self.positions[dimension]
            step = _step(position)
            start[axis] = position.min() - step / 2
            size[axis] = step * len(position) / native.shape[dimension]
            if flip:
                native = np.flip(native, dimension)
        order = [axis for axis, _ in AXES[self.plane]]
        return np.ascontiguousarray(native.transpose(np.argsort(order))), start, size

    def profile(self, weights: np.ndarray) -> np.ndarray:
        """Weights of the D input slices, as one number for each slice of the canonical scan; zero outside."""
        axis = AXES[self.plane][0][0]
        start, stop = self.bounds[axis]
        profile = np.zeros(self.scan_shape[axis], np.float32)
        index = _inverse(self.positions[0], np.arange(start, stop))
        profile[start:stop] = _resample(np.asarray(weights, np.float32), 0, index)
        return profile


@dataclass(frozen=True)
class ModelInput:
    """What a model takes.

    Attributes:
        volume: float32 [1, 1, D, H, W].
        padding_mask: bool [1, D], True where a slice lies outside the scan; None: none does.
        region: where it lies, for the way back.
    """

    volume: torch.Tensor
    padding_mask: torch.Tensor | None
    region: Region


def prepare(
    scan: Scan, task: Task, center: Sequence[float], grid: dict[str, Any] | None = None
) -> ModelInput:
    """Cuts a region out of a scan and normalises it for a study.

    Args:
        scan: in any orientation.
        task: the study.
        center: the region's centre in RAS millimetres.
        grid: a checkpoint's overrides of the study's grid.

    Raises:
        ScanError: the region lies outside the scan, or all its voxels are the same.
    """
    canonical = scan.canonical()
    region = _not_between(locate(canonical, task.plane, task.grid.override(grid or {}), center))
    values, inside = sample(canonical, region, outside=task.clamp[0] if task.clamp else 0.0)
    if not inside.any():
        raise ScanError("The chosen spot lies outside the scan, so there is nothing to classify.")
    visible = values[inside]
    if np.ptp(visible) == 0:
        raise ScanError(
            "All voxels round the chosen spot have the same value; choose a spot that shows something."
        )
    if task.normalisation == "clamp":
        assert task.clamp is not None
        values = normalise_clamp(values, *task.clamp)
    else:
        values = normalise_z_score(values, inside)
    padding = region.padding
    mask = torch.from_numpy(padding)[None] if padding.any() else None
    return ModelInput(torch.from_numpy(values)[None, None], mask, region)


def locate(scan: Scan, plane: Plane, grid: Grid, center: Sequence[float] | np.ndarray) -> Region:
    """Lays a grid over a canonical scan, centred on a point in RAS millimetres."""
    middle = scan.world_to_voxel(center)
    positions = []
    for dimension, (axis, flip) in enumerate(AXES[plane]):
        count, spacing = grid.shape[dimension], grid.spacing_mm[dimension]
        step = 1.0 if spacing is None else spacing / scan.spacing[axis]
        if grid.crop_voxels and dimension > 0:
            step *= grid.crop_voxels[dimension - 1] / count
        at = middle[axis]
        if spacing is None and not (grid.crop_voxels and dimension > 0):
            # On the scan's own voxels, samples fall on voxel centres: nothing is interpolated.
            at = np.round(at + (0 if count % 2 else 0.5)) - (0 if count % 2 else 0.5)
        offsets = (np.arange(count) - (count - 1) / 2) * step
        # Rounding to a millionth of a voxel keeps float noise from deciding what lies within the scan.
        positions.append(np.round(at + (offsets[::-1] if flip else offsets), 6))
    return Region(plane, grid.shape, (positions[0], positions[1], positions[2]), scan.shape)


def _not_between(region: Region) -> Region:
    """A region with a sample in the scan, where that is thinner than samples lie apart and would fall between two."""
    positions = list(region.positions)
    for dimension, (axis, _) in enumerate(AXES[region.plane]):
        position, count = positions[dimension], region.scan_shape[axis]
        middle, step = float(position.mean()), _step(position)
        if count < step and _within(middle, count) and not np.any(_within(position, count)):
            positions[dimension] = position - step / 2
    return replace(region, positions=(positions[0], positions[1], positions[2]))


def sample(scan: Scan, region: Region, outside: float) -> tuple[np.ndarray, np.ndarray]:
    """Reads a canonical scan at a region's samples, linearly.

    Where samples lie farther apart than voxels, the voxels are smoothed first, so that none is skipped
    (sigma as in Cardoso et al., "Scale factor point spread function matching", MICCAI 2015).

    Returns:
        values float32 [D, H, W], `outside` beyond the scan; inside bool [D, H, W].
    """
    held = [slice(None)] * 3
    starts = [0, 0, 0]
    for dimension, (axis, _) in enumerate(AXES[region.plane]):
        position = region.positions[dimension]
        margin = int(np.ceil(4 * _step(position))) + 2
        start = int(np.clip(np.floor(position.min()) - margin, 0, scan.shape[axis] - 1))
        stop = int(np.clip(np.ceil(position.max()) + margin, start + 1, scan.shape[axis]))
        held[axis] = slice(start, stop)
        starts[axis] = start
    order = [axis for axis, _ in AXES[region.plane]]
    values = np.ascontiguousarray(scan.voxels[tuple(held)].transpose(order), dtype=np.float32)
    inside = np.ones((1, 1, 1), bool)
    for dimension, axis in enumerate(order):
        position = region.positions[dimension]
        step = _step(position)
        if step > 1:
            values = gaussian_filter1d(
                values, np.sqrt((step**2 - 1) / (8 * np.log(2))), axis=dimension, mode="nearest"
            )
        values = _resample(values, dimension, position - starts[axis])
        within = _within(position, scan.shape[axis])
        inside = inside & within.reshape([-1 if d == dimension else 1 for d in range(3)])
    values[~inside] = outside
    return values, inside


def normalise_clamp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Clamps to low..high and scales linearly to -1..1."""
    return ((np.clip(values, low, high) - low) * (2 / (high - low)) - 1).astype(np.float32)


def normalise_z_score(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Clips to the 0.5 and 99.5 percentiles, then to mean 0 and standard deviation 1; 0 outside the scan."""
    low, high = np.percentile(values[inside], (0.5, 99.5))
    values = np.clip(values, low, high)
    mean, std = values[inside].mean(), values[inside].std()
    values = (values - mean) / max(float(std), MIN_STD)
    values[~inside] = 0.0
    return values.astype(np.float32)


def side_center(scan: Scan, side: str) -> np.ndarray:
    """The middle of the patient's left or right half of a scan, in RAS millimetres, shape (3,)."""
    canonical = scan.canonical()
    index = (np.array(canonical.shape) - 1) / 2
    index[0] = (canonical.shape[0] - 1) * (0.25 if side == "left" else 0.75)
    return canonical.voxel_to_world(index)


def mask_centroid(mask: np.ndarray, scan: Scan) -> np.ndarray:
    """The centre of mass of a mask on the scan's grid, in RAS millimetres, shape (3,)."""
    return scan.voxel_to_world(np.argwhere(mask).mean(axis=0))


def _within(position: Any, count: int) -> Any:
    """Which positions lie within the voxels of an axis."""
    return (position >= -0.5) & (position <= count - 0.5)


def _step(position: np.ndarray) -> float:
    return float(abs(position[1] - position[0])) if len(position) > 1 else 1.0


def _inverse(position: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """The continuous sample index at which each voxel lies, for evenly spaced sample positions."""
    step = position[1] - position[0] if len(position) > 1 else 1.0
    return (voxels - position[0]) / step


def _resample(volume: np.ndarray, axis: int, index: np.ndarray) -> np.ndarray:
    """Linear interpolation of a volume at continuous indices along one axis; the edge value beyond the edge."""
    count = volume.shape[axis]
    index = np.clip(index, 0, count - 1)
    low = np.minimum(np.floor(index).astype(int), max(count - 2, 0))
    high = np.minimum(low + 1, count - 1)
    weight = (index - low).astype(np.float32).reshape([-1 if d == axis else 1 for d in range(volume.ndim)])
    first, second = volume.take(low, axis), volume.take(high, axis)
    return first + (second - first) * weight
