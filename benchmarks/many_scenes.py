"""How much memory `cuao3d fuse` holds after each scene of a large set: it must not grow with their number."""

import os
import re
import tempfile
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro

from common import provenance, write_section
from cuao3d import cli
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.scene import Scene
from cuao3d.store import Store
from cuao3d.worlds.rooms import make_room

TEACHER = """
import torch

class Colors:
    name, num_channels = "colors", 3

    def __call__(self, image):
        return torch.nn.functional.avg_pool2d(image, 8)
"""


def main(scenes: int = 200, points: int = 150_000, views: int = 2, readme: Path | None = None) -> None:
    """Fuse copies of one room and print the memory after some of them, and when the command has ended.

    Args:
        scenes: Scenes of the set.
        points: Points of each.
        views: Views of each.
        readme: Page to write the table into, with machine and date.
    """
    after: list[int] = []
    add_scene = Store.add_scene

    def add_and_measure(*arguments: Any, **named: Any) -> None:
        add_scene(*arguments, **named)
        after.append(_megabytes())

    Store.add_scene = add_and_measure  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        write_capture(_with_points(make_room(0, num_views=views), points), Path("room"))
        for index in range(scenes):
            Path(f"set/{index:04d}").mkdir(parents=True)
            for file in Path("room").iterdir():
                os.link(file, f"set/{index:04d}/{file.name}")
        Path("colors.py").write_text(TEACHER)
        code = cli.main(["fuse", "set", "--teachers", "colors.py:Colors", "--cell", "0.05", "--out", "store"])
    assert code == 0, f"fuse ended with {code}"
    counts = [count for count in (1, 20, 50, 100, 200, 500, 1000) if count <= scenes]
    rows = [(f"after {count} scene{'s' * (count > 1)}", after[count - 1]) for count in counts] + [
        ("at the end", _megabytes())
    ]
    for when, megabytes in rows:
        print(f"{when}: {megabytes} MB")
    if readme:
        command = f"python benchmarks/many_scenes.py --scenes {scenes} --readme {readme}"
        write_section(readme, "many scenes", _section(rows, points, views, command))


def _with_points(scene: Scene, count: int) -> Scene:
    """Return a scene with so many points: some of its own, moved by some millimetres."""
    index = torch.randint(len(scene.points), (count,))
    assert scene.colors is not None
    points = scene.points[index] + 0.002 * torch.randn(count, 3)
    return replace(scene, points=points, colors=scene.colors[index], labels=None, normals=None)


def _megabytes() -> int:
    """Return the memory of this process that is in use now."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0]) // 1024


def _section(rows: list[tuple[str, int]], points: int, views: int, command: str) -> list[str]:
    return [
        "## Many scenes",
        "",
        *provenance(command),
        f"Resident memory of `cuao3d fuse` on scenes of {points:,} points and {views} views of 320 x 240.",
        "",
        "| when | MB |",
        "|---|---|",
        *(f"| {when} | {megabytes:,} |" for when, megabytes in rows),
    ]


if __name__ == "__main__":
    tyro.cli(main)
