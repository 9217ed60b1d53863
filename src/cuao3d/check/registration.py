"""Do colours lie on depth? Where depth jumps, one thing ends before another, and colours change there too."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor
from torch.nn import functional

from cuao3d.readers.cloud import depth_edges

REACH = 16
"""Largest offset that is tried, thinned pixels: a twentieth of the width."""

PEAK = 0.05
"""Edges of colour and depth that fit correlate by more than this; in clean rooms and captures it was 0.2 to 0.35."""

STANDS_OUT = 1.25
"""The best offset must fit this many times better than none, and than any that is far from it: textures repeat."""

NEARBY = 4
"""Offsets within this many thinned pixels of the best belong to its peak: edges are as wide as that."""

MOVED = 0.01
"""Offset that counts, as a part of the image's width: registered sensors stay below it."""

LEAST = 3
"""... but never fewer thinned pixels than this: resizing moves edges by one, and each edge is two wide."""


class Offset(NamedTuple):
    """Where colours lie on depth."""

    x: int
    """Pixels of the image that a thing is further right in colour than in depth."""
    y: int
    """Pixels that it is further down."""
    certain: bool
    """Whether edges fit clearly best there; otherwise x and y mean nothing."""
    moved: bool
    """Whether the offset is certain and large enough to matter."""


def agreement_by_offset(gray: Float32[Tensor, "H W"], depth: Float32[Tensor, "H W"]) -> Float32[Tensor, "d d"]:
    """Correlate edges of colour with jumps of depth at every offset up to `REACH`.

    Args:
        gray: Brightness.
        depth: Metres; 0 = missing.

    Returns:
        As of `correlate`.
    """
    return correlate(edges_of(gray), jumps_of(depth).float())


def edges_of(gray: Float32[Tensor, "H W"]) -> Float32[Tensor, "H W"]:
    """Return how much brightness changes around each pixel."""
    right = functional.pad(gray[:, 2:] - gray[:, :-2], (1, 1))
    down = functional.pad(gray[2:] - gray[:-2], (0, 0, 1, 1))
    return torch.hypot(right, down)


def jumps_of(depth: Float32[Tensor, "H W"]) -> Bool[Tensor, "H W"]:
    """Return where depth, metres, jumps; 0 = missing."""
    return depth_edges(depth) & (depth > 0)


def correlate(edges: Float32[Tensor, "*V H W"], jumps: Float32[Tensor, "*V H W"]) -> Float32[Tensor, "*V d d"]:
    """Correlate edges of colour with jumps of depth at every offset up to `REACH`.

    Returns:
        Correlation in [-1, 1], (2 REACH + 1) squared: at row y + REACH and column x + REACH if colours were moved right
        by x and down by y against depth.
    """
    edges, jumps = (image - image.mean(dim=(-2, -1), keepdim=True) for image in (edges, jumps))
    size = [length + 2 * REACH for length in edges.shape[-2:]]  # beyond the border is the mean, not the opposite border
    spectrum = torch.fft.rfft2(edges, s=size) * torch.fft.rfft2(jumps, s=size).conj()
    products = torch.fft.irfft2(spectrum, s=size).roll((REACH, REACH), (-2, -1))
    lengths = edges.norm(dim=(-2, -1), keepdim=True) * jumps.norm(dim=(-2, -1), keepdim=True)
    correlation: Tensor = products[..., : 2 * REACH + 1, : 2 * REACH + 1] / lengths.clamp(min=1e-9)
    return correlation


def find_offset(agreements: Float[Tensor, "V d d"], thinned_by: int, width: int) -> Offset:
    """Find the offset at which the edges of all views fit best together.

    Args:
        agreements: Of `agreement_by_offset`, one for each view.
        thinned_by: Pixels of the image per pixel of these.
        width: Of the image, pixels.
    """
    agreement = agreements.mean(dim=0)
    row, column = divmod(int(agreement.argmax()), agreement.shape[1])
    x, y = column - REACH, row - REACH
    best, given = agreement[row, column], agreement[REACH, REACH]
    rest = agreement.clone()
    rest[max(0, row - NEARBY) : row + NEARBY + 1, max(0, column - NEARBY) : column + NEARBY + 1] = -1
    certain = bool(best > PEAK and best > STANDS_OUT * rest.max())
    far = max(abs(x), abs(y)) >= max(MOVED * width / thinned_by, LEAST)
    return Offset(x * thinned_by, y * thinned_by, certain, certain and far and bool(best > STANDS_OUT * given))
