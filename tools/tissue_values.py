"""How far simulated chest CT regions are from real ones in tone, sharpness and noise, without any look at labels.

    python tools/tissue_values.py --data DATA                                # real ones as they are stored
    python tools/tissue_values.py --data DATA --simulated FOLDER             # of `mst prepare simulated`
    python tools/tissue_values.py --data DATA --slope 1.142857 --intercept -57.142857

Prints the median and the quartiles over cases of a few measures of the 51 mm round each nodule. What differs by more
than the quartiles is something that a model trained on simulated cases may hold on to and not find in real ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from mst.data import read_manifest
from mst.data.outlines import read_outlines
from mst.data.simulated import most_workers, write_simulated
from mst.scans import read_mask, read_scan
from mst.tasks import TASKS

SIDE_MM = 51
LARGEST = 400.0  # what lies above is cut off, as in the real crops
DENSE = -300.0  # HU; above it is soft tissue, below is lung
COUNT = 160


def measure(hu: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Measures of a region [X, Y, Z] of 1 mm voxels with the nodule's mask, bool; NaN where nothing is to be told."""
    hu = np.minimum(hu.astype(np.float32), LARGEST)
    within, without = distance_transform_edt(mask), distance_transform_edt(~mask)
    around = without > 6
    smooth = gaussian_filter(hu, 2.0)
    lung = around & (smooth < smooth[around].min() + 300)
    soft = gaussian_filter(hu, 1.0)
    fine = hu - soft
    slope = np.sqrt(sum(np.square(part) for part in np.gradient(hu)))
    core = within >= min(2.0, within.max())
    found = {
        "smallest value": hu.min(),
        "lung": _median(hu[lung]),
        "noise in lung (SD, finer than 1 mm)": float(fine[lung].std()) if lung.any() else np.nan,
        "soft tissue around (share)": float((soft[around] > DENSE).mean()),
        "nodule, 2 mm inside: mean": hu[core].mean(),
        "nodule, 2 mm inside: SD": hu[core].std(),
        "nodule, 2 mm inside: 90th percentile": np.percentile(hu[core], 90),
        "outermost millimetre of the mask": hu[mask & (within <= 1.2)].mean(),
        "first millimetre outside": _median(hu[(without > 0) & (without <= 1.2)]),
        "3 to 5 mm outside": _median(hu[(without > 3.2) & (without <= 5)]),
        "slope at the surface (HU a mm)": np.percentile(slope[(without <= 1.5) & (within <= 1.5)], 75),
    }
    return {name: float(value) for name, value in found.items()}


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else np.nan


def table(folder: Path, slope: float, intercept: float, count: int) -> dict[str, np.ndarray]:
    """{measure: [N]} of a manifest's first `count` cases with a mask; values become slope x value + intercept.

    Raises:
        SystemExit: no case has a mask, or voxels are not of 1 mm, which all measures count in.
    """
    rows = []
    for case in read_manifest(folder, TASKS["chest-ct"].classes)[:count]:
        if case.mask is None:
            continue
        scan = read_scan(case.image)
        if not np.allclose(scan.spacing, 1, atol=0.01):
            raise SystemExit(f"{case.source}: {case.image.name} has voxels of another size than 1 mm.")
        mask = read_mask(case.mask, scan) > 0
        middle = [round(float(np.mean(places))) for places in np.nonzero(mask)]
        window = tuple(slice(max(0, m - SIDE_MM // 2), m + SIDE_MM // 2 + 1) for m in middle)
        rows.append(measure(scan.voxels[window] * slope + intercept, mask[window]))
    if not rows:
        raise SystemExit(f"{folder}: no case has a mask.")
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="a manifest of real cases, or its folder")
    parser.add_argument("--simulated", type=Path, help="of `mst prepare simulated`; default: made anew")
    parser.add_argument(
        "--slope", type=float, default=1.0, help="real values become slope x value + intercept"
    )
    parser.add_argument("--intercept", type=float, default=0.0)
    parser.add_argument("--count", type=int, default=COUNT, help=f"cases of each at most (default: {COUNT})")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = options.simulated or Path(made)
        if options.simulated is None:
            write_simulated(folder, options.count, read_outlines(), 1, workers=most_workers())
        simulated = table(folder, 1, 0, options.count)
    real = table(options.data, options.slope, options.intercept, options.count)
    print(f"{'median (quartiles)':<38}{'real':>22}{'simulated':>22}")
    for name in real:
        cells = []
        for values in (real[name], simulated[name]):
            low, middle, high = np.nanpercentile(values, [25, 50, 75])
            digits = 2 if name.endswith("(share)") else 0
            cells.append(f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        print(f"{name:<38}{cells[0]:>22}{cells[1]:>22}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
