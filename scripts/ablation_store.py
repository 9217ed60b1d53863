"""Make the store of an ablation: made scenes in three splits, all small teachers, and teachers that are controls.

    python scripts/ablation_store.py rooms --out ablation/rooms
    python scripts/ablation_store.py houses --out ablation/houses

Students learn from the split `train`; learning rates are chosen on `val`, and the tables report `test`. The teachers
that are controls are those of `cuao3d.reproduce.controls`.
"""

from pathlib import Path
from typing import Literal

import tyro

from cuao3d import recipes
from cuao3d.demo import Together
from cuao3d.pipeline import fuse
from cuao3d.reproduce.controls import add_controls
from cuao3d.scene import Split
from cuao3d.teachers import load_teacher
from cuao3d.worlds.houses import Houses
from cuao3d.worlds.rooms import Rooms

FIRST_SEED, STRIDE = 700_000, 10_000
"""First seed of the training scenes; those of each further split begin so much later."""


def main(
    world: tyro.conf.Positional[Literal["rooms", "houses"]],
    out: Path,
    num_train: int = 80,
    num_val: int = 24,
    num_test: int = 32,
    num_views: int = 12,
    workers: int = 2,
) -> None:
    """Write `out/store`; `out/lifted` holds the same without the controls.

    Args:
        world: Rooms, where the language teacher was trained, or houses, where it was not.
        out: Folder for both stores.
        num_train: Scenes to learn from.
        num_val: Scenes to choose the rates on.
        num_test: Scenes to report.
        num_views: Views of each scene.
        workers: Processes that lift.
    """
    make, first = (Rooms if world == "rooms" else Houses), FIRST_SEED
    counts: tuple[tuple[Split, int], ...] = (("train", num_train), ("val", num_val), ("test", num_test))
    parts = [
        make(range(start, start + count), split=split, num_views=num_views, label_set="made100")
        for start, (split, count) in zip(range(first, first + 3 * STRIDE, STRIDE), counts, strict=True)
    ]
    teachers = [load_teacher(name) for name in recipes.SMALL_TEACHERS]
    lifted = fuse(Together(parts), teachers, out / "lifted", cell=recipes.MINI_CELL, num_workers=workers)
    add_controls(lifted, out / "store")


if __name__ == "__main__":
    tyro.cli(main)
