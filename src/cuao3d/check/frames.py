"""Which frames have poses that do not fit those of the others, though the capture as a whole does?"""

import numpy as np
import torch

from cuao3d.check.consistency import CONTRADICTORY, Consistency
from cuao3d.check.views import View

SHARED = 8
"""Pixels that two views must share, by agreeing or contradicting, for their pair to tell anything."""

BEST_PAIRS, FEWEST_PAIRS = 5, 3
"""A frame is judged by its best pairs, as drift parts it from frames long before; with fewer pairs it is not judged."""

FEWEST_VIEWS = 8
"""Views that must be judged for one to stand out."""

STRAY = 0.6
"""A frame is stray where less than this part of the median share of pixels agrees closely ..."""

SPREADS = 6.0
"""... and which lies by more than so many median deviations below it."""

SPREAD = 0.02
"""Least median deviation that is taken."""

LOOSE = 0.3
"""Where at the median less than this share agrees closely, poses or depth are too noisy to name single frames."""


def stray_frames(views: list[View], given: Consistency) -> list[str]:
    """Name the frames whose poses fit no others as well as most do, the worst first.

    Args:
        views: Views that were read.
        given: How they fit together as given.
    """
    if given.consistent < CONTRADICTORY:
        return []
    scores = _scores(given)
    judged = np.isfinite(scores)
    if judged.sum() < FEWEST_VIEWS or (median := float(np.median(scores[judged]))) < LOOSE:
        return []
    spread = max(SPREAD, float(np.median(np.abs(scores[judged] - median))))
    limit = min(STRAY * median, median - SPREADS * spread)
    return [views[index].name for index in np.argsort(scores) if judged[index] and scores[index] < limit]


def _scores(given: Consistency) -> np.ndarray:
    """Return for each view the share of pixels that agree closely in its best pairs; NaN where it has too few."""
    shared, tight = (matrix + matrix.T for matrix in (given.agreeing + given.contradicting, given.tight))
    share = torch.where(shared >= SHARED, tight / shared.clamp(min=1), -1.0).fill_diagonal_(-1)
    best = share.sort(dim=1, descending=True).values[:, :BEST_PAIRS]
    count = (best >= 0).sum(dim=1)
    mean = (best.clamp(min=0).sum(dim=1) / count.clamp(min=1)).where(count >= FEWEST_PAIRS, torch.nan)
    scores: np.ndarray = mean.double().numpy()
    return scores
