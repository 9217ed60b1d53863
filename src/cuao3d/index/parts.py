"""The parts that an index holds of a scene: pieces of like features, a vector, colours, a box and a picture of each."""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from cuao3d.geometry import group_mean, voxelize
from cuao3d.index.named_colors import NAMES, color_of_points
from cuao3d.photographs import Photograph, outline, read_photographs
from cuao3d.places import Upright
from cuao3d.store import StoredScene

CELL = 0.1
"""Edge of the cells that are grouped into parts, metres."""

CELLS_A_PART = 120
"""Mean number of cells of a part: a furnished room of 15 square metres has some 50 parts."""

FEWEST_PARTS, MOST_PARTS = 10, 1_000
"""Parts of a scene at least, if it has so many cells, and at most."""

FEWEST_SAMPLES = 10
"""Smaller parts are left out."""

NUM_DIRECTIONS = 16
"""Leading principal directions of a scene's features in which cells are compared."""

REACH = 2.0
"""Cells whose means lie at most so many edges apart are neighbours; parts grow over neighbours alone."""

NEARNESS = 0.05
"""How much a metre counts against a difference of features, which are unit vectors."""


class Parts(NamedTuple):
    """The parts of a scene."""

    vectors: Float32[Tensor, "P C"]
    """Unit vector of each: the mean direction of the features of its samples."""
    colors: Float32[Tensor, "P 11"]
    """Share of its samples that have each colour of `NAMES`; zeros without colours."""
    about: list[dict[str, Any]]
    """What is told of each, for JSON: what `coordinates.describe_place` says, `color`, the mean RGB in [0, 1] or None,
    and `photograph`, the best photograph's `name` and `outline` (left, top, right, bottom as shares of its sides)."""


def describe_parts(scene: StoredScene, features: Float[Tensor, "S C"], known: Tensor) -> Parts:
    """Cut a scene into parts and describe them.

    Args:
        scene: The scene.
        features: A feature of each sample, of any norm.
        known: Which samples have one.
    """
    sample = torch.nonzero(known.cpu()).squeeze(1)
    points = scene.sample_points[sample]
    directions = functional.normalize(features.cpu().float()[sample], dim=1)
    part_of_sample = over_segment(points, directions)
    photographs, upright = read_photographs(scene), Upright.of(scene)
    vectors, colors, about = [directions[:0]], [torch.zeros(0, len(NAMES))], []
    for part in range(int(part_of_sample.max()) + 1 if len(part_of_sample) else 0):
        own = torch.nonzero(part_of_sample == part).squeeze(1)
        if len(own) < FEWEST_SAMPLES:
            continue
        vectors.append(functional.normalize(directions[own].mean(dim=0, keepdim=True), dim=1))
        colors.append(_shares(scene, sample[own])[None])
        about.append(_describe(scene, sample[own], upright, photographs))
    return Parts(torch.cat(vectors), torch.cat(colors), about)


def over_segment(points: Float32[Tensor, "n 3"], directions: Float[Tensor, "n C"]) -> Int64[Tensor, "n"]:
    """Cut points into parts of like features, each connected: Ward's clustering of cells that grows over neighbours.

    Args:
        points: World positions, metres.
        directions: Feature of each, a unit vector.

    Returns:
        The part of each point, from 0 on.
    """
    if not len(points):
        return torch.zeros(0, dtype=torch.int64)
    corner = (points.double().amin(dim=0) / CELL).floor() * CELL
    voxels = voxelize(points.double() - corner, CELL)
    num_cells = len(voxels.coordinates)
    num_parts = min(MOST_PARTS, num_cells, max(FEWEST_PARTS, round(num_cells / CELLS_A_PART)))
    if num_parts == 1:
        return torch.zeros(len(points), dtype=torch.int64)
    from sklearn.cluster import AgglomerativeClustering

    middles = group_mean(points.double(), voxels.voxel_of_point, num_cells)
    means = group_mean(directions, voxels.voxel_of_point, num_cells)
    means = functional.normalize(means, dim=1).double()
    centered = means - means.mean(dim=0)
    _, principal = torch.linalg.eigh(centered.T @ centered)
    compared = torch.cat([centered @ principal[:, -NUM_DIRECTIONS:], NEARNESS * middles], dim=1)
    pairs = cKDTree(middles.numpy()).query_pairs(REACH * CELL, output_type="ndarray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # islands are joined by their nearest cells, as they should
        ward = AgglomerativeClustering(num_parts, connectivity=_graph(pairs, num_cells), linkage="ward")
        part_of_cell = torch.from_numpy(ward.fit_predict(compared.numpy()).astype(np.int64))
    return part_of_cell[voxels.voxel_of_point]


def _graph(pairs: np.ndarray, num_cells: int) -> Any:
    from scipy.sparse import coo_matrix

    one, other = np.concatenate([pairs, pairs[:, ::-1]]).T
    return coo_matrix((np.ones(len(one)), (one, other)), shape=(num_cells, num_cells)).tocsr()


def _shares(scene: StoredScene, samples: Int64[Tensor, "n"]) -> Float32[Tensor, "11"]:
    """Return the share of samples that has each named colour."""
    if scene.colors is None:
        return torch.zeros(len(NAMES))
    named = color_of_points(scene.colors[scene.index_of_sample[samples]])
    return torch.bincount(named, minlength=len(NAMES)).float() / len(samples)


def _describe(
    scene: StoredScene, samples: Int64[Tensor, "n"], upright: Upright, photographs: tuple[Photograph, ...]
) -> dict[str, Any]:
    """Return what is told of a part."""
    points = scene.sample_points[samples]
    mean = None if scene.colors is None else scene.colors[scene.index_of_sample[samples]].mean(dim=0)
    where = outline(photographs, scene.sample_points, samples)
    shown = None
    if where is not None:
        width, height = where.photograph.camera.width, where.photograph.camera.height
        edges = (where.left / width, where.top / height, where.right / width, where.bottom / height)
        shown = {"name": where.photograph.name, "outline": [round(edge, 4) for edge in edges]}
    return {
        **upright.describe(points, points),
        "num_samples": len(samples),
        "color": None if mean is None or not math.isfinite(float(mean.sum())) else [round(v, 3) for v in mean.tolist()],
        "photograph": shown,
    }
