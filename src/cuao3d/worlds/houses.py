"""A second embedded domain: regions of synthetic houses, with views as from Matterport3D's tripods and exact labels.

Rooms of houses are larger and higher than `rooms`. They have cut-off corners, corridors, columns and beams, visible and
labelled ceilings, and other furniture and colours. The materials of a house share a style. Everything is determined by
the seed.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.labels import convert
from cuao3d.labels import label_set as labels_of
from cuao3d.readers import matterport
from cuao3d.scene import UNLABELLED, Camera, Scene, Source, Split
from cuao3d.worlds.joinery import CLASS, TEXTURES, Array, Furniture, Generator, Material, material, rgb
from cuao3d.worlds.kinds import contents, kinds
from cuao3d.worlds.layout import Layout
from cuao3d.worlds.rendering import Room
from cuao3d.worlds.rooms import TEACHER_SEEDS, WORLD
from cuao3d.worlds.survey import as_scene, look_at, sample_surfaces, scan, somewhere, take_views

KINDS = (
    "bedroom", "lounge", "dining room", "kitchen", "bathroom", "hallway", "library", "nursery", "gym", "laundry",
)  # fmt: skip
"""Kinds of region; a region's kind is its seed modulo 10."""

WIDTH, HEIGHT, FOCAL = 320, 256, 1075 / 1280 * 320
"""Size, pixels, and focal length, pixels, of the rendered views: those of Matterport's 1280 x 1024 at a quarter."""

EYE_HEIGHT = 1.5
"""Height of the tripod's cameras, metres."""

NUM_HEADINGS, PITCHES = 6, (30, 0, -30)
"""Directions of a tripod's views, degrees: headings 60 degrees apart, and pitches."""

NUM_PER_TRIPOD = NUM_HEADINGS * len(PITCHES)

POINT_SPACING = 0.035
"""Mean spacing of the cloud's points, metres."""

LABEL_SETS = ("made100", *matterport.LABEL_SETS)
"""Label sets that a house may be labelled with."""

_SIZES = {
    "bedroom": (3.8, 5.4, 3.4, 4.6),
    "lounge": (5.4, 7.5, 4.4, 6.0),
    "dining room": (4.4, 6.2, 3.6, 4.8),
    "kitchen": (4.2, 6.0, 3.2, 4.4),
    "bathroom": (2.9, 4.2, 2.6, 3.2),
    "hallway": (6.0, 9.0, 2.5, 3.2),
    "library": (4.2, 6.2, 3.6, 5.0),
    "nursery": (3.8, 5.2, 3.4, 4.4),
    "gym": (4.8, 6.6, 4.0, 5.4),
    "laundry": (3.2, 4.8, 2.8, 3.6),
}
"""Bounds of the long and of the short side of each kind, metres."""

_OWN_LOOK = {CLASS[name] for name in ("plant", "counter", "column", "fireplace", "wall", "floor")}


class Houses(Sequence[Scene]):
    """A dataset of regions of synthetic houses, rendered on access."""

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        split: Split = "train",
        num_views: int = 36,
        label_set: str = "matterport21",
    ) -> None:
        if any(seed >= TEACHER_SEEDS for seed in seeds):
            raise InputError(f"Seeds from {TEACHER_SEEDS} on are reserved for training teachers; choose smaller ones.")
        _check_label_set(label_set)
        self.seeds = tuple(seeds)
        self.split: Split = split
        self.num_views, self.label_set = num_views, label_set
        self.names = tuple(f"{self.split}-{KINDS[seed % len(KINDS)].replace(' ', '-')}-{seed}" for seed in self.seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    def source(self, index: int) -> Source:
        """Return what decides a region.

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
        return make_house(
            self.seeds[index],
            name=self.names[index],
            split=self.split,
            num_views=self.num_views,
            label_set=self.label_set,
        )


def make_house(
    seed: int,
    *,
    name: str | None = None,
    split: Split = "train",
    num_views: int = 36,
    noise: bool = True,
    label_set: str = "matterport21",
) -> Scene:
    """Furnish a region of a house, render it from tripods and scan it.

    A tripod takes 18 views, heading by heading, at each heading up, level and down. A region has as many tripods as
    `num_views` needs; the last one may be cut short.

    Args:
        seed: Determines everything; the kind of region is `KINDS[seed % 10]`.
        name: Name of the scene; by default it contains the seed.
        split: Split that the region belongs to.
        num_views: Number of 320 x 256 views.
        noise: Whether images and depth have sensor noise and holes; depth without noise is exact to 0.25 mm.
        label_set: Label set of the scene: made100, in which everything has a class, or one of Matterport's. As in
            Matterport, objects without a class in it are unlabelled, such as mirrors and lamps in matterport21.

    Returns:
        The scene: frames, named TRIPOD_iCAMERA_HEADING, with depth in steps of 0.25 mm, and points sampled from all
        surfaces that are visible from the tripods or from an extra one without frames, with exact normals and classes.

    Raises:
        InputError: There is no such label set.
    """
    _check_label_set(label_set)
    rng = np.random.default_rng([seed, 2026])
    room = furnish_house(rng, KINDS[seed % len(KINDS)])
    num_tripods = math.ceil(num_views / NUM_PER_TRIPOD)
    camera_of_name = panoramas(room, rng, num_tripods + 1)
    names, all_cameras = list(camera_of_name)[:num_views], list(camera_of_name.values())
    cameras, unused = all_cameras[:num_views], all_cameras[-NUM_PER_TRIPOD:]
    views = take_views(room, cameras, rng, noise=noise, units_per_metre=matterport.UNITS_PER_METRE)
    samples = sample_surfaces(room, rng, POINT_SPACING)
    scene = as_scene(
        name or f"house-{seed}",
        names,
        views,
        scan(room, samples, [*cameras, *unused]),
        label_set=label_set,
        split=split,
        occlusion_tolerance=matterport.OCCLUSION_TOLERANCE,
    )
    assert scene.labels is not None
    return replace(scene, labels=_translate(scene.labels, label_set))


def furnish_house(rng: Generator, kind: str) -> Room:
    """Build a region of one of `KINDS` and place its furniture."""
    long_low, long_high, short_low, short_high = _SIZES[kind]
    sides = rng.permutation([rng.uniform(long_low, long_high), rng.uniform(short_low, short_high)])
    size = np.array([*sides, rng.uniform(2.6, 3.6)])
    taste = _Taste.drawn(rng)
    layout = Layout(rng, size, kinds(), lambda kind, rng: _made(kind.make(rng, float(size[2])), taste))
    wall = material(rng, "house tiles" if kind == "bathroom" else "house wall")
    if kind not in ("hallway", "bathroom") and rng.random() < 0.5:
        _cut_corner(layout, wall)
    layout.furnish(contents(of_house=True, kind_of_room=kind))
    if rng.random() < 0.4:
        _add_beams(layout)
    if kind != "bathroom" and rng.random() < 0.6:
        layout.lay_rug()
    accents = [wall if rng.random() < 0.75 else material(rng, "house wall") for _ in range(4)]
    floor, ceiling = material(rng, "house floor"), material(rng, "ceiling")
    layout.build_shell(floor, ceiling, accents, material(rng, "front"))
    return _lit(layout)


def panoramas(room: Room, rng: Generator, num_tripods: int) -> dict[str, Camera]:
    """Place tripods in a region, apart from one another.

    Returns:
        The cameras by name, TRIPOD_iCAMERA_HEADING: tripod by tripod, heading by heading (clockwise from above), at
        each heading the pitches in their order.
    """
    cameras = {}
    for index, eye in enumerate(_stand(room, rng, num_tripods)):
        start = rng.uniform(0, 2 * np.pi)
        for heading, camera in product(range(NUM_HEADINGS), range(len(PITCHES))):
            yaw, pitch = start - heading * 2 * np.pi / NUM_HEADINGS, np.radians(PITCHES[camera])
            forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
            cameras[f"{index:02d}_i{camera}_{heading}"] = Camera(
                torch.tensor([FOCAL, FOCAL], dtype=torch.float64),
                torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2], dtype=torch.float64),
                WIDTH,
                HEIGHT,
                torch.from_numpy(room.world_from_room @ look_at(eye, eye + forward)),
            )
    return cameras


class _Taste(NamedTuple):
    """Style that the objects of a house share."""

    wood: Array
    """RGB of its woods."""
    cloths: Array
    """RGB of its three cloths, (3, 3)."""
    tint: Array
    """RGB factor of all other colours."""
    texture_of_texture: dict[str, str]
    """Replacements of some textures."""

    @classmethod
    def drawn(cls, rng: Generator) -> "_Taste":
        """Draw a style: woods from pale to black, cloths of neighbouring hues, and a choice of textures."""
        hue = rng.random()
        cloths = [rgb(hue + rng.normal(0, 0.1), rng.uniform(0.15, 0.7), rng.uniform(0.25, 0.85)) for _ in range(3)]
        wood = rgb(rng.uniform(0.03, 0.11), rng.uniform(0.15, 0.7), rng.uniform(0.2, 0.9))
        choices = {"tiles": ("tiles", "checks", "bricks"), "stripes": ("stripes", "checks"), "wood": ("wood", "plain")}
        chosen = {old: str(rng.choice(new)) for old, new in choices.items()}
        return cls(np.array(wood), np.array(cloths), 1 + rng.normal(0, 0.06, 3), chosen)


def _made(item: Furniture, taste: _Taste) -> Furniture:
    """Restyle an object in the taste of the house, except for leaves, stones, walls and floors."""
    looks = zip(item.labels, item.materials, strict=True)
    item.materials = [look if label in _OWN_LOOK else _restyled(look, taste) for label, look in looks]
    return item


def _restyled(look: Material, taste: _Taste) -> Material:
    """Shift the colours of a material towards those of the house; pictures and the outside are unchanged."""
    texture = TEXTURES[look.texture]
    if texture in ("painting", "outdoors"):
        return look
    colors = np.array([look.first, look.second])
    if texture == "wood":
        colors = 0.3 * colors + 0.7 * taste.wood * colors / colors.max()
    elif texture in ("fabric", "stripes"):
        colors = (
            0.3 * colors + 0.7 * taste.cloths[int(look.phase) % 3] * colors.mean(1, keepdims=True) / colors.mean(1)[0]
        )
    else:
        colors = colors * taste.tint
    (red, green, blue), second = np.clip(colors, 0, 1).tolist()
    texture = taste.texture_of_texture.get(texture, texture)
    return look._replace(texture=TEXTURES.index(texture), first=(red, green, blue), second=tuple(second))


def _cut_corner(layout: Layout, look: Material) -> None:
    """Wall off a corner from floor to ceiling, so that the region is L-shaped."""
    x, y, z = layout.size
    wide, deep = layout.rng.uniform(0.2, 0.4) * x, layout.rng.uniform(0.2, 0.4) * y
    left, near = layout.rng.choice([0.0, x - wide]), layout.rng.choice([0.0, y - deep])
    block = Furniture(layout.rng, CLASS["wall"])
    block.box((left, left + wide), (near, near + deep), (0, z), look)
    layout.put(block, np.eye(3), np.zeros(3))


def _add_beams(layout: Layout) -> None:
    """Add beams below the ceiling where nothing is in the way."""
    look, half, deep = material(layout.rng, "wood"), layout.rng.uniform(0.06, 0.12), layout.rng.uniform(0.12, 0.25)
    x, y, z = layout.size
    for middle in np.arange(0.6, x - 0.4, layout.rng.uniform(0.9, 1.4)):
        item = Furniture(layout.rng, CLASS["ceiling"])
        item.box((middle - half, middle + half), (0, y), (z - deep, z), look)
        layout.put(item, np.eye(3), np.zeros(3))


def _lit(layout: Layout) -> Room:
    """Light a region by its lamps and windows, and draw its pose in the world."""
    rng = layout.rng
    lights = [lamp - np.array([0, 0, 1.05]) for lamp in layout.lamps] or [layout.size * np.array([0.5, 0.5, 0.8])]
    colors = [np.array([1.0, 0.9, 0.75]) * rng.uniform(0.7, 1.3) for _ in lights]
    for wall, along in layout.windows:
        _, position = layout.at_wall(wall, along, 0.5)
        lights.append(position + np.array([0, 0, 1.7]))
        colors.append(np.array([0.85, 0.95, 1.1]) * rng.uniform(0.3, 0.9))
    ambient = (float(rng.uniform(0.38, 0.5)), float(rng.uniform(0.0, 0.06)))
    return layout.built(somewhere(rng), np.array(lights), np.array(colors), ambient)


def _stand(room: Room, rng: Generator, num_tripods: int) -> list[Array]:
    """Choose positions (3,) of tripods, in room coordinates, away from walls, furniture and one another."""
    places = np.c_[rng.uniform(0.5, room.size[:2] - 0.5, (400, 2)), np.full(400, EYE_HEIGHT)]
    low = room.boxes[room.boxes[:, 0, 2] < EYE_HEIGHT + 0.3][:, :, :2]
    beside = np.maximum(low[:, 0] - places[:, None, :2], places[:, None, :2] - low[:, 1])
    margin = np.linalg.norm(np.maximum(beside, 0), axis=2).min(1)  # 0 above a box
    places = places[margin >= min(0.3, float(margin.max()))]
    chosen = [places[np.linalg.norm(places[:, :2] - room.size[:2] / 2, axis=1).argmin()]]
    while len(chosen) < num_tripods:
        apart = np.min([np.linalg.norm(places - other, axis=1) for other in chosen], axis=0)
        chosen.append(places[apart.argmax()])
    return chosen


def _translate(labels: Int64[Tensor, "N"], name: str) -> Int64[Tensor, "N"]:
    """Translate labels from made100 by way of matterport160, as Matterport's own sets are made."""
    if name == "made100":
        return labels
    made, fine, target = (labels_of(one) for one in ("made100", "matterport160", name))
    id_of_name = dict(zip(fine.names, fine.ids, strict=True))
    table = torch.full((UNLABELLED + 1,), UNLABELLED)
    table[: len(made)] = torch.tensor([id_of_name.get(kinds()[kind].matterport160, UNLABELLED) for kind in made.names])
    return convert(table[labels], fine, target)


def _check_label_set(name: str) -> None:
    if name not in LABEL_SETS:
        raise InputError(f"Houses have no labels in {name!r}; choose from {list(LABEL_SETS)}.")
