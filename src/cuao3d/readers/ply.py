"""Point clouds as PLY files: named properties, one value a point."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimesh.exchange.ply import load_ply
from trimesh.geometry import triangulate_quads

_TYPES = {"f4": "float", "f8": "double", "u1": "uchar", "i4": "int"}


def read_ply(path: Path) -> dict[str, NDArray[Any]]:
    """Read the vertices of a PLY file, ascii or binary; they must have x, y and z.

    Args:
        path: The file.

    Returns:
        The properties by name ("x", "red", "label"), each (N,). Empty if the file has no vertices.

    Raises:
        ValueError: The file is no readable PLY.
    """
    try:
        with path.open("rb") as file:
            vertex = load_ply(file, skip_materials=True)["metadata"]["_ply_raw"]["vertex"]
        if vertex["length"] == 0:
            return {}
        columns = {name: np.asarray(vertex["data"][name]).reshape(-1) for name in vertex["properties"]}
    except Exception as error:  # a damaged file makes the parser fail in many ways
        raise ValueError(f"{path} is no readable PLY file ({error}); write it again, or remove it.") from error
    if any(column.shape != (vertex["length"],) for column in columns.values()):
        raise ValueError(f"{path} holds fewer vertices than the {vertex['length']} it promises; write it again.")
    return columns


def read_mesh(path: Path) -> NDArray[np.float32] | None:
    """Read the triangles of a PLY file; quadrangles are cut in two.

    Args:
        path: The file.

    Returns:
        Corners (T, 3, 3), without triangles that have a corner at no finite position; None if there are none.

    Raises:
        ValueError: The file is no readable PLY, or a face names a vertex that is not there.
    """
    try:
        with path.open("rb") as file:
            mesh = load_ply(file, skip_materials=True, fix_texture=False)
        if mesh.get("faces") is None:
            return None
        vertices, faces = np.asarray(mesh["vertices"], np.float32), np.asarray(mesh["faces"])
        triangles = faces if faces.shape[1] == 3 else triangulate_quads(faces)
        if triangles.min(initial=0) < 0:
            raise IndexError("a face names a vertex below 0")
        corners: NDArray[np.float32] = vertices[triangles]
    except Exception as error:  # a damaged file makes the parser fail in many ways
        raise ValueError(f"{path} is no readable mesh ({error}); write it again.") from error
    corners = corners[np.isfinite(corners).all((1, 2))]
    return corners if len(corners) else None


def write_ply(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write points as a binary PLY file.

    Args:
        path: The file.
        columns: The properties by name, each (N,) and of type float32, float64, uint8 or int32.
    """
    types = {name: column.dtype.newbyteorder("<") for name, column in columns.items()}
    table = np.empty(len(next(iter(columns.values()))), dtype=list(types.items()))
    for name, column in columns.items():
        table[name] = column
    properties = [f"property {_TYPES[dtype.str[1:]]} {name}" for name, dtype in types.items()]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}", *properties, "end_header", ""]
    path.write_bytes("\n".join(header).encode() + table.tobytes())
