"""Targets of a head, one per voxel: plain features, means of a table's rows, or codes in a linear basis."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from cuao3d.codecs import Coded, Quantised
from cuao3d.objective.normalizers import Normalizer

CHUNK_VALUES = {"cpu": 1 << 18}
"""Values of the targets in a chunk: on a CPU as many as stay in cache, elsewhere `LARGE_CHUNK_VALUES`."""
LARGE_CHUNK_VALUES = 1 << 25

FINITE_ROWS = 20_000
"""Rows that are looked at at a time for what is not finite."""


@dataclass(frozen=True)
class RowMeans:
    """Targets that are means of a table's rows, averaged chunk by chunk on access: the table is never copied."""

    table: Float[Tensor, "R C"] | Quantised
    """Features that are averaged."""
    rows: Int64[Tensor, "M"]
    """Rows of the table, grouped by target, in order."""
    offsets: Int64[Tensor, "N"]
    """Start of each target's group in `rows`; every group has at least one row."""

    def __len__(self) -> int:
        """Return the number of targets."""
        return len(self.offsets)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of targets and their width."""
        return len(self.offsets), self.table.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the targets are."""
        return self.table.device

    def __getitem__(self, part: slice) -> Float[Tensor, "n C"]:
        """Return some consecutive targets, in the table's type."""
        start, stop, _ = part.indices(len(self))
        offsets = self.offsets[start:stop]
        end = self.offsets[stop] if stop < len(self) else len(self.rows)
        rows, table = self.rows[offsets[0] : end], self.table
        if isinstance(table, Quantised):
            rows, table = torch.arange(len(rows), device=rows.device), table[rows]
        return functional.embedding_bag(rows, table, offsets - offsets[0], mode="mean")


@dataclass(frozen=True)
class Compressed:
    """Targets in a linear basis, such as their leading principal directions: target = code @ basis + mean."""

    codes: Float[Tensor, "N K"] | Quantised | RowMeans
    """Code of each target."""
    basis: Float[Tensor, "K C"]
    """Basis vectors; they need not be orthonormal."""
    mean: Float[Tensor, "C"]
    """Target whose code is zero."""

    def __len__(self) -> int:
        """Return the number of targets."""
        return len(self.codes)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of targets and their width."""
        return len(self.codes), self.basis.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the targets are."""
        return self.codes.device

    def __getitem__(self, part: slice | Tensor) -> Float[Tensor, "n C"]:
        """Return some targets, decompressed, in the basis's type; of means only consecutive ones."""
        return torch.addmm(self.mean, self.codes[part].to(self.basis.dtype), self.basis)  # type: ignore[index]


Table = Tensor | Quantised | Compressed
"""Rows that targets are made of: a teacher's features of the samples of a scene, as the store keeps them."""

Targets = Tensor | RowMeans | Compressed


def table_of(coded: Coded) -> Table:
    """Return what a store keeps of a teacher's features as rows that targets are made of; nothing is decoded."""
    return coded.codes if coded.basis is None else Compressed(coded.codes, coded.basis.vectors, coded.basis.mean)


def row_means(table: Table, rows: Int64[Tensor, "M"], offsets: Int64[Tensor, "N"]) -> RowMeans | Compressed:
    """Return targets that are means of a table's rows; of codes, since a basis is linear, means of the codes.

    Args:
        table: Features or codes that are averaged.
        rows: Rows of the table, grouped by target, in order.
        offsets: Start of each target's group in `rows`.
    """
    if not isinstance(table, Compressed):
        return RowMeans(table, rows, offsets)
    assert not isinstance(table.codes, RowMeans), "rows of means are not averaged again"
    return Compressed(RowMeans(table.codes, rows, offsets), table.basis, table.mean)


def parts_of(table: Table, num_rows: int) -> Iterator[Float[Tensor, "_ C"]]:
    """Yield a table's rows in order, decoded, `num_rows` at a time."""
    for start in range(0, len(table), num_rows):
        yield table[start : start + num_rows]


def finite_rows(table: Table) -> Bool[Tensor, "R"]:
    """Return which rows of a table are finite; of codes, which codes."""
    codes = table.codes if isinstance(table, Compressed) else table
    if isinstance(codes, Quantised):
        return torch.isfinite(codes.scales)
    assert isinstance(codes, Tensor)
    return torch.cat([torch.isfinite(part).all(dim=1) for part in torch.split(codes, FINITE_ROWS)])


def select(table: Table, index: Tensor) -> Table:
    """Return some rows of a table, not decoded."""
    if isinstance(table, Compressed):
        assert not isinstance(table.codes, RowMeans), "rows of means are not chosen"
        return Compressed(cast(Any, select(table.codes, index)), table.basis, table.mean)
    return Quantised(table.numbers[index], table.scales[index]) if isinstance(table, Quantised) else table[index]


def move(targets: Targets, device: str) -> Targets:
    """Return targets on a device; means are averaged first, and what is compressed stays so."""
    if isinstance(targets, Compressed):
        return Compressed(targets.codes[:].to(device), targets.basis.to(device), targets.mean.to(device))
    return targets[:].to(device)


@dataclass(frozen=True)
class Source:
    """Normalised targets as the losses read them: z @ basis + mean, or z itself if there is no basis."""

    codes: Tensor | Quantised | RowMeans
    """Stored rows that the z are read from."""
    normalizer: Normalizer | None
    """Turns a code into z; None if there is a basis, which then includes it."""
    affine: tuple[Float[Tensor, "K C"], Float[Tensor, "C"]] | None
    """Basis and mean, if the targets are compressed."""

    @staticmethod
    def of(targets: Targets, normalizer: Normalizer | None, dtype: torch.dtype) -> "Source":
        """Combine targets and normaliser; a normaliser of compressed targets is folded into their basis."""
        if not isinstance(targets, Compressed):
            return Source(targets, normalizer and normalizer.to(dtype, targets.device), None)
        basis, mean = targets.basis.double(), targets.mean.double()
        if normalizer is not None:
            normalizer = normalizer.to(torch.float64, targets.device)
            basis, mean = normalizer.turn(basis), normalizer(mean[None])[0]
        return Source(targets.codes, None, (basis.to(dtype), mean.to(dtype)))

    def chunks(self, share: int, num_shares: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield a share's rows chunk by chunk, each chunk of z a copy in `dtype` that may be overwritten."""
        num_values = CHUNK_VALUES.get(self.codes.device.type, LARGE_CHUNK_VALUES)
        first, last = (len(self.codes) * i // num_shares for i in (share, share + 1))
        num_rows = max(num_values // self.codes.shape[1], 32)
        buffer = torch.empty(min(num_rows, last - first), self.codes.shape[1], dtype=dtype, device=self.codes.device)
        for start in range(first, last, num_rows):
            rows = slice(start, min(start + num_rows, last))
            chunk = buffer[: rows.stop - start].copy_(self.codes[rows])
            yield rows, chunk if self.normalizer is None else self.normalizer(chunk)

    def decode(self, z: Float[Tensor, "n K"]) -> Float[Tensor, "n C"]:
        """Return the normalised targets of some z."""
        return z if self.affine is None else torch.addmm(self.affine[1], z, self.affine[0])
