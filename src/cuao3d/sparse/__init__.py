"""Sparse 3D convolution: voxel sets, their kernel maps, and one function over interchangeable backends."""

import torch
from jaxtyping import Float
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.products import autocast, matmul, widen
from cuao3d.sparse.naive import convolve_naively
from cuao3d.sparse.runs import convolve_runs
from cuao3d.sparse.spconv import convolve_by_spconv
from cuao3d.sparse.triton import convolve_by_triton
from cuao3d.sparse.voxels import KernelMap, VoxelSet, sort_voxels
from cuao3d.threads import in_shares

__all__ = [
    "BACKENDS",
    "KernelMap",
    "VoxelSet",
    "convolve",
    "multiply",
    "sort_voxels",
]

BACKENDS = {
    "runs": convolve_runs,
    "naive": convolve_naively,
    "triton": convolve_by_triton,
    "spconv": convolve_by_spconv,
}
"""Interchangeable implementations: "runs" works anywhere and is fast on a CPU, "naive" is the reference, "triton" has
kernels of our own for a GPU, and "spconv" calls that library there."""

ROWS_AT_A_TIME = 1024
"""Rows per block where half precision is converted to float32."""


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
        kernel_map: Which input voxels each output voxel reads, from `VoxelSet`.
        backend: A name in `BACKENDS`.

    Returns:
        One row of features per output voxel.

    Raises:
        InputError: The shapes do not fit the map, or there is no such backend.
    """
    if kernel.shape[:2] != (kernel_map.volume, x.shape[1]) or len(x) != kernel_map.num_inputs:
        raise InputError(
            f"A map with {kernel_map.num_inputs} inputs and {kernel_map.volume} kernel positions cannot convolve "
            f"features of shape {tuple(x.shape)} with a kernel of shape {tuple(kernel.shape)}."
        )
    if backend not in BACKENDS:
        raise InputError(f"Unknown backend {backend!r}; choose from {', '.join(BACKENDS)}.")
    return BACKENDS[backend](autocast(x), autocast(kernel), kernel_map)


def multiply(x: Float[Tensor, "N Cin"], matrix: Float[Tensor, "Cin Cout"]) -> Float[Tensor, "N Cout"]:
    """Multiply features by a matrix (a convolution with kernel size 1), in the same precision as `convolve`."""
    x, matrix = autocast(x), autocast(matrix)
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled() or widen(x[:0]).dtype == x.dtype:
            return matmul(widen(x), widen(matrix)).to(x.dtype)
        return _multiply_by_parts(x, widen(matrix))


def _multiply_by_parts(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply a block of rows at a time, so that no float32 tensor of the result's size exists."""
    out = x.new_empty(len(x), matrix.shape[1])

    def fill(share: int, num_shares: int) -> None:
        for start in range(share * ROWS_AT_A_TIME, len(x), num_shares * ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            out[rows] = matmul(x[rows].to(matrix.dtype), matrix)

    in_shares(fill, x.device)
    return out
