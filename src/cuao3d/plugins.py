"""Plug-ins: a teacher or a loss from a Python file of the user's, named `FILE.py:NAME`."""

import ast
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from cuao3d.errors import InputError, NotFoundError, UserError

_FILES: dict[str, Path] = {}
"""File of each plug-in that was run, by the name of its module."""


def is_own(spec: str) -> bool:
    """Say whether a spec names something in a Python file."""
    return ".py:" in spec


def load_own(spec: str) -> Any:
    """Run a Python file and return what it defines under a name; of a class, an instance made without arguments.

    Args:
        spec: FILE.py:NAME. Such a file is run: give none that you do not trust.

    Raises:
        NotFoundError: There is no such file.
        InputError: The file cannot be run, does not define the name, or making the instance fails.
    """
    path, name = file_of(spec), spec.rpartition(":")[2]
    module = run_file(path)
    if not hasattr(module, name):
        raise InputError(f"{path} defines no {name}.")
    found = getattr(module, name)
    with errors_of(f"{spec} cannot be made", path):
        return found() if isinstance(found, type) else found


def file_of(spec: str) -> Path:
    """Return the file of a spec FILE.py:NAME.

    Raises:
        NotFoundError: There is no such file.
    """
    file, _, name = spec.rpartition(":")
    if not Path(file).is_file():
        raise NotFoundError(f"There is no file {file} to take {name} from.")
    return Path(file)


def run_file(path: Path) -> ModuleType:
    """Run a Python file, once until its content changes, and return its module.

    Dataclasses, pickles and imports of files beside it find the module: it has a name that no other has. As for a
    script, files beside it come first while it runs; later, for what it imports when it is called, after everything
    installed.

    Raises:
        InputError: It raises an error.
    """
    path = path.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    _FILES[name] = path
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        with errors_of(f"{path} cannot be run", path):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(folder)
    if folder not in sys.path:
        sys.path.append(folder)
    return module


def code_sha256(kind: type[Any]) -> str | None:
    """Return the SHA-256 of the code that defines a class.

    Of a plug-in that is its file and the files beside it that it imports; of another class its source and that of its
    bases in the same package.

    Returns:
        The hash; None for a class of this package, whose version is recorded, and where the source is not to be had.
    """
    if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return None
    if kind.__module__ in _FILES:
        files = _with_imports(_FILES[kind.__module__])
        content = "".join(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in files)
        return hashlib.sha256(content.encode()).hexdigest()
    root = kind.__module__.partition(".")[0]
    own = [one for one in kind.__mro__ if one.__module__.partition(".")[0] == root]
    try:
        return hashlib.sha256("".join(map(inspect.getsource, own)).encode()).hexdigest()
    except (OSError, TypeError):
        return None


def _with_imports(path: Path) -> list[Path]:
    """Return a Python file and all files beside it that it imports, directly or through others, wherever it does so."""
    found, waiting = [], [path]
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file():
            continue
        found.append(file)
        try:
            nodes = list(ast.walk(ast.parse(file.read_bytes())))
        except (SyntaxError, ValueError):
            continue
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                names += [node.module or "", *(f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names)]
        for name in filter(None, names):
            beside = path.parent.joinpath(*name.split("."))
            waiting += [beside.with_name(f"{beside.name}.py"), beside / "__init__.py"]
    return sorted(found)


@contextmanager
def errors_of(
    what: str, path: Path | None = None, *, cure: str = "", passing: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Turn whatever code of others raises, SystemExit and MemoryError included, into an InputError that names it.

    A UserError and an interrupt pass as they are.

    Args:
        what: What went wrong if it raises; begins the message.
        path: File of that code, if it is known; the message names the line.
        cure: What is expected or what to do; ends the message.
        passing: Further errors that pass as they are.

    Raises:
        InputError: The code raised something.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, (UserError, KeyboardInterrupt, *passing)):
            raise
        raise InputError(f"{what}: {_describe(error, path)}{f'; {cure}.' if cure else ''}") from error


def _describe(error: BaseException, path: Path | None = None) -> str:
    """Return the type and message of an error, and the last line of a file that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if path is not None and frame.filename == str(path)]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "")
