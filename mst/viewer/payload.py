"""The data that a viewer draws: volumes quantised, compressed and small enough to send.

A page shows the scan first (`scan_payload`) and what models make of a region later (`findings_payload`); a report
holds both at once, of the region and some context alone (`viewer_payload`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mst.scans import Scan
from mst.scans.boxes import box_of, on_box
from mst.viewer.packing import SliceStream, gray, numbers, packed, shrink
from mst.words import COLORS, DISCLAIMER, LONGEST_NAME, SHOWN_FROM, clipped

Plane = Literal["axial", "coronal", "sagittal"]
SLICE_AXIS: dict[str, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
MARGIN = 0.2  # context shown round the region, as a part of its size on each side
MAX_BYTES = 2_500_000  # of one payload, as text
MAX_VOXELS = 4_000_000  # more is not worth trying to fit
MAX_EXACT_VOXELS = 1_700_000  # more in 16 bits would not fit
MAX_OVERVIEW_SIDE = 160
MAX_OVERVIEW_VOXELS = 1_800_000  # 2.4 MB where noise leaves nothing to compress


@dataclass(frozen=True)
class NativeMap:
    """A map at the model's own resolution: how coarse it really is.

    Attributes:
        values: float32 [x, y, z] along the canonical scan's axes, at least 0.
        start: of the first cell's lower edge, in the canonical scan's voxels; voxel i reaches from i - 0.5
            to i + 0.5.
        size: of a cell along each axis, in voxels.
    """

    values: np.ndarray
    start: Sequence[float] | np.ndarray
    size: Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Layer:
    """What lies over the scan.

    Attributes:
        key: "mst", "resnet" or "mask".
        label: for the panel's heading.
        short: what the model is called where there is little room; "": the script's own word for the key.
        volume: float32 [x, y, z] on a box of the canonical scan's grid, at least 0 and zero around it; bool for a
            mask.
        profile: one number for each slice of the canonical scan in the viewer's plane: how much the model
            weighs it. None: the volume's maximum in each slice.
        native: the same map before it was brought to the scan's voxels.
        start: the canonical scan's voxel where the box begins.
    """

    key: str
    label: str
    volume: np.ndarray
    profile: np.ndarray | None = None
    native: NativeMap | None = None
    short: str = ""
    start: Sequence[int] | np.ndarray = (0, 0, 0)


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
    file_affine: np.ndarray | None = None,
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
        file_affine: of the file's own voxel order, for telling voxel indices; None: the canonical one.

    Raises:
        ValueError: a layer does not lie within the scan.
    """
    axis = SLICE_AXIS[plane]
    _check(layers, scan, axis)
    box = _display_box(scan.shape, bounds)
    crop = slice(*box[axis].tolist())
    notes = [f"{layer.label}: the map is zero everywhere." for layer in layers if not np.any(layer.volume)]
    shown = scan.cropped(box[:, 0], box[:, 1])
    voxels = _finite(shown.voxels, "The scan", notes)
    volumes = [_finite(on_box(layer.volume, layer.start, box), layer.label, notes) for layer in layers]
    # Without windows to choose from, the script offers the whole range.
    named = [(low, high) for _, low, high in windows] or [(float(voxels.min()), float(voxels.max()))]
    spans = [window, *named]

    spare = (
        4000
        + 40 * sum(scan.shape)
        + sum(1.4 * layer.native.values.size + 400 for layer in layers if layer.native)
    )

    # The finest choice that fits: intensities in 16 bits before maps at full resolution, which a model's patches
    # never have; then 8 bits, and last coarser voxels.
    factors = [1, 1, 1]
    while np.prod([n // f for n, f in zip(voxels.shape, factors, strict=True)]) > MAX_VOXELS:
        factors = _coarser(factors, voxels.shape, scan.spacing)
    while True:
        small = shrink(voxels, factors)
        # Noise leaves little to compress: what is far too large in 16 bits need not be tried.
        grays = [16, 8] if small.size < MAX_EXACT_VOXELS else [8]
        shrunk = [shrink(volume, factors) for volume in volumes]
        maps = {
            coarse: [
                _mask(layer, volume > 0.5)
                if layer.key == "mask"
                else _layer(
                    layer,
                    volume,
                    axis,
                    coarse=coarse,
                    profile=_weights(layer, crop, factors[axis]),
                    count=small.shape[axis],
                )
                for layer, volume in zip(layers, shrunk, strict=True)
            ]
            for coarse in (1, 2)
        }
        graded = {bits: gray(small, bits, spans) for bits in grays}
        for bits, coarse in [(bits, coarse) for bits in grays for coarse in (1, 2)]:
            shades, sent = graded[bits], maps[coarse]
            size = len(shades["data"]) + sum(len(e["data"]) for e in sent) + spare
            if size <= MAX_BYTES:
                break
        else:
            factors = _coarser(factors, voxels.shape, scan.spacing)
            continue
        break
    if max(factors) > 1:
        notes.append(
            "Shown with fewer voxels than the scan has: "
            + " × ".join(f"1/{f}" if f > 1 else "all" for f in factors)
            + " along the left-right, front-back and head-foot axes."
        )
    region = None
    if bounds is not None:
        region = ((np.asarray(bounds) - box[:, :1]) / np.array(factors)[:, None]).round(3).tolist()
    natives = {layer.key: layer.native for layer in layers}
    for entry in sent:
        if (native := natives[entry["key"]]) is not None:
            entry["native"] = _native(native, box[:, 0], np.array(factors))
    return {
        **_head(
            scan, plane=plane, window=window, windows=windows, unit=unit, title=title, file_affine=file_affine
        ),
        "shape": list(small.shape),
        "spacing": [round(s * f, 5) for s, f in zip(scan.spacing, factors, strict=True)],
        "affine": _shrunk_affine(shown, factors),
        "first": [int(start) for start, _ in box],
        "factors": factors,
        "region": region,
        "scan": shades,
        "layers": [entry for entry in sent if entry["key"] != "mask"],
        "mask": next((entry for entry in sent if entry["key"] == "mask"), None),
        "notes": notes,
    }


def is_sent_whole(scan: Scan) -> bool:
    """Whether `scan_payload` has every voxel of a scan, and a viewer needs to ask for none."""
    return bool(np.prod(scan.shape) <= MAX_EXACT_VOXELS)


def scan_payload(
    scan: Scan,
    *,
    plane: Plane,
    window: tuple[float, float],
    windows: Sequence[tuple[str, float, float]] = (),
    unit: str = "",
    title: str = "",
    file_affine: np.ndarray | None = None,
    key: str = "",
    stream: SliceStream | None = None,
    url: str = "",
) -> dict[str, Any]:
    """A whole scan for the viewer; what is found in it follows as `findings_payload`.

    A small scan is sent whole. Of a large one goes an overview, and the viewer asks for slices as they come into sight.

    Args:
        scan, plane, window, windows, unit, title, file_affine: as for `viewer_payload`.
        key: tells this scan from others, so that findings meet the scan that they belong to.
        stream, url: the scan's slices, and where they are served; without them a large scan is an overview alone.
    """
    notes: list[str] = []
    spans = [window, *((low, high) for _, low, high in windows)]
    sent = None
    if stream is None and is_sent_whole(scan):
        voxels = _finite(scan.voxels, "The scan", notes)
        sent = next(
            (g for g in (gray(voxels, bits, spans) for bits in (16, 8)) if len(g["data"]) <= MAX_BYTES), None
        )
    slices = None
    if sent is None:
        # Thick slices are kept while the planes shrink: each axis has its own factor.
        factors = [max(1, -(-n // MAX_OVERVIEW_SIDE)) for n in scan.shape]
        while np.prod([n // f for n, f in zip(scan.shape, factors, strict=True)]) > MAX_OVERVIEW_VOXELS:
            factors[int(np.argmax([n / f for n, f in zip(scan.shape, factors, strict=True)]))] += 1
        small = shrink(scan.voxels, factors)
        if not np.isfinite(small).all():
            small = shrink(_finite(scan.voxels, "The scan", notes), factors)
        sent = {**gray(small, 8, spans), "shape": list(small.shape), "factors": factors}
        if stream is not None:
            slices = {"url": url, "low": stream.low, "high": stream.high}
    return {
        **_head(
            scan, plane=plane, window=window, windows=windows, unit=unit, title=title, file_affine=file_affine
        ),
        "key": key,
        "scan": sent,
        "slices": slices,
        "notes": notes,
    }


def findings_payload(
    scan: Scan,
    layers: Sequence[Layer],
    *,
    plane: Plane,
    bounds: np.ndarray | None,
    center: Sequence[float] | None = None,
    key: str = "",
) -> dict[str, Any]:
    """What lies over a scan that a viewer shows whole, on the smallest box that holds it.

    Args:
        scan, layers, plane, bounds: as for `viewer_payload`.
        center: of the spot that was explained, in RAS millimetres.
        key: of the scan's payload.
    """
    axis = SLICE_AXIS[plane]
    _check(layers, scan, axis)
    notes = [f"{layer.label}: the map is zero everywhere." for layer in layers if not np.any(layer.volume)]
    maps = [layer for layer in layers if layer.key != "mask"]
    box = _around(maps)
    volumes = [_finite(on_box(layer.volume, layer.start, box), layer.label, notes) for layer in maps]
    # No model has patches as fine as voxels: a map that is too large goes at a half or less within the slices.
    for coarse in range(1, 9):
        sent = [
            _layer(
                layer,
                volume,
                axis,
                count=scan.shape[axis],
                first=int(box[axis, 0]),
                coarse=coarse,
                profile=layer.profile,
            )
            for layer, volume in zip(maps, volumes, strict=True)
        ]
        if sum(len(entry["data"]) for entry in sent) <= MAX_BYTES:
            break
    for layer, entry in zip(maps, sent, strict=True):
        if layer.native is not None:
            entry["native"] = _native(layer.native, box[:, 0], np.ones(3))
    mask = next((layer for layer in layers if layer.key == "mask"), None)
    return {
        "key": key,
        "center": None if center is None else [round(float(c), 2) for c in center],
        "region": None if bounds is None else np.asarray(bounds).tolist(),
        "box": _as_box(box),
        "layers": sent,
        "mask": None if mask is None else mask_payload(mask),
        "notes": notes,
    }


def spot_payload(center: Sequence[float], box_mm: Sequence[float] | None) -> dict[str, Any]:
    """A spot in RAS millimetres, and how far the models' region reaches round it along the canonical axes."""
    return {
        "center": [round(float(c), 2) for c in center],
        "size": None if box_mm is None else [round(float(b), 2) for b in box_mm],
    }


def mask_payload(mask: Layer) -> dict[str, Any]:
    """A lesion's mask on the smallest box that holds it, for a viewer that shows the scan whole."""
    inside = np.asarray(mask.volume) > 0.5
    own = box_of(inside)
    box = own + np.asarray(mask.start)[:, None]
    inside = inside[tuple(slice(low, high) for low, high in own)]
    return {**_mask(mask, inside), "box": _as_box(box)}


def _head(
    scan: Scan,
    *,
    plane: Plane,
    window: tuple[float, float],
    windows: Sequence[tuple[str, float, float]],
    unit: str,
    title: str,
    file_affine: np.ndarray | None,
) -> dict[str, Any]:
    """What every viewer needs of a scan, which it shows whole, with nothing over it, unless told otherwise."""
    return {
        "title": clipped(title, LONGEST_NAME),
        "plane": plane,
        "unit": unit,
        "window": [float(window[0]), float(window[1])],
        "windows": [[name, float(low), float(high)] for name, low, high in windows],
        "shape": list(scan.shape),
        "spacing": [round(s, 5) for s in scan.spacing],
        "affine": np.round(scan.affine, 5).tolist(),
        "fileAffine": np.round(scan.affine if file_affine is None else file_affine, 5).tolist(),
        "first": [0, 0, 0],
        "full": list(scan.shape),
        "factors": [1, 1, 1],
        "region": None,
        "layers": [],
        "mask": None,
        "shownFrom": SHOWN_FROM,
        "colors": COLORS,
        "disclaimer": DISCLAIMER,
    }


def _check(layers: Sequence[Layer], scan: Scan, axis: int) -> None:
    for layer in layers:
        if np.any(np.asarray(layer.start) < 0) or np.any(
            np.add(layer.start, layer.volume.shape) > scan.shape
        ):
            raise ValueError(
                f"layer {layer.key} is {layer.volume.shape} from {tuple(layer.start)} on, the scan {scan.shape}"
            )
        if layer.profile is not None and np.shape(layer.profile) != (scan.shape[axis],):
            raise ValueError(
                f"layer {layer.key} has {np.shape(layer.profile)} weights for {scan.shape[axis]} slices"
            )


def _around(layers: Sequence[Layer]) -> np.ndarray:
    """int [3, 2]: the smallest box that holds all of these; of none, one voxel."""
    if not layers:
        return np.array([(0, 1)] * 3)
    low = np.min([np.asarray(layer.start) for layer in layers], axis=0)
    high = np.max([np.add(layer.start, layer.volume.shape) for layer in layers], axis=0)
    return np.stack([low, high], axis=1)


def _as_box(box: np.ndarray) -> dict[str, list[int]]:
    return {"start": box[:, 0].tolist(), "shape": (box[:, 1] - box[:, 0]).tolist()}


def _display_box(shape: Sequence[int], bounds: np.ndarray | None) -> np.ndarray:
    """int [3, 2]: the region with some context round it, within the scan."""
    whole = np.array([(0, n) for n in shape])
    if bounds is None:
        return whole
    bounds = np.asarray(bounds)
    margin = np.ceil(MARGIN * (bounds[:, 1] - bounds[:, 0])).astype(int)
    low = np.maximum(bounds[:, 0] - margin, 0)
    high = np.minimum(bounds[:, 1] + margin, shape)
    # A region that lies outside the scan altogether leaves nothing to show but the scan.
    return whole if np.any(high - low < 1) else np.stack([low, high], axis=1)


def _finite(volume: np.ndarray, label: str, notes: list[str]) -> np.ndarray:
    """The volume as float32 with zeros for what is no number, which is noted."""
    volume = np.asarray(volume, np.float32)
    if np.isfinite(volume).all():
        return volume
    notes.append(f"{label}: values that are not numbers are shown as zero.")
    return numbers(volume)


def _coarser(factors: Sequence[int], shape: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """The factors with the finest axis one step coarser, so that thick slices are the last to be joined."""
    fineness = [
        s * f if n // (f + 1) >= 2 else np.inf for s, f, n in zip(spacing, factors, shape, strict=True)
    ]
    finest = min(fineness)
    # Axes of nearly one spacing go together: a slice's pixels stay square.
    return [f + (fine <= 1.05 * finest) for f, fine in zip(factors, fineness, strict=True)]


def _shrunk_affine(scan: Scan, factors: Sequence[int]) -> list[list[float]]:
    """Of what `shrink` makes of a scan's voxels."""
    affine = scan.affine.copy()
    affine[:3, 3] = scan.voxel_to_world((np.array(factors) - 1) / 2)
    affine[:3, :3] *= factors
    return np.round(affine, 5).tolist()


def _weights(layer: Layer, crop: slice, factor: int) -> np.ndarray | None:
    """A layer's weights of the slices that a viewer shows, `factor` of the scan's slices in each."""
    if layer.profile is None:
        return None
    return shrink(np.asarray(layer.profile, np.float32)[crop, None, None], [factor, 1, 1])[:, 0, 0]


def _layer(
    layer: Layer,
    volume: np.ndarray,
    axis: int,
    *,
    count: int,
    first: int = 0,
    coarse: int = 1,
    profile: np.ndarray | None = None,
) -> dict[str, Any]:
    """A map's part of the payload.

    Args:
        volume: on its box of the viewer's grid.
        axis: across the slices.
        count: slices of that grid.
        first: of them in the box.
        coarse: so many voxels along rows and columns become one.
        profile: a weight for each of the grid's slices; None: the maximum in each slice.
    """
    volume = np.maximum(volume, 0)
    others = tuple(a for a in range(3) if a != axis)
    top = float(volume.max())

    def along(values: np.ndarray) -> np.ndarray:
        """Values of the box's slices as those of the grid's."""
        return np.pad(values, (first, count - first - len(values)))

    if profile is None:
        profile = along(volume.max(axis=others))
    profile = np.nan_to_num(np.asarray(profile, np.float32), posinf=0.0, neginf=0.0)
    # Of slices with the same weight, the one with more saliency: a ResNet's map often saturates.
    best = np.flatnonzero(profile >= profile.max() - 1e-6 * abs(profile.max()))
    strongest = int(best[np.argmax(along(volume.mean(axis=others))[best])])
    factors = [1 if a == axis or volume.shape[a] < 4 else min(coarse, volume.shape[a]) for a in range(3)]
    sent = shrink(volume, factors)
    return {
        "key": layer.key,
        "label": layer.label,
        "short": layer.short,
        "max": top,
        "top": strongest,
        "profile": [round(float(p), 7) for p in profile],
        "shape": list(sent.shape),
        "factors": factors,
        **packed(sent, 8, 0.0, top or 1.0),
    }


def _mask(layer: Layer, inside: np.ndarray) -> dict[str, Any]:
    return {"key": layer.key, "label": layer.label, **packed(inside.astype(np.float32), 8, 0.0, 1.0)}


def _native(native: NativeMap, first: np.ndarray, factors: np.ndarray) -> dict[str, Any]:
    """A map's own grid; start and size of its cells in the voxels that are sent, from the first one's edge."""
    values = np.nan_to_num(np.maximum(native.values, 0), posinf=0.0).astype(np.float32)
    top = float(values.max())
    return {
        "shape": list(values.shape),
        "start": ((np.asarray(native.start) + 0.5 - first) / factors).round(4).tolist(),
        "size": (np.asarray(native.size) / factors).round(5).tolist(),
        "max": top,
        **packed(values, 8, 0.0, top or 1.0),
    }
