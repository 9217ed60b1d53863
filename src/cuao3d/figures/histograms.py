"""How the numbers in each teacher's lifted features are distributed over the scenes of a store."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.figure import Figure
from torch import Tensor

from cuao3d.figures.panels import HEIGHT, TEXT, WIDTH, begin_figure, draw_words, entitle, grid, write_words
from cuao3d.history import PALETTE
from cuao3d.progress import OnCount
from cuao3d.scene import Split
from cuao3d.store import Store

NUM_ROWS = 20_000
"""Rows of features that are looked at, at most, of all scenes together."""

NUM_BINS = 80

MIDDLE = (0.01, 0.99)
"""The outermost values on each side are not drawn, by these quantiles: a few would make the rest a line."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """How the values of a teacher's features are distributed."""

    teacher: str
    """Name of the teacher."""
    num_rows: int
    """Rows that were looked at."""
    num_channels: int
    """Values of each row."""
    mean: float
    """Mean of all values; NaN of none."""
    deviation: float
    """Their standard deviation."""
    edges: Float64[Tensor, "edges"]
    """Edges of the bins; the middle 98 % of the values lie between the outermost."""
    share: Float64[Tensor, "B"]
    """Share of the values in each bin, 0 to 1."""
    centred: Float64[Tensor, "B"]
    """The same once the mean of each channel is taken away, which is what a demeaned loss compares."""


def feature_histograms(
    store: Store,
    split: Split | None = "train",
    *,
    num_rows: int = NUM_ROWS,
    seed: int = 0,
    progress: OnCount | None = None,
) -> list[Histogram]:
    """Count the values of each teacher's features, scene by scene; of all scenes only a sample of rows is kept.

    Args:
        store: Scenes that were lifted.
        split: Split to look at; None for all scenes.
        num_rows: Rows in all, at most: equally many of each scene, drawn at random, the same for every teacher.
        seed: Of the draw.
        progress: Told after each scene.
    """
    names, rows = store.names(split), {teacher: list[Tensor]() for teacher in store.teachers}
    generator = torch.Generator().manual_seed(seed)
    for done, name in enumerate(names, start=1):
        scene = store[name]
        drawn = torch.randperm(len(scene.seen_samples), generator=generator)[: math.ceil(num_rows / len(names))]
        for teacher, kept in rows.items():
            kept.append(scene.features(teacher)[drawn].float())
        if progress:
            progress(done, len(names))
    return [_count(teacher, torch.cat(kept)) for teacher, kept in rows.items() if kept]


def draw_histograms(histograms: Sequence[Histogram], title: str) -> Figure:
    """Draw how the features of each teacher are distributed.

    Args:
        histograms: As of `feature_histograms`.
        title: Title of the figure.
    """
    if not histograms:
        return draw_words(title, "There are no lifted features to look at.")
    across, deep = grid(len(histograms))
    legend = [("as lifted", PALETTE[0]), ("without the mean of each channel", PALETTE[1])]
    figure = begin_figure(title, across * WIDTH, deep * (HEIGHT + 0.4), legend=legend)
    for index, one in enumerate(histograms):
        axis = figure.add_subplot(deep, across, index + 1)
        entitle(axis, one.teacher, f"{one.num_rows:,} points × {one.num_channels} numbers")
        if one.num_rows == 0 or one.deviation == 0:
            axis.set_axis_off()
            same = "No view saw anything." if one.num_rows == 0 else f"Every number is {one.mean:g}."
            write_words(axis, same)
            continue
        edges = one.edges.numpy()
        axis.stairs(100 * one.share.numpy(), edges, fill=True, color=PALETTE[0], alpha=0.55)
        axis.stairs(100 * one.centred.numpy(), edges, color=PALETTE[1], linewidth=1.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel(f"value (mean {one.mean:.3g}, spread {one.deviation:.3g})", fontsize=TEXT)
        axis.tick_params(labelsize=TEXT - 1)
        axis.locator_params(axis="x", nbins=5)
        if index % across == 0:
            axis.set_ylabel("percent of the numbers", fontsize=TEXT)
    return figure


def _count(teacher: str, rows: Tensor) -> Histogram:
    """Count the values of rows."""
    if not rows.numel():
        empty, even = torch.zeros(NUM_BINS).double(), torch.linspace(0, 1, NUM_BINS + 1).double()
        return Histogram(teacher, len(rows), rows.shape[1], math.nan, math.nan, even, empty, empty)
    values, centred = rows.double().numpy(), (rows - rows.mean(dim=0)).double().numpy()
    low, high = np.quantile(np.concatenate([values, centred]), MIDDLE)
    edges = np.linspace(low, high if high > low else low + 1, NUM_BINS + 1)
    shares = [torch.from_numpy(np.histogram(one, edges)[0] / one.size) for one in (values, centred)]
    mean, deviation = float(values.mean()), float(values.std())
    return Histogram(teacher, len(rows), rows.shape[1], mean, deviation, torch.from_numpy(edges), shares[0], shares[1])
