"""Pre-flight check: do poses, depth and intrinsics fit together, or which usual mistake would make them fit?

Views that overlap see one surface, so a pixel of one view, moved into another, must have the depth that the other view
measured there. The share of pixels for which it does is counted for the capture as given and for each way in which
captures usually go wrong; a way that makes clearly more of them agree names the mistake.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional

from cuao3d.fusion import sample_cells
from cuao3d.geometry import Projection, back_project, visible_points
from cuao3d.scene import Camera, Frame, Scene, pose_problem

Verdict = Literal["ok", "probably wrong", "unreadable"]

MAX_VIEWS = 100
"""Views that are read; of longer captures, evenly spaced ones."""

WIDTH = 160
"""Depth is thinned to about this width, pixels."""

TOLERANCE = 0.05
"""Depths agree when they differ by at most this part of the measured one; real captures drift."""

BETTER = 1.2
"""A mistake is named where undoing it makes this many times more pixels agree."""

CONSISTENT = 0.6
"""... and of the pixels that agree or contradict, at least this share then agree."""

CONTRADICTORY = 0.5
"""Below this share the views contradict each other, though no usual mistake explains it."""

ENOUGH = 100
"""Fewer pixels than this, seen again by another view, prove nothing."""

OVERLAP = 0.05
"""Two views are neighbours where at least this share of the pixels of one agree with the other."""

CELL = 0.05
"""Edge of the cells whose coverage is counted, metres."""

LOST = 0.2
"""Share of frames left out above which something is wrong with the capture."""

PLAUSIBLE_DEPTH = (0.2, 20.0)
"""Median depth of a room, metres: outside of it the unit is wrong."""

PLAUSIBLE_VIEW = (20.0, 140.0)
"""Opening angle of a camera, degrees: outside of it the focal length belongs to another image size."""

OFF_CENTER = 0.15
"""How far a principal point may lie from the middle of the image, as a part of its size."""


@dataclass(frozen=True)
class Report:
    """What was found out about a scene before anything is computed from it."""

    verdict: Verdict
    """Whether to go on."""
    reasons: tuple[str, ...]
    """Why, a line each; with the verdict "ok", what was left out or could not be tested."""
    measurements: dict[str, Any]
    """What was measured; JSON-able. Lengths in metres, shares in [0, 1]."""

    @property
    def exit_code(self) -> int:
        """Exit code of the command line: 0 = ok, 1 = probably wrong, 2 = unreadable."""
        return {"ok": 0, "probably wrong": 1, "unreadable": 2}[self.verdict]


def check(scene: Scene) -> Report:
    """Find out whether a scene's poses, depth, intrinsics and cloud fit together.

    Args:
        scene: The scene; at most `MAX_VIEWS` of its views are read.
    """
    views, unreadable = _read_views(scene)
    left_out = [*scene.problems, *unreadable]
    if not views or not len(scene.points):
        missing = "point" if views else "view that can be read"
        return Report("unreadable", (f"Scene {scene.name} has no {missing}.", *left_out), {})
    consistency = {reading: _consistency(views, reading) for reading in READINGS}
    likeliest = _likeliest(consistency)
    measurements = _measure(scene, views, consistency, likeliest) | {"num_left_out": len(left_out)}
    wrong = [
        *_lost_frames(left_out, len(scene.frames)),
        *_odd_intrinsics(views),
        *_misfit(consistency, likeliest),
        *_odd_depth(measurements, likeliest),
        *_odd_coverage(measurements, likeliest),
    ]
    remarks = [*left_out, *_untested(consistency, likeliest), *([] if wrong else _lying(measurements))]
    return Report("probably wrong" if wrong else "ok", (*wrong, *remarks), measurements)


def draw(scene: Scene, report: Report, path: Path | str) -> None:
    """Draw how well views agree: the surface of one on the picture of another, coloured by its depth error.

    Args:
        scene: The scene that was checked.
        report: What `check` said of it; its `pairs` are drawn, also as they would be without the likeliest mistake.
        path: PNG to write.

    Raises:
        ValueError: The scene has no view to draw.
    """
    if report.verdict == "unreadable":
        raise ValueError(f"Scene {scene.name} has no view to draw: {report.reasons[0]}")
    frame_of_name = {frame.name: frame for frame in scene.frames}
    pairs = [(frame_of_name[pair["first"]], frame_of_name[pair["second"]]) for pair in report.measurements["pairs"]]
    readings = [reading for reading in READINGS if reading.name in ("as given", report.measurements["likeliest"])]
    figure = Figure(figsize=(4.6 * (1 + len(readings)), 3.9 * len(pairs) + 1), layout="constrained")
    figure.suptitle(
        "\n".join(wrap(f"{scene.name}: {report.verdict}. {report.reasons[0] if report.exit_code else ''}", 90))
    )
    axes = figure.subplots(len(pairs), 1 + len(readings), squeeze=False)
    for row, (first, second) in zip(axes, pairs, strict=True):
        row[0].imshow(first.read_image().permute(1, 2, 0).numpy())
        row[0].set_title(first.name)
        for axis, reading in zip(row[1:], readings, strict=True):
            points = _draw_agreement(axis, first, second, reading)
    for axis in axes.flat:
        axis.set_axis_off()
    bar = figure.colorbar(points, ax=axes, location="bottom", shrink=0.8, aspect=70, pad=0.01, extend="both")
    bar.set_label(
        "in front of what was measured: contradiction  ←  depth error, % of depth  →  behind: hidden, or wrong"
    )
    figure.savefig(path, format="png", dpi=100)


def depth_errors(
    first: Camera, first_depth: Float[Tensor, "H W"], second: Camera, second_depth: Float[Tensor, "h w"]
) -> Float64[Tensor, "n"]:
    """Compare the surface that one view saw with what another measured there.

    Args:
        first: Camera of the view whose pixels are moved.
        first_depth: Its depth, metres; 0 = missing.
        second: Camera of the view that they are moved into.
        second_depth: Its depth, metres; 0 = missing.

    Returns:
        For each valid pixel of the first view that falls on a valid pixel of the second: its depth there minus the
        depth measured there, metres. Negative contradicts the second view, positive may be hidden from it.
    """
    points, _ = back_project(first_depth, first)
    landed, measured = _land(points, second, second_depth)
    return landed.depth - measured


@dataclass(frozen=True)
class Reading:
    """A way to read a capture's poses and depth; each but the first undoes a usual mistake."""

    name: str
    finding: str
    """What to tell the user when this reading fits best."""
    world_from_camera: Callable[[Float64[Tensor, "4 4"]], Float64[Tensor, "4 4"]] = lambda pose: pose
    """From the pose as given to what it should be."""
    depth_scale: float = 1.0
    """Factor from the depth as given to metres."""


_OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
AS_GIVEN = Reading("as given", "")
POSE_READINGS = (
    Reading(
        "inverse poses",
        "Poses look inverted (world to camera): invert each 4 x 4 matrix.",
        torch.linalg.inv,
    ),
    Reading(
        "OpenGL axes",
        "Axes look like OpenGL (y up, z backward): negate the second and third column of each pose.",
        lambda pose: pose @ _OPENGL,
    ),
    Reading(
        "inverse poses with OpenGL axes",
        "Poses look inverted (world to camera) and axes like OpenGL: invert each 4 x 4 matrix, then negate its second "
        "and third column.",
        lambda pose: torch.linalg.inv(pose) @ _OPENGL,
    ),
)
DEPTH_READINGS = tuple(
    Reading(
        f"depth x {scale:g}",
        f"Depth looks {max(scale, 1 / scale):g} times too {'large' if scale < 1 else 'small'} for the poses: "
        f"multiply it by {scale:g}.",
        depth_scale=scale,
    )
    for scale in (0.001, 0.1, 0.2, 0.25, 4.0, 5.0, 10.0, 1000.0)
)
READINGS = (AS_GIVEN, *POSE_READINGS, *DEPTH_READINGS)


class _View(NamedTuple):
    """A thinned view."""

    name: str
    camera: Camera
    depth: Float32[Tensor, "h w"]
    probes: Float32[Tensor, "h w"]
    """Depth where it is moved into the other views, else 0."""


class _Consistency(NamedTuple):
    """How the views fit together under one reading: pixels of view i (row) in view j (column)."""

    landed: Int64[Tensor, "V V"]
    """Pixels that fall on a valid pixel."""
    agreeing: Int64[Tensor, "V V"]
    contradicting: Int64[Tensor, "V V"]
    """Pixels that would lie in front of what was measured."""
    median_error: float | None
    """Median |depth error| of those that landed, metres."""

    @property
    def agreement(self) -> int:
        return int(self.agreeing.sum())

    @property
    def consistent(self) -> float:
        """Share of the agreeing among those that agree or contradict."""
        return self.agreement / max(self.agreement + int(self.contradicting.sum()), 1)


def _read_views(scene: Scene) -> tuple[list[_View], list[str]]:
    chosen = np.linspace(0, len(scene.frames) - 1, min(len(scene.frames), MAX_VIEWS)).round().astype(int)
    num_probes = min(500, max(50, 250_000 // max(len(chosen), 1) ** 2))
    generator = torch.Generator().manual_seed(0)
    views, problems = [], []
    for frame in (scene.frames[index] for index in chosen):
        try:
            views.append(_read_view(frame, num_probes, generator))
        except (ValueError, OSError) as error:
            problems.append(f"{frame.name} left out: {error}")
    return views, problems


def _read_view(frame: Frame, num_probes: int, generator: torch.Generator) -> _View:
    camera = frame.camera
    if problem := pose_problem(camera.world_from_camera):
        raise ValueError(f"{problem}.")
    image, depth = frame.read_image(), frame.read_depth()
    for what, (height, width) in (("image", image.shape[1:]), ("depth", depth.shape)):
        if (width, height) != (camera.width, camera.height):
            raise ValueError(f"its {what} is {width} x {height}, its camera {camera.width} x {camera.height}.")
    step = max(1, round(camera.width / WIDTH))
    depth = depth[::step, ::step].contiguous()
    camera = replace(
        camera, focal=camera.focal / step, center=camera.center / step, width=depth.shape[1], height=depth.shape[0]
    )
    valid = torch.nonzero(depth.flatten() > 0).squeeze(1)
    probes = torch.zeros_like(depth)
    chosen = valid[torch.randperm(len(valid), generator=generator)[:num_probes]]
    probes.view(-1)[chosen] = depth.view(-1)[chosen]
    return _View(frame.name, camera, depth, probes)


def _consistency(views: list[_View], reading: Reading) -> _Consistency:
    """Move the probes of every view into every other one."""
    cameras = [_reread(view.camera, reading) for view in views]
    clouds = [
        back_project(view.probes * reading.depth_scale, camera)[0] for view, camera in zip(views, cameras, strict=True)
    ]
    points = torch.cat(clouds)
    view_of_point = torch.repeat_interleave(torch.tensor([len(cloud) for cloud in clouds]))
    columns, errors = [], []
    for index, (view, camera) in enumerate(zip(views, cameras, strict=True)):
        landed, measured = _land(points, camera, view.depth * reading.depth_scale)
        source = view_of_point[landed.index]
        other = source != index
        source, error, measured = source[other], (landed.depth - measured)[other], measured[other]
        kinds = torch.ones_like(other[other]), error.abs() <= TOLERANCE * measured, error < -TOLERANCE * measured
        columns.append(torch.stack([torch.bincount(source[kind], minlength=len(views)) for kind in kinds]))
        errors.append(error.abs())
    landed_count, agreeing, contradicting = torch.stack(columns, dim=2)
    error = torch.cat(errors)
    return _Consistency(landed_count, agreeing, contradicting, error.median().item() if len(error) else None)


def _land(
    points: Float[Tensor, "N 3"], camera: Camera, depth: Float[Tensor, "H W"]
) -> tuple[Projection, Float64[Tensor, "V"]]:
    """Find the points that fall on valid pixels, at whatever depth, and what was measured there."""
    landed = visible_points(points, camera, depth, occlusion_tolerance=math.inf, border=0)
    column, row = landed.pixels.round().long().unbind(1)
    return landed, depth[row, column].double()


def _reread(camera: Camera, reading: Reading) -> Camera:
    return replace(camera, world_from_camera=reading.world_from_camera(camera.world_from_camera))


def _likeliest(consistency: dict[Reading, _Consistency]) -> Reading:
    """Return the reading under which most pixels agree, if it is consistent and clearly better than as given."""
    best = max(consistency, key=lambda reading: consistency[reading].agreement)
    found, given = consistency[best], consistency[AS_GIVEN]
    clear = found.agreement >= ENOUGH and found.agreement > BETTER * given.agreement
    return best if clear and found.consistent >= CONSISTENT else AS_GIVEN


def _measure(
    scene: Scene, views: list[_View], consistency: dict[Reading, _Consistency], likeliest: Reading
) -> dict[str, Any]:
    num_moved = max(int(_num_probes(views).sum()) * (len(views) - 1), 1)
    camera = scene.frames[0].camera
    depth = torch.cat([view.depth.flatten() for view in views])
    poses = torch.stack([view.camera.world_from_camera for view in views])
    rotations = poses[:, :3, :3]
    near, median, far = np.quantile(depth[depth > 0].numpy(), [0.05, 0.5, 0.95]).tolist() if depth.any() else [0.0] * 3
    return {
        "num_frames": len(scene.frames),
        "num_views_tested": len(views),
        "num_points": len(scene.points),
        "image_sizes": sorted({(frame.camera.width, frame.camera.height) for frame in scene.frames}),
        "focal": camera.focal.tolist(),
        "center": camera.center.tolist(),
        "rotation_error": (rotations @ rotations.mT - torch.eye(3).double()).abs().max().item(),
        "depth": {"near": near, "median": median, "far": far, "missing": (depth == 0).double().mean().item()},
        "readings": {
            reading.name: {
                "agreeing": found.agreement / num_moved,
                "consistent": found.consistent,
                "median_error": found.median_error,
            }
            for reading, found in consistency.items()
        },
        "likeliest": likeliest.name,
        "overlap": _overlap(views, consistency[likeliest]),
        "pairs": _pairs(views, consistency[likeliest]),
        "coverage": _coverage(scene, views),
        "up": functional.normalize(-poses[:, :3, 1].mean(0), dim=0).tolist(),
    }


def _overlap(views: list[_View], found: _Consistency) -> dict[str, Any]:
    """Measure the graph whose edges join views that see the same surface."""
    joined = found.agreeing >= OVERLAP * _num_probes(views)[:, None]
    joined = joined | joined.T
    num_groups, _ = connected_components(joined.numpy(), directed=False)
    return {"neighbours_per_view": joined.sum().item() / len(views), "groups": int(num_groups)}


def _pairs(views: list[_View], found: _Consistency, num_pairs: int = 3) -> list[dict[str, Any]]:
    """Choose pairs of different views that overlap by about 40 %: alike enough to compare, unlike enough to tell."""
    overlap = found.landed / _num_probes(views)[:, None]
    overlap.fill_diagonal_(0)
    pairs: list[dict[str, Any]] = []
    free = torch.ones(len(views), dtype=torch.bool)
    while len(pairs) < num_pairs and free.any():
        distance = (overlap - 0.4).abs().where(free[:, None] & free & (overlap > OVERLAP), torch.inf)
        first, second = divmod(int(distance.argmin()), len(views))
        if distance[first, second].isinf():
            break
        free[[first, second]] = False
        pairs.append(
            {"first": views[first].name, "second": views[second].name, "overlap": overlap[first, second].item()}
        )
    return pairs or [{"first": views[0].name, "second": views[-1].name, "overlap": overlap[0, -1].item()}]


def _num_probes(views: list[_View]) -> Int64[Tensor, "V"]:
    return torch.stack([(view.probes > 0).sum() for view in views]).clamp(min=1)


def _coverage(scene: Scene, views: list[_View]) -> dict[str, float]:
    """Count the views that see each cell of the cloud."""
    points = scene.points[sample_cells(scene.points, CELL).index_of_sample]
    num_views = torch.zeros(len(points), dtype=torch.int64)
    for view in views:
        tolerance = scene.occlusion_tolerance
        seen = visible_points(points, view.camera, view.depth, occlusion_tolerance=tolerance, border=0)
        num_views[seen.index] += 1
    seen_by = num_views[num_views > 0].double()
    return {
        "cell": CELL,
        "seen": (num_views > 0).double().mean().item(),
        "views_per_cell": seen_by.mean().item() if len(seen_by) else 0.0,
    }


def _lost_frames(left_out: list[str], num_frames: int) -> list[str]:
    share = len(left_out) / max(len(left_out) + num_frames, 1)
    if len(left_out) < 3 or share < LOST:
        return []
    return [f"{len(left_out)} frames, {share:.0%} of the capture, had to be left out; the lines below say why."]


def _odd_intrinsics(views: list[_View]) -> list[str]:
    """Say where intrinsics cannot belong to images of this size."""
    camera = views[0].camera
    size = torch.tensor([camera.width, camera.height], dtype=torch.float64)
    off_center = camera.center / size - 0.5
    angle = torch.rad2deg(2 * torch.atan(size / 2 / camera.focal))
    cure = "check that the intrinsics were made for images of this size."
    findings = []
    if (off_center.abs() > OFF_CENTER).any():
        x, y = (100 * (off_center + 0.5)).tolist()
        findings.append(f"The principal point lies at {x:.0f} % of the width, {y:.0f} % of the height; {cure}")
    if (angle < PLAUSIBLE_VIEW[0]).any() or (angle > PLAUSIBLE_VIEW[1]).any():
        x, y = angle.tolist()
        findings.append(f"The camera opens by {x:.0f} x {y:.0f} degrees; {cure}")
    return findings


def _misfit(consistency: dict[Reading, _Consistency], likeliest: Reading) -> list[str]:
    given, best = consistency[AS_GIVEN], consistency[likeliest]
    if likeliest is not AS_GIVEN:
        return [
            f"{likeliest.finding} Then {best.agreement} tested pixels agree between views, now {given.agreement} do."
        ]
    if int(given.landed.sum()) >= ENOUGH and given.consistent < CONTRADICTORY:
        return [
            f"Views contradict each other: only {given.consistent:.0%} of the pixels that should fit do, and no usual "
            "mistake explains it. Poses may belong to other images (order, time stamps) or drift, or "
            "intrinsics are wrong."
        ]
    return []


def _odd_depth(measurements: dict[str, Any], likeliest: Reading) -> list[str]:
    median = measurements["depth"]["median"]
    if likeliest.depth_scale != 1 or PLAUSIBLE_DEPTH[0] <= median <= PLAUSIBLE_DEPTH[1]:
        return []
    return [f"The median depth is {median:.3g} m, which no room has; check the unit of the depth images."]


def _odd_coverage(measurements: dict[str, Any], likeliest: Reading) -> list[str]:
    seen = measurements["coverage"]["seen"]
    if likeliest is not AS_GIVEN or seen > 0.02:
        return []
    return [f"Views see {seen:.1%} of the cloud; check that cloud and poses share one world frame."]


def _untested(consistency: dict[Reading, _Consistency], likeliest: Reading) -> list[str]:
    """Say what the views cannot tell."""
    best = consistency[likeliest]
    if int(best.landed.sum()) < ENOUGH:
        return ["Poses and depth unit could not be tested: no two views see the same surface."]
    alike = [reading.name for reading in READINGS if consistency[reading].agreement * BETTER > best.agreement]
    alike.remove(likeliest.name)
    if not alike or best.consistent < CONTRADICTORY:
        return []
    return [f"Views lie too close together to tell {likeliest.name} from {', '.join(alike)}."]


def _lying(measurements: dict[str, Any]) -> list[str]:
    """Say when up is clearly another axis than +z."""
    up = measurements["up"]
    axis = int(np.abs(up).argmax())
    if (axis == 2 and up[2] > 0) or abs(up[axis]) < 0.7:
        return []
    return [f"Up looks like {'+-'[up[axis] < 0]}{'xyz'[axis]} rather than +z: the scene lies on its side or head."]


_COLORS = LinearSegmentedColormap.from_list("error", ["#ff2d20", "#ffd24a", "#2fc35a", "#5ec8ff", "#2350ff"])


def _draw_agreement(axis: Axes, first: Frame, second: Frame, reading: Reading) -> PathCollection:
    """Draw the surface of the first view on the second's picture; return the points, for their colour bar."""
    step = max(1, round(first.camera.width / 107))
    depth, thinned = first.read_depth(), torch.zeros(first.camera.height, first.camera.width)
    thinned[step // 2 :: step, step // 2 :: step] = depth[step // 2 :: step, step // 2 :: step]
    points, _ = back_project(thinned * reading.depth_scale, _reread(first.camera, reading))
    landed, measured = _land(points, _reread(second.camera, reading), second.read_depth() * reading.depth_scale)
    percent = 100 * (landed.depth - measured) / measured
    overlap = len(percent) / max(len(points), 1)
    agreeing = int((percent.abs() <= 100 * TOLERANCE).sum()) / max(len(percent), 1)
    axis.imshow(second.read_image().mean(0).numpy() * 0.5 + 0.5, cmap="gray", vmin=0, vmax=1)
    axis.set_title(
        f"{first.name} on {second.name}, {reading.name}:\n{overlap:.0%} land there, {agreeing:.0%} of them agree"
    )
    x, y = landed.pixels.numpy().T
    return axis.scatter(x, y, c=percent.numpy(), cmap=_COLORS, vmin=-20, vmax=20, s=5, linewidths=0)
