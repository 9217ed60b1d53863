"""A hub on loopback that serves repositories as the Hugging Face hub does, for tests of downloads."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMITS = {"main": "a" * 40, "v2": "b" * 40}
"""Commits of the branches that every repository has; both hold the same files."""


@dataclass
class Hub:
    """What is served, and what was asked for."""

    repositories: dict[str, dict[str, bytes]]
    """Files by their names, by repository."""
    cut: set[str] = field(default_factory=set)
    """Files whose downloads end half-way."""
    requests: list[str] = field(default_factory=list)
    """Method and path of each request."""
    address: str = ""


def is_large(file: str) -> bool:
    """Say whether the hub keeps a file outside git, under its SHA-256."""
    return file.endswith((".safetensors", ".bin"))


def name_of_blob(file: str, content: bytes) -> str:
    """Return the name of a file's content: SHA-256 of a large one, git's SHA-1 of a small one."""
    if is_large(file):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    """Serve repositories until the block ends."""
    hub = Hub({name: dict(files) for name, files in repositories.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answers(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        files = self.hub.repositories.get("/".join(parts[:2]))
        if files is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif not is_api:
            _, _, _, revision, *file = parts
            self._send_file("/".join(file), files, COMMITS.get(revision, revision))
        elif parts[2:3] == ["tree"]:
            self._send_json([_entry(file, content) for file, content in files.items()])
        else:
            revision = parts[3] if len(parts) > 3 else "main"
            siblings = [{"rfilename": file} for file in files]
            self._send_json({"id": "/".join(parts[:2]), "sha": COMMITS.get(revision, revision), "siblings": siblings})

    def _send_file(self, file: str, files: Mapping[str, bytes], commit: str) -> None:
        content, start = files[file], 0
        headers = {"ETag": f'"{name_of_blob(file, content)}"', "X-Repo-Commit": commit}
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if asked else 200, content[start:], headers, cut=file in self.hub.cut)

    def _send_json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = self.close_connection or cut


def _entry(file: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": file, "size": len(content), "oid": "c" * 40}
    if is_large(file):
        entry["lfs"] = {"oid": name_of_blob(file, content), "size": len(content), "pointerSize": 130}
    return entry
