"""The pictures of an evaluation: ROC curves and calibration, by Matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from mst.cohort import Row
from mst.drawing import drawing
from mst.evaluation.figures import column, truth_of
from mst.words import PRINT_COLORS, short_label

BASELINE = "Diameter alone"
# The same figures give the same bytes: no random names.
SETTINGS = {"svg.hashsalt": "mst"}


@dataclass(frozen=True)
class Colours:
    """Of a plot on a light or a dark page, the models told apart by line style as well."""

    text: str
    muted: str
    line: str
    models: dict[str, str]


LIGHT = Colours("#171b24", "#4c5566", "#d5dae2", PRINT_COLORS)
DARK = Colours("#eceef2", "#b4bcc9", "#38404f", {"mst": "#41adae", "resnet": "#f0a04b"})
STYLES = {"mst": "-", "resnet": (0, (6, 2))}
MARKERS = {"mst": "o", "resnet": "s"}


def roc_png(rows: Sequence[Row], metrics: Mapping[str, Any]) -> bytes:
    """Both models' ROC curves as a PNG on white."""
    with drawing(SETTINGS):
        return _saved(_roc(rows, metrics, LIGHT), "png")


def roc_svg(rows: Sequence[Row], metrics: Mapping[str, Any], colours: Colours) -> bytes:
    """Both models' ROC curves as an SVG without a background."""
    with drawing(SETTINGS):
        return _saved(_roc(rows, metrics, colours), "svg")


def calibration_svg(metrics: Mapping[str, Any], colours: Colours) -> bytes:
    """Both models' calibration curves as an SVG without a background."""
    with drawing(SETTINGS):
        return _saved(_calibration(metrics, colours), "svg")


def _calibration(metrics: Mapping[str, Any], colours: Colours) -> Figure:
    figure, axes = _square(
        colours, f"Mean predicted probability of {metrics['classes'][-1]}", "Observed frequency"
    )
    for number, (name, found) in enumerate(metrics["models"].items()):
        points = found["calibration"]
        # Side by side, so that the bars of two models do not hide each other.
        x = np.array([point["predicted"] for point in points]) + 0.006 * (2 * number - 1)
        y = np.array([point["observed"] for point in points])
        low, high = np.array([point["ci95"] for point in points]).T
        axes.errorbar(
            x,
            y,
            yerr=np.clip([y - low, high - y], 0, None),
            color=colours.models[name],
            linestyle=STYLES[name],
            marker=MARKERS[name],
            markersize=4.5,
            linewidth=1.6,
            elinewidth=0.9,
            capsize=2.5,
            label=f"{short_label(name, found.get('title', ''))}, Brier score {found['brier']:.3f}",
        )
    _legend(axes, colours)
    return figure


def _roc(rows: Sequence[Row], metrics: Mapping[str, Any], colours: Colours) -> Figure:
    figure, axes = _square(colours, "1 - specificity", "Sensitivity")
    classes = metrics["classes"]
    labelled = [row for row in rows if row["label"] in (classes[0], classes[-1])]
    truth = truth_of(labelled, classes)
    if "baseline_diameter_auc" in metrics:
        false_alarms, hits, _ = roc_curve(truth, column(labelled, "diameter_mm"), drop_intermediate=False)
        label = f"{BASELINE}, AUC {metrics['baseline_diameter_auc']:.2f}"
        axes.plot(false_alarms, hits, color=colours.muted, linestyle=":", linewidth=1.3, label=label)
    for name, found in metrics["models"].items():
        false_alarms, hits, _ = roc_curve(
            truth, column(labelled, f"{name}_probability"), drop_intermediate=False
        )
        low, high = found["auc_ci95"]
        label = (
            f"{short_label(name, found.get('title', ''))}, AUC {found['auc']:.2f} ({low:.2f} to {high:.2f})"
        )
        colour = colours.models[name]
        axes.plot(false_alarms, hits, color=colour, linestyle=STYLES[name], linewidth=2, label=label)
        axes.plot(
            1 - found["specificity"], found["sensitivity"], color=colour, marker=MARKERS[name], markersize=6
        )
    _legend(axes, colours)
    return figure


def _square(colours: Colours, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """A plot from 0 to 1 along both axes, with its diagonal."""
    # The axes keep their place whatever the legend above them says, so that two plots side by side match.
    figure = Figure(figsize=(5, 5.5))
    axes = figure.add_axes((0.13, 0.1, 0.84, 0.84 * 5 / 5.5))
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_xlabel(x_label, color=colours.text, fontsize=11)
    axes.set_ylabel(y_label, color=colours.text, fontsize=11)
    axes.tick_params(colors=colours.muted, labelsize=10, length=3)
    axes.patch.set_alpha(0)
    for side in axes.spines.values():
        side.set_color(colours.line)
    axes.grid(color=colours.line, linewidth=0.6, alpha=0.7)
    axes.plot([0, 1], [0, 1], color=colours.muted, linewidth=0.8, alpha=0.7)
    return figure, axes


def _legend(axes: Axes, colours: Colours) -> None:
    """Above the plot, where no curve runs."""
    handles, labels = axes.get_legend_handles_labels()
    # The models come first, although the baseline is drawn below them.
    order = sorted(range(len(labels)), key=lambda i: labels[i].startswith(BASELINE))
    axes.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        borderaxespad=0,
        fontsize=10.5,
        frameon=False,
        labelcolor=colours.text,
        handlelength=2.4,
    )


def _saved(figure: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "svg":
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    else:
        figure.savefig(file, format="png", dpi=200, facecolor="white")
    return file.getvalue()
