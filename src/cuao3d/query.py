"""Queries: features and words -> scores, labels, heat, parts, and an honest "not in this scene"."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from cuao3d.errors import InputError
from cuao3d.scene import UNLABELLED
from cuao3d.store import Store
from cuao3d.text import TextEncoder

CONTRAST = ("object", "things", "stuff", "texture", "a wall in a scene", "a floor in a scene")
"""What a score must beat to say anything: words that fit anything (LERF's canonical phrases), and what most points of a
room are."""

HERE, ABSENT = 0.3, 0.05
"""Relevance from which a query is in the scene, and below which it is not; between them nobody can tell.

How often they are right on lifted features: `scripts/calibrate_verdicts.py`.
"""

MIN_POINTS = 20
"""Points that must answer a query before it is said to be in the scene."""

CHUNK = 1 << 20
"""Feature values looked at at a time, so that a row is read from memory once for its product and its norm."""


Verdict = Literal["here", "unsure", "absent"]


@dataclass(frozen=True)
class Answer:
    """What a scene says to a query."""

    words: str
    """The query."""
    verdict: Verdict
    """Whether the scene holds what was asked for."""
    peak: float
    """Relevance that `min_points` points reach; the verdict rests on it, and scenes are compared by it."""
    scores: Float32[Tensor, "V"]
    """Cosine between each point and the query."""
    relevance: Float32[Tensor, "V"]
    """How far each point prefers the query to words that fit anything: 1 = says just this, 0 = no more than these."""
    answers: Bool[Tensor, "V"]
    """Points that answer the query: at least half as relevant as the best ones. None if it is absent."""


def ask(
    features: Float[Tensor, "V C"], encoder: TextEncoder, queries: Sequence[str], *, min_points: int = MIN_POINTS
) -> tuple[Answer, ...]:
    """Ask a scene free-text questions.

    A cosine alone cannot say "not in this scene": some point always has the highest. So a point's score is compared
    with those of words that fit anything, and with what the query itself would get.

    Args:
        features: Features of points, in the space of the encoder.
        encoder: Turns words into vectors of that space.
        queries: The questions.
        min_points: The verdict rests on the relevance that this many points reach.
    """
    texts = encoder([*queries, *CONTRAST])
    all_scores = scores(features, texts)
    asked, contrast = torch.split(all_scores, [len(queries), len(CONTRAST)], dim=1)
    of_itself = 1 - (texts[: len(queries)] @ texts[len(queries) :].T).amax(dim=1)
    relevance = (asked - contrast.amax(dim=1, keepdim=True)) / of_itself.clamp(min=1e-3).to(asked.device)
    return tuple(_answer(words, asked[:, k], relevance[:, k], min_points) for k, words in enumerate(queries))


def askable_teacher(store: Store) -> str:
    """Return the first teacher of a store whose features understand words; its card names the text encoder.

    Raises:
        InputError: There is none.
    """
    askable = [name for name, card in store.teachers.items() if card.text is not None]
    if not askable:
        raise InputError(
            f"{store.path} cannot be asked with words: none of its teachers ({', '.join(store.teachers) or 'none'}) "
            "has a text encoder. Make it again with one that has, such as mini-lseg."
        )
    return askable[0]


def scores(features: Float[Tensor, "V C"], text: Float[Tensor, "K C"]) -> Float32[Tensor, "V K"]:
    """Return the cosine between each feature and each text; 0 for a feature of zeros.

    Args:
        features: Features of points, of any length and precision.
        text: Vectors of words.
    """
    directions = functional.normalize(text.to(features.device, torch.float32), dim=1).T.contiguous()
    cosines = torch.empty(len(features), len(text), device=features.device)
    rows_at_a_time = max(1, CHUNK // features.shape[1])
    for start in range(0, len(features), rows_at_a_time):
        rows = features[start : start + rows_at_a_time].float()
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-12)
        cosines[start : start + rows_at_a_time] = (rows @ directions) / norms
    return cosines


def classify(class_scores: Float[Tensor, "V K"]) -> Int64[Tensor, "V"]:
    """Return the class with the highest score; 255 where all scores are 0, as they are without a feature."""
    return torch.where((class_scores != 0).any(dim=1), class_scores.argmax(dim=1), UNLABELLED)


def heat(values: Float[Tensor, "V"]) -> Float[Tensor, "V"]:
    """Stretch relevance over [0, 1] for display: the hottest hundredth is hot; the median and all below 0 are cold."""
    if not len(values):
        return values
    ordered = values.sort().values
    cold, hot = ordered[len(values) // 2].clamp(min=0), ordered[int(0.99 * (len(values) - 1))]
    return ((values - cold) / (hot - cold).clamp(min=1e-6)).clamp(0, 1)


def parts(points: Float[Tensor, "P 3"], *, radius: float = 0.1, min_points: int = MIN_POINTS) -> Int64[Tensor, "P"]:
    """Group points into connected parts.

    Args:
        points: Positions of the points that answer a query, metres.
        radius: Points no farther apart than this are connected, metres.
        min_points: Smaller groups are no parts.

    Returns:
        The part of each point, the largest part being 0; -1 for points of none.
    """
    if not len(points):
        return torch.zeros(0, dtype=torch.int64)
    pairs = cKDTree(points.cpu().numpy()).query_pairs(radius, output_type="ndarray")
    edges = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(len(points), len(points)))
    group_of_point = torch.from_numpy(connected_components(edges, directed=False)[1].astype(np.int64))
    sizes = torch.bincount(group_of_point)
    by_size = torch.argsort(sizes, descending=True, stable=True)
    part_of_group = torch.empty_like(by_size)
    part_of_group[by_size] = torch.arange(len(sizes))
    part_of_group[sizes < min_points] = -1
    return part_of_group[group_of_point]


def _answer(words: str, of_points: Tensor, relevance: Tensor, min_points: int) -> Answer:
    """Judge the scores and relevance (V,) of a query."""
    peak = relevance.topk(min_points).values[-1].item() if len(relevance) >= min_points else 0.0
    verdict: Verdict = "here" if peak >= HERE else "absent" if peak < ABSENT else "unsure"
    answers = relevance >= (math.inf if verdict == "absent" else peak / 2)
    return Answer(words, verdict, peak, of_points, relevance, answers)
