"""A result is in its folder as a whole, whatever lay there before and whatever goes wrong."""

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from saliency_maps import saliency_map
from scan_files import dicom_series

import mst.dicom_export
import mst.pdf_report
import mst.results
from mst.dicom_export import DicomExportError
from mst.findings import Finding, Spot
from mst.preprocess import locate
from mst.results import RESULT_FILES, write_results
from mst.scans import Scan, read_scan
from mst.tasks import TASKS, Grid

CHEST = TASKS["chest-ct"]


@pytest.fixture
def patient(tmp_path: Path) -> Scan:
    """A scan read from DICOM, whose results name its patient."""
    dicom_series(tmp_path / "series")
    return read_scan(tmp_path / "series")


def predictions(scan: Scan, *models: str) -> dict[str, Finding]:
    canonical = scan.canonical()
    region = locate(canonical, "axial", Grid((4, 6, 6), (2.0, 1.0, 1.0)), canonical.center)
    made = Finding(
        checkpoint="a-checkpoint",
        title="",
        probabilities={"benign": 0.3, "malignant": 0.7},
        prediction="malignant",
        logits=np.zeros(2, np.float32),
        spot=Spot((0.0, 0.0, 0.0), "given", "At the chosen spot."),
        seconds=0.5,
        maps=(saliency_map(scan, region, np.ones(region.shape, np.float32)),),
    )
    return dict.fromkeys(models, made)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_nothing_of_a_former_patient_stays(patient: Scan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    former = write_results(out, patient, CHEST, predictions(patient, "mst", "resnet"))
    assert "mst_segmentation.dcm" in former
    other = replace(patient, source=None, name="other")
    files = write_results(out, other, CHEST, predictions(other, "mst"))
    assert sorted(path.name for path in out.iterdir()) == sorted(files)
    assert set(files) == {"prediction.json", "report.html", "report.pdf", "mst_saliency.nii.gz"}
    assert b'"name": "other"' in files["prediction.json"].read_bytes()


def test_files_that_are_not_of_a_result_are_not_touched(patient: Scan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    own = {"scan.nii.gz": b"a", "report.docx": b"b", "series/1.dcm": b"c", "other_saliency.nii.gz": b"d"}
    for name, content in own.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    for _ in range(2):
        files = write_results(out, patient, CHEST, predictions(patient, "mst"))
        assert set(contents(out)) == {*own, *files}
    assert {name: contents(out)[name] for name in own} == own


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    "writer",
    ["write_nifti", "report_html", "report_pdf", "write_dicom_saliency", "prediction.json", "rename"],
)
def test_a_failure_leaves_the_former_result_or_none(
    patient: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, error: BaseException
) -> None:
    used, new = tmp_path / "used", tmp_path / "new" / "folder"
    former = replace(patient, name="former")
    write_results(used, former, CHEST, predictions(former, "mst", "resnet"))
    before = contents(used)

    def fail(*args: object, **options: object) -> None:
        raise error

    def fail_at(method: str, name: str) -> None:
        kept = getattr(Path, method)

        def failing(path: Path, *args: object, **options: object) -> object:
            # Of the fresh files' moves, one in the middle.
            if path.name == name and path.parent.name == "new":
                raise error
            return kept(path, *args, **options)

        monkeypatch.setattr(Path, method, failing)

    if writer == "rename":
        fail_at("rename", "report.pdf")
    elif writer == "prediction.json":
        fail_at("write_text", writer)
    else:
        module = {"report_pdf": mst.pdf_report, "write_dicom_saliency": mst.dicom_export}
        monkeypatch.setattr(module.get(writer, mst.results), writer, fail)
    for folder in (used, new):
        with pytest.raises(type(error)) as raised:
            write_results(folder, patient, CHEST, predictions(patient, "mst"))
        if isinstance(raised.value, OSError):
            assert raised.value.filename == str(folder)
    assert contents(used) == before
    assert sorted(path.name for path in used.iterdir()) == sorted(before)
    assert not new.parent.exists()


def test_what_a_killed_process_left_behind_goes(patient: Scan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".writing-x" / "new").mkdir(parents=True)
    (out / ".writing-x" / "new" / "mst_saliency.dcm").write_bytes(b"of another patient")
    files = write_results(out, patient, CHEST, predictions(patient, "mst"))
    assert sorted(path.name for path in out.iterdir()) == sorted(files)


def test_dicom_that_cannot_be_written_is_told_and_the_former_one_goes(
    patient: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_results(out, patient, CHEST, predictions(patient, "mst"))

    def fail(*args: object) -> None:
        raise DicomExportError("not as DICOM")

    monkeypatch.setattr(mst.dicom_export, "write_dicom_saliency", fail)
    told: list[str] = []
    files = write_results(out, patient, CHEST, predictions(patient, "mst"), tell=told.append)
    assert told == ["not as DICOM"]
    assert not [name for name in contents(out) if name.endswith(".dcm")]
    assert set(files) == set(contents(out)) <= set(RESULT_FILES)
