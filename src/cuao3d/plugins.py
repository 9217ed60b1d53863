"""Plug-ins: a teacher or a loss from a Python file of the user's, named `FILE.py:NAME`."""

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from cuao3d.errors import InputError, NotFoundError


def is_own(spec: str) -> bool:
    """Say whether a spec names something in a Python file."""
    return ".py:" in spec


def load_own(spec: str) -> Any:
    """Run a Python file and return what it defines under a name; of a class, an instance made without arguments.

    Args:
        spec: FILE.py:NAME. Such a file is run: give none that you do not trust.

    Raises:
        NotFoundError: There is no such file.
        InputError: The file cannot be run, or does not define the name.
    """
    path, name = file_of(spec), spec.rpartition(":")[2]
    module = run_file(path)
    if not hasattr(module, name):
        raise InputError(f"{path} defines no {name}.")
    found = getattr(module, name)
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
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{path} cannot be run: {describe_error(error, path)}") from error
    finally:
        sys.path.remove(folder)
    if folder not in sys.path:
        sys.path.append(folder)
    return module


def describe_error(error: Exception, path: Path | None = None) -> str:
    """Return the type and message of an error, and the last line of a file that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if path is not None and frame.filename == str(path)]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "")
