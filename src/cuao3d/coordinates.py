"""From our world (metres, z up) to the coordinates of a capture's pose files, in which answers are given."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from cuao3d.boxes import moved, upright_box
from cuao3d.geometry import move

FAR = 1_000.0
"""Farther from the origin than this, in a capture's unit, single precision would lose detail."""

ON_THE_THING = 0.1
"""Metres from the nearest of its points up to which the middle of a place lies on the thing."""

ON_FLOOR = 0.1
"""Metres above the floor up to which a place is said to stand on it."""


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
    points: Float32[Tensor, "N 3"],
    best: Float32[Tensor, "M 3"],
    transform: Float64[Tensor, "4 4"] | None,
    floor: float | None = None,
) -> dict[str, Any]:
    """Describe a place by numbers that JSON can hold.

    Args:
        points: World positions of its points, metres.
        best: Those that answer the question best.
        transform: `capture_from_world` of the scene.
        floor: Height of the floor in the world, metres; None where it is not known.

    Returns:
        In the capture's coordinates and unit: `center`, the mean of the best points or, where that lies off the thing,
        the point nearest to it; `box`, the upright box around the points, by its `center`, its `size` (length, width,
        height) and its `yaw`, the direction of the length in degrees (see `boxes.moved`); `corners`, the eight corners
        of the box: bit 0 of a corner's index says whether it is at the far end along the length, bit 1 along the width,
        bit 2 along the height. In metres, whatever the unit: `size_m`, the size of the box, and `above_floor_m`, the
        height of its lower face above the floor, or None.
    """
    middle = best.mean(dim=0)
    off = (points - middle).norm(dim=1)
    if off.min() > ON_THE_THING:
        middle = points[off.argmin()]
    units = units_per_metre(transform)
    digits = 3 + max(0, math.ceil(-math.log10(units)))  # a millimetre, whatever the unit
    box = upright_box(points)
    change = torch.eye(4, dtype=torch.float64) if transform is None else transform.double()
    center, yaw = moved(box, change)
    return {
        "center": _rounded(in_capture(middle[None], transform)[0], digits),
        "box": {
            "center": _rounded(center, digits),
            "size": _rounded(box.size * units, digits),
            "yaw": round(yaw, 1) % 180,
        },
        "corners": _rounded(box.corners @ change[:3, :3].T + change[:3, 3], digits),
        "size_m": _rounded(box.size, 3),
        "above_floor_m": None if floor is None else round(box.bottom - floor, 3),
    }


def size_in_words(place: Mapping[str, Any]) -> str:
    """Say how large a place is, and how high above the floor: "1.9 x 0.9 x 0.8 m, 0.1 m above the floor".

    Args:
        place: What `describe_place` returned.
    """
    size, above = " x ".join(f"{edge:.2f}" for edge in place["size_m"]) + " m", place["above_floor_m"]
    return size if above is None else f"{size}, {f'{above:.2f} m above' if above > ON_FLOOR else 'on'} the floor"


def _rounded(values: Tensor, digits: int) -> list[Any]:
    found: list[Any] = values.double().mul(10**digits).round().div(10**digits).tolist()
    return found


def units_per_metre(transform: Tensor | None) -> float:
    """Return how many of a capture's units make a metre."""
    # Of a left-handed capture the determinant is negative.
    return 1.0 if transform is None else abs(float(torch.linalg.det(transform[:3, :3]))) ** (1 / 3)
