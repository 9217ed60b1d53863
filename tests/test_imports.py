"""What a command does not need, it does not import: plotting, clustering and networks of others take seconds."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cuao3d.labels import label_set

HEAVY = ("matplotlib", "sklearn", "diffusers", "transformers", "ray")

DRAWING = {
    "report.py",
    "check/page.py",
    "check/pictures.py",
    "figures/panels.py",
    "figures/segments.py",
    "figures/histograms.py",
    "figures/views.py",
    "figures/training.py",
    "figures/sides.py",
    "own_report/pictures.py",
}
"""Files that draw; others import them where a page or a picture is asked for."""

SOURCE = Path(__file__).parents[1] / "src" / "cuao3d"

PROGRAM = """
import json, sys
import cuao3d

def heavy():
    return [name for name in json.loads(sys.argv[1]) if name in sys.modules]

found = {"import": heavy()}
from cuao3d.cli import main
for arguments in json.loads(sys.argv[2]):
    code = main(arguments)
    assert code == 0, (arguments, code)
    found[" ".join([arguments[0], *arguments[-2:]])] = heavy()
import cuao3d.report
found["drawing"] = heavy()
print(json.dumps(found))
"""


def modules_after(*commands):
    """Run commands one after the other in a process of its own; return which heavy modules were there after each."""
    arguments = [json.dumps(HEAVY), json.dumps([list(map(str, command)) for command in commands])]
    source = str(next(path for path in sys.path if os.path.isdir(os.path.join(path, "cuao3d"))))
    environment = {**os.environ, "PYTHONPATH": source}
    run = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]).values())


@pytest.fixture
def words(tmp_path):
    """A table of words as wide as the features of mini-lseg, so that no text encoder is needed."""
    rows = np.random.default_rng(0).normal(size=(len(label_set("scannet20")), 384))
    np.save(tmp_path / "words.npy", rows)
    return f"table:{tmp_path / 'words.npy'}@scannet20"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_at_its_top_nothing_heavy_but_for_drawing(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    heavy = {name.partition(".")[0] for name in imported} & set(HEAVY)
    assert heavy <= ({"matplotlib", "sklearn"} if str(path.relative_to(SOURCE)) in DRAWING else set())


@pytest.mark.slow
def test_only_pages_need_plotting_and_clustering_and_only_their_teachers_transformers(room_folder, words, tmp_path):
    store = tmp_path / "store"
    *before, drawing = modules_after(
        ["fuse", room_folder, "--teachers", "mini-lseg", "--cell", "0.2", "--out", store],
        ["check", room_folder, "--json", tmp_path / "check.json"],
        ["evaluate", store, "--split", "all", "--text", words],
        ["query", store, "chair", "--text", words, "--out", tmp_path / "x.json"],
        ["weights", "list"],
    )
    assert before == [[]] * 6
    assert drawing == ["matplotlib", "sklearn"]
