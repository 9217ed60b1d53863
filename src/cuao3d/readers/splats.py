"""Depth from a dense cloud, for photographs that have none: each point covers a disc of the surface around it."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from scipy.spatial import cKDTree
from torch import Tensor

from cuao3d.geometry import group_mean, voxelize
from cuao3d.scene import Camera

NEIGHBOURS = 8
"""A disc is spanned by its point and this many others."""

RADIUS = 0.7
"""Radius of a disc, as a part of the distance to the last of its neighbours; chosen by the measurement in
`docs/conventions.md`."""

LARGEST = 4.0
"""A disc is at most this many times as large as the median: a lone point is no large surface."""

THINNED = 0.01
"""Denser clouds are first averaged in cells of this edge, metres."""

NEAR = 0.05
"""What lies nearer to the camera is not drawn, metres."""

LONGEST_EDGE = 320
"""Depth is drawn in at most this many pixels along an edge of the image, and then enlarged."""

BLOCK = 1 << 19
"""Points, and pixels of discs, that are processed at a time: bounds the memory, however large the cloud."""


class Surface(NamedTuple):
    """Discs that cover the surfaces of a cloud."""

    centers: Float32[Tensor, "N 3"]
    """World positions, metres."""
    normals: Float32[Tensor, "N 3"]
    """Unit vectors of either sign, world axes."""
    radii: Float32[Tensor, "N"]
    """Metres."""


def cover(points: Float32[Tensor, "N 3"]) -> Surface:
    """Cover the surfaces of a cloud by discs; each lies in the plane of its point's neighbours and spans to them.

    Args:
        points: World positions, metres; at least one.
    """
    corner = points.amin(dim=0).double()
    cells = voxelize(points.double() - corner, THINNED)
    centers = group_mean(points.double() - corner, cells.voxel_of_point, len(cells.coordinates))
    num_neighbours = min(NEIGHBOURS, len(centers) - 1)
    if num_neighbours == 0:
        return Surface((centers + corner).float(), torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1))
    tree, blocks = cKDTree(centers.numpy()), []
    for block in torch.split(centers, BLOCK):
        distance, index = tree.query(block.numpy(), num_neighbours + 1, workers=-1)
        around = centers[torch.from_numpy(np.asarray(index))]
        around = around - around.mean(dim=1, keepdim=True)
        axes = torch.linalg.eigh(around.mT @ around).eigenvectors  # the first is that of the smallest scatter
        blocks.append((axes[:, :, 0].float(), torch.from_numpy(distance[:, -1]).float()))
    normals, reach = (torch.cat(column) for column in zip(*blocks, strict=True))
    return Surface((centers + corner).float(), normals, RADIUS * reach.clamp(max=LARGEST * float(reach.median())))


def splat_depth(surface: Surface, camera: Camera) -> Float32[Tensor, "H W"]:
    """Draw the depth of a covered cloud along the optical axis of a camera, metres; 0 where no disc lies.

    Args:
        surface: The discs; of those that cover a pixel the nearest counts.
        camera: Pinhole camera.
    """
    scale = min(1.0, LONGEST_EDGE / max(camera.width, camera.height))
    width, height = max(2, round(camera.width * scale)), max(2, round(camera.height * scale))
    small = camera.resized(width, height)
    depth = torch.full((height * width,), torch.inf)
    for start in range(0, len(surface.centers), BLOCK):
        _draw(depth, Surface(*(column[start : start + BLOCK] for column in surface)), small)
    depth = depth.where(depth.isfinite(), 0).reshape(height, width)
    rows, columns = (
        torch.linspace(0, new - 1, old).round().long() for old, new in ((camera.height, height), (camera.width, width))
    )
    return depth[rows[:, None], columns]


def _draw(depth: Float32[Tensor, "P"], discs: Surface, camera: Camera) -> None:
    """Lower the depth (H * W) of a camera's pixels, in place, to that of discs in front of it."""
    centers, reach = camera.camera_from_world(discs.centers), discs.radii.double()
    ahead = centers[:, 2] > NEAR
    z = centers[:, 2].where(ahead, 1)
    position = centers[:, :2] / z[:, None] * camera.focal + camera.center
    half = (reach / (z - reach).clamp(min=NEAR))[:, None] * camera.focal
    own = position.round()  # covered, however small the disc
    first = torch.minimum((position - half).ceil(), own).clamp(min=0)
    limit = torch.tensor([camera.width - 1, camera.height - 1], dtype=torch.float64)
    last = torch.maximum((position + half).floor(), own).minimum(limit)
    index = torch.nonzero(ahead & (last >= first).all(dim=1)).squeeze(1)
    normals = discs.normals[index] @ camera.world_from_camera[:3, :3].float()
    seen = Surface(centers[index].float(), normals, discs.radii[index])
    first, own, size = first[index].long(), own[index].long(), (last - first + 1)[index].long()
    end = size.prod(dim=1).cumsum(dim=0)
    start = 0
    while start < len(index):
        drawn = int(end[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(end, drawn + BLOCK, right=True)))
        part = slice(start, stop)
        _draw_pixels(depth, Surface(*(column[part] for column in seen)), first[part], size[part], own[part], camera)
        start = stop


def _draw_pixels(
    depth: Float32[Tensor, "P"],
    discs: Surface,
    first: Int64[Tensor, "N 2"],
    size: Int64[Tensor, "N 2"],
    own: Int64[Tensor, "N 2"],
    camera: Camera,
) -> None:
    """Draw discs in camera axes, each into the pixels of its box where the ray meets it, or which is its own."""
    count = size.prod(dim=1)
    disc = torch.repeat_interleave(count)
    within = torch.arange(len(disc)) - (count.cumsum(dim=0) - count)[disc]
    pixel = first[disc] + torch.stack([within % size[disc, 0], within // size[disc, 0]], dim=1)
    rays = torch.ones(len(disc), 3)
    rays[:, :2] = (pixel - camera.center) / camera.focal
    centers, normals = discs.centers[disc], discs.normals[disc]
    z = torch.linalg.vecdot(centers, normals) / torch.linalg.vecdot(rays, normals)
    met = (z[:, None] * rays - centers).square().sum(dim=1) <= discs.radii[disc].square()
    covered = met | (pixel == own[disc]).all(dim=1)
    place = pixel[:, 1] * camera.width + pixel[:, 0]
    depth.scatter_reduce_(0, place[covered], z.where(met, centers[:, 2])[covered], "amin")
