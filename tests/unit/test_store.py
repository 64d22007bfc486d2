"""What the page keeps: within a limit, for a time, for a session; and answers for what is chosen only."""

import gc
import os
import weakref
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest

from mst.dashboard import events, store
from mst.dashboard.store import Store
from mst.data.examples import example_file
from mst.files import safe_stem
from mst.scans import Scan, ScanError
from mst.tasks import TASKS

CHEST, BREAST = TASKS["chest-ct"], TASKS["breast-mri"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The dashboard's store, empty and with a clock of the test's."""
    for name in ("_inputs", "_folders"):
        monkeypatch.setattr(store, name, Store(10**7, 3600, clock))
    monkeypatch.setattr(store, "_kept", Store(10**9, 3600, clock))
    return store._kept


def array(kilobytes: int) -> np.ndarray:
    return np.zeros(kilobytes * 250, np.float32)


def test_what_several_entries_share_counts_once(clock: Clock) -> None:
    shared = array(100)
    scan = Scan(shared.reshape(10, 50, 50), np.eye(4))
    kept = Store(10**6, 10, clock)
    kept.put("scan", scan)
    alone = kept.nbytes
    assert 100_000 <= alone < 110_000
    kept.put("result", (scan, {"mst": array(30)}, shared[:10]))
    assert alone + 30_000 <= kept.nbytes < alone + 35_000
    assert kept.take("result")[0] is scan
    assert kept.nbytes == alone
    assert kept.take("result") is None


def test_the_limit_holds_for_all_together_and_the_least_used_goes_first(clock: Clock) -> None:
    kept = Store(250_000, 10, clock)
    kept.put("a", array(100))
    kept.put("b", [array(100)])
    kept.get("a")
    kept.put("c", {"x": array(100)})
    assert kept.get("b") is None
    assert kept.get("a") is not None
    assert kept.nbytes <= 250_000
    kept.put("huge", array(900))
    assert len(kept) == 1
    assert kept.get("huge") is not None


def test_headers_count_as_well(clock: Clock) -> None:
    kept = Store(10**6, 10, clock)
    kept.put("headers", SimpleNamespace(slices=[{"uid": f"{'1.2.' * 100}{i}"} for i in range(100)]))
    assert kept.nbytes > 40_000


def test_entries_expire_after_their_last_use(clock: Clock) -> None:
    kept = Store(10**6, 3600, clock)
    kept.put("a", array(1))
    kept.put("b", array(1))
    clock.now = 3000
    assert kept.get("a") is not None
    clock.now = 3600
    assert len(kept) == 1
    assert kept.get("b") is None
    clock.now = 6600
    assert len(kept) == 0
    assert kept.nbytes == 0


def test_entries_go_with_the_last_session_they_are_for(clock: Clock) -> None:
    kept = Store(10**6, 3600, clock)
    kept.put("shared", array(1), "one")
    kept.get("shared", "two")
    kept.put("own", array(1), "one")
    kept.put("nobody's", array(1))
    kept.end("one")
    assert kept.get("own") is None
    assert kept.get("shared") is not None
    kept.end("two")
    assert kept.get("shared") is None
    assert kept.get("nobody's") is not None


def test_a_session_leaves_nothing(kept: Store, tmp_path: Path) -> None:
    file = str(example_file("chest-round", tmp_path))
    scan = store.open_scan([file], CHEST, session="s")
    assert store.open_scan([file], CHEST, session="s") is scan
    store.note_inputs("s", inputs([file]))
    store.note_opened("s", ([file], "chest-ct", None))
    store.remember("s", inputs([file]), (scan, CHEST, {}, None))
    folder = TemporaryDirectory(dir=tmp_path)
    store.keep_folder("s", folder)
    place, gone = Path(folder.name), weakref.ref(scan)
    del folder, scan
    store.end_session("s")
    gc.collect()
    assert not place.exists()
    assert gone() is None
    assert len(kept) == len(store._inputs) == len(store._folders) == 0


def test_two_scans_whose_names_do_not_tell_which_is_before_contrast_are_refused(
    kept: Store, tmp_path: Path
) -> None:
    files = []
    for name in ("one.nii", "two.nii"):
        (tmp_path / name).write_bytes(b"")
        files.append(str(tmp_path / name))
    with pytest.raises(ScanError, match="before contrast"):
        store.open_scan(files, BREAST)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("chest.nii.gz", "chest"),
        ("../../etc/passwd", "etc-passwd"),
        ("a\\b\0c:d.NRRD", "a-b-c-d"),
        ("...", "scan"),
        ("", "scan"),
        ("胸部", "scan"),
        ("Röntgen 2.5 mm", "Rontgen-2-5-mm"),
        ("x" * 300, "x" * 60),
        ("-rf *", "rf"),
    ],
)
def test_a_scans_files_have_a_safe_short_name(name: str, stem: str) -> None:
    assert safe_stem(name) == stem


def inputs(files: list[str]) -> store.Inputs:
    return store.Inputs(tuple(files), "chest-ct", "", None, None, (), None, None, False, False, False)


def explain(files: list[str], mst: str | None = None) -> list[Any]:
    return events.explain(inputs(files)._replace(mst=mst), "s", lambda *args, **options: None)


def show(files: list[str], mst: str | None = None) -> list[Any]:
    return events.show_scan(inputs(files)._replace(mst=mst), "s")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "changed",
    [
        {"files": ("other.nii",)},
        {"task": "knee-mri"},
        {"center": "1, 2, 3"},
        {"mask": "mask.nii"},
        {"side": "left"},
        {"pre": ("pre.nii",)},
        {"mst": "other"},
        {"resnet": "other"},
        {"tta": True},
        {"interval": True},
    ],
)
def test_an_answer_to_former_inputs_is_dropped(
    kept: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], fails: bool
) -> None:
    file = str(example_file("chest-round", tmp_path))

    def predict(*args: Any, **options: Any) -> dict:
        store.note_inputs("s", inputs([file])._replace(**changed))
        if fails:
            raise ScanError("an error of the former scan")
        return {}

    monkeypatch.setattr(events, "predict", predict)
    answer = explain([file])
    status, told, *kept = answer
    assert all(part == gr.skip() for part in (status, *kept)), answer
    # The viewer no longer waits for maps of these inputs.
    assert told.startswith('<template data-mst="settle">')
    assert store.take_result("s") is None


def test_a_scan_drawn_late_does_not_wipe_out_why_there_is_no_answer(kept: Store, tmp_path: Path) -> None:
    """The page draws the scan anew when a checkpoint is chosen, which may come after the answer that was asked for."""
    file = str(example_file("chest-round", tmp_path))
    alert = explain([file], mst="/etc")[0]
    assert "choose one of the list" in alert
    assert show([file], mst="/etc")[0] == alert
    assert "alert" not in show([file])[0]


def test_files_of_a_scan_that_is_no_longer_open_are_not_offered(
    kept: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(example_file("chest-round", tmp_path))
    scan = store.open_scan([file], CHEST, session="s")
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(events, "cache_folder", lambda: cache)

    def write_results(folder: Path, *args: Any, **options: Any) -> dict[str, Path]:
        (folder / "prediction.json").write_text("{}")
        return {"prediction.json": folder / "prediction.json"}

    monkeypatch.setattr(events, "write_results", write_results)
    request = SimpleNamespace(session_hash="s")
    for opened, offered in ((file, True), ("other.nii", False)):
        store.remember("s", inputs([file]), (scan, CHEST, {}, None))
        store.note_opened("s", ([opened], "chest-ct", None))
        updates = events.write_files(request)
        values = [Path(update["value"]).name for update in updates if update.get("value")]
        assert values == (["simulated-chest-round_prediction.json"] if offered else [])
        assert store.take_result("s") is None
        gc.collect()
        assert len(list(cache.iterdir())) == 1  # the first, which is still offered


@pytest.mark.parametrize(
    ("before", "files", "replaces"),
    [
        ([], ["a.nii"], False),
        (["a.nii"], ["a.nii", "b.nii"], True),
        (["a.nii"], [], True),
        (["1.dcm"], ["1.dcm", "2.dcm"], False),
    ],
)
def test_mask_spot_and_contrast_go_with_the_scan_they_were_given_for(
    kept: Store, before: list[str], files: list[str], replaces: bool
) -> None:
    request = SimpleNamespace(session_hash="s")
    scan, uploaded, opening, *given, shift, _status, _viewer, _spot, results, downloads = events.take_upload(
        files, "chest-ct", ["pre.nii"], before, "", "", request
    )
    assert given == (["", None, None, None] if replaces else [gr.skip()] * 4)
    assert shift == (gr.update(value=False, visible=False) if replaces else gr.skip())
    assert opening == ""
    assert results == ""
    assert downloads == gr.update(visible=False)
    # What the page then sends again changes nothing more.
    again = events.take_upload(uploaded, "chest-ct", None, uploaded, "", "", request)
    assert again == [gr.skip(), gr.skip(), "", *[gr.skip()] * 10]


def test_a_scan_that_somebody_else_uploads_again_is_the_same(kept: Store, tmp_path: Path) -> None:
    """Gradio keeps one file of both uploads, written anew: the maps must still find the viewer that shows it."""
    file = tmp_path / "scan.nii"
    file.write_bytes(b"1")
    before = store.scan_key(inputs([str(file)]))
    os.utime(file, (1, 1))
    assert store.scan_key(inputs([str(file)])) == before
    assert store.scan_key(inputs([str(file)])._replace(shift=True)) != before


def large_scan(value: int = 0) -> Scan:
    voxels = np.zeros((200, 200, 50), np.float32)
    voxels[0, 0, 0] = value
    return Scan(voxels, np.eye(4))


def test_slices_are_served_to_the_page_that_shows_the_scan_and_no_longer(kept: Store) -> None:
    first = store.stream_slices("s", "a", large_scan())
    assert first is not None
    assert store.slices_of(first[1]) is first[0]
    # The same scan keeps its token, whoever asks again; another takes its place.
    assert store.stream_slices("s", "a", large_scan()) == first
    other = store.stream_slices("s", "b", large_scan())
    assert other is not None
    assert store.slices_of(first[1]) is None
    assert store.slices_of(other[1]) is other[0]
    assert store.stream_slices("s", "c", Scan(np.zeros((9, 9, 9), np.float32), np.eye(4))) is None
    assert store.slices_of(other[1]) is None
    another = store.stream_slices("t", "a", large_scan())
    assert another is not None
    store.end_session("t")
    assert store.slices_of(another[1]) is None


def test_a_scan_whose_slices_are_gone_is_sent_again(kept: Store) -> None:
    made = store.stream_slices("s", "a", large_scan())
    assert made is not None
    store.note_shown("s", "a")
    assert store.is_shown("s", "a")
    store._kept.take(("slices", made[1]))
    assert not store.is_shown("s", "a")


def test_a_scan_read_too_late_leaves_that_which_is_open(
    kept: Store, tmp_path: Path, monkeypatch: Any
) -> None:
    """Two whole CTs one after the other: the first, read last, must not take the second one's slices."""
    scans = {"a.nii": large_scan(), "b.nii": large_scan(1)}
    for name in scans:
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(events, "open_scan", lambda files, *args, **options: scans[Path(files[0]).name])
    monkeypatch.setattr(events, "_pointed", lambda *args: ("facts", "spot"))
    late, now = ([str(tmp_path / name)] for name in scans)
    store.note_opened("s", (now, "chest-ct", None))
    assert isinstance(show(now)[1], str)
    assert all(part == gr.skip() for part in show(late))
    _, token = store._inputs.get(("slices", "s"))
    assert store.slices_of(token) is not None
    # Shown already, it is not sent again.
    assert show(now)[1] == gr.skip()


def test_the_first_example_gives_way_to_a_scan_of_ones_own(kept: Store) -> None:
    assert store.open_first("s", (("example.nii",), "chest-ct", None))
    store.note_example("s", "example.nii")
    assert store.files_of("s", None) == ("example.nii",)
    assert store.files_of("s", ["own.nii"]) == ("own.nii",)
    assert not store.open_first("s", (("example.nii",), "chest-ct", None))
    store.note_example("s", None)
    assert store.files_of("s", []) == ()
