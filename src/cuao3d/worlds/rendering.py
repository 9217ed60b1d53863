"""Rendering of synthetic rooms: ray casting, solid textures, lamps and sensor noise."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from embreex import rtcore_scene
from numpy.typing import NDArray

from cuao3d.rays import pixel_rays, rotate
from cuao3d.scene import UNLABELLED, Camera
from cuao3d.worlds.joinery import TEXTURES, Array, Generator, Material

_GAMMA = (np.arange(1024, dtype=np.float64) / 1023) ** (1 / 2.2)
_LINEAR = (np.arange(1536, dtype=np.float64) / 1023) ** 2.2
_LATTICE = torch.from_numpy(np.random.default_rng(7).random((32, 32, 32)).astype(np.float32))
_LATTICE = torch.nn.functional.pad(_LATTICE[None, None], (0, 1, 0, 1, 0, 1), mode="circular")

AMBIENT = (0.26, 0.09)
"""Ambient light, and how much more (or less) of it reaches surfaces that face up (or down)."""


@dataclass(frozen=True)
class Photo:
    """A rendered view."""

    camera: Camera
    image: NDArray[np.uint8]
    """RGB, (H, W, 3)."""
    depth: NDArray[np.uint16]
    """Depth along the optical axis, in units of 1 / `units_per_metre`, (H, W), 0 = missing."""
    units_per_metre: int
    """Depth units per metre."""
    labels: NDArray[np.uint8]
    """Class of each pixel, (H, W), 255 = unlabelled."""
    normals: NDArray[np.float32]
    """Unit surface normals towards the camera, world axes, (H, W, 3)."""


@dataclass(frozen=True)
class Room:
    """A furnished room, in world coordinates."""

    triangles: Array
    """Corners (T, 3, 3), metres."""
    labels: NDArray[np.integer[Any]]
    """Class of each triangle."""
    material_of_triangle: NDArray[np.integer[Any]]
    materials: tuple[Material, ...]
    world_from_room: Array
    """Yaw and offset of the room, (4, 4)."""
    size: Array
    """Inner extent (x, y, z), metres."""
    boxes: Array
    """Axis-aligned bounds (K, 2, 3) of the furniture, in room coordinates."""
    lights: Array
    """Positions (L, 3), in world coordinates."""
    light_colors: Array
    """Their RGB strengths, (L, 3)."""
    embree: rtcore_scene.EmbreeScene
    ambient: tuple[float, float] = AMBIENT
    """Ambient light, as in `AMBIENT`."""


def render(room: Room, camera: Camera, rng: Generator, *, noise: bool = True, units_per_metre: int = 1000) -> Photo:
    """Render a room: colours with shading, shadows and sensor noise; depth with noise and holes."""
    rays = pixel_rays(camera)
    origin = camera.world_from_camera[:3, 3].numpy()
    hit = room.embree.run(
        np.broadcast_to(origin, rays.shape).astype(np.float32), rays.astype(np.float32), query="INTERSECT", output=True
    )
    triangle = np.maximum(hit["primID"], 0)
    z = hit["tfar"].astype(np.float64)  # rays have z = 1 in camera axes, so their length is the depth
    z[hit["primID"] < 0] = 0
    points = origin + rays * z[:, None]
    normals = hit["Ng"] / np.sqrt(np.maximum(_dot(hit["Ng"], hit["Ng"]), 1e-20))[:, None]
    normals *= -np.sign(_dot(normals, rays))[:, None]
    color = albedo(room, triangle, points) * _light(room, points, normals)
    if noise:
        color *= rng.uniform(0.8, 1.15) * (1 + rng.normal(0, 0.03, 3))
    color = _GAMMA[(np.clip(color, 0, 1) * 1023 + 0.5).astype(np.int64)]
    depth = z
    if noise:
        color += 0.012 * rng.standard_normal(color.shape, dtype=np.float32)
        depth = _sensor_depth(z, rays, normals, rng)
    shape = (camera.height, camera.width)
    return Photo(
        camera,
        (np.clip(color, 0, 1) * 255 + 0.5).astype(np.uint8).reshape(*shape, 3),
        np.round(depth * units_per_metre).astype(np.uint16).reshape(shape),
        units_per_metre,
        np.where(hit["primID"] < 0, UNLABELLED, room.labels[triangle]).astype(np.uint8).reshape(shape),
        normals.astype(np.float32).reshape(*shape, 3),
    )


def seen_by(room: Room, camera: Camera, points: Array) -> NDArray[np.integer[Any]]:
    """Find the points that a camera sees, by one ray per point."""
    local = camera.camera_from_world(torch.from_numpy(points)).numpy()
    z = np.maximum(local[:, 2], 1e-6)
    reach = np.array([camera.width, camera.height]) / 2 / camera.focal.numpy()
    index = np.flatnonzero((local[:, 2] > 0.1) & (np.abs(local[:, :2] / z[:, None]) < reach).all(1))
    eye = camera.world_from_camera[:3, 3].numpy()
    rays = points[index] - eye
    origin = np.broadcast_to(eye, rays.shape).astype(np.float32)
    hit = room.embree.run(origin, rays.astype(np.float32), query="DISTANCE")
    seen: NDArray[np.integer[Any]] = index[hit > 1 - 5e-3]
    return seen


def albedo(room: Room, triangle: NDArray[np.integer[Any]], points: Array) -> Array:
    """Return the linear colour of surface points: solid textures in room coordinates."""
    of_point = room.material_of_triangle[triangle]
    looks = np.array([(look.texture, *look.first, *look.second, look.scale, look.phase) for look in room.materials])
    kind, first, second = looks[of_point, 0], looks[of_point, 1:4], looks[of_point, 4:7]
    local = rotate(points - room.world_from_room[:3, 3], room.world_from_room[:3, :3].T)
    position = local / looks[of_point, 7:8] + looks[of_point, 8:9]
    mix = np.zeros(len(points))
    chosen = {name: np.flatnonzero(kind == index) for index, name in enumerate(TEXTURES)}
    rows = chosen["plain"]
    mix[rows] = _noise(position[rows] * 0.5) * 0.35
    rows = chosen["wood"]
    grain = position[rows] * np.array([1.0, 6.0, 6.0])
    mix[rows] = _noise(grain) * 0.7 + 0.3 * (np.sin(position[rows, 2] * 6 + 4 * _noise(grain * 0.3)) > 0.7)
    rows = chosen["tiles"]
    mix[rows] = (np.abs(position[rows] % 1 - 0.5) > 0.47).any(1)
    rows = chosen["stripes"]
    mix[rows] = np.sin(2 * np.pi * (position[rows, 0] + position[rows, 1])) > 0
    rows = chosen["fabric"]
    mix[rows] = _noise(position[rows])
    color = first + (second - first) * mix[:, None]
    rows = chosen["painting"]
    channels = np.stack([_noise(position[rows] * 1.5 + 17.0 * channel) for channel in range(3)], axis=1)
    color[rows] = np.clip(channels * 1.6 - 0.3, 0, 1) * 0.7 + 0.3 * first[rows]
    rows = chosen["outdoors"]
    ground = local[rows, 2] < 1.35 + 0.2 * _noise(position[rows] * 3)
    leaves = np.array([0.25, 0.4, 0.2]) * (0.6 + 0.6 * _noise(position[rows] * 8))[:, None]
    color[rows] = np.where(ground[:, None], leaves, first[rows] * 1.3)
    rows = chosen["planks"]
    board = np.floor(position[rows, 1] * 1.2)
    seam = np.abs(position[rows, 1] * 1.2 % 1 - 0.5) > 0.47
    tone = 0.5 + 0.5 * np.sin(board * 12.9 + np.floor(position[rows, 0] * 0.15 + board * 0.37) * 78.2)
    planks = np.where(seam, 1.4, 0.7 * tone + 0.3 * _noise(position[rows] * np.array([0.8, 6.0, 6.0])))
    color[rows] = first[rows] + (second - first)[rows] * planks[:, None]
    rows = chosen["checks"]
    checks = np.floor(position[rows] + 1e-4).sum(1) % 2
    color[rows] = first[rows] + (second - first)[rows] * checks[:, None]
    rows = chosen["bricks"]
    course = np.floor(position[rows, 2] * 2)
    across = (position[rows, 0] + position[rows, 1] + course * 0.5) % 1
    joint = (across < 0.05) | (position[rows, 2] * 2 % 1 < 0.1)
    color[rows] = np.where(
        joint[:, None], second[rows], first[rows] * (0.9 + 0.2 * _noise(position[rows] * 2))[:, None]
    )
    rows = chosen["marble"]
    vein = np.abs(np.sin(position[rows].sum(1) + 7 * _noise(position[rows] * 0.9) + 3 * _noise(position[rows] * 3)))
    color[rows] = second[rows] + (first - second)[rows] * np.minimum(vein * 2.5, 1)[:, None]
    linear: Array = _LINEAR[(np.clip(color, 0, 1.5) * 1023 + 0.5).astype(np.int64)]
    return linear


def _light(room: Room, points: Array, normals: Array) -> Array:
    """Return the light at each point, RGB: ambient light and the lamps, with shadows."""
    total = np.repeat((room.ambient[0] + room.ambient[1] * normals[:, 2:]), 3, axis=1)
    start = (points + normals * 2e-3).astype(np.float32)
    to_lamp = np.ones(len(points), dtype=np.float32)  # in units of the ray's length: it ends at the lamp
    for position, strength in zip(room.lights, room.light_colors, strict=True):
        toward = position.astype(np.float32) - start
        squared = _dot(toward, toward)
        facing = _dot(toward, normals) / np.sqrt(squared)
        lit = np.flatnonzero(facing > 0)
        lit = lit[room.embree.run(start[lit], toward[lit], to_lamp[: len(lit)], query="OCCLUDED") == -1]
        total[lit] += (facing[lit] / (0.6 + 0.35 * squared[lit]))[:, None] * strength
    return total


def _sensor_depth(z: Array, rays: Array, normals: Array, rng: Generator) -> Array:
    """Simulate a structured-light depth sensor: noise that grows with distance, holes at grazing angles."""
    noisy = z + rng.normal(0, 1, z.shape) * (0.001 + 0.0015 * np.maximum(z - 0.4, 0) ** 2)
    facing = np.abs(_dot(normals, rays)) / np.sqrt(_dot(rays, rays))
    holes = (facing < 0.12) | (z < 0.3) | (z > 8) | (rng.random(z.shape) < 0.01)
    return np.where(holes, 0, noisy)


def _noise(position: Array) -> Array:
    """Return smooth noise in [0, 1] at each position: trilinear interpolation of a fixed random lattice."""
    cell = np.floor(position)
    part = (position - cell).astype(np.float32)
    part = part * part * (3 - 2 * part)
    grid = torch.from_numpy(((cell % 32).astype(np.float32) + part) / 16 - 1)
    value = torch.nn.functional.grid_sample(_LATTICE, grid[None, None, None], align_corners=True)
    return value.numpy().reshape(-1).astype(np.float64)


def _dot(a: Array, b: Array) -> Array:
    """Return the scalar product of each pair of rows."""
    product: Array = np.einsum("ij,ij->i", a, b)
    return product
