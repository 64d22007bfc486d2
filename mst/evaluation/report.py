"""The report of an evaluation: one HTML file that opens offline."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mst.cohort import Row
from mst.evaluation.plots import DARK, LIGHT, calibration_svg, roc_svg
from mst.saliency.metrics import YES_OR_NO
from mst.tasks import get_task
from mst.words import DISCLAIMER, LONGEST_NAME, MEASURES, clipped, short_label

LONGEST_FOLD = 24
HARD = "\N{NO-BREAK SPACE}"
CENTRED_BY = {
    "given": "on the centre in the manifest",
    "mask": "on the lesion mask",
    "scan centre": "on the scan",
}


def evaluation_html(rows: Sequence[Row], metrics: Mapping[str, Any]) -> str:
    """The report as a page that needs nothing beside itself.

    Args:
        rows: of predictions.csv.
        metrics: the content of metrics.json.
    """
    title = f"Evaluation: {get_task(metrics['task']).title}"
    style = (Path(__file__).resolve().parent / "report.css").read_text(encoding="utf-8")
    sections = (
        _classification(rows, metrics),
        _folds(metrics),
        _saliency(metrics),
        _cases(rows, metrics),
        _methods(metrics),
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p class="disclaimer">{escape(DISCLAIMER)}</p></header>
<main>
{_facts(metrics)}
{_findings(metrics)}
{"".join(sections)}
</main>
</body>
</html>
"""


def _facts(metrics: Mapping[str, Any]) -> str:
    n = metrics["n"]
    counts = ", ".join(f"{n[label]} {label}" for label in (*metrics["classes"], "indeterminate") if n[label])
    centred = ", ".join(f"{count} {CENTRED_BY[by]}" for by, count in metrics["centred_by"].items())
    if metrics["off_centre_mm"]:
        centred += f", then shifted by up to {metrics['off_centre_mm']:g} mm along each axis"
    facts = [
        ("Cases", f"{n['cases']} of {n['patients']} patients: {counts}"),
        ("Masks", f"{n['with_mask']} cases" if n["with_mask"] else "none"),
        ("Regions centred", centred),
        *((found["title"], found["checkpoint"]) for found in metrics["models"].values()),
        ("Manifest", clipped(metrics["manifest"], LONGEST_NAME)),
        ("Date", metrics["date"]),
    ]
    if metrics["tta"]:
        facts.insert(3, ("Averaged over", "eight flips"))
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts) + "</dl>"


def _findings(metrics: Mapping[str, Any]) -> str:
    """What the figures mean, in sentences."""
    found = []
    for model in metrics["models"].values():
        low, high = model["auc_ci95"]
        area = f"<strong>{model['auc']:.2f}</strong> (95% CI {low:.2f} to {high:.2f})"
        text = f"The {escape(model['title'])} reaches an AUC of {area}"
        if low <= 0.5 <= high:
            text += "; on these cases it is not shown to be better than chance"
        elif high < 0.5:
            text += "; it is worse than chance on these cases, so check the labels"
        found.append(text + ".")
    if comparison := metrics.get("comparison"):
        first, second = (_short(metrics["models"], name) for name in comparison["models"])
        low, high = comparison["auc_difference_ci95"]
        p = comparison["delong_p"]
        verdict = "not shown to differ" if p is None or p >= 0.05 else "different"
        found.append(
            f"The two are {verdict}: AUC {first} minus {second} {_signed(comparison['auc_difference'])} "
            f"(95% CI {_signed(low)} to {_signed(high)}), {_p(p)} in DeLong's paired test."
        )
    if "baseline_diameter_auc" in metrics:
        baseline, (low, high) = metrics["baseline_diameter_auc"], metrics["baseline_diameter_auc_ci95"]
        models = metrics["models"]
        better = [_short(models, name) for name in models if models[name]["auc"] < baseline]
        found.append(
            f"The lesion's diameter alone reaches {baseline:.2f} (95% CI {low:.2f} to {high:.2f})"
            + (f", more than the {' and the '.join(better)}" if better else "")
            + "."
        )
    n = metrics["n"]
    least = min(n[label] for label in (metrics["classes"][0], metrics["classes"][-1]))
    if least < 30:
        found.append(
            f"With {least} cases of the rarer class, every figure here is uncertain, as its interval shows."
        )
    if n["patients"] < n["cases"]:
        found.append(
            "Several cases are of one patient; the intervals take all cases for independent, and are too narrow."
        )
    return '<ul class="findings">' + "".join(f"<li>{text}</li>" for text in found) + "</ul>"


def _classification(rows: Sequence[Row], metrics: Mapping[str, Any]) -> str:
    models = metrics["models"]
    positive = metrics["classes"][-1]
    lines = [
        ["AUC", *(_with_interval(m, "auc") for m in models.values())],
        [f"Threshold for {positive} (Youden)", *(f"{m['threshold']:.3f}" for m in models.values())],
        ["Sensitivity", *(_with_interval(m, "sensitivity") for m in models.values())],
        ["Specificity", *(_with_interval(m, "specificity") for m in models.values())],
        ["Accuracy", *(_with_interval(m, "accuracy") for m in models.values())],
        ["Sensitivity at 0.5", *(_with_interval(m["at_half"], "sensitivity") for m in models.values())],
        ["Specificity at 0.5", *(_with_interval(m["at_half"], "specificity") for m in models.values())],
        ["Accuracy at 0.5", *(_with_interval(m["at_half"], "accuracy") for m in models.values())],
        ["Brier score", *(f"{m['brier']:.3f}" for m in models.values())],
    ]
    said = "; ".join(f"{_short(models, name)} AUC {m['auc']:.2f}" for name, m in models.items())
    pictures = (
        _picture(
            "ROC curves; marks: Youden's points",
            f"ROC curves: {said}",
            [roc_svg(rows, metrics, c) for c in (LIGHT, DARK)],
        ),
        _picture(
            "Calibration, with 95% confidence intervals",
            "Predicted probability against observed frequency",
            [calibration_svg(metrics, c) for c in (LIGHT, DARK)],
        ),
    )
    confusion = "".join(_confusion(m["title"], m, metrics["classes"]) for m in models.values())
    return (
        f'<section><h2>Classification</h2><div class="pair">{"".join(pictures)}</div>'
        + _table(
            ["", *(_short(models, name) for name in models)], lines, "Figures with 95% confidence intervals"
        )
        + f'<div class="pair">{confusion}</div></section>'
    )


def _confusion(name: str, model: Mapping[str, Any], classes: Sequence[str]) -> str:
    body = ""
    for truth, row in zip((classes[0], classes[-1]), model["confusion"], strict=True):
        cells = ""
        for decision, count in zip((classes[0], classes[-1]), row, strict=True):
            share = count / sum(row)
            kind = "right" if decision == truth else "wrong"
            style = f'class="{kind}" style="--share:{100 * share:.0f}%"'
            cells += f"<td {style}><b>{count}</b><span>{share:.0%}</span></td>"
        body += f'<tr><th scope="row">{escape(truth)}</th>{cells}</tr>'
    head = "".join(f'<th scope="col">called {escape(label)}</th>' for label in (classes[0], classes[-1]))
    return (
        f'<figure><table class="confusion"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"<figcaption>{escape(name)} at Youden's point</figcaption></figure>"
    )


def _folds(metrics: Mapping[str, Any]) -> str:
    models = {name: m["folds"] for name, m in metrics["models"].items() if "folds" in m}
    if not models:
        return ""
    names = next(iter(models.values()))["names"]
    lines = []
    for figure in ("auc", "sensitivity", "specificity", "accuracy"):
        for name, folds in models.items():
            found = folds[figure]
            mean = "none" if found["mean"] is None else f"{found['mean']:.2f}"
            mean += "" if found["sd"] is None else f"{HARD}±{HARD}{found['sd']:.2f}"
            title = "AUC" if figure == "auc" else figure.capitalize()
            each = ("none" if value is None else f"{value:.2f}" for value in found["each"])
            lines.append([f"{title}, {_short(metrics['models'], name)}", mean, *each])
    head = ["", "Mean ± SD", *(f"Fold {clipped(name, LONGEST_FOLD)}" for name in names)]
    return f"<section><h2>Fold by fold</h2>{_table(head, lines, 'Youden point of each fold')}</section>"


def _saliency(metrics: Mapping[str, Any]) -> str:
    models = {name: m["saliency"] for name, m in metrics["models"].items() if "saliency" in m}
    if not models:
        return ""
    tests = metrics.get("comparison", {}).get("saliency", {})
    lines = []
    for measure, label in MEASURES.items():
        cells = [_measure(found, measure) for found in models.values()]
        test = tests.get(measure)
        paired = [] if not tests else ["" if test is None else f"{_p(test['p'])}, {test['test']}"]
        lines.append([label, *cells, *paired])
    head = ["", *(_short(metrics["models"], name) for name in models), *(["Paired test"] if tests else [])]
    count = next(iter(models.values()))["n"]
    note = (
        ""
        if metrics["off_centre_mm"]
        else "<p>The regions lie round the lesion, so that a map which only ever looks at the middle does well here; "
        "<code>--off-centre 10</code> shifts them.</p>"
    )
    caption = (
        f"{count} cases with a mask; percentages with 95% confidence intervals, other measures as mean ± SD"
    )
    return (
        f"<section><h2>Saliency against the lesion masks</h2>{_table(head, lines, caption)}{note}</section>"
    )


def _measure(found: Mapping[str, Any], measure: str) -> str:
    value = found[measure]
    if value is None:
        return "none"
    if measure in YES_OR_NO:
        low, high = found[f"{measure}_ci95"]
        return f"{100 * value:.0f}% {_interval(100 * low, 100 * high, 0)}"
    unit, digits = (f"{HARD}mm", 1) if measure.endswith("_mm") else ("", 3)
    sd = found[f"{measure}_sd"]
    return (
        f"{value:.{digits}f}{unit}" if sd is None else f"{value:.{digits}f}{HARD}±{HARD}{sd:.{digits}f}{unit}"
    )


def _cases(rows: Sequence[Row], metrics: Mapping[str, Any]) -> str:
    models = metrics["models"]
    positive = metrics["classes"][-1]
    lines = [
        [
            clipped(row["case"], LONGEST_NAME),
            row["label"],
            *(f"{float(row[f'{name}_probability']):.3f}" for name in models),
        ]
        for row in rows
    ]
    head = ["Case", "Label", *(f"{_short(models, name)}: {positive}" for name in models)]
    return (
        f"<section><details><summary>All {len(rows)} cases</summary>{_table(head, lines)}</details></section>"
    )


def _methods(metrics: Mapping[str, Any]) -> str:
    positive, negative = metrics["classes"][-1], metrics["classes"][0]
    points = [
        f"A case is positive when it is {positive}, negative when it is {negative}; indeterminate cases count in the "
        "saliency alone.",
        "AUC: interval and paired test after DeLong et al. (Biometrics 44, 1988) by the algorithm of Sun and Xu (IEEE "
        "Signal Processing Letters 21, 2014); where the classes do not overlap at all, Newcombe's interval (Statistics "
        "in Medicine 25, 2006). Proportions: Wilson's interval.",
        "Youden's point has the largest sensitivity + specificity. It is chosen on these very cases, so the figures at "
        "it flatter; those at 0.5 do not.",
        "Calibration: bins of equally many cases. Brier score: 0 is perfect, 0.25 is always saying 0.5.",
        "Saliency: the maximum within 2 mm is the pointing game of Zhang et al. (arXiv 1608.00507); the strongest "
        "0.1%, which lies above the 0.999 quantile, is compared as in the code of the Medical Slice Transformer (arXiv "
        "2411.15802). McNemar's test is exact, Wilcoxon's counts pairs without a difference by Pratt's method.",
        "p values are not corrected for their number. Figures say nothing when a model was trained on these cases.",
    ]
    return (
        "<section><h2>Methods</h2><ul>"
        + "".join(f"<li>{escape(point)}</li>" for point in points)
        + "</ul></section>"
    )


def _short(models: Mapping[str, Mapping[str, Any]], name: str) -> str:
    return short_label(name, models[name].get("title", ""))


def _with_interval(found: Mapping[str, Any], key: str) -> str:
    low, high = found[f"{key}_ci95"]
    return f"{found[key]:.2f} {_interval(low, high, 2)}"


def _interval(low: float, high: float, digits: int) -> str:
    """In brackets, with spaces at which no line breaks."""
    return f"({low:.{digits}f}{HARD}to{HARD}{high:.{digits}f})"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _p(p: float | None) -> str:
    if p is None:
        return "p unknown"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _picture(title: str, description: str, versions: Sequence[bytes]) -> str:
    light, dark = (f"data:image/svg+xml;base64,{b64encode(svg).decode()}" for svg in versions)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(description)}" width="500" height="550"></picture>'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], caption: str = "") -> str:
    top = "".join(f'<th scope="col">{escape(text)}</th>' if text else "<td></td>" for text in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in rest)
        + "</tr>"
        for first, *rest in lines
    )
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    table = f"<table>{said}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'
