"""A data set of simulated chest CT regions, each with a nodule of a real outline and its real ratings.

Shape, size and ratings are radiologists' (see `mst.data.outlines`); the tissue round it is drawn. What a reader
could tell from the picture besides the shape is drawn as it was rated: texture (ground glass to solid), margin
(blurred to sharp), spiculation (strands), calcification and subtlety (how much it stands out).
"""

from __future__ import annotations

import csv
import io
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Literal

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_limits

from mst.data.outlines import RATINGS, Outline, expected_malignancy
from mst.data.simulator import NOISE_HU, SOFT, blend, centred_affine, ct_noise, lung_block, texture_field
from mst.files import write_whole
from mst.scans import Scan

SIZE = 64  # voxels of 1 mm along each side of a region
BLOCK = 100  # of the block of lung that regions are cut from
REGIONS_A_BLOCK = 10
SPACING = (1.0, 1.0, 1.0)
LUNG_MIDDLE = (68.0, 14.0, -120.0)  # of a block of the patient's right lung, RAS millimetres
# How often each rating of malignancy is drawn. In the annotations 1 is nearly always a calcified granuloma, which
# teaches little, and 4 and 5 are few.
MALIGNANCY_SHARES = {1: 0.12, 2: 0.26, 3: 0.22, 4: 0.22, 5: 0.18}
MIN_DIAMETER_MM = 3.5
MAX_DIAMETER_MM = 40.0
COLUMNS = ["case", "patient", "image", "mask", "label", "diameter_mm", *RATINGS, "expected_malignancy"]


@dataclass(frozen=True)
class Region:
    """A simulated case.

    Attributes:
        scan: HU on a grid of 1 mm, the nodule in the middle.
        mask: bool, the scan's shape.
        outline: whose shape and ratings it has.
    """

    scan: Scan
    mask: np.ndarray
    outline: Outline


def simulate_regions(outlines: Sequence[Outline], block: int, seed: int = 0) -> list[Region]:
    """`REGIONS_A_BLOCK` cases out of one block of lung; the same arguments give the same cases."""
    rng = np.random.default_rng([seed, block])
    pool = [o for o in outlines if MIN_DIAMETER_MM <= o.diameter_mm <= MAX_DIAMETER_MM]
    shape = (BLOCK, BLOCK, BLOCK)
    lung = lung_block(rng, shape, SPACING, wall_mm=rng.uniform(22, 40), vessels=int(rng.integers(12, 26)))
    # The tissue between the vessels differs between people: emphysema, inspiration, age.
    tone = rng.normal(30, 40)
    line = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    points = np.stack(np.meshgrid(line, line, line, indexing="ij"))
    found = []
    for number in range(REGIONS_A_BLOCK):
        rating = rng.choice(list(MALIGNANCY_SHARES), p=list(MALIGNANCY_SHARES.values()))
        rated = [o for o in pool if o.ratings["malignancy"] == rating] or pool
        outline = rated[int(rng.integers(len(rated)))]
        corner = _place(rng, lung.outward, outline.diameter_mm / 2)
        window = tuple(slice(c, c + SIZE) for c in corner)
        nodule = _draw_nodule(rng, outline, points, SPACING)
        hu = _put_in(nodule, lung.lung[window] + tone, lung.wall[window], lung.outward[window])
        # The smallest may lie between the voxels: then the nearest one is theirs.
        mask = nodule.distance < max(0.0, 1e-3 + float(nodule.distance.min()))
        for axis in range(3):
            if rng.random() < 0.5:
                hu, mask = np.flip(hu, axis), np.flip(mask, axis)
        hu = _scan(rng, hu)
        affine = np.diag([*SPACING, 1.0])
        affine[:3, 3] = -(SIZE - 1) / 2
        scan = Scan(np.ascontiguousarray(hu), affine, modality="CT", name=f"simulated {block}-{number}")
        found.append(Region(scan, np.ascontiguousarray(mask), outline))
    return found


def simulate_chest_ct(
    seed: int,
    outline: Outline,
    shape: tuple[int, int, int] = (128, 128, 68),
    spacing: tuple[float, float, float] = (0.8, 0.8, 1.25),
    at_pleura: bool = False,
    lung: Literal["right", "left"] = "right",
) -> tuple[Scan, np.ndarray]:
    """A block of a lung with a nodule, a few millimetres off its middle or near the chest wall.

    Args:
        lung: the patient's. The chest wall is lateral in both: a left lung is a right one in a mirror.

    Returns:
        The scan (HU, RAS) and the nodule's mask, bool on the same grid.
    """
    rng = np.random.default_rng(seed)
    block = lung_block(rng, shape, spacing, wall_mm=22 if at_pleura else 17)
    place = rng.uniform(-5, 5, 3)
    if at_pleura:
        place[0] = shape[0] * spacing[0] / 2 - 22 - outline.diameter_mm / 2 - 2
        place[1] = rng.uniform(-10, 0)
    nodule = _draw_nodule(rng, outline, block.points - place.astype(np.float32)[:, None, None, None], spacing)
    hu = _put_in(nodule, block.lung, block.wall, block.outward) + NOISE_HU * ct_noise(rng, shape, spacing)
    mask = nodule.distance < 0
    # In RAS x grows to the patient's right.
    middle = LUNG_MIDDLE
    if lung == "left":
        hu, mask, middle = np.flip(hu, 0), np.flip(mask, 0), (-middle[0], *middle[1:])
    affine = centred_affine(shape, spacing, middle)
    voxels = np.ascontiguousarray(np.clip(np.round(hu), -1024, 1800), np.float32)
    return Scan(voxels, affine, modality="CT", name="simulated chest CT"), np.ascontiguousarray(mask)


def write_simulated(
    folder: Path,
    count: int,
    outlines: Sequence[Outline],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
) -> Path:
    """Writes `count` cases and their manifest; cases that are there already are kept.

    Args:
        folder: gets images/, masks/ and cases.csv.
        progress: called with how many are done, and how many there will be.
        workers: processes that share the work; their number makes no difference to the cases.

    Returns:
        the manifest.
    """
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    manifest = folder / "cases.csv"
    blocks = range(-(-count // REGIONS_A_BLOCK))
    kept = {block: found for block in blocks if (found := _kept_block(folder, block, count))}
    missing = [block for block in blocks if block not in kept]
    if progress and kept:
        progress(sum(map(len, kept.values())), count)
    for block, rows in _drawn(folder, missing, count, outlines, seed, workers):
        kept[block] = rows
        if progress:
            progress(sum(map(len, kept.values())), count)
    _write(manifest, COLUMNS, [row for block in blocks for row in kept[block]])
    for part in folder.glob("block-*.csv"):
        part.unlink()
    return manifest


def most_workers() -> int:
    """As many processes as there are cores, of which more than 8 would take more memory than they are worth."""
    return min(os.cpu_count() or 1, 8)


def _drawn(
    folder: Path, blocks: Sequence[int], count: int, outlines: Sequence[Outline], seed: int, workers: int
) -> Iterator[tuple[int, list[dict[str, object]]]]:
    """Writes the blocks, and gives each one's number and rows as it is done.

    A block depends on the seed and its number alone, so it does not matter which process draws it. The processes are
    started afresh: one that has threads, as torch has, must not be forked.

    Raises:
        OSError: such a process was ended from outside.
    """
    outlines, expected = list(outlines), list(expected_malignancy(outlines, MALIGNANCY_SHARES))
    workers = min(workers, len(blocks))
    if workers < 2:
        expectations = dict(zip(map(id, outlines), expected, strict=True))
        for block in blocks:
            yield _write_block(folder, block, count, seed, outlines, expectations)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (outlines, expected)) as pool:
        tasks = [pool.submit(_write_shared, folder, block, count, seed) for block in blocks]
        try:
            for task in as_completed(tasks):
                yield task.result()
        except BrokenProcessPool as error:
            raise OSError(
                "A process that draws simulated cases was ended from outside, perhaps for want of memory. The cases "
                "made so far are kept: start the same command again."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_outlines: tuple[list[Outline], dict[int, float]] = [], {}  # of a process that draws blocks


def _begin(outlines: list[Outline], expected: list[float]) -> None:
    """Prepares a process that draws blocks: one thread, and it ends with the process that started it."""
    global _outlines
    _outlines = outlines, dict(zip(map(id, outlines), expected, strict=True))
    threadpool_limits(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _write_shared(folder: Path, block: int, count: int, seed: int) -> tuple[int, list[dict[str, object]]]:
    return _write_block(folder, block, count, seed, *_outlines)


def _names(block: int, count: int) -> list[str]:
    last = min((block + 1) * REGIONS_A_BLOCK, count)
    return [f"simulated-{number:05d}" for number in range(block * REGIONS_A_BLOCK, last)]


def _kept_block(folder: Path, block: int, count: int) -> list[dict[str, object]]:
    """The rows of a block that is there already, whole; else none."""
    part = folder / f"block-{block:04d}.csv"
    if not part.is_file():
        return []
    with part.open(newline="", encoding="utf-8") as file:
        rows: list[dict[str, object]] = [dict(row) for row in csv.DictReader(file)]
    wanted = len(_names(block, count))
    return rows[:wanted] if len(rows) >= wanted else []


def _write_block(
    folder: Path, block: int, count: int, seed: int, outlines: Sequence[Outline], expected: dict[int, float]
) -> tuple[int, list[dict[str, object]]]:
    """Draws a block's cases and writes them; its table comes last, so that it tells that they are whole.

    Args:
        expected: by an outline's `id`, the malignancy that readers give such a nodule on average.
    """
    rows: list[dict[str, object]] = []
    for name, region in zip(_names(block, count), simulate_regions(outlines, block, seed), strict=False):
        outline = region.outline
        row: dict[str, object] = {"case": name, "patient": f"{name} (outline of {outline.patient})"}
        row |= {"image": f"images/{name}.nii.gz", "mask": f"masks/{name}.nii.gz"}
        malignancy = outline.ratings["malignancy"]
        row["label"] = "benign" if malignancy < 3 else "malignant" if malignancy > 3 else "indeterminate"
        row["diameter_mm"] = f"{outline.diameter_mm:.1f}"
        _save(region.scan.voxels.astype(np.int16), region.scan.affine, folder / str(row["image"]))
        _save(region.mask.astype(np.uint8), region.scan.affine, folder / str(row["mask"]))
        row["expected_malignancy"] = f"{expected[id(outline)]:.2f}"
        rows.append({**row, **outline.ratings})
    _write(folder / f"block-{block:04d}.csv", COLUMNS, rows)
    return block, rows


@dataclass(frozen=True)
class _Drawn:
    hu: np.ndarray
    distance: np.ndarray
    edge_mm: float


def _put_in(nodule: _Drawn, air: np.ndarray, wall: np.ndarray, outward: np.ndarray) -> np.ndarray:
    """HU of lung with a nodule in it, and of the chest wall where `outward` is positive."""
    # Where the nodule stands out little, vessels and wall stay what they are and it is added to them.
    hu = blend(air, np.maximum(nodule.hu, air), nodule.distance, nodule.edge_mm)
    return blend(hu, wall, -outward)


def _draw_nodule(
    rng: np.random.Generator, outline: Outline, points: np.ndarray, spacing: tuple[float, float, float]
) -> _Drawn:
    """HU and surface of a nodule at `points`, float32 [3, X, Y, Z], millimetres from its middle."""
    # In life it is turned and sized as it was outlined; flips, turns and sizes are left to training.
    distance = outline.distance(points)
    rated = outline.ratings
    distance = _strands(rng, points, distance, outline.diameter_mm, rated["spiculation"])
    distance = distance + 0.25 * texture_field(rng, distance.shape, spacing, 1.5)
    solid = np.clip((rated["texture"] - 1) / 4 + rng.normal(0, 0.08), 0, 1)
    hu = -640 + solid * (SOFT + rng.normal(-10, 25) + 640)
    inside = np.full(distance.shape, hu, np.float32)
    inside += (12 + 60 * (1 - solid)) * texture_field(rng, distance.shape, spacing, 1.6)
    if rated["texture"] in (2, 3):  # part solid: a core within ground glass
        core = distance + outline.diameter_mm * rng.uniform(0.12, 0.25)
        inside = blend(inside, SOFT - 20, core + 1.5 * texture_field(rng, distance.shape, spacing, 3.0), 1.2)
    inside = _calcify(rng, inside, distance, rated["calcification"], outline.diameter_mm, spacing)
    faint = np.clip((4 - rated["subtlety"]) * 0.09 + rng.normal(0, 0.04), 0, 0.4)
    inside = inside - faint * (inside + 850)
    return _Drawn(inside, distance, 0.45 + 0.32 * (5 - rated["margin"]) + 0.3 * rng.random())


def _strands(
    rng: np.random.Generator, points: np.ndarray, distance: np.ndarray, diameter: float, rating: int
) -> np.ndarray:
    """Lets strands radiate from the surface, the more of them and the longer the higher the rating of spiculation."""
    count = int(rng.poisson((0, 2, 10, 26, 44)[rating - 1]))
    radius = np.sqrt((points**2).sum(axis=0)) + 1e-6
    for _ in range(count):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        along = np.tensordot(axis, points, axes=1).astype(np.float32)
        across = np.sqrt(np.clip(radius**2 - along**2, 0, None))
        reach = diameter / 2 + rng.uniform(2, 4 + 1.5 * rating)
        thickness = rng.uniform(0.35, 0.9) * np.clip(1.15 - along / reach, 0, 1) ** 0.6
        strand = np.where((along > 0) & (along < reach), across - thickness, 1e3)
        # Thinner than the mask's voxels mostly: drawn, but hardly ever outlined.
        distance = np.minimum(distance, strand)
    return distance


def _calcify(
    rng: np.random.Generator,
    inside: np.ndarray,
    distance: np.ndarray,
    rating: int,
    diameter: float,
    spacing: tuple[float, float, float],
) -> np.ndarray:
    """Calcium as rated: 1 popcorn, 2 laminated, 3 solid, 4 off-centre, 5 central, 6 none."""
    if rating == 6:
        return inside
    dense = rng.uniform(250, 900)
    if rating == 3:
        return np.maximum(inside, dense + 60 * texture_field(rng, inside.shape, spacing, 1.5))
    if rating == 2:
        where = np.abs(distance + diameter * 0.2) - 0.8
    elif rating == 5:
        where = distance + diameter * 0.3
    else:
        spots = texture_field(rng, inside.shape, spacing, max(1.2, diameter / 12))
        where = np.maximum((1.0 if rating == 1 else 1.6) - spots, distance + 1)
    return blend(inside, dense, where, 0.6)


def _place(rng: np.random.Generator, outward: np.ndarray, radius: float) -> np.ndarray:
    """The corner of a region within a block whose middle lies in the lung, now and then at the pleura."""
    half = SIZE // 2
    middle = outward[half : BLOCK - half, half : BLOCK - half, half : BLOCK - half]
    at_pleura = rng.random() < 0.3
    low, high = (-radius - 1.5, -0.35 * radius) if at_pleura else (-60.0, -radius - 3)
    places = np.argwhere((middle > low) & (middle < high))
    if not len(places):
        places = np.argwhere(middle == middle.min())
    return places[int(rng.integers(len(places)))]


def _scan(rng: np.random.Generator, hu: np.ndarray) -> np.ndarray:
    """What a scanner makes of it: partial volume in slices of 0.6 to 3 mm, kernel and noise."""
    thickness = rng.choice([0.6, 1.0, 1.25, 2.0, 2.5, 3.0], p=[0.08, 0.12, 0.25, 0.15, 0.3, 0.1])
    through = np.sqrt(max(thickness**2 - 0.6**2, 0)) / 2.355
    kernel = rng.uniform(0.15, 0.55)
    smooth = gaussian_filter(hu.astype(np.float32), (kernel, kernel, through))
    noise = gaussian_filter(ct_noise(rng, smooth.shape, SPACING), (0, 0, through))
    level = rng.uniform(8, 42) / np.sqrt(thickness)
    return np.clip(np.round(smooth + level * noise / noise.std()), -1024, 1800).astype(np.float32)


def _save(voxels: np.ndarray, affine: np.ndarray, path: Path) -> None:
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _write(path: Path, columns: list[str], rows: list[dict[str, object]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())
