"""Weights of views: how much each view of a sample counts in the mean of its features."""

from typing import Literal

import torch
from jaxtyping import Float32, Float64
from torch import Tensor
from torch.nn import functional

from cuao3d.scene import Camera

ViewWeights = Literal["none", "robust", "geometry"]
"""none: all count the same, the paper's way. robust: a view counts less the farther its feature lies from the mean of
all; see `Sums.add`. geometry: it counts less where it looks from afar, at a slant or near its image's border; see
`geometry_weights`."""

LEAST_COSINE = 0.1
"""A surface that is seen at a sharper slant than this, as a cosine, counts as if it were seen at this one: normals that
are estimated from points are not exact."""

FEATHER = 0.25
"""A pixel counts fully at this distance from the border of its image, as a part of the shorter side."""


def geometry_weights(
    points: Float32[Tensor, "n 3"], normals: Float32[Tensor, "n 3"], camera: Camera, pixels: Float64[Tensor, "n 2"]
) -> Float32[Tensor, "n"]:
    """Weigh what a view sees by where it sees it from: `cos(angle of incidence) / depth * feather`.

    Cosine by depth is the weight of a view in KinectFusion (Newcombe et al. 2011, section 3.3). The feather is that of
    panoramas (Szeliski, Image alignment and stitching, 2006, section 6.2): 0 on the border, rising linearly to 1.

    Args:
        points: Positions of the samples that it sees, world axes, metres.
        normals: Their unit normals; which way they point does not matter. Zero: unknown, taken to face the camera.
        camera: Its camera.
        pixels: Where it sees them (x, y).
    """
    centre = camera.world_from_camera[:3, 3].to(points.device)
    rays = functional.normalize(points.double() - centre, dim=1)
    cosine = torch.linalg.vecdot(rays, normals.double()).abs()
    cosine = torch.where(normals.any(dim=1), cosine.clamp(min=LEAST_COSINE), 1.0)
    depth = camera.camera_from_world(points)[:, 2]
    size = torch.tensor([camera.width, camera.height], dtype=torch.float64)
    to_border = torch.minimum(pixels + 0.5, size - 0.5 - pixels).amin(dim=1)
    feather = (to_border / (FEATHER * min(camera.width, camera.height))).clamp(min=1e-3, max=1)
    return (cosine / depth * feather).float()
