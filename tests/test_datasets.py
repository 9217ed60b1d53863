"""The sample capture: found where people keep it, else downloaded from a server on loopback; hashes are compared."""

import hashlib
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import cuao3d
from cuao3d import datasets
from cuao3d.datasets import LOUNGE_ADDRESS, LOUNGE_FILES, lounge
from cuao3d.errors import InputError, NotFoundError
from cuao3d.files import sha256_of

FOLDER = "/nvblox/tests/data/3dmatch"
PATHS = {
    name: {"LICENSE": f"/{name}", "camera-intrinsics.txt": f"{FOLDER}/{name}"}.get(name, f"{FOLDER}/seq-01/{name}")
    for name in LOUNGE_FILES
}
"""Where each file lies in the repository."""


class Server:
    """Serves files by their paths, and remembers which were asked for."""

    def __init__(self) -> None:
        self.files = {path: f"content of {name}".encode() for name, path in PATHS.items()}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                body = outer.files.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server with small files in place of the real ones, on a machine that has none of them."""
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(datasets, "LOUNGE_ADDRESS", server.address)
    hashes = {name: hashlib.sha256(server.files[path]).hexdigest() for name, path in PATHS.items()}
    monkeypatch.setattr(datasets, "LOUNGE_FILES", hashes)
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CUAO3D_OFFLINE")
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def test_it_is_downloaded_once_and_a_lost_file_again(server, tmp_path, capsys):
    folder = cuao3d.datasets.lounge()
    assert folder == tmp_path / "cache" / "datasets" / "lounge"
    assert {path.name for path in folder.iterdir()} == set(PATHS)
    assert sorted(server.asked) == sorted(PATHS.values())
    assert "2 MB, Apache-2.0" in " ".join(capsys.readouterr().err.split())
    server.asked.clear()
    assert lounge() == folder
    assert server.asked == []
    (folder / "frame-000116.color.png").unlink()
    (folder / "frame-000422.pose.txt").write_text("damaged")
    assert lounge() == folder
    assert sorted(server.asked) == [f"{FOLDER}/seq-01/frame-000116.color.png", f"{FOLDER}/seq-01/frame-000422.pose.txt"]
    assert (folder / "frame-000422.pose.txt").read_text() == "content of frame-000422.pose.txt"


def test_another_file_is_not_taken(server):
    server.files[PATHS["frame-000001.depth.png"]] = b"another file"
    with pytest.raises(NotFoundError, match=r"frame-000001.depth.png did not give the file"):
        lounge()


def test_without_a_network_it_says_how(server, monkeypatch):
    monkeypatch.setenv("CUAO3D_OFFLINE", "1")
    with pytest.raises(NotFoundError, match=r"CUAO3D_OFFLINE forbids downloading.*CUAO3D_DATA"):
        lounge()
    monkeypatch.delenv("CUAO3D_OFFLINE")
    folder = lounge()
    monkeypatch.setenv("CUAO3D_OFFLINE", "1")
    assert lounge() == folder


def test_a_folder_of_data_comes_first_and_is_checked(server, monkeypatch, tmp_path):
    mine = tmp_path / "data" / "lounge"
    shutil.copytree(lounge(), mine)
    (mine / "notes.txt").touch()
    (mine / "LICENSE").unlink()
    monkeypatch.setenv("CUAO3D_DATA", str(mine.parent))
    server.asked.clear()
    assert lounge() == mine
    assert server.asked == []
    (mine / "frame-000000.pose.txt").write_text("my own")
    with pytest.raises(InputError, match=rf"{mine / 'frame-000000.pose.txt'} is not the published file"):
        lounge()
    (mine / "frame-000000.pose.txt").unlink()
    with pytest.raises(NotFoundError, match=rf"{mine / 'frame-000000.pose.txt'} is missing"):
        lounge()
    monkeypatch.setenv("CUAO3D_DATA", str(tmp_path / "elsewhere"))
    assert lounge() == tmp_path / "cache" / "datasets" / "lounge"


@pytest.mark.data
def test_the_known_files_are_those_of_the_data(lounge_folder, monkeypatch):
    assert LOUNGE_ADDRESS.startswith("https://raw.githubusercontent.com/nvidia-isaac/nvblox/7c76f90")
    assert {name: sha256_of(lounge_folder / name) for name in LOUNGE_FILES} == LOUNGE_FILES
    monkeypatch.setenv("CUAO3D_DATA", str(lounge_folder.parent))
    assert lounge() == lounge_folder
