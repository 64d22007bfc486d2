"""Whether a model sees anything to classify, and how both models agree: the same words wherever answers are shown."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from pypdf import PdfReader
from small_study import write_cases, write_lesion_models

import mst
from mst.cli import main
from mst.dashboard.cards import prediction_cards
from mst.dashboard.events import checkpoint_choices, predict_files
from mst.data.examples import example_file
from mst.findings import Finding
from mst.models import ResNet3D
from mst.models.loading import load_model, save_model
from mst.results import agreement, answer_notes, answer_warnings, prediction_record, write_results
from mst.scans import Scan
from mst.tasks import TASKS
from mst.words import DOUBTFUL, PRINT_COLORS

CHEST = TASKS["chest-ct"]
NONE = "No nodule is seen in this region; the answer means nothing."
SEEN = "A nodule is seen here (99%)."


@pytest.fixture(scope="module")
def nodule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_file("chest-round", tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def scan(nodule: Path) -> Scan:
    return mst.read_scan(nodule)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MST that sees a nodule everywhere, and a ResNet that sees none anywhere."""
    return write_lesion_models(tmp_path_factory.mktemp("models"), mst=True, resnet=False)


@pytest.fixture(scope="module")
def results(scan: Scan, folder: Path) -> dict[str, Finding]:
    models = {name: folder / f"chest-ct-{name}" for name in ("mst", "resnet")}
    return mst.predict(scan, models=models)


def plain(result: Finding) -> Finding:
    """The same of a model that cannot tell whether there is a lesion."""
    return replace(result, lesion_probability=None, lesion_threshold=None)


def saying(result: Finding, label: str, probability: float, other: str = "") -> Finding:
    classes = {
        label: probability,
        other or ("benign" if label == "malignant" else "malignant"): 1 - probability,
    }
    return replace(plain(result), prediction=label, probabilities=classes)


def test_what_is_said_of_one_model(results: dict[str, Finding]) -> None:
    assert answer_notes(CHEST, results["mst"]) == [SEEN]
    assert answer_warnings(CHEST, results["mst"]) == []
    assert answer_notes(CHEST, results["resnet"]) == []
    assert answer_warnings(CHEST, results["resnet"]) == [NONE]
    cannot_tell = plain(results["resnet"])
    assert answer_notes(CHEST, cannot_tell) == answer_warnings(CHEST, cannot_tell) == []
    breast = answer_warnings(TASKS["breast-mri"], results["resnet"])
    assert breast == ["No lesion is seen in this region; the answer means nothing."]


def test_how_the_models_agree(results: dict[str, Finding]) -> None:
    transformer, resnet = results["mst"], results["resnet"]
    sure = saying(transformer, "malignant", 0.81)
    sees = replace(transformer, prediction="benign", probabilities={"benign": 0.62, "malignant": 0.38})
    blind = replace(transformer, lesion_probability=0.1)
    for first, second, sentence in (
        (sure, saying(resnet, "malignant", 0.74), "Both models say malignant (81% and 74%)."),
        (
            sure,
            saying(resnet, "benign", 0.999),
            "The models disagree: the Medical Slice Transformer says malignant (81%), the 3D ResNet says benign (over "
            "99%).",
        ),
        (
            sure,
            resnet,
            "The 3D ResNet sees no nodule in this region; the Medical Slice Transformer says malignant (81%).",
        ),
        (
            sees,
            resnet,
            "The 3D ResNet sees no nodule in this region; the Medical Slice Transformer sees one and says benign "
            "(62%).",
        ),
        (
            blind,
            saying(resnet, "benign", 0.6),
            "The Medical Slice Transformer sees no nodule in this region; the 3D ResNet says benign (60%).",
        ),
        (blind, resnet, "Neither model sees a nodule in this region; their answers mean nothing."),
    ):
        assert agreement(CHEST, {"mst": first, "resnet": second}) == sentence


def test_agreement_in_other_studies_and_of_one_model(results: dict[str, Finding]) -> None:
    breast, knee = TASKS["breast-mri"], TASKS["knee-mri"]
    first = saying(results["mst"], "no cancer", 0.9, "cancer")
    second = saying(results["resnet"], "no cancer", 0.55, "cancer")
    assert agreement(breast, {"mst": first, "resnet": second}) == "Both models say no cancer (90% and 55%)."
    first, second = saying(first, "tear", 0.9, "no tear"), saying(second, "no tear", 0.6, "tear")
    titled = replace(first, title="Medical Slice Transformer with a 2D ResNet")
    assert agreement(knee, {"mst": titled, "resnet": second}) == (
        "The models disagree: the Medical Slice Transformer with a 2D ResNet says tear (90%), the 3D ResNet says no "
        "tear (60%)."
    )
    untitled = replace(first, title="")
    blind = replace(results["resnet"], title="")
    assert agreement(breast, {"mst": untitled, "resnet": blind}) == (
        "The 3D ResNet sees no lesion in this region; the Medical Slice Transformer says tear (90%)."
    )
    assert agreement(knee, {"mst": first}) == agreement(knee, {"resnet": blind}) == agreement(knee, {}) == ""


def test_the_record_says_it(scan: Scan, results: dict[str, Finding]) -> None:
    record = prediction_record(scan, CHEST, results)
    assert record["agreement"] == agreement(CHEST, results)
    entry = record["models"]["mst"]
    assert (entry["lesion_probability"], entry["notes"]) == (0.9933, [SEEN])
    assert "warnings" not in entry
    entry = record["models"]["resnet"]
    assert (entry["lesion_probability"], entry["warnings"]) == (0.0067, [NONE])
    assert "notes" not in entry
    record = prediction_record(scan, CHEST, {"mst": plain(results["mst"])})
    assert "agreement" not in record
    assert not {"lesion_probability", "notes", "warnings"} & set(record["models"]["mst"])


def test_the_web_api_says_it(nodule: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MST_CHECKPOINTS", str(folder))
    record = predict_files([str(nodule)], "chest-ct", "", None)
    assert record["agreement"].startswith("The 3D ResNet sees no nodule in this region; ")
    assert record["models"]["resnet"]["warnings"] == [NONE]


def card_of(page: str, start: str, title: str) -> str:
    """The part of a page that is one model's."""
    cards = [start + part.split("</article>")[0] for part in page.split(start)[1:]]
    return next(card for card in cards if f">{title}<" in card)


@pytest.mark.parametrize("place", ["page", "report"])
def test_the_answer_of_the_model_that_sees_none_alone_is_dimmed(
    place: str, scan: Scan, results: dict[str, Finding], tmp_path: Path
) -> None:
    def shown(results: dict[str, Finding]) -> str:
        if place == "page":
            return prediction_cards(CHEST, results)
        page = write_results(tmp_path, scan, CHEST, results)["report.html"].read_text(encoding="utf-8")
        return page[page.index("<body") : page.index('<section class="mst-viewer"')]

    page = shown(results)
    assert page.index(agreement(CHEST, results)) < page.index("<article")
    seeing = card_of(page, "<article", "Medical Slice Transformer")
    blind = card_of(page, "<article", "3D ResNet")
    assert "doubtful" in blind.split(">")[0]
    assert blind.index(NONE) < blind.index("benign")
    assert SEEN in seeing
    assert "doubt" not in seeing
    assert NONE not in seeing
    # On the page its dot on the axis as well.
    assert page.count("doubtful") == (2 if place == "page" else 1)
    assert page.count(NONE) == 1
    page = shown({name: plain(result) for name, result in results.items()})
    assert "doubtful" not in page
    assert " is seen " not in page


def test_the_pdf_says_it_beside_the_answer(scan: Scan, results: dict[str, Finding], tmp_path: Path) -> None:
    def document(scan: Scan, results: dict[str, Finding]) -> PdfReader:
        return PdfReader(write_results(tmp_path, scan, CHEST, results)["report.pdf"])

    def pages(scan: Scan, results: dict[str, Finding]) -> list[str]:
        return [" ".join(page.extract_text().split()) for page in document(scan, results).pages]

    def coloured(results: dict[str, Finding]) -> list[str]:
        """The models whose own colour is on the first page."""
        drawn = document(scan, results).pages[0].get_contents().get_data().decode("latin-1")
        fills = [tuple(map(float, fill)) for fill in re.findall(r"([\d.]+) ([\d.]+) ([\d.]+) rg", drawn)]
        return [
            name
            for name, colour in PRINT_COLORS.items()
            if any(np.allclose(to_rgb(colour), f, atol=0.01) for f in fills)
        ]

    assert coloured(results) == ["mst"]
    assert coloured({name: plain(result) for name, result in results.items()}) == ["mst", "resnet"]
    first, _ = pages(scan, results)
    assert first.index(agreement(CHEST, results)) < first.index(SEEN) < first.index(NONE)
    assert first.index(NONE) < first.index("Where each model looked")
    assert first.count(NONE) == first.count(SEEN) == 1
    assert DOUBTFUL not in first
    # On a scan that is not to be trusted either, both are said.
    first, _ = pages(replace(scan, modality="MR"), results)
    assert first.count(DOUBTFUL) == 2
    assert first.count(NONE) == 1
    first, _ = pages(scan, {"resnet": results["resnet"]})
    assert first.count(NONE) == 1
    first, _ = pages(scan, {name: plain(result) for name, result in results.items()})
    assert " is seen " not in first


def test_the_command_says_it(
    nodule: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("MST_CHECKPOINTS", str(folder))
    assert main(["predict", str(nodule), "--task", "chest-ct", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    record = json.loads((tmp_path / "prediction.json").read_text())
    said = [f"note: Medical Slice Transformer: {SEEN}", f"warning: 3D ResNet: {NONE}", record["agreement"]]
    assert [line for line in lines if line in said] == said


def test_a_cohort_has_columns_for_it_where_it_is_known(
    folder: Path, small_resnet: ResNet3D, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("MST_CHECKPOINTS", str(folder))
    cases = write_cases(tmp_path / "cases", 2) / "cases.csv"
    command = ["predict", "--manifest", str(cases), "--out", str(tmp_path / "out")]

    def rows() -> list[dict[str, str]]:
        with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    assert main(command) == 0
    told = capsys.readouterr().out
    assert "0 benign, 0 malignant, 2 without a nodule that it sees" in told
    assert told.count("that it sees") == 1
    for row in rows():
        assert float(row["mst_lesion_probability"]) == pytest.approx(0.9933, abs=1e-4)
        assert float(row["resnet_lesion_probability"]) == pytest.approx(0.0067, abs=1e-4)
        assert (row["mst_lesion_seen"], row["resnet_lesion_seen"]) == ("1", "0")

    # From which probability on a nodule is seen is a setting of the model's: another one, and the rows are others.
    model = load_model(folder / "chest-ct-resnet")
    model.set_lesion_threshold(0.001)
    other = save_model(model, tmp_path / "other")
    assert main([*command, "--resnet", str(other)]) == 0
    assert [row["resnet_lesion_seen"] for row in rows()] == ["1", "1"]

    # A model that cannot tell gets no column.
    save_model(small_resnet, tmp_path / "plain")
    assert main([*command, "--resnet", str(tmp_path / "plain")]) == 0
    assert {"mst_lesion_probability", "mst_lesion_seen"} <= set(rows()[0])
    assert not {"resnet_lesion_probability", "resnet_lesion_seen"} & set(rows()[0])


def test_a_checkpoint_that_was_timed_says_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lesion_models(tmp_path, mst=True, resnet=True)
    monkeypatch.setenv("MST_CHECKPOINTS", str(tmp_path))
    figures = tmp_path / "chest-ct-mst" / "metrics.json"
    figures.write_text('{"seconds": {"cpu_cores": 2, "median": 3.2}}')
    shutil.copytree(figures.parent, tmp_path / "other")
    (tmp_path / "other" / "metrics.json").write_text('{"seconds": {"cpu_cores": 1, "median": 0.4}}')
    offered = checkpoint_choices(CHEST, "mst")
    assert offered["choices"] == ["chest-ct-mst", "other"]
    assert offered["info"] == "chest-ct-mst: about 3 s on 2 CPU cores; other: under 1 s on 1 CPU core"
    assert checkpoint_choices(CHEST, "resnet")["info"] is None
    # Where another study has none at hand, nothing of this one's stays.
    assert checkpoint_choices(TASKS["knee-mri"], "mst")["info"] is None
    for text in ('{"seconds": null}', "{}", '{"seconds": 3}'):  # what is damaged is told when it is used
        figures.write_text(text)
        assert checkpoint_choices(CHEST, "mst")["info"] == "other: under 1 s on 1 CPU core"
