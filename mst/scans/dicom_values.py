"""From stored numbers to intensities: signs, padding, rescaling, and what is said where they cannot be trusted.

DICOM PS3.3 C.7.6.3.1 (pixels), C.7.5.1.1.2 (padding), C.11.1 (rescaling).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mst.errors import ScanError
from mst.scans.checks import check_count
from mst.scans.dicom_files import DicomFile, number, text, whole_number
from mst.scans.dicom_pixels import frames, has_table
from mst.scans.dicom_planes import Plane
from mst.scans.scan import Caution

AIR_HU = (-1024.0, -1000.0)  # what air may be set to
NO_TISSUE_HU = -1100.0  # below it nothing is but padding and noise
LIKE_AIR_HU = -900.0
TOO_BRIGHT_HU = 40_000.0  # no metal is: negative numbers that were stored as unsigned ones
CLEARLY_OFF_HU = 200.0  # between neighbouring slices, on average
WITHOUT_UNITS = ("MR", "CR", "DX", "MG", "XA", "RF", "OT", "")  # their numbers mean dark and bright, no more


@dataclass
class _Scale:
    """How a slice's stored numbers become intensities, and whether its file says so."""

    slope: float
    intercept: float
    said: bool


def read_voxels(planes: Sequence[Plane], copies: Sequence[tuple[int, Plane]], notes: list[str]) -> np.ndarray:
    """Decodes a stack of planes.

    Args:
        planes: the volume's slices, in its order.
        copies: planes that should show the same picture as slice number so-and-so.
        notes: what the user has to know is added here.

    Returns:
        Intensities, float32 [columns, rows, slices]; Hounsfield units for CT.

    Raises:
        ScanError: a file is damaged or promises too much, or a copy shows another picture.
    """
    check_count("The DICOM series", (*planes[0].shape, len(planes)))
    stack = np.empty((len(planes), *planes[0].shape), np.float32)
    for k, picture in _pictures(planes):
        stack[k] = picture
    for index, picture in _pictures([plane for _, plane in copies]):
        if not np.array_equal(np.asarray(picture, np.float32), stack[copies[index][0]]):
            raise ScanError(
                "The DICOM series holds different pictures at the same place, and nothing in the files says which "
                "of them belong together; export one volume at a time."
            )
    is_ct = planes[0].modality == "CT"
    _extend_signs(planes, stack)
    scales = [_scale(plane) for plane in planes]
    if is_ct:
        _mend_scales(stack, scales, notes)
    padding = _rescale(planes, stack, scales, is_ct)
    units = {plane.said("RescaleType").upper() for plane in planes} - {"", "HU", "US"}
    if is_ct and units:
        notes.append(
            Caution(
                f"The values of this CT are no Hounsfield units ({', '.join(sorted(units))[:40]}); "
                "a model for CT cannot be trusted with them."
            )
        )
    if is_ct and not any(scale.said for scale in scales):
        notes.append(_no_scale(stack))
    if is_ct and not units and any(scale.said for scale in scales):
        _set_air(stack, scales, padding, notes)
    elif padding:
        least = np.float32(np.nanmin(stack))
        stack[np.isnan(stack)] = least
        if any(abs(value - least) >= 1 for value in padding):
            notes.append("Pixels that the scanner marked as padding were set to the scan's lowest value.")
    _invert(planes, stack, notes)
    return stack.transpose(2, 1, 0)


def _pictures(planes: Sequence[Plane]) -> Iterator[tuple[int, np.ndarray]]:
    """Each plane's number in the sequence and its stored numbers; every file is read once."""
    files: dict[DicomFile, list[int]] = defaultdict(list)
    for k, plane in enumerate(planes):
        files[plane.file].append(k)
    for file, members in files.items():
        pictures = frames(file, [planes[k].frame or 0 for k in members])
        yield from zip(members, pictures, strict=True)


def _extend_signs(planes: Sequence[Plane], stack: np.ndarray) -> None:
    """Makes signed numbers negative whose sign was not carried on beyond the bits stored."""
    groups: dict[int, list[int]] = defaultdict(list)
    for k, plane in enumerate(planes):
        stored, allocated = (whole_number(plane.header, key) for key in ("BitsStored", "BitsAllocated"))
        if _is_signed(plane) and 0 < stored < allocated:
            groups[stored].append(k)
    for bits, members in groups.items():
        most = max(float(stack[k].max()) for k in members)
        # A number below zero shows that the signs were carried on, one beyond the bits that they tell nothing.
        if 2 ** (bits - 1) <= most < 2**bits and min(float(stack[k].min()) for k in members) >= 0:
            for k in members:
                stack[k][stack[k] >= 2 ** (bits - 1)] -= 2**bits


def _is_signed(plane: Plane) -> bool:
    return whole_number(plane.header, "PixelRepresentation") == 1


def _scale(plane: Plane) -> _Scale:
    if has_table(plane.header):
        return _Scale(1.0, 0.0, True)
    slope = plane.value("PixelValueTransformationSequence", "RescaleSlope")
    intercept = plane.value("PixelValueTransformationSequence", "RescaleIntercept")
    return _Scale(slope or 1.0, intercept or 0.0, intercept is not None)


def _mend_scales(stack: np.ndarray, scales: list[_Scale], notes: list[str]) -> None:
    """Gives CT slices whose rescaling is missing or wrong that of the others, where their values show it."""
    pairs = Counter((scale.slope, scale.intercept) for scale in scales if scale.said)
    if not pairs:
        return
    usual, _ = pairs.most_common(1)[0]
    good = [k for k, scale in enumerate(scales) if scale.said and (scale.slope, scale.intercept) == usual]
    sparse = stack[:, ::4, ::4]
    mended = unsaid = 0
    for k, scale in enumerate(scales):
        if k in good:
            continue
        unsaid += not scale.said
        near = min(good, key=lambda other: abs(other - k))
        beside = sparse[near] * usual[0] + usual[1]
        own, as_others = (
            abs(float((sparse[k] * slope + intercept - beside).mean()))
            for slope, intercept in ((scale.slope, scale.intercept), usual)
        )
        if own > CLEARLY_OFF_HU and as_others < own / 2:
            scales[k] = _Scale(*usual, True)
            mended += 1
    if mended or unsaid:
        count = max(mended, unsaid)
        which = "One slice does" if count == 1 else f"{count} slices do"
        how = "scaled like the others" if mended else "taken as they are"
        notes.append(
            f"{which} not say rightly how stored numbers become Hounsfield units (RescaleIntercept); "
            f"as their values show, they were {how}."
        )


def _rescale(planes: Sequence[Plane], stack: np.ndarray, scales: list[_Scale], is_ct: bool) -> set[float]:
    """Rescales in place; padding becomes NaN, and its values are returned."""
    found = set()
    for picture, plane, scale in zip(stack, planes, scales, strict=True):
        padding = _padding(plane)
        marked = (picture >= padding[0]) & (picture <= padding[1]) if padding else None
        picture *= np.float32(scale.slope)
        picture += np.float32(scale.intercept)
        if padding is None or marked is None or not marked.any():
            continue
        values = [bound * scale.slope + scale.intercept for bound in padding]
        corners = marked[[0, 0, -1, -1], [0, -1, 0, -1]]
        # A value within tissue is padding only where it lies around the picture: the tag is often wrong.
        if is_ct and max(values) > LIKE_AIR_HU and not corners.all():
            continue
        found.update(values)
        picture[marked] = np.nan
    return found


def _padding(plane: Plane) -> tuple[float, float] | None:
    """The stored numbers that mean padding, from and to."""
    value = number(plane.header, "PixelPaddingValue")
    if value is None or has_table(plane.header):
        return None
    limit = number(plane.header, "PixelPaddingRangeLimit")
    whole = 2 ** whole_number(plane.header, "BitsAllocated", 16)
    bounds = []
    for bound in (value, value if limit is None else limit):
        # Files often write the number with the other signedness than the pixels have.
        if _is_signed(plane) and bound >= whole / 2:
            bound -= whole
        elif not _is_signed(plane) and bound < 0:
            bound += whole
        bounds.append(bound)
    return min(bounds), max(bounds)


def _no_scale(stack: np.ndarray) -> str:
    """What to say of a CT that does not say what its numbers mean."""
    missing = "The CT does not say how its stored numbers become Hounsfield units (no RescaleIntercept)"
    if np.nanmin(stack) <= -500:
        return f"{missing}; they look like Hounsfield units and were taken as such."
    return Caution(
        f"{missing}; they were taken as they are and are not Hounsfield units, as nothing is as dark as air: "
        "do not trust the result, and export the series again."
    )


def _set_air(stack: np.ndarray, scales: list[_Scale], padding: set[float], notes: list[str]) -> None:
    """Sets padding, and what is darker than anything in a patient, to air."""
    least, lowest = np.inf, min(padding, default=np.inf)
    for picture, scale in zip(stack, scales, strict=True):
        if np.nanmax(picture, initial=-np.inf) > TOO_BRIGHT_HU:
            picture[picture > TOO_BRIGHT_HU] -= np.float32(2**16 * scale.slope)
        dark = picture < NO_TISSUE_HU
        if dark.any():
            lowest = min(lowest, float(picture[dark].min()))
            picture[dark] = np.nan
        least = min(least, float(np.nanmin(picture, initial=np.inf)))
    air = float(np.clip(least, *AIR_HU))
    values = padding | {lowest} - {np.inf}
    for picture in stack:
        picture[np.isnan(picture)] = air
    if any(abs(value - air) >= 1 for value in values):
        notes.append(
            f"Padding around the picture (down to {min(values):.0f} HU) was set to air ({air:.0f} HU)."
        )


def _invert(planes: Sequence[Plane], stack: np.ndarray, notes: list[str]) -> None:
    """Turns pictures whose high numbers are dark; values with a unit keep their meaning."""
    dark = [
        k
        for k, plane in enumerate(planes)
        if text(plane.header, "PhotometricInterpretation").upper() == "MONOCHROME1"
        and plane.modality in WITHOUT_UNITS
    ]
    if dark:
        least = min(float(stack[k].min()) for k in dark)
        most = max(float(stack[k].max()) for k in dark)
        for k in dark:
            stack[k] = least + most - stack[k]
        notes.append(
            "The scan is stored as a negative (MONOCHROME1: high numbers are dark); it was inverted."
        )
