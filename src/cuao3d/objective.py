"""What the student minimises: one loss per teacher, computed without an N x C tensor, and their weighting."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

LossKind = Literal["cosine", "l1", "demeaned-cosine"]
Regularizer = Literal["log1p", "log1p-squared"]
WeightingKind = Literal["uncertainty", "uncertainty-squared", "equal"]

WORD_TEMPERATURE = 0.05
"""Cosine difference that makes one word e times as likely as another in `word_loss`."""

EPSILON = 1e-8
"""Smallest norm that a cosine divides by, as in `torch.nn.functional.cosine_similarity`."""

CHUNK_VALUES = {"cpu": 1 << 19}
"""Targets that are widened and used at a time: on a CPU what stays in cache, elsewhere `LARGE_CHUNK_VALUES`."""
LARGE_CHUNK_VALUES = 1 << 25


@dataclass(frozen=True)
class RowMeans:
    """Targets that are means of a table's rows, taken a few at a time when asked for: the table is never copied."""

    table: Float[Tensor, "R C"]
    """Features of which each target is a mean."""
    rows: Int64[Tensor, "M"]
    """Rows of the table, those of the first target first."""
    offsets: Int64[Tensor, "N"]
    """Where in `rows` those of each target begin; every target has at least one."""

    def __len__(self) -> int:
        """Return the number of targets."""
        return len(self.offsets)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of targets and their width."""
        return len(self.offsets), self.table.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the targets are."""
        return self.table.device

    def __getitem__(self, part: slice) -> Float[Tensor, "n C"]:
        """Return some consecutive targets, in the table's type."""
        start, stop, _ = part.indices(len(self))
        offsets = self.offsets[start:stop]
        end = self.offsets[stop] if stop < len(self) else len(self.rows)
        return functional.embedding_bag(self.rows[offsets[0] : end], self.table, offsets - offsets[0], mode="mean")


def teacher_loss(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "H C"],
    targets: Float[Tensor, "N C"] | RowMeans,
    kind: LossKind = "cosine",
) -> Float[Tensor, ""]:
    """Compare the head's output F = hidden @ weight with a teacher's features, without ever forming F.

    With F = H W, the products F·t = H·(W t) and |F|² = H·(W Wᵀ H) need H-wide rows only. Each chunk of targets is
    widened once and serves the loss and, in the same visit, the gradients, so that nothing of size N x C is kept.

    Args:
        hidden: The student's features of each voxel; its type is the type of the arithmetic.
        weight: The bias-free linear head of this teacher.
        targets: The teacher's features of each voxel, in any floating type, as they are or as means of a table's
            rows; no gradient flows to them.
        kind: `cosine`: 1 - cos(F, T), mean over voxels. `demeaned-cosine`: the same after subtracting from every
            target its mean over channels. `l1`: |F - T|, mean over voxels and channels.

    Returns:
        The loss, in the type of `hidden`. It can be differentiated once, with respect to `hidden` and `weight`.
    """
    assert len(hidden), "no voxel has a target"
    assert targets.shape == (len(hidden), weight.shape[1]), "targets and outputs differ in shape"
    return cast(Tensor, _TeacherLoss.apply(hidden, weight, targets, kind))  # type: ignore[no-untyped-call]


def word_loss(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "H C"],
    targets: Float[Tensor, "N C"] | RowMeans,
    vectors: Float[Tensor, "K C"],
    *,
    temperature: float = WORD_TEMPERATURE,
) -> Float[Tensor, ""]:
    """Compare which of some words the head's output F = hidden @ weight and a teacher's features are near.

    A cosine is content with the mean of what look-alikes are called, and spends itself on what geometry cannot know;
    choosing among words does neither. Both sides become a softmax over cosine / temperature, and the cross-entropy of
    the student's under the teacher's is returned. As in `teacher_loss`, F is not formed: F·v = H·(W v) and
    |F|² = H·(W Wᵀ H).

    Args:
        hidden: The student's features of each voxel.
        weight: The bias-free linear head of this teacher.
        targets: The teacher's features of each voxel; no gradient flows to them.
        vectors: Unit vector of each word, in the teacher's space.
        temperature: Cosine difference that makes one word e times as likely as another.
    """
    step = max(1, CHUNK_VALUES.get(hidden.device.type, LARGE_CHUNK_VALUES) // weight.shape[1])
    with torch.no_grad():
        near = [
            functional.normalize(targets[start : start + step].to(hidden.dtype), dim=1) @ vectors.T
            for start in range(0, len(hidden), step)
        ]
        wanted = (torch.cat(near) / temperature).softmax(dim=1)
    norm = ((hidden @ (weight @ weight.T)) * hidden).sum(dim=1, keepdim=True).clamp(min=EPSILON).sqrt()
    return functional.cross_entropy(hidden @ (weight @ vectors.T) / norm / temperature, wanted)


class UncertaintyWeighting(nn.Module):
    """Sum the teacher losses, each weighted by a learned noise level.

    L = sum_i L_i / (2 sigma_i²) + log(1 + sigma_i), every sigma starting at 1. A teacher that stays hard to imitate
    gets a larger sigma and a smaller say; the logarithm keeps sigma from growing for ever.
    """

    def __init__(self, num_losses: int, regularizer: Regularizer = "log1p") -> None:
        """Start with every noise level at 1.

        Args:
            num_losses: Number of teachers.
            regularizer: `log1p`: log(1 + sigma), the paper's. `log1p-squared`: log(1 + sigma²), the released code's.
        """
        super().__init__()
        self.regularizer = regularizer
        self.sigma = nn.Parameter(torch.ones(num_losses))

    def forward(self, losses: Float[Tensor, "T"]) -> Float[Tensor, ""]:
        """Return the weighted sum of the losses, regularised."""
        penalty = torch.log1p(self.sigma if self.regularizer == "log1p" else self.sigma.square())
        return (losses / (2 * self.sigma.square()) + penalty).sum()


class EqualWeighting(nn.Module):
    """Sum the teacher losses as they are."""

    def forward(self, losses: Float[Tensor, "T"]) -> Float[Tensor, ""]:
        """Return the sum of the losses."""
        return losses.sum()


WEIGHTINGS: dict[WeightingKind, Callable[[int], nn.Module]] = {
    "uncertainty": UncertaintyWeighting,
    "uncertainty-squared": lambda num_losses: UncertaintyWeighting(num_losses, "log1p-squared"),
    "equal": lambda num_losses: EqualWeighting(),
}
"""Ways to combine the teacher losses: name -> module of a number of losses."""


Targets = Tensor | RowMeans


class _TeacherLoss(torch.autograd.Function):
    """A scalar whose gradients were computed with it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Targets, kind: LossKind) -> Tensor:
        loss, *gradients = _LOSSES[kind](hidden, weight, targets)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return upstream * grad_hidden, upstream * grad_weight, None, None


def _cosine(hidden: Tensor, weight: Tensor, targets: Targets, *, demean: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of 1 - cos, and its gradients with respect to `hidden` and `weight`.

    With the unit target t, a = W t, G = W Wᵀ and n = |hᵀ W|, the cosine is c = h·a / n, and
    dc/dh = a / n - (c / n²) G h,   dc/dW = (h / n) tᵀ - (c / n²) h hᵀ W.
    """
    metric_hidden = hidden @ (weight @ weight.T)
    norm = (metric_hidden * hidden).sum(dim=1).clamp(min=0).sqrt()
    unit_hidden = hidden / norm.clamp(min=EPSILON)[:, None]
    projected = torch.empty_like(hidden)
    grad_weight = torch.zeros_like(weight)
    for rows, chunk in _chunks(targets, hidden.dtype):
        if demean:
            chunk -= chunk.mean(dim=1, keepdim=True)
        chunk /= torch.linalg.vector_norm(chunk, dim=1, keepdim=True).clamp_(min=EPSILON)
        torch.mm(chunk, weight.T, out=projected[rows])
        grad_weight.addmm_(unit_hidden[rows].T, chunk)
    cosine = (unit_hidden * projected).sum(dim=1)
    # A clamped norm is a constant, so the terms of its derivative vanish there.
    pull = torch.where(norm > EPSILON, cosine / norm.clamp(min=EPSILON).square(), 0)[:, None]
    grad_hidden = projected / norm.clamp(min=EPSILON)[:, None] - pull * metric_hidden
    grad_weight -= (hidden.T @ (pull * hidden)) @ weight
    return 1 - cosine.mean(), grad_hidden / -len(hidden), grad_weight / -len(hidden)


def _l1(hidden: Tensor, weight: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of |F - T|, and its gradients with respect to `hidden` and `weight`."""
    total = hidden.new_zeros((), dtype=torch.float64)
    grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
    for rows, chunk in _chunks(targets, hidden.dtype):
        difference = chunk.neg_().addmm_(hidden[rows], weight)
        sign = difference.sign()
        total += (difference * sign).sum()
        torch.mm(sign, weight.T, out=grad_hidden[rows])
        grad_weight.addmm_(hidden[rows].T, sign)
    count = len(hidden) * weight.shape[1]
    return (total / count).to(hidden.dtype), grad_hidden / count, grad_weight / count


_LOSSES: dict[LossKind, Callable[[Tensor, Tensor, Targets], tuple[Tensor, Tensor, Tensor]]] = {
    "cosine": lambda hidden, weight, targets: _cosine(hidden, weight, targets, demean=False),
    "demeaned-cosine": lambda hidden, weight, targets: _cosine(hidden, weight, targets, demean=True),
    "l1": _l1,
}


def _chunks(targets: Targets, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Walk through the targets, a few rows at a time, each chunk a copy in `dtype` that may be overwritten."""
    num_values = CHUNK_VALUES.get(targets.device.type, LARGE_CHUNK_VALUES)
    num_rows = min(len(targets), max(num_values // targets.shape[1], 32))
    buffer = torch.empty(num_rows, targets.shape[1], dtype=dtype, device=targets.device)
    for start in range(0, len(targets), num_rows):
        rows = slice(start, min(start + num_rows, len(targets)))
        yield rows, buffer[: rows.stop - start].copy_(targets[rows])
