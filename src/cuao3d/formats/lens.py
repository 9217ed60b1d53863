"""Lenses: intrinsics of images of one size, and how straight rays are bent."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.scene import Camera

ASPECT_TOLERANCE = 0.02
"""How far the proportions of colour and depth may differ, as a part of them, where both show one view."""

OFF, NEAR = 0.2, 0.05
"""A principal point is off the middle of images, or near it, from and to such parts of width and height together."""

Size = tuple[int, int]
Distortion = tuple[float, float, float, float, float]

STRAIGHT = (0.0, 0.0, 0.0, 0.0, 0.0)
"""Distortion of a pinhole."""


@dataclass(frozen=True)
class Lens:
    """Intrinsics of images of one size: a pinhole, and how the lens departs from it."""

    focal: tuple[float, float]
    """Focal lengths (fx, fy), pixels; one below 0 says that an axis of the camera points the other way, which
    `readers/corrections.py` turns into axes."""
    center: tuple[float, float]
    """Principal point (cx, cy), pixels; (0, 0) is the centre of the top-left pixel."""
    size: Size
    """Width and height of the images, pixels."""
    distortion: Distortion = STRAIGHT
    """Radial-tangential distortion (k1, k2, p1, p2, k3), as OpenCV orders it."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (*self.focal, *self.center, *self.distortion)):
            raise InputError("the intrinsics are lost (they hold NaN or infinity)")
        if 0 in self.focal:
            raise InputError(f"the focal lengths are {self.focal[0]:g} and {self.focal[1]:g}; neither can be 0")

    def as_stored(self) -> "Lens":
        """Return the lens of images turned by 90 degrees, if the principal point lies in the middle of those alone.

        EXIF turns photographs that are taken upright; their intrinsics are often those of the sensor, which lies.
        """
        turned = replace(self, size=(self.size[1], self.size[0]))
        return turned if self._off_middle > OFF and turned._off_middle < NEAR else self

    @property
    def _off_middle(self) -> float:
        """How far the principal point is off the middle, as parts of width and height together."""
        return sum(abs((at + 0.5) / extent - 0.5) for at, extent in zip(self.center, self.size, strict=True))

    def at(self, size: Size) -> "Lens":
        """Return this lens for its images resized; see `Camera.resized`.

        Raises:
            InputError: The proportions differ, so the images cannot show the same view.
        """
        if abs(size[0] * self.size[1] / (size[1] * self.size[0]) - 1) > ASPECT_TOLERANCE:
            (width, height), (other, tall) = self.size, size
            raise InputError(
                f"{width} x {height} and {other} x {tall} pixels cannot show one view; register the images"
            )
        camera = self.camera(torch.eye(4, dtype=torch.float64)).resized(*size)
        return replace(self, focal=pair(camera.focal), center=pair(camera.center), size=size)

    def pinhole(self) -> "Lens":
        """Return the lens of its images once they are undistorted."""
        return replace(self, distortion=STRAIGHT)

    def camera(self, world_from_camera: Float64[Tensor, "4 4"]) -> Camera:
        """Return the camera of its images once they are undistorted."""
        focal, center = torch.tensor([self.focal, self.center], dtype=torch.float64)
        return Camera(focal, center, *self.size, world_from_camera)


def distort(rays: Float64[Tensor, "*N 2"], distortion: Distortion) -> Float64[Tensor, "*N 2"]:
    """Bend rays as a lens does, by the model of Brown and Conrady.

    Args:
        rays: Directions (x / z, y / z).
        distortion: k1, k2, p1, p2, k3.

    Returns:
        Where the lens shows them, in the same units.
    """
    k1, k2, p1, p2, k3 = distortion
    squared = (rays**2).sum(-1, keepdim=True)
    radial = 1 + squared * (k1 + squared * (k2 + squared * k3))
    x, y = rays.unbind(-1)
    twice = 2 * x * y
    shift = torch.stack(
        [p1 * twice + p2 * (squared[..., 0] + 2 * x**2), p2 * twice + p1 * (squared[..., 0] + 2 * y**2)], dim=-1
    )
    return rays * radial + shift


def fold(distortion: Distortion) -> float:
    """Return the radius from which on the polynomial folds the image back onto itself; infinite if it never does.

    Calibrations say nothing of rays beyond those they saw; there the polynomial may turn and show the image twice.
    """
    k1, k2, _, _, k3 = distortion
    roots = np.roots([7 * k3, 5 * k2, 3 * k1, 1])  # of the slope of r (1 + k1 r^2 + k2 r^4 + k3 r^6), in r^2
    squared = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)]
    return math.sqrt(squared.min()) if len(squared) else math.inf


def pair(values: Tensor) -> tuple[float, float]:
    """Return two values as numbers."""
    first, second = values.tolist()
    return first, second
