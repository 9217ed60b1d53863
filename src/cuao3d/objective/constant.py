"""The best constant output: how small a loss gets that predicts the same features at every point."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from cuao3d.objective.losses import LossKind
from cuao3d.objective.normalizers import Normalizer

BISECTIONS = 30
"""Halvings of the interval in which the best constant of a smooth L1 loss lies."""


@dataclass(frozen=True)
class ConstantLoss:
    """Loss of the best constant output, and what it compares with."""

    loss: float
    """Mean loss of the constant that has the lowest; the floor of all losses is 0."""
    loss_of_zero: float
    """Mean loss of an output of zeros: 1 for a cosine loss."""

    @property
    def share(self) -> float:
        """Loss as a fraction of that of zeros, 0 to 1, so that losses of any unit compare; 0 where both are 0."""
        return self.loss / self.loss_of_zero if self.loss_of_zero else 0.0


def best_constant(features: Float[Tensor, "N C"], kind: LossKind, normalizer: Normalizer | None = None) -> ConstantLoss:
    """Find the lowest loss of a constant output.

    The constant is the mean of the unit features for `cosine` (its loss is 1 - |mean|), the median of each channel for
    `l1`, the mean for `l2`, and for `smooth-l1` the root of the derivative. For `cosine+smooth-l1` it is that of
    `smooth-l1`, so its loss is an upper bound.

    Args:
        features: A teacher's features at each point.
        kind: The loss; see `teacher_loss`.
        normalizer: Applied to the features first.
    """
    targets = features.float() if normalizer is None else normalizer.to(torch.float32)(features.float())
    match kind:
        case "cosine":
            return _cosine(targets)
        case "demeaned-cosine":
            return _cosine(targets - targets.mean(dim=1, keepdim=True))
        case "l1":
            return ConstantLoss(_mean((targets - targets.median(dim=0).values).abs_()), _mean(targets.abs()))
        case "l2":
            return ConstantLoss(_mean((targets - targets.mean(dim=0)).square_()), _mean(targets.square()))
        case "smooth-l1":
            return _smooth_l1(targets, _smooth_median(targets))
        case "cosine+smooth-l1":
            constant = _smooth_median(targets)
            cosine, apart = functional.cosine_similarity(targets, constant[None]), _smooth_l1(targets, constant)
            return ConstantLoss(1 - _mean(cosine) + apart.loss, 1 + apart.loss_of_zero)


def _cosine(targets: Tensor) -> ConstantLoss:
    mean = functional.normalize(targets, dim=1).mean(dim=0, dtype=torch.float64)
    return ConstantLoss(max(0.0, 1 - float(mean.norm())), 1.0)


def _smooth_l1(targets: Tensor, constant: Tensor) -> ConstantLoss:
    of_constant, of_zero = (
        float(functional.smooth_l1_loss(targets, output.expand_as(targets)))
        for output in (constant, torch.zeros_like(constant))
    )
    return ConstantLoss(of_constant, of_zero)


def _smooth_median(targets: Tensor) -> Float[Tensor, "C"]:
    """Return for each channel the constant with the lowest smooth L1 loss, by bisection of its derivative."""
    low, high = targets.amin(dim=0), targets.amax(dim=0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        is_below = (middle - targets).clamp_(-1, 1).mean(dim=0) < 0
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    return (low + high) / 2


def _mean(values: Tensor) -> float:
    return float(values.mean(dtype=torch.float64))
