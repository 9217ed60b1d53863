"""Points in the colours of a layer of the viewer: classes with a legend, numbers from pale to deep."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from cuao3d.colors import NOTHING, UNSEEN, class_colors
from cuao3d.geometry import voxelize
from cuao3d.labels import LabelSet
from cuao3d.scene import UNLABELLED
from cuao3d.store import StoredScene

PALE, DEEP = torch.tensor([0.93, 0.93, 0.95]), torch.tensor([0.05, 0.2, 0.45])
"""Colours of the smallest and the largest number, where a layer shows numbers."""


@dataclass(frozen=True, eq=False)
class Painted:
    """The points of a scene in the colours of a layer."""

    colors: Float32[Tensor, "M 3"]
    """RGB of each point that is drawn, in [0, 1]."""
    note: str = ""
    """What is shown, in words."""
    entry_of_point: Int64[Tensor, "M"] | None = None
    """Which entry of the legend each point belongs to; -1: none. None where a layer has no legend."""
    legend: tuple[tuple[str, tuple[float, float, float]], ...] = ()
    """Names and colours; only of what there is."""
    values: Float32[Tensor, "M"] | None = None
    """The number that a colour stands for; NaN where there is none."""


def paint_classes(of_point: Int64[Tensor, "M"], classes: LabelSet, note: str) -> Painted:
    """Paint classes; those that occur are in the legend, the most frequent first.

    Args:
        of_point: Class of each point, a row of the label set; 255 for none.
        classes: The label set.
        note: What is shown, in words.
    """
    counts = torch.bincount(of_point, minlength=UNLABELLED + 1)
    none, counts[UNLABELLED] = int(counts[UNLABELLED]), 0
    order = counts.argsort(descending=True, stable=True)
    order = order[counts[order] > 0]
    entry_of_class = torch.full((UNLABELLED + 1,), -1)
    entry_of_class[order] = torch.arange(len(order))
    legend = [(classes.names[row], rgb(classes.colors[row])) for row in order.tolist()]
    if none:
        entry_of_class[UNLABELLED] = len(legend)
        legend.append(("none", (NOTHING,) * 3))
    return Painted(class_colors(of_point, classes), note, entry_of_class[of_point], tuple(legend))


def paint_numbers(share: Float[Tensor, "M"], note: str, values: Float[Tensor, "M"] | None = None) -> Painted:
    """Paint numbers from pale, 0, to deep, 1; NaN is not known, and has the colour of what no view saw.

    Args:
        share: The numbers, in [0, 1].
        note: What is shown, in words.
        values: What they stand for; themselves unless given.
    """
    known = share.isfinite()[:, None]
    colors = torch.lerp(PALE, DEEP, share.nan_to_num(0).float()[:, None])
    return Painted(torch.where(known, colors, torch.tensor(UNSEEN)), note, values=share if values is None else values)


def thin(scene: StoredScene, most: int, cell: float) -> Int64[Tensor, "M"]:
    """Choose the points that are drawn of a scene: all, or the samples, or one in each cell of a coarser grid.

    Args:
        scene: The scene.
        most: Points that are drawn at most.
        cell: Edge of the cells that have one sample, metres.

    Returns:
        Which points, ascending.
    """
    if len(scene.points) <= most:
        return torch.arange(len(scene.points))
    chosen = scene.index_of_sample.sort().values
    while len(chosen) > most:
        cell *= max(1.05, math.sqrt(len(chosen) / most))  # of a surface, a cell of twice the edge holds four
        voxel = voxelize(scene.points[chosen], cell).voxel_of_point
        first = torch.full((int(voxel.max()) + 1,), len(chosen)).scatter_reduce_(
            0, voxel, torch.arange(len(chosen)), "amin"
        )
        chosen = chosen[first.sort().values]
    return chosen


def rgb(color: Float32[Tensor, "3"]) -> tuple[float, float, float]:
    """Return a colour as three numbers in [0, 1]."""
    red, green, blue = color.tolist()
    return red, green, blue
