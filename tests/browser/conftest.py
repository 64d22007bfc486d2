"""What the tests open: a report, or the page as a user starts it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page
from serving import serve_dashboard
from viewing import Open, write_report

from mst.data.examples import example_file
from mst.viewer import Layer


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_dashboard() as address:
        yield address


@pytest.fixture(scope="module")
def nodule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_file("chest-round", tmp_path_factory.mktemp("examples"))


@pytest.fixture
def opened(page: Page, tmp_path: Path) -> Open:
    """Opens a report with a viewer of the marked scan, or of another."""

    def opening(link: str = "", shown: list[Layer] | None = None, **options: Any) -> Page:
        page.goto(write_report(tmp_path, shown=shown, **options) + link)
        page.wait_for_selector("[data-testid=viewer][data-ready=true]")
        return page

    return opening
