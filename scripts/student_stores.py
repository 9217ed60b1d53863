"""Lift the rooms of the shipped student: those that it learns from, those that fit its verdicts, and fresh ones.

    python scripts/student_stores.py student

Seeds are used by nothing else. Rates and lengths were chosen on the validation rooms of `train`; `fresh` chose nothing.
"""

from pathlib import Path

import tyro

from cuao3d import recipes
from cuao3d.demo import LABELS, Together
from cuao3d.pipeline import fuse
from cuao3d.teachers import load_teacher
from cuao3d.worlds.rooms import Rooms

PARTS = {"train": (600_000, 610_000), "verdicts": (620_000, None), "fresh": (630_000, None)}
"""First seeds of the rooms to learn from or to ask, and of the rooms to choose on."""


def main(
    out: tyro.conf.Positional[Path],
    teachers: tuple[str, ...] = tuple(recipes.SMALL_TEACHERS),
    num_train: int = 80,
    num_others: int = 32,
    num_views: int = 12,
    workers: int = 2,
) -> None:
    """Write a store for each part.

    Args:
        out: Folder of the stores.
        teachers: Teachers to lift.
        num_train: Rooms to learn from.
        num_others: Rooms of each other kind.
        num_views: Views of each room.
        workers: Processes that lift.
    """
    loaded = [load_teacher(name) for name in teachers]
    for name, (first, choosing) in PARTS.items():
        count = num_others if choosing is None else num_train
        rooms = [
            Rooms(
                range(first, first + count), split="train" if choosing else "val", num_views=num_views, label_set=LABELS
            )
        ]
        if choosing is not None:
            seeds = range(choosing, choosing + num_others)
            rooms.append(Rooms(seeds, split="val", num_views=num_views, label_set=LABELS))
        settings = {"data": "rooms", "first_seed": first, "num_views": num_views}
        fuse(Together(rooms), loaded, out / name, cell=recipes.MINI_CELL, settings=settings, num_workers=workers)


if __name__ == "__main__":
    tyro.cli(main)
