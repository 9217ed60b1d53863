"""Upright boxes around points, turned about the vertical to fit them best, and the height of the floor beneath."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

COLUMN = 0.1
"""Edge of the columns in whose lowest points the floor is looked for, metres."""

LEVEL = 0.05
"""Lowest points within this height of each other lie on one level, metres."""

FEWEST_COLUMNS = 20
"""Fewer columns than this make no floor."""

LOWER_SHARE = 0.5
"""The floor is the lowest level with at least this share of the columns of the level that has most: in a crowded room,
that may be the table tops."""


class Box(NamedTuple):
    """An upright box in the world: its lower face is level."""

    center: Float64[Tensor, "3"]
    """Its middle, metres."""
    size: Float64[Tensor, "3"]
    """Length, width and height, metres; the length is not less than the width."""
    yaw: float
    """Direction of its length: radians from +x towards +y, in [0, pi)."""

    @property
    def axes(self) -> Float64[Tensor, "3 3"]:
        """Unit vectors along length, width and height, a row each; a right-handed frame."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return torch.tensor([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], dtype=torch.float64)

    @property
    def bottom(self) -> float:
        """Height of its lower face, metres."""
        return float(self.center[2] - self.size[2] / 2)

    @property
    def corners(self) -> Float64[Tensor, "8 3"]:
        """Its corners; bits 0, 1 and 2 of an index say whether it is at the far end along length, width and height."""
        far = torch.tensor([[index >> axis & 1 for axis in range(3)] for index in range(8)], dtype=torch.float64)
        return self.center + ((far - 0.5) * self.size) @ self.axes


def upright_box(points: Float[Tensor, "N 3"]) -> Box:
    """Return the upright box around points whose footprint has the smallest area.

    One of the footprint's sides lies along an edge of the convex hull of the points seen from above (Freeman and
    Shapira, 1975), so only these directions are tried.

    Args:
        points: World positions, metres; at least one.
    """
    positions = points.double().cpu().numpy()
    outline = _hull(positions[:, :2])
    edges = np.roll(outline, -1, axis=0) - outline
    angles = np.unique(np.round(np.arctan2(edges[:, 1], edges[:, 0]) % (math.pi / 2), 9))
    axes = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    along, across = outline @ axes.T, outline @ np.stack([-axes[:, 1], axes[:, 0]])
    lengths, widths = np.ptp(along, axis=0), np.ptp(across, axis=0)
    best = int((lengths * widths + 1e-9 * (lengths + widths)).argmin())
    middle = np.array([along[:, best].max() + along[:, best].min(), across[:, best].max() + across[:, best].min()]) / 2
    turn = np.array([axes[best], [-axes[best, 1], axes[best, 0]]])
    low, high = positions[:, 2].min(), positions[:, 2].max()
    length, width, yaw = float(lengths[best]), float(widths[best]), float(angles[best])
    if length < width:
        length, width, yaw = width, length, yaw + math.pi / 2
    center = torch.tensor([*(middle @ turn).tolist(), (low + high) / 2], dtype=torch.float64)
    return Box(center, torch.tensor([length, width, high - low], dtype=torch.float64), yaw)


def floor_height(points: Float32[Tensor, "N 3"]) -> float | None:
    """Return the height of the floor of a scene, metres; None where the cloud is too small to have one.

    The cloud is cut into columns. On a floor, the lowest points of many columns lie on one level: what stands on it
    hides few columns, and noise below it or holes in it are in few. A scene of several storeys has the floor of the
    level that most columns end in, or of one below it.

    Args:
        points: World positions, metres, +z up.
    """
    positions = points.double().cpu().numpy()
    if not len(positions):
        return None
    column = np.floor((positions[:, :2] - positions[:, :2].min(axis=0)) / COLUMN).astype(np.int64)
    key = column[:, 0] * (column[:, 1].max() + 1) + column[:, 1]
    order = np.lexsort((positions[:, 2], key))
    first = np.flatnonzero(np.diff(key[order], prepend=-1))
    lowest = np.sort(positions[order[first], 2])
    end = np.searchsorted(lowest, lowest + LEVEL, side="right")
    counts = end - np.arange(len(lowest))
    if counts.max() < FEWEST_COLUMNS:
        return None
    begin = int((counts >= LOWER_SHARE * counts.max()).argmax())
    begin += int(counts[begin : end[begin]].argmax())  # the window begins in the noise below the level
    return float(np.median(lowest[begin : end[begin]]))


def moved(box: Box, transform: Float64[Tensor, "4 4"]) -> tuple[Float64[Tensor, "3"], float]:
    """Return the middle and the yaw of a box in other coordinates, such as those of a capture's pose files.

    Args:
        box: The box.
        transform: A similarity from the world to them.

    Returns:
        The middle, and the yaw there: degrees in [0, 180), counter-clockwise seen from above, from the x axis of these
        coordinates, laid level; from their y axis where x is within 45 degrees of the vertical.
    """
    turn = transform[:3, :3]
    inverse = torch.linalg.inv(turn)
    named = next(axis for axis in (inverse[:, 0], inverse[:, 1]) if abs(axis[2]) <= axis[:2].norm())
    zero = math.atan2(float(named[1]), float(named[0]))
    center: Tensor = turn @ box.center + transform[:3, 3]
    return center, math.degrees(box.yaw - zero) % 180


def _hull(points: Float64[np.ndarray, "N 2"]) -> Float64[np.ndarray, "H 2"]:
    """Return the corners of the convex hull, in order; both ends of points that lie on a line."""
    try:
        outline: np.ndarray = points[ConvexHull(points).vertices]
        return outline
    except (QhullError, ValueError):  # fewer than three points, or all on a line
        far = points[np.linalg.norm(points - points[0], axis=1).argmax()]
        return np.stack([points[np.linalg.norm(points - far, axis=1).argmax()], far])
