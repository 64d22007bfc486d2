"""What reaches the viewer in other ways: fingers, MRI intensities, damaged or unusual data, saved animations."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence
from playwright.sync_api import Browser, CDPSession, Page, expect
from viewing import (
    Open,
    choose,
    colourful,
    current,
    layers,
    marked_scan,
    picture,
    settle,
    viewer_of,
    write_report,
)

from mst.data.simulator import simulate_knee_mri
from mst.results import results_payload
from mst.scans import Scan
from mst.tasks import get_task
from mst.viewer import Layer, NativeMap, report_html

pytestmark = pytest.mark.browser


# ---- touch


@pytest.fixture
def phone(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, device_scale_factor=2
    )
    page = context.new_page()
    page.goto(write_report(tmp_path))
    page.wait_for_selector("[data-testid=viewer][data-ready=true]")
    yield page
    context.close()


class Fingers:
    """Fingers on a panel, in shares of its frame's width and height."""

    def __init__(self, page: Page, panel: str) -> None:
        frame = page.locator(f"[data-panel={panel}] .mstv-frame")
        frame.scroll_into_view_if_needed()
        box = frame.bounding_box()
        assert box
        self.page, self.box = page, box
        self.session: CDPSession = page.context.new_cdp_session(page)

    def send(self, kind: str, *places: tuple[float, float]) -> None:
        points = [
            {"x": self.box["x"] + x * self.box["width"], "y": self.box["y"] + y * self.box["height"], "id": i}
            for i, (x, y) in enumerate(places)
        ]
        self.session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def move(self, start: list[tuple[float, float]], stop: list[tuple[float, float]], steps: int = 6) -> None:
        self.send("touchStart", *start)
        for step in range(1, steps + 1):
            self.send(
                "touchMove",
                *(
                    (x + (u - x) * step / steps, y + (v - y) * step / steps)
                    for (x, y), (u, v) in zip(start, stop, strict=True)
                ),
            )
            self.page.wait_for_timeout(30)
        self.send("touchEnd")
        self.page.wait_for_timeout(250)


def ranges(page: Page, panel: str) -> Any:
    return page.evaluate(
        f"(({{ xaxis, yaxis }}) => [xaxis.range, yaxis.range])"
        f"(document.querySelector('[data-panel={panel}] .mstv-plot')._fullLayout)"
    )


def test_fingers_scroll_zoom_and_move(phone: Page) -> None:
    fingers = Fingers(phone, "mst")
    whole = ranges(phone, "mst")
    start = current(phone)
    fingers.move([(0.3, 0.5)], [(0.7, 0.52)])
    assert current(phone) > start
    fingers.move([(0.7, 0.5)], [(0.3, 0.48)])
    assert current(phone) == start
    assert ranges(phone, "mst") == whole

    # Two fingers apart: twice as large, in every panel, and what lay between them stays between them.
    fingers.move([(0.4, 0.5), (0.6, 0.5)], [(0.3, 0.5), (0.7, 0.5)])
    (low, high), _ = ranges(phone, "mst")
    assert (low, high) == pytest.approx((10, 30), abs=1)
    assert ranges(phone, "resnet")[0] == pytest.approx([low, high], abs=0.1)
    assert current(phone) == start

    # One finger in an enlarged slice moves it, up and down as well, and scrolls neither slices nor the page.
    top = phone.evaluate("scrollY")
    before = ranges(phone, "mst")
    fingers.move([(0.6, 0.6)], [(0.4, 0.4)])
    after = ranges(phone, "mst")
    assert after[0][0] == pytest.approx(before[0][0] + 4, abs=1)
    assert after[1][0] == pytest.approx(before[1][0] + 3, abs=1)
    assert current(phone) == start
    assert phone.evaluate("scrollY") == top

    # Fingers together show the whole slice again, and a lifted second finger is no tap.
    fingers.move([(0.2, 0.5), (0.8, 0.5)], [(0.45, 0.5), (0.55, 0.5)])
    assert ranges(phone, "mst")[0] == pytest.approx([0, 40], abs=1)
    assert "cross" not in phone.evaluate("location.hash")


def test_a_finger_up_or_down_scrolls_the_page_and_a_tap_sets_the_crosshair(phone: Page) -> None:
    fingers = Fingers(phone, "mst")
    start, top = current(phone), phone.evaluate("scrollY")
    fingers.move([(0.5, 0.8)], [(0.5, 0.1)], steps=12)
    assert phone.evaluate("scrollY") > top
    assert current(phone) == start
    fingers = Fingers(phone, "mst")
    fingers.send("touchStart", (27.5 / 40, 9.5 / 30))
    fingers.send("touchEnd")
    expect(phone.locator(".mstv-readout")).to_contain_text("x -8.0, y 60.0")


# ---- MRI


def test_an_mri_opens_in_a_window_of_its_own_percentiles(page: Page, tmp_path: Path) -> None:
    scan, _ = simulate_knee_mri(4)
    low, high = np.percentile(scan.voxels[::3, ::3, ::3], (1, 99))
    payload = results_payload(scan, get_task("knee-mri"), {})
    path = tmp_path / "knee.html"
    record = {"task": "knee-mri", "scan": {"shape": scan.shape, "spacing_mm": scan.spacing}, "models": {}}
    path.write_text(report_html(record, payload, title="Knee"), encoding="utf-8")
    page.goto(path.as_uri())
    page.wait_for_selector("[data-testid=viewer][data-ready=true]")
    expect(viewer_of(page)).to_have_attribute("data-plane", "sagittal")
    presets = page.get_by_label("Display window")
    assert presets.locator("option:not([hidden])").all_inner_texts() == ["Automatic", "Full range"]
    expect(presets.locator("option:checked")).to_have_text("Automatic")

    def shown_window() -> tuple[float, float]:
        words = page.locator(".mstv-readout").inner_text().replace(",", "").split()
        level, width = (float(words[words.index(name) + 1]) for name in ("level", "width"))
        return level, width

    settle(page)
    assert shown_window() == pytest.approx(((low + high) / 2, high - low), rel=0.01)
    shown = picture(page, "scan").mean(axis=2)
    assert (shown > 200).mean() > 0.01
    assert shown.std() > 30
    # Dragged to the right the window gets wider, dragged up it moves to brighter values.
    box = page.locator("[data-panel=scan] .mstv-frame").bounding_box()
    assert box
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down(button="right")
    page.mouse.move(box["x"] + 300, box["y"] + 140, steps=3)
    page.mouse.up(button="right")
    settle(page)
    level, width = shown_window()
    assert width == pytest.approx((high - low) * np.exp(0.5), rel=0.02)
    assert level == pytest.approx((low + high) / 2 + 0.2 * (high - low), rel=0.02)
    expect(presets.locator("option:checked")).to_have_text("Own")
    choose(page, "Level", str(round(float(high))))
    choose(page, "Width", "10")
    assert shown_window() == pytest.approx((round(float(high)), 10))
    assert picture(page, "scan").mean() < shown.mean()
    page.locator("[data-panel=scan] .mstv-frame").hover()
    page.keyboard.press("2")
    settle(page)
    assert shown_window()[1] == pytest.approx(np.ptp(scan.voxels), rel=0.01)


# ---- data that is not as it should be


def test_values_that_are_no_numbers_are_told_and_drawn_as_zero(opened: Open) -> None:
    mst, resnet, _ = layers()
    volume = mst.volume.copy()
    volume[20, 20, :] = np.nan
    volume[21, 20, :] = np.inf
    patches = np.full((8, 6, 20), np.nan, np.float32)
    patches[0:2, 0:2, 5] = 1
    profile = np.linspace(0, 1, 20)
    profile[5] = np.nan
    page = opened(
        shown=[
            Layer("mst", "MST", volume, profile, NativeMap(patches, (-0.5, -0.5, -0.5), (5, 5, 1))),
            resnet,
        ]
    )
    expect(page.locator(".mstv-notes")).to_contain_text("MST: values that are not numbers are shown as zero.")
    expect(page.locator(".mstv-notes li")).to_have_count(1)
    page.locator("[data-control=slice]").fill("5")
    settle(page)
    smooth = colourful(picture(page, "mst"))
    assert 0 < smooth.mean() < 0.1
    choose(page, "Map", "patches")
    assert 0 < colourful(picture(page, "mst")).mean() < 0.2


def test_a_scan_without_a_single_number_is_black_and_said_to_be(opened: Open) -> None:
    scan = marked_scan()
    page = opened(scan=Scan(np.full(scan.shape, np.nan, np.float32), scan.affine, name="nothing"))
    expect(page.locator(".mstv-notes")).to_contain_text("The scan: values that are not numbers")
    page.get_by_role("tab", name="MIP").click()
    expect(page.locator(".mstv-projection-canvas")).to_be_visible()


def _cut_map(payload: dict[str, Any]) -> None:
    payload["layers"][0]["shape"] = [9, 9, 9]


def _cut_mask(payload: dict[str, Any]) -> None:
    payload["mask"]["shape"] = [40, 30, 19]


@pytest.mark.parametrize("change", [_cut_map, _cut_mask])
def test_a_map_or_mask_of_another_shape_gives_a_message(page: Page, tmp_path: Path, change: Any) -> None:
    page.goto(write_report(tmp_path, change=change))
    expect(page.locator("[data-testid=viewer] [role=alert]")).to_contain_text("size does not fit its shape")


# ---- animations


def test_an_animations_colours_are_the_canvases(opened: Open) -> None:
    """Smooth maps over a smooth scan have far more colours than a GIF's 256: they must not show as bands."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (64, 48, 4)), indexing="ij")
    rng = np.random.default_rng(0)
    scan = Scan(
        (-600 + 380 * np.sin(3 * x) * np.cos(2 * y) + rng.normal(0, 25, x.shape)).astype(np.float32),
        np.eye(4),
    )
    hot = np.exp(-3 * ((x - 0.2 * z) ** 2 + y**2)).astype(np.float32)
    wide = np.exp(-2 * ((x + 0.4) ** 2 + (y - 0.3 * z) ** 2)).astype(np.float32)
    page = opened(
        "#threshold=0.3", scan=scan, shown=[Layer("mst", "MST", hot), Layer("resnet", "ResNet", wide)]
    )
    page.evaluate(
        "() => { window.drawn = []; const add = MstViewer.Gif.prototype.add;"
        " MstViewer.Gif.prototype.add = function (data, delay) { const c = document.createElement('canvas');"
        " Object.assign(c, { width: this.width, height: this.height });"
        " c.getContext('2d').putImageData(new ImageData(data, this.width, this.height), 0, 0);"
        " drawn.push(c.toDataURL()); add.call(this, data, delay); }; }"
    )
    page.get_by_role("button", name="Save").click()
    with page.expect_download(timeout=60_000) as download:
        page.get_by_role("button", name="Animation (GIF)").click()
    gif = Image.open(io.BytesIO(download.value.path().read_bytes()))
    saved = [np.asarray(frame.convert("RGB"), float) for frame in ImageSequence.Iterator(gif)]
    drawn = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"), float)
        for url in page.evaluate("drawn")
    ]
    assert len(saved) == len(drawn) == 4
    for got, wanted in zip(saved, drawn, strict=True):
        lit = colourful(wanted)
        assert len(np.unique(wanted[lit], axis=0)) > 3000
        assert np.abs(got - wanted).mean() < 1.5
        assert np.abs(got - wanted)[lit].mean() < 4
        # Bands are errors that neighbours share; dithered ones cancel in the mean over a block of pixels.
        rows, columns = (n // 8 for n in wanted.shape[:2])
        blocks = (got - wanted)[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8, 3).mean(axis=(1, 3))
        assert np.abs(blocks).mean() < 0.6
        assert np.percentile(np.abs(blocks), 99) < 4
