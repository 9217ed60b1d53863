"""Stills of point clouds without a graphics card: a picture is a sparse matrix times the colours of the points.

Points are drawn as small discs that lie in their surface, blended where they overlap and hidden by depth. What covers
which pixel depends on the view alone, so it is worked out once and any colouring of the cloud costs one product.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from cuao3d.errors import InputError
from cuao3d.geometry import up_direction
from cuao3d.scene import Camera

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

SUPERSAMPLING = 2
"""Sub-pixels along each side of a pixel."""

MAX_POINTS = 600_000
"""Of larger clouds an even part of this size is drawn: more points than pixels show nothing more."""

MARGIN = 0.03
"""Free border of a picture, as a fraction of its size."""

REACH = 1.3
"""Radius of a point's disc, in units of the distance to its fourth neighbour: the smallest that closes most holes."""

THICKNESS = 0.5
"""Discs within this of the nearest one are blended with it, in units of their radius."""

WALL_SLAB = 0.12
"""What is closer than this to a wall that is taken away goes with it, metres: pictures, doors."""

CURTAIN_DEPTH, CURTAIN_HEIGHT = 0.3, 1.9
"""So does what is closer than this to the wall and reaches higher than this above the floor, metres."""

ASLANT = 0.2
"""A wall hides the room if the cosine between its outward direction and that to the eye is at least this."""

LIGHT = (0.92, 0.84, 1.0)
"""Brightness of walls across one side of a room, across the other, and of what is level: so much that edges show, and
so little that colours stay those of a legend."""

OUTER = 0.4
"""A wall is looked for this far from the edge of the cloud, metres."""


class View(NamedTuple):
    """What is looked at, and from where; enough to look at it from elsewhere."""

    every: int
    """One point of the cloud in so many is drawn."""
    positions: Array
    """Positions (M, 3) of these, metres, z up."""
    radius: float
    """Radius of a point's disc in the middle, metres."""
    azimuth: float
    """Direction from the scene to the eye about the vertical, degrees."""
    elevation: float
    """Height of the eye above the horizon, degrees."""
    light: Array
    """Brightness of each point (M,), 1 = full; see `LIGHT`."""
    sides: list[tuple[Array, Mask]]
    """Direction to the outside (3,) of each wall and of the ceiling, and the points (M,) that are in the way of an eye
    on that side."""


class Dollhouse:
    """A look into a room from above one of its corners, without the ceiling and the two walls in front.

    Rooms may stand at any angle; what is not enclosed by walls is drawn whole.
    """

    def __init__(
        self,
        points: Float[Tensor, "N 3"],
        normals: Float[Tensor, "N 3"] | None = None,
        *,
        size: tuple[int, int] = (640, 480),
        cameras: Sequence[Camera] = (),
        azimuth: float | None = None,
        elevation: float = 38.0,
    ) -> None:
        """Find the view and work out what covers each pixel.

        Args:
            points: World positions, metres.
            normals: Unit surface normals, in which the discs lie and are lit; estimated unless given.
            size: Width and height of the pictures, pixels.
            cameras: Views of the scene. They say which way is up (+z without them), and where normals are missing,
                surfaces are taken to face them.
            azimuth: Direction from the scene to the eye about the vertical, degrees; the corner from which most is
                seen unless told.
            elevation: Height of the eye above the horizon, degrees.

        Raises:
            InputError: There are no points.
        """
        if not len(points):
            raise InputError("A cloud without points cannot be drawn.")
        self.size = size
        self._stride = math.ceil(len(points) / MAX_POINTS)
        points, normals = points[:: self._stride], None if normals is None else normals[:: self._stride]
        upright = _upright(up_direction(cameras)) if cameras else np.eye(3, dtype=np.float32)
        positions = _numpy(points) @ upright.T
        facing = None if normals is None else _numpy(normals) @ upright.T
        if facing is None and cameras:
            eyes = torch.stack([camera.world_from_camera[:3, 3] for camera in cameras])
            facing = _numpy(eyes).mean(axis=0) @ upright.T - positions
        room = _Room(positions, facing)
        if azimuth is None:
            azimuth = room.best_azimuth(elevation)
        view = _view_axes(azimuth, elevation)
        radius, surface = _surroundings(positions, None if normals is None else facing)
        light = np.square(surface @ room.axes) @ np.asarray(LIGHT, np.float32)
        self.view = View(self._stride, positions, float(np.median(radius)), azimuth, elevation, light, room.sides())
        self._matrix, self._coverage = _cover(positions @ view.T, surface @ view.T, radius, room.open_to(view), size)

    def draw(
        self, colors: Float[Tensor, "N 3"], *, background: tuple[float, float, float] = (1, 1, 1)
    ) -> UInt8[np.ndarray, "H W 3"]:
        """Paint the points.

        Args:
            colors: RGB of each point, in [0, 1].
            background: RGB behind the scene.
        """
        width, height = self.size
        painted = self._matrix @ _numpy(colors[:: self._stride])
        painted += (1 - self._coverage)[:, None] * np.asarray(background, dtype=np.float32)
        picture: NDArray[np.uint8] = (painted.clip(0, 1) * 255 + 0.5).astype(np.uint8)
        return picture.reshape(height, width, 3)


class _Room:
    """A cloud in axes along its walls, and what must go to see into it."""

    def __init__(self, positions: Array, facing: Array | None) -> None:
        self.positions, self.facing = positions, facing
        self.yaw = _yaw(positions[:, :2])
        self.axes = np.eye(3, dtype=np.float32)
        self.axes[:2, :2] = _turn(self.yaw)
        self.box = positions @ self.axes
        self.low, self.high = _bounds(self.box)
        self.floor = -_wall(-self.box[:, 2])

    def best_azimuth(self, elevation: float) -> float:
        """Return the direction to the eye, degrees, a little off a corner of the room, that shows most points."""
        some = np.s_[:: max(1, len(self.positions) // 30_000)]
        room = _Room(self.positions[some], None if self.facing is None else self.facing[some])
        corners = [self.yaw + 45 + side + 90 * corner for corner in range(4) for side in (-14, 14)]
        return max(corners, key=lambda azimuth: room._num_seen(_view_axes(azimuth, elevation)))

    def open_to(self, view: Array) -> Mask:
        """Say which points (N,) remain when the ceiling and the walls towards the eye are taken away."""
        kept = np.ones(len(self.box), dtype=np.bool_)
        for axis, towards in enumerate(-view[2] @ self.axes):
            if abs(towards) >= ASLANT and (hidden := self._in_the_way(axis, math.copysign(1, towards))) is not None:
                kept &= ~hidden
        return kept if kept.any() else ~kept

    def sides(self) -> list[tuple[Array, Mask]]:
        """Return the outward direction (3,) of each wall and of the ceiling, and which points (N,) go with it."""
        found = []
        for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1), (2, 1)):
            if (hidden := self._in_the_way(axis, sign)) is not None and not hidden.all():
                found.append((sign * self.axes[:, axis], hidden))
        return found

    def _in_the_way(self, axis: int, sign: float) -> Mask | None:
        """Say which points (N,) hide the room from an eye on one side of it; None if there is no wall."""
        if self.high[axis] - self.low[axis] < 2 * OUTER:
            return None
        outward = self.box[:, axis] * np.float32(sign)
        wall = _wall(outward)
        if not self._is_wall(axis, np.abs(outward - wall) < WALL_SLAB / 2):
            return None
        gone = outward > wall - WALL_SLAB
        if axis < 2:
            gone |= self._stands_tall(outward > wall - CURTAIN_DEPTH)
        return (gone & (self.box[:, 2] > self.floor + 0.05)) | (outward >= wall + 0.05)

    def _is_wall(self, axis: int, slab: Mask) -> bool:
        """Say whether the points of a slab across an axis cover at least a third of that side of the room."""
        others = [other for other in range(3) if other != axis]
        cells = ((self.box[slab][:, others] - self.low[others]) / 0.2).astype(np.int64)
        columns, rows = ((self.high[others] - self.low[others]) / 0.2).astype(np.int64) + 1
        return bool(len(np.unique(cells[:, 0] * rows + cells[:, 1])) > columns * rows / 3)

    def _stands_tall(self, among: Mask) -> Mask:
        """Say which of some points (N,) have others of them high above or below, so that they block the view."""
        index = np.flatnonzero(among)
        x, y = ((self.box[index, :2] - self.low[:2]) / 0.1).astype(np.int64).T
        column = y * (int((self.high[0] - self.low[0]) / 0.1) + 1) + x
        top = np.full(column.max(initial=0) + 1, -np.inf, dtype=np.float32)
        np.maximum.at(top, column, self.box[index, 2])
        tall = np.zeros_like(among)
        tall[index] = top[column] > self.floor + CURTAIN_HEIGHT
        return tall

    def _num_seen(self, view: Array) -> int:
        """Count the points that no nearer one hides and that face the eye, as far as known."""
        kept = self.open_to(view)
        if self.facing is not None:
            kept &= self.facing @ view[2] < 0
        projected = self.positions[kept] @ view.T
        if not len(projected):
            return 0
        x, y = ((projected[:, :2] - _bounds(projected[:, :2])[0]) / 0.08).astype(np.int64).T
        cell = y * (x.max() + 1) + x
        nearest = np.full(cell.max() + 1, np.inf, dtype=np.float32)
        np.minimum.at(nearest, cell, projected[:, 2])
        return int((projected[:, 2] < nearest[cell] + 0.1).sum())


def _numpy(values: Tensor) -> Array:
    """Return a tensor's values as single-precision numbers."""
    array: Array = values.detach().cpu().float().numpy()
    return array


def _upright(up: Tensor) -> Array:
    """Return the rotation that turns a unit vector into +z."""
    horizontal = torch.eye(3)[up.abs().argmin()]
    x = functional.normalize(horizontal - (horizontal @ up) * up, dim=0)
    return _numpy(torch.stack([x, torch.linalg.cross(up, x), up]))


def _view_axes(azimuth: float, elevation: float) -> Array:
    """Return a camera's axes (right, down, forward) as rows."""
    a, e = math.radians(azimuth), math.radians(elevation)
    forward = np.array([-math.cos(e) * math.cos(a), -math.cos(e) * math.sin(a), -math.sin(e)])
    right = np.array([-math.sin(a), math.cos(a), 0.0])
    return np.stack([right, np.cross(forward, right), forward]).astype(np.float32)


def _turn(degrees: float) -> Array:
    """Return the matrix that takes rows (x, y) into axes turned by an angle."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]], dtype=np.float32)


def _yaw(plan: Array) -> float:
    """Return the angle, degrees, at which walls stand: where the coordinates of points (N, 2) pile up most."""
    plan = plan[:: max(1, len(plan) // 5000)]
    plan = plan - plan.mean(axis=0)
    reach = float(np.abs(plan).max()) * 1.5 + 0.05

    def piled(degrees: float) -> float:
        cells = ((plan @ _turn(degrees) + reach) / 0.05).astype(np.int64)
        return sum(float(np.square(np.bincount(cells[:, axis])).sum()) for axis in (0, 1))

    coarse = max(range(0, 90, 3), key=piled)
    return max((coarse + step / 2 for step in range(-5, 6)), key=piled)


def _wall(outward: Array) -> float:
    """Return where a wall would stand: where most points are, not far from the edge of the cloud."""
    edge = float(outward.max())
    counts, edges = np.histogram(outward[outward > edge - OUTER], 20, (edge - OUTER, edge))
    return float(edges[counts.argmax()] + OUTER / 40)


def _bounds(positions: Array) -> tuple[Array, Array]:
    """Return the lowest and highest coordinates (2 or 3,) of points."""
    columns = np.ascontiguousarray(positions.T)
    return columns.min(axis=1), columns.max(axis=1)


def _surroundings(positions: Array, normals: Array | None) -> tuple[Array, Array]:
    """Look at what lies around each point; found out for some points and taken over by those around them.

    Returns:
        Radius of the disc (N,) that closes the gap to its neighbours, metres, and the normals (N, 3) that are given or
        else the directions in which the surroundings are thinnest.
    """
    anchors = positions[:: max(1, len(positions) // 10_000)]
    fourth = cKDTree(positions, balanced_tree=False, compact_nodes=False).query(anchors, k=[min(5, len(positions))])[0]
    tree = cKDTree(anchors)
    near = tree.query(anchors, k=list(range(1, min(16, len(anchors)) + 1)))[1]
    radius = REACH * np.median(fourth[near[:, :8], 0], axis=1)
    largest = min(3 * float(np.median(radius)), 0.03 * float(np.linalg.norm(np.ptp(anchors, axis=0))))
    anchor = tree.query(positions)[1]
    if normals is None:
        around = anchors[near] - anchors[near].mean(axis=1, keepdims=True)
        normals = np.linalg.eigh(np.einsum("nki,nkj->nij", around, around))[1][anchor, :, 0]
    return radius.clip(1e-3, max(largest, 1e-3))[anchor].astype(np.float32), normals


def _cover(
    positions: Array, normals: Array, radius: Array, kept: Mask, size: tuple[int, int]
) -> tuple[csr_matrix, Array]:
    """Work out how much of each pixel each point covers.

    Args:
        positions: Positions (N, 3) in the camera's axes, metres.
        normals: Unit normals (N, 3) of either sign in the camera's axes.
        radius: Radius of each point's disc (N,), metres.
        kept: Points (N,) that are drawn.
        size: Width and height, pixels.

    Returns:
        Share of each point in each pixel, times the light that falls there (H W, N), and how much of each pixel is
        covered at all (H W,).
    """
    width, height = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
    index = np.flatnonzero(kept).astype(np.int32)
    index = index[np.argsort(-radius[index], kind="stable")]  # large discs first, as _splat asks for
    radius = radius[index]
    position, focal, center = _place(positions[index], float(radius[0]), width, height)
    radius = np.maximum(radius, 0.75 * position[:, 2].mean() / focal)  # no disc slips between the pixels
    sight = position / np.linalg.norm(position, axis=1, keepdims=True)
    normal = normals[index]
    normal = normal * np.where((normal * sight).sum(axis=1, keepdims=True) > 0, np.float32(-1), np.float32(1))
    light = _light(normal)
    normal -= 0.15 * sight  # so that a surface seen from its edge does not vanish
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    fragments = _splat(position, normal, radius, focal, center, width, height)
    nearest = np.full(width * height, np.inf, dtype=np.float32)
    for pixel, _, depth, _ in fragments:
        np.minimum.at(nearest, pixel, depth)
    total = np.zeros(width * height, dtype=np.float32)
    in_front = []
    for pixel, point, depth, weight in fragments:
        front = np.flatnonzero(depth < nearest[pixel] + THICKNESS * radius[point])
        np.add.at(total, pixel[front], weight[front])
        in_front.append((pixel[front], point[front], weight[front]))
    pixels = np.arange(size[0] * size[1], dtype=np.int32).reshape(size[1], size[0])
    coarse = pixels.repeat(SUPERSAMPLING, axis=0).repeat(SUPERSAMPLING, axis=1).reshape(-1)
    covered = np.bincount(coarse[total > 0], minlength=size[0] * size[1]) / SUPERSAMPLING**2
    inside = uniform_filter(covered.reshape(size[1], size[0]), 7).reshape(-1) > 0.8  # a gap there is no edge
    coverage = np.where(inside & (covered > 0), 1, covered).astype(np.float32)
    blocks = (size[1], SUPERSAMPLING, size[0], SUPERSAMPLING)
    shade = _crease_shade(nearest.reshape(blocks).min(axis=3).min(axis=1))
    gain = shade * coverage / np.maximum(covered, 1e-6) / SUPERSAMPLING**2
    brightness = gain.astype(np.float32)[coarse] / np.maximum(total, 1e-6)
    parts = [
        (weight * brightness[pixel] * light[point], coarse[pixel], index[point]) for pixel, point, weight in in_front
    ]
    share, row, column = (np.concatenate(values) for values in zip(*parts, strict=True))
    matrix = csr_matrix((share, (row, column)), shape=(len(coverage), len(positions)))
    return matrix, coverage


def _place(positions: Array, radius: float, width: int, height: int) -> tuple[Array, float, Array]:
    """Set the scene before a distant eye so that it fills the image; return positions, focal length and centre.

    What is smaller than 20 of its discs stays small.
    """
    low, high = _bounds(positions)
    distance = 3 * max(float(np.linalg.norm(high - low)), 1e-2)
    positions = positions - (low + high) / 2 + np.array([0, 0, distance], dtype=np.float32)
    flat = positions[:, :2] / positions[:, 2:]
    low, high = _bounds(flat)
    size = np.array([width, height], dtype=np.float32)
    focal = float((size * (1 - 2 * MARGIN) / np.maximum(high - low, 40 * radius / distance)).min())
    return positions, focal, size / 2 - focal * (low + high) / 2 - 0.5


def _light(normals: Array) -> Array:
    """Return the brightness (N,) of surfaces under the sky and a lamp at the viewer's left shoulder, 1 = full."""
    lamp = np.array([-0.35, -0.65, -0.67], dtype=np.float32)
    light: Array = 0.85 + 0.18 * (normals @ lamp).clip(0, 1)
    return light


def _splat(
    position: Array, normal: Array, radius: Array, focal: float, center: Array, width: int, height: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64], Array, Array]]:
    """Spread points, large discs first, over the pixels that their discs cover.

    Returns:
        Pixel, point, depth (metres) and weight of each fragment, in portions.
    """
    x0, y0 = np.rint(position[:, :2].T / position[:, 2] * focal + center[:, None])
    distance = (position * normal).sum(axis=1)
    square = np.square(radius)
    in_pixels = radius * (focal / float(position[:, 2].min())) + 0.5
    half = math.ceil(in_pixels[0])
    fragments = []
    for dy in range(-half, half + 1):
        for dx in range(-half, half + 1):
            these = np.s_[: int(np.searchsorted(-in_pixels, -math.hypot(dx, dy) + 0.71))]
            x, y = x0[these] + np.float32(dx), y0[these] + np.float32(dy)
            ray_x, ray_y = (x - center[0]) / np.float32(focal), (y - center[1]) / np.float32(focal)
            depth = distance[these] / (normal[these, 0] * ray_x + normal[these, 1] * ray_y + normal[these, 2])
            squared = np.square(ray_x * depth - position[these, 0])
            squared += np.square(ray_y * depth - position[these, 1])
            squared += np.square(depth - position[these, 2])
            inside = (squared < square[these]) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
            point = np.flatnonzero(inside)
            pixel = y[point].astype(np.int64) * width + x[point].astype(np.int64)
            weight = np.square(1 - squared[point] / square[point]) + np.float32(1e-3)
            fragments.append((pixel, point, depth[point], weight))
    return fragments


def _crease_shade(depth: Array) -> Array:
    """Darken creases and what lies behind an edge: pixels farther away than the middle of their surroundings.

    Returns:
        Brightness of each pixel (H W,), 1 = full.
    """
    empty = np.isinf(depth)
    known = np.where(empty, depth[~empty].max(initial=0), depth)
    hollow = np.zeros_like(known)
    for reach in (2, 5, 11):
        for step in ((0, reach), (reach, 0), (reach, reach), (reach, -reach)):
            around = (np.roll(known, step, (0, 1)) + np.roll(known, (-step[0], -step[1]), (0, 1))) / 2
            hollow += ((known - around) / (0.02 * reach)).clip(0, 1)
    shade: Array = 1 - 0.5 / 12 * hollow
    return shade.reshape(-1)
