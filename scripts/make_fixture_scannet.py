"""Write a miniature ScanNet: made rooms as raw scans, under names from the official lists.

python scripts/make_fixture_scannet.py --out mini-scannet
cuao3d check mini-scannet
"""

import shutil
from pathlib import Path
from typing import Literal

import tyro
from rich.progress import track

from cuao3d.readers import splits
from cuao3d.readers.scannet import write_scan
from cuao3d.worlds.rooms import make_room


def main(
    out: Path,
    num_train: int = 2,
    num_val: int = 1,
    num_views: int = 6,
    color: Literal["png", "jpeg"] = "jpeg",
    every: int = 20,
) -> None:
    """Write `out`/scans/ID for so many scans of each split, and the table of categories beside them."""
    names = [*splits.scenes("scannet", "train")[:num_train], *splits.scenes("scannet", "val")[:num_val]]
    for seed, name in enumerate(track(names, "writing")):
        write_scan(make_room(seed, num_views=num_views), out / "scans" / name, color=color, every=every)
    shutil.copyfile(splits.FOLDER / "scannet_categories.tsv", out / "scannetv2-labels.combined.tsv")


if __name__ == "__main__":
    tyro.cli(main)
