"""Multi-view fusion: image features -> point features.

Lifting is linear, so a teacher's map never grows to the size of the image: the bicubic (or bilinear) kernel is
evaluated on the small map, at the pixels of visible points only, and summed straight into the points' rows.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor
from torch.nn import functional

from cuao3d.codecs import Projection
from cuao3d.errors import InputError, UserError
from cuao3d.geometry import group_mean, project, quarters_to_upright, visible_points, voxelize
from cuao3d.gravity import up_of
from cuao3d.progress import OnCount
from cuao3d.scene import Camera, Problem, Scene
from cuao3d.teachers import Teacher
from cuao3d.teachers.views import BATCH, describe_views

Mode = Literal["bicubic", "bilinear"]

TIE = 1e-12
"""Squared distances that round to the same multiple of this are equal, square metres."""

CHUNK = 1 << 22
"""Values gathered at a time; a buffer of this size is used again instead of being paged in afresh."""


@dataclass(frozen=True)
class Samples:
    """One real point of the cloud per occupied cell, in lexicographic order of the cells."""

    index_of_sample: Int64[Tensor, "S"]
    """Which point of the cloud each sample is."""
    sample_of_point: Int64[Tensor, "N"]
    """The sample that stands for each point of the cloud."""


@dataclass(frozen=True, eq=False)
class View:
    """Samples that one frame sees.

    There may be thousands of views, so little of each is kept: a compressed bit for each sample. Pixels are worked out
    anew when they are asked for.
    """

    frame: int
    """Index in `scene.frames`."""
    camera: Camera
    """Camera of the frame."""
    points: Float32[Tensor, "S 3"]
    """World positions of all samples, metres; all views share them."""
    seen: bytes
    """Whether each sample is seen, eight to a byte, compressed."""

    @staticmethod
    def of(frame: int, camera: Camera, points: Float32[Tensor, "S 3"], sample: Int64[Tensor, "n"]) -> "View":
        """Return the view that sees some samples; `sample` says which."""
        seen = np.zeros(len(points), dtype=np.bool_)
        seen[sample.numpy()] = True
        return View(frame, camera, points, zlib.compress(np.packbits(seen).tobytes(), 1))

    @property
    def sample(self) -> Int64[Tensor, "n"]:
        """Which samples, ascending."""
        packed = np.frombuffer(zlib.decompress(self.seen), np.uint8)
        return torch.from_numpy(np.unpackbits(packed, count=len(self.points)).nonzero()[0])

    @property
    def pixels(self) -> Float64[Tensor, "n 2"]:
        """Their exact pixel positions (x, y)."""
        return project(self.points[self.sample], self.camera)[0]


@dataclass(frozen=True)
class Visibility:
    """Who sees what in a scene: worked out once, shared by all teachers, so that their rows always match."""

    views: tuple[View, ...]
    """Frames that see at least one sample, in capture order."""
    num_views: Int64[Tensor, "S"]
    """Number of views that see each sample."""
    problems: tuple[Problem, ...] = ()
    """Frames that were left out and why."""
    occlusion_tolerance: float | None = None
    """The scene's tolerance, by which it was decided; None where visibility comes from elsewhere."""

    @property
    def seen_samples(self) -> Int64[Tensor, "V"]:
        """Samples that at least one view sees, ascending; features have one row for each."""
        return torch.nonzero(self.num_views).squeeze(1)


def sample_cells(points: Float[Tensor, "N 3"], cell: float) -> Samples:
    """Choose the point nearest the centroid of its cell's points, in every occupied cell.

    Args:
        points: World positions, metres.
        cell: Edge of a cell, metres.

    Returns:
        The samples; of equally near points the first one in the cloud is taken.
    """
    voxels = voxelize(points, cell)
    positions = points.double()
    centroid = group_mean(positions, voxels.voxel_of_point, len(voxels.coordinates))
    distance = (positions - centroid[voxels.voxel_of_point]).square().sum(dim=1).div(TIE).round()
    by_distance = torch.argsort(distance, stable=True)
    order = by_distance[torch.argsort(voxels.voxel_of_point[by_distance], stable=True)]
    cell_in_order = voxels.voxel_of_point[order]
    first = torch.ones_like(cell_in_order, dtype=torch.bool)
    first[1:] = cell_in_order[1:] != cell_in_order[:-1]
    return Samples(order[first], voxels.voxel_of_point)


def see(scene: Scene, samples: Samples, *, border: int = 10, progress: OnCount | None = None) -> Visibility:
    """Find the samples and pixels of every view.

    Only depth is read. A frame whose depth cannot be read is left out and reported: it must not cost the scene.

    Args:
        scene: Where to look; its `occlusion_tolerance` decides what is hidden.
        samples: The points to look for.
        border: Width of the image margin that is not used, pixels.
        progress: Called after each frame.
    """
    points = scene.points[samples.index_of_sample]
    num_views = torch.zeros(len(points), dtype=torch.int64)
    views, problems = [], []
    for index, frame in enumerate(scene.frames):
        try:
            depth = frame.read_depth()
            tolerance = scene.occlusion_tolerance
            seen = visible_points(points, frame.camera, depth, occlusion_tolerance=tolerance, border=border)
        except (UserError, OSError) as error:
            problems.append(Problem.of_frame(f"{scene.name}, frame {frame.name}", error))
        else:
            if len(seen.index):
                num_views[seen.index] += 1
                views.append(View.of(index, frame.camera, points, seen.index))
        if progress:
            progress(index + 1, len(scene.frames))
    return Visibility(tuple(views), num_views, tuple(problems), scene.occlusion_tolerance)


@dataclass(frozen=True)
class Lifted:
    """What a teacher sees of a scene."""

    features: Float[Tensor, "V C"]
    """One row for each of `visibility.seen_samples`, float32, on the device of the teacher's maps."""
    visibility: Visibility
    """The views that were described: those that were given, less those that were skipped."""
    agreement: float
    """How well the views of a sample agree: the share of the features' variance that lies between samples, not between
    the views of one (intraclass correlation ICC(1), variances summed over channels). 1: all views say the same; 0: as
    unlike as views of different samples; NaN where no sample is in two views."""
    disagreement: Float32[Tensor, "V"]
    """How far the views of each sample disagree: the share of its features' squared length that their mean lacks,
    `1 - |sum f|² / (n sum |f|²)`. 0: all views say the same; of n features of equal length that point anywhere, about
    `1 - 1/n`. It is one minus the square of the mean resultant length where they are equally long (Mardia and Jupp,
    Directional Statistics, 2000, section 9.2). NaN where there are not two views."""
    exact: tuple[Int64[Tensor, "n"], Float[Tensor, "n D"]] | None = None
    """Some rows of `features` and what they are without projection; None where none were asked for."""


def lift(
    scene: Scene,
    visibility: Visibility,
    teacher: Teacher,
    *,
    mode: Mode = "bicubic",
    batch_size: int = BATCH,
    upright: bool = True,
    progress: OnCount | None = None,
) -> Float[Tensor, "V C"]:
    """Describe each seen sample by the mean of a teacher's features over the views that see it; see `lift_measured`."""
    return lift_measured(
        scene, visibility, teacher, mode=mode, batch_size=batch_size, upright=upright, progress=progress
    ).features


@torch.no_grad()
def lift_measured(
    scene: Scene,
    visibility: Visibility,
    teacher: Teacher,
    *,
    mode: Mode = "bicubic",
    batch_size: int = BATCH,
    upright: bool = True,
    skip_unreadable: bool = False,
    through: Projection | None = None,
    num_exact: int = 0,
    progress: OnCount | None = None,
) -> Lifted:
    """Describe each seen sample by the mean of a teacher's features over the views that see it.

    Args:
        scene: Whose frames are shown to the teacher.
        visibility: What `see` found in this scene.
        teacher: Turns an image into feature maps.
        mode: "bicubic" reads at the nearest pixel, as if the map had been upsampled to the image by torch's bicubic
            interpolation (the paper's way); "bilinear" reads at the exact position.
        batch_size: Frames shown at a time, to a teacher that takes several.
        upright: Show each image turned by the nearest quarter so that what `up_of` finds to be up is up in it, and turn
            its maps back: teachers learned from upright photographs.
        skip_unreadable: Leave out frames whose colours cannot be read, as if they had never been seen; the result's
            `visibility` says which. Lift the first teacher this way and give that visibility to the others.
        through: Lift maps projected by it: `features` are then of its width, and how far views agree or disagree is
            that of the features that its codes stand for.
        num_exact: Rows that are lifted without projection too, at most, spread evenly over all.
        progress: Called after each view.

    Raises:
        InputError: The mode is unknown, the teacher gives other maps than it promised, or a frame's colours cannot be
            read or are not of its camera's size and may not be skipped.
    """
    if mode not in get_args(Mode):
        raise InputError(f"Unknown mode {mode!r}; choose from {get_args(Mode)}.")
    seen = visibility.seen_samples
    row_of_sample = torch.zeros_like(visibility.num_views)
    row_of_sample[seen] = torch.arange(len(seen))
    sums = _Sums.of(len(seen), teacher.num_channels, through, num_exact)
    unreadable: dict[int, Problem] = {}
    quarters = image_quarters(scene, upright=upright)
    images = [
        partial(_read_image, scene, view.frame, quarters[view.frame], unreadable if skip_unreadable else None)
        for view in visibility.views
    ]
    described = describe_views(teacher, images, batch_size=batch_size)
    for done, (view, maps) in enumerate(zip(visibility.views, described, strict=True), start=1):
        if maps:
            size = scene.frames[view.frame].camera.width, scene.frames[view.frame].camera.height
            as_stored = [one.rot90(-quarters[view.frame], (1, 2)) for one in maps]
            sums.add(row_of_sample[view.sample], as_stored, view.pixels, size, mode)
        if progress:
            progress(done, len(visibility.views))
    if unreadable:
        visibility = _without(visibility, unreadable)
        sums.keep(visibility.num_views[seen] > 0)
    return sums.lifted(visibility)


def image_quarters(scene: Scene, *, upright: bool = True) -> list[int]:
    """Return by how many quarters, counter-clockwise, each frame's image is turned to be upright.

    Args:
        scene: The scene.
        upright: Whether images are turned; if not, all are turned by none.
    """
    cameras = [frame.camera for frame in scene.frames]
    up = up_of(scene) if upright else None
    return [0] * len(cameras) if up is None else quarters_to_upright(cameras, up)


def _read_image(scene: Scene, index: int, quarters: int, unreadable: dict[int, Problem] | None) -> Tensor | None:
    """Read the colours of a frame, turned counter-clockwise by quarters.

    If that fails, note why in `unreadable` and return None; raise if there is none.
    """
    frame = scene.frames[index]
    where, camera = f"{scene.name}, frame {frame.name}", frame.camera
    try:
        image = frame.read_image()
        if tuple(image.shape) != (3, camera.height, camera.width):
            size = f"{image.shape[-1]} x {image.shape[-2]}"
            raise InputError(f"The image is {size}, its camera {camera.width} x {camera.height}.")
    except (UserError, OSError) as error:
        if unreadable is None:
            raise InputError(f"{where}: {error}") from error
        unreadable[index] = Problem.of_frame(where, error)
        return None
    return image.rot90(quarters, (1, 2)).contiguous() if quarters else image


def _without(visibility: Visibility, unreadable: dict[int, Problem]) -> Visibility:
    """Return the visibility without some frames; `unreadable` has the reason for each."""
    num_views = visibility.num_views.clone()
    for view in visibility.views:
        if view.frame in unreadable:
            num_views[view.sample] -= 1
    views = tuple(view for view in visibility.views if view.frame not in unreadable)
    problems = (*visibility.problems, *unreadable.values())
    return Visibility(views, num_views, problems, visibility.occlusion_tolerance)


@dataclass
class _Sums:
    """Sums over the views so far, a row for each seen sample."""

    total: Float[Tensor, "V D"]
    """Of features, or of what they are projected to."""
    squares: Float64[Tensor, "V"]
    """Of their squared lengths."""
    through: Projection | None
    exact: "_Exact | None"

    @staticmethod
    def of(num_rows: int, num_channels: int, through: Projection | None, num_exact: int) -> "_Sums":
        total = torch.zeros(num_rows, num_channels if through is None else through.width)
        exact = _Exact.of(num_rows, num_exact, num_channels) if num_exact else None
        return _Sums(total, torch.zeros(num_rows, dtype=torch.float64), through, exact)

    def add(
        self, rows: Tensor, maps: Sequence[Tensor], pixels: Tensor, image_size: tuple[int, int], mode: Mode
    ) -> None:
        """Add what the maps of a view hold at pixels (n, 2) to rows (n,), on the device of the maps."""
        self.total, self.squares = self.total.to(maps[0].device), self.squares.to(maps[0].device)
        if self.exact:
            self.exact.add(rows, maps, pixels, image_size, mode)
        if self.through:
            _add_projected(self.total, self.squares, rows, self.through(maps), pixels, image_size, mode)
        else:
            _add_maps(self.total, self.squares, rows, maps, pixels, image_size, mode)

    def keep(self, rows: Bool[Tensor, "V"]) -> None:
        """Drop the other rows: no view that could be read sees them."""
        kept = rows.to(self.total.device)
        self.total, self.squares, self.exact = (
            self.total[kept],
            self.squares[kept],
            self.exact and self.exact.of_kept(rows),
        )

    def lifted(self, visibility: Visibility) -> "Lifted":
        """Return the means over the views of `visibility`; the sums are used up."""
        num_views = visibility.num_views[visibility.seen_samples].to(self.total.device)
        agreement = _agreement(self.total, self.squares, num_views)
        disagreement = _disagreement(self.total, self.squares, num_views)
        exact = self.exact.rows_and_means(num_views) if self.exact else None
        return Lifted(self.total.div_(num_views[:, None]), visibility, agreement, disagreement, exact)


@dataclass
class _Exact:
    """Sums of a few rows without projection."""

    rows: Int64[Tensor, "n"]
    """Which rows, ascending."""
    place: Int64[Tensor, "V"]
    """Place of each row in `rows`; -1 where it is not among them."""
    sums: Float[Tensor, "n C"]

    @staticmethod
    def of(num_rows: int, num_exact: int, num_channels: int) -> "_Exact":
        rows = torch.linspace(0, max(num_rows - 1, 0), min(num_exact, num_rows), dtype=torch.float64).round().long()
        place = torch.full((num_rows,), -1)
        place[rows] = torch.arange(len(rows))
        return _Exact(rows, place, torch.zeros(len(rows), num_channels))

    def add(
        self, rows: Tensor, maps: Sequence[Tensor], pixels: Tensor, image_size: tuple[int, int], mode: Mode
    ) -> None:
        here = self.place[rows] >= 0
        self.sums = self.sums.to(maps[0].device)
        unused = self.sums.new_zeros(len(self.sums), dtype=torch.float64)
        _add_maps(self.sums, unused, self.place[rows[here]], maps, pixels[here], image_size, mode)

    def of_kept(self, kept: Tensor) -> "_Exact":
        """Leave out the rows that are not kept, and number the others anew."""
        own, number = kept[self.rows], kept.cumsum(0) - 1
        return _Exact(number[self.rows[own]], self.place[kept], self.sums[own.to(self.sums.device)])

    def rows_and_means(self, num_views: Tensor) -> tuple[Tensor, Tensor]:
        return self.rows, self.sums / num_views[self.rows.to(num_views.device), None].to(self.sums.device)


def _add_maps(
    sums: Tensor,
    squares: Tensor,
    rows: Tensor,
    maps: Sequence[Tensor],
    pixels: Tensor,
    image_size: tuple[int, int],
    mode: Mode,
) -> None:
    """Add the features of maps whose channels lie side by side; see `_add_map`."""
    for one, part in zip(maps, torch.split(sums, [len(one) for one in maps], dim=1), strict=True):
        _add_map(part, squares, rows, one, pixels, image_size, mode)


def _add_projected(
    sums: Tensor,
    squares: Tensor,
    rows: Tensor,
    maps: Sequence[Tensor],
    pixels: Tensor,
    image_size: tuple[int, int],
    mode: Mode,
) -> None:
    """Add the features of maps that add up to a view's, and the squared length of what they add up to."""
    if len(maps) == 1:
        _add_map(sums, squares, rows, maps[0], pixels, image_size, mode)
        return
    of_view, unused = sums.new_zeros(len(rows), sums.shape[1]), squares.new_zeros(len(rows))
    for one in maps:
        _add_map(of_view, unused, torch.arange(len(rows)), one, pixels, image_size, mode)
    sums.index_add_(0, rows.to(sums.device), of_view)
    squares.index_add_(0, rows.to(sums.device), torch.linalg.vecdot(of_view, of_view).double())


def _add_map(
    sums: Tensor,
    squares: Tensor,
    rows: Tensor,
    feature_map: Tensor,
    pixels: Tensor,
    image_size: tuple[int, int],
    mode: Mode,
) -> None:
    """Add a map's features at pixels (n, 2), and their squared lengths, to distinct rows (n,) of the sums, in place."""
    device = feature_map.device
    table = feature_map.permute(1, 2, 0).reshape(-1, len(feature_map)).float().contiguous()
    chunk = max(1, CHUNK // len(feature_map))
    for part in _slices(len(rows), chunk):
        taps, weights = _taps(pixels[part], image_size, (feature_map.shape[2], feature_map.shape[1]), mode)
        features = functional.embedding_bag(
            taps.to(device), table, per_sample_weights=weights.float().to(device), mode="sum"
        )
        sums.index_add_(0, rows[part].to(device), features)
        squares.index_add_(0, rows[part].to(device), torch.linalg.vecdot(features, features).double())


def _agreement(total: Tensor, squares: Tensor, num_views: Tensor) -> float:
    """Return ICC(1) from the sums (V, C) of features, those of their squared lengths (V,), and the views summed."""
    several = num_views > 1
    n, squared = num_views[several].double(), squares[several]
    if len(n) < 2:
        return math.nan
    sums = total[several]
    of_means = torch.linalg.vecdot(sums, sums).double() / n
    within = (squared - of_means).sum() / (n - 1).sum()
    overall = sums.sum(dim=0, dtype=torch.float64)
    between = (of_means.sum() - overall @ overall / n.sum()) / (len(n) - 1)
    usual = (n.sum() - n.square().sum() / n.sum()) / (len(n) - 1)
    return float((between - within) / (between + (usual - 1) * within))


def _disagreement(total: Tensor, squares: Tensor, num_views: Tensor) -> Tensor:
    """Return what of each sample's squared lengths its mean lacks (V,); the sums are those of `_agreement`."""
    of_mean = torch.linalg.vecdot(total, total).double()
    lacking = 1 - of_mean / (num_views * squares).clamp(min=1e-12)
    return torch.where(num_views > 1, lacking.clamp(0, 1), math.nan).float()


def _taps(pixels: Tensor, image_size: tuple[int, int], map_size: tuple[int, int], mode: Mode) -> tuple[Tensor, Tensor]:
    """Return the cells (n, k) of a row-major map that make up its value at pixels (n, 2), and their weights."""
    scale = torch.tensor(map_size, dtype=torch.float64) / torch.tensor(image_size, dtype=torch.float64)
    read_at = pixels.round() if mode == "bicubic" else pixels
    position = (read_at.double() + 0.5) * scale - 0.5
    low = position.floor()
    kernel = _cubic if mode == "bicubic" else _linear
    weight_x, weight_y = kernel((position - low)[:, 0]), kernel((position - low)[:, 1])
    offsets = torch.arange(weight_x.shape[1]) - (weight_x.shape[1] // 2 - 1)
    limit = torch.tensor(map_size).sub(1)
    cell_x = (low[:, :1].long() + offsets).clamp(min=0).minimum(limit[0])
    cell_y = (low[:, 1:].long() + offsets).clamp(min=0).minimum(limit[1])
    taps = cell_y[:, :, None] * map_size[0] + cell_x[:, None, :]
    return taps.flatten(1), (weight_y[:, :, None] * weight_x[:, None, :]).flatten(1)


def _cubic(t: Tensor) -> Tensor:
    """Return the weights (n, 4) of Keys' cubic kernel, a = -0.75 as in torch, at fractions t (n,) past the second."""
    a = -0.75
    near, far = torch.stack([t, 1 - t], dim=1), torch.stack([1 + t, 2 - t], dim=1)
    inner = ((a + 2) * near - (a + 3)) * near.square() + 1
    outer = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    return torch.stack([outer[:, 0], inner[:, 0], inner[:, 1], outer[:, 1]], dim=1)


def _linear(t: Tensor) -> Tensor:
    """Return the weights (n, 2) of linear interpolation at fractions t (n,)."""
    return torch.stack([1 - t, t], dim=1)


def _slices(length: int, step: int) -> Iterator[slice]:
    """Cut range(length) into slices of at most `step`."""
    return (slice(start, start + step) for start in range(0, length, step))
