"""TUM RGB-D sequences: colour, depth and motion-capture poses, each with times of its own."""

import re
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.formats.entries import (
    inside,
    nearest_in_time,
    read_lines,
    read_numbers,
    read_rows,
    summarise,
)
from cuao3d.formats.images import image_size, open_frame, usual_size
from cuao3d.formats.lens import Lens
from cuao3d.formats.poses import from_quaternion
from cuao3d.readers.capture import ANY_IMAGE, Captures, build_scene, open_frames
from cuao3d.scene import Frame, Scene

DEPTH_UNIT = 1 / 5000
"""What 1 means in the depth images, metres."""

WITHIN = 0.02
"""How far colour, depth and pose of a frame may lie apart, seconds."""

COLORS, DEPTHS, POSES, CAMERA = "rgb.txt", "depth.txt", "groundtruth.txt", "camera.txt"

# The dataset's own calibrations of its colour cameras; the images of freiburg3 are undistorted already.
_KINECTS = {
    "1": Lens((517.3, 516.5), (318.6, 255.3), (640, 480), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "2": Lens((520.9, 521.0), (325.1, 249.7), (640, 480), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "3": Lens((535.4, 539.2), (320.1, 247.6), (640, 480)),
}


class Tum(Captures):
    """Sequences in the layout of TUM RGB-D; a folder of them is many scenes.

    ```
    FOLDER/rgb.txt            a row per colour image: time in seconds, name of the file
    FOLDER/depth.txt          the same for the depth images: 16-bit, 5000 to a metre, 0 or 65535 = missing
    FOLDER/groundtruth.txt    a row per pose: time, tx ty tz, qx qy qz qw: camera to world, metres, OpenCV axes
    FOLDER/camera.txt         fx fy cx cy [k1 k2 p1 p2 [k3]]; not needed if the folder's name holds freiburg1, 2 or 3
    ```
    A frame is a colour image with the depth and the pose nearest in time, at most 0.02 s away. Depth is registered to
    colour, so both are undistorted alike. The cloud is built from depth.
    """

    layout = f"{COLORS}, {DEPTHS} and {POSES}, in the folder or in its subfolders"
    files = (COLORS, DEPTHS, POSES, CAMERA, *ANY_IMAGE)

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        return all((folder / name).is_file() for name in (COLORS, DEPTHS, POSES))

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene; its cloud is built from depth.

        Raises:
            NotFoundError: The camera is not known.
            InputError: No frame is usable, or one of the lists is damaged.
        """
        color_times, colors = _read_list(folder, COLORS)
        depth_times, depths = _read_list(folder, DEPTHS)
        rows = read_rows(folder / POSES, 8)
        lens = _read_lens(folder, colors)
        depth_of = dict(zip(colors, nearest_in_time(color_times, depth_times, within=WITHIN), strict=True))
        pose_of = dict(zip(colors, nearest_in_time(color_times, rows[:, 0], within=WITHIN), strict=True))
        complete = {
            color.name: (color, depths[depth], rows[pose, 1:])
            for color in colors
            if (depth := depth_of[color]) is not None and (pose := pose_of[color]) is not None
        }

        def open_one(name: str) -> Frame:
            color, depth, row = complete[name]
            pose = from_quaternion(row[3:], row[:3], POSES)
            return open_frame(name, pose, color=color, lens=lens, depth=depth, depth_unit=DEPTH_UNIT)

        frames, problems = open_frames(complete, open_one)
        without = [path.name for path in colors if path.name not in complete]
        problems += summarise(f"colour images have no depth or no pose within {WITHIN} s", without)
        return build_scene(folder, frames, problems, None, annotations=annotations)


def _read_list(folder: Path, name: str) -> tuple[Float64[Tensor, "N"], list[Path]]:
    """Read the times and names of images."""
    times, paths = [], []
    for where, words in read_lines(folder / name):
        try:
            times.append(float(words[0]))
        except ValueError as error:
            raise InputError(f"{where}: expected a time in seconds and the name of a file.") from error
        paths.append(inside(folder, " ".join(words[1:]), where))
    return torch.tensor(times, dtype=torch.float64), paths


def _read_lens(folder: Path, colors: list[Path]) -> Lens:
    path = folder / CAMERA
    if path.is_file():
        fx, fy, cx, cy, *bent = read_numbers(path, 4, 8, 9)
        k1, k2, p1, p2, k3 = (*bent, 0.0, 0.0, 0.0, 0.0, 0.0)[:5]
        try:
            return Lens((fx, fy), (cx, cy), usual_size(colors, image_size), (k1, k2, p1, p2, k3))
        except UserError as error:
            raise InputError(f"{path}: {error}.") from error
    if match := re.search(r"freiburg([123])", folder.name):
        return _KINECTS[match[1]]
    raise NotFoundError(
        f"The camera of {folder} is not known: its name holds no freiburg1, 2 or 3. Write fx fy cx cy, in pixels, to "
        f"{CAMERA} there (525 525 319.5 239.5 is a Kinect's default)."
    )
