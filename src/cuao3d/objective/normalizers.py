"""Normalisers: affine maps that rescale a teacher's features before the student learns them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from cuao3d.errors import InputError

NormalizerKind = Literal["none", "demean", "standardize", "phi-s"]

RESOLUTION = 2.0**-10
"""Relative spacing of half-precision numbers, in which stores keep features: finer deviations are rounding."""


@dataclass(frozen=True)
class Normalizer:
    """Affine map T' = ((T - shift) * scale) @ rotation; the rotation is orthonormal and optional."""

    shift: Float[Tensor, "C"]
    scale: Float[Tensor, "C"]
    rotation: Float[Tensor, "C C"] | None = None

    def __call__(self, features: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Normalise features."""
        return self.turn(features - self.shift)

    def turn(self, differences: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Normalise differences between features, by the linear part alone."""
        scaled = differences * self.scale
        return scaled if self.rotation is None else scaled @ self.rotation

    def undo_linear(self, differences: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Map differences between normalised features, such as a head's rows, back to the teacher's space."""
        turned = differences if self.rotation is None else differences @ self.rotation.T
        return turned / self.scale

    def without_rotation(self) -> "Normalizer":
        """Return the same normaliser without its rotation, for losses that are invariant to it."""
        return Normalizer(self.shift, self.scale)

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> "Normalizer":
        """Return this normaliser in another type, and, if given, on another device."""
        shift, scale = (tensor.to(device, dtype) for tensor in (self.shift, self.scale))
        return Normalizer(shift, scale, None if self.rotation is None else self.rotation.to(device, dtype))


def fit_normalizer(kind: NormalizerKind, parts: Iterable[Float[Tensor, "_ C"]]) -> Normalizer | None:
    """Fit a normaliser to a teacher's features.

    Args:
        kind: `none`. `demean`: subtract each channel's mean. `standardize`: also divide by its standard
            deviation; what deviates less than `RESOLUTION` times the channel's size is rounding, and is not blown up to
            a deviation of 1. `phi-s`: PCA, then a Hadamard rotation that spreads the variance evenly over the channels,
            then one common scale, as in RADIO ("PHI-S: Distribution Balancing for Label-Free Multi-Teacher
            Distillation", Eq. 20): all directions keep their relative weight, no channel dominates.
        parts: The features, in chunks of rows, in any floating type.

    Returns:
        The normaliser, in float64; None for `none`.

    Raises:
        InputError: There are no features.
    """
    if kind == "none":
        return None
    count, total, products, squares = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for part in parts:
        rows = part.double()
        count, total, squares = count + len(rows), total + rows.sum(dim=0), squares + rows.square().sum(dim=0)
        products = products + (rows.T @ rows if kind == "phi-s" else 0)
    if not count:
        raise InputError("There are no features to fit a normaliser to.")
    mean, rounding = total / count, RESOLUTION**2 * squares / count
    ones = torch.ones_like(mean)
    if kind == "demean":
        return Normalizer(mean, ones)
    if kind == "standardize":
        return Normalizer(mean, _inverse_root((squares / count - mean.square()).clamp(min=0), rounding))
    variances, directions = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    variances = variances.clamp(min=0)
    scale = _inverse_root(variances.mean(), rounding.mean())
    return Normalizer(mean, scale.expand_as(mean).clone(), directions @ _evening_rotation(variances).T)


def _inverse_root(variance: Tensor, rounding: Tensor) -> Tensor:
    """Return 1 / standard deviation, or 1 / that of rounding where it is larger; 1 where the variance is 0."""
    return torch.where(variance > 0, torch.maximum(variance, rounding), 1).rsqrt()


def _evening_rotation(variances: Float[Tensor, "C"]) -> Float[Tensor, "C C"]:
    """Return a rotation R such that every diagonal entry of R diag(variances) R^T is the mean variance.

    A Hadamard matrix does so for any variances. If the number of channels is no power of two, a chain of plane
    rotations (Schur-Horn) does so for these variances.
    """
    count = len(variances)
    if count & (count - 1) == 0:
        return torch.from_numpy(scipy.linalg.hadamard(count) / np.sqrt(count)).to(variances)
    rotation = np.eye(count)
    spread, mean = np.diag(variances.cpu().double().numpy()), float(variances.double().mean())
    rest = list(range(count))
    while len(rest) > 1:
        # Rotate the smallest against the largest until the smallest is the mean: tan² solves a quadratic.
        low, high = (pick(rest, key=lambda i: spread[i, i]) for pick in (min, max))
        a, b, c = spread[low, low] - mean, spread[high, high] - mean, spread[low, high]
        if b <= 0 or a >= 0:
            break
        tangent = (-c + np.sqrt(c * c - a * b)) / b
        cosine = 1 / np.hypot(1, tangent)
        plane = np.array([[cosine, tangent * cosine], [-tangent * cosine, cosine]])
        pair = [low, high]
        rotation[pair] = plane @ rotation[pair]
        spread[pair] = plane @ spread[pair]
        spread[:, pair] = spread[:, pair] @ plane.T
        rest.remove(low)
    return torch.from_numpy(rotation).to(variances)
