"""What the documentation points at is there: files, functions, settings, pages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import write_teachers

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "cuao3d"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_references_resolve(page):
    """`fusion.py: lift` means a name in a file of the package, `tests/...: name` one of the repository."""
    text = page.read_text(encoding="utf-8")
    for file, name in re.findall(r"`((?:\w+/)*\w+\.py)(?:: ([\w.]+))?`", text):
        path = next((base / file for base in (PACKAGE, ROOT) if (base / file).is_file()), None)
        assert path, f"there is no {file}"
        assert not name or name in names(ast.parse(path.read_text(encoding="utf-8"))), f"{file} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"there is no {target}"


def test_the_tables_of_teachers_are_those_of_the_package():
    page = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
    assert write_teachers.filled(page) == page, "run: python scripts/write_teachers.py"
    assert page.count("| `dinov2-giant` |") == 2


def test_names_are_functions_classes_their_members_and_constants():
    module = ast.parse(
        "A = 1\nB: int = 2\ndef f():\n    local = 3\nclass C:\n    field: int\n    def method(self): ...\n"
    )
    assert set(names(module)) == {"A", "B", "f", "C", "C.field", "C.method"}


def names(node: ast.Module | ast.ClassDef) -> Iterator[str]:
    """List what a module or a class defines."""
    for statement in node.body:
        match statement:
            case ast.FunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name):
                yield name
                yield from (f"{name}.{member}" for member in names(statement))
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                yield name
