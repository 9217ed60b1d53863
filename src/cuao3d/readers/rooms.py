"""The embedded dataset: furnished rooms made by code, rendered to RGB-D by ray casting, with exact labels.

Five kinds of room in turn hold all of ScanNet's 20 classes. Everything follows from the seed; each room draws its own
style (colours, textures, lights, exposure, yaw and offset), so rooms of different seeds never share one. Teachers are
trained on seeds from `TEACHER_SEEDS` on; nothing else uses those.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh
from numpy.typing import NDArray
from torch import Tensor

from cuao3d.readers.furniture import SHAPES
from cuao3d.readers.joinery import FLOOR, WALL, Array, Furniture, Generator, Material, material
from cuao3d.readers.raycast import Room, View, albedo, render, seen_by
from cuao3d.scene import UNLABELLED, Camera, Frame, Scene, Split

KINDS = ("bedroom", "living room", "kitchen", "bathroom", "office")
"""Kinds of room; a room's kind is its seed modulo 5."""

TEACHER_SEEDS = 1_000_000
"""Seeds from here on are kept for training teachers."""

WIDTH, HEIGHT, FOCAL = 320, 240, 288.935
"""Size, pixels, and focal length, pixels, of the rendered views: those of ScanNet at 320 x 240."""

POINT_SPACING = 0.025
"""Mean distance of the cloud's points, metres."""

UNUSED_VIEWS = 4
"""Views that the scan of a room has and its frames lack: some points are seen by no frame, as in real captures."""

# What stands in each kind of room: name, chance that it is there; an item may be listed several times.
_CONTENTS: dict[str, tuple[tuple[str, float], ...]] = {
    "bedroom": (
        ("door", 1), ("window", 1), ("bed", 1), ("wardrobe", 0.9), ("curtain", 0.9), ("dresser", 0.9), ("desk", 0.5),
        ("bookshelf", 0.5), ("picture", 0.9), ("dresser", 0.5), ("clutter", 0.7), ("chair", 0.4), ("picture", 0.4),
        ("sofa", 0.25),
    ),
    "living room": (
        ("door", 1), ("window", 1), ("sofa", 1), ("bookshelf", 0.9), ("curtain", 0.9), ("sideboard", 0.8),
        ("sofa", 0.4), ("picture", 0.9), ("table", 1), ("clutter", 0.9), ("chair", 0.7), ("picture", 0.7),
        ("dresser", 0.3), ("desk", 0.2),
    ),
    "kitchen": (
        ("door", 1), ("window", 1), ("counter", 1), ("refrigerator", 1), ("counter", 0.9), ("table", 0.9),
        ("wall_cabinet", 0.8), ("curtain", 0.3), ("wall_cabinet", 0.6), ("picture", 0.6), ("clutter", 0.6),
        ("sideboard", 0.2), ("refrigerator", 0.1),
    ),
    "bathroom": (
        ("door", 1), ("bathtub", 1), ("toilet", 1), ("sink", 1), ("window", 0.7), ("dresser", 0.5),
        ("picture", 0.4), ("clutter", 0.7), ("wall_cabinet", 0.3), ("sink", 0.15),
    ),
    "office": (
        ("door", 1), ("window", 1), ("desk", 1), ("desk", 0.7), ("bookshelf", 0.9), ("wardrobe", 0.4),
        ("picture", 0.8), ("table", 0.5), ("curtain", 0.5), ("clutter", 0.8), ("bookshelf", 0.4), ("sofa", 0.3),
        ("dresser", 0.3), ("refrigerator", 0.15),
    ),
}  # fmt: skip
_SIZES = {"bedroom": (3.2, 4.4), "living room": (3.8, 5.2), "kitchen": (3.2, 4.4), "bathroom": (2.3, 3.2)}
_SIZES["office"] = (3.4, 4.6)
_FREE_STANDING = ("table",)


class Rooms(Sequence[Scene]):
    """A dataset of made rooms, rendered when asked for."""

    def __init__(self, seeds: Sequence[int], *, split: Split = "train", num_views: int = 12) -> None:
        if any(seed >= TEACHER_SEEDS for seed in seeds):
            raise ValueError(f"Seeds from {TEACHER_SEEDS} on are kept for training teachers; choose smaller ones.")
        self.seeds = tuple(seeds)
        self.split: Split = split
        self.num_views = num_views
        self.names = tuple(f"{self.split}-{KINDS[seed % len(KINDS)].replace(' ', '-')}-{seed}" for seed in self.seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> Scene:  # type: ignore[override]
        return make_room(self.seeds[index], name=self.names[index], split=self.split, num_views=self.num_views)


def make_room(
    seed: int, *, name: str | None = None, split: Split = "train", num_views: int = 12, noise: bool = True
) -> Scene:
    """Furnish a room, photograph it and scan it.

    Args:
        seed: Decides everything; the kind of room is `KINDS[seed % 5]`.
        name: Name of the scene; the seed unless told.
        split: Part of the dataset that the room belongs to.
        num_views: Number of 320 x 240 views, each aimed at a piece of furniture.
        noise: Whether images and depth have a sensor's noise and holes; depth without noise is exact to a millimetre.

    Returns:
        The scene: frames whose depth is whole millimetres, and points sampled from all surfaces that were seen
        from somewhere in the room, with exact normals and classes (scannet20).
    """
    rng = np.random.default_rng([seed, 2025])
    room = furnish(rng, KINDS[seed % len(KINDS)])
    views = photograph(room, rng, num_views, noise=noise)
    frames = tuple(
        Frame(
            f"{index:06d}",
            view.camera,
            partial(_as_image, view.image),
            partial(_as_depth, view.depth),
        )
        for index, view in enumerate(views)
    )
    points, labels, normals, colors = _scan(room, rng, [view.camera for view in views])
    return Scene(
        name=name or f"room-{seed}",
        points=torch.from_numpy(points.astype(np.float32)),
        frames=frames,
        colors=torch.from_numpy(colors.astype(np.float32)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        label_set="scannet20",
        normals=torch.from_numpy(normals.astype(np.float32)),
        split=split,
        occlusion_tolerance=0.05,
    )


def furnish(rng: Generator, kind: str) -> Room:
    """Build a room of one of `KINDS` and place its furniture where it does not collide."""
    low, high = _SIZES[kind]
    size = np.array([rng.uniform(low, high), rng.uniform(low, high) * 0.92, rng.uniform(2.4, 2.7)])
    layout = _Layout(rng, size)
    for name, chance in _CONTENTS[kind]:
        if rng.random() >= chance:
            continue
        if name in _FREE_STANDING:
            layout.place_freely(name)
        elif name == "curtain":
            layout.hang_before_window()
        else:
            layout.place_at_wall(name)
    layout.build_shell(kind)
    yaw, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-3, 3, 3)
    world_from_room = np.eye(4)
    world_from_room[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    world_from_room[:3, 3] = offset
    blocks = [block @ world_from_room[:3, :3].T + offset for block in layout.triangles]
    counts = [len(block) for block in blocks]
    triangles = np.concatenate(blocks)
    embree = rtcore_scene.EmbreeScene()
    TriangleMesh(embree, triangles.astype(np.float32))
    num_lights = int(rng.integers(2, 4))
    lights = np.c_[rng.uniform(0.15, 0.85, (num_lights, 2)) * size[:2], np.full(num_lights, size[2] - 0.25)]
    tint = 1 + rng.normal(0, 0.06, (num_lights, 3))
    return Room(
        triangles=triangles,
        labels=np.repeat(layout.labels, counts),
        material_of_triangle=np.repeat(np.arange(len(blocks)), counts),
        materials=tuple(layout.materials),
        world_from_room=world_from_room,
        size=size,
        boxes=np.array(layout.boxes),
        lights=lights @ world_from_room[:3, :3].T + offset,
        light_colors=rng.uniform(0.6, 1.3, (num_lights, 1)) * tint,
        embree=embree,
    )


def photograph(room: Room, rng: Generator, num_views: int, *, noise: bool = True) -> list[View]:
    """Take views of a room, each aimed at a piece of furniture; as many at a time as PyTorch has threads."""
    cameras = _aim(room, rng, num_views)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        jobs = zip(cameras, rng.spawn(num_views), strict=True)
        return list(pool.map(lambda job: render(room, *job, noise=noise), jobs))


class _Layout:
    """Where things stand, in room coordinates (a corner of the floor at the origin)."""

    def __init__(self, rng: Generator, size: Array) -> None:
        self.rng, self.size = rng, size
        self.triangles: list[Array] = []
        self.labels: list[int] = []
        self.materials: list[Material] = []
        self.boxes: list[Array] = []
        self.openings: list[list[tuple[float, float, float, float]]] = [[], [], [], []]
        self.windows: list[tuple[int, float]] = []

    def place_at_wall(self, name: str) -> None:
        """Stand an object with its back to a wall, if a free place is found."""
        item = SHAPES[name](self.rng)
        lower, upper = _bounds(item)
        for _ in range(40):
            wall = int(self.rng.integers(4))
            length = self.size[wall % 2]
            if upper[0] - lower[0] > length - 0.1:
                continue
            along = self.rng.uniform(0.05 - lower[0], length - 0.05 - upper[0])
            back = 0.0 if name in ("door", "window", "picture", "wall_cabinet") else self.rng.uniform(0.0, 0.04)
            if self._put(item, *self._at_wall(wall, along, back)):
                if item.opening:
                    left, right, low, high = item.opening
                    self.openings[wall].append((along + left, along + right, low, high))
                if name == "window":
                    self.windows.append((wall, along))
                if name == "desk":
                    self._seat(wall, along, upper[1])
                return

    def hang_before_window(self) -> None:
        """Hang a curtain before a window that was placed."""
        if self.windows:
            wall, along = self.windows[int(self.rng.integers(len(self.windows)))]
            item = SHAPES["curtain"](self.rng)
            rotation, position = self._at_wall(wall, along, 0.0)
            if not self._put(item, rotation, position, ignore_windows=True):
                self._put(SHAPES["curtain"](self.rng), rotation, position, ignore_windows=True)

    def place_freely(self, name: str) -> None:
        """Stand an object somewhere on the floor, turned at will, with chairs around it if it is a high table."""
        item = SHAPES[name](self.rng)
        lower, upper = _bounds(item)
        for _ in range(40):
            angle = self.rng.integers(4) * np.pi / 2 + self.rng.normal(0, 0.15)
            position = np.array([*self.rng.uniform(0.7, np.maximum(self.size[:2] - 0.7, 0.71)), 0.0])
            if self._put(item, _turn(angle), position):
                if upper[2] > 0.6:
                    for side in range(int(self.rng.integers(2, 5))):
                        reach = (upper[1] - lower[1]) / 2 if side % 2 == 0 else (upper[0] - lower[0]) / 2
                        center = position + _turn(angle) @ np.array([0, (lower[1] + upper[1]) / 2, 0])
                        self._draw_up(center, angle + side * np.pi / 2, reach)
                return

    def build_shell(self, kind: str) -> None:
        """Add floor, ceiling and walls with their openings, and a skirting board."""
        x, y, z = self.size
        skirting = material(self.rng, "front")
        tiled = kind == "bathroom" or (kind == "kitchen" and self.rng.random() < 0.4)
        wall_look = material(self.rng, "tiled wall" if tiled else "wall")
        self._add(_rectangle((0, 0, 0), (x, 0, 0), (0, y, 0)), FLOOR, material(self.rng, "floor"))
        self._add(_rectangle((0, 0, z), (x, 0, 0), (0, y, 0)), UNLABELLED, material(self.rng, "wall"))
        for wall in range(4):
            rotation, corner = self._at_wall(wall, 0.0, 0.0)
            accent = wall_look if self.rng.random() < 0.8 else material(self.rng, "wall")
            for left, right, low, high in _around(self.openings[wall], float(self.size[wall % 2]), float(z)):
                panel = _rectangle((left, 0, low), (right - left, 0, 0), (0, 0, high - low))
                self._add(panel @ rotation.T + corner, WALL, accent)
                if low == 0:
                    board = Furniture(self.rng, WALL)
                    board.box((left, right), (0, 0.015), (0, 0.08), skirting)
                    self._add(board.triangles[0] @ rotation.T + corner, WALL, skirting)

    def _at_wall(self, wall: int, along: float, back: float) -> tuple[Array, Array]:
        """Return rotation and position of an object at `along` metres of a wall, `back` metres off it."""
        angle = wall * np.pi / 2
        corner = np.array([(0, 0), (self.size[0], 0), self.size[:2], (0, self.size[1])][wall])
        direction, inward = _turn(angle)[:2, 0], _turn(angle)[:2, 1]
        return _turn(angle), np.array([*(corner + direction * along + inward * back), 0.0])

    def _seat(self, wall: int, along: float, depth: float) -> None:
        """Draw a chair up to a desk."""
        _, position = self._at_wall(wall, along + float(self.rng.uniform(-0.1, 0.1)), depth)
        self._draw_up(position, wall * np.pi / 2, 0.0)

    def _draw_up(self, center: Array, angle: float, reach: float) -> None:
        """Put a chair `reach` metres from `center` in direction +y of `angle`, looking back at it."""
        item = SHAPES["chair"](self.rng)
        away = reach + _bounds(item)[1][1] + self.rng.uniform(0.04, 0.2)
        position = center + _turn(angle) @ np.array([self.rng.normal(0, 0.08), away, 0.0])
        self._put(item, _turn(angle + np.pi + self.rng.normal(0, 0.2)), position)

    def _put(self, item: Furniture, rotation: Array, position: Array, *, ignore_windows: bool = False) -> bool:
        """Add an object unless it collides with another or leaves the room."""
        blocks = [block @ rotation.T + position for block in item.triangles]
        corners = np.concatenate(blocks).reshape(-1, 3)
        lower, upper = corners.min(0), corners.max(0)
        inner_lower, inner_upper = lower.copy(), upper.copy()
        if item.opening:  # what lies inside the wall does not count
            inner_lower[:2], inner_upper[:2] = np.maximum(lower[:2], 0), np.minimum(upper[:2], self.size[:2])
        if (inner_lower[:2] < -0.01).any() or (inner_upper[:2] > self.size[:2] + 0.01).any():
            return False
        front = rotation @ np.array([0.0, item.clearance, 0.0])
        box = np.array([np.minimum(inner_lower, inner_lower + front), np.maximum(inner_upper, inner_upper + front)])
        for other in self.boxes:
            is_window = other[0][2] > 0.7 and other[1][2] - other[0][2] < 1.4 and ignore_windows
            if not is_window and (box[0] < other[1] + 0.02).all() and (other[0] < box[1] + 0.02).all():
                return False
        self.boxes.append(box)
        for block, label, look in zip(blocks, item.labels, item.materials, strict=True):
            self._add(block, label, look)
        return True

    def _add(self, triangles: Array, label: int, look: Material) -> None:
        self.triangles.append(triangles)
        self.labels.append(label)
        self.materials.append(look)


def _aim(room: Room, rng: Generator, num_views: int) -> list[Camera]:
    """Choose cameras at eye height in free places, each aimed at a piece of furniture in turn."""
    targets = rng.permutation(len(room.boxes))
    cameras: list[Camera] = []
    while len(cameras) < num_views:
        lower, upper = room.boxes[targets[len(cameras) % len(targets)]]
        target = lower + (upper - lower) * rng.uniform(0.3, 0.7, 3)
        best: Array | None = None
        best_score = -np.inf
        for _ in range(24):
            eye = np.array([*rng.uniform(0.25, room.size[:2] - 0.25), rng.uniform(1.25, 1.75)])
            inside = ((eye > room.boxes[:, 0] - 0.2) & (eye < room.boxes[:, 1] + 0.2)).all(1).any()
            distance = np.linalg.norm((target - eye)[:2])
            score = float(-abs(distance - rng.uniform(1.6, 3.0)) - 10 * inside)
            if score > best_score:
                best, best_score = eye, score
        assert best is not None
        cameras.append(_look_at(room, best, target + rng.normal(0, 0.15, 3), rng.normal(0, 0.04)))
    return cameras


def _look_at(room: Room, eye: Array, target: Array, roll: float) -> Camera:
    """Return the camera at `eye` that looks at `target`, both in room coordinates."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    right, down = np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right
    room_from_camera = np.eye(4)
    room_from_camera[:3] = np.stack([right, down, forward, eye], axis=1)
    return _camera(room.world_from_room @ room_from_camera)


def _camera(world_from_camera: Array) -> Camera:
    return Camera(
        torch.tensor([FOCAL, FOCAL], dtype=torch.float64),
        torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2], dtype=torch.float64),
        WIDTH,
        HEIGHT,
        torch.from_numpy(world_from_camera),
    )


def _scan(room: Room, rng: Generator, cameras: list[Camera]) -> tuple[Array, NDArray[np.integer[Any]], Array, Array]:
    """Sample the surfaces evenly and keep what the cameras, or `UNUSED_VIEWS` more, can see."""
    edges = room.triangles[:, 1:] - room.triangles[:, :1]
    cross = np.cross(edges[:, 0], edges[:, 1])
    doubled = np.linalg.norm(cross, axis=1)
    count = int(doubled.sum() / 2 / POINT_SPACING**2)
    triangle = rng.choice(len(doubled), count, p=doubled / doubled.sum())
    a, b = np.sort(rng.random((2, count)), axis=0)
    weights = np.stack([a, b - a, 1 - b], axis=1)
    points: Array = (room.triangles[triangle] * weights[..., None]).sum(1)
    seen = np.zeros(count, dtype=bool)
    for camera in [*cameras, *_aim(room, rng, UNUSED_VIEWS)]:
        seen[seen_by(room, camera, points)] = True
    seen &= room.labels[triangle] != UNLABELLED
    triangle, points = triangle[seen], points[seen]
    normals = cross[triangle] / doubled[triangle, None]
    eye = room.world_from_room[:3, :3] @ (room.size / 2) + room.world_from_room[:3, 3]
    normals = np.where(((eye - points) * normals).sum(1, keepdims=True) < 0, -normals, normals)
    colors = np.clip(albedo(room, triangle, points), 0, 1) ** (1 / 2.2)
    return points, room.labels[triangle], normals, colors


def _around(
    openings: list[tuple[float, float, float, float]], length: float, height: float
) -> list[tuple[float, float, float, float]]:
    """Cut a wall into rectangles (x from, x to, z from, z to) that leave its openings free."""
    x = sorted({0.0, length, *(edge for hole in openings for edge in hole[:2])})
    z = sorted({0.0, height, *(edge for hole in openings for edge in hole[2:])})
    panels = []
    for left, right in pairwise(x):
        for low, high in pairwise(z):
            middle = ((left + right) / 2, (low + high) / 2)
            if not any(h[0] < middle[0] < h[1] and h[2] < middle[1] < h[3] for h in openings):
                panels.append((left, right, low, high))
    return panels


def _rectangle(corner: Sequence[float], first: Sequence[float], second: Sequence[float]) -> Array:
    """Return the two triangles of a parallelogram."""
    a, u, v = np.array(corner, dtype=np.float64), np.array(first), np.array(second)
    return np.array([[a, a + u, a + u + v], [a, a + u + v, a + v]], dtype=np.float64)


def _turn(angle: float) -> Array:
    """Return the rotation about z."""
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def _bounds(item: Furniture) -> tuple[Array, Array]:
    corners = np.concatenate(item.triangles).reshape(-1, 3)
    return corners.min(0), corners.max(0)


def _as_image(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1).contiguous()


def _as_depth(millimetres: NDArray[np.uint16]) -> Tensor:
    return torch.from_numpy(millimetres.astype(np.float32) / 1000)
