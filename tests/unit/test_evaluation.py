"""A cohort through two tiny models: the figures, what is kept, and what bad input leads to."""

import csv
import errno
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from sklearn.metrics import brier_score_loss, confusion_matrix, roc_auc_score
from small_study import ONE_BLOCK, round_outline

import mst
from mst import cohort
from mst.cli import main
from mst.cohort import predict_cohort
from mst.data import ManifestError, read_manifest
from mst.data.manifest import Case
from mst.data.simulated import simulate_chest_ct
from mst.evaluation import evaluate, summarise
from mst.files import write_whole
from mst.models import ResNet3D, SliceTransformer
from mst.models.loading import save_model
from mst.scans import write_nifti
from mst.tasks import TASKS

CLASSES = ("benign", "malignant")
GRID = {"shape": [8, 24, 24], "spacing_mm": [4.0, 2.0, 2.0]}
HEAD = "case,image,mask,label"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven simulated nodules, the last one indeterminate, and a tiny checkpoint of each kind, two of the MST."""
    folder = tmp_path_factory.mktemp("cohort")
    lines = [HEAD]
    for number in range(7):
        label = "indeterminate" if number == 6 else CLASSES[number % 2]
        scan, mask = simulate_chest_ct(
            number, round_outline(8 + 8 * (number % 2)), (40, 40, 20), (1.2, 1.2, 2.4)
        )
        write_nifti(scan.voxels, scan.affine, folder / f"i{number}.nii.gz")
        write_nifti(mask, scan.affine, folder / f"m{number}.nii.gz")
        lines.append(f"c{number},i{number}.nii.gz,m{number}.nii.gz,{label}")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    encoder = ONE_BLOCK
    for seed, name in enumerate(("mst-0", "mst-1")):
        torch.manual_seed(seed)
        save_model(SliceTransformer(grid=GRID, encoder=encoder, slice_heads=2), folder / "models" / name)
    save_model(ResNet3D(grid=GRID, depth=10, width=4, first_kernel=3), folder / "models" / "resnet")
    return folder


@pytest.fixture
def models(data: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("MST_CHECKPOINTS", str(data / "models"))
    return {"mst": str(data / "models" / "mst-0"), "resnet": str(data / "models" / "resnet")}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the cases that went through the models."""
    names: list[str] = []
    plain = cohort._predict_case

    def counted(case, *rest):
        names.append(case.name)
        return plain(case, *rest)

    monkeypatch.setattr(cohort, "_predict_case", counted)
    return names


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _manifest(data: Path, tmp_path: Path, *lines: str, head: str = HEAD) -> Path:
    """A manifest beside the data of the fixture."""
    path = tmp_path / "cases.csv"
    text = "\n".join([head, *lines])
    path.write_text(re.sub(r"\b([im]\d\.nii\.gz)", lambda m: str(data / m[1]), text) + "\n")
    return path


def test_the_figures_are_those_of_the_predictions(data: Path, models, tmp_path: Path) -> None:
    metrics = evaluate(data / "cases.csv", tmp_path, models=models)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "metrics.json",
        "predictions.csv",
        "report.html",
        "roc.png",
    ]
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    rows = _rows(tmp_path)
    assert [row["case"] for row in rows] == [f"c{n}" for n in range(7)]
    labelled = [row for row in rows if row["label"] != "indeterminate"]
    truth = np.array([row["label"] == "malignant" for row in labelled])
    for name in ("mst", "resnet"):
        found = metrics["models"][name]
        scores = np.array([float(row[f"{name}_probability"]) for row in labelled])
        assert found["checkpoint"] == Path(models[name]).name
        assert found["auc"] == pytest.approx(roc_auc_score(truth, scores))
        assert found["auc_ci95"][0] <= found["auc"] <= found["auc_ci95"][1]
        assert found["brier"] == pytest.approx(brier_score_loss(truth, scores))
        assert found["confusion"] == confusion_matrix(truth, scores >= found["threshold"]).tolist()
        assert found["at_half"]["confusion"] == confusion_matrix(truth, scores >= 0.5).tolist()
        assert found["sensitivity"] == pytest.approx(found["confusion"][1][1] / 3)
        assert found["saliency"]["n"] == 7
        hits = [int(row[f"{name}_pointing_game"]) for row in rows]
        assert found["saliency"]["pointing_game"] == pytest.approx(np.mean(hits))
    assert metrics["n"] == {
        "cases": 7,
        "patients": 7,
        "benign": 3,
        "malignant": 3,
        "indeterminate": 1,
        "with_mask": 7,
    }
    assert 0 <= metrics["comparison"]["delong_p"] <= 1
    assert set(metrics["comparison"]["saliency"]) >= {"pointing_game", "dice", "average_surface_distance_mm"}
    assert metrics["baseline_diameter_auc"] == 1


def test_a_case_is_predicted_as_the_dashboard_does(data: Path, models, tmp_path: Path) -> None:
    evaluate(data / "cases.csv", tmp_path, models=models)
    row = _rows(tmp_path)[2]
    results = mst.predict(mst.read_scan(data / "i2.nii.gz"), mask=data / "m2.nii.gz", models=models)
    for name, result in results.items():
        assert float(row[f"{name}_probability"]) == pytest.approx(result.probabilities["malignant"], abs=1e-6)
        assert result.metrics is not None
        assert float(row[f"{name}_share_inside"]) == pytest.approx(result.metrics["share_inside"], rel=1e-4)
    assert row["center_by"] == "mask"


def test_what_is_finished_is_not_computed_again(data: Path, models, tmp_path: Path, computed) -> None:
    manifest = _manifest(data, tmp_path, *(data / "cases.csv").read_text().splitlines()[1:])
    out = tmp_path / "out"
    first = evaluate(manifest, out, models=models)
    assert len(computed) == 7
    lines = (out / "predictions.csv").read_text().splitlines()
    (out / "predictions.csv").write_text("\n".join(lines[:-1]) + "\n")
    computed.clear()
    assert evaluate(manifest, out, models=models) == first
    assert computed == ["c6"]
    # A corrected label counts without a new prediction; another checkpoint or region makes them anew.
    manifest.write_text(manifest.read_text().replace("indeterminate", "benign"))
    computed.clear()
    assert evaluate(manifest, out, models=models)["n"]["benign"] == 4
    assert computed == []
    evaluate(manifest, out, models=models | {"mst": str(data / "models" / "mst-1")})
    assert len(computed) == 7
    evaluate(manifest, out, models=models | {"mst": str(data / "models" / "mst-1")}, off_centre_mm=3)
    assert len(computed) == 14


@pytest.mark.parametrize("kind", ["mhd", "nhdr", "mha with its data beside", "zip", "folder"])
@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_case_is_new_where_any_of_its_files_changed(
    data: Path, models, tmp_path: Path, computed, kind: str, column: str
) -> None:
    files = {"image": data / "i1.nii.gz", "mask": data / "m1.nii.gz"}
    made = tmp_path / "made"
    made.mkdir()
    image = sitk.ReadImage(str(files[column]))
    if kind in ("mhd", "nhdr"):
        files[column] = made / f"s.{kind}"
        sitk.WriteImage(image, str(files[column]))
        (changed,) = (path for path in made.iterdir() if path != files[column])
    elif kind == "mha with its data beside":
        sitk.WriteImage(image, str(made / "s.mhd"))
        files[column] = (made / "s.mhd").rename(made / "s.mha")
        changed = made / "s.raw"
    else:
        changed = Path(shutil.copy(files[column], made))
        files[column] = made
        if kind == "zip":
            files[column] = changed = Path(shutil.make_archive(str(tmp_path / "s"), "zip", made))
    manifest = tmp_path / "cases.csv"
    manifest.write_text(f"image,mask,label\n{files['image']},{files['mask']},benign\n")
    cases = read_manifest(manifest, CLASSES, labelled=False)
    for _ in range(2):
        predict_cohort(cases, tmp_path / "out", TASKS["chest-ct"], models)
    assert len(computed) == 1
    status = changed.stat()
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    predict_cohort(cases, tmp_path / "out", TASKS["chest-ct"], models)
    assert len(computed) == 2


def test_a_row_that_was_edited_is_computed_again(data: Path, models, tmp_path: Path, computed) -> None:
    first = evaluate(data / "cases.csv", tmp_path, models=models)
    rows = _rows(tmp_path)
    for row, column, value in (
        (0, "mst_probability", "high"),
        (1, "diameter_mm", "nan"),
        (2, "mst_dice", "x"),
    ):
        rows[row][column] = value
    with (tmp_path / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    computed.clear()
    assert evaluate(data / "cases.csv", tmp_path, models=models) == first
    assert computed == ["c0", "c1", "c2"]


def test_weights_that_change_meanwhile_end_the_run(
    data: Path, models, tmp_path: Path, computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(models["mst"], tmp_path / "mst"))
    plain = cohort._predict_case

    def changing(case, *rest):
        if len(computed) == 2:
            shutil.copy(data / "models" / "mst-1" / "model.safetensors", folder)
        return plain(case, *rest)

    monkeypatch.setattr(cohort, "_predict_case", changing)
    with pytest.raises(mst.CheckpointError, match="mst was changed while the cases were predicted"):
        evaluate(data / "cases.csv", tmp_path / "out", models=models | {"mst": str(folder)})
    assert [row["case"] for row in _rows(tmp_path / "out")] == ["c0", "c1"]


def test_the_centre_is_the_manifests_else_the_masks_else_the_scans(
    data: Path, models, tmp_path: Path
) -> None:
    center = mst.read_scan(data / "i0.nii.gz").center + 2
    manifest = _manifest(
        data,
        tmp_path,
        f"i0.nii.gz,m0.nii.gz,benign,{center[0]},{center[1]},{center[2]}",
        "i1.nii.gz,m1.nii.gz,malignant,,,",
        "i2.nii.gz,,benign,,,",
        head="image,mask,label,center_x,center_y,center_z",
    )
    metrics = evaluate(manifest, tmp_path / "out", models=models)
    rows = _rows(tmp_path / "out")
    assert [row["center_by"] for row in rows] == ["given", "mask", "scan centre"]
    assert [float(rows[0][f"center_{axis}"]) for axis in "xyz"] == pytest.approx(center, abs=1e-3)
    assert rows[2]["mst_dice"] == rows[2]["diameter_mm"] == ""
    assert metrics["n"]["with_mask"] == metrics["models"]["mst"]["saliency"]["n"] == 2
    assert "baseline_diameter_auc" not in metrics


def test_off_centre_regions_are_the_same_each_time(data: Path, models, tmp_path: Path) -> None:
    evaluate(data / "cases.csv", tmp_path / "plain", models=models)
    for name in ("one", "two"):
        evaluate(data / "cases.csv", tmp_path / name, models=models, off_centre_mm=5)
    centers = {
        name: np.array([[float(row[f"center_{a}"]) for a in "xyz"] for row in _rows(tmp_path / name)])
        for name in ("plain", "one", "two")
    }
    assert np.array_equal(centers["one"], centers["two"])
    off = np.abs(centers["one"] - centers["plain"])
    assert off.max() <= 5.01
    assert off.mean() > 1


def test_a_folds_cases_get_that_folds_checkpoint(data: Path, models, tmp_path: Path) -> None:
    lines = [f"i{n}.nii.gz,{CLASSES[n % 2]},{n // 2 % 2}" for n in range(6)]
    manifest = _manifest(data, tmp_path, *lines, head="image,label,fold")
    pattern = str(data / "models" / "mst-{fold}")
    metrics = evaluate(manifest, tmp_path / "out", models=models | {"mst": pattern})
    for row in _rows(tmp_path / "out"):
        given = models | {"mst": pattern.replace("{fold}", row["fold"])}
        result = mst.predict(mst.read_scan(row["case"] + ".nii.gz"), models=given)
        expected = result["mst"].probabilities["malignant"]
        assert float(row["mst_probability"]) == pytest.approx(expected, abs=1e-6)
    folds = metrics["models"]["mst"]["folds"]
    assert folds["names"] == ["0", "1"]
    assert folds["auc"]["mean"] == pytest.approx(np.mean(folds["auc"]["each"]))
    assert folds["auc"]["sd"] == pytest.approx(np.std(folds["auc"]["each"], ddof=1))
    with pytest.raises(ManifestError, match="row 2: --mst asks for the"):
        evaluate(data / "cases.csv", tmp_path / "none", models=models | {"mst": pattern})


def test_one_model_alone_has_no_comparison(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet").symlink_to(data / "models" / "resnet")
    monkeypatch.setenv("MST_CHECKPOINTS", str(tmp_path / "models"))
    metrics = evaluate(data / "cases.csv", tmp_path / "out")
    assert list(metrics["models"]) == ["resnet"]
    assert "comparison" not in metrics
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_report_opens_offline_and_escapes(data: Path, models, tmp_path: Path) -> None:
    manifest = _manifest(
        data,
        tmp_path,
        "<b>bold</b>,i0.nii.gz,m0.nii.gz,benign",
        "c1,i1.nii.gz,m1.nii.gz,malignant",
    )
    evaluate(manifest, tmp_path / "out", models=models)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;bold" in page
    assert "<b>bold" not in page
    assert not re.findall(r"""(?:src|href|srcset)=["'](?!data:)|url\(|@import""", page)
    assert "Not a medical device" in page
    assert "not shown to be better than chance" in page
    picture = Image.open(io.BytesIO((tmp_path / "out" / "roc.png").read_bytes()))
    assert min(picture.size) >= 800


def test_the_command_tells_the_figures(data: Path, models, tmp_path: Path, capsys) -> None:
    arguments = ["evaluate", "--manifest", str(data), "--out", str(tmp_path)]
    assert main([*arguments, "--mst", models["mst"], "--resnet", models["resnet"]]) == 0
    out = capsys.readouterr()
    assert "DeLong's paired test: p = " in out.out
    assert out.err == ""


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["case,mask"], "no column image, label"),
        ([HEAD, "a,gone.nii.gz,,benign"], "row 2: the image file gone.nii.gz"),
        ([HEAD, "a,i0.nii.gz,,"], "row 2: the column label is empty"),
        ([HEAD, "a,i0.nii.gz,,benign", "b,i1.nii.gz,,benign"], "only the class benign"),
        ([HEAD, "a,i0.nii.gz,m1.nii.gz,benign", "b,i1.nii.gz,broken.nii.gz,malignant"], "row 3: "),
        ([HEAD, "a,i0.nii.gz,m0.nii.gz,benign", "b,broken.nii.gz,,malignant"], "row 3: broken.nii.gz"),
        (
            [HEAD, "a,i0.nii.gz,small.nii.gz,benign", "b,i1.nii.gz,,malignant"],
            "row 2: The mask small.nii.gz has",
        ),
        ([HEAD, "a,i0.nii.gz,empty.nii.gz,benign", "b,i1.nii.gz,,malignant"], "row 2: The mask empty.nii.gz"),
        (
            [
                HEAD + ",center_x,center_y,center_z",
                "a,i0.nii.gz,,benign,9e3,0,0",
                "b,i1.nii.gz,,malignant,,,",
            ],
            "row 2: i0.nii.gz: The spot",
        ),
    ],
)
def test_bad_input_is_one_line_that_names_row_and_file(
    data: Path, models, tmp_path: Path, capsys, lines: list[str], message: str
) -> None:
    (tmp_path / "broken.nii.gz").write_bytes((data / "i0.nii.gz").read_bytes()[:900])
    write_nifti(np.ones((9, 9, 9)), np.eye(4), tmp_path / "small.nii.gz")
    write_nifti(np.zeros((40, 40, 20)), np.eye(4), tmp_path / "empty.nii.gz")
    manifest = _manifest(data, tmp_path, *lines[1:], head=lines[0])
    out = tmp_path / "out"
    assert main(["evaluate", "--manifest", str(manifest), "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "cases.csv" in err
    assert message in err
    assert not (out / "metrics.json").exists()


def test_what_could_be_read_is_kept(data: Path, models, tmp_path: Path, computed) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"not a scan")
    manifest = _manifest(
        data,
        tmp_path,
        "a,broken.nii.gz,,benign",
        "b,i1.nii.gz,m1.nii.gz,malignant",
        "c,i0.nii.gz,m1.nii.gz,benign",
        "d,broken.nii.gz,,benign",
    )
    out = tmp_path / "out"
    with pytest.raises(ManifestError, match=r"row 2: broken\.nii\.gz .* Also unusable: row 5\."):
        evaluate(manifest, out, models=models)
    assert [row["case"] for row in _rows(out)] == ["b", "c"]
    broken.write_bytes((data / "i2.nii.gz").read_bytes())
    computed.clear()
    assert evaluate(manifest, out, models=models)["n"]["cases"] == 4
    assert computed == ["a", "d"]


def test_a_full_disk_is_told_and_leaves_no_half_file(
    data: Path, models, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Path.write_bytes
    free = 2000

    def limited(path: Path, content: bytes) -> int:
        nonlocal free
        free -= len(content)
        if free < 0:
            plain(path, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(path, content)

    monkeypatch.setattr(Path, "write_bytes", limited)
    assert main(["evaluate", "--manifest", str(data), "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "No space left on device" in err
    assert "predictions.csv" in err
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.csv"]
    assert 0 < len(_rows(tmp_path)) < 7


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "new" / "a.txt", "before")

    def fails(self: Path, target: Path) -> Path:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match=r"a\.txt"):
        write_whole(tmp_path / "new" / "a.txt", "after")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_text() == "before"


def test_figures_that_cannot_be_known_are_null() -> None:
    about = {"patient": "p", "center_by": "mask", "diameter_mm": ""}
    rows = [
        about
        | {
            "case": "a",
            "label": "benign",
            "fold": "1",
            "mst_probability": "0.2",
            "resnet_probability": "0.3",
        },
        about
        | {
            "case": "b",
            "label": "malignant",
            "fold": "2",
            "mst_probability": "0.9",
            "resnet_probability": "0.1",
        },
    ]
    metrics = summarise(rows, CLASSES, {"mst": "x", "resnet": "y"})
    assert metrics["comparison"]["delong_p"] is None
    assert metrics["models"]["mst"]["auc"] == 1
    assert metrics["models"]["mst"]["auc_ci95"][0] < 0.6
    assert metrics["models"]["mst"]["folds"]["auc"] == {"each": [None, None], "mean": None, "sd": None}
    json.dumps(metrics, allow_nan=False)


def test_many_scans_are_classified_and_each_has_its_folder(
    data: Path, models, computed: list[str], tmp_path: Path, capsys
) -> None:
    lines = ["c0,i0.nii.gz,", "p1/ct 1,i1.nii.gz,m1.nii.gz", "P1_ct_1,i2.nii.gz,m2.nii.gz"]
    cases = _manifest(data, tmp_path, *lines, head="case,image,mask")
    command = ["predict", "--manifest", str(cases), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "a folder for each of 3 cases" in told
    assert re.search(r"3D ResNet +\d benign, \d malignant", told)
    rows = _rows(tmp_path / "out")
    assert [(row["case"], row["folder"]) for row in rows] == [
        ("c0", "c0"),
        ("p1/ct 1", "p1_ct_1"),
        ("P1_ct_1", "P1_ct_1-2"),
    ]
    for row in rows:
        folder = tmp_path / "out" / row["folder"]
        record = json.loads((folder / "prediction.json").read_text())
        for name, found in record["models"].items():
            assert found["probabilities"]["malignant"] == pytest.approx(
                float(row[f"{name}_probability"]), abs=1e-6
            )
            assert ("metrics" in found) == (row["diameter_mm"] != "")
            assert (folder / f"{name}_saliency.nii.gz").is_file()
        assert (folder / "report.html").is_file()
    # Each is what `mst predict SCAN` gives.
    alone = mst.predict(mst.read_scan(data / "i1.nii.gz"), mask=data / "m1.nii.gz", models=models)
    assert float(rows[1]["mst_probability"]) == pytest.approx(
        alone["mst"].probabilities["malignant"], abs=1e-6
    )

    # A folder belongs to one case, also where names were given in another order.
    turned = _manifest(data, tmp_path, *reversed(lines), "predictions.csv,i3.nii.gz,", head="case,image,mask")
    assert main([*command[:2], str(turned), "--out", str(tmp_path / "turned")]) == 0
    places = {row["case"]: row["folder"] for row in _rows(tmp_path / "turned")}
    assert places == {
        "c0": "c0",
        "p1/ct 1": "p1_ct_1-2",
        "P1_ct_1": "P1_ct_1",
        "predictions.csv": "predictions.csv-2",
    }
    del computed[3:]
    _manifest(data, tmp_path, *lines, head="case,image,mask")

    # Started again it computes what is missing: a folder without its prediction.json was cut off.
    assert computed == ["c0", "p1/ct 1", "P1_ct_1"]
    (tmp_path / "out" / "c0" / "prediction.json").unlink()
    assert main(command) == 0
    assert computed[3:] == ["c0"]
    assert _rows(tmp_path / "out") == rows


def test_a_folders_name_is_one_that_every_file_system_takes(data: Path) -> None:
    names = ["\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 300, "W" * 3000, "W" * 3001, "..", "a/b\udcff"]
    cases = [Case(name, name, data / "i0.nii.gz", None, "") for name in names]
    places = list(cohort._folders(cases).values())
    assert len(set(places)) == len(places)
    assert all(0 < len(place.encode()) <= 110 for place in places)
    assert not any("/" in place or place.startswith(".") for place in places)


def test_a_scan_that_cannot_be_read_costs_no_other_case(data: Path, models, tmp_path: Path, capsys) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"no scan")
    cases = _manifest(data, tmp_path, "i0.nii.gz", "bad.nii.gz", "i1.nii.gz", head="image")
    assert main(["predict", "--manifest", str(cases), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "cases.csv, row 3" in told
    assert "bad.nii.gz" in told
    assert "Traceback" not in told
    rows = _rows(tmp_path / "out")
    assert len(rows) == 2
    assert all((tmp_path / "out" / row["folder"] / "prediction.json").is_file() for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a SCAN or --manifest"),
        (["{data}/i0.nii.gz", "--manifest", "{data}/cases.csv"], "give either a SCAN or --manifest"),
        (["{data}/i0.nii.gz"], "say which study it is: --task chest-ct"),
        (["--manifest", "{data}/cases.csv", "--center", "1,2,3"], "--center goes with one SCAN"),
        (["--manifest", "{data}/nothing.csv"], "There is no manifest"),
        (["--manifest", "{tmp}/empty.csv"], "empty.csv holds no case"),
        (["--manifest", "{tmp}/other.csv"], "other.csv has no column image; it needs image and"),
    ],
)
def test_what_cannot_be_classified_is_told_in_one_line(
    arguments: list[str], message: str, data: Path, models, tmp_path: Path, capsys
) -> None:
    (tmp_path / "empty.csv").write_text("image\n")
    (tmp_path / "other.csv").write_text("scan\ni0.nii.gz\n")
    given = [text.format(data=data, tmp=tmp_path) for text in arguments]
    assert main(["predict", *given, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()
