"""Sparse convolution on a GPU with kernels of our own in Triton: gathered products, summed in registers.

Output rows are ordered by the kernel positions at which they see an input. A tile of them skips the positions that
none of its rows sees, and each row is written once: no atomics, the same bytes every time. The gradient of the
inputs is the same kernel over the adjoint map. The gradient of the kernel sums pairs in parts, then the parts.
"""

import importlib
import os
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cuao3d.errors import InputError, NotInstalledError
from cuao3d.sparse.voxels import KernelMap, Windows

PRECISION = "ieee"
"""How float32 is multiplied: "ieee", or with tensor cores "tf32x3" (nearly float32) or "tf32" (10 bits)."""

NUM_PARTS, MIN_PAIRS_PER_PART = 16, 1024
"""The pairs of a kernel position are summed in up to so many parts, by the same rule on every GPU."""

POSITIONS_PER_WORD = 62
"""Kernel positions whose occupancy is sorted as one int64."""


@dataclass(frozen=True)
class Tile:
    """What one program of a kernel computes; chosen by type and channels alone, so results do not vary."""

    rows: int
    channels_in: int
    channels_out: int
    warps: int
    stages: int = 3

    @staticmethod
    def of(num_in: int, num_out: int, dtype: torch.dtype) -> "Tile":
        """Choose a tile: powers of two, at least 16 a side, as products of tensor cores are."""
        is_half = dtype.itemsize == 2
        channels_out = min(_power_of_two(num_out), 128 if is_half else 64)
        channels_in = min(_power_of_two(num_in), 64 if is_half else 32)
        return Tile(128 if is_half else 64, channels_in, channels_out, warps=8 if channels_out == 128 else 4)


def convolve_by_triton(
    x: Float[Tensor, "N Cin"], kernel: Float[Tensor, "K Cin Cout"], kernel_map: KernelMap
) -> Float[Tensor, "M Cout"]:
    """Convolve features over a kernel map with Triton kernels; sums are float32.

    Raises:
        NotInstalledError: triton is not installed.
        InputError: The features are on a CPU and Triton's interpreter is off, or they are float64.
    """
    try:
        importlib.import_module("triton")
    except ImportError:
        raise NotInstalledError(
            "The triton backend needs triton, which PyTorch for GPUs brings along; elsewhere: pip install triton"
        ) from None
    if x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError("The triton backend needs features on a GPU; on a CPU choose the backend 'runs'.")
    if x.dtype == torch.float64:
        raise InputError("The triton backend computes float32, bfloat16 and float16; for float64 choose 'runs'.")
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        raise InputError("Triton's interpreter does not multiply bfloat16; on a CPU choose the backend 'runs'.")
    out: Tensor = _Convolution.apply(x, kernel, kernel_map)  # type: ignore[no-untyped-call]
    return out


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.kernel_map = kernel_map
        return _convolve(x, kernel.index_select(0, kernel_map.positions), kernel_map.windows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, kernel), kernel_map = ctx.saved_tensors, ctx.kernel_map
        grad_x = grad_kernel = None
        if ctx.needs_input_grad[0]:
            transposed = kernel.transpose(1, 2).index_select(0, kernel_map.adjoint_positions)
            grad_x = _convolve(grad, transposed, kernel_map.adjoint)
        if ctx.needs_input_grad[1]:
            total = _grad_of_kernel(x, grad, kernel_map.windows).to(kernel.dtype)
            grad_kernel = torch.empty_like(total).index_copy_(0, kernel_map.positions, total)
        return grad_x, grad_kernel, None


def _convolve(x: Tensor, kernel: Tensor, windows: Windows) -> Tensor:
    """Convolve with a kernel whose z is fastest."""
    from cuao3d.sparse.triton_kernels import sum_over_positions

    num_in, num_out = kernel.shape[1:]
    tile = Tile.of(num_in, num_out, x.dtype)
    tiles = _Tiles.of(windows, tile.rows)
    out = x.new_empty(windows.num_outputs, num_out)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        sum_over_positions[tiles.num_tiles * -(-num_out // tile.channels_out),](
            *(x.contiguous(), kernel.contiguous(), out),
            *(tiles.row_of_slot, tiles.inputs, tiles.seen, tiles.seen_before_tile, tiles.inputs.shape[1]),
            *(num_in, num_out, tile.rows, tile.channels_in, tile.channels_out, PRECISION),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


def _grad_of_kernel(x: Tensor, grad: Tensor, windows: Windows) -> Tensor:
    """Return the gradient of a kernel whose z is fastest, float32."""
    from cuao3d.sparse.triton_kernels import sum_over_pairs

    num_in, num_out = x.shape[1], grad.shape[1]
    pairs, side = _Pairs.of(windows), 64 if x.dtype.itemsize == 2 else 32
    sides = min(_power_of_two(num_in), 64), min(_power_of_two(num_out), 64)
    parts = x.new_empty(pairs.num_parts, windows.volume, num_in, num_out, dtype=torch.float32)
    num_tiles = -(-num_in // sides[0]) * -(-num_out // sides[1])
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        sum_over_pairs[num_tiles, windows.volume, pairs.num_parts](
            *(x.contiguous(), grad.contiguous(), parts),
            *(pairs.in_rows, pairs.out_rows, pairs.before_position, pairs.num_per_part),
            *(num_in, num_out, side, *sides, PRECISION),
            num_warps=4,
            num_stages=3,
        )
    return parts.sum(dim=0)


def _power_of_two(count: int) -> int:
    return max(16, 1 << (count - 1).bit_length())


@dataclass(frozen=True)
class _Tiles:
    """Output rows of a map in slots, ordered by what they see and cut into tiles."""

    row_of_slot: Int[Tensor, "L"]
    """Output row; -1 in the last slots, which fill up the last tile."""
    inputs: Int[Tensor, "K L"]
    """Input row at each kernel position, -1 where there is none."""
    seen: Int[Tensor, "_"]
    """The kernel positions that any row of a tile sees, one tile after another."""
    seen_before_tile: Int[Tensor, "_"]

    @property
    def num_tiles(self) -> int:
        return len(self.seen_before_tile) - 1

    @staticmethod
    def of(windows: Windows, num_rows: int) -> "_Tiles":
        kept: dict[int, _Tiles] = _tiles_of_windows.setdefault(windows, {})
        if num_rows not in kept:
            kept[num_rows] = _Tiles._make(windows, num_rows)
        return kept[num_rows]

    @staticmethod
    def _make(windows: Windows, num_rows: int) -> "_Tiles":
        inputs = _list_inputs(windows)
        order = torch.arange(windows.num_outputs, device=inputs.device)
        for start in reversed(range(0, windows.volume, POSITIONS_PER_WORD)):
            word = torch.zeros_like(order)
            for bit, inputs_there in enumerate(inputs[start : start + POSITIONS_PER_WORD]):
                word |= (inputs_there >= 0).long() << bit
            order = order[word[order].argsort(stable=True)]
        filling = (0, -len(order) % num_rows)
        inputs = F.pad(inputs[:, order], filling, value=-1).contiguous()
        sees = (inputs.view(len(inputs), -1, num_rows) >= 0).any(dim=2).T
        counts = F.pad(sees.sum(dim=1), (1, 0)).cumsum(dim=0)
        return _Tiles(F.pad(order, filling, value=-1).int(), inputs, sees.nonzero()[:, 1].int(), counts.int())


@dataclass(frozen=True)
class _Pairs:
    """The (input row, output row) pairs of each kernel position, one position after another."""

    in_rows: Int[Tensor, "P"]
    out_rows: Int[Tensor, "P"]
    before_position: Int[Tensor, "_"]
    num_parts: int
    num_per_part: int

    @staticmethod
    def of(windows: Windows) -> "_Pairs":
        if windows not in _pairs_of_windows:
            inputs = _list_inputs(windows)
            counts = (inputs >= 0).sum(dim=1)
            position, out_rows = (inputs >= 0).nonzero().unbind(dim=1)
            in_rows = inputs[position, out_rows]
            most = int(counts.max())
            num_per_part = max(-(-most // NUM_PARTS), MIN_PAIRS_PER_PART)
            before = F.pad(counts.cumsum(dim=0), (1, 0)).int()
            num_parts = -(-most // num_per_part)
            _pairs_of_windows[windows] = _Pairs(in_rows, out_rows.int(), before, num_parts, num_per_part)
        return _pairs_of_windows[windows]


_tiles_of_windows: "WeakKeyDictionary[Windows, dict[int, _Tiles]]" = WeakKeyDictionary()
_pairs_of_windows: "WeakKeyDictionary[Windows, _Pairs]" = WeakKeyDictionary()


def _list_inputs(windows: Windows) -> Int[Tensor, "K M"]:
    """Return the input row that each output row sees at each kernel position, -1 where there is none."""
    inputs = windows.first.new_full((windows.volume, windows.num_outputs), -1)
    in_rows, position = windows.first, windows.column.long() * windows.depth
    for cell in range(windows.depth):
        sees = (windows.occupied >> cell) & 1
        has_cell = sees.nonzero()[:, 0]
        inputs[position[has_cell] + cell, windows.row[has_cell].long()] = in_rows[has_cell]
        in_rows = in_rows + sees
    return inputs
