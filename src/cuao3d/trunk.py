"""The student's trunk, watched: whose gradient moves it, and how many directions its features span."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def effective_rank(eigenvalues: Float[Tensor, "C"]) -> float:
    """Return the effective rank of features, from 1 to C: how many directions they span, weighted by how much.

    exp(-sum p_k log p_k), where p_k is the k-th singular value as a fraction of their sum (Roy and Vetterli, "The
    effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1). 0 where all features are zero.

    Args:
        eigenvalues: Those of the sum or mean of f fᵀ over points, computed in float64: squares of the singular values.
    """
    singular = eigenvalues.clamp(min=0).sqrt()
    if not float(singular.sum()):
        return 0.0
    share = singular / singular.sum()
    return math.exp(float(torch.special.entr(share).sum()))


def measure_trunk(hidden: Float[Tensor, "N H"], losses: Mapping[str, Tensor]) -> dict[str, Any]:
    """Measure what `describe_trunk` needs, on one part of a batch. Weighted means over parts stand for the whole.

    Args:
        hidden: The features that the heads read, part of the graph of the losses.
        losses: Each addend of the total loss, by name, as it enters the total; means over these N voxels.

    Returns:
        `products`: between the gradients of two losses with respect to `hidden`, for each pair of names, times N: the
        gradient of a mean over several parts is that of the part times its share of all voxels. `moments`: mean of
        h hᵀ over voxels.
    """
    gradients = {
        name: torch.autograd.grad(loss, hidden, retain_graph=True)[0].flatten() for name, loss in losses.items()
    }
    rows = hidden.detach().double()
    return {
        "products": {
            one: {other: len(rows) * float(gradient @ gradients[other]) for other in gradients}
            for one, gradient in gradients.items()
        },
        "moments": (rows.T @ rows / len(rows)).cpu(),
    }


def describe_trunk(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the trunk in numbers for `metrics.jsonl`.

    Args:
        measured: Mean over all parts of a batch of what `measure_trunk` returned, weighted by their voxels.

    Returns:
        `share`: by loss, the norm of its gradient as a fraction of the sum of norms. `cosine`: by loss, the cosine of
        its gradient with the total gradient; NaN where one of them is zero. `rank`: effective rank of the features.
    """
    products: Mapping[str, Mapping[str, float]] = measured["products"]
    norms = {name: math.sqrt(max(products[name][name], 0.0)) for name in products}
    along = {name: sum(row.values()) for name, row in products.items()}
    total, sum_of_norms = math.sqrt(max(sum(along.values()), 0.0)), sum(norms.values())
    return {
        "share": {name: _ratio(norm, sum_of_norms) for name, norm in norms.items()},
        "cosine": {name: _ratio(along[name], norm * total) for name, norm in norms.items()},
        "rank": effective_rank(torch.linalg.eigvalsh(measured["moments"])),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
