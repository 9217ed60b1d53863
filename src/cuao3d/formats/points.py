"""Clouds in files: PLY, PCD, LAS and NPZ, with colours and normals where they hold any."""

import re
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional

from cuao3d.errors import InputError, NotFoundError
from cuao3d.files import check_inside
from cuao3d.formats.ply import Columns, read_ply
from cuao3d.scene import Problem
from cuao3d.schema import shown

MAX_NPZ = 1 << 33
"""Largest NPZ that is read, bytes once unpacked: a small file can hold any number of zeros."""

_XYZ, _RGB, _NORMAL = ("x", "y", "z"), ("red", "green", "blue"), ("nx", "ny", "nz")
_NPZ = {"points": _XYZ, "colors": _RGB, "normals": _NORMAL, "labels": ("label",)}
"""Arrays of an NPZ file and the columns that they hold."""
_LAS_RGB = (None, None, 20, 28, None, 28, None, 30, 30, None, 30)
"""Where the colours of a point are, by the format of points."""
_PCD_NAMES = {"normal_x": "nx", "normal_y": "ny", "normal_z": "nz"}
_PCD_TYPES = {"F4": "f4", "F8": "f8", "U1": "u1", "U2": "u2", "U4": "u4", "I1": "i1", "I2": "i2", "I4": "i4"}


class Points(NamedTuple):
    """A cloud as its file holds it."""

    points: Float32[Tensor, "N 3"]
    """World positions, metres."""
    colors: Float32[Tensor, "N 3"] | None = None
    """RGB, in [0, 1]."""
    normals: Float32[Tensor, "N 3"] | None = None
    """Unit surface normals, world axes."""
    labels: Int64[Tensor, "N"] | None = None
    """Class of each point, as the file numbers them."""
    problems: tuple[Problem, ...] = ()
    """What was left out and why."""
    file: Path | None = None
    """Where the cloud was read from."""


def read_points(path: Path) -> Points:
    """Read a cloud: `.ply` (its vertices), `.pcd` (not compressed), `.las`, `.npz` (points, colors, normals, labels).

    A point without a finite position is left out and reported; colours and normals that make no sense are not used.

    Raises:
        NotFoundError: There is no such file.
        InputError: It is damaged, or of another format.
    """
    check_inside(path)
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    if (read := _READERS.get(path.suffix.lower())) is None:
        raise InputError(
            f"{path} is no cloud that can be read ({', '.join(SUFFIXES)}); convert it, for instance with CloudCompare "
            f"or with: pdal translate {path.name} {path.stem}.ply"
        )
    return as_points(path, read(path))


def as_points(path: Path, columns: Columns) -> Points:
    """Turn the columns of a file into a cloud, as `read_points` does.

    Args:
        path: The file, for messages.
        columns: x, y and z, and red, green and blue, nx, ny and nz, label where there are any, (N,) each.

    Raises:
        InputError: There is no x, y or z.
    """
    if not columns:
        return Points(torch.empty(0, 3))
    if (points := _stack(columns, ("x", "y", "z"))) is None:
        raise InputError(f"{path} has no x, y and z; write it again.")
    found = torch.isfinite(points).all(1)  # scanners write NaN where they measured nothing
    if found.all():
        return Points(points, _colors(columns), _normals(columns), _labels(columns), file=path)
    num_lost = int((~found).sum())
    problem = Problem("cloud", f"{num_lost} of {len(points)} points of {path.name} left out: they have no position.")
    rows = found.numpy()
    columns = {name: column[rows] for name, column in columns.items()}
    return Points(points[found], _colors(columns), _normals(columns), _labels(columns), (problem,), path)


def _read_pcd(path: Path) -> Columns:
    """Read the fields of a PCD file by name; a packed `rgb` becomes red, green and blue."""
    try:
        header, data = _split_pcd(path.read_bytes())
        counts = header.get("COUNT", ["1"] * len(header["FIELDS"]))
        kinds = [_PCD_TYPES[kind + size] for kind, size in zip(header["TYPE"], header["SIZE"], strict=True)]
        fields = [
            (name if name != "_" else f"_{index}", kind, (int(count),))
            for index, (name, kind, count) in enumerate(zip(header["FIELDS"], kinds, counts, strict=True))
        ]
        num_points = int(header["POINTS"][0])
        if header["DATA"] == ["binary"]:
            table = np.frombuffer(data, np.dtype(fields).newbyteorder("<"), num_points)
        elif header["DATA"] == ["ascii"]:
            table = np.loadtxt(data.decode().splitlines(), np.dtype(fields), max_rows=num_points, ndmin=1)
        else:
            raise InputError(f"its data are {shown(' '.join(header['DATA']))}; write it as ascii or binary")
        if len(table) != num_points:
            raise InputError(f"it holds {len(table)} points and promises {num_points}")
        columns = {
            _PCD_NAMES.get(name, name): np.ascontiguousarray(table[name][:, 0])
            for name, _, (count,) in fields
            if count == 1
        }
    except Exception as error:  # a damaged file makes numpy fail in many ways
        raise InputError(f"{path} is no readable PCD file ({error}); write it again.") from error
    if "rgb" in columns and columns["rgb"].dtype.itemsize == 4:
        packed = columns.pop("rgb").view("u4")
        columns |= {
            name: (packed >> shift & 255).astype(np.uint8) for name, shift in zip(_RGB, (16, 8, 0), strict=True)
        }
    return columns


def _split_pcd(content: bytes) -> tuple[dict[str, list[str]], bytes]:
    """Split a PCD file into its header, words by keyword, and its data."""
    end = re.search(rb"^DATA .*\n", content[:10_000], flags=re.MULTILINE)
    if end is None:
        raise InputError("it has no header that ends in DATA")
    lines = [line.split() for line in content[: end.end()].decode().splitlines() if not line.startswith("#")]
    return {words[0]: words[1:] for words in lines if words}, content[end.end() :]


def _read_las(path: Path) -> Columns:
    """Read positions, and colours if there are any; a reflectance or a surveyor's class has no use here.

    By hand, as a damaged header sends laspy round a loop of billions.
    """
    content = path.read_bytes()
    try:
        start, _, kind, length, count = struct.unpack_from("<IIBHI", content, 96)
        if content[:4] != b"LASF" or kind >= len(_LAS_RGB):
            raise InputError("its points are packed, or it is another format")
        if content[25] >= 4 and not count:
            (count,) = struct.unpack_from("<Q", content, 247)
        scale, offset = np.frombuffer(content, "<f8", 6, 131).reshape(2, 3)
        names, places = [*_XYZ], [0, 4, 8]
        if (first := _LAS_RGB[kind]) is not None:
            names, places = [*names, *_RGB], [*places, first, first + 2, first + 4]
        kinds = ["<i4" if name in _XYZ else "<u2" for name in names]
        record = np.dtype({"names": names, "formats": kinds, "offsets": places, "itemsize": length})
        if start + count * length > len(content):
            raise InputError(f"it promises {count} points and is too short for them")
        table = np.frombuffer(content, record, count, start)
    except (struct.error, ValueError) as error:
        raise InputError(f"{path} is no readable LAS file ({error}); write it again.") from error
    with np.errstate(all="ignore"):
        columns = {name: table[name] * scale[axis] + offset[axis] for axis, name in enumerate(_XYZ)}
    colors = {name: table[name] for name in names[3:]}
    if not any(column.any() for column in colors.values()):
        return columns
    few = all(column.max() < 256 for column in colors.values())  # 16 bits, of which many programs write only 8
    return columns | {name: column.astype(np.uint8) if few else column for name, column in colors.items()}


def _read_npz(path: Path) -> Columns:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_NPZ:
            raise InputError(f"unpacked it has {size >> 30} GiB")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _NPZ if name in file}
    except Exception as error:  # a damaged archive makes numpy fail in many ways
        raise InputError(f"{path} is no readable NPZ file ({error}); write it again.") from error
    if "points" not in arrays:
        raise InputError(f"{path} has no array of points, N x 3; write it again.")
    num_points = len(arrays["points"]) if arrays["points"].ndim else 0
    columns: Columns = {}
    for name, array in arrays.items():
        names = _NPZ[name]
        shape = (num_points, len(names)) if len(names) > 1 else (num_points,)
        if array.shape != shape or array.dtype.kind not in "fiu":
            raise InputError(f"{path}: {name} is {array.dtype} {array.shape}; expected numbers {shape}.")
        columns |= dict(zip(names, array.reshape(num_points, len(names)).T, strict=True))
    return columns


def _colors(columns: Columns) -> Float32[Tensor, "N 3"] | None:
    """Return colours in [0, 1]: whole numbers count to 255, or to what 16 bits hold; so do fractions beyond 1."""
    if (colors := _stack(columns, _RGB)) is None or not torch.isfinite(colors).all():
        return None
    kind = columns["red"].dtype
    largest = 65535 if kind == np.uint16 else 255 if kind.kind in "iu" or bool((colors > 1).any()) else 1
    return (colors / largest).clamp(0, 1)


def _normals(columns: Columns) -> Float32[Tensor, "N 3"] | None:
    if (normals := _stack(columns, _NORMAL)) is None:
        return None
    length = normals.norm(dim=1)
    if not torch.isfinite(length).all() or (length == 0).any():
        return None
    return normals if ((length - 1).abs() < 1e-3).all() else functional.normalize(normals, dim=1)


def _labels(columns: Columns) -> Int64[Tensor, "N"] | None:
    if "label" not in columns or not np.isfinite(columns["label"]).all():
        return None
    return torch.from_numpy(columns["label"].astype(np.int64))


def _stack(columns: Columns, names: tuple[str, str, str]) -> Float32[Tensor, "N 3"] | None:
    if not all(name in columns for name in names):
        return None
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is left out
        return torch.from_numpy(np.stack([columns[name] for name in names], axis=1).astype(np.float32))


_READERS = {".ply": read_ply, ".pcd": _read_pcd, ".las": _read_las, ".npz": _read_npz}
SUFFIXES = tuple(_READERS)
"""Endings of the files that `read_points` reads."""
