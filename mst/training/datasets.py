"""What a training step is fed: an endless, numbered row of random samples.

Sample number i depends on the seed and on i alone, not on what was drawn before. So a run that was cut off goes
on with exactly the samples that it would have seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import Dataset

from mst.training.augment import Augmentation, draw, pick_plane
from mst.training.cases import LoadedCase

MAX_DIAMETER_MM = 40.0  # lesions of this size and larger count as 1


def label_weights(cases: list[LoadedCase]) -> np.ndarray:
    """Weights with which each class is drawn equally often, and cases of no class (indeterminate) half as often."""
    labels = [case.case.label for case in cases]
    classes = cases[0].task.classes
    return np.array([(1.0 if label in classes else 0.5) / labels.count(label) for label in labels])


class _Draws(Dataset):
    def __init__(
        self,
        cases: list[LoadedCase],
        grid: dict[str, Any],
        augmentation: Augmentation,
        count: int,
        seed: int,
        weights: np.ndarray | None,
    ) -> None:
        self.cases, self.grid, self.augmentation, self.count, self.seed = (
            cases,
            grid,
            augmentation,
            count,
            seed,
        )
        self.intensity = augmentation.intensity()
        weights = np.ones(len(cases)) if weights is None else weights
        self.weights = weights / weights.sum()

    def __len__(self) -> int:
        return self.count

    def _start(self, index: int) -> tuple[LoadedCase, np.random.Generator]:
        rng = np.random.default_rng([self.seed, index])
        return self.cases[int(rng.choice(len(self.cases), p=self.weights))], rng


class VolumeDraws(_Draws):
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
    ) -> None:
        super().__init__(cases, grid, augmentation, count, seed, weights)
        self.keep_slices = keep_slices

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """{"volume": float32 [1, D, H, W], "padding_mask": bool [D], "target": float32 scalar}."""
        case, rng = self._start(index)
        plane = pick_plane(self.augmentation, case.task, rng)
        slices = None
        if self.keep_slices:
            depth = len(case.region(plane, self.grid).positions[0])
            slices = (
                np.arange(self.keep_slices) + rng.random(self.keep_slices)
            ) * depth / self.keep_slices - 0.5
        sample = draw(case, self.grid, plane, self.augmentation, self.intensity, rng, slices)
        return {
            "volume": sample.volume[None],
            "padding_mask": sample.padding,
            "target": torch.tensor(case.target, dtype=torch.float32),
        }


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


class SliceDraws(_Draws):
    """Slices with dense targets for the encoder.

    Args:
        cases, grid, augmentation, count, seed, weights: as in `VolumeDraws`.
        patch: size of the encoder's patches in pixels.
        slices: slices a sample, all of one case and plane.
        ratings: {column: [lowest, highest]} of the manifest's ratings to predict; a case may lack any.
    """

    def __init__(
        self,
        cases: list[LoadedCase],
        grid: dict[str, Any],
        augmentation: Augmentation,
        count: int,
        patch: int,
        slices: int = 8,
        ratings: dict[str, list[float]] | None = None,
        seed: int = 0,
        weights: np.ndarray | None = None,
    ) -> None:
        super().__init__(cases, grid, augmentation, count, seed, weights)
        self.patch, self.slices, self.ratings = patch, slices, ratings or {}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Slices and targets.

        Returns:
            "slices" float32 [S, 1, H, W]; "patches" float32 [S, H / patch, W / patch], the share of each patch
            that the lesion fills; "area" float32 [S], the lesion's area over the slice's; "ratings"
            float32 [R + 1], each 0..1 or NaN where not known, the last one the diameter.
        """
        case, rng = self._start(index)
        plane = pick_plane(self.augmentation, case.task, rng)
        depth = len(case.region(plane, self.grid).positions[0])
        # Half of the slices are close to the middle, where lesions are; the others lie anywhere.
        near = rng.random(self.slices) < 0.5
        spread = np.where(near, depth / 5, depth / 2)
        slices = (depth - 1) / 2 + rng.uniform(-1, 1, self.slices) * spread
        sample = draw(case, self.grid, plane, self.augmentation, self.intensity, rng, slices, with_mask=True)
        assert sample.mask is not None
        targets = [
            (case.case.ratings.get(name, float("nan")) - low) / (high - low)
            for name, (low, high) in self.ratings.items()
        ]
        diameter = (
            float("nan") if case.diameter_mm is None else case.diameter_mm * sample.zoom / MAX_DIAMETER_MM
        )
        return {
            "slices": sample.volume[:, None],
            "patches": avg_pool2d(sample.mask[:, None], self.patch)[:, 0],
            "area": sample.mask.mean(dim=(1, 2)),
            "ratings": torch.tensor([*targets, diameter], dtype=torch.float32).clamp(max=1),
        }
