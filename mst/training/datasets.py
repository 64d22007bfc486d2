"""What a training step is fed: an endless, numbered row of random samples.

Sample number i depends on the seed and on i alone, not on what was drawn before. So a run that was cut off goes
on with exactly the samples that it would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, avg_pool3d, pad
from torch.utils.data import Dataset

from mst.preprocess import AXES
from mst.tasks import Plane
from mst.training.augment import (
    Augmentation,
    Sample,
    View,
    draw,
    lesion_pixel,
    pick_plane,
    pick_view,
    slice_range,
)
from mst.training.cases import LoadedCase

MAX_DIAMETER_MM = 40.0  # lesions of this size and larger count as 1
NOWHERE = -1e4  # a slice's index along D where there is no scan


def balanced(weights: np.ndarray, cases: list[LoadedCase]) -> np.ndarray:
    """The same weights within each class, with which each class is drawn equally often, and cases of no class
    (indeterminate) half as often."""
    labels = np.array([case.case.label for case in cases])
    found = np.zeros(len(cases))
    for label in set(labels.tolist()):
        share = 1.0 if label in cases[0].task.classes else 0.5
        found[labels == label] = share * weights[labels == label] / weights[labels == label].sum()
    return found


def reader_weights(cases: list[LoadedCase]) -> np.ndarray:
    """How far each case's rating is trusted: n / (n + 1) where n readers gave it; 1 where nobody says how many."""
    readers = [case.case.ratings.get("readers") for case in cases]
    return np.array([1.0 if n is None else n / (n + 1) for n in readers])


def dataset_weights(names: list[str]) -> np.ndarray:
    """Weights with which each data set is drawn as often as the square root of its cases says.

    A small one of another kind is not drowned by a large one, nor learnt by heart (temperature sampling with an
    exponent of 0.5, as for languages: Arivazhagan et al., arXiv 1907.05019).
    """
    return np.array([names.count(name) ** -0.5 for name in names])


def rating_targets(case: LoadedCase, view: View, ratings: dict[str, list[float]]) -> Tensor:
    """float32 [R + 1], each 0..1 or NaN where not known: the case's ratings, and the diameter of what the view shows.

    Args:
        ratings: {column: [lowest, highest]} of the manifest's ratings; a case may lack any.
    """
    unknown = float("nan")
    found = [
        unknown if view.free else (case.case.ratings.get(name, unknown) - low) / (high - low)
        for name, (low, high) in ratings.items()
    ]
    size = None if view.free else case.diameter_mm
    found.append(unknown if size is None else size * view.zoom / MAX_DIAMETER_MM)
    return torch.tensor(found, dtype=torch.float32).clamp(max=1)


@dataclass(frozen=True)
class PlaceTargets:
    """What the dense objective asks of a 3D ResNet's feature maps.

    Attributes:
        strides: by stage, see `ResNet3D.stride`.
        ratings: to predict, see `rating_targets`.
    """

    strides: dict[int, tuple[int, int, int]]
    ratings: dict[str, list[float]]

    def of(self, case: LoadedCase, sample: Sample) -> dict[str, Tensor]:
        """Targets of a sample that was drawn with its mask.

        Returns:
            for each stage "places_N", float32 [d, h, w], the share that the lesion fills of a box of `stride` voxels
            round each place of its map; "ratings" as `rating_targets` gives them.
        """
        assert sample.mask is not None
        found = {"ratings": rating_targets(case, sample.view, self.ratings)}
        for stage, stride in self.strides.items():
            around: list[int] = []  # before and behind, from the last axis to the first, as `pad` wants it
            for size, step in zip(sample.mask.shape[::-1], stride[::-1], strict=True):
                around += [step // 2, -(-size // step) * step - size - step // 2]
            found[f"places_{stage}"] = avg_pool3d(pad(sample.mask[None], around), stride)[0]
        return found


@dataclass(frozen=True)
class DenseTargets:
    """What the dense objective asks of slices.

    Attributes:
        patch: size of the encoder's patches in pixels.
        ratings: to predict, see `rating_targets`.
    """

    patch: int
    ratings: dict[str, list[float]]

    def of(self, case: LoadedCase, sample: Sample) -> dict[str, Tensor]:
        """Targets of a sample that was drawn with its mask.

        Returns:
            "patches" float32 [D, H / patch, W / patch], the share of each patch that the lesion fills; "area"
            float32 [D], the lesion's area over the slice's; "ratings" as `rating_targets` gives them.
        """
        mask = sample.mask
        assert mask is not None
        return {
            "patches": avg_pool2d(mask[:, None], self.patch)[:, 0],
            "area": mask.mean(dim=(1, 2)),
            "ratings": rating_targets(case, sample.view, self.ratings),
        }


class VolumeDraws(Dataset):
    """Volumes for a classifier.

    Args:
        cases: training cases.
        grid: the model's grid.
        augmentation: see there.
        count: how many samples there are (steps times batch size).
        seed: of the row.
        weights: how often each case is drawn, to a common factor; None: all equally often.
        keep_slices: how many of the D slices a sample keeps, one at a random place of each equal part; None
            keeps all. An MST's slices carry no order, so fewer of them train it at a part of the cost.
        dense: gives the targets of the dense objective as well; None: it is not trained for.
        ratings: without `dense`, gives `rating_targets` of these as well; None: they are not trained for.
        free: share of the samples that hold no lesion.
        focus: share of the kept slices that lie where the lesion is.
        window: patches a side of the part of each slice that a sample shows; None: the whole slice. A ViT's other
            patches need not be there, so a part trains it at a part of the cost (Liu et al., PatchDropout, arXiv
            2208.07220).
        patch: size of a patch in pixels, for the window.
    """

    def __init__(
        self,
        cases: list[LoadedCase],
        grid: dict[str, Any],
        augmentation: Augmentation,
        count: int,
        seed: int = 0,
        weights: np.ndarray | None = None,
        keep_slices: int | None = None,
        dense: DenseTargets | PlaceTargets | None = None,
        ratings: dict[str, list[float]] | None = None,
        free: float = 0.0,
        focus: float = 0.0,
        window: int | None = None,
        patch: int = 14,
    ) -> None:
        self.cases, self.grid, self.count, self.seed = cases, grid, count, seed
        self.augmentation, self.intensity = augmentation, augmentation.intensity()
        weights = np.ones(len(cases)) if weights is None else weights
        self.weights = weights / weights.sum()
        self.keep_slices, self.dense, self.ratings = keep_slices, dense, ratings
        self.free, self.focus, self.window, self.patch = free, focus, window, patch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """{"volume": float32 [1, D, H, W], "padding_mask": bool [D], "target": float32 scalar}.

        With `dense`, `ratings` or `free`, "target" is called "probability"; their targets are there too. With
        `free` there is "lesion", 1 or 0, whether the sample holds one; with `window` "corner", int64 [2], the row and
        column of its first patch.
        """
        rng = np.random.default_rng([self.seed, index])
        case = self.cases[int(rng.choice(len(self.cases), p=self.weights))]
        plane = pick_plane(self.augmentation, case, rng)
        view = pick_view(self.augmentation, case, plane, rng, self.free)
        slices = self._places(case, plane, view, rng) - 0.5 if self.keep_slices else None
        window, corner = self._window(case, plane, view, rng) if self.window else (None, None)
        with_mask = self.dense is not None
        sample = draw(
            case, self.grid, plane, self.augmentation, self.intensity, rng, slices, with_mask, view, window
        )
        target = torch.tensor(case.target, dtype=torch.float32)
        found = {"volume": sample.volume[None], "padding_mask": sample.padding}
        if corner is not None:
            found["corner"] = torch.from_numpy(corner)
        if self.free:
            found["lesion"] = torch.tensor(float(not view.free))
        if self.dense is not None:
            return {**found, "probability": target, **self.dense.of(case, sample)}
        if self.ratings is not None:
            return {**found, "probability": target, "ratings": rating_targets(case, view, self.ratings)}
        return {**found, "probability" if self.free else "target": target}

    def _places(self, case: LoadedCase, plane: Plane, view: View, rng: np.random.Generator) -> np.ndarray:
        """[S], where along D the slices lie that are kept, 0 to D: one at a random place of each equal part.

        Of them, `focus` lie where the lesion is. Where the scan ends within the grid and nothing is put beyond, the
        others lie within the scan, not more of them than the grid has there; what is left lies nowhere.
        """
        count = self.keep_slices or 0
        region = case.region(plane, self.grid)
        depth = len(region.positions[0])
        everywhere = (np.arange(count) + rng.random(count)) * depth / count
        if not (self.focus or self.free):
            return everywhere
        spacing = case.scan.spacing[AXES[plane][0][0]]
        lesion, scan = (faces[0] for faces in case.reach(plane))
        if view.ends_mm is not None:
            scan = np.clip(scan, *view.ends_mm[0])
        low, high = (np.clip(edge + 0.5, 0, depth) for edge in slice_range(region, spacing, view, scan))
        if view.mirrored or view.beside is not None:
            low, high = 0.0, float(depth)
        near = np.zeros(0)
        if not view.free:
            first, last = (edge + 0.5 for edge in slice_range(region, spacing, view, np.clip(lesion, *scan)))
            first, last = np.clip((first - 0.5, last + 0.5), 0, depth)
            number = min(round(count * self.focus), int(np.ceil(last - first)))
            near = first + (np.arange(number) + rng.random(number)) * (last - first) / max(number, 1)
        number = min(count - len(near), max(int(np.ceil(high - low)), 1 if not len(near) else 0))
        far = low + (np.arange(number) + rng.random(number)) * (high - low) / max(number, 1)
        places = np.full(count, NOWHERE)
        places[: len(near) + number] = np.sort(np.concatenate([near, far]))
        return places

    def _window(
        self, case: LoadedCase, plane: Plane, view: View, rng: np.random.Generator
    ) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """Rows and columns of a window of whole patches that shows the case's centre, and its first patch."""
        assert self.window is not None
        region = case.region(plane, self.grid)
        spacing = [case.scan.spacing[axis] for axis, _ in AXES[plane]]
        middle = lesion_pixel(region, spacing, view)
        corner = np.zeros(2, int)
        for dimension in (0, 1):
            patches = region.shape[1 + dimension] // self.patch
            at = patches / 2 if view.free else middle[dimension] / self.patch
            # A patch of the window's edge may hold it, but no less than that.
            low = np.clip(np.ceil(at - self.window + 1), 0, patches - self.window)
            high = np.clip(np.floor(at - 1), low, patches - self.window)
            corner[dimension] = rng.integers(int(low), int(high) + 1)
        rows, columns = (first * self.patch + np.arange(self.window * self.patch) for first in corner)
        return (rows, columns), corner


class ValidationVolumes(Dataset):
    """Volumes as the dashboard prepares them, unvaried, for early stopping; cases of no class are left out.

    Args:
        cases: cases that the training does not see.
        grid: the model's grid.
    """

    def __init__(self, cases: list[LoadedCase], grid: dict[str, Any]) -> None:
        self.cases = [
            case for case in cases if case.case.label in (case.task.classes[0], case.task.classes[-1])
        ]
        self.grid = grid

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """{"volume": float32 [1, D, H, W], "padding_mask": bool [D], "target": float32 scalar, 1: the last class}."""
        case = self.cases[index]
        given = case.prepare(self.grid)
        padding = torch.zeros(given.volume.shape[2], dtype=torch.bool)
        return {
            "volume": given.volume[0],
            "padding_mask": padding if given.padding_mask is None else given.padding_mask[0],
            "target": torch.tensor(float(case.case.label == case.task.classes[-1])),
        }
