"""Claims of the paper, judged by intervals over seeds, and beside controls."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cuao3d.metrics import mean_interval

HELD, NOT_HELD, OPEN = "held", "not held", "not decidable here"

MIN_HEADROOM = 5.0
"""Least headroom, mIoU, with which a world can tell whether further teachers help: what a linear probe with labels
finds more in all teachers than in LSeg's alone."""

WORTH_HAVING = 1.0
"""A gain that is worth having, in the unit of its claim (mIoU, degrees, centimetres): an interval that reaches from no
gain to more than this says neither that there is one nor that there is none."""


@dataclass(frozen=True)
class Verdict:
    """What can be said of a claim."""

    word: str
    """`HELD`, `NOT_HELD` or `OPEN`."""
    why: str
    """What it rests on."""


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean by Student's t; minus and plus infinity for fewer than two values."""
    mean, half = mean_interval(values)
    return (-math.inf, math.inf) if half is None else (mean - half, mean + half)


def judge(
    gains: Sequence[float],
    *,
    oracle: Sequence[float] | None = None,
    shuffled: Sequence[float] | None = None,
    blind: Sequence[float] | None = None,
    headroom: float | None = None,
) -> Verdict:
    """Judge whether something gains.

    Args:
        gains: What it gains for each seed.
        oracle: For a claim that further teachers help: what a perfect teacher without words gains for each seed.
        shuffled: Likewise: what teachers gain whose targets were dealt out anew; a gain that is no larger is no
            knowledge.
        blind: For a claim that features know something: what guesses gain that see no feature.
        headroom: Likewise: see `MIN_HEADROOM`.
    """
    if not gains:
        return Verdict(OPEN, "not run")
    low, high = bounds(gains)
    if len(gains) < 2:
        return Verdict(OPEN, "one seed has no interval")
    if low > 0:
        if shuffled and statistics.mean(gains) <= statistics.mean(shuffled):
            return Verdict(NOT_HELD, "targets that know nothing gain as much")
        if blind and statistics.mean(gains) <= statistics.mean(blind):
            return Verdict(NOT_HELD, "a guess that sees no feature gains as much")
        return Verdict(HELD, f"at least {low:+.1f}")
    if oracle is not None and (len(oracle) < 2 or bounds(oracle)[0] <= 0):
        return Verdict(OPEN, "a perfect teacher brings nothing that can be measured either")
    if headroom is not None and headroom < MIN_HEADROOM:
        return Verdict(OPEN, f"the teachers know only {headroom:.1f} mIoU more than LSeg")
    if high > WORTH_HAVING:
        return Verdict(OPEN, f"between {low:+.1f} and {high:+.1f}: more seeds would tell")
    return Verdict(NOT_HELD, f"at most {high:+.1f}")
