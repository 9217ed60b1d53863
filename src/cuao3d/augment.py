"""Augmentation: random geometric transformations of a scene, against overfitting."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from cuao3d.schema import Range


@dataclass(frozen=True)
class Augmentation:
    """Random transformations of a scene, drawn anew each time that it is seen."""

    flip: bool = True
    """Mirror along x and along y, each with probability 1/2."""
    rotation: Annotated[float, Range(0, 360)] = 0.0
    """Largest rotation about the vertical, degrees either way."""
    tilt: Annotated[float, Range(0, 180)] = 0.0
    """Largest rotation about x and about y, degrees either way."""
    scale: Annotated[float, Range(0, 0.99)] = 0.0
    """Largest relative scaling, either way."""
    elastic: bool = False
    """Elastic distortion by smooth noise, with grid cells of 0.2 m and 0.8 m."""
    shift: bool = True
    """Translate the points randomly relative to the voxel grid."""


def augment(
    points: Float[Tensor, "S 3"], augmentation: Augmentation, reach: float, generator: torch.Generator
) -> Float64[Tensor, "S 3"]:
    """Transform a scene at random: distort, mirror, scale, rotate and translate it.

    Args:
        points: Positions, metres, z up.
        augmentation: Which transformations, and how strong.
        reach: Largest translation along each axis, metres.
        generator: Source of all randomness.

    Returns:
        Transformed positions, metres, z up, centred at the origin before the translation.
    """
    flips, angles, sizes, move = torch.rand(4, 3, dtype=torch.float64, generator=generator).unbind()
    points = points.double() - points.double().mean(dim=0)
    if augmentation.elastic:
        for grain, strength in ((0.2, 0.4), (0.8, 1.6)):
            points = points + strength * smooth_noise(points, grain, generator)
    if augmentation.flip:
        points = points * torch.where(flips < 0.5, -1.0, 1.0).index_fill(0, torch.tensor(2), 1.0)
    points = points * (1 + augmentation.scale * (2 * sizes[0] - 1))
    limits = torch.tensor([augmentation.tilt, augmentation.tilt, augmentation.rotation], dtype=torch.float64)
    points = points @ rotation_matrix(torch.deg2rad(limits) * (2 * angles - 1)).T
    return points + reach * move if augmentation.shift else points


def smooth_noise(points: Float64[Tensor, "S 3"], grain: float, generator: torch.Generator) -> Float64[Tensor, "S 3"]:
    """Draw a smooth random vector for every point: normal noise on a grid, blurred twice, as in OpenScene.

    Args:
        points: Positions, metres.
        grain: Edge of a cell of the grid, metres.
        generator: Source of all randomness.
    """
    low = points.amin(dim=0) - grain
    size = [int(cells) + 3 for cells in (points.amax(dim=0) - low) / grain]
    noise = torch.randn(1, 3, *size, dtype=points.dtype, generator=generator)
    for _ in range(2):
        noise = functional.avg_pool3d(noise, 3, stride=1, padding=1)
    place = 2 * (points - low) / (grain * (torch.tensor(size, dtype=points.dtype) - 1)) - 1
    return functional.grid_sample(noise, place.flip(1)[None, None, None], align_corners=True)[0, :, 0, 0].T


def rotation_matrix(angles: Float64[Tensor, "3"]) -> Float64[Tensor, "3 3"]:
    """Return the rotation about x, then y, then z; angles in radians."""
    generators = torch.zeros(3, 3, 3, dtype=angles.dtype)
    for axis in range(3):
        generators[axis, (axis + 2) % 3, (axis + 1) % 3] = 1
        generators[axis, (axis + 1) % 3, (axis + 2) % 3] = -1
    about_x, about_y, about_z = torch.matrix_exp(generators * angles[:, None, None]).unbind()
    return about_z @ about_y @ about_x
