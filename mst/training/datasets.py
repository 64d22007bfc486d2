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
from torch.nn.functional import avg_pool2d
from torch.utils.data import Dataset

from mst.training.augment import Augmentation, Sample, draw, pick_plane
from mst.training.cases import LoadedCase
from mst.training.teacher import Teacher

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


@dataclass(frozen=True)
class DenseTargets:
    """What the dense objective asks of slices.

    Attributes:
        patch: size of the encoder's patches in pixels.
        ratings: {column: [lowest, highest]} of the manifest's ratings to predict; a case may lack any.
    """

    patch: int
    ratings: dict[str, list[float]]

    def of(self, case: LoadedCase, sample: Sample, kept: np.ndarray | None = None) -> dict[str, Tensor]:
        """Targets of a sample that was drawn with its mask.

        Args:
            kept: [S], which of its D slices the encoder is given; None: all.

        Returns:
            "patches" float32 [S, H / patch, W / patch], the share of each patch that the lesion fills; "area"
            float32 [S], the lesion's area over the slice's; "ratings" float32 [R + 1], each 0..1 or NaN where not
            known, the last one the diameter.
        """
        assert sample.mask is not None
        targets = [
            (case.case.ratings.get(name, float("nan")) - low) / (high - low)
            for name, (low, high) in self.ratings.items()
        ]
        diameter = (
            float("nan")
            if case.diameter_mm is None
            else case.diameter_mm * sample.view.zoom / MAX_DIAMETER_MM
        )
        mask = sample.mask if kept is None else sample.mask[kept]
        return {
            "patches": avg_pool2d(mask[:, None], self.patch)[:, 0],
            "area": mask.mean(dim=(1, 2)),
            "ratings": torch.tensor([*targets, diameter], dtype=torch.float32).clamp(max=1),
        }


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
        whole: the sample has all slices nevertheless, and says which are kept: for a stem, which needs those around
            them too.
        dense: gives the targets of the dense objective as well; None: it is not trained for.
        teacher: answers each sample too; None: there is none.
        trust: how much its answer weighs in the target beside the case's own.
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
        whole: bool = False,
        dense: DenseTargets | None = None,
        teacher: Teacher | None = None,
        trust: float = 0.0,
    ) -> None:
        super().__init__(cases, grid, augmentation, count, seed, weights)
        self.keep_slices, self.whole, self.dense = keep_slices, whole, dense
        self.teacher, self.trust = teacher, trust

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """{"volume": float32 [1, D, H, W], "padding_mask": bool [D], "target": float32 scalar}.

        With `dense`, "target" is called "probability", and its targets are there too. With `whole` there is "kept",
        int64 [S], and "padding_mask" is that of the slices that are kept. A teacher may add "features".
        """
        case, rng = self._start(index)
        plane = pick_plane(self.augmentation, case.task, rng)
        slices = kept = None
        if self.keep_slices:
            depth = len(case.region(plane, self.grid).positions[0])
            places = (np.arange(self.keep_slices) + rng.random(self.keep_slices)) * depth / self.keep_slices
            if self.whole:
                kept = np.floor(places).astype(int)
            else:
                slices = places - 0.5
        with_mask = self.dense is not None
        sample = draw(case, self.grid, plane, self.augmentation, self.intensity, rng, slices, with_mask)
        target = torch.tensor(case.target, dtype=torch.float32)
        found = {"volume": sample.volume[None], "padding_mask": sample.padding}
        if kept is not None:
            found |= {"padding_mask": sample.padding[kept], "kept": torch.from_numpy(kept)}
        if self.teacher is not None:
            answer, features = self.teacher.answer(case, plane, self.augmentation, sample.view)
            target = torch.lerp(target, answer, self.trust)
            if features is not None:
                found["features"] = features
        if self.dense is None:
            return {**found, "target": target}
        return {**found, "probability": target, **self.dense.of(case, sample, kept)}


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
    """Slices for the encoder, with dense targets or with an order in which patches are hidden.

    Args:
        cases, grid, augmentation, count, seed, weights: as in `VolumeDraws`.
        dense: the targets.
        slices: slices a sample, all of one case and plane.
        masked: gives the order instead of the targets.
    """

    def __init__(
        self,
        cases: list[LoadedCase],
        grid: dict[str, Any],
        augmentation: Augmentation,
        count: int,
        dense: DenseTargets,
        slices: int = 8,
        seed: int = 0,
        weights: np.ndarray | None = None,
        masked: bool = False,
    ) -> None:
        super().__init__(cases, grid, augmentation, count, seed, weights)
        self.dense, self.slices, self.masked = dense, slices, masked

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """{"slices": float32 [S, 1, H, W]} and `DenseTargets.of`, or {"order": float32 [S, h, w], random}."""
        case, rng = self._start(index)
        plane = pick_plane(self.augmentation, case.task, rng)
        depth = len(case.region(plane, self.grid).positions[0])
        # Half of the slices are close to the middle, where lesions are; the others lie anywhere.
        near = rng.random(self.slices) < 0.5
        spread = np.where(near, depth / 5, depth / 2)
        slices = (depth - 1) / 2 + rng.uniform(-1, 1, self.slices) * spread
        sample = draw(case, self.grid, plane, self.augmentation, self.intensity, rng, slices, with_mask=True)
        found = {"slices": sample.volume[:, None]}
        if not self.masked:
            return {**found, **self.dense.of(case, sample)}
        patches = (self.slices, *(size // self.dense.patch for size in sample.volume.shape[1:]))
        return {**found, "order": torch.from_numpy(rng.random(patches, dtype=np.float32))}
