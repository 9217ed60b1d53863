"""Survey of a synthetic room: draw its pose, render its views, scan it, and make a scene of them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from cuao3d.scene import UNLABELLED, Camera, Frame, Scene, Split
from cuao3d.worlds.joinery import Array, Generator
from cuao3d.worlds.rendering import Photo, Room, albedo, render, seen_by


class SurfaceSamples(NamedTuple):
    """Points on the surfaces of a room."""

    points: Array
    """(N, 3), metres, in world coordinates."""
    triangle: NDArray[np.integer[Any]]
    """Triangle that each point lies on."""


class Scan(NamedTuple):
    """Point cloud from the scan of a room."""

    points: Array
    """(N, 3), metres, in world coordinates."""
    labels: NDArray[np.integer[Any]]
    """Class of each point."""
    normals: Array
    """Unit surface normals (N, 3), world axes."""
    colors: Array
    """RGB albedo in [0, 1], (N, 3)."""


def somewhere(rng: Generator) -> Array:
    """Draw the pose of a room in the world: world_from_room (4, 4), a yaw and an offset, metres."""
    yaw, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-3, 3, 3)
    world_from_room = np.eye(4)
    world_from_room[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    world_from_room[:3, 3] = offset
    return world_from_room


def look_at(eye: Array, target: Array, roll: float = 0.0) -> Array:
    """Return the pose (4, 4) of a camera at `eye` that looks at `target`, in the coordinates of both (z up).

    Args:
        eye: Position (3,), metres.
        target: Position (3,), metres; not straight above or below.
        roll: Turn about the optical axis, radians.
    """
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    right, down = np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right
    pose = np.eye(4)
    pose[:3] = np.stack([right, down, forward, eye], axis=1)
    return pose


def take_views(
    room: Room, cameras: Sequence[Camera], rng: Generator, *, noise: bool = True, units_per_metre: int = 1000
) -> list[Photo]:
    """Render a room from each camera, in as many threads as PyTorch uses."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        jobs = zip(cameras, rng.spawn(len(cameras)), strict=True)
        return list(pool.map(lambda job: render(room, *job, noise=noise, units_per_metre=units_per_metre), jobs))


def sample_surfaces(room: Room, rng: Generator, spacing: float) -> SurfaceSamples:
    """Sample all surfaces of a room uniformly, on average one point per `spacing` x `spacing` metres."""
    _, doubled = _crosses(room)
    count = int(doubled.sum() / 2 / spacing**2)
    triangle = rng.choice(len(doubled), count, p=doubled / doubled.sum())
    a, b = np.sort(rng.random((2, count)), axis=0)
    weights = np.stack([a, b - a, 1 - b], axis=1)
    return SurfaceSamples((room.triangles[triangle] * weights[..., None]).sum(1), triangle)


def scan(
    room: Room,
    samples: SurfaceSamples,
    cameras: Sequence[Camera],
    *,
    normals_towards: Literal["camera", "middle"] = "camera",
    without: Sequence[int] = (),
) -> Scan:
    """Turn the labelled samples that some camera sees into a point cloud.

    Args:
        room: The room.
        samples: Points on its surfaces.
        cameras: Cameras of the scan.
        normals_towards: Whether normals face the first camera that sees the point, or the middle of the room.
        without: Classes that the scan misses.
    """
    points, triangle = samples
    middle = room.world_from_room[:3, :3] @ (room.size / 2) + room.world_from_room[:3, 3]
    seen, eye = np.zeros(len(points), dtype=bool), np.tile(middle, (len(points), 1))
    for camera in cameras:
        index = seen_by(room, camera, points)
        if normals_towards == "camera":
            eye[index[~seen[index]]] = camera.world_from_camera[:3, 3].numpy()
        seen[index] = True
    seen &= ~np.isin(room.labels[triangle], [UNLABELLED, *without])
    triangle, points, eye = triangle[seen], points[seen], eye[seen]
    cross, doubled = _crosses(room)
    normals = cross[triangle] / doubled[triangle, None]
    normals = np.where(((eye - points) * normals).sum(1, keepdims=True) < 0, -normals, normals)
    colors = np.clip(albedo(room, triangle, points), 0, 1) ** (1 / 2.2)
    return Scan(points, room.labels[triangle], normals, colors)


def as_scene(
    name: str,
    frame_names: Sequence[str],
    views: Sequence[Photo],
    cloud: Scan,
    *,
    label_set: str,
    split: Split,
    occlusion_tolerance: float,
) -> Scene:
    """Make a scene of the views and the scan of a room; the other arguments are fields of `Scene`."""
    frames = tuple(
        Frame(
            frame_name,
            view.camera,
            partial(_as_image, view.image),
            partial(_as_depth, view.depth, view.units_per_metre),
        )
        for frame_name, view in zip(frame_names, views, strict=True)
    )
    return Scene(
        name=name,
        points=torch.from_numpy(cloud.points.astype(np.float32)),
        frames=tuple(frames),
        colors=torch.from_numpy(cloud.colors.astype(np.float32)),
        labels=torch.from_numpy(cloud.labels.astype(np.int64)),
        label_set=label_set,
        normals=torch.from_numpy(cloud.normals.astype(np.float32)),
        split=split,
        occlusion_tolerance=occlusion_tolerance,
    )


def _crosses(room: Room) -> tuple[Array, Array]:
    """Return the normal of each triangle (T, 3), with twice its area as length, and that length (T,)."""
    edges = room.triangles[:, 1:] - room.triangles[:, :1]
    cross = np.cross(edges[:, 0], edges[:, 1])
    return cross, np.linalg.norm(cross, axis=1)


def _as_image(pixels: NDArray[np.uint8]) -> Float32[Tensor, "3 H W"]:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1).contiguous()


def _as_depth(units: NDArray[np.uint16], units_per_metre: int) -> Float32[Tensor, "H W"]:
    return torch.from_numpy(units.astype(np.float32) / np.float32(units_per_metre))
