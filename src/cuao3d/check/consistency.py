"""Do views agree on one surface, and under which reading of poses, depth and intrinsics do they agree best?

Views that overlap see one surface, so a pixel of one view, moved into another, must have the depth that the other view
measured there. The share of pixels for which it does is counted for the capture as given and for each way in which
captures usually go wrong; a way that makes clearly more of them agree names the mistake.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from cuao3d.check.readings import (
    ALONG_RAYS,
    AS_GIVEN,
    POSE_READINGS,
    RARER_POSE_READINGS,
    Reading,
    readings_of,
    with_depth_scale,
    with_rays,
)
from cuao3d.check.scale import fit_scale, rough_scale
from cuao3d.check.views import View, num_probes
from cuao3d.geometry import Projection, back_project, visible_points
from cuao3d.scene import Camera

TOLERANCE = 0.05
"""Depths agree when they differ by at most this part of the measured one; real captures drift."""

BETTER = 1.2
"""A mistake is named where undoing it makes this many times more pixels agree."""

CONSISTENT = 0.6
"""... and of the pixels that agree or contradict, at least this share then agree."""

PAIRS, OF_PAIR = 2, 20
"""... in at least so many pairs of views, by so many pixels each: in one pair, walls come to lie on walls by chance."""

CONTRADICTORY = 0.5
"""Below this share the views contradict each other, though no usual mistake explains it."""

ENOUGH = 100
"""Fewer pixels than this, seen again by another view, prove nothing."""

OVERLAP = 0.05
"""Two views are neighbours where at least this share of the pixels of one agree with the other."""

DOUBTED = 0.8
"""Below this share of pixels that should fit, rarer mistakes are tried."""

TIGHT, CLEARER = 0.02, 1.2
"""Depth along rays is told by the pixels that agree within a tighter part: so many times more of them than as given."""

SCALED = 1.05
"""A factor of depth nearer to 1 than this is none."""

ROUGHLY = 2000
"""Pixels by which a factor of depth is fitted, roughly, together with each other mistake ..."""

NUM_SCALED = 3
"""... of which so many are then looked at closely."""


class Consistency(NamedTuple):
    """How the views fit together under one reading: pixels of view i (row) in view j (column)."""

    landed: Int64[Tensor, "V V"]
    """Pixels that fall on a valid pixel."""
    agreeing: Int64[Tensor, "V V"]
    contradicting: Int64[Tensor, "V V"]
    """Pixels that would lie in front of what was measured."""
    tight: Int64[Tensor, "V V"]
    """Pixels that agree within `TIGHT`."""
    median_error: float | None
    """Median |depth error| of those that landed, metres."""

    @property
    def agreement(self) -> int:
        """Number of pixels that agree."""
        return int(self.agreeing.sum())

    @property
    def num_tight(self) -> int:
        """Number of pixels that agree within `TIGHT`."""
        return int(self.tight.sum())

    @property
    def consistent(self) -> float:
        """Share of the agreeing among those that agree or contradict."""
        return self.agreement / max(self.agreement + int(self.contradicting.sum()), 1)

    @property
    def num_pairs(self) -> int:
        """Number of pairs of views that agree."""
        return int(((self.agreeing + self.agreeing.T).triu(1) >= OF_PAIR).sum())


def measure_consistency(views: list[View], reading: Reading) -> Consistency:
    """Move the probes of every view into every other one."""
    cameras = [reading.camera(view.camera) for view in views]
    clouds = [
        back_project(reading.depth(view.probes, camera), camera)[0] for view, camera in zip(views, cameras, strict=True)
    ]
    points = torch.cat(clouds)
    view_of_point = torch.repeat_interleave(torch.tensor([len(cloud) for cloud in clouds]))
    columns, errors = [], []
    for index, (view, camera) in enumerate(zip(views, cameras, strict=True)):
        landed, measured = land(points, camera, reading.depth(view.depth, camera))
        source = view_of_point[landed.index]
        other = source != index
        source, error, measured = source[other], (landed.depth - measured)[other], measured[other]
        off = error / measured
        kinds = torch.ones_like(off) > 0, off.abs() <= TOLERANCE, off < -TOLERANCE, off.abs() <= TIGHT
        columns.append(torch.stack([torch.bincount(source[kind], minlength=len(views)) for kind in kinds]))
        errors.append(error.abs())
    landed_count, agreeing, contradicting, tight = torch.stack(columns, dim=2)
    error = torch.cat(errors)
    return Consistency(landed_count, agreeing, contradicting, tight, error.median().item() if len(error) else None)


def measure_readings(views: list[View], camera: Camera) -> dict[Reading, Consistency]:
    """Measure how views fit together under each reading that makes sense for a camera, at its full size.

    Rarer mistakes, and two at once, are only tried where the usual ones do not explain why views contradict each other.
    """
    found = {reading: measure_consistency(views, reading) for reading in readings_of(camera)}
    if len(views) < 2:
        return found
    _add_scaled(found, views, (AS_GIVEN,))
    given = found[AS_GIVEN]
    fits = given.agreement >= ENOUGH and given.consistent >= DOUBTED
    if likeliest_reading(found) is AS_GIVEN and not fits:
        found |= {reading: measure_consistency(views, reading) for reading in RARER_POSE_READINGS}
        if likeliest_reading(found) is AS_GIVEN:
            readings = (*POSE_READINGS, *RARER_POSE_READINGS)
            scores = {reading: rough_scale(views, reading, num_pixels=ROUGHLY).score for reading in readings}
            _add_scaled(found, views, sorted(readings, key=lambda reading: scores[reading])[-NUM_SCALED:])
    likeliest = likeliest_reading(found)
    if not likeliest.along_rays and (rays := with_rays(likeliest)) not in found:
        found[rays] = measure_consistency(views, rays)
    return found


def _add_scaled(found: dict[Reading, Consistency], views: list[View], readings: Sequence[Reading]) -> None:
    """Measure readings of poses also with the factor of depth that fits each best, if it is not 1."""
    for reading in readings:
        scale = fit_scale(views, reading)
        if max(scale, 1 / scale) > SCALED:
            scaled = with_depth_scale(reading, scale)
            found[scaled] = measure_consistency(views, scaled)


def land(
    points: Float[Tensor, "N 3"], camera: Camera, depth: Float[Tensor, "H W"]
) -> tuple[Projection, Float64[Tensor, "V"]]:
    """Find the points that fall on valid pixels, at whatever depth, and what was measured there."""
    landed = visible_points(points, camera, depth, occlusion_tolerance=math.inf, border=0)
    column, row = landed.pixels.round().long().unbind(1)
    return landed, depth[row, column].double()


def likeliest_reading(consistency: dict[Reading, Consistency]) -> Reading:
    """Return the reading under which most pixels agree, if it is consistent and clearly better than as given."""
    given = consistency[AS_GIVEN]
    apart = [reading for reading in consistency if reading is ALONG_RAYS or not reading.along_rays]
    best = max(apart, key=lambda reading: consistency[reading].agreement)
    found = consistency[best]
    clear = found.agreement >= ENOUGH and found.agreement > BETTER * given.agreement
    if not (clear and _is_consistent(found)):
        best, found = AS_GIVEN, given
    rays = consistency.get(with_rays(best), found)  # most pixels agree roughly either way
    is_clearer = rays.num_tight >= max(ENOUGH, CLEARER * found.num_tight) and rays.agreement > found.agreement
    return with_rays(best) if is_clearer and _is_consistent(rays) else best


def _is_consistent(found: Consistency) -> bool:
    return found.consistent >= CONSISTENT and found.num_pairs >= PAIRS


def joined_views(views: list[View], found: Consistency) -> tuple[Tensor, list[int]]:
    """Return which views see the same surface, (V, V), and to which connected group each belongs."""
    joined = found.agreeing >= OVERLAP * num_probes(views)[:, None]
    joined = joined | joined.T
    return joined, connected_components(joined.numpy(), directed=False)[1].tolist()


def choose_pairs(views: list[View], found: Consistency, num_pairs: int = 3) -> list[dict[str, Any]]:
    """Choose pairs of different views that overlap by about 40 %: alike enough to compare, unlike enough to tell."""
    overlap = found.landed / num_probes(views)[:, None]
    overlap.fill_diagonal_(0)
    pairs: list[dict[str, Any]] = []
    free = torch.ones(len(views), dtype=torch.bool)
    while len(pairs) < num_pairs and free.any():
        distance = (overlap - 0.4).abs().where(free[:, None] & free & (overlap > OVERLAP), torch.inf)
        first, second = divmod(int(distance.argmin()), len(views))
        if distance[first, second].isinf():
            break
        free[[first, second]] = False
        pairs.append(
            {"first": views[first].name, "second": views[second].name, "overlap": overlap[first, second].item()}
        )
    return pairs or [{"first": views[0].name, "second": views[-1].name, "overlap": overlap[0, -1].item()}]
