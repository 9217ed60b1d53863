"""Files at fixed addresses, from a server on loopback: downloaded whole, tried again, or not there at all."""

import hashlib
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cuao3d import download, pinned
from cuao3d.cards import CARDS
from cuao3d.cli import main
from cuao3d.pinned import TRIES, download_pinned

CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@contextmanager
def answering(*answers):
    """Serve answers in turn, the last one for ever: bytes, a status, or "cut" for half of the content."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers[min(len(asked), len(answers) - 1)]
            asked.append(self.path)
            self.send_response(answer if isinstance(answer, int) else 200)
            body = b"" if isinstance(answer, int) else CONTENT if answer == "cut" else answer
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if answer == "cut" else body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/weights.bin", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Downloads are allowed, and wait for nothing."""
    monkeypatch.delenv("CUAO3D_OFFLINE")
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)


def test_a_file_is_downloaded_once(tmp_path):
    path = tmp_path / "deep" / "weights.bin"
    with answering(CONTENT) as (address, asked):
        download_pinned(address, path, SHA256)
        download_pinned(address, path, SHA256)
    assert path.read_bytes() == CONTENT
    assert asked == ["/weights.bin"]


@pytest.mark.parametrize("failure", [503, "cut", b"another file"])
def test_a_failure_is_tried_again(tmp_path, failure):
    with answering(failure, failure, CONTENT) as (address, asked):
        download_pinned(address, tmp_path / "weights.bin", SHA256)
    assert (tmp_path / "weights.bin").read_bytes() == CONTENT
    assert len(asked) == TRIES == 3


@pytest.mark.parametrize("failure", [404, "cut", b"another file"])
def test_what_never_comes_leaves_nothing(tmp_path, failure):
    with (
        answering(failure) as (address, asked),
        pytest.raises(FileNotFoundError, match=f"{address} did not give the file .*Is there a network"),
    ):
        download_pinned(address, tmp_path / "weights.bin", SHA256)
    assert len(asked) == TRIES
    assert list(tmp_path.glob("weights*")) == []
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_downloads_need_pooch(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    with pytest.raises(ImportError, match="pip install pooch"):
        pinned.download_pinned("http://127.0.0.1:9/", tmp_path / "file", SHA256)


@pytest.fixture
def card(monkeypatch):
    """Weights of one file of a known hash, whose address is set in a test."""
    card = replace(CARDS["ade20k"], files=("weights.bin",), sha256={"weights.bin": SHA256})
    monkeypatch.setitem(CARDS, "ade20k", card)
    return card


def test_weights_are_fetched_from_their_address_and_verified(card, monkeypatch, tmp_path, capsys):
    with answering(CONTENT) as (address, asked):
        monkeypatch.setitem(CARDS, "ade20k", replace(card, address=address))
        assert main(["weights", "fetch", "ade20k"]) == 0
        assert main(["weights", "fetch", "ade20k"]) == 0
    path = tmp_path / "cache" / "weights" / "ade20k" / "weights.bin"
    assert path.read_bytes() == CONTENT
    assert len(asked) == 1
    assert f"ade20k: {path}" in capsys.readouterr().out
    assert main(["weights", "verify"]) == 0
    assert f"ade20k: weights.bin {SHA256} (published)" in capsys.readouterr().out
    path.write_bytes(b"changed")
    assert main(["weights", "verify"]) == 2


def test_offline_forbids_it(card, monkeypatch, capsys):
    monkeypatch.setenv("CUAO3D_OFFLINE", "1")
    assert main(["weights", "fetch", "ade20k"]) == 2
    assert "CUAO3D_OFFLINE forbids downloading" in capsys.readouterr().err


def test_files_that_somebody_has_are_taken(card, tmp_path, capsys):
    mine = tmp_path / "my copy.tflite"
    mine.write_bytes(CONTENT)
    assert main(["weights", "add", "ade20k", str(mine)]) == 0
    path = tmp_path / "cache" / "weights" / "ade20k" / "weights.bin"
    assert str(path) in capsys.readouterr().out
    assert path.read_bytes() == mine.read_bytes()
    assert download.find("ade20k") == path


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Say which weights, and the files: cuao3d weights add NAME FILE..."),
        (["ade20k"], "Say which weights, and the files"),
        (["ade20k", "none.bin"], "There is no file none.bin"),
        (["no-such", "none.bin"], "Unknown weights 'no-such'"),
        (["ade20k", "{other}"], "is not the file that was published: its SHA-256 is"),
        (["vit", "{other}"], "is no file of the weights 'vit', which are *.json"),
    ],
)
def test_wrong_files_are_not_taken(card, tmp_path, capsys, arguments, complaint):
    (tmp_path / "other.zip").write_bytes(b"other")
    given = [argument.format(other=tmp_path / "other.zip") for argument in arguments]
    assert main(["weights", "add", *given]) == 2
    assert complaint in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "cache" / "weights").exists()


def test_a_model_needs_all_its_files(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["weights", "add", "vit", str(tmp_path / "config.json")]) == 2
    assert "'vit' are not on this machine" in capsys.readouterr().err.replace("\n", " ")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert main(["weights", "add", "vit", str(tmp_path / "config.json"), str(tmp_path / "model.safetensors")]) == 0
    assert [checked.basis for checked in download.verify("vit")] == ["recorded at first use"] * 2
