"""What simulated scans are drawn with: lung for a chest CT, and whole breast and knee MRI.

They are made of smooth shapes, blurred as a scanner would and with correlated noise; no patient's data are
in them. Hounsfield units follow common textbook values: aerated lung about -860, fat -100, soft tissue 40,
marrow 200, cortical bone 700.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from mst.scans import Scan

AIR, LUNG, FAT, SOFT, MARROW, CORTEX = -1000.0, -865.0, -100.0, 40.0, 220.0, 650.0
EDGE_MM = 0.55  # half-width of an edge after reconstruction
NOISE_HU = 32.0


@dataclass(frozen=True)
class LungBlock:
    """A block of the right lung beside the chest wall, without a nodule and without noise.

    Attributes:
        points: millimetres from the block's middle, float32 [3, X, Y, Z].
        lung: HU of lung, vessels and airways, float32 [X, Y, Z].
        wall: HU of the chest wall, to be put where `outward` is positive.
        outward: millimetres beyond the pleura; negative within the lung.
    """

    points: np.ndarray
    lung: np.ndarray
    wall: np.ndarray
    outward: np.ndarray


def lung_block(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    wall_mm: float,
    vessels: int = 16,
) -> LungBlock:
    """Draws a block of lung.

    Args:
        wall_mm: how far the chest wall reaches into the block, on the patient's right.
        vessels: how many trees of vessels enter it.
    """
    x, y, z = _axes(shape, spacing)
    points = np.stack(np.broadcast_arrays(x, y, z))
    lung = LUNG + 22 * texture_field(rng, shape, spacing, 7.0) + 16 * texture_field(rng, shape, spacing, 1.6)
    extent = np.array(shape) * spacing / 2
    # The chest wall is on the patient's right: a bulge of a large circle that runs obliquely.
    curve_center = np.array([extent[0] - wall_mm - 118.0, -12.0, 0.0])
    outward = np.sqrt(
        (points[0] - curve_center[0]) ** 2 + (points[1] - curve_center[1]) ** 2 + (0.25 * points[2]) ** 2
    )
    outward = outward - 118.0 + 1.2 * texture_field(rng, shape, spacing, 12.0)

    tubes = np.full(shape, 1e3, np.float32)
    airways = np.full(shape, 1e3, np.float32)
    for _ in range(vessels):
        start = np.array([-extent[0], rng.uniform(-0.8, 0.8) * extent[1], rng.uniform(-0.9, 0.9) * extent[2]])
        heading = np.array([1.0, rng.normal(0, 0.35), rng.normal(0, 0.35)])
        _grow(rng, tubes, airways, start, heading, rng.uniform(1.2, 2.9), shape, spacing, depth=0)
    # Vessels thin out towards the pleura.
    tubes = tubes + np.clip((outward + 9) * 0.16, 0, 4)
    hu = blend(lung, SOFT, tubes)
    hu = blend(hu, SOFT - 60, np.abs(airways) - 0.45)
    hu = blend(hu, AIR + 20, airways + 0.3)
    return LungBlock(points, hu, _chest_wall(rng, points, outward, spacing), outward)


def simulate_breast_mri(
    seed: int,
    shape: tuple[int, int, int] = (272, 176, 46),
    spacing: tuple[float, float, float] = (1.2, 1.2, 3.0),
) -> tuple[Scan, np.ndarray]:
    """A post-minus-pre-contrast breast MRI of both breasts with an enhancing mass in the patient's left.

    Returns:
        The scan (arbitrary units, RAS) and the mass's mask.
    """
    rng = np.random.default_rng(seed)
    x, y, z = _axes(shape, spacing)
    extent = np.array(shape) * spacing / 2
    chest_front = -18.0 - 0.0022 * x**2
    signal = np.zeros(shape, np.float32)
    tissue = np.zeros(shape, np.float32)
    for side in (-1, 1):
        reach = 1 - ((x - side * 78) / 66) ** 2 - (z / 62) ** 2
        front = chest_front + 98 * np.sqrt(np.clip(reach, 0, None))
        depth = np.minimum(y - chest_front, front - y)
        breast = _soft(-depth, 1.2) * (reach > 0)
        gland = np.exp(-(((x - side * 74) / 38) ** 2 + ((y - 22) / 34) ** 2 + (z / 40) ** 2))
        lace = texture_field(rng, shape, spacing, 4.5)
        tissue += breast * (9 + 38 * gland * np.clip(lace + 0.35, 0, 1.6))
        skin = np.exp(-((front - y - 1.8) ** 2) / 3.0) * (reach > 0.02) * (y > chest_front)
        tissue += 30 * skin
    signal += tissue
    muscle = _soft(y - chest_front, 1.5) * _soft(chest_front - 26 - y, 2)
    signal += muscle * (26 + 7 * texture_field(rng, shape, spacing, 5.0))
    heart = ((x + 30) / 62) ** 2 + ((y + 86) / 44) ** 2 + (z / 80) ** 2
    signal += (
        150 * _soft((np.sqrt(heart) - 1) * 40, 3) * (0.85 + 0.1 * texture_field(rng, shape, spacing, 9.0))
    )
    vessels = np.full(shape, 1e3, np.float32)
    spare = np.full(shape, 1e3, np.float32)
    for side in (-1, 1):
        for _ in range(3):
            start = np.array([side * rng.uniform(100, 128), rng.uniform(-10, 5), rng.uniform(-35, 35)])
            heading = np.array([-side * 0.8, 0.55, rng.normal(0, 0.25)])
            _grow(rng, vessels, spare, start, heading, 1.7, shape, spacing, depth=1)
    signal = np.maximum(signal, 120 * _soft(vessels, 0.8) * (y < 70))
    center = np.array([-84.0, 26.0, 6.0])
    points = np.stack(np.broadcast_arrays(x, y, z))
    distance = _mass_distance(rng, points, center)
    rim = 0.72 + 0.28 * np.exp(-((distance + 2.2) ** 2) / 6)
    signal = np.maximum(signal, 235 * rim * _soft(distance, 0.9))
    body = np.minimum(extent[1] + y, 400) > 0
    noise = np.abs(rng.normal(0, 5.5, shape) + 1j * rng.normal(0, 5.5, shape)) - 6
    voxels = np.round(signal * body + noise).astype(np.float32)
    name = "simulated breast MRI, subtraction"
    return Scan(voxels, centred_affine(shape, spacing, (0, 60, 0)), modality="MR", name=name), distance < 0


def simulate_knee_mri(
    seed: int,
    shape: tuple[int, int, int] = (30, 256, 256),
    spacing: tuple[float, float, float] = (3.6, 0.56, 0.56),
) -> tuple[Scan, np.ndarray]:
    """A sagittal, proton-density-like knee MRI with a bright line (a tear) in the medial meniscus.

    Returns:
        The scan (arbitrary units, RAS) and the tear's mask.
    """
    rng = np.random.default_rng(seed)
    x, y, z = _axes(shape, spacing)
    radius = np.sqrt((x / 56) ** 2 + ((y + 2) / 60) ** 2)
    skin = (radius - 1) * 55
    image = (
        175 * _soft(skin, 0.8) * (1 + 0.05 * texture_field(rng, shape, spacing, 4.0))
    )  # fat under the skin
    muscle = np.sqrt(((x - 4) / 44) ** 2 + ((y + 26) / 30) ** 2) - 1
    image = blend(
        image, 74 + 9 * texture_field(rng, shape, spacing, 2.6), np.maximum(muscle * 30, 12 - np.abs(z)), 1.2
    )
    synovium = np.sqrt((x / 44) ** 2 + ((y - 4) / 40) ** 2 + (z / 44) ** 2) - 1
    image = blend(image, 120 + 12 * texture_field(rng, shape, spacing, 3.0), synovium * 40, 1.5)

    condyles = np.minimum(
        *(
            (np.sqrt(((x - side * 22) / 19) ** 2 + ((y + 3) / 29) ** 2 + ((z - 23) / 23) ** 2) - 1) * 22
            for side in (-1, 1)
        )
    )
    shaft = (np.sqrt((x / (22 + 0.1 * z)) ** 2 + ((y - 4) / 17) ** 2) - 1) * 18
    femur = _smooth_union(condyles, np.maximum(shaft, 24 - z), 6)
    plateau = (np.sqrt((x / 41) ** 2 + ((y + 1) / 27) ** 2) - 1) * 26
    taper = (np.sqrt((x / (24 + 0.05 * z)) ** 2 + ((y + 3) / 18) ** 2) - 1) * 18
    tibia = np.maximum(_smooth_union(np.maximum(plateau, -20 - z), taper, 6), z + 7)
    patella = (np.sqrt((x / 21) ** 2 + ((y - 41) / 10) ** 2 + ((z - 26) / 20) ** 2) - 1) * 10
    tendon = np.maximum(np.abs(y - 42 + 0.012 * (z - 10) ** 2 * 0.2) - 2.4, np.abs(x) - 14)

    cartilage = np.minimum(np.maximum(femur - 2.4, z - 26), np.maximum(tibia - 2.2, -12 - z))
    cartilage = np.minimum(cartilage, np.maximum(patella - 2.0, y - 40))
    image = blend(image, 138.0, cartilage, 0.6)
    image = blend(image, 26.0, np.maximum(tendon, np.abs(z - 8) - 42), 0.7)
    tear = np.zeros(shape, bool)
    for side in (-1, 1):
        radial = np.sqrt(((x - side * 22) / 1.0) ** 2 + (y + 1) ** 2)
        height = np.clip((radial - 10) / 12, 0, 1) * 5.2 + 0.4
        wedge = np.maximum(np.abs(z + 3.2) - height, np.maximum(radial - 23.5, 9 - radial))
        image = blend(image, 22.0, wedge, 0.5)
        if side == 1:  # the medial side of a left knee lies to the patient's right
            line = np.maximum(np.abs(z + 3.4 - 0.35 * (radial - 18)) - 0.9, np.abs(radial - 18.5) - 4.5)
            line = np.maximum(line, y + 8)
            image = blend(image, 150.0, np.maximum(line, wedge), 0.5)
            tear |= np.broadcast_to((line < 0) & (wedge < 0), shape)
    ligament = np.maximum(np.abs(y + 0.75 * (z - 4)) - 3.2, np.maximum(np.abs(x + 2) - 6, np.abs(z - 5) - 18))
    image = blend(image, 34.0, ligament, 0.8)
    for bone in (femur, tibia, patella):
        marrow = 150 * (1 + 0.07 * texture_field(rng, shape, spacing, 2.0))
        image = blend(image, 28.0, bone, 0.5)
        image = blend(image, marrow, bone + 1.3, 0.6)
    shade = 1 + 0.12 * texture_field(rng, shape, spacing, 30.0)
    noise = rng.normal(0, 5, shape) + 1j * rng.normal(0, 5, shape)
    blurred = gaussian_filter((image * shade).astype(np.float32), (0, 0.6, 0.6))
    voxels = np.round(np.abs(blurred + noise)).astype(np.float32)
    return Scan(
        voxels, centred_affine(shape, spacing, (-90, 0, 0)), modality="MR", name="simulated knee MRI"
    ), tear


def _axes(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Millimetres from the middle along each axis, to be broadcast against each other."""
    x, y, z = (
        ((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape, spacing, strict=True)
    )
    return x[:, None, None], y[None, :, None], z[None, None, :]


def centred_affine(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], middle: tuple[float, float, float]
) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.array(middle) - (np.array(shape) - 1) / 2 * spacing
    return affine


def _soft(distance: np.ndarray, width: float = EDGE_MM) -> np.ndarray:
    """1 inside (negative distance), 0 outside, with an edge of that half-width in millimetres."""
    return 1 / (1 + np.exp(np.clip(distance / width * 1.7, -40, 40)))


def blend(
    image: np.ndarray, value: np.ndarray | float, distance: np.ndarray, width: float = EDGE_MM
) -> np.ndarray:
    inside = _soft(distance, width)
    return image * (1 - inside) + value * inside


def _smooth_union(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    mix = np.clip(0.5 + 0.5 * (second - first) / width, 0, 1)
    return second * (1 - mix) + first * mix - width * mix * (1 - mix)


def texture_field(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float], size_mm: float
) -> np.ndarray:
    """A random field of unit variance with structures of about that size."""
    field = gaussian_filter(
        rng.standard_normal(shape).astype(np.float32), [size_mm / s for s in spacing], mode="wrap"
    )
    return field / max(float(field.std()), 1e-9)


def ct_noise(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> np.ndarray:
    """Noise of unit variance as of a filtered back-projection: little at low frequencies, blurred at the highest."""
    white = rng.standard_normal(shape).astype(np.float32)
    fine = gaussian_filter(white, [0.55 / s for s in spacing])
    noise = fine - 0.8 * gaussian_filter(white, [1.8 / s for s in spacing])
    return noise / noise.std()


def _mass_distance(rng: np.random.Generator, points: np.ndarray, center: np.ndarray) -> np.ndarray:
    """About the signed distance to the surface of a lobulated and spiculated mass of 19 mm, negative inside."""
    diameter = 19.0
    offset = points - center[:, None, None, None]
    radius = np.sqrt((offset**2).sum(axis=0)) + 1e-6
    direction = offset / radius
    swell = np.zeros(radius.shape, np.float32)
    for _ in range(16):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        along = np.tensordot(axis, direction, axes=1)
        swell += rng.uniform(-0.8, 1.0) * np.exp((along - 1) * rng.uniform(4, 14))
    squash = 1 + 0.07 * np.tensordot(rng.normal(size=3), direction**2, axes=1)
    surface = diameter / 2 * squash * (1 + 0.34 * swell)
    distance = (radius - surface).astype(np.float32)
    for _ in range(45):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        length = diameter * rng.uniform(0.6, 1.15)
        along = np.tensordot(axis, offset, axes=1)
        across = np.sqrt(np.clip(radius**2 - along**2, 0, None))
        thickness = rng.uniform(0.6, 1.3) * np.clip(1 - along / length, 0, 1) ** 0.6
        strand = np.where((along > 0) & (along < length), across - thickness, 1e3)
        distance = np.minimum(distance, strand)
    return distance


def _chest_wall(
    rng: np.random.Generator, points: np.ndarray, outward: np.ndarray, spacing: tuple[float, float, float]
) -> np.ndarray:
    """HU beyond the pleura: a thin layer of fat, muscle with ribs in it, fat under the skin."""
    shape = (outward.shape[0], outward.shape[1], outward.shape[2])
    wall = SOFT + 14 + 12 * texture_field(rng, shape, spacing, 2.5)
    wall = blend(wall, FAT, np.abs(outward - 1.1) - 0.45, 0.6)
    wall = blend(wall, FAT + 12 * texture_field(rng, shape, spacing, 3.0), 15.5 - outward, 1.4)
    for start in np.arange(-60, 90, 25.0):
        # Ribs run downwards to the front.
        middle = start - 0.45 * points[1]
        rib = np.sqrt(((outward - 6.8) / 3.9) ** 2 + ((points[2] - middle) / 6.8) ** 2)
        wall = blend(wall, CORTEX, (rib - 1) * 4.5, 0.6)
        wall = blend(wall, MARROW, (rib - 0.68) * 4.5, 0.7)
    return wall


def _grow(
    rng: np.random.Generator,
    vessels: np.ndarray,
    airways: np.ndarray,
    start: np.ndarray,
    heading: np.ndarray,
    radius: float,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    depth: int,
) -> None:
    """Lets a vessel wander, taper and branch, with an airway beside its first part; writes distances in place."""
    place, heading = start.astype(float), heading / np.linalg.norm(heading)
    beside = np.cross(heading, rng.normal(size=3))
    beside /= np.linalg.norm(beside)
    for step in range(int(rng.integers(14, 24))):
        heading = heading + rng.normal(0, 0.16, 3)
        heading /= np.linalg.norm(heading)
        end = place + heading * 3.2
        _tube(vessels, place, end, radius, shape, spacing)
        if depth == 0 and radius > 1.7:
            shift = beside * radius * 2.1
            _tube(airways, place + shift, end + shift, radius * 0.8, shape, spacing)
        place = end
        radius *= 0.965
        if radius < 0.45:
            return
        if depth < 4 and step > 1 and rng.random() < 0.24:
            turn = np.cross(heading, rng.normal(size=3))
            turn /= np.linalg.norm(turn)
            branch = heading + turn * rng.uniform(0.5, 1.1)
            _grow(
                rng,
                vessels,
                airways,
                place,
                branch,
                radius * rng.uniform(0.55, 0.8),
                shape,
                spacing,
                depth + 1,
            )
            radius *= 0.9


def _tube(
    field: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    radius: float,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
) -> None:
    """Lowers a field of distances to that from a capsule, where it lies near."""
    half = (np.array(shape) - 1) / 2
    low = np.floor((np.minimum(start, end) - radius - 3) / spacing + half).astype(int)
    high = np.ceil((np.maximum(start, end) + radius + 3) / spacing + half).astype(int) + 1
    low, high = np.maximum(low, 0), np.minimum(high, shape)
    if (high <= low).any():
        return
    x, y, z = (((np.arange(a, b) - h) * s) for a, b, h, s in zip(low, high, half, spacing, strict=True))
    offset = np.stack(np.broadcast_arrays(x[:, None, None], y[None, :, None], z[None, None, :]), -1) - start
    line = end - start
    along = np.clip(offset @ line / (line @ line), 0, 1)
    distance = np.linalg.norm(offset - along[..., None] * line, axis=-1) - radius
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    field[part] = np.minimum(field[part], distance)
