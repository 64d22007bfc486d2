"""The dashboard as a whole: theme, served files, address, and the pages it is made of."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gradio as gr
import plotly
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from mst.dashboard.explore import build_explore_page, end_visit
from mst.dashboard.gate import GatedBlocks
from mst.dashboard.store import slices_of
from mst.dashboard.theme import build_theme
from mst.dashboard.work import AT_ONCE
from mst.results import SLICES_URL
from mst.viewer import head_html

HERE = Path(__file__).resolve().parent
PLOTLY_SCRIPT = Path(plotly.__file__).resolve().parent / "package_data" / "plotly.min.js"
# Relative, so that the page also works behind a proxy's path (a Space, a class's server).
PLOTLY_URL = f"plotly-{plotly.__version__}.min.js"
TITLE = "Medical Slice Transformer"
KEEP_FILES_SECONDS = 24 * 3600
MAX_UPLOAD = "4gb"
MOST_SLICES = 16  # of one request
# Gradio keeps what each visit's page showed, viewers and all (1 to 3 MB), also once the visit has ended.
KEEP_VISITS = 200


def build_app() -> gr.Blocks:
    """The dashboard, not yet serving."""
    with GatedBlocks(
        title=TITLE, analytics_enabled=False, delete_cache=(3600, KEEP_FILES_SECONDS), fill_width=True
    ) as app:
        build_explore_page(app)
    app.unload(end_visit)
    # Gradio's direct calls pass by the queue and its limits, and belong to no session.
    app.queue(default_concurrency_limit=AT_ONCE, api_open=False)
    return app


def launch_options() -> dict[str, Any]:
    """What `Blocks.launch` needs for this page: Gradio 6 takes theme, styles and head there."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return {
        "theme": build_theme(),
        "css_paths": [HERE / "style.css"],
        "head": head_html(PLOTLY_URL) + f"<script>{script}</script>",
        "footer_links": ["api"],
        "max_file_size": MAX_UPLOAD,
        "state_session_capacity": KEEP_VISITS,
        "ssr_mode": False,
        # Only what this project words itself is told; see `GatedBlocks`.
        "show_error": False,
        # Gradio would keep each run's inputs and answers in the browser, which a class shares.
        "run_history": False,
        "app_kwargs": {"routes": _routes()},
    }


def _routes() -> list[Route]:
    """What is served beside Gradio's own, and what of Gradio's is not: it would fetch any URL for anybody."""
    doors = ("file=http{rest:path}", "file/http{rest:path}", "proxy={rest:path}")
    return [
        Route(f"/{PLOTLY_URL}", _plotly_script),
        Route(f"/{SLICES_URL}/{{token}}/{{axis:int}}/{{first:int}}/{{count:int}}", _slices),
        *(Route(f"/gradio_api/{door}", _closed) for door in doors),
    ]


def _plotly_script(request: Request) -> FileResponse:
    """Plotly from the installed package, never from a CDN; its name holds its version, so it may be kept."""
    kept = {"Cache-Control": "public, max-age=31536000, immutable"}
    return FileResponse(PLOTLY_SCRIPT, media_type="text/javascript", headers=kept)


def _slices(request: Request) -> Response:
    """Slices of the scan that a page has open, for whoever knows its token: that page alone."""
    asked = request.path_params
    stream = slices_of(asked["token"])
    try:
        if stream is None or asked["count"] > MOST_SLICES:
            raise IndexError
        block = stream.block(asked["axis"], asked["first"], asked["count"])
    except IndexError:
        return PlainTextResponse("There are no such slices here.", status_code=404)
    headers = {"Content-Encoding": "deflate", "Cache-Control": "private, max-age=600"}
    return Response(block, media_type="application/octet-stream", headers=headers)


def _closed(request: Request) -> PlainTextResponse:
    return PlainTextResponse("This server fetches no other addresses.", status_code=403)


def launch(app: gr.Blocks | None = None) -> None:
    """Serves the dashboard until it is stopped. PORT and HOST, else Gradio's own variables, say where."""
    host = os.environ.get("HOST") or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    port = os.environ.get("PORT") or os.environ.get("GRADIO_SERVER_PORT") or "7860"
    if not port.isdigit() or not 0 < int(port) < 65536:
        sys.exit(f"PORT must be a number from 1 to 65535, not {port!r}")
    try:
        (app or build_app()).launch(server_name=host, server_port=int(port), **launch_options())
    except OSError as error:
        sys.exit(f"The dashboard cannot serve at {host}:{port}: {error}. Choose another with PORT=...")
