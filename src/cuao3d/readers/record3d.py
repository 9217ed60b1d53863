"""Record3D, exported as EXR + RGB: an iPhone's photographs and LiDAR depth, with one file of poses."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, PoseError, UserError
from cuao3d.files import read_json
from cuao3d.formats.entries import by_number, only_file, whole
from cuao3d.formats.images import DEPTH_ENDINGS, PHOTOGRAPHS, image_size, open_frame
from cuao3d.formats.lens import Lens
from cuao3d.formats.listing import files_in
from cuao3d.formats.poses import from_flat, from_quaternion
from cuao3d.readers.capture import Captures, build_scene, open_frames
from cuao3d.readers.surface import read_surface
from cuao3d.scene import OPENGL, Frame, Scene
from cuao3d.schema import is_number, is_number_or_lost, shown

ABOUT, UNPACKED = ("metadata.json", "metadata"), "rgbd"


class Record3D(Captures):
    """Exports of Record3D as EXR + RGB; a folder of them is many scenes.

    ```
    SCAN/metadata.json    also metadata: poses, for each frame qx qy qz qw x y z: camera to world, metres, OpenGL axes;
                          K: fx 0 0 0 fy 0 cx cy 1, column by column, pixels of photographs of w x h;
                          perFrameIntrinsicCoeffs: optional, for each frame fx fy cx cy, which count then
    SCAN/rgb/0.jpg        8-bit RGB
    SCAN/depth/0.exr      metres along the optical axis; or 0.png, 16-bit, millimetres, 0 = missing
    SCAN/mesh.ply         optional: the cloud or mesh; any name if it is the only .ply
    ```
    Frame n has the n-th pose. The world's y is up, and stays so (`"up": "y"` in `capture.json` turns it). A `.r3d` that
    was unpacked holds rgbd/ with depth compressed by LZFSE, which is refused by name.
    """

    layout = "metadata.json, rgb/ and depth/, in the folder or in its subfolders"
    files = (*ABOUT, "rgb/*", "depth/*", f"{UNPACKED}/*", "*.ply")

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        has_frames = (folder / "rgb").is_dir() or (folder / UNPACKED).is_dir()
        return has_frames and any((folder / name).is_file() for name in ABOUT)

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            NotFoundError: There is no photograph, or no depth.
            InputError: Depth is compressed by LZFSE, no frame is usable, or poses, intrinsics or mesh are damaged.
        """
        if not (folder / "rgb").is_dir() and next((folder / UNPACKED).glob("*.depth"), None) is not None:
            raise InputError(
                f"{folder / UNPACKED} holds depth that Record3D compressed by LZFSE (.depth), which is not read. "
                "Export the recording from the app as EXR + RGB instead, and give that folder."
            )
        colors, depths = files_in(folder / "rgb", PHOTOGRAPHS), files_in(folder / "depth", DEPTH_ENDINGS)
        if not colors or not depths:
            gone = "depth" if colors else "rgb"
            raise NotFoundError(f"There is no image in {folder / gone}; export the recording as EXR + RGB.")
        path = next(folder / name for name in ABOUT if (folder / name).is_file())
        about = read_json(path)
        poses = about.get("poses")
        if not isinstance(poses, list):
            raise InputError(f"{path}: poses is {shown(poses)}; expected a list of poses.")

        def open_one(name: str) -> Frame:
            if not name.isdecimal() or len(name) > 9 or int(name) >= len(poses):
                raise PoseError(f"{path.name} has {len(poses)} poses, and none of this number; remove the photograph.")
            number, color = int(name), colors[name]
            pose = _pose(poses[number], f"{path.name}, pose {number}")
            depth = depths.get(name, folder / "depth" / f"{name}.exr")
            return open_frame(name, pose, color=color, lens=_lens(about, number, path, image_size(color)), depth=depth)

        frames, problems = open_frames(sorted(colors, key=by_number), open_one)
        points, _, unused = read_surface(only_file(folder, "*.ply", "mesh.ply"), has_depth=True)
        return build_scene(folder, frames, [*problems, *unused], points, annotations=annotations)


def _pose(entry: Any, where: str) -> Float64[Tensor, "4 4"]:
    if not isinstance(entry, list) or len(entry) != 7 or not all(map(is_number_or_lost, entry)):
        raise PoseError(f"{where} is {shown(entry)}; expected 7 numbers: qx qy qz qw x y z.")
    values = torch.tensor(entry, dtype=torch.float64)
    return from_quaternion(values[:4], values[4:], where) @ OPENGL


def _lens(about: dict[str, Any], number: int, path: Path, size: tuple[int, int]) -> Lens:
    """Return the lens of a photograph of a size: that of its frame, if the file has one, else that of all."""
    of_frames = about.get("perFrameIntrinsicCoeffs")
    if isinstance(of_frames, list) and number < len(of_frames):
        entry, where = of_frames[number], f"{path.name}, perFrameIntrinsicCoeffs {number}"
        if not isinstance(entry, list) or len(entry) < 4 or not all(map(is_number, entry[:4])):
            raise InputError(f"{where} is {shown(entry)}; expected 4 numbers: fx fy cx cy.")
        fx, fy, cx, cy = map(float, entry[:4])
    else:
        where = f"{path.name}, K"
        try:
            matrix = from_flat(about.get("K"), where, size=3)
        except UserError as error:
            raise InputError(str(error)) from error
        if matrix[2, :2].any():  # column by column, as the app writes it
            matrix = matrix.T
        fx, fy, cx, cy = (matrix[place].item() for place in ((0, 0), (1, 1), (0, 2), (1, 2)))
    width, height = (whole(about.get(key, given), f"{path.name}, {key}") for key, given in zip("wh", size, strict=True))
    try:
        return Lens((fx, fy), (cx, cy), (width, height)).at(size)
    except UserError as error:
        raise InputError(f"{where}: {error}.") from error
