"""Vectors kept on disk: never made twice, never believed when damaged."""

import os
import time

import pytest
import torch
from torch.nn.functional import normalize

from cuao3d import seals
from cuao3d.text import cache
from cuao3d.text.cache import Cached, known_sha256, sha256_of_folder


class Lengths:
    """Toy encoder: the length of a text as an angle. Counts what it was asked."""

    num_channels = 2

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        return normalize(torch.tensor([[1.0, len(text)] for text in texts]), dim=1)


def never():
    raise AssertionError("nothing is to be loaded")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_text_is_encoded_once_on_any_day():
    words = Lengths()
    expected = words(["wall", "a", "wall", ""])
    words.asked.clear()
    cached = Cached("toy", lambda: words, "ab" * 32)
    assert torch.equal(cached(["wall", "a"]), expected[:2])
    assert torch.equal(cached(["wall", "a", "wall", ""]), expected)
    assert words.asked == ["wall", "a", ""]
    # Another day: another object, on the same disk.
    later = Cached("toy", never, "ab" * 32)
    assert torch.equal(later(["", "a", "wall"]), expected[[3, 1, 0]])
    assert later.num_channels == 2
    assert later([]).shape == (0, 2)


def test_another_model_and_another_kind_have_vectors_of_their_own():
    Cached("toy", Lengths, "ab" * 32)(["wall"])
    for kind, sha256 in (("toy", "cd" * 32), ("other", "ab" * 32)):
        with pytest.raises(AssertionError, match="nothing is to be loaded"):
            Cached(kind, never, sha256)(["wall"])


def test_texts_differ_by_every_letter():
    cached = Cached("toy", Lengths, "ab" * 32)
    cached(["wall"])
    for text in ("Wall", "wall ", "wäll"):
        with pytest.raises(AssertionError, match="nothing is to be loaded"):
            Cached("toy", never, "ab" * 32)([text])


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "flipped", "of another text", "not a unit"])
def test_a_damaged_file_is_ignored_and_written_again(folder, damage):
    expected = Cached("toy", Lengths, "ab" * 32)(["wall"])
    (file,) = folder.rglob("*.safetensors")
    sound = file.read_bytes()
    if damage == "flipped":
        file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 0x40]))
    elif damage == "of another text":
        Cached("toy", Lengths, "ab" * 32)(["a wall"])
        (other,) = set(folder.rglob("*.safetensors")) - {file}
        other.replace(file)
    elif damage == "not a unit":
        file.write_bytes(sound[:-8] + torch.tensor([1.0, 1.0]).numpy().tobytes())
    else:
        file.write_bytes({"cut": sound[:-3], "garbage": b"?" * 100, "empty": b""}[damage])
    words = Lengths()
    assert torch.equal(Cached("toy", lambda: words, "ab" * 32)(["wall"]), expected)
    assert words.asked == ["wall"]
    assert file.read_bytes() == sound


def test_where_nothing_can_be_kept_work_goes_on(folder):
    folder.write_text("a file where the folder should be")
    words = Lengths()
    cached = Cached("toy", lambda: words, "ab" * 32)
    assert torch.equal(cached(["wall"]), cached(["wall"]))
    assert words.asked == ["wall", "wall"]
    file = folder.with_name("model")
    file.write_bytes(b"abc")
    assert known_sha256(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_is_hashed_again_only_when_it_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(seals, "SETTLED", -1.0)
    file = tmp_path / "model"
    file.write_bytes(b"abc")
    hashed = []
    monkeypatch.setattr(cache, "sha256_of", lambda path: hashed.append(path.read_bytes()) or str(len(hashed)))
    assert [known_sha256(file), known_sha256(file)] == ["1", "1"]
    file.write_bytes(b"abcd")
    assert known_sha256(file) == "2"
    stat = file.stat()
    file.write_bytes(b"dcba")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert known_sha256(file) == "3"
    stat = file.stat()
    time.sleep(0.05)  # times on disk are coarse
    file.write_bytes(b"dbca")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert known_sha256(file) == "4", "size and time were kept"
    (note,) = (tmp_path / "cache" / "sha256").iterdir()
    sound = note.read_text()
    note.write_text("{")
    assert [known_sha256(file), known_sha256(file)] == ["5", "5"]
    note.write_text(sound.replace('"found": "4"', '"found": "9"'))
    assert known_sha256(file) == "6", "the note was damaged"
    other = tmp_path / "other"
    other.write_bytes(b"dcba")
    assert known_sha256(other) == "7"


def test_a_file_that_was_only_just_written_is_hashed_again(tmp_path):
    file = tmp_path / "model"
    file.write_bytes(b"abc")
    known_sha256(file)
    assert not (tmp_path / "cache" / "sha256").exists()


def test_the_hash_of_a_folder_is_that_of_what_its_model_reads(tmp_path):
    for name, content in {"config.json": "{}", "model.safetensors": "1", "README.md": "x"}.items():
        (tmp_path / name).write_text(content)
    before = sha256_of_folder(tmp_path)
    (tmp_path / "README.md").write_text("another")
    assert sha256_of_folder(tmp_path) == before
    (tmp_path / "config.json").write_text("{ }")
    assert sha256_of_folder(tmp_path) != before
