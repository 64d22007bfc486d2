"""The linked viewers: what the page and the report need to show a scan and where the models looked.

The only package that knows Plotly. It imports nothing of Gradio: the HTML made here works in the dashboard
and in a file opened offline alike.
"""

from mst.viewer.html import head_html, locator_html, report_html, viewer_html
from mst.viewer.payload import Layer, NativeMap, viewer_payload

__all__ = ["Layer", "NativeMap", "head_html", "locator_html", "report_html", "viewer_html", "viewer_payload"]
