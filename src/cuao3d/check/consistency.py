"""Do views agree on one surface, and under which reading of poses, depth and intrinsics do they agree best?

Views that overlap see one surface, so a pixel of one view, moved into another, must have the depth that the other view
measured there. The share of pixels for which it does is counted for the capture as given and for each way in which
captures usually go wrong; a way that makes clearly more of them agree names the mistake.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from cuao3d.check.views import View, num_probes
from cuao3d.geometry import Projection, back_project, visible_points
from cuao3d.scene import OPENGL, Camera

TOLERANCE = 0.05
"""Depths agree when they differ by at most this part of the measured one; real captures drift."""

BETTER = 1.2
"""A mistake is named where undoing it makes this many times more pixels agree."""

CONSISTENT = 0.6
"""... and of the pixels that agree or contradict, at least this share then agree."""

PAIRS, OF_PAIR = 2, 20
"""... in at least so many pairs of views, by so many pixels each: in one pair, walls come to lie on walls by chance."""

CONTRADICTORY = 0.5
"""Below this share the views contradict each other, though no usual mistake explains it."""

ENOUGH = 100
"""Fewer pixels than this, seen again by another view, prove nothing."""

OVERLAP = 0.05
"""Two views are neighbours where at least this share of the pixels of one agree with the other."""

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
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    """What a `capture.json` must say so that the capture is read this way."""


def _with_pose(change: Callable[[Tensor], Tensor]) -> Callable[[Camera], Camera]:
    return lambda camera: replace(camera, world_from_camera=change(camera.world_from_camera))


AS_GIVEN = Reading("as given", "")
POSE_READINGS = (
    Reading(
        "inverse poses",
        "Poses look inverted (world to camera): invert each 4 x 4 matrix.",
        _with_pose(torch.linalg.inv),
        options={"pose": "camera_from_world"},
    ),
    Reading(
        "OpenGL axes",
        "Axes look like OpenGL (y up, z backward): negate the second and third column of each pose.",
        _with_pose(lambda pose: pose @ OPENGL),
        options={"axes": "opengl"},
    ),
    Reading(
        "inverse poses with OpenGL axes",
        "Poses look inverted (world to camera) and axes like OpenGL: invert each 4 x 4 matrix, then negate its second "
        "and third column.",
        _with_pose(lambda pose: torch.linalg.inv(pose) @ OPENGL),
        options={"pose": "camera_from_world", "axes": "opengl"},
    ),
)
DEPTH_READINGS = tuple(
    Reading(
        f"depth x {scale:g}",
        f"Depth looks {max(scale, 1 / scale):g} times too {'large' if scale < 1 else 'small'} for the poses: "
        f"multiply it by {scale:g}.",
        depth_scale=scale,
        options={"depth_scale": scale},
    )
    for scale in (0.001, 0.1, 0.2, 0.25, 4.0, 5.0, 10.0, 1000.0)
)
TWO_MISTAKES = tuple(
    Reading(
        f"{pose.name}, {depth.name}",
        f"{pose.finding} {depth.finding}",
        pose.camera,
        depth.depth_scale,
        {**pose.options, **depth.options},
    )
    for pose in POSE_READINGS
    for depth in DEPTH_READINGS
)
"""Tried where views contradict each other and one mistake does not explain it."""

SWAPPED_FOCAL = Reading(
    "swapped focal lengths",
    "fx and fy look exchanged.",
    lambda camera: replace(camera, focal=camera.focal.flip(0)),
    options={"swap_focal": True},
)
OTHER_SIZE = "intrinsics of another image size"


def readings_of(camera: Camera) -> tuple[Reading, ...]:
    """List the readings that make sense for a capture with this camera, at its full size; the first is as given."""
    readings = [AS_GIVEN, *POSE_READINGS, *DEPTH_READINGS]
    if (camera.focal[0] - camera.focal[1]).abs() > UNEQUAL * camera.focal.max():
        readings.append(SWAPPED_FOCAL)
    if size := suited_size(camera):
        readings.append(_other_size(camera, *size))
    return tuple(readings)


def reading_named(name: str, camera: Camera) -> Reading:
    """Return a reading of a capture with this camera by its name."""
    return next(reading for reading in (*readings_of(camera), *TWO_MISTAKES) if reading.name == name)


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


class Consistency(NamedTuple):
    """How the views fit together under one reading: pixels of view i (row) in view j (column)."""

    landed: Int64[Tensor, "V V"]
    """Pixels that fall on a valid pixel."""
    agreeing: Int64[Tensor, "V V"]
    contradicting: Int64[Tensor, "V V"]
    """Pixels that would lie in front of what was measured."""
    median_error: float | None
    """Median |depth error| of those that landed, metres."""

    @property
    def agreement(self) -> int:
        """Number of pixels that agree."""
        return int(self.agreeing.sum())

    @property
    def consistent(self) -> float:
        """Share of the agreeing among those that agree or contradict."""
        return self.agreement / max(self.agreement + int(self.contradicting.sum()), 1)

    @property
    def num_pairs(self) -> int:
        """Number of pairs of views that agree."""
        return int(((self.agreeing + self.agreeing.T).triu(1) >= OF_PAIR).sum())


def measure_consistency(views: list[View], reading: Reading) -> Consistency:
    """Move the probes of every view into every other one."""
    cameras = [reading.camera(view.camera) for view in views]
    clouds = [
        back_project(view.probes * reading.depth_scale, camera)[0] for view, camera in zip(views, cameras, strict=True)
    ]
    points = torch.cat(clouds)
    view_of_point = torch.repeat_interleave(torch.tensor([len(cloud) for cloud in clouds]))
    columns, errors = [], []
    for index, (view, camera) in enumerate(zip(views, cameras, strict=True)):
        landed, measured = land(points, camera, view.depth * reading.depth_scale)
        source = view_of_point[landed.index]
        other = source != index
        source, error, measured = source[other], (landed.depth - measured)[other], measured[other]
        kinds = torch.ones_like(other[other]), error.abs() <= TOLERANCE * measured, error < -TOLERANCE * measured
        columns.append(torch.stack([torch.bincount(source[kind], minlength=len(views)) for kind in kinds]))
        errors.append(error.abs())
    landed_count, agreeing, contradicting = torch.stack(columns, dim=2)
    error = torch.cat(errors)
    return Consistency(landed_count, agreeing, contradicting, error.median().item() if len(error) else None)


def measure_readings(views: list[View], camera: Camera) -> dict[Reading, Consistency]:
    """Measure how views fit together under each reading that makes sense for a camera, at its full size."""
    consistency = {reading: measure_consistency(views, reading) for reading in readings_of(camera)}
    given = consistency[AS_GIVEN]
    fits = given.agreement >= ENOUGH and given.consistent >= CONTRADICTORY
    if likeliest_reading(consistency) is AS_GIVEN and not fits:
        consistency |= {reading: measure_consistency(views, reading) for reading in TWO_MISTAKES}
    return consistency


def land(
    points: Float[Tensor, "N 3"], camera: Camera, depth: Float[Tensor, "H W"]
) -> tuple[Projection, Float64[Tensor, "V"]]:
    """Find the points that fall on valid pixels, at whatever depth, and what was measured there."""
    landed = visible_points(points, camera, depth, occlusion_tolerance=math.inf, border=0)
    column, row = landed.pixels.round().long().unbind(1)
    return landed, depth[row, column].double()


def likeliest_reading(consistency: dict[Reading, Consistency]) -> Reading:
    """Return the reading under which most pixels agree, if it is consistent and clearly better than as given."""
    best = max(consistency, key=lambda reading: consistency[reading].agreement)
    found, given = consistency[best], consistency[AS_GIVEN]
    clear = found.agreement >= ENOUGH and found.agreement > BETTER * given.agreement
    return best if clear and found.consistent >= CONSISTENT and found.num_pairs >= PAIRS else AS_GIVEN


def joined_views(views: list[View], found: Consistency) -> tuple[Tensor, list[int]]:
    """Return which views see the same surface, (V, V), and to which connected group each belongs."""
    joined = found.agreeing >= OVERLAP * num_probes(views)[:, None]
    joined = joined | joined.T
    return joined, connected_components(joined.numpy(), directed=False)[1].tolist()


def choose_pairs(views: list[View], found: Consistency, num_pairs: int = 3) -> list[dict[str, Any]]:
    """Choose pairs of different views that overlap by about 40 %: alike enough to compare, unlike enough to tell."""
    overlap = found.landed / num_probes(views)[:, None]
    overlap.fill_diagonal_(0)
    pairs: list[dict[str, Any]] = []
    free = torch.ones(len(views), dtype=torch.bool)
    while len(pairs) < num_pairs and free.any():
        distance = (overlap - 0.4).abs().where(free[:, None] & free & (overlap > OVERLAP), torch.inf)
        first, second = divmod(int(distance.argmin()), len(views))
        if distance[first, second].isinf():
            break
        free[[first, second]] = False
        pairs.append(
            {"first": views[first].name, "second": views[second].name, "overlap": overlap[first, second].item()}
        )
    return pairs or [{"first": views[0].name, "second": views[-1].name, "overlap": overlap[0, -1].item()}]
