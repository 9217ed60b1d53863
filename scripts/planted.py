"""Mistakes that captures usually have, planted in a clean scene, in memory; `plant_errors.py` counts those named."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from cuao3d.readers.corrections import lengths_of_rays
from cuao3d.scene import OPENGL, Camera, Frame, Scene

OTHER_SIZES = ((640, 480), (1296, 968), (160, 120))
"""Image sizes that the wrong intrinsics belong to, in turn; the rooms' images are 320 x 240."""

OFFSETS = ((8, 0), (-8, 0), (0, 8), (0, -8))
"""Offsets of the colour image (columns, rows), in turn, pixels."""


BODY_FROM_OPTICAL = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
"""Axes of a robot's body (x forward, y left, z up) from those of its camera."""

MIRROR = torch.diag(torch.tensor([1.0, -1, 1, 1], dtype=torch.float64))

RATIOS, BASELINES = (0.85, 0.9, 0.95, 1.05, 1.1, 1.15), (0.0, 0.02, 0.04)
"""Focal lengths of the colours' lens as parts of the depth's, and how far left it lies, metres; in turn."""


class Mistake(NamedTuple):
    """An error to plant, and the cause that `check` should name."""

    cause: str | None
    """Expected cause; None: nothing is wrong."""
    plant: Callable[[Scene, int], Scene]
    """Maps a clean scene and its seed to the corrupted scene."""


def with_cameras(scene: Scene, change: Callable[[Camera], Camera]) -> Scene:
    return replace(scene, frames=tuple(replace(frame, camera=change(frame.camera)) for frame in scene.frames))


def with_poses(scene: Scene, change: Callable[[Tensor], Tensor]) -> Scene:
    """Change the pose of every frame."""
    return with_cameras(
        scene, lambda camera: replace(camera, world_from_camera=change(camera.world_from_camera).clone())
    )


def with_depth(scene: Scene, scale: float) -> Scene:
    frames = [replace(frame, read_depth=lambda frame=frame: frame.read_depth() * scale) for frame in scene.frames]
    return replace(scene, frames=tuple(frames))


def squeezed(scene: Scene, seed: int) -> Scene:
    """Resize every image to three quarters of its width: fx and fy then differ by a quarter, but remain correct."""

    def squeeze(frame: Frame) -> Frame:
        camera = frame.camera
        size = (camera.height, camera.width * 3 // 4)
        column = torch.linspace(0, camera.width - 1, size[1]).round().long()

        def image() -> Tensor:
            return functional.interpolate(frame.read_image()[None], size, mode="bilinear", align_corners=True)[0]

        return replace(
            frame,
            camera=camera.resized(size[1], size[0]),
            read_image=image,
            read_depth=lambda: frame.read_depth()[:, column],
        )

    return replace(scene, frames=tuple(squeeze(frame) for frame in scene.frames))


def with_swapped_focal(scene: Scene, seed: int) -> Scene:
    """Exchange fx and fy, in squeezed images, as they are equal otherwise."""
    return with_cameras(squeezed(scene, seed), lambda camera: replace(camera, focal=camera.focal.flip(0)))


def with_intrinsics_of_another_size(scene: Scene, seed: int) -> Scene:
    width, height = OTHER_SIZES[seed % len(OTHER_SIZES)]

    def change(camera: Camera) -> Camera:
        return replace(camera.resized(width, height), width=camera.width, height=camera.height)

    return with_cameras(scene, change)


def with_shuffled_poses(scene: Scene, seed: int) -> Scene:
    """Give every frame the pose of another one."""
    rng, own = np.random.default_rng(seed), np.arange(len(scene.frames))
    order = own
    while (order == own).any():
        order = rng.permutation(own)
    frames = [replace(frame, camera=scene.frames[k].camera) for frame, k in zip(scene.frames, order, strict=True)]
    return replace(scene, frames=tuple(frames))


def with_moved_colours(scene: Scene, seed: int) -> Scene:
    """Shift colours against depth and crop both to the overlap: column x of depth shows column x + dx of colour."""
    dx, dy = OFFSETS[seed % len(OFFSETS)]

    def move(frame: Frame) -> Frame:
        camera = frame.camera
        x, y = max(0, dx), max(0, dy)
        width, height = camera.width - abs(dx), camera.height - abs(dy)
        corner = torch.tensor([x, y], dtype=torch.float64)
        return replace(
            frame,
            camera=replace(camera, center=camera.center - corner, width=width, height=height),
            read_image=lambda: frame.read_image()[:, y - dy : y - dy + height, x - dx : x - dx + width],
            read_depth=lambda: frame.read_depth()[y : y + height, x : x + width].contiguous(),
        )

    return replace(scene, frames=tuple(move(frame) for frame in scene.frames))


def with_lost_poses(scene: Scene, seed: int) -> Scene:
    """Lose 30 % of the poses."""
    lost = set(np.random.default_rng(seed).permutation(len(scene.frames))[: round(0.3 * len(scene.frames))].tolist())
    nowhere = torch.full((4, 4), torch.nan, dtype=torch.float64)
    frames = [
        replace(frame, camera=replace(frame.camera, world_from_camera=nowhere)) if index in lost else frame
        for index, frame in enumerate(scene.frames)
    ]
    return replace(scene, frames=tuple(frames))


def turned(scene: Scene, world: Tensor) -> Scene:
    """Transform cloud and poses by a rigid motion (4, 4) of the world."""
    rotation = world[:3, :3].float()
    points = scene.points @ rotation.T
    return with_poses(replace(scene, points=points.contiguous()), lambda pose: world @ pose)


def with_positions(scene: Scene, factor: float) -> Scene:
    """Scale the positions of the cameras, and not the cloud."""

    def change(pose: Tensor) -> Tensor:
        pose = pose.clone()
        pose[:3, 3] *= factor
        return pose

    return with_poses(scene, change)


def with_rotations(scene: Scene, change: Callable[[Tensor], Tensor]) -> Scene:
    """Change the rotation (3, 3) of every pose, and not its position."""

    def changed(pose: Tensor) -> Tensor:
        pose = pose.clone()
        pose[:3, :3] = change(pose[:3, :3].clone())
        return pose

    return with_poses(scene, changed)


def with_quaternions(scene: Scene, roll: int) -> Scene:
    """Read quaternions in an order that is off by some places: 1 where w x y z is read as x y z w."""

    def change(rotation: Tensor) -> Tensor:
        entries = np.roll(Rotation.from_matrix(rotation.numpy()).as_quat(), roll)
        return torch.from_numpy(Rotation.from_quat(entries).as_matrix())

    return with_rotations(scene, change)


def mirrored(scene: Scene, seed: int) -> Scene:
    """Mirror world and cameras, as Unity has them."""
    points = scene.points * torch.tensor([1.0, -1.0, 1.0])
    return with_poses(replace(scene, points=points), lambda pose: MIRROR @ pose @ MIRROR)


def along_rays(scene: Scene, seed: int) -> Scene:
    """Measure depth along each pixel's ray."""
    frames = [
        replace(frame, read_depth=lambda frame=frame: frame.read_depth() * lengths_of_rays(frame.camera))
        for frame in scene.frames
    ]
    return replace(scene, frames=tuple(frames))


def with_photographs(scene: Scene, change: Callable[[Tensor], Tensor]) -> Scene:
    """Change every image (3, H, W)."""
    frames = [replace(frame, read_image=lambda frame=frame: change(frame.read_image())) for frame in scene.frames]
    return replace(scene, frames=tuple(frames))


def with_photographs_of(scene: Scene, order: list[int]) -> Scene:
    """Give every frame the photograph of another."""
    frames = [
        replace(frame, read_image=scene.frames[other].read_image)
        for frame, other in zip(scene.frames, order, strict=True)
    ]
    return replace(scene, frames=tuple(frames))


def with_late_photographs(scene: Scene, seed: int) -> Scene:
    """Pair each depth with the photograph of a frame 1 or 2 before or after; those without one are left out."""
    lag = (1, -1, 2, -2)[seed % 4]
    kept = [index for index in range(len(scene.frames)) if 0 <= index + lag < len(scene.frames)]
    frames = [replace(scene.frames[index], read_image=scene.frames[index + lag].read_image) for index in kept]
    return replace(scene, frames=tuple(frames))


def with_shuffled_photographs(scene: Scene, seed: int) -> Scene:
    """Give every frame the photograph of one that is more than three frames off."""
    rng, count = np.random.default_rng(seed), len(scene.frames)
    while True:
        order = rng.permutation(count)
        if (np.abs(order - np.arange(count)) > 3).all():
            return with_photographs_of(scene, order.tolist())


def with_cloud_elsewhere(scene: Scene, seed: int) -> Scene:
    """Turn the cloud about z by 20 to 160 degrees and move its corner to the origin, as ScanNet's axis_align does."""
    angle = np.radians(np.random.default_rng(seed).uniform(20, 160))
    turn = torch.tensor([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]).float()
    points = (scene.points - scene.points.mean(dim=0)) @ turn.T
    center = scene.points.mean(dim=0) + torch.tensor([0.3, -0.4, 0.0])
    return replace(scene, points=(points + center).contiguous())


def lens_of_seed(seed: int) -> tuple[float, float]:
    """Return the colours' focal length as a part of the depth's, and how far left their lens lies, metres."""
    return RATIOS[seed % len(RATIOS)], BASELINES[seed // len(RATIOS) % len(BASELINES)]


def with_two_lenses(scene: Scene, seed: int) -> Scene:
    """Take depth through a lens of another focal length that lies beside that of the colours."""
    ratio, baseline = lens_of_seed(seed)

    def change(frame: Frame) -> Frame:
        camera = frame.camera
        pose = camera.world_from_camera.clone()
        pose[:3, 3] += baseline * pose[:3, 0]
        camera_of_depth = replace(camera, focal=camera.focal / ratio, world_from_camera=pose)
        return replace(
            frame, camera=camera_of_depth, read_depth=lambda: _depth_beside(frame.read_depth(), camera, ratio, baseline)
        )

    return replace(scene, frames=tuple(change(frame) for frame in scene.frames))


def _depth_beside(depth: Tensor, camera: Camera, ratio: float, baseline: float) -> Tensor:
    """Return depth as seen through the other lens: where a pixel looks depends on its own depth, which is found so."""
    x, y = torch.arange(camera.width).double(), torch.arange(camera.height).double()
    column = (camera.center[0] + (x - camera.center[0]) * ratio).expand(camera.height, -1)
    row = (camera.center[1] + (y - camera.center[1]) * ratio)[:, None].expand(-1, camera.width)
    shift = torch.zeros_like(column)
    for _ in range(4):
        across, along = (column + shift).round(), row.round()
        inside = (across >= 0) & (across < camera.width) & (along >= 0) & (along < camera.height)
        seen = depth[along.clamp(0, camera.height - 1).long(), across.clamp(0, camera.width - 1).long()] * inside
        shift = torch.where(seen > 0, camera.focal[0] * baseline / seen.clamp(min=1e-3), shift)
    return seen.float()


def _walk(places: NDArray[np.float64]) -> list[int]:
    """Return a short way through all places: the nearest next, then turned around wherever that shortens it."""
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    order, left = [0], set(range(1, len(places)))
    while left:
        order.append(min(left, key=lambda index: float(apart[order[-1], index])))
        left.remove(order[-1])
    ends = [(first, last) for first in range(1, len(order) - 1) for last in range(first + 1, len(order))]
    for first, last in ends * 3:
        after = order[last + 1] if last + 1 < len(order) else None
        before, one, other = order[first - 1], order[first], order[last]
        gain = apart[before, one] - apart[before, other]
        gain += 0 if after is None else apart[other, after] - apart[one, after]
        if gain > 1e-9:
            order[first : last + 1] = order[first : last + 1][::-1]
    return order


def with_strays(scene: Scene, seed: int) -> tuple[Scene, set[str]]:
    """Let poses drift by 0.5 to 5 cm a metre, and spoil three of them; return their frames' names too.

    Frames are brought into an order in which each lies, and looks, near the one before, as when a camera is carried.
    """
    rng = np.random.default_rng([seed, 60])
    poses = torch.stack([frame.camera.world_from_camera for frame in scene.frames]).numpy()
    places, order = poses[:, :3, 3], _walk(np.concatenate([poses[:, :3, 3], poses[:, :3, 2]], axis=1))
    drift = rng.uniform(0.005, 0.05)
    bad = set(rng.choice(np.arange(1, len(order) - 1), 3, replace=False).tolist())
    moved, frames, names = np.zeros(3), [], set()
    for step, index in enumerate(order):
        frame = scene.frames[index]
        if step:
            moved = (
                moved + drift * np.linalg.norm(places[index] - places[order[step - 1]]) * rng.normal(size=3) / 3**0.5
            )
        pose = frame.camera.world_from_camera.clone()
        pose[:3, 3] += torch.from_numpy(moved)
        if step in bad:
            names.add(frame.name)
            offset, axis = rng.normal(size=3), rng.normal(size=3)
            pose[:3, 3] += torch.from_numpy(rng.uniform(0.15, 0.5) * offset / np.linalg.norm(offset))
            turn = Rotation.from_rotvec(np.radians(rng.uniform(5, 20)) * axis / np.linalg.norm(axis))
            pose[:3, :3] = pose[:3, :3] @ torch.from_numpy(turn.as_matrix())
        frames.append(replace(frame, camera=replace(frame.camera, world_from_camera=pose)))
    return replace(scene, frames=tuple(frames)), names


MISTAKES = {
    "poses inverted": Mistake(
        "inverse poses", lambda scene, seed: with_poses(scene, lambda pose: torch.linalg.inv(pose))
    ),
    "OpenGL axes": Mistake("OpenGL axes", lambda scene, seed: with_poses(scene, lambda pose: pose @ OPENGL)),
    "inverted, OpenGL axes": Mistake(
        "inverse poses with OpenGL axes",
        lambda scene, seed: with_poses(scene, lambda pose: torch.linalg.inv(pose @ OPENGL)),
    ),
    "depth x 10": Mistake("depth x 0.1", lambda scene, seed: with_depth(scene, 10)),
    "depth x 1000": Mistake("depth x 0.001", lambda scene, seed: with_depth(scene, 1000)),
    "depth x 0.25": Mistake("depth x 4", lambda scene, seed: with_depth(scene, 0.25)),
    "inverted, depth x 10": Mistake(
        "inverse poses, depth x 0.1",
        lambda scene, seed: with_depth(with_poses(scene, lambda pose: torch.linalg.inv(pose)), 10),
    ),
    "OpenGL axes, depth x 0.25": Mistake(
        "OpenGL axes, depth x 4", lambda scene, seed: with_depth(with_poses(scene, lambda pose: pose @ OPENGL), 0.25)
    ),
    "fx and fy swapped": Mistake("swapped focal lengths", with_swapped_focal),
    "intrinsics of another size": Mistake("intrinsics of another image size", with_intrinsics_of_another_size),
    "poses shuffled": Mistake("poses of other frames", with_shuffled_poses),
    "colours moved by 8 pixels": Mistake("colours off depth", with_moved_colours),
    "30 % of the poses NaN": Mistake("lost poses", with_lost_poses),
    "world upside down": Mistake("upside down", lambda scene, seed: turned(scene, OPENGL)),
    "squeezed, but right": Mistake(None, squeezed),
    "depth in 1/6553.5 m": Mistake("depth x 0.15259", lambda scene, seed: with_depth(scene, 6.5535)),
    "depth in 1/256 m": Mistake("depth x 3.90625", lambda scene, seed: with_depth(scene, 0.256)),
    "positions without a unit": Mistake("poses in another unit", lambda scene, seed: with_positions(scene, 0.41)),
    "positions in feet": Mistake("poses in another unit", lambda scene, seed: with_positions(scene, 3.28084)),
    "ROS axes": Mistake(
        "ROS axes", lambda scene, seed: with_poses(scene, lambda pose: pose @ torch.linalg.inv(BODY_FROM_OPTICAL))
    ),
    "mirrored world": Mistake("mirrored world", mirrored),
    "quaternions w first": Mistake("quaternions w first", lambda scene, seed: with_quaternions(scene, 1)),
    "quaternions w last": Mistake("quaternions w last", lambda scene, seed: with_quaternions(scene, -1)),
    "transposed rotations": Mistake(
        "transposed rotations", lambda scene, seed: with_rotations(scene, lambda rotation: rotation.T)
    ),
    "depth along rays": Mistake("depth along rays", along_rays),
    "ROS axes, positions x 0.41": Mistake(
        "ROS axes, poses in another unit",
        lambda scene, seed: with_positions(
            with_poses(scene, lambda pose: pose @ torch.linalg.inv(BODY_FROM_OPTICAL)), 0.41
        ),
    ),
    "inverted, positions x 2.7": Mistake(
        "inverse poses, poses in another unit",
        lambda scene, seed: with_poses(with_positions(scene, 2.7), lambda pose: torch.linalg.inv(pose)),
    ),
    "photographs upside down": Mistake(
        "photographs upside down", lambda scene, seed: with_photographs(scene, lambda image: image.flip(1, 2))
    ),
    "photographs mirrored": Mistake(
        "photographs mirrored", lambda scene, seed: with_photographs(scene, lambda image: image.flip(2))
    ),
    "photographs of the next frames": Mistake("colours of another frame", with_late_photographs),
    "photographs shuffled": Mistake("colours not on depth", with_shuffled_photographs),
    "cloud in another frame": Mistake("cloud in another world", with_cloud_elsewhere),
    "two lenses": Mistake("colours of another lens", with_two_lenses),
}

PAIRS = {
    ("poses inverted", "depth x 1000"): ("inverse poses, depth x 0.001",),
    ("positions in feet", "poses inverted"): ("inverse poses, poses in another unit",),
    ("ROS axes", "depth in 1/6553.5 m"): ("ROS axes, depth x 0.15259",),
    ("positions without a unit", "transposed rotations"): ("transposed rotations, poses in another unit",),
    ("quaternions w first", "depth x 10"): ("quaternions w first, depth x 0.1",),
    ("OpenGL axes", "depth along rays"): ("OpenGL axes, depth along rays",),
    ("poses inverted", "depth along rays"): ("inverse poses, depth along rays",),
    ("OpenGL axes", "colours moved by 8 pixels"): ("OpenGL axes", "colours off depth"),
    ("poses inverted", "photographs upside down"): ("inverse poses", "photographs upside down"),
    ("depth x 0.25", "photographs of the next frames"): ("depth x 4", "colours of another frame"),
    ("two lenses", "depth x 10"): ("depth x 0.1", "colours of another lens"),
    ("two lenses", "OpenGL axes"): ("OpenGL axes", "colours of another lens"),
}
"""Two mistakes, planted one after the other, and the causes that `check` should name."""


def with_both(names: tuple[str, str]) -> Callable[[Scene, int], Scene]:
    """Return what plants two mistakes, the first one first."""
    one, other = (MISTAKES[name].plant for name in names)
    return lambda scene, seed: other(one(scene, seed), seed)
