"""What a `capture.json` may say: how to read a capture whose files do not mean what their layout says."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float64
from scipy.spatial.transform import Rotation
from torch import Tensor

from cuao3d.errors import InputError, UserError
from cuao3d.files import check_inside, read_json
from cuao3d.formats.entries import choice, file_name, fraction, number, pose_entry, positive, whole
from cuao3d.formats.points import Points
from cuao3d.geometry import move
from cuao3d.labels import LABEL_SETS, label_set
from cuao3d.scene import OPENGL, Source, pose_problem
from cuao3d.schema import shown

CAPTURE = "capture.json"
"""Lies beside the files of a capture; every reader honours it."""

PoseMeaning = Literal["world_from_camera", "camera_from_world"]
Axes = Literal["opencv", "opengl", "ros", "unity"]
Rotations = Literal["as read", "transposed"]
Quaternions = Literal["as read", "w-first", "w-last"]
Photographs = Literal["as read", "upside down", "mirrored"]
DepthAlong = Literal["axis", "rays"]
Axis = Literal["x", "y", "z", "-x", "-y", "-z"]
Up = Axis | tuple[float, float, float]
DepthSource = Literal["images", "cloud"]
Offset = Float64[Tensor, "3"] | None

_UPRIGHT_FROM_AXIS = {
    "z": [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]],
    "y": [[1.0, 0, 0], [0, 0, -1], [0, 1, 0]],
    "x": [[0.0, 0, -1], [0, 1, 0], [1, 0, 0]],
    "-z": [[1.0, 0, 0], [0, -1, 0], [0, 0, -1]],
    "-y": [[1.0, 0, 0], [0, 0, 1], [0, -1, 0]],
    "-x": [[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]],
}
"""Rotation that brings each axis to +z."""

_OPENCV_FROM_AXES = {
    "opengl": OPENGL,
    "ros": torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64),
    "unity": torch.diag(torch.tensor([1.0, -1, 1, 1], dtype=torch.float64)),
}
"""What turns camera axes as in OpenCV into the named ones: a pose as read, times this, has ours."""

_MIRROR = torch.diag(torch.tensor([1.0, -1, 1], dtype=torch.float64))
"""Makes a left-handed world right-handed."""

NEARLY_OPPOSITE = -1 + 1e-9
"""Below this z of a unit vector its smallest rotation to +z has no definite axis."""

SAME_AXIS = 1.0
"""A direction this close to an axis, degrees, is written as the axis."""


@dataclass(frozen=True)
class CaptureOptions:
    """How a capture is to be read, where its files do not mean what their layout says.

    The defaults leave everything as the reader of the layout understood it. With several options, rotations are put
    right first, then poses are inverted, then the axes of the camera are turned, then those of the world.
    """

    depth_scale: float = 1.0
    """Factor from the depth as read to metres."""
    pose: PoseMeaning = "world_from_camera"
    """What the poses take where: "camera_from_world" inverts them."""
    axes: Axes = "opencv"
    """Axes of the cameras as read: "opengl" (y up, z backward) and "ros" (x forward, y left, z up) turns them, "unity"
    (y up, in a left-handed world) mirrors cameras and world."""
    rotation: Rotations = "as read"
    """Whether the 3 x 3 part of each pose is "transposed"; positions are right."""
    quaternion: Quaternions = "as read"
    """Order of the file's quaternions where it is not that of the layout: "w-first" or "w-last"."""
    up: Up = "z"
    """What points up in the world of poses and cloud: an axis, or a vector (x, y, z) of any length. The world is turned
    by the smallest angle that brings it to z."""
    world_scale: float = 1.0
    """Factor from the lengths of poses and cloud, as read, to metres."""
    pose_scale: float = 1.0
    """A further factor of the cameras' positions alone, where the cloud has another unit, or is built from depth."""
    depth: DepthSource = "images"
    """Where the depth of photographs without a depth image comes from: "images" leaves them out; "cloud" takes it from
    the faces of the cloud's file, or from the points alone where it has none."""
    depth_along: DepthAlong = "axis"
    """What depth is measured along: "rays" holds distances from the camera."""
    swap_focal: bool = False
    """Whether fx and fy changed places."""
    photographs: Photographs = "as read"
    """Whether the colour images are "upside down" (turned by 180 degrees) or "mirrored" (left is right)."""
    color_lag: int = 0
    """A frame's colours are those of so many frames later."""
    color_focal: float = 1.0
    """Focal length of the colours' lens, as a part of that of the depth's, where images are not registered."""
    color_shift: tuple[float, float] = (0.0, 0.0)
    """Pixels that colours lie further right, and further down, than depth."""
    color_from_depth: tuple[tuple[float, ...], ...] | None = None
    """Pose of the depth's lens in the camera of the colours: 3 or 4 rows of 4 numbers, metres, OpenCV axes. Each pixel
    of depth then has the colour of its place, where the colours' lens saw it; None: both lenses are in one place."""
    skip: tuple[str, ...] = ()
    """Names of frames that are left out, because their poses are wrong."""
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
        "up": up_entry,
        "rotation": partial(choice, get_args(Rotations)),
        "quaternion": partial(choice, get_args(Quaternions)),
        "world_scale": positive,
        "pose_scale": positive,
        "depth": partial(choice, get_args(DepthSource)),
        "depth_along": partial(choice, get_args(DepthAlong)),
        "swap_focal": partial(choice, (True, False)),
        "photographs": partial(choice, get_args(Photographs)),
        "color_lag": _integer,
        "color_focal": positive,
        "color_shift": _shift_entry,
        "color_from_depth": _rigid_entry,
        "skip": _names_entry,
        "every": whole,
        "label_set": partial(named_label_set, folder),
        "occlusion_tolerance": fraction,
    }
    return CaptureOptions(**{name: read[name](entry, f"{path}: {name}") for name, entry in content.items()})


def source_of(
    folder: Path, patterns: Iterable[str], *, annotations: str | None, **settings: str | int | float | bool | None
) -> Source:
    """Return what decides a scene of a capture: `capture.json`, the CSVs of label sets, and the files of its layout.

    Args:
        folder: The capture.
        patterns: Its files; see `Source.of_folder`.
        annotations: Label set given for the labels, if any.
        settings: How the reader reads it.
    """
    source = Source.of_folder(folder, (CAPTURE, *patterns), **settings)
    named = annotations
    with suppress(UserError, OSError):  # such a capture is refused when it is read
        named = annotations or read_options(folder).label_set
    if named is None:
        return source
    is_own = named not in LABEL_SETS
    settings_too = {"annotations": Path(named).name if is_own else named} if annotations else {}
    files_too = {f"labels/{Path(named).name}": Path(named)} if is_own else {}
    return replace(source, settings={**source.settings, **settings_too}, files={**source.files, **files_too})


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
    path = folder / file_name(folder, name, where)
    check_inside(path)
    path = path.resolve()
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


def up_entry(entry: object, where: str) -> Up:
    """Return an entry that must say what points up: an axis, or a vector of three numbers, made a unit vector.

    Raises:
        InputError: It is something else; the message begins with `where`.
    """
    if isinstance(entry, str):
        return cast(Axis, choice(get_args(Axis), entry, where))
    if not isinstance(entry, list) or len(entry) != 3:
        raise InputError(f'{where} is {shown(entry)}; expected an axis such as "-y", or a vector [x, y, z].')
    vector = torch.tensor([number(value, where) for value in entry], dtype=torch.float64)
    if not (length := float(vector.norm())) > 0 or not vector.isfinite().all():
        raise InputError(f"{where} is {shown(entry)}; expected a vector that is not zero.")
    x, y, z = (vector / length).tolist()
    return x, y, z


def named_up(direction: Float64[Tensor, "3"], *, within: float = SAME_AXIS) -> Up:
    """Return the axis within an angle, degrees, of a direction, else the unit vector, rounded to 5 decimals."""
    unit = direction / direction.norm()
    index = int(unit.abs().argmax())
    if unit[index].abs() >= math.cos(math.radians(within)):
        return cast(Axis, get_args(Axis)[index + 3 * int(unit[index] < 0)])
    x, y, z = (round(value, 5) for value in unit.tolist())
    return x, y, z


def turn_up(points: Points, options: CaptureOptions, offset: Offset = None) -> Points:
    """Bring a cloud to our world: metres, z up, right-handed, near the origin.

    Args:
        points: The cloud.
        options: How the capture is to be read.
        offset: Where our origin lies in the coordinates of poses and cloud, as read; None for theirs.
    """
    if not _changes_world(options) and offset is None and points.offset is None:
        return points
    turn = turn_of(options)
    transform = _similarity(options.world_scale * turn) @ _moved_by(offset, -1) @ _moved_by(points.offset, 1)
    if transform.equal(torch.eye(4, dtype=torch.float64)):
        return points._replace(offset=None)
    normals = None if points.normals is None else (points.normals.double() @ turn.T).float()
    return points._replace(points=move(points.points, transform), normals=normals, offset=None)


def correct_pose(
    pose: Float64[Tensor, "4 4"], options: CaptureOptions, offset: Offset = None
) -> Float64[Tensor, "4 4"]:
    """Return what a pose as read means: camera to world, OpenCV axes, metres, z up; `offset` as of `turn_up`."""
    if options.rotation != "as read" or options.quaternion != "as read":
        pose = pose.clone()
        pose[:3, :3] = _correct_rotation(pose[:3, :3], options)
    if options.pose == "camera_from_world":
        pose = torch.linalg.inv(pose)
    if options.axes != "opencv":
        pose = pose @ _OPENCV_FROM_AXES[options.axes]
    if _changes_world(options) or offset is not None:
        turn, scale = turn_of(options), options.world_scale * options.pose_scale
        pose = _similarity(turn) @ _moved_by(offset, -1) @ pose
        pose[:3, 3] *= scale
    return pose


def capture_of(options: CaptureOptions, offset: Offset = None) -> Float64[Tensor, "4 4"] | None:
    """Return the similarity from our world to that of poses and cloud, as read; None where they are the same."""
    if not _changes_world(options) and offset is None:
        return None
    scaled = _similarity(options.world_scale * options.pose_scale * turn_of(options))
    inverse: Tensor = torch.linalg.inv(scaled @ _moved_by(offset, -1))
    return inverse


def turn_of(options: CaptureOptions) -> Float64[Tensor, "3 3"]:
    """Return what brings directions of the world as read to ours: a rotation, or a mirroring of a left-handed world."""
    if options.axes != "unity":
        return rotation_of(options.up)
    x, y, z = (rotation_of(options.up)[2] @ _MIRROR).tolist()
    return rotation_of((x, y, z)) @ _MIRROR


def rotation_of(up: Up) -> Float64[Tensor, "3 3"]:
    """Return the smallest rotation that brings an axis or a unit vector to +z."""
    if isinstance(up, str):
        return torch.tensor(_UPRIGHT_FROM_AXIS[up], dtype=torch.float64)
    x, y, z = up
    if z < NEARLY_OPPOSITE:  # there any horizontal axis would do
        return rotation_of("-z")
    cross = torch.tensor([[0.0, 0, -x], [0, 0, -y], [x, y, 0]], dtype=torch.float64)  # of (y, -x, 0), up times z
    return torch.eye(3, dtype=torch.float64) + cross + cross @ cross / (1 + z)


def _changes_world(options: CaptureOptions) -> bool:
    """Say whether the world of poses, as read, is another than ours."""
    return options.up != "z" or options.world_scale * options.pose_scale != 1 or options.axes == "unity"


def _similarity(linear: Float64[Tensor, "3 3"]) -> Float64[Tensor, "4 4"]:
    transform = torch.eye(4, dtype=torch.float64)
    transform[:3, :3] = linear
    return transform


def _moved_by(offset: Offset, sign: int) -> Float64[Tensor, "4 4"]:
    """Return the motion by an offset, or back by it."""
    transform = torch.eye(4, dtype=torch.float64)
    if offset is not None:
        transform[:3, 3] = sign * offset
    return transform


def _correct_rotation(rotation: Float64[Tensor, "3 3"], options: CaptureOptions) -> Tensor:
    """Return the rotation that was meant by one whose quaternion was read in another order, or which is transposed."""
    if options.rotation == "transposed":
        rotation = rotation.T.clone()
    if options.quaternion == "as read" or not torch.linalg.det(rotation) > 0:
        return rotation
    entries = Rotation.from_matrix(rotation.numpy()).as_quat()  # x y z w, as they were understood
    meant = np.roll(entries, -1 if options.quaternion == "w-first" else 1)
    return torch.from_numpy(Rotation.from_quat(meant).as_matrix())


def _integer(entry: object, where: str) -> int:
    if isinstance(entry, bool) or not isinstance(entry, int):
        raise InputError(f"{where} is {shown(entry)}; expected a whole number.")
    return entry


def _shift_entry(entry: object, where: str) -> tuple[float, float]:
    if not isinstance(entry, list) or len(entry) != 2:
        raise InputError(f"{where} is {shown(entry)}; expected two numbers [right, down], in pixels.")
    x, y = (number(value, where) for value in entry)
    return x, y


def _rigid_entry(entry: object, where: str) -> tuple[tuple[float, ...], ...]:
    pose = pose_entry(entry, where, rows=len(entry) if isinstance(entry, list) and len(entry) == 3 else 4)
    if problem := pose_problem(pose):
        raise InputError(f"{where}: {problem}; expected a rotation and a shift in metres, [[1, 0, 0, x], ...].")
    return tuple(tuple(row) for row in pose.tolist())


def _names_entry(entry: object, where: str) -> tuple[str, ...]:
    if not isinstance(entry, list) or not all(isinstance(name, str) for name in entry):
        raise InputError(f"{where} is {shown(entry)}; expected a list of names of frames.")
    return tuple(entry)
