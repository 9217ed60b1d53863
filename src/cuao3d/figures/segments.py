"""What features tell apart without words: K-Means segments on the scene, and a map of the features in the plane."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn import functional

from cuao3d.figures.palette import palette
from cuao3d.figures.panels import (
    TEXT,
    WIDTH,
    Looks,
    Panel,
    begin_figure,
    draw_panels,
    draw_words,
    entitle,
    grid,
    write_words,
)
from cuao3d.store import StoredScene

NUM_SEGMENTS = 8
"""Segments of a figure: so many colours can be told apart by everybody."""

NUM_PRINCIPAL = 32
"""Principal directions of features in which they are clustered."""

NUM_EMBEDDED = 4000
"""Rows of features in a map of them at most."""

NEIGHBOURS = 15
"""Neighbours of a row that UMAP keeps near."""


@dataclass(frozen=True, eq=False)
class Described:
    """A scene as somebody describes it."""

    name: str
    """Who, for the reader."""
    features: Float[Tensor, "V C"]
    """Rows of features."""
    row_of_point: Int64[Tensor, "N"]
    """Which row describes each point; -1 for none."""


@dataclass(frozen=True, eq=False)
class Segments:
    """What features tell apart in a scene."""

    name: str
    """Whose features."""
    of_point: Int64[Tensor, "N"]
    """Segment of each point; -1 for none."""
    embedded: Float[Tensor, "R D"]
    """Some rows in a plane, or in space, like rows near each other."""
    of_row: Int64[Tensor, "R"]
    """Segment of these rows."""
    method: Literal["UMAP", "PCA"] = "PCA"
    """How they were laid out."""
    nothing: str = ""
    """Why there is nothing to tell apart; empty if there is."""


def segment(
    described: Sequence[Described], num_segments: int = NUM_SEGMENTS, *, num_dims: Literal[2, 3] = 2, seed: int = 0
) -> list[Segments]:
    """Group the points of a scene by several kinds of features; segments that cover the same points have one number.

    Args:
        described: Kinds of features of one scene; the segments of the first are those that others are matched with.
        num_segments: Segments of each.
        num_dims: Dimensions of the map.
        seed: Of K-Means and UMAP.
    """
    found: list[Segments] = []
    first: Tensor | None = None
    for one in described:
        if why := _nothing(one):
            nowhere = torch.full_like(one.row_of_point, -1)
            found.append(Segments(one.name, nowhere, torch.zeros(0, num_dims), nowhere[:0], nothing=why))
            continue
        of_row = clusters(one.features, num_segments, seed=seed)
        of_point = spread(of_row, one.row_of_point, -1)
        first, number = (of_point, torch.arange(num_segments)) if first is None else (first, matching(of_point, first))
        rows = torch.arange(0, len(of_row), max(1, math.ceil(len(of_row) / NUM_EMBEDDED)))
        embedded, method = embed(one.features[rows], num_dims, seed=seed)
        matched = torch.where(of_point >= 0, number[of_point], -1)
        found.append(Segments(one.name, matched, embedded, number[of_row[rows]], method))
    return found


def draw_segments(
    scene: StoredScene, segments: Sequence[Segments], title: str, *, looks: Looks | None = None
) -> Figure:
    """Draw a scene from a corner and from above, coloured by segment, once for each kind of features.

    Args:
        scene: The scene.
        segments: As of `segment`.
        title: Title of the figure.
        looks: Views of the scene, if they are known.
    """
    looks = looks or Looks(scene)
    panels = [Panel(one.name, (one.nothing, "") if one.nothing else looks(palette()[one.of_point])) for one in segments]
    return draw_panels(title, panels)


def draw_maps(segments: Sequence[Segments], title: str) -> Figure:
    """Draw the map of each kind of features: a dot is a point of the scene, in the colour of its segment.

    Args:
        segments: As of `segment`.
        title: Title of the figure.
    """
    if not segments:
        return draw_words(title, "There is nothing to show.")
    across, deep = grid(len(segments))
    figure = begin_figure(title, across * WIDTH, deep * WIDTH)
    for index, one in enumerate(segments):
        in_space = one.embedded.shape[1] == 3
        axis: Any = figure.add_subplot(deep, across, index + 1, **({"projection": "3d"} if in_space else {}))
        entitle(axis, one.name)
        if one.nothing:
            axis.set_axis_off()
            write_words(axis, one.nothing)
            continue
        colors = palette()[one.of_row].numpy()
        axis.scatter(*one.embedded.T.numpy(), c=colors, s=5, linewidths=0, alpha=0.7)
        axis.set_xlabel(f"{one.method} 1", fontsize=TEXT, color="#555555")
        axis.set_ylabel(f"{one.method} 2", fontsize=TEXT, color="#555555")
        axis.tick_params(labelbottom=False, labelleft=False, length=0)
        for spine in axis.spines.values():
            spine.set_color("#bbbbbb")
    return figure


def clusters(features: Float[Tensor, "V C"], num_clusters: int = 12, *, seed: int = 0) -> Int64[Tensor, "V"]:
    """Group features by K-Means of their directions in their leading principal subspace; segment 0 is the largest."""
    projected = functional.normalize(principal(features, NUM_PRINCIPAL), dim=1).numpy()
    k = min(num_clusters, len(projected))
    sample = projected[:: max(1, len(projected) // 20_000)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # there may be fewer different features than segments
        means = MiniBatchKMeans(k, batch_size=4096, n_init=3, random_state=seed).fit(sample)
    of_row = torch.from_numpy(means.predict(projected)).long()
    by_size = torch.bincount(of_row, minlength=k).argsort(descending=True, stable=True)
    return by_size.argsort()[of_row]


def embed(
    features: Float[Tensor, "R C"], num_dims: int = 2, *, seed: int = 0
) -> tuple[Float[Tensor, "R D"], Literal["UMAP", "PCA"]]:
    """Lay the directions of features, as `clusters` groups them, out by UMAP (McInnes et al., 2018).

    Their principal components do instead where the package umap-learn is not installed, or for very few rows.

    Args:
        features: Rows of features.
        num_dims: Dimensions of the map.
        seed: Of UMAP.

    Returns:
        Where each row lies, in no unit, and how that was found.
    """
    directions = functional.normalize(principal(features, NUM_PRINCIPAL), dim=1)
    try:
        from umap import UMAP
    except ImportError:
        UMAP = None
    if UMAP is None or len(features) <= NEIGHBOURS:
        return _padded(principal(directions, num_dims), num_dims), "PCA"
    # Its spectral start fails, and says so, where features tell little apart; a seed takes one job.
    lay_out = UMAP(n_components=num_dims, n_neighbors=NEIGHBOURS, init="pca", random_state=seed, n_jobs=1)
    laid_out = lay_out.fit_transform(directions.numpy())
    return torch.as_tensor(laid_out).float(), "UMAP"


def pca_colors(features: Float[Tensor, "V C"]) -> Float[Tensor, "V 3"]:
    """Colour features by their three leading principal components, each stretched over its middle 96 %."""
    components = _padded(principal(features, 3), 3)
    ordered = components.sort(dim=0).values
    low, high = ordered[int(0.02 * (len(ordered) - 1))], ordered[int(0.98 * (len(ordered) - 1))]
    return 0.08 + 0.87 * ((components - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def principal(features: Float[Tensor, "V C"], num_components: int) -> Float[Tensor, "V K"]:
    """Project features on the principal directions of a thousand of them, spread evenly over the rows."""
    sample = features[:: max(1, len(features) // 1024)].float()
    mean = sample.mean(dim=0)
    directions = torch.linalg.svd(sample - mean, full_matrices=False).Vh[:num_components].T
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    return torch.cat([(rows.float() - mean) @ directions for rows in torch.split(features, 1 << 14)])


def spread(of_row: Tensor, row_of_point: Int64[Tensor, "N"], nothing: float) -> Tensor:
    """Give each point the value of its row, or `nothing` where it has none."""
    values = of_row[row_of_point.clamp(min=0)]
    values[row_of_point < 0] = nothing
    return values


def matching(segment: Int64[Tensor, "N"], other: Int64[Tensor, "N"]) -> Int64[Tensor, "K"]:
    """Return the number in another segmentation of each segment, so that matched ones share most points (Kuhn, 1955).

    Args:
        segment: Segment of each point; -1 for none.
        other: The other one's.
    """
    both = (segment >= 0) & (other >= 0)
    size = int(max(segment.max(), other.max())) + 1
    overlap = torch.bincount(segment[both] * size + other[both], minlength=size * size).reshape(size, size)
    return torch.from_numpy(linear_sum_assignment(overlap.numpy(), maximize=True)[1])


def alike(segment: Int64[Tensor, "N"], other: Int64[Tensor, "N"]) -> Int64[Tensor, "N"]:
    """Renumber the segments of points as those of another segmentation that they overlap most."""
    return torch.where(segment >= 0, matching(segment, other)[segment], -1)


def of_lifted(scene: StoredScene, teacher: str) -> Described:
    """Return a scene as a teacher's lifted features describe it."""
    row_of_sample = scene.spread(torch.arange(len(scene.seen_samples)), fill=-1)
    return Described(teacher, scene.features(teacher), row_of_sample[scene.sample_of_point])


def _padded(components: Tensor, num_dims: int) -> Tensor:
    """Return components with zeros for those that narrow features do not have."""
    return functional.pad(components, (0, max(0, num_dims - components.shape[1])))[:, :num_dims]


def _nothing(described: Described) -> str:
    """Say why features tell nothing apart; empty if they do."""
    features = described.features
    if not len(features):
        return "No view saw anything of this scene."
    if torch.equal(features.amin(dim=0), features.amax(dim=0)):
        return "All points have the same features: there is nothing to tell apart."
    return ""
