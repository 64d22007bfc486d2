"""Whatever is changed, and whenever: the page speaks of what is open, or says plainly of what else."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from mst.data.examples import EXAMPLES, example_center, example_scan
from mst.scans import write_nifti

pytestmark = pytest.mark.browser
SHAPE = (512, 512, 200)


@pytest.fixture(scope="module")
def whole_ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT that takes seconds to explain."""
    voxels = np.full(SHAPE, -1000, np.int16)
    voxels[60:450, 90:420, 10:190] = 40
    voxels[::3] += 7
    path = tmp_path_factory.mktemp("large") / "whole-ct.nii"
    nib.save(nib.Nifti1Image(voxels, np.diag([0.7, 0.7, 1.5, 1.0])), path)
    return path


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scan = example_scan("chest-round")
    voxels = np.zeros(scan.shape, np.uint8)
    voxels[40:50, 50:60, 20:26] = 1
    path = tmp_path_factory.mktemp("mask") / "lesion.nii.gz"
    nib.save(nib.Nifti1Image(voxels, scan.affine), path)
    return path


def open_scan(page: Page, *files: Path) -> None:
    page.set_input_files("#scan input[type=file]", [str(file) for file in files])
    name = files[0].name.split(".")[0]
    expect(page.locator("#status")).to_contain_text(name, timeout=90_000)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)


def explain(page: Page) -> None:
    page.click("#run")
    page.wait_for_selector("[data-testid=viewer][data-ready=true] [data-panel=mst]", timeout=90_000)
    expect(page.locator("#downloads").get_by_text("prediction.json")).to_be_enabled(timeout=60_000)


def centre(page: Page) -> Locator:
    return page.locator("#center textarea, #center input").first


def expect_no_answer(page: Page) -> None:
    expect(page.locator("#results .mst-predictions, [data-testid=viewer] [data-panel=mst]")).to_have_count(0)
    expect(page.locator("#downloads button:visible, #downloads a:visible")).to_have_count(0)


def test_an_answer_that_comes_after_another_scan_was_opened_is_dropped(
    page: Page, url: str, whole_ct: Path
) -> None:
    page.goto(f"{url}?example=none")
    open_scan(page, whole_ct)
    with page.expect_request(lambda request: "queue/join" in request.url):
        page.click("#run")
    page.get_by_role("button", name="Round nodule").click()
    expect(page.locator("#status")).to_contain_text("simulated", timeout=90_000)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    # The same work, begun later: once it is done, so is that of the first page.
    other = page.context.new_page()
    other.goto(f"{url}?example=none")
    open_scan(other, whole_ct)
    explain(other)
    expect_no_answer(page)
    expect(page.locator("#status")).to_contain_text("simulated")
    # The page is not left waiting for the run that it dropped.
    explain(page)
    expect(page.locator("#results .mst-answers")).to_have_attribute("data-made-for", re.compile("simulated"))


def test_answers_and_files_of_the_scan_before_go(page: Page, url: str, nodule: Path) -> None:
    page.goto(f"{url}?example=none")
    open_scan(page, nodule)
    explain(page)
    page.get_by_role("button", name="Spiculated nodule").click()
    expect(page.locator("#status")).to_contain_text("spiculated", timeout=60_000)
    expect_no_answer(page)
    explain(page)
    page.locator("#task input[value='knee-mri']").check()
    expect_no_answer(page)


def test_what_was_given_for_a_scan_goes_with_it(page: Page, url: str, nodule: Path, mask: Path) -> None:
    page.goto(f"{url}?example=none")
    # Given before the first scan, it is for that scan.
    page.set_input_files("#mask input[type=file]", str(mask))
    expect(page.locator("#mask")).to_contain_text("lesion")
    open_scan(page, nodule)
    expect(page.locator("#mask")).to_contain_text("lesion")
    explain(page)
    expect(page.locator("#results")).to_contain_text("Against the mask")
    centre(page).fill("1, 2, 3")
    page.get_by_role("button", name="Spiculated nodule").click()
    expect(page.locator("#status")).to_contain_text("spiculated", timeout=60_000)
    expect(page.locator("#mask")).not_to_contain_text("lesion")
    x, y, z = example_center("chest-spiculated")  # the example opens on its lesion
    expect(centre(page)).to_have_value(f"{x:.1f}, {y:.1f}, {z:.1f}")
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    explain(page)
    expect(page.locator("#results")).not_to_contain_text("Against the mask")


def test_a_scan_that_cannot_be_read_leaves_nothing_of_the_one_before(
    page: Page, url: str, nodule: Path, tmp_path: Path
) -> None:
    page.goto(f"{url}?example=none")
    open_scan(page, nodule)
    explain(page)
    bad = tmp_path / "notes.nii"
    bad.write_bytes(b"these are notes, not a scan" * 40)
    page.set_input_files("#scan input[type=file]", str(bad))
    expect(page.locator("#status [role=alert]")).to_contain_text("notes.nii", timeout=60_000)
    expect(page.locator("[data-testid=viewer][data-ready=true]")).to_have_count(0)
    expect_no_answer(page)


def test_an_answer_says_what_it_was_made_for_once_something_else_is_chosen(
    page: Page, url: str, nodule: Path, mask: Path
) -> None:
    page.goto(f"{url}?example=none")
    open_scan(page, nodule)
    explain(page)
    answers = page.locator("#results .mst-answers")
    note = answers.locator(".mst-stale")
    made = [f"{value:.1f}" for value in example_scan("chest-round").center]
    sentence = f"at {', '.join(made)} mm. Press Explain for the new choice."

    def expect_stale() -> None:
        expect(answers).to_have_attribute("data-stale", "")
        expect(note).to_contain_text("These answers are for simulated")
        expect(note).to_contain_text(sentence)

    def expect_fresh() -> None:
        expect(answers).not_to_have_attribute("data-stale", "")
        expect(note).to_be_empty()

    expect_fresh()
    centre(page).press_sequentially("4")
    expect_stale()
    centre(page).fill("")
    expect_fresh()
    # A look at another place leaves the answers what they are; that it be explained chooses it.
    plane = page.locator("[data-testid=viewer] [data-panel=scan] .mstv-frame:visible").first
    plane.click(position={"x": 40, "y": 40})
    expect_fresh()
    centre(page).fill("60, 10, -110")
    expect_stale()
    # What goes wrong leaves what was there, and what that was.
    centre(page).fill("nowhere")
    page.click("#run")
    expect(page.locator("#status [role=alert]")).to_contain_text("three numbers", timeout=30_000)
    expect_stale()
    centre(page).fill("")
    expect_fresh()
    page.set_input_files("#mask input[type=file]", str(mask))
    expect_stale()
    page.click("#run")
    expect(answers.locator("[data-model=mst]")).to_contain_text("Against the mask", timeout=60_000)
    expect_fresh()
    page.get_by_role("button", name="Models").click()
    page.locator("#tta input").check()
    expect(answers).to_have_attribute("data-stale", "")
    page.locator("#tta input").uncheck()
    expect_fresh()


@pytest.mark.parametrize("stem", ["chest", "Röntgen .. 胸部 v1.2 'a' & <b>", "x" * 150])
def test_files_carry_the_name_of_their_scan(
    page: Page, url: str, nodule: Path, tmp_path: Path, stem: str
) -> None:
    path = tmp_path / f"{stem}.nii.gz"
    path.write_bytes(nodule.read_bytes())
    page.goto(f"{url}?example=none")
    page.set_input_files("#scan input[type=file]", str(path))
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    explain(page)
    names = {}
    for label in ("prediction.json", "MST saliency (NIfTI)", "Report (PDF)"):
        with page.expect_download() as download:
            page.locator("#downloads").get_by_text(label).click()
        names[label] = download.value.suggested_filename
        if label == "prediction.json":
            assert json.loads(download.value.path().read_bytes())["task"] == "chest-ct"
    safe = names["prediction.json"].removesuffix("_prediction.json")
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,60}", safe)
    assert names["MST saliency (NIfTI)"] == f"{safe}_mst_saliency.nii.gz"
    assert names["Report (PDF)"] == f"{safe}_report.pdf"
    if stem == "chest":
        assert safe == "chest"


def test_a_ct_without_negative_numbers_is_told_and_can_be_shifted(
    page: Page, url: str, tmp_path: Path
) -> None:
    scan = example_scan("chest-round")
    write_nifti(scan.voxels + 1024, scan.affine, tmp_path / "unsigned.nii.gz")
    page.goto(f"{url}?example=none")
    expect(page.locator("#shift")).to_have_count(0)
    page.set_input_files("#scan input[type=file]", str(tmp_path / "unsigned.nii.gz"))
    expect(page.locator("#status")).to_contain_text("Hounsfield units + 1024", timeout=60_000)
    page.get_by_label("Add -1024 to all values").check()
    expect(page.locator("#status")).to_contain_text("-1024 was added to all values")
    expect(page.locator("#status")).not_to_contain_text("do not trust")
    page.get_by_role("button", name=EXAMPLES[0].title).click()
    expect(page.locator("#shift")).to_have_count(0)
    expect(page.locator("#status")).not_to_contain_text("-1024")
