"""Point clouds and triangle meshes as PLY files: named properties, one value a point or a face.

Files are read in all three formats and may come from anywhere: what a header promises is held against the size of the
file before memory is taken for it.
"""

import mmap
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor

from cuao3d.console import visible
from cuao3d.errors import InputError, UserError
from cuao3d.files import check_inside

Columns = dict[str, NDArray[Any]]

MAX_HEADER = 1 << 16
"""Longest header that is read, bytes."""

LONGEST_COMMENT = 240
"""Longest comment that is written, characters: some readers take no longer lines."""

MOST_FILLED = 16
"""Lists of different lengths may take this many times their size once all are as long as the longest."""

_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_NUMPY = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_NAMES = {"f4": "float", "f8": "double", "u1": "uchar", "u2": "ushort", "i4": "int"}
_CORNERS = ("vertex_indices", "vertex_index")
_HEADER_END = re.compile(rb"[\r\n]end_header[ \t]*(\r\n|\r|\n)")


class Mesh(NamedTuple):
    """Triangles between named points."""

    vertices: Columns
    """Properties of the vertices by name ("x", "red"), each (N,)."""
    triangles: NDArray[np.int64]
    """Corners of each face, rows of `vertices`, (F, 3)."""
    faces: Columns
    """Properties of the faces by name, each (F,)."""


def read_ply(path: Path) -> Columns:
    """Read the vertices of a PLY file, ascii or binary; they must have x, y and z.

    Args:
        path: The file; what follows its vertices is not looked at.

    Returns:
        The properties by name ("x", "red", "label"), each (N,). Empty if the file has no vertices.

    Raises:
        InputError: The file is no readable PLY.
    """
    vertices = _read(path, ("vertex",))["vertex"]
    return _vertices(path, vertices)


def read_mesh(path: Path) -> Mesh:
    """Read vertices and faces of a PLY file, ascii or binary.

    Args:
        path: The file; its vertices need x, y and z. Faces of more than three corners are cut into triangles that share
            the first.

    Raises:
        InputError: The file is no readable PLY, or no such mesh.
    """
    elements = _read(path, ("vertex", "face"))
    vertices, faces = _vertices(path, elements["vertex"]), elements["face"]
    corners = next((faces.pop(name) for name in _CORNERS if name in faces), None)
    num_vertices = len(vertices["x"]) if vertices else 0
    if corners is None or corners.ndim != 2 or corners.dtype.kind not in "iu":
        raise InputError(f"{path} does not say which vertices its faces join; expected a list {_CORNERS[0]!r}.")
    if corners.shape[1] < 3 and len(corners):
        raise InputError(f"{path} has faces of {corners.shape[1]} corners; a face has three at least.")
    corners = corners.astype(np.int64)
    length = (corners >= 0).cumprod(axis=1).sum(axis=1)  # shorter faces are filled up with -1
    filled = np.arange(corners.shape[1]) >= length[:, None]
    if (corners[filled] != -1).any() or corners.max(initial=-1) >= num_vertices or (length < 3).any():
        raise InputError(f"{path} has faces between vertices that are not there; it has {num_vertices}.")
    face, second = np.nonzero(np.arange(1, max(corners.shape[1] - 1, 1)) + 1 < length[:, None])
    triangles = corners[face[:, None], np.stack([np.zeros_like(second), second + 1, second + 2], axis=1)]
    faces = {name: column[face] for name, column in faces.items() if column.ndim == 1}
    return Mesh(vertices, triangles.reshape(-1, 3), faces)


def read_triangles(path: Path) -> NDArray[np.float32] | None:
    """Read the triangles of a PLY file.

    Returns:
        Corners (T, 3, 3), without triangles that have a corner at no finite position; None if there are none.

    Raises:
        InputError: As for `read_mesh`; a file without any faces is no mistake.
    """
    check_inside(path)
    with path.open("rb") as file:
        try:
            _, elements = _read_header(file)
        except UserError as error:
            raise InputError(f"{path} is no readable PLY file ({error}); write it again, or remove it.") from error
    if not any(element.name == "face" and element.count for element in elements):
        return None
    mesh = read_mesh(path)
    if not len(mesh.triangles):
        return None
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is left out
        points = np.stack([mesh.vertices[axis] for axis in "xyz"], axis=1).astype(np.float32)
    corners: NDArray[np.float32] = points[mesh.triangles]
    corners = corners[np.isfinite(corners).all((1, 2))]
    return corners if len(corners) else None


def write_ply(
    path: Path,
    columns: Mapping[str, NDArray[Any]],
    *,
    comments: Sequence[str] = (),
    triangles: NDArray[np.int64] | None = None,
) -> None:
    """Write points, or the vertices of a mesh, as a binary PLY file.

    Args:
        path: The file.
        columns: The properties by name, each (N,) and of type float32, float64, uint8, uint16 or int32.
        comments: Lines of the header, for people; what could break a line is escaped, and long ones are cut.
        triangles: Corners of each face, rows of the columns, (F, 3); None: no faces.

    Raises:
        InputError: The header would be longer than readers take.
    """
    types = {name: column.dtype.newbyteorder("<") for name, column in columns.items()}
    table = np.empty(len(next(iter(columns.values()))), dtype=list(types.items()))
    for name, column in columns.items():
        table[name] = column
    properties = [f"property {_NAMES[dtype.str[1:]]} {name}" for name, dtype in types.items()]
    said = [f"comment {visible(line)[:LONGEST_COMMENT]}" for line in comments]
    header = ["ply", "format binary_little_endian 1.0", *said, f"element vertex {len(table)}", *properties]
    body = table.tobytes()
    if triangles is not None:
        faces = np.empty(len(triangles), dtype=[("length", "u1"), ("corners", "<i4", 3)])
        faces["length"], faces["corners"] = 3, triangles
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        body += faces.tobytes()
    content = "\n".join([*header, "end_header", ""]).encode()
    if len(content) > MAX_HEADER:
        raise InputError(f"{path} would have a header of {len(content)} bytes, over {MAX_HEADER}; ask fewer questions.")
    path.write_bytes(content + body)


def cloud_columns(
    points: Float[Tensor, "N 3"],
    colors: Float32[Tensor, "N 3"] | None = None,
    normals: Float32[Tensor, "N 3"] | None = None,
) -> Columns:
    """Turn points into vertices for `write_ply`, as `read_points` takes them."""
    columns: Columns = dict(zip("xyz", points.numpy().T, strict=True))
    if normals is not None:
        columns |= zip(("nx", "ny", "nz"), normals.numpy().T, strict=True)
    if colors is not None:
        channels = (colors.clamp(0, 1) * 255).round().to(torch.uint8).numpy().T
        columns |= zip(("red", "green", "blue"), channels, strict=True)
    return columns


def unused(num_points: int) -> NDArray[np.float32]:
    """Return a column that stands for one that is not read, so that its name can be told; it takes no memory."""
    return np.broadcast_to(np.float32(0), num_points)


class _Property(NamedTuple):
    name: str
    dtype: np.dtype[Any]
    """Of a value, in the file's byte order."""
    length_dtype: np.dtype[Any] | None
    """Of the length that precedes the values, if the property is a list."""


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: list[_Property]


def _vertices(path: Path, vertices: Columns) -> Columns:
    """Check what every point needs; X, Y and Z are x, y and z."""
    vertices = {name.lower() if name in ("X", "Y", "Z") else name: column for name, column in vertices.items()}
    if not all(axis in vertices for axis in "xyz"):
        raise InputError(f"{path} has vertices without x, y and z; write it again, or remove it.")
    num_vertices = len(vertices["x"])
    columns = {name: column if column.ndim == 1 else unused(num_vertices) for name, column in vertices.items()}
    return columns if num_vertices else {}


def _read(path: Path, wanted: Sequence[str]) -> dict[str, Columns]:
    """Read the wanted elements; the properties of each by name, a list as (N, length of the list)."""
    check_inside(path)
    with path.open("rb") as file:
        try:
            order, elements = _read_header(file)
            missing = next((name for name in wanted if name not in {element.name for element in elements}), None)
            if missing:
                raise InputError(f"it has no element {missing}")
            source = _Binary(file) if order else _Ascii(file)
            found: dict[str, Columns] = {}
            for element in elements:
                found[element.name] = _read_element(source, element)
                if all(name in found for name in wanted):
                    break
        except ValueError as error:
            raise InputError(f"{path} is no readable PLY file ({error}); write it again, or remove it.") from error
    return found


def _read_header(file: BinaryIO) -> tuple[str, list[_Element]]:
    """Return the byte order, empty for ascii, and the elements; the file then stands behind its header.

    Lines end in CR LF, LF, or CR alone.
    """
    content = file.read(MAX_HEADER)
    if content[:3] != b"ply" or content[3:].lstrip(b" \t")[:1] not in (b"\r", b"\n"):
        raise InputError("it does not begin with 'ply'")
    end = _HEADER_END.search(content)
    text = content if end is None else content[: end.start() + 1]
    order: str | None = None
    elements: list[_Element] = []
    for line in text.decode("latin-1").replace("\r", "\n").split("\n")[1:]:
        match line.split():
            case ["format", name, "1.0"] if name in _FORMATS and not elements:
                order = _FORMATS[name]
            case ["element", name, count] if _is_count(count) and name not in {element.name for element in elements}:
                elements.append(_Element(name, int(count), []))
            case ["property", kind, name] if kind in _NUMPY and elements and order is not None:
                _add(elements[-1], _Property(name, np.dtype(order + _NUMPY[kind]), None))
            case ["property", "list", length, kind, name] if _is_list(length, kind) and elements and order is not None:
                dtypes = np.dtype(order + _NUMPY[kind]), np.dtype(order + _NUMPY[length])
                _add(elements[-1], _Property(name, *dtypes))
            case ["comment" | "obj_info", *_] | []:
                pass
            case _:
                raise InputError(f"its header says {line.strip()[:80]!r}")
    if end is None or order is None:
        raise InputError("its header does not end" if end is None else "its header names no format")
    is_body = b"\n" not in text and end.group().endswith(b"\r\n")  # where lines end in CR, LF is the body's first byte
    file.seek(end.end() - is_body)
    return order, elements


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _is_list(length: str, kind: str) -> bool:
    return kind in _NUMPY and _NUMPY.get(length, "f4")[0] in "iu"


def _add(element: _Element, new: _Property) -> None:
    if new.name in {old.name for old in element.properties}:
        raise InputError(f"its element {element.name} has two properties {new.name}")
    element.properties.append(new)


def _read_element(source: "_Binary | _Ascii", element: _Element) -> Columns:
    """Read all rows of an element at once, as if every list in it were as long as it is in the first row."""
    begin = source.position
    lengths = source.list_lengths(element) if element.count else [0] * len(element.properties)
    fields: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
    for length, (name, dtype, length_dtype) in zip(lengths, element.properties, strict=True):
        if length_dtype:
            fields.append((f"length of {name}", length_dtype, ()))
        fields.append((name, dtype, (length,) if length_dtype else ()))
    try:
        columns = source.rows(element, fields)
    except InputError:
        if not any(property_.length_dtype for property_ in element.properties):
            raise
        columns = {}
    told = [
        (columns.pop(f"length of {one.name}", None), length)
        for length, one in zip(lengths, element.properties, strict=True)
        if one.length_dtype
    ]
    if all(every is not None and (every == length).all() for every, length in told):
        return columns
    source.position = begin
    return _read_ragged(source, element)


def _read_ragged(source: "_Binary | _Ascii", element: _Element) -> Columns:
    """Read the rows of an element one by one, as its lists differ in length.

    Returns:
        Its properties; a list of a face is filled up with -1, (F, longest). Other lists are `unused`.
    """
    if element.count > source.size:
        raise InputError(_too_few(element))
    places = np.empty((element.count, len(element.properties)), np.int64)
    lengths = np.ones_like(places)
    position = source.position
    for row in range(element.count):
        for column, (_, dtype, length_dtype) in enumerate(element.properties):
            if length_dtype:
                lengths[row, column] = source.length_at(position, length_dtype, element)
                position += source.width(length_dtype)
            places[row, column] = position
            position += int(lengths[row, column]) * source.width(dtype)
        if position > source.size:
            raise InputError(_too_few(element))
    source.position = position
    columns: Columns = {}
    for column, (name, dtype, length_dtype) in enumerate(element.properties):
        if not length_dtype:
            columns[name] = source.gather(places[:, column], dtype, name)
        elif element.name == "face":
            columns[name] = _filled_up(source, places[:, column], lengths[:, column], dtype, name)
        else:
            columns[name] = unused(element.count)
    return columns


def _filled_up(
    source: "_Binary | _Ascii", places: NDArray[np.int64], lengths: NDArray[np.int64], dtype: np.dtype[Any], name: str
) -> NDArray[Any]:
    longest, total = int(lengths.max(initial=0)), int(lengths.sum())
    if longest * len(lengths) > MOST_FILLED * total + MAX_HEADER:
        raise InputError(f"its lists {name} differ too much in length")
    inner = np.arange(total) - np.repeat(lengths.cumsum() - lengths, lengths)
    values = source.gather(np.repeat(places, lengths) + inner * source.width(dtype), dtype, name)
    if name in _CORNERS and (values < 0).any():
        raise InputError(f"a value of {name} is negative")
    filled = np.full((len(lengths), longest), -1, values.dtype if dtype.kind == "f" else np.int64)
    filled[np.repeat(np.arange(len(lengths)), lengths), inner] = values
    return filled


class _Binary:
    """The body of a binary file; positions are bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size

    @property
    def position(self) -> int:
        """Where the next element begins."""
        return self.file.tell()

    @position.setter
    def position(self, position: int) -> None:
        self.file.seek(position)

    def list_lengths(self, element: _Element) -> list[int]:
        position, lengths = self.position, []
        for _, dtype, length_dtype in element.properties:
            length = self.length_at(position, length_dtype, element) if length_dtype else 1
            lengths.append(length if length_dtype else 0)
            position += (length_dtype.itemsize if length_dtype else 0) + dtype.itemsize * length
        return lengths

    def width(self, dtype: np.dtype[Any]) -> int:
        return dtype.itemsize

    def length_at(self, position: int, dtype: np.dtype[Any], element: _Element) -> int:
        if position + dtype.itemsize > self.size:
            raise InputError(_too_few(element))
        return max(0, int(np.frombuffer(self._content, dtype, 1, position)[0]))

    def gather(self, places: NDArray[np.int64], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
        content = np.frombuffer(self._content, np.uint8)
        values = content[places[:, None] + np.arange(dtype.itemsize)].view(dtype)[:, 0]
        native: NDArray[Any] = values.astype(dtype.newbyteorder("="))
        return native

    def rows(self, element: _Element, fields: list[tuple[str, np.dtype[Any], tuple[int, ...]]]) -> Columns:
        # Sizes are added up in Python: a list too long for numpy is too long for the file.
        size = sum(dtype.itemsize * (shape[0] if shape else 1) for _, dtype, shape in fields)
        if size * element.count > self.size - self.position:
            raise InputError(_too_few(element))
        content = self.file.read(size * element.count)
        if not fields:
            return {}
        table = np.frombuffer(content, np.dtype(fields))
        return {name: table[name].astype(dtype.newbyteorder("=")) for name, dtype, _ in fields}

    @cached_property
    def _content(self) -> mmap.mmap:
        return mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)


class _Ascii:
    """The body of a text file: all its numbers, whatever the lines; positions count numbers."""

    def __init__(self, file: BinaryIO) -> None:
        self.values = np.fromstring(file.read(), sep=" ")
        self.position, self.size = 0, len(self.values)

    def list_lengths(self, element: _Element) -> list[int]:
        position, lengths = self.position, []
        for _, _, length_dtype in element.properties:
            length = self.length_at(position, length_dtype, element) if length_dtype else 0
            lengths.append(length)
            position += length + 1
        return lengths

    def width(self, dtype: np.dtype[Any]) -> int:
        return 1

    def length_at(self, position: int, dtype: np.dtype[Any], element: _Element) -> int:
        (value,) = self._take(position, 1, element)
        return int(value) if 0 <= value <= self.size else 0

    def gather(self, places: NDArray[np.int64], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
        return _cast(self.values[places], dtype, name)

    def rows(self, element: _Element, fields: list[tuple[str, np.dtype[Any], tuple[int, ...]]]) -> Columns:
        widths = [shape[0] if shape else 1 for _, _, shape in fields]
        rows = self._take(self.position, sum(widths) * element.count, element)
        self.position += len(rows)
        if not fields:
            return {}
        rows = rows.reshape(element.count, sum(widths))
        columns, column = {}, 0
        for width, (name, dtype, shape) in zip(widths, fields, strict=True):
            values = rows[:, column : column + width].reshape(len(rows), *shape)
            columns[name] = _cast(values, dtype, name)
            column += width
        return columns

    def _take(self, start: int, count: int, element: _Element) -> NDArray[np.float64]:
        if start + count > self.size:
            raise InputError(_too_few(element))
        return self.values[start : start + count]


def _cast(values: NDArray[np.float64], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not ((values >= limits.min) & (values <= limits.max) & (values == np.floor(values))).all():
            raise InputError(f"a value of {name} is no {dtype.name}")
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _too_few(element: _Element) -> str:
    kind = {"vertex": "vertices", "face": "faces"}.get(element.name, f"rows of {element.name}")
    has_lists = any(length_dtype for _, _, length_dtype in element.properties)
    other = ", or its lists are not all of one length" if has_lists else ""
    return f"it holds fewer {kind} than the {element.count} it promises{other}"
