"""Layout of a synthetic room: objects along walls or free-standing, without collisions, in a shell with openings."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from cuao3d.rays import embree_scene
from cuao3d.worlds.joinery import CLASS, Array, Furniture, Generator, Material, material
from cuao3d.worlds.kinds import Kind
from cuao3d.worlds.rendering import AMBIENT, Room

Make = Callable[[Kind, Generator], Furniture]

SEATED = {"desk": "chair", "dressing table": "stool"}
"""What stands before a piece of furniture that one sits at, besides chairs around tables."""

MAX_TRIES = 120
"""Positions that are tried for an object before the room does without it."""

LOWEST_TOP, HIGHEST_TOP = 0.3, 1.25
"""Bounds of the height of surfaces that small things are put on, metres."""


class Layout:
    """Placement of objects, in room coordinates (a corner of the floor at the origin).

    Args:
        rng: Source of all randomness.
        size: Inner extent (x, y, z), metres.
        kinds: Kinds that can be placed, by name.
        make: Makes an object of a kind, in the style of the room.
    """

    def __init__(self, rng: Generator, size: Array, kinds: Mapping[str, Kind], make: Make | None = None) -> None:
        self.rng, self.size, self.kinds = rng, size, kinds
        self.make: Make = make or (lambda kind, rng: kind.make(rng, float(size[2])))
        self.triangles: list[Array] = []
        self.labels: list[int] = []
        self.materials: list[Material] = []
        self.boxes: list[Array] = []
        self.openings: list[list[tuple[float, float, float, float]]] = [[], [], [], []]
        self.windows: list[tuple[int, float]] = []
        self.lamps: list[Array] = []
        self.tops: list[tuple[Array, Array, tuple[float, float, float, float, float]]] = []

    def made(self, name: str) -> Furniture:
        """Make an object of a kind."""
        return self.make(self.kinds[name], self.rng)

    def furnish(self, contents: Sequence[tuple[str, float]]) -> None:
        """Draw from (name of a kind, its probability) and place each object where there is space."""
        for name, chance in contents:
            if self.rng.random() >= chance:
                continue
            place = self.kinds[name].place
            if place == "free":
                self.place_freely(name)
            elif place == "window":
                self.hang_before_window(name)
            elif place == "top":
                self.put_on_top(name)
            elif place == "hung":
                self.hang(name)
            else:
                self.place_at_wall(name)

    def place_at_wall(self, name: str) -> None:
        """Place an object with its back to a wall, if there is space."""
        item = self.made(name)
        lower, upper = bounds(item)
        for _ in range(MAX_TRIES):
            wall = int(self.rng.integers(4))
            length = self.size[wall % 2]
            if upper[0] - lower[0] > length - 0.1:
                continue
            along = self.rng.uniform(0.05 - lower[0], length - 0.05 - upper[0])
            back = 0.0 if self.kinds[name].place == "flush" else self.rng.uniform(0.0, 0.04)
            if self.put(item, *self.at_wall(wall, along, back)):
                if item.opening:
                    left, right, low, high = item.opening
                    self.openings[wall].append((along + left, along + right, low, high))
                if name == "window":
                    self.windows.append((wall, along))
                if name in SEATED:
                    self._seat(name, wall, along, upper[1])
                return

    def hang_before_window(self, name: str) -> None:
        """Hang an object before a window that was placed."""
        if self.windows:
            wall, along = self.windows[int(self.rng.integers(len(self.windows)))]
            rotation, position = self.at_wall(wall, along, 0.0)
            if not self.put(self.made(name), rotation, position, ignore_windows=True):
                self.put(self.made(name), rotation, position, ignore_windows=True)

    def put_on_top(self, name: str) -> None:
        """Put an object on a surface of another one, if there is space."""
        item = self.made(name)
        lower, upper = bounds(item)
        for _ in range(12 if self.tops else 0):
            rotation, position, (left, right, near, far, height) = self.tops[int(self.rng.integers(len(self.tops)))]
            spare = np.array([right - left, far - near]) - (upper - lower)[:2]
            if (spare < 0).any():
                continue
            corner = np.array([left, near]) + self.rng.random(2) * spare - lower[:2]
            if self.put(item, rotation, position + rotation @ np.array([*corner, height + 0.002]), on_top=True):
                return

    def place_freely(self, name: str) -> None:
        """Place an object on the floor, at a random angle, with chairs around it if it is a high table."""
        item = self.made(name)
        lower, upper = bounds(item)
        for _ in range(MAX_TRIES):
            angle = self.rng.integers(4) * np.pi / 2 + self.rng.normal(0, 0.15)
            position = np.array([*self.rng.uniform(0.7, np.maximum(self.size[:2] - 0.7, 0.71)), 0.0])
            if self.put(item, turn(angle), position):
                if name == "table" and upper[2] > 0.6:
                    for side in range(int(self.rng.integers(2, 5))):
                        reach = (upper[1] - lower[1]) / 2 if side % 2 == 0 else (upper[0] - lower[0]) / 2
                        center = position + turn(angle) @ np.array([0, (lower[1] + upper[1]) / 2, 0])
                        self._draw_up(center, angle + side * np.pi / 2, reach)
                return

    def hang(self, name: str) -> None:
        """Hang an object from the ceiling, if there is space."""
        item = self.made(name)
        for _ in range(20):
            position = np.array([*self.rng.uniform(0.25, 0.75, 2) * self.size[:2], self.size[2]])
            if self.put(item, turn(float(self.rng.integers(2)) * np.pi / 2), position):
                if name == "ceiling lamp":
                    self.lamps.append(position)
                return

    def lay_rug(self) -> None:
        """Lay a rug in the middle, also under furniture."""
        item = Furniture(self.rng, CLASS["rug"])
        half = self.rng.uniform(0.2, 0.35, 2) * self.size[:2]
        low, high = self.size[:2] / 2 - half, self.size[:2] / 2 + half
        look = material(self.rng, "rug")
        item.box((low[0], high[0]), (low[1], high[1]), (0, 0.012), look)
        self.add(item.triangles[0], item.label, look)

    def build_shell(
        self,
        floor: Material,
        ceiling: Material,
        walls: Sequence[Material],
        skirting: Material,
    ) -> None:
        """Add floor, ceiling and four walls with their openings, and a skirting board.

        Args:
            floor: Material of the floor.
            ceiling: Material of the ceiling.
            walls: Material of each wall.
            skirting: Material of the skirting board.
        """
        x, y, z = self.size
        self.add(_rectangle((0, 0, 0), (x, 0, 0), (0, y, 0)), CLASS["floor"], floor)
        self.add(_rectangle((0, 0, z), (x, 0, 0), (0, y, 0)), CLASS["ceiling"], ceiling)
        for wall, look in enumerate(walls):
            rotation, corner = self.at_wall(wall, 0.0, 0.0)
            for left, right, low, high in _around(self.openings[wall], float(self.size[wall % 2]), float(z)):
                panel = _rectangle((left, 0, low), (right - left, 0, 0), (0, 0, high - low))
                self.add(panel @ rotation.T + corner, CLASS["wall"], look)
                if low == 0:
                    board = Furniture(self.rng, CLASS["wall"])
                    board.box((left, right), (0, 0.015), (0, 0.08), skirting)
                    self.add(board.triangles[0] @ rotation.T + corner, CLASS["wall"], skirting)

    def built(
        self, world_from_room: Array, lights: Array, light_colors: Array, ambient: tuple[float, float] = AMBIENT
    ) -> Room:
        """Return the room, ready for ray casting.

        Args:
            world_from_room: Yaw and offset, (4, 4).
            lights: Positions (L, 3), metres, in room coordinates.
            light_colors: RGB strengths (L, 3).
            ambient: As in `Room`.
        """
        rotation, offset = world_from_room[:3, :3], world_from_room[:3, 3]
        blocks = [block @ rotation.T + offset for block in self.triangles]
        counts = [len(block) for block in blocks]
        triangles = np.concatenate(blocks)
        return Room(
            triangles=triangles,
            labels=np.repeat(self.labels, counts),
            material_of_triangle=np.repeat(np.arange(len(blocks)), counts),
            materials=tuple(self.materials),
            world_from_room=world_from_room,
            size=self.size,
            boxes=np.array(self.boxes),
            lights=lights @ rotation.T + offset,
            light_colors=light_colors,
            embree=embree_scene(triangles.astype(np.float32)),
            ambient=ambient,
        )

    def at_wall(self, wall: int, along: float, back: float) -> tuple[Array, Array]:
        """Return rotation and position of an object `along` metres along a wall and `back` metres off it."""
        angle = wall * np.pi / 2
        corner = np.array([(0, 0), (self.size[0], 0), self.size[:2], (0, self.size[1])][wall])
        direction, inward = turn(angle)[:2, 0], turn(angle)[:2, 1]
        return turn(angle), np.array([*(corner + direction * along + inward * back), 0.0])

    def _seat(self, name: str, wall: int, along: float, depth: float) -> None:
        """Draw a seat up to a desk or a dressing table."""
        _, position = self.at_wall(wall, along + float(self.rng.uniform(-0.1, 0.1)), depth)
        seat = "office chair" if name == "desk" and self.rng.random() < 0.5 else SEATED[name]
        self._draw_up(position, wall * np.pi / 2, 0.0, seat)

    def _draw_up(self, center: Array, angle: float, reach: float, seat: str = "chair") -> None:
        """Add a seat `reach` metres from `center` along +y rotated by `angle`, facing the centre."""
        item = self.made(seat)
        away = reach + bounds(item)[1][1] + self.rng.uniform(0.04, 0.2)
        position = center + turn(angle) @ np.array([self.rng.normal(0, 0.08), away, 0.0])
        self.put(item, turn(angle + np.pi + self.rng.normal(0, 0.2)), position)

    def put(
        self,
        item: Furniture,
        rotation: Array,
        position: Array,
        *,
        ignore_windows: bool = False,
        on_top: bool = False,
    ) -> bool:
        """Add an object unless it collides with another or leaves the room.

        Args:
            item: The object.
            rotation: room_from_item, (3, 3).
            position: Its origin, (3,), metres.
            ignore_windows: Whether it may hang before a window.
            on_top: Whether it stands on another object, which may have higher parts: it may overlap those.
        """
        blocks = [block @ rotation.T + position for block in item.triangles]
        corners = np.concatenate(blocks).reshape(-1, 3)
        lower, upper = corners.min(0), corners.max(0)
        inner_lower, inner_upper = lower.copy(), upper.copy()
        if item.opening:  # ignore what lies inside the wall
            inner_lower[:2], inner_upper[:2] = np.maximum(lower[:2], 0), np.minimum(upper[:2], self.size[:2])
        if (inner_lower[:2] < -0.01).any() or (inner_upper[:2] > self.size[:2] + 0.01).any():
            return False
        front = rotation @ np.array([0.0, item.clearance, 0.0])
        box = np.array([np.minimum(inner_lower, inner_lower + front), np.maximum(inner_upper, inner_upper + front)])
        for other in self.boxes:
            is_window = other[0][2] > 0.7 and other[1][2] - other[0][2] < 1.4 and ignore_windows
            gap = 0.02
            if on_top and other[0][2] < 0.25 and position[2] < other[1][2] + 0.05:
                continue  # what it stands on
            if not is_window and (box[0] < other[1] + gap).all() and (other[0] < box[1] + gap).all():
                return False
        self.boxes.append(box)
        if item.top and LOWEST_TOP < item.top[4] < HIGHEST_TOP:
            self.tops.append((rotation, position, item.top))
        for block, label, look in zip(blocks, item.labels, item.materials, strict=True):
            self.add(block, label, look)
        return True

    def add(self, triangles: Array, label: int, look: Material) -> None:
        """Add triangles (T, 3, 3), in room coordinates, without a collision test."""
        self.triangles.append(triangles)
        self.labels.append(label)
        self.materials.append(look)


def _around(
    openings: list[tuple[float, float, float, float]], length: float, height: float
) -> list[tuple[float, float, float, float]]:
    """Cut a wall into rectangles (x min, x max, z min, z max) that leave its openings free."""
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


def turn(angle: float) -> Array:
    """Return the rotation about z."""
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def bounds(item: Furniture) -> tuple[Array, Array]:
    """Return the lowest and the highest corner of an object, in its own frame."""
    corners = np.concatenate(item.triangles).reshape(-1, 3)
    return corners.min(0), corners.max(0)
