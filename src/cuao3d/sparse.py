"""Sparse 3D convolution in plain PyTorch: sorted voxels make neighbours along z runs of rows, multiplied at once.

Sorted by (batch, x, y, z), the occupied cells of a kernel column (its `size` cells along z) are consecutive rows.
A run of n of them is one gather of n * channels numbers and one product with n stacked kernel slices; empty cells cost
nothing. Output rows are taken a block at a time, so that gathered rows and products stay in the cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Backend = Literal["runs", "naive"]

MAX_COORDINATE = 2**18
"""Largest absolute voxel coordinate."""


def sort_voxels(coords: Int[Tensor, "V 4"]) -> tuple[Voxels, Int[Tensor, "V"]]:
    """Check coordinates and sort them.

    Args:
        coords: Distinct integer cell coordinates [batch, x, y, z], in any order; batch >= 0.

    Returns:
        The voxels and, for each of them, its row in `coords`.
    """
    if coords.dim() != 2 or coords.shape[1] != 4 or coords.is_floating_point() or coords.is_complex():
        raise ValueError(
            f"Voxel coordinates must be integers of shape (V, 4), [batch, x, y, z]; got {coords.dtype} of shape "
            f"{tuple(coords.shape)}. Divide by the voxel size, floor and convert first."
        )
    if len(coords) == 0:
        raise ValueError("There are no voxels: coords is empty.")
    coords = coords.long()
    if coords[:, 1:].abs().max() > MAX_COORDINATE or coords[:, 0].min() < 0:
        raise ValueError(
            f"Voxel coordinates must lie within +-{MAX_COORDINATE} and batch indices be >= 0; got "
            f"{coords.amin(dim=0).tolist()} to {coords.amax(dim=0).tolist()}. Centre the scene, or use larger voxels."
        )
    keys, order = torch.sort(_Packing.of(coords).keys(coords))
    num_duplicates = int((keys[1:] == keys[:-1]).sum())
    if num_duplicates:
        raise ValueError(
            f"{num_duplicates} of {len(coords)} voxels are duplicates; average the points of a voxel first."
        )
    return Voxels(coords[order]), order


def convolve(
    x: Float[Tensor, "N Cin"],
    kernel: Float[Tensor, "K Cin Cout"],
    kernel_map: KernelMap,
    backend: Backend = "runs",
) -> Float[Tensor, "M Cout"]:
    """Convolve features over a kernel map; differentiable in features and kernel.

    Args:
        x: One row of features per input voxel.
        kernel: One matrix per kernel position, x fastest, as in MinkowskiEngine; `kernel_offsets` lists them.
        kernel_map: Which input voxels each output voxel sees, from `Voxels`.
        backend: "runs" is the fast one; "naive" gathers, multiplies and adds one kernel position after the other.

    Returns:
        One row of features per output voxel.
    """
    if kernel.shape[:2] != (kernel_map.volume, x.shape[1]) or len(x) != kernel_map.num_inputs:
        raise ValueError(
            f"A map with {kernel_map.num_inputs} inputs and {kernel_map.volume} kernel positions cannot convolve "
            f"features of shape {tuple(x.shape)} with a kernel of shape {tuple(kernel.shape)}."
        )
    if torch.is_autocast_enabled(x.device.type):
        x, kernel = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, kernel))
    in_map_order = kernel.index_select(0, kernel_map.official_of_position)
    if backend == "naive":
        return _convolve_naively(x, in_map_order, kernel_map)
    out: Tensor = _Convolution.apply(x, in_map_order, kernel_map)  # type: ignore[no-untyped-call]
    return out


def kernel_offsets(size: int) -> Int[Tensor, "K 3"]:
    """Offsets (dx, dy, dz) from output to input cell of each kernel position, x fastest, in cells of the input."""
    low = -(size // 2) if size % 2 else 0
    z, y, x = torch.cartesian_prod(*[torch.arange(low, low + size)] * 3).view(-1, 3).unbind(dim=1)
    return torch.stack([x, y, z], dim=1)


class Voxels:
    """The occupied cells of one resolution, sorted by (batch, x, y, z), and the kernel maps between them.

    Coarser resolutions and kernel maps are built when first asked for and kept, so that all layers of a network and
    their backward passes share them.

    Attributes:
        coords: (V, 4) int64 [batch, x, y, z] in cells of this resolution, distinct and sorted.
    """

    def __init__(self, coords: Int[Tensor, "V 4"]) -> None:
        self.coords = coords
        self._packing = _Packing.of(coords)
        self._keys = self._packing.keys(coords)
        self._neighbours: dict[int, KernelMap] = {}

    def __len__(self) -> int:
        return len(self.coords)

    @cached_property
    def coarse(self) -> Voxels:
        """The cells of twice the edge that hold these: floor(coords / 2)."""
        return Voxels(self._coarsened[0])

    def neighbours(self, size: int) -> KernelMap:
        """Map of a submanifold convolution with an odd kernel: from these voxels to themselves."""
        if size not in self._neighbours:
            radius = size // 2
            starts = self._keys - radius + self._packing.columns(-radius, radius + 1, self.coords.device)
            kernel_map = self._map_from(starts, size)
            kernel_map.adjoint = kernel_map
            self._neighbours[size] = kernel_map
        return self._neighbours[size]

    @cached_property
    def down(self) -> KernelMap:
        """Map of a strided convolution with kernel 2: from these voxels to `coarse`."""
        corners = self.coarse.coords * torch.tensor([1, 2, 2, 2], device=self.coords.device)
        starts = self._packing.keys(corners) + self._packing.columns(0, 2, self.coords.device)
        return self._map_from(starts, 2)

    @cached_property
    def up(self) -> KernelMap:
        """Map of a transposed convolution with kernel 2: from `coarse` to these voxels."""
        octant = ((self.coords[:, 1:] & 1) * torch.tensor([4, 2, 1], device=self.coords.device)).sum(dim=1)
        occupied = octant == torch.arange(8, device=octant.device)[:, None]
        parent = self._coarsened[1]
        up = KernelMap(parent.expand(8, -1), occupied.byte(), size=2, depth=1, num_inputs=len(self.coarse))
        up.adjoint, self.down.adjoint = self.down, up
        return up

    @cached_property
    def _coarsened(self) -> tuple[Tensor, Tensor]:
        """Sorted coordinates of the coarser cells and, per voxel, the row of the cell it lies in."""
        halved = self.coords >> torch.tensor([0, 1, 1, 1], device=self.coords.device)
        keys, order = torch.sort(_Packing.of(halved).keys(halved), stable=True)
        starts_cell = torch.ones_like(keys, dtype=torch.bool)
        starts_cell[1:] = keys[1:] != keys[:-1]
        parent = torch.empty_like(order)
        parent[order] = starts_cell.cumsum(dim=0) - 1
        return halved[order[starts_cell]], parent

    def _map_from(self, starts: Int[Tensor, "columns M"], size: int) -> KernelMap:
        """Map whose output row m sees, in each kernel column, the `size` cells from the key `starts` on."""
        first = torch.searchsorted(self._keys, starts)
        keys = F.pad(self._keys, (0, size), value=torch.iinfo(torch.int64).max)
        bits = torch.zeros_like(first, dtype=torch.uint8)
        for i in range(size):
            cell = (keys[first + i] - starts).clamp(max=size)
            bits |= (1 << cell).byte()
        return KernelMap(
            first, bits & (2**size - 1), size=size, depth=size, num_inputs=len(self), input_keys=self._keys
        )


@dataclass(frozen=True)
class _Packing:
    """Coordinates <-> 64-bit keys of the same order, with free cells around the occupied box.

    The free cells keep the neighbours of a kernel up to 5 from falling on the key of a voxel elsewhere.
    """

    low: Tensor
    strides: Tensor

    @staticmethod
    def of(coords: Tensor) -> _Packing:
        """Packing for these coordinates."""
        low, high = coords.amin(dim=0) - 2, coords.amax(dim=0) + 2
        _, x, y, z = (high - low + 1).tolist()
        if (high[0] - low[0] + 1).item() * x * y * z >= 2**63:
            raise ValueError(f"{int(high[0]) - 1} clouds of {x} x {y} x {z} cells are too many for one batch.")
        return _Packing(low, torch.tensor([x * y * z, y * z, z, 1], device=coords.device))

    def keys(self, coords: Tensor) -> Tensor:
        """Keys (V,) of coordinates (V, 4)."""
        b, x, y, z = (coords - self.low).unbind(dim=1)
        sb, sx, sy, _ = self.strides.unbind()
        return b * sb + x * sx + y * sy + z

    def columns(self, low: int, high: int, device: torch.device) -> Tensor:
        """What to add to a key to move by (dx, dy), for all pairs from low to high, dy fastest: (columns, 1)."""
        steps = torch.arange(low, high, device=device)
        return (steps[:, None] * self.strides[1] + steps * self.strides[2]).reshape(-1, 1)


class KernelMap:
    """Which input rows each output row of a convolution sees, and through which kernel position.

    Kernel positions are grouped into columns along z. In map order (x slowest, z fastest) column c holds the positions
    c * depth to (c + 1) * depth - 1.
    """

    def __init__(
        self,
        first: Int[Tensor, "columns M"],
        occupied: Int[Tensor, "columns M"],
        *,
        size: int,
        depth: int,
        num_inputs: int,
        input_keys: Int[Tensor, "N"] | None = None,
    ) -> None:
        """Describe the map by windows.

        Args:
            first: First input row in the column's window of an output row; the others follow it.
            occupied: Bit i says whether cell i of the window is occupied.
            size: Edge of the kernel, cells.
            depth: Kernel positions per column.
            num_inputs: Number of input rows.
            input_keys: Sorted keys of the inputs, consecutive along z, where windows may be read densely.
        """
        self.first, self.occupied, self.depth, self.num_inputs = first, occupied, depth, num_inputs
        self.volume = size**3
        self.adjoint: KernelMap | None = None
        self._input_keys = input_keys
        self._blocks: dict[int, list[_Block]] = {}
        position = torch.arange(self.volume, device=first.device).view(size, size, size)
        self.official_of_position = position.permute(2, 1, 0).flatten()

    @property
    def num_outputs(self) -> int:
        """Number of output rows."""
        return self.first.shape[1]

    @cached_property
    def num_pairs(self) -> int:
        """Number of (input, output) pairs: each costs 2 * Cin * Cout floating-point operations."""
        return sum(len(rows) for _, rows in self.pairs)

    @cached_property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Input rows and output rows of each kernel position, in map order."""
        pairs = []
        for first, occupied in zip(self.first, self.occupied, strict=True):
            for cell in range(self.depth):
                has_cell = (occupied >> cell) & 1
                out_rows = has_cell.nonzero()[:, 0]
                pairs.append((first[out_rows], out_rows))
                first = first + has_cell
        return pairs

    def blocks(self, num_rows: int) -> list[_Block]:
        """The map as runs, for `num_rows` output rows at a time."""
        if num_rows not in self._blocks:
            self._blocks[num_rows] = list(self._split_into_blocks(num_rows))
        return self._blocks[num_rows]

    @cached_property
    def windows(self) -> tuple[Int[Tensor, "N"], Int[Tensor, "M columns"]]:
        """Rows of the inputs in a padded line, and where each window starts in it.

        In the padded line, cells along z lie as far apart as in space, up to `depth`, so every window of `depth` cells
        is a stretch of it, its empty cells zeros. It starts with `depth` zeros, the window of an empty column.
        """
        assert self._input_keys is not None
        gaps = self._input_keys.diff().clamp(max=self.depth)
        cell_of_input = F.pad(gaps.cumsum(dim=0), (1, 0)) + 2 * self.depth
        lowest_bit = torch.tensor([_lowest_bit(bits) for bits in range(2**self.depth)], device=gaps.device)
        occupied = self.occupied.long()
        starts = cell_of_input[self.first.clamp(max=self.num_inputs - 1)] - lowest_bit[occupied]
        return cell_of_input, torch.where(occupied > 0, starts, 0).T.contiguous()

    def _split_into_blocks(self, num_rows: int) -> Iterator[_Block]:
        runs, kind_of_bits, skipped_of_bits = _runs_of_windows(self.depth)
        num_columns, device = len(self.first), self.first.device
        num_groups = len(runs) * num_columns
        occupied = self.occupied.T.int()
        kind = kind_of_bits.to(device)[occupied]  # (M, columns, runs per window), -1 where there is no run
        column = torch.arange(num_columns, dtype=torch.int32, device=device)[:, None]
        row = torch.arange(self.num_outputs, dtype=torch.int32, device=device)[:, None, None]
        exists = kind >= 0
        group = (row // num_rows * num_groups + kind * num_columns + column)[exists]
        first = (self.first.T[:, :, None] + skipped_of_bits.to(device)[occupied])[exists]
        row_of_run = row.expand_as(kind)[exists]
        sorted_group, order = torch.sort(group, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=device)
        first, row_of_run = first[order], row_of_run[order]
        num_runs_before_row = F.pad(exists.sum(dim=(1, 2)).cumsum(dim=0), (1, 0))
        num_blocks = -(-self.num_outputs // num_rows)
        counts = torch.bincount(sorted_group, minlength=num_blocks * num_groups).view(num_blocks, num_groups).tolist()
        start = 0
        for block, counts_of_block in enumerate(counts):
            products = [
                (group % num_columns * self.depth + runs[group // num_columns][1], runs[group // num_columns][0], count)
                for group, count in enumerate(counts_of_block)
                if count
            ]
            stop = start + sum(counts_of_block)
            rows = slice(block * num_rows, min((block + 1) * num_rows, self.num_outputs))
            yield _Block(
                rows=rows,
                first=first[start:stop],
                out_rows=row_of_run[start:stop],
                products=products,
                place_of_run=place[start:stop] - start,
                runs_of_row=num_runs_before_row[rows.start : rows.stop + 1] - start,
            )
            start = stop


@dataclass(frozen=True)
class _Block:
    """The runs of some consecutive output rows, sorted so that those with the same kernel positions are together."""

    rows: slice
    first: Tensor
    """First input row of each run."""
    out_rows: Tensor
    """Output row of each run."""
    products: list[tuple[int, int, int]]
    """(first kernel position, run length, number of runs) of each product; shortest runs first."""
    place_of_run: Tensor
    """Places of the runs of the first row, then of the second, ..."""
    runs_of_row: Tensor
    """Where each row's runs start in `place_of_run`; one entry more than rows."""

    @property
    def num_runs(self) -> int:
        """Number of runs."""
        return len(self.first)

    @property
    def num_values(self) -> int:
        """Number of input rows that the runs hold together."""
        return sum(length * count for _, length, count in self.products)


@lru_cache
def _runs_of_windows(depth: int) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
    """All runs (length, first cell) of a window, and for every occupancy the runs that make it up.

    Returns:
        The runs, shortest first; per occupancy and run its index among them or -1; and the number of occupied cells
        before it.
    """
    runs = sorted((length, cell) for cell in range(depth) for length in range(1, depth - cell + 1))
    kind = torch.full((2**depth, (depth + 1) // 2), -1, dtype=torch.int32)
    skipped = torch.zeros_like(kind)
    for bits in range(2**depth):
        cells = [cell for cell in range(depth) if bits >> cell & 1]
        starts = [cell for cell in cells if cell - 1 not in cells]
        for i, start in enumerate(starts):
            length = next(n for n in range(1, depth + 1) if start + n not in cells)
            kind[bits, i] = runs.index((length, start))
            skipped[bits, i] = cells.index(start)
    return runs, kind, skipped


def _lowest_bit(bits: int) -> int:
    return (bits & -bits).bit_length() - 1 if bits else 0


class _Convolution(torch.autograd.Function):
    """Forward over a map; backward over its adjoint, one pass for both gradients. The kernel is in map order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.kernel_map = kernel_map
        if _has_few_channels(x, kernel_map):
            return _convolve_windows(x, kernel, kernel_map)
        return _convolve_runs(x, kernel, kernel_map)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, kernel = ctx.saved_tensors
        kernel_map, adjoint = ctx.kernel_map, ctx.kernel_map.adjoint
        wants_x, wants_kernel, _ = ctx.needs_input_grad
        grad_x = grad_kernel = None
        if wants_kernel and _has_few_channels(x, kernel_map):
            grad_kernel = _grad_of_windows(x, grad, kernel_map)
            wants_kernel = False
        if wants_x or wants_kernel:
            mirrored = kernel.flip(0) if adjoint is kernel_map else kernel
            transposed = mirrored.transpose(1, 2).contiguous()
            grad_transposed = torch.zeros_like(transposed) if wants_kernel else None
            grad_x = _convolve_runs(grad, transposed, adjoint, inputs=x, grad_kernel=grad_transposed)
            if grad_transposed is not None:
                grad_kernel = grad_transposed.transpose(1, 2)
                grad_kernel = grad_kernel.flip(0) if adjoint is kernel_map else grad_kernel
        return grad_x, grad_kernel, None


def _convolve_runs(
    x: Tensor, kernel: Tensor, kernel_map: KernelMap, inputs: Tensor | None = None, grad_kernel: Tensor | None = None
) -> Tensor:
    """Sum over each output row's runs of (run of x, flattened) @ (kernel slices, stacked).

    In the backward pass x is the output's gradient and the kernel transposed; the gathered runs then also serve the
    kernel's gradient, (run of x)^T @ (row of `inputs`), added to `grad_kernel` in the transposed kernel's layout.
    """
    x = x.contiguous()
    channels, channels_out = kernel.shape[1:]
    blocks = kernel_map.blocks(_num_rows_per_block(x, channels_out))
    max_runs = max(block.num_runs for block in blocks)
    gathered = x.new_empty(max(block.num_values for block in blocks) * channels)
    terms = x.new_empty(max_runs, channels_out)
    out = x.new_empty(kernel_map.num_outputs, channels_out)
    flat_kernel = kernel.view(-1, channels_out)
    for block in blocks:
        factors = _gather_runs(x, block, gathered)
        counts = [count for _, _, count in block.products]
        for (position, length, _), factor, term in zip(
            block.products, factors, terms[: block.num_runs].split_with_sizes(counts), strict=True
        ):
            torch.mm(factor, flat_kernel[position * channels : (position + length) * channels], out=term)
        out[block.rows] = F.embedding_bag(
            block.place_of_run, terms, block.runs_of_row, mode="sum", include_last_offset=True
        )
        if grad_kernel is not None and inputs is not None:
            flat_grad = grad_kernel.view(-1, channels_out)
            others = torch.index_select(inputs, 0, block.out_rows, out=terms[: block.num_runs])
            for (position, length, _), factor, other in zip(
                block.products, factors, others.split_with_sizes(counts), strict=True
            ):
                slices = flat_grad[position * channels : (position + length) * channels]
                torch.addmm(slices, factor.T, other, out=slices)
    return out


def _gather_runs(x: Tensor, block: _Block, buffer: Tensor) -> list[Tensor]:
    """Factors of the block's products, (number of runs, run length * channels) each, gathered into `buffer`."""
    num_rows, channels = x.shape
    factors: list[Tensor] = []
    start_run = start_value = 0
    for length, products in itertools.groupby(block.products, key=lambda product: product[1]):
        counts = [count for _, _, count in products]
        # Consecutive rows are consecutive in memory: rows of this view are the windows of `length` rows of x.
        windows = x.as_strided((num_rows - length + 1, length * channels), (channels, 1))
        stop_run, stop_value = start_run + sum(counts), start_value + sum(counts) * length * channels
        gathered = buffer[start_value:stop_value].view(-1, length * channels)
        torch.index_select(windows, 0, block.first[start_run:stop_run], out=gathered)
        factors += gathered.split_with_sizes(counts)
        start_run, start_value = stop_run, stop_value
    return factors


def _convolve_windows(x: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """Multiply whole windows, empty cells as zeros: with few channels, fewer and larger steps win."""
    out = x.new_empty(kernel_map.num_outputs, kernel.shape[2])
    for rows, windows in _gather_windows(x, kernel_map):
        torch.mm(windows, kernel.flatten(0, 1), out=out[rows])
    return out


def _grad_of_windows(x: Tensor, grad: Tensor, kernel_map: KernelMap) -> Tensor:
    grad_kernel = x.new_zeros(kernel_map.volume * x.shape[1], grad.shape[1])
    for rows, windows in _gather_windows(x, kernel_map):
        grad_kernel.addmm_(windows.T, grad[rows])
    return grad_kernel.view(kernel_map.volume, x.shape[1], grad.shape[1])


def _gather_windows(x: Tensor, kernel_map: KernelMap) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of output rows and all they see, (rows, volume * channels)."""
    cell_of_input, starts = kernel_map.windows
    depth, channels = kernel_map.depth, x.shape[1]
    line = x.new_zeros(int(cell_of_input[-1]) + depth, channels)
    line[cell_of_input] = x
    windows = line.as_strided((len(line) - depth + 1, depth * channels), (channels, 1))
    num_rows = _num_rows_per_block(x, kernel_map.volume)
    for start in range(0, len(starts), num_rows):
        rows = slice(start, min(start + num_rows, len(starts)))
        yield rows, windows.index_select(0, starts[rows].flatten()).view(rows.stop - start, -1)


def _has_few_channels(x: Tensor, kernel_map: KernelMap) -> bool:
    """Whether multiplying the empty cells of a window costs less than avoiding them."""
    return x.shape[1] <= 4 and kernel_map.depth > 2


def _num_rows_per_block(x: Tensor, channels_out: int) -> int:
    """Power of two that keeps the buffers of a block in the cache."""
    return int(2 ** max(10, (2**18 // max(x.shape[1], channels_out)).bit_length() - 1))


def _convolve_naively(x: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """Gather, multiply and add one kernel position after the other: the obvious way, to test and time against."""
    out = x.new_zeros(kernel_map.num_outputs, kernel.shape[2])
    for matrix, (in_rows, out_rows) in zip(kernel, kernel_map.pairs, strict=True):
        out = out.index_add(0, out_rows, x.index_select(0, in_rows) @ matrix)
    return out
