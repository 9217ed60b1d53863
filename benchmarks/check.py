"""How long the check of a capture takes, reading included, with a cloud of its own and with one built from depth."""

import json
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import tyro

from common import provenance, write_section
from cuao3d.check import check
from cuao3d.readers import open_dataset
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.scene import Frame, Scene
from cuao3d.worlds.rooms import make_room


@dataclass(frozen=True)
class Row:
    """One measurement."""

    cloud: str
    """Whether the capture brings a cloud: "own", or "built" of its depth."""
    reading: float
    """Seconds to open the scene, the cloud included; median."""
    checking: float
    """Seconds of the check itself; median."""


def main(
    frames: int = 300,
    repeats: int = 3,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    readme: Path | None = None,
) -> None:
    """Measure the check on a capture of 640 x 480.

    Args:
        frames: Frames of the capture.
        repeats: Times that it is opened and checked.
        json_file: Where to write the rows.
        readme: Page to write the table into, with machine and date.
    """
    with tempfile.TemporaryDirectory() as folder:
        capture = Path(folder) / "capture"
        write_capture(_scene(frames), capture)
        rows = [_measure(capture, "own", repeats)]
        (capture / "points.ply").unlink()
        rows.append(_measure(capture, "built", repeats))
        shutil.rmtree(capture)
    for row in rows:
        print(f"cloud {row.cloud}: {row.reading:.1f} s to read, {row.checking:.1f} s to check")
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if readme:
        write_section(readme, "check", _section(rows, frames, repeats))


def _scene(num_frames: int) -> Scene:
    """Make a room whose views, enlarged, are told again and again until there are enough."""
    room = make_room(0)
    frames = [_enlarged(room.frames[index % len(room.frames)]) for index in range(num_frames)]
    return replace(room, frames=tuple(frames))


def _enlarged(frame: Frame) -> Frame:
    image, depth = frame.read_image(), frame.read_depth()
    return replace(
        frame,
        camera=frame.camera.resized(2 * frame.camera.width, 2 * frame.camera.height),
        read_image=lambda: image.repeat_interleave(2, 1).repeat_interleave(2, 2),
        read_depth=lambda: depth.repeat_interleave(2, 0).repeat_interleave(2, 1),
    )


def _measure(capture: Path, cloud: str, repeats: int) -> Row:
    reading, checking = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        scene = open_dataset(capture)[0]
        opened = time.perf_counter()
        assert check(scene).verdict == "ok"
        reading.append(opened - start)
        checking.append(time.perf_counter() - opened)
    return Row(cloud, median(reading), median(checking))


def _section(rows: list[Row], frames: int, repeats: int) -> list[str]:
    return [
        "## The check",
        "",
        *provenance(f"python benchmarks/check.py --frames {frames} --repeats {repeats} --readme benchmarks/README.md"),
        f"{frames} frames of 640 x 480 as PNG; medians of {repeats}. Without a cloud of its own one is built of all",
        "frames.",
        "",
        "| cloud | reading, s | checking, s | together, s |",
        "|---|---|---|---|",
        *(
            f"| {row.cloud} | {row.reading:.1f} | {row.checking:.1f} | {row.reading + row.checking:.1f} |"
            for row in rows
        ),
    ]


if __name__ == "__main__":
    tyro.cli(main)
