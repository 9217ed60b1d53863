"""Codecs: features in few bytes, by a linear basis that fits them, by 8 bits a number, or by both."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float32, Int8, Int64
from torch import Tensor
from torch.nn import functional

from cuao3d.errors import InputError
from cuao3d.seals import tensors_sha256

ROWS_AT_A_TIME = 4096
"""Rows that are decoded, or converted to float64, at a time."""

LARGEST = 127
"""Largest number that a row is scaled to in 8 bits."""


@dataclass(frozen=True)
class Codec:
    """How a store keeps features."""

    rank: int | None = None
    """Directions of the basis of each teacher; None: no basis. A teacher of no more channels has none either."""
    quantised: bool = False
    """Whether numbers are kept in 8 bits, with a scale for each row; otherwise in 16."""

    FORMS: ClassVar = "fp16, int8, pca:K or pca:K+int8, such as pca:256+int8"

    @staticmethod
    def parse(text: str) -> "Codec":
        """Read a codec as it is typed.

        Raises:
            InputError: There is no such codec, or its basis would have no direction.
        """
        if text in ("fp16", "int8"):
            return Codec(None, text == "int8")
        found = re.fullmatch(r"pca:(\d{1,9})(\+int8)?", text)
        if found is None or int(found[1]) < 1:
            reason = "there is none of this name" if found is None else "a basis needs one direction at least"
            raise InputError(f"{text!r} is no codec: {reason}; choose from {Codec.FORMS}.")
        return Codec(int(found[1]), found[2] is not None)

    def __str__(self) -> str:
        """Return the codec as it is typed."""
        kinds = [] if self.rank is None else [f"pca:{self.rank}"]
        return "+".join([*kinds, *(["int8"] if self.quantised else [])]) or "fp16"

    def rank_of(self, num_channels: int) -> int | None:
        """Return how many directions the basis of a teacher has; None where it needs none."""
        return None if self.rank is None or self.rank >= num_channels else self.rank


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal directions in which a teacher's features are kept: feature = code @ vectors + mean."""

    vectors: Float32[Tensor, "K C"]
    """Directions, that of the largest variance first."""
    mean: Float32[Tensor, "C"]
    """Feature whose code is zero."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a file of it holds."""
        return {"vectors": self.vectors, "mean": self.mean}

    @property
    def sha256(self) -> str:
        """SHA-256 of its numbers."""
        return tensors_sha256(self.tensors, {})

    def codes(self, features: Float[Tensor, "N C"]) -> Float32[Tensor, "N K"]:
        """Return the codes of features."""
        return torch.cat([(part.float() - self.mean) @ self.vectors.T for part in _parts(features)])

    @staticmethod
    def fit(parts: Iterable[Float[Tensor, "_ C"]], rank: int) -> "Basis":
        """Fit a basis to a sample of features: their leading principal directions.

        A feature counts by the inverse of its squared length, which makes what is minimised twice the mean cosine
        error, to first order: |f - f'|² / |f|² is about 2 (1 - cos(f, f')) where f' is the part of f in the basis.

        Args:
            parts: The features, in chunks of rows; they are looked at once.
            rank: Number of directions; fewer than channels.

        Raises:
            InputError: There are no features, or all are zero.
        """
        count, total, products = torch.zeros((), dtype=torch.float64), torch.zeros(()), torch.zeros(())
        for part in parts:
            rows = part.double()
            lengths = torch.linalg.vector_norm(rows, dim=1)
            rows, lengths = rows[lengths > 0], lengths[lengths > 0]
            units = rows / lengths[:, None]
            count = count + lengths.pow(-2).sum()
            total, products = total + (units / lengths[:, None]).sum(dim=0), products + units.T @ units
        if not products.ndim or not count:
            raise InputError("there are no features to fit a basis to")
        mean = total / count
        _, directions = torch.linalg.eigh(products - count * torch.outer(mean, mean))
        vectors = directions.flip(1)[:, :rank].T
        largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
        return Basis((vectors * largest.sign()).float().contiguous(), mean.float())


@dataclass(frozen=True, eq=False)
class Quantised:
    """Rows in 8 bits a number: row = scale * numbers. Rows are decoded when they are asked for."""

    numbers: Int8[Tensor, "N K"]
    """From -127 to 127."""
    scales: Float32[Tensor, "N"]
    """Scale of each row."""

    @staticmethod
    def of(rows: Float[Tensor, "N K"]) -> "Quantised":
        """Round rows to multiples of a 127th of their largest number; a number is off by at most half of that."""
        scales = rows.abs().amax(dim=1).float() / LARGEST
        steps = torch.where(scales > 0, scales, 1)
        return Quantised((rows / steps[:, None]).round().clamp(-LARGEST, LARGEST).to(torch.int8), scales)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.numbers)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and their width."""
        return self.numbers.shape[0], self.numbers.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.numbers.device

    def __getitem__(self, index: slice | Tensor) -> Float32[Tensor, "n K"]:
        """Return some rows, decoded."""
        return self.numbers[index].float() * self.scales[index, None]

    def to(self, device: str | torch.device) -> "Quantised":
        """Return these rows on a device."""
        return Quantised(self.numbers.to(device), self.scales.to(device))


@dataclass(frozen=True, eq=False)
class Coded:
    """A teacher's features of some samples, as a store keeps them."""

    codes: Float[Tensor, "V K"] | Quantised
    """Code of each, or the feature itself where there is no basis."""
    basis: Basis | None = None
    """Basis of the codes."""

    @staticmethod
    def of(rows: Float[Tensor, "V _"], codec: Codec, basis: Basis | None) -> "Coded":
        """Encode features (V, C), or codes (V, K) in the basis, on the CPU."""
        if basis is not None and rows.shape[1] == basis.vectors.shape[1]:
            rows = basis.codes(rows)
        return Coded(Quantised.of(rows.float()) if codec.quantised else rows.half(), basis)

    @staticmethod
    def read(tensors: Mapping[str, Tensor], count: int, codec: Codec, basis: Basis | None) -> "Coded | None":
        """Return what a file holds of `count` features; None if it is not what the codec says."""
        rows, scales = tensors.get("features"), tensors.get("scales")
        if rows is None or rows.ndim != 2 or len(rows) != count:
            return None
        if basis is not None and rows.shape[1] != len(basis.vectors):
            return None
        if not codec.quantised:
            return Coded(rows, basis) if rows.is_floating_point() else None
        if rows.dtype != torch.int8 or scales is None or (scales.shape, scales.dtype) != ((count,), torch.float32):
            return None
        return Coded(Quantised(rows, scales), basis)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a file of them holds."""
        if isinstance(self.codes, Quantised):
            return {"features": self.codes.numbers, "scales": self.codes.scales}
        return {"features": self.codes}

    def __len__(self) -> int:
        """Return the number of features."""
        return len(self.codes)

    def __getitem__(self, index: slice | Tensor) -> Float[Tensor, "n C"]:
        """Return some features, decoded; of a mapped file only their rows are read."""
        codes = self.codes[index]
        return codes if self.basis is None else torch.addmm(self.basis.mean, codes.float(), self.basis.vectors)

    def decoded(self) -> Float[Tensor, "V C"]:
        """Return all features in 16 bits; those that are kept so without a basis are not copied."""
        if self.basis is None and isinstance(self.codes, Tensor):
            return self.codes
        width = self.codes.shape[1] if self.basis is None else len(self.basis.mean)
        features = torch.empty(len(self), width, dtype=torch.float16)
        for start in range(0, len(self), ROWS_AT_A_TIME):
            part = slice(start, start + ROWS_AT_A_TIME)
            features[part] = self[part]
        return features

    def cosine_error(self, features: Float[Tensor, "n C"], rows: Int64[Tensor, "n"] | None = None) -> float | None:
        """Return the mean of 1 - cos between features and what is kept of them.

        Args:
            features: The features, uncompressed; those of zeros are left out.
            rows: Which of the kept ones they are; all of them unless given.

        Returns:
            The error, rounded to three digits; None where there is no feature to compare.
        """
        errors = []
        for start in range(0, len(features), ROWS_AT_A_TIME):
            part = slice(start, start + ROWS_AT_A_TIME)
            exact, kept = features[part].double(), self[part if rows is None else rows[part]].double()
            error = 1 - functional.cosine_similarity(exact, kept, dim=1)
            errors.append(error[torch.linalg.vector_norm(exact, dim=1) > 0])
        every = torch.cat(errors) if errors else torch.zeros(0)
        return float(f"{max(float(every.mean()), 0.0):.3g}") if len(every) else None


@dataclass(frozen=True, eq=False)
class Projection:
    """Brings a teacher's maps into a basis before they are lifted: lifting is linear, so the lifted codes are the same.

    The weights by which lifting reads a map, and those of the views, sum to one. So the mean may stay in: its part
    outside the directions is one more channel, a constant. The lengths of what is lifted are then those of the decoded
    features, and so how far views agree or disagree is that of the decoded features as well: of what the basis leaves
    out, mostly noise, it knows nothing.
    """

    basis: Basis

    @property
    def width(self) -> int:
        """Channels of a projected map: a code, and the constant."""
        return len(self.basis.vectors) + 1

    def __call__(self, maps: Sequence[Float[Tensor, "_ _ _"]]) -> tuple[Float32[Tensor, "_ _ _"], ...]:
        """Project maps whose channels add up to the teacher's; maps of one size become one.

        Returns:
            Maps of `width` channels, of the sizes of those that were given; what is lifted from them is to be added.
        """
        basis, first = self.basis, 0
        outside = torch.linalg.vector_norm(basis.mean - self._inside @ basis.vectors)
        projected: dict[tuple[int, int], Tensor] = {}
        for one in maps:
            size = one.shape[1], one.shape[2]
            vectors = basis.vectors[:, first : first + len(one)].to(one.device)
            first += len(one)
            codes = (vectors @ one.flatten(1).float()).view(-1, *size)
            constant = codes.new_full((1, *size), 0.0 if projected else float(outside))
            code = torch.cat([codes, constant])
            projected[size] = projected[size] + code if size in projected else code
        return tuple(projected.values())

    def codes(self, lifted: Float32[Tensor, "V _"]) -> Float32[Tensor, "V K"]:
        """Return the codes of samples, given what was lifted from projected maps."""
        return lifted[:, :-1] - self._inside.to(lifted.device)

    @property
    def _inside(self) -> Tensor:
        """The mean's part in the directions (K,)."""
        return self.basis.vectors @ self.basis.mean


def _parts(features: Tensor) -> tuple[Tensor, ...]:
    return torch.split(features, ROWS_AT_A_TIME)
