"""Label sets: which classes a dataset speaks of, their names, colours and prompts; one CSV per set.

A CSV has the columns `id,name,r,g,b` and may have `group`, `nyu40id` and `prompt`. Its order is the official one.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.scene import UNLABELLED

LABEL_SETS = ("scannet20", "scannet200", "matterport21", "matterport40", "matterport80", "matterport160", "nyu40")
"""Sets that come with the package."""

COLUMNS = ("id", "name", "r", "g", "b")


@dataclass(frozen=True, eq=False)
class LabelSet:
    """Classes that points are labelled with, in the official order."""

    name: str
    """Name of the set."""
    ids: tuple[int, ...]
    """Number by which labels mean each class, 0 to 254."""
    names: tuple[str, ...]
    """Name of each class, as its dataset writes it."""
    colors: Float32[Tensor, "K 3"]
    """Colour of each class, RGB in [0, 1]."""
    prompts: tuple[str, ...]
    """Text that stands for each class: "a {name} in a scene", or what the CSV says."""
    groups: tuple[str, ...] | None = None
    """Frequency group of each class (head, common, tail)."""
    nyu40: tuple[int, ...] | None = None
    """Each class's NYU40 id, through which sets are compared; 0 = none."""

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.ids)

    def classes(self, labels: Int64[Tensor, "N"]) -> Int64[Tensor, "N"]:
        """Return the row in this set of each label; 255 where the set has no such id."""
        table = torch.full((UNLABELLED + 1,), UNLABELLED)
        table[list(self.ids)] = torch.arange(len(self))
        known = (labels >= 0) & (labels <= UNLABELLED)
        return table.to(labels.device)[torch.where(known, labels, UNLABELLED)]


def label_set(name: str | Path) -> LabelSet:
    """Read a label set.

    Args:
        name: One of `LABEL_SETS`, or the path of a CSV.

    Raises:
        InputError: There is no such set, or its CSV is wrong.
    """
    path = Path(__file__).parent / f"{name}.csv" if str(name) in LABEL_SETS else Path(name)
    if not path.is_file():
        raise InputError(f"Unknown label set {str(name)!r}; choose from {list(LABEL_SETS)} or give the path of a CSV.")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    _check_rows(path, rows)
    return LabelSet(
        name=path.stem,
        ids=tuple(int(row["id"]) for row in rows),
        names=tuple(row["name"] for row in rows),
        colors=torch.tensor([[int(row[channel]) / 255 for channel in "rgb"] for row in rows]),
        prompts=tuple(row.get("prompt") or f"a {row['name']} in a scene" for row in rows),
        groups=tuple(row["group"] for row in rows) if "group" in rows[0] else None,
        nyu40=tuple(int(row["nyu40id"] or 0) for row in rows) if "nyu40id" in rows[0] else None,
    )


def convert(labels: Int64[Tensor, "N"], source: LabelSet, target: LabelSet) -> Int64[Tensor, "N"]:
    """Say labels of one set in another, class by class through NYU40; 255 where the other has no such class.

    Raises:
        InputError: The sets cannot be compared: the target must not be finer than NYU40.
    """
    if source.name == target.name:
        return labels
    if source.nyu40 is None or target.nyu40 is None or len(set(target.nyu40)) < len(target):
        raise InputError(
            f"Labels of {source.name} cannot be said in {target.name}; they can in nyu40, scannet20 or matterport21."
        )
    target_of_nyu40 = {nyu40: id_ for nyu40, id_ in zip(target.nyu40, target.ids, strict=True) if nyu40}
    ids = torch.tensor([target_of_nyu40.get(nyu40, UNLABELLED) for nyu40 in source.nyu40] + [UNLABELLED])
    classes = source.classes(labels)
    return ids.to(labels.device)[torch.where(classes == UNLABELLED, len(source), classes)]


def _check_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Raise ValueError unless the rows of a CSV make a label set."""
    missing = [column for column in COLUMNS if not rows or column not in rows[0]]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]!r}; a label set needs {','.join(COLUMNS)} and a class a line."
        )
    ids = {UNLABELLED}
    for line, row in enumerate(rows, start=2):
        numbers = [row[column] or "" for column in ("id", "r", "g", "b")]
        if not row["name"] or not all(number.isdecimal() and int(number) <= UNLABELLED for number in numbers):
            raise InputError(f"{path}, line {line}: expected id,name,r,g,b with whole numbers up to 255.")
        if int(row["id"]) in ids:
            raise InputError(f"{path}, line {line}: id {row['id']} is taken; 255 means unlabelled.")
        ids.add(int(row["id"]))
