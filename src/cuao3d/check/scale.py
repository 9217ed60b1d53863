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
from cuao3d.check.units import PLAIN_FACTORS, known_factor, round_factor
from cuao3d.check.views import View

DECADES, STEP = 4, 1.08
"""Factors from 1e-4 to 1e4 are tried in steps of 8 %: wider than that, agreement within 5 % could be missed."""

FINE, FINEST = 1.005, 1.0015
"""Steps of the first and of the second refinement."""

TOLERANCE = 0.05
"""Depths agree when they differ by at most this part, coarsely ..."""

TIGHT = 0.02
"""... and by at most this where the factor is refined."""

UNSURE, AS_GOOD = 1.25, 0.95
"""Depth of few or noisy views fits a range of factors: a plain one within this of the best is taken if it scores so."""

NUM_PIXELS = 6000
"""Pixels that are moved, of all pairs together."""

MOST_PAIRS = 300
"""Pairs that are looked at, at most."""

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


def fit_scale(views: list[View], reading: Reading) -> float:
    """Fit the factor of depth at which most pixels agree between views, under a reading of poses.

    Args:
        views: At least two.
        reading: Its own factor of depth is not used.

    Returns:
        The factor, by a round name where it is near one; 1 where no pixel agrees at any.
    """
    rough = rough_scale(views, reading, num_pixels=NUM_PIXELS)
    if not rough.score:
        return 1.0
    moved, seen, best = _move(views, reading, NUM_PIXELS), _Seen.of(views), rough.scale
    for step, count, tolerance in ((FINE, 20, TOLERANCE), (FINEST, 20, TIGHT)):
        scales = best * step ** torch.arange(-count, count + 1, dtype=torch.float64)
        scores = _score(moved, seen, scales, tolerance)
        high = scales[scores >= 0.98 * scores.max()] if scores.any() else scales[count : count + 1]
        best = float(high.log().mean().exp())
    if (known := known_factor(best)) is not None:
        return known
    plain = [factor for factor in PLAIN_FACTORS if 1 / UNSURE < factor / best < UNSURE]
    reached = _score(moved, seen, torch.tensor([best, *plain], dtype=torch.float64), TOLERANCE)
    good = reached[1:] >= AS_GOOD * reached[0]
    return plain[int(good.nonzero()[0])] if good.any() else round_factor(best)


class Rough(NamedTuple):
    """The factor of a coarse grid at which most pixels agree."""

    scale: float
    score: float
    """Pixels that agree, times their share among those that agree or contradict; to be compared between readings."""


def rough_scale(views: list[View], reading: Reading, *, num_pixels: int) -> Rough:
    """Find the best factor on the coarse grid; the arguments are those of `fit_scale`, `num_pixels` are moved."""
    steps = round(DECADES * math.log(10) / math.log(STEP))
    scales = STEP ** torch.arange(-steps, steps + 1, dtype=torch.float64)
    scores = _score(_move(views, reading, num_pixels), _Seen.of(views), scales, TOLERANCE)
    return Rough(float(scales[scores.argmax()]), float(scores.max()))


class _Seen(NamedTuple):
    """What the views measured."""

    depth: Float[Tensor, "V H W"]
    """Smaller images are filled up with missing pixels."""
    lenses: Float64[Tensor, "V 2 2"]
    """Focal lengths and principal points, pixels."""

    @classmethod
    def of(cls, views: list[View]) -> "_Seen":
        depths = [view.depth for view in views]
        height, width = (max(depth.shape[axis] for depth in depths) for axis in (0, 1))
        stack = torch.zeros(len(depths), height, width)
        for index, depth in enumerate(depths):
            stack[index, : depth.shape[0], : depth.shape[1]] = depth
        return cls(stack, torch.stack([torch.stack([view.camera.focal, view.camera.center]) for view in views]))


def _move(views: list[View], reading: Reading, num_pixels: int) -> Moved:
    """Choose pixels of pairs of views and turn them into the axes of the second."""
    pairs = [
        (first, second)
        for first in range(len(views))
        for second in range(len(views))
        if abs(first - second) in (range(1, 16) if len(views) <= 16 else APART)
    ]
    pairs = [pairs[place] for place in np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_PAIRS)).round().astype(int)]
    if not pairs:
        nothing = torch.empty(0, 3, dtype=torch.float64)
        return Moved(nothing, nothing, torch.empty(0, dtype=torch.int64))
    count = max(4, num_pixels // len(pairs))
    poses = torch.stack([reading.camera(view.camera).world_from_camera for view in views])
    first, second = torch.tensor(pairs).unbind(1)
    second_from_first = torch.linalg.inv(poses)[second] @ poses[first]
    rays = [_probes(view, count) for view in views]
    points = [rays[index] @ turn.T for index, turn in zip(first.tolist(), second_from_first[:, :3, :3], strict=True)]
    counts = torch.tensor([len(some) for some in points])
    baselines = torch.repeat_interleave(second_from_first[:, :3, 3], counts, dim=0)
    return Moved(torch.cat(points), baselines, torch.repeat_interleave(second, counts))


def _probes(view: View, count: int) -> Float64[Tensor, "n 3"]:
    """Return about so many evenly spaced probes of a view in its camera's axes, as given."""
    pixel = torch.nonzero(view.probes.flatten() > 0).squeeze(1)
    pixel = pixel[np.linspace(0, len(pixel) - 1, min(count, len(pixel))).round().astype(int)]
    z, width = view.probes.flatten()[pixel].double(), view.probes.shape[1]
    position = torch.stack([pixel % width, pixel // width], dim=1).double()
    rays = (position - view.camera.center) / view.camera.focal
    return torch.cat([rays * z[:, None], z[:, None]], dim=1)


def _score(moved: Moved, seen: _Seen, scales: Float64[Tensor, "S"], tolerance: float) -> Float64[Tensor, "S"]:
    """Count the pixels that agree at each factor of depth, times their share among those that agree or contradict."""
    height, width = seen.depth.shape[1:]
    focal, center = seen.lenses[moved.view].unbind(1)
    scores = []
    for scale in scales.tolist():
        points = moved.points + moved.baseline / scale
        z = points[:, 2]
        column, row = (points[:, :2] / z[:, None] * focal + center).round().unbind(1)
        inside = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        measured = seen.depth[moved.view[inside], row[inside].long(), column[inside].long()].double()
        off = (z[inside] / measured - 1)[measured > 0]
        agreeing, contradicting = int((off.abs() <= tolerance).sum()), int((off < -tolerance).sum())
        scores.append(agreeing**2 / max(agreeing + contradicting, 1))
    return torch.tensor(scores, dtype=torch.float64)
