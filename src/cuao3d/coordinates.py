"""From our world (metres, z up) to the coordinates of a capture's pose files, in which answers are given."""

import math
from typing import Any

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from cuao3d.geometry import move

FAR = 1_000.0
"""Farther from the origin than this, in a capture's unit, single precision would lose detail."""

ON_THE_THING = 0.1
"""Metres from the nearest of its points up to which the middle of a place lies on the thing."""


def in_capture(points: Float32[Tensor, "N 3"], transform: Float64[Tensor, "4 4"] | None) -> Float[Tensor, "N 3"]:
    """Return positions in the coordinates of the capture's pose files, in its unit.

    Args:
        points: World positions, metres.
        transform: `capture_from_world` of the scene: a similarity; None where both are the same.

    Returns:
        The positions; in double precision where the capture lies far from its origin.
    """
    if transform is None or transform[:3, 3].abs().max() < FAR:
        return points if transform is None else move(points, transform)
    return points.double() @ transform[:3, :3].T + transform[:3, 3]


def unit_of(transform: Float64[Tensor, "4 4"] | None) -> str:
    """Return what to write after a length in a capture's unit: " m", or nothing where the unit is another."""
    return " m" if abs(units_per_metre(transform) - 1) < 1e-6 else ""


def as_matrix(transform: Float64[Tensor, "4 4"] | None) -> list[list[float]]:
    """Return `capture_from_world` for JSON, row by row; the identity for None."""
    rows: list[list[float]] = (torch.eye(4, dtype=torch.float64) if transform is None else transform).tolist()
    return rows


def describe_place(
    points: Float32[Tensor, "N 3"], best: Float32[Tensor, "M 3"], transform: Float64[Tensor, "4 4"] | None
) -> dict[str, Any]:
    """Describe a place by numbers that JSON can hold.

    Args:
        points: World positions of its points, metres.
        best: Those that answer the question best.
        transform: `capture_from_world` of the scene.

    Returns:
        In the capture's coordinates and unit: `center`, the mean of the best points or, where that lies off the thing,
        the point nearest to it; `corners`, the eight corners of the box around the points, whose edges are level or
        upright in the room: bit 0 of a corner's index says whether it is at the box's far end along our x, bit 1 along
        y, bit 2 along z, which is up; `size`, the lengths of these edges.
    """
    middle = best.mean(dim=0)
    off = (points - middle).norm(dim=1)
    if off.min() > ON_THE_THING:
        middle = points[off.argmin()]
    low, high = points.amin(dim=0), points.amax(dim=0)
    far = torch.tensor([[index >> axis & 1 for axis in range(3)] for index in range(8)], dtype=torch.bool)
    units = units_per_metre(transform)
    digits = 3 + max(0, math.ceil(-math.log10(units)))  # a millimetre, whatever the unit

    def rounded(values: Tensor) -> list[Any]:
        found: list[Any] = values.double().mul(10**digits).round().div(10**digits).tolist()
        return found

    return {
        "center": rounded(in_capture(middle[None], transform)[0]),
        "size": rounded((high - low) * units),
        "corners": rounded(in_capture(torch.where(far, high, low), transform)),
    }


def units_per_metre(transform: Tensor | None) -> float:
    """Return how many of a capture's units make a metre."""
    # Of a left-handed capture the determinant is negative.
    return 1.0 if transform is None else abs(float(torch.linalg.det(transform[:3, :3]))) ** (1 / 3)
