"""Which samples of a scene each of its views sees."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from cuao3d.errors import UserError
from cuao3d.geometry import group_mean, project, visible_points, voxelize
from cuao3d.progress import OnCount
from cuao3d.scene import Camera, Problem, Scene

TIE = 1e-12
"""Squared distances that round to the same multiple of this are equal, square metres."""


@dataclass(frozen=True)
class Samples:
    """One real point of the cloud per occupied cell, in lexicographic order of the cells."""

    index_of_sample: Int64[Tensor, "S"]
    """Which point of the cloud each sample is."""
    sample_of_point: Int64[Tensor, "N"]
    """The sample that stands for each point of the cloud."""


@dataclass(frozen=True, eq=False)
class View:
    """Samples that one frame sees.

    There may be thousands of views, so little of each is kept: a compressed bit for each sample. Pixels are worked out
    anew when they are asked for.
    """

    frame: int
    """Index in `scene.frames`."""
    camera: Camera
    """Camera of the frame."""
    points: Float32[Tensor, "S 3"]
    """World positions of all samples, metres; all views share them."""
    seen: bytes
    """Whether each sample is seen, eight to a byte, compressed."""

    @staticmethod
    def of(frame: int, camera: Camera, points: Float32[Tensor, "S 3"], sample: Int64[Tensor, "n"]) -> "View":
        """Return the view that sees some samples; `sample` says which."""
        seen = np.zeros(len(points), dtype=np.bool_)
        seen[sample.numpy()] = True
        return View(frame, camera, points, zlib.compress(np.packbits(seen).tobytes(), 1))

    @property
    def sample(self) -> Int64[Tensor, "n"]:
        """Which samples, ascending."""
        packed = np.frombuffer(zlib.decompress(self.seen), np.uint8)
        return torch.from_numpy(np.unpackbits(packed, count=len(self.points)).nonzero()[0])

    @property
    def pixels(self) -> Float64[Tensor, "n 2"]:
        """Their exact pixel positions (x, y)."""
        return project(self.points[self.sample], self.camera)[0]


@dataclass(frozen=True)
class Visibility:
    """Who sees what in a scene: worked out once, shared by all teachers, so that their rows always match."""

    views: tuple[View, ...]
    """Frames that see at least one sample, in capture order."""
    num_views: Int64[Tensor, "S"]
    """Number of views that see each sample."""
    problems: tuple[Problem, ...] = ()
    """Frames that were left out and why."""
    occlusion_tolerance: float | None = None
    """The scene's tolerance, by which it was decided; None where visibility comes from elsewhere."""

    @property
    def seen_samples(self) -> Int64[Tensor, "V"]:
        """Samples that at least one view sees, ascending; features have one row for each."""
        return torch.nonzero(self.num_views).squeeze(1)


def sample_cells(points: Float[Tensor, "N 3"], cell: float) -> Samples:
    """Choose the point nearest the centroid of its cell's points, in every occupied cell.

    Args:
        points: World positions, metres.
        cell: Edge of a cell, metres.

    Returns:
        The samples; of equally near points the first one in the cloud is taken.
    """
    voxels = voxelize(points, cell)
    positions = points.double()
    centroid = group_mean(positions, voxels.voxel_of_point, len(voxels.coordinates))
    distance = (positions - centroid[voxels.voxel_of_point]).square().sum(dim=1).div(TIE).round()
    by_distance = torch.argsort(distance, stable=True)
    order = by_distance[torch.argsort(voxels.voxel_of_point[by_distance], stable=True)]
    cell_in_order = voxels.voxel_of_point[order]
    first = torch.ones_like(cell_in_order, dtype=torch.bool)
    first[1:] = cell_in_order[1:] != cell_in_order[:-1]
    return Samples(order[first], voxels.voxel_of_point)


def see(scene: Scene, samples: Samples, *, border: int = 10, progress: OnCount | None = None) -> Visibility:
    """Find the samples and pixels of every view.

    Only depth is read. A frame whose depth cannot be read is left out and reported: it must not cost the scene.

    Args:
        scene: Where to look; its `occlusion_tolerance` decides what is hidden.
        samples: The points to look for.
        border: Width of the image margin that is not used, pixels.
        progress: Called after each frame.
    """
    points = scene.points[samples.index_of_sample]
    num_views = torch.zeros(len(points), dtype=torch.int64)
    views, problems = [], []
    for index, frame in enumerate(scene.frames):
        try:
            depth = frame.read_depth()
            tolerance = scene.occlusion_tolerance
            seen = visible_points(points, frame.camera, depth, occlusion_tolerance=tolerance, border=border)
        except (UserError, OSError) as error:
            problems.append(Problem.of_frame(f"{scene.name}, frame {frame.name}", error))
        else:
            if len(seen.index):
                num_views[seen.index] += 1
                views.append(View.of(index, frame.camera, points, seen.index))
        if progress:
            progress(index + 1, len(scene.frames))
    return Visibility(tuple(views), num_views, tuple(problems), scene.occlusion_tolerance)
