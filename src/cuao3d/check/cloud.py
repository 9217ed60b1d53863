"""Does the cloud lie where views saw surfaces? Asked both ways: which cells they see, and what of theirs it covers."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from cuao3d.check.consistency import ENOUGH, Consistency, land, measure_consistency
from cuao3d.check.readings import AS_GIVEN, POSE_READINGS, RARER_POSE_READINGS, Reading
from cuao3d.check.views import View
from cuao3d.fusion import sample_cells
from cuao3d.geometry import back_project
from cuao3d.scene import Scene

CELL = 0.05
"""Edge of the cells whose coverage is counted, metres."""

BESIDE = 3**0.5 * CELL
"""A point of a surface has a point of the cloud beside it up to this distance, metres: the diagonal of a cell."""


THROUGH = 0.05
"""A view looks through a point that lies by more than this part of the measured depth in front of it."""

FITS, CLEARER = 0.8, 1.5
"""Poses of which few views overlap are read as makes this share of the surfaces meet the cloud, and so many times more
of it than as given."""


class Cells(NamedTuple):
    """Cells of the cloud, and the views of them."""

    points: Float32[Tensor, "S 3"]
    """A point of each, metres."""
    num_views: Int64[Tensor, "S"]
    """Views that see it."""
    num_through: Int64[Tensor, "S"]
    """Views that look through it: they measured a surface behind."""


def views_of_cells(scene: Scene, views: list[View]) -> Cells:
    """Count the views of each cell of the cloud, poses as given."""
    points = scene.points[sample_cells(scene.points, CELL).index_of_sample]
    num_views, num_through = torch.zeros(2, len(points), dtype=torch.int64)
    tolerance = scene.occlusion_tolerance
    for view in views:
        landed, measured = land(points, view.camera, view.depth)
        error = landed.depth - measured
        num_views[landed.index[error.abs() <= tolerance * measured]] += 1
        num_through[landed.index[error < -max(tolerance, THROUGH) * measured]] += 1
    return Cells(points, num_views, num_through)


def coverage_of(cells: Cells, views: list[View]) -> dict[str, Any]:
    """Measure how cloud and views fit, poses as given."""
    seen_by = cells.num_views[cells.num_views > 0].double()
    through = int(((cells.num_through > 0) & (cells.num_views == 0)).sum())
    return {
        "cell": CELL,
        "seen": (cells.num_views > 0).double().mean().item(),
        "views_per_cell": seen_by.mean().item() if len(seen_by) else 0.0,
        "seen_through": through / max(through + len(seen_by), 1),
        "surface_with_points": share_beside(cells.points, views, AS_GIVEN),
    }


def settled_by_cloud(cells: Cells, views: list[View], consistency: dict[Reading, Consistency]) -> Reading:
    """Return the reading of poses under which surfaces meet the cloud, where too few views overlap; else as given.

    A cloud that was built from depth with these poses fits them as given, and tells nothing.
    """
    if int(consistency[AS_GIVEN].landed.sum()) >= ENOUGH:
        return AS_GIVEN
    readings = (AS_GIVEN, *POSE_READINGS, *RARER_POSE_READINGS)
    shares = {reading: share_beside(cells.points, views, reading) for reading in readings}
    best = max(readings, key=lambda reading: shares[reading])
    if shares[best] < max(FITS, CLEARER * shares[AS_GIVEN]):
        return AS_GIVEN
    consistency.setdefault(best, measure_consistency(views, best))
    return best


def share_beside(points: Float32[Tensor, "S 3"], views: list[View], reading: Reading) -> float:
    """Return the share of the views' surfaces, under a reading, that have a point of the cloud beside them.

    Args:
        points: One of each cell of the cloud, metres.
        views: Their probes are moved to the world.
        reading: How poses and depth are read.
    """
    surfaces = [back_project(reading.depth(view.probes, view.camera), reading.camera(view.camera))[0] for view in views]
    beside = are_beside(cKDTree(points.numpy()), torch.cat(surfaces))
    return float(beside.mean()) if len(beside) else 0.0


def are_beside(tree: cKDTree, surface: Float[Tensor, "N 3"]) -> NDArray[np.bool_]:
    """Say which points of surfaces, metres, have a point of the cloud, in a tree, beside them."""
    distance, _ = tree.query(surface.nan_to_num().numpy(), distance_upper_bound=BESIDE)
    found: NDArray[np.bool_] = np.isfinite(distance)
    return found
