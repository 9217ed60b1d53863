"""Verdicts: fit the relevance at which they change, and count how often they are wrong.

A query asks a scene for something, and the peak relevance of its points decides: here, unsure or absent (see
`cuao3d.query`). A verdict is wrong if something that stands in the scene is said to be absent, or something that does
not is said to be here. "Unsure" is never wrong.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cuao3d.errors import InputError
from cuao3d.teachers import Calibration

MOST_WRONG = 0.03
"""Share of wrong verdicts of either sort that a calibration allows on the scenes on which it is fitted."""


class Peaks(NamedTuple):
    """Peak relevance of queries of one kind in scenes."""

    present: Sequence[float]
    """In scenes that hold what is asked for."""
    absent: Sequence[float]
    """In scenes that do not."""


def fit_verdicts(peaks: Mapping[str, Peaks], measured_on: str, most_wrong: float = MOST_WRONG) -> Calibration:
    """Choose the relevance at which verdicts change: as few queries as possible are unsure, and few verdicts wrong.

    Args:
        peaks: Peaks of each kind of query. The limit holds for every kind by itself.
        measured_on: What they were measured on; see `Calibration`.
        most_wrong: Largest share of wrong verdicts among the present, and among the absent, queries of a kind.

    Raises:
        InputError: There is no present or no absent query.
    """
    present, absent = ([one for one in side if len(one)] for side in zip(*peaks.values(), strict=True))
    if not present or not absent:
        raise InputError("Verdicts cannot be fitted: no scene holds what is asked for, or every scene does.")
    lowest = min(sorted(one)[int(most_wrong * len(one))] for one in present)
    highest = max(sorted(one, reverse=True)[int(most_wrong * len(one))] for one in absent)
    if highest < lowest:  # both sides lie apart: nothing need be unsure
        lowest = highest = (lowest + highest) / 2
    return Calibration(here=_above(highest), absent=lowest, measured_on=measured_on)


def wrong_verdicts(peaks: Peaks, calibration: Calibration) -> tuple[float | None, float | None]:
    """Return the share of present queries that are said to be absent, and of absent ones said to be here, percent.

    Args:
        peaks: Peaks of queries.
        calibration: Relevance at which verdicts change.

    Returns:
        Both shares; None where there is no such query.
    """
    missed = [peak < calibration.absent for peak in peaks.present]
    invented = [peak >= calibration.here for peak in peaks.absent]
    one, other = (100 * sum(wrong) / len(wrong) if wrong else None for wrong in (missed, invented))
    return one, other


def _above(value: float) -> float:
    """Return a relevance just above one: a query with that very peak is not here."""
    return value + 1e-6
