"""A small stand-in for the Hugging Face hub: enough of its API to create, push to and read a repository."""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Repositories in memory, served on a free local port while the block runs.

    Attributes:
        files: repository id -> {path: content}.
        gated: repository ids that ask for a licence: without a token they answer 401, with one 403.
        bad_tokens: access tokens that are refused.
        broken: repository ids for which the server fails.
        private: repository id -> whether it was made private.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.bad_tokens: set[str] = set()
        self.broken: set[str] = set()
        self.private: dict[str, bool] = {}

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def _json(self, value: object, status: int = 200) -> None:
                self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

            def do_GET(self) -> None:
                parts = unquote(self.path.split("?")[0]).strip("/").split("/")
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                if token in hub.bad_tokens:
                    refusal = "Invalid credentials in Authorization header"
                    return self._send(401, b"", {"X-Error-Message": refusal})
                if "resolve" not in parts:
                    return self._json({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": []})
                at = parts.index("resolve")
                repository, name = "/".join(parts[:at]), "/".join(parts[at + 2 :])
                if repository in hub.broken:
                    return self._send(500)
                if repository in hub.gated:
                    return self._send(403 if token else 401, b"", {"X-Error-Code": "GatedRepo"})
                if repository not in hub.files:
                    return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
                if name not in hub.files[repository]:
                    return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                body = hub.files[repository][name]
                etag = hashlib.sha1(body).hexdigest()
                return self._send(200, body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

            do_HEAD = do_GET  # noqa: N815

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = unquote(self.path.split("?")[0])
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                if not token or token in hub.bad_tokens:
                    return self._send(401, b"", {"X-Error-Message": "Invalid username or password."})
                if path == "/api/repos/create":
                    data = json.loads(body)
                    name = f"{data.get('organization') or 'me'}/{data['name']}"
                    hub.files.setdefault(name, {})
                    hub.private.setdefault(
                        name, bool(data.get("private", data.get("visibility") == "private"))
                    )
                    return self._json({"url": f"{hub.url}/{name}", "name": name})
                if path == "/api/validate-yaml":
                    return self._json({"errors": [], "warnings": []})
                if "/preupload/" in path:
                    files = json.loads(body)["files"]
                    return self._json(
                        {
                            "files": [
                                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                                for f in files
                            ]
                        }
                    )
                if "/commit/" in path:
                    repository = path.split("/api/models/")[1].split("/commit/")[0]
                    for line in body.splitlines():
                        entry = json.loads(line)
                        if entry["key"] == "file":
                            content = base64.b64decode(entry["value"]["content"])
                            hub.files.setdefault(repository, {})[entry["value"]["path"]] = content
                    return self._json(
                        {"commitUrl": f"{hub.url}/{repository}/commit/{COMMIT}", "commitOid": COMMIT}
                    )
                return self._send(404)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
