"""The examples and the README's code run as they stand, without downloads."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from cuao3d.cli import main
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.worlds.rooms import make_room

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_the_readmes_lines_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(lines, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


def test_a_teacher_from_a_file_of_ones_own_is_lifted_learned_and_scored(tmp_path, capsys):
    write_capture(make_room(0, num_views=2), tmp_path / "scan")
    teacher = f"{ROOT / 'examples' / 'your_own_teacher.py'}:ColorWords"
    store, run = tmp_path / "store", tmp_path / "run"
    assert main(["fuse", str(tmp_path / "scan"), "--teachers", teacher, "--cell", "0.1", "--out", str(store)]) == 0
    assert main(["distill", str(store), "--out", str(run), "--steps", "2"]) == 0
    assert main(["evaluate", str(store), "--run", str(run), "--split", "all", "--json", str(tmp_path / "s.json")]) == 0
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert [row["readout"] for row in rows] == ["distilled", "2d3d"]
    assert all(row["num_points"] > 1000 for row in rows)


@pytest.mark.parametrize(
    ("code", "complaint"),
    [("", "defines no Mine"), ("class Mine: pass", "is no teacher: it needs a name")],
)
def test_a_file_without_a_teacher_is_named(room_folder, tmp_path, capsys, code, complaint):
    (tmp_path / "mine.py").write_text(code)
    teacher, store = f"{tmp_path / 'mine.py'}:Mine", str(tmp_path / "store")
    assert main(["fuse", str(room_folder), "--teachers", teacher, "--out", store]) == 2
    assert complaint in capsys.readouterr().err
