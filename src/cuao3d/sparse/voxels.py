"""Voxel sets: sorted coordinates, their coarser resolutions, and the kernel maps between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Int, Integer
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.geometry import Packing

MAX_BATCH = 2**16
"""Batch indices lie below this."""

MARGIN = 2
"""Free cells around the occupied ones: the neighbours of a kernel up to 5 fall on no key of a voxel elsewhere."""


def sort_voxels(coords: Int[Tensor, "V 4"]) -> tuple[VoxelSet, Int[Tensor, "V"]]:
    """Check coordinates and sort them.

    Args:
        coords: Distinct integer cell coordinates [batch, x, y, z], in any order; batch >= 0.

    Returns:
        The voxels and, for each of them, its row in `coords`.

    Raises:
        InputError: `coords` is empty, of another shape or type, out of range, or has duplicates.
    """
    if coords.dim() != 2 or coords.shape[1] != 4 or coords.is_floating_point() or coords.is_complex():
        raise InputError(
            f"Voxel coordinates must be integers of shape (V, 4), [batch, x, y, z]; got {coords.dtype} of shape "
            f"{tuple(coords.shape)}. Divide by the voxel size, floor and convert first."
        )
    if len(coords) == 0:
        raise InputError("There are no voxels: coords is empty.")
    coords = coords.long()
    if coords[:, 0].min() < 0 or coords[:, 0].max() >= MAX_BATCH:
        lowest, highest = int(coords[:, 0].min()), int(coords[:, 0].max())
        raise InputError(f"Batch indices must lie in [0, {MAX_BATCH}); these reach from {lowest} to {highest}.")
    keys, order = torch.sort(_pack(coords)[1])
    num_duplicates = int((keys[1:] == keys[:-1]).sum())
    if num_duplicates:
        raise InputError(
            f"{num_duplicates} of {len(coords)} voxels are duplicates; average the points of a voxel first."
        )
    return VoxelSet(coords[order]), order


class VoxelSet:
    """The occupied cells of one resolution, sorted by (batch, x, y, z), and the kernel maps between them.

    Coarser resolutions and kernel maps are built when first asked for and kept, so that all layers of a network and
    their backward passes share them.

    Attributes:
        coords: (V, 4) int64 [batch, x, y, z] in cells of this resolution, distinct and sorted.
    """

    def __init__(self, coords: Int[Tensor, "V 4"]) -> None:
        self.coords = coords
        self._packing, self._keys = _pack(coords)
        self._neighbours: dict[int, KernelMap] = {}

    def __len__(self) -> int:
        return len(self.coords)

    @cached_property
    def coarse(self) -> VoxelSet:
        """The voxels at half the resolution: floor(coords / 2)."""
        return VoxelSet(self._coarsened[0])

    def neighbours(self, size: int) -> KernelMap:
        """Return the map of a submanifold convolution with an odd kernel size up to 5: these voxels to themselves."""
        if size not in self._neighbours:
            radius = size // 2
            starts = self._keys[:, None] - radius + _columns(self._packing, -radius, radius + 1)
            windows = self._find_windows(starts, size)
            self._neighbours[size] = KernelMap(windows, adjoint=windows, mirrored=True)
        return self._neighbours[size]

    @cached_property
    def down(self) -> KernelMap:
        """Map of a strided convolution with kernel 2: from these voxels to `coarse`."""
        corners = self.coarse.coords << _each_axis(1, self.coords)
        starts = self._packing.keys(corners[:, 1:], corners[:, 0])[:, None] + _columns(self._packing, 0, 2)
        parity = self.coords[:, 1:] & 1
        parents = Windows(
            row=torch.arange(len(self), device=parity.device),
            column=parity[:, 0] * 4 + parity[:, 1] * 2 + parity[:, 2],
            occupied=torch.ones_like(parity[:, 0]),
            first=self._coarsened[1],
            volume=8,
            depth=1,
            num_inputs=len(self.coarse),
            num_outputs=len(self),
        )
        return KernelMap(self._find_windows(starts, 2), adjoint=parents)

    @cached_property
    def up(self) -> KernelMap:
        """Map of a transposed convolution with kernel 2: from `coarse` to these voxels."""
        return KernelMap(self.down.adjoint, adjoint=self.down.windows)

    @cached_property
    def _coarsened(self) -> tuple[Tensor, Tensor]:
        """Sorted coordinates of the coarser cells and, per voxel, the row of the cell it lies in."""
        halved = self.coords >> _each_axis(1, self.coords)
        keys, order = torch.sort(_pack(halved)[1], stable=True)
        opens_cell = F.pad(keys.diff() > 0, (1, 0), value=True)
        parent = torch.empty_like(order).scatter_(0, order, opens_cell.cumsum(dim=0) - 1)
        return halved[order[opens_cell]], parent

    def _find_windows(self, starts: Int[Tensor, "M columns"], size: int) -> Windows:
        """Find the windows of `size` cells that start at key `starts[m, c]`, for output row m and kernel column c."""
        num_columns, starts = starts.shape[1], starts.flatten()
        cells = self._cells
        occupied = cells.windows.gather(0, starts) & (2**size - 1) if cells else self._search(starts, size)
        window = occupied.nonzero()[:, 0]
        start = starts.gather(0, window)
        row = window // num_columns
        return Windows(
            row=row,
            column=window - row * num_columns,
            occupied=occupied.gather(0, window),
            first=cells.rank.gather(0, start) if cells else torch.searchsorted(self._keys, start),
            volume=num_columns * size,
            depth=size,
            num_inputs=len(self),
            num_outputs=len(starts) // num_columns,
            input_keys=self._keys,
        )

    @cached_property
    def _cells(self) -> _Cells | None:
        """Table of all cells of the bounding box, None if it is too large: a look-up beats a search."""
        return _Cells.of(self._keys, self._packing) if self._packing.num_cells <= 256 * len(self) else None

    def _search(self, starts: Int[Tensor, "W"], size: int) -> Int[Tensor, "W"]:
        """Find the occupancy bits of the windows that start at `starts`, by binary search."""
        first = torch.searchsorted(self._keys, starts)
        keys = F.pad(self._keys, (0, size), value=torch.iinfo(torch.int64).max)
        occupied = torch.zeros_like(starts)
        for i in range(size):
            occupied |= 1 << (keys[first + i] - starts).clamp(max=size)
        return torch.bitwise_and(occupied, 2**size - 1)


@dataclass(frozen=True)
class _Cells:
    """Dense look-up table over all keys."""

    rank: Tensor
    """Number of voxels before the cell: the row of the first one at or after it."""
    windows: Tensor
    """Occupancy of the cell and the four above it, as bits."""

    @staticmethod
    def of(keys: Tensor, packing: Packing) -> _Cells:
        """Fill the table."""
        occupied = torch.zeros(packing.num_cells + 4, dtype=torch.uint8, device=keys.device)
        occupied[keys] = 1
        rank = occupied.cumsum(dim=0, dtype=torch.int32).sub_(occupied)
        windows = occupied[:-4].clone()
        for i in range(1, 5):
            windows |= occupied[i : len(occupied) - 4 + i] << i
        return _Cells(rank, windows)


def _pack(coords: Tensor) -> tuple[Packing, Tensor]:
    """Return the packing of coordinates (V, 4), with free cells around them, and their keys (V,)."""
    cells, cloud = coords[:, 1:], coords[:, 0]
    packing = Packing.of(cells, cloud, margin=MARGIN)
    return packing, packing.keys(cells, cloud)


def _columns(packing: Packing, low: int, high: int) -> Tensor:
    """What to add to a key to move by (dx, dy), both from low to below high, dy fastest: (columns,)."""
    steps = torch.arange(low, high, device=packing.low.device)
    return ((steps[:, None] * packing.shape[2] + steps) * packing.shape[3]).flatten()


def _each_axis(value: int, coords: Tensor) -> Tensor:
    """Return the row [0, value, value, value], which leaves the batch index alone."""
    return torch.tensor([0, value, value, value], device=coords.device)


@dataclass(frozen=True)
class KernelMap:
    """Which input row each output row of a convolution reads at each kernel position, and the adjoint of this map."""

    windows: Windows
    """From inputs to outputs."""
    adjoint: Windows
    """From outputs to inputs, for the backward pass."""
    mirrored: bool = False
    """Whether the adjoint uses the opposite kernel position instead of the same one."""

    @cached_property
    def positions(self) -> Int[Tensor, "K"]:
        """Index into a kernel, where x is fastest, of each kernel position of the windows, where z is fastest."""
        size = round(self.volume ** (1 / 3))
        places = torch.arange(self.volume, device=self.windows.row.device)
        return places.view(size, size, size).permute(2, 1, 0).flatten()

    @property
    def adjoint_positions(self) -> Int[Tensor, "K"]:
        """The same for the adjoint map."""
        return self.positions.flip(0) if self.mirrored else self.positions

    @property
    def volume(self) -> int:
        """Number of kernel positions."""
        return self.windows.volume

    @property
    def num_inputs(self) -> int:
        """Number of input rows."""
        return self.windows.num_inputs

    @cached_property
    def listed_pairs(self) -> tuple[Int[Tensor, "2 K P"], Int[Tensor, "K"]]:
        """Input and output rows of each kernel position, z fastest, padded with -1, and the number of pairs of each."""
        pairs = list(self.windows.pairs())
        counts = torch.tensor([len(rows) for rows, _ in pairs], dtype=torch.int32, device=self.windows.row.device)
        listed = counts.new_full((2, len(pairs), max(int(counts.max()), self.num_inputs)), -1)
        for position, (in_rows, out_rows) in enumerate(pairs):
            listed[0, position, : len(in_rows)], listed[1, position, : len(out_rows)] = in_rows, out_rows
        return listed, counts

    @property
    def num_pairs(self) -> int:
        """Number of (input, output) pairs: each costs 2 * Cin * Cout floating-point operations."""
        return sum(len(out_rows) for _, out_rows in self.windows.pairs())


class Windows:
    """The non-empty windows of a convolution, ordered by output row, then by kernel column.

    Kernel positions form columns along z; with z fastest, column c holds positions c * depth to (c + 1) * depth - 1.
    A window is what an output row reads through one column. Its occupied cells are consecutive input rows: a run.
    """

    def __init__(
        self,
        *,
        row: Integer[Tensor, "W"],
        column: Integer[Tensor, "W"],
        occupied: Integer[Tensor, "W"],
        first: Integer[Tensor, "W"],
        volume: int,
        depth: int,
        num_inputs: int,
        num_outputs: int,
        input_keys: Int[Tensor, "N"] | None = None,
    ) -> None:
        """List the windows.

        Args:
            row: Output row of each window; every output row has at least one.
            column: Kernel column.
            occupied: Bit i says whether cell i of the window is occupied.
            first: First input row of its run.
            volume: Number of kernel positions.
            depth: Kernel positions per column.
            num_inputs: Number of input rows.
            num_outputs: Number of output rows.
            input_keys: Sorted keys of the inputs, consecutive along z; only `padded_line` needs them.
        """
        self.row, self.column, self.occupied, self.first = (t.int() for t in (row, column, occupied, first))
        self.volume, self.depth = volume, depth
        self.num_inputs, self.num_outputs = num_inputs, num_outputs
        self._input_keys = input_keys
        self._blocks: dict[tuple[int, int], list[Block]] = {}

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield input rows and output rows of each kernel position, z fastest."""
        for column in range(self.volume // self.depth):
            window = (self.column == column).nonzero()[:, 0]
            occupied, in_rows, out_rows = self.occupied[window], self.first[window], self.row[window]
            for cell in range(self.depth):
                sees = (occupied >> cell) & 1
                has_cell = sees.nonzero()[:, 0]
                yield in_rows[has_cell], out_rows[has_cell]
                in_rows = in_rows + sees

    @cached_property
    def padded_line(self) -> tuple[Int[Tensor, "N"], Int[Tensor, "M columns"]]:
        """Position of every input in a padded line, and where each output's window of every column starts in it.

        Inputs keep their spacing along z in the line, up to `depth`, so every window is a slice of it, with zeros for
        empty cells. The line starts with `depth` zeros, the window of an empty column.
        """
        assert self._input_keys is not None
        steps = self._input_keys.diff().clamp(max=self.depth)
        place = F.pad(steps.cumsum(dim=0), (1, 0)) + 2 * self.depth
        lowest_cell = torch.tensor([(bits & -bits).bit_length() - 1 for bits in range(2**self.depth)])
        start_of_window = place[self.first] - lowest_cell.to(place.device)[self.occupied]
        num_columns = self.volume // self.depth
        starts = place.new_zeros(self.num_outputs * num_columns)
        starts.scatter_(0, self.row.long() * num_columns + self.column, start_of_window)
        return place, starts.view(-1, num_columns)

    def blocks(self, num_rows: int, multiple: int = 1) -> list[Block]:
        """Return the runs in blocks of `num_rows` output rows; groups are padded to a multiple of `multiple` runs."""
        if (num_rows, multiple) not in self._blocks:
            self._blocks[num_rows, multiple] = list(self._split_into_blocks(num_rows, multiple))
        return self._blocks[num_rows, multiple]

    def _split_into_blocks(self, num_rows: int, multiple: int) -> Iterator[Block]:
        num_columns, num_patterns = self.volume // self.depth, 2**self.depth
        num_blocks, num_groups = -(-self.num_outputs // num_rows), num_columns * num_patterns
        block_of_run = self.row // num_rows
        group, order = torch.sort(
            (block_of_run * num_columns + self.column) * num_patterns + self.occupied, stable=True
        )
        counts = torch.bincount(group, minlength=num_blocks * num_groups)
        sizes = -(-counts // multiple) * multiple
        filled_before = (sizes - counts).cumsum(dim=0) - (sizes - counts)
        sorted_places = torch.arange(len(order), device=order.device) + filled_before.index_select(0, group)
        place = torch.empty_like(order).scatter_(0, order, sorted_places)
        first, row = (runs.new_zeros(int(sizes.sum())).scatter_(0, place, runs) for runs in (self.first, self.row))
        place = place.int()
        runs_before_row = torch.bincount(self.row, minlength=self.num_outputs).cumsum(dim=0, dtype=torch.int32)
        runs_before_row = F.pad(runs_before_row, (1, 0))
        start = start_place = 0
        of_blocks = (t.view(num_blocks, num_groups).tolist() for t in (counts, sizes))
        for block, (counts_of_block, sizes_of_block) in enumerate(zip(*of_blocks, strict=True)):
            rows = slice(block * num_rows, min((block + 1) * num_rows, self.num_outputs))
            stop, stop_place = start + sum(counts_of_block), start_place + sum(sizes_of_block)
            yield Block(
                rows=rows,
                first=first[start_place:stop_place],
                out_rows=row[start_place:stop_place],
                groups=[(*divmod(group, num_patterns), count) for group, count in enumerate(counts_of_block) if count],
                sizes=[size for size in sizes_of_block if size],
                place_of_run=place[start:stop] - start_place,
                runs_before_row=runs_before_row[rows.start : rows.stop + 1] - start,
            )
            start, start_place = stop, stop_place


@dataclass(frozen=True)
class Block:
    """The runs of some consecutive output rows, sorted into groups that share a product."""

    rows: slice
    first: Tensor
    """First input row of each run."""
    out_rows: Tensor
    """Output row of each run."""
    groups: list[tuple[int, int, int]]
    """(kernel column, occupancy of the window, number of runs) of each group."""
    sizes: list[int]
    """Runs of each group, padding included; padding gathers any valid row, and its product is ignored."""
    place_of_run: Tensor
    """Position of each run among the padded groups, ordered by output row."""
    runs_before_row: Tensor
    """Where each row's runs start in `place_of_run`; one entry more than rows."""

    @property
    def num_runs(self) -> int:
        """Number of runs, padding included."""
        return len(self.first)
