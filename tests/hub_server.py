"""A loopback HTTP server that plays the Hugging Face hub for the real ``huggingface_hub`` and ``datasets`` clients."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """One model and one data set repository.

    Attributes:
        repositories: ``{"models/owner/name": {path: bytes}, "datasets/owner/name": …}``.
        faults: ``{part of a request's path: fault}``; a fault is an HTTP status, ``"gated"`` or ``"truncate"``: half
            the body, then a closed connection.
        sound_requests: how many requests are answered well before the faults begin.
        requests: method, path and ``Authorization`` header of each request so far.
    """

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.faults: dict[str, int | str] = {}
        self.sound_requests = 0
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, path: str) -> int | str | None:
        """The fault to show for a request."""
        if len(self.requests) <= self.sound_requests:
            return None
        return next((fault for part, fault in self.faults.items() if part in path), None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def do_POST(self):
        wanted = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self._answer(body=True, form=wanted)

    def log_message(self, *_):
        """Silence: the tests look at ``requests``."""

    def _answer(self, body: bool, form: str = "") -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Authorization")))
        fault = self.server.fault(path)
        if fault == "gated":
            return self._error(
                403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."}
            )
        if isinstance(fault, int):
            return self._error(fault, {})
        if path.startswith("/api/"):
            return self._api(path.removeprefix("/api/"), form)
        repository, _, rest = path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        key = repository if repository.startswith("datasets/") else f"models/{repository}"
        files = self.server.repositories.get(key)
        if files is None:
            return self._error(404, {"X-Error-Code": "RepoNotFound"})
        if revision != REVISION:
            return self._error(404, {"X-Error-Code": "RevisionNotFound"})
        if name not in files:
            return self._error(404, {"X-Error-Code": "EntryNotFound"})
        return self._file(files[name], body, fault)

    def _file(self, content: bytes, body: bool, fault: int | str | None) -> None:
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        piece = content[start:]
        if fault == "truncate":
            self.wfile.write(piece[: len(piece) // 2])
            self.close_connection = True
        else:
            self.wfile.write(piece)

    def _api(self, path: str, form: str) -> None:
        repository = next((key for key in self.server.repositories if f"{path}/".startswith(f"{key}/")), "")
        files = self.server.repositories.get(repository)
        if files is None:
            # what the hub answers when the repository does not exist or is private
            return self._error(401, {"X-Error-Code": "RepoNotFound"})
        verb, _, rest = path.removeprefix(repository).strip("/").partition("/")
        revision, _, inside = rest.partition("/")
        if revision not in (REVISION, ""):
            return self._error(404, {"X-Error-Code": "RevisionNotFound"})
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in sorted(files.items())
        ]
        folders = sorted({name.rpartition("/")[0] for name in files if "/" in name})
        entries += [{"type": "directory", "path": name, "size": 0, "oid": REVISION} for name in folders]
        if verb == "tree":
            under = [entry for entry in entries if not inside or entry["path"].startswith(f"{inside}/")]
            return self._json(under) if under else self._error(404, {"X-Error-Code": "EntryNotFound"})
        if verb == "paths-info":
            wanted = parse_qs(form).get("paths", [])
            return self._json([entry for entry in entries if entry["path"] in wanted])
        siblings = [{"rfilename": name} for name in sorted(files)]
        about = {"id": repository.partition("/")[2], "sha": REVISION, "siblings": siblings}
        return self._json(about | {"tags": [], "private": False, "downloads": 0, "likes": 0})

    def _json(self, content) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _error(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextlib.contextmanager
def running_hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """A hub that serves while the body runs."""
    hub = Hub(repositories)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
