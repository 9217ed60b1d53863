"""Reliability: how well a confidence tells wrong labels, and which labels to keep so that few of them are wrong."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of wrong labels for which a threshold is fitted."""

MISSES = 0.05
"""Share of fresh scenes in which more than the promised share of the kept labels may be wrong."""

LEVELS = tuple(level / 100 for level in range(100))
"""Confidences among which thresholds are chosen."""

BINS = 15
"""Bins of the calibration error, as in Guo et al., On Calibration of Modern Neural Networks, 2017."""


@dataclass(frozen=True)
class Trust:
    """How well confidence tells wrong labels; shares in percent."""

    error: float
    """Wrong labels, of all that have one."""
    error_at: dict[str, float]
    """Wrong labels among the surest 50, 80 and 90 %."""
    aurc: float
    """Mean error over all coverages, the area under the risk-coverage curve; of an oracle, not 0."""
    aurc_random: float
    """The same if labels were withheld at random: the error."""
    auroc: float | None
    """Chance that a right label has more confidence than a wrong one, 0 to 1; None where all are right or wrong."""
    calibration_error: float | None
    """Expected calibration error over `BINS` bins; None where nothing was fitted."""
    measured_on: str
    """What the confidence was fitted on."""
    curve: tuple[tuple[float, float], ...]
    """Error at each whole percent of coverage: pairs of both."""
    reliability: tuple[tuple[float, float, float], ...]
    """Of each bin that is not empty: mean confidence, share of right labels, share of all labels."""


@dataclass(frozen=True)
class Levels:
    """Labels counted by how sure they are, the surest level first."""

    confidence: Float64[Tensor, "L"]
    """Mean confidence of each level."""
    right: Float64[Tensor, "L"]
    """Right labels."""
    wrong: Float64[Tensor, "L"]
    """Wrong labels."""

    @staticmethod
    def of(confidence: Float[Tensor, "n"], wrong: Bool[Tensor, "n"]) -> "Levels":
        """Count labels; equal values share a level.

        Args:
            confidence: How sure each label is, on any scale.
            wrong: Whether it is wrong.
        """
        values, level = torch.unique(-confidence.double(), return_inverse=True)
        of_level = torch.bincount(level, minlength=len(values)).double()
        bad = torch.bincount(level[wrong], minlength=len(values)).double()
        return Levels(-values, of_level - bad, bad)

    @property
    def total(self) -> Float64[Tensor, "L"]:
        """Labels of each level."""
        return self.right + self.wrong

    def error_at(self, coverage: float) -> float:
        """Return the share of wrong labels among the surest, 0 to 1.

        Args:
            coverage: Share of the labels that are kept, above 0 and up to 1; of a level that is kept in part, the mean.
        """
        kept = torch.cat([torch.zeros(1).double(), self.total.cumsum(0)])
        bad = torch.cat([torch.zeros(1).double(), self.wrong.cumsum(0)])
        wanted = coverage * float(kept[-1])
        return float(np.interp(wanted, kept.numpy(), bad.numpy()) / wanted)

    def aurc(self) -> float:
        """Return the area under the risk-coverage curve, the mean error of the surest 1, 2, ... n labels.

        Labels of one level are withheld in random order, of which it is the expectation. Geifman et al., Bias-Reduced
        Uncertainty Estimation for Deep Neural Classifiers, 2019.
        """
        num, rate = self.total, self.wrong / self.total.clamp(min=1)
        before, bad = num.cumsum(0) - num, self.wrong.cumsum(0) - self.wrong
        harmonic = torch.digamma(before + num + 1) - torch.digamma(before + 1)
        return float((rate * num + (bad - rate * before) * harmonic).sum() / num.sum())

    def auroc(self) -> float | None:
        """Return the chance that a right label is surer than a wrong one, a tie counting half; None without a pair."""
        pairs = self.right.sum() * self.wrong.sum()
        surer = self.right.cumsum(0) - self.right / 2
        return float((surer * self.wrong).sum() / pairs) if pairs else None

    def reliability(self, bins: int = BINS) -> list[tuple[float, float, float]]:
        """Return of each bin of equal width its mean confidence, share of right labels, and share of all labels."""
        of_level = (self.confidence * bins).long().clamp(0, bins - 1)
        sums = [self.total * self.confidence, self.right, self.total]
        confidence, right, num = (torch.bincount(of_level, one, minlength=bins) for one in sums)
        held = num > 0
        rows = torch.stack([confidence[held] / num[held], right[held] / num[held], num[held] / num.sum()], dim=1)
        return [(float(a), float(b), float(c)) for a, b, c in rows]

    def calibration_error(self, bins: int = BINS) -> float:
        """Return the expected calibration error, 0 to 1: the mean gap between confidence and share of right labels."""
        return sum(share * abs(confidence - right) for confidence, right, share in self.reliability(bins))

    def trust(self, measured_on: str) -> Trust | None:
        """Summarise; None of no label. `measured_on` says what the confidence was fitted on."""
        if not float(self.total.sum()):
            return None
        error = 100 * self.error_at(1)
        return Trust(
            error=error,
            error_at={str(percent): 100 * self.error_at(percent / 100) for percent in (50, 80, 90)},
            aurc=100 * self.aurc(),
            aurc_random=error,
            auroc=self.auroc(),
            calibration_error=100 * self.calibration_error() if measured_on else None,
            measured_on=measured_on,
            curve=tuple((float(percent), 100 * self.error_at(percent / 100)) for percent in range(1, 101)),
            reliability=tuple(self.reliability()),
        )


def error_by_level(
    confidence: Float[Tensor, "n"], right: Float[Tensor, "n"], wrong: Float[Tensor, "n"]
) -> Float64[Tensor, "L"]:
    """Return the share of wrong labels among those that have each of `LEVELS` at least; 0 where none has.

    Args:
        confidence: Of each sample.
        right: Its right labels.
        wrong: Its wrong labels.
    """
    level = torch.bucketize(confidence.float().double(), torch.tensor(LEVELS).double(), right=True) - 1
    sums = [
        torch.bincount(level.clamp(min=0), part.double(), minlength=len(LEVELS)).flip(0).cumsum(0).flip(0)
        for part in (right, wrong)
    ]
    return sums[1] / (sums[0] + sums[1]).clamp(min=1)


def conformal_threshold(errors: Sequence[Float[Tensor, "L"]], share: float, misses: float = MISSES) -> float | None:
    """Choose the confidence from which on labels are kept, by split conformal calibration over scenes.

    Of each scene the lowest of `LEVELS` is taken from which on no level keeps more than the share wrong. The threshold
    is the `ceil((n + 1) (1 - misses))`-th lowest of these n: a fresh scene, exchangeable with them, then has more than
    the share wrong with a chance of at most `misses` (Vovk et al., Algorithmic Learning in a Random World, 2005).

    Args:
        errors: Share of wrong labels of each scene at each of `LEVELS`, as of `error_by_level`.
        share: Largest share of wrong labels among those that are kept.
        misses: Share of fresh scenes in which it may be more.

    Returns:
        The threshold; None where no level will do, or where there are too few scenes for any promise.
    """
    lowest = []
    for of_scene in errors:
        bad = torch.nonzero(of_scene > share).squeeze(1)
        lowest.append(int(bad[-1]) + 1 if len(bad) else 0)
    rank = math.ceil((len(lowest) + 1) * (1 - misses) - 1e-9)
    if rank > len(lowest) or sorted(lowest)[rank - 1] >= len(LEVELS):
        return None
    return LEVELS[sorted(lowest)[rank - 1]]
