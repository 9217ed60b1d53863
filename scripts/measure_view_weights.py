"""Measure what weights of views are worth: lifted with and without, on made rooms and on a real capture.

python scripts/measure_view_weights.py --lounge LOUNGE

Rooms are scored by the zero-shot mIoU of lifted features against their exact labels; LOUNGE, the folder of a capture
with `objects.json` and `pointing.py`, by the pointing game of `play_pointing.py`.
"""

import tempfile
from pathlib import Path
from typing import get_args

import tyro

from cuao3d import recipes
from cuao3d.pipeline import evaluate, fuse
from cuao3d.predictor import Predictor
from cuao3d.readers import Dataset
from cuao3d.teachers import load_teacher
from cuao3d.view_weights import ViewWeights
from cuao3d.worlds.houses import Houses
from cuao3d.worlds.rooms import Rooms
from play_pointing import play

FIRST_SEED = 800_000
"""Seed of the first room."""


def main(scenes: int = 6, views: int = 12, lounge: Path | None = None, teacher: str = "photo") -> None:
    """Print a table.

    Args:
        scenes: Rooms to score, and as many houses.
        views: Views of each.
        lounge: The capture.
        teacher: Looks at the capture; at the rooms and houses looks `mini-lseg`.
    """
    print("| weights | rooms: mIoU, mAcc | houses: mIoU, mAcc | agreement in rooms | capture: first place, AUROC |")
    print("|---|---|---|---|---|")
    seeds = range(FIRST_SEED, FIRST_SEED + scenes)
    worlds: list[Dataset] = [
        make(seeds, split="test", num_views=views, label_set="made100") for make in (Rooms, Houses)
    ]
    for how in get_args(ViewWeights):
        scores, agreements = zip(*(score(world, how) for world in worlds), strict=True)
        game = "" if lounge is None else found(play(lounge, teacher, view_weights=how))
        print(f"| {how} | {' | '.join(scores)} | {agreements[0]:.4f} | {game} |", flush=True)


def score(world: Dataset, how: ViewWeights) -> tuple[str, float]:
    """Lift scenes, and return what their features are worth and how well views agree."""
    with tempfile.TemporaryDirectory() as folder:
        store = fuse(world, [load_teacher("mini-lseg")], folder, cell=recipes.MINI_CELL, view_weights=how)
        (row,) = evaluate(store, Predictor.open(store), labels="made100", split=None)
        agreements = [store.lifting(name)["mini-lseg"].agreement or 0.0 for name in store.names()]
    return f"{row.miou:.2f}, {row.macc:.2f}", sum(agreements) / len(agreements)


def found(row: str) -> str:
    """Return of a row of `play_pointing.py` what changes with the features."""
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    return f"{cells[1]}, {cells[3]}"


if __name__ == "__main__":
    tyro.cli(main)
