"""Point clouds and triangle meshes as PLY files: named properties, one value a point or a face.

Files are read in all three formats and may come from anywhere: what a header promises is held against the size of the
file before memory is taken for it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from cuao3d.errors import InputError, UserError
from cuao3d.files import check_inside

Columns = dict[str, NDArray[Any]]

MAX_HEADER = 1 << 16
"""Longest header that is read, bytes."""

_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_NUMPY = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_NAMES = {"f4": "float", "f8": "double", "u1": "uchar", "u2": "ushort", "i4": "int"}
_CORNERS = ("vertex_indices", "vertex_index")


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
        path: The file; its vertices need x, y and z, its faces three corners each, or four, which are cut in two.

    Raises:
        InputError: The file is no readable PLY, or no such mesh.
    """
    elements = _read(path, ("vertex", "face"))
    vertices, faces = _vertices(path, elements["vertex"]), elements["face"]
    corners = next((faces.pop(name) for name in _CORNERS if name in faces), None)
    num_vertices = len(vertices["x"]) if vertices else 0
    if corners is None or corners.ndim != 2 or corners.dtype.kind not in "iu":
        raise InputError(f"{path} does not say which vertices its faces join; expected a list {_CORNERS[0]!r}.")
    if corners.shape[1] not in (3, 4) and len(corners):
        raise InputError(f"{path} has faces of {corners.shape[1]} corners; cut them into triangles.")
    if corners.shape[1] == 4:
        corners = corners[:, [0, 1, 2, 0, 2, 3]]
        faces = {name: np.repeat(column, 2, axis=0) for name, column in faces.items()}
    triangles = corners.astype(np.int64).reshape(-1, 3)
    if len(triangles) and not (triangles.min() >= 0 and triangles.max() < num_vertices):
        raise InputError(f"{path} has faces between vertices that are not there; it has {num_vertices}.")
    return Mesh(vertices, triangles, {name: column for name, column in faces.items() if column.ndim == 1})


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


def write_ply(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write points as a binary PLY file.

    Args:
        path: The file.
        columns: The properties by name, each (N,) and of type float32, float64, uint8, uint16 or int32.
    """
    types = {name: column.dtype.newbyteorder("<") for name, column in columns.items()}
    table = np.empty(len(next(iter(columns.values()))), dtype=list(types.items()))
    for name, column in columns.items():
        table[name] = column
    properties = [f"property {_NAMES[dtype.str[1:]]} {name}" for name, dtype in types.items()]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}", *properties, "end_header", ""]
    path.write_bytes("\n".join(header).encode() + table.tobytes())


def cloud_columns(
    points: Float32[Tensor, "N 3"],
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
    """Check what every point needs."""
    if not all(axis in vertices for axis in "xyz"):
        raise InputError(f"{path} has vertices without x, y and z; write it again, or remove it.")
    vertices = {name: column for name, column in vertices.items() if column.ndim == 1}
    return vertices if len(vertices["x"]) else {}


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
    """Return the byte order, empty for ascii, and the elements; the file then stands behind its header."""
    order: str | None = None
    elements: list[_Element] = []
    if file.readline(MAX_HEADER).split() != [b"ply"]:
        raise InputError("it does not begin with 'ply'")
    while file.tell() < MAX_HEADER:
        line = file.readline(MAX_HEADER).decode("latin-1")
        match line.split():
            case ["end_header"] if order is not None:
                return order, elements
            case ["format", name, "1.0"] if name in _FORMATS and not elements:
                order = _FORMATS[name]
            case ["element", name, count] if _is_count(count) and name not in {element.name for element in elements}:
                elements.append(_Element(name, int(count), []))
            case ["property", kind, name] if kind in _NUMPY and elements and order is not None:
                _add(elements[-1], _Property(name, np.dtype(order + _NUMPY[kind]), None))
            case ["property", "list", length, kind, name] if _is_list(length, kind) and elements and order is not None:
                dtypes = np.dtype(order + _NUMPY[kind]), np.dtype(order + _NUMPY[length])
                _add(elements[-1], _Property(name, *dtypes))
            case ["comment" | "obj_info", *_]:
                pass
            case []:
                if not line:
                    break
            case _:
                raise InputError(f"its header says {line.strip()[:80]!r}")
    raise InputError("its header does not end")


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
    lengths = source.list_lengths(element) if element.count else [0] * len(element.properties)
    fields: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
    for length, (name, dtype, length_dtype) in zip(lengths, element.properties, strict=True):
        if length_dtype:
            fields.append((f"length of {name}", length_dtype, ()))
        fields.append((name, dtype, (length,) if length_dtype else ()))
    columns = source.rows(element, fields)
    for length, (name, _, length_dtype) in zip(lengths, element.properties, strict=True):
        if length_dtype and (columns.pop(f"length of {name}") != length).any():
            raise InputError(f"the lists {name} of its element {element.name} are not all of one length")
    return columns


class _Binary:
    """The body of a binary file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.end = os.fstat(file.fileno()).st_size

    def list_lengths(self, element: _Element) -> list[int]:
        start = self.file.tell()
        lengths = []
        for _, dtype, length_dtype in element.properties:
            length = 0
            if length_dtype:
                (value,) = np.frombuffer(self._take(length_dtype.itemsize, element), length_dtype)
                length = max(0, int(value))
            lengths.append(length)
            self.file.seek(dtype.itemsize * (length if length_dtype else 1), os.SEEK_CUR)
        self.file.seek(start)
        return lengths

    def rows(self, element: _Element, fields: list[tuple[str, np.dtype[Any], tuple[int, ...]]]) -> Columns:
        # Sizes are added up in Python: a list too long for numpy is too long for the file.
        size = sum(dtype.itemsize * (shape[0] if shape else 1) for _, dtype, shape in fields)
        content = self._take(size * element.count, element)
        if not fields:
            return {}
        table = np.frombuffer(content, np.dtype(fields))
        return {name: table[name].astype(dtype.newbyteorder("=")) for name, dtype, _ in fields}

    def _take(self, size: int, element: _Element) -> bytes:
        if size > self.end - self.file.tell():
            raise InputError(_too_few(element))
        return self.file.read(size)


class _Ascii:
    """The body of a text file: all its numbers, whatever the lines."""

    def __init__(self, file: BinaryIO) -> None:
        self.values = np.fromstring(file.read(), sep=" ")
        self.position = 0

    def list_lengths(self, element: _Element) -> list[int]:
        lengths, position = [], self.position
        for _, _, length_dtype in element.properties:
            length = 0
            if length_dtype:
                (value,) = self._take(position, 1, element)
                length = int(value) if 0 <= value <= len(self.values) else 0
            lengths.append(length)
            position += length + 1
        return lengths

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
        if start + count > len(self.values):
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
