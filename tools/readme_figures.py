"""Puts the checkpoints' measured figures into the README: make figures. Nothing in these tables is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mst.models import checkpoint_metrics
from mst.training.evaluate import BASELINES, LOCALISATION
from mst.words import duration

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- figures: made by make figures -->", "<!-- end of figures -->"
NAMES = {
    "chest-ct-mst-dinov2": "Medical Slice Transformer, the paper's size",
    "chest-ct-resnet34": "3D ResNet-34",
    "chest-ct-mst": "Medical Slice Transformer, compact",
    "chest-ct-resnet": "3D ResNet, compact",
    "chest-ct-mst-resnet": "2D ResNet with a slice transformer, compact",
}
Metrics = Mapping[str, Any]
# Data set, rule and least number of readers -> what the README calls such cases; the cards have all groups.
GROUPS = {
    ("lidc-stacks", "rounded", 1): "stacks, the paper's rule",
    ("lidc-stacks", "rounded", 3): "the same, 3 readers or more",
    ("lidc-stacks", "mean", 1): "stacks, the other rule",
    ("lidc-nodules", "rounded", 1): "crops, the paper's rule",
}


def figures(found: Mapping[str, Metrics]) -> str:
    """The README's tables.

    Args:
        found: the content of each checkpoint's metrics.json.
    """
    commands = sorted({f"`{metrics['command']}`" for metrics in found.values()})
    parts = [
        "Five-fold cross-validation by patient; the shipped weights were then trained on all cases in the same way. "
        "AUC of benign against malignant with DeLong's 95% interval. The label is the mean of the readers' ratings of "
        "malignancy (1 to 5); the paper's rule rounds it and leaves 3 out, the other leaves out a mean of 3.",
        _areas(found),
        f"With the region up to 10 mm off-centre, {_places(found)}, beside guesses that do not look:",
        _localisation(found),
        "Is there a nodule at all? Nodules that are kept, and regions beside one that are called empty:",
        _lesions(found),
        f"Commands: {', '.join(commands)}. What this means:",
        "\n".join(_verdicts(found)),
    ]
    return "\n\n".join(parts)


def _areas(found: Mapping[str, Metrics]) -> str:
    groups = {name: _groups(metrics) for name, metrics in found.items()}
    first = next(iter(groups.values()))
    head = [
        f"{GROUPS[key]} ({group['n_benign']} benign, {group['n_malignant']} malignant)"
        for key, group in first.items()
    ]
    lines = [["", *head, "one answer takes"]]
    for name, own in groups.items():
        cells = [_interval(own[key], "auc") for key in first]
        taken = found[name]["seconds"]
        cores = f"{taken['cpu_cores']} CPU core{'' if taken['cpu_cores'] == 1 else 's'}"
        lines.append([NAMES[name], *cells, f"{duration(taken['median'])} on {cores}"])
    lines.append(["diameter alone", *(_interval(group, "diameter_auc") for group in first.values()), ""])
    return _table(lines)


def _groups(metrics: Metrics) -> dict[tuple[str, str, int], Metrics]:
    by_key = {(group["dataset"], group["rule"], group["readers"]): group for group in metrics["groups"]}
    return {key: by_key[key] for key in GROUPS if key in by_key}


def _interval(group: Metrics, key: str) -> str:
    low, high = group[f"{key}_ci95"]
    return f"{group[key]:.3f} ({low:.2f} to {high:.2f})"


def _places(found: Mapping[str, Metrics]) -> str:
    first = next(iter(found.values()))
    return f"{first['n_off_centre']} nodules with tissue all around from {first['off_centre_places']} places each"


def _localisation(found: Mapping[str, Metrics]) -> str:
    lines = [["", *(title for title, _, _ in LOCALISATION)]]
    for name, metrics in found.items():
        lines.append([NAMES[name], *(_percent(metrics.get(key)) for _, key, _ in LOCALISATION)])
    first = next(iter(found.values()))
    for blind in BASELINES:
        called = "a random place" if blind == "random" else f"the {blind}"
        lines.append([called, *(_percent(first.get(f"{stem}_{blind}")) for _, _, stem in LOCALISATION)])
    return _table(lines)


def _lesions(found: Mapping[str, Metrics]) -> str:
    lines = [["", "cases as they are", "cut off beside the nodule"]]
    for name, metrics in found.items():
        told = metrics.get("lesion", {})
        cells = [
            f"{_percent(told.get(f'kept{ending}'))} kept, {_percent(told.get(f'empty_called{ending}'))} called empty"
            for ending in ("", "_cut")
        ]
        lines.append([NAMES[name], *cells])
    return _table(lines)


def _verdicts(found: Mapping[str, Metrics]) -> list[str]:
    """What the figures say about each model beside the diameter, and about what it owes to where a stack ends."""
    verdicts = []
    for name, metrics in found.items():
        if group := _groups(metrics).get(("lidc-stacks", "rounded", 3)):
            low, high = group["difference_ci95"]
            told = "better than" if low > 0 else "worse than" if high < 0 else "not shown to differ from"
            verdicts.append(
                f"- {NAMES[name]}: {told} the diameter alone on stacks of three readers or more, by the paper's rule "
                f"({group['difference']:+.3f}, {low:+.3f} to {high:+.3f})."
            )
        if cut := metrics.get("cut_to_lesion"):
            verdicts.append(
                f"- {NAMES[name]}: cut down to the nodule's own slices, {cut['n']} cases with tissue all around change "
                f"their probability by {cut['mean_absolute_change']:.3f} on average."
            )
    return verdicts


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%"


def _table(lines: list[list[str]]) -> str:
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([rows[0], "|" + " --- |" * len(lines[0]), *rows[1:]])


def shipped() -> dict[str, dict[str, Any]]:
    """The metrics.json of each checkpoint that the project ships; of earlier versions, with other figures, none."""
    folders = {name: ROOT / "checkpoints" / name for name in NAMES}
    found = {name: checkpoint_metrics(folder) for name, folder in folders.items() if folder.is_dir()}
    return {name: metrics for name, metrics in found.items() if "groups" in metrics}


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    block = f"{START}\n{figures(shipped())}\n{END}"
    readme.write_text(re.sub(f"{START}.*?{END}", lambda _: block, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
