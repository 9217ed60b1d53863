"""From what a reader opened to a scene: `capture.json` says what the layout does not, a missing cloud is built."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy.typing import NDArray
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.files import read_json
from cuao3d.formats.entries import positive, shown, whole
from cuao3d.formats.points import Points
from cuao3d.rays import cast_depth, embree_scene
from cuao3d.readers.cloud import cloud_from_depth
from cuao3d.scene import Frame, Problem, Scene

CAPTURE = "capture.json"

PoseMeaning = Literal["world_from_camera", "camera_from_world"]
Axes = Literal["opencv", "opengl"]
Up = Literal["x", "y", "z", "-x", "-y", "-z"]

_OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
_WORLD_FROM_FILES = {
    "z": [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]],
    "y": [[1.0, 0, 0], [0, 0, -1], [0, 1, 0]],
    "x": [[0.0, 0, -1], [0, 1, 0], [1, 0, 0]],
    "-z": [[1.0, 0, 0], [0, -1, 0], [0, 0, -1]],
    "-y": [[1.0, 0, 0], [0, 0, 1], [0, -1, 0]],
    "-x": [[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]],
}
"""Rotation that brings each axis to +z."""


class Captures(ABC):
    """Captures of one layout, each in a folder of its own: a scene is read when it is asked for.

    Attributes:
        layout: The files that are looked for, in words.
        folders: Folder of each capture.
        names: Name of each scene, that of its folder.
    """

    layout: str

    def __init__(self, path: Path | str) -> None:
        """Find the captures.

        Args:
            path: A capture, or a folder of them.

        Raises:
            NotFoundError: There is no such folder, or nothing of this layout in it.
        """
        path = Path(path).resolve()
        if not path.is_dir():
            raise NotFoundError(f"There is no folder {path}.")
        if not (folders := self._find(path)):
            raise NotFoundError(f"No capture in {path}. Expected {self.layout}.")
        self.folders = folders
        self.names = tuple(folder.name for folder in folders)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether a folder looks like this layout."""
        return bool(cls._find(path))

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> Scene:
        return self.read(self.folders[index])

    @classmethod
    @abstractmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them."""

    @classmethod
    def _find(cls, path: Path) -> list[Path]:
        """Find the captures in a folder: the folder itself, or those among its subfolders, by name."""
        if not path.is_dir():
            return []
        return [path] if cls.is_capture(path) else sorted(filter(cls.is_capture, path.iterdir()))


@dataclass(frozen=True)
class CaptureOptions:
    """How a capture is to be read, where its files do not mean what their layout says.

    The defaults leave everything as the reader of the layout understood it. With several options, poses are inverted
    first, then the axes of the camera are turned, then those of the world.
    """

    depth_scale: float = 1.0
    """Factor from the depth as read to metres."""
    pose: PoseMeaning = "world_from_camera"
    """What the poses take where: "camera_from_world" inverts them."""
    axes: Axes = "opencv"
    """Axes of the cameras as read: "opengl" (y up, z backward) turns them."""
    up: Up = "z"
    """Axis of the world, of poses and cloud, that points up; it is turned to z."""
    swap_focal: bool = False
    """Whether fx and fy changed places."""
    every: int = 1
    """Only every so manyth frame is used."""


def read_options(folder: Path) -> CaptureOptions:
    """Read the options of a capture from its `capture.json`; the defaults where there is none.

    Raises:
        InputError: The file holds something else; the message names the entry.
    """
    path = folder / CAPTURE
    if not path.is_file():
        return CaptureOptions()
    content, known = read_json(path), [field.name for field in fields(CaptureOptions)]
    if unknown := sorted(set(content) - set(known)):
        raise InputError(f"{path}: {unknown[0]!r} is no option; choose from {', '.join(known)}.")
    read: dict[str, Callable[[object, str], Any]] = {
        "depth_scale": positive,
        "pose": partial(_choice, get_args(PoseMeaning)),
        "axes": partial(_choice, get_args(Axes)),
        "up": partial(_choice, get_args(Up)),
        "swap_focal": partial(_choice, (True, False)),
        "every": whole,
    }
    return CaptureOptions(**{name: read[name](entry, f"{path}: {name}") for name, entry in content.items()})


def build_scene(
    folder: Path,
    frames: Sequence[Frame],
    problems: Sequence[Problem],
    points: Points | None,
    *,
    mesh: NDArray[np.float32] | None = None,
    name: str | None = None,
    lone: bool = False,
    **about: Any,
) -> Scene:
    """Make a scene of what a reader opened: apply `capture.json`, build the cloud if there is none.

    Args:
        folder: The capture; `capture.json` lies there.
        frames: Its views that are in order.
        problems: What was left out.
        points: Its cloud; None to build it from depth.
        mesh: Corners (T, 3, 3) of triangles whose depth the frames then see, instead of their own.
        name: Name of the scene; that of the folder unless told.
        lone: Whether a cloud without views will do.
        about: Further fields of the scene.

    Raises:
        InputError: No frame is usable, the cloud is empty, or `capture.json` is wrong.
    """
    options = read_options(folder)
    frames = [_apply(options, frame) for frame in frames[:: options.every]]
    if mesh is not None:
        embree = embree_scene(mesh @ _rotation(options.up).float().numpy().T)
        frames = [replace(frame, read_depth=partial(cast_depth, embree, frame.camera)) for frame in frames]
    if points is None:
        cloud = cloud_from_depth(frames)
        points, frames = Points(cloud.points, cloud.colors, problems=cloud.problems), list(cloud.frames)
    else:
        points = turn_up(points, options)
    problems = [*problems, *points.problems]
    if not frames and not lone:
        more = " ..." if len(problems) > 3 else ""
        raise InputError(f"No usable frame in {folder}: {'; '.join(map(str, problems[:3])) or 'there is none'}{more}")
    if not len(points.points):
        raise InputError(f"The cloud of {folder} is empty: its depth images hold no surface, or its file no point.")
    return Scene(
        name=name or folder.name,
        points=points.points,
        frames=tuple(frames),
        colors=points.colors,
        normals=points.normals,
        problems=tuple(problems),
        **about,
    )


def turn_up(points: Points, options: CaptureOptions) -> Points:
    """Turn a cloud so that z is up."""
    if options.up == "z":
        return points
    rotation = _rotation(options.up).float()
    normals = None if points.normals is None else points.normals @ rotation.T
    return points._replace(points=points.points @ rotation.T, normals=normals)


def correct_pose(pose: Float64[Tensor, "4 4"], options: CaptureOptions) -> Float64[Tensor, "4 4"]:
    """Return what a pose as read means: camera to world, OpenCV axes, z up."""
    if options.pose == "camera_from_world":
        pose = torch.linalg.inv(pose)
    if options.axes == "opengl":
        pose = pose @ _OPENGL
    if options.up != "z":
        world_from_files = torch.eye(4, dtype=torch.float64)
        world_from_files[:3, :3] = _rotation(options.up)
        pose = world_from_files @ pose
    return pose


def open_frames(names: Iterable[str], open_one: Callable[[str], Frame]) -> tuple[list[Frame], list[Problem]]:
    """Open views; one that cannot be opened is left out.

    Args:
        names: Names of the views.
        open_one: Opens the view of a name; raises UserError or OSError that says what is wrong with it.

    Returns:
        The views, and the problem of each view that was left out.
    """
    frames, problems = [], []
    for name in names:
        try:
            frames.append(open_one(name))
        except (UserError, OSError) as error:
            problems.append(Problem.of_frame(name, error))
    return frames, problems


def _apply(options: CaptureOptions, frame: Frame) -> Frame:
    camera = frame.camera
    if options.swap_focal:
        camera = replace(camera, focal=camera.focal.flip(0))
    camera = replace(camera, world_from_camera=correct_pose(camera.world_from_camera, options))
    read_depth = frame.read_depth
    if options.depth_scale != 1:
        read_depth = partial(_scaled, frame.read_depth, options.depth_scale)
    return replace(frame, camera=camera, read_depth=read_depth)


def _scaled(read_depth: Callable[[], Tensor], scale: float) -> Float32[Tensor, "H W"]:
    return read_depth() * scale


def _rotation(up: Up) -> Float64[Tensor, "3 3"]:
    return torch.tensor(_WORLD_FROM_FILES[up], dtype=torch.float64)


def _choice(choices: tuple[object, ...], entry: object, where: str) -> object:
    # 1 == True in Python; here it is a mistake.
    if not any(entry is choice or (isinstance(choice, str) and entry == choice) for choice in choices):
        raise InputError(f"{where} is {shown(entry)}; choose from {', '.join(map(repr, choices))}.")
    return entry
