"""Points as LAS, with values of our own as extra dimensions; through laspy, which the extra `[las]` installs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cuao3d.errors import NotInstalledError

LONGEST_ABOUT = 32
"""Longest description of an extra dimension, bytes."""

MOST = 2**31 - 1
"""Largest coordinate that LAS holds, in steps of its scale."""


def write_las(
    path: Path,
    points: NDArray[np.float64],
    colors: NDArray[np.uint8],
    columns: Mapping[str, NDArray[Any]],
    *,
    step: float,
    about: Mapping[str, str],
    source: Path | None = None,
) -> None:
    """Write a cloud as LAS 1.4.

    Args:
        path: The file.
        points: Positions (N, 3). Not used where there is a source, which has its own.
        colors: RGB (N, 3). Not used where there is a source: its colours, or its lack of them, stay as they are.
        columns: Values (N,) by name, which become extra dimensions; with a source, (M,).
        step: Smallest difference between positions that is kept.
        about: What each column is.
        source: A LAS file of M points. All its dimensions, its header and its CRS are kept. A column whose name is
            taken gets `cuao3d_` in front; an extra dimension that has this name as well is replaced.

    Raises:
        NotInstalledError: laspy is not installed.
    """
    laspy = _laspy()
    if source is None:
        low, high = points.min(axis=0), points.max(axis=0)
        header = laspy.LasHeader(point_format=7, version="1.4")
        header.offsets = np.floor(low)
        header.scales = np.maximum(step, (high - low + 1) / MOST)
        las = laspy.LasData(header)
        las.x, las.y, las.z = points.T
        las.red, las.green, las.blue = colors.T.astype(np.uint16) * 257
    else:
        las = laspy.read(str(source))
    there = set(las.point_format.dimension_names)
    names = {name: f"cuao3d_{name}" if name in there else name for name in columns}
    las.remove_extra_dims([name for name in names.values() if name in there])  # those of an earlier answer
    las.add_extra_dims(
        [
            laspy.ExtraBytesParams(names[name], column.dtype, description=about.get(name, "")[:LONGEST_ABOUT])
            for name, column in columns.items()
        ]
    )
    for name, column in columns.items():
        las[names[name]] = column
    with path.open("wb") as file:
        las.write(file, do_compress=False)


def las_positions(path: Path) -> NDArray[np.float64]:
    """Read the positions (M, 3) of all points of a LAS file, in its own coordinates.

    Raises:
        NotInstalledError: laspy is not installed.
    """
    positions: NDArray[np.float64] = np.asarray(_laspy().read(str(path)).xyz)
    return positions


def _laspy() -> Any:
    try:
        import laspy
    except ImportError as error:
        raise NotInstalledError("A .las file is written by laspy: pip install 'cuao3d[las]'") from error
    return laspy
