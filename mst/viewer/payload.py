"""The data that a viewer draws: volumes quantised, compressed and small enough to send."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mst.scan import Scan

Plane = Literal["axial", "coronal", "sagittal"]
SLICE_AXIS: dict[str, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
MARGIN = 0.2  # context shown round the region, as a part of its size on each side
MAX_VOXELS = 1_700_000  # keeps a payload with two maps under 2.5 MB
MAX_VOXELS_16_BIT = 700_000
MAX_LOCATOR_SIDE = 160
MAX_LOCATOR_VOXELS = 2_000_000


@dataclass(frozen=True)
class Layer:
    """What lies over the scan.

    Attributes:
        key: "mst", "resnet" or "mask".
        label: for the panel's heading.
        volume: float32 [X, Y, Z] on the canonical scan's grid, at least 0; bool for a mask.
        profile: one number for each slice of the canonical scan in the viewer's plane: how much the model
            weighs it. None: the volume's maximum in each slice.
    """

    key: str
    label: str
    volume: np.ndarray
    profile: np.ndarray | None = None


def viewer_payload(
    scan: Scan,
    layers: Sequence[Layer],
    *,
    plane: Plane,
    window: tuple[float, float],
    windows: Sequence[tuple[str, float, float]] = (),
    unit: str = "",
    bounds: np.ndarray | None = None,
    title: str = "",
) -> dict[str, Any]:
    """What the viewer's script needs, as plain JSON.

    Args:
        scan: canonical (axes to the right, front and head).
        layers: saliency maps and, optionally, a mask.
        plane: of the slices.
        window: intensities shown black and white at first.
        windows: further windows to choose from: (name, low, high).
        unit: of the intensities, "HU" or "".
        bounds: int [3, 2], start and stop of the region that the models saw; None: the whole scan.
        title: of the scan.

    Raises:
        ValueError: a layer's shape differs from the scan's.
    """
    for layer in layers:
        if layer.volume.shape != scan.shape:
            raise ValueError(f"layer {layer.key} is {layer.volume.shape}, the scan {scan.shape}")
    box = _display_box(scan.shape, bounds)
    crop = tuple(slice(int(a), int(b)) for a, b in box)
    factor = _factor([b - a for a, b in box], MAX_VOXELS)
    voxels = _shrink(scan.voxels[crop], factor)
    axis = SLICE_AXIS[plane]
    notes: list[str] = []
    if factor > 1:
        notes.append(f"Shown at 1/{factor} of the scan's resolution.")
    sent = []
    for layer in layers:
        if not np.isfinite(layer.volume[crop]).all():
            notes.append(f"{layer.label}: values that are not numbers are shown as zero.")
        volume = np.nan_to_num(_shrink(np.asarray(layer.volume[crop], np.float32), factor), posinf=0, neginf=0)
        sent.append(_layer(layer, volume, axis, crop[axis], factor))
    deep = voxels.size <= MAX_VOXELS_16_BIT
    affine = scan.affine.copy()
    affine[:3, 3] = scan.voxel_to_world(box[:, 0] + (factor - 1) / 2)
    affine[:3, :3] *= factor
    return {
        "title": title,
        "plane": plane,
        "unit": unit,
        "window": [float(window[0]), float(window[1])],
        "windows": [[name, float(low), float(high)] for name, low, high in windows],
        "shape": list(voxels.shape),
        "spacing": [round(s * factor, 5) for s in scan.spacing],
        "affine": np.round(affine, 5).tolist(),
        "first": [int(start) for start, _ in box],
        "full": list(scan.shape),
        "factor": factor,
        "region": None
        if bounds is None
        else ((np.asarray(bounds) - box[:, :1]) / factor).round(3).tolist(),
        "scan": _quantised(voxels, 16 if deep else 8, window),
        "layers": [entry for entry in sent if entry["key"] != "mask"],
        "mask": next((entry for entry in sent if entry["key"] == "mask"), None),
        "notes": notes,
    }


def locator_payload(
    scan: Scan,
    *,
    window: tuple[float, float],
    unit: str,
    center: Sequence[float] | None,
    box_mm: Sequence[float] | None,
) -> dict[str, Any]:
    """The whole scan, small, for choosing a spot in three planes.

    Args:
        scan: canonical.
        window: intensities shown black and white.
        unit: of the intensities.
        center: the chosen spot in RAS millimetres.
        box_mm: size of the models' region along the canonical axes.
    """
    # Thick slices are kept while the planes shrink: each axis has its own factor.
    factors = [max(1, -(-n // MAX_LOCATOR_SIDE)) for n in scan.shape]
    while np.prod([n // f for n, f in zip(scan.shape, factors, strict=True)]) > MAX_LOCATOR_VOXELS:
        factors[int(np.argmax([n / f for n, f in zip(scan.shape, factors, strict=True)]))] += 1
    voxels = _shrink_axes(scan.voxels, factors)
    affine = scan.affine.copy()
    affine[:3, 3] = scan.voxel_to_world((np.array(factors) - 1) / 2)
    affine[:3, :3] *= factors
    return {
        "unit": unit,
        "window": [float(window[0]), float(window[1])],
        "shape": list(voxels.shape),
        "spacing": [round(s * f, 5) for s, f in zip(scan.spacing, factors, strict=True)],
        "affine": np.round(affine, 5).tolist(),
        "scan": _quantised(voxels, 8, window),
        "center": None if center is None else [round(float(c), 2) for c in center],
        "box": None if box_mm is None else [round(float(b), 2) for b in box_mm],
    }


def unpack(entry: dict[str, Any], shape: Sequence[int]) -> np.ndarray:
    """A quantised volume as the script sees it: float32 of that shape."""
    raw = zlib.decompress(base64.b64decode(entry["data"]))
    codes = np.frombuffer(raw, np.uint16 if entry["bits"] == 16 else np.uint8).reshape(shape)
    top = 2 ** entry["bits"] - 1
    return (entry["low"] + codes.astype(np.float32) / top * (entry["high"] - entry["low"])).astype(np.float32)


def _display_box(shape: Sequence[int], bounds: np.ndarray | None) -> np.ndarray:
    if bounds is None:
        return np.array([(0, n) for n in shape])
    bounds = np.asarray(bounds)
    margin = np.ceil(MARGIN * (bounds[:, 1] - bounds[:, 0])).astype(int)
    low = np.maximum(bounds[:, 0] - margin, 0)
    return np.stack([low, np.minimum(bounds[:, 1] + margin, shape)], axis=1)


def _factor(shape: Sequence[int], limit: int) -> int:
    factor = 1
    while np.prod([n // factor for n in shape]) > limit:
        factor += 1
    return factor


def _shrink(volume: np.ndarray, factor: int) -> np.ndarray:
    return _shrink_axes(volume, [factor] * 3)


def _shrink_axes(volume: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Averages blocks of voxels; what does not fill a block at the far end is left out."""
    for axis, factor in enumerate(factors):
        if factor > 1:
            count = volume.shape[axis] // factor
            volume = volume.take(np.arange(count * factor), axis=axis)
            shape = (*volume.shape[:axis], count, factor, *volume.shape[axis + 1 :])
            volume = volume.reshape(shape).mean(axis=axis + 1, dtype=np.float32)
    return volume


def _layer(layer: Layer, volume: np.ndarray, axis: int, crop: slice, factor: int) -> dict[str, Any]:
    others = tuple(a for a in range(3) if a != axis)
    if layer.key == "mask":
        return {"key": "mask", "label": layer.label, **_quantised((volume > 0.5).astype(np.float32), 8, (0, 1))}
    top = float(volume.max())
    if layer.profile is None:
        profile = volume.max(axis=others)
    else:
        count = volume.shape[axis]
        profile = np.asarray(layer.profile, np.float32)[crop][: count * factor].reshape(count, factor).mean(axis=1)
    # Of slices with the same weight, the one with more saliency: a ResNet's map often saturates.
    best = np.flatnonzero(profile >= profile.max() * (1 - 1e-6))
    first = int(best[np.argmax(volume.mean(axis=others)[best])])
    return {
        "key": layer.key,
        "label": layer.label,
        "max": top,
        "top": first,
        "profile": [round(float(p), 7) for p in profile],
        **_quantised(volume, 8, (0.0, top or 1.0)),
    }


def _quantised(volume: np.ndarray, bits: int, span: tuple[float, float]) -> dict[str, Any]:
    """A volume as unsigned integers, zlib-compressed, in base64.

    8 bits cover a little more than the first window, so that it keeps its grey levels; 16 bits cover all.
    """
    low, high = float(volume.min()), float(volume.max())
    if bits == 8:
        margin = 0.25 * (span[1] - span[0])
        low, high = max(low, span[0] - margin), min(high, span[1] + margin)
        if span == (0, 1) or span[0] == 0.0:
            low, high = span
    if high <= low:
        high = low + 1.0
    top = 2**bits - 1
    codes = np.clip((volume - low) / (high - low) * top + 0.5, 0, top).astype(np.uint16 if bits == 16 else np.uint8)
    packed = base64.b64encode(zlib.compress(np.ascontiguousarray(codes).tobytes(), 6)).decode()
    return {"bits": bits, "low": low, "high": high, "data": packed}
