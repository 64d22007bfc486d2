"""What the page, the reports and the files call things, and from where a map is shown: each once.

No other module of the project is used here, so that all of them can use this one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

DISCLAIMER = "Research and teaching tool. Not a medical device: never use it for diagnosis or treatment."
# By a result's place; the model that stands there may have a title of its own.
LABELS = {"mst": "Medical Slice Transformer", "resnet": "3D ResNet"}
SHORT_LABELS = {"mst": "MST", "resnet": "3D ResNet"}
# Of models whose place has another one's short name.
SHORT_TITLES = {"Medical Slice Transformer with a 2D ResNet": "MST (2D ResNet)"}
# On a screen, over a scan's grey and on a light or dark page: they differ for every colour vision.
COLORS = {"mst": "#2aa6a8", "resnet": "#e08e2b", "scan": "#8a94a6", "mask": "#4ade80", "both": "#d05ce3"}
# The same hues on white paper and as text.
PRINT_COLORS = {"mst": "#0f7377", "resnet": "#b45309"}
METHOD_LABELS = {"attention": "attention", "gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++"}

# A map is first shown from this part of its own maximum up: in the viewer, both reports and the DICOM segmentation.
# A quantile would not do: where a map is one peak, nine tenths of the region lie below 1% of its maximum.
SHOWN_FROM = 0.4
SHOWN = f"above {100 * SHOWN_FROM:.0f}% of maximum"

# What is measured against a lesion's mask (`mst.saliency.metrics`), by the measure's key.
MEASURES = {
    "pointing_game": "The map's maximum lies within 2 mm of the lesion",
    "top_slice_in_lesion": "The most weighted slice shows the lesion",
    "share_inside": "Share of the saliency inside the lesion",
    "dice": "Dice of the lesion and the strongest 0.1% of the map",
    "iou": "Intersection over union of the same",
    "average_surface_distance_mm": "Average distance of their surfaces",
}
DOUBTFUL = "Do not trust this answer"

LONGEST_NAME = 160  # letters of a name that a file brings; a DICOM text should have 64
LONGEST_TEXT = 1000  # of a sentence that holds such names
# Control characters, and those that turn the direction of all text after them.
UNSHOWN = r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"


def short_label(name: str, title: str = "") -> str:
    """What a model is called where there is little room.

    Args:
        name: of the result, "mst" or "resnet".
        title: the model's own; "" where it is not known.
    """
    return SHORT_TITLES.get(title) or SHORT_LABELS.get(name) or title or name


def none_seen(lesion: str) -> str:
    """Why the answer of a model that sees no lesion is none; `lesion` is the study's own word for it."""
    return f"No {lesion} is seen in this region; the answer means nothing."


def one_seen(lesion: str, probability: float) -> str:
    """That a model sees a lesion, and how sure it is."""
    return f"A {lesion} is seen here ({percent(probability)})."


def unlike(phrases: Sequence[str]) -> str:
    """In what a region is unlike those that a model was trained on."""
    return f"Unlike what the model was trained on, so trust it less: {'; '.join(phrases)}."


def finds(lesion: str, share: float, middle: float | None) -> str:
    """How often a model's map was found to lie on the lesion, and the middle of the region, which sees nothing."""
    beside = "" if middle is None else f" (the region's middle: {percent(middle)})"
    return f"Tested off-centre, its map peaks in the {lesion} {percent(share)} of the time{beside}."


def between(label: str, low: float, high: float, shift_mm: float, folds: int) -> str:
    """Between which probabilities of a class a model's answer lies."""
    over = ["flips", f"shifts of the spot by {shift_mm:g} mm"]
    if folds:
        over.append(f"the calibrations of {folds} folds")
    ends = percent(low) if percent(low) == percent(high) else f"between {percent(low)} and {percent(high)}"
    return f"Over {', '.join(over[:-1])} and {over[-1]}, {label} is {ends}."


def percent(share: float) -> str:
    """A probability in whole percent; one that rounds to 0% or 100% is not said to be certain.

    >>> percent(0.81), percent(0.999)
    ('81%', 'over 99%')
    """
    whole = f"{share:.0%}"
    return {"0%": "under 1%", "100%": "over 99%"}.get(whole, whole)


def duration(seconds: float) -> str:
    """How long something takes, as roughly as a person wants to know it before waiting."""
    return f"about {seconds:.0f} s" if seconds >= 1 else "under 1 s"


def measured(key: str, value: Any) -> str:
    """A measure's value in words; None, which is a distance to nothing, is "none"."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "share_inside":
        return f"{100 * value:.1f}%"
    return f"{value:.1f} mm" if key.endswith("_mm") else f"{value:.3f}"


def clipped(text: Any, most: int = LONGEST_TEXT) -> str:
    """Text of a file on one line, as it may be shown: without what cannot be written, and not longer than `most`.

    A file can bring a name of any length; what is shown must not cost more for it. Half a surrogate pair stands for
    a byte of a file's name that is no text, and no encoding takes it.

    >>> clipped("a  long\\nname", 6)
    'a lon…'
    """
    whole = str(text)
    found = re.sub(r"[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", whole[: 2 * most])
    found = " ".join(re.sub(UNSHOWN, " ", found).split())
    if len(found) <= most and len(whole) <= 2 * most:
        return found
    return found[: most - 1].rstrip() + "…"
