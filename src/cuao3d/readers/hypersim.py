"""Hypersim: photorealistic rooms; rendered colours, distances and camera paths as published."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.files import check_inside
from cuao3d.formats.entries import as_text, positive, summarise
from cuao3d.formats.hdf5 import read_hdf5
from cuao3d.formats.images import image_size, open_frame, usual_size
from cuao3d.formats.lens import Lens, Size
from cuao3d.readers.capture import Captures, build_scene, open_frames
from cuao3d.readers.corrections import along_axis
from cuao3d.scene import OPENGL, Frame, Scene

UNITS = "_detail/metadata_scene.csv"
CAMERAS = "metadata_camera_parameters.csv"
"""Table of all scenes that the toolkit has; it may lie in the scene's folder, or in the one above."""

FIELD_OF_VIEW = math.pi / 3
"""Horizontal field of view of Hypersim's cameras where no table says it, radians."""

COLORS = (".tonemap.jpg", ".color.jpg", ".color.hdf5")
"""Endings of colours, the best first: pictures as people see them, clipped ones, and linear radiance."""

DISTANCE = ".depth_meters.hdf5"
TILTED = 1e-3
"""Parts of a camera's matrix beside its field of view that are smaller are none."""


class Hypersim(Captures):
    """Scenes of Hypersim; a folder of them is many scenes. It needs the extra [hdf5].

    ```
    SCENE/_detail/metadata_scene.csv                       meters_per_asset_unit
    SCENE/_detail/cam_00/camera_keyframe_positions.hdf5    (N, 3), asset units; z is up
    SCENE/_detail/cam_00/camera_keyframe_orientations.hdf5 (N, 3, 3), camera to world, OpenGL axes
    SCENE/_detail/cam_00/camera_keyframe_frame_indices.hdf5  (N), number of the image; optional
    SCENE/images/scene_cam_00_final_preview/frame.0000.tonemap.jpg       colours; or .color.jpg, or
    SCENE/images/scene_cam_00_final_hdf5/frame.0000.color.hdf5           linear colours
    SCENE/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5 distance from the camera, metres; NaN = missing
    metadata_camera_parameters.csv                         optional, in SCENE or above: the toolkit's table of cameras
    ```
    Distances along rays become depths along the optical axis. All cameras of a scene are read. Lenses see 60 degrees
    unless the table says otherwise; some scenes have tilted ones, which only the table tells: those are refused. The
    cloud is built from depth.
    """

    layout = f"{UNITS}, _detail/cam_00/ and images/scene_cam_00_*, in the folder or in its subfolders"
    files = (UNITS, CAMERAS, f"../{CAMERAS}", "_detail/cam_*/camera_keyframe_*.hdf5", "images/scene_cam_*/frame.*")

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        return (folder / UNITS).is_file() and any(folder.glob("_detail/cam_*/camera_keyframe_positions.hdf5"))

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            NotFoundError: There are no images.
            NotInstalledError: h5py is not installed.
            InputError: No frame is usable, a table or an array is damaged, or a lens is tilted.
        """
        unit, colors, depths = _metres_per_unit(folder / UNITS), _colors(folder), _images(folder, "geometry", DISTANCE)
        if not colors:
            raise NotFoundError(
                f"There is no image in {folder / 'images'}, such as scene_cam_00_final_preview/frame.0000.tonemap.jpg; "
                "download or unpack it."
            )
        try:
            size = usual_size(colors.values(), image_size)
        except UserError as error:
            raise InputError(f"No usable frame in {folder}: {error}") from error
        lens = _lens(folder, size)
        poses = {
            name: pose
            for camera in sorted(path for path in (folder / "_detail").glob("cam_*") if path.is_dir())
            for name, pose in _poses(camera, unit).items()
        }

        def open_one(name: str) -> Frame:
            if name not in poses:
                raise InputError(f"{name} has no pose in _detail/; copy that folder again, or remove the image.")
            depth = depths.get(
                name, folder / "images" / f"scene_{name[:6]}_geometry_hdf5" / f"frame.{name[7:]}{DISTANCE}"
            )
            return along_axis(open_frame(name, poses[name], color=colors[name], lens=lens, depth=depth))

        frames, problems = open_frames(sorted(colors), open_one)
        alone = [f"{name}{DISTANCE}" for name in sorted(depths) if name not in colors]
        problems += summarise("depth images have no colour image", alone)
        return build_scene(folder, frames, problems, None, annotations=annotations)


def _images(folder: Path, kind: str, ending: str) -> dict[str, Path]:
    """Return the images of a kind by camera and frame, such as cam_00.0000."""
    found = folder.glob(f"images/scene_cam_*_{kind}_*/frame.*{ending}")
    return {f"{path.parent.name[6:12]}.{path.name.split('.')[1]}": path for path in sorted(found)}


def _colors(folder: Path) -> dict[str, Path]:
    best: dict[str, Path] = {}
    for ending in COLORS:
        best = _images(folder, "final", ending) | best
    return best


def _poses(folder: Path, unit: float) -> dict[str, Float64[Tensor, "4 4"]]:
    """Return the poses of a camera by the names of its images: camera to world, metres, OpenCV axes."""
    positions, orientations = (
        _array(folder / f"camera_keyframe_{what}.hdf5", shape)
        for what, shape in (("positions", (3,)), ("orientations", (3, 3)))
    )
    if len(positions) != len(orientations):
        raise InputError(
            f"{folder} has {len(positions)} positions and {len(orientations)} orientations; copy it again."
        )
    numbers = folder / "camera_keyframe_frame_indices.hdf5"
    names = _array(numbers, ()) if numbers.is_file() else np.arange(len(positions))
    poses = torch.eye(4, dtype=torch.float64).repeat(len(positions), 1, 1)
    poses[:, :3, :3] = torch.from_numpy(orientations.astype(np.float64))
    poses[:, :3, 3] = torch.from_numpy(positions.astype(np.float64) * unit)
    return {f"{folder.name}.{int(number):04d}": pose @ OPENGL for number, pose in zip(names, poses, strict=False)}


def _array(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read rows of a shape."""
    if not path.is_file():
        raise NotFoundError(f"There is no {path}; download or unpack it.")
    array = read_hdf5(path)
    if array.shape[1:] != shape or (not shape and array.dtype.kind not in "iu"):
        expected = " x ".join(map(str, ("N", *shape)))
        raise InputError(f"{path} has the shape {array.shape}; expected {expected}. Copy it again.")
    return array


def _metres_per_unit(path: Path) -> float:
    rows = {row[0].strip(): row[1].strip() for row in _table(path) if len(row) > 1}
    return _positive(rows.get("meters_per_asset_unit", "nothing"), f"{path}: meters_per_asset_unit")


def _lens(folder: Path, size: Size) -> Lens:
    """Return the lens of all cameras, whose pixels are square."""
    width, height = size
    angle = FIELD_OF_VIEW
    if path := next((up / CAMERAS for up in (folder, folder.parent) if (up / CAMERAS).is_file()), None):
        names, *rows = _table(path) or [[]]
        found = next((dict(zip(names, row, strict=False)) for row in rows if folder.name in row[:1]), {})
        if found:
            where = f"{path}: {folder.name}"
            angle = _positive(found.get("settings_camera_fov", "nothing"), f"{where}, settings_camera_fov")
            _check_upright(found, where)
            if angle >= math.pi:
                raise InputError(f"{where}, settings_camera_fov is {angle:g}; expected radians below {math.pi:.5g}.")
    focal = width / 2 / math.tan(angle / 2)
    return Lens((focal, focal), ((width - 1) / 2, (height - 1) / 2), size)


def _check_upright(row: dict[str, str], where: str) -> None:
    """Refuse a camera whose image is tilted against its axis: of `M_cam_from_uv` there is more than the diagonal."""
    names = [f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3) if i != j]
    tilted = [name for name in names if abs(_number(row.get(name, "0"), f"{where}, {name}")) > TILTED]
    if tilted:
        raise InputError(f"{where} has a tilted lens ({tilted[0]}), which no pinhole describes; leave this scene out.")


def _table(path: Path) -> list[list[str]]:
    check_inside(path)
    try:
        return [row for row in csv.reader(as_text(path, path.read_bytes()).splitlines()) if row]
    except csv.Error as error:
        raise InputError(f"{path} is no table ({error}); copy it again.") from error


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where} is {text[:60]!r}; expected a number. Copy the file again.")
    return value


def _positive(text: str, where: str) -> float:
    return positive(_number(text, where), where)
