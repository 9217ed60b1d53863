"""Frames as `capture.json` corrects them: poses, lenses, depth, and which colours belong to which depth, and where."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float32, Float64
from torch import Tensor
from torch.nn import functional

from cuao3d.formats.entries import summarise
from cuao3d.formats.images import NoDepth
from cuao3d.formats.points import Points, far_offset
from cuao3d.readers.options import CAPTURE, CaptureOptions, Offset, Photographs, correct_pose
from cuao3d.scene import OPENGL, Camera, Frame, Problem

ALONG_RAYS = CaptureOptions(depth_along="rays")

HALF_TURN = torch.diag(torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64))
"""Turns a camera by 180 degrees about its optical axis."""


class Corrected(NamedTuple):
    """Frames that are read as `capture.json` says."""

    frames: list[Frame]
    options: CaptureOptions
    """The options, with the axes that negative focal lengths tell."""
    problems: list[Problem]
    """What was left out."""
    offset: Offset
    """Where our origin lies in the capture's coordinates; None for theirs."""


def correct_frames(frames: Sequence[Frame], options: CaptureOptions, points: Points | None = None) -> Corrected:
    """Apply what `capture.json` says to the frames of a capture, and move a far one near the origin.

    Negative focal lengths are read as axes that are turned: both, a camera upside down; fx alone, OpenGL's; fy alone, y
    up in a left-handed world, as ICL-NUIM has it.

    Args:
        frames: As the reader of the layout understood them, in capture order.
        options: What `capture.json` says.
        points: Its cloud.
    """
    offset = _offset(points, frames, options)
    if options.axes == "opencv" and frames and all(_points_up(frame.camera) for frame in frames):
        options = replace(options, axes="unity")
    paired = _pair(frames, options.color_lag)
    kept = [frame for frame in paired if frame.name not in options.skip]
    skipped = [frame.name for frame in paired if frame.name in options.skip]
    problems = [
        Problem("other", problem.text)
        for what, names in (
            (f"frames are left out, as {CAPTURE} says (skip)", skipped),
            (f"frames are left out: none is {options.color_lag} later (color_lag)", _lone(frames, options.color_lag)),
        )
        for problem in summarise(what, names)
    ]
    return Corrected([_correct(frame, options, offset) for frame in kept], options, problems, offset)


def turned_photograph(image: Float32[Tensor, "3 H W"], how: Photographs) -> Float32[Tensor, "3 H W"]:
    """Turn or mirror an image back."""
    return {"as read": image, "upside down": image.flip(1, 2), "mirrored": image.flip(2)}[how]


def through_lens(
    image: Float32[Tensor, "3 H W"], camera: Camera, focal: float, shift: tuple[float, float]
) -> Float32[Tensor, "3 H W"]:
    """Bring colours of another lens to the camera of depth.

    Args:
        image: Colours.
        camera: Camera of the depth image.
        focal: Focal length of the colours' lens, as a part of the camera's.
        shift: Pixels that colours lie further right, and further down.

    Returns:
        The colours as the camera would see them; black where their lens did not look.
    """
    return _seen_by(image, _rays(camera), camera, focal, shift)


def from_other_place(
    image: Float32[Tensor, "3 H W"],
    depth: Float32[Tensor, "H W"],
    camera: Camera,
    color_from_depth: Float64[Tensor, "4 4"],
    focal: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Float32[Tensor, "3 H W"]:
    """Bring colours of a lens that is in another place to the camera of depth: each pixel is looked up where it lies.

    What something nearer hides from the colours' lens gets its colour. Pixels without depth are taken to be as far as
    half of the others are.

    Args:
        image: Colours.
        depth: Depth along the optical axis, metres, 0 = missing.
        camera: Camera of the depth image.
        color_from_depth: Pose of the depth's camera in that of the colours, metres.
        focal: As of `through_lens`.
        shift: As of `through_lens`.

    Returns:
        The colours as the camera would see them; black where their lens did not look.
    """
    measured = depth[depth > 0]
    usual = measured.median() if len(measured) else depth.new_tensor(torch.inf)
    # Places are divided by their depth, so that what is infinitely far is a place as well.
    inverse = 1 / depth.where(depth > 0, usual).double()
    places = _rays(camera) @ color_from_depth[:3, :3].T + color_from_depth[:3, 3] * inverse[..., None]
    return _seen_by(image, places, camera, focal, shift)


def _rays(camera: Camera) -> Float64[Tensor, "H W 3"]:
    """Return where each pixel looks, at a depth of 1."""
    x, y = (torch.arange(size, dtype=torch.float64) for size in (camera.width, camera.height))
    x, y = (x - camera.center[0]) / camera.focal[0], (y - camera.center[1]) / camera.focal[1]
    x, y = torch.meshgrid(x, y, indexing="xy")
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def _seen_by(
    image: Float32[Tensor, "3 H W"],
    places: Float64[Tensor, "H W 3"],
    camera: Camera,
    focal: float,
    shift: tuple[float, float],
) -> Float32[Tensor, "3 H W"]:
    """Look places in the colours' camera up in its image; black where it does not see them."""
    size = torch.tensor([image.shape[2], image.shape[1]], dtype=torch.float64)
    ahead = places[..., 2:].clamp(min=1e-9)
    positions = camera.center + places[..., :2] / ahead * camera.focal * focal + torch.tensor(shift)
    positions = positions.where(places[..., 2:] > 0, -2 * size)
    grid = 2 * positions / (size - 1) - 1
    return functional.grid_sample(image[None], grid.float()[None], align_corners=True)[0]


def _offset(points: Points | None, frames: Sequence[Frame], options: CaptureOptions) -> Offset:
    """Return where our origin lies in the capture's coordinates: in a place of whole metres near a far capture."""
    if points is not None and points.offset is not None:
        return points.offset
    if not frames:
        return None
    as_read = replace(options, up="z", world_scale=1.0, pose_scale=1.0, axes="opencv")
    poses = [correct_pose(frame.camera.world_from_camera, as_read) for frame in frames]
    return far_offset(torch.stack(poses)[:, :3, 3])


def _correct(frame: Frame, options: CaptureOptions, offset: Offset) -> Frame:
    camera = _with_positive_focal(frame.camera)
    if options.swap_focal:
        camera = replace(camera, focal=camera.focal.flip(0))
    camera = replace(camera, world_from_camera=correct_pose(camera.world_from_camera, options, offset))
    read_image, read_depth = frame.read_image, frame.read_depth
    if not isinstance(read_depth, NoDepth) and (options.depth_scale != 1 or options.depth_along == "rays"):
        read_depth = partial(_corrected_depth, read_depth, camera, options)
    if options.color_from_depth is not None and isinstance(read_depth, NoDepth):  # the camera is that of the colours
        depth_from_color = torch.linalg.inv(torch.tensor(options.color_from_depth, dtype=torch.float64))
        camera = replace(camera, world_from_camera=camera.world_from_camera @ depth_from_color)
    has_other_lens = options.color_from_depth is not None and not isinstance(read_depth, NoDepth)
    colors = (options.photographs, options.color_focal, options.color_shift)
    if frame.has_colors and (has_other_lens or colors != ("as read", 1.0, (0.0, 0.0))):
        read_image = partial(_corrected_colors, read_image, read_depth if has_other_lens else None, camera, options)
    return replace(frame, camera=camera, read_image=read_image, read_depth=read_depth)


def _points_up(camera: Camera) -> bool:
    return bool(camera.focal[0] > 0 > camera.focal[1])


def _with_positive_focal(camera: Camera) -> Camera:
    x, y = (camera.focal < 0).tolist()
    if x:
        turn = HALF_TURN if y else OPENGL
        camera = replace(camera, world_from_camera=camera.world_from_camera @ turn)
    return replace(camera, focal=camera.focal.abs()) if x or y else camera


def _pair(frames: Sequence[Frame], lag: int) -> list[Frame]:
    """Give each frame the colours of the one that is so many later; leave out those for which there is none."""
    pairs = [(frame, index + lag) for index, frame in enumerate(frames) if 0 <= index + lag < len(frames)]
    return [
        replace(frame, read_image=frames[later].read_image, has_colors=frames[later].has_colors) if lag else frame
        for frame, later in pairs
    ]


def _lone(frames: Sequence[Frame], lag: int) -> list[str]:
    return [frame.name for index, frame in enumerate(frames) if not 0 <= index + lag < len(frames)]


def _corrected_depth(
    read_depth: Callable[[], Tensor], camera: Camera, options: CaptureOptions
) -> Float32[Tensor, "H W"]:
    depth = read_depth() * options.depth_scale
    return depth / lengths_of_rays(camera) if options.depth_along == "rays" else depth


def along_axis(frame: Frame) -> Frame:
    """Return a frame, whose depth as read is the distance from the camera, with depth along the optical axis."""
    if isinstance(frame.read_depth, NoDepth):
        return frame
    return replace(frame, read_depth=partial(_corrected_depth, frame.read_depth, frame.camera, ALONG_RAYS))


def lengths_of_rays(camera: Camera) -> Float32[Tensor, "H W"]:
    """Return how long the ray of each pixel is where it has a depth of 1."""
    x = (torch.arange(camera.width, dtype=torch.float64) - camera.center[0]) / camera.focal[0]
    y = (torch.arange(camera.height, dtype=torch.float64) - camera.center[1]) / camera.focal[1]
    return (1 + x**2 + y[:, None] ** 2).sqrt().float()


def _corrected_colors(
    read_image: Callable[[], Tensor], read_depth: Callable[[], Tensor] | None, camera: Camera, options: CaptureOptions
) -> Float32[Tensor, "3 H W"]:
    image = turned_photograph(read_image(), options.photographs)
    if read_depth is not None and options.color_from_depth is not None:
        pose = torch.tensor(options.color_from_depth, dtype=torch.float64)
        return from_other_place(image, read_depth(), camera, pose, options.color_focal, options.color_shift)
    if (options.color_focal, options.color_shift) == (1.0, (0.0, 0.0)):
        return image
    return through_lens(image, camera, options.color_focal, options.color_shift)
