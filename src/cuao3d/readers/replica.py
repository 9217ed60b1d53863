"""Replica as NICE-SLAM rendered it: numbered images, one file of poses, a mesh beside the folder."""

import re
from pathlib import Path

from cuao3d.errors import InputError, NotFoundError, PoseError, UserError
from cuao3d.files import read_json
from cuao3d.formats.entries import number, positive, read_rows, whole
from cuao3d.formats.images import COLOR_ENDINGS, DEPTH_ENDINGS, open_frame
from cuao3d.formats.lens import Lens
from cuao3d.formats.listing import files_in
from cuao3d.formats.points import read_points
from cuao3d.readers.capture import Captures, build_scene, open_frames
from cuao3d.scene import Frame, Scene

POSES, CAMERA = "traj.txt", "cam_params.json"


class Replica(Captures):
    """Rendered rooms in NICE-SLAM's layout; a folder of them is many scenes.

    ```
    ROOM/results/frame000000.jpg     8-bit RGB
    ROOM/results/depth000000.png     16-bit, `scale` to a metre along the optical axis, 0 or 65535 = missing
    ROOM/traj.txt                    a row per frame: 4 x 4 row by row, camera to world, metres, OpenCV axes
    ROOM/cam_params.json             may also lie one folder up: {"camera": {"w", "h", "fx", "fy", "cx", "cy", "scale"}}
    ROOM_mesh.ply                    optional, beside the folder or in it: the mesh, whose vertices are the cloud
    ```
    """

    layout = f"results/frame000000.jpg, results/depth000000.png and {POSES}, in the folder or in its subfolders"
    files = ("results/*", POSES, CAMERA, f"../{CAMERA}", "{name}_mesh.ply", "../{name}_mesh.ply")

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        return (folder / "results").is_dir() and (folder / POSES).is_file()

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            NotFoundError: There are no camera parameters.
            InputError: No frame is usable, or poses, camera parameters or mesh are damaged.
        """
        lens, unit = _read_camera(folder)
        poses = read_rows(folder / POSES, 16).reshape(-1, 4, 4)
        colors, depths = (
            {match[1]: path for name, path in files.items() if (match := re.fullmatch(rf"{kind}(\d{{1,9}})", name))}
            for kind, files in (
                ("frame", files_in(folder / "results", COLOR_ENDINGS)),
                ("depth", files_in(folder / "results", DEPTH_ENDINGS)),
            )
        )

        def open_one(digits: str) -> Frame:
            if int(digits) >= len(poses):
                raise PoseError(f"{POSES} has only {len(poses)} rows; add its pose, or remove the frame.")
            depth = depths.get(digits, folder / "results" / f"depth{digits}.png")
            return open_frame(digits, poses[int(digits)], color=colors[digits], lens=lens, depth=depth, depth_unit=unit)

        frames, problems = open_frames(sorted(colors), open_one)
        meshes = (up / f"{folder.name}_mesh.ply" for up in (folder.parent, folder))
        mesh = next((path for path in meshes if path.is_file()), None)
        return build_scene(
            folder, frames, problems, None if mesh is None else read_points(mesh), annotations=annotations
        )


def _read_camera(folder: Path) -> tuple[Lens, float]:
    """Read the lens of both images and the unit of the depth, metres."""
    path = next((up / CAMERA for up in (folder, folder.parent) if (up / CAMERA).is_file()), None)
    if path is None:
        raise NotFoundError(f"No {CAMERA} in {folder} or above it; it says w, h, fx, fy, cx, cy and scale (6553.5).")
    camera = read_json(path).get("camera")
    if not isinstance(camera, dict):
        raise InputError(f'{path} has no "camera": {{"w": ..., "h": ..., "fx": ..., "fy": ..., "cx": ..., "cy": ...}}.')
    focal = number(camera.get("fx"), f"{path}: fx"), number(camera.get("fy"), f"{path}: fy")
    center = number(camera.get("cx"), f"{path}: cx"), number(camera.get("cy"), f"{path}: cy")
    size = whole(camera.get("w"), f"{path}: w"), whole(camera.get("h"), f"{path}: h")
    scale = positive(camera.get("scale"), f"{path}: scale")
    try:
        return Lens(focal, center, size), 1 / scale
    except UserError as error:
        raise InputError(f"{path}: {error}.") from error
