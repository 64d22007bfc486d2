"""The Gradio pages. Nothing outside this package imports Gradio."""

from mst.dashboard.app import build_app, launch

__all__ = ["build_app", "launch"]
