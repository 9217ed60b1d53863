"""Places that answer a question, a thing each: connected parts, merged over gaps, without the weak and the tiny."""

from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from cuao3d.boxes import floor_height
from cuao3d.coordinates import describe_place
from cuao3d.gravity import Z
from cuao3d.query import MIN_POINTS, parts
from cuao3d.readers.options import rotation_of
from cuao3d.store import StoredScene

BEST_SHARE = 4
"""The relevance and the centre of a place are those of the best of its points, one in so many: the others would hide a
small place behind a large one, and pull the centre off the thing."""

KEEP = 0.9
"""Parts less relevant than this share of the best are no places; of a negative best, by the rest of its size."""

GAP = 0.5
"""Parts are one place if the gap between them is at most this share of the larger one's extent seen from above."""

STEP = 0.25
"""... if their lowest points differ by at most this, metres: they stand on the same height."""

BETWEEN = 0.25
"""... and if what was seen in the gap is at least this share as relevant as the best part: no floor lies between."""

SMALLEST = 0.25
"""Places with less than this share of the points of the largest are left out: they are mostly what a thing touches."""

THINNED = 2_000
"""Points of a part, about so many at most, between which the gap is measured."""


@dataclass(frozen=True)
class Part:
    """A part of a scene."""

    points: Int64[Tensor, "n"]
    """Its points."""
    best: Int64[Tensor, "b"]
    """Those that answer best, one in `BEST_SHARE` of them."""
    relevance: float
    """Their mean relevance."""

    @staticmethod
    def of(points: Int64[Tensor, "n"], relevance: Float[Tensor, "V"]) -> "Part":
        """Find the best points of a part."""
        own = relevance[points]
        least = own.topk(max(min(MIN_POINTS, len(own)), len(own) // BEST_SHARE)).values[-1]
        is_best = own >= least  # all that are equal, so that the centre of an even part is its middle
        return Part(points, points[is_best], float(own[is_best].mean()))


class Upright(NamedTuple):
    """A scene's world turned so that +z is up, in which places are described."""

    rotation: Float64[Tensor, "3 3"]
    """From the scene's world."""
    transform: Float64[Tensor, "4 4"] | None
    """From the turned world to the capture's coordinates; None: they are the same."""
    floor: float | None
    """Height of the floor, metres; None where it is not known, as where up could not be told."""

    @staticmethod
    def of(scene: StoredScene) -> "Upright":
        """Turn the world of a scene; where up could not be told, as if it were +z, and without a floor."""
        if scene.up is None or scene.up.equal(Z):
            floor = None if scene.up is None else floor_height(scene.sample_points)
            return Upright(torch.eye(3, dtype=torch.float64), scene.capture_from_world, floor)
        x, y, z = scene.up.tolist()
        rotation = rotation_of((x, y, z))
        back = torch.eye(4, dtype=torch.float64)
        back[:3, :3] = rotation.T
        change = back if scene.capture_from_world is None else scene.capture_from_world.double() @ back
        return Upright(rotation, change, floor_height(scene.sample_points @ rotation.T.float()))

    def turn(self, points: Float32[Tensor, "N 3"]) -> Float32[Tensor, "N 3"]:
        """Turn positions of the scene's world."""
        return points if self.transform is None else points @ self.rotation.T.to(points)

    def describe(self, points: Float32[Tensor, "N 3"], best: Float32[Tensor, "M 3"]) -> dict[str, Any]:
        """Describe a place by its points, and by those that answer best, in the scene's world; see `describe_place`."""
        return describe_place(self.turn(points), self.turn(best), self.transform, self.floor)


def find_places(
    points: Float[Tensor, "V 3"], relevance: Float[Tensor, "V"], answers: Bool[Tensor, "V"], seen: Bool[Tensor, "V"]
) -> list[Part]:
    """Find the places that answer a question, the most relevant first.

    Args:
        points: World positions of a scene's points, metres, +z up.
        relevance: How well each answers; see `Answer.relevance`.
        answers: Those that answer; the places are made of these.
        seen: Those that have a feature.
    """
    index = torch.nonzero(answers).squeeze(1)
    part_of_point = parts(points[index])
    by_part = torch.argsort(part_of_point, stable=True)[int((part_of_point < 0).sum()) :]
    own = torch.split(index[by_part], torch.bincount(part_of_point[by_part]).tolist())
    found = [Part.of(one, relevance) for one in own]
    if not found:
        return []
    best = max(part.relevance for part in found)
    least = best - (1 - KEEP) * abs(best)
    found = _merge([part for part in found if part.relevance >= least], points, relevance, seen)
    largest = max(len(part.points) for part in found)
    kept = [part for part in found if len(part.points) >= SMALLEST * largest]
    return sorted(kept, key=lambda part: -part.relevance)


def _merge(found: list[Part], points: Tensor, relevance: Tensor, seen: Tensor) -> list[Part]:
    """Merge parts of one thing; chains of them too."""
    if len(found) < 2:
        return found
    where = points.double().cpu().numpy()
    between = _Between(where[seen.cpu().numpy()], relevance[seen].cpu().numpy(), max(one.relevance for one in found))
    thinned = [where[one.points.numpy()][:: max(1, len(one.points) // THINNED)] for one in found]
    trees = [cKDTree(one) for one in thinned]
    pairs = [pair for pair in combinations(range(len(found)), 2) if _is_one(*pair, thinned, trees, between)]
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    edges = coo_matrix((np.ones(len(first)), (first, second)), shape=(len(found), len(found)))
    group_of_part = connected_components(edges, directed=False)[1]
    groups = [np.flatnonzero(group_of_part == group) for group in range(group_of_part.max() + 1)]
    return [
        found[own[0]] if len(own) == 1 else Part.of(torch.cat([found[part].points for part in own]), relevance)
        for own in groups
    ]


class _Between:
    """Says whether what lies between two parts may belong to the same thing."""

    def __init__(self, points: np.ndarray, relevance: np.ndarray, best: float) -> None:
        self.points, self.relevance, self.least = points, relevance, BETWEEN * best
        self.tree: cKDTree | None = None

    def is_relevant(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Look at what was seen around the middle of the gap between two points, within half of it."""
        if self.tree is None:  # most answers have no two parts that are near enough
            self.tree = cKDTree(self.points)
        near = self.tree.query_ball_point((one + other) / 2, np.linalg.norm(one - other) / 2)
        return not near or bool(np.median(self.relevance[near]) >= self.least)


def _is_one(first: int, second: int, thinned: list[np.ndarray], trees: list[cKDTree], between: _Between) -> bool:
    """Say whether two parts are one thing."""
    one, other = thinned[first], thinned[second]
    if abs(one[:, 2].min() - other[:, 2].min()) > STEP:
        return False
    reach = GAP * max(np.ptp(one[:, :2], axis=0).max(), np.ptp(other[:, :2], axis=0).max())
    distance, nearest = trees[first].query(other, distance_upper_bound=max(reach, 1e-9))
    closest = int(distance.argmin())
    return bool(distance[closest] <= reach) and between.is_relevant(one[nearest[closest]], other[closest])
