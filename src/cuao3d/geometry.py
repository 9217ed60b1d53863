"""Geometry: projection, visibility, back-projection, the up direction, voxels, nearest neighbours; pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from cuao3d.errors import InputError
from cuao3d.scene import Camera

MAX_COORDINATE = 1 << 18
"""Largest absolute voxel coordinate."""

VERTICAL = 20.0
"""A camera that looks this close to straight up or down, degrees, has no way to be held upright."""


@dataclass(frozen=True)
class Projection:
    """Points seen by one view."""

    index: Int64[Tensor, "V"]
    """Which points are visible, ascending."""
    pixels: Float64[Tensor, "V 2"]
    """Their exact pixel positions (x, y)."""
    depth: Float64[Tensor, "V"]
    """Their depth along the optical axis, metres."""


class Voxels(NamedTuple):
    """Occupied cells of a regular grid."""

    coordinates: Int64[Tensor, "V 3"]
    """Integer cell coordinates, unique, in lexicographic order; the cell is [c, c + 1) * size."""
    voxel_of_point: Int64[Tensor, "N"]
    """Row in `coordinates` of each point."""


def project(points: Float[Tensor, "N 3"], camera: Camera) -> tuple[Float64[Tensor, "N 2"], Float64[Tensor, "N"]]:
    """Project world points into an image.

    Args:
        points: World positions, metres.
        camera: Pinhole camera; `camera.world_from_camera` is its pose.

    Returns:
        Pixel positions (x, y) and the depth of each point along the optical axis, metres. Points
        behind the camera have depth <= 0; their pixel positions are meaningless.
    """
    points_camera = camera.camera_from_world(points)
    depth = points_camera[:, 2]
    focal, center = camera.focal.to(points.device), camera.center.to(points.device)
    return points_camera[:, :2] / depth[:, None] * focal + center, depth


def visible_points(
    points: Float[Tensor, "N 3"],
    camera: Camera,
    depth: Float[Tensor, "H W"],
    *,
    occlusion_tolerance: float = 0.25,
    border: int = 10,
) -> Projection:
    """Find the points that a view sees: inside the image and on the surface of the depth image.

    Args:
        points: World positions, metres.
        camera: Camera of the depth image.
        depth: Depth along the optical axis, metres; 0 = missing, which hides what lies behind it.
        occlusion_tolerance: Visible where |z - depth| <= occlusion_tolerance * depth (`docs/method.md`, section 3).
        border: Width of the image margin that is ignored, pixels.

    Returns:
        The visible points, their exact pixel positions and depths.

    Raises:
        InputError: The depth image and the camera differ in size.
    """
    if tuple(depth.shape) != (camera.height, camera.width):
        raise InputError(
            f"The depth image is {depth.shape[1]} x {depth.shape[0]}, its camera {camera.width} x {camera.height}."
        )
    pixels, z = project(points, camera)
    column, row = pixels.round().unbind(1)
    inside = (column >= border) & (column < camera.width - border) & (row >= border) & (row < camera.height - border)
    index = torch.nonzero(inside & (z > 0)).squeeze(1)
    surface = depth[row[index].long(), column[index].long()].double()
    seen = (surface > 0) & ((z[index] - surface).abs() <= occlusion_tolerance * surface)
    index = index[seen]
    return Projection(index, pixels[index], z[index])


def back_project(depth: Float[Tensor, "H W"], camera: Camera) -> tuple[Float32[Tensor, "M 3"], Int64[Tensor, "M"]]:
    """Lift the valid pixels of a depth image to world points.

    Args:
        depth: Depth along the optical axis, metres; 0 = missing.
        camera: Camera of the depth image.

    Returns:
        World positions, metres, and the flat pixel index (row * width + column) of each.
    """
    pixel = torch.nonzero(depth.flatten() > 0).squeeze(1)
    z = depth.flatten()[pixel].double()
    position = torch.stack([pixel % depth.shape[1], pixel // depth.shape[1]], dim=1).double()
    rays = (position - camera.center) / camera.focal
    points_camera = torch.cat([rays * z[:, None], z[:, None]], dim=1)
    pose = camera.world_from_camera
    return (points_camera @ pose[:3, :3].T + pose[:3, 3]).float(), pixel


def move(points: Float32[Tensor, "N 3"], transform: Float64[Tensor, "4 4"]) -> Float32[Tensor, "N 3"]:
    """Move points by a rigid motion or a similarity; computed in float64.

    Args:
        points: Positions.
        transform: Takes them to where they shall be.
    """
    return (points.double() @ transform[:3, :3].T + transform[:3, 3]).float()


def up_direction(cameras: Sequence[Camera]) -> Float[Tensor, "3"]:
    """Guess which way is up from how a scene was photographed: people hold cameras level.

    Args:
        cameras: Views of the scene.

    Returns:
        The unit vector to which the rows of the images are most level; the world axis within 15 degrees of it, if any.
    """
    axes = torch.stack([camera.world_from_camera[:3, :3] for camera in cameras])
    right, mean_up = axes[:, :, 0], functional.normalize(-axes[:, :, 1].mean(dim=0), dim=0)
    tilt = right.T @ right / len(right) - 0.1 * torch.outer(mean_up, mean_up)
    up: Tensor = torch.linalg.eigh(tilt).eigenvectors[:, 0]
    up = up * torch.sign(up @ mean_up)
    axis = int(up.abs().argmax())
    if up[axis].abs() > math.cos(math.radians(15)):
        up = torch.eye(3, dtype=up.dtype)[axis] * up[axis].sign()
    return up.float()


def quarters_to_upright(cameras: Sequence[Camera], up: Float64[Tensor, "3"]) -> list[int]:
    """Find by how many quarters, counter-clockwise, images must be turned so that up is up in them.

    Args:
        cameras: Views of the scene.
        up: Unit vector that points up, world axes.

    Returns:
        0, 1, 2 or 3 for each camera; 0 for one that looks nearly straight up or down.
    """
    quarters = []
    for camera in cameras:
        x, y, _ = (up @ camera.world_from_camera[:3, :3]).tolist()
        held = math.hypot(x, y) >= math.sin(math.radians(VERTICAL))
        quarters.append(round(math.atan2(x, -y) / (math.pi / 2)) % 4 if held else 0)
    return quarters


@dataclass(frozen=True)
class Packing:
    """Integer cells as 64-bit keys, whose order is that of (cloud, x, y, z).

    A key counts the cells of a box around each cloud, so clouds may lie far from each other.
    """

    low: Int64[Tensor, "B 3"]
    """Lowest cell of each cloud's box."""
    shape: tuple[int, int, int, int]
    """Clouds, and cells of the largest box along x, y and z."""

    @staticmethod
    def of(cells: Int64[Tensor, "V 3"], cloud: Int64[Tensor, "V"] | None = None, *, margin: int = 0) -> "Packing":
        """Find boxes that hold these cells.

        Args:
            cells: Integer coordinates.
            cloud: Cloud of each cell; unless given they are all of one.
            margin: Free cells on either side: so far a key can be moved along an axis before it is that of another row.

        Raises:
            InputError: The coordinates are too large for voxels, or the clouds too many for a key.
        """
        if not len(cells):
            return Packing(cells.new_zeros(1, 3), (1, 1, 1, 1))
        if cloud is None:
            low, high = (end[None] for end in torch.aminmax(cells, dim=0))
        else:
            none, cloud_of_value = cells.new_zeros(int(cloud.max()) + 1, 3), cloud[:, None].expand(-1, 3)
            low = none.scatter_reduce(0, cloud_of_value, cells, "amin", include_self=False)
            high = none.scatter_reduce(0, cloud_of_value, cells, "amax", include_self=False)
        lowest, highest = int(low.min()), int(high.max())
        if lowest < -MAX_COORDINATE or highest > MAX_COORDINATE:
            raise InputError(
                f"Voxel coordinates must lie within +-{MAX_COORDINATE}; these reach from {lowest} to {highest}. Use "
                "larger voxels, centre the scene, or check that the points are in metres."
            )
        shape = (len(low), *((high - low).amax(dim=0) + 1 + 2 * margin).tolist())
        if math.prod(shape) >= 2**63:
            raise InputError(f"{shape[0]} clouds of {shape[1:]} cells do not fit into one batch; split it.")
        return Packing(low - margin, shape)

    @property
    def num_cells(self) -> int:
        """Number of keys."""
        return math.prod(self.shape)

    def keys(self, cells: Int64[Tensor, "V 3"], cloud: Int64[Tensor, "V"] | None = None) -> Int64[Tensor, "V"]:
        """Return the keys of cells, each in the box of its cloud."""
        x, y, z = (cells - (self.low if cloud is None else self.low.index_select(0, cloud))).unbind(dim=1)
        row = x if cloud is None else cloud * self.shape[1] + x
        return (row * self.shape[2] + y) * self.shape[3] + z


def voxelize(points: Float[Tensor, "N 3"], voxel_size: float) -> Voxels:
    """Quantise points to a grid of cubes whose corner lies at the origin.

    Args:
        points: World positions, metres.
        voxel_size: Edge of a voxel, metres. The division is done in float64: in float32 some points change cell.

    Returns:
        The occupied voxels and the voxel of each point.
    """
    cells = torch.floor(points.double() / voxel_size).long()
    ordered, order = torch.sort(Packing.of(cells).keys(cells))
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    voxel_of_point = torch.empty_like(order).scatter_(0, order, torch.cumsum(first, dim=0) - 1)
    return Voxels(cells.index_select(0, order[first]), voxel_of_point)


def nearest(queries: Float[Tensor, "Q 3"], points: Float[Tensor, "N 3"]) -> Int64[Tensor, "Q"]:
    """Find the nearest point of each query.

    Args:
        queries: Positions, metres.
        points: Positions to choose from, metres; at least one.
    """
    return distances(queries, points)[1]


def distances(
    queries: Float[Tensor, "Q 3"], points: Float[Tensor, "N 3"]
) -> tuple[Float64[Tensor, "Q"], Int64[Tensor, "Q"]]:
    """Find how far the nearest point of each query is, and which it is; see `nearest`."""
    distance, index = cKDTree(points.cpu().numpy()).query(queries.cpu().numpy(), workers=-1)
    found = torch.from_numpy(np.asarray(distance, np.float64)), torch.from_numpy(np.asarray(index, np.int64))
    return found[0].to(queries.device), found[1].to(queries.device)


def normals_of(points: Float32[Tensor, "N 3"], *, num_neighbours: int = 16) -> Float32[Tensor, "N 3"]:
    """Estimate the normals of a surface: of each point the direction in which its neighbours spread least.

    Args:
        points: Positions on the surface, metres.
        num_neighbours: Points that are taken into account, itself included.

    Returns:
        Unit normals, which may point to either side; zero where there are not three points.
    """
    if len(points) < 3:
        return torch.zeros_like(points)
    positions = points.double().cpu()
    index = cKDTree(positions.numpy()).query(positions.numpy(), k=min(num_neighbours, len(points)), workers=-1)[1]
    near = positions[torch.from_numpy(np.asarray(index, dtype=np.int64))]
    near = near - near.mean(dim=1, keepdim=True)
    normals: Tensor = torch.linalg.eigh(near.mT @ near).eigenvectors[:, :, 0]
    return normals.float().to(points.device)


def group_mean(
    values: Float[Tensor, "N C"], group_of_value: Int64[Tensor, "N"], num_groups: int
) -> Float[Tensor, "G C"]:
    """Average the rows that share a group; an empty group is zero.

    Args:
        values: Rows to average.
        group_of_value: Group of each row.
        num_groups: Number of groups.
    """
    total = values.new_zeros(num_groups, values.shape[1]).index_add_(0, group_of_value, values)
    count = torch.bincount(group_of_value, minlength=num_groups).clamp(min=1)
    return total / count[:, None].to(values.dtype)
