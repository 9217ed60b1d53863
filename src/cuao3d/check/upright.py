"""Which way is up: cameras are held upright, and most level surfaces that are seen (floors, seats, tables) face up."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn import functional

from cuao3d.geometry import up_direction
from cuao3d.scene import Camera

AXES = ("x", "-x", "y", "-y", "z", "-z")

CLEAR = 0.7
"""The cameras' up direction must lie this close to an axis (cosine); beyond 45 degrees another would be closer."""

UPRIGHT = 0.5
"""Length that the mean of the cameras' up vectors must have: below it they point all ways, and tell nothing."""

LEVEL = 0.9
"""A surface is level where its normal lies this close to the axis (cosine): within 26 degrees, as depth is noisy."""

SPAN = 3
"""Normals are taken between pixels this far to both sides: closer ones drown in the noise of depth."""

FLAT = 0.1
"""... that differ by no more than this part of their depth, else they lie on two things."""

ENOUGH = 500
"""Fewer level pixels than this prove nothing."""

MOST = 0.6
"""Share of level surfaces that must face the way that cameras take for up; ceilings are seen too."""


def find_up(cameras: list[Camera], depths: list[Tensor]) -> dict[str, Any]:
    """Find the axis of the world that points up.

    Args:
        cameras: Of the views.
        depths: Their depth (h, w), metres; 0 = missing.

    Returns:
        JSON-able: `axis`, as cameras are held, "x" to "-z", or None where they do not tell; `mean`, their mean up
        vector; `facing`, the share of level surfaces that face that way, or None where too few are seen; `certain`,
        whether both agree.
    """
    up = torch.stack([-camera.world_from_camera[:3, 1] for camera in cameras]).mean(dim=0)
    direction = up_direction(cameras)
    index = int(direction.abs().argmax())
    if up.norm() < UPRIGHT or direction[index].abs() < CLEAR:
        return {"axis": None, "mean": up.tolist(), "facing": None, "certain": False}
    sign = 1.0 if direction[index] > 0 else -1.0
    along = sign * torch.cat([_normals(camera, depth)[:, index] for camera, depth in zip(cameras, depths, strict=True)])
    num_up, num_down = int((along > LEVEL).sum()), int((along < -LEVEL).sum())
    facing = num_up / (num_up + num_down) if num_up + num_down >= ENOUGH else None
    axis = AXES[2 * index + (sign < 0)]
    return {"axis": axis, "mean": up.tolist(), "facing": facing, "certain": facing is not None and facing >= MOST}


def _normals(camera: Camera, depth: Tensor) -> Float64[Tensor, "n 3"]:
    """Return unit normals towards the camera, world axes, where depth is smooth."""
    row, column = torch.meshgrid(
        torch.arange(camera.height).double(), torch.arange(camera.width).double(), indexing="ij"
    )
    z = depth.double()
    rays = (torch.stack([column, row], dim=-1) - camera.center) / camera.focal
    points = torch.cat([rays * z[..., None], z[..., None]], dim=-1)
    left, right = points[SPAN:-SPAN, : -2 * SPAN], points[SPAN:-SPAN, 2 * SPAN :]
    above, below = points[: -2 * SPAN, SPAN:-SPAN], points[2 * SPAN :, SPAN:-SPAN]
    around = torch.stack([left, right, above, below])[..., 2]
    nearest, farthest = around.amin(dim=0), around.amax(dim=0)
    smooth = (nearest > 0) & (farthest - nearest <= FLAT * nearest)
    across, down = (right - left)[smooth], (below - above)[smooth]
    normals = functional.normalize(torch.linalg.cross(down, across), dim=1)  # x right, y down: towards the camera
    return normals @ camera.world_from_camera[:3, :3].T


def describe_up(up: dict[str, Any]) -> str:
    """Say how sure it is which way is up."""
    seen = "no level surface was seen" if up["facing"] is None else f"{up['facing']:.0%} of level surfaces face it"
    return f"cameras are held along {np.round(up['mean'], 2).tolist()}, {seen}"
