"""Sparse 3D convolution: voxel sets, their kernel maps, and one function over interchangeable backends."""

import torch
from jaxtyping import Float
from torch import Tensor

from cuao3d.sparse.naive import convolve_naively
from cuao3d.sparse.precision import add_product, autocast, widen
from cuao3d.sparse.runs import convolve_runs
from cuao3d.sparse.voxels import MAX_COORDINATE, KernelMap, VoxelSet, sort_voxels

__all__ = [
    "BACKENDS",
    "MAX_COORDINATE",
    "KernelMap",
    "VoxelSet",
    "add_product",
    "convolve",
    "multiply",
    "sort_voxels",
    "widen",
]

BACKENDS = {"runs": convolve_runs, "naive": convolve_naively}
"""Ways to compute the same: "runs" is the fast one, "naive" the obvious one."""


def convolve(
    x: Float[Tensor, "N Cin"],
    kernel: Float[Tensor, "K Cin Cout"],
    kernel_map: KernelMap,
    backend: str = "runs",
) -> Float[Tensor, "M Cout"]:
    """Convolve features over a kernel map; differentiable in features and kernel.

    Args:
        x: One row of features per input voxel.
        kernel: One matrix per kernel position, x fastest, as in MinkowskiEngine.
        kernel_map: Which input voxels each output voxel sees, from `VoxelSet`.
        backend: A name in `BACKENDS`.

    Returns:
        One row of features per output voxel.
    """
    if kernel.shape[:2] != (kernel_map.volume, x.shape[1]) or len(x) != kernel_map.num_inputs:
        raise ValueError(
            f"A map with {kernel_map.num_inputs} inputs and {kernel_map.volume} kernel positions cannot convolve "
            f"features of shape {tuple(x.shape)} with a kernel of shape {tuple(kernel.shape)}."
        )
    if backend not in BACKENDS:
        raise ValueError(f"Unknown backend {backend!r}; choose from {', '.join(BACKENDS)}.")
    return BACKENDS[backend](autocast(x), autocast(kernel), kernel_map)


def multiply(x: Float[Tensor, "N Cin"], matrix: Float[Tensor, "Cin Cout"]) -> Float[Tensor, "N Cout"]:
    """Multiply features by a matrix, a convolution with kernel size 1, by the same rules of precision."""
    x, matrix = autocast(x), autocast(matrix)
    with torch.autocast(x.device.type, enabled=False):
        return (widen(x) @ widen(matrix)).to(x.dtype)
