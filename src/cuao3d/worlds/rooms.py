"""The embedded dataset: procedural furnished rooms, rendered to RGB-D by ray casting, with exact labels.

Five kinds of room cover all 20 classes of ScanNet. Everything is determined by the seed. Each room draws its own style
(colours, textures, lights, exposure, yaw and offset), so no two seeds share one. Teachers are trained on seeds from
`TEACHER_SEEDS` on; nothing else uses these.
"""

from collections.abc import Sequence

import numpy as np
import torch

from cuao3d.errors import InputError
from cuao3d.scene import Camera, Scene, Source, Split
from cuao3d.worlds.furniture import SHAPES
from cuao3d.worlds.joinery import Array, Generator, material
from cuao3d.worlds.layout import Layout
from cuao3d.worlds.rendering import Photo, Room
from cuao3d.worlds.survey import as_scene, look_at, sample_surfaces, scan, somewhere, take_views

KINDS = ("bedroom", "living room", "kitchen", "bathroom", "office")
"""Kinds of room; a room's kind is its seed modulo 5."""

TEACHER_SEEDS = 1_000_000
"""Seeds from here on are reserved for training teachers."""

WIDTH, HEIGHT, FOCAL = 320, 240, 288.935
"""Size, pixels, and focal length, pixels, of the rendered views: those of ScanNet at 320 x 240."""

POINT_SPACING = 0.025
"""Mean spacing of the cloud's points, metres."""

UNUSED_VIEWS = 4
"""Extra views of the scan without a frame: some points are seen by no frame, as in real captures."""

# Objects of each kind of room: name, probability; an item may be listed several times.
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


class Rooms(Sequence[Scene]):
    """A dataset of synthetic rooms, rendered on access.

    Args:
        seeds: A room for each; see `make_room`.
        split: Part of the dataset that all of them belong to.
        num_views: Number of 320 x 240 views of each room.

    Attributes:
        names: Name of each room.

    Raises:
        InputError: A seed is one of those kept for training the small teachers, from 1,000,000 on.
    """

    def __init__(self, seeds: Sequence[int], *, split: Split = "train", num_views: int = 12) -> None:
        if any(seed >= TEACHER_SEEDS for seed in seeds):
            raise InputError(f"Seeds from {TEACHER_SEEDS} on are reserved for training teachers; choose smaller ones.")
        self.seeds = tuple(seeds)
        self.split: Split = split
        self.num_views = num_views
        self.names = tuple(f"{self.split}-{KINDS[seed % len(KINDS)].replace(' ', '-')}-{seed}" for seed in self.seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    def source(self, index: int) -> Source:
        """Return what decides a room.

        Args:
            index: Its place among the seeds.
        """
        return Source({"seed": self.seeds[index], "split": self.split, "num_views": self.num_views})

    def __getitem__(self, index: int) -> Scene:  # type: ignore[override]
        """Return a room; see `make_room`.

        Args:
            index: Its place among the seeds.
        """
        return make_room(self.seeds[index], name=self.names[index], split=self.split, num_views=self.num_views)


def make_room(
    seed: int, *, name: str | None = None, split: Split = "train", num_views: int = 12, noise: bool = True
) -> Scene:
    """Furnish a room, render its views and scan it.

    Args:
        seed: Determines everything; the kind of room is `KINDS[seed % 5]`.
        name: Name of the scene; by default it contains the seed.
        split: Split that the room belongs to.
        num_views: Number of 320 x 240 views, each aimed at a piece of furniture.
        noise: Whether images and depth have sensor noise and holes; depth without noise is exact to a millimetre.

    Returns:
        The scene: frames with depth in whole millimetres, and points sampled from all surfaces that are visible from
        the frames or a few extra views, with exact normals and classes (scannet20).
    """
    rng = np.random.default_rng([seed, 2025])
    room = furnish(rng, KINDS[seed % len(KINDS)])
    views = photograph(room, rng, num_views, noise=noise)
    samples = sample_surfaces(room, rng, POINT_SPACING)
    cameras = [*(view.camera for view in views), *_aim(room, rng, UNUSED_VIEWS)]
    return as_scene(
        name or f"room-{seed}",
        [f"{index:06d}" for index in range(len(views))],
        views,
        scan(room, samples, cameras, normals_towards="middle"),
        label_set="scannet20",
        split=split,
        occlusion_tolerance=0.05,
    )


def furnish(rng: Generator, kind: str) -> Room:
    """Build a room of one of `KINDS` and place its furniture without collisions."""
    low, high = _SIZES[kind]
    size = np.array([rng.uniform(low, high), rng.uniform(low, high) * 0.92, rng.uniform(2.4, 2.7)])
    layout = Layout(rng, size, SHAPES)
    layout.furnish(_CONTENTS[kind])
    _build_shell(layout, kind)
    world_from_room = somewhere(rng)
    num_lights = int(rng.integers(2, 4))
    lights = np.c_[rng.uniform(0.15, 0.85, (num_lights, 2)) * size[:2], np.full(num_lights, size[2] - 0.25)]
    tint = 1 + rng.normal(0, 0.06, (num_lights, 3))
    return layout.built(world_from_room, lights, rng.uniform(0.6, 1.3, (num_lights, 1)) * tint)


def photograph(room: Room, rng: Generator, num_views: int, *, noise: bool = True) -> list[Photo]:
    """Render views of a room, each aimed at a piece of furniture."""
    return take_views(room, _aim(room, rng, num_views), rng, noise=noise)


def _build_shell(layout: Layout, kind: str) -> None:
    """Draw the materials of floor, ceiling, walls and skirting board, and build them."""
    rng = layout.rng
    skirting = material(rng, "front")
    tiled = kind == "bathroom" or (kind == "kitchen" and rng.random() < 0.4)
    wall_look = material(rng, "tiled wall" if tiled else "wall")
    floor, ceiling = material(rng, "floor"), material(rng, "wall")
    walls = [wall_look if rng.random() < 0.8 else material(rng, "wall") for _ in range(4)]
    layout.build_shell(floor, ceiling, walls, skirting)


def _aim(room: Room, rng: Generator, num_views: int) -> list[Camera]:
    """Choose cameras at eye height in free space, aimed at one piece of furniture after another."""
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
        cameras.append(
            _camera(room.world_from_room @ look_at(best, target + rng.normal(0, 0.15, 3), rng.normal(0, 0.04)))
        )
    return cameras


def _camera(world_from_camera: Array) -> Camera:
    return Camera(
        torch.tensor([FOCAL, FOCAL], dtype=torch.float64),
        torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2], dtype=torch.float64),
        WIDTH,
        HEIGHT,
        torch.from_numpy(world_from_camera),
    )
