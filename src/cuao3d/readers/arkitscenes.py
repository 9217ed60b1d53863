"""ARKitScenes, raw: an iPad's colour, LiDAR depth, confidence and trajectory, with the mesh that ARKit made."""

import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from scipy.spatial.transform import Rotation
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.formats.entries import (
    nearest_in_time,
    only_file,
    read_numbers,
    read_rows,
    summarise,
)
from cuao3d.formats.images import open_frame
from cuao3d.formats.lens import Lens
from cuao3d.formats.points import read_points
from cuao3d.readers.capture import Captures, build_scene, open_frames
from cuao3d.scene import Frame, Scene

WITHIN_POSE = 0.005
"""How far a pose may lie from its image, seconds; the trajectory has fewer rows than there are images."""

WITHIN_LENS = 0.0015
"""How far a `.pincam` may lie from its image, seconds: names are rounded to milliseconds, now and then differently."""

COLORS, DEPTHS, LENSES, CONFIDENCES = "lowres_wide", "lowres_depth", "lowres_wide_intrinsics", "confidence"
POSES = "lowres_wide.traj"
MESHES = ("*_3dod_mesh.ply", "../*_3dod_mesh.ply")


class ArkitScenes(Captures):
    """Videos in ARKitScenes' raw layout; a folder of them is many scenes.

    ```
    VIDEO/lowres_wide/VIDEO_305.375.png                  8-bit RGB; the number is a time in seconds
    VIDEO/lowres_depth/VIDEO_305.375.png                 16-bit, millimetres along the optical axis, 0 = missing
    VIDEO/lowres_wide_intrinsics/VIDEO_305.375.pincam    width height fx fy cx cy
    VIDEO/lowres_wide.traj                               a row per pose: time, rotation, translation
    VIDEO/confidence/VIDEO_305.375.png                   optional: 0 = low, 1, 2 = high; depth of low one is left out
    VIDEO/VIDEO_3dod_mesh.ply                            optional, may lie one folder up: vertices are the cloud
    ```
    A row of the trajectory takes the *world to the camera* (OpenCV axes, metres; the world's z is up): the rotation is
    an axis times an angle in radians, x_camera = R x_world + t. It is inverted here. A frame is a colour image with
    depth of its name and a pose at most 5 ms away; many images of the 60 a second have none, and are not used. Where
    only a part of the images was downloaded or kept, those that have both are used; one line says how many have not.
    """

    layout = f"{COLORS}/, {DEPTHS}/, {LENSES}/ and {POSES}, in the folder or in its subfolders"
    files = (*(f"{kind}/*" for kind in (COLORS, DEPTHS, LENSES, CONFIDENCES)), POSES, *MESHES)

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        return (folder / COLORS).is_dir() and (folder / POSES).is_file()

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            NotFoundError: A folder is not there.
            InputError: No frame is usable, or trajectory or mesh are damaged.
        """
        colors, color_times = _by_time(folder / COLORS, "png")
        lenses, lens_times = _by_time(folder / LENSES, "pincam")
        rows = read_rows(folder / POSES, 7)
        pose_of = nearest_in_time(color_times, rows[:, 0], within=WITHIN_POSE)
        lens_of = nearest_in_time(color_times, lens_times, within=WITHIN_LENS)
        has_depth = {path.stem for path in (folder / DEPTHS).glob("*.png")}
        index_of = {
            path.stem: index
            for index, path in enumerate(colors)
            if pose_of[index] is not None and (path.stem in has_depth or not has_depth)
        }

        def open_one(name: str) -> Frame:
            index = index_of[name]
            pose, lens = pose_of[index], lens_of[index]
            assert pose is not None
            if lens is None:
                raise InputError(f"{LENSES}/{name}.pincam is missing; restore it, or remove the frame's other files.")
            confidence = folder / CONFIDENCES / f"{name}.png"
            return open_frame(
                name,
                _pose(rows[pose, 1:]),
                color=colors[index],
                lens=_read_lens(lenses[lens]),
                depth=folder / DEPTHS / f"{name}.png",
                confidence=confidence if confidence.is_file() else None,
            )

        frames, problems = open_frames(index_of, open_one)
        without = [path.name for index, path in enumerate(colors) if pose_of[index] is None]
        flat = [path.name for path in colors if has_depth and path.stem not in has_depth]
        problems += summarise("colour images have no depth image, and are not used", flat)
        problems += summarise(f"colour images have no pose within {WITHIN_POSE} s", without)
        mesh = next(
            (
                mesh
                for up in (folder, folder.parent)
                if (mesh := only_file(up, "*_3dod_mesh.ply", f"{folder.name}_3dod_mesh.ply"))
            ),
            None,
        )
        return build_scene(
            folder, frames, problems, None if mesh is None else read_points(mesh), annotations=annotations
        )


def _by_time(folder: Path, ending: str) -> tuple[list[Path], Float64[Tensor, "N"]]:
    """Find the files of a folder whose names hold a time, and these times, in order."""
    if not folder.is_dir():
        raise NotFoundError(f"There is no folder {folder}.")
    times = {
        path: float(match[1])
        for path in folder.iterdir()
        if (match := re.search(rf"_(\d+(?:\.\d+)?)\.{ending}$", path.name))
    }
    paths = sorted(times, key=lambda path: times[path])
    return paths, torch.tensor([times[path] for path in paths], dtype=torch.float64)


def _read_lens(path: Path) -> Lens:
    width, height, fx, fy, cx, cy = read_numbers(path, 6)
    try:
        return Lens((fx, fy), (cx, cy), (int(width), int(height)))
    except UserError as error:
        raise InputError(f"{path.name}: {error}.") from error


def _pose(row: Float64[Tensor, "6"]) -> Float64[Tensor, "4 4"]:
    """Return the pose, camera to world, of a row that takes the world to the camera: rotation vector, translation."""
    camera_from_world = np.eye(4)
    camera_from_world[:3, :3] = Rotation.from_rotvec(row[:3].numpy()).as_matrix()
    camera_from_world[:3, 3] = row[3:].numpy()
    return torch.from_numpy(np.linalg.inv(camera_from_world))
