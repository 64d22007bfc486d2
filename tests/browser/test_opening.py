"""The first ten seconds: a page opens with an example that is explained, and a scan of one's own takes its place."""

import re
import urllib.error
import urllib.request
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from mst.data.examples import example_center, example_with_mask

pytestmark = pytest.mark.browser
ANSWERED = "[data-testid=viewer][data-ready=true] [data-panel=mst]"


def centre(page: Page) -> str:
    return page.locator("#center textarea, #center input").first.input_value()


def test_the_page_opens_with_an_example_that_is_explained(
    page: Page, url: str, nodule: Path, tmp_path: Path
) -> None:
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.wait_for_selector(ANSWERED, timeout=60_000)
    expect(page.locator("#status")).to_contain_text("simulated-chest-spiculated")
    expect(page.locator(".mst-verdict")).to_contain_text("malignant")
    # One's own scan is the first thing to open.
    expect(page.locator("#scan")).to_contain_text("Click to Upload")
    expect(page.locator("#results .mst-stale")).to_be_empty()
    button = page.locator("#downloads").get_by_text("prediction.json")
    expect(button).to_be_enabled(timeout=60_000)
    with page.expect_download() as download:
        button.click()
    assert download.value.suggested_filename == "simulated-chest-spiculated_prediction.json"
    # A scan of one's own takes its place, and the address names it nowhere.
    mine = tmp_path / "mine.nii.gz"
    mine.write_bytes(nodule.read_bytes())
    page.set_input_files("#scan input[type=file]", str(mine))
    expect(page.locator("#status")).to_contain_text("mine", timeout=60_000)
    expect(page.locator("#results .mst-predictions")).to_have_count(0)
    expect(page.locator("[data-testid=viewer] [data-panel=mst]")).to_have_count(0)
    assert centre(page) == ""
    page.wait_for_function("location.search === '?example=none'")
    assert errors == []


def test_a_mask_that_comes_with_a_scan_of_ones_own_stays(
    page: Page, url: str, nodule: Path, tmp_path: Path
) -> None:
    scan, mask = example_with_mask("chest-round")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), scan.affine), tmp_path / "lesion.nii.gz")
    page.goto(url)
    page.wait_for_selector(ANSWERED, timeout=60_000)
    page.set_input_files("#scan input[type=file]", str(nodule))
    page.set_input_files("#mask input[type=file]", str(tmp_path / "lesion.nii.gz"))
    expect(page.locator("#status")).to_contain_text("simulated-chest-round", timeout=60_000)
    expect(page.get_by_role("checkbox", name="Lesion outline")).to_be_visible(timeout=60_000)
    page.click("#run")
    expect(page.locator(".mst-card[data-model=mst]")).to_contain_text("Against the mask", timeout=60_000)


def test_an_address_may_name_the_example_and_the_view(page: Page, url: str) -> None:
    page.goto(f"{url}?example=ground-glass#plane=sagittal&maximum=0.7")
    page.wait_for_selector(ANSWERED, timeout=60_000)
    expect(page.locator("#status")).to_contain_text("simulated-chest-ground-glass")
    viewer = page.locator("[data-testid=viewer]")
    expect(viewer).to_have_attribute("data-plane", "sagittal")
    expect(page.locator("[data-control=threshold]")).to_have_attribute("aria-valuetext", "70% of max.")


def test_an_upload_that_comes_at_once_is_what_opens(page: Page, url: str, nodule: Path) -> None:
    """The example's answer may come later; it is dropped."""
    page.goto(url, wait_until="commit")
    page.locator("#scan input[type=file]").wait_for(state="attached")
    page.set_input_files("#scan input[type=file]", str(nodule))
    expect(page.locator("#status")).to_contain_text("simulated-chest-round", timeout=60_000)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    page.click("#run")
    page.wait_for_selector(ANSWERED, timeout=60_000)
    expect(page.locator("#results .mst-answers")).to_have_attribute(
        "data-made-for", re.compile("simulated-chest-round")
    )
    expect(page.locator("#status")).to_contain_text("simulated-chest-round")


def test_the_spot_at_the_crosshair_is_explained(page: Page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector(ANSWERED, timeout=60_000)
    before = centre(page)
    box = page.locator("[data-panel=scan]:visible .mstv-frame").bounding_box()
    assert box
    page.mouse.click(box["x"] + 0.4 * box["width"], box["y"] + 0.6 * box["height"])
    assert centre(page) == before
    made = page.locator("#results .mst-answers").get_attribute("data-run")
    page.get_by_role("button", name="Explain here").click()
    # What was there before is not taken for the answer.
    expect(page.locator("#results .mst-answers")).not_to_have_attribute(
        "data-run", made or "", timeout=60_000
    )
    page.wait_for_selector(ANSWERED, timeout=60_000)
    assert centre(page) != before
    expect(page.locator("#results")).to_contain_text(f"the chosen spot, ({centre(page)} mm)")
    expect(page.locator("#results .mst-stale")).to_be_empty()
    expect(page.get_by_role("button", name="Explain here")).to_be_hidden()
    assert page.locator("[data-testid=viewer]").get_attribute("data-center") == re.sub(
        r"\.0\b", "", centre(page).replace(" ", "")
    )


def test_a_run_that_fails_leaves_the_viewer_ready(page: Page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector(ANSWERED, timeout=60_000)
    page.locator("#center textarea, #center input").first.fill("nowhere")
    page.click("#run")
    expect(page.locator("#status [role=alert]")).to_contain_text("three numbers", timeout=30_000)
    page.wait_for_selector(ANSWERED, timeout=10_000)


def test_a_whole_ct_is_shown_by_the_slices_in_sight(page: Page, url: str, tmp_path: Path) -> None:
    voxels = np.full((512, 512, 60), -900, np.int16)
    voxels[100:400, 120:390, 5:55] = 40
    voxels[::2, ::2] += 7  # of which an overview shows nothing
    path = tmp_path / "whole-ct.nii"
    nib.save(nib.Nifti1Image(voxels, np.diag([0.7, 0.7, 3.0, 1.0])), path)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "scan-slices" in request.url else None)
    page.goto(f"{url}?example=none")
    page.set_input_files("#scan input[type=file]", str(path))
    expect(page.locator("#status")).to_contain_text("whole-ct", timeout=90_000)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    for axis in (0, 1, 2):
        page.wait_for_function(
            f"performance.getEntriesByType('resource').some((e) => /scan-slices.[^/]+.{axis}./.test(e.name))"
        )
    page.click("#run")
    page.wait_for_selector(ANSWERED, timeout=90_000)
    token = asked[0].split("/")[-4]
    for path_of in (f"{token}/2/0/17", f"{token}/3/0/1", f"{token}/2/59/2", "guessed/2/0/1"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{url}scan-slices/{path_of}")
        assert refused.value.code == 404


def test_the_examples_spot_is_its_lesion(page: Page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector(ANSWERED, timeout=60_000)
    assert centre(page) == ", ".join(f"{v:.1f}" for v in example_center("chest-spiculated"))


@pytest.mark.parametrize("height", [560, 900])
def test_what_is_too_long_for_the_screen_stays_in_its_column(page: Page, url: str, height: int) -> None:
    page.set_viewport_size({"width": 1440, "height": height})
    page.goto(url)
    page.wait_for_selector(ANSWERED, timeout=60_000)
    for column, parts in (("#inspector", ("#run", "#results")), ("#controls", ("#scan", "#where"))):
        box = page.locator(column).bounding_box()
        assert box
        for part in parts:
            inner = page.locator(part).bounding_box()
            assert inner
            assert abs(inner["x"] - box["x"]) < 2
            assert inner["width"] <= box["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 1440
