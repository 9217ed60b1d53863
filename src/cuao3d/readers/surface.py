"""The cloud or mesh that lies beside a capture, and whether it is worth more than a cloud made from depth."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cuao3d.formats.ply import read_triangles
from cuao3d.formats.points import Points, read_points
from cuao3d.scene import Problem

SPARSE = 50_000
"""A cloud of fewer points, without faces or labels, is what structure from motion left; depth gives a better one."""


def read_surface(
    ply: Path | None, *, has_depth: bool
) -> tuple[Points | None, NDArray[np.float32] | None, list[Problem]]:
    """Read the `.ply` of a capture.

    Args:
        ply: The file, if there is one.
        has_depth: Whether photographs have depth images.

    Returns:
        The cloud, None to build it from depth; corners (T, 3, 3) of its triangles, metres, if depth is to be cast from
        them; what is not used.

    Raises:
        InputError: The file is damaged.
    """
    if ply is None:
        return None, None, []
    points = read_points(ply)
    if has_depth and (len(points.points) >= SPARSE or points.labels is not None):
        return points, None, []
    mesh = read_triangles(ply)
    if has_depth and mesh is None:
        num_points = len(points.points)
        unused = f"{ply.name} is not used: it has only {num_points} points; the cloud is made from depth."
        return None, None, [Problem("file", unused)]
    return points, mesh, []
