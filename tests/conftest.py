"""Lets tests import the helpers that lie beside them; one browser for all tests of a session, one page for each."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from playwright.sync_api import Error as PlaywrightError

sys.path.insert(0, str(Path(__file__).parent))

from serving import chromium_options


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
