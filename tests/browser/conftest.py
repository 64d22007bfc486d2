"""Reports that a test opens."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page
from viewing import Open, write_report

from mst.viewer import Layer


@pytest.fixture
def opened(page: Page, tmp_path: Path) -> Open:
    """Opens a report with a viewer of the marked scan, or of another."""

    def opening(link: str = "", shown: list[Layer] | None = None, **options: Any) -> Page:
        page.goto(write_report(tmp_path, shown=shown, **options) + link)
        page.wait_for_selector("[data-testid=viewer][data-ready=true]")
        return page

    return opening
