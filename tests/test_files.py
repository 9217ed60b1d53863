"""Facts about files that are read and written whole."""

import pytest

from cuao3d.errors import InputError, NotFoundError
from cuao3d.files import cache_folder, read_json


def test_a_json_object_is_read_with_and_without_a_byte_order_mark(tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.json").write_text('{"name": "café"}', encoding=encoding)
        assert read_json(tmp_path / "a.json") == {"name": "café"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", r"should hold a JSON object, \{...\}, not a list"),
        (b"null", r"should hold a JSON object, \{...\}, not a NoneType"),
    ],
)
def test_what_is_no_json_object_is_named_with_its_cure(tmp_path, content, words):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.json {words}.*; copy it again\.$"):
        read_json(tmp_path / "a.json", "copy it again")


def test_a_json_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"There is no file .*a\.json"):
        read_json(tmp_path / "a.json")


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.delenv("CUAO3D_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "cuao3d"
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
