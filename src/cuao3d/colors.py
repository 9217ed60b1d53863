"""Colours of points: their class, or how well they answer a question."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from cuao3d.labels import LabelSet
from cuao3d.scene import UNLABELLED

NOTHING = 0.86
"""Brightness of points without a class."""

UNSEEN = (0.58, 0.68, 0.88)
"""Colour of points that no view saw: nothing can be asked of them."""

HEAT = (
    (0.96, 0.88, 0.34),
    (0.99, 0.68, 0.07),
    (0.96, 0.49, 0.08),
    (0.87, 0.33, 0.22),
    (0.74, 0.22, 0.33),
    (0.58, 0.15, 0.4),
)
"""Colours from a faint answer to the best one, at even steps: the upper part of the map `inferno`, reversed."""

COLD = 0.15
"""Up to this value a point does not glow."""


def class_colors(classes: Int64[Tensor, "N"], label_set: LabelSet) -> Float[Tensor, "N 3"]:
    """Return the colour of each point's class, a row of `label_set`; light grey for 255."""
    table = torch.full((UNLABELLED + 1, 3), NOTHING)
    table[: len(label_set)] = label_set.colors
    return table[classes]


def heat_colors(
    values: Float[Tensor, "N"],
    colors: Float[Tensor, "N 3"] | None = None,
    seen: Bool[Tensor, "N"] | None = None,
) -> Float[Tensor, "N 3"]:
    """Let points glow where values are high, and fade to a light grey picture of the scene where they are low.

    Args:
        values: In [0, 1].
        colors: RGB of each point, in [0, 1].
        seen: Points that some view saw; the others have a colour of their own.
    """
    glow, strength = glow_of(values)
    return cold_colors(len(values), colors, seen) * (1 - strength) + glow * strength


def glow_of(values: Float[Tensor, "N"]) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 1"]]:
    """Return the colour in which points glow, and how strongly: 0 leaves the picture of the scene as it is."""
    values = values.float().clamp(0, 1)
    table = torch.tensor(HEAT)
    position = values * (len(table) - 1)
    low = position.long().clamp(max=len(table) - 2)
    glow = torch.lerp(table[low], table[low + 1], (position - low)[:, None])
    return glow, ((values - COLD) / 0.4).clamp(0, 1)[:, None]


def cold_colors(
    num_points: int, colors: Float[Tensor, "N 3"] | None = None, seen: Bool[Tensor, "N"] | None = None
) -> Float[Tensor, "N 3"]:
    """Return the light grey picture of a scene over which points glow, as of `heat_colors`."""
    luminance = torch.full((num_points, 1), 0.6)
    if colors is not None:
        luminance = colors.float() @ torch.tensor([[0.3], [0.59], [0.11]])
    cold = 0.5 + 0.42 * luminance.expand(-1, 3)
    if seen is not None:
        cold = torch.where(seen[:, None], cold, (0.6 + 0.4 * luminance) * torch.tensor(UNSEEN))
    return cold
