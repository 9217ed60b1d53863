"""Stray Scanner: an iPhone's video, LiDAR depth, confidence and odometry."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.files import check_inside
from cuao3d.formats.entries import only_file, summarise
from cuao3d.formats.images import DEPTH_ENDINGS, PHOTOGRAPHS, image_size, lens_of, open_frame, usual_size
from cuao3d.formats.lens import Lens, Size
from cuao3d.formats.listing import files_in
from cuao3d.formats.poses import from_quaternion
from cuao3d.formats.video import CONTAINERS, extract_frames
from cuao3d.readers.capture import Captures, build_scene, open_frames
from cuao3d.readers.surface import read_surface
from cuao3d.scene import Frame, Scene

POSES, LENS, VIDEO, IMAGES = "odometry.csv", "camera_matrix.csv", "rgb", "rgb"
MOTION = ("x", "y", "z", "qx", "qy", "qz", "qw")
INTRINSICS = ("fx", "fy", "cx", "cy")
COLUMNS = {7: MOTION, 9: ("timestamp", "frame", *MOTION)}
"""Columns of odometry without a line of names, by their number."""


class Stray(Captures):
    """Recordings of Stray Scanner; a folder of them is many scenes.

    ```
    SCAN/rgb.mp4                  video; frames are numbered from 0 on; needs the extra [video]
    SCAN/rgb/000000.jpg           or its frames: ffmpeg -i rgb.mp4 -start_number 0 rgb/%06d.jpg
    SCAN/depth/000000.png         16-bit, millimetres along the optical axis, 0 = missing
    SCAN/confidence/000000.png    optional: 0 = low, 1, 2 = high; depth of low confidence is left out
    SCAN/odometry.csv             timestamp, frame, x, y, z, qx, qy, qz, qw: camera to world, metres, OpenCV axes; where
                                  there are fx, fy, cx, cy too, they count for their frame
    SCAN/camera_matrix.csv        3 x 3, pixels of the video, commas between
    SCAN/mesh.ply                 optional: the cloud or mesh; any name if it is the only .ply
    ```
    The world's y is up, and stays so (`"up": "y"` in `capture.json` turns it). The first reading decodes the whole
    video once, in its order, and keeps small JPEGs of its frames in the cache (`formats/video.py: extract_frames`).
    """

    layout = f"{POSES}, {LENS}, depth/ and rgb.mp4 or rgb/, in the folder or in its subfolders"
    files = (
        POSES,
        LENS,
        *(f"{VIDEO}{ending}" for ending in CONTAINERS),
        f"{IMAGES}/*",
        "depth/*",
        "confidence/*",
        "*.ply",
    )

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        return (folder / POSES).is_file() and (folder / LENS).is_file()

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            NotFoundError: There is no video and no frame of it, or no depth.
            NotInstalledError: There is a video, and PyAV is not installed.
            InputError: No frame is usable, or the video, one of the tables, or the mesh are damaged.
        """
        rows, twice = _read_rows(folder / POSES)
        depths, confidences = (_by_number(folder / kind, DEPTH_ENDINGS) for kind in ("depth", "confidence"))
        if not depths:
            raise NotFoundError(f"There is no depth image in {folder / 'depth'}; record with LiDAR, or copy it again.")
        complete = {number: row for number, row in rows.items() if number in depths}
        colors, size = _read_colors(folder, list(complete))
        lens = lens_of(_read_matrix(folder / LENS), size, str(folder / LENS))

        def open_one(name: str) -> Frame:
            number = int(name)
            row, color = complete[number], colors[number]
            return open_frame(
                name,
                row.pose(f"{POSES}, frame {number}"),
                color=color,
                lens=row.lens(lens).at(image_size(color)),
                depth=depths[number],
                confidence=confidences.get(number),
            )

        frames, problems = open_frames([f"{number:06d}" for number in sorted(complete) if number in colors], open_one)
        dark = [f"{number:06d}" for number in sorted(complete) if number not in colors]
        problems += summarise(f"frames are not in the video, or not in {IMAGES}/", dark)
        without = [f"{number:06d}" for number in rows if number not in depths]
        problems += summarise(f"frames of {POSES} have no depth image", without)
        problems += summarise("depth images have no pose", [path.name for n, path in depths.items() if n not in rows])
        problems += summarise(f"frames stand in {POSES} again; the first row counts", twice)
        points, _, unused = read_surface(only_file(folder, "*.ply", "mesh.ply"), has_depth=True)
        return build_scene(folder, frames, [*problems, *unused], points, annotations=annotations)


@dataclass(frozen=True)
class _Row:
    """A row of the odometry."""

    values: dict[str, float]

    def pose(self, where: str) -> Float64[Tensor, "4 4"]:
        """Return the pose, camera to world."""
        x, y, z, *quaternion = (self.values[name] for name in MOTION)
        doubles = torch.tensor([*quaternion, x, y, z], dtype=torch.float64)
        return from_quaternion(doubles[:4], doubles[4:], where)

    def lens(self, shared: Lens) -> Lens:
        """Return the lens of the frame, if the row has one, else that of all."""
        fx, fy, cx, cy = (self.values.get(name, math.nan) for name in INTRINSICS)
        return Lens((fx, fy), (cx, cy), shared.size) if math.isfinite(fx + fy + cx + cy) else shared


def _read_rows(path: Path) -> tuple[dict[int, _Row], list[str]]:
    """Read the odometry: rows by the number of their frame, and the frames that come again.

    Raises:
        InputError: The table has other columns, or a line holds something else than numbers.
    """
    check_inside(path)
    rows: dict[int, _Row] = {}
    twice, names = [], None
    for where, cells in _lines(path):
        if names is None and not _is_number(cells[0]):
            names = tuple(cell.lower() for cell in cells)
            continue
        names = names or COLUMNS.get(len(cells), ())
        if missing := [name for name in MOTION if name not in names]:
            raise InputError(f"{where}: there is no column {', '.join(missing)}; expected a line of names first.")
        of = dict(zip(names, cells, strict=False))
        try:
            values = {name: float(of[name]) for name in MOTION}
            number = int(float(of["frame"])) if "frame" in of else len(rows)
        except (ValueError, KeyError, OverflowError) as error:
            raise InputError(f"{where}: expected {len(names)} numbers: {', '.join(names)}.") from error
        values |= {name: float(of[name]) for name in INTRINSICS if _is_number(of.get(name, ""))}
        if number in rows:
            twice.append(str(number))
        rows.setdefault(number, _Row(values))
    return rows, twice


def _lines(path: Path) -> list[tuple[str, list[str]]]:
    """Read the cells of each line of a table; empty lines do not count."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no table ({error}); copy it again.") from error
    return [(f"{path}, line {index}", row) for index, row in enumerate(table, start=1) if any(row)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_matrix(path: Path) -> Float64[Tensor, "3 3"]:
    check_inside(path)
    rows = [cells for _, cells in _lines(path)]
    if len(rows) != 3 or any(len(row) != 3 or not all(map(_is_number, row)) for row in rows):
        raise InputError(f"{path} should hold 3 lines of 3 numbers, commas between: fx, 0, cx / 0, fy, cy / 0, 0, 1.")
    return torch.tensor([[float(cell) for cell in row] for row in rows], dtype=torch.float64)


def _by_number(folder: Path, endings: tuple[str, ...]) -> dict[int, Path]:
    return {int(stem): path for stem, path in files_in(folder, endings).items() if stem.isdecimal() and len(stem) < 10}


def _read_colors(folder: Path, numbers: Sequence[int]) -> tuple[dict[int, Path], Size]:
    """Return the photographs by the number of their frame, and the size that the intrinsics are for."""
    images = _by_number(folder / IMAGES, PHOTOGRAPHS)
    if images:
        if numbers and min(numbers) == 0 and min(images) == 1 and max(images) > max(numbers):
            images = {number - 1: path for number, path in images.items()}  # FFmpeg counts from 1 unless told
        try:
            return images, usual_size(images.values(), image_size)
        except UserError as error:
            raise InputError(f"No usable frame in {folder}: {error}") from error
    video = next((path for end in CONTAINERS if (path := folder / f"{VIDEO}{end}").is_file()), None)
    if video is None:
        raise NotFoundError(
            f"There is no {VIDEO}.mp4 and no {IMAGES}/ in {folder}; copy the video from the phone again."
        )
    frames = extract_frames(video, numbers)
    return frames.files, frames.size
