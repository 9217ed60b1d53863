"""Text queries on features: scores, labels, relevance, connected parts, and a verdict that may be "absent"."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional

import cuao3d
from cuao3d import half_rows
from cuao3d.errors import InputError
from cuao3d.geometry import Packing, group_mean, voxelize
from cuao3d.scene import UNLABELLED
from cuao3d.store import StoredScene
from cuao3d.teachers import DEFAULT, Calibration
from cuao3d.text import TextEncoder
from cuao3d.text.english import knows
from cuao3d.threads import in_shares

CONTRAST = ("object", "things", "stuff", "texture", "a wall in a scene", "a floor in a scene")
"""Words that a query's score must exceed: phrases that fit anything (LERF's canonical phrases), and the most frequent
classes of rooms."""

NEAR_CLASS = 0.7
"""Cosine between a query and the name of a class from which a network that knows only classes can know the query: the
names of ScanNet200 that have another name there, such as "bin" and "waste bin", have 0.71 and more; those that have
none, such as "blackboard" and "sideboard", have less."""

MIN_POINTS = 20
"""Number of points that must reach a relevance for a verdict."""

CELL = 0.02
"""Edge of the cells in which the points of an answer are grouped, metres: a place of `MIN_POINTS` cells has 80 cm²,
however dense the cloud is."""

NEAR = 0.5
"""A contrast word counts against a query if their distance is at least this share of the query's median distance to
contrast words; nearer ones mean the same."""

LEAST_MARGIN = 0.02
"""Points this much less relevant than the peak answer as well, though more than half the peak is asked."""

SAME = 0.03
"""Distance (one minus the cosine) below which two words mean the same: none of LVIS's 1,203 names is so near to another
in the space of CLIP's ViT-B/32. Nothing is divided by less."""

CHUNK = 1 << 18
"""Feature values of a block: as single precision it lies in the cache of a core while it is widened, measured and
multiplied, so that a row is read from memory once."""

LANES = 8
"""Texts are multiplied in multiples of this: of few, the product is several times as fast so."""

NUM_SIMILAR = 1 << 20
"""Cosines of rows with texts that are looked at at a time."""

PAIRS = 1 << 19
"""Pairs of points whose distance is looked at at a time."""
Verdict = Literal["here", "unsure", "absent"]


@dataclass(frozen=True)
class Answer:
    """Answer of a scene to a query."""

    words: str
    """The query."""
    verdict: Verdict
    """Whether the seen part of the scene contains what was asked for."""
    peak: float
    """Relevance that `min_points` points reach; it decides the verdict and ranks scenes."""
    scores: Float32[Tensor, "V"]
    """Cosine between each point and the query; 0 where no view saw it."""
    relevance: Float32[Tensor, "V"]
    """Margin of the query over the contrast words at each point: 1 = as similar as the query itself, 0 = no more than a
    contrast word, or not seen."""
    answers: Bool[Tensor, "V"]
    """Points that answer the query: at least half as relevant as the peak, or `LEAST_MARGIN` less relevant than it. All
    False where the peak is that of an absent query."""
    seen: Bool[Tensor, "V"]
    """Points that have a feature. The verdict says nothing about the others."""
    nearest_class: str | None = None
    """Where the teacher knows only named classes and none is near the query, the nearest of them. The verdict is then
    unsure, however relevant a point is."""
    words_known: bool = True
    """Whether the text encoder knows the words. Where it does not, as another language or nonsense, the verdict is
    unsure."""
    scene: StoredScene | None = field(default=None, repr=False, compare=False)
    """The scene that was asked; None for bare features."""
    predictor: Any = field(default=None, repr=False, compare=False)
    """The `Predictor` that answers; None for bare features."""
    _kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What others worked out from the answer and would work out again, such as its places."""

    @property
    def coverage(self) -> float:
        """Share of the points that have a feature, 0 to 1."""
        return float(self.seen.float().mean()) if len(self.seen) else 0.0

    def save(self, path: Path | str, *, mesh: Path | str | None = None) -> None:
        """Write the answer to a file that other tools open; `docs/outputs.md` describes each kind.

        Args:
            path: File to write; its ending says what: .ply, .glb, .las, .labels.json, .npz, .json or .html.
            mesh: A triangle mesh (.ply) in the capture's coordinates, whose vertices take the values.

        Raises:
            InputError: The ending is another, or the mesh does not lie where the scene does.
            NotInstalledError: A package that writes such files is not installed.
        """
        cuao3d.save_answers([self], path, mesh=mesh)

    def show(self) -> Path:
        """Show the answer as a page with a 3D view: inside a notebook, or else in the browser.

        Returns:
            The page; it needs nothing else and may be moved.
        """
        return cuao3d.show_answers([self])


@dataclass(frozen=True)
class Questions:
    """Encoded queries, each with its contrast words."""

    words: tuple[str, ...]
    """The queries."""
    vectors: Float[Tensor, "Q C"]
    """Unit vector of each query."""
    contrast: Float[Tensor, "K C"]
    """Unit vectors of the contrast words."""
    applies: Bool[Tensor, "Q K"]
    """Which contrast words count against which query: those with another meaning."""
    nearest_class: tuple[str | None, ...]
    """For each query that no class of the teacher is near, the nearest class; see `Answer.nearest_class`."""
    words_known: tuple[bool, ...]
    """Whether the encoder knows the words of each query; see `Answer.words_known`."""

    @property
    def texts(self) -> Float[Tensor, "T C"]:
        """Vectors of the queries, then of the contrast words."""
        return torch.cat([self.vectors, self.contrast])

    @staticmethod
    def read(
        encoder: TextEncoder,
        queries: Sequence[str],
        *,
        classes: Sequence[str] = (),
        class_vectors: Float[Tensor, "N C"] | None = None,
    ) -> "Questions":
        """Encode queries.

        An encoder with a fixed vocabulary (`vectors`, as `Table` has) may lack the usual contrast words; its whole
        vocabulary is the contrast then. A contrast word that is near a query does not count against it: "a wall" would
        otherwise be compared with "a wall in a scene", and never be found.

        Args:
            encoder: Turns words into unit vectors.
            queries: The queries.
            classes: Names of all that the teacher can tell apart; none if it is not limited to classes. They limit
                nothing where the encoder has a fixed vocabulary, which may lack them.
            class_vectors: Unit vectors of the classes, where they were encoded before: hundreds take seconds.

        Raises:
            InputError: A query is blank.
        """
        if any(not query.strip() for query in queries):
            raise InputError('A question is blank; ask for something, such as "somewhere to sit".')
        vectors = encoder(list(queries))
        known: Tensor | None = getattr(encoder, "vectors", None)
        nearest: list[str | None] = [None] * len(queries)
        if classes and known is None:
            named = encoder(list(classes)) if class_vectors is None else class_vectors
            nearest = _nearest(vectors, named, classes)
        contrast = encoder(CONTRAST) if known is None else known
        distance = 1 - vectors @ contrast.T
        usual = distance.quantile(0.5, dim=1, keepdim=True) if len(contrast) else distance
        applies = (distance >= NEAR * usual) & (distance > SAME)
        return Questions(tuple(queries), vectors, contrast, applies, tuple(nearest), knows(encoder, queries, vectors))


def ask(
    features: Float[Tensor, "V C"],
    questions: Questions,
    *,
    seen: Bool[Tensor, "V"] | None = None,
    min_points: int = MIN_POINTS,
    calibration: Calibration = DEFAULT,
) -> tuple[Answer, ...]:
    """Ask a scene free-text questions.

    A cosine alone cannot say "not in this scene": some point always has the highest. So a point's score is compared
    with those of contrast words, and with what the query itself would get.

    Args:
        features: Features of points, in the space of the encoder.
        questions: The questions.
        seen: Points that have a feature; all of them unless given.
        min_points: The verdict rests on the relevance that this many points reach.
        calibration: Relevance at which verdicts change.
    """
    seen = torch.ones(len(features), dtype=torch.bool) if seen is None else seen
    cosines, relevance = _relevance(features, questions)
    relevance = relevance.where(seen.to(relevance.device)[:, None], 0)
    seen = seen.to(relevance.device)
    return tuple(
        _answer(questions, k, cosines[:, k], relevance[:, k], seen, min_points, calibration)
        for k in range(len(questions.words))
    )


def scores(features: Float[Tensor, "V C"], text: Float[Tensor, "K C"]) -> Float32[Tensor, "V K"]:
    """Return the cosine between each feature and each text; 0 for a feature of zeros.

    Args:
        features: Features of points, of any norm and precision.
        text: Vectors of words.
    """
    num_texts, num_channels, device = len(text), features.shape[1], features.device
    directions = functional.normalize(text.to(device, torch.float32), dim=1)
    if half_rows.fits(features, num_texts):
        return _scores_of_half_rows(features, directions)
    directions = functional.pad(directions, (0, 0, 0, -num_texts % LANES))
    cosines = torch.empty(len(features), num_texts, device=device)
    rows_at_a_time = max(1, CHUNK // max(num_channels, 1))

    def work(share: int, num_shares: int) -> None:
        buffer = torch.empty(rows_at_a_time, num_channels, device=device)
        for start in range(share * rows_at_a_time, len(features), num_shares * rows_at_a_time):
            part = features[start : start + rows_at_a_time]
            rows = buffer[: len(part)].copy_(part)
            norms = torch.linalg.vector_norm(rows, dim=1).clamp_(min=1e-12)
            product = torch.mm(directions, rows.T)[:num_texts]
            cosines[start : start + len(part)] = product.div_(norms).T

    in_shares(work, device)
    return cosines


def _scores_of_half_rows(rows: Tensor, directions: Tensor) -> Tensor:
    """Return the cosines (V, K) of rows in half precision with a few unit vectors; each thread takes some rows."""
    num_texts = len(directions)
    directions = functional.pad(directions, (0, 0, 0, -num_texts % half_rows.GROUP)).contiguous()
    cosines = torch.empty(len(rows), len(directions))

    def work(share: int, num_shares: int) -> None:
        part = slice(share * len(rows) // num_shares, (share + 1) * len(rows) // num_shares)
        half_rows.write_cosines(rows[part], directions, cosines[part])

    in_shares(work, rows.device)
    return cosines[:, :num_texts].contiguous()


def classify(class_scores: Float[Tensor, "V K"]) -> Int64[Tensor, "V"]:
    """Return the class with the highest score; 255 where all scores are 0, which means that there is no feature."""
    return torch.where((class_scores != 0).any(dim=1), class_scores.argmax(dim=1), UNLABELLED)


def heat(values: Float[Tensor, "V"]) -> Float[Tensor, "V"]:
    """Stretch relevance to [0, 1] for display: from the median (or 0, if that is higher) to the 99th percentile."""
    if not len(values):
        return values
    ordered = values.sort().values
    cold, hot = ordered[len(values) // 2].clamp(min=0), ordered[int(0.99 * (len(values) - 1))]
    return ((values - cold) / (hot - cold).clamp(min=1e-6)).clamp(0, 1)


def parts(points: Float[Tensor, "P 3"], *, radius: float = 0.1, min_cells: int = MIN_POINTS) -> Int64[Tensor, "P"]:
    """Group points into connected parts; those in one cell of edge `CELL` count as one, at their mean.

    Args:
        points: Positions of the points that answer a query, metres.
        radius: Cells whose points lie no farther apart than this are connected, metres.
        min_cells: Smaller groups are ignored.

    Returns:
        The part of each point, 0 being the largest; -1 for points in no part.
    """
    if not len(points):
        return torch.zeros(0, dtype=torch.int64)
    positions = points.cpu().double()
    corner = (positions.amin(dim=0) / CELL).floor() * CELL  # far from the origin there are no voxels
    voxels = voxelize(positions - corner, CELL)
    means = group_mean(positions, voxels.voxel_of_point, len(voxels.coordinates))
    group_of_cell = _connected(means, radius)
    sizes = torch.bincount(group_of_cell)
    by_size = torch.argsort(sizes, descending=True, stable=True)
    part_of_group = torch.empty_like(by_size)
    part_of_group[by_size] = torch.arange(len(sizes))
    part_of_group[sizes < min_cells] = -1
    return part_of_group[group_of_cell[voxels.voxel_of_point]]


def _connected(points: Float64[Tensor, "N 3"], radius: float) -> Int64[Tensor, "N"]:
    """Group points that steps of at most a radius join; groups are in the order of their first points.

    Time and memory are linear in the points, however dense: points in one block, a cube whose diagonal is the radius,
    are joined anyway. So blocks are joined, the nearest first; the distances of two blocks' points are measured only if
    nothing has joined the blocks before.
    """
    blocks = voxelize(points - points.amin(dim=0), radius / math.sqrt(3) * (1 - 1e-9))
    members = _Members.of(points, blocks.voxel_of_point)
    keys = (packing := Packing.of(blocks.coordinates, margin=2)).keys(blocks.coordinates)
    group_of_block = torch.arange(len(keys))
    steps = [step for step in product(range(-2, 3), repeat=3) if step > (0, 0, 0)]
    for step in sorted(steps, key=lambda step: sum(map(abs, step))):
        other_keys = packing.keys(blocks.coordinates + torch.tensor(step))
        other = torch.searchsorted(keys, other_keys).clamp(max=len(keys) - 1)
        apart = (keys[other] == other_keys) & (group_of_block != group_of_block[other])
        one = torch.nonzero(apart).squeeze(1)
        near = members.any_within(radius, one, other[one])
        one, other = group_of_block[one[near]], group_of_block[other[one[near]]]
        num_groups = int(group_of_block.max()) + 1
        edges = coo_matrix((np.ones(len(one)), (one, other)), shape=(num_groups, num_groups))
        joined = torch.from_numpy(connected_components(edges, directed=False)[1].astype(np.int64))
        group_of_block = joined[group_of_block]
    group_of_point = group_of_block[blocks.voxel_of_point]
    first = torch.full((int(group_of_block.max()) + 1,), len(points))
    first.scatter_reduce_(0, group_of_point, torch.arange(len(points)), "amin")
    return first.argsort().argsort()[group_of_point]


class _Members(NamedTuple):
    """Points, ordered by the block that they lie in."""

    points: Float64[Tensor, "N 3"]
    start: Int64[Tensor, "B"]
    """First point of each block."""
    size: Int64[Tensor, "B"]
    """Number of points of each block."""

    @staticmethod
    def of(points: Tensor, block_of_point: Tensor) -> "_Members":
        size = torch.bincount(block_of_point)
        return _Members(points[torch.argsort(block_of_point)], size.cumsum(dim=0) - size, size)

    def any_within(self, radius: float, one: Int64[Tensor, "P"], other: Int64[Tensor, "P"]) -> Bool[Tensor, "P"]:
        """Say of each pair of blocks whether a point of one lies within the radius of a point of the other."""
        a, b = self.points[self.start[one]], self.points[self.start[other]]
        near = (a - b).square().sum(dim=1) <= radius**2  # the first ones mostly do; else all pairs are looked at
        rest = torch.nonzero(~near).squeeze(1)
        one, other = one[rest], other[rest]
        num_pairs = self.size[one] * self.size[other]
        end = num_pairs.cumsum(dim=0)
        first = 0
        while first < len(one):
            before = int(end[first - 1]) if first else 0
            last = max(first + 1, int(torch.searchsorted(end, before + PAIRS, right=True)))
            part = slice(first, last)
            pair = torch.repeat_interleave(num_pairs[part])
            within = torch.arange(len(pair)) - (end[part] - num_pairs[part] - before)[pair]
            width = self.size[other[part]][pair]
            a = self.points[self.start[one[part]][pair] + within // width]
            b = self.points[self.start[other[part]][pair] + within % width]
            near[rest[first + pair[(a - b).square().sum(dim=1) <= radius**2]]] = True
            first = last
        return near


def _relevance(features: Tensor, questions: Questions) -> tuple[Tensor, Tensor]:
    """Return cosine and relevance (V, Q) of features, a block of rows at a time."""
    num_asked, texts = len(questions.words), questions.texts
    cosines, relevance = torch.empty(2, num_asked, len(features), device=features.device)  # each query in one piece
    rows_at_a_time = max(1, NUM_SIMILAR // len(texts))
    for start in range(0, len(features), rows_at_a_time):
        rows = slice(start, start + rows_at_a_time)
        similar = scores(features[rows], texts)
        cosines[:, rows], relevance[:, rows] = similar[:, :num_asked].T, relevance_of(similar, questions).T
    return cosines.T, relevance.T


def relevance_of(cosines: Float[Tensor, "V T"], questions: Questions) -> Float32[Tensor, "V Q"]:
    """Return the relevance of each point to each query; see `Answer.relevance`.

    Args:
        cosines: Cosine of each point with each of `Questions.texts`.
        questions: The questions.
    """
    num_asked, device = len(questions.words), cosines.device
    similar = (questions.vectors @ questions.contrast.T).where(questions.applies, -torch.inf)
    of_itself = 1 - functional.pad(similar, (0, 1), value=-torch.inf).amax(dim=1)
    of_itself = of_itself.where(of_itself.isfinite(), 1).to(device)
    asked, contrast = torch.split(cosines, [num_asked, len(questions.contrast)], dim=1)
    relevance = torch.empty(len(cosines), num_asked, device=device)
    patterns, pattern_of_query = torch.unique(questions.applies, dim=0, return_inverse=True)
    for index, applies in enumerate(patterns.to(device)):  # most queries have the same contrast words
        own = torch.nonzero(pattern_of_query == index)[:, 0].to(device)
        limit = contrast[:, applies].amax(dim=1, keepdim=True) if bool(applies.any()) else 0.0
        relevance[:, own] = (asked[:, own] - limit) / of_itself[own]
    return relevance


def peaks(relevance: Float[Tensor, "V Q"], min_points: int = MIN_POINTS) -> Float[Tensor, "Q"]:
    """Return the relevance that a number of points reach, for each query; 0 where there are fewer points.

    Args:
        relevance: Relevance of the points that have a feature.
        min_points: The number of points.
    """
    if len(relevance) < min_points:
        return relevance.new_zeros(relevance.shape[1])
    return relevance.T.contiguous().topk(min_points, dim=1).values[:, -1]


def _answer(
    questions: Questions,
    k: int,
    cosines: Tensor,
    relevance: Tensor,
    seen: Tensor,
    min_points: int,
    calibration: Calibration,
) -> Answer:
    """Judge the cosines and relevance (V,) of the query with an index."""
    peak = peaks(relevance[seen][:, None], min_points).item()
    verdict: Verdict = "here" if peak >= calibration.here else "absent" if peak < calibration.absent else "unsure"
    nearest, is_known = questions.nearest_class[k], questions.words_known[k]
    verdict = verdict if nearest is None and is_known else "unsure"
    least = math.inf if peak < calibration.absent else min(peak / 2, peak - LEAST_MARGIN)
    answers = seen & (relevance >= least)
    return Answer(questions.words[k], verdict, peak, cosines, relevance, answers, seen, nearest, is_known)


def _nearest(queries: Float[Tensor, "Q C"], classes: Float[Tensor, "K C"], names: Sequence[str]) -> list[str | None]:
    """Return the nearest class of each query that no class is near; None for the others."""
    cosine, index = (queries @ classes.T).max(dim=1)
    return [None if near >= NEAR_CLASS else names[k] for near, k in zip(cosine.tolist(), index.tolist(), strict=True)]
