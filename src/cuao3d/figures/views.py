"""The ambiguity study, drawn: an object as single views see it, and where the views of a scene disagree."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from cuao3d.colors import NOTHING
from cuao3d.figures.ambiguity import Ambiguity, Crop, rank_correlation
from cuao3d.figures.panels import (
    HEIGHT,
    TEXT,
    WIDTH,
    Looks,
    Picture,
    begin_figure,
    class_legend,
    draw_words,
    entitle,
    write_words,
)
from cuao3d.history import PALETTE
from cuao3d.labels import LabelSet
from cuao3d.store import StoredScene

EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Disagreement is grouped by these; points whose views all agree are a group of their own."""

MAP = "cividis"
"""Colours of disagreement, from none to all: they look alike to everybody."""

RIGHT, WRONG = (0.70, 0.78, 0.86), (0.84, 0.37, 0.0)


def draw_crops(crops: Sequence[Crop], label_set: LabelSet, title: str) -> Figure:
    """Draw an object as single views see it: the photographs, and what each takes its points for.

    Args:
        crops: As of `ambiguity.crops`.
        label_set: The classes.
        title: Title of the figure.
    """
    if not crops:
        return draw_words(title, "No object is seen by two views that name it differently.")
    legend = class_legend(label_set, [crop.classes for crop in crops])
    figure = begin_figure(title, len(crops) * WIDTH, 2 * (WIDTH + 0.2), legend=legend)
    axes = figure.subplots(2, len(crops), squeeze=False)
    colors = torch.cat([label_set.colors, torch.full((256 - len(label_set), 3), NOTHING)])
    for column, crop in enumerate(crops):
        entitle(axes[0, column], f"View {crop.frame}", _said(crop, label_set))
        axes[0, column].imshow(crop.image)
        axes[1, column].imshow(0.35 * crop.image / 255 + 0.6)
        x, y = crop.pixels.numpy().T
        size = min(30.0, max(5.0, 8000 / max(len(x), 1)))
        axes[1, column].scatter(x, y, c=colors[crop.classes].numpy(), s=size, edgecolors="#333333", linewidths=0.25)
        for axis in axes[:, column]:
            axis.set_axis_off()
            axis.set_xlim(-0.5, crop.image.shape[1] - 0.5)
            axis.set_ylim(crop.image.shape[0] - 0.5, -0.5)
    return figure


def draw_disagreement(
    scene: StoredScene,
    ambiguity: Ambiguity,
    title: str,
    *,
    is_wrong: Bool[Tensor, "S"] | None = None,
    is_labelled: Bool[Tensor, "S"] | None = None,
    looks: Looks | None = None,
) -> Figure:
    """Draw where the views of a scene disagree and, with labels, where it is named wrongly and how both go together.

    Args:
        scene: The scene.
        ambiguity: What its views say.
        title: Title of the figure.
        is_wrong: Whether the mean of all views names each sample wrongly; None where there are no labels.
        is_labelled: Whether each sample has a label; the others are not counted.
        looks: Views of the scene, if they are known.
    """
    looks = looks or Looks(scene)
    has_labels = is_wrong is not None and is_labelled is not None and bool(is_labelled.any())
    figure = begin_figure(title, (3 if has_labels else 2) * WIDTH, HEIGHT + 0.8)
    axes = figure.subplots(1, 3 if has_labels else 2)
    known, of_point = ~ambiguity.disagreement.isnan(), scene.sample_of_point
    if not known.any():
        return draw_words(title, "No point is seen by two views, so nothing can disagree.")
    shades = torch.from_numpy(colormaps[MAP](ambiguity.disagreement.nan_to_num().numpy())[:, :3]).float()
    shades[~known] = NOTHING
    corner, above = looks(shades[of_point])
    for axis in axes[:2]:
        axis.set_axis_off()
        axis.set_anchor("N")
    axes[0].imshow(_with_room(corner))
    entitle(axes[0], "Disagreement between views", "chance that two views name it differently")
    _draw_scale(figure, axes[0])
    if not has_labels:
        axes[1].imshow(_with_room(above))
        entitle(axes[1], "The same from above", "light grey: seen by fewer than two views")
        return figure
    assert is_wrong is not None
    assert is_labelled is not None
    axes[1].imshow(_with_room(looks(_error_colors(is_wrong, is_labelled)[of_point])[0]))
    entitle(axes[1], "Errors of all views together", "orange: wrong; blue: right; grey: no label")
    _draw_bars(axes[2], ambiguity.disagreement[is_labelled], is_wrong[is_labelled])
    return figure


def errors_by_disagreement(
    disagreement: Float[Tensor, "S"], is_wrong: Bool[Tensor, "S"]
) -> list[tuple[str, int, float]]:
    """Count errors where views agree and where they do not.

    Returns:
        For each group of samples: the range of disagreement, the number of samples, and the share that is wrong.
    """
    known = ~disagreement.isnan()
    values, wrong = disagreement[known], is_wrong[known].float()
    groups = [("none", values == 0)]
    groups += [(f"{low:g}–{high:g}", (values > low) & (values <= high)) for low, high in pairwise(EDGES)]
    return [(name, int(group.sum()), float(wrong[group].mean())) for name, group in groups if group.any()]


def _with_room(picture: Picture) -> UInt8[np.ndarray, "h W 3"]:
    """Add white below a picture, for the scale."""
    return np.pad(picture, ((0, len(picture) // 5), (0, 0), (0, 0)), constant_values=255)


def _draw_scale(figure: Figure, axis: Any) -> None:
    """Say below a picture what its colours mean."""
    place = axis.inset_axes((0.15, 0.11, 0.7, 0.04))
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), MAP), cax=place, orientation="horizontal")
    bar.ax.tick_params(labelsize=TEXT - 1)


def _draw_bars(axis: Axes, disagreement: Tensor, is_wrong: Tensor) -> None:
    """Draw the share of errors of points by the disagreement of their views."""
    groups = errors_by_disagreement(disagreement, is_wrong)
    correlation = rank_correlation(disagreement, is_wrong)
    if not groups:
        axis.set_axis_off()
        write_words(axis, "No labelled point is seen by two views.")
        return
    said = "one of the two is the same everywhere" if correlation is None else f"rank correlation {correlation:.2f}"
    entitle(axis, "More disagreement, more errors?", f"{said}; n: points")
    shares = 100 * np.array([share for _, _, share in groups])
    axis.bar(range(len(groups)), shares, color=PALETTE[0], alpha=0.8)
    for index, (_, count, _) in enumerate(groups):
        axis.annotate(
            f"{count:,}", (index, shares[index]), (0, 3), textcoords="offset points", ha="center", fontsize=TEXT - 2
        )
    axis.set_xticks(range(len(groups)), [text for text, _, _ in groups], fontsize=TEXT - 1.5)
    axis.set_ylim(0, max(shares.max() * 1.15, 1))
    axis.set_xlabel("disagreement between views", fontsize=TEXT)
    axis.set_ylabel("percent named wrongly", fontsize=TEXT)
    axis.tick_params(axis="y", labelsize=TEXT - 1)
    axis.spines[["top", "right"]].set_visible(False)


def _error_colors(is_wrong: Tensor, is_labelled: Tensor) -> Float[Tensor, "S 3"]:
    colors = torch.where(is_wrong[:, None], torch.tensor(WRONG), torch.tensor(RIGHT))
    return torch.where(is_labelled[:, None], colors, NOTHING)


def _said(crop: Crop, label_set: LabelSet) -> str:
    """Say what a view takes most points of an object for."""
    names = [*label_set.names, *["none"] * (256 - len(label_set))]
    rows, counts = torch.unique(crop.classes, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:2]
    total = max(len(crop.classes), 1)
    shares = {names[int(rows[one])]: 100 * int(counts[one]) / total for one in order}
    return ", ".join(f"{name} {share:.0f} %" for name, share in shares.items() if share >= 1)
