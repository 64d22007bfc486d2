"""The linked viewers: what the page and the report need to show a scan and where the models looked.

The only package that knows Plotly. It imports nothing of Gradio: the HTML made here works in the dashboard
and in a file opened offline alike.
"""

from mst.viewer.html import found_html, head_html, report_html, settle_html, spot_html, viewer_html
from mst.viewer.packing import SliceStream
from mst.viewer.payload import (
    Layer,
    NativeMap,
    findings_payload,
    is_sent_whole,
    mask_payload,
    scan_payload,
    viewer_payload,
)

__all__ = [
    "Layer",
    "NativeMap",
    "SliceStream",
    "findings_payload",
    "found_html",
    "head_html",
    "is_sent_whole",
    "mask_payload",
    "report_html",
    "scan_payload",
    "settle_html",
    "spot_html",
    "viewer_html",
    "viewer_payload",
]
