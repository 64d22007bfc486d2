"""The viewer's 3D view and projection: what they show, what they weigh, and what is left without WebGL."""

import base64
import io
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from serving import chromium_options
from viewing import Open, colourful, settle, viewer_of, write_report

from mst.scans import Scan
from mst.viewer import Layer

pytestmark = pytest.mark.browser


@pytest.fixture
def blind_page(browser: Browser) -> Iterator[Page]:
    """A page of a browser without WebGL."""
    options = chromium_options()
    options["args"] = [*options["args"], "--disable-webgl", "--disable-3d-apis"]
    opened = browser.browser_type.launch(**options)
    yield opened.new_page(viewport={"width": 1280, "height": 900})
    opened.close()


def projection(page: Page) -> np.ndarray:
    """The projection as drawn, float [rows, columns, 3]."""
    data = page.evaluate("document.querySelector('.mstv-projection-canvas').toDataURL()")
    png = base64.b64decode(data.split(",")[1])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), float)


def turn_to(page: Page, degrees: int) -> np.ndarray:
    page.locator("[data-control=angle]").fill(str(degrees))
    settle(page)
    return projection(page)


def drawn_bytes(page: Page) -> int:
    """What Plotly is given for 3D; arrays that surfaces share count once."""
    sizes = page.evaluate(
        "[...new Set(document.querySelector('.mstv-solid-plot').data.flatMap((t) => [t.x, t.y, t.z, t.value]))]"
        ".filter(Boolean).map((a) => a.byteLength ?? 8 * a.length)"
    )
    return int(sum(sizes))


def test_surfaces_of_scan_maps_and_mask_with_the_slice_in_three_megabytes(opened: Open) -> None:
    page = opened()
    page.get_by_role("tab", name="3D").click()
    expect(viewer_of(page)).to_have_attribute("data-solid", "ready", timeout=60_000)
    traces = page.evaluate(
        "document.querySelector('.mstv-solid-plot').data.map((t) => [t.type, t.name ?? '', t.z.at(0), t.isomin ?? 0])"
    )
    assert [name for _, name, *_ in traces] == [
        "Scan surface",
        "MST map",
        "ResNet map",
        "Lesion mask",
        "",
        "",
    ]
    assert drawn_bytes(page) <= 3_000_000
    # The slice's plane and its outline move with the slice, in what Plotly draws too.
    page.locator("[data-control=slice]").fill("11")
    for part in ("data", "_fullData"):
        heights = page.evaluate(
            f"document.querySelector('.mstv-solid-plot').{part}.slice(-2).map((t) => Array.from(t.z))"
        )
        assert heights == [[-78.0] * 4, [-78.0] * 5]
    page.get_by_role("group", name="Shown in 3D").get_by_role("button", name="Lesion mask").click()
    assert page.evaluate("document.querySelector('.mstv-solid-plot').data[3].visible") is False


def test_what_3d_draws_stays_small_however_large_the_scan(opened: Open) -> None:
    shape = (102, 102, 136)  # as many cells along each axis as 3D ever draws
    ramp = np.linspace(0, 1, shape[2], dtype=np.float32) * np.ones(shape, np.float32)
    mask = np.zeros(shape, bool)
    mask[40, 40, 40] = True  # far smaller than a cell
    scan = Scan(-600 + 700 * ramp[::-1], np.eye(4), name="large")
    page = opened(
        shown=[Layer("mst", "MST", ramp), Layer("resnet", "ResNet", ramp), Layer("mask", "Mask", mask)],
        scan=scan,
    )
    page.get_by_role("tab", name="3D").click()
    expect(viewer_of(page)).to_have_attribute("data-solid", "ready", timeout=60_000)
    assert page.evaluate("document.querySelector('.mstv-solid-plot').data[0].value.length") == 34**3
    assert drawn_bytes(page) <= 3_000_000
    level, most = page.evaluate(
        "(({ value, isomin }) => [isomin, Math.max(...value)])(document.querySelector('.mstv-solid-plot').data[3])"
    )
    assert 0 < level < most


def test_a_small_spot_is_seen_in_3d_and_in_the_projection(opened: Open) -> None:
    shape = (102, 102, 136)  # cells of 3 x 3 x 4 voxels
    spot = np.zeros(shape, np.float32)
    spot[50, 50, 70] = 1  # a thirty-sixth is left of it in its cell
    page = opened(shown=[Layer("mst", "MST", spot)], scan=Scan(np.full(shape, -600, np.float32), np.eye(4)))
    page.get_by_role("tab", name="3D").click()
    expect(viewer_of(page)).to_have_attribute("data-solid", "ready", timeout=60_000)
    level, most = page.evaluate(
        "(({ value, isomin }) => [isomin, Math.max(...value)])(document.querySelector('.mstv-solid-plot').data[1])"
    )
    assert level == pytest.approx(0.4 * most, rel=0.01)
    page.get_by_role("tab", name="MIP").click()
    settle(page)
    red, green, blue = np.moveaxis(projection(page), 2, 0)
    assert ((blue > red + 30) & (green > red + 30)).any()


def test_the_projection_shows_the_greatest_value_from_every_side(opened: Open) -> None:
    # A white block to the right, at the front, near the head; the MST's map to the left, at the back.
    page = opened("#threshold=0.5")
    page.get_by_role("tab", name="MIP").click()
    expect(page.locator("[data-panel=mst]")).to_be_hidden()
    keys = page.get_by_role("group", name="Shown in the projection")
    for name in ("MST map", "ResNet map", "Lesion mask"):
        keys.get_by_role("button", name=name).click()

    def middle_of_white(degrees: int) -> tuple[float, float]:
        rows, columns = np.nonzero(turn_to(page, degrees).min(axis=2) > 240)
        height, width = projection(page).shape[:2]
        return rows.mean() / height, columns.mean() / width - 0.5

    row, front = middle_of_white(0)
    _, right = middle_of_white(90)
    _, back = middle_of_white(180)
    _, left = middle_of_white(270)
    assert row == pytest.approx(1 - 16 / 20, abs=0.04)
    # In a frame 50 cells wide the block's middle lies 14 to the right of the scan's and 9 in front of it.
    assert (front, back) == pytest.approx((-14 / 50, 14 / 50), abs=0.02)
    assert (right, left) == pytest.approx((9 / 50, -9 / 50), abs=0.02)
    assert page.locator(".mstv-projection .mstv-letter").all_inner_texts() == ["H", "F", "A", "P"]


def test_the_projection_overlays_the_maps_the_mask_and_the_slice(opened: Open) -> None:
    page = opened()
    page.get_by_role("tab", name="MIP").click()
    page.get_by_role("button", name="Front").click()
    settle(page)
    shown = projection(page)

    def part(test: np.ndarray) -> np.ndarray:
        return np.array(
            [along.mean() / size for along, size in zip(np.nonzero(test), test.shape, strict=True)]
        )

    red, green, blue = np.moveaxis(shown, 2, 0)
    teal = (blue > red + 40) & (green > red + 40) & (green < 200)
    orange = (red > blue + 60) & (green > blue + 20)
    mask = (green > 180) & (red < 120) & (blue < 170)
    # Both maps lie to the patient's left: to the right on the screen, the MST's on slice 5, the ResNet's on 12.
    assert part(teal)[0] == pytest.approx(1 - 5.5 / 20, abs=0.06)
    assert part(orange)[0] == pytest.approx(1 - 12.5 / 20, abs=0.06)
    assert min(part(teal)[1], part(orange)[1]) > 0.6
    assert part(mask)[1] < 0.4

    def line() -> float:
        red, _, blue = np.moveaxis(projection(page), 2, 0)
        return float(np.argmax((blue > red + 80).sum(axis=1))) / shown.shape[0]

    assert line() == pytest.approx(1 - 5.5 / 20, abs=0.03)
    page.locator(".mstv-projection-frame").hover()
    page.keyboard.press("End")
    settle(page)
    assert line() == pytest.approx(1 - 19.5 / 20, abs=0.03)


def test_the_projection_turns_by_dragging_and_by_itself(opened: Open) -> None:
    page = opened()
    page.get_by_role("tab", name="MIP").click()
    node = page.locator(".mstv-projection")
    box = page.locator(".mstv-projection-frame").bounding_box()
    assert box
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 100, steps=3)
    page.mouse.up()
    expect(node).to_have_attribute("data-angle", "30")
    page.get_by_role("button", name="Turn", exact=True).click()
    page.wait_for_timeout(500)
    page.get_by_role("tab", name="2D").click()
    page.get_by_role("tab", name="MIP").click()
    angle = node.get_attribute("data-angle")
    assert angle != "30"
    page.wait_for_timeout(200)
    assert node.get_attribute("data-angle") == angle


def test_without_webgl_it_says_so_and_the_projection_takes_its_place(
    blind_page: Page, tmp_path: Path
) -> None:
    page = blind_page
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(write_report(tmp_path))
    page.wait_for_selector("[data-testid=viewer][data-ready=true]")
    for _ in range(2):
        page.get_by_role("tab", name="3D").click()
        expect(viewer_of(page)).to_have_attribute("data-solid", "unavailable")
        expect(page.get_by_role("tabpanel", name="3D")).to_contain_text("needs WebGL")
        expect(page.locator(".mstv-note")).to_have_count(1)
        settle(page)
        assert colourful(projection(page)).any()
        page.keyboard.press("ArrowRight")
        page.get_by_role("tab", name="2D").click()
        expect(page.locator(".mstv-note")).to_be_hidden()
        expect(page.locator(".mstv-projection")).to_be_hidden()
        expect(page.locator("[data-panel=mst]")).to_be_visible()
    page.get_by_role("tab", name="MIP").click()
    expect(page.locator(".mstv-note")).to_be_hidden()
    assert projection(page).max() > 200
    assert errors == []


def test_a_3d_view_that_fails_is_replaced_as_well(opened: Open) -> None:
    page = opened()
    page.evaluate("() => { Plotly.newPlot = () => Promise.reject(new Error('no context')); }")
    page.get_by_role("tab", name="3D").click()
    expect(page.get_by_role("tabpanel", name="3D")).to_contain_text("could not be drawn")
    settle(page)
    assert projection(page).max() > 200


def test_the_tabs_are_changed_by_arrow_keys(opened: Open) -> None:
    page = opened()
    page.get_by_role("tab", name="2D").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="MIP")).to_be_focused()
    expect(viewer_of(page)).to_have_attribute("data-view", "mip")
    page.keyboard.press("ArrowRight")
    expect(viewer_of(page)).to_have_attribute("data-view", "2d")


@pytest.mark.parametrize(("view", "tab"), [("3d", "3D"), ("mip", "MIP")])
def test_a_link_and_a_picture_carry_the_view(opened: Open, view: str, tab: str) -> None:
    page = opened(f"#view={view}&angle=90&slice=8")
    expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
    if view == "mip":
        expect(page.get_by_role("tabpanel", name="Maximum-intensity projection")).to_have_attribute(
            "data-angle", "90"
        )
        page.get_by_role("button", name="Back", exact=True).click()
        page.wait_for_function("location.hash.includes('angle=180')")
    else:
        expect(viewer_of(page)).to_have_attribute("data-solid", "ready", timeout=60_000)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("button", name="Animation (GIF)")).to_be_hidden()
    with page.expect_download(timeout=60_000) as download:
        page.get_by_role("button", name="Picture (PNG)").click()
    assert download.value.suggested_filename == f"marked-axial-{view}.png"
    shown = np.asarray(Image.open(download.value.path()).convert("RGB"), float)
    height = len(shown)
    assert colourful(shown[height // 5 : -height // 5]).sum() > 500  # the maps, not the keys alone
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="2D").click()
    page.wait_for_function("!location.hash.includes('view=')")


def camera(page: Page) -> list[float]:
    """Where 3D is seen from and what lies in the middle, as Plotly has it."""
    expect(viewer_of(page)).to_have_attribute("data-solid", "ready", timeout=60_000)
    return page.evaluate(
        "(({ eye, center }) => [eye, center].flatMap(({ x, y, z }) => [x, y, z]))"
        "(document.querySelector('.mstv-solid-plot').layout.scene.camera)"
    )


def test_a_link_carries_where_3d_is_seen_from(opened: Open) -> None:
    page = opened("#view=3d&camera=0.5,-2,0.3,0,0,0.1")
    assert camera(page) == pytest.approx([0.5, -2, 0.3, 0, 0, 0.1])
    box = page.locator(".mstv-solid-plot").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 120, y, steps=4)
    page.mouse.up()
    page.wait_for_function("!location.hash.includes('camera=0.5,-2')")
    turned, link = camera(page), page.evaluate("location.hash")
    assert turned[:2] != pytest.approx([0.5, -2], abs=0.2)
    page.goto("about:blank")  # else only the address would change
    assert camera(opened(link)) == pytest.approx(turned, abs=0.01)
    # A link without a camera shows 3D as it opens; that is not worth a word in the address.
    page = opened("#view=3d&camera=0.5,-2,0.3,0,0,0.1")
    camera(page)
    page.evaluate("location.hash = '#view=3d'")
    page.wait_for_function("document.querySelector('.mstv-solid-plot').layout.scene.camera.eye.x < -1")
    page.locator("[data-control=slice]").fill("11")
    page.wait_for_function("location.hash.includes('slice=12')")
    assert "camera" not in page.evaluate("location.hash")


def test_the_pointer_in_3d_tells_what_it_is_on_and_where(opened: Open) -> None:
    page = opened("#view=3d")
    camera(page)
    box = page.locator(".mstv-solid-plot").bounding_box()
    assert box is not None
    label = page.locator(".mstv-solid-plot .hovertext")
    for y, x in product((0.3, 0.4, 0.5, 0.6), np.linspace(0.3, 0.7, 9)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.wait_for_timeout(350)
        if label.count():
            break
    told = label.text_content()
    assert told is not None
    assert told.endswith("mm")
    assert "value" not in told


def test_nothing_in_3d_sends_the_scan_elsewhere(opened: Open) -> None:
    page = opened("#view=3d")
    camera(page)
    buttons = page.locator(".mstv-solid-plot .modebar-btn").evaluate_all(
        "(all) => all.map((button) => button.dataset.title)"
    )
    assert buttons == ["Turntable rotation", "Pan", "Zoom", "Reset camera to default"]
    assert page.evaluate("document.querySelector('.mstv-solid-plot')._context.plotlyServerURL") == ""
