"""Losses between a linear head's output F = hidden @ weight and a teacher's features T, without ever forming F.

Cosine and squared losses use F·t = h·(W t) and |F|² = h·(W Wᵀ h), whose rows are as wide as `hidden` only. Losses per
channel form F for a chunk of rows at a time. One pass over the targets computes both loss and gradients: each chunk is
converted to float32 once, and the threads share the chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from cuao3d.objective.normalizers import Normalizer
from cuao3d.objective.targets import Source, Targets
from cuao3d.plugins import errors_of
from cuao3d.products import add_product, matmul, widen
from cuao3d.threads import in_shares

LossKind = Literal["cosine", "demeaned-cosine", "l1", "l2", "smooth-l1", "cosine+smooth-l1"]

OwnLoss = Callable[[Tensor, Tensor], Tensor]
"""Custom loss: takes predicted features (n, C) and targets (n, C), and returns the loss of each row, (n,).

It is called with a chunk of rows at a time, so the loss of a row must not depend on other rows. On a CPU with
several cores it is called from several threads. Autograd differentiates it.
"""

WORD_TEMPERATURE = 0.05
"""Cosine difference that makes one word e times as likely as another in `word_loss`."""

EPSILON = 1e-8
"""Lower bound of the norm that a cosine divides by, as in `torch.nn.functional.cosine_similarity`."""


def teacher_loss(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "H C"],
    targets: Targets,
    kind: LossKind | OwnLoss = "cosine",
    normalizer: Normalizer | None = None,
) -> Float[Tensor, ""]:
    """Compare the head's output F = hidden @ weight with a teacher's features.

    Args:
        hidden: The student's features of each voxel; its type is the type of the products. Half precision is
            computed in float32 on hardware without instructions for it.
        weight: The bias-free linear head of this teacher.
        targets: The teacher's features of each voxel, in any floating type: a plain tensor, means of a table's rows,
            or compressed; no gradient flows to them.
        kind: `cosine`: 1 - cos(F, T). `demeaned-cosine`: the same after subtracting from every target its mean over
            channels. `l1`: |F - T|, mean over channels. `l2`: (F - T)². `smooth-l1`: (F - T)² / 2 where |F - T| < 1,
            and |F - T| - 1/2 elsewhere. `cosine+smooth-l1`: the sum of the two. Or your own function; see `OwnLoss`.
        normalizer: Applied to the targets first.

    Returns:
        The mean over voxels. It can be differentiated once, with respect to `hidden` and `weight`.
    """
    voxel_weights = hidden.new_full((len(hidden),), 1 / len(hidden), dtype=_wide(hidden))
    return voxel_losses(hidden, weight, targets, voxel_weights, kind, normalizer)[0]


def voxel_losses(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "H C"],
    targets: Targets,
    voxel_weights: Float[Tensor, "N"],
    kind: LossKind | OwnLoss = "cosine",
    normalizer: Normalizer | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "N"]]:
    """Compute the loss of each voxel and their weighted sum; see `teacher_loss`.

    Args:
        hidden: The student's features of each voxel.
        weight: The bias-free linear head of this teacher.
        targets: The teacher's features of each voxel.
        voxel_weights: Weight of each voxel's loss.
        kind: The loss, by name or as a function; see `teacher_loss`.
        normalizer: Applied to the targets first.

    Returns:
        The weighted sum, which can be differentiated once with respect to `hidden`, `weight` and `voxel_weights`; and
        the loss of each voxel, without a gradient.
    """
    assert len(hidden), "no voxel has a target"
    assert targets.shape == (len(hidden), weight.shape[1]), "targets and outputs differ in shape"
    if normalizer is not None and normalizer.rotation is not None and kind in ("cosine", "l2"):
        # Both are invariant to a rotation of outputs and targets: rotate the head back instead of every target.
        weight = weight @ normalizer.rotation.to(weight.dtype).T
        normalizer = normalizer.without_rotation()
    loss = _VoxelLosses.apply(hidden, weight, targets, voxel_weights, kind, normalizer)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], loss)


def word_loss(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "H C"],
    targets: Targets,
    vectors: Float[Tensor, "K C"],
    *,
    temperature: float = WORD_TEMPERATURE,
) -> Float[Tensor, ""]:
    """Match the student's softmax over words to the teacher's.

    A cosine loss is minimised by the mean embedding of look-alike classes and spends capacity on appearance that
    geometry cannot determine; a softmax over words avoids both. The logits are cosine / temperature, on the student's
    side of F = hidden @ weight. As in `teacher_loss`, F is not formed: F·v = h·(W v) and |F|² = h·(W Wᵀ h).

    Args:
        hidden: The student's features of each voxel.
        weight: The bias-free linear head of this teacher.
        targets: The teacher's features of each voxel; no gradient flows to them.
        vectors: Unit vector of each word, in the teacher's space.
        temperature: Cosine difference that makes one word e times as likely as another.

    Returns:
        The cross-entropy between the two distributions, mean over voxels.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        wide = _wide(hidden)
        return _word_loss(
            hidden.to(wide), weight.to(wide), Source.of(targets, None, wide), vectors.to(wide), temperature
        )


def _word_loss(hidden: Tensor, weight: Tensor, source: Source, vectors: Tensor, temperature: float) -> Tensor:
    near = hidden.new_empty(len(hidden), len(vectors))

    def compare(share: int, num_shares: int) -> None:
        for rows, z in source.chunks(share, num_shares, hidden.dtype):
            matmul(functional.normalize(source.decode(z), dim=1), vectors.T, out=near[rows])

    in_shares(compare, hidden.device)
    wanted = (near / temperature).softmax(dim=1)
    norm = (matmul(hidden, weight @ weight.T) * hidden).sum(dim=1, keepdim=True).clamp(min=EPSILON).sqrt()
    return functional.cross_entropy(matmul(hidden, weight @ vectors.T) / norm / temperature, wanted)


class _VoxelLosses(torch.autograd.Function):
    """Weighted sum of the voxels' losses; forward computes the gradients as well."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Targets,
        voxel_weights: Tensor,
        kind: LossKind | OwnLoss,
        normalizer: Normalizer | None,
    ) -> tuple[Tensor, Tensor]:
        wide = _wide(hidden)
        compare = partial(_own, loss=kind) if callable(kind) else _LOSSES[kind]
        source = Source.of(targets, normalizer, wide)
        product = widen(hidden).dtype
        with torch.autocast(hidden.device.type, enabled=False):
            result = compare(hidden.to(wide), weight.to(wide), source, voxel_weights.to(wide), product)
        ctx.save_for_backward(
            result.grad_hidden.to(hidden.dtype), result.grad_weight.to(weight.dtype), result.of_voxels
        )
        ctx.mark_non_differentiable(result.of_voxels)
        return (result.of_voxels.double() @ voxel_weights.double()).to(wide), result.of_voxels

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, of_voxels = ctx.saved_tensors
        return upstream * grad_hidden, upstream * grad_weight, None, upstream * of_voxels, None, None


@dataclass(frozen=True)
class _Result:
    """Losses, and the gradients of their weighted sum."""

    of_voxels: Float[Tensor, "N"]
    grad_hidden: Float[Tensor, "N H"]
    grad_weight: Float[Tensor, "H C"]

    def __add__(self, other: "_Result") -> "_Result":
        return _Result(
            self.of_voxels + other.of_voxels,
            self.grad_hidden + other.grad_hidden,
            self.grad_weight + other.grad_weight,
        )


def _cosine(
    hidden: Tensor,
    weight: Tensor,
    source: Source,
    voxel_weights: Tensor,
    product: torch.dtype,
    *,
    demean: bool = False,
) -> _Result:
    """Compute 1 - cos.

    With the unit target t, a = W t, G = W Wᵀ and n = |hᵀ W|, the cosine is c = h·a / n, and
    dc/dh = a / n - (c / n²) G h,   dc/dW = (h / n) tᵀ - (c / n²) h hᵀ W.
    """
    metric_hidden = matmul(hidden, weight @ weight.T)
    norm = (metric_hidden * hidden).sum(dim=1).clamp(min=0).sqrt()
    inverse = 1 / norm.clamp(min=EPSILON)
    seen = _correlate(hidden * (voxel_weights * inverse)[:, None], weight, source, product, unit=True, demean=demean)
    cosine = (hidden * seen.projected).sum(dim=1) * inverse
    # A clamped norm is a constant, so the terms of its derivative vanish there.
    pull = torch.where(norm > EPSILON, voxel_weights * cosine * inverse.square(), 0)[:, None]
    return _Result(
        1 - cosine,
        pull * metric_hidden - seen.projected * (voxel_weights * inverse)[:, None],
        matmul(hidden.T, pull * hidden) @ weight - seen.correlation,
    )


def _l2(hidden: Tensor, weight: Tensor, source: Source, voxel_weights: Tensor, product: torch.dtype) -> _Result:
    """Compute the mean over channels of (F - T)² = hᵀ G h - 2 h·(W T) + |T|²."""
    channels = weight.shape[1]
    metric_hidden, weighted = matmul(hidden, weight @ weight.T), hidden * voxel_weights[:, None]
    seen = _correlate(weighted, weight, source, product, unit=False, demean=False)
    of_voxels = ((metric_hidden - 2 * seen.projected) * hidden).sum(dim=1) + seen.squared_norm
    return _Result(
        of_voxels / channels,
        (metric_hidden - seen.projected) * voxel_weights[:, None] * (2 / channels),
        (matmul(hidden.T, weighted) @ weight - seen.correlation) * (2 / channels),
    )


@dataclass(frozen=True)
class _Seen:
    """What one pass over the targets accumulates."""

    projected: Float[Tensor, "N H"]
    """W T of each voxel; T is scaled to unit length if asked for."""
    squared_norm: Float[Tensor, "N"]
    """|T|²."""
    correlation: Float[Tensor, "H C"]
    """Sum over voxels of left Tᵀ; T is scaled to unit length if asked for."""


def _correlate(
    left: Tensor, weight: Tensor, source: Source, product: torch.dtype, *, unit: bool, demean: bool
) -> _Seen:
    """Multiply the targets by the head and by the rows of `left`, in the targets' basis if they have one."""
    wide, affine = left.dtype, source.affine
    if demean and affine is not None:
        affine = affine[0] - affine[0].mean(dim=1, keepdim=True), affine[1] - affine[1].mean()
    to_hidden = (weight.T if affine is None else affine[0] @ weight.T).to(product)
    of_mean = None if affine is None else (weight @ affine[1], affine[0] @ affine[0].T, affine[0] @ affine[1])
    projected, squared_norm = torch.empty_like(left), left.new_empty(len(left))

    def walk(share: int, num_shares: int) -> tuple[Tensor, Tensor]:
        total, sum_left = left.new_zeros(left.shape[1], len(to_hidden)), left.new_zeros(left.shape[1])
        for rows, z in source.chunks(share, num_shares, wide):
            if demean and affine is None:
                z -= z.mean(dim=1, keepdim=True)
            rounded = z.to(product)
            seen = matmul(rounded, to_hidden).to(wide)
            if affine is None or of_mean is None:
                square = torch.linalg.vector_norm(z, dim=1).square_()
            else:
                mean_to_hidden, gram, basis_of_mean = of_mean
                seen += mean_to_hidden
                square = (matmul(z, gram) * z).sum(dim=1) + 2 * (z @ basis_of_mean) + affine[1] @ affine[1]
            squared_norm[rows], left_rows = square, left[rows]
            if unit:
                scale = square.clamp_(min=0).sqrt_().clamp_(min=EPSILON).reciprocal_()[:, None]
                seen, left_rows = seen.mul_(scale), left_rows * scale
            projected[rows] = seen
            add_product(total, left_rows.T.to(product), rounded)
            sum_left += left_rows.sum(dim=0)
        return total, sum_left

    totals, sums = zip(*in_shares(walk, left.device), strict=True)
    correlation = torch.stack(totals).sum(dim=0)
    if affine is not None:
        correlation = correlation @ affine[0] + torch.outer(torch.stack(sums).sum(dim=0), affine[1])
    return _Seen(projected, squared_norm, correlation)


def _l1(hidden: Tensor, weight: Tensor, source: Source, voxel_weights: Tensor, product: torch.dtype) -> _Result:
    """Compute the mean over channels of |F - T|."""

    def slope(difference: Tensor) -> tuple[Tensor, Tensor]:
        sign = difference.sign()
        return difference.mul_(sign).sum(dim=1), sign

    return _channel_by_channel(hidden, weight, source, voxel_weights, product, slope)


def _smooth_l1(hidden: Tensor, weight: Tensor, source: Source, voxel_weights: Tensor, product: torch.dtype) -> _Result:
    """Compute the mean over channels of c (d - c / 2), d = F - T, c = clamp(d): d²/2 where |d| < 1, else |d| - 1/2."""

    def slope(difference: Tensor) -> tuple[Tensor, Tensor]:
        clamped = difference.clamp(-1, 1)
        return difference.sub_(clamped, alpha=0.5).mul_(clamped).sum(dim=1), clamped

    return _channel_by_channel(hidden, weight, source, voxel_weights, product, slope)


def _channel_by_channel(
    hidden: Tensor,
    weight: Tensor,
    source: Source,
    voxel_weights: Tensor,
    product: torch.dtype,
    slope: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> _Result:
    """Average a function of d = F - T over channels; `slope` returns its sum and derivative, and may overwrite d."""
    channels = weight.shape[1]

    def compare(rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        # Not in half precision: rounding would flip the sign of small differences.
        add_product(target.neg_(), rows, weight)
        total, derivative = slope(target)
        return total.div_(channels), derivative

    return _output_by_output(hidden, weight, source, voxel_weights / channels, product, compare)


def _own(
    hidden: Tensor, weight: Tensor, source: Source, voxel_weights: Tensor, product: torch.dtype, *, loss: OwnLoss
) -> _Result:
    """Compute a custom loss, differentiated by autograd."""

    def compare(rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            predicted = matmul(rows, weight).detach().requires_grad_()
            with errors_of(f"The loss {getattr(loss, '__name__', type(loss).__name__)} failed"):
                of_rows = loss(predicted, target)
            (derivative,) = torch.autograd.grad(of_rows.sum(), predicted)
        return of_rows.detach(), derivative

    return _output_by_output(hidden, weight, source, voxel_weights, product, compare)


def _output_by_output(
    hidden: Tensor,
    weight: Tensor,
    source: Source,
    counts: Tensor,
    product: torch.dtype,
    compare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> _Result:
    """Compute a loss that needs the outputs F, for a chunk of voxels at a time.

    `compare` takes hidden features and targets, and returns each voxel's loss and its derivative with respect to F.
    `counts` (N,) scales that derivative to the one of the weighted sum.
    """
    right = weight.to(product)
    of_voxels, grad_hidden = hidden.new_empty(len(hidden)), torch.empty_like(hidden)

    def walk(share: int, num_shares: int) -> Tensor:
        grad_weight = torch.zeros_like(weight)
        for rows, z in source.chunks(share, num_shares, hidden.dtype):
            of_voxels[rows], derivative = compare(hidden[rows], source.decode(z))
            derivative, of_rows = derivative.to(product), counts[rows, None]
            torch.mul(matmul(derivative, right.T).to(hidden.dtype), of_rows, out=grad_hidden[rows])
            add_product(grad_weight, (hidden[rows] * of_rows).T.to(product), derivative)
        return grad_weight

    return _Result(of_voxels, grad_hidden, torch.stack(in_shares(walk, hidden.device)).sum(dim=0))


_Loss = Callable[[Tensor, Tensor, Source, Tensor, torch.dtype], _Result]

_LOSSES: dict[LossKind, _Loss] = {
    "cosine": _cosine,
    "demeaned-cosine": partial(_cosine, demean=True),
    "l1": _l1,
    "l2": _l2,
    "smooth-l1": _smooth_l1,
    "cosine+smooth-l1": lambda *arguments: _cosine(*arguments) + _smooth_l1(*arguments),
}


def _wide(hidden: Tensor) -> torch.dtype:
    """Return the type of everything but the products: at least float32."""
    return torch.promote_types(hidden.dtype, torch.float32)
