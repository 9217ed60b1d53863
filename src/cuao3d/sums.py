"""Sums of a teacher's features over the views of a scene: means, weighted means, and how well the views agree."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from cuao3d.sampling import MapReader, Mode
from cuao3d.threads import in_shares

NEARLY_SAME = 1e-6
"""Features that scatter by less than this part of their squared length are as good as the same."""


@dataclass(frozen=True)
class Spread:
    """What the views of a sample say together, by which each of them is judged."""

    means: Float32[Tensor, "V C"]
    """Mean feature of each sample."""
    scatter: Float64[Tensor, "V"]
    """Mean squared distance of its features from it."""

    def to(self, device: torch.device) -> "Spread":
        """Return it on a device."""
        return Spread(self.means.to(device), self.scatter.to(device))


class Sums:
    """Sums over views, a row for each sample; on the device of the maps that are added."""

    def __init__(self, num_rows: int, num_channels: int, *, weighted: bool = False) -> None:
        """Start with nothing.

        Args:
            num_rows: Samples that are seen.
            num_channels: Width of a feature.
            weighted: Whether views have weights; those of each sample are then summed too.
        """
        self.total: Float32[Tensor, "V C"] = torch.zeros(num_rows, num_channels)
        self.squares: Float64[Tensor, "V"] = torch.zeros(num_rows, dtype=torch.float64)
        self.weights: Float64[Tensor, "V 2"] | None = (
            torch.zeros(num_rows, 2, dtype=torch.float64) if weighted else None
        )

    def add(
        self,
        maps: Sequence[Float[Tensor, "_ _ _"]],
        rows: Int64[Tensor, "n"],
        pixels: Float64[Tensor, "n 2"],
        image_size: tuple[int, int],
        *,
        mode: Mode = "bicubic",
        weights: Float32[Tensor, "n"] | None = None,
        spread: Spread | None = None,
        summed: bool = False,
    ) -> None:
        """Add what a view says, by its maps (C_i, h_i, w_i).

        Args:
            maps: The maps; their channels lie side by side in a feature.
            rows: Rows of the samples that the view sees, each once.
            pixels: Where it sees them (x, y).
            image_size: Width and height of the image, pixels.
            mode: How a map is read; see `MapReader`.
            weights: Weight of each sample's feature.
            spread: Weigh by how far each feature lies from the sample's mean, with Cauchy's weight 1 / (1 + d² / s²)
                (Holland and Welsch, Robust regression using iteratively reweighted least-squares, 1977), where s² is
                the sample's own scatter.
            summed: The maps add up, instead of lying side by side.
        """
        reader = MapReader(maps, pixels, image_size, mode=mode, summed=summed)
        device = reader.device
        self._move(device)
        rows = rows.to(device)

        def add_share(share: int, num_shares: int) -> None:
            for begin, end in reader.parts[share::num_shares]:
                which, values = reader.read(begin, end)
                at = rows[which.to(device)]
                squared = torch.linalg.vecdot(values, values).double()
                if self.weights is not None:
                    weight = torch.ones_like(squared) if weights is None else weights[which].to(squared)
                    if spread is not None:
                        distance = (values - spread.means[at]).square().sum(dim=1, dtype=torch.float64)
                        weight = weight / (1 + distance / spread.scatter[at])
                    values.mul_(weight[:, None])
                    squared.mul_(weight)
                    self.weights.index_add_(0, at, torch.stack([weight, weight.square()], dim=1))
                self.total.index_add_(0, at, values)
                self.squares.index_add_(0, at, squared)

        in_shares(add_share, device)

    def keep(self, kept: Tensor) -> None:
        """Leave out rows; `kept` (V,) says which stay."""
        for name, tensor in self.tensors().items():
            setattr(self, name, tensor[kept.to(tensor.device)])

    def tensors(self) -> dict[str, Tensor]:
        """Return all sums by name, as `restore` takes them."""
        weights = {} if self.weights is None else {"weights": self.weights}
        return {"total": self.total, "squares": self.squares} | weights

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with sums of before."""
        for name in self.tensors():
            setattr(self, name, tensors[name])

    def spread(self, num_views: Int64[Tensor, "V"]) -> Spread:
        """Return means and scatters, of views that all count the same; the sums are used up."""
        n = num_views.to(self.total.device)
        means = self.total.div_(n.clamp(min=1)[:, None])
        square, of_mean = self.squares / n.clamp(min=1), torch.linalg.vecdot(means, means).double()
        return Spread(means, torch.maximum(square - of_mean, NEARLY_SAME * square).clamp(min=1e-12))

    def finish(self, num_views: Int64[Tensor, "V"]) -> tuple[Float32[Tensor, "V C"], float, Float32[Tensor, "V"]]:
        """Return the means, how well the views agree, and how far those of each sample disagree; see `fusion.Lifted`.

        The sums are used up. Weighted views count as so many as would be as good if all weighed the same,
        (sum of w)² / sum of w² (Kish, Survey Sampling, 1965).

        Args:
            num_views: Number of views that were added to each row.
        """
        n = num_views.to(self.total.device)
        if self.weights is None:
            agreement, disagreement = _agreement(self.total, self.squares, n), self._disagreement(n, n)
            return self.total.div_(n[:, None]), agreement, disagreement
        weight, squared = self.weights.unbind(dim=1)
        self.total.mul_((weight / squared)[:, None])
        self.squares.mul_(weight / squared)
        effective = weight.square() / squared
        agreement, disagreement = _agreement(self.total, self.squares, effective), self._disagreement(effective, n)
        return self.total.div_(effective[:, None]), agreement, disagreement

    def _disagreement(self, n: Tensor, num_views: Tensor) -> Tensor:
        """Return what of each sample's squared lengths its mean lacks (V,)."""
        of_mean = torch.linalg.vecdot(self.total, self.total).double()
        lacking = 1 - of_mean / (n * self.squares).clamp(min=1e-12)
        return torch.where(num_views > 1, lacking.clamp(0, 1), math.nan).float()

    def _move(self, device: torch.device) -> None:
        """Bring the sums to a device."""
        if self.total.device != device:
            self.restore({name: tensor.to(device) for name, tensor in self.tensors().items()})


def _agreement(total: Tensor, squares: Tensor, num_views: Tensor) -> float:
    """Return ICC(1) from the sums (V, C) of features, those of their squared lengths (V,), and the views summed."""
    several = num_views > 1
    n, squared = num_views[several].double(), squares[several]
    if len(n) < 2:
        return math.nan
    sums = total[several]
    of_means = torch.linalg.vecdot(sums, sums).double() / n
    within = (squared - of_means).sum() / (n - 1).sum()
    overall = sums.sum(dim=0, dtype=torch.float64)
    between = (of_means.sum() - overall @ overall / n.sum()) / (len(n) - 1)
    usual = (n.sum() - n.square().sum() / n.sum()) / (len(n) - 1)
    return float((between - within) / (between + (usual - 1) * within))
