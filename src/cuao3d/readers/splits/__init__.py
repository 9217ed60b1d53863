"""Official lists of ScanNet and Matterport3D: which scenes train, validate and test, and what their labels mean.

`<dataset>_<split>.txt` holds a scene (Matterport: a building) a line, in the official order; `<dataset>_categories.tsv`
the columns of the dataset's own table of categories that its labels are looked up in.
"""

import csv
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from cuao3d.scene import Split

Benchmark = Literal["scannet", "matterport"]

FOLDER = Path(__file__).parent


@cache
def scenes(source: Benchmark, split: Split) -> tuple[str, ...]:
    """Return the scenes (Matterport: the buildings) of a split, in the official order."""
    return tuple((FOLDER / f"{source}_{split}.txt").read_text(encoding="utf-8").split())


def split_of(source: Benchmark, scene: str) -> Split:
    """Return the split that a scene (Matterport: a building) belongs to; "train" if the lists do not know it."""
    split: Split
    for split in get_args(Split):
        if scene in scenes(source, split):
            return split
    return "train"


@cache
def categories(source: Benchmark) -> tuple[dict[str, str], ...]:
    """Return the rows of a dataset's table of categories.

    ScanNet's have `id`, `raw_category` (the name that annotators chose) and `nyu40id`; Matterport's `index` (the number
    that faces carry), `nyu40id` and `nyuClass`.
    """
    with (FOLDER / f"{source}_categories.tsv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
