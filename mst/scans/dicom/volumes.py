"""One consistent volume out of the planes of a series.

Scanners and archives put several volumes into one series: kernels, echoes, b-values, phases, breath-holds. Slices of
two of them must never stand in one scan, so what tells them apart is looked for, and one is taken with a note.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from mst.errors import ScanError
from mst.scans.dicom.planes import APART, Plane
from mst.scans.scan import Caution

SAME_DIRECTION = 1e-3
SAME_POSITION_MM = 1e-2
# Of the slice thickness: where slices lie closer than this and belong to two groups, they are two volumes.
CLOSE = 0.75
MOST_VALUES = 8  # named in a note
TIMES = ("AcquisitionTime", "AcquisitionDateTime", "FrameAcquisitionDateTime", "ContentTime", "TriggerTime")


def one_geometry(planes: Sequence[Plane]) -> tuple[list[Plane], Counter[str]]:
    """The planes of one size, direction and pixel spacing, most of them; of what kind the others are.

    Returns:
        (planes, how many images are left out by what they are of: "different directions (a localizer, perhaps)").
    """
    groups: list[list[Plane]] = []
    for piece in planes:
        group = next((g for g in groups if _alike(g[0], piece)), None)
        if group is None:
            groups.append([piece])
        else:
            group.append(piece)
    most = max(groups, key=len)
    left_out: Counter[str] = Counter()
    for group in groups:
        if group is most:
            continue
        if group[0].shape != most[0].shape:
            kind = f"different sizes ({_size(group[0])} beside {_size(most[0])})"
        elif not np.allclose(group[0].orientation, most[0].orientation, atol=SAME_DIRECTION):
            kind = "different directions (a localizer, perhaps)"
        else:
            kind = "different pixel spacing"
        left_out[kind] += len(group)
    return most, left_out


def one_volume(planes: Sequence[Plane], notes: list[str]) -> list[Plane]:
    """The planes of one volume, sorted along their normal.

    Args:
        planes: of one geometry.
        notes: gets a sentence where there were several volumes.
    """
    chosen = list(planes)
    told: list[str] = []
    while True:
        found = _split(chosen)
        if found is None:
            break
        key, groups = found
        best = max(groups, key=lambda value: (_places(groups[value]), -_first_number(groups[value])))
        values = sorted(groups, key=lambda value: _first_number(groups[value]))
        shown = ", ".join(values[:MOST_VALUES]) + (", ..." if len(values) > MOST_VALUES else "")
        told.append(
            f"The series holds {len(groups)} volumes, told apart by {APART.get(key, key)} ({shown}); the one with "
            f"{APART.get(key, key)} {best} was taken ({len(groups[best])} slices)."
        )
        chosen = groups[best]
    notes.extend(told)
    ordered = sorted(chosen, key=lambda piece: (piece.along, piece.number))
    places = _places(ordered)
    if places == len(ordered):
        return ordered
    stack = [ordered[0]]
    for piece in ordered[1:]:
        if piece.along - stack[-1].along > _tolerance(ordered):
            stack.append(piece)
    notes.append(
        Caution(
            f"The series holds {len(ordered)} slices at {len(stack)} places, and nothing tells them apart; "
            "the first one at each place was taken."
        )
    )
    return stack


def even_steps(planes: Sequence[Plane], name: str, left_out: Mapping[str, int]) -> bool:
    """Whether the slices lie equally far apart; False where they do not, though none is missing.

    Args:
        left_out: what images were left out, as `one_geometry` gives it; where a slice is missing, they are why.

    Raises:
        ScanError: a slice is missing.
    """
    steps = np.diff([piece.along for piece in planes])
    usual = float(np.median(steps))
    # Positions are often rounded to a tenth of a millimetre; a missing slice doubles the step.
    wrong = np.abs(steps - usual) > max(0.05 * usual, min(0.1, 0.3 * usual))
    if not wrong.any():
        return True
    least = float(steps.min())
    times = steps[wrong] / usual
    thickness = planes[int(np.argmax(wrong))].thickness
    whole_steps = np.all((np.abs(times - np.round(times)) < 0.15) & (times > 1.5))
    explained = thickness is not None and np.allclose(thickness, steps[wrong], rtol=0.1)
    # Thick slices lie beside one another in a series that changes its spacing; gaps lie anywhere.
    run = bool(np.any(wrong[1:] & wrong[:-1])) and wrong.sum() > 0.2 * len(steps)
    if whole_steps and not run and not explained:
        at = int(np.argmax(wrong))
        gap = f"slices {at + 1} and {at + 2} are {steps[at]:.4g} mm apart, the others {usual:.4g} mm"
        if left_out:
            raise ScanError(
                f"The DICOM series {name} mixes slices of {' and '.join(left_out)}, and without them one is missing "
                f"({gap}); upload one whole series."
            )
        raise ScanError(f"The DICOM series {name} has a gap: {gap}; upload all slices of the series.")
    if (least < 0.2 * usual and least < 0.5) or steps.max() > 8 * least:
        raise ScanError(
            f"The slices of the DICOM series {name} are spaced unevenly, {least:.4g} to {steps.max():.4g} mm apart; "
            "export a series of even spacing."
        )
    return False


def on_a_line(planes: Sequence[Plane], name: str) -> None:
    """Refuses slices that do not lie behind one another.

    Raises:
        ScanError: a slice is shifted against its neighbours by more than a pixel and a millimetre.
    """
    positions = np.array([piece.position for piece in planes])
    along = np.array([piece.along for piece in planes])
    share = (along - along[0]) / max(along[-1] - along[0], 1e-9)
    line = positions[0] + share[:, None] * (positions[-1] - positions[0])
    if np.linalg.norm(positions - line, axis=1).max() > max(1.0, *planes[0].spacing):
        raise ScanError(
            f"The slices of the DICOM series {name} do not lie behind one another; export the original series."
        )


def _split(planes: list[Plane]) -> tuple[str, dict[str, list[Plane]]] | None:
    """What tells the volumes among these planes apart, and the planes of each; None where they are one volume."""
    places = _places(planes)
    if places == len(planes):
        return _interleaved(planes)
    repeats = len(planes) / places
    best: tuple[float, str, dict[str, list[Plane]]] | None = None
    for key in APART:
        groups = _groups(planes, key)
        # Values that each slice has alone, such as times, are tried below.
        if not 1 < len(groups) <= max(len(planes) // 2, 1) or len(groups) > 2 * repeats + 2:
            continue
        left = max(len(group) / _places(group) for group in groups.values())
        if left < repeats - 1e-9 and (best is None or left < best[0] - 1e-9):
            best = (left, key, groups)
            if left == 1:
                break
    if best is not None:
        return best[1], best[2]
    for key in TIMES:
        runs = _runs(planes, key, places)
        if runs is not None:
            return key, runs
    return None


def _interleaved(planes: list[Plane]) -> tuple[str, dict[str, list[Plane]]] | None:
    """Volumes whose slices lie between each other's, such as two breath-holds half a slice apart.

    Slice packages that were taken one after the other make up one volume: then a slice is about as thick as slices lie
    apart. Two volumes make slices overlap that do not overlap within each.
    """
    along = np.sort([piece.along for piece in planes])
    steps = np.diff(along)
    thickness = planes[0].thickness
    if len(steps) < 3:
        return None
    step = float(np.median(steps))
    for key in APART:
        groups = _groups(planes, key)
        if not 1 < len(groups) <= 4 or min(map(len, groups.values())) < 4:
            continue
        inner = [float(np.median(np.diff(np.sort([p.along for p in group])))) for group in groups.values()]
        spans = [(min(p.along for p in g), max(p.along for p in g)) for g in groups.values()]
        lowest, highest = max(span[0] for span in spans), min(span[1] for span in spans)
        overlap = (highest - lowest) / max(along[-1] - along[0], 1e-9)
        if overlap < 0.5 or min(inner) < 1.5 * step:
            continue
        if thickness is None or step < CLOSE * thickness <= 1.05 * max(inner):
            if thickness is None and key in ("StackID", "file"):
                continue
            return key, groups
    return None


def _runs(planes: list[Plane], key: str, places: int) -> dict[str, list[Plane]] | None:
    """Volumes taken one after the other, told apart by a time that each slice has for itself."""
    times = [piece.apart.get(key, "") for piece in planes]
    if not all(times) or len(set(times)) < len(planes) // 2 or len(planes) % places:
        return None
    ordered = sorted(planes, key=lambda piece: _as_number(piece.apart[key]))
    runs = [ordered[start : start + places] for start in range(0, len(ordered), places)]
    if any(_places(run) < places for run in runs):
        return None
    return {run[0].apart[key]: run for run in runs}


def _groups(planes: Sequence[Plane], key: str) -> dict[str, list[Plane]]:
    groups: dict[str, list[Plane]] = defaultdict(list)
    for piece in planes:
        groups[piece.apart.get(key, "none")].append(piece)
    return dict(groups)


def _places(planes: Sequence[Plane]) -> int:
    """At how many places along their normal these planes lie."""
    return int((np.diff(np.sort([piece.along for piece in planes])) > _tolerance(planes)).sum()) + 1


def _tolerance(planes: Sequence[Plane]) -> float:
    """Millimetres within which two planes lie at one place: a part of a slice, but no more than rounding."""
    along = np.sort([piece.along for piece in planes])
    return min(SAME_POSITION_MM, 0.1 * float(along[-1] - along[0]) / max(len(planes) - 1, 1) + 1e-6)


def _first_number(planes: Sequence[Plane]) -> float:
    return min(piece.number for piece in planes)


def _as_number(value: str) -> float:
    try:
        return float(value.replace(":", "").split("\\")[0])
    except ValueError:
        return 0.0


def _alike(first: Plane, second: Plane) -> bool:
    return (
        first.shape == second.shape
        and np.allclose(first.orientation, second.orientation, atol=SAME_DIRECTION)
        and np.allclose(first.spacing, second.spacing, rtol=1e-3)
    )


def _size(piece: Plane) -> str:
    return f"{piece.shape[1]} x {piece.shape[0]}"
