"""The viewers alone, in a report opened from disk: geometry, steering, offline."""

import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from viewing import PREDICTION, SHAPE, current, layers, marked_scan, picture

from mst.viewer import Layer, report_html, viewer_payload

pytestmark = pytest.mark.browser


@pytest.fixture
def report(page: Page, tmp_path: Path) -> Page:
    payload = viewer_payload(marked_scan(), layers(), plane="axial", window=(-1000, 200), unit="HU")
    path = tmp_path / "report.html"
    path.write_text(report_html(PREDICTION, payload, title="A report"), encoding="utf-8")
    page.requests = []  # type: ignore[attr-defined]
    page.on("request", lambda request: page.requests.append(request.url))  # type: ignore[attr-defined]
    page.goto(path.as_uri())
    page.wait_for_selector("[data-testid=viewer][data-ready=true]")
    return page


def test_it_opens_at_the_msts_top_slice_and_marks_both(report: Page) -> None:
    assert current(report) == 5
    badges = report.locator(".mstv-badge")
    assert [text.split()[-1] for text in badges.all_inner_texts()] == ["6", "13"]
    expect(badges.nth(0)).to_have_attribute("data-here", "")
    badges.nth(1).click()
    assert current(report) == 12


@pytest.mark.parametrize(
    ("key", "slice_"),
    [
        ("ArrowRight", 6),
        ("ArrowDown", 6),
        ("ArrowLeft", 4),
        ("ArrowUp", 4),
        ("PageDown", 10),
        ("Home", 0),
        ("End", 19),
    ],
)
def test_keys_move_both_panels(report: Page, key: str, slice_: int) -> None:
    report.locator("[data-panel=resnet] .mstv-frame").hover()
    report.keyboard.press(key)
    assert current(report) == slice_


def test_wheel_and_slider_move_both_panels_and_ask_for_nothing(report: Page) -> None:
    report.locator("[data-panel=mst] .mstv-frame").hover()
    before = picture(report, "resnet")
    asked = len(report.requests)  # type: ignore[attr-defined]
    for _ in range(7):
        report.mouse.wheel(0, 120)
        report.wait_for_timeout(30)
    assert current(report) == 12
    assert np.abs(picture(report, "resnet") - before).max() > 60
    report.locator("[data-control=slice]").fill("3")
    assert current(report) == 3
    assert len(report.requests) == asked  # type: ignore[attr-defined]
    assert all(url.startswith(("file:", "data:", "blob:")) for url in report.requests)  # type: ignore[attr-defined]


def test_the_patients_right_is_left_and_the_front_on_top(report: Page) -> None:
    report.locator("[data-control=opacity]").fill("0")
    report.locator("[data-control=slice]").fill("16")
    report.mouse.move(0, 0)
    for panel in ("mst", "resnet"):
        shown = picture(report, panel).mean(axis=2)
        rows, columns = shown.shape
        # Voxels 30..38 of 40 to the right and 20..28 of 30 to the front.
        bright = shown[int(rows * 5 / 30), int(columns * 5 / 40)]
        assert bright > 200
        assert shown[int(rows * 25 / 30), int(columns * 5 / 40)] < 130
        assert shown[int(rows * 5 / 30), int(columns * 35 / 40)] < 130
    letters = report.locator("[data-panel=mst] .mstv-letter").all_inner_texts()
    assert letters == ["A", "P", "R", "L"]


def test_saliency_lies_where_it_belongs_and_opacity_hides_it(report: Page) -> None:
    report.mouse.move(0, 0)
    shown = picture(report, "mst")
    rows, columns, _ = shown.shape
    hot = shown[int(rows * 25 / 30), int(columns * 35 / 40)]  # to the left, at the back
    grey = shown[int(rows * 25 / 30), int(columns * 15 / 40)]
    assert hot.max() - hot.min() > 40
    assert grey.max() - grey.min() < 3
    report.locator("[data-control=opacity]").fill("0")
    hidden = picture(report, "mst")[int(rows * 25 / 30), int(columns * 35 / 40)]
    assert hidden.max() - hidden.min() < 3


def test_the_mask_is_outlined_and_can_be_hidden(report: Page) -> None:
    report.locator("[data-control=slice]").fill("15")
    report.mouse.move(0, 0)

    def green(shown: np.ndarray) -> int:
        return int(((shown[..., 1] > 150) & (shown[..., 0] < 120)).sum())

    assert green(picture(report, "mst")) > 50
    report.get_by_label("Lesion outline").uncheck()
    assert green(picture(report, "mst")) == 0


def test_hovering_tells_place_value_and_saliency(report: Page) -> None:
    box = report.locator("[data-panel=mst] .mstv-frame").bounding_box()
    assert box
    report.mouse.move(box["x"] + box["width"] * 35.5 / 40, box["y"] + box["height"] * 25.5 / 30)
    readout = report.locator(".mstv-readout").inner_text()
    assert "x -16.0, y 44.0, z -90.0 mm" in readout
    assert "-600 HU" in readout
    assert re.search(r"MST 1\.0+ \(100%", readout)


def test_zoom_is_shared(report: Page) -> None:
    report.evaluate(
        "Plotly.relayout(document.querySelector('[data-panel=mst] .mstv-plot'), {'xaxis.range': [5, 20]})"
    )
    report.wait_for_timeout(400)
    low, high = report.evaluate(
        "document.querySelector('[data-panel=resnet] .mstv-plot')._fullLayout.xaxis.range"
    )
    assert low == pytest.approx(5, abs=1)
    assert high == pytest.approx(20, abs=1)


def test_the_third_dimension_is_drawn_or_its_absence_explained(report: Page) -> None:
    report.get_by_role("tab", name="3D").click()
    viewer = report.locator("[data-testid=viewer]")
    expect(viewer).to_have_attribute("data-solid", re.compile("ready|unavailable"), timeout=60_000)
    if viewer.get_attribute("data-solid") == "unavailable":
        expect(viewer).to_contain_text("WebGL")
    else:
        kinds = report.evaluate("document.querySelector('.mstv-solid-plot').data.map((t) => t.type)")
        assert kinds == [*["isosurface"] * 4, "mesh3d", "scatter3d"]  # scan, two maps, mask; the slice
    report.get_by_role("tab", name="2D").click()
    expect(report.locator("[data-panel=mst]")).to_be_visible()


def test_the_third_dimension_is_explained_once_however_often_it_is_opened(report: Page) -> None:
    for _ in range(3):
        report.get_by_role("tab", name="3D").click()
        expect(report.locator("[data-testid=viewer]")).to_have_attribute(
            "data-solid", re.compile("ready|unavailable"), timeout=60_000
        )
        report.get_by_role("tab", name="2D").click()
    assert report.locator(".mstv-solid-plot, .mstv-note").count() == 1


def test_the_threshold_hides_all_but_the_top_share(page: Page, tmp_path: Path) -> None:
    ramp = np.zeros(SHAPE, np.float32)
    ramp[:] = np.linspace(0.01, 1, SHAPE[0])[:, None, None]
    payload = viewer_payload(marked_scan(), [Layer("mst", "m", ramp)], plane="axial", window=(-1000, 200))
    path = tmp_path / "ramp.html"
    path.write_text(report_html(PREDICTION, payload, title="A ramp"), encoding="utf-8")
    page.goto(path.as_uri() + "#threshold=0.9")
    page.wait_for_selector("[data-testid=viewer][data-ready=true]")
    shares = []
    for share in (50, 10):
        page.locator("[data-control=threshold]").fill(str(share))
        page.wait_for_timeout(200)
        shown = picture(page, "mst")
        middle = shown[shown.shape[0] // 3]
        # A single panel is wider than the slice: black lies beside it.
        lit = middle[middle.max(axis=1) > 30]
        shares.append(float((np.ptp(lit, axis=1) > 8).mean()))
    # The map grows to the patient's right, which is on the left of the screen.
    assert shares == pytest.approx([0.5, 0.1], abs=0.06)


def test_a_root_that_leaves_the_page_is_cleaned_up(report: Page) -> None:
    errors: list[str] = []
    report.on("pageerror", lambda error: errors.append(str(error)))
    report.evaluate("window.kept = document.querySelector('.mst-viewer'); kept.remove()")
    report.wait_for_timeout(100)
    before = report.evaluate("kept.dataset.slice")
    report.keyboard.press("ArrowRight")
    assert report.evaluate("kept.dataset.slice") == before
    assert errors == []


def test_a_report_escapes_what_a_file_says(report: Page) -> None:
    assert report.locator("dd b").count() == 0
    expect(report.locator("dl")).to_contain_text("marked <b>scan</b>")
    expect(report.locator("body")).to_contain_text("Not a medical device")


def test_a_phone_shows_the_panels_below_each_other(report: Page) -> None:
    report.set_viewport_size({"width": 390, "height": 800})
    report.wait_for_timeout(300)
    first = report.locator("[data-panel=mst]").bounding_box()
    second = report.locator("[data-panel=resnet]").bounding_box()
    assert first
    assert second
    assert second["y"] > first["y"] + 100
    assert report.evaluate("document.documentElement.scrollWidth") <= 390


def test_damaged_data_gives_a_message_not_a_blank(page: Page, tmp_path: Path) -> None:
    payload = viewer_payload(marked_scan(), layers(), plane="axial", window=(-1000, 200), unit="HU")
    payload["scan"]["data"] = payload["scan"]["data"][:80]
    path = tmp_path / "r.html"
    path.write_text(report_html(PREDICTION, payload, title="A report"), encoding="utf-8")
    page.goto(path.as_uri())
    expect(page.locator("[data-testid=viewer] [role=alert]")).to_contain_text("could not be drawn")
