"""The tables, from the cells: a mean and an interval over seeds in each, and what was published beside it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuao3d.metrics import mean_interval
from cuao3d.published import Published
from cuao3d.reproduce.arms import ARMS, BASE
from cuao3d.reproduce.claims import MIN_HEADROOM, Verdict, judge
from cuao3d.tables import Cell as Number
from cuao3d.tables import Table, Value

Row = Mapping[str, Any]
"""A row of `evaluate`, as JSON."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what was found."""

    text: str
    gains: tuple[float, ...]
    """What is gained for each seed, mIoU unless the text says otherwise."""
    verdict: Verdict
    beside: Mapping[str, tuple[float, ...]]
    """What its controls gain for each seed."""


def number(values: Iterable[float | None], digits: int = 1) -> Number | None:
    """Return the mean of seeds and its interval; None of none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean, half = mean_interval(known)
    return Number(mean, half, len(known), digits)


def readout_of(row: Row) -> str:
    """Return what a row's read-out is called in a table."""
    rule = f" ({row['ensemble']})" if row.get("ensemble") else ""
    passes = f", {row['passes']} passes" if row.get("passes", 1) > 1 else ""
    mode = ", batch norm in train mode" if row.get("train_mode") else ""
    return f"{row['readout']}{rule}{passes}{mode}"


def by_readout(of_seed: Sequence[Sequence[Row] | None]) -> dict[str, list[Row]]:
    """Return the rows of several seeds by their read-out."""
    found: dict[str, list[Row]] = {}
    for rows in of_seed:
        for row in rows or ():
            found.setdefault(readout_of(row), []).append(row)
    return found


def two_scores(rows: Sequence[Row]) -> tuple[Number | None, Number | None]:
    """Return mIoU and mAcc of rows of several seeds."""
    return number(row["miou"] for row in rows), number(row["macc"] for row in rows)


def scored_lines(of_seed: Sequence[Sequence[Row] | None]) -> list[tuple[str, list[Row], tuple[Value, ...]]]:
    """Return each read-out of a model, its rows, and their two scores; see `two_scores`."""
    return [(readout, rows, two_scores(rows)) for readout, rows in by_readout(of_seed).items()]


SCORES = ("model", "read-out", "mIoU", "mAcc", "f-mIoU", "official mIoU", "seen words", "unseen words", "source")
"""Columns of a table of scores."""


def score_lines(model: str, of_seed: Sequence[Sequence[Row] | None], source: str) -> list[tuple[Value, ...]]:
    """Return the lines of a model in a table of scores, one a read-out.

    Args:
        model: What the table calls it.
        of_seed: Its rows for each seed; None where a seed failed.
        source: Where the numbers are from.
    """
    lines: list[tuple[Value, ...]] = []
    for readout, rows, scores in scored_lines(of_seed):
        others = [number(row[key] for row in rows) for key in ("fmiou", "miou_official")]
        divided = [number(row["by_student"][key] for row in rows) for key in ("miou_seen", "miou_unseen")]
        lines.append((model, readout, *scores, *others, *divided, source))
    return lines


def controls_lines(rows: Sequence[Row], source: str) -> list[tuple[Value, ...]]:
    """Return the lines of what knows nothing: predictions dealt out anew, and the most frequent class everywhere."""
    lines: list[tuple[Value, ...]] = []
    for name, key in (("lifted features, shuffled", "chance_miou"), ("the most frequent class", "constant_miou")):
        lines.append((name, "control", number(row[key] for row in rows), *[None] * 5, source))
    return lines


def published_lines(rows: Iterable[Published]) -> list[tuple[Value, ...]]:
    """Return the lines of published figures in a table of scores."""
    return [(row.method, row.readout or "–", row.miou, row.macc, *[None] * 4, source_of(row)) for row in rows]


def source_of(row: Published) -> str:
    """Return where a published figure is from, and what must be known to compare it."""
    note = f"; {row.note}" if row.note else ""
    return f"published: {row.trained_on or 'no training'} to {row.evaluated_on}{note}"


def ablation_table(
    scores: Mapping[str, Sequence[Sequence[Row] | None]],
    collapsed: Mapping[str, int],
    headroom: float | None,
    about: str,
) -> Table:
    """Return the ladder of teachers, losses and weights, with its controls.

    Args:
        scores: Rows of each arm for each seed.
        collapsed: How many of the trainings of each arm ended because their weights fell to zero.
        headroom: What a linear probe finds more in all teachers than in LSeg's alone, mIoU.
        about: How the students were trained.
    """
    lines: list[tuple[Value, ...]] = []
    base = miou_of(scores.get(BASE, ()))
    for arm in (arm for arm in ARMS if arm in scores):
        distilled, both = (miou_of(scores[arm], readout) for readout in ("distilled", "2d3d"))
        apart = None if arm == BASE else number(differences(distilled, base))
        fell = f"{collapsed[arm]} of {len(scores[arm])} collapsed" if collapsed.get(arm) else ""
        lines.append((arm, number(distilled.values()) or fell or None, apart, number(both.values())))
    known = "not measured" if headroom is None else f"{headroom:.1f} mIoU"
    return Table(
        "ablation",
        "Does a student gain from further teachers, from the learned noise levels, and from demeaning? "
        "Each line is a student, with its difference from the one of LSeg alone.",
        ("student", "distilled mIoU", "difference", "2D3D mIoU"),
        tuple(lines),
        f"{about} Shuffled: targets dealt out anew among the points of a scene. Oracle: a perfect teacher without "
        f"words. Headroom of the teachers: {known}.",
    )


def miou_of(of_seed: Sequence[Sequence[Row] | None], readout: str = "distilled") -> dict[int, float]:
    """Return the mIoU of each seed by a read-out; of 2d3d by the mean of unit vectors."""
    found = {}
    for seed, rows in enumerate(of_seed):
        for row in rows or ():
            if row["readout"] == readout and row.get("ensemble") in (None, "unit-average") and row["passes"] == 1:
                found[seed] = row["miou"]
    return found


def differences(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Return the differences of the seeds that both have."""
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def claims_table(claims: Sequence[Claim]) -> Table:
    """Return what can be said of the paper's claims."""
    lines: list[tuple[Value, ...]] = []
    for claim in claims:
        beside = "; ".join(f"{what} {_signed(values)}" for what, values in claim.beside.items() if values)
        lines.append((claim.text, _signed(claim.gains), beside, claim.verdict.word, claim.verdict.why))
    return Table(
        "claims",
        "What the paper claims, what was found here, and whether this data could have shown it.",
        ("claim", "gain", "controls", "verdict", "because"),
        tuple(lines),
        "A gain is a mean over seeds, of the same scenes, with its 95 % interval. That further teachers help is not "
        "decidable where a perfect teacher brings nothing that can be measured, or where all teachers know less "
        f"than {MIN_HEADROOM:g} mIoU more together than LSeg by a linear probe with labels.",
    )


def _signed(values: Sequence[float]) -> str:
    if not values:
        return "not run"
    mean, half = mean_interval(values)
    return f"{mean:+.1f}" + ("" if half is None else f" ± {half:.1f}") + f" ({len(values)})"


def claim(
    text: str, gains: Sequence[float], *, beside: Mapping[str, Sequence[float]] | None = None, **controls: Any
) -> Claim:
    """Judge a claim.

    Args:
        text: The claim.
        gains: What is gained for each seed.
        beside: What else gains how much, to be shown beside it; the verdict does not depend on it.
        controls: Those of `judge`.
    """
    shown = {what: tuple(controls[what]) for what in ("oracle", "shuffled", "blind") if controls.get(what)}
    shown |= {what: tuple(values) for what, values in (beside or {}).items()}
    return Claim(text, tuple(gains), judge(gains, **controls), shown)
