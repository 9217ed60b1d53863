"""Render the training views of the mini teachers, in rooms whose seeds nothing else uses.

python scripts/render_teacher_rooms.py --out views --num-rooms 260
"""

from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.progress import track

from cuao3d.worlds.rooms import KINDS, TEACHER_SEEDS, furnish, photograph

VIEWS_PER_ROOM = 10


def main(out: Path, num_rooms: int = 260, first_seed: int = TEACHER_SEEDS, processes: int = 2) -> None:
    """Write `out`/images.npy (M, 240, 320, 3) and `out`/labels.npy (M, 240, 320), both uint8."""
    out.mkdir(parents=True, exist_ok=True)
    shape = (num_rooms * VIEWS_PER_ROOM, 240, 320)
    images = np.lib.format.open_memmap(out / "images.npy", "w+", np.uint8, (*shape, 3))
    labels = np.lib.format.open_memmap(out / "labels.npy", "w+", np.uint8, shape)
    seeds = range(first_seed, first_seed + num_rooms)
    with Pool(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for room, views in enumerate(track(pool.imap(_render, seeds), "rendering", total=num_rooms)):
            rows = slice(room * VIEWS_PER_ROOM, (room + 1) * VIEWS_PER_ROOM)
            images[rows], labels[rows] = views
    images.flush()
    labels.flush()


def _render(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, 2025])
    views = photograph(furnish(rng, KINDS[seed % len(KINDS)]), rng, VIEWS_PER_ROOM)
    return np.stack([view.image for view in views]), np.stack([view.labels for view in views])


if __name__ == "__main__":
    tyro.cli(main)
