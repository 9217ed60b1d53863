"""Fast sparse convolution in plain PyTorch: neighbours along z are runs of rows, gathered and multiplied at once.

Voxels are sorted by (batch, x, y, z), so the occupied cells of a kernel column along z are consecutive rows. A run of
n of them is one gather of n * channels numbers and one product with n stacked kernel slices; empty cells cost nothing.
Output rows are processed in blocks, so that gathered rows and products stay in cache; each thread has its own blocks.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cuao3d.products import add_product, matmul, widen
from cuao3d.sparse.voxels import KernelMap, Windows
from cuao3d.threads import in_shares

SMALL = 2000
"""Up to this many voxels, whole neighbourhoods are multiplied, empty cells included."""

ROWS_OF_HALF_PRECISION = 128
"""Half-precision products are padded to a multiple of this many rows: oneDNN compiles code for every new shape."""


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
        run = _convolve_windows if _is_small(x, kernel_map.windows) else _convolve_runs
        z_fastest = widen(kernel).index_select(0, kernel_map.positions)
        return run(widen(x.contiguous()), z_fastest, kernel_map.windows).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, kernel), kernel_map = ctx.saved_tensors, ctx.kernel_map
        wants_x, wants_kernel, _ = ctx.needs_input_grad
        inputs, grad = widen(x), widen(grad.contiguous())
        grad_x = grad_kernel = None
        if wants_kernel and _is_small(x, kernel_map.windows):
            total = _grad_of_windows(inputs, grad, kernel_map.windows)
            grad_kernel = torch.empty_like(total).index_copy_(0, kernel_map.positions, total)
            wants_kernel = False
        transposed = widen(kernel).transpose(1, 2).index_select(0, kernel_map.adjoint_positions)
        if wants_kernel:
            total = torch.zeros_like(transposed, dtype=torch.promote_types(kernel.dtype, torch.float32))
            grad_x = _convolve_runs(grad, transposed, kernel_map.adjoint, (inputs, total))
            grad_kernel = torch.empty_like(kernel, dtype=total.dtype)
            grad_kernel.index_copy_(0, kernel_map.adjoint_positions, total.transpose(1, 2))
        elif wants_x:
            run = _convolve_windows if _is_small(grad, kernel_map.adjoint) else _convolve_runs
            grad_x = run(grad, transposed, kernel_map.adjoint)
        return (
            None if grad_x is None else grad_x.to(x.dtype),
            None if grad_kernel is None else grad_kernel.to(kernel.dtype),
            None,
        )


def _convolve_runs(
    x: Tensor, kernel: Tensor, windows: Windows, kernel_pass: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Sum over each output row's runs of (run of x, flattened) @ (its kernel positions, stacked); z is fastest.

    In the backward pass x is the output's gradient and the kernel transposed. The gathered runs then also serve the
    kernel's gradient: with `kernel_pass` = (inputs, total), (run of x)^T @ (row of inputs) is added to the total.
    """
    (num_rows, channels), channels_out, depth = x.shape, kernel.shape[2], windows.depth
    num_rows_per_block = _num_rows_per_block(channels, channels_out, windows.num_outputs, x.device)
    blocks = windows.blocks(num_rows_per_block, _num_rows_multiple(x))
    groups = {(column, occupied) for block in blocks for column, occupied, _ in block.groups}
    kernels = {group: _stack(kernel, depth, *group) for group in groups}
    # Consecutive rows are consecutive in memory: row i of view n holds rows i to i + n - 1 of x.
    runs = [x.as_strided((max(num_rows - n + 1, 0), n * channels), (channels, 1)) for n in range(depth + 1)]
    max_runs = max(block.num_runs for block in blocks)
    out = x.new_empty(windows.num_outputs, channels_out)

    def convolve_share(share: int, num_shares: int) -> Tensor | None:
        products = x.new_empty(max_runs, channels_out)
        total = None if kernel_pass is None else torch.zeros_like(kernel_pass[1])
        totals = {} if total is None else {group: _stack(total, depth, *group) for group in groups}
        for block in blocks[share::num_shares]:
            of_runs = block.first, block.out_rows, products[: block.num_runs]
            pieces = (t.split_with_sizes(block.sizes) for t in of_runs)
            for (column, occupied, count), first, out_rows, product in zip(block.groups, *pieces, strict=True):
                run = runs[occupied.bit_count()].index_select(0, first)
                matmul(run, kernels[column, occupied], out=product)
                if kernel_pass is not None:
                    seen = kernel_pass[0].index_select(0, out_rows)
                    seen[count:] = 0  # padding of the group
                    add_product(totals[column, occupied], run.T, seen)
            out[block.rows] = F.embedding_bag(
                block.place_of_run, products, block.runs_before_row, mode="sum", include_last_offset=True
            )
        if total is not None:
            for (column, occupied), part in totals.items():
                if _has_gap(occupied):  # the others are views of the total
                    total[_positions(depth, column, occupied)] += part.view(-1, channels, channels_out)
        return total

    for total in in_shares(convolve_share, x.device):
        if total is not None and kernel_pass is not None:
            kernel_pass[1].add_(total)
    return out


def _stack(kernel: Tensor, depth: int, column: int, occupied: int) -> Tensor:
    """Stack the kernel positions that a run covers, (run length * Cin, Cout); a view unless the window has gaps."""
    return kernel[_positions(depth, column, occupied)].flatten(0, 1)


def _positions(depth: int, column: int, occupied: int) -> slice | list[int]:
    positions = [column * depth + cell for cell in range(depth) if occupied >> cell & 1]
    evenly = range(positions[0], positions[-1] + 1, (positions[-1] - positions[0]) // max(len(positions) - 1, 1) or 1)
    return slice(evenly.start, evenly.stop, evenly.step) if positions == list(evenly) else positions


def _has_gap(occupied: int) -> bool:
    lowest_bit = occupied & -occupied
    return occupied + lowest_bit & occupied != 0


def _convolve_windows(x: Tensor, kernel: Tensor, windows: Windows) -> Tensor:
    """Multiply whole neighbourhoods, with zeros for empty cells: faster for few channels or few voxels."""
    out = x.new_empty(windows.num_outputs, kernel.shape[2])
    for rows, seen in _gather_windows(x, windows):
        matmul(seen, kernel.flatten(0, 1), out=out[rows])
    return out


def _grad_of_windows(x: Tensor, grad: Tensor, windows: Windows) -> Tensor:
    shape = windows.volume, x.shape[1], grad.shape[1]
    total = torch.zeros(shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    for rows, seen in _gather_windows(x, windows):
        add_product(total.flatten(0, 1), seen.T, grad[rows])
    return total


def _gather_windows(x: Tensor, windows: Windows) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of output rows and their neighbourhoods, (rows, volume * Cin), with zeros for empty cells."""
    place, starts = windows.padded_line
    depth, channels = windows.depth, x.shape[1]
    line = x.new_zeros(int(place[-1]) + depth, channels).index_copy_(0, place, x)
    stretches = line.as_strided((len(line) - depth + 1, depth * channels), (channels, 1))
    num_rows = _num_rows_per_block(channels, windows.volume * channels, len(starts), x.device)
    for start in range(0, len(starts), num_rows):
        rows = slice(start, min(start + num_rows, len(starts)))
        yield rows, stretches.index_select(0, starts[rows].flatten()).view(rows.stop - start, -1)


def _is_small(x: Tensor, windows: Windows) -> bool:
    """Return whether multiplying empty cells costs less than skipping them."""
    return windows.depth > 2 and (x.shape[1] <= 4 or windows.num_outputs <= SMALL)


def _num_rows_multiple(x: Tensor) -> int:
    return ROWS_OF_HALF_PRECISION if x.device.type == "cpu" and x.element_size() == 2 else 1


def _num_rows_per_block(channels: int, channels_out: int, num_outputs: int, device: torch.device) -> int:
    """Return a block size that makes products large yet keeps them in cache; most layers of a network share it."""
    if device.type != "cpu":
        return max(1, 2**25 // max(channels, channels_out))
    num_blocks = -(-num_outputs * max(channels, channels_out, 32) // 2**19)
    num_threads = min(torch.get_num_threads(), -(-num_outputs // 1024))
    return -(-num_outputs // (-(-num_blocks // num_threads) * num_threads))
