"""What a capture's text files say: entries of JSON, rows of numbers, names of files that must lie in the capture."""

import math
import re
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, PoseError, UserError
from cuao3d.files import check_inside
from cuao3d.scene import Problem, pose_problem
from cuao3d.schema import is_number, is_number_or_lost, shown

_MARKS = str.maketrans(",;[]()", " " * 6)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that no name of a file needs; in a message they could steer a terminal."""


def by_number(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key of names that hold numbers: "9.png" comes before "10.png"."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part)


def only_file(folder: Path, pattern: str, preferred: str) -> Path | None:
    """Find the file of a folder that matches, or None.

    Args:
        folder: Where to look.
        pattern: Such as `*.ply`; names may have it in any case.
        preferred: Name of the one that counts where there are several.

    Raises:
        InputError: Several match, and none is the preferred one.
    """
    found = sorted(
        path
        for path in folder.iterdir()
        if fnmatchcase(path.name.lower(), pattern) and path.is_file() and not path.name.startswith(".")
    )
    if len(found) > 1 and folder / preferred not in found:
        names = ", ".join(path.name for path in found[:3])
        raise InputError(f"{folder} holds {len(found)} files {pattern} ({names}); rename the right one to {preferred}.")
    return folder / preferred if len(found) > 1 else next(iter(found), None)


def file_name(folder: Path, name: object, where: str) -> str:
    """Return an entry of a capture that must be the name of a file; arguments as for `inside`.

    Raises:
        InputError: The entry is no text, or holds characters that no name has.
    """
    if not isinstance(name, str) or not name or _CONTROL.search(name):
        raise InputError(f"{where} is {shown(name)}; expected the name of a file, relative to {folder}.")
    return name


def inside(folder: Path, name: object, where: str) -> Path:
    """Return a file that an entry of a capture names, relative to the capture.

    Args:
        folder: The capture.
        name: What the entry says.
        where: File and entry, for messages.

    Raises:
        InputError: The entry is no relative path, or one that leads out of the capture.
    """
    name = file_name(folder, name, where)
    name = name.replace("\\", "/") if "\\" in name and not (folder / name).exists() else name
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise InputError(
            f"{where} is {shown(name)}, which leads out of the capture; files are named relative to {folder}."
        )
    return folder / name


def number(entry: object, where: str) -> float:
    """Return an entry of a JSON file that must be a finite number.

    Raises:
        InputError: It is something else; the message begins with `where`.
    """
    if not is_number(entry):
        raise InputError(f"{where} is {shown(entry)}; expected a number.")
    return float(entry)


def positive(entry: object, where: str) -> float:
    """Return an entry of a JSON file that must be a number above 0, of a size that a unit may have.

    Raises:
        InputError: It is something else; the message begins with `where`.
    """
    if not is_number(entry) or not 1e-9 < entry < 1e9:
        raise InputError(f"{where} is {shown(entry)}; expected a number above 0, and not beyond 1e9 or 1e-9.")
    return float(entry)


def fraction(entry: object, where: str) -> float:
    """Return an entry of a JSON file that must be a number between 0 and 1, both excluded.

    Raises:
        InputError: It is something else; the message begins with `where`.
    """
    if not is_number(entry) or not 0 < entry < 1:
        raise InputError(f"{where} is {shown(entry)}; expected a number between 0 and 1, such as 0.1 for 10 %.")
    return float(entry)


def whole(entry: object, where: str) -> int:
    """Return an entry of a JSON file that must be a whole number above 0, also if written as 640.0.

    Raises:
        InputError: It is something else; the message begins with `where`.
    """
    if not is_number(entry) or entry != int(entry) or entry < 1:
        raise InputError(f"{where} is {shown(entry)}; expected a whole number above 0.")
    return int(entry)


def choice(choices: tuple[object, ...], entry: object, where: str) -> object:
    """Return an entry that must be one of some values.

    Raises:
        InputError: It is something else; the message begins with `where`.
    """
    # 1 == True in Python; here it is a mistake.
    if not any(entry is choice or (isinstance(choice, str) and entry == choice) for choice in choices):
        raise InputError(f"{where} is {shown(entry)}; choose from {', '.join(map(repr, choices))}.")
    return entry


def matrix(entry: object, where: str, *, rows: int, columns: int) -> Float64[Tensor, "R C"]:
    """Return an entry of a JSON file that must be a matrix, a list of its rows; numbers may be NaN or infinite.

    Raises:
        InputError: It is something else; the message begins with `where`.
    """
    expected = f"{where} should be a list of {rows} rows of {columns} numbers"
    if not isinstance(entry, list) or len(entry) != rows:
        raise InputError(f"{expected}; it is {shown(entry)}.")
    if not all(isinstance(row, list) and len(row) == columns and all(map(is_number_or_lost, row)) for row in entry):
        raise InputError(f"{expected}; it is {shown(entry)}.")
    return torch.tensor(entry, dtype=torch.float64)


def read_lines(path: Path, *, of_numbers: bool = False) -> list[tuple[str, list[str]]]:
    """Read the words of each line of a text file, without empty lines and what follows `#`.

    Args:
        path: The file.
        of_numbers: Whether it holds numbers alone; commas, semicolons and brackets then count as spaces.

    Returns:
        For each line where it stands, for messages, and its words.

    Raises:
        NotFoundError: There is no such file.
        InputError: It is no text.
    """
    text, name = _read_text(path), str(path)
    lines = (line.split("#")[0].split() for line in (text.translate(_MARKS) if of_numbers else text).splitlines())
    return [(f"{name}, line {index}", words) for index, words in enumerate(lines, start=1) if words]


def read_rows(path: Path, num_columns: int) -> Float64[Tensor, "N C"]:
    """Read a text file of rows of numbers; a number may be NaN or infinite.

    Args:
        path: The file; empty lines and what follows `#` do not count.
        num_columns: How many numbers each row has.

    Raises:
        NotFoundError: There is no such file.
        InputError: A line holds something else; the message says which.
    """
    lines = read_lines(path, of_numbers=True)
    try:
        values = [float(word) for _, words in lines for word in words]
        are_rows = all(len(words) == num_columns for _, words in lines)
    except ValueError:
        are_rows = False
    if not are_rows:
        values = [number for where, words in lines for number in _numbers(words, where, num_columns)]  # names the line
    return torch.from_numpy(np.array(values, dtype=np.float64)).reshape(-1, num_columns)


def read_numbers(path: Path, *counts: int) -> list[float]:
    """Read a text file that holds one of some counts of finite numbers, on any lines.

    Raises:
        NotFoundError: There is no such file.
        InputError: It holds something else.
    """
    values = [
        value for where, words in read_lines(path, of_numbers=True) for value in _numbers(words, where, len(words))
    ]
    if len(values) not in counts or not all(map(math.isfinite, values)):
        raise InputError(f"{path} should hold {' or '.join(map(str, counts))} numbers; it holds {shown(values)}.")
    return values


def read_matrix(path: Path, *sizes: int) -> Float64[Tensor, "S S"]:
    """Read a text file that holds a square matrix of one of some sizes; numbers may be NaN or infinite.

    Raises:
        NotFoundError: There is no such file.
        InputError: It holds something else.
    """
    expected = " or ".join(f"{size} x {size}" for size in sizes)
    lines = read_lines(path, of_numbers=True)
    try:
        rows = [_numbers(words, where, len(lines[0][1])) for where, words in lines]
    except UserError as error:
        raise InputError(f"{path} holds no matrix ({error}); expected {expected} numbers.") from error
    columns = len(rows[0]) if rows else 0
    if len(rows) != columns or columns not in sizes:
        raise InputError(f"{path} holds {len(rows)} x {columns} numbers; expected {expected}.")
    return torch.tensor(rows, dtype=torch.float64)


def read_pose(path: Path) -> Float64[Tensor, "4 4"]:
    """Read a text file that holds a pose, camera to world, metres: 4 x 4 or 3 x 4, in rows or all in one.

    Raises:
        PoseError: There is no such file, or it holds something else.
    """
    if not path.is_file():
        raise PoseError(f"{path.name} is missing; restore it, or remove the frame's other files.")
    try:
        lines = read_lines(path, of_numbers=True)
        values = [value for where, words in lines for value in _numbers(words, where, len(words))]
    except UserError as error:
        raise PoseError(f"{path.name} holds no matrix ({error}); expected 4 x 4 numbers.") from error
    widths = {len(words) for _, words in lines}
    if len(values) not in (12, 16) or widths not in ({4}, {len(values)}):
        about = " (a position and a quaternion?)" if len(values) == 7 else ""
        shape = f"{len(lines)} x {widths.pop()}" if len(widths) == 1 else f"{len(values)}"
        raise PoseError(
            f"{path} holds {shape} numbers{about}; expected 4 x 4, camera to world, a row a line. Convert it."
        )
    pose = torch.eye(4, dtype=torch.float64)
    pose.view(-1)[: len(values)] = torch.tensor(values, dtype=torch.float64)
    if problem := pose_problem(pose):
        raise PoseError(f"{path.name}: {problem}; correct it, or remove the frame.")
    return pose


def pose_entry(entry: object, where: str, *, rows: int = 4) -> Float64[Tensor, "4 4"]:
    """Return an entry of a JSON file that must be a pose: a list of 4 rows of 4 numbers, or of the first 3 rows.

    Raises:
        PoseError: It is something else; the message begins with `where`.
    """
    pose = torch.eye(4, dtype=torch.float64)
    try:
        pose[:rows] = matrix(entry, where, rows=rows, columns=4)
    except InputError as error:
        raise PoseError(str(error)) from error
    return pose


def nearest_in_time(times: Float64[Tensor, "N"], others: Float64[Tensor, "M"], *, within: float) -> list[int | None]:
    """Find for each time the nearest of some others.

    Args:
        times: Times, seconds.
        others: Times to choose from, in any order.
        within: How far the nearest may be, seconds; one that is farther is None.
    """
    ordered, order = torch.sort(others)
    if not len(ordered):
        return [None] * len(times)
    after = torch.searchsorted(ordered, times).clamp(max=len(ordered) - 1)
    before = (after - 1).clamp(min=0)
    choice = torch.where((times - ordered[before]).abs() <= (times - ordered[after]).abs(), before, after)
    near = (times - ordered[choice]).abs() <= within
    return [index if found else None for index, found in zip(order[choice].tolist(), near.tolist(), strict=True)]


def summarise(what: str, names: list[str]) -> list[Problem]:
    """Return one problem that several files share; none if there are no files."""
    if not names:
        return []
    return [Problem("file", f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")]


def _read_text(path: Path) -> str:
    check_inside(path)
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    return as_text(path, path.read_bytes())


def as_text(path: Path, content: bytes) -> str:
    """Return the text of a file: UTF-8, or UTF-16 where a byte order mark says so, as Windows writes it.

    Raises:
        InputError: It is neither.
    """
    is_wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text ({error}); save it again, in UTF-8.") from error


def _numbers(words: list[str], where: str, num_columns: int) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise InputError(f"{where}: expected {num_columns} numbers, got {shown(' '.join(words))}.") from error
    if len(numbers) != num_columns:
        raise InputError(f"{where}: expected {num_columns} numbers, got {len(numbers)}.")
    return numbers
