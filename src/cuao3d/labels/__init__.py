"""Label sets: the classes of a dataset, their names, colours and prompts; one CSV per set.

A CSV has the columns `id,name,r,g,b` and may have `group`, `nyu40id`, `prompt`, `synonyms` and `questions`. Its order
is the official one.
"""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.scene import UNLABELLED

LABEL_SETS = (
    "scannet20",
    "scannet200",
    "matterport21",
    "matterport40",
    "matterport80",
    "matterport160",
    "nyu40",
    "made100",
)
"""Sets that come with the package."""

COLUMNS = ("id", "name", "r", "g", "b")

NUM_NYU40 = 40
"""Largest NYU40 id; 0 means none."""

SEPARATOR = "|"
"""What stands between the synonyms, and between the questions, of a class."""


@dataclass(frozen=True, eq=False)
class LabelSet:
    """Classes that points are labelled with, in the official order."""

    name: str
    """Name of the set."""
    ids: tuple[int, ...]
    """The number that stands for each class in labels, 0 to 254."""
    names: tuple[str, ...]
    """Name of each class, as its dataset writes it."""
    colors: Float32[Tensor, "K 3"]
    """Colour of each class, RGB in [0, 1]."""
    prompts: tuple[str, ...]
    """Text that stands for each class: "a {name} in a scene", or the CSV's own prompt."""
    groups: tuple[str, ...] | None = None
    """Frequency group of each class (head, common, tail)."""
    nyu40: tuple[tuple[int, ...], ...] | None = None
    """NYU40 ids that each class covers, through which sets are converted: none, one or several."""
    synonyms: tuple[tuple[str, ...], ...] = ()
    """Other names of each class; for evaluation alone. An empty tuple for each class where the CSV has none."""
    questions: tuple[tuple[str, ...], ...] = ()
    """Ways to ask for each class ("somewhere to sit"), likewise; several classes may answer the same question."""

    def __post_init__(self) -> None:
        """Give each class an empty list of synonyms and of questions, where the set has none."""
        for name in ("synonyms", "questions"):
            if not getattr(self, name):
                object.__setattr__(self, name, ((),) * len(self.ids))

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.ids)

    def classes(self, labels: Int64[Tensor, "N"]) -> Int64[Tensor, "N"]:
        """Return the row in this set, 0 to K - 1, of each label; 255 where the set has no such id.

        Args:
            labels: Ids of this set; 255 is unlabelled.
        """
        table = torch.full((UNLABELLED + 1,), UNLABELLED)
        table[list(self.ids)] = torch.arange(len(self))
        known = (labels >= 0) & (labels <= UNLABELLED)
        return table.to(labels.device)[torch.where(known, labels, UNLABELLED)]


def label_set(name: str | Path) -> LabelSet:
    """Read a label set.

    Args:
        name: One of `LABEL_SETS`, or the path of a CSV.

    Returns:
        The set, its classes in the order of the CSV.

    Raises:
        InputError: There is no such set, or its CSV is wrong.
    """
    path = Path(__file__).parent / f"{name}.csv" if str(name) in LABEL_SETS else Path(name)
    if not path.is_file():
        raise InputError(f"Unknown label set {str(name)!r}; choose from {list(LABEL_SETS)} or give the path of a CSV.")
    rows = _read_rows(path)
    return LabelSet(
        name=path.stem,
        ids=tuple(int(row["id"]) for row in rows),
        names=tuple(row["name"] for row in rows),
        colors=torch.tensor([[int(row[channel]) / 255 for channel in "rgb"] for row in rows]),
        prompts=tuple(row.get("prompt") or f"a {row['name']} in a scene" for row in rows),
        groups=tuple(row["group"] or "" for row in rows) if "group" in rows[0] else None,
        nyu40=tuple(_nyu40_ids(row) for row in rows) if "nyu40id" in rows[0] else None,
        synonyms=tuple(_listed(row, "synonyms") for row in rows),
        questions=tuple(_listed(row, "questions") for row in rows),
    )


def convert(labels: Int64[Tensor, "N"], source: LabelSet, target: LabelSet) -> Int64[Tensor, "N"]:
    """Convert labels of one set into another: through their ids where the sets nest, else class by class through NYU40.

    Sets nest where each class of the target is one of the source, with the same id and name: matterport40 and 80 in
    160. Labels converted so are those read in the target, but for points on the border of two classes or more. A point
    takes the class that most of its faces have; read in the coarser set, faces of all classes that it lacks count
    together, as none, and none comes first in a tie. A class that does not outnumber them together, but none of them
    outnumbers, keeps the point here and loses it there.

    Args:
        labels: Ids of the source.
        source: The set that they are in.
        target: The set that they are wanted in.

    Returns:
        Ids of the target. 255 where no class of the target covers the label's class: the target is nested and lacks it;
        or the class has no NYU40 id, or the target has none of its ids, or only some of them, or has them in different
        classes.

    Raises:
        InputError: A set has no NYU40 ids, or the target is finer than NYU40: several of its classes have the same id.
    """
    if (source.ids, source.names) == (target.ids, target.names):
        return labels
    if set(zip(target.ids, target.names, strict=True)) <= set(zip(source.ids, source.names, strict=True)):
        return torch.where(target.classes(labels) == UNLABELLED, UNLABELLED, labels)
    cannot = f"Labels of {source.name} cannot be converted to {target.name}"
    covered_by_source, covered_by_target = source.nyu40 or (), target.nyu40 or ()
    for name, covered in ((source.name, covered_by_source), (target.name, covered_by_target)):
        if not any(covered):
            raise InputError(f"{cannot}: {name} has no NYU40 ids; add a column nyu40id to {name}.csv.")
    nyu40, count = Counter(id_ for covered in covered_by_target for id_ in covered).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{cannot}: {count} of its classes have the NYU40 id {nyu40}. Convert to a coarser set, such as nyu40, "
            "scannet20 or matterport21."
        )
    target_of_nyu40 = {
        nyu40: id_ for id_, covered in zip(target.ids, covered_by_target, strict=True) for nyu40 in covered
    }
    ids = [_only({target_of_nyu40.get(nyu40, UNLABELLED) for nyu40 in covered}) for covered in covered_by_source]
    rows = source.classes(labels)
    return torch.tensor([*ids, UNLABELLED]).to(labels.device)[torch.where(rows == UNLABELLED, len(ids), rows)]


def _only(ids: set[int]) -> int:
    """Return the one element of a set; 255 if it has none or several."""
    return ids.pop() if len(ids) == 1 else UNLABELLED


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV that makes a label set, as spreadsheets save it: commas, semicolons or tabs; UTF-8 or 16.

    Raises:
        InputError: It makes no label set.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        head = text.partition("\n")[0]
        mark = max(",;\t", key=head.count)
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=mark))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV in UTF-8 ({error}); save it again.") from error
    rows = [{(key or "").strip().lower(): value for key, value in row.items()} for row in rows]
    missing = [column for column in COLUMNS if not rows or column not in rows[0]]
    if missing:
        there = f"has the columns {head.strip()[:80]!r}" if head.strip() else "is empty"
        raise InputError(
            f"{path} {there} and no column {missing[0]!r}; a label set needs {','.join(COLUMNS)} and a class a line."
        )
    taken: set[int] = set()
    for line, row in enumerate(rows, start=2):
        _check_row(f"{path}, line {line}", row, taken)
        taken.add(int(row["id"]))
    return rows


def _check_row(where: str, row: dict[str, str], taken: set[int]) -> None:
    numbers = [row[column] or "" for column in ("id", "r", "g", "b")]
    if not row["name"] or not all(number.isascii() and number.isdigit() and len(number) < 19 for number in numbers):
        raise InputError(f"{where}: expected id,name,r,g,b with whole numbers, got {','.join(map(str, row.values()))}.")
    id_, *color = map(int, numbers)
    if id_ >= UNLABELLED:
        raise InputError(
            f"{where}: the id is {id_}. Ids go from 0 to {UNLABELLED - 1}, and {UNLABELLED} means unlabelled; number "
            "the classes anew, here and in the labels."
        )
    if id_ in taken:
        raise InputError(f"{where}: the id {id_} is taken by a line above.")
    if max(color) > 255:
        raise InputError(f"{where}: expected r,g,b from 0 to 255, got {','.join(map(str, color))}.")
    if any(not part.isascii() or not part.isdigit() or int(part) > NUM_NYU40 for part in _nyu40_parts(row)):
        raise InputError(
            f"{where}: nyu40id is {row['nyu40id']!r}; expected a number from 1 to {NUM_NYU40}, several separated by "
            "semicolons (5;7), or nothing."
        )


def _nyu40_parts(row: dict[str, str]) -> list[str]:
    parts = (row.get("nyu40id") or "").replace(" ", "").split(";")
    return [part for part in parts if part and part.lower() not in ("none", "nan", "null")]


def _nyu40_ids(row: dict[str, str]) -> tuple[int, ...]:
    """Return the NYU40 ids of a class, each once; 0 means none."""
    return tuple(dict.fromkeys(int(part) for part in _nyu40_parts(row) if int(part)))


def _listed(row: dict[str, str], column: str) -> tuple[str, ...]:
    """Return the texts of an optional column, each once."""
    parts = (" ".join(part.split()) for part in (row.get(column) or "").split(SEPARATOR))
    return tuple(dict.fromkeys(part for part in parts if part))
