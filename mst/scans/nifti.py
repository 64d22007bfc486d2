"""NIfTI files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np


def write_nifti(volume: np.ndarray, affine: np.ndarray, path: str | Path) -> None:
    """Writes a volume [I, J, K] as float32 NIfTI in RAS millimetres."""
    nib.save(nifti_image(np.asarray(volume, np.float32), affine), path)


def nifti_image(volume: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A volume [I, J, K] as a NIfTI image of its own data type, in RAS millimetres."""
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    # A sheared affine (tilted gantry) has no quaternion: the nearest one is stored, and marked as unknown.
    rotation = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    orthogonal = np.allclose(rotation.T @ rotation, np.eye(3), atol=1e-4)
    image.set_qform(affine, code="scanner" if orthogonal else "unknown")
    return image
