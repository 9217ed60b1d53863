"""Checkpoints: files of tensors, read without running any code that they may hold, and loaded into modules.

NumPy's own functions are never called: stand-ins below replace those that a file names, and make arrays of numbers and
nothing else. NumPy 1 and NumPy 2 name different modules; both are supported.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cuao3d.errors import InputError, NotFoundError

PACKED = 20
"""Times its size that a file may unpack to; `torch.save` does not compress."""

SHARED = 4
"""Times what a file holds that its tensors may claim: some models tie weights, and a stride of 0 claims any number."""

SLACK = 1 << 24
"""Bytes that are allowed anyway."""

BY_NUMBER = b"bytearray"
"""In a pickle, what takes a number of bytes from nothing."""


def read_torch(path: Path, *, mapped: bool = False, unneeded: Sequence[str] = ()) -> Any:
    """Read a file of `torch.save`, in the current format or the one before PyTorch 1.6.

    Args:
        path: The file.
        mapped: Memory-map tensors instead of reading them; use them before the file changes.
        unneeded: Packages, such as "argparse.", whose objects are replaced by empty ones. Only in the current format.

    Returns:
        Its content: tensors, numbers and text in lists, tuples and dicts. NumPy arrays are supported at the top level
        and as entries of a top-level list, tuple or dict.

    Raises:
        NotFoundError: There is no such file.
        InputError: It is damaged, or holds other objects.
    """
    match content := _load(path, "cpu", mapped=mapped, unneeded=unneeded):
        case tuple() | list():
            return type(content)(_plain(entry) for entry in content)
        case dict():
            return {key: _plain(entry) for key, entry in content.items()}
    return _plain(content)


def check_weights(path: Path) -> None:
    """Check that a file of weights can be read safely, without reading its tensors.

    Args:
        path: The file: safetensors by its suffix, otherwise one of `torch.save`.

    Raises:
        NotFoundError: There is no such file.
        InputError: It is damaged, or holds other objects than tensors.
    """
    if path.suffix != ".safetensors":
        _load(path, "meta")
        return
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file, or only a part of one ({error}). Get it again.") from error


def load_into(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    what: str,
    names: Mapping[str, str] | None = None,
    assign: bool = False,
) -> None:
    """Load all tensors of a module, or say which do not fit.

    Args:
        module: Takes the tensors.
        tensors: By the names of the module's own.
        what: What to call the module.
        names: What to call its tensors, where a file has other names for them.
        assign: Take the tensors themselves instead of copying their values.

    Raises:
        InputError: A tensor is missing, extra or of another shape.
    """
    expected, found = (
        {name: tuple(tensor.shape) for name, tensor in some.items()} for some in (module.state_dict(), tensors)
    )
    called = {name: name for name in expected} | dict(names or {})
    problems = [
        *(f"missing {called[name]} {shape}" for name, shape in expected.items() if name not in found),
        *(f"extra {name} {shape}" for name, shape in found.items() if name not in expected),
        *(
            f"{called[name]} is {found[name]}, not {shape}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ),
    ]
    if problems:
        raise InputError(f"The tensors do not fit {what}: {some_of(problems)}.")
    module.load_state_dict(dict(tensors), assign=assign)


def some_of(problems: Sequence[str], most: int = 8) -> str:
    """Join problems for a message: the first ones, and how many more there are."""
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more


def _load(path: Path, place: str, *, mapped: bool = False, unneeded: Sequence[str] = ()) -> Any:
    """Load a file of `torch.save` without running code; its tensors go to a device, "meta" for their shapes alone."""
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        is_zip = _is_zip(path)  # older files are not zip archives, and cannot be mapped
        unpacked = _check_pickle(path, is_zip)
        stand_ins = _STAND_INS
        if unneeded and is_zip:
            named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            nothing = [(_Nothing, name) for name in named if name.startswith(tuple(unneeded))]
            stand_ins = [each for each in _STAND_INS if not each[1].startswith(tuple(unneeded))] + nothing
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file gets one error, below
            content = torch.load(path, map_location=place, weights_only=True, mmap=mapped and is_zip)
        _check_claims(content, unpacked, place)
        return content
    except pickle.UnpicklingError as error:
        if "operand" in str(error):
            raise _damaged(path, error) from error
        raise InputError(
            f"{path}: refused, because it is not only tensors and numbers but may run code ({_reason(error)}). "
            "Get the original again, or its safetensors."
        ) from error
    except Exception as error:  # damaged bytes raise anything
        raise _damaged(path, error) from error


def _is_zip(path: Path) -> bool:
    """Say whether a file is a zip archive to PyTorch, which looks at its beginning, and to Python, at its end."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04" and zipfile.is_zipfile(file)


def _check_pickle(path: Path, is_zip: bool) -> int:
    """Refuse a file that unpacks to far more than it holds, or asks for memory by number; return its size unpacked."""
    size = path.stat().st_size
    if not is_zip:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            if content.find(BY_NUMBER) >= 0:
                raise InputError("it names a bytearray, which no weights need")
        return size
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > PACKED * size + SLACK:
            raise InputError(f"its {size} bytes would unpack to {unpacked}")
        pickles = [member for member in archive.infolist() if member.filename.endswith(".pkl")]
        if any(BY_NUMBER in archive.read(member) for member in pickles):
            raise InputError("it names a bytearray, which no weights need")
    return max(size, unpacked)


def _check_claims(content: Any, unpacked: int, place: str) -> None:
    """Refuse tensors and arrays of far more numbers than the file holds: many may share one number."""
    claimed, waiting = 0, [content]
    seen: set[int] = set()  # a container may hold itself, or one other many times
    while waiting:
        match entry := waiting.pop():
            case Tensor():
                if entry.layout != torch.strided or entry.device.type != place:
                    raise InputError(f"it holds a tensor that is {entry.layout} on {entry.device}")
                claimed += entry.numel() * entry.element_size()
            case _Array():
                claimed += entry.numbers.nbytes
            case dict() | list() | tuple() if id(entry) not in seen:
                seen.add(id(entry))
                waiting.extend(entry.values() if isinstance(entry, dict) else entry)
    if claimed > SHARED * unpacked + SLACK:
        raise InputError(f"its tensors claim {claimed} bytes, and it holds {unpacked}")


class _Nothing:
    """Stands in for what nobody needs: accepts everything, holds nothing."""

    def __new__(cls, *_: object) -> "_Nothing":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


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
        self.numbers = np.frombuffer(content, kind.kind).reshape(shape, order="F" if by_column else "C")


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
    return entry.numbers.astype(entry.numbers.dtype.newbyteorder("=")) if isinstance(entry, _Array) else entry


def _damaged(path: Path, error: Exception) -> ValueError:
    return InputError(f"{path}: not a PyTorch checkpoint, or only a part of one ({_reason(error)}). Get it again.")


def _reason(error: Exception) -> str:
    """Shorten an error of PyTorch to a few words, without control characters."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip() or type(error).__name__
    if named := re.search(r"GLOBAL (\S+)", text):
        text = f"it names {named[1]}"
    text = re.split(r"\n|\. ", text)[0].rstrip(".")
    return "".join(char if char.isprintable() else "?" for char in text)[:200]
