"""A point cloud out of depth images, for captures that bring none."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor
from torch.nn import functional

from cuao3d.errors import UserError
from cuao3d.geometry import back_project, voxelize
from cuao3d.scene import Frame, Problem

VOXEL_SIZE = 0.02
"""Edge of the voxels in which points are merged, metres."""

EDGE = 0.05
"""A pixel lies on a depth edge where depth varies by more than this part of it among its neighbours."""

FAR = 4.0
"""Pixels are thinned as long as their distance at this depth, metres, stays below a voxel."""

MERGE_AFTER = 32
"""Frames that are read before their voxels are merged; bounds the memory, however long the capture."""

KEPT = 1 << 28
"""Bytes of images that are kept for their next reader, so that small captures are not decoded twice."""

AT_ONCE, BYTES_PER_PIXEL = 1 << 30, 60
"""Bytes that all frames read at the same time may use, about, and what a pixel of one needs."""


class MergedCloud(NamedTuple):
    """Points merged from depth images."""

    points: Float32[Tensor, "N 3"]
    """World positions, metres, in lexicographic order of their voxels."""
    colors: Float32[Tensor, "N 3"]
    """RGB, in [0, 1]; black where no frame has colours."""
    frames: tuple[Frame, ...]
    """Frames that could be read. The first ones keep their image for the next reader; after it they decode anew."""
    problems: tuple[Problem, ...]
    """Why the other frames could not be read."""


def cloud_from_depth(frames: Sequence[Frame], *, voxel_size: float = VOXEL_SIZE) -> MergedCloud:
    """Back-project all frames and merge what falls into one voxel: mean position and mean colour.

    Pixels on depth edges are left out: sensors invent surface between foreground and background there.

    Args:
        frames: Posed views with depth; one that cannot be read is left out and reported.
        voxel_size: Edge of a voxel, metres.
    """
    readable: list[Frame] = []
    problems: list[Problem] = []
    sums: list[_VoxelSums] = []
    frames = _keep_images(frames)
    largest = max((frame.camera.width * frame.camera.height for frame in frames), default=1)
    with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, AT_ONCE // (BYTES_PER_PIXEL * largest)))) as pool:
        for start in range(0, len(frames), MERGE_AFTER):
            some = frames[start : start + MERGE_AFTER]
            for frame, result in zip(some, pool.map(lambda frame: _try(frame, voxel_size), some), strict=True):
                if isinstance(result, Problem):
                    problems.append(result)
                    continue
                readable.append(frame)
                sums.append(result)
            sums = [_merge(sums)] if sums else []
    if not sums:
        return MergedCloud(torch.empty(0, 3), torch.empty(0, 3), (), tuple(problems))
    total = sums[0].sums
    mean = (total[:, :6] / total[:, 6:]).float()
    return MergedCloud(mean[:, :3].contiguous(), mean[:, 3:].contiguous(), tuple(readable), tuple(problems))


def depth_edges(depth: Float32[Tensor, "H W"], *, step: int = 1) -> Bool[Tensor, "h w"]:
    """Find pixels whose 3 x 3 neighbourhood spans more than `EDGE` of their depth; missing neighbours do not count.

    Args:
        depth: Depth along the optical axis, metres; 0 = missing.
        step: Only every n-th pixel of a row and of a column is looked at.
    """
    nearest = depth.where(depth > 0, torch.inf)
    farthest = functional.max_pool2d(depth[None], 3, stride=step, padding=1)[0]
    nearest = -functional.max_pool2d(-nearest[None], 3, stride=step, padding=1)[0]
    return farthest - nearest > EDGE * depth[::step, ::step]


class _DecodedOnce:
    """Reads an image for two callers but decodes it once: the first image is kept until the second caller takes it."""

    def __init__(self, read_image: Callable[[], Float32[Tensor, "3 H W"]]) -> None:
        self.read_image = read_image
        self.kept: Tensor | None = None
        self.is_new = True

    def __call__(self) -> Float32[Tensor, "3 H W"]:
        if self.kept is not None:
            image, self.kept = self.kept, None
            return image
        image = self.read_image()
        if self.is_new:
            self.kept, self.is_new = image, False
        return image


def _keep_images(frames: Sequence[Frame]) -> list[Frame]:
    """Let the first frames, as many as `KEPT` holds, decode their images once for the cloud and its next reader."""
    sizes = torch.tensor([12 * frame.camera.width * frame.camera.height for frame in frames])
    num_kept = int((sizes.cumsum(0) <= KEPT).sum())
    kept = [replace(frame, read_image=_DecodedOnce(frame.read_image)) for frame in frames[:num_kept]]
    return kept + list(frames[num_kept:])


class _VoxelSums(NamedTuple):
    coordinates: Int64[Tensor, "V 3"]
    sums: Float64[Tensor, "V 7"]
    """Sums of position, colour and one over the points of each voxel: such sums of two clouds add up."""


def _try(frame: Frame, voxel_size: float) -> _VoxelSums | Problem:
    """Return a frame's voxels, or why it cannot be read."""
    try:
        return _voxel_sums(frame, voxel_size)
    except (UserError, OSError) as error:
        return Problem.of_frame(frame.name, error)


def _voxel_sums(frame: Frame, voxel_size: float) -> _VoxelSums:
    camera, depth = frame.camera, frame.read_depth()
    step = max(1, int(camera.focal.min() * voxel_size / FAR))
    thinned = depth[::step, ::step].where(~depth_edges(depth, step=step), 0)
    camera = replace(camera, focal=camera.focal / step, center=camera.center / step)
    points, pixel = back_project(thinned, camera)
    image = frame.read_image() if frame.has_colors else torch.zeros(3, *depth.shape)
    colors = image[:, ::step, ::step].flatten(1)[:, pixel].T
    rows = torch.cat([points, colors, torch.ones(len(points), 1)], dim=1).double()
    voxels = voxelize(points, voxel_size)
    return _VoxelSums(voxels.coordinates, _sum(rows, voxels.voxel_of_point, len(voxels.coordinates)))


def _merge(parts: list[_VoxelSums]) -> _VoxelSums:
    # Coordinates are whole numbers, so voxels of edge 1 bring equal ones together.
    voxels = voxelize(torch.cat([part.coordinates for part in parts]).double(), 1.0)
    rows = torch.cat([part.sums for part in parts])
    return _VoxelSums(voxels.coordinates, _sum(rows, voxels.voxel_of_point, len(voxels.coordinates)))


def _sum(rows: Float64[Tensor, "N 7"], voxel_of_row: Int64[Tensor, "N"], num_voxels: int) -> Float64[Tensor, "V 7"]:
    return rows.new_zeros(num_voxels, rows.shape[1]).index_add_(0, voxel_of_row, rows)
