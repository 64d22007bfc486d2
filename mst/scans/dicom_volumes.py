"""One consistent volume out of the planes of a DICOM series.

A series may hold several volumes (kernels, echoes, phases, ...), slice by slice at the same places or between each
other, and pictures that belong to none (localizers, screenshots). What differs within a volume and what tells two
volumes apart has no rule that all makers keep. So a property counts as one that tells volumes apart if it does: if
the planes that share it lie at equal distances, each at a place of its own.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from operator import attrgetter

import numpy as np

from mst.errors import ScanError
from mst.scans.dicom_files import number, text
from mst.scans.dicom_planes import CUT, NO_PLACE, NOUNS, Odd, Plane

SAME_DIRECTION = 1e-3
SAME_POSITION_MM = 1e-2
MIN_SLICES = 4  # fewer planes are no volume of their own
MAX_TILT_SILENT = 0.5  # degrees
MAX_FINER = 4  # times as many slices may be made where their distances differ
SHOWN, MAX_LETTERS = 4, 40  # values that a note lists, and how long each may be

# What tells volumes apart wherever it differs: (keyword, what it is called, for one and for several).
ALWAYS = {
    "component": ("part of the signal", "parts of the signal"),
    "ConvolutionKernel": ("kernel", "kernels"),
    "EffectiveEchoTime": ("echo time", "echo times"),
    "EchoTime": ("echo time", "echo times"),
    "EchoNumbers": ("echo", "echoes"),
    "DiffusionBValue": ("b-value", "b-values"),
    "InversionTime": ("inversion time", "inversion times"),
    "KVP": ("tube voltage", "tube voltages"),
    "TemporalPositionIdentifier": ("time point", "time points"),
    "TemporalPositionIndex": ("time point", "time points"),
    "ImageType": ("image type", "image types"),
    "FrameType": ("image type", "image types"),
    "Modality": ("modality", "modalities"),
    "SOPClassUID": ("kind of object", "kinds of objects"),
    "SeriesNumber": ("series number", "series numbers"),
    "SeriesDescription": ("description", "descriptions"),
    "PatientID": ("patient", "patients"),
    "StudyInstanceUID": ("study", "studies"),
    "FrameOfReferenceUID": ("frame of reference", "frames of reference"),
}
# What may change from one end of a volume to the other.
SOFT = {"ImageType", "FrameType", "SeriesNumber", "SeriesDescription", "KVP", "InversionTime"}
UNSHOWN = {"PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID"}
# What tells volumes apart only if planes would otherwise lie at one place, or uneven; the first that does.
PERHAPS = {
    "TemporalPositionTimeOffset": ("time point", "time points"),
    "AcquisitionNumber": ("acquisition", "acquisitions"),
    "FrameAcquisitionNumber": ("acquisition", "acquisitions"),
    "TriggerTime": ("trigger time", "trigger times"),
    "NominalCardiacTriggerDelayTime": ("trigger time", "trigger times"),
    "NominalPercentageOfCardiacPhase": ("cardiac phase", "cardiac phases"),
    "AcquisitionTime": ("acquisition time", "acquisition times"),
    "AcquisitionDateTime": ("acquisition time", "acquisition times"),
    "FrameAcquisitionDateTime": ("acquisition time", "acquisition times"),
    "ContentTime": ("time", "times"),
    "SeriesTime": ("time", "times"),
    "StackID": ("stack", "stacks"),
    "DiffusionGradientOrientation": ("diffusion direction", "diffusion directions"),
    "file": ("file", "files"),
}
TIMES = ("AcquisitionDateTime", "FrameAcquisitionDateTime", "AcquisitionTime", "ContentTime")
IN_ORDER = ("TriggerTime", "NominalCardiacTriggerDelayTime", *TIMES)


@dataclass(frozen=True)
class Stack:
    """The slices of one volume.

    Attributes:
        planes: sorted along their normal.
        copies: planes left out that should show the same picture as slice number so-and-so.
        step: from one slice to the next, LPS millimetres, shape (3,).
        heights: where the slices lie, counted in steps, shape (slices,); whole numbers where they lie evenly.
        notes: what was decided, one sentence each.
    """

    planes: tuple[Plane, ...]
    copies: tuple[tuple[int, Plane], ...]
    step: np.ndarray
    heights: np.ndarray
    notes: tuple[str, ...]


Groups = list[list[Plane]]


@dataclass(frozen=True)
class _Layout:
    """How planes lie: "even", "one" plane, or what is wrong: "repeated", "gap", "uneven", "sideways"."""

    kind: str
    planes: list[Plane]
    steps: np.ndarray
    usual: float

    @property
    def even(self) -> bool:
        return self.kind == "even"

    @property
    def worst(self) -> int:
        return int(np.argmax(np.abs(self.steps - self.usual)))


def pick_stack(planes: Sequence[Plane], odd: Sequence[Odd], name: str) -> Stack:
    """Picks one volume out of the planes of a series.

    Args:
        planes: at least one.
        odd: what else the series holds.
        name: of the series, for messages.

    Raises:
        ScanError: slices are missing or do not fit each other.
    """
    notes: list[str] = []
    chosen, others = _one_geometry(_without_localizers(planes, notes))
    chosen = _one_kind(chosen, notes)
    if len(chosen) < 2:
        if others:
            raise ScanError(_mixed(chosen[0], others, name))
        raise ScanError(f"The DICOM series {name} is a single slice; upload all files of the series.")
    _check_cut(odd, chosen[0])
    layout, copies = _one_scan(chosen, name, notes)
    if layout.kind != "even":
        _check_fillers(layout, others, odd, name)
        layout = _without_far_stacks(layout, notes)
    if others:
        notes.append(_left_out(others, layout.planes[0]))
    if odd:
        counts = Counter(NOUNS.get(piece.why, piece.why) for piece in odd)
        notes.append(f"Left out of the series: {', '.join(counted(n, noun) for noun, n in counts.items())}.")
    return _stack(layout, copies, name, notes)


def counted(count: int, noun: str) -> str:
    """ "1 film", "3 films", "2 images without a place in the patient"."""
    if count == 1:
        return f"1 {noun}"
    head, space, rest = noun.partition(" ") if noun.startswith(("image ", "set ")) else (noun, "", "")
    return f"{count} {head}s{space}{rest}"


def _without_localizers(planes: Sequence[Plane], notes: list[str]) -> list[Plane]:
    proper = [plane for plane in planes if not is_localizer(plane)]
    if proper and len(proper) < len(planes):
        notes.append(f"{counted(len(planes) - len(proper), 'localizer')} in the series left out.")
    return proper or list(planes)


def is_localizer(plane: Plane) -> bool:
    return bool(plane.kinds & {"LOCALIZER", "SCOUT", "TOPOGRAM"})


# Geometry


def _one_geometry(planes: list[Plane]) -> tuple[list[Plane], list[Plane]]:
    """The largest group of planes of one direction, size and pixel spacing, and the rest."""
    features = np.array(
        [[*p.orientation.ravel(), *np.log(np.maximum(p.spacing, 1e-9)), *p.shape] for p in planes]
    )
    left = np.arange(len(planes))
    groups: list[np.ndarray] = []
    while len(left):
        away = np.abs(features[left] - features[left[0]])
        same = (away[:, :8] < SAME_DIRECTION).all(axis=1) & (away[:, 8:] == 0).all(axis=1)
        groups.append(left[same])
        left = left[~same]
    largest = max(groups, key=len)  # of several the one that came first
    inside = set(largest.tolist())
    return [planes[k] for k in largest], [p for k, p in enumerate(planes) if k not in inside]


def _what_differs(plane: Plane, other: Plane) -> str:
    if plane.shape != other.shape:
        sizes = sorted({plane.shape, other.shape})
        return f"sizes ({' and '.join(f'{columns} x {rows}' for rows, columns in sizes)})"
    if not np.allclose(plane.orientation, other.orientation, atol=SAME_DIRECTION):
        return "directions"
    return "pixel spacing"


def _mixed(plane: Plane, others: Sequence[Plane], name: str) -> str:
    return f"The DICOM series {name} mixes slices of different {_what_differs(plane, others[0])}; upload one series."


def _left_out(others: Sequence[Plane], plane: Plane) -> str:
    differing = sorted({_what_differs(plane, other).split(" (")[0] for other in others})
    reason = " and ".join({"sizes": "size", "directions": "direction"}.get(d, d) for d in differing)
    count = "One image" if len(others) == 1 else f"{len(others)} images"
    return f"{count} of another {reason} in the series left out."


def layout_of(planes: Sequence[Plane]) -> _Layout:
    """How planes of one direction lie along their normal."""
    ordered = sorted(planes, key=lambda p: (p.along, p.number or 0, p.path.name))
    if len(ordered) < 2:
        return _Layout("one", ordered, np.zeros(0), 0.0)
    along = np.array([plane.along for plane in ordered])
    steps = np.diff(along)
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])  # a distance that there is, no mean of two

    def found(kind: str) -> _Layout:
        return _Layout(kind, ordered, steps, usual)

    if (steps <= SAME_POSITION_MM).any():
        return found("repeated")
    # Positions are often rounded to a tenth of a millimetre; where slices lie closer, to less.
    wrong = np.abs(steps - usual) > max(0.05 * usual, min(0.101, 0.5 * usual))
    if wrong.any():
        times = steps[wrong] / usual
        missing = bool((np.abs(times - np.round(times)) < 0.1).all() and (times > 1.5).all())
        # Where one step alone is doubled, a slice is missing, even if the rest was numbered anew.
        alone = wrong.sum() == 1 and len(steps) > 5 and times.max() < 5
        return found("gap" if missing and (alone or not _numbers_follow(ordered)) else "uneven")
    straight = np.linspace(along[0], along[-1], len(along))
    if np.abs(along - straight).max() > 0.5 * usual:
        return found("uneven")
    positions = np.array([plane.position for plane in ordered])
    line = positions[0] + np.outer((along - along[0]) / (along[-1] - along[0]), positions[-1] - positions[0])
    if np.abs(positions - line).max() > max(*ordered[0].spacing, 0.5 * usual):
        return found("sideways")
    return found("even")


def _numbers_follow(ordered: Sequence[Plane]) -> bool:
    """Whether the images' numbers show that none is missing between them."""
    values = [plane.number if plane.frame is None else plane.in_stack for plane in ordered]
    if None in values or len({plane.said("StackID") for plane in ordered}) > 1:
        return False
    return bool((np.abs(np.diff(np.array(values, float))) == 1).all())


# What tells volumes apart


def _said(keyword: str) -> Callable[[Plane], str]:
    """A property of a plane as text, rounded where scanners write the same number in several ways."""

    def read(plane: Plane) -> str:
        if keyword == "component":
            return plane.component
        if keyword == "file":
            return "" if plane.frame is None else plane.path.name
        value = plane.said(keyword)
        if keyword in ("EchoTime", "EffectiveEchoTime", "InversionTime", "KVP", "DiffusionBValue"):
            try:
                return f"{float(value):.3g}"
            except ValueError:
                return value
        return value

    return read


def _by_value(planes: Sequence[Plane], read: Callable[[Plane], object]) -> Groups:
    groups: dict[object, list[Plane]] = defaultdict(list)
    for plane in planes:
        groups[read(plane)].append(plane)
    return list(groups.values())


def _by_values(planes: Sequence[Plane], keywords: Sequence[str]) -> Groups:
    reads = [_said(keyword) for keyword in keywords]
    return _by_value(planes, lambda plane: tuple(read(plane) for read in reads))


def _order(group: Sequence[Plane], keyword: str) -> tuple:
    """Sorts groups in the order in which they were made; what they differ in decides between equal ones."""
    made = min(plane.number if plane.number is not None else 0 for plane in group)
    value = _natural(_said(keyword)(group[0])) if keyword else []
    return made, min(plane.said("AcquisitionTime") for plane in group), value, min(p.path.name for p in group)


def _one_kind(planes: list[Plane], notes: list[str]) -> list[Plane]:
    """Of planes that differ in what always tells volumes apart, those of one volume."""
    differing: list[str] = []
    for keyword in ALWAYS:
        groups = _by_value(planes, _said(keyword))
        # A property that nearly every plane has for itself tells no volumes apart.
        if len(groups) > 1 and (len(groups) * MIN_SLICES <= len(planes) or keyword in UNSHOWN):
            differing.append(keyword)
    if not differing:
        return planes
    groups = _by_values(planes, differing)
    best = _best(groups, differing[0])
    if not layout_of(best).even and layout_of(planes).even and "PatientID" not in differing:
        return planes  # what differs, differs within one volume
    if set(differing) <= SOFT and layout_of(planes).even and _one_after_the_other(groups, planes):
        return planes
    telling = next((k for k in differing if len(_by_value(planes, _said(k))) == len(groups)), differing[0])
    best = _best(groups, telling)
    notes.append(_several(groups, best, telling, ALWAYS))
    return best


def _one_after_the_other(groups: Groups, planes: Sequence[Plane]) -> bool:
    """Whether groups of planes lie behind each other, each at a place of its own."""
    of = {plane: k for k, group in enumerate(groups) for plane in group}
    ordered = sorted(planes, key=lambda plane: plane.along)
    return sum(of[a] != of[b] for a, b in pairwise(ordered)) == len(groups) - 1


def _best(groups: Groups, keyword: str) -> list[Plane]:
    """The volume to take: magnitude rather than phase, whole rather than not, the longest, the first."""

    def rank(group: list[Plane]) -> tuple:
        last = group[0].component in ("phase", "real part", "imaginary part")
        return last, not layout_of(group).even, -len(group), _order(group, keyword)

    return min(groups, key=rank)


def _several(groups: Groups, best: list[Plane], keyword: str, names: dict[str, tuple[str, str]]) -> str:
    """The sentence that says which of several volumes was taken."""
    _, many = names.get(keyword, ("", f"{keyword}s" if keyword.startswith("dimension") else ""))
    read = _said(keyword)
    places = [{round(p.along / SAME_POSITION_MM) for p in group} for group in groups]
    where = " at the same place" if any(a & b for a, b in combinations(places[:8], 2)) else ""
    if best is min(groups, key=lambda group: _order(group, keyword)):
        which = "the first one was taken"
    elif all(len(group) <= len(best) for group in groups) and any(len(group) < len(best) for group in groups):
        which = "the one with most slices was taken"
    else:
        which = "the magnitude was taken" if best[0].component == "magnitude" else "a whole one was taken"
    values = sorted({_shown(read(group[0])) for group in groups}, key=_natural)
    if not many or keyword in UNSHOWN or len(values) < len(groups) or max(map(len, values)) > MAX_LETTERS:
        told = f" (told apart by their {many})" if many else ""
        return f"The series holds {len(groups)} volumes{where}{told}; {which}."
    listed = [value or "none" for value in values]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return (
        f"The series holds {len(groups)} volumes{where} ({many} {', '.join(listed[:SHOWN])}{more}); "
        f"{which} ({_shown(read(best[0])) or 'none'})."
    )


def _shown(value: str) -> str:
    """A value as a note shows it: a time of day as such."""
    match = re.fullmatch(r"(?:\d{8})?(\d\d)(\d\d)(\d\d)(?:\.\d*)?(?:[+-]\d{4})?", value)
    return ":".join(match.groups()) if match else value


def _natural(value: str) -> list:
    """Sorts texts with the numbers in them by their size."""
    parts = re.findall(r"\d+(?:\.\d+)?|[^\d]+", value)
    return [(0, float(part), "") if part[0].isdecimal() else (1, 0.0, part) for part in parts]


def _one_scan(planes: list[Plane], name: str, notes: list[str]) -> tuple[_Layout, list[tuple[int, Plane]]]:
    """Of planes that share their place with others, or lie between others, those of one volume."""
    layout = layout_of(planes)
    if layout.even:
        packages = _packages(layout)
        if packages is None:
            return layout, []
        keyword, groups = packages
        best = _best(groups, keyword)
        notes.append(
            _several(groups, best, keyword, PERHAPS).replace(
                " volumes", " volumes whose slices lie between each other", 1
            )
        )
        return layout_of(best), []
    for keyword, groups in _partitions(planes) if layout.kind == "repeated" else _shifted(planes):
        best = _best([group for group in groups if layout_of(group).even] or groups, keyword)
        if _is_volume(best, planes) and (
            layout.kind == "repeated" or (_lies_among(best, planes) and _is_dense(layout_of(best)))
        ):
            notes.append(_several(groups, best, keyword, PERHAPS))
            return layout_of(best), []
    if layout.kind != "repeated":
        return layout, []
    return _without_copies(layout, notes)


def _is_volume(group: Sequence[Plane], planes: Sequence[Plane]) -> bool:
    """Whether a part of the planes is a volume by itself, and no coarser than all their places together."""
    layout = layout_of(group)
    if not layout.even or len(group) < MIN_SLICES:
        return False
    places = layout_of(_places(planes))
    return len(group) >= len(places.planes) / 2 if places.even else len(group) >= len(places.planes) / 3


def _lies_among(group: Sequence[Plane], planes: Sequence[Plane]) -> bool:
    """Whether most other planes lie between a group's ends: else the others continue it, and are no other volume."""
    inside = set(group)
    low, high = min(p.along for p in group), max(p.along for p in group)
    rest = [plane for plane in planes if plane not in inside]
    return sum(low < plane.along < high for plane in rest) > len(rest) / 2


def _places(planes: Sequence[Plane]) -> list[Plane]:
    """One plane for each place."""
    kept: list[Plane] = []
    for plane in layout_of(planes).planes:
        if not kept or plane.along - kept[-1].along > SAME_POSITION_MM:
            kept.append(plane)
    return kept


def _is_dense(layout: _Layout) -> bool:
    """Whether slices fill the space between them, so that others that lie there belong to another scan."""
    plane = layout.planes[0]
    thickness = number(plane.header, "SliceThickness") or plane.value(
        "PixelMeasuresSequence", "SliceThickness"
    )
    return thickness >= 0.8 * layout.usual if thickness else plane.modality == "CT"


def _shifted(planes: Sequence[Plane]) -> Iterator[tuple[str, Groups]]:
    """Ways to divide planes into volumes that lie between each other: few, since any two volumes differ somehow."""
    for keyword in PERHAPS:
        yield keyword, _by_value(planes, _said(keyword))
    for keyword in TIMES:
        yield from ((keyword, groups) for groups in _by_pauses(planes, keyword))
    yield from (("", groups) for groups in _runs(planes))


def _partitions(planes: Sequence[Plane]) -> Iterator[tuple[str, Groups]]:
    """Ways to divide planes into volumes, the most telling ones first, each with what it goes by."""
    known = [*PERHAPS, *sorted({key for plane in planes for key in plane.inherited} - set(PERHAPS))]
    divided = [(keyword, _by_value(planes, _said(keyword))) for keyword in known]
    divided = [(keyword, groups) for keyword, groups in divided if len(groups) > 1]
    yield from ((keyword, groups) for keyword, groups in divided if _worth(groups, planes))
    for keyword in TIMES:
        yield from ((keyword, groups) for groups in _by_pauses(planes, keyword))
    yield from (("", groups) for groups in _sideways(planes))
    few = [keyword for keyword, groups in divided if _worth(groups, planes)]
    for first, second in combinations(few, 2):
        groups = _by_values(planes, (first, second))
        if _worth(groups, planes):
            yield first, groups
    for tag in _other_tags(planes):
        for read in (_text_of, _has):
            groups = _by_value(planes, partial(read, tag=tag))
            if len(groups) > 1 and _worth(groups, planes):
                yield "", groups
    for keyword in IN_ORDER:
        yield from ((keyword, groups) for groups in _in_turn(planes, partial(_seconds, keyword=keyword)))
    yield from (("", groups) for groups in _runs(planes))
    yield from (("", groups) for groups in _in_turn(planes, attrgetter("number")))


def _text_of(plane: Plane, tag: int) -> str:
    return text(plane.header, tag)


def _has(plane: Plane, tag: int) -> bool:
    return tag in plane.header


def _worth(groups: Groups, planes: Sequence[Plane]) -> bool:
    """Whether groups are few enough to be volumes."""
    return len(groups) * MIN_SLICES <= len(planes)


def _other_tags(planes: Sequence[Plane]) -> list[int]:
    """The tags of all that a classic file's header says, the makers' own included."""
    if planes[0].frame is not None:
        return []
    tags = {
        tag
        for plane in planes
        for tag in list(plane.header.keys())
        if tag.group < 0x5000 and tag.group != 0x0028
    }
    return [int(tag) for tag in sorted(tags)]


def _seconds(plane: Plane, keyword: str) -> float | None:
    """A time as a number that grows with it."""
    value = re.match(r"\d+(\.\d+)?", plane.said(keyword))
    if not value:
        return None
    if "Trigger" in keyword:
        return float(value.group())
    digits = value.group()
    whole, _, part = digits.partition(".")
    clock = whole[-6:].rjust(6, "0")
    return int(clock[:2]) * 3600 + int(clock[2:4]) * 60 + int(clock[4:]) + float(f"0.{part or 0}")


def _by_pauses(planes: Sequence[Plane], keyword: str) -> Iterator[Groups]:
    """Divides planes by the longest pauses between them, into as many parts as any place has planes."""
    times = [_seconds(plane, keyword) for plane in planes]
    if None in times:
        return
    timed = sorted(zip(times, range(len(planes)), strict=True))
    pauses = np.diff([seconds for seconds, _ in timed])
    cuts = np.sort(np.argsort(-pauses, kind="stable")[: _most_at_a_place(planes) - 1]) + 1
    edges = [0, *cuts.tolist(), len(timed)]
    yield [[planes[k] for _, k in timed[a:b]] for a, b in pairwise(edges)]


def _most_at_a_place(planes: Sequence[Plane]) -> int:
    """How many planes the fullest place has; 2 where no place has several, as scans may lie between each other."""
    return max(2, *Counter(_place_numbers(planes)).values())


def _place_numbers(planes: Sequence[Plane]) -> list[int]:
    along = np.array([plane.along for plane in planes])
    order = np.argsort(along, kind="stable")
    places = np.empty(len(along), int)
    places[order] = np.concatenate([[0], np.cumsum(np.diff(along[order]) > SAME_POSITION_MM)])
    return places.tolist()


def _in_turn(planes: Sequence[Plane], order: Callable[[Plane], float | None]) -> Iterator[Groups]:
    """The first plane at each place, the second, ...: where all places have as many."""
    at: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for k, (place, plane) in enumerate(zip(_place_numbers(planes), planes, strict=True)):
        value = order(plane)
        if value is None:
            return
        at[place].append((value, k))
    counts = {len(members) for members in at.values()}
    if len(counts) != 1 or counts == {1}:
        return
    if any(len({value for value, _ in members}) < len(members) for members in at.values()):
        return
    yield [[planes[k] for _, k in turn] for turn in zip(*map(sorted, at.values()), strict=True)]


def _runs(planes: Sequence[Plane]) -> Iterator[Groups]:
    """Divides planes, in the order of their numbers, wherever the way along the normal breaks off."""
    if any(plane.number is None for plane in planes) or len({p.number for p in planes}) < len(planes):
        return
    ordered = sorted(planes, key=lambda plane: plane.number or 0)
    steps = np.diff([plane.along for plane in ordered])
    usual = float(np.median(steps))
    breaks = np.flatnonzero(np.abs(steps - usual) > max(0.1 * abs(usual), SAME_POSITION_MM)) + 1
    if 0 < len(breaks) < len(planes) / MIN_SLICES:
        edges = [0, *breaks.tolist(), len(ordered)]
        yield [ordered[a:b] for a, b in pairwise(edges)]


def _sideways(planes: Sequence[Plane]) -> Iterator[Groups]:
    """Divides planes that lie beside each other, as of two hands or breasts."""
    normal = np.cross(*planes[0].orientation)
    across = np.array([plane.position - plane.along * normal for plane in planes])
    places = {plane: tuple(np.round(at).astype(int)) for plane, at in zip(planes, across, strict=True)}
    groups = _by_value(planes, places.__getitem__)
    if 1 < len(groups) <= len(planes) / MIN_SLICES:
        yield groups


def _packages(layout: _Layout) -> tuple[str, Groups] | None:
    """Evenly lying planes that are really two scans, the second shifted by a part of a slice."""
    planes = layout.planes
    for keyword, groups in _shifted(planes):
        if not 1 < len(groups) <= 4 or len(min(groups, key=len)) < MIN_SLICES:
            continue
        parts = [layout_of(group) for group in groups]
        between = all(abs(part.usual - len(groups) * layout.usual) < 0.1 * part.usual for part in parts)
        if between and all(part.even and _is_dense(part) for part in parts):
            return keyword, groups
    return None


def _without_copies(layout: _Layout, notes: list[str]) -> tuple[_Layout, list[tuple[int, Plane]]]:
    """One plane at each place; the others should be the same pictures, sent again."""
    kept: list[Plane] = []
    copies: list[tuple[int, Plane]] = []
    for plane in layout.planes:
        if kept and plane.along - kept[-1].along <= SAME_POSITION_MM:
            copies.append((len(kept) - 1, plane))
        else:
            kept.append(plane)
    notes.append(
        f"The series holds {len(layout.planes)} slices at {len(kept)} places; the first one at each place was taken."
    )
    return layout_of(kept), copies


# Refusals


def _check_fillers(layout: _Layout, others: Sequence[Plane], odd: Sequence[Odd], name: str) -> None:
    """Refuses the series if what was left out of it is one of its own slices.

    Raises:
        ScanError: an image that does not fit lies where a slice is missing, or may.
    """
    if layout.kind not in ("gap", "uneven"):
        return
    normal = np.cross(*layout.planes[0].orientation)
    along = np.array([plane.along for plane in layout.planes])
    for other in others:
        away = float(np.abs(along - normal @ other.position).min())
        inside = along[0] < normal @ other.position < along[-1]
        if inside and away > 0.5 * layout.usual:
            raise ScanError(_mixed(layout.planes[0], [other], name))
    for piece in odd:
        if piece.why == NO_PLACE and _looks_like(piece, layout.planes[0]):
            raise ScanError(
                f"The DICOM series {name} does not say where its slices lie, at least in {piece.file.path.name}, and "
                "has a gap without them; export the original CT or MRI series."
            )


def _looks_like(piece: Odd, plane: Plane) -> bool:
    return all(
        text(piece.file.header, key) == text(plane.header, key) for key in ("SOPClassUID", "Rows", "Columns")
    )


def _check_cut(odd: Sequence[Odd], plane: Plane) -> None:
    """Refuses the series if one of its own slices is cut off.

    Raises:
        ScanError: a file ends before its pixels.
    """
    for piece in odd:
        if piece.why == CUT and text(piece.file.header, "SOPClassUID") == text(plane.header, "SOPClassUID"):
            raise ScanError(
                f"The DICOM file {piece.file.path.name} is cut off before its picture; export or download the series "
                "again."
            )


def _without_far_stacks(layout: _Layout, notes: list[str]) -> _Layout:
    """Of stacks that lie far apart, as of both breasts, the longest, where no slice can be missing between them."""
    if layout.kind not in ("gap", "uneven"):
        return layout
    stacks = _by_value(layout.planes, _said("StackID"))
    if len(stacks) > 1 and all(layout_of(stack).even for stack in stacks):
        best = _best(stacks, "StackID")
        notes.append(_several(stacks, best, "StackID", PERHAPS))
        return layout_of(best)
    if layout.kind == "gap":
        return layout
    far = np.flatnonzero(layout.steps > max(5 * layout.usual, 10.0)) + 1
    if not len(far):
        return layout
    parts = np.split(np.arange(len(layout.planes)), far)
    longest = max(parts, key=len)
    found = layout_of([layout.planes[k] for k in longest])
    if not found.even or len(longest) < MIN_SLICES:
        return layout
    notes.append(
        f"The series holds {len(parts)} stacks of slices that lie {layout.steps[far - 1].min():.0f} mm apart or "
        "more; the longest was taken."
    )
    return found


def _stack(layout: _Layout, copies: list[tuple[int, Plane]], name: str, notes: list[str]) -> Stack:
    """Checks the distances, and says what of them the user has to know."""
    planes, steps, usual = layout.planes, layout.steps, layout.usual
    heights = np.arange(len(planes), dtype=float)
    if layout.kind == "one":
        raise ScanError(f"The DICOM series {name} is a single slice; upload all files of the series.")
    at = layout.worst
    if layout.kind == "gap" or (layout.kind == "uneven" and not _numbers_follow(planes)):
        few = (np.abs(steps - usual) > 0.25 * usual).sum() <= len(steps) / 4
        if few and steps[at] > 1.5 * usual:
            mend = "upload all slices of the series" if planes[0].frame is None else "export it again"
            raise ScanError(
                f"The DICOM series {name} has a gap: slices {at + 1} and {at + 2} are {_mm(steps[at])} mm apart, the "
                f"others {_mm(usual)} mm; {mend}."
            )
        raise ScanError(_uneven(steps, name))
    if layout.kind == "sideways":
        raise ScanError(
            f"The slices of the DICOM series {name} are shifted sideways against each other; export it as one volume."
        )
    step = (planes[-1].position - planes[0].position) / (len(planes) - 1)
    if layout.kind == "uneven":
        least = float(steps.min())
        along = np.array([plane.along for plane in planes])
        heights = (along - along[0]) / least
        if heights[-1] > MAX_FINER * len(planes) or least < SAME_POSITION_MM:
            raise ScanError(_uneven(steps, name))
        step = step * (least / float(np.cross(*planes[0].orientation) @ step))
        notes.append(
            f"The slices lie {_mm(least)} to {_mm(steps.max())} mm apart; the scan was interpolated to even "
            f"distances of {_mm(least)} mm."
        )
    normal = np.cross(*planes[0].orientation)
    lean = float(np.degrees(np.arccos(np.clip(abs(normal @ step) / np.linalg.norm(step), 0, 1))))
    if lean > MAX_TILT_SILENT:
        notes.append(f"As with a tilted gantry, the slices lean by {lean:.0f} degrees; they are kept so.")
    return Stack(tuple(planes), tuple(copies), step, heights, tuple(notes))


def _uneven(steps: np.ndarray, name: str) -> str:
    return (
        f"The slices of the DICOM series {name} lie unevenly, {_mm(steps.min())} to {_mm(steps.max())} mm apart; "
        "export it with even spacing."
    )


def _mm(value: float) -> str:
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"
