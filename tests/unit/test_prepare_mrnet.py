"""MRNet as its download lies on disk, turned into cases."""

import csv
from pathlib import Path

import numpy as np
import pytest

from mst.cli import main
from mst.data import read_manifest
from mst.preprocess import locate, sample
from mst.scans import read_scan
from mst.tasks import Grid, get_task

TABLES = {"abnormal": "0000,1\n0001,0\n", "acl": "0000,0\n0001,0\n", "meniscus": "0000,0\n0001,1\n"}


def slices(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (20, 256, 256), dtype=np.uint8)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "download" / "MRNet-v1.0"
    for number, split in enumerate(["train", "train", "valid"]):
        for plane in ("axial", "coronal", "sagittal"):
            (root / split / plane).mkdir(parents=True, exist_ok=True)
            np.save(root / split / plane / f"{number:04d}.npy", slices(number))
    for question, text in TABLES.items():
        (root / f"train-{question}.csv").write_text(text)
        (root / f"valid-{question}.csv").write_text("0002,1\n")
    return root


def command(download: Path, out: Path, *more: str) -> list[str]:
    return ["prepare", "mrnet", "--data", str(download), "--out", str(out), *more]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_cases(download: Path, tmp_path: Path, capsys) -> None:
    assert main(command(download.parent, tmp_path / "out")) == 0
    said = capsys.readouterr()
    assert "Wrote 3 cases (1 no tear, 2 tear)" in said.out
    assert said.err == ""
    task = get_task("knee-mri")
    cases = read_manifest(tmp_path / "out", task.classes)
    assert [(case.name, case.label) for case in cases] == [
        ("mrnet-0000", "tear"),
        ("mrnet-0001", "no tear"),
        ("mrnet-0002", "tear"),
    ]
    assert [row["split"] for row in rows(tmp_path / "out")] == ["train", "train", "valid"]
    assert {row["question"] for row in rows(tmp_path / "out")} == {"abnormal"}


def test_the_studys_slices_are_mrnets(download: Path, tmp_path: Path) -> None:
    main(command(download, tmp_path / "out"))
    scan = read_scan(tmp_path / "out" / "images" / "mrnet-0001.nii.gz")
    assert scan.orientation == "RPI"
    assert scan.spacing == (3.5, 0.625, 0.625)
    canonical = scan.canonical()
    region = locate(canonical, "sagittal", Grid((20, 256, 256), (None, None, None)), canonical.center)
    assert np.array_equal(sample(canonical, region, 0.0)[0], slices(1))


def test_another_question(download: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(command(download, out)) == 0
    assert main(command(download, out, "--label", "meniscus")) == 0
    assert [row["label"] for row in rows(out)] == ["no tear", "tear", "tear"]
    assert {row["question"] for row in rows(out)} == {"meniscus"}
    assert main(command(download, out, "--limit", "2")) == 0
    assert [row["label"] for row in rows(out)] == ["tear", "no tear"]


def test_what_is_written_is_not_written_again(download: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(command(download, out, "--limit", "2")) == 0
    image = out / "images" / "mrnet-0000.nii.gz"
    before = image.stat().st_mtime_ns
    (out / "images" / "mrnet-0001.nii.gz").unlink()
    (download / "train" / "sagittal" / "0000.npy").unlink()  # not needed any more
    assert main(command(download, out)) == 0
    assert image.stat().st_mtime_ns == before
    assert len(rows(out)) == 3
    (download / "train-abnormal.csv").write_text("0000,1\n0001,1\n")  # a corrected answer
    assert main(command(download, out)) == 0
    assert [row["label"] for row in rows(out)] == ["tear", "tear", "tear"]


def test_one_bad_examination_does_not_stop_the_others(download: Path, tmp_path: Path, capsys) -> None:
    bad = download / "train" / "sagittal" / "0000.npy"
    bad.write_bytes(bad.read_bytes()[:5000])
    np.save(download / "train" / "sagittal" / "0009.npy", slices(9))
    np.save(download / "valid" / "sagittal" / "0002.npy", slices(2)[0])
    assert main(command(download, tmp_path / "out")) == 2
    err = capsys.readouterr().err.splitlines()
    assert "no row for 1 of train/sagittal (0009)" in err[0]
    assert err[1] == "mrnet-0000: 0000.npy is cut off or no NumPy array; download it again."
    assert "0002.npy holds 256 x 256 of uint8" in err[2]
    assert err[3].startswith("mst prepare: 2 problems were told above")
    assert [row["case"] for row in rows(tmp_path / "out")] == ["mrnet-0001"]
    np.save(bad, slices(0))
    assert main(command(download, tmp_path / "out")) == 2
    assert [row["case"] for row in rows(tmp_path / "out")] == ["mrnet-0000", "mrnet-0001"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "train-abnormal.csv").unlink(), "There is no train-abnormal.csv"),
        (lambda root: (root / "train-abnormal.csv").write_text(""), "train-abnormal.csv is empty"),
        (
            lambda root: (root / "train-abnormal.csv").write_text("0000,1\n0001,2\n"),
            "train-abnormal.csv, row 2",
        ),
        (lambda root: (root / "train-abnormal.csv").write_text("id,label\n0001,1\n"), "row 1: 'id,label'"),
        (
            lambda root: (root / "valid-abnormal.csv").write_text("2,1\n0002,1\n"),
            "row 2: the examination 0002 is",
        ),
        (lambda root: (root / "train-abnormal.csv").write_bytes(b"\xff\xfe\x00"), "not a CSV file in UTF-8"),
    ],
)
def test_bad_tables(download: Path, tmp_path: Path, capsys, change, message: str) -> None:
    change(download)
    assert main(command(download, tmp_path / "out")) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "cases.csv").exists()


def test_no_download(tmp_path: Path, capsys) -> None:
    assert main(command(tmp_path / "nowhere", tmp_path / "out")) == 2
    assert "There is no folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(command(tmp_path / "empty", tmp_path / "out")) == 2
    assert "give the folder MRNet-v1.0" in capsys.readouterr().err


def test_a_fault_of_the_program_is_not_told_as_a_damaged_examination(
    download: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def broken(shape: object) -> None:
        raise ValueError("shapes do not match")

    monkeypatch.setattr("mst.data.mrnet.knee_affine", broken)
    with pytest.raises(ValueError, match="shapes do not match"):
        main(command(download, tmp_path / "out"))
    assert "a fault of this program" in capsys.readouterr().err
