"""The viewer in a page: the scan comes first, what is found in it later, and a spot is chosen by a click."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import plotly
import pytest
from playwright.sync_api import Page, expect
from viewing import ORIGIN, SHAPE, coarse_layers, colourful, current, marked_scan, picture, settle, viewer_of

from mst.scans import Scan
from mst.viewer import (
    Layer,
    SliceStream,
    findings_payload,
    found_html,
    head_html,
    mask_payload,
    scan_payload,
    spot_html,
    viewer_html,
)

pytestmark = pytest.mark.browser
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
REGION = np.array([(0, 24), (0, 20), (2, 16)])


class Site:
    """A page with a viewer, and the slices that it asks for."""

    def __init__(self, page: Page, scan: Scan, streamed: bool = False, **options: Any) -> None:
        self.asked: list[tuple[int, int, int]] = []
        stream = SliceStream(scan.voxels)
        payload = scan_payload(
            scan,
            plane="axial",
            window=(-1000, 200),
            windows=[("Lung", -1000, 200)],
            unit="HU",
            title="marked",
            key="k",
            stream=stream if streamed else None,
            url="slices",
            **options,
        )
        html = f"<!doctype html><html><head>{head_html('plotly.js')}</head><body>{viewer_html(payload)}</body></html>"
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, body = "text/html", html.encode()
                if self.path.startswith("/plotly"):
                    kind, body = "text/javascript", PLOTLY.read_bytes()
                elif self.path.startswith("/slices/"):
                    axis, first, count = map(int, self.path.split("/")[2:])
                    site.asked.append((axis, first, count))
                    kind, body = "application/octet-stream", stream.block(axis, first, count)
                self.send_response(200)
                self.send_header("Content-Type", kind)
                if self.path.startswith("/slices/"):
                    self.send_header("Content-Encoding", "deflate")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        page.goto(f"http://127.0.0.1:{self.server.server_address[1]}/")
        page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=30_000)
        page.evaluate(
            "for (const name of ['mst-center', 'mst-explain'])"
            " addEventListener(name, (e) => { window.heard = [name, e.detail]; })"
        )


@pytest.fixture
def show(page: Page) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def open_site(*args: Any, **options: Any) -> Site:
        sites.append(Site(page, *args, **options))
        return sites[-1]

    yield open_site
    for site in sites:
        site.server.shutdown()


def put(page: Page, html: str) -> None:
    page.evaluate("(html) => document.body.insertAdjacentHTML('beforeend', html)", html)


def take(page: Page, layers: list[Layer] | None = None) -> None:
    scan = marked_scan()
    found = findings_payload(
        scan, layers or coarse_layers(), plane="axial", bounds=REGION, key="k", center=(-8.0, 50.0, -84.0)
    )
    put(page, found_html(found))
    page.wait_for_selector("[data-testid=viewer][data-ready=true] [data-panel=mst] .js-plotly-plot")


def reach(page: Page, expression: str) -> Any:
    """Something of the page's viewer, which a page itself does not tell."""
    return page.evaluate(
        f"""() => new Promise((resolve) => {{
          const {{ prototype }} = MstViewer.Viewer, {{ draw }} = prototype;
          prototype.draw = function () {{
            prototype.draw = draw;
            draw.call(this);
            const viewer = this;
            resolve({expression});
          }};
          document.querySelector('.mstv-slider').dispatchEvent(new Event('input', {{ bubbles: true }}));
        }})"""
    )


def frame(page: Page, plane: str, panel: str = "scan") -> dict[str, float]:
    box = page.locator(f"[data-panel={panel}][data-view-plane={plane}] .mstv-frame").bounding_box()
    assert box
    return dict(box)


def click(page: Page, box: dict[str, float], x: float, y: float) -> None:
    page.mouse.click(box["x"] + box["width"] * x, box["y"] + box["height"] * y)


def test_a_scan_opens_in_three_planes_and_a_click_gives_millimetres(
    page: Page, show: Callable[..., Site]
) -> None:
    show(marked_scan())
    for plane in ("axial", "coronal", "sagittal"):
        expect(page.locator(f"[data-panel=scan][data-view-plane={plane}]")).to_be_visible()
    # A quarter from the left: three quarters of the way to the patient's right.
    click(page, frame(page, "axial"), 0.26, 0.51)
    name, heard = page.evaluate("window.heard")
    assert name == "mst-center"
    # The middle of the voxel under the pointer: the 11th column and the 16th row on the screen, in the middle slice.
    assert heard == {"x": ORIGIN[0] + 29, "y": ORIGIN[1] + 14, "z": ORIGIN[2] + 10 * 2}
    assert viewer_of(page).get_attribute("data-center") == f"{heard['x']:g},{heard['y']:g},{heard['z']:g}"


def test_the_wheel_browses_and_never_moves_the_spot(page: Page, show: Callable[..., Site]) -> None:
    show(marked_scan())
    box = frame(page, "axial")
    click(page, box, 0.5, 0.5)
    chosen = viewer_of(page).get_attribute("data-center")
    before = current(page)
    page.mouse.wheel(0, 120)
    page.wait_for_function(f"document.querySelector('.mst-viewer').dataset.slice === '{before + 1}'")
    assert viewer_of(page).get_attribute("data-center") == chosen


def test_the_spot_at_the_crosshair_is_explained_by_button_and_key(
    page: Page, show: Callable[..., Site]
) -> None:
    show(marked_scan())
    click(page, frame(page, "axial"), 0.3, 0.4)
    page.get_by_role("button", name="Explain here").click()
    name, by_button = page.evaluate("window.heard")
    assert name == "mst-explain"
    page.evaluate("window.heard = null")
    viewer_of(page).hover()
    page.keyboard.press("Enter")
    assert page.evaluate("window.heard") == ["mst-explain", by_button]
    page.keyboard.press("Shift+ArrowRight")
    moved = page.evaluate("window.heard")[1]
    assert moved["x"] == pytest.approx(by_button["x"] - 1)  # to the screen's right is to the patient's left


def test_what_is_found_joins_the_scan_that_it_belongs_to(page: Page, show: Callable[..., Site]) -> None:
    show(marked_scan())
    other = findings_payload(marked_scan(), coarse_layers(), plane="axial", bounds=REGION, key="other")
    put(page, found_html(other))
    expect(page.locator("[data-panel=mst]")).to_have_count(0)
    take(page)
    assert current(page) == 5
    for panel in ("scan", "mst", "resnet", "mask"):
        expect(page.locator(f"[data-panel={panel}]:visible")).to_have_count(1)
    shown = picture(page, "mst")
    # The spot lies at the patient's left, at the back: right and low, within the region that fills the frame.
    rows, columns = np.nonzero(colourful(shown[20:-40]))
    assert columns.mean() > 0.55 * shown.shape[1]
    assert rows.mean() > 0.5 * shown.shape[0]
    page.locator("[data-panel=mst] .mstv-frame").hover()
    expect(page.locator(".mstv-readout")).to_contain_text("MST")


def test_a_map_lies_on_the_same_voxels_as_in_a_report(page: Page, show: Callable[..., Site]) -> None:
    """Of the map's own box each voxel is where it was on the whole grid."""
    show(marked_scan())
    hot = np.zeros((9, 7, 4), np.float32)
    hot[4, 2, 1] = 1
    take(page, [Layer("mst", "MST: attention", hot, start=(2, 3, 4))])
    assert current(page) == 5
    for index in ([6, 5, 5], [5, 5, 5], [6, 5, 4]):
        values = reach(page, f"viewer.values({index})")
        assert ("100%" in dict(values)["MST"]) is (index == [6, 5, 5])


def test_another_spot_is_offered_once_the_crosshair_is_elsewhere(
    page: Page, show: Callable[..., Site]
) -> None:
    show(marked_scan())
    chosen = viewer_of(page).get_attribute("data-center")
    take(page)
    expect(page.get_by_role("button", name="Explain here")).to_be_hidden()
    box = page.locator("[data-panel=scan]:visible .mstv-frame").bounding_box()
    assert box
    click(page, dict(box), 0.4, 0.4)
    expect(page.get_by_role("button", name="Explain here")).to_be_visible()
    # Looking at an answer chooses nothing.
    assert page.evaluate("window.heard ?? null") is None
    assert viewer_of(page).get_attribute("data-center") == chosen


def test_the_maps_of_another_spot_take_the_place_of_those_before(
    page: Page, show: Callable[..., Site]
) -> None:
    show(marked_scan())
    take(page)
    page.keyboard.press("Tab")
    viewer_of(page).hover()
    page.keyboard.press("c")
    late = np.zeros(SHAPE, np.float32)
    late[20:26, 20:26, 9] = 1
    take(page, [Layer("mst", "MST: attention", late)])
    expect(page.locator("[data-panel=mst]")).to_have_count(1)
    expect(page.locator("[data-panel=resnet]")).to_have_count(0)
    page.keyboard.press("a")
    settle(page)
    assert current(page) == 9


def test_zero_shows_the_whole_slice_and_the_region_again(page: Page, show: Callable[..., Site]) -> None:
    show(marked_scan())
    take(page)
    axis = "document.querySelector('[data-panel=scan]:not([hidden]) .js-plotly-plot')._fullLayout.xaxis"
    spans = f"({axis}.range[1] - {axis}.range[0])"
    close = page.evaluate(spans)
    viewer_of(page).hover()
    page.keyboard.press("0")
    page.wait_for_function(f"{spans} > {close} + 1")
    assert page.evaluate(spans) == pytest.approx(SHAPE[0], rel=0.02)
    page.keyboard.press("0")
    page.wait_for_function(f"{spans} < {SHAPE[0]} - 1")
    assert page.evaluate(spans) == pytest.approx(close, rel=0.02)


def test_a_mask_is_drawn_from_the_moment_it_is_given(page: Page, show: Callable[..., Site]) -> None:
    show(marked_scan())
    mask = np.zeros(SHAPE, bool)
    mask[28:40, 18:30, 9:12] = True
    middle = (13.0, 63.0, -80.0)
    put(
        page,
        spot_html(
            "k", center=middle, box_mm=(10, 10, 10), mask=mask_payload(Layer("mask", "Lesion mask", mask))
        ),
    )
    expect(page.get_by_role("checkbox", name="Lesion outline")).to_be_visible()
    settle(page)
    shown = picture(page, "scan][data-view-plane=axial")
    assert np.any((shown[..., 1] > shown[..., 0] + 60) & (shown[..., 1] > shown[..., 2] + 40))
    assert viewer_of(page).get_attribute("data-center") == "13,63,-80"


def test_a_large_scan_is_sharpened_by_the_slices_that_come_into_sight(
    page: Page, show: Callable[..., Site]
) -> None:
    rng = np.random.default_rng(0)
    voxels = rng.integers(-1000, 200, (340, 330, 40)).astype(np.float32)
    scan = Scan(voxels, np.diag([0.7, 0.7, 2.0, 1.0]), name="large")
    site = show(scan, streamed=True)
    page.wait_for_function("MstViewer && document.querySelector('.mst-viewer').dataset.ready === 'true'")
    expect(page.locator(".mstv-readout")).to_contain_text("Slice 21 of 40")
    want = int(voxels[120, 100, 20])
    for axis in (0, 1, 2):
        page.wait_for_function(
            f"performance.getEntriesByType('resource').some((e) => e.name.includes('/slices/{axis}/') && e.responseEnd)"
        )
    place = "viewer.source.value(viewer.source.at([{}, {}, 20], 2))"
    page.wait_for_function("document.querySelector('.mst-viewer').dataset.ready === 'true'")
    assert reach(page, place.format(120, 100)) == want
    assert reach(page, place.format(0, 329)) == int(voxels[0, 329, 20])
    assert reach(page, "viewer.base(viewer.spaces.axial).exact") is True
    # Three planes, a block each and what comes next: never the whole scan.
    assert {axis for axis, _, _ in site.asked} == {0, 1, 2}
    assert all(count <= 8 for _, _, count in site.asked)
    assert sum(axis == 0 for axis, _, _ in site.asked) < 340 / 8 / 2


def test_a_name_with_markup_stays_text(page: Page, show: Callable[..., Site]) -> None:
    sent = json.loads(spot_html("<b>&", center=(0, 0, 0), box_mm=None).split(">", 1)[1].rsplit("<", 1)[0])
    assert sent["key"] == "<b>&"
