"""Render the training views of the mini teachers, in rooms and houses whose seeds nothing else uses.

python scripts/render_teacher_rooms.py rooms --out views/rooms --num-rooms 320
python scripts/render_teacher_rooms.py houses --out views/houses --num-rooms 240

Labels are ids of made100. Views of houses are brought to the size of those of rooms, which changes their proportions,
as the teachers' own resizing does.
"""

from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from rich.progress import track

from cuao3d.worlds import houses, rooms
from cuao3d.worlds.rooms import TEACHER_SEEDS
from cuao3d.worlds.survey import take_views

World = Literal["rooms", "houses"]

VIEWS_PER_ROOM = 10


def main(
    world: tyro.conf.Positional[World],
    out: Path,
    num_rooms: int = 320,
    first_seed: int = TEACHER_SEEDS,
    processes: int = 2,
) -> None:
    """Write `out`/images.npy (M, 240, 320, 3) and `out`/labels.npy (M, 240, 320), both uint8."""
    out.mkdir(parents=True, exist_ok=True)
    shape = (num_rooms * VIEWS_PER_ROOM, rooms.HEIGHT, rooms.WIDTH)
    images = np.lib.format.open_memmap(out / "images.npy", "w+", np.uint8, (*shape, 3))
    labels = np.lib.format.open_memmap(out / "labels.npy", "w+", np.uint8, shape)
    seeds = range(first_seed, first_seed + num_rooms)
    with Pool(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        views = track(pool.imap(partial(_render, world), seeds), f"rendering {world}", total=num_rooms)
        for room, (of_room, labels_of_room) in enumerate(views):
            rows = slice(room * VIEWS_PER_ROOM, (room + 1) * VIEWS_PER_ROOM)
            images[rows], labels[rows] = of_room, labels_of_room
    images.flush()
    labels.flush()


def _render(world: World, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if world == "rooms":
        rng = np.random.default_rng([seed, 2025])
        views = rooms.photograph(rooms.furnish(rng, rooms.KINDS[seed % len(rooms.KINDS)]), rng, VIEWS_PER_ROOM)
        return np.stack([view.image for view in views]), np.stack([view.labels for view in views])
    rng = np.random.default_rng([seed, 2026])
    house = houses.furnish_house(rng, houses.KINDS[seed % len(houses.KINDS)])
    cameras = list(houses.panoramas(house, rng, 2).values())
    cameras = [cameras[index] for index in rng.choice(len(cameras), VIEWS_PER_ROOM, replace=False)]
    views = take_views(house, cameras, rng)
    rows = (np.arange(rooms.HEIGHT) + 0.5) * houses.HEIGHT / rooms.HEIGHT
    return np.stack([_squeezed(view.image) for view in views]), np.stack(
        [view.labels[rows.astype(int)] for view in views]
    )


def _squeezed(image: np.ndarray) -> np.ndarray:
    """Bring an image (H, W, 3) to the height of a room's view, by area averages."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.interpolate(pixels, (rooms.HEIGHT, rooms.WIDTH), mode="area")
    return small[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


if __name__ == "__main__":
    tyro.cli(main)
