"""Ways to read a capture: as given, and with each usual mistake undone, or two of them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cuao3d.check.units import unit_of_depth
from cuao3d.readers.corrections import lengths_of_rays
from cuao3d.readers.options import CaptureOptions, correct_pose
from cuao3d.scene import Camera

UNEQUAL = 0.02
"""Part by which fx and fy must differ for their order to be tested; pixels of real sensors are square to a percent."""

OFF_CENTER = 0.04
"""Part of the image's size by which a principal point must be off the middle for another image size to be tried."""

USUAL_SIZES = (
    (160, 120), (320, 240), (424, 240), (512, 424), (640, 360), (640, 480), (848, 480), (960, 540), (1024, 768),
    (1280, 720), (1280, 960), (1280, 1024), (1296, 968), (1440, 1080), (1920, 1080), (1920, 1440),
)  # fmt: skip
"""Image sizes of usual sensors; a principal point that suits one of these names it."""

SIZE_TOLERANCE = 0.04
"""Part by which twice a principal point may miss an image size: that of real sensors lies this close to the middle."""


@dataclass(frozen=True)
class Reading:
    """A way to read a capture; each but the first undoes a usual mistake."""

    name: str
    """What the mistake is called."""
    finding: str
    """What to tell the user when this reading fits best."""
    camera: Callable[[Camera], Camera] = lambda camera: camera
    """From the camera as given to what it should be."""
    depth_scale: float = 1.0
    """Factor from the depth as given to metres."""
    along_rays: bool = False
    """Whether depth as given is the distance from the camera."""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    """What a `capture.json` must say so that the capture is read this way."""
    unscaled: "Reading | None" = None
    """The reading of poses that the factor of depth was added to, if one was."""

    def depth(self, depth: Float[Tensor, "H W"], camera: Camera) -> Float[Tensor, "H W"]:
        """Return what a depth image of a camera, as given, means: metres along the optical axis."""
        depth = depth * self.depth_scale
        return depth / lengths_of_rays(camera) if self.along_rays else depth


def _of_poses(name: str, finding: str, **options: Any) -> Reading:
    """Return a reading of poses that `capture.json` can say."""
    change = partial(_corrected, CaptureOptions(**options))
    return Reading(name, finding, change, options=options)


def _corrected(options: CaptureOptions, camera: Camera) -> Camera:
    return replace(camera, world_from_camera=correct_pose(camera.world_from_camera, options))


AS_GIVEN = Reading("as given", "")
POSE_READINGS = (
    _of_poses(
        "inverse poses",
        "Poses look inverted (world to camera): invert each 4 x 4 matrix.",
        pose="camera_from_world",
    ),
    _of_poses(
        "OpenGL axes",
        "Axes look like OpenGL (y up, z backward): negate the second and third column of each pose.",
        axes="opengl",
    ),
    _of_poses(
        "inverse poses with OpenGL axes",
        "Poses look inverted (world to camera) and axes like OpenGL: invert each 4 x 4 matrix, then negate its second "
        "and third column.",
        pose="camera_from_world",
        axes="opengl",
    ),
)
"""Tried for every capture."""

_ROS = "Axes look like those of a robot's body in ROS (x forward, y left, z up)"
_BODY = "0 0 1 / -1 0 0 / 0 -1 0"
_W_FIRST = "Quaternions look written w first (w x y z) and read w last (x y z w): reorder them."
_W_LAST = "Quaternions look written w last (x y z w) and read w first (w x y z): reorder them."
_TRANSPOSED = "Rotations look transposed, positions right: transpose the 3 x 3 part of each pose"
RARER_POSE_READINGS = (
    _of_poses("ROS axes", f"{_ROS}: multiply each rotation from the right by {_BODY}.", axes="ros"),
    _of_poses(
        "inverse poses with ROS axes",
        f"Poses look inverted (world to camera). {_ROS}: invert each 4 x 4 matrix, then multiply each rotation from "
        f"the right by {_BODY}.",
        pose="camera_from_world",
        axes="ros",
    ),
    _of_poses(
        "mirrored world",
        "The world looks mirrored, left-handed with y up as in Unity: negate the second row and the second column of "
        "each pose, and y of the cloud.",
        axes="unity",
    ),
    _of_poses("quaternions w first", _W_FIRST, quaternion="w-first"),
    _of_poses("quaternions w last", _W_LAST, quaternion="w-last"),
    _of_poses(
        "quaternions w first, inverse poses",
        f"{_W_FIRST} Poses then look inverted: invert each 4 x 4 matrix.",
        quaternion="w-first",
        pose="camera_from_world",
    ),
    _of_poses("transposed rotations", f"{_TRANSPOSED}.", rotation="transposed"),
    _of_poses(
        "transposed rotations with OpenGL axes",
        f"{_TRANSPOSED}, then negate its second and third column (OpenGL axes).",
        rotation="transposed",
        axes="opengl",
    ),
    _of_poses(
        "transposed rotations, inverse poses",
        f"{_TRANSPOSED}, then invert each 4 x 4 matrix.",
        rotation="transposed",
        pose="camera_from_world",
    ),
)
"""Tried where views contradict each other and no usual mistake explains it."""


def with_rays(reading: Reading) -> Reading:
    """Return a reading under which depth is also measured along rays."""
    name = "depth along rays"
    finding = (
        "Depth looks measured along the rays, as distance from the camera: divide it by the length of each pixel's "
        "ray (x, y, 1)."
    )
    return replace(
        reading,
        name=name if reading is AS_GIVEN else f"{reading.name}, {name}",
        finding=f"{reading.finding} {finding}".strip(),
        along_rays=True,
        options={**reading.options, "depth_along": "rays"},
        unscaled=with_rays(reading.unscaled) if reading.unscaled is not None else None,
    )


ALONG_RAYS = with_rays(AS_GIVEN)
SWAPPED_FOCAL = Reading(
    "swapped focal lengths",
    "fx and fy look exchanged.",
    lambda camera: replace(camera, focal=camera.focal.flip(0)),
    options={"swap_focal": True},
)
OTHER_SIZE = "intrinsics of another image size"


def readings_of(camera: Camera) -> tuple[Reading, ...]:
    """List the readings that are tried for a capture with this camera, at its full size; the first is as given."""
    readings = [AS_GIVEN, *POSE_READINGS, ALONG_RAYS]
    if (camera.focal[0] - camera.focal[1]).abs() > UNEQUAL * camera.focal.max():
        readings.append(SWAPPED_FOCAL)
    if size := suited_size(camera):
        readings.append(_other_size(camera, *size))
    return tuple(readings)


def with_depth_scale(reading: Reading, scale: float) -> Reading:
    """Return a reading under which depth is also in another unit."""
    name, unit = f"depth x {scale:.6g}", unit_of_depth(scale)
    finding = (
        f"Depth looks {max(scale, 1 / scale):.4g} times too {'large' if scale < 1 else 'small'} for the poses"
        f"{unit and f', as if written {unit}'}: multiply it by {scale:.6g}."
    )
    return replace(
        reading,
        name=name if reading is AS_GIVEN else f"{reading.name}, {name}",
        finding=f"{reading.finding} {finding}".strip(),
        depth_scale=scale,
        options={**reading.options, "depth_scale": scale},
        unscaled=reading,
    )


def reading_named(name: str, camera: Camera) -> Reading:
    """Return a reading of a capture with this camera by its name."""
    known = {reading.name: reading for reading in (*readings_of(camera), *RARER_POSE_READINGS)}
    if name in known:
        return known[name]
    rest = name.removesuffix(f", {ALONG_RAYS.name}")
    if rest != name:
        return with_rays(reading_named(rest, camera))
    parts = re.fullmatch(r"(?:(.*), )?depth x ([^\s,]+)", name)
    assert parts is not None
    return with_depth_scale(known[parts[1] or AS_GIVEN.name], float(parts[2]))


def suited_size(camera: Camera) -> tuple[int, int] | None:
    """Guess the image size that a camera's principal point is the middle of, if it is not its own."""
    width, height = (2 * camera.center + 1).tolist()
    if max(abs(width / camera.width - 1), abs(height / camera.height - 1)) < 2 * OFF_CENTER or min(width, height) < 16:
        return None
    off = {size: max(abs(width / size[0] - 1), abs(height / size[1] - 1)) for size in USUAL_SIZES}
    best = min(off, key=lambda size: off[size])
    return best if off[best] < SIZE_TOLERANCE else (round(width), round(height))


def _other_size(camera: Camera, width: int, height: int) -> Reading:
    right = replace(camera, width=width, height=height).resized(camera.width, camera.height)
    (fx, fy), (cx, cy) = right.focal.tolist(), right.center.tolist()
    ratio = torch.tensor([camera.width / width, camera.height / height], dtype=torch.float64)
    return Reading(
        OTHER_SIZE,
        f"Intrinsics look made for images of {width} x {height}, these are {camera.width} x {camera.height}: their "
        f"matrix should be {fx:.2f} 0 {cx:.2f} / 0 {fy:.2f} {cy:.2f} / 0 0 1.",
        lambda camera: replace(camera, focal=camera.focal * ratio, center=(camera.center + 0.5) * ratio - 0.5),
    )
