"""A model that sees no nodule where it looks: on the page and in the report its answer alone is dimmed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from serving import serve_dashboard
from small_study import write_lesion_models

import mst
from mst.results import write_results
from mst.tasks import TASKS

pytestmark = pytest.mark.browser
NONE = "No nodule is seen in this region; the answer means nothing."
SEEN = "A nodule is seen here (99%)."
COST = "about 30 s on 2 CPU cores"
SCREENS = [(1440, False), (1440, True), (390, False), (390, True)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MST that sees a nodule everywhere, and a ResNet that sees none anywhere; what the MST costs was measured."""
    folder = write_lesion_models(tmp_path_factory.mktemp("models"), mst=True, resnet=False)
    figures = {"seconds": {"cpu_cores": 2, "median": 30.2}}
    (folder / "chest-ct-mst" / "metrics.json").write_text(json.dumps(figures))
    (folder / "chest-ct-mst").rename(folder / "chest-ct-mst-dinov2")
    return folder


@pytest.fixture(scope="module")
def url(models: Path) -> Iterator[str]:
    with serve_dashboard(MST_CHECKPOINTS=str(models)) as address:
        yield address


def bars(page: Page, model: str) -> list[str]:
    return page.evaluate(
        "(bars) => [...document.querySelectorAll(bars)].map((bar) => getComputedStyle(bar).backgroundColor)",
        model,
    )


def problems(page: Page) -> list[str]:
    """What axe-core finds wrong with the answers."""
    found = Axe().run(
        page, context=".mst-predictions, .mstr-models", options={"runOnly": ["wcag2a", "wcag2aa"]}
    )
    return [
        f"{rule['id']}: {node['html'][:200]}"
        for rule in found.response["violations"]
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_the_page_dims_the_answer_of_the_model_that_sees_none(
    page: Page, url: str, nodule: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    page.emulate_media(reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{url}?example=none&__theme={'dark' if dark else 'light'}")
    page.set_input_files("#scan input[type=file]", str(nodule))
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    page.get_by_role("button", name="Models").click()
    expect(page.locator("#checkpoint-mst").get_by_text(f"chest-ct-mst-dinov2: {COST}")).to_be_visible()
    expect(page.locator("#checkpoint-resnet")).not_to_contain_text("CPU")
    page.locator("#checkpoint-mst").screenshot(path=tmp_path / "choice.png")
    page.click("#run")
    page.wait_for_selector("[data-testid=viewer][data-ready=true] [data-panel=mst]", timeout=90_000)

    seeing, blind = page.locator(".mst-card[data-model=mst]"), page.locator(".mst-card[data-model=resnet]")
    expect(blind.get_by_role("alert")).to_have_text(NONE)
    expect(seeing).to_contain_text(SEEN)
    expect(seeing.get_by_role("alert")).to_have_count(0)
    expect(page.locator(".mst-question")).to_contain_text("The 3D ResNet sees no nodule in this region; ")
    grey, coloured = (bars(page, f".mst-lane[data-lane={model}] b")[0] for model in ("resnet", "mst"))
    channels = [[int(value) for value in re.findall(r"\d+", colour)[:3]] for colour in (grey, coloured)]
    assert max(channels[0]) - min(channels[0]) < 40 < max(channels[1]) - min(channels[1])
    weights = [
        int(card.locator("h3").evaluate("(title) => getComputedStyle(title).fontWeight"))
        for card in (blind, seeing)
    ]
    assert weights[0] < weights[1]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert problems(page) == []
    page.locator(".mst-predictions").screenshot(path=tmp_path / "answers.png")


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_the_report_does_so_too(
    page: Page, models: Path, nodule: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    page.emulate_media(color_scheme="dark" if dark else "light", reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 900})
    scan = mst.read_scan(nodule)
    given = {"mst": models / "chest-ct-mst-dinov2", "resnet": models / "chest-ct-resnet"}
    files = write_results(tmp_path, scan, TASKS["chest-ct"], mst.predict(scan, models=given))
    page.goto(files["report.html"].as_uri())
    page.wait_for_selector("[data-testid=viewer][data-ready=true]")
    seeing, blind = page.locator(".mstr-models article").all()
    expect(blind.locator(".mstr-warnings")).to_have_text(NONE)
    expect(seeing).to_contain_text(SEEN)
    expect(page.get_by_text("The 3D ResNet sees no nodule in this region; ")).to_be_visible()
    colours = [bars(page, f"article:nth-child({number}) .mstr-bar b") for number in (1, 2)]
    assert set(colours[0]).isdisjoint(colours[1])
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert problems(page) == []
    page.screenshot(path=tmp_path / "report.png")
