"""Many people at once: everybody gets their own answer, maps included, as if they were alone."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from gradio_client import Client, handle_file
from playwright.sync_api import Browser, Page, expect
from serving import serve_dashboard

import mst
from mst.data.examples import EXAMPLES, example_with_mask
from mst.scans import nifti_image, write_nifti

pytestmark = pytest.mark.browser

CHEST = [example.key for example in EXAMPLES if example.task == "chest-ct"]
CLOSE = 1e-6


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_dashboard() as address:
        yield address


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """A scan and its mask for each chest example, under names of their own."""
    folder = tmp_path_factory.mktemp("cases")
    made = []
    for key in CHEST:
        scan, mask = example_with_mask(key)
        write_nifti(scan.voxels, scan.affine, folder / f"{key}.nii.gz")
        nib.save(nifti_image(mask.astype(np.uint8), scan.affine), folder / f"{key}-mask.nii.gz")
        made.append((folder / f"{key}.nii.gz", folder / f"{key}-mask.nii.gz"))
    return made


@pytest.fixture(scope="module")
def alone(cases: list[tuple[Path, Path]]) -> list[dict[str, mst.Finding]]:
    """What each case comes to when nobody else is there."""
    return [mst.predict(mst.read_scan(scan), "chest-ct", mask=mask) for scan, mask in cases]


def check_record(answer: dict[str, Any], expected: dict[str, mst.Finding]) -> None:
    for name, result in expected.items():
        entry = answer["models"][name]
        for label, probability in result.probabilities.items():
            assert entry["probabilities"][label] == pytest.approx(probability, abs=CLOSE)
        if result.slice_weights is not None:
            np.testing.assert_allclose(entry["slice_weights"], result.slice_weights, atol=2 * CLOSE)
        # What is measured of the map, which is made of all its voxels.
        assert entry["metrics"] == pytest.approx(result.metrics, abs=CLOSE)


@pytest.mark.parametrize("clients", [2, 20])
def test_clients_of_the_web_api_at_once(
    clients: int,
    url: str,
    cases: list[tuple[Path, Path]],
    alone: list[dict[str, mst.Finding]],
) -> None:
    def ask(number: int) -> dict[str, Any]:
        scan, mask = cases[number % len(cases)]
        client = Client(url, verbose=False)
        return client.predict(
            [handle_file(str(scan))], "chest-ct", "", handle_file(str(mask)), api_name="/predict"
        )

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, range(clients)))
    for number, answer in enumerate(answers):
        check_record(answer, alone[number % len(alone)])


@pytest.mark.parametrize("sessions", [2, 6, pytest.param(20, marks=pytest.mark.slow)])
def test_sessions_of_the_page_at_once(
    sessions: int,
    browser: Browser,
    url: str,
    cases: list[tuple[Path, Path]],
    alone: list[dict[str, mst.Finding]],
) -> None:
    contexts = [browser.new_context(accept_downloads=True) for _ in range(sessions)]
    pages: list[Page] = [context.new_page() for context in contexts]
    for number, page in enumerate(pages):
        page.goto(f"{url}?example=none")
        scan, mask = cases[number % len(cases)]
        page.set_input_files("#scan input[type=file]", str(scan))
        page.set_input_files("#mask input[type=file]", str(mask))
    for number, page in enumerate(pages):
        page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
        expect(page.locator("#mask")).to_contain_text(cases[number % len(cases)][1].name.split(".")[0])
    for page in pages:
        page.click("#run")
    for number, page in enumerate(pages):
        page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=120_000)
        for name, label in (("mst", "MST saliency"), ("resnet", "ResNet saliency")):
            button = page.locator("#downloads").get_by_text(label)
            expect(button).to_be_enabled(timeout=60_000)
            with page.expect_download() as download:
                button.click()
            assert download.value.suggested_filename.startswith(
                cases[number % len(cases)][0].name.split(".")[0]
            )
            image = nib.Nifti1Image.from_bytes(gzip.decompress(download.value.path().read_bytes()))
            expected = alone[number % len(alone)][name].saliency
            # Within a millionth of the map's maximum, in the file's 32 bits.
            np.testing.assert_allclose(np.asarray(image.dataobj), expected, atol=CLOSE * expected.max())
    for context in contexts:
        context.close()
