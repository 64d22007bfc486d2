"""The PDF report: its pages, its text and its slices."""

import io
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from pypdf import PdfReader

import mst
from mst.data.examples import example_scan
from mst.pdf_report import _lines, _View, report_pdf
from mst.preprocess import AXES
from mst.results import display_window, prediction_record
from mst.scans import Scan
from mst.tasks import TASKS, Plane
from mst.words import DISCLAIMER

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
        "outline: lesion mask",
        "Of 3 series, the longest was taken.",
        "Against the lesion mask",
        f"version {mst.__version__}",
        str(date.today().year),
        "20 mm",
    ):
        assert piece in text, piece
    first = document.pages[0].extract_text().split()
    for letter in "RLAP":  # in the whole slice, its region, and the map over it, of two models
        assert first.count(letter) == 6, letter
    assert document.metadata is not None
    assert document.metadata.title == f"{CHEST.title} - {scan.name}"
    assert "Not a medical device" in str(document.metadata.subject)


def test_fonts_are_embedded(scan: Scan, results: dict) -> None:
    for page in report(scan, results).pages:
        fonts = page["/Resources"]["/Font"].values()
        assert fonts
        for font in fonts:
            descriptor = font.get_object()["/DescendantFonts"][0].get_object()["/FontDescriptor"].get_object()
            assert "/FontFile2" in descriptor


def test_one_model_without_a_mask_is_a_report_too(scan: Scan, results: dict) -> None:
    alone = {"resnet": replace(results["resnet"], metrics=None, validation={})}
    text = text_of(report(replace(scan, notes=()), alone))
    assert "No measured AUC" in text
    assert "Against the lesion mask" not in text
    assert "Notes on the scan" not in text
    assert "Both models" not in text


def test_a_map_that_is_zero_and_long_or_odd_text_do_no_harm(scan: Scan, results: dict) -> None:
    blank = replace(results["resnet"], saliency=np.zeros(scan.shape, np.float32))
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
