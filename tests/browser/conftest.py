"""One browser for all tests of a session, one page for each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from playwright.sync_api import Error as PlaywrightError
from serving import chromium_options
from viewing import Open, write_report

from mst.viewer import Layer


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(**chromium_options())
        except PlaywrightError as error:
            pytest.fail(
                "These tests need Chromium. Install it (on Debian: apt-get install chromium; elsewhere: "
                f".venv/bin/playwright install chromium) and run make test again. {error.message.splitlines()[0]}"
            )
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    yield context.new_page()
    context.close()


@pytest.fixture
def opened(page: Page, tmp_path: Path) -> Open:
    """Opens a report with a viewer of the marked scan, or of another."""

    def opening(link: str = "", shown: list[Layer] | None = None, **options: Any) -> Page:
        page.goto(write_report(tmp_path, shown=shown, **options) + link)
        page.wait_for_selector("[data-testid=viewer][data-ready=true]")
        return page

    return opening
