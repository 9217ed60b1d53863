"""Open3D's reconstruction system: folders of colour and depth, one log of poses, intrinsics in JSON."""

from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.files import read_json
from cuao3d.formats.entries import by_number, only_file, read_lines, summarise, whole
from cuao3d.formats.images import DEPTH_ENDINGS, PHOTOGRAPHS, image_size, lens_of, open_frame, usual_size
from cuao3d.formats.lens import Lens
from cuao3d.formats.listing import files_in
from cuao3d.formats.poses import from_flat
from cuao3d.readers.capture import Captures, build_scene, open_frames
from cuao3d.readers.surface import read_surface
from cuao3d.scene import Frame, Scene

COLORS = ("color", "image", "rgb")
POSES = ("trajectory.log", "scene/trajectory.log")
LENSES = ("camera_intrinsic.json", "intrinsic.json")
MESHES = ("mesh.ply", "scene/integrated.ply")


class Open3D(Captures):
    """Folders of Open3D's reconstruction system; a folder of them is many scenes.

    ```
    FOLDER/color/000000.jpg         8-bit RGB; the folder may also be named image or rgb
    FOLDER/depth/000000.png         16-bit, millimetres along the optical axis, 0 or 65535 = missing
    FOLDER/camera_intrinsic.json    {"width", "height", "intrinsic_matrix": fx 0 0 0 fy 0 cx cy 1, column by column};
                                    may also be named intrinsic.json
    FOLDER/trajectory.log           five lines a frame: three numbers, the first of which is that of the frame; then
                                    4 x 4, camera to world, metres, OpenCV axes; may also lie in scene/
    FOLDER/scene/integrated.ply     optional: the mesh, whose vertices are the cloud if they are many; or mesh.ply
    ```
    Frame n is the n-th colour image by name, from 0 on. Depth belongs to the colour image of its stem; where no two
    stems are equal (some recorders write times) and there are as many of both, the n-th to the n-th.
    """

    layout = "color/, depth/, camera_intrinsic.json and trajectory.log, in the folder or in its subfolders"
    files = (*(f"{kind}/*" for kind in (*COLORS, "depth")), *POSES, *LENSES, "*.ply", MESHES[1])

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        has_colors = any((folder / kind).is_dir() for kind in COLORS)
        return has_colors and (folder / "depth").is_dir() and any((folder / name).is_file() for name in POSES)

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            NotFoundError: There are no intrinsics.
            InputError: No frame is usable, the log, the intrinsics or the mesh are damaged, or it is not clear which
                depth image belongs to which photograph.
        """
        kind = next(kind for kind in COLORS if (folder / kind).is_dir())
        colors = _in_order(folder / kind, PHOTOGRAPHS)
        depth_of = _pair(folder, kind, colors, _in_order(folder / "depth", DEPTH_ENDINGS))
        log = next(folder / name for name in POSES if (folder / name).is_file())
        poses, lens = read_log(log), _read_lens(folder, colors)
        without = [path.name for index, path in enumerate(colors) if index not in poses]
        too_many = [str(number) for number in poses if number >= len(colors)]

        def open_one(name: str) -> Frame:
            index = int(name)
            color = colors[index]
            return open_frame(color.stem, poses[index], color=color, lens=lens, depth=depth_of[color])

        frames, problems = open_frames([str(index) for index in range(len(colors)) if index in poses], open_one)
        problems += summarise(f"photographs have no pose in {log.name}", without)
        problems += summarise(f"poses of {log.name} have no photograph", too_many)
        ply = only_file(folder, "*.ply", MESHES[0]) or folder / MESHES[1]
        points, _, unused = read_surface(ply if ply.is_file() else None, has_depth=True)
        return build_scene(folder, frames, [*problems, *unused], points, annotations=annotations)


def read_log(path: Path) -> dict[int, Float64[Tensor, "4 4"]]:
    """Read the poses of a `.log` of Open3D or Redwood.

    Args:
        path: Five lines a frame: three whole numbers, and a matrix of 4 rows.

    Returns:
        The poses by number of the frame, the first of the three. Where numbers come twice, as some writers leave them
        all 0, the poses count from 0 in the order of the file.

    Raises:
        NotFoundError: There is no such file.
        InputError: It holds something else; the message names the line.
    """
    lines = read_lines(path)
    numbers, poses = [], []
    for start in range(0, len(lines), 5):
        where, words = lines[start]
        if len(words) != 3 or len(lines) < start + 5:
            raise InputError(f"{where}: expected three whole numbers and, in the next lines, a matrix of 4 rows.")
        try:
            numbers.append(int(words[0]))
            rows = [[float(word) for word in row] for _, row in lines[start + 1 : start + 5]]
        except ValueError as error:
            raise InputError(f"{where}: this frame holds something else than numbers ({error}).") from error
        if numbers[-1] < 0 or any(len(row) != 4 for row in rows):
            raise InputError(f"{where}: expected the number of a frame and, in the next lines, 4 rows of 4 numbers.")
        poses.append(torch.tensor(rows, dtype=torch.float64))
    if len(set(numbers)) < len(numbers):
        numbers = list(range(len(poses)))
    return dict(zip(numbers, poses, strict=True))


def _in_order(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    return sorted(files_in(folder, endings).values(), key=lambda path: by_number(path.name))


def _pair(folder: Path, kind: str, colors: list[Path], depths: list[Path]) -> dict[Path, Path]:
    """Return the depth image of each photograph; one that is missing has the name that it should have."""
    by_name = {path.stem: path for path in depths}
    if any(color.stem in by_name for color in colors) or not depths:
        return {color: by_name.get(color.stem, folder / "depth" / f"{color.stem}.png") for color in colors}
    if len(colors) != len(depths):
        raise InputError(
            f"{folder}: {len(colors)} images of {kind}/ and {len(depths)} of depth/ have no stem in common, such as "
            f"{colors[0].name if colors else 'none'} and {depths[0].name}; give those of one frame the same name."
        )
    return dict(zip(colors, depths, strict=True))


def _read_lens(folder: Path, colors: list[Path]) -> Lens:
    """Read the lens of the photographs."""
    path = next((folder / name for name in LENSES if (folder / name).is_file()), None)
    if path is None:
        raise NotFoundError(
            f"There is no {LENSES[0]} in {folder}. Write it, in pixels: "
            '{"width": W, "height": H, "intrinsic_matrix": [fx, 0, 0, 0, fy, 0, cx, cy, 1]}.'
        )
    about = read_json(path)
    matrix = from_flat(about.get("intrinsic_matrix"), f"{path}: intrinsic_matrix", size=3)
    if matrix[2, :2].any():  # column by column, as Open3D writes it; the last row of intrinsics is 0 0 1
        matrix = matrix.T
    try:
        size = usual_size(colors, image_size)
    except UserError as error:
        raise InputError(f"No usable frame in {folder}: {error}") from error
    width, height = (
        whole(about.get(key, given), f"{path}: {key}") for key, given in zip(("width", "height"), size, strict=True)
    )
    return lens_of(matrix, (width, height), f"{path}: intrinsic_matrix")
