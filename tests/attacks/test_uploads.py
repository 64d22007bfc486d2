"""Uploads that attack: none gets another file's bytes, another scan's voxels, or the process."""

from __future__ import annotations

import gzip
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from attacks.crafted import CRASHES, LINKS, READS_OTHERS, SHAPE, damaged_mha

from mst.scans import Scan, ScanError, read_scan, write_nifti
from mst.scans.decoding import decode_scan
from mst.scans.isolation import Decoder
from mst.scans.sandbox import landlock_version

MARK = b"a secret of the server "


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file of the server with marked bytes, beside the uploads."""
    path = tmp_path / "server" / "secret"
    path.parent.mkdir()
    path.write_bytes(MARK * 400)
    return path


def holds_the_mark(scan: Scan) -> bool:
    return MARK[:8] in scan.voxels.astype(np.uint8).tobytes(order="F")


def outcome(read: Callable[[], Scan]) -> tuple[Scan | None, str]:
    """(the scan, "") or (None, the sentence why there is none); anything else is a failure."""
    try:
        return read(), ""
    except ScanError as error:
        return None, str(error)


@pytest.mark.parametrize("decode", ["isolated", "in this process"])
@pytest.mark.parametrize("attack", READS_OTHERS)
def test_a_header_does_not_open_another_file(attack: str, decode: str, tmp_path: Path, target: Path) -> None:
    upload = tmp_path / "upload"
    upload.mkdir()
    files = READS_OTHERS[attack](upload, target)
    staging = tmp_path / "staging"
    staging.mkdir()
    # The readers' own rule has to hold where the system cannot restrict a process.
    scan, message = outcome(lambda: read_scan(files) if decode == "isolated" else decode_scan(files, staging))
    assert str(target) not in message
    assert MARK.decode() not in message
    assert scan is None or not holds_the_mark(scan)


@pytest.mark.skipif(not landlock_version(), reason="this system has no Landlock")
@pytest.mark.parametrize("attack", LINKS)
def test_a_link_in_an_upload_leads_nowhere(attack: str, tmp_path: Path, target: Path) -> None:
    upload = tmp_path / "upload"
    upload.mkdir()
    with pytest.raises(ScanError):
        read_scan(LINKS[attack](upload, target))


@pytest.mark.parametrize("attack", CRASHES)
def test_a_crafted_file_is_one_sentence_or_a_scan(attack: str, tmp_path: Path) -> None:
    files = CRASHES[attack](tmp_path, tmp_path / "none")
    scan, message = outcome(lambda: decode_scan(files, tmp_path))
    assert scan is None or scan.shape == SHAPE
    assert scan is not None or message.endswith(".")
    assert "\n" not in message
    assert len(message) < 300
    assert str(tmp_path) not in message


def test_a_header_is_read_in_a_time_that_grows_with_its_length(tmp_path: Path) -> None:
    """Twice as many spaces may not take four times as long."""

    def seconds(spaces: int) -> float:
        path = tmp_path / f"{spaces}.nrrd"
        path.write_bytes(b"NRRD0004\nx" + b" " * spaces + b"\n" + b" " * spaces + b"y:\n\n")
        fastest = np.inf
        for _ in range(5):
            start = time.perf_counter()
            with pytest.raises(ScanError):
                decode_scan([path], tmp_path)
            fastest = min(fastest, time.perf_counter() - start)
        return float(fastest)

    assert seconds(400_000) < 3 * seconds(200_000)


def test_what_is_not_decoded_whole_is_refused(tmp_path: Path) -> None:
    write_nifti(np.full(SHAPE, 77, np.float32) + np.eye(16)[:, :, None], np.eye(4), tmp_path / "before.nii")
    for _ in range(3):
        read_scan(tmp_path / "before.nii")
        with pytest.raises(ScanError, match=r"damaged|cut off"):
            read_scan(damaged_mha(tmp_path))


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    """These voxels unpack without a fault; only the checksum tells that they are not those that were packed."""
    raw = nib.Nifti1Image(np.arange(4096, dtype=np.int16).reshape(SHAPE), np.eye(4)).to_bytes()
    packed = bytearray(gzip.compress(raw))
    packed[-8] ^= 1
    path = tmp_path / "a.nii.gz"
    path.write_bytes(packed)
    with pytest.raises(ScanError, match="checksum"):
        read_scan(path)


# --- the decoding process


class Spy(Decoder):
    """A decoding process with further decoders, which do what a decoder that has been taken over would."""

    start = Decoder.start.replace(
        "serve(socket",
        "from mst.scans.worker import DECODERS; from attacks import spies; DECODERS.update(spies.DECODERS); "
        "serve(socket",
    )


@pytest.fixture(scope="module")
def spy() -> Any:
    decoder = Spy()
    yield decoder
    decoder.close()


@pytest.mark.skipif(not landlock_version(), reason="this system has no Landlock")
@pytest.mark.parametrize("what", ["file", "folder", "memory", "environment", "write", "root"])
def test_a_decoder_that_was_taken_over_sees_its_upload_alone(
    what: str, spy: Decoder, tmp_path: Path, target: Path
) -> None:
    upload = tmp_path / "upload.bin"
    upload.write_bytes(b"mine")
    with pytest.raises(ScanError, match="own b'mine', other PermissionError"):
        spy.decode("peek", [upload], "it", what=what, target=str(target), parent=os.getpid())


@pytest.mark.skipif(landlock_version() < 4, reason="this system's Landlock knows no network")
def test_a_decoder_that_was_taken_over_reaches_no_network(spy: Decoder, tmp_path: Path) -> None:
    upload = tmp_path / "upload.bin"
    upload.write_bytes(b"mine")
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(ScanError, match="PermissionError"):
        spy.decode("call", [upload], "it", port=server.getsockname()[1])


def test_a_decoder_that_crashes_is_one_sentence_and_the_next_scan_is_read(
    spy: Decoder, tmp_path: Path
) -> None:
    path = tmp_path / "a.nii"
    write_nifti(np.random.default_rng(0).normal(size=SHAPE), np.eye(4), path)
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL):
        with pytest.raises(ScanError, match=r"a\.nii could not be read"):
            spy.decode("die", [path], "a.nii", number=int(number))
    with pytest.raises(ScanError, match="could not be read"):
        spy.decode("panic", [path], "a.nii")
    assert spy.decode("scan", [path], "a.nii").shape == SHAPE


def test_the_decoding_process_is_replaced_when_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_nifti(np.random.default_rng(0).normal(size=SHAPE), np.eye(4), path)
    decoder = Decoder()
    try:
        assert decoder.decode("scan", [path], "a.nii").shape == SHAPE
        first = decoder.process_number
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert decoder.decode("scan", [path], "a.nii").shape == SHAPE
        assert decoder.process_number != first
    finally:
        decoder.close()


def test_a_decoder_that_takes_too_much_is_stopped(
    spy: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    monkeypatch.setattr("mst.scans.isolation.MEMORY", 1 << 29)
    with pytest.raises(ScanError, match="memory"):
        spy.decode("gorge", [path], "a.bin")
    monkeypatch.setattr("mst.scans.isolation.SECONDS", 1)
    for kind in ("spin", "sleep"):
        with pytest.raises(ScanError, match="could not be read"):
            spy.decode(kind, [path], "a.bin")


def test_many_at_once_each_get_their_own_scan(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    expected = {}
    for number in range(12):
        path = tmp_path / f"{number}.nii.gz"
        expected[path] = rng.integers(-900, 900, SHAPE).astype(np.float32)
        write_nifti(expected[path], np.eye(4), path)
    wrong: list[Path] = []

    def read(path: Path) -> None:
        for _ in range(3):
            if not np.array_equal(read_scan(path).voxels, expected[path]):
                wrong.append(path)

    threads = [threading.Thread(target=read, args=(path,)) for path in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_same_upload_that_comes_again_disturbs_no_reader(tmp_path: Path) -> None:
    """A class opens one file: each upload of it replaces the last, under one name."""
    folder, arriving = tmp_path / "upload", tmp_path / "arriving"
    folder.mkdir()
    arriving.mkdir()
    path = folder / "scan.nii.gz"
    voxels = np.random.default_rng(2).integers(-900, 900, SHAPE).astype(np.float32)
    write_nifti(voxels, np.eye(4), path)
    content = path.read_bytes()
    (folder / "scan (1).nii.gz").write_bytes(content)
    done = threading.Event()

    def upload() -> None:
        while not done.is_set():
            (arriving / "new").write_bytes(content)
            (arriving / "new").replace(path)

    uploads = threading.Thread(target=upload)
    uploads.start()
    try:
        assert all(np.array_equal(read_scan(path).voxels, voxels) for _ in range(20))
    finally:
        done.set()
        uploads.join()


def test_the_decoding_process_has_no_torch_and_no_secrets(
    spy: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fresh = Spy()
    try:
        with pytest.raises(ScanError) as caught:
            fresh.decode("about", [path], "a.bin")
    finally:
        fresh.close()
    assert "torch" not in str(caught.value)
    assert "hf_secret" not in str(caught.value)


def test_voxels_that_are_handed_over_are_the_readers_own(tmp_path: Path) -> None:
    """What one caller writes into its voxels, no other sees."""
    path = tmp_path / "a.nii"
    write_nifti(np.random.default_rng(0).normal(size=SHAPE), np.eye(4), path)
    first = read_scan(path)
    first.voxels[:] = 0
    assert read_scan(path).voxels.any()
