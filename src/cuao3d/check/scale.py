"""Do depth and the positions of cameras have one unit? The factor between them, fitted, and the unit that it tells.

Only the ratio matters to whether views agree, so it is tried on a grid over eight decades for a few thousand pixels at
once, and then refined.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from cuao3d.check.readings import Reading
from cuao3d.check.units import round_factor
from cuao3d.check.views import View

DECADES, STEP = 4, 1.08
"""Factors from 1e-4 to 1e4 are tried in steps of 8 %: wider than that, agreement within 5 % could be missed."""

FINE, FINEST = 1.005, 1.0015
"""Steps of the first and of the second refinement."""

TOLERANCE = 0.05
"""Depths agree when they differ by at most this part, coarsely ..."""

TIGHT = 0.02
"""... and by at most this where the factor is refined."""

NUM_PIXELS = 6000
"""Pixels that are moved, of all pairs together."""

APART = (1, 2, 3, 5, 8, 13, 21)
"""Pairs of views that are so many places apart in the capture are looked at."""


class Moved(NamedTuple):
    """Pixels of views, as rays in other views."""

    points: Float64[Tensor, "N 3"]
    """Positions in the axes of the other camera, seen from the first one's place, for the depth as given."""
    baseline: Float64[Tensor, "N 3"]
    """The first camera's place in the other camera's axes, as given."""
    view: Int64[Tensor, "N"]
    """The other view."""


def fit_scale(views: list[View], reading: Reading, *, num_pixels: int = NUM_PIXELS) -> float:
    """Fit the factor of depth at which most pixels agree between views, under a reading of poses.

    Args:
        views: At least two.
        reading: Its own factor of depth is not used.
        num_pixels: Pixels that are moved, of all pairs together.

    Returns:
        The factor, by a round name where it is near one; 1 where no pixel agrees at any.
    """
    moved, depth = _move(views, reading, num_pixels), _stack([view.depth for view in views])
    lenses = torch.stack([torch.stack([view.camera.focal, view.camera.center]) for view in views])
    steps = round(DECADES * math.log(10) / math.log(STEP))
    scales = STEP ** torch.arange(-steps, steps + 1, dtype=torch.float64)
    scores = _score(moved, depth, lenses, scales, TOLERANCE)
    if not scores.any():
        return 1.0
    best = float(scales[scores.argmax()])
    for step, count, tolerance in ((FINE, 25, TOLERANCE), (FINEST, 20, TIGHT)):
        scales = best * step ** torch.arange(-count, count + 1, dtype=torch.float64)
        scores = _score(moved, depth, lenses, scales, tolerance)
        high = scales[scores >= 0.98 * scores.max()] if scores.any() else scales[count : count + 1]
        best = float(high.log().mean().exp())
    return round_factor(best)


def _move(views: list[View], reading: Reading, num_pixels: int) -> Moved:
    """Choose pixels of pairs of views and turn them into the axes of the second."""
    pairs = [
        (first, second)
        for first in range(len(views))
        for second in range(len(views))
        if abs(first - second) in (range(1, 16) if len(views) <= 16 else APART)
    ]
    count = max(4, num_pixels // max(len(pairs), 1))
    cameras = [reading.camera(view.camera) for view in views]
    rays = [_probes(view, count) for view in views]
    points, baselines, other = [], [], []
    for first, second in pairs:
        second_from_world = torch.linalg.inv(cameras[second].world_from_camera)
        second_from_first = second_from_world @ cameras[first].world_from_camera
        points.append(rays[first] @ second_from_first[:3, :3].T)
        baselines.append(second_from_first[:3, 3].expand(len(rays[first]), 3))
        other.append(torch.full((len(rays[first]),), second))
    if not pairs:
        nothing = torch.empty(0, 3, dtype=torch.float64)
        return Moved(nothing, nothing, torch.empty(0, dtype=torch.int64))
    return Moved(torch.cat(points), torch.cat(baselines), torch.cat(other))


def _probes(view: View, count: int) -> Float64[Tensor, "n 3"]:
    """Return about so many evenly spaced probes of a view in its camera's axes, as given."""
    pixel = torch.nonzero(view.probes.flatten() > 0).squeeze(1)
    pixel = pixel[np.linspace(0, len(pixel) - 1, min(count, len(pixel))).round().astype(int)]
    z, width = view.probes.flatten()[pixel].double(), view.probes.shape[1]
    position = torch.stack([pixel % width, pixel // width], dim=1).double()
    rays = (position - view.camera.center) / view.camera.focal
    return torch.cat([rays * z[:, None], z[:, None]], dim=1)


def _stack(depths: list[Tensor]) -> Float[Tensor, "V H W"]:
    """Stack depth images, the smaller ones filled up with missing pixels."""
    height, width = (max(depth.shape[axis] for depth in depths) for axis in (0, 1))
    stack = torch.zeros(len(depths), height, width)
    for index, depth in enumerate(depths):
        stack[index, : depth.shape[0], : depth.shape[1]] = depth
    return stack


def _score(
    moved: Moved,
    depth: Float[Tensor, "V H W"],
    lenses: Float64[Tensor, "V 2 2"],
    scales: Float64[Tensor, "S"],
    tolerance: float,
) -> Float64[Tensor, "S"]:
    """Count the pixels that agree at each factor of depth, times their share among those that agree or contradict."""
    height, width = depth.shape[1:]
    lens, scores = lenses[moved.view], []
    for scale in scales:
        x, y, z = (moved.points + moved.baseline / scale).unbind(1)
        column, row = ((torch.stack([x, y], dim=1) / z[:, None]) * lens[:, 0] + lens[:, 1]).round().unbind(1)
        inside = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        measured = depth[moved.view[inside], row[inside].long(), column[inside].long()].double()
        error, seen = z[inside] - measured, measured > 0
        agreeing = int((seen & (error.abs() <= tolerance * measured)).sum())
        contradicting = int((seen & (error < -tolerance * measured)).sum())
        scores.append(agreeing**2 / max(agreeing + contradicting, 1))
    return torch.tensor(scores, dtype=torch.float64)
