"""Walks through Habitat's simulator, as VLMaps' collector saves them."""

import re
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, PoseError, UserError
from cuao3d.formats.entries import by_number, read_lines, read_matrix, read_rows, summarise
from cuao3d.formats.images import COLOR_ENDINGS, image_size, lens_of, open_frame, usual_size
from cuao3d.formats.lens import Lens
from cuao3d.formats.listing import files_in, match_names
from cuao3d.formats.poses import from_quaternion
from cuao3d.readers.capture import Captures, build_scene, open_frames
from cuao3d.scene import OPENGL, Frame, Scene

ROWS, FILES, INTRINSICS = "poses.txt", "pose", "intrinsics.txt"


class Habitat(Captures):
    """Walks that VLMaps' collector saved; a folder of them is many scenes.

    ```
    WALK/rgb/000000.png      8-bit RGB
    WALK/depth/000000.npy    floats, metres along the optical axis, 0 = missing
    WALK/poses.txt           a row for each number: x y z qx qy qz qw, agent to world, OpenGL axes
    WALK/pose/000000.txt     instead: a file for each frame with such a row
    WALK/intrinsics.txt      3 x 3, pixels of both images
    ```
    The camera sits upright above the agent, so all cameras are as much too low, which moves the world and nothing in
    it. The world's y is up, and stays so (`"up": "y"` in `capture.json` turns it). The cloud is built from depth.
    """

    layout = f"rgb/000000.png, depth/000000.npy, {INTRINSICS}, and {ROWS} or {FILES}/000000.txt of 7 numbers a frame"
    files = ("rgb/*", "depth/*", f"{FILES}/*", ROWS, INTRINSICS)

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        if not (folder / "rgb").is_dir() or not any((folder / "depth").glob("*.npy")):
            return False
        first = next(iter(sorted((folder / FILES).glob("*.txt"))), folder / ROWS)
        try:
            return first.is_file() and len(next(iter(read_lines(first, of_numbers=True)), ("", []))[1]) == 7
        except (UserError, OSError):
            return False

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            NotFoundError: There are no intrinsics.
            InputError: No frame is usable, or intrinsics or poses are damaged.
        """
        colors = files_in(folder / "rgb", COLOR_ENDINGS)
        names = sorted(colors, key=by_number)
        all_depths = files_in(folder / "depth", (".npy",))
        depths = match_names(names, all_depths)
        files = match_names(names, files_in(folder / FILES, (".txt",)))
        rows = read_rows(folder / ROWS, 7) if (folder / ROWS).is_file() else torch.zeros(0, 7, dtype=torch.float64)
        lens = _lens(folder, list(colors.values()))

        def open_one(name: str) -> Frame:
            pose = _pose(files[name]) if name in files else _pose_of_row(rows, name)
            depth = depths.get(name, folder / "depth" / f"{name}.npy")
            return open_frame(name, pose @ OPENGL, color=colors[name], lens=lens, depth=depth)

        frames, problems = open_frames(names, open_one)
        alone = {path.name for path in all_depths.values()} - {path.name for path in depths.values()}
        problems += summarise("depth images have no colour image", sorted(alone, key=by_number))
        return build_scene(folder, frames, problems, None, annotations=annotations)


def _lens(folder: Path, colors: list[Path]) -> Lens:
    try:
        size = usual_size(colors, image_size)
    except UserError as error:
        raise InputError(f"No usable frame in {folder}: {error}") from error
    path = folder / INTRINSICS
    if not path.is_file():
        half, right, down = size[0] / 2, (size[0] - 1) / 2, (size[1] - 1) / 2
        raise NotFoundError(
            f"No {INTRINSICS} in {folder}: Habitat's walks do not say their field of view. If it was not changed, it "
            f"is 90 degrees: write {half:g} 0 {right:g} / 0 {half:g} {down:g} / 0 0 1 there, in three lines."
        )
    return lens_of(read_matrix(path, 3, 4), size, str(path))


def _pose(path: Path) -> Float64[Tensor, "4 4"]:
    try:
        (row,) = read_rows(path, 7)
    except (UserError, ValueError) as error:
        raise PoseError(f"{path.name} holds no row x y z qx qy qz qw ({error}).") from error
    return from_quaternion(row[3:], row[:3], path.name)


def _pose_of_row(rows: Float64[Tensor, "N 7"], name: str) -> Float64[Tensor, "4 4"]:
    digits = re.findall(r"\d{1,9}", name)
    if not digits or int(digits[-1]) >= len(rows):
        raise PoseError(f"{ROWS} has {len(rows)} rows and none for {name}; add its pose, or remove the frame.")
    row = rows[int(digits[-1])]
    return from_quaternion(row[3:], row[:3], f"{ROWS}, {name}")
