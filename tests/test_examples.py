"""The examples and the README's code run as they stand, without downloads."""

import ast
import json
import re
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cuao3d.cli import main
from cuao3d.pipeline import fuse
from cuao3d.readers import open_dataset
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.student import Student
from cuao3d.teachers import load_teacher
from cuao3d.worlds.rooms import make_room
from test_student import as_official

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

PRINTS = {
    "01_own_scan": r"'a bed': here\n  \d{4,5} points .*\n  8\d% of those with a label are bed\n'an elephant': unsure",
    "02_own_teacher": r"'something white'.* the colour \(0\.[6-9].*\n'something brown'.* the colour \(0\.[2-4]",
    "03_distil": r"(?s)mini-lseg: 0\.9.*first step, 0\.4.*loss of mini-dino: 1\.0.* 7\d% of the .* 100% of the points",
    "04_evaluate": r"(?s)fused: mIoU 3\d.*distilled: mIoU [12]\d.* 100 % of 39539 .*2d3d: mIoU 3\d",
    "05_import": r"(?s)tensors used: 193\n.*left over: 0\n.*store: ('a bed' here, \d+ points) .*imported: \1",
    "06_many_scans": r"(?s)first time: 2 of 3.*second time: 2 of 3.*\nbedroom: here.* bed,.*\nkitchen: (?!here)",
    "07_own_label_set": r"(?s)storage \('a cabinet'\): \d+% .*mIoU 4\d.*IoU of wall",
    "08_own_loss": r"mini-lseg: 90 degrees in the first step, 5\d in step 20\n.*SHA-256 [0-9a-f]{16}",
}
"""What a reader can check in what each example prints."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable]:
    """Runs an example and returns what it prints; it must leave nothing behind."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def run_example(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    yield run_example
    assert not list((tmp_path / "temporary").glob("tmp*"))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a capture (`scans/bedroom`) and what the small segmenter says of it (`store`)."""
    folder = tmp_path_factory.mktemp("own")
    write_capture(make_room(0, num_views=2), folder / "scans" / "bedroom")
    fuse(open_dataset(folder / "scans"), [load_teacher("mini-lseg")], folder / "store", cell=0.1)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("03_distil", "06_many_scans", "08_own_loss")))
        for name in PRINTS
    ],
)
def test_examples_run(name: str, run):
    assert re.search(PRINTS[name], run(name))


def test_examples_take_a_path_of_ones_own(own: Path, run, tmp_path: Path):
    assert re.search(r"^bedroom: 2 views.*\n'a window': ", run("01_own_scan", own / "scans", "a window"), re.MULTILINE)
    assert "the 100 points that fit best" in run("02_own_teacher", own / "scans")
    assert re.search(r"fused: mIoU \d\d", run("04_evaluate", own / "store"))
    assert "bedroom: here" in run("06_many_scans", own / "scans")
    (tmp_path / "mine.csv").write_text("id,name,r,g,b,nyu40id\n7,floor,0,0,0,2\n9,sky,9,9,9,\n", encoding="utf-8")
    assert re.search(r"sky .*: \d+% of .* bedroom\nmIoU", run("07_own_label_set", own / "store", tmp_path / "mine.csv"))
    torch.save({"state_dict": as_official(Student({"lseg": 512}, "MinkUNet14Mini"))}, tmp_path / "best.pth.tar")
    assert "architecture: MinkUNet14Mini\nheads: lseg (512)" in run("05_import", tmp_path / "best.pth.tar")


def test_examples_that_train_take_a_store_of_ones_own(own: Path, monkeypatch: pytest.MonkeyPatch, run):
    monkeypatch.setattr("cuao3d.recipes.mini", short(sys.modules["cuao3d.recipes"].mini))
    assert "in step 2" in run("03_distil", own / "store")
    assert "in step 2" in run("08_own_loss", own / "store")


def short(recipe: Callable) -> Callable:
    """A recipe of two steps."""
    return lambda **settings: recipe(**settings | {"num_steps": 2})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_use_public_names_alone_and_say_their_command_line(path: Path):
    module = ast.parse(path.read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(module) if isinstance(node, ast.Import) for alias in node.names]
    sources = [node.module or "" for node in ast.walk(module) if isinstance(node, ast.ImportFrom)]
    assert "cuao3d" in names
    assert not [name for name in (*names, *sources) if name.startswith("cuao3d.")]
    text = ast.get_docstring(module) or ""
    assert f"python examples/{path.name}" in text
    assert "\n    cuao3d " in text


def test_examples_are_numbered():
    assert [path.stem for path in EXAMPLES] == list(PRINTS)


def test_the_readmes_lines_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(lines, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


def test_a_teacher_from_a_file_of_ones_own_is_lifted_learned_and_scored(tmp_path, capsys):
    write_capture(make_room(0, num_views=2), tmp_path / "scan")
    teacher = f"{ROOT / 'examples' / '02_own_teacher.py'}:ColorWords"
    store, run = tmp_path / "store", tmp_path / "run"
    assert main(["fuse", str(tmp_path / "scan"), "--teachers", teacher, "--cell", "0.1", "--out", str(store)]) == 0
    assert main(["distill", str(store), "--out", str(run), "--steps", "2"]) == 0
    scored = ["--split", "all", "--allow-overlap", "--json", str(tmp_path / "s.json")]
    assert main(["evaluate", str(store), "--run", str(run), *scored]) == 0
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
