"""Fast sparse convolution in plain PyTorch: neighbours along z are runs of rows, gathered and multiplied at once.

Voxels are sorted by (batch, x, y, z), so the occupied cells of a kernel column along z are consecutive rows. A run of
n of them is one gather of n * channels numbers and one product with n stacked kernel slices; empty cells cost nothing.
Output rows are taken a block at a time, so that gathered rows and products stay in the cache.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cuao3d.sparse.precision import widen
from cuao3d.sparse.voxels import KernelMap, Windows


def convolve_runs(
    x: Float[Tensor, "N Cin"], kernel: Float[Tensor, "K Cin Cout"], kernel_map: KernelMap
) -> Float[Tensor, "M Cout"]:
    """Convolve features over a kernel map."""
    out: Tensor = _Convolution.apply(x, kernel, kernel_map)  # type: ignore[no-untyped-call]
    return out


class _Convolution(torch.autograd.Function):
    """Forward over a kernel map; backward over its adjoint, one pass for both gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.kernel_map = kernel_map
        run = _convolve_windows if _has_few_channels(x, kernel_map.windows) else _convolve_runs
        z_fastest = widen(kernel).index_select(0, kernel_map.positions)
        return run(widen(x.contiguous()), z_fastest, kernel_map.windows).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, kernel), kernel_map = ctx.saved_tensors, ctx.kernel_map
        wants_x, wants_kernel, _ = ctx.needs_input_grad
        inputs, grad = widen(x), widen(grad.contiguous())
        grad_x = grad_kernel = None
        if wants_kernel and _has_few_channels(x, kernel_map.windows):
            total = _grad_of_windows(inputs, grad, kernel_map.windows)
            grad_kernel = torch.empty_like(total).index_copy_(0, kernel_map.positions, total)
            wants_kernel = False
        if wants_x or wants_kernel:
            transposed = widen(kernel).transpose(1, 2).index_select(0, kernel_map.adjoint_positions)
            total = torch.zeros_like(transposed, dtype=torch.promote_types(kernel.dtype, torch.float32))
            kernel_pass = (inputs, total) if wants_kernel else None
            grad_x = _convolve_runs(grad, transposed, kernel_map.adjoint, kernel_pass).to(x.dtype)
            if wants_kernel:
                grad_kernel = torch.empty_like(kernel, dtype=total.dtype)
                grad_kernel.index_copy_(0, kernel_map.adjoint_positions, total.transpose(1, 2))
        return grad_x, None if grad_kernel is None else grad_kernel.to(kernel.dtype), None


def _convolve_runs(
    x: Tensor, kernel: Tensor, windows: Windows, kernel_pass: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Sum over each output row's runs of (run of x, flattened) @ (its kernel positions, stacked); z is fastest.

    In the backward pass x is the output's gradient and the kernel transposed. The gathered runs then also serve the
    kernel's gradient: with `kernel_pass` = (inputs, total), (run of x)^T @ (row of inputs) is added to the total.
    """
    (num_rows, channels), channels_out, depth = x.shape, kernel.shape[2], windows.depth
    blocks = windows.blocks(_num_rows_per_block(channels, channels_out, x.device))
    groups = {(column, occupied) for block in blocks for column, occupied, _ in block.groups}
    kernels = {group: _stack(kernel, depth, *group) for group in groups}
    # Consecutive rows are consecutive in memory: row i of view n holds rows i to i + n - 1 of x.
    runs = [x.as_strided((max(num_rows - n + 1, 0), n * channels), (channels, 1)) for n in range(depth + 1)]
    products = x.new_empty(max(block.num_runs for block in blocks), channels_out)
    out = x.new_empty(windows.num_outputs, channels_out)
    if kernel_pass is not None:
        inputs, total = kernel_pass
        totals = {group: _stack(total, depth, *group) for group in groups}
    for block in blocks:
        counts = [count for _, _, count in block.groups]
        pieces = (t.split_with_sizes(counts) for t in (block.first, block.out_rows, products[: block.num_runs]))
        for (column, occupied, _), first, out_rows, product in zip(block.groups, *pieces, strict=True):
            run = runs[occupied.bit_count()].index_select(0, first)
            torch.mm(run, kernels[column, occupied], out=product)
            if kernel_pass is not None:
                _add_product(totals[column, occupied], run.T, inputs.index_select(0, out_rows))
        out[block.rows] = F.embedding_bag(
            block.place_of_run, products, block.runs_before_row, mode="sum", include_last_offset=True
        )
    if kernel_pass is not None:
        for (column, occupied), part in totals.items():
            if _has_gap(occupied):  # the others are views of the total
                total[_positions(depth, column, occupied)] += part.view(-1, channels, channels_out)
    return out


def _stack(kernel: Tensor, depth: int, column: int, occupied: int) -> Tensor:
    """Kernel positions that a run goes through, (run length * Cin, Cout); a view unless the window has gaps."""
    return kernel[_positions(depth, column, occupied)].flatten(0, 1)


def _positions(depth: int, column: int, occupied: int) -> slice | list[int]:
    positions = [column * depth + cell for cell in range(depth) if occupied >> cell & 1]
    evenly = range(positions[0], positions[-1] + 1, (positions[-1] - positions[0]) // max(len(positions) - 1, 1) or 1)
    return slice(evenly.start, evenly.stop, evenly.step) if positions == list(evenly) else positions


def _has_gap(occupied: int) -> bool:
    lowest_bit = occupied & -occupied
    return occupied + lowest_bit & occupied != 0


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to a total that may be of a wider type."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


def _convolve_windows(x: Tensor, kernel: Tensor, windows: Windows) -> Tensor:
    """Multiply whole neighbourhoods, empty cells as zeros: for few channels."""
    out = x.new_empty(windows.num_outputs, kernel.shape[2])
    for rows, seen in _gather_windows(x, windows):
        torch.mm(seen, kernel.flatten(0, 1), out=out[rows])
    return out


def _grad_of_windows(x: Tensor, grad: Tensor, windows: Windows) -> Tensor:
    shape = windows.volume, x.shape[1], grad.shape[1]
    total = torch.zeros(shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    for rows, seen in _gather_windows(x, windows):
        _add_product(total.flatten(0, 1), seen.T, grad[rows])
    return total


def _gather_windows(x: Tensor, windows: Windows) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of output rows and all that they see, (rows, volume * Cin), empty cells as zeros."""
    place, starts = windows.padded_line
    depth, channels = windows.depth, x.shape[1]
    line = x.new_zeros(int(place[-1]) + depth, channels).index_copy_(0, place, x)
    stretches = line.as_strided((len(line) - depth + 1, depth * channels), (channels, 1))
    num_rows = _num_rows_per_block(channels, windows.volume * channels, x.device)
    for start in range(0, len(starts), num_rows):
        rows = slice(start, min(start + num_rows, len(starts)))
        yield rows, stretches.index_select(0, starts[rows].flatten()).view(rows.stop - start, -1)


def _has_few_channels(x: Tensor, windows: Windows) -> bool:
    """Whether multiplying the empty cells of windows costs less than avoiding them."""
    return x.shape[1] <= 4 and windows.depth > 2


def _num_rows_per_block(channels: int, channels_out: int, device: torch.device) -> int:
    """Power of two that makes products large and keeps them in the cache; the same for most layers of a network."""
    num_values = 2**20 if device.type == "cpu" else 2**25
    return 1 << (num_values // max(channels, channels_out, 128)).bit_length() - 1
