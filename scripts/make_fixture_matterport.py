"""Write a miniature Matterport3D: buildings of made rooms, a region each, under names from the official lists.

python scripts/make_fixture_matterport.py --out mini-matterport
cuao3d check mini-matterport
"""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
import tyro
from rich.progress import track

from cuao3d.readers import splits
from cuao3d.readers.matterport import write_building
from cuao3d.scene import Frame, Scene
from cuao3d.worlds.rooms import make_room

SPACING = 20.0
"""Distance from one room's origin to the next, metres: no room reaches into another."""


def main(out: Path, num_regions: int = 2, num_views: int = 6) -> None:
    """Write `out`/v1/scans/ID, one building per split, and the table of categories beside them."""
    buildings = [splits.scenes("matterport", "train")[0], splits.scenes("matterport", "val")[0]]
    for number, name in enumerate(track(buildings, "writing")):
        seeds = range(number * num_regions, (number + 1) * num_regions)
        rooms = [make_room(seed, num_views=num_views) for seed in seeds]
        building = [moved(room, SPACING * place) for place, room in enumerate(rooms)]
        write_building(building, out / "v1" / "scans" / name)
    (out / "metadata").mkdir()
    shutil.copyfile(splits.FOLDER / "matterport_categories.tsv", out / "metadata" / "category_mapping.tsv")


def moved(scene: Scene, x: float) -> Scene:
    """Move a scene along x."""
    offset = torch.tensor([x, 0.0, 0.0])
    frames = tuple(_moved(frame, offset) for frame in scene.frames)
    return replace(scene, points=scene.points + offset, frames=frames)


def _moved(frame: Frame, offset: torch.Tensor) -> Frame:
    pose = frame.camera.world_from_camera.clone()
    pose[:3, 3] += offset
    return replace(frame, camera=replace(frame.camera, world_from_camera=pose))


if __name__ == "__main__":
    tyro.cli(main)
