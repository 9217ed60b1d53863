"""Multi-view fusion: image features -> point features.

Lifting is linear, so a teacher's map never grows to the size of the image: the bicubic (or bilinear) kernel is
evaluated on the small map, at the pixels of visible points only, and summed straight into the points' rows. A scene's
views are walked once for all teachers.
"""

import time
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from cuao3d.errors import InputError, UserError
from cuao3d.geometry import group_mean, normals_of, project, quarters_to_upright, visible_points, voxelize
from cuao3d.gravity import up_of
from cuao3d.progress import OnCount
from cuao3d.sampling import Mode
from cuao3d.scene import Camera, Problem, ProblemKind, Scene
from cuao3d.sums import Spread, Sums
from cuao3d.teachers import Teacher
from cuao3d.teachers.views import BATCH, describe_together
from cuao3d.view_weights import ViewWeights, geometry_weights

TIE = 1e-12
"""Squared distances that round to the same multiple of this are equal, square metres."""


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
    seconds: float = 0.0
    """How long the teacher looked at the views and its maps were summed."""


@runtime_checkable
class Unfinished(Protocol):
    """Keeps the sums of a walk along many views, so that it can go on after an interruption."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return what was kept of the same walk; None if there is nothing."""
        ...

    def is_due(self, done: int, total: int) -> bool:
        """Say whether sums are to be kept after so many views of a walk."""
        ...

    def save(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Keep sums, and JSON values about them."""
        ...


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
    """Describe each seen sample by the mean of a teacher's features over the views that see it; see `lift_together`."""
    how: dict[str, Any] = {"mode": mode, "batch_size": batch_size, "upright": upright, "progress": progress}
    return lift_measured(scene, visibility, teacher, **how).features


def lift_measured(
    scene: Scene,
    visibility: Visibility,
    teacher: Teacher,
    *,
    mode: Mode = "bicubic",
    batch_size: int = BATCH,
    upright: bool = True,
    skip_unreadable: bool = False,
    view_weights: ViewWeights = "none",
    progress: OnCount | None = None,
) -> Lifted:
    """Describe each seen sample as one teacher sees it, and measure how well its views agree; see `lift_together`."""
    how: dict[str, Any] = {"mode": mode, "batch_size": batch_size, "upright": upright, "progress": progress}
    how |= {"skip_unreadable": skip_unreadable, "view_weights": view_weights}
    return lift_together(scene, visibility, [teacher], **how)[teacher.name]


@torch.no_grad()
def lift_together(
    scene: Scene,
    visibility: Visibility,
    teachers: Sequence[Teacher],
    *,
    mode: Mode = "bicubic",
    batch_size: int = BATCH,
    upright: bool = True,
    skip_unreadable: bool = False,
    view_weights: ViewWeights = "none",
    unfinished: Unfinished | None = None,
    progress: OnCount | None = None,
) -> dict[str, Lifted]:
    """Describe each seen sample by the mean of each teacher's features over the views that see it.

    The views are walked once for all teachers: while they look at some views, those before are summed and those after
    are read. Memory does not depend on their number: the sums take 4 bytes for each channel of a sample.

    Args:
        scene: Whose frames are shown to the teachers.
        visibility: What `see` found in this scene.
        teachers: Each turns an image into feature maps.
        mode: "bicubic" reads at the nearest pixel, as if the map had been upsampled to the image by torch's bicubic
            interpolation (the paper's way); "bilinear" reads at the exact position.
        batch_size: Frames shown at a time, to teachers that take several.
        upright: Show each image turned by the nearest quarter so that what `up_of` finds to be up is up in it, and turn
            its maps back: teachers learned from upright photographs.
        skip_unreadable: Leave out frames whose colours cannot be read, or of which a teacher gives values that are not
            finite, as if no teacher had ever seen them; the results' `visibility` says which.
        view_weights: How much each view counts in the mean; "robust" walks twice.
        unfinished: Keeps the sums of a long walk, and has those of one that was interrupted.
        progress: Called after each view of each walk.

    Returns:
        What each teacher sees, by its name.

    Raises:
        InputError: The mode or the weights are unknown, a teacher fails or gives other maps than it promised, or a
            frame is to be left out and may not be skipped.
    """
    for chosen, options in ((mode, get_args(Mode)), (view_weights, get_args(ViewWeights))):
        if chosen not in options:
            raise InputError(f"Unknown mode {chosen!r}; choose from {options}.")
    if not teachers:
        return {}
    walk = _Walk(scene, visibility, teachers, mode, batch_size, upright, skip_unreadable, view_weights)
    walk.go(unfinished, progress)
    visibility = walk.visibility()
    kept, num_views = visibility.num_views[walk.seen] > 0, visibility.num_views[visibility.seen_samples]
    lifted = {}
    for name, sums in walk.sums.items():
        if not bool(kept.all()):
            sums.keep(kept)
        features, agreement, disagreement = sums.finish(num_views)
        lifted[name] = Lifted(features, visibility, agreement, disagreement, walk.seconds.get(name, 0.0))
    return lifted


def image_quarters(scene: Scene, *, upright: bool = True) -> list[int]:
    """Return by how many quarters, counter-clockwise, each frame's image is turned to be upright.

    Args:
        scene: The scene.
        upright: Whether images are turned; if not, all are turned by none.
    """
    cameras = [frame.camera for frame in scene.frames]
    up = up_of(scene) if upright else None
    return [0] * len(cameras) if up is None else quarters_to_upright(cameras, up)


class _Walk:
    """A walk along the views of a scene, whose teachers describe each of them; with robust weights there are two."""

    def __init__(
        self,
        scene: Scene,
        visibility: Visibility,
        teachers: Sequence[Teacher],
        mode: Mode,
        batch_size: int,
        upright: bool,
        may_skip: bool,
        view_weights: ViewWeights,
    ) -> None:
        self._scene, self._all, self._teachers, self._mode = scene, visibility, teachers, mode
        self._batch_size, self._may_skip, self._view_weights = batch_size, may_skip, view_weights
        self._quarters = image_quarters(scene, upright=upright)
        self.seen = visibility.seen_samples
        self._row_of_sample = torch.zeros_like(visibility.num_views)
        self._row_of_sample[self.seen] = torch.arange(len(self.seen))
        self._left_out: dict[int, Problem] = {}
        self._spread: dict[str, Spread] = {}
        self._normals: Tensor | None = None
        if view_weights == "geometry" and visibility.views:
            self._normals = normals_of(visibility.views[0].points)
        self.sums = self._start(weighted=view_weights == "geometry")
        self.seconds: dict[str, float] = {}

    def visibility(self) -> Visibility:
        """Return the visibility without the frames that were left out."""
        return _without(self._all, self._left_out) if self._left_out else self._all

    def go(self, unfinished: Unfinished | None, progress: OnCount | None) -> None:
        """Walk along all views, or from where an interrupted walk had come to."""
        num_walks, walk, done = 2 if self._view_weights == "robust" else 1, 0, 0
        if unfinished and (kept := unfinished.load()):
            walk, done = self._restore(*kept)
        for number in range(walk, num_walks):
            if number == 1 and not self._spread:
                num_views = self.visibility().num_views[self.seen]
                self._spread = {name: sums.spread(num_views) for name, sums in self.sums.items()}
                self.sums = self._start(weighted=True)
            self._go_once(number, num_walks, done if number == walk else 0, unfinished, progress)

    def _start(self, *, weighted: bool) -> dict[str, Sums]:
        return {one.name: Sums(len(self.seen), one.num_channels, weighted=weighted) for one in self._teachers}

    def _go_once(
        self, number: int, num_walks: int, first: int, unfinished: Unfinished | None, progress: OnCount | None
    ) -> None:
        """Walk along the views once; `number` says for the how manieth time."""
        views, before = self._all.views, frozenset(self._left_out)
        images = [partial(self._read, view) for view in views[first:]]
        described = describe_together(
            self._teachers, images, batch_size=self._batch_size, seconds=(seconds := dict[str, float]())
        )
        with ThreadPoolExecutor(1) as adding:
            waiting = deque[Future[None]]()
            for done, maps in enumerate(described, start=first + 1):
                view = views[done - 1]
                if isinstance(maps, InputError):
                    self._leave_out(view, maps, "features")
                elif maps is not None:
                    waiting.append(adding.submit(self._add, view, maps))
                at_border = done % self._batch_size == 0 and done < len(views)
                is_due = at_border and unfinished is not None and unfinished.is_due(done, len(views))
                while len(waiting) > (0 if is_due else self._batch_size):
                    waiting.popleft().result()
                if is_due and unfinished:
                    self._save(unfinished, number, done, before, seconds)
                if progress:
                    progress(number * len(views) + done, num_walks * len(views))
            for one in waiting:
                one.result()
        self._took(seconds)

    @torch.no_grad()
    def _add(self, view: View, described: Sequence[tuple[Tensor, ...]]) -> None:
        """Sum what all teachers say of a view."""
        sample, pixels = view.sample, view.pixels
        rows, size = self._row_of_sample[sample], (view.camera.width, view.camera.height)
        weights = None
        if self._normals is not None:
            weights = geometry_weights(view.points[sample], self._normals[sample], view.camera, pixels)
        for teacher, maps in zip(self._teachers, described, strict=True):
            begun = time.perf_counter()
            as_stored = [one.rot90(-self._quarters[view.frame], (1, 2)) for one in maps]
            spread = self._spread.get(teacher.name)
            self.sums[teacher.name].add(as_stored, rows, pixels, size, mode=self._mode, weights=weights, spread=spread)
            self._took({teacher.name: time.perf_counter() - begun})

    def _took(self, seconds: Mapping[str, float]) -> None:
        for name, more in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + more

    def _read(self, view: View) -> Tensor | None:
        """Read the colours of a view, turned to be upright; None if they cannot be read."""
        frame, camera = self._scene.frames[view.frame], view.camera
        if view.frame in self._left_out:
            return None
        try:
            image = frame.read_image()
            if tuple(image.shape) != (3, camera.height, camera.width):
                size = f"{image.shape[-1]} x {image.shape[-2]}"
                raise InputError(f"The image is {size}, its camera {camera.width} x {camera.height}.")
        except (UserError, OSError) as error:
            self._leave_out(view, error)
            return None
        quarters = self._quarters[view.frame]
        return image.rot90(quarters, (1, 2)).contiguous() if quarters else image

    def _leave_out(self, view: View, error: UserError | OSError, kind: ProblemKind = "frame") -> None:
        """Note why a view is left out; raise that if none may be."""
        where = f"{self._scene.name}, frame {self._scene.frames[view.frame].name}"
        if not self._may_skip:
            raise InputError(f"{where}: {error}") from error
        self._left_out[view.frame] = replace(Problem.of_frame(where, error), kind=kind)

    def _save(
        self, unfinished: Unfinished, number: int, done: int, before: frozenset[int], seconds: Mapping[str, float]
    ) -> None:
        """Keep how far this walk has come."""
        walked = before | {view.frame for view in self._all.views[:done]}  # others may have been read ahead
        left_out = {str(frame): asdict(why) for frame, why in dict(self._left_out).items() if frame in walked}
        tensors = {f"{name}/{key}": one for name, sums in self.sums.items() for key, one in sums.tensors().items()}
        for name, spread in self._spread.items():
            tensors |= {f"{name}/means": spread.means, f"{name}/scatter": spread.scatter}
        took = {name: self.seconds.get(name, 0.0) + more for name, more in seconds.items()}
        unfinished.save(tensors, {"walk": number, "done": done, "left_out": left_out, "seconds": took})

    def _restore(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> tuple[int, int]:
        """Go on as an earlier walk was kept; return its number and how many views it had seen."""
        self._left_out = {int(frame): Problem(**why) for frame, why in about["left_out"].items()}
        self.seconds = dict(about["seconds"])
        if about["walk"] == 1:
            self.sums = self._start(weighted=True)
        for name, sums in self.sums.items():
            sums.restore({key: tensors[f"{name}/{key}"] for key in sums.tensors()})
            if about["walk"] == 1:
                self._spread[name] = Spread(tensors[f"{name}/means"], tensors[f"{name}/scatter"])
        return about["walk"], about["done"]


def _without(visibility: Visibility, left_out: Mapping[int, Problem]) -> Visibility:
    """Return the visibility without some frames; `left_out` has the reason for each."""
    num_views = visibility.num_views.clone()
    for view in visibility.views:
        if view.frame in left_out:
            num_views[view.sample] -= 1
    views = tuple(view for view in visibility.views if view.frame not in left_out)
    problems = (*visibility.problems, *(left_out[frame] for frame in sorted(left_out)))
    return Visibility(views, num_views, problems, visibility.occlusion_tolerance)
