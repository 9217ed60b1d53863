"""Multi-view fusion: image features -> point features.

Lifting is linear, so a teacher's map never grows to the size of the image: the bicubic (or bilinear) kernel is
evaluated on the small map, at the pixels of visible points only, and summed straight into the points' rows. A scene's
views are walked once for all teachers.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from cuao3d.codecs import Projection
from cuao3d.errors import InputError, UserError
from cuao3d.geometry import normals_of, quarters_to_upright
from cuao3d.gravity import up_of
from cuao3d.progress import OnCount
from cuao3d.sampling import Mode
from cuao3d.scene import Problem, ProblemKind, Scene
from cuao3d.sums import Spread, Sums
from cuao3d.teachers import Teacher
from cuao3d.teachers.views import BATCH, describe_together
from cuao3d.view_weights import ViewWeights, geometry_weights
from cuao3d.visibility import Samples as Samples
from cuao3d.visibility import View as View
from cuao3d.visibility import Visibility as Visibility
from cuao3d.visibility import sample_cells as sample_cells
from cuao3d.visibility import see as see

EXACT = "+exact"
"""Behind a teacher's name: its sums of a few rows that are not projected."""


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
    """Some rows of `features` and what they are without projection; None where maps were not projected."""
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
    through: Projection | None = None,
    num_exact: int = 0,
    progress: OnCount | None = None,
) -> Lifted:
    """Describe each seen sample as one teacher sees it, and measure how well its views agree; see `lift_together`."""
    how: dict[str, Any] = {"mode": mode, "batch_size": batch_size, "upright": upright, "progress": progress}
    how |= {"skip_unreadable": skip_unreadable, "view_weights": view_weights, "num_exact": num_exact}
    how["through"] = {} if through is None else {teacher.name: through}
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
    through: Mapping[str, Projection] | None = None,
    num_exact: int = 0,
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
        through: By a teacher's name, what its maps are projected by before they are lifted: `features` are then of that
            width, and how far views agree or disagree is that of the features that its codes stand for.
        num_exact: Rows of such a teacher that are lifted without projection too, at most, spread evenly over all.
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
    parts = _parts(teachers, len(visibility.seen_samples), through or {}, num_exact)
    walk = _Walk(scene, visibility, teachers, parts, mode, batch_size, upright, skip_unreadable, view_weights)
    walk.go(unfinished, progress)
    return _collect(walk, parts, teachers)


def _collect(walk: "_Walk", parts: Mapping[str, "_Part"], teachers: Sequence[Teacher]) -> dict[str, Lifted]:
    """Return what each teacher saw on a walk; its sums are used up."""
    visibility = walk.visibility()
    kept, num_views = visibility.num_views[walk.seen] > 0, visibility.num_views[visibility.seen_samples]
    found = {}
    for label, part in parts.items():
        rows = part.rows if part.rows is None else (kept.cumsum(0) - 1)[part.rows[kept[part.rows]]]
        if not bool(kept.all()):
            walk.sums[label].keep(kept if part.rows is None else kept[part.rows])
        found[label] = rows, *walk.sums[label].finish(num_views if rows is None else num_views[rows])
    lifted = {}
    for name, seconds in ((one.name, walk.seconds.get(one.name, 0.0)) for one in teachers):
        _, features, agreement, disagreement = found[name]
        rows, exact, _, _ = found.get(f"{name}{EXACT}", (None, None, None, None))
        both = None if rows is None or exact is None else (rows, exact)
        lifted[name] = Lifted(features, visibility, agreement, disagreement, both, seconds)
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


@dataclass(frozen=True)
class _Part:
    """What is summed of a teacher: all rows, projected or not, or a few rows that are not."""

    teacher: int
    """Its place among the teachers."""
    width: int
    """Channels of a row."""
    through: Projection | None = None
    rows: Int64[Tensor, "n"] | None = None
    """Which rows, ascending; None: all."""
    place: Int64[Tensor, "V"] | None = None
    """Place of each row in `rows`; -1 where it is not among them."""

    def pick(self, rows: Tensor) -> tuple[Tensor, Tensor | slice]:
        """Return where some rows are summed here, and which of them are."""
        if self.place is None:
            return rows, slice(None)
        place = self.place[rows]
        return place[place >= 0], torch.nonzero(place >= 0).squeeze(1)


def _parts(
    teachers: Sequence[Teacher], num_rows: int, through: Mapping[str, Projection], num_exact: int
) -> dict[str, _Part]:
    """Say what is summed, by the name of its teacher; that of a few rows without projection has `EXACT` behind it."""
    rows = torch.linspace(0, max(num_rows - 1, 0), min(num_exact, num_rows), dtype=torch.float64).round().long()
    place = torch.full((num_rows,), -1)
    place[rows] = torch.arange(len(rows))
    parts = {}
    for number, one in enumerate(teachers):
        projection = through.get(one.name)
        parts[one.name] = _Part(number, one.num_channels if projection is None else projection.width, projection)
        if projection is not None and num_exact:
            parts[f"{one.name}{EXACT}"] = _Part(number, one.num_channels, None, rows, place)
    return parts


class _Walk:
    """A walk along the views of a scene, whose teachers describe each of them; with robust weights there are two."""

    def __init__(
        self,
        scene: Scene,
        visibility: Visibility,
        teachers: Sequence[Teacher],
        parts: Mapping[str, _Part],
        mode: Mode,
        batch_size: int,
        upright: bool,
        may_skip: bool,
        view_weights: ViewWeights,
    ) -> None:
        self._scene, self._all, self._teachers, self._parts, self._mode = scene, visibility, teachers, parts, mode
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
                self._spread = {
                    label: self.sums[label].spread(num_views if part.rows is None else num_views[part.rows])
                    for label, part in self._parts.items()
                }
                self.sums = self._start(weighted=True)
            self._go_once(number, num_walks, done if number == walk else 0, unfinished, progress)

    def _start(self, *, weighted: bool) -> dict[str, Sums]:
        return {
            label: Sums(len(self.seen) if part.rows is None else len(part.rows), part.width, weighted=weighted)
            for label, part in self._parts.items()
        }

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
        for label, part in self._parts.items():
            begun = time.perf_counter()
            as_stored = [one.rot90(-self._quarters[view.frame], (1, 2)) for one in described[part.teacher]]
            at, which = part.pick(rows)
            if (spread := self._spread.get(label)) is not None:  # one that was restored comes from the CPU
                self._spread[label] = spread = spread.to(as_stored[0].device)
            self.sums[label].add(
                as_stored if part.through is None else part.through(as_stored),
                at,
                pixels[which],
                size,
                mode=self._mode,
                weights=None if weights is None else weights[which],
                spread=spread,
                summed=part.through is not None,
            )
            self._took({self._teachers[part.teacher].name: time.perf_counter() - begun})

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
