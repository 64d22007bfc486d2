"""The model card of a checkpoint, written from the run's own figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mst.models.base import ScanClassifier
from mst.models.packaged import DESCRIPTION, NAME
from mst.tasks import get_task
from mst.training.evaluate import BASELINES, LOCALISATION


def write_card(model: ScanClassifier, config: dict[str, Any], metrics: dict[str, Any], folder: Path) -> Path:
    """Writes README.md of a checkpoint folder.

    Args:
        model: the trained model.
        config: of the run.
        metrics: the content of metrics.json.
        folder: the checkpoint's folder.
    """
    task = get_task(model.task)
    start = _pretrained_encoder(config)
    origin = f"trained here, its encoder from {start}" if start else "trained here from scratch, much smaller"
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    grid = task.grid.override(model.grid)
    size = " x ".join(str(n) for n in grid.shape)
    extent = " x ".join(
        "the scan's own" if spacing is None else f"{count * spacing:g} mm"
        for count, spacing in zip(grid.shape, grid.spacing_mm, strict=True)
    )
    text = f"""---
license: mit
library_name: medical-slice-transformer-dashboard
pipeline_tag: image-classification
tags:
  - medical-imaging
  - {task.key}
  - explainability
---

# {config["name"]}

{"A" if start else "A compact"} {model.title} ({millions:.1f} million weights) for the question: {task.question}

**Research and teaching tool. Not a medical device: never use it for diagnosis or treatment.**

| | |
| --- | --- |
| Input | {size} voxels ({extent}), {task.plane} slices, {task.region} |
| Output | {" or ".join(model.classes)}; saliency by {model.method} |
| Method | Müller-Franzes et al., Medical Slice Transformer, arXiv 2411.15802; {origin} |

## Data

{metrics["dataset"]}

Trained on {metrics["n_trained_on"]} cases ({_counts(metrics["labels_trained_on"])}).

## Training

{_procedure(config, real="simulated_test" not in metrics)}

## Figures

{_figures(metrics, model.classes)}

Command: `{metrics["command"]}` ({metrics["date"]}).

## Limits

- {_least(metrics, model.classes)} cases of the rarer class: every figure above is uncertain, as its interval shows.
- {_choices(metrics)}
- The labels are radiologists' ratings, not pathology.
- The cases come from one collection, round lesions that somebody had marked. {_seen(model)} It saw no other
  populations, and nobody has validated it elsewhere.
- The user must point at the lesion; the answer changes with the place that is chosen.
- Saliency shows what the model attended to. It is neither an outline of a lesion nor a reason.

## Intended use

Teaching and research on how such models look at scans. Never for decisions about a patient.
"""
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def _seen(model: ScanClassifier) -> str:
    if model.lesion_threshold is None:
        return "The model never saw a region without a lesion."
    return "Regions without a lesion lay beside one."


def _pretrained_encoder(config: dict[str, Any] | None) -> str | None:
    """The name of the pre-trained encoder that a run started from; None: it started from scratch."""
    while config:
        name = config.get("model", {}).get("encoder")
        if isinstance(name, str):
            called = Path(name).name if Path(name).is_dir() else DESCRIPTION if name == NAME else name
            blocks = config["model"].get("encoder_layers")
            return f"the first {blocks} blocks of {called}" if blocks else called
        config = config.get("pretraining")
    return None


def _procedure(config: dict[str, Any], real: bool = True) -> str:
    """One paragraph a stage, the earliest first.

    Args:
        real: whether there were real cases; else all training was on simulated ones, whatever the config says.
    """
    training = config["training"]
    before = config.get("pretraining")
    paragraphs = [_procedure(before, real)] if before else []
    shares = {"real": 1.0, "simulated": 0.0} | config.get("shares", {})
    if not real:
        shares = {"real": 0.0, "simulated": 1.0}
    on = {
        (True, False): "the real cases",
        (False, True): f"{config.get('simulated', {}).get('cases', 0):,} simulated cases",
    }.get((shares["real"] > 0, shares["simulated"] > 0), "real and simulated cases in turn")
    rates = f"learning rate {training['learning_rate']:g}"
    if "encoder_learning_rate" in training:
        rates += f", {training['encoder_learning_rate']:g} for the encoder"
    expected = (
        " (of simulated cases, what readers give such a nodule on average)" if shares["simulated"] > 0 else ""
    )
    paragraphs.append(
        f"The whole model, on {on}: soft labels from the rating of malignancy{expected}, "
        f"{training['steps']} steps of {training['batch']} volumes with AdamW ({rates}), random shifts, turns, "
        "flips, magnification and noise."
    )
    if beside := config.get("dense"):
        ratings = ", ".join(["its size", *beside.get("ratings", {})])
        paragraphs[-1] += (
            " Beside that its encoder learnt to tell from single slices which patches hold the lesion, whether the "
            f"slice shows it, and what was rated of it ({ratings})"
            + (
                ", and the whole model to tell the same ratings of the scan"
                if beside.get("scan_weight")
                else ""
            )
            + ". The lesions' masks were used for that alone; no loss was put on the attention or on any saliency "
            "map."
        )
    return "\n\n".join(paragraphs)


def _figures(metrics: dict[str, Any], classes: list[str]) -> str:
    if metrics.get("auc") is None:
        text = f"None: {metrics['protocol']}."
        if test := metrics.get("simulated_test"):
            text += (
                f" On other simulated cases the AUC is {test['auc']:.2f}, which says nothing about real ones."
            )
        return text
    low, high = metrics["auc_ci95"]
    rows = [
        ("AUC, pooled over the folds", f"{metrics['auc']:.2f} (95% CI {low:.2f} to {high:.2f})"),
        ("AUC, mean over the folds", f"{metrics['auc_folds_mean']:.2f} (SD {metrics['auc_folds_sd']:.2f})"),
    ]
    if "auc_off_centre" in metrics:
        title = f"AUC with the region up to 10 mm off-centre{_places(metrics)}"
        rows.append((title, f"{metrics['auc_off_centre']:.2f}"))
    if found := metrics.get("calibration"):
        rows.append(
            (
                "Brier score, calibrated (and before; always saying the share of malignant cases)",
                f"{found['brier']:.3f} ({found['brier_uncalibrated']:.3f}; {_constant_brier(metrics, classes):.3f})",
            )
        )
    for key, name in (
        ("baseline_diameter_auc", "AUC of the lesion's diameter alone, for comparison"),
        ("pointing_off_centre", "saliency's maximum within 2 mm of the mask, region off-centre likewise"),
        ("top_slice_off_centre", "most weighted slice shows the lesion, region off-centre likewise"),
    ):
        if metrics.get(key) is not None:
            value = metrics[key]
            rows.append((name, f"{value:.2f}" if key.startswith("baseline") else f"{100 * value:.0f}%"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    counts = (
        f"{metrics[f'n_{classes[0]}']} {classes[0]} and {metrics[f'n_{classes[-1]}']} {classes[-1]} cases"
    )
    verdict = ""
    if low <= 0.5:
        verdict = (
            "\n\nThe interval reaches 0.5: on these cases the model is not shown to be better than chance."
        )
    elif metrics.get("baseline_diameter_auc", 0) > metrics["auc"]:
        verdict = "\n\nThe lesion's diameter alone separates these cases better than this model does."
    text = f"{metrics['protocol']}\n\nOn {counts}:\n\n| | |\n| --- | --- |\n{table}{verdict}"
    return "\n\n".join(
        part for part in (text, _groups(metrics, classes), _blind(metrics), _lesions(metrics)) if part
    )


def _groups(metrics: dict[str, Any], classes: list[str]) -> str:
    """AUCs by data set and rule, beside the diameter's."""
    if not metrics.get("groups"):
        return ""
    lines = [
        "By data set and by rule, beside the diameter alone. The paper's rule rounds the mean rating first and leaves "
        "3 out; the other leaves out a mean of 3.",
        "",
        f"| | {classes[0]}, {classes[-1]} | AUC (95% CI) | diameter (95% CI) | difference (95% CI), p |",
        "| --- | --- | --- | --- | --- |",
    ]
    for group in metrics["groups"]:
        name = f"{group['dataset']}, {'the paper' if group['rule'] == 'rounded' else 'mean'}"
        name += "'s rule" if group["rule"] == "rounded" else " rule"
        if group["readers"] > 1:
            name += f", {group['readers']} readers or more"
        areas = [
            f"{group[key]:.3f} ({group[f'{key}_ci95'][0]:.3f} to {group[f'{key}_ci95'][1]:.3f})"
            for key in ("auc", "diameter_auc")
        ]
        low, high = group["difference_ci95"]
        counts = f"{group[f'n_{classes[0]}']}, {group[f'n_{classes[-1]}']}"
        difference = f"{group['difference']:+.3f} ({low:+.3f} to {high:+.3f}), p {group['p']:.3f}"
        lines.append(f"| {name} | {counts} | {areas[0]} | {areas[1]} | {difference} |")
    return "\n".join(lines)


def _blind(metrics: dict[str, Any]) -> str:
    """Localisation beside what points without looking."""
    if "pointing_middle" not in metrics:
        return ""
    lines = ["| off-centre | the map | the middle | the brightest | a random place |", "| --- " * 5 + "|"]
    for title, key, stem in LOCALISATION:
        blind = (metrics.get(f"{stem}_{name}") for name in BASELINES)
        cells = ["" if value is None else f"{100 * value:.0f}%" for value in (metrics[key], *blind)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _lesions(metrics: dict[str, Any]) -> str:
    """How well it tells that there is a lesion, and what it owes to where a stack ends."""
    sentences = []
    lesion = metrics.get("lesion", {})
    for ending, called in (("", "in the cases as they are"), ("_cut", "where the scan ends in view")):
        if f"auc{ending}" in lesion:
            sentences.append(
                f"It tells a lesion from what lies beside one, {called}, with an AUC of {lesion[f'auc{ending}']:.3f}: "
                f"from a probability of {lesion['threshold']:.2f} on, {lesion[f'kept{ending}']:.1%} of "
                f"{lesion[f'n_lesions{ending}']} lesions are kept and {lesion[f'empty_called{ending}']:.1%} of "
                f"{lesion[f'n_empty{ending}']} regions without one are called so."
            )
    if cut := metrics.get("cut_to_lesion"):
        sentences.append(
            f"Cut down to their lesion's own slices, {cut['n']} cases with tissue all around change their answers by "
            f"{cut['mean_absolute_change']:.3f} on average."
        )
    return " ".join(sentences)


def _places(metrics: dict[str, Any]) -> str:
    count = metrics.get("off_centre_places", 1)
    return f", mean of {count} places a case" if count > 1 else ""


def _choices(metrics: dict[str, Any]) -> str:
    if "early_stopping" in metrics:
        return (
            f"The weights of step {metrics['early_stopping']['step']} were kept for their AUC on held-out training "
            "patients, which the figures above do not count."
        )
    return (
        "No step of a run was chosen by a held-out score, but the settings (layers, variation of the samples, lengths, "
        "learning\n  rates, shares) were chosen with such figures in view, so they may flatter the model a little."
    )


def _constant_brier(metrics: dict[str, Any], classes: list[str]) -> float:
    first, last = metrics[f"n_{classes[0]}"], metrics[f"n_{classes[-1]}"]
    return first * last / (first + last) ** 2


def _counts(labels: dict[str, int]) -> str:
    return ", ".join(f"{count} {label}" for label, count in labels.items())


def _least(metrics: dict[str, Any], classes: list[str]) -> int:
    labels = metrics["labels_trained_on"]
    return min(labels.get(name, 0) for name in classes)
