"""Safe reading of PyTorch files: tensors, plain values and NumPy arrays, without running code from the pickle.

NumPy's own functions are never called: stand-ins below replace those that a file names, and make arrays of numbers and
nothing else. NumPy 1 and NumPy 2 name different modules; both are supported.
"""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cuao3d.errors import InputError, NotFoundError


def read_torch(path: Path, *, mapped: bool = False) -> Any:
    """Read a file of `torch.save`, in the current format or the one before PyTorch 1.6.

    Args:
        path: The file.
        mapped: Memory-map tensors instead of reading them; use them before the file changes.

    Returns:
        Its content: tensors, numbers and text in lists, tuples and dicts. NumPy arrays are supported at the top level
        and as entries of a top-level list, tuple or dict.

    Raises:
        NotFoundError: There is no such file.
        InputError: It is damaged, or holds other objects.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        mmap = mapped and zipfile.is_zipfile(path)  # older files are not zip archives, and cannot be mapped
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file gets one error, below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "operand" in str(error):
            raise _damaged(path, error) from error
        raise InputError(
            f"{path}: refused, because it is not only tensors and numbers but may run code ({_reason(error)})."
        ) from error
    except Exception as error:  # damaged bytes may raise anything
        raise _damaged(path, error) from error
    match content:
        case tuple() | list():
            return type(content)(_plain(entry) for entry in content)
        case dict():
            return {key: _plain(entry) for key, entry in content.items()}
    return _plain(content)


class _Type:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", code):
            raise pickle.UnpicklingError(f"a NumPy array of {code!r}, which is not a numeric type")
        self.kind = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.kind = self.kind.newbyteorder(state[1])


class _Array:
    """Stands in for `numpy.ndarray`."""

    def __init__(self, *_: object) -> None:
        self.numbers: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_column, content = state
        numbers = np.frombuffer(content, kind.kind).reshape(shape, order="F" if by_column else "C")
        self.numbers = numbers.astype(kind.kind.newbyteorder("="))


def _scalar(kind: _Type, content: bytes) -> Any:
    """Stands in for `numpy.core.multiarray.scalar`."""
    (number,) = np.frombuffer(content, kind.kind).tolist()
    return number


def _no_bytes() -> bytes:
    """Stands in for `bytes`, which makes the content of an empty array."""
    return b""


_STAND_INS: list[Any] = [
    (_Type, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_no_bytes, f"{builtins}.bytes") for builtins in ("__builtin__", "builtins")),
    *((_Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def _plain(entry: Any) -> Any:
    return entry.numbers if isinstance(entry, _Array) else entry


def _damaged(path: Path, error: Exception) -> ValueError:
    return InputError(f"{path}: not a PyTorch checkpoint, or only a part of one ({_reason(error)}).")


def _reason(error: Exception) -> str:
    """Shorten an error of PyTorch to a few words, without control characters."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip() or type(error).__name__
    if named := re.search(r"GLOBAL (\S+)", text):
        text = f"it names {named[1]}"
    text = re.split(r"\n|\. ", text)[0].rstrip(".")
    return "".join(char if char.isprintable() else "?" for char in text)[:200]
