"""Weightings: how the teachers' losses are combined into one."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from cuao3d.errors import CollapsedError, InputError

WeightingKind = Literal[
    "uncertainty", "uncertainty-squared", "kendall", "equal", "fixed", "free", "random", "heteroscedastic"
]


def make_weighting(
    kind: WeightingKind, num_losses: int, *, weights: tuple[float, ...] = (), seed: int = 0
) -> nn.Module:
    """Make a weighting of the teachers' losses.

    Args:
        kind: `uncertainty`: learned noise levels, as in the paper. `uncertainty-squared`: as in the released code.
            `kendall`: the Gaussian likelihood itself. `equal`: the plain sum. `fixed`: given weights. `free`: learned
            weights without a regulariser. `random`: weights drawn anew in every step, a control.
            `heteroscedastic`: the plain sum of losses that are already weighted voxel by voxel.
        num_losses: Number of teachers.
        weights: Weight of each loss, for `fixed`.
        seed: Seed of `random`.

    Raises:
        InputError: `fixed` without a weight for each loss.
    """
    match kind:
        case "uncertainty":
            return UncertaintyWeighting(num_losses, "log1p")
        case "uncertainty-squared":
            return UncertaintyWeighting(num_losses, "log1p-squared")
        case "kendall":
            return UncertaintyWeighting(num_losses, "log")
        case "equal" | "heteroscedastic":
            return FixedWeighting((1.0,) * num_losses)
        case "fixed":
            if len(weights) != num_losses:
                raise InputError(
                    f"Weighting 'fixed' needs {num_losses} weights, one per teacher (--config.fixed-weights); got "
                    f"{weights}."
                )
            return FixedWeighting(weights)
        case "free":
            return FreeWeighting(num_losses)
        case "random":
            return RandomWeighting(num_losses, seed)


def settled_sigmas(losses: Float[Tensor, "S"], kind: str) -> Float64[Tensor, "S"]:
    """Return the noise level at which the gradient of `UncertaintyWeighting` vanishes.

    For `uncertainty` sigma³ = L (1 + sigma), for `uncertainty-squared` 2 sigma⁴ = L (1 + sigma²), otherwise sigma² = L.

    Args:
        losses: Losses L of a teacher.
        kind: The weighting; for `heteroscedastic`, the level of a voxel.
    """
    loss = losses.double().clamp(min=1e-9)
    sigma = loss.sqrt()
    for _ in range(40):  # each step halves the error at least
        match kind:
            case "uncertainty":
                sigma = (loss * (1 + sigma)).pow(1 / 3)
            case "uncertainty-squared":
                sigma = (loss * (1 + sigma.square()) / 2).pow(1 / 4)
    return sigma


class UncertaintyWeighting(nn.Module):
    """Sum the teacher losses, each weighted by a learned noise level.

    L = sum_i L_i / (2 sigma_i²) + R(sigma_i), every sigma starting at 1. A teacher that stays hard to imitate gets a
    larger sigma and a smaller weight; the regulariser R keeps sigma from growing without bound.
    """

    def __init__(self, num_losses: int, regularizer: Literal["log1p", "log1p-squared", "log"] = "log1p") -> None:
        """Start with every noise level at 1.

        Args:
            num_losses: Number of teachers.
            regularizer: R. `log1p`: log(1 + sigma), the paper's. `log1p-squared`: log(1 + sigma²), the released code's.
                `log`: log(sigma), as in Kendall et al., learned as log(sigma²). Fixed points: `settled_sigmas`.
        """
        super().__init__()
        self.regularizer = regularizer
        if regularizer == "log":
            self.log_variance = nn.Parameter(torch.zeros(num_losses))
        else:
            self._sigma = nn.Parameter(torch.ones(num_losses))

    @property
    def sigma(self) -> Float[Tensor, "T"]:
        """Noise level of each teacher."""
        return (self.log_variance / 2).exp() if self.regularizer == "log" else self._sigma

    @property
    def weights(self) -> Float[Tensor, "T"]:
        """Weight of each loss: 1 / (2 sigma²)."""
        return 1 / (2 * self.sigma.square())

    def forward(self, losses: Float[Tensor, "T"]) -> Float[Tensor, ""]:
        """Return the weighted sum of the losses, regularised."""
        match self.regularizer:
            case "log1p":
                penalty = torch.log1p(self.sigma)
            case "log1p-squared":
                penalty = torch.log1p(self.sigma.square())
            case _:
                penalty = self.log_variance / 2
        return (losses * self.weights + penalty).sum()


class FixedWeighting(nn.Module):
    """Sum the teacher losses by given weights."""

    weights: Tensor

    def __init__(self, weights: tuple[float, ...]) -> None:
        """Keep the weights.

        Args:
            weights: Weight of each loss.
        """
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights), persistent=False)

    def forward(self, losses: Float[Tensor, "T"]) -> Float[Tensor, ""]:
        """Return the weighted sum of the losses."""
        return (losses * self.weights).sum()


class FreeWeighting(nn.Module):
    """Sum the teacher losses by learned, unregularised weights: all fall, and below zero the loss is unbounded."""

    def __init__(self, num_losses: int) -> None:
        """Start with every weight at 1.

        Args:
            num_losses: Number of teachers.
        """
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_losses))

    def forward(self, losses: Float[Tensor, "T"]) -> Float[Tensor, ""]:
        """Return the weighted sum of the losses.

        Raises:
            CollapsedError: A weight is not above zero.
        """
        if bool((self.weights <= 0).any()):
            raise CollapsedError(
                f"Freely learned weights have collapsed to {[round(w, 3) for w in self.weights.tolist()]}: a loss with "
                "a weight below zero falls without bound. Use --config.weighting uncertainty, whose logarithm prevents "
                "this."
            )
        return (losses * self.weights).sum()


class RandomWeighting(nn.Module):
    """Sum the teacher losses by random weights, drawn in every step as T * softmax of normals: a control."""

    num_calls: Tensor
    weights: Tensor

    def __init__(self, num_losses: int, seed: int) -> None:
        """Seed the draws.

        Args:
            num_losses: Number of teachers.
            seed: Determines the draws, together with the number of calls so far.
        """
        super().__init__()
        self.seed = seed
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("weights", torch.ones(num_losses), persistent=False)

    def forward(self, losses: Float[Tensor, "T"]) -> Float[Tensor, ""]:
        """Draw weights and return the weighted sum of the losses."""
        if self.training:
            # A generator on a CPU looks at 32 bits of its seed.
            (seed,) = np.random.SeedSequence((self.seed, int(self.num_calls))).generate_state(1).tolist()
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(len(losses), generator=generator)
            self.weights = (functional.softmax(drawn, dim=0) * len(losses)).to(losses.device)
            self.num_calls += 1
        return (losses * self.weights).sum()
