"""Printing: the only module that writes to the terminal. Text from outside is never read as markup or as commands."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

console = Console(stderr=True)
"""Standard error, for progress bars and `note`."""


def visible(text: object) -> str:
    """Return text on one line with every character that could steer a terminal, or cannot be encoded, escaped.

    Control and format characters (escape sequences, line breaks, changes of the writing direction) and the undecodable
    bytes of a file name become escapes such as \\x1b.
    """
    return "".join(map(_visible, str(text)))


def counted(number: int, what: str) -> str:
    """Say how many there are of something: "1 scene", "2 scenes", "1,234 parts".

    Args:
        number: How many.
        what: What one is called; several have an s.
    """
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def tell(line: object) -> None:
    """Print a line to standard output."""
    print(_encodable(visible(line), sys.stdout), flush=True)


def note(line: object, *, head: str = "", style: str = "yellow") -> None:
    """Print a line to standard error.

    Args:
        line: The line.
        head: A word in front of it, such as "error".
        style: Colour of that word.
    """
    head = f"{head} " if head else ""
    console.print(Text.assemble((head, style), _encodable(visible(line), console.file)), soft_wrap=True)


def note_block(text: str) -> None:
    """Print several lines to standard error, such as a traceback."""
    for line in text.splitlines():
        print(_encodable(visible(line), sys.stderr), file=sys.stderr)


def tell_table(titles: Sequence[str], rows: Iterable[Sequence[object]], *, num_names: int = 1) -> None:
    """Print a table to standard output.

    Args:
        titles: Title of each column.
        rows: The cells of each row.
        num_names: So many columns hold names, which are aligned left and not wrapped; the others hold numbers.
    """
    output = Console()
    table = Table(box=None)
    for index, title in enumerate(titles):
        is_name = index < num_names
        table.add_column(title, justify="left" if is_name else "right", no_wrap=is_name)
    for row in rows:
        table.add_row(*(Text(_encodable(visible(cell), output.file)) for cell in row))
    output.print(table)


def progress_bar(*columns: ProgressColumn) -> Progress:
    """Return a progress bar that disappears when it is done.

    Args:
        columns: What it shows; unless given, the description, the bar, the count and the time left.
    """
    columns = columns or (Words("description"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class Words(ProgressColumn):
    """A column of a progress bar that shows words of its task as they are."""

    def __init__(self, field: str) -> None:
        """Make the column; `field` is "description" or the name of a field of the tasks."""
        super().__init__()
        self._field = field

    def render(self, task: Task) -> Text:
        """Return the words of a task."""
        return Text(visible(task.description if self._field == "description" else task.fields[self._field]))


def _visible(character: str) -> str:
    if character.isprintable() or character == "\N{NO-BREAK SPACE}":
        return character
    return repr(character)[1:-1]


def _encodable(text: str, stream: Any) -> str:
    """Escape what a stream cannot encode, such as a Greek letter where only ASCII can be printed."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, errors="backslashreplace").decode(encoding)
