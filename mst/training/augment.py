"""Random samples cut out of a case: where, how large, how turned, and how the intensities vary.

One trilinear lookup does all of the geometry, from the voxels in memory straight to the model's grid, so that
a sample is interpolated once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandScaleIntensity,
    RandShiftIntensity,
)
from torch import Tensor
from torch.nn.functional import grid_sample

from mst.preprocess import AXES, Region, normalise_z_score
from mst.tasks import Plane, Task
from mst.training.cases import LoadedCase


@dataclass(frozen=True)
class Augmentation:
    """What is varied, and how far.

    Attributes:
        shift_mm: the centre moves up to this far along each axis, as a click does; one number, or three for
            (slices, rows, columns).
        near: how often it moves only a fifth as far, as most clicks do: what lies in the middle is then more likely
            meant than what lies beside.
        zoom: smallest and largest magnification.
        rotate_deg: largest turn within the slice's plane; the slices themselves stay slices.
        flip: whether each of the three axes is flipped half of the time.
        other_planes: how often the slices run along another plane than the study's.
        continue_edges: how often tissue goes on (mirrored) beyond the scan's border. A crop's border is an
            artefact that a whole scan does not have, so the model must not come to rely on it.
        crop_mm: where tissue does not go on, the scan ends at a cube of this edge round the case's centre, as if only
            that had been stored; None: where it really ends. A model that never saw a border looks at it first.
        noise, shift, scale: Gaussian noise's standard deviation, largest shift and largest relative change of
            the normalised intensities (-1..1).
        smooth: how often a sample is blurred, like a softer reconstruction kernel.
        invert: how often the normalised intensities, and what lies beyond the scan, change their sign.
    """

    shift_mm: float | tuple[float, float, float] = 10.0
    zoom: tuple[float, float] = (0.85, 1.2)
    rotate_deg: float = 180.0
    flip: bool = True
    other_planes: float = 0.3
    continue_edges: float = 0.5
    crop_mm: float | None = None
    noise: float = 0.03
    shift: float = 0.05
    scale: float = 0.1
    smooth: float = 0.2
    invert: float = 0.0
    near: float = 0.0

    @classmethod
    def from_config(cls, config: dict[str, Any] | None) -> Augmentation:
        """From a config's `augment`.

        Raises:
            ValueError: a setting that there is none of, or a value that is of no use for it.
        """
        known = {f.name for f in fields(cls)}
        if unknown := set(config or {}) - known:
            raise ValueError(
                f"augment has no setting {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
            )
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in (config or {}).items()
        }
        for key, value in settings.items():
            if value is None and key == "crop_mm":
                continue
            several = {"zoom": (2,), "shift_mm": (1, 3)}.get(key, (1,))
            numbers = value if isinstance(value, tuple) else (value,)
            if len(numbers) not in several or not all(isinstance(n, int | float) for n in numbers):
                raise ValueError(
                    f"augment.{key} is {value!r}, not {' or '.join(map(str, several))} number(s)"
                )
        return cls(**settings)

    def intensity(self) -> Compose:
        """The part that changes values, for a volume [1, D, H, W]."""
        return Compose(
            [
                RandGaussianSmooth(
                    prob=self.smooth, sigma_x=(0.3, 0.9), sigma_y=(0.3, 0.9), sigma_z=(0.1, 0.3)
                ),
                RandScaleIntensity(factors=self.scale, prob=0.5),
                RandShiftIntensity(offsets=self.shift, prob=0.5),
                RandGaussianNoise(prob=0.5, std=self.noise),
            ]
        )


@dataclass(frozen=True)
class View:
    """How a sample lies in its case.

    Attributes:
        zoom: how much larger than life things are.
        angle: turn within the slice's plane, in radians.
        shift_mm: [3], of the centre along (slices, rows, columns).
        flips: [3], 1 or -1.
        mirrored: whether tissue goes on beyond the scan's border.
    """

    zoom: float
    angle: float
    shift_mm: np.ndarray
    flips: np.ndarray
    mirrored: bool


@dataclass(frozen=True)
class Sample:
    """One cut-out.

    Attributes:
        volume: float32 [D, H, W], normalised as the study asks.
        padding: bool [D], slices outside the scan.
        mask: float32 [D, H, W], 0..1; None unless asked for.
        view: how it lies in its case.
    """

    volume: Tensor
    padding: Tensor
    mask: Tensor | None
    view: View


def pick_plane(augmentation: Augmentation, task: Task, rng: np.random.Generator) -> Plane:
    """The study's own plane, or now and then one of the two others."""
    if rng.random() >= augmentation.other_planes:
        return task.plane
    others: list[Plane] = [plane for plane in AXES if plane != task.plane]
    return others[int(rng.integers(len(others)))]


def pick_view(augmentation: Augmentation, rng: np.random.Generator) -> View:
    """A random view, as far as the augmentation varies it."""
    zoom = float(rng.uniform(*augmentation.zoom))
    angle = float(np.deg2rad(rng.uniform(-augmentation.rotate_deg, augmentation.rotate_deg)))
    reach = np.asarray(augmentation.shift_mm)
    shift_mm = rng.uniform(-reach, reach, size=3)
    # Nothing is drawn where all shifts are alike: the samples of older runs stay what they were.
    if augmentation.near and rng.random() < augmentation.near:
        shift_mm = shift_mm / 5
    flips = np.where(rng.random(3) < 0.5, -1.0, 1.0) if augmentation.flip else np.ones(3)
    return View(zoom, angle, shift_mm, flips, bool(rng.random() < augmentation.continue_edges))


def draw(
    case: LoadedCase,
    grid: dict[str, Any],
    plane: Plane,
    augmentation: Augmentation,
    intensity: Compose,
    rng: np.random.Generator,
    slices: np.ndarray | None = None,
    with_mask: bool = False,
) -> Sample:
    """Cuts one augmented sample.

    Args:
        slices: indices along D to keep, which may lie between the grid's slices; None keeps all.
        with_mask: whether the mask is sampled too.
    """
    view = pick_view(augmentation, rng)
    values, inside, padding, index = cut(case, grid, plane, augmentation, view, slices)
    task = case.task
    outside = outside_value(task)
    intensity.set_random_state(seed=int(rng.integers(2**31)))
    values = torch.as_tensor(intensity(values[None]))[0]
    if task.normalisation == "clamp":
        values = values.clamp(-1, 1)
    # Nothing is drawn where nothing is inverted: the samples of older runs stay what they were.
    if augmentation.invert and rng.random() < augmentation.invert:
        values, outside = -values, -outside
    values = torch.where(inside, values, outside)
    mask = lookup(case.mask_volume(plane), index, mirrored=False, fill=True)[0] if with_mask else None
    return Sample(values.contiguous(), padding, mask, view)


def cut(
    case: LoadedCase,
    grid: dict[str, Any],
    plane: Plane,
    augmentation: Augmentation,
    view: View,
    slices: np.ndarray | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a view shows, its tones as they are.

    Returns:
        normalised values float32 [D, H, W]; inside bool [D, H, W], False beyond the scan; padding bool [D]; the voxel
        indices [D, H, W, 3] where they were looked up.
    """
    region = case.region(plane, grid)
    spacing = [case.scan.spacing[axis] for axis, _ in AXES[plane]]
    index = sample_positions(region, spacing, view.zoom, view.angle, view.shift_mm, view.flips, slices)
    volume = case.volume(region)
    values, inside = lookup(volume, index, view.mirrored)
    padding = ~inside_slices(index, volume.shape[0], view.mirrored)
    if augmentation.crop_mm and not view.mirrored:
        kept = _within(index, region, spacing, augmentation.crop_mm / 2)
        inside, padding = inside & kept.all(dim=-1), padding | ~kept[:, 0, 0, 0]
    task = case.task
    if task.normalisation == "clamp":
        assert task.clamp is not None
        low, high = task.clamp
        values = (values.clamp(low, high) - low) * (2 / (high - low)) - 1
    else:
        values = torch.from_numpy(normalise_z_score(values.numpy(), inside.numpy()))
    return values, inside, padding, index


def outside_value(task: Task) -> float:
    """What a normalised volume holds where there is no scan."""
    return -1.0 if task.normalisation == "clamp" else 0.0


def sample_positions(
    region: Region,
    spacing: list[float],
    zoom: float,
    angle: float,
    shift_mm: np.ndarray,
    flips: np.ndarray,
    slices: np.ndarray | None = None,
) -> Tensor:
    """Continuous voxel indices [D, H, W, 3] (along the region's three axes) of a transformed region.

    Args:
        region: the untransformed one.
        spacing: millimetres between voxels along its axes.
        zoom, angle, shift_mm, flips: magnification, turn in radians in the (H, W) plane, shift along
            (D, H, W), and 1 or -1 along (D, H, W).
        slices: indices along D to keep; None keeps all.
    """
    offsets, middles, signs = [], [], []
    for dimension, position in enumerate(region.positions):
        step = float(position[1] - position[0]) if len(position) > 1 else 1.0
        count = len(position)
        steps = (np.arange(count) if dimension or slices is None else slices) - (count - 1) / 2
        offsets.append(
            torch.from_numpy(steps * abs(step) * spacing[dimension] / zoom * flips[dimension]).float()
        )
        middles.append(float(position[0] + position[-1]) / 2)
        signs.append(1.0 if step > 0 else -1.0)
    depth, rows, columns = torch.meshgrid(*offsets, indexing="ij")
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    moved = (depth, cos * rows - sin * columns, sin * rows + cos * columns)
    return torch.stack(
        [middles[d] + (signs[d] * moved[d] + float(shift_mm[d])) / spacing[d] for d in range(3)],
        dim=-1,
    )


def lookup(volume: Tensor, index: Tensor, mirrored: bool, fill: bool = False) -> tuple[Tensor, Tensor]:
    """Trilinear values [D, H, W] of a volume [N0, N1, N2] at continuous indices [D, H, W, 3].

    Args:
        mirrored: whether the volume goes on as its mirror image beyond the border; else its edge value.
        fill: zero beyond the border instead.

    Returns:
        values; inside bool [D, H, W], all True where mirrored.
    """
    size = torch.tensor(volume.shape, dtype=torch.float32)
    coordinates = (2 * index / (size - 1).clamp_min(1) - 1).flip(-1)  # grid_sample wants (W, H, D)
    mode = "reflection" if mirrored else "zeros" if fill else "border"
    values = grid_sample(
        volume[None, None], coordinates[None], mode="bilinear", padding_mode=mode, align_corners=True
    )
    inside = ((index >= -0.5) & (index <= size - 0.5)).all(dim=-1)
    return values[0, 0], torch.ones_like(inside) if mirrored else inside


def _within(index: Tensor, region: Region, spacing: list[float], reach_mm: float) -> Tensor:
    """bool [D, H, W, 3]: which indices lie at most so far from the region's middle, along each axis."""
    middle = torch.tensor([float(p[0] + p[-1]) / 2 for p in region.positions])
    return (index - middle).abs() * torch.tensor(spacing, dtype=torch.float32) <= reach_mm


def inside_slices(index: Tensor, count: int, mirrored: bool) -> Tensor:
    """bool [D]: slices that lie within `count` slices of the scan; all of them where it is mirrored."""
    position = index[:, 0, 0, 0]
    inside = (position >= -0.5) & (position <= count - 0.5)
    return torch.ones_like(inside) if mirrored else inside
