"""The same attacks through the doors that strangers use: the web API and the page."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from attacks.crafted import CRASHES, READS_OTHERS, damaged_mha
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from playwright.sync_api import Page, expect
from serving import serve_dashboard

from mst.data.examples import example_file
from mst.scans import Scan, read_scan, write_nifti

pytestmark = pytest.mark.browser

MARK = b"a secret of the server "
ALERT = "[role=alert]"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_dashboard(MST_SECRET=MARK.decode()) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the server with marked bytes, beside the uploads."""
    path = tmp_path_factory.mktemp("server") / "secret"
    path.write_bytes(MARK * 400)
    return path


def holds_the_mark(scan: Scan) -> bool:
    return MARK[:8] in scan.voxels.astype(np.uint8).tobytes(order="F")


def ask(client: Client, files: list[Path], mask: Path | None = None) -> str:
    """What the API answers, a prediction or an error, as text."""
    try:
        answer = client.predict(
            [handle_file(str(file)) for file in files],
            "chest-ct",
            "",
            handle_file(str(mask)) if mask else None,
            api_name="/predict",
        )
    except AppError as error:
        return f"refused: {error}"
    return str(answer)


def gives_nothing_away(answer: str, target: Path) -> bool:
    """No byte of the marked file, as text or in base64, and no path of the server."""
    packed = [base64.b64encode(MARK[start:])[4:20].decode() for start in range(3)]
    return not any(word in answer for word in (MARK.decode()[:12], str(target), "/tmp", "/proc", *packed))


def test_the_api_opens_no_other_file_and_lives_on(
    client: Client, target: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wrong = []
    for name, make in (READS_OTHERS | CRASHES).items():
        files = make(tmp_path_factory.mktemp("upload"), target)
        answer = ask(client, files)
        if not gives_nothing_away(answer, target) or (
            "refused" not in answer and "probabilities" not in answer
        ):
            wrong.append((name, answer))
    assert not wrong
    example = example_file("chest-round", tmp_path_factory.mktemp("example"))
    assert "probabilities" in ask(client, [example])


def test_a_mask_is_read_with_the_same_care(
    client: Client, target: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    example = example_file("chest-round", tmp_path_factory.mktemp("example"))
    for name in ("mha: Comment in front of the path", "HDF5 in mha", "nrrd: empty content"):
        (file,) = READS_OTHERS[name](tmp_path_factory.mktemp("upload"), target)
        answer = ask(client, [example], file)
        assert "refused: The mask cannot be used" in answer, (name, answer)
        assert gives_nothing_away(answer, target)


@pytest.mark.parametrize(
    "named",
    ["{target}", "file://{target}", "/proc/self/environ", "/etc/hostname", "../../../../../../{target}"],
)
def test_the_api_takes_no_file_that_was_not_uploaded(named: str, client: Client, target: Path) -> None:
    given = {"path": named.format(target=target), "meta": {"_type": "gradio.FileData"}, "orig_name": "a.nii"}
    try:
        answer = str(client.predict([given], "chest-ct", "", None, api_name="/predict"))
    except Exception as error:  # the client wraps what the server answers in several kinds
        answer = f"refused: {error}"
    assert "refused" in answer
    assert "probabilities" not in answer
    assert MARK.decode() not in answer


def test_a_damaged_upload_holds_nothing_of_the_one_before(client: Client, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-900, 900, (24, 24, 24)).astype(np.float32)
    write_nifti(voxels, np.eye(4), tmp_path / "before.nii.gz")
    for _ in range(2):
        assert "probabilities" in ask(client, [tmp_path / "before.nii.gz"])
        assert "refused" in ask(client, [damaged_mha(tmp_path)])


def test_uploads_that_crash_a_decoder_disturb_nobody(
    client: Client, target: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A good upload beside many bad ones gets the answer that it gets alone."""
    example = example_file("chest-round", tmp_path_factory.mktemp("example"))
    alone = ask(client, [example])
    bad = [CRASHES[name](tmp_path_factory.mktemp("upload"), target) for name in list(CRASHES)[:8]]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda files: ask(client, files), [*bad[:4], [example], *bad[4:]]))

    def without_seconds(answer: str) -> str:
        return "".join(part.split(",", 1)[-1] for part in answer.split("'seconds'"))

    assert without_seconds(answers[4]) == without_seconds(alone)


def test_the_page_shows_no_other_file(
    page: Page, url: str, target: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for number, (name, make) in enumerate(READS_OTHERS.items()):
        page.goto(f"{url}?example=none")
        # Each under a name of its own, so that what the page says can be told from what it said before.
        files = [
            file.rename(file.with_name(f"attack{number}{file.suffix}"))
            for file in make(tmp_path_factory.mktemp("upload"), target)
        ]
        page.set_input_files("#scan input[type=file]", [str(file) for file in files])
        said = page.locator("#status").get_by_text(f"attack{number}")
        expect(said.first, name).to_be_visible(timeout=30_000)
        assert gives_nothing_away(page.locator("#status").inner_text(), target), name
        assert MARK.decode() not in page.content(), name
        # What is shown all the same is what was uploaded, which holds hardly anything but zeros.
        if page.locator(ALERT).count() == 0:
            assert not holds_the_mark(read_scan(files)), name
