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
from pypdf import PageObject, PdfReader
from reportlab.lib.pagesizes import A4
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

import mst
from mst.data.examples import example_scan
from mst.letters import FONT, style, write
from mst.pdf_report import SIDE, report_pdf
from mst.pictures import Pictures, letters, seen
from mst.results import agreement, display_window, prediction_record
from mst.scans import Scan
from mst.scans.boxes import on_box
from mst.tasks import TASKS, Plane, Window
from mst.words import DISCLAIMER, DOUBTFUL, LONGEST_NAME, SHOWN_FROM, clipped

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
        "slice weights",
        "Grey ground: slices of the lesion mask.",
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


def fonts_of(document: PdfReader) -> set[bytes | None]:
    """The fonts of the pages as TrueType; None for one that is not embedded."""
    fonts = [font.get_object() for page in document.pages for font in page["/Resources"]["/Font"].values()]
    looks = [font["/FontDescriptor"].get_object() if "/FontDescriptor" in font else {} for font in fonts]
    return {look["/FontFile2"].get_object().get_data() if "/FontFile2" in look else None for look in looks}


def has_its_fonts(document: PdfReader) -> bool:
    """Whether all fonts are embedded as TrueType."""
    return len(fonts_of(document)) > 0 and None not in fonts_of(document)


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
    alone = report(replace(scan, name=names[0]), results)
    assert has_its_fonts(alone)
    assert all(fonts_of(document) == fonts_of(alone) for document in documents)  # letter by letter


def test_a_font_is_cut_for_several_documents_at_once() -> None:
    accented = "".join(map(chr, range(0xC0, 0x180)))  # whose glyphs are made of others

    def made(number: int) -> set[bytes | None]:
        canvas = Canvas(file := io.BytesIO(), initialFontName=FONT)
        write(canvas, 0, 0, accented, style(10))
        canvas.save()
        return fonts_of(PdfReader(file))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            fonts = list(pool.map(made, range(64)))
    finally:
        sys.setswitchinterval(before)
    assert None not in fonts[0]
    assert fonts == [fonts[0]] * len(fonts)


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


@pytest.mark.parametrize(("plane", "ends"), [("axial", "RLAP"), ("coronal", "RLSI"), ("sagittal", "APSI")])
def test_slices_are_drawn_as_radiologists_see_them(plane: Plane, ends: str) -> None:
    shape = (25, 26, 27)
    x, y, z = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    scan = Scan(np.zeros(shape, np.float32), np.diag([1.0, 2.0, 3.0, 1.0]))
    bounds = np.array([(2, 24), (2, 25), (2, 23)])
    pictures = Pictures(scan, plane, Window("Any", -1.0, 1.0), None, bounds)
    box, other = pictures.boxes(13)
    assert np.array_equal(box, other)  # the region is nearly all there is, so it is not shown whole as well
    assert letters(plane) == ends
    grows = {"R": x, "L": -x, "A": y, "P": -y, "S": z, "I": -z}
    left, right, top, bottom = ends
    for edge, axis, step in ((left, 1, -1), (right, 1, 1), (top, 0, -1), (bottom, 0, 1)):
        shown = seen(on_box(grows[edge], (0, 0, 0), box), plane)[0]
        assert (np.diff(shown, axis=axis) == step).all()
    rows, columns = shown.shape
    spacing = {"R": 1.0, "A": 2.0, "S": 3.0}
    assert pictures.size_mm(box) == (columns * spacing[left], rows * spacing[top])
    # A region is outlined where its voxels are, in white on black.
    region = np.zeros(shape, bool)
    region[8:15, 5:16, 11:17] = True
    inside = seen(on_box(region, (0, 0, 0), box), plane)[0].repeat(20, axis=0).repeat(20, axis=1)
    drawn = pictures.pixels(box, (20 * columns, 20 * rows), None, [on_box(region, (0, 0, 0), box)])
    for colour, reach in ((1.0, 2), (0.0, 3)):
        found = np.argwhere(drawn == colour)
        assert (abs(found.min(axis=0) - np.argwhere(inside).min(axis=0)) <= reach).all()
        assert (abs(found.max(axis=0) - np.argwhere(inside).max(axis=0)) <= reach).all()


def test_a_slice_is_shown_whole_where_the_region_is_a_small_part(scan: Scan) -> None:
    bounds = np.array([(60, 80), (60, 80), (30, 40)])
    pictures = Pictures(scan.canonical(), "axial", Window("Any", 0.0, 1.0), None, bounds)
    whole, near, under_the_map = pictures.boxes(35)
    assert whole.tolist() == [[0, scan.shape[0]], [0, scan.shape[1]], [35, 36]]
    assert near.tolist() == under_the_map.tolist() == [[56, 84], [56, 84], [35, 36]]


def test_a_map_is_coloured_from_the_threshold_on() -> None:
    scan = Scan(np.full((8, 8, 3), 0.5, np.float32), np.eye(4))
    pictures = Pictures(scan, "axial", Window("Any", 0.0, 1.0), None, np.array([(0, 8), (0, 8), (0, 3)]))
    share = np.repeat(np.linspace(0, 1, 8)[:, None, None], 8, axis=1)
    drawn = pictures.pixels(pictures.boxes(1)[0], (8, 8), share, [])
    grey = (drawn == 0.5).all(axis=(0, 2))
    assert grey.tolist() == (share[::-1, 0, 0] < SHOWN_FROM).tolist()


def lines_of(page: PageObject) -> list[tuple[float, float, str]]:
    """The lines of a page that are not bold: where each ends and its baseline, in points, and what it says."""
    found: list[tuple[float, float, str]] = []

    def line(text: str, matrix: list, place: list, font: dict | None, size: float) -> None:
        if text.strip() and font and not font["/BaseFont"].endswith("Bold"):
            end = matrix[4] + place[4] + stringWidth(text.strip(), FONT, size)
            found.append((end, matrix[5] + place[5], text.strip()))

    page.extract_text(visitor_text=line)
    return found


@pytest.mark.parametrize("words", ["W" * 60, "a line of some words and " + "W" * 160, "i" * 900, "ab " * 300])
def test_long_text_is_whole_and_within_the_margins(scan: Scan, results: dict, words: str) -> None:
    named = replace(scan, name=f"Name {words}", notes=(f"Note {words}",))
    pages = report(named, results).pages
    lines = [line for page in pages for line in lines_of(page)]
    assert len(lines) > 50
    assert max(end for end, _, _ in lines) < A4[0] - SIDE + 0.5
    text = "".join("".join(page.extract_text() for page in pages).split())
    for whole in (named.notes[0], clipped(named.name, LONGEST_NAME)):
        assert "".join(whole.split()) in text


def test_a_name_is_shortened_at_the_head_of_a_page(scan: Scan, results: dict) -> None:
    def head(name: str) -> tuple[float, str]:
        lines = lines_of(report(replace(scan, name=name), results).pages[0])
        return next((end, text) for end, _, text in sorted(lines, key=lambda line: -line[1]) if "W" in text)

    assert head("W short")[1] == "W short"
    ends = {count: head("W" * count) for count in (50, 60, 160)}
    assert ends[50][1] == "W" * 50
    assert ends[160] == ends[60]  # as much as there is room for
    assert ends[60][1].endswith("W…")
    assert 0 < ends[60][0] - ends[50][0] < stringWidth("WWWWW", FONT, 7.5)


@pytest.mark.parametrize(
    "text",
    [
        "<b>bold</b> <para> </para> &amp; &#0; <img src='x'/> <!-- ]]>",
        "\N{MATHEMATICAL DOUBLE-STRUCK CAPITAL X} \N{GRINNING FACE} Ωμέγα Иванов é",
        "\N{CJK UNIFIED IDEOGRAPH-4E2D}\N{CJK UNIFIED IDEOGRAPH-6587}",  # the font lacks them
        "שלום",
    ],
)
def test_text_is_shown_as_it_stands_and_can_be_searched(text: str, scan: Scan, results: dict) -> None:
    document = report(replace(scan, name=f"name {text}", notes=(f"note {text}",)), results)
    assert text_of(document).count(text) == len(document.pages) + 2
    assert has_its_fonts(document)


def test_no_text_stops_a_report(scan: Scan, results: dict) -> None:
    pieces = ["\xad", "a\xad", "\u200b", "\u2028", "\u0301", "\ufeff", "\ud800", "\x00", "\x0b", "\u202e"]
    pieces += ["%", "\\", "{}", "<?x", "<![CDATA[", "&lt;", "&#x;", "</para>", "<br/>"]
    pieces += ["".join(map(chr, range(start, start + 999))) for start in (0, 0x590, 0x2000, 0x1D400, 0x1F300)]
    for piece in pieces[::6]:
        odd = replace(scan, name=300 * piece, notes=tuple(300 * piece for piece in pieces))
        assert len(report(odd, results).pages) > 2


def test_what_fits_on_no_page_goes_on_on_the_next(scan: Scan, results: dict, mask: np.ndarray) -> None:
    endless = {
        name: replace(result, checkpoint="C" * 5000, title="T" * 5000, unfamiliar=("U" * 900,) * 9)
        for name, result in results.items()
    }
    record = prediction_record(scan, CHEST, endless)
    record["scan"]["warnings"] = ["X" * 3000] * 9
    record["models"]["mst"]["warnings"] = ["Y" * 3000] * 9
    content = report_pdf(record, scan, CHEST, endless, display_window(scan, CHEST), mask)
    text = "".join("".join(page.extract_text() for page in PdfReader(io.BytesIO(content)).pages).split())
    assert text.count("X") > 9 * 990
    assert text.count("Y") > 9 * 990


def steps(scan: Scan, results: dict) -> int:
    """How many calls making a report takes, into libraries as well."""
    count = 0

    def seen_call(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    record = prediction_record(scan, CHEST, results)
    window = display_window(scan, CHEST)
    before = sys.getprofile()
    sys.setprofile(seen_call)
    try:
        report_pdf(record, scan, CHEST, results, window)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize(
    "piece", ["W", "i", "ab ", "x \n", "\N{CJK UNIFIED IDEOGRAPH-4E2D}", "<b>", "&amp;", "a\xad"]
)
def test_text_costs_no_more_than_its_letters(piece: str, scan: Scan, results: dict) -> None:
    def cost(letters: int) -> int:
        return steps(replace(scan, notes=((piece * letters)[:letters],)), results)

    assert cost(900) - cost(1) < 250 * 900


def test_no_text_of_a_file_makes_a_report_long(scan: Scan, results: dict) -> None:
    known = replace(results["mst"], validation={"auc": 0.8, "protocol": "p" * 100_000})
    odd = replace(scan, name="W" * 100_000, notes=("N" * 100_000,))
    record = prediction_record(odd, CHEST, {"mst": known})
    assert record["scan"]["name"] == clipped(odd.name, LONGEST_NAME)
    assert len(str(record)) < 8_000
    assert len(report(odd, {"mst": known}).pages) <= 3
