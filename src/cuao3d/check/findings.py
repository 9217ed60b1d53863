"""What is wrong with a capture, what only looks odd, and what could not be tested: in words, with what cures it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from cuao3d.check.cloud import Cells, share_beside
from cuao3d.check.consistency import BETTER, CONTRADICTORY, ENOUGH, Consistency
from cuao3d.check.readings import AS_GIVEN, OTHER_SIZE, Reading
from cuao3d.check.units import are_positions_off, is_plausible, round_factor, unit_of_positions
from cuao3d.check.views import View, Views
from cuao3d.gravity import describe_up, up_option
from cuao3d.readers.options import SAME_AXIS
from cuao3d.scene import Camera, Scene

LOST = 0.2
"""Share of frames left out above which something is wrong with the capture."""

FEW = 2
"""... if they are at least this many: one bad frame is no reason to stop, however short the capture."""

PLAUSIBLE_VIEW = (20.0, 140.0)
"""Opening angle of a camera, degrees: outside of it the focal length belongs to another image size."""

OFF_CENTER = 0.15
"""How far a principal point may lie from the middle of the image, as a part of its size."""

NOISY = 0.03
"""Part of the depth by which views may differ at the median, as the poses of good captures let them."""

UNSEEN = 0.02
"""Share of the cloud that views must see at least."""

SEEN_THROUGH, BESIDE = 0.2, 0.5
"""A cloud of another world: views look through more than this share of what they should see of it, and less than this
share of the surfaces that they measured has points beside it. Either alone has other reasons: glass, a sparse cloud."""

UNTOLD = "Whether floors are level, to a degree, could not be told: too little level surface is seen."


class Finding(NamedTuple):
    """Something that is wrong."""

    cause: str
    """What it is called; `docs/check.md` lists all."""
    text: str
    """What to tell the user, with what cures it."""
    options: Mapping[str, Any] = {}
    """What a `capture.json` beside the data must say to cure it, if it can."""
    is_doubtful: bool = False
    """Whether it is only known that something does not fit, and not what."""

    @property
    def line(self) -> str:
        """Text and cure."""
        if not self.options:
            return self.text
        return f"{self.text} Or: cuao3d check --fix, which writes {json.dumps(self.options)} to capture.json."


def lost_frames(scene: Scene, read: Views) -> list[Finding]:
    """Say where a large part of the capture had to be left out."""
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


def odd_intrinsics(camera: Camera, consistency: dict[Reading, Consistency], likeliest: Reading) -> list[Finding]:
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


def misfit(
    consistency: dict[Reading, Consistency], likeliest: Reading, median: float, cells: Cells, views: list[View]
) -> list[Finding]:
    """Say which mistake makes views fit together; `median` is the depth as given, metres."""
    given, best = consistency[AS_GIVEN], consistency[likeliest]
    gain = f"Then {best.agreement} tested pixels agree between views, now {given.agreement} do."
    if likeliest.unscaled is not None and are_positions_off(median, likeliest.depth_scale):
        return [_odd_positions(likeliest, likeliest.unscaled, gain, cells, views)]
    if likeliest is not AS_GIVEN:
        return [Finding(likeliest.name, f"{likeliest.finding} {gain}", likeliest.options)]
    return []


def contradiction(given: Consistency, order: str | None) -> list[Finding]:
    """Say that views contradict each other as given, and no convention or unit explains it.

    Args:
        given: How views fit together as given.
        order: What tells that poses belong to other frames, if something does.
    """
    if int(given.landed.sum()) < ENOUGH or given.consistent >= CONTRADICTORY:
        return []
    what = f"Views contradict each other: only {given.consistent:.0%} of the pixels that should fit do"
    if order is not None:
        return [
            Finding(
                "poses of other frames",
                f"{what}. {order} Compare the order of poses and images (frame-10 sorts before frame-2) and their time "
                "stamps.",
            )
        ]
    return [
        Finding(
            "views contradict each other",
            f"{what}, and no known mistake of convention, unit or order explains it. Poses may drift, belong to other "
            "images (compare time stamps), or have another convention; or intrinsics are off.",
            is_doubtful=True,
        )
    ]


def _odd_positions(likeliest: Reading, unscaled: Reading, gain: str, cells: Cells, views: list[View]) -> Finding:
    """Say that positions of cameras, and those of a cloud that fits them, have another unit than depth."""
    factor = round_factor(1 / likeliest.depth_scale)
    scaled = [view._replace(camera=_farther(view.camera, factor)) for view in views]
    key = "world_scale" if share_beside(cells.points * factor, scaled, unscaled) > BESIDE else "pose_scale"
    large, how = max(factor, 1 / factor), "large" if factor < 1 else "small"
    unit = unit_of_positions(factor)
    reason = f"as if written {unit}" if unit else "as structure from motion (COLMAP) leaves them, without a unit"
    text = f"Positions of the cameras look {large:.4g} times too {how} for the depth, {reason}: multiply them by"
    cause = "poses in another unit"
    return Finding(
        cause if unscaled is AS_GIVEN else f"{unscaled.name}, {cause}",
        f"{unscaled.finding} {text} {factor:.6g}. {gain}".strip(),
        {**unscaled.options, key: factor},
    )


def _farther(camera: Camera, factor: float) -> Camera:
    pose = camera.world_from_camera.clone()
    pose[:3, 3] *= factor
    return replace(camera, world_from_camera=pose)


def odd_depth(median: float, likeliest: Reading) -> list[Finding]:
    """Say where no room has such depths, metres, and views do not tell the factor."""
    if likeliest.depth_scale != 1 or is_plausible(median):
        return []
    text = f"The median depth is {median:.3g} m, which no room has; check the unit of the depth images."
    return [Finding("depth in another unit", text)]


def odd_coverage(coverage: dict[str, Any]) -> list[Finding]:
    """Say where cloud and poses cannot share one world: neither covers the other, or views look through the cloud."""
    seen, through, beside = (coverage[key] for key in ("seen", "seen_through", "surface_with_points"))
    if seen > UNSEEN and not (through > SEEN_THROUGH and beside < BESIDE):
        return []
    text = (
        f"Views see {seen:.1%} of the cloud, look through {through:.0%} of what they should see, and {beside:.0%} of "
        "the surfaces that they measured have points: cloud and poses do not share one world frame. Move the cloud "
        "to that of the poses (ScanNet: axis_align turns the one and not the other), or leave it out: it is then built "
        "from depth."
    )
    return [Finding("cloud in another world", text)]


def misplaced_colors(layers: dict[str, Any]) -> list[Finding]:
    """Say where colours lie elsewhere than depth."""
    kind, x, y = layers["kind"], layers["x"], layers["y"]
    shift, better = [float(x), float(y)], f"Their edges then fit ({layers['best']:.2f}), now {layers['fit']:.2f}."
    if kind == "moved":
        text = f"Colours lie {_where(x, y)} of depth: register them again, with the calibration between both sensors."
        return [Finding("colours off depth", text, {"color_shift": shift})]
    if kind == "other lens":
        focal = layers["focal"]
        text = (
            f"Colours look taken through another lens than depth: focal length {focal:.3g} times as long"
            f"{f', and colours {_where(x, y)}' if x or y else ''}. {better}"
        )
        return [Finding("colours of another lens", text, {"color_focal": focal, "color_shift": shift})]
    if kind in ("upside down", "mirrored"):
        what = "turned by 180 degrees" if kind == "upside down" else "mirrored, left for right,"
        text = f"Photographs look {what} against depth (EXIF or an export may have done it): turn them back. {better}"
        return [Finding(f"photographs {kind}", text, {"photographs": kind})]
    if kind == "another frame":
        lag = layers["lag"]
        text = (
            f"Colours look like those of another frame: each belongs to the depth {abs(lag)} frame(s) "
            f"{'earlier' if lag > 0 else 'later'}: pair them again by time stamps. {better}"
        )
        return [Finding("colours of another frame", text, {"color_lag": lag})]
    if kind == "none":
        text = (
            f"Colours and depth could not be laid on each other: {layers['num_views']} views have jumps of depth, and "
            "edges of colour lie on them nowhere. They may belong to different frames, be mirrored or turned, or be "
            "of lenses that differ much: look at both images of one frame."
        )
        return [Finding("colours not on depth", text, is_doubtful=True)]
    return []


def _where(x: int, y: int) -> str:
    across = f"{abs(x)} pixels to the {'right' if x > 0 else 'left'}" if x else ""
    along = f"{abs(y)} pixels {'down' if y > 0 else 'up'}" if y else ""
    return " and ".join(filter(None, (across, along)))


def upside_down(up: dict[str, Any]) -> list[Finding]:
    """Say where -z is up."""
    if up["axis"] != "-z" or not up["certain"]:
        return []
    return [Finding("upside down", f"The world is upside down: {describe_up(up)}.", {"up": up_option(up)})]


def untested(consistency: dict[Reading, Consistency], likeliest: Reading) -> list[str]:
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


def noisy_poses(measurements: dict[str, Any]) -> list[str]:
    """Name frames whose poses do not fit the others', and say where all are noisy."""
    lines = []
    noise, median = measurements["pose_noise"], measurements["depth"]["median"]
    if noise is not None and noise > NOISY and measurements["readings"][AS_GIVEN.name]["consistent"] >= CONTRADICTORY:
        lines.append(
            f"Views differ by {100 * noise * median:.1f} cm where they see one surface (median), {noise:.1%} of the "
            "depth: poses drift or are noisy, or depth is. A wider --tolerance may help."
        )
    if names := measurements["stray"]:
        lines.append(
            f"Poses that do not fit those of the frames beside them: {_first(names)}. To leave them out: cuao3d check "
            "--drop-worst, which writes their names to capture.json."
        )
    return lines


def odd_photos(photos: dict[str, Any], num_views: int) -> list[str]:
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


def tilted(up: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
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
