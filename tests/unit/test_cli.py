"""The mst command as a user runs it: files written, exit status, one clear line for bad input."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from scan_files import dicom_series

from mst.cli import main
from mst.coordinates import parse_center
from mst.data.examples import example_file


@pytest.fixture(scope="module")
def nodule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_file("chest-round", tmp_path_factory.mktemp("examples"))


def test_predict_writes_its_five_files(nodule: Path, tmp_path: Path, capsys) -> None:
    center = "65.0,12.5,-116"
    status = main(["predict", str(nodule), "--task", "chest-ct", "--out", str(tmp_path), "--center", center])
    assert status == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "mst_saliency.nii.gz",
        "prediction.json",
        "report.html",
        "report.pdf",
        "resnet_saliency.nii.gz",
    ]
    record = json.loads((tmp_path / "prediction.json").read_text())
    assert record["region"] == {
        "center_mm": [65.0, 12.5, -116.0],
        "chosen_by": "given",
        "text": record["region"]["text"],
    }
    out = capsys.readouterr()
    assert "Medical Slice Transformer" in out.out
    assert out.err == ""


def test_a_dicom_scan_gets_its_saliency_as_dicom(tmp_path: Path, capsys) -> None:
    dicom_series(tmp_path / "dicom")
    arguments = ["predict", str(tmp_path / "dicom"), "--task", "chest-ct", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    objects = {path.name: pydicom.dcmread(path) for path in (tmp_path / "out").glob("*.dcm")}
    assert set(objects) == {
        f"{model}_{kind}.dcm" for model in ("mst", "resnet") for kind in ("saliency", "segmentation")
    }
    for model in ("mst", "resnet"):
        saliency = nib.load(tmp_path / "out" / f"{model}_saliency.nii.gz").get_fdata(dtype=np.float32)
        assert objects[f"{model}_saliency.dcm"].pixel_array.max() == saliency.max()
    out = capsys.readouterr()
    assert "NIfTI and DICOM" in out.out
    assert out.err == ""


def test_a_series_that_cannot_be_referred_to_keeps_the_other_results(tmp_path: Path, capsys) -> None:
    for path in dicom_series(tmp_path / "dicom"):
        data = pydicom.dcmread(path)
        del data.FrameOfReferenceUID
        data.save_as(path)
    arguments = ["predict", str(tmp_path / "dicom"), "--task", "chest-ct", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "mst_saliency.nii.gz",
        "prediction.json",
        "report.html",
        "report.pdf",
        "resnet_saliency.nii.gz",
    ]
    out = capsys.readouterr()
    message = "note: The saliency was not written as DICOM: the series has no FrameOfReferenceUID."
    assert out.out.count(message) == 1
    assert out.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "missing.nii.gz", "--task", "chest-ct", "--out", "out"], "missing.nii.gz"),
        (["predict", "NODULE", "--task", "chest-ct", "--out", "out", "--center", "a,b"], "three numbers"),
        (["predict", "NODULE", "--task", "chest-ct", "--out", "out", "--center", "-900,0,0"], "outside"),
        (["predict", "NODULE", "--task", "chest-ct", "--out", "out", "--mst", "./nowhere"], "nowhere"),
        (["predict", "NODULE", "--task", "chest-ct", "--out", "NODULE/x"], ""),
    ],
)
def test_bad_input_exits_with_two_and_one_line(nodule: Path, arguments, message, capsys) -> None:
    arguments = [argument.replace("NODULE", str(nodule)) for argument in arguments]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [[], ["predict"], ["fly"], ["predict", "x", "--task", "foot", "--out", "y"]]
)
def test_bad_usage_exits_with_two_and_one_line(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_fault_of_the_program_is_not_called_bad_input(
    nodule: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("shapes do not match")

    arguments = ["predict", str(nodule), "--task", "chest-ct", "--out", str(tmp_path)]
    monkeypatch.setattr("mst.findings.pipeline.prepare", broken)
    with pytest.raises(ValueError, match="shapes do not match"):
        main(arguments)
    assert "a fault of this program" in capsys.readouterr().err
    (tmp_path / "cases.csv").write_text(f"image\n{nodule}\n")
    with pytest.raises(ValueError, match="shapes do not match"):
        main(["predict", "--manifest", str(tmp_path / "cases.csv"), "--out", str(tmp_path)])


def test_a_fault_of_the_program_ends_it_with_one_and_its_traceback(nodule: Path, tmp_path: Path) -> None:
    script = f"""
import sys, mst.scans
from mst.cli import main
mst.scans.read_scan = lambda path: int("none")
sys.exit(main(["predict", {str(nodule)!r}, "--task", "chest-ct", "--out", {str(tmp_path)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("mst predict: a fault of this program")
    assert "Traceback" in done.stderr


def test_the_module_is_the_command_too(tmp_path: Path) -> None:
    bad = tmp_path / "notes.nii"
    bad.write_text("these are notes, not a scan")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mst",
            "predict",
            str(bad),
            "--task",
            "chest-ct",
            "--out",
            str(tmp_path / "o"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "notes.nii" in done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("text", ["1,2,3", " 1; 2; 3 ", "(1 2 3)", "1.0, 2.0, 3"])
def test_a_centre_is_read_as_people_write_it(text: str) -> None:
    assert parse_center(text) == (1, 2, 3)


@pytest.mark.parametrize("text", ["1,2", "a,b,c", "nan,1,2", "1,2,3,4", "inf 0 0"])
def test_what_is_no_centre_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="three numbers"):
        parse_center(text)
