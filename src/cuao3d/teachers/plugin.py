"""A teacher of one's own, in a Python file."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from cuao3d.errors import InputError, NotFoundError


def class_in(file: Path, name: str) -> type[Any]:
    """Run a Python file, once until it changes, and return a class that it defines.

    Raises:
        NotFoundError: There is no such file.
        InputError: It has no such class.
    """
    if not file.is_file():
        raise NotFoundError(f"There is no file {file} to take the teacher {name} from.")
    module = _run(file.resolve())
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [
            key for key, one in vars(module).items() if isinstance(one, type) and one.__module__ == module.__name__
        ]
        raise InputError(f"{file} defines no {name}; the classes in it are {', '.join(classes) or 'none'}.")
    return found


def _run(path: Path) -> ModuleType:
    """Run a file as a module that dataclasses, pickles and imports of files beside it find.

    The module has a name that no other has. As for a script, files beside it come first while it runs; later, for what
    it imports when it is called, after everything installed.
    """
    version = hashlib.sha256(f"{path} {path.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    name = f"{path.stem}_{version}"
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
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(folder)
    if folder not in sys.path:
        sys.path.append(folder)
    return module
