"""Clouds in files: PLY, PCD, LAS and NPZ, with colours and normals where they hold any."""

import re
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cuao3d.errors import InputError, NotFoundError
from cuao3d.files import check_inside
from cuao3d.formats.ply import Columns, read_ply, unused
from cuao3d.geometry import nearest
from cuao3d.scene import Problem
from cuao3d.schema import shown

NPZ_PACKED, NPZ_SLACK = 20, 1 << 25
"""Times its size, and bytes besides, that an NPZ may unpack to: a small file can hold any number of zeros."""

FARTHEST = 5_000.0
"""A point this far from the middle of its cloud along an axis, metres, is a mistake: it would stretch the grid of cells
beyond what it holds."""

FAR = 2_000.0
"""Farther from the origin than this, metres, a scene is moved to it: single precision would lose its detail."""

MAX_LABEL = 1 << 31
"""Labels beyond this are no labels."""

_XYZ, _RGB, _NORMAL = ("x", "y", "z"), ("red", "green", "blue"), ("nx", "ny", "nz")
_NPZ = {"points": _XYZ, "colors": _RGB, "normals": _NORMAL, "labels": ("label",)}
"""Arrays of an NPZ file and the columns that they hold."""
_NPZ_SYNONYMS = {
    "points": ("xyz", "coord", "coords", "positions", "vertices"),
    "colors": ("color", "colours", "rgb"),
    "normals": ("normal",),
    "labels": ("label", "classes", "semantic"),
}
_LAS_RGB = (None, None, 20, 28, None, 28, None, 30, 30, None, 30)
"""Where the colours of a point are, by the format of points."""
_SYNONYMS = {
    "red": ("r", "diffuse_red"),
    "green": ("g", "diffuse_green"),
    "blue": ("b", "diffuse_blue"),
    "nx": ("normal_x", "normalx"),
    "ny": ("normal_y", "normaly"),
    "nz": ("normal_z", "normalz"),
    "label": ("labels", "class", "classification", "category"),
    "rgb": ("rgba", "packed_rgb"),
}
"""Other names of columns, in lower case; in front of each may stand `scalar_`, as CloudCompare writes it."""
_UNUSED = re.compile(r"_\d+|a|alpha|diffuse_alpha|t[xy]|[stuv]|texture_[uv]")
"""Columns that need no mention: padding, how opaque a colour is, and places in a texture."""
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
    offset: Float64[Tensor, "3"] | None = None
    """What was taken off all positions, metres, since the cloud lies farther than `FAR` from the origin."""


def read_points(path: Path) -> Points:
    """Read a cloud: `.ply` (its vertices), `.pcd` (not compressed), `.las`, `.npz` (points, colors, normals, labels).

    A point without a position, or one far from all others, is left out and reported. A point whose colour or normal
    makes no sense has that of the nearest point whose does; that is reported too.

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
    columns, unknown = _understood(columns)
    columns, offset = _near(columns)
    if (points := _stack(columns, ("x", "y", "z"))) is None:
        raise InputError(f"{path} has no x, y and z; write it again.")
    found, problems = _found(points, path.name)
    if not found.all():
        rows = found.numpy()
        points, columns = points[found], {name: column[rows] for name, column in columns.items()}
    told = {"colours": _colors(columns), "normals": _normals(columns)}
    colors, normals = (_without_holes(what, *known, points, path.name, problems) for what, known in told.items())
    labels, lost = whole_labels(columns["label"]) if "label" in columns else (None, 0)
    if lost:
        problems.append(Problem("labels", f"{lost} labels of {path.name} left out: they are no whole numbers."))
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        problems.append(
            Problem(
                "cloud",
                f"{path.name} has {', '.join(map(shown, unknown[:5]))}{more}, which is not used; names that are: "
                "x y z, red green blue, nx ny nz, label.",
            )
        )
    return Points(points, colors, normals, labels, tuple(problems), path, offset)


def far_offset(positions: Float64[Tensor, "N 3"]) -> Float64[Tensor, "3"] | None:
    """Return what to take off positions so that they lie near the origin, whole numbers; None where they do already.

    Far is what lies beyond `FAR`, and beyond a hundred times its own extent: a room in millimetres is not far.
    """
    finite = positions[positions.isfinite().all(dim=1)]
    if not len(finite):
        return None
    middle = finite.median(dim=0).values
    extent = (finite - middle).abs().median(dim=0).values.max()
    return middle.round() if middle.abs().max() > max(FAR, 100 * float(extent)) else None


def _near(columns: Columns) -> tuple[Columns, Float64[Tensor, "3"] | None]:
    """Move a cloud to the origin if it is far from it; also return what was taken off."""
    if not all(axis in columns for axis in _XYZ):
        return columns, None
    with np.errstate(invalid="ignore", over="ignore"):
        positions = np.stack([columns[axis].astype(np.float64) for axis in _XYZ], axis=1)
        if (offset := far_offset(torch.from_numpy(positions))) is None:
            return columns, None
        return columns | dict(zip(_XYZ, (positions - offset.numpy()).T, strict=True)), offset


def _understood(columns: Columns) -> tuple[Columns, list[str]]:
    """Return the columns by the names that we know, and the names of the others.

    A name is known in any case, with `scalar_` in front of it, and by its synonyms; where several columns have one
    meaning, the plainest name counts. A packed colour becomes red, green and blue.
    """
    plain = {name: name.lower().removeprefix("scalar_") for name in columns}
    found: dict[str, str] = {}
    for known in (*_XYZ, *_RGB, *_NORMAL, "label", "rgb"):
        wanted = (known, *_SYNONYMS.get(known, ()))
        able = [name for name in columns if plain[name] in wanted]
        if able:
            found[known] = min(able, key=lambda name: (wanted.index(plain[name]), name != plain[name]))
    known_columns = {known: columns[name] for known, name in found.items()}
    packed = known_columns.pop("rgb", None)
    if packed is not None and packed.dtype.itemsize == 4 and "red" not in known_columns:
        bits = packed.view("u4")
        known_columns |= {
            name: (bits >> shift & 255).astype(np.uint8) for name, shift in zip(_RGB, (16, 8, 0), strict=True)
        }
    elif packed is not None:
        del found["rgb"]
    for triple in (_RGB, _NORMAL):
        if sum(name in found for name in triple) < 3:
            found = {known: name for known, name in found.items() if known not in triple}
    return known_columns, [
        name for name in columns if name not in found.values() and not _UNUSED.fullmatch(plain[name])
    ]


def whole_labels(column: NDArray[Any]) -> tuple[Int64[Tensor, "N"], int]:
    """Turn labels of any type into whole numbers; those that are none become -1. Also return how many do."""
    values = column.astype(np.float64)
    with np.errstate(invalid="ignore"):
        whole = (np.abs(values) < MAX_LABEL) & (values == np.floor(values))
    return torch.from_numpy(np.where(whole, values, -1).astype(np.int64)), int((~whole).sum())


def _found(points: Float32[Tensor, "N 3"], name: str) -> tuple[Bool[Tensor, "N"], list[Problem]]:
    """Say which points have a position in the scene, and what is wrong with the others."""
    found = torch.isfinite(points).all(1)  # scanners write NaN where they measured nothing
    problems = []
    if num_lost := int((~found).sum()):
        problems.append(
            Problem("cloud", f"{num_lost} of {len(points)} points of {name} left out: they have no position.")
        )
    if found.any():
        middle = points[found].median(dim=0).values
        near = found & ((points - middle).abs() <= FARTHEST).all(1)
        if num_far := int((found & ~near).sum()):
            text = f"{num_far} of {len(points)} points of {name} left out: over {FARTHEST:g} m from the others."
            problems.append(Problem("cloud", text))
        found = near
    return found, problems


def _without_holes(
    what: str, values: Tensor | None, good: Tensor, points: Tensor, name: str, problems: list[Problem]
) -> Float32[Tensor, "N 3"] | None:
    """Give points whose value makes no sense that of the nearest point whose does; note how many these are."""
    if values is None or good.all():
        return values
    if not good.any():
        problems.append(Problem("cloud", f"The {what} of {name} are not used: those of no point make sense."))
        return None
    text = f"{int((~good).sum())} of {len(points)} points of {name} have no {what} that make sense"
    problems.append(Problem("cloud", f"{text}; they have those of the nearest point."))
    values[~good] = values[good][nearest(points[~good], points[good])]
    return values


def _read_pcd(path: Path) -> Columns:
    """Read the fields of a PCD file by name."""
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
            name: np.ascontiguousarray(table[name][:, 0]) if count == 1 else unused(num_points)
            for name, _, (count,) in fields
        }
    except Exception as error:  # a damaged file makes numpy fail in many ways
        raise InputError(f"{path} is no readable PCD file ({error}); write it again.") from error
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
        if size > NPZ_PACKED * path.stat().st_size + NPZ_SLACK:
            raise InputError(f"its {path.stat().st_size} bytes would unpack to {size}")
        with np.load(path, allow_pickle=False) as file:
            names = {known: _array_named(known, file.files) for known in _NPZ}
            arrays = {known: file[name] for known, name in names.items() if name is not None}
            others = [name for name in file.files if name not in names.values()]
    except Exception as error:  # a damaged archive makes numpy fail in many ways
        raise InputError(f"{path} is no readable NPZ file ({error}); write it again.") from error
    if "points" not in arrays:
        raise InputError(f"{path} has no array of points, N x 3; write it again.")
    num_points = len(arrays["points"]) if arrays["points"].ndim else 0
    columns: Columns = {}
    for known, array in arrays.items():
        axes = _NPZ[known]
        shape = (num_points, len(axes)) if len(axes) > 1 else (num_points,)
        if array.shape != shape or array.dtype.kind not in "fiu":
            raise InputError(f"{path}: {names[known]} is {array.dtype} {array.shape}; expected numbers {shape}.")
        columns |= dict(zip(axes, array.reshape(num_points, len(axes)).T, strict=True))
    return columns | {name: unused(num_points) for name in others}


def _array_named(known: str, there: list[str]) -> str | None:
    """Return the array of an archive that holds what is meant, by its own name or a synonym in any case."""
    wanted = (known, *_NPZ_SYNONYMS[known])
    able = [name for name in there if name.lower() in wanted]
    return min(able, key=lambda name: wanted.index(name.lower()), default=None)


def _colors(columns: Columns) -> tuple[Float32[Tensor, "N 3"] | None, Bool[Tensor, "N"]]:
    """Return colours in [0, 1], and which points have one.

    Whole numbers count to 255, or to what 16 bits hold; so do fractions beyond 1.
    """
    if (colors := _stack(columns, _RGB)) is None:
        return None, torch.ones(0, dtype=torch.bool)
    good = torch.isfinite(colors).all(1)
    kind = columns["red"].dtype
    largest = 65535 if kind == np.uint16 else 255 if kind.kind in "iu" or bool((colors[good] > 1).any()) else 1
    return (colors / largest).clamp(0, 1), good


def _normals(columns: Columns) -> tuple[Float32[Tensor, "N 3"] | None, Bool[Tensor, "N"]]:
    """Return unit normals, and which points have one."""
    if (normals := _stack(columns, _NORMAL)) is None:
        return None, torch.ones(0, dtype=torch.bool)
    length = normals.norm(dim=1)
    good = torch.isfinite(length) & (length > 0)
    return normals if ((length[good] - 1).abs() < 1e-3).all() else functional.normalize(normals, dim=1), good


def _stack(columns: Columns, names: tuple[str, str, str]) -> Float32[Tensor, "N 3"] | None:
    if not all(name in columns for name in names):
        return None
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is left out
        return torch.from_numpy(np.stack([columns[name] for name in names], axis=1).astype(np.float32))


_READERS = {".ply": read_ply, ".pcd": _read_pcd, ".las": _read_las, ".npz": _read_npz}
SUFFIXES = tuple(_READERS)
"""Endings of the files that `read_points` reads."""
