"""What the viewers offer beyond scrolling: panels, planes, windows, colours, links, pictures; and axe-core."""

import io
from dataclasses import replace

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect
from viewing import SHAPE, Open, choose, colourful, current, layers, picture, settle, viewer_of

from mst.scans import Scan
from mst.viewer import Layer

pytestmark = pytest.mark.browser


# ---- panels


def test_scan_maps_and_mask_lie_beside_each_other(opened: Open) -> None:
    page = opened()
    boxes = [
        page.locator(f"[data-panel={kind}] .mstv-frame").bounding_box()
        for kind in ("scan", "mst", "resnet", "mask")
    ]
    assert all(boxes)
    assert len({round(box["y"]) for box in boxes if box}) == 1
    settle(page)
    assert not colourful(picture(page, "scan")).any()
    page.locator("[data-control=slice]").fill("15")
    settle(page)
    shown = picture(page, "mask")
    assert ((shown[..., 1] > 150) & (shown[..., 0] < 120)).sum() > 50


def test_any_subset_and_one_large_panel(opened: Open) -> None:
    page = opened()
    panels = page.get_by_role("group", name="Panels")
    panels.get_by_role("button", name="Scan").click()
    expect(page.locator("[data-panel=scan]")).to_be_hidden()
    small = page.locator("[data-panel=mst] .mstv-frame").bounding_box()
    page.get_by_role("button", name="Only this panel: MST: attention").click()
    expect(page.locator("[data-panel=resnet]")).to_be_hidden()
    page.wait_for_timeout(300)
    large = page.locator("[data-panel=mst] .mstv-frame").bounding_box()
    assert small
    assert large
    assert large["width"] * large["height"] > 3 * small["width"] * small["height"]
    page.locator("[data-panel=mst] .mstv-frame").dblclick()
    expect(page.locator("[data-panel=resnet]")).to_be_visible()
    expect(page.locator("[data-panel=scan]")).to_be_hidden()


def test_difference_and_agreement_show_whose_map_it_is(opened: Open) -> None:
    mst, resnet, _ = layers()
    both = np.zeros(SHAPE, np.float32)
    both[20:26, 2:8, 5] = 1
    page = opened(
        shown=[
            Layer("mst", "MST", mst.volume + both),
            Layer("resnet", "ResNet", np.roll(mst.volume, 15, 1) * 3 + 3 * both),
        ]
    )
    for name in ("Difference", "Agreement"):
        page.get_by_role("button", name=name, exact=True).click()
    page.wait_for_timeout(400)
    settle(page)

    def at(panel: str, x: int, y: int) -> np.ndarray:
        shown = picture(page, panel)
        return shown[int(shown.shape[0] * (29.5 - y) / 30), int(shown.shape[1] * (39.5 - x) / 40)]

    for panel in ("difference", "agreement"):
        red, _, blue = at(panel, 5, 5)
        assert blue > red + 30  # teal: the MST's only
        red, _, blue = at(panel, 5, 20)
        assert red > blue + 30  # orange: the ResNet's only
    assert np.ptp(at("difference", 23, 5)) < 5  # the same share of each map's own maximum
    red, green, blue = at("agreement", 23, 5)
    assert min(red, blue) > green + 20
    expect(page.locator("[data-panel=agreement]")).to_contain_text("Dice 0.50")


# ---- scrolling


@pytest.mark.parametrize("across", [True, False])
def test_dragging_scrolls(opened: Open, across: bool) -> None:
    page = opened()
    box = page.locator("[data-panel=mst] .mstv-frame").bounding_box()
    assert box
    start = current(page)
    x, y = box["x"] + 60, box["y"] + 60
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60 * across, y + 60 * (not across), steps=4)
    page.mouse.up()
    assert current(page) > start


def test_play_goes_on_until_it_is_paused(opened: Open) -> None:
    page = opened()
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_timeout(700)
    page.get_by_role("button", name="Pause").click()
    at = current(page)
    assert at > 5
    page.wait_for_timeout(400)
    assert current(page) == at


def test_a_thousand_slices_scroll(opened: Open) -> None:
    scan = Scan(
        np.random.default_rng(0).normal(-600, 50, (24, 20, 1000)).astype(np.float32), np.eye(4), name="long"
    )
    hot = np.zeros(scan.shape, np.float32)
    hot[5:9, 5:9, 700] = 1
    page = opened(shown=[Layer("mst", "MST", hot)], scan=scan)
    assert current(page) == 700
    page.locator("[data-panel=mst] .mstv-frame").hover()
    page.keyboard.press("End")
    assert current(page) == 999


# ---- planes


@pytest.mark.parametrize(
    ("plane", "letters", "bright", "ratio"),
    [
        # The white block is at x 30..38 of 40, y 20..28 of 30, z 14..18 of 20, to the right, front and head.
        ("Coronal", ["H", "F", "R", "L"], (1 - 16 / 20, 1 - 34 / 40), 40 / 40),
        ("Sagittal", ["H", "F", "A", "P"], (1 - 16 / 20, 1 - 24 / 30), 30 / 40),
    ],
)
def test_planes_have_true_proportions_and_sides(
    opened: Open, plane: str, letters: list[str], bright: tuple[float, float], ratio: float
) -> None:
    page = opened()
    page.get_by_role("group", name="Plane").get_by_role("button", name=plane).click()
    expect(viewer_of(page)).to_have_attribute("data-plane", plane.lower())
    page.locator("[data-control=opacity]").fill("0")
    page.locator("[data-control=slice]").fill("24" if plane == "Coronal" else "34")
    settle(page)
    assert page.locator("[data-panel=scan] .mstv-letter").all_inner_texts() == letters
    shown = picture(page, "scan").mean(axis=2)
    rows, columns = shown.shape
    assert columns / rows == pytest.approx(ratio, rel=0.03)
    assert shown[int(rows * bright[0]), int(columns * bright[1])] > 200
    assert shown[int(rows * (1 - bright[0])), int(columns * bright[1])] < 130
    assert shown[int(rows * bright[0]), int(columns * (1 - bright[1]))] < 130


def test_the_neurological_convention_swaps_sides_and_letters(opened: Open) -> None:
    page = opened("#slice=17&opacity=0")
    choose(page, "Orientation", "neurological")
    shown = picture(page, "scan").mean(axis=2)
    rows, columns = shown.shape
    assert shown[int(rows * 5 / 30), int(columns * 35 / 40)] > 200
    assert shown[int(rows * 5 / 30), int(columns * 5 / 40)] < 130
    assert page.locator("[data-panel=scan] .mstv-letter").all_inner_texts() == ["A", "P", "L", "R"]


def test_a_click_sets_the_crosshair_in_every_plane(opened: Open) -> None:
    affine = np.diag([-1.0, 1, 2, 1])
    affine[:3, 3] = (19, 40, -100)  # the file's first axis runs to the left
    page = opened(file_affine=affine)
    box = page.locator("[data-panel=scan] .mstv-frame").bounding_box()
    assert box
    # Voxel 12 to the right and 20 to the front.
    page.mouse.click(box["x"] + box["width"] * 27.5 / 40, box["y"] + box["height"] * 9.5 / 30)
    readout = page.locator(".mstv-readout")
    expect(readout).to_contain_text("x -8.0, y 60.0, z -90.0 mm")
    expect(readout).to_contain_text("voxel 27, 20, 5")
    expect(readout).to_contain_text("Intensity -600 HU")
    for key, slice_ in (("s", 12), ("c", 20), ("a", 5)):
        page.keyboard.press(key)
        assert current(page) == slice_
    page.keyboard.press("t")
    expect(page.locator("[data-panel=mst]:visible")).to_have_count(3)
    page.wait_for_timeout(300)
    page.locator("[data-panel=scan][data-view-plane=sagittal] .mstv-frame").hover()
    page.mouse.wheel(0, 120)
    expect(viewer_of(page)).to_have_attribute("data-slice", "13")
    expect(viewer_of(page)).to_have_attribute("data-plane", "sagittal")


def test_zoom_at_the_pointer_is_linked(opened: Open) -> None:
    page = opened()
    box = page.locator("[data-panel=mst] .mstv-frame").bounding_box()
    assert box
    place = (box["x"] + box["width"] * 30.5 / 40, box["y"] + box["height"] * 6.5 / 30)
    page.mouse.move(*place)
    before = page.locator(".mstv-readout").inner_text()
    page.keyboard.down("Control")
    page.mouse.wheel(0, -120)
    page.keyboard.up("Control")
    page.wait_for_timeout(400)
    page.mouse.move(place[0] + 1, place[1])
    assert page.locator(".mstv-readout").inner_text() == before  # the same voxel lies under the pointer
    # Moved with the middle button, the slice follows the pointer.
    page.mouse.down(button="middle")
    page.mouse.move(place[0] - 40, place[1] + 30, steps=4)
    page.mouse.up(button="middle")
    page.wait_for_timeout(400)
    page.mouse.move(place[0] - 39, place[1] + 30)
    assert page.locator(".mstv-readout").inner_text() == before
    spans = page.evaluate(
        "['scan', 'mst', 'resnet'].map((kind) => document.querySelector(`[data-panel=${kind}] .mstv-plot`)"
        "._fullLayout.xaxis.range).map(([a, b]) => b - a)"
    )
    assert spans == pytest.approx([40 / 1.2] * 3, rel=0.02)
    page.keyboard.press("0")
    page.wait_for_timeout(400)
    left, right = page.evaluate(
        "document.querySelector('[data-panel=resnet] .mstv-plot')._fullLayout.xaxis.range"
    )
    assert (left, right) == pytest.approx((0, 40))


# ---- intensities and saliency


def test_windows_are_chosen_dragged_and_typed(opened: Open) -> None:
    page = opened()
    shown = []
    for key in ("1", "2"):
        page.locator("[data-panel=scan] .mstv-frame").hover()
        page.keyboard.press(key)
        settle(page)
        shown.append(picture(page, "scan")[5, 40].mean())
    assert shown[0] > shown[1] + 50
    box = page.locator("[data-panel=scan] .mstv-frame").bounding_box()
    assert box
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down(button="right")
    page.mouse.move(box["x"] + 110, box["y"] + 50, steps=3)
    page.mouse.up(button="right")
    settle(page)
    expect(page.locator(".mstv-readout")).to_contain_text("level 400, width 243")
    assert page.get_by_label("Display window").input_value() == "-1"
    choose(page, "Level", "-600")
    choose(page, "Width", "1500")
    expect(page.locator(".mstv-readout")).to_contain_text("level -600, width 1500 HU")


def test_patches_are_as_coarse_as_the_model(opened: Open) -> None:
    page = opened("#opacity=1&threshold=0.5")
    settle(page)
    smooth = colourful(picture(page, "mst")).sum()
    choose(page, "Map", "patches")
    shown = picture(page, "mst")
    # Two by two patches of five voxels in the corner, where the smooth map has six by six voxels.
    assert colourful(shown).mean() == pytest.approx(100 / 1200, rel=0.06)
    assert colourful(shown).sum() > 2 * smooth


def test_contours_leave_the_inside_free(opened: Open) -> None:
    page = opened("#opacity=1")
    settle(page)
    filled = colourful(picture(page, "mst")).sum()
    choose(page, "Drawn as", "contours")
    lines = colourful(picture(page, "mst")).sum()
    assert 0 < lines < 0.6 * filled


def peak() -> np.ndarray:
    """Nearly zero in all but 6 x 6 x 1 voxels, of which half of the rows reach 45% of the maximum and half 35%."""
    volume = np.full(SHAPE, 1e-3, np.float32)
    volume[2:8, 2:5, 5] = 0.45
    volume[2:8, 5:8, 5] = 0.35
    volume[2, 2, 5] = 1
    return volume


def test_a_map_is_first_shown_from_a_part_of_its_maximum(opened: Open) -> None:
    layers = [Layer("mst", "MST", peak()), Layer("resnet", "ResNet", peak())]
    page = opened(shown=layers)
    expect(page.locator("[data-control=threshold]")).to_have_attribute("aria-valuetext", "40% of max.")
    expect(page.locator("[data-panel=mst] .mstv-cut")).to_have_text("0.40")
    settle(page)
    # A quantile would show a tenth of the slice, since nearly nothing is nearly the same everywhere.
    assert colourful(picture(page, "mst")).mean() == pytest.approx(18 / 1200, rel=0.35)
    page.evaluate("location.hash = '#panels=agreement'")
    settle(page)
    assert colourful(picture(page, "agreement")).mean() == pytest.approx(18 / 1200, rel=0.35)
    page = opened("#style=contours", shown=layers)
    settle(page)
    rows = np.nonzero(colourful(picture(page, "mst")).any(axis=1))[0] / picture(page, "mst").shape[0]
    # Their lines run round rows 2 to 4 from the back alone, which lies below.
    assert (1 - rows.max(), 1 - rows.min()) == pytest.approx((2 / 30, 5 / 30), abs=0.025)


def test_a_link_of_before_still_opens(opened: Open) -> None:
    page = opened("#threshold=0.9", shown=[Layer("mst", "MST", peak())])
    expect(page.locator("[data-control=threshold]")).to_have_attribute("aria-valuetext", "10%")
    page = opened("#maximum=0.3", shown=[Layer("mst", "MST", peak())])
    expect(page.locator("[data-control=threshold]")).to_have_attribute("aria-valuetext", "30% of max.")
    settle(page)
    assert colourful(picture(page, "mst")).mean() == pytest.approx(36 / 1200, rel=0.35)
    page.locator("[data-panel=mst] .mstv-frame").hover()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("location.hash.includes('maximum=0.3')")


def test_models_are_called_by_their_own_names(opened: Open) -> None:
    one, other = layers()[:2]
    named = [replace(one, short="MST (2D ResNet)"), replace(other, short="3D ResNet")]
    page = opened(shown=named)
    for group in ("Panels", "Next hot spot"):
        buttons = page.get_by_role("group", name=group).get_by_role("button").all_inner_texts()
        assert {"MST (2D ResNet)", "3D ResNet"} <= set(buttons)
        assert not {"MST", "ResNet"} & set(buttons)
    page.evaluate("location.hash = '#panels=agreement,difference'")
    settle(page)
    expect(page.locator("[data-panel=agreement] .mstv-scale")).to_contain_text("MST (2D ResNet) only")
    expect(page.locator("[data-panel=difference] .mstv-scale")).to_contain_text("3D ResNet more")
    page.get_by_role("tab", name="MIP").click()
    expect(page.get_by_role("button", name="MST (2D ResNet) map")).to_be_visible()


def test_a_name_of_one_long_word_harms_neither_page_nor_file(opened: Open, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    opened(title="W" * 3000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="Save").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Picture (PNG)").click()
    assert download.value.suggested_filename == "W" * 80 + "-axial-slice-6.png"
    opened(title="../..")
    page.get_by_role("button", name="Save").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Picture (PNG)").click()
    assert download.value.suggested_filename == "scan-axial-slice-6.png"


def test_one_scale_for_both_maps(opened: Open) -> None:
    page = opened()
    ends = page.locator("[data-panel=mst] .mstv-scale")
    expect(ends).to_contain_text("1.0 max.")
    choose(page, "Colour scale", "shared")
    expect(ends).to_contain_text("3.0")
    choose(page, "Colour scale", "paper")
    choose(page, "Threshold by", "value")
    choose(page, "Threshold", "2")
    settle(page)
    assert not colourful(picture(page, "mst")).any()  # its maximum is 1


def test_hot_spots_are_visited_in_turn(opened: Open) -> None:
    hot = np.zeros(SHAPE, np.float32)
    hot[5, 5, 3] = 1
    hot[30, 20, 11] = 0.6
    hot[32, 20, 11] = 0.5  # too close to the one before
    hot[10, 20, 17] = 0.1  # too weak
    page = opened(shown=[Layer("mst", "MST", hot)])
    button = page.locator("[data-hot-spot=mst]")
    visited = []
    for _ in range(3):
        button.click()
        visited.append(current(page))
    assert visited == [3, 11, 3]
    expect(page.get_by_role("group", name="Next hot spot")).to_contain_text("MST 1 of 2: 100% of its maximum")


def test_a_bar_of_the_chart_leads_to_its_slice(opened: Open) -> None:
    page = opened()
    box = page.locator(".mstv-chart").bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] * 8.5 / 20, box["y"] + 10)
    assert current(page) == 8


# ---- links, pictures, access


def test_a_link_carries_the_view(opened: Open) -> None:
    page = opened(
        "#plane=sagittal&slice=17&threshold=0.99&level=40&width=400&panels=mst&map=patches&foo=1&opacity=9"
    )
    viewer = viewer_of(page)
    expect(viewer).to_have_attribute("data-plane", "sagittal")
    expect(viewer).to_have_attribute("data-slice", "16")
    assert page.locator("[data-control=threshold]").input_value() == "1"
    assert page.locator(".mstv-panel:visible").count() == 1
    expect(page.locator(".mstv-readout")).to_contain_text("level 40, width 400")
    page.locator("[data-panel=mst] .mstv-frame").hover()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(600)
    link = page.evaluate("location.hash")
    for part in (
        "plane=sagittal",
        "slice=18",
        "threshold=0.99",
        "panels=mst",
        "level=40",
        "width=400",
        "map=patches",
    ):
        assert part in link
    page.evaluate("location.hash = '#plane=coronal&slice=3'")
    expect(viewer).to_have_attribute("data-plane", "coronal")
    expect(viewer).to_have_attribute("data-slice", "2")


def test_a_picture_and_an_animation_are_saved(opened: Open) -> None:
    page = opened()
    page.get_by_role("button", name="Save").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Picture (PNG)").click()
    assert download.value.suggested_filename == "marked-axial-slice-6.png"
    shown = np.asarray(Image.open(download.value.path()).convert("RGB"), float)
    assert shown.shape[1] > 1500
    assert colourful(shown).any()
    with page.expect_download(timeout=60_000) as download:
        page.get_by_role("button", name="Animation (GIF)").click()
    gif = Image.open(io.BytesIO(download.value.path().read_bytes()))
    assert gif.n_frames == SHAPE[2]
    frames = []
    for slice_ in (0, 5, 16):
        gif.seek(slice_)
        frames.append(np.asarray(gif.convert("RGB"), float))
    assert colourful(frames[1]).sum() > colourful(frames[0]).sum() + 50  # the MST's map is on slice 5
    assert (frames[2] > 220).sum() > (frames[0] > 220).sum() + 500  # the white block is on slice 16
    assert current(page) == 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened: Open, page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    opened()
    for menu in (None, "Display", "Save", "Keys"):
        if menu:
            page.locator(".mstv-menus").get_by_role("button", name=menu).first.click()
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
        assert found.violations_count == 0, found.generate_report()
    for view in ("3D", "MIP"):
        page.get_by_role("tab", name=view).click()
        page.wait_for_timeout(1000)
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
        assert found.violations_count == 0, found.generate_report()


def test_the_keyboard_reaches_everything_and_shows_where_it_is(opened: Open) -> None:
    page = opened()
    page.locator("[data-testid=viewer]").focus()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "() => { const e = document.activeElement; return [e.getAttribute('aria-label') || e.textContent,"
            " getComputedStyle(e).outlineStyle]; }"
        )
        if name and page.evaluate("document.querySelector('.mst-viewer').contains(document.activeElement)"):
            reached.add(name.strip())
            assert outline == "solid", name
    for control in (
        "2D",
        "Axial",
        "Display window",
        "Opacity",
        "Show above",
        "Scan",
        "Display ▾",
        "Save ▾",
        "Keys",
        "Slice",
        "Play",
        "ResNet",
    ):
        assert control in reached
    page.keyboard.press("Shift+Tab")
    page.locator("[data-testid=viewer]").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("group", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("group", name="Keys")).to_be_hidden()


def test_an_empty_map_is_said_to_be_empty(opened: Open) -> None:
    page = opened(shown=[Layer("mst", "MST: attention", np.zeros(SHAPE, np.float32))])
    expect(viewer_of(page)).to_contain_text("MST: attention: the map is zero everywhere")
    settle(page)
    assert picture(page, "mst").max() > 50
    page.locator("[data-hot-spot=mst]").click()
    expect(page.get_by_role("group", name="Next hot spot")).to_contain_text("no hot spot")


def test_a_frame_is_drawn_for_every_key(opened: Open) -> None:
    page = opened()
    page.locator("[data-panel=mst] .mstv-frame").hover()
    for slice_ in (6, 7, 8):
        page.keyboard.press("ArrowRight")
        expect(viewer_of(page)).to_have_attribute("data-drawn", str(slice_))
