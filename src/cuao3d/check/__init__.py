"""Pre-flight check: do poses, depth, intrinsics and colours fit together, or which usual mistake would make them fit?

`consistency.py` moves pixels between views, under every usual mistake in turn; `registration.py` lays colours on
depth; `cuao3d.gravity` finds up; here all of it becomes a verdict. `pictures.py` draws it, `page.py` makes it a page.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from cuao3d.check.consistency import (
    AS_GIVEN,
    BETTER,
    CONTRADICTORY,
    ENOUGH,
    OTHER_SIZE,
    Consistency,
    Reading,
    choose_pairs,
    joined_views,
    likeliest_reading,
    measure_readings,
)
from cuao3d.check.registration import find_offset
from cuao3d.check.views import View, Views, num_probes, on_one_thread, poses_of, read_views
from cuao3d.fusion import sample_cells
from cuao3d.geometry import visible_points
from cuao3d.gravity import describe_up, find_up, up_option
from cuao3d.readers.options import SAME_AXIS
from cuao3d.scene import Camera, Scene

CaptureVerdict = Literal["ok", "probably wrong", "unreadable"]

CELL = 0.05
"""Edge of the cells whose coverage is counted, metres."""

LOST = 0.2
"""Share of frames left out above which something is wrong with the capture."""

FEW = 2
"""... if they are at least this many: one bad frame is no reason to stop, however short the capture."""

PLAUSIBLE_DEPTH = (0.2, 20.0)
"""Median depth of a room, metres: outside of it the unit is wrong."""

PLAUSIBLE_VIEW = (20.0, 140.0)
"""Opening angle of a camera, degrees: outside of it the focal length belongs to another image size."""

OFF_CENTER = 0.15
"""How far a principal point may lie from the middle of the image, as a part of its size."""

BLURRED = 0.1
"""A photograph is called blurred where its Laplacian varies less than this part of the median: a tenth is a walk's
motion blur, a third is a white wall."""

DARK, BRIGHT = 0.35, 1.8
"""A photograph is called dark or bright below and above these parts of the capture's median brightness."""

UNDEREXPOSED = 0.08
"""A photograph is underexposed where half of it is darker than this; made rooms and a real one have 0.18 and more."""

OVEREXPOSED = 2 / 3
"""... and overexposed where more than this share of it is `views.WHITE`; they have at most a half."""


UNTOLD = "Whether floors are level, to a degree, could not be told: too little level surface is seen."


class Finding(NamedTuple):
    """Something that is wrong."""

    cause: str
    """What it is called; `docs/check.md` lists all."""
    text: str
    """What to tell the user, with what cures it."""
    options: Mapping[str, Any] = {}
    """What a `capture.json` beside the data must say to cure it, if it can."""


@dataclass(frozen=True)
class Report:
    """What was found out about a scene before anything is computed from it."""

    verdict: CaptureVerdict
    """Whether to go on."""
    reasons: tuple[str, ...]
    """Why, a line each; with the verdict "ok", what was left out or could not be tested."""
    measurements: dict[str, Any] = field(default_factory=dict)
    """What was measured; JSON-able. Lengths in metres, shares in [0, 1]."""
    causes: tuple[str, ...] = ()
    """What is wrong, in a word for each of the first reasons; empty unless the verdict is "probably wrong"."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options for the `capture.json` beside the data; `capture_options` merges them with the existing ones."""

    @property
    def exit_code(self) -> int:
        """Exit code of the command line: 0 = ok, 1 = probably wrong, 2 = unreadable."""
        return {"ok": 0, "probably wrong": 1, "unreadable": 2}[self.verdict]


@on_one_thread()
def check(scene: Scene) -> Report:
    """Find out whether a scene's poses, depth, intrinsics, colours and cloud fit together.

    Args:
        scene: The scene; at most `views.MAX_VIEWS` of its views are read.
    """
    if scene.frames and not any(frame.has_colors for frame in scene.frames):
        no_colors = f"Scene {scene.name} has no colour images, which teachers and this check need."
        return Report("unreadable", (f"{no_colors} Points alone: cuao3d fuse DATA --out STORE --teachers none.",))
    read = read_views(scene)
    views, left_out = read.views, [*scene.problems, *read.problems]
    if not views or not len(scene.points):
        missing = "point" if views else "view that can be read"
        return Report("unreadable", (f"Scene {scene.name} has no {missing}.", *map(str, left_out)))
    camera = next(frame.camera for frame in scene.frames if frame.name == views[0].name)
    consistency = measure_readings(views, camera)
    likeliest = likeliest_reading(consistency)
    measurements = _measure(scene, camera, views, consistency, likeliest) | {"num_left_out": len(left_out)}
    median = measurements["depth"]["median"]
    misfit = _odd_intrinsics(camera, consistency, likeliest) or _misfit(consistency, likeliest, median)
    elsewhere = _odd_coverage(measurements, likeliest)
    findings = [
        *_lost_frames(scene, read),
        *misfit,
        *_odd_depth(median, likeliest),
        *elsewhere,
        *_moved_colors(measurements["registration"]),
        *([] if misfit or elsewhere else _upside_down(measurements["up"])),
    ]
    remarks = [
        *map(str, left_out),
        *_untested(consistency, likeliest),
        *_odd_photos(measurements["photos"], len(views)),
    ]
    options = {key: value for finding in findings for key, value in finding.options.items()}
    if not findings:
        tilted, options = _tilted(measurements["up"])
        remarks += tilted
    return Report(
        "probably wrong" if findings else "ok",
        (*(_with_cure(finding) for finding in findings), *remarks),
        measurements,
        tuple(finding.cause for finding in findings),
        options,
    )


def views_of_cells(scene: Scene, views: list[View]) -> tuple[Float32[Tensor, "S 3"], Int64[Tensor, "S"]]:
    """Return a point of every cell of the cloud, metres, and the number of views that see it, poses as given."""
    points = scene.points[sample_cells(scene.points, CELL).index_of_sample]
    num_views = torch.zeros(len(points), dtype=torch.int64)
    for view in views:
        tolerance = scene.occlusion_tolerance
        seen = visible_points(points, view.camera, view.depth, occlusion_tolerance=tolerance, border=0)
        num_views[seen.index] += 1
    return points, num_views


def _with_cure(finding: Finding) -> str:
    if not finding.options:
        return finding.text
    return f"{finding.text} Or: cuao3d check --fix, which writes {json.dumps(finding.options)} to capture.json."


def _measure(
    scene: Scene,
    camera: Camera,
    views: list[View],
    consistency: dict[Reading, Consistency],
    likeliest: Reading,
) -> dict[str, Any]:
    num_moved = max(int(num_probes(views).sum()) * (len(views) - 1), 1)
    depth = torch.cat([view.depth.flatten() for view in views])
    rotations = poses_of(views)[:, :3, :3]
    near, median, far = np.quantile(depth[depth > 0].numpy(), [0.05, 0.5, 0.95]).tolist() if depth.any() else [0.0] * 3
    found = consistency[likeliest]
    joined, group_of_view = joined_views(views, found)
    offset = find_offset(
        torch.stack([view.photo.offsets for view in views]), views[0].photo.thinned_by, scene.frames[0].camera.width
    )
    return {
        "num_frames": len(scene.frames),
        "num_views_tested": len(views),
        "num_points": len(scene.points),
        "occlusion_tolerance": scene.occlusion_tolerance,
        "image_sizes": sorted({(frame.camera.width, frame.camera.height) for frame in scene.frames}),
        "focal": camera.focal.tolist(),
        "center": camera.center.tolist(),
        "rotation_error": (rotations @ rotations.mT - torch.eye(3).double()).abs().max().item(),
        "depth": {"near": near, "median": median, "far": far, "missing": (depth == 0).double().mean().item()},
        "readings": {
            reading.name: {
                "agreeing": one.agreement / num_moved,
                "consistent": one.consistent,
                "median_error": one.median_error,
            }
            for reading, one in consistency.items()
        },
        "likeliest": likeliest.name,
        "overlap": {
            "neighbours_per_view": joined.sum().item() / len(views),
            "groups": len(set(group_of_view)),
            "apart": _apart(views, group_of_view),
        },
        "pairs": choose_pairs(views, found),
        "coverage": _coverage(scene, views),
        "registration": offset._asdict(),
        "up": find_up([likeliest.camera(view.camera) for view in views], [view.depth for view in views]),
        "photos": _photos(views),
    }


def _apart(views: list[View], group_of_view: list[int]) -> list[str]:
    """Name the views outside the largest group."""
    largest = int(np.bincount(group_of_view).argmax())
    return [view.name for view, group in zip(views, group_of_view, strict=True) if group != largest]


def _coverage(scene: Scene, views: list[View]) -> dict[str, Any]:
    """Count the views that see each cell of the cloud."""
    _, num_views = views_of_cells(scene, views)
    seen_by = num_views[num_views > 0].double()
    return {
        "cell": CELL,
        "seen": (num_views > 0).double().mean().item(),
        "views_per_cell": seen_by.mean().item() if len(seen_by) else 0.0,
    }


def _photos(views: list[View]) -> dict[str, Any]:
    """Find photographs that are badly exposed, or, where there are not only a few, unlike the others."""
    sharpness = np.array([view.photo.sharpness for view in views])
    brightness = np.array([view.photo.brightness for view in views])
    usual_sharpness, usual = float(np.median(sharpness)), float(np.median(brightness))
    odd = {
        "blurred": sharpness < BLURRED * usual_sharpness,
        "dark": brightness < DARK * usual,
        "bright": brightness > BRIGHT * usual,
    }
    if len(views) < 5:
        odd = {kind: np.zeros(len(views), dtype=bool) for kind in odd}
    odd["underexposed"] = np.array([view.photo.median < UNDEREXPOSED for view in views])
    odd["overexposed"] = np.array([view.photo.white > OVEREXPOSED for view in views])
    return {"sharpness": usual_sharpness, "brightness": usual} | {
        kind: [view.name for view, is_odd in zip(views, found, strict=True) if is_odd] for kind, found in odd.items()
    }


def _lost_frames(scene: Scene, read: Views) -> list[Finding]:
    lost = [problem.kind for problem in scene.problems if problem.kind in ("pose", "frame")]
    num_lost = len(lost) + read.num_lost
    share = num_lost / max(len(lost) + len(scene.frames), 1)
    if num_lost < FEW or share < LOST:
        return []
    kinds = [*lost, *(problem.kind for problem in read.problems)]
    of_poses = kinds.count("pose") > len(kinds) / 2
    what = "most for their poses" if of_poses else "the lines below say why"
    cure = "Align again, or record again, slower." if of_poses else ""
    return [
        Finding(
            "lost poses" if of_poses else "lost frames",
            f"{num_lost} frames, {share:.0%} of the capture, had to be left out, {what}. {cure}".strip(),
        )
    ]


def _odd_intrinsics(camera: Camera, consistency: dict[Reading, Consistency], likeliest: Reading) -> list[Finding]:
    """Say where intrinsics cannot belong to images of this size."""
    size = torch.tensor([camera.width, camera.height], dtype=torch.float64)
    place = camera.center / size
    angle = torch.rad2deg(2 * torch.atan(size / 2 / camera.focal))
    off = bool(((place - 0.5).abs() > OFF_CENTER).any())
    cure = next((reading.finding for reading in consistency if reading.name == OTHER_SIZE), "")
    cure = cure or "Check that the intrinsics were made for images of this size."
    if off or likeliest.name == OTHER_SIZE:
        x, y = (100 * place).tolist()
        return [
            Finding(OTHER_SIZE, f"The principal point lies at {x:.0f} % of the width, {y:.0f} % of the height. {cure}")
        ]
    if (angle < PLAUSIBLE_VIEW[0]).any() or (angle > PLAUSIBLE_VIEW[1]).any():
        x, y = angle.tolist()
        return [Finding(OTHER_SIZE, f"The camera opens by {x:.0f} x {y:.0f} degrees. {cure}")]
    return []


def _misfit(consistency: dict[Reading, Consistency], likeliest: Reading, median: float) -> list[Finding]:
    """Say where views do not fit together; `median` is the depth as given, metres."""
    given, best = consistency[AS_GIVEN], consistency[likeliest]
    gain = f"Then {best.agreement} tested pixels agree between views, now {given.agreement} do."
    if _is_plausible(median) and not _is_plausible(median * likeliest.depth_scale):
        factor = 1 / likeliest.depth_scale
        text = f"Positions of the cameras look {likeliest.depth_scale:g} times too large for the depth"
        return [
            Finding("poses in another unit", f"{text}: multiply them by {factor:g}. {gain}", {"world_scale": factor})
        ]
    if likeliest is not AS_GIVEN:
        return [Finding(likeliest.name, f"{likeliest.finding} {gain}", likeliest.options)]
    if int(given.landed.sum()) >= ENOUGH and given.consistent < CONTRADICTORY:
        return [
            Finding(
                "poses of other frames",
                f"Views contradict each other: only {given.consistent:.0%} of the pixels that should fit do, and no "
                "usual mistake of convention or unit explains it. Most likely poses belong to other images: compare "
                "their order (frame-10 sorts before frame-2) and time stamps. Else they drift, or intrinsics are off.",
            )
        ]
    return []


def _odd_depth(median: float, likeliest: Reading) -> list[Finding]:
    if likeliest.depth_scale != 1 or _is_plausible(median):
        return []
    text = f"The median depth is {median:.3g} m, which no room has; check the unit of the depth images."
    return [Finding("depth in another unit", text)]


def _is_plausible(median: float) -> bool:
    return PLAUSIBLE_DEPTH[0] <= median <= PLAUSIBLE_DEPTH[1]


def _odd_coverage(measurements: dict[str, Any], likeliest: Reading) -> list[Finding]:
    seen = measurements["coverage"]["seen"]
    if likeliest is not AS_GIVEN or seen > 0.02:
        return []
    text = f"Views see {seen:.1%} of the cloud; check that cloud and poses share one world frame."
    return [Finding("cloud in another world", text)]


def _moved_colors(offset: Mapping[str, Any]) -> list[Finding]:
    if not offset["moved"]:
        return []
    x, y = offset["x"], offset["y"]
    across = f"{abs(x)} pixels to the {'right' if x > 0 else 'left'}" if x else ""
    along = f"{abs(y)} pixels {'down' if y > 0 else 'up'}" if y else ""
    where = " and ".join(filter(None, (across, along)))
    text = f"Colours lie {where} of depth: register them again, with the calibration between both sensors."
    return [Finding("colours off depth", text)]


def _upside_down(up: dict[str, Any]) -> list[Finding]:
    if up["axis"] != "-z" or not up["certain"]:
        return []
    return [Finding("upside down", f"The world is upside down: {describe_up(up)}.", {"up": up_option(up)})]


def _untested(consistency: dict[Reading, Consistency], likeliest: Reading) -> list[str]:
    """Say what the views cannot tell."""
    best = consistency[likeliest]
    if int(best.landed.sum()) < ENOUGH:
        return ["Poses and depth unit could not be tested: no two views see the same surface."]
    alike = [
        reading.name
        for reading, found in consistency.items()
        if reading is not likeliest and found.agreement * BETTER > best.agreement
    ]
    if not alike or best.consistent < CONTRADICTORY:
        return []
    return [f"Views lie too close together to tell {likeliest.name} from {', '.join(alike)}."]


def _odd_photos(photos: dict[str, Any], num_views: int) -> list[str]:
    """Name photographs that stand out; they are worth a look, not a verdict."""
    lines = []
    for kind, exposure in (("underexposed", "Very dark"), ("overexposed", "Overexposed")):
        if names := photos[kind]:
            share = f"{len(names)} of {num_views} views ({len(names) / num_views:.0%})"
            lines.append(f"{exposure}: {share}, in which teachers recognise little: {_first(names)}.")
    named = {*photos["underexposed"], *photos["overexposed"]}
    for kind in ("blurred", "dark", "bright"):
        if names := [name for name in photos[kind] if name not in named]:
            lines.append(f"Beside the others, {kind}: {_first(names)}.")
    return lines


def _first(names: Sequence[str]) -> str:
    """List names, at most five."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"


def _tilted(up: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Say when up is or may be another direction than +z, and the option that turns the world if that is sure."""
    axis, tilt = up["axis"], up["tilt"]
    if axis is None:
        return [f"Which way is up could not be told: {describe_up(up)}."], {}
    if tilt is not None and tilt <= SAME_AXIS:
        return [], {}
    looks = f"Up looks like {axis if axis.startswith('-') else f'+{axis}'} rather than +z"
    if not up["certain"]:
        if axis == "z":
            return [UNTOLD if up["facing"] is None else f"Up may not be +z: {describe_up(up)}."], {}
        return [f"{looks}, if cameras were held upright: {describe_up(up)}."], {}
    if tilt is None and axis == "z":
        return [UNTOLD], {}
    options = {"up": up_option(up)}
    tilted = "the scene lies on its side" if tilt is None else f"the world is tilted by {tilt:.1f} degrees"
    what = tilted.capitalize() if axis == "z" else f"{looks}: {tilted}"
    return [f"{what}; --fix writes {json.dumps(options)} to capture.json."], options
