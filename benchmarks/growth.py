"""What `cuao3d.fuse` costs as captures get more views, clouds more samples, and datasets more scenes."""

import cuao3d  # noqa: F401 - before PyTorch, which looks at what it asks for when it is imported

# isort: split
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from common import provenance, write_section
from cuao3d.fusion import lift_together, sample_cells, see
from cuao3d.pipeline import fuse
from cuao3d.progress import peak_memory
from cuao3d.readers import Dataset, open_dataset
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.scene import Scene
from cuao3d.teachers import Teacher
from cuao3d.worlds.rooms import make_room

VIEWS, SAMPLES, SCENES = (10, 50, 250, 1000), (20_000, 100_000, 300_000, 600_000), (10, 100, 1000)


class Wide:
    """A teacher that costs little and is as wide as asked for: the colours of an image, averaged and repeated."""

    def __init__(self, num_channels: int = 512) -> None:
        self.name, self.num_channels = "wide", num_channels

    def __call__(self, image: Tensor) -> Tensor:
        """Describe an image."""
        small = torch.nn.functional.adaptive_avg_pool2d(image, (15, 20))
        return small.repeat(-(-self.num_channels // 3), 1, 1)[: self.num_channels]


@dataclass(frozen=True)
class Row:
    """One lifting, in a process of its own."""

    what: str
    """What grows: views, samples or scenes."""
    count: int
    """How many there are."""
    samples: int
    """Samples that are seen, in all scenes."""
    seconds: float
    """Time that `fuse` took."""
    seconds_each: float
    """Of a view, of 1000 samples, or of a scene."""
    overhead_each: float
    """How much of that goes beyond reading, seeing and lifting the same scenes without a store."""
    peak_mb: float
    """Peak memory of the process."""


def main(
    views: tuple[int, ...] = VIEWS,
    samples: tuple[int, ...] = SAMPLES,
    scenes: tuple[int, ...] = SCENES,
    channels: int = 512,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    readme: Path | None = None,
    only: str | None = None,
) -> None:
    """Lift captures in the layout of 7-Scenes, made from one room, by a teacher that costs next to nothing.

    Args:
        views: Numbers of views of one capture.
        samples: Numbers of points of one capture, each in a cell of its own.
        scenes: Numbers of tiny scenes: 2 views of 80 x 60, 2,000 points.
        channels: Channels of the teacher.
        json_file: Where to write the rows.
        readme: Page to write the table into, with machine and date.
        only: Only lift this and print the row; "what:count".
    """
    if only:
        what, _, count = only.partition(":")
        print(json.dumps(asdict(measure(what, int(count), channels))))
        return
    rows = []
    for what, counts in (("views", views), ("samples", samples), ("scenes", scenes)):
        for count in counts:
            command = [sys.executable, sys.argv[0], "--only", f"{what}:{count}", "--channels", str(channels)]
            out = subprocess.check_output(command, text=True)
            rows.append(Row(**json.loads(out.splitlines()[-1])))
            print(*section([rows[-1]])[-1:], flush=True)
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if readme:
        command = "python benchmarks/growth.py --readme benchmarks/README.md"
        about = [
            f"`fuse` on captures in the layout of 7-Scenes by a teacher of {channels} channels that costs next to",
            "nothing, each in a process of its own. *Each* is the time of a view (320 x 240), of 1,000 samples in 10",
            "views, or of a scene with 2 views of 80 x 60 and 2,000 points. *Overhead* is what is left of it without",
            "the time that the same process then takes to read, see and lift up to 100 of these and keep nothing.",
            "",
        ]
        write_section(readme, "growth", ["## Growth", "", *provenance(command), *about, *section(rows)])


def section(rows: list[Row]) -> list[str]:
    """The rows as a table."""
    return [
        "| what | how many | samples seen | seconds | each, ms | overhead, ms | peak memory, MB |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.what} | {row.count:,} | {row.samples:,} | {row.seconds:.1f} | {1000 * row.seconds_each:.1f} "
            f"| {1000 * row.overhead_each:.1f} | {row.peak_mb:,.0f} |"
            for row in rows
        ),
    ]


def measure(what: str, count: int, channels: int) -> Row:
    """Make captures, lift them and say what it took."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        if what == "scenes":
            make_scenes(data, count)
        else:
            num_points = count if what == "samples" else 50_000
            write_capture(grown(make_room(0, num_views=10), num_points), data)
            repeat_views(data, 10, count if what == "views" else 10)
        teacher, cell = Wide(channels), 1e-4 if what == "samples" else 0.05
        begun = time.perf_counter()
        store = fuse(open_dataset(data), [teacher], Path(folder) / "store", cell=cell)
        seconds, peak = time.perf_counter() - begun, peak_memory()
        seen = sum(store.summary(name).num_seen for name in store.names())
        plain = without_store(open_dataset(data), teacher, cell)
    per = count / 1000 if what == "samples" else count
    return Row(what, count, seen, seconds, seconds / per, (seconds - plain) / per, peak)


def without_store(dataset: Dataset, teacher: Teacher, cell: float) -> float:
    """Return the seconds that lifting all scenes takes if nothing is kept, by the first ones."""
    begun, num_scenes = time.perf_counter(), min(len(dataset), 100)
    for index in range(num_scenes):
        scene = dataset[index]
        visibility = see(scene, sample_cells(scene.points, cell))
        lift_together(scene, visibility, [teacher])
    return (time.perf_counter() - begun) * len(dataset) / num_scenes


def grown(scene: Scene, num_points: int) -> Scene:
    """Return a scene with so many points: some of its own, moved by some millimetres."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(scene.points), (num_points,), generator=generator)
    assert scene.colors is not None
    points = scene.points[index] + 0.004 * torch.randn(num_points, 3, generator=generator)
    return replace(scene, points=points, colors=scene.colors[index], labels=None, normals=None)


def repeat_views(capture: Path, num_there: int, num_views: int) -> None:
    """Give a capture so many views: those that it has again and again, as links."""
    for number in range(num_there, num_views):
        for file in capture.glob(f"frame-{number % num_there:06d}.*"):
            os.link(file, capture / file.name.replace(f"{number % num_there:06d}", f"{number:06d}"))


def make_scenes(data: Path, count: int) -> None:
    """Write so many tiny scenes, links to one."""
    room = make_room(0, num_views=2)
    first = data.with_name("first")
    write_capture(tiny(grown(room, 2000)), first)
    for number in range(count):
        (data / f"{number:04d}").mkdir(parents=True)
        for file in first.iterdir():
            os.link(file, data / f"{number:04d}" / file.name)


def tiny(scene: Scene) -> Scene:
    """Return a scene whose images are a quarter as wide and as high."""

    def small(read: Any) -> Any:
        return lambda: read()[..., 1::4, 1::4].contiguous()

    frames = [
        replace(
            frame,
            camera=frame.camera.resized(frame.camera.width // 4, frame.camera.height // 4),
            read_image=small(frame.read_image),
            read_depth=small(frame.read_depth),
        )
        for frame in scene.frames
    ]
    return replace(scene, frames=tuple(frames))


if __name__ == "__main__":
    tyro.cli(main)
