"""Seals: SHA-256 inside JSON files and tensor files, so that a changed value is noticed where it is read."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.files import read_json, sha256_of, to_json, write_json, write_tensors

KEY = "sha256"
"""Key of a JSON object that holds the SHA-256 of the others."""

SETTLED = 2.0
"""A hash is kept only of a file that has not changed for this long, seconds: times on disk are coarser than writes."""

_HASHES: dict[tuple[str, tuple[int, ...]], str] = {}


def write_sealed(path: Path, content: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write a JSON object with the SHA-256 of its content, as `write_json` does."""
    write_json(path, {**content, KEY: _json_sha256(content)}, durable=durable)


def read_sealed(path: Path, cure: str) -> dict[str, Any]:
    """Read a JSON object that `write_sealed` wrote, without its seal; one of an earlier version has none.

    Args:
        path: File to read.
        cure: What to do about a damaged file, for the error message.

    Raises:
        NotFoundError: There is no such file.
        InputError: It is damaged.
    """
    content = read_json(path, cure)
    sealed = content.pop(KEY, None)
    try:
        is_whole = sealed is None or sealed == _json_sha256(content)
    except RecursionError:  # what is nested this deeply was not written by us
        is_whole = False
    if not is_whole:
        raise InputError(f"{path} is damaged: its content does not have the SHA-256 that it states; {cure}.")
    return content


def tensors_sha256(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Return one SHA-256 over tensors, their names, types and shapes, and what is said of them.

    Args:
        tensors: Tensors by name, on any device.
        about: JSON values.
    """
    digest = hashlib.sha256(_json_sha256(about).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sealed(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Return what is said of tensors, as JSON, with the SHA-256 of both."""
    return json.dumps({**about, KEY: tensors_sha256(tensors, about)})


def say_again(path: Path, about: str, changes: Mapping[str, Any]) -> None:
    """Change what a safetensors file says of its tensors; they stay as they are.

    Args:
        path: File that was written with `sealed`.
        about: Key of its metadata under which `sealed`'s text stands.
        changes: What is said from now on.

    Raises:
        InputError: It is not what was written.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_tensors(tensors, metadata[about])
    said = {name: value for name, value in json.loads(metadata[about]).items() if name != KEY}
    write_tensors(path, tensors, metadata | {about: sealed(tensors, said | {**changes})})


def check_tensors(tensors: Mapping[str, Tensor], about_json: str, *, has_seal: bool = False) -> None:
    """Compare tensors, and what is said of them, with the SHA-256 that `sealed` added.

    Args:
        tensors: Tensors by name.
        about_json: What `sealed` returned.
        has_seal: Refuse those of earlier versions, which have none.

    Raises:
        InputError: They are not those that were written.
    """
    about = json.loads(about_json)
    rest = {name: value for name, value in about.items() if name != KEY}
    if (KEY in about or has_seal) and about.get(KEY) != tensors_sha256(tensors, rest):
        raise InputError("its tensors, or what is said of them, do not have the SHA-256 that it states")


def sha256_once(path: Path) -> str:
    """Return the SHA-256 of a file; within a process it is read again only if it has changed."""
    key = str(path.resolve()), stamp_of(path)
    if key not in _HASHES:
        found = sha256_of(path)
        if not is_settled(key[1]):
            return found
        _HASHES[key] = found
    return _HASHES[key]


def stamp_of(path: Path) -> tuple[int, int, int, int]:
    """Return size, time of writing, time of the last change of any kind, and inode of a file; times in nanoseconds.

    The third cannot be set back by a program: a file that was changed has another stamp, whatever else was kept.
    """
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def is_settled(stamp: tuple[int, ...]) -> bool:
    """Say whether the last change of a file is so old that a later one shows in its stamp."""
    return time.time_ns() - max(stamp[1], stamp[2]) > SETTLED * 1e9


def _json_sha256(content: Mapping[str, Any]) -> str:
    as_read = json.loads(to_json(content))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
