"""Draws simulated nodules, beside real ones where a manifest is given, in the lung window.

    python tools/contact_sheet.py --out docs/simulated.png                 # simulated ones alone
    python tools/contact_sheet.py --out sheet.png --data DATA              # mixed; the key is printed
    python tools/contact_sheet.py --out sheet.png --simulated FOLDER       # of `mst prepare simulated`

Mixed, the tiles are in random order and bear numbers alone, so that one can try to tell them apart before reading
which are which.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from mst.data import read_manifest
from mst.data.outlines import read_outlines
from mst.data.simulated import write_simulated
from mst.tasks import TASKS
from mst.training.cases import LoadedCase, load_cases

TASK = TASKS["chest-ct"]
SIDE_MM = 48
GRID = {"shape": [1, 2 * SIDE_MM, 2 * SIDE_MM], "spacing_mm": [1.0, 0.5, 0.5]}


def tile(case: LoadedCase) -> np.ndarray:
    """The slice through the nodule's middle, 0..1 in the lung window, [96, 96] at 0.5 mm."""
    values = case.prepare(GRID).volume[0, 0, 0].numpy()
    hu = (values + 1) * 1000 - 1000
    window = TASK.windows[0]
    return np.clip((hu - window.low) / (window.high - window.low), 0, 1)


def pick(folder: Path, count: int, rng: np.random.Generator) -> list[LoadedCase]:
    cases = read_manifest(folder, TASK.classes)
    chosen = rng.choice(len(cases), min(count, len(cases)), replace=False)
    return load_cases([cases[i] for i in chosen], TASK)


def draw(cases: list[LoadedCase], captions: list[str], columns: int, out: Path) -> None:
    rows = -(-len(cases) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.35 * columns, 1.5 * rows), squeeze=False)
    figure.patch.set_facecolor("black")
    for axis in axes.flat:
        axis.axis("off")
    for axis, case, caption in zip(axes.flat, cases, captions, strict=False):
        axis.imshow(tile(case), cmap="gray", vmin=0, vmax=1)
        axis.set_title(caption, color="white", fontsize=7, pad=2)
    figure.tight_layout(pad=0.4)
    figure.savefig(out, dpi=100, facecolor="black")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--data", help="a manifest of real cases, or its folder")
    parser.add_argument("--simulated", type=Path, help="of `mst prepare simulated`; default: made anew")
    parser.add_argument("--count", type=int, default=24, help="simulated tiles, and real ones (default: 24)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as made:
        folder = options.simulated or Path(made)
        if options.simulated is None:
            write_simulated(folder, options.count, read_outlines(), options.seed)
        cases = pick(folder, options.count, rng)
        if not options.data:
            cases = sorted(cases, key=lambda case: case.case.ratings["malignancy"])
            captions = [f"malignancy {case.case.ratings['malignancy']:.0f}" for case in cases]
        else:
            simulated = {case.case.name for case in cases}
            cases = cases + pick(Path(options.data), options.count, rng)
            cases = [cases[i] for i in rng.permutation(len(cases))]
            captions = [str(number) for number in range(1, len(cases) + 1)]
            real = [n for n, case in zip(captions, cases, strict=True) if case.case.name not in simulated]
            print("real: " + ", ".join(real))
        draw(cases, captions, 8, options.out)
    print(f"Wrote {options.out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
