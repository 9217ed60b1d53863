"""Files: atomic writes by way of a temporary file, and JSON objects."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cuao3d.errors import DiskFullError, InputError, NotFoundError

LISTED = 12
"""Entries of a folder that an error lists at most."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: a function writes a temporary file beside it, which is then renamed.

    Args:
        path: File to write; its folder is created if missing.
        write: Called with the temporary path; a file left there by an interrupted run is overwritten.

    Raises:
        OSError: The file cannot be written; no temporary file is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with naming_full_disk(path):
            temporary.touch()
            mode = temporary.stat().st_mode
            write(temporary)
        temporary.chmod(mode)  # safetensors makes its files readable by the owner only
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)  # the name that the user knows
        raise


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn a disk-full error into one that names the file and says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise DiskFullError(
            f"There is no space left on the disk for {path}; an earlier file of this name is unchanged. Make room, and "
            "run the same command again."
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, atomically."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON, atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path, cure: str = "write it again") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: File to read, UTF-8; a byte order mark is allowed.
        cure: What to do about a damaged file, for the error message.

    Raises:
        NotFoundError: There is no such file.
        InputError: It does not hold a JSON object.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); {cure}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} should hold a JSON object, {{...}}, not a {type(content).__name__}; {cure}.")
    return content


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, atomically.

    Args:
        path: File to write.
        tensors: Tensors by name, on any device.
        metadata: Text metadata. With several keys the file's bytes are not reproducible.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda temporary: save_file(on_cpu, temporary, metadata))


def nearby(path: Path, marker: str = "") -> str:
    """List what the nearest existing folder of a path holds, for a not-found error.

    Args:
        path: Missing path, or the folder that was searched.
        marker: File that marks the folders in question; if there are such folders, only they are listed.

    Returns:
        A sentence with a space before it; empty if there is nothing to list.
    """
    folder = path if path.is_dir() else next((parent for parent in path.parents if parent.is_dir()), Path())
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return ""
    if marker:
        entries = [entry for entry in entries if (entry / marker).is_file()] or entries
    names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries[:LISTED]]
    more = f" and {len(entries) - LISTED} more" if len(entries) > LISTED else ""
    where = "The current folder" if folder == Path() else str(folder)
    return f" {where} holds {', '.join(names)}{more}." if names else ""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
