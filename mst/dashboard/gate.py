"""What every event of the page and the web API passes before it runs: whose it is, and which files it names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

log = logging.getLogger(__name__)
EXAMPLES_FOLDER = "examples"
UNEXPECTED = "Something went wrong that this page did not expect; your scan and earlier results are kept. "
NOT_UPLOADED = "A file of this request was not uploaded here, or is no longer kept; please upload it again."
NOT_UNDERSTOOD = "This request was not understood: its inputs are not those that are asked for here."
NO_SESSION = (
    "This request belongs to no session, so its answer could not be kept apart from those of others; "
    "please use the page, gradio_client or the queue (/gradio_api/call)."
)


class GatedBlocks(gr.Blocks):
    """`gr.Blocks` whose events run only for a session and on files that were uploaded.

    Gradio itself takes a folder for a file, its upload folder with all that strangers uploaded too, follows
    links out of it, and fetches whatever URL stands in a file's place; and its messages name paths of the server.
    """

    async def process_api(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not kwargs.get("session_hash"):
            raise gr.Error(NO_SESSION, print_exception=False)
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            log.exception("an event failed")
            raise gr.Error(UNEXPECTED, print_exception=False) from error

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        if not all(map(is_uploaded, named_files(inputs))):
            raise gr.Error(NOT_UPLOADED, print_exception=False)
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except Exception as error:
            log.info("an event's inputs were refused: %s", error)
            raise gr.Error(NOT_UNDERSTOOD, print_exception=False) from error


def named_files(value: Any) -> Iterator[Any]:
    """What stands as "path" anywhere in an event's inputs: all that Gradio could take for a file."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from named_files(item)


def is_uploaded(path: Any) -> bool:
    """Whether that is a file which came by an upload, or one of the examples.

    Uploads lie in a folder each, named by a salted hash that nobody can guess; results, and what else Gradio
    keeps, are not scans. Links count as what they lead to.
    """
    if not isinstance(path, str):
        return False
    try:
        file = Path(path).resolve(strict=True)
        root = Path(get_upload_folder()).resolve()
        regular = file.is_file()
    except (OSError, ValueError, RuntimeError):  # missing, too long, a null byte, links in a circle
        return False
    folder = file.parent
    known = folder.name == EXAMPLES_FOLDER or re.fullmatch(r"[0-9a-f]{64}", folder.name)
    return regular and folder.parent == root and bool(known)
