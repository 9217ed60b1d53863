"""Points and meshes as binary glTF 2.0: one file that browsers, Blender and game engines open."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

JSON_CHUNK, BINARY_CHUNK = 0x4E4F534A, 0x004E4942
VERTICES, CORNERS = 34962, 34963
UINT8, UINT32, FLOAT32 = 5121, 5125, 5126
POINTS, TRIANGLES = 0, 4
"""Numbers of the glTF 2.0 specification."""

UNKNOWN = -1.0
"""What stands for a value that is not known: glTF forbids NaN."""

_Array = tuple[NDArray[Any], dict[str, Any], int]
"""Values, what an accessor says of them, and what they are for."""


def write_glb(
    path: Path,
    points: NDArray[np.float64],
    colors: NDArray[np.uint8],
    columns: Mapping[str, NDArray[Any]],
    *,
    about: Sequence[str] = (),
    triangles: NDArray[np.int64] | None = None,
) -> None:
    """Write a coloured cloud, or a mesh with a colour at each vertex.

    glTF holds positions in single precision only. So what lies far from the origin is moved to it, by whole numbers,
    and the node says by how much; readers put it back.

    Args:
        path: The file.
        points: Positions (N, 3).
        colors: RGB (N, 3). They are written as they are, as trimesh and Open3D write and read them, though the
            specification calls such values linear.
        columns: Further values (N,) by name; they become float attributes such as `_SCORE`, NaN becomes `UNKNOWN`.
        about: What the values are, for people; in `asset.extras`.
        triangles: Corners of each face, rows of the points, (F, 3); None: a cloud.
    """
    middle = np.round(np.median(points, axis=0)) if np.abs(points).max(initial=0) > 1000 else np.zeros(3)
    positions = (points - middle).astype("<f4")
    rgba = np.concatenate([colors, np.full((len(colors), 1), 255, np.uint8)], axis=1)
    arrays: list[_Array] = []
    box = {"min": positions.min(axis=0).tolist(), "max": positions.max(axis=0).tolist()}
    arrays.append((positions, {"componentType": FLOAT32, "type": "VEC3", **box}, VERTICES))
    arrays.append((rgba, {"componentType": UINT8, "normalized": True, "type": "VEC4"}, VERTICES))
    for column in columns.values():
        values = np.nan_to_num(column.astype("<f4"), nan=UNKNOWN)
        arrays.append((values, {"componentType": FLOAT32, "type": "SCALAR"}, VERTICES))
    attributes = {"POSITION": 0, "COLOR_0": 1} | {f"_{name.upper()}": 2 + i for i, name in enumerate(columns)}
    primitive: dict[str, Any] = {"attributes": attributes, "mode": POINTS}
    if triangles is not None:
        primitive |= {"mode": TRIANGLES, "indices": len(arrays)}
        arrays.append((triangles.astype("<u4").reshape(-1), {"componentType": UINT32, "type": "SCALAR"}, CORNERS))
    views, accessors, content = _packed(arrays)
    scene = {
        "asset": {"version": "2.0", "generator": "cuao3d", "extras": {"about": list(about)}},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "translation": middle.tolist()}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(content)}],
    }
    said = json.dumps(scene).encode()
    said += b" " * (-len(said) % 4)
    chunks = b"".join(
        struct.pack("<II", len(chunk), kind) + chunk for kind, chunk in ((JSON_CHUNK, said), (BINARY_CHUNK, content))
    )
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)


def _packed(arrays: Sequence[_Array]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], bytes]:
    """Lay arrays out one after the other; return buffer views, accessors and the buffer."""
    views, accessors, blocks, start = [], [], [array.tobytes() for array, _, _ in arrays], 0
    for index, ((array, kind, target), block) in enumerate(zip(arrays, blocks, strict=True)):
        views.append({"buffer": 0, "byteOffset": start, "byteLength": len(block), "target": target})
        accessors.append({"bufferView": index, "count": len(array), **kind})
        start += len(block)  # every block is a multiple of four bytes long
    return views, accessors, b"".join(blocks)
