"""The things that a made room holds, one by one: which point of its cloud belongs to which. For measuring alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from scipy.spatial import cKDTree
from torch import Tensor

from cuao3d.worlds.joinery import Array
from cuao3d.worlds.layout import Layout
from cuao3d.worlds.rendering import Room
from cuao3d.worlds.rooms import KINDS, furnish
from cuao3d.worlds.survey import sample_surfaces

SPACING = 0.015
"""Mean spacing of the samples of a room's surfaces, in which the nearest is looked up, metres."""


@dataclass(frozen=True)
class Things:
    """The things of a room."""

    classes: tuple[int, ...]
    """Class of each thing."""
    thing_of_point: Int64[Tensor, "N"]
    """Thing that each point of the cloud belongs to; -1 where it is unlabelled."""
    floor: float
    """Height of the floor, metres in world coordinates."""


def things_of(seed: int, points: Tensor, labels: Tensor) -> Things:
    """Say which thing of a made room each point of its cloud belongs to.

    A thing is what was placed as one, and of one class: the pillow on a sofa is another thing than the sofa. What was
    not placed, such as walls and rugs, is one thing of each class.

    Args:
        seed: That of the room.
        points: World positions (N, 3) of its cloud, metres.
        labels: Class (N,) of each point, by made100.
    """
    room, placed_of_block = _furnished(seed)
    surfaces = sample_surfaces(room, np.random.default_rng(seed), SPACING)
    placed = placed_of_block[room.material_of_triangle[surfaces.triangle]]
    pairs, thing_of_sample = np.unique(
        np.stack([placed, room.labels[surfaces.triangle]], axis=1), axis=0, return_inverse=True
    )
    of_point = np.full(len(points), -1)
    for label in np.unique(pairs[:, 1]):
        own, asked = np.flatnonzero(pairs[thing_of_sample, 1] == label), np.flatnonzero(labels.numpy() == label)
        _, nearest = cKDTree(surfaces.points[own]).query(points.numpy()[asked])
        of_point[asked] = thing_of_sample[own[nearest]]
    return Things(tuple(pairs[:, 1].tolist()), torch.from_numpy(of_point), float(room.world_from_room[2, 3]))


def _furnished(seed: int) -> tuple[Room, Array]:
    """Furnish a room; return for each of its blocks of triangles which thing was placed then, -1 for none."""
    with _noting_what_is_placed() as blocks:
        room = furnish(np.random.default_rng([seed, 2025]), KINDS[seed % len(KINDS)])
    placed = np.full(len(room.materials), -1)
    for number, (begin, end) in enumerate(blocks):
        placed[begin:end] = number
    return room, placed


@contextmanager
def _noting_what_is_placed() -> Iterator[list[tuple[int, int]]]:
    """Note the first and the last block of each thing that is placed."""
    blocks: list[tuple[int, int]] = []
    put = Layout.put

    def noting(self: Layout, *arguments: Any, **options: Any) -> bool:
        begin = len(self.triangles)
        is_placed = put(self, *arguments, **options)
        blocks.extend([(begin, len(self.triangles))] if is_placed else [])
        return is_placed

    Layout.put = noting  # type: ignore[method-assign]
    try:
        yield blocks
    finally:
        Layout.put = put  # type: ignore[method-assign]
