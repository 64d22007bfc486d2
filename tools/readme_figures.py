"""Puts the checkpoints' measured figures into the README: make figures. Nothing in that table is typed by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- figures: made by make figures -->", "<!-- end of figures -->"
NAMES = {
    "chest-ct-mst": "Medical Slice Transformer",
    "chest-ct-resnet": "3D ResNet",
    "chest-ct-mst-resnet": "2D ResNet with a slice transformer",
}


def figures() -> str:
    """The README's table, from checkpoints/*/metrics.json."""
    found = {
        name: json.loads((ROOT / "checkpoints" / name / "metrics.json").read_text(encoding="utf-8"))
        for name in NAMES
        if (ROOT / "checkpoints" / name).is_dir()
    }
    rows = [
        f"| {NAMES[name]} | {m['auc']:.2f} ({m['auc_ci95'][0]:.2f} to {m['auc_ci95'][1]:.2f}) | "
        f"{m['auc_off_centre']:.2f} | {100 * m['pointing_off_centre']:.0f}% | {100 * m['top_slice_off_centre']:.0f}% |"
        for name, m in found.items()
    ]
    first = next(iter(found.values()))
    verdicts = []
    for name, m in found.items():
        if m["auc_ci95"][0] <= 0.5:
            verdicts.append(
                f"- The {NAMES[name]}'s interval reaches 0.5: on these cases it is not shown to be better than chance."
            )
        if m["auc"] < m["baseline_diameter_auc"]:
            verdicts.append(f"- The nodule's diameter alone separates them better than the {NAMES[name]}.")
    for name, m in found.items():
        if before := m.get("simulated_alone"):
            low, high = before["auc_ci95"]
            verdicts.append(
                f"- Trained on simulated nodules alone, the {NAMES[name]} reached {before['auc']:.2f} "
                f"({low:.2f} to {high:.2f}) on the same real ones."
            )
    lines = [
        f"Benign against malignant, {first['n_benign']} and {first['n_malignant']} nodules of as many patients, five-"
        "fold cross-validation by patient; the shipped weights were then trained on all cases in the same way. Off-"
        f"centre: the mean of {first['off_centre_places']} regions a nodule.",
        "",
        "| | AUC (95% CI) | AUC, region up to 10 mm off-centre | saliency's maximum within 2 mm of the nodule, "
        "off-centre | most weighted slice in the nodule, off-centre |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        f"| diameter alone | {first['baseline_diameter_auc']:.2f} | | | |",
        "",
        "Command: `python train.py all --data DATA`. What this means:",
        "",
        *verdicts,
    ]
    return "\n".join(lines)


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    block = f"{START}\n{figures()}\n{END}"
    readme.write_text(re.sub(f"{START}.*?{END}", lambda _: block, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
