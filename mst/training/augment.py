"""Random samples cut out of a case: where, how large, how turned, and how the intensities vary.

One trilinear lookup does all of the geometry, from the voxels in memory straight to the model's grid, so that
a sample is interpolated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from monai.networks.layers.simplelayers import GaussianFilter
from monai.transforms import (
    Compose,
    RandGaussianNoise,
    RandScaleIntensity,
    RandShiftIntensity,
)
from torch import Tensor
from torch.nn.functional import grid_sample

from mst.preprocess import AXES, Region, normalise_z_score
from mst.tasks import Plane, Task
from mst.training.cases import LoadedCase
from mst.training.sections import Number, Settings, Share, Weight, read_section

LEAST_DEPTH_MM = 24.0  # along the slices, for slices in other planes
ENDS_MM = (2.0, 25.0)  # beyond the lesion, where a scan that ends near it does so
ROOM_MM = 20.0  # beside the lesion, for a view without it
LEAST_ROOM_MM = 3.0  # between the lesion and the scan's end, for a scan that goes on as its mirror image
FREE_MM = (6.0, 26.0)  # from where the lesion would begin to the middle of a view without it
INNER_MM = 8.0  # from there to the scan's end
FREE_ENDS_MM = (8.0, 28.0)  # beyond that middle, where a scan that ends near it does so
FOLDED = 0.6  # share of the views without a lesion in which the scan goes on where the lesion would be
SMOOTH_MM = (0.3, 0.9)
BESIDE_MM = 2.0  # between the lesion and tissue from beside it
SIGNS = np.array([-1.0, 1.0])


class Augmentation(Settings):
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
        ends: how often the scan ends near the lesion on each of its six sides: 2 to 25 mm beyond it. What is stored of
            a scan, and how much tissue there is round a click, says nothing of the lesion.
        trim: how often the scan ends along the slices within the lesion, of which at least a third is left.
        elsewhere: how often slices beyond the scan's ends show tissue from beside the lesion instead of nothing, where
            the scan reaches far enough. A stack that was cut with the lesion ends where that ends; scans do not.
        noise, shift, scale: Gaussian noise's standard deviation, largest shift and largest relative change of
            the normalised intensities (-1..1).
        smooth: how often a sample is blurred within the slice, by a standard deviation of 0.3 to 0.9 mm, like a softer
            reconstruction kernel or larger voxels.
        invert: how often the normalised intensities, and what lies beyond the scan, change their sign.
    """

    shift_mm: Number | tuple[Number, Number, Number] = 10.0
    zoom: tuple[Number, Number] = (0.85, 1.2)
    rotate_deg: Number = 180.0
    flip: bool = True
    other_planes: Share = 0.3
    continue_edges: Share = 0.5
    noise: Weight = 0.03
    shift: Weight = 0.05
    scale: Weight = 0.1
    smooth: Share = 0.2
    invert: Share = 0.0
    near: Share = 0.0
    ends: Share = 0.0
    trim: Share = 0.0
    elsewhere: Share = 0.0

    @classmethod
    def from_config(cls, config: dict[str, Any] | None) -> Augmentation:
        """From a config's `augment`.

        Raises:
            TrainingError: a setting that there is none of, or a value that is of no use for it.
        """
        return read_section(cls, config or {}, "augment")

    def intensity(self) -> Compose:
        """The part that changes values, for a volume [1, D, H, W]."""
        return Compose(
            [
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
        ends_mm: [3, 2], where the scan ends along its (slices, rows, columns), from the case's centre; infinite: where
            it really ends.
        beside: where tissue for slices beyond the scan's ends is taken from: (1 or 2 for rows or columns, 1 or -1 for
            beyond the lesion's upper or lower face); None: there is none.
        fold: (axis, sign, millimetres from the case's centre): the scan beyond that plane, on the side of the sign, is
            seen on its other side too, as in a mirror; None: there is no such plane.
        free: whether the lesion is beyond the scan's end, or behind the mirror, so that the sample holds none.
    """

    zoom: float
    angle: float
    shift_mm: np.ndarray
    flips: np.ndarray
    mirrored: bool
    ends_mm: np.ndarray | None = None
    beside: tuple[int, int] | None = None
    fold: tuple[int, int, float] | None = None
    free: bool = False


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


def pick_plane(augmentation: Augmentation, case: LoadedCase, rng: np.random.Generator) -> Plane:
    """The study's own plane, or now and then one of the two others, if the scan is no thin stack."""
    own = case.task.plane
    if rng.random() >= augmentation.other_planes:
        return own
    lower, upper = case.reach(own)[1][0]
    if upper - lower < LEAST_DEPTH_MM:
        return own
    others: list[Plane] = [plane for plane in AXES if plane != own]
    return others[int(rng.integers(len(others)))]


def has_room(case: LoadedCase) -> bool:
    """Whether there is tissue beside a case's lesion, of which is known that it holds none."""
    if case.mask is None:
        return False
    return bool(case.room(case.task.plane).max() >= ROOM_MM)


def pick_view(
    augmentation: Augmentation, case: LoadedCase, plane: Plane, rng: np.random.Generator, free: float = 0.0
) -> View:
    """A random view, as far as the augmentation varies it.

    Args:
        free: how often the view holds no lesion, where the scan has room beside it.
    """
    zoom = float(rng.uniform(*augmentation.zoom))
    angle = float(np.deg2rad(rng.uniform(-augmentation.rotate_deg, augmentation.rotate_deg)))
    reach = np.asarray(augmentation.shift_mm)
    shift_mm = rng.uniform(-reach, reach, size=3)
    # Nothing is drawn where all shifts are alike: the samples of older runs stay what they were.
    if augmentation.near and rng.random() < augmentation.near:
        shift_mm = shift_mm / 5
    flips = np.where(rng.random(3) < 0.5, -1.0, 1.0) if augmentation.flip else np.ones(3)
    mirrored = bool(rng.random() < augmentation.continue_edges)
    room = case.room(plane)
    # A stack that ends with its lesion would go on as a row of lesions.
    mirrored = mirrored and room.min() >= LEAST_ROOM_MM
    view = View(zoom, angle, shift_mm, flips, mirrored)
    # Nothing more is drawn where nothing of it is asked for: the samples of older runs stay what they were.
    varied = free or augmentation.ends or augmentation.trim or augmentation.elsewhere
    if not varied or case.mask is None:  # without a mask nobody knows what holds no lesion
        return view
    ends = _pick_ends(augmentation, case.reach(plane)[0], ENDS_MM, rng)
    beside = None
    sides = _roomy(room, (1, 2))
    if sides and rng.random() < augmentation.elsewhere:
        axis, side = sides[int(rng.integers(len(sides)))]
        beside = axis, (-1, 1)[side]
    sides = _roomy(room, (0, 1, 2))
    if sides and rng.random() < free:
        return _without_lesion(augmentation, case, plane, rng, view, sides, beside is not None)
    return _with_lesion(augmentation, case, plane, rng, view, ends, beside)


def _roomy(room: np.ndarray, axes: Sequence[int]) -> list[tuple[int, int]]:
    """(axis, 0 or 1 for below or above) where there is enough tissue beside the lesion for a view without it."""
    return [(axis, side) for axis in axes for side in (0, 1) if room[axis, side] >= ROOM_MM]


def _pick_ends(
    augmentation: Augmentation, faces: np.ndarray, margin_mm: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """[3, 2], where the scan ends: now and then by a random margin below and above faces [3, 2], else nowhere."""
    near = rng.random((3, 2)) < augmentation.ends
    return np.where(near, faces + rng.uniform(*margin_mm, size=(3, 2)) * SIGNS, SIGNS * np.inf)


def _with_lesion(
    augmentation: Augmentation,
    case: LoadedCase,
    plane: Plane,
    rng: np.random.Generator,
    view: View,
    ends: np.ndarray,
    beside: tuple[int, int] | None,
) -> View:
    """A view of the lesion, or of a part of it, whose scan ends where `ends` says unless its tissue goes on."""
    if rng.random() < augmentation.trim:
        side = int(rng.integers(2))
        left = rng.uniform(1 / 3, 1)
        low, high = case.reach(plane)[0][0]
        ends[0, side] = low + left * (high - low) if side else high - left * (high - low)
        return replace(view, mirrored=False, ends_mm=ends, beside=beside)
    return view if view.mirrored else replace(view, ends_mm=ends, beside=beside)


def _without_lesion(
    augmentation: Augmentation,
    case: LoadedCase,
    plane: Plane,
    rng: np.random.Generator,
    view: View,
    sides: Sequence[tuple[int, int]],
    filled: bool,
) -> View:
    """A view of tissue beside the lesion, on one of the sides where there is room.

    The scan ends where the lesion would begin, or goes on there as its mirror image: that a scan ends says nothing of
    the lesion. The region's middle lies beyond, anywhere else in the scan.

    Args:
        filled: whether slices beyond the scan's ends show tissue from beside, where that side is within the slice.
    """
    lesion, scan = case.reach(plane)
    axis, side = sides[int(rng.integers(len(sides)))]
    sign = (-1, 1)[side]
    # The lesion's outermost voxels are seen for half a voxel beyond them, as all is interpolated.
    voxel = case.scan.spacing[AXES[plane][axis][0]]
    face = lesion[axis, side] + sign * (voxel / 2 + rng.uniform(0.5, 3))
    folded = bool(rng.random() < FOLDED)
    inner = np.sort(np.clip(scan - SIGNS * INNER_MM, scan[:, :1], scan[:, 1:]), axis=1)
    middle = rng.uniform(inner[:, 0], inner[:, 1])
    farthest = min(case.room(plane)[axis, side] - INNER_MM, FREE_MM[1])
    middle[axis] = face + sign * rng.uniform(FREE_MM[0], max(FREE_MM[0], farthest))
    ends = _pick_ends(augmentation, middle[:, None], FREE_ENDS_MM, rng)
    if not folded:
        ends[axis, 1 - side] = face
    return replace(
        view,
        mirrored=False,
        shift_mm=middle,
        ends_mm=ends,
        beside=(axis, sign) if axis and filled else None,
        fold=(axis, sign, face) if folded else None,
        free=True,
    )


def draw(
    case: LoadedCase,
    grid: dict[str, Any],
    plane: Plane,
    augmentation: Augmentation,
    intensity: Compose,
    rng: np.random.Generator,
    slices: np.ndarray | None = None,
    with_mask: bool = False,
    view: View | None = None,
    window: tuple[np.ndarray, np.ndarray] | None = None,
) -> Sample:
    """Cuts one augmented sample.

    Args:
        slices: indices along D to keep, which may lie between the grid's slices; None keeps all.
        with_mask: whether the mask is sampled too.
        view: None: a random one.
        window: indices along H and W to keep; None keeps all.
    """
    view = view or pick_view(augmentation, case, plane, rng)
    values, inside, padding, index = cut(case, grid, plane, augmentation, view, slices, window)
    task = case.task
    outside = outside_value(task)
    intensity.set_random_state(seed=int(rng.integers(2**31)))
    if rng.random() < augmentation.smooth:
        values = blurred(values, rng.uniform(*SMOOTH_MM), case.region(plane, grid), case)
    values = torch.as_tensor(intensity(values[None])).as_subclass(Tensor)[0]
    if task.normalisation == "clamp":
        values = values.clamp(-1, 1)
    # Nothing is drawn where nothing is inverted: the samples of older runs stay what they were.
    if augmentation.invert and rng.random() < augmentation.invert:
        values, outside = -values, -outside
    values = torch.where(inside, values, outside)
    mask = None
    if with_mask:
        mask = lookup(case.mask_volume(plane), index, mirrored=view.mirrored, fill=True)[0] * inside
    return Sample(values.contiguous(), padding, mask, view)


def cut(
    case: LoadedCase,
    grid: dict[str, Any],
    plane: Plane,
    augmentation: Augmentation,
    view: View,
    slices: np.ndarray | None = None,
    window: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a view shows, its tones as they are.

    Returns:
        normalised values float32 [D, H, W]; inside bool [D, H, W], False beyond the scan; padding bool [D]; the voxel
        indices [D, H, W, 3] where they were looked up.
    """
    region = case.region(plane, grid)
    spacing = [case.scan.spacing[axis] for axis, _ in AXES[plane]]
    index = sample_positions(
        region, spacing, view.zoom, view.angle, view.shift_mm, view.flips, slices, window
    )
    if view.fold is not None:
        axis, sign, face = view.fold
        middle = float(region.positions[axis][0] + region.positions[axis][-1]) / 2
        plane_at = middle + face / spacing[axis]
        index[..., axis] = plane_at + sign * (index[..., axis] - plane_at).abs()
    volume = case.volume(region)
    padding = ~inside_slices(index, volume.shape[0], view.mirrored)
    if view.ends_mm is not None:
        ended = _between(index, region, spacing, view.ends_mm)
        padding = padding | ~ended[:, 0, 0, 0]
    filled = torch.zeros_like(padding)
    if view.beside is not None and padding.any():
        index, filled = _from_beside(index, padding, case.mask_volume(plane), view.beside, spacing)
    values, inside = lookup(volume, index, view.mirrored)
    if view.ends_mm is not None:
        inside = inside & (ended.all(dim=-1) | filled[:, None, None])
    padding = padding & ~filled
    inside = inside & ~padding[:, None, None]
    task = case.task
    if task.normalisation == "clamp":
        assert task.clamp is not None
        low, high = task.clamp
        values = (values.clamp(low, high) - low) * (2 / (high - low)) - 1
    else:
        values = torch.from_numpy(normalise_z_score(values.numpy(), inside.numpy()))
    return values, inside, padding, index


def blurred(values: Tensor, sigma_mm: float, region: Region, case: LoadedCase) -> Tensor:
    """Slices [D, H, W], each blurred within itself: slices that are drawn need not lie beside one another."""
    sigma = []
    for dimension in (1, 2):
        position = region.positions[dimension]
        axis = AXES[region.plane][dimension][0]
        sigma.append(sigma_mm / (abs(float(position[1] - position[0])) * case.scan.spacing[axis]))
    return GaussianFilter(2, sigma)(values[:, None])[:, 0]


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
    window: tuple[np.ndarray, np.ndarray] | None = None,
) -> Tensor:
    """Continuous voxel indices [D, H, W, 3] (along the region's three axes) of a transformed region.

    Args:
        region: the untransformed one.
        spacing: millimetres between voxels along its axes.
        zoom, angle, shift_mm, flips: magnification, turn in radians in the (H, W) plane, shift along
            (D, H, W), and 1 or -1 along (D, H, W).
        slices: indices along D to keep; None keeps all.
        window: indices along H and W to keep; None keeps all.
    """
    kept: list[np.ndarray | None] = [slices, *(window or (None, None))]
    offsets, middles, signs = [], [], []
    for dimension, position in enumerate(region.positions):
        step = float(position[1] - position[0]) if len(position) > 1 else 1.0
        count = len(position)
        given = kept[dimension]
        steps = (np.arange(count) if given is None else given) - (count - 1) / 2
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


def lesion_pixel(region: Region, spacing: list[float], view: View) -> tuple[float, float]:
    """Row and column of a region's grid at which a view shows the case's centre: the way back of `sample_positions`."""
    signs = [1.0 if position[-1] > position[0] else -1.0 for position in region.positions]
    down, right = (-signs[d] * float(view.shift_mm[d]) for d in (1, 2))
    cos, sin = float(np.cos(view.angle)), float(np.sin(view.angle))
    turned = cos * down + sin * right, -sin * down + cos * right
    found = []
    for dimension, moved in zip((1, 2), turned, strict=True):
        position = region.positions[dimension]
        step = abs(float(position[1] - position[0])) * spacing[dimension]
        found.append(moved * view.zoom * float(view.flips[dimension]) / step + (len(position) - 1) / 2)
    return found[0], found[1]


def slice_range(region: Region, spacing: float, view: View, faces_mm: np.ndarray) -> tuple[float, float]:
    """Between which indices along D a view shows what lies between two faces, in millimetres from the case's centre."""
    position = region.positions[0]
    step = abs(float(position[1] - position[0])) * spacing
    sign = 1.0 if position[-1] > position[0] else -1.0
    at = (faces_mm - view.shift_mm[0]) * sign * view.zoom * view.flips[0] / step + (len(position) - 1) / 2
    return float(at.min()), float(at.max())


def _from_beside(
    index: Tensor,
    padding: Tensor,
    mask: Tensor,
    beside: tuple[int, int],
    spacing: list[float],
) -> tuple[Tensor, Tensor]:
    """Takes the slices that are padding from beside the lesion, as far as the lesion is not seen there.

    Along the slices the scan goes on as its mirror image; within the slice all moves just past the lesion's face.

    Returns:
        indices [D, H, W, 3]; bool [D], which slices were taken from there.
    """
    axis, sign = beside
    marked = mask.amax(dim=[d for d in range(3) if d != axis]).nonzero()[:, 0]
    face = float(marked.max()) + 0.5 if sign > 0 else float(marked.min()) - 0.5
    moved = index[padding].clone()
    at = moved[..., axis]
    gap = BESIDE_MM / spacing[axis]
    start = face + sign * gap
    moved[..., axis] = at + (start - (float(at.min()) if sign > 0 else float(at.max())))
    for dimension in (0, axis):
        last = mask.shape[dimension] - 1
        moved[..., dimension] = _mirror(moved[..., dimension], last)
    shows = (lookup(mask, moved, mirrored=False, fill=True)[0] > 0.01).flatten(1).any(dim=1)
    filled = torch.zeros_like(padding)
    filled[padding] = ~shows
    index = index.clone()
    index[filled] = moved[~shows]
    return index, filled


def _mirror(at: Tensor, last: int) -> Tensor:
    """Continuous indices brought within 0..last, to and fro."""
    if last == 0:
        return torch.zeros_like(at)
    at = at.remainder(2 * last)
    return torch.where(at > last, 2 * last - at, at)


def _between(index: Tensor, region: Region, spacing: list[float], ends_mm: np.ndarray) -> Tensor:
    """bool [D, H, W, 3]: which indices lie between ends in millimetres from the region's middle, along each axis."""
    middle = torch.tensor([float(p[0] + p[-1]) / 2 for p in region.positions])
    at = (index - middle) * torch.tensor(spacing, dtype=torch.float32)
    low, high = torch.from_numpy(ends_mm.T.astype(np.float32))
    return (at >= low) & (at <= high)


def inside_slices(index: Tensor, count: int, mirrored: bool) -> Tensor:
    """bool [D]: slices that lie within `count` slices of the scan; all of them where it is mirrored."""
    position = index[:, 0, 0, 0]
    inside = (position >= -0.5) & (position <= count - 0.5)
    return torch.ones_like(inside) if mirrored else inside
