"""Tables of a report as data: each is written as CSV, LaTeX and JSON, and drawn in a page from the same cells."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from cuao3d.errors import InputError
from cuao3d.files import read_json, write_json, write_text
from cuao3d.names import check_file_name
from cuao3d.schema import fit

RESULTS = "results.json"
"""File of a folder that holds all its tables."""

NONE = "–"
"""What stands for a number that there is not."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "σ": r"$\sigma$",
    "–": "--",
    "[": "{[}",  # at the beginning of a row it would be an option of the \\ before it
    "*": "{*}",  # so would this
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}


@dataclass(frozen=True)
class Cell:
    """A number that was measured several times."""

    mean: float | None
    """Mean of the measurements; None or NaN where there is none."""
    half_width: float | None = None
    """Half the width of the interval that the true mean lies in; None where a single measurement leaves it open."""
    n: int = 1
    """Measurements."""
    digits: int = 1
    """Decimals to show."""

    def __str__(self) -> str:
        """Return mean, interval and number of measurements: "54.1 ± 0.8 (3)"; of a single one the mean."""
        if _is_lost(self.mean):
            return NONE
        interval = "" if _is_lost(self.half_width) else f" ± {self.half_width:.{self.digits}f}"
        return f"{self.mean:.{self.digits}f}{interval}" + (f" ({self.n})" if self.n > 1 else "")


Value = str | int | float | Cell | None
"""A cell: text, a number (a float is shown with one decimal), one with its interval, or none."""


@dataclass(frozen=True)
class Table:
    """A table of a report."""

    name: str
    """Name of its files, such as "zero-shot"."""
    caption: str
    """One sentence on what it shows."""
    columns: tuple[str, ...]
    """Title of each column."""
    rows: tuple[tuple[Value, ...], ...]
    """Lines, each with a cell for every column."""
    note: str = ""
    """What a reader must know to read the numbers."""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), f"{self.name}: a row is no row of its columns"

    @property
    def texts(self) -> list[list[str]]:
        """The cells as they are shown."""
        return [[show(value) for value in row] for row in self.rows]

    @property
    def is_number(self) -> list[bool]:
        """Which columns hold numbers alone; they are aligned to the right."""
        return [not any(isinstance(row[column], str) for row in self.rows) for column in range(len(self.columns))]


class _Written(TypedDict):
    """What is read of a file of tables."""

    tables: list[Table]


def show(value: Value) -> str:
    """Return a cell as it is shown; "–" for None, and for numbers that are not finite."""
    if isinstance(value, str | Cell):
        return str(value)
    if value is None or _is_lost(value):
        return NONE
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def write_tables(tables: Iterable[Table], folder: Path | str, *, results: Mapping[str, Any] | None = None) -> None:
    """Write each table as NAME.csv and NAME.tex, and all of them, with full precision, into results.json.

    Args:
        tables: The tables.
        folder: Where to write; made if missing.
        results: What results.json holds besides its `tables`.

    Raises:
        InputError: Two tables have one name, or a name that no file can have.
    """
    tables, folder = tuple(tables), Path(folder)
    names = [table.name for table in tables]
    for name in names:
        check_file_name(name, "table")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"Two tables of {folder} are called {twice[0]!r}; give each a name of its own.")
    for table in tables:
        write_text(folder / f"{table.name}.csv", to_csv(table))
        write_text(folder / f"{table.name}.tex", to_latex(table))
    write_json(folder / RESULTS, {**(results or {}), "tables": [asdict(table) for table in tables]})


def read_tables(folder: Path | str) -> tuple[Table, ...]:
    """Read the tables that `write_tables` wrote; a number that was not finite comes back as None.

    Raises:
        NotFoundError: The folder holds no results.json.
        InputError: It holds something else.
    """
    path = Path(folder) / RESULTS
    written: _Written = fit(read_json(path), _Written, str(path), "write it again")
    return tuple(written["tables"])


def to_csv(table: Table) -> str:
    """Return a table as CSV: a line of titles, then the cells as they are shown."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.columns, *table.texts])
    return text.getvalue()


def to_latex(table: Table) -> str:
    """Return a table for LaTeX with the package booktabs; its label is `tab:NAME`."""
    alignment = "".join("r" if is_number else "l" for is_number in table.is_number)
    head, *rows = [" & ".join(map(escape_latex, cells)) + r" \\" for cells in (table.columns, *table.texts)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        head,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *([rf"\par\smallskip\footnotesize {escape_latex(table.note)}"] if table.note else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints as it stands, on one line."""
    return "".join(_LATEX.get(one, one) for one in " ".join(text.split()))


def _is_lost(value: float | None) -> bool:
    return value is None or not math.isfinite(value)
