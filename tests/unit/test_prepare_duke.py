"""Duke-Breast-Cancer-MRI as its download lies on disk, turned into one case a breast."""

import csv
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from downloads import write_series

from mst.cli import main
from mst.data import read_manifest
from mst.data.duke import front_rows
from mst.scans import read_scan
from mst.tasks import get_task

# Voxels of the network's own size, so that nothing is interpolated.
SHAPE, SPACING, ORIGIN = (40, 32, 12), (0.7, 0.7, 3.0), (-14.0, -60.0, -20.0)
# DICOM columns run to the patient's left: a tumour in high columns is in the left breast.
TUMOUR = (slice(28, 33), slice(10, 14), slice(3, 6))
GROUPS = ["Patient Information", None, "Tumor Characteristics", None]
HEADER = [
    "Patient ID",
    "Days to MRI (From the Date of Diagnosis)",
    "Tumor Location",
    "Bilateral Information ",
]
LEGEND = [None, None, "{L = left, R = right}", "{1=Yes, 0=No, NC=not known}"]
EDGES = ["Start Row", "End Row", "Start Column", "End Column", "Start Slice", "End Slice"]


def phases() -> tuple[np.ndarray, np.ndarray]:
    pre = np.random.default_rng(0).integers(100, 140, SHAPE).astype(float)
    pre[:, :6] = 5  # air before the breasts; the front is at row 6 (DICOM rows run to the back)
    post = pre + np.random.default_rng(1).integers(5, 15, SHAPE)
    post[TUMOUR] += 300
    return pre, post


class Download:
    """TCIA's layout, with the tables beside the patients' folders."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root.parent / "out"
        self.clinical: list[list[object]] = [GROUPS, HEADER, LEGEND]
        self.boxes: list[list[object]] = [["Patient ID", *EDGES]]
        self.mapping: list[list[object]] = [
            ["original_path_and_filename", "descriptive_path", "classic_path", "sop_instance_UID"]
        ]

    def patient(
        self,
        name: str,
        location: object = "L",
        bilateral: object = 0,
        box: bool = True,
        head_first: bool = False,
        descriptions: tuple[str, str] = ("ax dyn pre", "ax dyn 1st pass"),
        **series: object,
    ) -> Path:
        pre, post = phases()
        study = self.root / "Duke-Breast-Cancer-MRI" / name / "01-01-1990-NA-MRI BREAST BILATERAL WWO-97538"
        common = {
            "spacing": SPACING,
            "origin": ORIGIN,
            "modality": "MR",
            "intercept": 0.0,
            "head_first": head_first,
        }
        common |= series | {"patient": name}
        for number, (phase, voxels, description) in enumerate(
            [
                ("pre", pre, descriptions[0]),
                ("post_1", post, descriptions[1]),
                ("post_2", post * 2, "ax dyn 2nd pass"),
            ]
        ):
            folder = study / f"{number + 6}.000000-{description.replace('/', '')}-41506"
            uid, images = write_series(folder, voxels, description=description, **common)  # type: ignore[arg-type]
            for k, image in enumerate(images):
                number = len(images) - k if head_first else k + 1
                original = f"DICOM_Images/{name}/{phase}/{name}_{phase}_{number:03d}.dcm"
                classic = f"Duke-Breast-Cancer-MRI/{name}/1.2.3/{uid}/1-{number:03d}.dcm"
                self.mapping.append([original, "any//thing", classic, image])
        write_series(study / "3.000000-ax t1-1", pre, description="ax t1 tse", modality="MR")
        self.clinical.append([name, 6, location, bilateral])
        if box:
            first, last = (12 - 5, 12 - 3) if head_first else (4, 6)
            self.boxes.append([name, 10, 13, 28, 32, first, last])
        return study

    def tables(self, suffix: str = ".xlsx", mapping: bool = True) -> None:
        tables = [("Clinical_and_Other_Features", self.clinical), ("Annotation_Boxes", self.boxes)]
        if mapping:
            tables.append(("Breast-Cancer-MRI-filepath_filename-mapping", self.mapping))
        for name, rows in tables:
            path = self.root / f"{name}{suffix}"
            if suffix == ".csv":
                with path.open("w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows(rows)
            else:
                book = openpyxl.Workbook()
                for row in rows:
                    book.active.append(row)
                book.save(path)

    def command(self, *more: str) -> list[str]:
        return ["prepare", "duke", "--data", str(self.root), "--out", str(self.out), *more]

    def rows(self) -> list[dict[str, str]]:
        with (self.out / "cases.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def download(tmp_path: Path) -> Download:
    return Download(tmp_path / "download")


@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize("suffix", [".xlsx", ".csv"])
def test_each_breast_is_a_case(download: Download, capsys, head_first: bool, suffix: str) -> None:
    download.patient("Breast_MRI_001", head_first=head_first)
    download.tables(suffix)
    assert main(download.command()) == 0
    said = capsys.readouterr()
    assert "Wrote 2 cases (1 cancer, 1 no cancer)" in said.out
    assert said.err == ""
    cases = {case.name: case for case in read_manifest(download.out, get_task("breast-mri").classes)}
    left, right = cases["Breast_MRI_001-left"], cases["Breast_MRI_001-right"]
    assert (left.label, right.label) == ("cancer", "no cancer")
    assert left.patient == right.patient == "Breast_MRI_001"
    assert right.mask is None
    scan, other, mask = read_scan(left.image), read_scan(right.image), read_scan(left.mask)
    # Left is the patient's left, which in RAS is the lower x; the tumour is in it and nowhere else.
    assert scan.orientation == "RAS"
    assert scan.center[0] < other.center[0]
    assert left.center == pytest.approx(scan.center, abs=0.01)
    bright = scan.voxels > 200
    assert bright.sum() == 5 * 4 * 3
    assert not (other.voxels > 200).any()
    assert np.array_equal(mask.voxels > 0, bright)
    assert np.allclose(mask.affine, scan.affine)
    pre, post = phases()
    expected = (post - pre)[::-1, ::-1]  # to the right and to the front
    assert np.array_equal(scan.voxels, expected[:20])
    assert np.array_equal(other.voxels, expected[20:])
    # At the place in the patient where the series has it (LPS to RAS).
    at = scan.voxel_to_world(np.argwhere(bright).mean(axis=0))
    assert at == pytest.approx(
        [-(ORIGIN[0] + 30 * 0.7), -(ORIGIN[1] + 11.5 * 0.7), ORIGIN[2] + 4 * 3], abs=1e-3
    )


def test_resampled(download: Download) -> None:
    download.patient("Breast_MRI_001", spacing=(1.4, 1.4, 1.5))
    download.tables()
    assert main(download.command()) == 0
    left = next(row for row in download.rows() if row["side"] == "left")
    scan, mask = read_scan(download.out / left["image"]), read_scan(download.out / left["mask"])
    assert scan.spacing == pytest.approx((0.7, 0.7, 3.0))
    middle = scan.voxel_to_world(np.argwhere(mask.voxels > 0).mean(axis=0))
    expected = [-(ORIGIN[0] + 30 * 1.4), -(ORIGIN[1] + 11.5 * 1.4), ORIGIN[2] + 4 * 1.5]
    assert np.abs(middle - expected).max() < 1.5
    assert scan.voxels[mask.voxels > 0].mean() > 4 * scan.voxels[mask.voxels == 0].mean()


def test_labels(download: Download, capsys) -> None:
    for number, (location, bilateral) in enumerate(
        [("R", 0), ("L", 1), ("R", "NC"), ("NC", 0), (None, 1)], start=1
    ):
        download.patient(f"Breast_MRI_{number:03d}", location, bilateral, box=False)
    download.tables(mapping=True)
    assert main(download.command()) == 0
    out = capsys.readouterr().out
    assert "Left out: breasts of which it is not known whether they have cancer (1)." in out
    assert "Left out: patients whose tumour's side is not known (1)." in out
    assert [(row["case"][-9:], row["label"]) for row in download.rows()] == [
        ("_001-left", "no cancer"),
        ("001-right", "cancer"),
        ("_002-left", "cancer"),
        ("002-right", "cancer"),
        ("003-right", "cancer"),
        ("_005-left", "cancer"),
        ("005-right", "cancer"),
    ]


@pytest.mark.parametrize(
    "descriptions",
    [("ax dyn pre", "ax dyn 1st pass"), ("ax 3d dyn", "Ph1/ax 3d dyn"), ("ax 3d dyn MP", "Ph1ax 3d dyn MP")],
)
def test_without_the_mapping_descriptions_tell_the_phases(download: Download, capsys, descriptions) -> None:
    download.patient("Breast_MRI_001", descriptions=descriptions, head_first=True)
    download.tables(mapping=False)
    assert main(download.command()) == 0
    assert "phases are told by their series' descriptions" in capsys.readouterr().err
    left = next(row for row in download.rows() if row["side"] == "left")
    scan, mask = read_scan(download.out / left["image"]), read_scan(download.out / left["mask"])
    assert np.array_equal(mask.voxels > 0, scan.voxels > 200)


def test_the_front_is_kept() -> None:
    reference = np.zeros((4, 100, 4))
    reference[:, 10:60] = 1000
    reference[0, 70] = 2000
    assert front_rows(reference, 40) == slice(40, 80)  # 10 rows before the foremost bright voxel
    assert front_rows(reference, 200) == slice(0, 100)
    reference[0, 99] = 2000
    assert front_rows(reference, 40) == slice(60, 100)


def test_what_is_written_is_not_written_again(download: Download) -> None:
    download.patient("Breast_MRI_001")
    download.patient("Breast_MRI_002", "R", box=False)
    download.tables()
    assert main(download.command("--limit", "1")) == 0
    assert len(download.rows()) == 2
    image = download.out / "images" / "Breast_MRI_001-left.nii.gz"
    before = image.stat().st_mtime_ns
    assert main(download.command()) == 0
    assert image.stat().st_mtime_ns == before
    assert len(download.rows()) == 4
    download.clinical[3][3] = 1  # a corrected row
    download.tables()
    assert main(download.command()) == 0
    assert [row["label"] for row in download.rows()[:2]] == ["cancer", "cancer"]


def test_one_bad_patient_does_not_stop_the_others(download: Download, capsys) -> None:
    download.patient("Breast_MRI_001")
    download.patient("Breast_MRI_002", "R")  # but its box lies in the left breast
    study = download.patient("Breast_MRI_003")
    (next(study.glob("7.*")) / "1-005.dcm").unlink()
    download.patient("Breast_MRI_004")
    download.boxes[-1][-1] = 30
    download.patient("Breast_MRI_005")
    del download.clinical[-1]
    study = download.patient("Breast_MRI_006")
    for path in next(study.glob("7.*")).iterdir():
        path.unlink()
    download.tables()
    assert main(download.command()) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[0] == (
        "Breast_MRI_002: Clinical_and_Other_Features.xlsx, row 5 has the tumour in the right breast, but "
        "Annotation_Boxes.xlsx, row 3 in the left one."
    )
    assert err[1].startswith("Breast_MRI_003: The DICOM series ax dyn 1st pass has a gap")
    assert err[2].startswith(
        "Breast_MRI_004: Annotation_Boxes.xlsx, row 5: the box reaches beyond the series"
    )
    assert err[3] == "Breast_MRI_005: Clinical_and_Other_Features.xlsx has no row for it."
    assert err[4].startswith("Breast_MRI_006: there is no first post-contrast series")
    assert err[5].startswith("mst prepare: 5 problems were told above")
    assert {row["patient"] for row in download.rows()} == {"Breast_MRI_001"}


def test_no_boxes(download: Download, capsys) -> None:
    download.patient("Breast_MRI_001")
    download.tables()
    (download.root / "Annotation_Boxes.xlsx").unlink()
    assert main(download.command()) == 0
    assert "no case gets a mask" in capsys.readouterr().err
    assert {row["mask"] for row in download.rows()} == {""}


def bad(download: Download, table: str, row: int, column: int, value: object) -> None:
    rows = getattr(download, table)
    rows[row] = list(rows[row])
    rows[row][column] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: bad(d, "clinical", 1, 2, "Side"),
            "Clinical_and_Other_Features.xlsx has no column Tumor Location;",
        ),
        (
            lambda d: bad(d, "clinical", 3, 2, "M"),
            "Clinical_and_Other_Features.xlsx, row 4: the Tumor Location 'M'",
        ),
        (lambda d: bad(d, "clinical", 3, 3, 7), "row 4: the Bilateral Information '7' is neither"),
        (lambda d: bad(d, "clinical", 3, 0, "x"), "has no row of a patient"),
        (lambda d: d.clinical.append(d.clinical[3]), "row 5: the patient Breast_MRI_001 is there already"),
        (lambda d: bad(d, "boxes", 0, 1, "Row"), "Annotation_Boxes.xlsx has no column Start Row"),
        (lambda d: bad(d, "boxes", 1, 2, "many"), "Annotation_Boxes.xlsx, row 2: Start Row, End Row"),
        (lambda d: bad(d, "boxes", 1, 2, 1), "row 2: the box ends before it starts"),
        (lambda d: bad(d, "mapping", 0, 2, "path"), "mapping.xlsx has no column classic_path"),
        (lambda d: bad(d, "mapping", 1, 2, "path"), "mapping.xlsx, row 2: 'path' names no series"),
    ],
)
def test_bad_tables(download: Download, capsys, change, message: str) -> None:
    download.patient("Breast_MRI_001")
    change(download)
    download.tables()
    assert main(download.command()) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_no_download(download: Download, tmp_path: Path, capsys) -> None:
    assert main(download.command()) == 2
    assert "There is no folder" in capsys.readouterr().err
    download.root.mkdir()
    assert main(download.command()) == 2
    assert "holds no folder Breast_MRI_001" in capsys.readouterr().err
    download.patient("Breast_MRI_001")
    assert main(download.command()) == 2
    assert "holds no Clinical_and_Other_Features.xlsx (or .csv)" in capsys.readouterr().err
    (download.root / "Clinical_and_Other_Features.xlsx").write_bytes(b"no zip")
    assert main(download.command()) == 2
    assert "Clinical_and_Other_Features.xlsx is not an Excel file" in capsys.readouterr().err
