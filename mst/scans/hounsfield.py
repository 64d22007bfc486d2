"""Whether a CT's values are Hounsfield units, in which air is -1000 and water 0 (Hounsfield, Br J Radiol 1973)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mst.scans.scan import Scan

# Programs that store a CT in unsigned numbers add 1024 to it, some 1000; within noise the two look alike.
USUAL_SHIFT = -1024
DARK = -200.0  # a CT of the chest holds lung or air, which is darker
AIR_AND_LUNG, SOFT_TISSUE = (-1100.0, -500.0), (-150.0, 150.0)
ENOUGH = 0.005  # of the voxels


def hounsfield_shift(scan: Scan) -> int | None:
    """What has to be added to a scan's values to make them Hounsfield units.

    Returns:
        0 where they seem to be; -1024 where air lies near 0 and soft tissue near 1024; None where they are neither, so
        that nobody can say what they mean.
    """
    values = scan.voxels[::2, ::2, ::2]
    if float(values.min()) < DARK:
        return 0
    air, tissue = (
        float(((values >= low - USUAL_SHIFT) & (values <= high - USUAL_SHIFT)).mean())
        for low, high in (AIR_AND_LUNG, SOFT_TISSUE)
    )
    return USUAL_SHIFT if air > ENOUGH and tissue > ENOUGH else None


def shifted(scan: Scan, shift: float) -> Scan:
    """The scan with a number added to all its values, and a note that says so."""
    note = f"{shift:+g} was added to all values, so that they are Hounsfield units."
    return replace(scan, voxels=scan.voxels + np.float32(shift), notes=(*scan.notes, note))
