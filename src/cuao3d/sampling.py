"""Small feature maps read at pixels, as if they had been upsampled to the image; nothing of the image's size is made.

Where a map is coarse, the pixels of a tile of the image share a few of its cells, and reading them all is one small
matrix product; elsewhere each pixel sums its own cells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor
from torch.nn import functional

Mode = Literal["bicubic", "bilinear"]

PART = 1 << 22
"""Values that a GPU reads at a time."""

IN_TILE = 64
"""Pixels that a tile of the image holds on average."""

DENSE = 24
"""A map is read by products if a tile needs at most this many cells for each cell that a pixel needs along an axis."""


@dataclass(frozen=True)
class _Taps:
    """Which cells of a map make up its value at some pixels."""

    cells: tuple[Int64[Tensor, "n k"], Int64[Tensor, "n k"]]
    """Their columns and rows."""
    weights: tuple[Float32[Tensor, "n k"], Float32[Tensor, "n k"]]
    """The factors of their weights along x and along y."""


class MapReader:
    """Reads maps (C_i, h_i, w_i) of one image at pixels, part by part; parts may be read by several threads.

    Attributes:
        parts: Where each part begins and ends. The values of a part, to their last bits, depend on nothing else.
    """

    def __init__(
        self,
        maps: Sequence[Float[Tensor, "_ _ _"]],
        pixels: Float64[Tensor, "n 2"],
        image_size: tuple[int, int],
        *,
        mode: Mode = "bicubic",
        summed: bool = False,
    ) -> None:
        """Work out which cells are read, and cut the pixels into parts.

        Args:
            maps: The maps; each covers the whole image, whatever its size.
            pixels: Exact pixel positions (x, y).
            image_size: Width and height of the image, pixels.
            mode: "bicubic" reads at the nearest pixel, as if the map had been upsampled to the image by torch's bicubic
                interpolation; "bilinear" reads at the exact position.
            summed: Add the maps up, which are of one width, instead of putting their channels side by side.
        """
        self.device = maps[0].device
        self._widths, self._summed = [len(one) for one in maps], summed
        read_at = pixels.round() if mode == "bicubic" else pixels
        edge = max(8, round(math.sqrt(IN_TILE * math.prod(image_size) / max(1, len(pixels)))))
        tile = (read_at / edge).floor().clamp(min=0).long()
        self._order = torch.argsort(tile[:, 1] * (2 + image_size[0] // edge) + tile[:, 0], stable=True)
        read_at, tile = read_at[self._order], tile[self._order]
        reaches = [_dense_reach(one, edge, image_size, mode) for one in maps]
        in_bands = self.device.type == "cpu" and not any(reaches)
        self._readers: list[_Dense | _Sparse] = []
        for one, reach in zip(maps, reaches, strict=True):
            taps = _taps(read_at, image_size, (one.shape[2], one.shape[1]), mode)
            self._readers.append(
                _Dense(one, taps, tile, edge, image_size, reach) if reach else _Sparse(one, taps, in_bands=in_bands)
            )
        if self.device.type == "cpu":
            self.parts = _runs(tile[:, 1:] if in_bands else tile)
        else:
            step = max(1, PART // self.num_channels)
            self.parts = [(begin, min(begin + step, len(tile))) for begin in range(0, len(tile), step)]

    @property
    def num_channels(self) -> int:
        """Channels of the values."""
        return self._widths[0] if self._summed else sum(self._widths)

    def read(self, begin: int, end: int) -> tuple[Int64[Tensor, "m"], Float32[Tensor, "m C"]]:
        """Return which pixels a part holds, on the CPU, and the values there, on the maps' device."""
        values = torch.empty(end - begin, self.num_channels, device=self.device)
        columns = [values] * len(self._widths) if self._summed else torch.split(values, self._widths, dim=1)
        for number, (reader, out) in enumerate(zip(self._readers, columns, strict=True)):
            reader.read(begin, end, out, add=self._summed and number > 0)
        return self._order[begin:end], values


def _dense_reach(one: Tensor, edge: int, image_size: tuple[int, int], mode: Mode) -> tuple[int, int] | None:
    """Return how many columns and rows of a map a tile needs; None where its pixels share too few of them."""
    size, taps = (one.shape[2], one.shape[1]), 4 if mode == "bicubic" else 2
    width, height = (min(size[axis], math.ceil(edge * size[axis] / image_size[axis]) + taps) for axis in range(2))
    return (width, height) if one.device.type == "cpu" and width * height <= DENSE * taps else None


class _Sparse:
    """Reads a map (C, h, w) at each pixel by itself."""

    def __init__(self, one: Tensor, taps: _Taps, *, in_bands: bool) -> None:
        """Prepare the cells; `in_bands`, only the rows of the map that a part needs are brought into order for it."""
        (x, y), (weight_x, weight_y) = taps.cells, taps.weights
        self._one, self._rows = one, y if in_bands else None
        self._table = None if in_bands else _channels_last(one)
        self._cells = (y[:, :, None] * one.shape[2] + x[:, None, :]).flatten(1).to(one.device)
        self._weights = (weight_y[:, :, None] * weight_x[:, None, :]).flatten(1).to(one.device)

    def read(self, begin: int, end: int, out: Tensor, *, add: bool) -> None:
        """Write the values at some of the pixels, or add them."""
        table, cells = self._table, self._cells[begin:end]
        if self._rows is not None:
            first, last = (int(end_row) for end_row in torch.aminmax(self._rows[begin:end]))
            table, cells = _channels_last(self._one[:, first : last + 1]), cells - first * self._one.shape[2]
        assert table is not None
        weights = self._weights[begin:end]
        values = functional.embedding_bag(cells, table.flatten(0, 1), per_sample_weights=weights, mode="sum")
        out.add_(values) if add else out.copy_(values)


def _channels_last(one: Tensor) -> Tensor:
    """Return a map (C, h, w) as (h, w, C), float32."""
    return one.permute(1, 2, 0).float().contiguous()


class _Dense:
    """Reads a map (C, h, w) at the pixels of a tile: their weights times the cells that the tile needs."""

    def __init__(
        self,
        one: Tensor,
        taps: _Taps,
        tile: Tensor,
        edge: int,
        image_size: tuple[int, int],
        reach: tuple[int, int],
    ) -> None:
        size, before = (one.shape[2], one.shape[1]), taps.cells[0].shape[1] // 2 - 1
        self._table, self._reach, self._first, factors = _channels_last(one), reach, [], []
        for axis in range(2):
            begins_at = (tile[:, axis].double() * edge + 0.5) * (size[axis] / image_size[axis]) - 0.5
            first = (begins_at.floor().long() - before).clamp(min=0, max=size[axis] - reach[axis])
            dense = torch.zeros(len(tile), reach[axis])
            factors.append(dense.scatter_add_(1, taps.cells[axis] - first[:, None], taps.weights[axis]))
            self._first.append(first.tolist())
        self._weights = (factors[1][:, :, None] * factors[0][:, None, :]).flatten(1)

    def read(self, begin: int, end: int, out: Tensor, *, add: bool) -> None:
        """Write the values at the pixels of one tile, or add them."""
        x, y = self._first[0][begin], self._first[1][begin]
        cells = self._table[y : y + self._reach[1], x : x + self._reach[0]].flatten(0, 1)
        torch.addmm(out, self._weights[begin:end], cells, beta=int(add), out=out)


def _runs(tile: Int64[Tensor, "n _"]) -> list[tuple[int, int]]:
    """Return where each tile, or each row of tiles, begins and ends in ordered pixels."""
    ends = (torch.nonzero((tile[1:] != tile[:-1]).any(dim=1)).squeeze(1) + 1).tolist()
    return list(zip([0, *ends], [*ends, len(tile)], strict=True)) if len(tile) else []


def _taps(pixels: Tensor, image_size: tuple[int, int], map_size: tuple[int, int], mode: Mode) -> _Taps:
    """Return which cells of a map (width, height) make up its value at pixels (n, 2), and their weights."""
    scale = torch.tensor(map_size, dtype=torch.float64) / torch.tensor(image_size, dtype=torch.float64)
    position = (pixels.double() + 0.5) * scale - 0.5
    low = position.floor()
    kernel = _cubic if mode == "bicubic" else _linear
    num_taps = 4 if mode == "bicubic" else 2
    offsets = torch.arange(num_taps) - (num_taps // 2 - 1)
    limit = torch.tensor(map_size).sub(1)
    cell_x, cell_y = ((low[:, [axis]].long() + offsets).clamp(min=0).minimum(limit[axis]) for axis in range(2))
    weight_x, weight_y = (kernel((position - low)[:, axis]).float() for axis in range(2))
    return _Taps((cell_x, cell_y), (weight_x, weight_y))


def _cubic(t: Tensor) -> Tensor:
    """Return the weights (n, 4) of Keys' cubic kernel, a = -0.75 as in torch, at fractions t (n,) past the second."""
    a = -0.75
    near, far = torch.stack([t, 1 - t], dim=1), torch.stack([1 + t, 2 - t], dim=1)
    inner = ((a + 2) * near - (a + 3)) * near.square() + 1
    outer = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    return torch.stack([outer[:, 0], inner[:, 0], inner[:, 1], outer[:, 1]], dim=1)


def _linear(t: Tensor) -> Tensor:
    """Return the weights (n, 2) of linear interpolation at fractions t (n,)."""
    return torch.stack([1 - t, t], dim=1)
