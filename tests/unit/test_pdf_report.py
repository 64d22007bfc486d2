"""The PDF report: its pages, its text and its slices."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from threading import Barrier
from types import FrameType

import numpy as np
import pytest
from pypdf import PdfReader

import mst
from mst.data.examples import example_scan
from mst.pdf_report import _lines, _shortened, _View, report_pdf
from mst.preprocess import AXES
from mst.results import agreement, display_window, prediction_record
from mst.scans import Scan
from mst.tasks import TASKS, Plane
from mst.words import DISCLAIMER, DOUBTFUL, LONGEST_NAME, LONGEST_TEXT, clipped

CHEST = TASKS["chest-ct"]


@pytest.fixture(scope="module")
def scan() -> Scan:
    return replace(example_scan("chest-round"), modality="CT", notes=("Of 3 series, the longest was taken.",))


@pytest.fixture(scope="module")
def mask(scan: Scan) -> np.ndarray:
    mask = np.zeros(scan.shape, bool)
    mask[60:68, 60:68, 30:36] = True
    return mask


@pytest.fixture(scope="module")
def results(scan: Scan, mask: np.ndarray) -> dict:
    return mst.predict(scan, mask=mask)


def report(scan: Scan, results: dict, mask: np.ndarray | None = None) -> PdfReader:
    record = prediction_record(scan, CHEST, results)
    content = report_pdf(record, scan, CHEST, results, display_window(scan, CHEST), mask)
    return PdfReader(io.BytesIO(content))


def text_of(document: PdfReader) -> str:
    return " ".join(" ".join(page.extract_text() for page in document.pages).split())


def test_the_report_says_what_it_should(scan: Scan, results: dict, mask: np.ndarray) -> None:
    document = report(scan, results, mask)
    assert len(document.pages) == 2
    for page in document.pages:
        assert [round(float(v)) for v in page.mediabox[2:]] == [595, 842]  # A4 in points
        assert DISCLAIMER in " ".join(page.extract_text().split())
    text = text_of(document)
    for result in results.values():
        assert result.checkpoint in text
        assert result.title in text
        for probability in result.probabilities.values():
            assert f"{100 * probability:.1f}%" in text
        low, high = result.validation["auc_ci95"]
        assert f"AUC {result.validation['auc']:.2f} (95% CI {low:.2f} to {high:.2f})" in text
        assert f"{100 * result.metrics['share_inside']:.1f}%" in text
    for piece in (
        CHEST.title,
        CHEST.question,
        "centre of the lesion mask",
        "Lung window, -1350 to 150 HU",
        "Each map is coloured above 40% of its maximum",
        "The map's maximum lies within 2 mm of the lesion",
        "outline: lesion mask",
        "Of 3 series, the longest was taken.",
        "Against the lesion mask",
        f"version {mst.__version__}",
        str(date.today().year),
        "20 mm",
    ):
        assert piece in text, piece
    first = document.pages[0].extract_text().replace("A nodule is seen", "").split()
    for letter in "RLAP":  # in the whole slice, its region, and the map over it, of two models
        assert first.count(letter) == 6, letter
    assert document.metadata is not None
    assert document.metadata.title == f"{CHEST.title} - {scan.name}"
    assert "Not a medical device" in str(document.metadata.subject)


def has_its_fonts(document: PdfReader) -> bool:
    """Whether all fonts are embedded as TrueType."""
    fonts = [font.get_object() for page in document.pages for font in page["/Resources"]["/Font"].values()]
    descendants = [font["/DescendantFonts"][0].get_object() for font in fonts if "/DescendantFonts" in font]
    return 0 < len(fonts) == len(descendants) and all(
        "/FontFile2" in font["/FontDescriptor"].get_object() for font in descendants
    )


def test_fonts_are_embedded(scan: Scan, results: dict) -> None:
    assert has_its_fonts(report(scan, results))


def test_reports_that_are_made_at_once_are_each_right(scan: Scan, results: dict) -> None:
    names = [f"patient {letter} $x^{letter}$" for letter in "ABCDEF"]
    scans = [replace(scan, name=name) for name in names]
    together = Barrier(len(scans))

    def made(one: Scan) -> PdfReader:
        together.wait()
        return report(one, results)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that each thread meets the others in all they do
    try:
        with ThreadPoolExecutor(len(scans)) as pool:
            documents = list(pool.map(made, scans))
    finally:
        sys.setswitchinterval(before)
    for name, document in zip(names, documents, strict=True):
        assert has_its_fonts(document)
        text = text_of(document)
        assert text.count(name) == len(document.pages) + 1  # at each foot, and in the table
        assert [other for other in names if other in text] == [name]
    assert has_its_fonts(report(scan, results))  # nothing of their settings is left behind


def test_a_model_in_the_msts_place_has_its_own_name(scan: Scan, results: dict) -> None:
    title = "Medical Slice Transformer with a 2D ResNet"
    renamed = results | {"mst": replace(results["mst"], title=title)}
    text = text_of(report(scan, renamed)).replace(agreement(CHEST, renamed), "")
    assert text.count(title) == 2  # whole, above its answer too
    assert "MST (2D ResNet) attention: axial slice" in text
    assert "Seen by MST (2D ResNet)" in text


def test_an_answer_that_is_not_to_be_trusted_says_so_beside_it(scan: Scan, results: dict) -> None:
    plain = text_of(report(scan, results))
    assert DOUBTFUL not in plain
    pages = report(replace(scan, modality="MR"), results).pages
    first = " ".join(pages[0].extract_text().split())
    warning = "The file says MR, but Chest CT: lung nodule expects CT: do not trust the result."
    assert first.index(warning) < first.index("The models disagree" if "disagree" in first else "Both models")
    assert first.count(DOUBTFUL) == len(results)
    assert warning not in " ".join(pages[1].extract_text().split())  # among the notes it would be missed


def test_one_model_without_a_mask_is_a_report_too(scan: Scan, results: dict) -> None:
    result = results["resnet"]
    alone = {"resnet": replace(result, maps=(replace(result.map, metrics=None),), validation={})}
    text = text_of(report(replace(scan, notes=()), alone))
    assert "No measured AUC" in text
    assert "Against the lesion mask" not in text
    assert "There is no checkpoint of the Medical Slice Transformer" in " ".join(text.split())
    assert "Both models" not in text


def test_a_map_that_is_zero_and_long_or_odd_text_do_no_harm(scan: Scan, results: dict) -> None:
    result = results["resnet"]
    blank = replace(result, maps=(replace(result.map, values=np.zeros_like(result.map.values)),))
    odd = replace(
        scan, name="$x^2$ \\frac <b> " + "W" * 200, notes=tuple(f"Note {n}. " * 12 for n in range(20))
    )
    document = report(odd, {"mst": results["mst"], "resnet": blank})
    assert len(document.pages) > 2
    assert all(DISCLAIMER in " ".join(page.extract_text().split()) for page in document.pages)
    text = text_of(document)
    assert "$x^2$ \\frac <b>" in text
    assert "Note 19." in text


@pytest.mark.parametrize(("plane", "letters"), [("axial", "RLAP"), ("coronal", "RLSI"), ("sagittal", "APSI")])
def test_slices_are_drawn_as_radiologists_see_them(plane: Plane, letters: str) -> None:
    shape = (5, 6, 7)
    x, y, z = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    field = np.array([(1, 5), (1, 6), (1, 7)])
    view = _View(AXES[plane], 3, field, (1.0, 2.0, 3.0))
    assert "".join(view.letters) == letters
    grows = {"R": x, "L": -x, "A": y, "P": -y, "S": z, "I": -z}
    left, right, top, bottom = view.letters
    assert (np.diff(view.cut(grows[left]), axis=1) == -1).all()
    assert (np.diff(view.cut(grows[right]), axis=1) == 1).all()
    assert (np.diff(view.cut(grows[top]), axis=0) == -1).all()
    assert (np.diff(view.cut(grows[bottom]), axis=0) == 1).all()
    rows, columns = view.cut(x).shape
    wide, high = view.size_mm
    spacing = {"R": 1.0, "A": 2.0, "S": 3.0}
    assert wide == columns * spacing[left]
    assert high == rows * spacing[top]
    bounds = np.array([(2, 4), (2, 5), (2, 6)])
    inside = np.zeros(shape, bool)
    inside[2:4, 2:5, 2:6] = True
    found = np.argwhere(view.cut(inside))
    box_left, box_top, box_wide, box_high = view.box_mm(bounds)
    assert box_left == found[:, 1].min() * spacing[left]
    assert box_top == found[:, 0].min() * spacing[top]
    assert box_wide == np.ptp(found[:, 1]) * spacing[left] + spacing[left]
    assert box_high == np.ptp(found[:, 0]) * spacing[top] + spacing[top]


def test_lines_are_broken_where_they_have_to_be() -> None:
    assert _lines("", 50, 8) == [""]
    assert _lines("two words", 500, 8) == ["two words"]
    lines = _lines("a line of some words and " + "W" * 60, 50, 8)
    assert len(lines) > 2
    assert "".join(lines).replace(" ", "") == "alineofsomewordsand" + "W" * 60


def steps(text: str) -> int:
    """How many calls of the module breaking a text into lines takes, into libraries as well."""
    count = 0

    def seen(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call") and frame.f_code.co_filename == _lines.__code__.co_filename

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        _lines(text, 50, 8)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("piece", ["W", "i", "ab ", "x \n", "\N{CJK UNIFIED IDEOGRAPH-4E2D}"])
def test_lines_cost_no_more_than_their_letters(piece: str) -> None:
    assert steps(piece * 800) < 5 * steps(piece * 200)


def test_no_text_of_a_file_makes_a_report_long(scan: Scan, results: dict) -> None:
    assert sum(map(len, _lines("W" * 100_000, 50, 8))) == LONGEST_TEXT
    assert len(_shortened("W" * 100_000, 50, 8)) < 40
    known = replace(results["mst"], validation={"auc": 0.8, "protocol": "p" * 100_000})
    odd = replace(scan, name="W" * 100_000, notes=("N" * 100_000,))
    record = prediction_record(odd, CHEST, {"mst": known})
    assert record["scan"]["name"] == clipped(odd.name, LONGEST_NAME)
    assert len(str(record)) < 8_000
    assert len(report(odd, {"mst": known}).pages) <= 3


def test_a_shortened_text_fits_and_keeps_what_it_can() -> None:
    assert _shortened("short", 50, 8) == "short"
    assert _shortened("", 50, 8) == ""
    cut = _shortened("W" * 60, 50, 8)
    assert len(_lines(cut, 50, 8)) == 1
    assert len(_lines(cut[:-1] + "WW", 50, 8)) == 2
