"""Which way is up: cameras tell it roughly, level surfaces (floors, seats, tables) to a fraction of a degree."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor
from torch.nn import functional

from cuao3d.errors import UserError
from cuao3d.geometry import up_direction
from cuao3d.readers.options import Axis, Up, named_up
from cuao3d.scene import Camera, Scene

UPRIGHT = 0.5
"""Length that the mean of the cameras' up vectors must have: below it they point all ways, and tell nothing."""

CLEAR = 0.7
"""Where no level surface is seen, the cameras' up direction must lie this close to an axis (cosine) to name it."""

WIDTH = 160
"""Depth is thinned to about this width, pixels."""

NUM_VIEWS = 20
"""Views of a scene that are looked at where its poses alone do not tell what is up."""

REACH = 2
"""Planes are fitted to inverse depth in windows of this many pixels to each side of the middle."""

SMOOTH = 0.01
"""... and kept where inverse depth is off the plane by at most this part (RMS); else the window holds two things."""

GRAZING = 0.1
"""A pixel counts by the area of surface that it covers; where it sees it at less than this cosine, as if at this."""

TRIED, LOOKED_AT = 3000, 20_000
"""Directions that are tried, 3 degrees apart over half a sphere, and pixels that they are compared with."""

LEAN, ROLL = 60.0, 28.0
"""Degrees that up may lie from the cameras' mean up vector, which leans forward where they look down, and that images
may be rolled (RMS)."""

ALIGNED = 5.0
"""A surface is level, or a wall, within this angle of a direction that is tried, degrees."""

WIDTHS = (12.0, 6.0, 3.0, 3.0)
"""From the best of them, surfaces within these angles give better and better estimates, degrees."""

ENOUGH = 500
"""Fewer level pixels than this prove nothing."""

MOST = 0.6
"""Share of level surfaces that must face the way that cameras take for up; ceilings are seen too."""

Z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
"""Up, unless something says otherwise."""

ON_ITS_SIDE = 2.0
"""Where all cameras on one side explain this many times more than all upright, up is not certain."""

APART, RIVAL = 15.0, 0.5
"""Up is uncertain where a direction at least so far away, degrees, has this part of the evidence."""

PRECISE = 1.0
"""... and where its standard error exceeds this, degrees."""


class Surfaces(NamedTuple):
    """Smooth surface that views see, a row for each pixel."""

    normals: Float64[Tensor, "n 3"]
    """Unit normals towards the camera, world axes."""
    area: Float64[Tensor, "n"]
    """Area of surface that the pixel covers, square metres."""
    part: Int64[Tensor, "n"]
    """Half of a view that the pixel belongs to; each view has two."""


class Hypothesis(NamedTuple):
    """What is up if cameras are held in some way."""

    told: dict[str, Any]
    """What `find_up` returns."""
    direction: Float64[Tensor, "3"] | None
    """Unit vector that points up, however certain; None where too little level surface is seen."""
    evidence: float
    """How much it explains; see `_evidence`."""


def find_up(cameras: Sequence[Camera], depths: Sequence[Tensor]) -> dict[str, Any]:
    """Find the direction of the world that points up.

    Args:
        cameras: Of the views.
        depths: Their depth (h, w), metres; 0 = missing.

    Returns:
        JSON-able: `axis`, the axis nearest to up, "x" to "-z", or None where the cameras do not tell; `mean`, the
        cameras' mean up vector; `facing`, the share of level surfaces that face that way, or None where too few are
        seen; `certain`, whether cameras and surfaces agree; `direction`, the unit vector that points up, or None where
        they do not, or it is not known to a degree; `tilt`, its angle to +z, degrees, or None.
    """
    upright, sides = _hypotheses(cameras, depths)
    if _mean_up(cameras).norm() < UPRIGHT:
        return next((side.told for side in sides if side.told["certain"]), upright.told)
    if any(side.evidence > ON_ITS_SIDE * upright.evidence for side in sides):
        return upright.told | {"certain": False, "direction": None, "tilt": None}
    return upright.told


def up_of(scene: Scene) -> Float64[Tensor, "3"] | None:
    """Return the unit vector that points up in a scene's world, or None where it could not be told.

    +z, unless the cameras plainly are held about another direction and nobody said that +z is up. Then depth decides
    whether the world is tilted, or the cameras lay on their side or upside down.

    Args:
        scene: The scene; the depth of at most `NUM_VIEWS` of its frames is read, and only in doubt.
    """
    cameras = [frame.camera for frame in scene.frames]
    change = scene.capture_from_world
    is_moved_only = change is not None and change[:3, 3].any() and change[:3, :3].equal(torch.eye(3).double())
    is_said = change is not None and not is_moved_only
    if is_said or not cameras or _mean_up(cameras).norm() < UPRIGHT:
        return Z
    if up_direction(cameras)[2] == 1:  # within 15 degrees of it
        return Z
    places = np.linspace(0, len(scene.frames) - 1, min(len(scene.frames), NUM_VIEWS)).round().astype(int)
    views = []
    for frame in (scene.frames[place] for place in places):
        with suppress(UserError, OSError):  # who lifts the frame says what is wrong with it
            views.append(thin(frame.camera, frame.read_depth()))
    if not views:
        return None
    upright, sides = _hypotheses(*zip(*views, strict=True))
    if upright.direction is None:
        return None  # a wall beside upright cameras would look like a floor below others
    found = max([upright, *sides], key=lambda one: one.evidence * (ON_ITS_SIDE if one is upright else 1))
    if found.direction is None:
        return None
    if found.told["facing"] <= 1 - MOST:
        return -found.direction
    return found.direction if found.told["certain"] else None


def thin(camera: Camera, depth: Float32[Tensor, "H W"]) -> tuple[Camera, Float32[Tensor, "h w"]]:
    """Return every n-th pixel of a view's depth, and the camera that sees just these."""
    step = max(1, round(camera.width / WIDTH))
    depth = depth[::step, ::step].contiguous()
    focal, center = camera.focal / step, camera.center / step
    return replace(camera, focal=focal, center=center, width=depth.shape[1], height=depth.shape[0]), depth


def up_option(up: dict[str, Any]) -> Up:
    """Return what `capture.json` should say of a certain up, with the world as it was read."""
    if up["direction"] is None:
        return cast(Axis, up["axis"])
    return named_up(torch.tensor(up["direction"], dtype=torch.float64))


def describe_up(up: dict[str, Any]) -> str:
    """Say how sure it is which way is up."""
    seen = (
        "too little level surface was seen" if up["facing"] is None else f"{up['facing']:.0%} of level surfaces face it"
    )
    return f"cameras are held along {np.round(up['mean'], 2).tolist()}, {seen}"


def _hypotheses(cameras: Sequence[Camera], depths: Sequence[Tensor]) -> tuple[Hypothesis, list[Hypothesis]]:
    """Return what is up if the cameras are held upright, and if all lie on the one or on the other side."""
    pairs = enumerate(zip(cameras, depths, strict=True))
    seen = _join([_surfaces(camera, depth, view) for view, (camera, depth) in pairs])
    sides = [_judge([_turned(camera, sign) for camera in cameras], seen) for sign in (1.0, -1.0)]
    return _judge(cameras, seen), [side for side in sides if side.told["certain"]]


def _judge(cameras: Sequence[Camera], seen: Surfaces) -> Hypothesis:
    """Return what is up if cameras are held upright."""
    mean = _mean_up(cameras)
    told: dict[str, Any] = {"axis": None, "mean": mean.tolist(), "facing": None, "certain": False}
    told |= {"direction": None, "tilt": None}
    if mean.norm() < UPRIGHT:
        return Hypothesis(told, None, 0.0)
    tried = _directions(cameras)
    evidence = _evidence(seen, tried)
    up = _refined(seen, tried[int(evidence.argmax())]) if len(tried) else functional.normalize(mean, dim=0)
    level = _near(seen, up, WIDTHS[-1])
    if int(level.sum()) < ENOUGH:
        guess = up_direction(cameras).double()
        axis = named_up(guess, within=90) if guess.abs().max() >= CLEAR else None
        return Hypothesis(told | {"axis": axis}, None, 0.0)
    facing, own = float((seen.normals[level] @ up > 0).double().mean()), float(_evidence(seen, up[None]))
    far = (tried @ up).abs() < math.cos(math.radians(APART))
    sole = not bool((evidence[far] > RIVAL * own).any())
    told |= {"axis": named_up(up, within=90), "facing": facing, "certain": facing >= MOST and sole}
    if told["certain"] and _standard_error(seen, up, level) <= PRECISE:
        told |= {"direction": up.tolist(), "tilt": math.degrees(math.atan2(float(up[:2].norm()), float(up[2])))}
    return Hypothesis(told, up, own)


def _turned(camera: Camera, sign: float) -> Camera:
    """Return a camera that lay on one side, or on the other, as if it were held upright."""
    held = torch.eye(4, dtype=torch.float64)
    held[:2, :2] = torch.tensor([[0.0, -sign], [sign, 0.0]])
    return replace(camera, world_from_camera=camera.world_from_camera @ held)


def _mean_up(cameras: Sequence[Camera]) -> Float64[Tensor, "3"]:
    return torch.stack([-camera.world_from_camera[:3, 1] for camera in cameras]).mean(dim=0)


def _surfaces(camera: Camera, depth: Tensor, view: int) -> Surfaces:
    """Fit planes to inverse depth: on a plane, seen at whatever angle, 1 / z is linear in the pixel."""
    size = 2 * REACH + 1
    step = torch.arange(size).double() - REACH
    inverse = torch.where(depth > 0, 1 / depth.double(), torch.nan)
    windows = inverse.unfold(0, size, 1).unfold(1, size, 1)
    mean, spread = windows.mean(dim=(2, 3)), size * step.square().sum()
    right, down = ((windows * along).sum(dim=(2, 3)) / spread for along in (step, step[:, None]))
    off_plane = windows.square().mean(dim=(2, 3)) - mean.square() - (right.square() + down.square()) * spread / size**2
    smooth = off_plane.clamp(min=0).sqrt() <= SMOOTH * mean  # False where depth is missing: NaN compares so
    row, column = torch.nonzero(smooth).unbind(1)
    rays = (torch.stack([column, row], dim=1) + REACH - camera.center) / camera.focal
    slope = torch.stack([right[smooth], down[smooth]], dim=1) * camera.focal
    plane = torch.cat([slope, mean[smooth][:, None] - (slope * rays).sum(dim=1, keepdim=True)], dim=1)
    normals = -functional.normalize(plane, dim=1)
    rays = functional.pad(rays, (0, 1), value=1.0)
    cosine = -torch.linalg.vecdot(normals, functional.normalize(rays, dim=1))
    area = rays.norm(dim=1) / (mean[smooth].square() * cosine.clamp(min=GRAZING) * camera.focal.prod())
    return Surfaces(
        normals @ camera.world_from_camera[:3, :3].T, area, 2 * view + (2 * column > smooth.shape[1]).long()
    )


def _join(parts: Sequence[Surfaces]) -> Surfaces:
    return Surfaces(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _directions(cameras: Sequence[Camera]) -> Float64[Tensor, "d 3"]:
    """Return directions, evenly spread, that may be up for cameras that are held upright."""
    index = torch.arange(TRIED).double() + 0.5
    z, turn = index / TRIED, index * math.pi * (3 - math.sqrt(5))
    across = (1 - z.square()).sqrt()
    half = torch.stack([across * turn.cos(), across * turn.sin(), z], dim=1)
    mean_up = functional.normalize(_mean_up(cameras), dim=0)
    up = half * torch.sign(half @ mean_up)[:, None]
    rolled = (up @ torch.stack([camera.world_from_camera[:3, 0] for camera in cameras]).T).square().mean(dim=1).sqrt()
    return up[(up @ mean_up > math.cos(math.radians(LEAN))) & (rolled < math.sin(math.radians(ROLL)))]


def _evidence(seen: Surfaces, directions: Float64[Tensor, "d 3"]) -> Float64[Tensor, "d"]:
    """Weigh directions as up: by the area that would be level, and by that which would be level or a wall."""
    thinned = slice(None, None, max(1, len(seen.area) // LOOKED_AT))
    normals, area = seen.normals[thinned], seen.area[thinned]
    evidence = []
    for few in torch.split(directions, 64):
        cosine = (few @ normals.T).abs()
        level = (cosine > math.cos(math.radians(ALIGNED))).double() @ area
        walls = (cosine < math.sin(math.radians(ALIGNED))).double() @ area
        evidence.append(level * (level + walls))
    return torch.cat(evidence) if evidence else area[:0]


def _near(seen: Surfaces, direction: Float64[Tensor, "3"], angle: float) -> Bool[Tensor, "n"]:
    """Say which surfaces face a direction, or its opposite, within an angle, degrees."""
    return (seen.normals @ direction).abs() > math.cos(math.radians(angle))


def _refined(seen: Surfaces, direction: Float64[Tensor, "3"]) -> Float64[Tensor, "3"]:
    """Return the mode of the normals, and of their opposites, that is nearest to a direction."""
    for width in WIDTHS:
        near = _near(seen, direction, width)
        normals = seen.normals[near]
        direction = _principal((normals * seen.area[near, None]).T @ normals, direction)
    return direction


def _principal(scatter: Float64[Tensor, "*n 3 3"], direction: Float64[Tensor, "3"]) -> Float64[Tensor, "*n 3"]:
    """Return the principal directions of scatter matrices, on the side of a direction."""
    principal: Tensor = torch.linalg.eigh(scatter).eigenvectors[..., -1]
    return principal * torch.where(principal @ direction < 0, -1.0, 1.0)[..., None]


def _standard_error(seen: Surfaces, up: Float64[Tensor, "3"], level: Bool[Tensor, "n"]) -> float:
    """Return the standard error of the mode of level surfaces, degrees, by leaving out each half of a view."""
    normals, (part, group) = seen.normals[level], torch.unique(seen.part[level], return_inverse=True)
    outer = (normals[:, :, None] * normals[:, None] * seen.area[level, None, None]).flatten(1)
    scatter = outer.new_zeros(len(part), 9).index_add_(0, group, outer).reshape(-1, 3, 3)
    without = _principal(scatter.sum(dim=0) - scatter, up)
    off = torch.rad2deg(torch.linalg.vector_norm(torch.linalg.cross(without, up.expand_as(without)), dim=1).asin())
    return float((off.square().sum() * (len(part) - 1) / max(len(part), 1)).sqrt()) if len(part) > 1 else math.inf
