"""Write a miniature of OpenScene's processed data: made rooms as ScanNet, and as regions of Matterport3D.

python scripts/make_fixture_openscene.py --out mini-openscene
cuao3d check mini-openscene/scannet_3d
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import tyro
from rich.progress import track

from cuao3d.readers import splits
from cuao3d.readers.openscene import write_processed
from cuao3d.scene import Split
from cuao3d.worlds.rooms import make_room
from make_fixture_matterport import SPACING, moved


def main(out: Path, num_scenes: int = 2, num_views: int = 6) -> None:
    """Write `out`/scannet_3d, `out`/scannet_2d and the same of Matterport3D, with so many rooms of each split."""
    sources: tuple[Literal["scannet", "matterport"], ...] = ("scannet", "matterport")
    parts: tuple[Split, ...] = ("train", "val")
    for dataset in sources:
        for first, split in enumerate(track(parts, f"writing {dataset}")):
            rooms = [make_room(first * num_scenes + index, num_views=num_views) for index in range(num_scenes)]
            if dataset == "matterport":
                building = splits.scenes(dataset, split)[0]
                rooms = [moved(room, SPACING * index) for index, room in enumerate(rooms)]
                names = [f"{building}_region{index}" for index in range(num_scenes)]
            else:
                names = list(splits.scenes(dataset, split)[:num_scenes])
            scenes = [replace(room, name=name, split=split) for room, name in zip(rooms, names, strict=True)]
            write_processed(scenes, out, dataset=dataset)


if __name__ == "__main__":
    tyro.cli(main)
