"""Files and functions stay short enough to be read at a sitting."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for folder in ("src", "tests", "scripts", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
)
LONGEST_FILE, LONGEST_FUNCTION = 500, 60
"""Lines, from the first to the last, docstring included."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_and_no_function_is_too_long(path):
    code = path.read_text(encoding="utf-8")
    num_lines = len(code.splitlines())
    assert num_lines <= LONGEST_FILE, f"{num_lines} lines"
    functions = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = [(node.name, node.end_lineno - node.lineno + 1) for node in functions]
    assert [(name, size) for name, size in sizes if size > LONGEST_FUNCTION] == []


def test_there_are_files_to_measure():
    assert len(FILES) > 200
