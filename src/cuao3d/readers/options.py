"""What a `capture.json` may say: how to read a capture whose files do not mean what their layout says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float64
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.files import read_json
from cuao3d.formats.entries import choice, file_name, fraction, positive, shown, whole
from cuao3d.formats.points import Points
from cuao3d.labels import LABEL_SETS, label_set
from cuao3d.scene import OPENGL

CAPTURE = "capture.json"
"""Lies beside the files of a capture; every reader honours it."""

PoseMeaning = Literal["world_from_camera", "camera_from_world"]
Axes = Literal["opencv", "opengl"]
Up = Literal["x", "y", "z", "-x", "-y", "-z"]

_WORLD_FROM_FILES = {
    "z": [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]],
    "y": [[1.0, 0, 0], [0, 0, -1], [0, 1, 0]],
    "x": [[0.0, 0, -1], [0, 1, 0], [1, 0, 0]],
    "-z": [[1.0, 0, 0], [0, -1, 0], [0, 0, -1]],
    "-y": [[1.0, 0, 0], [0, 0, 1], [0, -1, 0]],
    "-x": [[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]],
}
"""Rotation that brings each axis to +z."""


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
    """Only every n-th frame is used."""
    label_set: str | None = None
    """Label set of the labels in the cloud's file: one of `LABEL_SETS` or the path of a CSV, relative to the folder."""
    occlusion_tolerance: float | None = None
    """A point is visible where |z - depth| <= tolerance * depth; None leaves it to the layout."""


def read_options(folder: Path) -> CaptureOptions:
    """Read the options of a capture from its `capture.json`; the defaults where there is none.

    Args:
        folder: The capture.

    Returns:
        The options; the path of a label set's CSV is absolute.

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
        "pose": partial(choice, get_args(PoseMeaning)),
        "axes": partial(choice, get_args(Axes)),
        "up": partial(choice, get_args(Up)),
        "swap_focal": partial(choice, (True, False)),
        "every": whole,
        "label_set": partial(named_label_set, folder),
        "occlusion_tolerance": fraction,
    }
    return CaptureOptions(**{name: read[name](entry, f"{path}: {name}") for name, entry in content.items()})


def named_label_set(folder: Path, name: object, where: str, *, sets: Sequence[str] = LABEL_SETS) -> str:
    """Return the label set that an entry names: one of the package's, or the path of a CSV.

    Args:
        folder: What the path of a CSV is relative to.
        name: The entry.
        where: File and entry, or option, for messages.
        sets: Sets of the package that the dataset's labels can be read in.

    Returns:
        The name, or the absolute path of the CSV.

    Raises:
        InputError: There is no such set, its CSV is wrong, or the dataset's labels cannot be read in it.
    """
    if name in sets:
        return str(name)
    path = (folder / file_name(folder, name, where)).resolve()
    if name in LABEL_SETS or not path.is_file():
        raise InputError(
            f"{where} is {shown(name)}; choose from {', '.join(sets)}, or give the path of a CSV, relative to "
            f"{folder.resolve()}."
        )
    label_set(path)  # a wrong one is named here, not after hours
    return str(path)


def given_annotations(name: str | None, sets: Sequence[str] = LABEL_SETS) -> str | None:
    """Return the label set that `--annotations` names, if it does; see `named_label_set`."""
    return None if name is None else named_label_set(Path(), name, "--annotations", sets=sets)


def annotations_of(folder: Path, given: str | None, sets: Sequence[str]) -> str:
    """Return the label set to read a dataset's labels in: the given one, else that of `capture.json`, else the first.

    Args:
        folder: The capture.
        given: As of `given_annotations`.
        sets: Sets of the package that the dataset's labels can be read in.

    Raises:
        InputError: `capture.json` is wrong, or names another set.
    """
    name = given or read_options(folder).label_set or sets[0]
    return named_label_set(folder, name, f"{folder / CAPTURE}: label_set", sets=sets)


def turn_up(points: Points, options: CaptureOptions) -> Points:
    """Turn a cloud so that z is up."""
    if options.up == "z":
        return points
    rotation = rotation_of(options.up).float()
    normals = None if points.normals is None else points.normals @ rotation.T
    return points._replace(points=points.points @ rotation.T, normals=normals)


def correct_pose(pose: Float64[Tensor, "4 4"], options: CaptureOptions) -> Float64[Tensor, "4 4"]:
    """Return what a pose as read means: camera to world, OpenCV axes, z up."""
    if options.pose == "camera_from_world":
        pose = torch.linalg.inv(pose)
    if options.axes == "opengl":
        pose = pose @ OPENGL
    if options.up != "z":
        world_from_files = torch.eye(4, dtype=torch.float64)
        world_from_files[:3, :3] = rotation_of(options.up)
        pose = world_from_files @ pose
    return pose


def rotation_of(up: Up) -> Float64[Tensor, "3 3"]:
    """Return the rotation that brings an axis to +z."""
    return torch.tensor(_WORLD_FROM_FILES[up], dtype=torch.float64)
