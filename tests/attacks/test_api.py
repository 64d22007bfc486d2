"""What strangers can have the web API do: with files that were never uploaded, without a session, and with nonsense."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock
from typing import Any, NamedTuple

import gradio
import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from serving import ROOT, serve_dashboard

from mst.dashboard import build_app, events, store, work
from mst.dashboard.gate import NO_SESSION, NOT_UNDERSTOOD, NOT_UPLOADED
from mst.data.examples import example_file, example_scan
from mst.models import CheckpointError
from mst.models.loading import checkpoints_folder

MARK = "a secret of the server "
SITE_PACKAGES = Path(gradio.__file__).parents[1]
WEB = httpx.Client(timeout=120)
PLACES = {ROOT, ROOT.resolve(), checkpoints_folder(), SITE_PACKAGES, SITE_PACKAGES.resolve(), Path.home()}


class Server(NamedTuple):
    """A dashboard that is served, and what lies beside it.

    Attributes:
        url: its address, without a slash at the end.
        uploads: Gradio's upload folder.
        scan: a scan of the server that was never uploaded.
        inside: the same below the folder that the server runs in.
    """

    url: str
    uploads: Path
    scan: Path
    inside: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    uploads = tmp_path_factory.mktemp("uploads")
    scan = example_file("chest-round", tmp_path_factory.mktemp("server"))
    inside = ROOT / f"not-uploaded-{secrets.token_hex(4)}.nii.gz"
    inside.write_bytes(scan.read_bytes())
    try:
        with serve_dashboard(GRADIO_TEMP_DIR=str(uploads), MST_SECRET=MARK) as url:
            yield Server(url.rstrip("/"), uploads, scan, inside)
    finally:
        inside.unlink()


@pytest.fixture(scope="module")
def uploaded(server: Server) -> str:
    """The path of a scan that was uploaded, as the server gives it."""
    with server.scan.open("rb") as file:
        return WEB.post(f"{server.url}/gradio_api/upload", files={"files": file}).json()[0]


def file_data(path: Any, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def config(server: Server) -> dict[str, Any]:
    return WEB.get(f"{server.url}/config").json()


def event_number(server: Server, name: str) -> int:
    return next(event["id"] for event in config(server)["dependencies"] if event["api_name"] == name)


def by_queue(server: Server, number: int, data: list[Any], session: str | None = None) -> str:
    """Everything that the queue answers to an event's inputs, as text."""
    session = secrets.token_hex(8) if session is None else session
    body = {"fn_index": number, "data": data, "session_hash": session}
    joined = WEB.post(f"{server.url}/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return joined.text
    answer = WEB.get(f"{server.url}/gradio_api/queue/data", params={"session_hash": session}).text
    return json.dumps([json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: ")])


def by_call(server: Server, data: list[Any]) -> str:
    """The same of /predict by the two requests that the API's page shows for curl."""
    url = f"{server.url}/gradio_api/call/predict"
    joined = WEB.post(url, json={"data": data})
    if joined.status_code != 200:
        return joined.text
    return WEB.get(f"{url}/{joined.json()['event_id']}").text


def paths_in(answer: str, *more: Path) -> list[str]:
    return [str(place) for place in {*PLACES, *more} if str(place) in answer]


def others(server: Server, uploaded: str) -> dict[str, Any]:
    """Name -> what stands for a file and is none that was uploaded."""
    link = Path(uploaded).with_name("link.nii.gz")
    if not link.is_symlink():
        link.symlink_to(server.scan)
    result = server.uploads / "result-of-another"
    result.mkdir(exist_ok=True)
    (result / "mst_saliency.nii.gz").write_bytes(server.scan.read_bytes())
    port = httpx.URL(server.url).port
    return {
        "a file of the server": str(server.scan),
        "a file of the server's folder": str(server.inside),
        "the same, relative": server.inside.name,
        "environment": "/proc/self/environ",
        "file URL": f"file://{server.scan}",
        "URL of the machine itself": f"http://127.0.0.1:{port}/config",
        "URL of the machine by name": f"http://localhost:{port}/scan.nii.gz",
        "URL elsewhere": "https://example.com/scan.nii.gz",
        "URL in capitals": f"HTTP://127.0.0.1:{port}/scan.nii.gz",
        "data URL": "data:application/gzip;base64,H4sIAAAAAAAAAwMAAAAAAAAAAAA=",
        "all uploads": str(server.uploads),
        "an upload's folder": str(Path(uploaded).parent),
        "a link among the uploads": str(link),
        "out of an upload's folder": f"{Path(uploaded).parent}/../../../{server.scan.parent.name}/{server.scan.name}",
        "a result of another": str(result / "mst_saliency.nii.gz"),
        "missing": str(server.uploads / ("0" * 64) / "scan.nii.gz"),
        "null byte": f"{uploaded}\0",
        "too long": "/" + "a" * 5000,
        "empty": "",
        "number": 7,
        "nothing": None,
    }


@pytest.mark.parametrize("place", ["scan", "mask", "task"])
def test_predict_takes_nothing_but_uploads(server: Server, uploaded: str, place: str) -> None:
    number = event_number(server, "predict")
    wrong = []
    for name, path in others(server, uploaded).items():
        given = file_data(path, url=server.url, is_stream=True) if "folder" in name else file_data(path)
        data: list[Any] = [[file_data(uploaded)], "chest-ct", "", None]
        index = {"scan": 0, "task": 1, "mask": 3}[place]
        data[index] = [given] if place == "scan" else given
        answer = by_queue(server, number, data) if place == "scan" else by_call(server, data)
        if NOT_UPLOADED not in answer or paths_in(answer, server.uploads, server.scan.parent):
            wrong.append((name, answer))
    assert not wrong


def test_every_event_of_the_page_takes_nothing_but_uploads(server: Server, uploaded: str) -> None:
    components = {part["id"]: part for part in config(server)["components"]}
    wrong, tried = [], 0
    for event in config(server)["dependencies"]:
        for index, part in enumerate(event["inputs"]):
            if components[part]["type"] != "file":
                continue
            several = components[part]["props"].get("file_count") == "multiple"
            for path in (str(server.scan), server.inside.name, str(server.uploads)):
                data: list[Any] = [None] * len(event["inputs"])
                data[index] = [file_data(path)] if several else file_data(path)
                answer = by_queue(server, event["id"], data)
                tried += 1
                if NOT_UPLOADED not in answer or paths_in(answer, server.uploads):
                    wrong.append((event["api_name"], answer))
    assert tried > 20
    assert not wrong


@pytest.mark.parametrize(
    "given",
    [
        "{path}",
        {"path": "{path}"},
        {"path": "{path}", "meta": {"_type": "other"}},
        {"path": "{path}", "meta": None},
        {"url": "{path}", "meta": {"_type": "gradio.FileData"}},
        {"data": "data:;base64,AAAA", "name": "scan.nii"},
    ],
)
def test_a_file_without_its_mark_is_none(server: Server, given: Any) -> None:
    text = json.dumps(given).replace("{path}", str(server.scan))
    for answer in (
        by_call(server, [[json.loads(text)], "chest-ct", "", None]),
        by_call(server, [json.loads(text), "chest-ct", "", None]),
    ):
        assert NOT_UPLOADED in answer or NOT_UNDERSTOOD in answer
        assert not paths_in(answer, server.scan.parent)


def test_gradio_client_uploads_and_has_nothing_fetched(server: Server) -> None:
    client = Client(server.url, verbose=False)
    record = client.predict([handle_file(server.scan)], "chest-ct", "", None, api_name="/predict")
    assert set(record["models"]) == {"mst", "resnet"}
    for url in (f"{server.url}/config", "http://localhost/scan.nii.gz", "https://example.com/scan.nii.gz"):
        with pytest.raises(AppError, match="was not uploaded here"):
            client.predict([handle_file(url)], "chest-ct", "", None, api_name="/predict")


def test_an_upload_is_read_by_every_way(server: Server, uploaded: str) -> None:
    data = [[file_data(uploaded)], "chest-ct", "", None]
    assert "probabilities" in by_call(server, data)
    assert "probabilities" in by_queue(server, event_number(server, "predict"), data)


def test_no_address_serves_other_files_or_fetches_others(server: Server) -> None:
    port = httpx.URL(server.url).port
    for door in ("file=", "file/", "proxy="):
        for path in (
            str(server.scan),
            str(server.inside),
            server.inside.name,
            "/proc/self/environ",
            f"file://{server.inside}",
            f"http://127.0.0.1:{port}/config",
            f"http%3A%2F%2F127.0.0.1:{port}/config",
            "https://example.com/",
            f"{server.uploads}/../{server.scan.parent.name}/{server.scan.name}",
        ):
            answer = WEB.get(f"{server.url}/gradio_api/{door}{path}")
            assert answer.status_code in (400, 403, 404), (door, path, answer.status_code)
            assert MARK not in answer.text


def test_calls_without_a_session_are_refused(server: Server, uploaded: str) -> None:
    for event in config(server)["dependencies"]:
        if not event["backend_fn"]:
            continue  # the browser's own, which does nothing here
        data = [[file_data(uploaded)], "chest-ct", "", None, None, None, "", "", False, False][
            : len(event["inputs"])
        ]
        for door in ("run", "api"):
            for name, body in (
                ("predict", {"fn_index": event["id"], "data": data}),
                ("predict", {"fn_index": event["id"], "data": data, "session_hash": "None"}),
                (event["api_name"], {"data": data}),
            ):
                answer = WEB.post(f"{server.url}/gradio_api/{door}/{name}", json=body)
                assert answer.status_code == 404
                assert "join the queue" in answer.text
        joined = WEB.post(f"{server.url}/gradio_api/queue/join", json={"fn_index": event["id"], "data": data})
        assert joined.status_code == 400


@pytest.mark.parametrize("session", [None, ""])
def test_no_event_runs_without_a_session(session: str | None) -> None:
    """Whatever way Gradio leaves open: the last result of "no session" would be shared by all who have none."""
    app = build_app()
    event = app.process_api(block_fn=next(iter(app.fns)), inputs=["chest-ct"], session_hash=session)
    # In a thread of its own: a browser test in this process keeps an event loop running.
    with ThreadPoolExecutor(1) as pool, pytest.raises(gradio.Error) as refused:
        pool.submit(asyncio.run, event).result()
    assert refused.value.message == NO_SESSION


def test_no_answer_names_a_path_of_the_server(server: Server, uploaded: str) -> None:
    """The page, what it is made of, and each event with inputs that fit and that do not."""
    answers = {}
    for place in (
        "/",
        "/config",
        "/gradio_api/info",
        "/gradio_api/info?all_endpoints=true",
        "/gradio_api/openapi.json",
        "/gradio_api/runs",
        "/gradio_api/startup-events",
        "/gradio_api/queue/status",
        "/theme.css",
        "/monitoring",
        "/no-such-page",
        "/gradio_api/file=no-such-file",
        "/static/../../x",
    ):
        answers[place] = WEB.get(server.url + place).text
    assert "chest-ct-mst" in answers["/config"]
    good: list[Any] = [[file_data(uploaded)], "chest-ct", "", None, None, None]
    asked = config(server)
    names = {part["id"]: part["props"].get("elem_id") for part in asked["components"]}
    for event in asked["dependencies"]:
        fields = [names.get(part) for part in event["inputs"]]
        count = len(event["inputs"])
        for data in (
            [],
            [None] * count,
            ["x"] * count,
            [{}] * count,
            [{"path": "x"}] * count,
            [[[]]] * count,
            [json.loads("[" * 900 + "]" * 900)] * count,
            good[:count],
            *(
                [{"scan": good[0], "task": "chest-ct", "center": "", **change}.get(field) for field in fields]
                for change in (
                    {"checkpoint-mst": "chest-ct-mst", "checkpoint-resnet": "chest-ct-resnet"},
                    {"checkpoint-mst": "../chest-ct-mst", "checkpoint-resnet": "/srv/elsewhere"},
                    {"task": "foot", "center": "x", "tta": "x", "interval": "x"},
                )
            ),
        ):
            answers[f"{event['api_name']} {json.dumps(data)[:2000]}"] = by_queue(server, event["id"], data)
    told = {name: found for name, answer in answers.items() if (found := paths_in(answer))}
    assert not told
    refused = "choose one of the list"
    assert any(refused in answer for answer in answers.values())
    assert not any("Traceback" in answer for answer in answers.values())
    assert not any("object at 0x" in answer for answer in answers.values())


def test_a_damaged_checkpoint_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models" / "chest-ct-mst"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((checkpoints_folder() / "chest-ct-mst" / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(b"damaged")
    monkeypatch.setenv("MST_CHECKPOINTS", str(folder.parent))
    with pytest.raises(CheckpointError, match=r"^chest-ct-mst: ") as refused:
        work.predict(example_scan("chest-round"), "chest-ct", models={"mst": "chest-ct-mst"})
    assert str(tmp_path) not in str(refused.value)


def test_plotly_is_served_by_a_relative_address_that_may_be_kept(server: Server) -> None:
    head = config(server)["head"]
    (address,) = [part for part in head.split('"') if "plotly" in part and part.endswith(".js")]
    assert not address.startswith(("/", "http"))
    answer = WEB.get(f"{server.url}/{address}")
    assert answer.status_code == 200
    assert "javascript" in answer.headers["content-type"]
    assert "max-age=" in answer.headers["cache-control"]
    assert "plotly.js v" in answer.text[:200]


def test_reading_and_predicting_have_one_limit() -> None:
    assert store.read_scan is work.read_scan
    assert (events.predict, events.as_mask) == (work.predict, work.as_mask)
    lock, go, full = Lock(), Event(), Event()
    running, most = 0, 0

    def heavy(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if running == work.AT_ONCE:
            full.set()
        go.wait(30)
        with lock:
            running -= 1
        return number

    functions = [work.limited(heavy), work.limited(heavy)]
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(functions[number % 2], number) for number in range(8)]
        assert full.wait(30)
        assert not work._places.acquire(blocking=False)
        go.set()
        assert [call.result(30) for call in calls] == list(range(8))
    assert most == work.AT_ONCE
