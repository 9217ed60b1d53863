"""The embedded dataset: procedural furnished rooms, rendered to RGB-D by ray casting, with exact labels.

Eight kinds of room hold a hundred kinds of things (`kinds.csv`), which cover all 20 classes of ScanNet. Everything is
determined by the seed. Each room draws its own style (colours, textures, lights, exposure, yaw and offset), so no two
seeds share one. Teachers are trained on seeds from `TEACHER_SEEDS` on; nothing else uses these.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from cuao3d.errors import InputError
from cuao3d.labels import convert
from cuao3d.labels import label_set as labels_of
from cuao3d.scene import Camera, Scene, Source, Split
from cuao3d.worlds.joinery import CLASS, Array, Generator, material
from cuao3d.worlds.kinds import contents, kinds
from cuao3d.worlds.layout import Layout
from cuao3d.worlds.rendering import Photo, Room
from cuao3d.worlds.survey import as_scene, look_at, sample_surfaces, scan, somewhere, take_views

KINDS = ("bedroom", "living room", "kitchen", "bathroom", "office", "nursery", "studio", "laundry")
"""Kinds of room; a room's kind is its seed modulo 8."""

TEACHER_SEEDS = 1_000_000
"""Seeds from here on are reserved for training teachers."""

WIDTH, HEIGHT, FOCAL = 320, 240, 288.935
"""Size, pixels, and focal length, pixels, of the rendered views: those of ScanNet at 320 x 240."""

WORLD = 2
"""Version of the rooms: the same seed made other rooms before."""

POINT_SPACING = 0.025
"""Mean spacing of the cloud's points, metres."""

HIGHEST_AIM = 1.3
"""Greatest height that cameras are aimed at, metres: people who scan a room by hand see its floor, not its ceiling."""

UNUSED_VIEWS = 4
"""Extra views of the scan without a frame: some points are seen by no frame, as in real captures."""

_SIZES = {
    "bedroom": (3.4, 4.6),
    "living room": (4.0, 5.4),
    "kitchen": (3.4, 4.6),
    "bathroom": (2.5, 3.4),
    "office": (3.5, 4.8),
    "nursery": (3.4, 4.6),
    "studio": (4.0, 5.4),
    "laundry": (2.9, 3.9),
}
"""Bounds of the sides of each kind, metres."""


class Rooms(Sequence[Scene]):
    """A dataset of synthetic rooms, rendered on access.

    Args:
        seeds: A room for each; see `make_room`.
        split: Part of the dataset that all of them belong to.
        num_views: Number of 320 x 240 views of each room.
        label_set: Label set of the scenes; see `make_room`.

    Attributes:
        names: Name of each room.

    Raises:
        InputError: A seed is one of those kept for training the small teachers, from 1,000,000 on.
    """

    def __init__(
        self, seeds: Sequence[int], *, split: Split = "train", num_views: int = 12, label_set: str = "scannet20"
    ) -> None:
        if any(seed >= TEACHER_SEEDS for seed in seeds):
            raise InputError(f"Seeds from {TEACHER_SEEDS} on are reserved for training teachers; choose smaller ones.")
        self.seeds = tuple(seeds)
        self.split: Split = split
        self.num_views, self.label_set = num_views, label_set
        self.names = tuple(f"{self.split}-{KINDS[seed % len(KINDS)].replace(' ', '-')}-{seed}" for seed in self.seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    def source(self, index: int) -> Source:
        """Return what decides a room.

        Args:
            index: Its place among the seeds.
        """
        return Source(
            {
                "world": WORLD,
                "seed": self.seeds[index],
                "split": self.split,
                "num_views": self.num_views,
                "label_set": self.label_set,
            }
        )

    def __getitem__(self, index: int) -> Scene:  # type: ignore[override]
        """Return a room; see `make_room`.

        Args:
            index: Its place among the seeds.
        """
        return make_room(
            self.seeds[index],
            name=self.names[index],
            split=self.split,
            num_views=self.num_views,
            label_set=self.label_set,
        )


def make_room(
    seed: int,
    *,
    name: str | None = None,
    split: Split = "train",
    num_views: int = 12,
    noise: bool = True,
    label_set: str = "scannet20",
) -> Scene:
    """Furnish a room, render its views and scan it.

    Args:
        seed: Determines everything; the kind of room is `KINDS[seed % 8]`.
        name: Name of the scene; by default it contains the seed.
        split: Split that the room belongs to.
        num_views: Number of 320 x 240 views, each aimed at a piece of furniture.
        noise: Whether images and depth have sensor noise and holes; depth without noise is exact to a millimetre.
        label_set: Label set of the scene: made100, in which everything has a class, or one that it can be converted to
            through NYU40, in which some kinds of things are unlabelled.

    Returns:
        The scene: frames with depth in whole millimetres, and points sampled from all surfaces that are visible from
        the frames or a few extra views, but for the ceiling, which scans from the hand miss; with exact normals and
        classes.
    """
    rng = np.random.default_rng([seed, 2025])
    room = furnish(rng, KINDS[seed % len(KINDS)])
    views = photograph(room, rng, num_views, noise=noise)
    samples = sample_surfaces(room, rng, POINT_SPACING)
    cameras = [*(view.camera for view in views), *_aim(room, rng, UNUSED_VIEWS)]
    scene = as_scene(
        name or f"room-{seed}",
        [f"{index:06d}" for index in range(len(views))],
        views,
        scan(room, samples, cameras, normals_towards="middle", without=[CLASS["ceiling"]]),
        label_set="made100",
        split=split,
        occlusion_tolerance=0.05,
    )
    assert scene.labels is not None
    labels = convert(scene.labels, labels_of("made100"), labels_of(label_set))
    return replace(scene, labels=labels, label_set=label_set)


def furnish(rng: Generator, kind: str) -> Room:
    """Build a room of one of `KINDS` and place its furniture without collisions."""
    low, high = _SIZES[kind]
    size = np.array([rng.uniform(low, high), rng.uniform(low, high) * 0.92, rng.uniform(2.4, 2.7)])
    layout = Layout(rng, size, kinds())
    layout.furnish(contents(of_house=False, kind_of_room=kind))
    if kind not in ("bathroom", "laundry") and rng.random() < 0.4:
        layout.lay_rug()
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
    tiled = kind == "bathroom" or (kind in ("kitchen", "laundry") and rng.random() < 0.4)
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
        target[2] = min(target[2], HIGHEST_AIM)
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
