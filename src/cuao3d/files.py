"""Files that are written whole, JSON objects, and safetensors."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cuao3d.durable import is_stream, naming_disk_errors, replacing, write_all
from cuao3d.errors import InputError, NotFoundError, UserError

LISTED = 12
"""Entries of a folder that an error lists at most."""

_FOLDER: ContextVar[Path | None] = ContextVar("_FOLDER", default=None)
"""Folder whose files are being read; see `reading_inside`."""

_OF_A_RUN = ("config.json", "run.json", "metrics.jsonl", "training.png")

_TENSOR_TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""Names of types in a safetensors file, which holds tensors of the last of these first."""


def cache_folder() -> Path:
    """Return the folder in which cuao3d keeps what can be fetched or made again; `CUAO3D_CACHE` decides it."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cuao3d"
    return Path(os.environ.get("CUAO3D_CACHE") or default)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all, and so that it survives a power failure; see `durable.replacing`.

    Args:
        path: File to write; its folder is made if missing. A link is followed; a device or a pipe is written directly.
        write: Called with the path of an empty temporary file, into which it writes.

    Raises:
        DiskFullError: The disk is full or read-only, or the quota is used up.
        OSError: The file cannot be written; an earlier file of this name is unchanged.
    """
    with naming_disk_errors(path):
        if is_stream(path):
            with tempfile.TemporaryDirectory() as scratch:
                write(whole := Path(scratch) / "whole")
                with whole.open("rb") as source, path.open("wb", buffering=0) as stream:
                    shutil.copyfileobj(source, stream)
            return
        with replacing(path) as (_, temporary):
            write(temporary)


def write_chunks(path: Path, chunks: Iterable[bytes | memoryview], *, durable: bool = True) -> None:
    """Write bytes, as `write_whole` does.

    Args:
        path: File to write.
        chunks: Its content, piece by piece.
        durable: False for a file that may be lost in a power failure, such as one of a cache.
    """
    with naming_disk_errors(path):
        if is_stream(path):
            descriptor = os.open(path, os.O_WRONLY)
            try:
                for chunk in chunks:
                    write_all(descriptor, chunk)
            finally:
                os.close(descriptor)
            return
        with replacing(path, durable=durable) as (descriptor, _):
            for chunk in chunks:
                write_all(descriptor, chunk)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write text in UTF-8, as `write_chunks` does."""
    write_chunks(path, [text.encode()], durable=durable)


def write_json(path: Path, content: Any, *, durable: bool = True) -> None:
    """Write JSON, as `write_chunks` does; see `to_json`."""
    write_text(path, to_json(content, indent=1) + "\n", durable=durable)


def to_json(content: Any, indent: int | None = None) -> str:
    """Return JSON that every program reads: numbers that are infinite or NaN are null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def read_json(path: Path, cure: str = "write it again") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: File to read, UTF-8; a byte order mark is allowed.
        cure: What to do about a damaged file, for the error message.

    Raises:
        NotFoundError: There is no such file.
        InputError: It does not hold a JSON object.
    """
    check_inside(path)
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); {cure}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} should hold a JSON object, {{...}}, not a {type(content).__name__}; {cure}.")
    return content


def read_whole_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object that marks something as finished; None if it is missing, or cut off by a power failure."""
    try:
        return read_json(path)
    except UserError:
        return None


@contextmanager
def reading_inside(folder: Path) -> Iterator[None]:
    """Let `check_inside` refuse files below a folder that links lead out of it, while the block runs."""
    token = _FOLDER.set(Path(os.path.abspath(folder)))
    try:
        yield
    finally:
        _FOLDER.reset(token)


def check_inside(path: Path) -> None:
    """Refuse a file that lies in the folder of `reading_inside` by its name, but by a link elsewhere.

    Raises:
        InputError: It does; the message names it.
    """
    folder = _FOLDER.get()
    if folder is None or not Path(os.path.abspath(path)).is_relative_to(folder):
        return
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(os.path.realpath(folder)):
        raise InputError(
            f"{path} leads by a link out of {folder}, to {target}, and is not read; copy the file to where the link is."
        )


def check_output(path: Path | None) -> None:
    """Refuse to write a file that belongs to a store or to a run, such as STORE/store.json.

    Raises:
        InputError: It does.
    """
    if path is None or is_stream(path):
        return
    target = Path(os.path.realpath(path))
    for folder in target.parents:
        if (folder / "store.json").is_file():
            raise InputError(f"{path} lies in the store {folder}, which it could damage; choose a place outside of it.")
    if target.name in _OF_A_RUN and (target.parent / "config.json").is_file():
        raise InputError(f"{path} is a file of the run {target.parent}; choose another name or place.")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None, *, durable: bool = True
) -> None:
    """Write a safetensors file, as `write_chunks` does; equal tensors give equal bytes.

    Args:
        path: File to write.
        tensors: Tensors by name, on any device.
        metadata: Text metadata.
        durable: As of `write_chunks`.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_chunks(path, _safetensors(on_cpu, metadata), durable=durable)


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


def check_sha256(path: Path, sha256: str, *, what: str = "the known file", cure: str = "") -> None:
    """Compare the SHA-256 of a file with the one that it should have.

    Args:
        path: The file.
        sha256: The SHA-256 expected, in hexadecimal.
        what: What the file should be, for the error message.
        cure: A sentence on what to do, for the error message.

    Raises:
        InputError: It is another file.
    """
    if (found := sha256_of(path)) != sha256:
        raise InputError(f"{path} is not {what}: its SHA-256 is {found}, not {sha256}. {cure}".strip())


def _safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file: those that its library writes, without a temporary file of its own."""
    order = list(_TENSOR_TYPES)
    names = sorted(tensors, key=lambda name: (-order.index(tensors[name].dtype), name))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _TENSOR_TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield tensors[name].reshape(-1).view(torch.uint8).numpy().data


def _finite(content: Any) -> Any:
    """Replace numbers that JSON does not know by None."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, list | tuple) else content
