"""Published figures, to stand beside ours: those of the paper and of its talk, each with its protocol."""

import csv
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cuao3d.errors import InputError

FILE = Path(__file__).with_name("published.csv")

FOREGROUND = "foreground classes only"
"""How the note of a figure begins that leaves out wall, floor and other furniture: an f-mIoU, and no mIoU."""


@dataclass(frozen=True)
class Published:
    """A row of a published table, in percent."""

    table: str
    """fully-supervised, zero-shot, cross-dataset, linear-probe or ablation."""
    method: str
    """Name of the method."""
    readout: str
    """distilled, 2d3d or what was probed; empty where a method has one."""
    trained_on: str
    """Dataset, as the label set of its scores; empty where nothing was trained in 3D."""
    evaluated_on: str
    """Label set."""
    miou: float | None
    """Mean IoU; None where it is not given, NaN where the source says so."""
    macc: float | None
    """Mean recall, likewise."""
    source: str
    """paper or talk."""
    note: str
    """What else must be known to compare it."""

    @property
    def is_foreground(self) -> bool:
        """Whether wall, floor and other furniture are left out, so that it may stand beside an f-mIoU alone."""
        return self.note.startswith(FOREGROUND)

    @property
    def protocol(self) -> str:
        """How the figure came about, in words."""
        trained = f"trained on {self.trained_on}" if self.trained_on else ""
        parts = (self.readout, trained, f"evaluated on {self.evaluated_on}", self.source, self.note)
        return "; ".join(filter(None, parts))


def published(
    table: str | None = None,
    evaluated_on: str | None = None,
    *,
    trained_on: str | None = None,
    readout: str | None = None,
) -> tuple[Published, ...]:
    """Return the published rows that fit, in the order of their tables.

    Args:
        table: Name of a table; see `Published.table`.
        evaluated_on: Label set of the scores.
        trained_on: Dataset of the training.
        readout: The read-out.

    Raises:
        InputError: There is no such table.
    """
    rows = _read()
    if table is not None and table not in (tables := sorted({row.table for row in rows})):
        raise InputError(f"No table {table!r} is published; choose from {tables}.")
    wanted = {"table": table, "evaluated_on": evaluated_on, "trained_on": trained_on, "readout": readout}
    return tuple(
        row for row in rows if all(value is None or getattr(row, key) == value for key, value in wanted.items())
    )


@cache
def _read() -> tuple[Published, ...]:
    with FILE.open(encoding="utf-8", newline="") as file:
        return tuple(_row(line) for line in csv.DictReader(file))


def _row(line: dict[str, str]) -> Published:
    words = {key: text for key, text in line.items() if key not in ("miou", "macc")}
    return Published(**words, miou=_number(line["miou"]), macc=_number(line["macc"]))


def _number(text: str) -> float | None:
    return (math.nan if text == "nan" else float(text)) if text else None
