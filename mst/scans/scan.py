"""A 3D scan: its voxels and where they lie in the patient.

Coordinates are RAS+ throughout: x grows to the patient's right, y to the front (anterior), z to the head
(superior), in millimetres. DICOM and ITK use LPS; the readers flip the first two axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath

import nibabel as nib
import numpy as np

from mst.scans.source import DicomSource


class Caution(str):
    """A note that says why an answer on this scan is not to be trusted."""

    __slots__ = ()


@dataclass(frozen=True)
class Scan:
    """One 3D scalar volume and its place in the patient.

    Attributes:
        voxels: float32, shape (I, J, K), in the scan's own voxel order; Hounsfield units for CT.
        affine: float64, shape (4, 4), voxel index (i, j, k, 1) -> RAS millimetres.
        modality: "CT", "MR" or None where the file does not say.
        name: what to call it on a page: a file or series name, never a full path.
        notes: what the reader decided for the user, one sentence each ("Of 3 series, took the one with ..."); those
            that are a `Caution` say why an answer is not to be trusted.
        source: the DICOM series whose slice k is `voxels[:, :, k].T`; None for other formats, and for a scan
            that was brought to other axes. Never printed: it names the patient.

    >>> scan = Scan(np.zeros((4, 5, 6), np.float32), np.diag([2.0, 2.0, 3.0, 1.0]))
    >>> scan.spacing
    (2.0, 2.0, 3.0)
    >>> scan.voxel_to_world((1, 1, 1)).tolist()
    [2.0, 2.0, 3.0]
    """

    voxels: np.ndarray
    affine: np.ndarray
    modality: str | None = None
    name: str = "scan"
    notes: tuple[str, ...] = field(default=())
    source: DicomSource | None = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the three axes (I, J, K)."""
        i, j, k = self.voxels.shape
        return i, j, k

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxel centres along the three axes."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)

    @property
    def orientation(self) -> str:
        """Where each axis points, as three letters: "RAS", "LPS", ..."""
        return "".join(nib.orientations.aff2axcodes(self.affine))

    @property
    def center(self) -> np.ndarray:
        """The middle of the voxel grid in RAS millimetres, shape (3,)."""
        return self.voxel_to_world((np.array(self.shape) - 1) / 2)

    def voxel_to_world(self, index: Sequence[float] | np.ndarray) -> np.ndarray:
        """Voxel index, shape (..., 3) -> RAS millimetres, shape (..., 3)."""
        return np.asarray(index, float) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def world_to_voxel(self, point: Sequence[float] | np.ndarray) -> np.ndarray:
        """RAS millimetres, shape (..., 3) -> continuous voxel index, shape (..., 3)."""
        return (np.asarray(point, float) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def contains(self, point: Sequence[float] | np.ndarray) -> bool:
        """Whether a point in RAS millimetres lies within the voxel grid (to the voxels' outer faces)."""
        index = self.world_to_voxel(point)
        return bool(np.all(index >= -0.5) and np.all(index <= np.array(self.shape) - 0.5))

    def canonical(self) -> Scan:
        """The same scan with its axes permuted and flipped so that they point R, A, S as nearly as they can.

        No voxel is resampled: an oblique scan keeps its own axes. Two files of one scan that differ only by
        axis order and direction give the same canonical scan.
        """
        transform = nib.orientations.io_orientation(self.affine)
        voxels = nib.orientations.apply_orientation(self.voxels, transform)
        affine = self.affine @ nib.orientations.inv_ornt_aff(transform, self.shape)
        # A view: a chest CT takes hundreds of megabytes, and what follows copies only a region of it.
        # Its slices may no longer be the source's.
        return replace(self, voxels=voxels, affine=affine, source=None)

    def cropped(self, start: Sequence[int] | np.ndarray, stop: Sequence[int] | np.ndarray) -> Scan:
        """The voxels of a box, each where it lies in the patient.

        Args:
            start, stop: (3,), the first voxel along each axis and the one after the last.

        Raises:
            ValueError: the box is empty, or reaches beyond the scan.
        """
        start, stop = np.asarray(start), np.asarray(stop)
        if np.any(start < 0) or np.any(start >= stop) or np.any(stop > self.shape):
            raise ValueError(f"no box of a scan of {self.shape}: {start.tolist()} to {stop.tolist()}")
        affine = self.affine.copy()
        affine[:3, 3] = self.voxel_to_world(start)
        voxels = self.voxels[tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))]
        return replace(self, voxels=voxels, affine=affine, source=None)

    def from_canonical(self, volume: np.ndarray) -> np.ndarray:
        """A volume on `canonical()`'s grid, put back on this scan's own grid, shape (I, J, K)."""
        back = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.io_orientation(self.affine)
        )
        return np.ascontiguousarray(nib.orientations.apply_orientation(volume, back))


def own_axes(affine: np.ndarray) -> list[tuple[int, bool]]:
    """For each of a scan's own axes (I, J, K), the canonical axis that runs along it, and whether it runs backwards.

    >>> own_axes(np.diag([-1.0, 1.0, 2.0, 1.0]))
    [(0, True), (1, False), (2, False)]
    """
    return [(int(axis), bool(flip < 0)) for axis, flip in nib.orientations.io_orientation(affine)]


def stem(name: str) -> str:
    """A file's name without the ending that says its format, for a scan's name.

    >>> stem("head.nii.gz"), stem("HEAD.NII"), stem(".mha")
    ('head', 'HEAD', '.mha')
    """
    return name[: -len(suffix(name))] or name


def suffix(name: str) -> str:
    """The ending that says a file's format, in lower case: ".nii.gz", ".mha", ..."""
    lower = name.lower()
    return next(
        (ending for ending in (".nii.gz", ".tar.gz") if lower.endswith(ending)), PurePath(lower).suffix
    )
