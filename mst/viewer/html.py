"""HTML of the viewers, of what reaches them later, and of the offline report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import plotly

from mst.viewer.payload import spot_payload
from mst.viewer.scripts import HERE, script
from mst.words import DISCLAIMER, DOUBTFUL, LABELS, MEASURES, METHOD_LABELS, measured


def head_html(plotly_url: str | None = None) -> str:
    """Tags for a page's head: our styles and script, and where Plotly's script is.

    Args:
        plotly_url: loaded when a viewer first needs it; None: the script is put into the page whole.
    """
    style = (HERE / "viewer.css").read_text(encoding="utf-8")
    if plotly_url is None:
        library = f"<script>{_plotly_script()}</script>"
    else:
        library = f"<script>window.MST_PLOTLY_URL = {_json(plotly_url)};</script>"
    return f"<style>{style}</style>{library}<script>{script()}</script>"


def viewer_html(payload: Mapping[str, Any]) -> str:
    """The viewers' root element with its data inside; the script finds and starts it wherever it appears."""
    return (
        f'<section class="mst-viewer" data-testid="viewer" data-ready="false" data-slice="" '
        f'data-plane="{escape(str(payload["plane"]))}" tabindex="0" aria-label="Linked viewers of the scan">'
        f'<p class="mstv-loading" role="status">Drawing the slices …</p>{_data(payload)}</section>'
    )


def found_html(findings: Mapping[str, Any]) -> str:
    """What was found in a scan (`findings_payload`), for the viewer that shows it, wherever in the page it is."""
    return _later("take", findings)


def spot_html(
    key: str,
    *,
    center: Sequence[float],
    box_mm: Sequence[float] | None,
    mask: Mapping[str, Any] | None = None,
) -> str:
    """Where the models are to look, for the viewer that shows the scan.

    Args:
        key: of the scan's payload.
        center: the chosen spot in RAS millimetres.
        box_mm: size of the models' region along the canonical axes.
        mask: of `mask_payload`.
    """
    return _later("retarget", {"key": key, "spot": spot_payload(center, box_mm), "mask": mask})


def settle_html(key: str) -> str:
    """That nothing was found, for the viewer that waits for it."""
    return _later("settle", {"key": key})


def _later(what: str, payload: Mapping[str, Any]) -> str:
    # Another one each time, or the page would take it for what is there already.
    return f'<template data-mst="{what}">{_json({**payload, "time": time.time_ns()})}</template>'


def report_html(prediction: Mapping[str, Any], payload: Mapping[str, Any], *, title: str) -> str:
    """One self-contained file: what the models said, the viewers and the disclaimer; opens offline.

    Args:
        prediction: the content of prediction.json.
        payload: of `viewer_payload`.
        title: of the page.
    """
    scan = prediction["scan"]
    facts = [
        ("Scan", str(scan.get("name", ""))),
        ("Voxels", " × ".join(str(n) for n in scan["shape"])),
        ("Spacing", " × ".join(f"{s:g}" for s in scan["spacing_mm"]) + " mm"),
        ("Study", str(prediction["task"])),
        ("Region", str(prediction.get("region", {}).get("text", ""))),
    ]
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts if v)
    warnings = [str(warning) for warning in scan.get("warnings", [])]
    notes = [*prediction.get("notes", []), *(note for note in scan.get("notes", []) if note not in warnings)]
    said = str(prediction.get("agreement", ""))
    models = "".join(_model(name, entry, bool(warnings)) for name, entry in prediction["models"].items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
{head_html(None)}
</head>
<body class="mst-report">
<header><h1>{escape(title)}</h1><p class="mstr-disclaimer">{escape(DISCLAIMER)}</p></header>
<dl>{rows}<dt>Date</dt><dd>{date.today().isoformat()}</dd></dl>
{_listed("mstr-notes", notes)}
{_listed("mstr-warnings", warnings)}
{f'<p class="mstr-agreement{" mstr-doubtful" if warnings else ""}">{escape(said)}</p>' if said else ""}
<div class="mstr-models{" mstr-doubtful" if warnings else ""}">{models}</div>
{viewer_html(payload)}
</body>
</html>
"""


def _listed(kind: str, sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def _model(name: str, entry: Mapping[str, Any], doubtful: bool) -> str:
    bars = "".join(
        f"<div class='mstr-bar'><span>{escape(label)}</span><i><b style='width:{100 * p:.1f}%'></b></i>"
        f"<em>{100 * p:.1f}%</em></div>"
        for label, p in entry["probabilities"].items()
    )
    auc = entry.get("validation_auc")
    known = f"measured AUC {auc:.2f}" if isinstance(auc, int | float) else "no measured AUC"
    protocol = f" ({entry['validation_protocol']})" if entry.get("validation_protocol") else ""
    metrics = ""
    if entry.get("metrics"):
        items = "".join(
            f"<li>{escape(label)}: {escape(measured(key, entry['metrics'][key]))}</li>"
            for key, label in MEASURES.items()
            if key in entry["metrics"]
        )
        metrics = f"<p>Against the lesion mask:</p><ul>{items}</ul>"
    title = str(entry.get("title") or LABELS.get(name, name))
    tag = f"<strong>{escape(DOUBTFUL)}</strong>" if doubtful else ""
    warnings = entry.get("warnings", [])
    kind = ' class="mstr-doubtful"' if warnings else ""
    notes = "".join(f"<p>{escape(note)}</p>" for note in entry.get("notes", []))
    method = str(entry.get("method", ""))
    return (
        f"<article{kind}><h2>{escape(title)}</h2>{tag}{_listed('mstr-warnings', warnings)}{bars}{notes}"
        f"<p>Checkpoint {escape(str(entry['checkpoint']))}, {known}{escape(protocol)}; "
        f"{escape(METHOD_LABELS.get(method, method))} in {entry['seconds']:.2f} s</p>{metrics}</article>"
    )


def _data(payload: Mapping[str, Any]) -> str:
    # A template, for it is neither shown nor run, and its text survives being inserted by innerHTML.
    return f'<template class="mst-payload">{_json(payload)}</template>'


def _json(value: Any) -> str:
    # A "<" or "&" in a scan's name must not become markup.
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")


@cache
def _plotly_script() -> str:
    path = Path(plotly.__file__).resolve().parent / "package_data" / "plotly.min.js"
    return path.read_text(encoding="utf-8").replace("</script>", "<\\/script>")
