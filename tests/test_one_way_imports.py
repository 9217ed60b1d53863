"""A room imports only from rooms before it, so the package can be read from its first room to its last."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cuao3d

PACKAGE = Path(__file__).parents[1] / "src" / "cuao3d"

ROOMS = (
    "__init__",
    "errors",
    "console",
    "schema",
    "names",
    "durable",
    "files",
    "seals",
    "pickles",
    "plugins",
    "threads",
    "memory",
    "products",
    "compiled",
    "half_rows",
    "ranks",
    "augment",
    "progress",
    "workers",
    "scene",
    "labels",
    "colors",
    "cards",
    "pinned",
    "download",
    "datasets",
    "pretrained",
    "geometry",
    "boxes",
    "coordinates",
    "rays",
    "formats",
    "readers",
    "gravity",
    "worlds",
    "text",
    "vocabulary",
    "teachers",
    "codecs",
    "sampling",
    "sums",
    "view_weights",
    "visibility",
    "fusion",
    "remote",
    "store",
    "photographs",
    "imported",
    "check",
    "sparse",
    "heads",
    "student",
    "objective",
    "trunk",
    "batches",
    "guards",
    "checkpoints",
    "run",
    "training",
    "query",
    "reliability",
    "confidence",
    "predictor",
    "verdicts",
    "retrieval",
    "metrics",
    "published",
    "evaluate",
    "voting",
    "balance",
    "distill",
    "supervise",
    "linear",
    "surfaces",
    "subjects",
    "probe",
    "compare",
    "history",
    "pictures",
    "pane",
    "places",
    "finds",
    "tables",
    "figures",
    "report",
    "answers",
    "exports",
    "index",
    "recipes",
    "calibrate",
    "pipeline",
    "view",
    "own_report",
    "demo",
    "reproduce",
    "cli",
    "__main__",
)
"""The order. A room is a module, or a folder: a family, whose members may use each other."""


def test_every_room_has_its_place():
    found = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")}
    assert found <= set(ROOMS), "a new room: say where it stands"


def test_contributing_lists_the_rooms_in_this_order():
    (row,) = re.findall(r"```\n(errors .*?)```", (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
    assert re.split(r"\s*->\s*", row.strip()) == [room for room in ROOMS if not room.startswith("__")]


def test_rooms_import_only_from_rooms_before_them():
    assert list(backward_imports(PACKAGE)) == []


def test_backward_imports_are_found(tmp_path):
    (tmp_path / "readers").mkdir()
    (tmp_path / "scene.py").write_text("import torch\n")
    (tmp_path / "fusion.py").write_text("from cuao3d import __version__, store\nfrom cuao3d.scene import Scene\n")
    (tmp_path / "geometry.py").write_text("def late():\n    import cuao3d.fusion\n    from cuao3d import scene\n")
    (tmp_path / "readers" / "rooms.py").write_text("from cuao3d.readers.furniture import bed\nfrom ..text import E\n")
    assert list(backward_imports(tmp_path)) == [
        "fusion.py, line 1: store comes after fusion",
        "geometry.py, line 2: fusion comes after geometry",
        "readers/rooms.py, line 2: text comes after readers",
    ]


def test_the_face_is_loaded_when_it_is_used():
    code = "import sys, cuao3d; print('torch' in sys.modules, any(name.startswith('cuao3d.') for name in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


def test_the_face_has_what_it_lists():
    assert set(cuao3d.__all__) == {"__version__", "datasets", "recipes", *cuao3d._HOME}
    for name in cuao3d.__all__:
        assert getattr(cuao3d, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'chair'"):
        cuao3d.chair  # noqa: B018


def backward_imports(package: Path) -> Iterator[str]:
    """Name every import of a package that goes from a room to a later one."""
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        if str(inside) == "__init__.py":
            continue  # the package's face: it names what it loads later, see `test_the_face_is_loaded_when_it_is_used`
        room = inside.with_suffix("").parts[0]
        for line, target in imported_rooms(path.read_text(encoding="utf-8"), ("cuao3d", *inside.parent.parts)):
            if ROOMS.index(target) > ROOMS.index(room):
                yield f"{inside}, line {line}: {target} comes after {room}"


def imported_rooms(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Find line and room of each import from cuao3d, wherever it stands in a module of `package`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                parent = package[: len(package) + 1 - level] if level else ()
                modules = [".".join([*parent, *filter(None, [module]), alias.name]) for alias in names]
            case _:
                continue
        for module in modules:
            root, *inside = module.split(".")
            if root == "cuao3d":
                yield node.lineno, inside[0] if inside and inside[0] in ROOMS else "__init__"
