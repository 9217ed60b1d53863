"""Building blocks of furniture: materials, and labelled, textured triangles."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cuao3d.labels import label_set

Array = NDArray[np.floating[Any]]
Generator = np.random.Generator

_CLASSES = label_set("made100")
CLASS = dict(zip(_CLASSES.names, _CLASSES.ids, strict=True))
"""Id of each kind of thing in the label set made100, by name."""

TEXTURES = (
    "plain", "wood", "tiles", "stripes", "fabric", "painting", "outdoors", "planks", "checks", "bricks", "marble",
)  # fmt: skip

# Usual colours (hue, saturation, value) and textures of each style. They overlap on purpose.
_WOODS = ((0.07, 0.55, 0.45), (0.09, 0.45, 0.65), (0.06, 0.6, 0.3), (0.1, 0.3, 0.8))
_WHITES = ((0.1, 0.04, 0.9), (0.6, 0.03, 0.85), (0.1, 0.12, 0.82))
_CLOTHS = ((0.6, 0.5, 0.45), (0.0, 0.55, 0.5), (0.3, 0.3, 0.45), (0.08, 0.35, 0.6), (0.0, 0.02, 0.35), (0.75, 0.3, 0.5))
_CERAMICS = ((0.1, 0.03, 0.93), (0.55, 0.06, 0.9), (0.12, 0.1, 0.88))
_METALS = ((0.6, 0.03, 0.6), (0.6, 0.02, 0.75), (0.0, 0.0, 0.2))
_STONES = ((0.08, 0.1, 0.5), (0.6, 0.08, 0.3), (0.1, 0.08, 0.75))
STYLES: dict[str, tuple[tuple[tuple[float, float, float], ...], tuple[str, ...]]] = {
    "wall": (((0.1, 0.08, 0.88), (0.55, 0.1, 0.8), (0.3, 0.1, 0.8), (0.0, 0.0, 0.8)), ("plain", "plain", "stripes")),
    "tiled wall": (((0.55, 0.1, 0.88), (0.1, 0.06, 0.92), (0.45, 0.15, 0.8)), ("tiles",)),
    "floor": ((*_WOODS, (0.1, 0.1, 0.55), (0.6, 0.1, 0.45)), ("wood", "wood", "tiles", "fabric")),
    "wood": ((*_WOODS, (0.1, 0.05, 0.85)), ("wood", "wood", "plain")),
    "front": ((*_WOODS, *_WHITES), ("wood", "plain")),
    "cloth": (_CLOTHS, ("fabric", "fabric", "stripes")),
    "linen": ((*_WHITES, (0.6, 0.3, 0.6), (0.95, 0.25, 0.65), (0.3, 0.2, 0.65)), ("fabric", "stripes", "plain")),
    "curtain": ((*_CLOTHS, *_WHITES), ("fabric", "stripes", "plain")),
    "shower": (((0.5, 0.15, 0.9), (0.1, 0.03, 0.9), (0.6, 0.25, 0.8)), ("plain", "stripes", "tiles")),
    "ceramic": (_CERAMICS, ("plain",)),
    "appliance": ((*_METALS[:2], *_WHITES, (0.0, 0.0, 0.25)), ("plain",)),
    "metal": (_METALS, ("plain",)),
    "stone": ((*_STONES, (0.08, 0.4, 0.5)), ("fabric", "plain", "wood")),
    "painting": (((0.1, 0.5, 0.6), (0.6, 0.5, 0.5), (0.35, 0.4, 0.5)), ("painting",)),
    "outdoors": (((0.55, 0.25, 0.95), (0.57, 0.4, 0.9)), ("outdoors",)),
    "screen": (((0.6, 0.3, 0.12), (0.6, 0.6, 0.5)), ("plain",)),
    "plant": (((0.33, 0.6, 0.35), (0.28, 0.5, 0.45)), ("fabric",)),
    # Styles of houses only.
    "house wall": (
        ((0.12, 0.2, 0.82), (0.25, 0.25, 0.6), (0.58, 0.35, 0.5), (0.04, 0.35, 0.65), (0.1, 0.03, 0.92)),
        ("plain", "plain", "plain", "stripes", "bricks"),
    ),
    "house floor": ((*_WOODS, *_STONES, (0.05, 0.5, 0.5)), ("planks", "planks", "checks", "marble")),
    "house tiles": (((0.42, 0.3, 0.6), (0.6, 0.35, 0.5), (0.1, 0.05, 0.85), (0.0, 0.0, 0.35)), ("tiles", "checks")),
    "ceiling": (((0.12, 0.05, 0.95), (0.1, 0.1, 0.88), (0.09, 0.4, 0.65)), ("plain", "plain", "plain", "planks")),
    "hearth": (((0.03, 0.5, 0.5), (0.08, 0.1, 0.6), (0.1, 0.05, 0.85)), ("bricks", "marble")),
    "soot": (((0.0, 0.05, 0.12), (0.07, 0.2, 0.15)), ("fabric",)),
    "rug": ((*_CLOTHS, *_STONES), ("fabric", "stripes", "checks")),
    "glass": (((0.55, 0.08, 0.75), (0.5, 0.04, 0.68)), ("plain",)),
    "vessel": ((*_CERAMICS, *_CLOTHS), ("plain", "marble")),
    "leather": (((0.06, 0.5, 0.3), (0.0, 0.03, 0.15), (0.08, 0.45, 0.5), (0.02, 0.6, 0.35)), ("plain",)),
    "rubber": (((0.6, 0.05, 0.12), (0.0, 0.0, 0.2)), ("plain",)),
    "felt": (((0.38, 0.7, 0.4), (0.6, 0.6, 0.4), (0.98, 0.6, 0.4)), ("fabric", "plain")),
    "chalk": (((0.42, 0.4, 0.25), (0.0, 0.0, 0.15)), ("plain",)),
    "white": (((0.6, 0.02, 0.95), (0.1, 0.02, 0.93)), ("plain",)),
    "cardboard": (((0.09, 0.45, 0.65), (0.09, 0.4, 0.55)), ("plain", "plain", "wood")),
    "wicker": (((0.09, 0.45, 0.6), (0.08, 0.5, 0.4), (0.1, 0.1, 0.8)), ("fabric", "stripes")),
    "lacquer": (((0.0, 0.8, 0.6), (0.58, 0.7, 0.55), (0.35, 0.6, 0.4), (0.12, 0.8, 0.85), (0.0, 0.0, 0.1)), ("plain",)),
    "fur": (((0.08, 0.5, 0.45), (0.1, 0.35, 0.65), (0.07, 0.2, 0.85)), ("fabric",)),
    "carpet": (((0.1, 0.2, 0.6), (0.0, 0.0, 0.5), (0.09, 0.35, 0.45)), ("fabric",)),
    "water": (((0.5, 0.4, 0.5), (0.52, 0.5, 0.6), (0.45, 0.4, 0.45)), ("outdoors", "plain")),
    "keys": (((0.1, 0.03, 0.92),), ("stripes",)),
}

_CONTRASTS = {"wood": 0.75, "tiles": 0.7, "stripes": 0.7, "fabric": 0.8, "planks": 0.65, "checks": 0.5, "marble": 0.75}
_SCALES = {
    "wood": 0.12,
    "tiles": 0.25,
    "stripes": 0.12,
    "fabric": 0.03,
    "painting": 0.25,
    "planks": 0.14,
    "bricks": 0.2,
}


class Material(NamedTuple):
    """How a surface looks: two colours and the texture that mixes them."""

    texture: int
    """Index into `TEXTURES`."""
    first: tuple[float, float, float]
    """RGB in [0, 1]."""
    second: tuple[float, float, float]
    """RGB in [0, 1]."""
    scale: float
    """Size of the texture's pattern, metres."""
    phase: float
    """Offset of the pattern, so that no two objects look the same."""


def material(rng: Generator, style: str) -> Material:
    """Draw a material in a style of `STYLES`."""
    colors, textures = STYLES[style]
    texture = textures[rng.integers(len(textures))]
    hue, saturation, value = colors[rng.integers(len(colors))]
    hue, saturation = hue + rng.normal(0, 0.025), float(np.clip(saturation + rng.normal(0, 0.07), 0, 1))
    value = float(np.clip(value + rng.normal(0, 0.07), 0.05, 1))
    contrast = _CONTRASTS.get(texture, 0.93)
    scale = _SCALES.get(texture, 0.4)
    return Material(
        TEXTURES.index(texture),
        rgb(hue, saturation, value),
        rgb(hue + rng.normal(0, 0.02), min(1, saturation * 1.1), value * contrast),
        scale * float(rng.uniform(0.7, 1.5)),
        float(rng.uniform(0, 100)),
    )


@dataclass(frozen=True)
class Plan:
    """What an object is to be like: its size, its materials, and the options of its family."""

    width: float
    """Extent along x, metres."""
    depth: float
    """Extent along y, metres."""
    height: float
    """Extent along z, metres; of a seat or a bed, the height of what one sits or lies on."""
    styles: tuple[str, ...]
    """Styles of its materials."""
    looks: tuple[Material, ...]
    """A material of each style."""
    options: Mapping[str, float | str]
    """Options of the family; those without a value are 1."""
    ceiling: float
    """Height of the room, metres."""

    def look(self, index: int) -> Material:
        """Return a material; the last one where there are fewer."""
        return self.looks[min(index, len(self.looks) - 1)]

    def style(self, index: int) -> str:
        """Return the style of a material, to draw another one of it."""
        return self.styles[min(index, len(self.styles) - 1)]

    def has(self, option: str) -> bool:
        """Tell whether an option is given."""
        return option in self.options

    def number(self, option: str, default: float) -> float:
        """Return the value of an option."""
        return float(self.options.get(option, default))

    def word(self, option: str, default: str) -> str:
        """Return the value of an option that is a word."""
        return str(self.options.get(option, default))


@dataclass
class Furniture:
    """An object under construction: triangles, each with a class and a material."""

    rng: Generator
    label: int
    """Class of parts that have none of their own."""
    triangles: list[Array] = field(default_factory=list)
    """Blocks of (T, 3, 3) corners, metres."""
    labels: list[int] = field(default_factory=list)
    """Class of each block."""
    materials: list[Material] = field(default_factory=list)
    """Material of each block."""
    opening: tuple[float, float, float, float] | None = None
    """Hole that the object needs in the wall behind it: x min, x max, z min, z max; metres."""
    clearance: float = 0.0
    """Space to keep free in front of it, metres."""
    top: tuple[float, float, float, float, float] | None = None
    """Surface that small things may stand on: x min, x max, y min, y max, z; metres."""

    def add(self, triangles: Array, look: Material, label: int | None = None) -> None:
        """Add a block of triangles (T, 3, 3)."""
        self.triangles.append(triangles)
        self.labels.append(self.label if label is None else label)
        self.materials.append(look)

    def move_back(self) -> None:
        """Move the object along y so that its back is at y = 0."""
        back = min(float(block[..., 1].min()) for block in self.triangles)
        self.triangles = [block - np.array([0.0, back, 0.0]) for block in self.triangles]
        if self.top:
            left, right, near, far, height = self.top
            self.top = (left, right, near - back, far - back, height)

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        look: Material,
        label: int | None = None,
    ) -> None:
        """Add an axis-aligned box between two corners."""
        lower, upper = np.array([x[0], y[0], z[0]]), np.array([x[1], y[1], z[1]])
        self.add((lower + UNIT_BOX * (upper - lower)), look, label)

    def turned(
        self,
        profile: list[tuple[float, float]],
        center: tuple[float, float],
        look: Material,
        label: int | None = None,
        stretch: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        """Add a surface of revolution about a vertical axis; `profile` lists (radius, z) from bottom to top."""
        angle = np.linspace(0, 2 * np.pi, 17)
        ring = np.stack([np.cos(angle) * stretch[0], np.sin(angle) * stretch[1]], axis=1)
        rings = np.array([np.c_[ring * radius + center, np.full(len(ring), z)] for radius, z in profile])
        self.add(grid_triangles(rings), look, label)

    def wave(
        self, x: tuple[float, float], z: tuple[float, float], depth: float, wavelength: float, look: Material
    ) -> None:
        """Add a hanging cloth: a sheet folded in waves about y = `depth`."""
        along = np.linspace(x[0], x[1], max(8, int((x[1] - x[0]) / wavelength * 8)))
        fold = depth + 0.06 * np.sin(2 * np.pi * along / wavelength + self.rng.uniform(0, 6))
        rows = np.array([np.c_[along, fold, np.full(len(along), height)] for height in np.linspace(z[0], z[1], 4)])
        self.add(grid_triangles(rows), look)

    def legs(self, x: float, y: tuple[float, float], top: float, look: Material, thickness: float = 0.05) -> None:
        """Add four legs at x = +-`x` and the two values of y."""
        for side in (-x, x):
            for depth in y:
                half = thickness / 2
                self.box((side - half, side + half), (depth - half, depth + half), (0, top), look)


UNIT_BOX = np.array(
    [[[(c >> 2) & 1, (c >> 1) & 1, c & 1] for c in triangle] for triangle in (
        (0, 1, 3), (0, 3, 2), (4, 7, 5), (4, 6, 7), (0, 5, 1), (0, 4, 5),
        (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3),
    )], dtype=np.float64,
)  # fmt: skip


def beam(start: tuple[float, float, float], end: tuple[float, float, float], thickness: float) -> Array:
    """Return a square beam between two points."""
    begin, axis = np.array(start), np.array(end) - np.array(start)
    side = np.cross(axis, [0.0, 0.0, 1.0] if abs(axis[2]) < 0.9 * np.linalg.norm(axis) else [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    up = np.cross(side, axis) / np.linalg.norm(axis)
    centered = UNIT_BOX - np.array([0.0, 0.5, 0.5])
    corners: Array = begin + centered @ np.stack([axis, side * thickness, up * thickness])
    return corners


def grid_triangles(rows: Array) -> Array:
    """Triangulate a grid of points (R, C, 3)."""
    a, b, c, d = rows[:-1, :-1], rows[:-1, 1:], rows[1:, 1:], rows[1:, :-1]
    return np.concatenate([np.stack([a, b, c], axis=2), np.stack([a, c, d], axis=2)]).reshape(-1, 3, 3)


def rgb(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """Convert a colour from HSV; hue wraps."""
    sector = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    red, green, blue = value - value * saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return float(red), float(green), float(blue)


def fronts(
    item: Furniture,
    width: float,
    depth: float,
    z: tuple[float, float],
    columns: int,
    rows: int,
    look: Material,
    metal: Material,
    label: int | None = None,
) -> None:
    """Cover a cabinet's face with doors or drawers that stand out, each with a handle."""
    columns, rows = max(1, columns), max(1, rows)
    wide, tall, gap, grip = width / columns, (z[1] - z[0]) / rows, 0.015, (depth + 0.04, depth + 0.08)
    for column in range(columns):
        for row in range(rows):
            left, low = -width / 2 + column * wide, z[0] + row * tall
            front = (left + gap, left + wide - gap), (depth, depth + 0.04), (low + gap, low + tall - gap)
            item.box(*front, look, label)
            x, middle = left + wide / 2, low + tall / 2
            if tall > wide:
                x = left + (wide - 0.07 if column % 2 == 0 else 0.07)
                item.box((x - gap, x + gap), grip, (middle - 0.08, middle + 0.08), metal, label)
            else:
                item.box((x - 0.08, x + 0.08), grip, (middle - gap, middle + gap), metal, label)


def reveal(item: Furniture, opening: tuple[float, float, float, float], back: float, look: Material) -> None:
    """Add the inner faces of a hole in the wall."""
    left, right, low, high = opening
    thin = 0.02
    item.box((left - thin, left), (back, 0), (low, high), look)
    item.box((right, right + thin), (back, 0), (low, high), look)
    item.box((left, right), (back, 0), (high, high + thin), look)
    item.box((left, right), (back, 0), (low - thin, low), look)


def basin(
    item: Furniture, x: tuple[float, float], y: tuple[float, float], top: float, deep: float, look: Material, label: int
) -> None:
    """Add an open box with thick walls: a basin."""
    rim = 0.05
    item.box(x, y, (top - deep, top - deep + 0.03), look, label)
    for edge in ((x[0], x[0] + rim), (x[1] - rim, x[1])):
        item.box(edge, y, (top - deep, top), look, label)
    for edge in ((y[0], y[0] + rim), (y[1] - rim, y[1])):
        item.box(x, edge, (top - deep, top), look, label)


def tap(item: Furniture, x: float, y: float, z: float, look: Material, label: int) -> None:
    """Add a tap: a post and a spout."""
    item.box((x - 0.02, x + 0.02), (y - 0.02, y + 0.02), (z, z + 0.22), look, label)
    item.box((x - 0.02, x + 0.02), (y, y + 0.16), (z + 0.2, z + 0.23), look, label)
