"""What the documentation points at is there: files, functions, settings, pages."""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cuao3d
import write_teachers
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.worlds.rooms import make_room

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "cuao3d"
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
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


def public_functions() -> dict[str, Callable]:
    """The functions of the face, and those of its classes and of its modules, by dotted name."""
    functions = {}
    for name in cuao3d.__all__:
        found: Any = getattr(cuao3d, name)
        members = {f"{name}.{member}": value for member, value in vars(found).items()} if has_members(found) else {}
        for path, value in {name: found, **members}.items():
            value = getattr(value, "__func__", value)  # of class and static methods
            function = inspect.unwrap(value) if callable(value) else value
            is_public = not path.rpartition(".")[2].startswith("_") or path in SPECIAL
            if inspect.isfunction(function) and is_public and (inspect.isclass(found) or is_from(found, function)):
                functions[path] = function
    return functions


def has_members(found: Any) -> bool:
    return inspect.isclass(found) or inspect.ismodule(found)


def is_from(found: Any, function: Callable) -> bool:
    """Whether a function is not one that a module only imports."""
    return not inspect.ismodule(found) or function.__module__ == found.__name__


SPECIAL = ("Teacher.__call__", "TextEncoder.__call__", "Store.__getitem__")
"""Special methods that objects are used by."""

FUNCTIONS = public_functions()
CLASSES = {name: found for name in cuao3d.__all__ if inspect.isclass(found := getattr(cuao3d, name))}


@dataclasses.dataclass(frozen=True)
class Section:
    """What docs/api.md says of a name."""

    signature: ast.FunctionDef | None
    listed: list[str]
    raises: list[str]


def sections() -> dict[str, Section]:
    """Read docs/api.md, name by name."""
    parts = re.split(r"^#{3,4} `([\w.]+)`\n", re.split(r"^## Conventions\n", API, flags=re.MULTILINE)[1], flags=re.M)
    found = {}
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
        code = re.match(r"```python\n\w+\((.*?)```", text, re.DOTALL)
        raises = re.search(r"^\*\*Raises\*\* (.*?)\n\n", text, re.DOTALL | re.MULTILINE)
        found[name] = Section(
            function_of(f"def f({code[1].rstrip()}: ...") if code else None,
            re.findall(r"^- `(\w+)`: ", text, re.MULTILINE),
            re.findall(r"`(\w+Error)`: ", raises[1]) if raises else [],
        )
    return found


def function_of(source: str) -> ast.FunctionDef:
    """Parse a function, without its `self` or `cls`."""
    node = ast.parse(textwrap.dedent(source)).body[0]
    assert isinstance(node, ast.FunctionDef)
    for arguments in (node.args.posonlyargs, node.args.args):
        arguments[:] = [argument for argument in arguments if argument.arg not in ("self", "cls")]
    return node


def parameters(node: ast.FunctionDef) -> list[str]:
    """Names of a function's parameters."""
    args = node.args
    catch_all = [argument for argument in (args.vararg, args.kwarg) if argument is not None]
    return [argument.arg for argument in (*args.posonlyargs, *args.args, *args.kwonlyargs, *catch_all)]


def docstring_names(found: Any, heading: str) -> list[str]:
    """Names that a docstring lists under a heading, such as Args."""
    block = re.search(rf"^{heading}:\n((?:    .*\n|\n)*)", f"{inspect.getdoc(found) or ''}\n", re.MULTILINE)
    return re.findall(r"^    (\w+): ", block[1], re.MULTILINE) if block else []


def attributes(kind: type) -> set[str]:
    """What a class's objects hold: fields, properties, and what its docstring or its constructor names."""
    annotated = {name for name in getattr(kind, "__annotations__", {}) if not name.startswith("_")}
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    properties = {name for name, value in vars(kind).items() if isinstance(value, property)}
    told = {name for heading in ("Attributes", "Args") for name in docstring_names(kind, heading)}
    return {name for name in annotated | fields | properties | told if not name.startswith("_")}


def test_every_public_name_has_a_heading():
    assert sorted(headings(3)) == sorted(cuao3d.__all__)
    assert sorted(headings(4)) == sorted(name for name in FUNCTIONS if "." in name)


def headings(level: int) -> list[str]:
    return re.findall(rf"^{'#' * level} `([\w.]+)`$", API, re.MULTILINE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_documented_functions_are_those_of_the_package(name: str):
    """Signature, listed parameters and errors are those of the source."""
    section, source = sections()[name], function_of(inspect.getsource(FUNCTIONS[name]))
    assert section.signature is not None
    assert ast.unparse(section.signature.args) == ast.unparse(source.args)
    assert ast.unparse(section.signature.returns) == ast.unparse(source.returns)
    assert section.listed == parameters(source)
    assert section.raises == docstring_names(FUNCTIONS[name], "Raises")


@pytest.mark.parametrize("name", CLASSES)
def test_documented_classes_are_those_of_the_package(name: str):
    section, kind = sections()[name], CLASSES[name]
    assert len(set(section.listed)) == len(section.listed)
    assert set(section.listed) == attributes(kind)
    if section.signature is not None:
        made = function_of(inspect.getsource(inspect.unwrap(kind.__init__)))
        assert ast.unparse(section.signature.args) == ast.unparse(made.args)
        assert set(parameters(made)) <= set(section.listed)
        assert section.raises == docstring_names(kind, "Raises") + docstring_names(kind.__init__, "Raises")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_of_public_functions_say_arguments_and_result(name: str):
    function = FUNCTIONS[name]
    text, source = inspect.getdoc(function) or "", function_of(inspect.getsource(function))
    first = text.partition("\n\n")[0]
    told = {*docstring_names(function, "Args"), *re.findall(r"`(\w+)`", first)}
    assert set(parameters(source)) <= told
    assert ast.unparse(source.returns) == "None" or "Returns:\n" in text or first.startswith(("Return ", "Say whether"))


def test_the_ten_lines_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_capture(make_room(0, name="SCAN", num_views=3), "SCAN")
    lines = re.findall(r"```python\n(.*?)```", API, re.DOTALL)[0]
    assert len(lines.splitlines()) <= 10
    exec(compile(lines, "docs/api.md", "exec"), {})
    assert re.fullmatch(r"SCAN here \[-?\d.*\]", capsys.readouterr().out.strip())
