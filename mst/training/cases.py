"""Cases in memory, and which of them are kept from training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from mst.data import Case, ManifestError
from mst.preprocess import AXES, ModelInput, Region, locate, mask_centroid, prepare
from mst.scans import Scan, ScanError, read_mask, read_scan
from mst.tasks import Plane, Task

Read = TypeVar("Read")


class LoadedCase:
    """A case's scan and mask in memory, and its samples for a grid.

    Args:
        case: the manifest's row; its files are read at once.
        task: the study.

    Attributes:
        scan: canonical.
        mask: bool, the scan's shape; None where the manifest names none.
        center: RAS millimetres; the manifest's, else the mask's centre of mass, else the scan's middle.
        diameter_mm: of the sphere with the mask's volume; None without a mask.
    """

    def __init__(self, case: Case, task: Task) -> None:
        self.case = case
        self.task = task
        # A stack that ends with the lesion may have one slice: an MST masks the others.
        scan: Scan = _read(partial(read_scan, thin=True), case.image, case)
        self.scan = scan.canonical()
        self.mask: np.ndarray | None = None
        self.center = self.scan.center
        self._volumes: dict[tuple[Plane, tuple[float, ...]], Tensor] = {}
        self._masks: dict[Plane, Tensor] = {}
        self._reach: dict[Plane, tuple[np.ndarray, np.ndarray]] = {}
        if case.mask is not None:
            marked = _read(lambda file: read_mask(file, scan, same_shape=True), case.mask, case)
            self.mask = Scan(marked.astype(np.uint8), scan.affine).canonical().voxels > 0
            self.center = mask_centroid(self.mask, self.scan)
        if case.center is not None:
            self.center = np.asarray(case.center, dtype=float)

    @cached_property
    def diameter_mm(self) -> float | None:
        if self.mask is None:
            return None
        volume = float(self.mask.sum()) * float(np.prod(self.scan.spacing))
        return float((6 * volume / np.pi) ** (1 / 3))

    @property
    def target(self) -> float:
        """The probability of the last class to train on: (malignancy - 1) / 4 where rated, else the label.

        Where the manifest tells the malignancy that readers give such a lesion on average, that is taken.
        """
        ratings = self.case.ratings
        rating = ratings.get("expected_malignancy", ratings.get("malignancy"))
        if rating is not None:
            return (rating - 1) / 4
        if self.case.label not in self.task.classes:
            return 0.5
        return self.task.classes.index(self.case.label) / (len(self.task.classes) - 1)

    def prepare(self, grid: dict, offset_mm: Sequence[float] | np.ndarray = (0.0, 0.0, 0.0)) -> ModelInput:
        """The model's input without any augmentation, through the path that the dashboard takes."""
        return prepare(self.scan, self.task, self.center + np.asarray(offset_mm), grid)

    def region(self, plane: Plane, grid: dict) -> Region:
        """Where the grid lies when it is centred on the case and its slices run along a plane."""
        return locate(self.scan, plane, self.task.grid.override(grid), self.center)

    def reach(self, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
        """How far lesion and scan reach from the case's centre, in millimetres along a plane's axes in voxel order.

        Returns:
            Both [3, 2], the lower and the upper faces; without a mask the lesion is a point at the centre.
        """
        if plane not in self._reach:
            order = [axis for axis, _ in AXES[plane]]
            middle = self.scan.world_to_voxel(self.center)
            spacing = np.asarray(self.scan.spacing)
            scan = np.stack([np.full(3, -0.5), np.array(self.scan.shape) - 0.5], axis=1)
            lesion = np.stack([middle, middle], axis=1)
            if self.mask is not None:
                marked = np.argwhere(self.mask)
                lesion = np.stack([marked.min(axis=0) - 0.5, marked.max(axis=0) + 0.5], axis=1)
            lesion, scan = ((faces - middle[:, None]) * spacing[:, None] for faces in (lesion, scan))
            self._reach[plane] = lesion[order], scan[order]
        return self._reach[plane]

    def room(self, plane: Plane) -> np.ndarray:
        """How much tissue there is beside the lesion, in millimetres: [3, 2], below and above it as in `reach`."""
        lesion, scan = self.reach(plane)
        return np.stack([lesion[:, 0] - scan[:, 0], scan[:, 1] - lesion[:, 1]], axis=1)

    def volume(self, region: Region) -> Tensor:
        """The whole scan along the region's axes, float32 [N0, N1, N2], smoothed as `mst.preprocess.sample` does.

        It is kept, since smoothing is the slow part of cutting out a sample, and in half precision, since there
        may be thousands of cases: that is less than 1 HU.
        """
        steps = tuple(abs(float(p[1] - p[0])) if len(p) > 1 else 1.0 for p in region.positions)
        key = (region.plane, steps)
        if key not in self._volumes:
            values = self.scan.voxels.transpose([axis for axis, _ in AXES[region.plane]]).astype(np.float32)
            for dimension, step in enumerate(steps):
                if step > 1:
                    sigma = np.sqrt((step**2 - 1) / (8 * np.log(2)))
                    values = gaussian_filter1d(values, sigma, axis=dimension, mode="nearest")
            self._volumes[key] = torch.from_numpy(np.ascontiguousarray(values)).half()
        return self._volumes[key].float()

    def mask_volume(self, plane: Plane) -> Tensor:
        """The mask along a plane's axes, float32 [N0, N1, N2]; zero where the case has none."""
        if plane not in self._masks:
            mask = np.zeros(self.scan.shape, bool) if self.mask is None else self.mask
            values = mask.transpose([axis for axis, _ in AXES[plane]])
            self._masks[plane] = torch.from_numpy(np.ascontiguousarray(values))
        return self._masks[plane].float()


def load_cases(cases: Sequence[Case], task: Task) -> list[LoadedCase]:
    """Reads all cases into memory (the crops of 51^3 voxels take half a megabyte each).

    Raises:
        ManifestError: a file that cannot be read, or a mask that does not fit; the message names the row.
    """
    return [LoadedCase(case, task) for case in cases]


def _read(read: Callable[[Path], Read], file: Path, case: Case) -> Read:
    try:
        return read(file)
    except ScanError as error:
        text = str(error)
        raise ManifestError(
            f"{case.source}: {text if file.name in text else f'{file.name}: {text}'}"
        ) from error


def split(cases: Sequence[Case], folds: int, fold: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of a fold's training and validation cases: stratified by label, whole patients.

    The same cases, folds and seed give the same split, in whichever order the manifest lists them.

    Raises:
        ManifestError: fewer patients of a class than folds.
    """
    order = sorted(range(len(cases)), key=lambda index: cases[index].name)
    labels = np.array([cases[index].label for index in order])
    patients = np.array([cases[index].patient for index in order])
    for label in sorted(set(labels)):
        if (count := len(set(patients[labels == label]))) < folds:
            raise ManifestError(f"{folds} folds need as many patients of each label; {label} has {count}.")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    training, validation = list(splitter.split(labels, labels, patients))[fold]
    if set(patients[training]) & set(patients[validation]):
        raise ManifestError("A patient is on both sides of the split.")
    return sorted(order[i] for i in training), sorted(order[i] for i in validation)
