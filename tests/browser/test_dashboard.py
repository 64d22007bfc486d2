"""The page as people use it, in Chromium, and the web API beside it."""

import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from axe_playwright_python.sync_playwright import Axe
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from playwright.sync_api import Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError
from scan_files import dicom_series

from mst.data.examples import example_center, example_file, example_scan

pytestmark = pytest.mark.browser


def _upload(page: Page, *files: Path) -> None:
    page.set_input_files("#scan input[type=file]", [str(file) for file in files])


def _explain(page: Page) -> None:
    page.click("#run")
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=90_000)
    expect(page.locator("[data-testid=viewer] [data-panel=mst]")).to_have_count(1)


def _download(page: Page, label: str) -> bytes:
    button = page.locator("#downloads").get_by_text(label)
    expect(button).to_be_enabled(timeout=30_000)
    with page.expect_download() as download:
        button.click()
    return download.value.path().read_bytes()


def test_from_upload_to_two_linked_viewers(page: Page, url: str, nodule: Path) -> None:
    hosts = set()
    errors = []
    page.on("request", lambda request: hosts.add(re.sub(r"^(\w+:/*[^/:]*).*", r"\1", request.url)))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{url}?example=none")
    expect(page.get_by_text("Not a medical device").first).to_be_visible()
    _upload(page, nodule)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    _explain(page)
    results = page.locator("#results")
    expect(results.locator("[data-model=mst]")).to_contain_text("chest-ct-mst")
    expect(results.locator("[data-model=mst]")).to_contain_text("AUC")
    expect(results.locator("[data-model=resnet]")).to_contain_text("chest-ct-resnet")
    assert results.locator("[role=meter]").count() == 2
    expect(results).to_contain_text("centre of the scan")

    viewer = page.locator("[data-testid=viewer]")
    assert viewer.locator("[data-panel=mst]").count() == 1
    assert viewer.locator("[data-panel=resnet]").count() == 1
    before = len(hosts)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    start = int(viewer.get_attribute("data-slice") or -1)
    viewer.locator("[data-panel=mst]").hover()
    page.keyboard.press("ArrowRight")
    expect(viewer).to_have_attribute("data-slice", str(start + 1))
    page.mouse.wheel(0, 100)
    page.wait_for_timeout(300)
    assert int(viewer.get_attribute("data-slice") or -1) != start + 1
    assert [r for r in requests if "queue" in r or "file=" in r] == []
    assert len(hosts) == before
    assert all("127.0.0.1" in host or host.split(":")[0] in ("data", "blob") for host in hosts), hosts
    assert errors == []


def test_downloads_hold_the_result(page: Page, url: str, nodule: Path) -> None:
    page.goto(f"{url}?example=none")
    _upload(page, nodule)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    _explain(page)
    content = _download(page, "prediction.json")
    assert json.loads(content)["task"] == "chest-ct"
    assert nib.Nifti1Image.from_bytes(gzip.decompress(_download(page, "MST saliency"))).shape
    assert _download(page, "Report (PDF)").startswith(b"%PDF-")
    expect(page.locator("#downloads")).not_to_contain_text("DICOM")


def test_a_dicom_upload_offers_its_saliency_as_dicom(page: Page, url: str, tmp_path: Path) -> None:
    page.goto(f"{url}?example=none")
    _upload(page, *dicom_series(tmp_path / "dicom"))
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    _explain(page)
    with zipfile.ZipFile(io.BytesIO(_download(page, "Saliency (DICOM)"))) as archive:
        assert sorted(archive.namelist()) == [
            "mst_saliency.dcm",
            "mst_segmentation.dcm",
            "resnet_saliency.dcm",
            "resnet_segmentation.dcm",
        ]
        saliency = pydicom.dcmread(io.BytesIO(archive.read("mst_saliency.dcm")))
    assert saliency.PatientID == "12345"


def test_a_series_that_cannot_be_referred_to_is_told(page: Page, url: str, tmp_path: Path) -> None:
    paths = dicom_series(tmp_path / "dicom")
    for path in paths:
        data = pydicom.dcmread(path)
        del data.FrameOfReferenceUID
        data.save_as(path)
    page.goto(f"{url}?example=none")
    _upload(page, *paths)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    _explain(page)
    expect(page.get_by_text("the series has no FrameOfReferenceUID")).to_be_visible(timeout=30_000)
    assert _download(page, "Report (PDF)").startswith(b"%PDF-")
    expect(page.locator("#downloads")).not_to_contain_text("DICOM")


def test_a_click_in_the_scan_chooses_the_spot(page: Page, url: str, nodule: Path) -> None:
    page.goto(f"{url}?example=none")
    _upload(page, nodule)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    page.wait_for_timeout(800)
    plane = page.locator("[data-testid=viewer] [data-view-plane=axial] .mstv-frame")
    box = plane.bounding_box()
    assert box
    # Right of the middle on the screen is the patient's left: x below the centre's.
    page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
    field = page.locator("#center textarea, #center input").first
    expect(field).to_have_value(re.compile(r"^-?\d+\.\d, -?\d+\.\d, -?\d+\.\d$"))
    x = float(field.input_value().split(",")[0])
    assert x < example_scan("chest-round").center[0]
    _explain(page)
    expect(page.locator("#results")).to_contain_text("the chosen spot")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.nii.gz", b"", "empty"),
        ("notes.nii", b"these are notes, not a scan" * 40, "notes.nii"),
        ("truncated.nii.gz", None, "truncated.nii.gz"),
    ],
)
def test_bad_input_is_told_and_the_page_goes_on(
    page: Page, url: str, nodule: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    bad = tmp_path / name
    bad.write_bytes(nodule.read_bytes()[:4000] if content is None else content)
    page.goto(f"{url}?example=none")
    _upload(page, bad)
    alert = page.locator("#status [role=alert]")
    expect(alert).to_contain_text(message, timeout=20_000)
    assert "Traceback" not in alert.inner_text()
    page.click("#run")
    expect(alert).to_be_visible()
    page.goto(f"{url}?example=none")
    _upload(page, nodule)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    _explain(page)


def test_an_example_opens_on_its_lesion_and_another_scan_does_not(page: Page, url: str, nodule: Path) -> None:
    page.goto(f"{url}?example=none")
    page.get_by_role("button", name="Lobulated nodule").click()
    field = page.locator("#center textarea, #center input").first
    center = ", ".join(f"{v:.1f}" for v in example_center("chest-pleural"))
    expect(field).to_have_value(center, timeout=60_000)
    x = center.split(",")[0]
    expect(page.locator("[data-testid=viewer] .mstv-readout")).to_contain_text(f"x {x}", timeout=30_000)
    _explain(page)
    expect(page.locator("#results")).to_contain_text(f"the chosen spot, ({center} mm)")
    expect(page.locator("[data-control=threshold]")).to_have_attribute("aria-valuetext", "40% of max.")
    _upload(page, nodule)
    expect(page.locator("#status")).to_contain_text("simulated-chest-round", timeout=30_000)
    expect(field).to_have_value("")


def test_an_answer_on_what_is_no_ct_is_dimmed_and_told(page: Page, url: str, tmp_path: Path) -> None:
    page.emulate_media(reduced_motion="reduce")
    scan = example_scan("chest-round")
    nib.save(nib.Nifti1Image(np.abs(scan.voxels) + 1, scan.affine), tmp_path / "bright.nii.gz")
    page.goto(f"{url}?example=none")
    _upload(page, tmp_path / "bright.nii.gz")
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    _explain(page)
    expect(page.locator(".mst-question [role=alert]")).to_contain_text("do not trust the result")
    expect(page.locator(".mst-card").get_by_text("Do not trust this answer")).to_have_count(2)
    for dark in (False, True):
        page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
        colours = page.evaluate(
            "[...document.querySelectorAll('.mst-lane b')].map((e) => getComputedStyle(e).backgroundColor)"
        )
        assert len(set(colours)) == 1  # no model's answer stands out any more
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"]
    assert [rule["id"] for rule in found if rule["id"] not in GRADIO] == []


def test_a_second_scan_replaces_the_first(page: Page, url: str, nodule: Path, tmp_path: Path) -> None:
    page.goto(f"{url}?example=none")
    _upload(page, nodule)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    _explain(page)
    other = example_file("chest-spiculated", tmp_path)
    _upload(page, other)
    expect(page.locator("#status")).to_contain_text("simulated-chest-spiculated", timeout=30_000)
    expect(page.locator("#results .mst-predictions, [data-panel=mst]")).to_have_count(0)
    bad = tmp_path / "cut.nii.gz"
    bad.write_bytes(other.read_bytes()[:5000])
    _upload(page, bad)
    expect(page.locator("#status [role=alert]")).to_contain_text("cut.nii.gz", timeout=30_000)
    expect(page.locator("#scan")).not_to_contain_text("spiculated")


def test_choosing_a_side_moves_the_spot(page: Page, url: str) -> None:
    page.goto(f"{url}?example=none")
    page.locator("#task input[value='breast-mri']").check()
    page.get_by_role("button", name="Both breasts").click()
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    page.locator("#side input[value='left']").check()
    readout = page.locator("[data-testid=viewer] .mstv-readout")
    expect(readout).to_contain_text("x -81", timeout=30_000)
    expect(page.locator("[data-testid=viewer] .mstv-slice")).to_have_count(3)


def _explain_until(page: Page, shown: str, choose: Callable[[], None] = lambda: None) -> None:
    """Chooses and asks until something is shown: what is asked for while the page's fields still change belongs to
    other inputs, and is dropped."""
    for _ in range(6):
        choose()
        page.click("#run")
        try:
            page.wait_for_selector(shown, timeout=15_000)
            break
        except PlaywrightTimeoutError:
            continue
    expect(page.locator(shown)).to_be_visible()


def test_switching_the_study_raises_no_alert(page: Page, url: str, nodule: Path) -> None:
    """Without a scan and with one open, waiting for the page in between and not. An alert goes after some seconds."""
    page.add_init_script(
        "window.alerts = []; new MutationObserver(() => document.querySelectorAll('[data-testid=toast-body]')"
        ".forEach((toast) => alerts.push(toast.innerText))).observe(document, { childList: true, subtree: true });"
    )
    page.goto(f"{url}?example=none")
    studies = ("breast-mri", "chest-ct", "knee-mri", "chest-ct", "breast-mri", "knee-mri", "chest-ct")
    for study in studies:
        page.locator(f"#task input[value='{study}']").check()
    _upload(page, nodule)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    for study, side in (("breast-mri", True), ("chest-ct", False), ("breast-mri", True)):
        page.locator(f"#task input[value='{study}']").check()
        expect(page.locator("#side")).to_be_visible(visible=side, timeout=30_000)
        page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    for study in studies:
        page.locator(f"#task input[value='{study}']").check()
    page.get_by_role("button", name="Models").click()
    expect(page.locator("#checkpoint-mst input")).to_have_value("chest-ct-mst", timeout=30_000)
    _explain_until(
        page, "[data-testid=viewer][data-ready=true] [data-panel=mst]"
    )  # its answer comes after those of the switches
    assert page.evaluate("alerts") == []
    assert page.locator("#status [role=alert]").count() == 0


def test_a_checkpoint_that_is_not_in_the_list_is_told(page: Page, url: str, nodule: Path) -> None:
    page.goto(f"{url}?example=none")
    _upload(page, nodule)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    page.get_by_role("button", name="Models").click()
    field = page.locator("#checkpoint-mst input")

    def choose() -> None:
        field.fill("/etc")
        field.press("Enter")
        field.blur()

    _explain_until(page, "#status [role=alert]", choose)
    expect(page.locator("#status [role=alert]")).to_contain_text("choose one of the list")


def test_a_link_opens_the_same_view_of_the_same_scan(page: Page, url: str, nodule: Path) -> None:
    page.goto(url + "?example=none#plane=coronal&slice=50&threshold=0.99&map=patches")
    _upload(page, nodule)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    _explain(page)
    viewer = page.locator("[data-testid=viewer]")
    expect(viewer).to_have_attribute("data-plane", "coronal")
    expect(viewer.locator(".mstv-readout")).to_contain_text("Slice 50 of")
    viewer.locator("[data-panel=mst]").hover()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("location.hash.includes('slice=51')")
    assert "threshold=0.99" in page.evaluate("location.hash")


def test_a_study_without_a_model_shows_the_scan_and_says_how_to_get_one(page: Page, url: str) -> None:
    page.goto(f"{url}?example=none")
    page.locator("#task input[value='breast-mri']").check()
    expect(page.locator("#side")).to_be_visible()
    page.get_by_role("button", name="Both breasts").click()
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    page.click("#run")
    expect(page.locator("#results")).to_contain_text("train.py")
    expect(page.locator("[data-testid=viewer][data-ready=true]")).to_be_visible()


def test_a_phone_has_no_sideways_scrolling(page: Page, url: str, nodule: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{url}?example=none")
    _upload(page, nodule)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    _explain(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


# What axe-core finds in Gradio's own markup, which this page cannot change: a rule, and a part of the element's HTML.
GRADIO = {
    "nested-interactive": "icon-button",  # the file list's upload button holds the file input that it opens
}


def test_axe_finds_nothing_on_the_page(page: Page, url: str, nodule: Path) -> None:
    page.emulate_media(reduced_motion="reduce")  # colours half-way through a transition are nobody's
    found = []

    def look(when: str) -> None:
        for dark in (False, True):
            page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
            page.wait_for_timeout(250)
            report = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
            found.extend(
                f"{when}, {'dark' if dark else 'light'}: {rule['id']}: {node['html'][:300]} {node['failureSummary']}"
                for rule in report.response["violations"]
                for node in rule["nodes"]
                if GRADIO.get(rule["id"], "\n") not in node["html"]
            )

    page.goto(f"{url}?example=none")
    page.wait_for_selector("#run")
    page.get_by_role("button", name="Models").click()
    look("empty")
    _upload(page, nodule)
    page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
    _explain(page)
    expect(page.locator("#downloads").get_by_text("prediction.json")).to_be_enabled(timeout=30_000)
    look("results")
    assert not found, "\n".join(found)
    labels = page.evaluate("[...document.querySelectorAll('[aria-label]')].map((e) => e.ariaLabel)")
    assert [label for label in labels if re.fullmatch(r"\w+\.\w+", label)] == []  # an untranslated key


def test_the_web_api_gives_predictions(url: str, nodule: Path, tmp_path: Path) -> None:
    client = Client(url, verbose=False)
    record = client.predict(
        scan=[handle_file(nodule)], task="chest-ct", center="66.5,12,-117", mask=None, api_name="/predict"
    )
    assert record["region"]["center_mm"] == [66.5, 12.0, -117.0]
    assert set(record["models"]) == {"mst", "resnet"}
    scan = example_scan("chest-round")
    mask = np.zeros(scan.shape, np.uint8)
    mask[40:50, 50:60, 20:26] = 1
    nib.save(nib.Nifti1Image(mask, scan.affine), tmp_path / "mask.nii.gz")
    record = client.predict(
        scan=[handle_file(nodule)],
        task="chest-ct",
        center="",
        mask=handle_file(tmp_path / "mask.nii.gz"),
        api_name="/predict",
    )
    assert record["region"]["chosen_by"] == "mask"
    assert "pointing_game" in record["models"]["mst"]["metrics"]


def test_the_web_api_refuses_in_one_sentence(url: str, nodule: Path, tmp_path: Path) -> None:
    client = Client(url, verbose=False)
    bad = tmp_path / "bad.nii"
    bad.write_text("not a scan")
    with pytest.raises(AppError, match=r"bad\.nii"):
        client.predict(scan=[handle_file(bad)], task="chest-ct", center="", mask=None, api_name="/predict")
    with pytest.raises(AppError, match="three numbers"):
        client.predict(
            scan=[handle_file(nodule)], task="chest-ct", center="x", mask=None, api_name="/predict"
        )
    with pytest.raises(AppError, match="no study"):
        client.predict(scan=[handle_file(nodule)], task="foot", center="", mask=None, api_name="/predict")
