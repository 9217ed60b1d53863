"""Views as the check sees them: depth thinned, some of its pixels chosen as probes, and what the photograph is like."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float16, Float32, Float64, Int64
from torch import Tensor
from torch.nn import functional

from cuao3d.check.registration import correlate, edges_of, jumps_of
from cuao3d.errors import InputError, UserError
from cuao3d.gravity import thin
from cuao3d.scene import Camera, Frame, Problem, Scene, pose_problem

MAX_VIEWS = 100
"""Views that are read; of longer captures, evenly spaced ones."""

PHOTO_WIDTH = 320
"""Photographs are thinned to about this width, pixels: an offset of 1 % of the width still is three pixels."""


WHITE = 0.97
"""Brightness from which on a pixel shows nothing."""


class Photo(NamedTuple):
    """What is measured on a photograph."""

    offsets: Float32[Tensor, "d d"]
    """How well its edges fit those of depth at each offset; see `registration.py`."""
    thinned_by: int
    """Pixels of the image per pixel of `offsets`, `edges` and `jumps`."""
    edges: Float16[Tensor, "p q"]
    """How much brightness changes."""
    jumps: Bool[Tensor, "p q"]
    """Where depth jumps."""
    sharpness: float
    """Variance of the Laplacian of its brightness, for a mean brightness of 1: a dark photograph is not blurred."""
    brightness: float
    """Mean brightness, in [0, 1]."""
    median: float
    """Median brightness, in [0, 1]."""
    white: float
    """Share of its pixels that are as bright as `WHITE`."""


class View(NamedTuple):
    """A thinned view."""

    name: str
    camera: Camera
    depth: Float32[Tensor, "h w"]
    probes: Float32[Tensor, "h w"]
    """Depth where it is moved into the other views, else 0."""
    photo: Photo


class Views(NamedTuple):
    """What could be read of a capture."""

    views: list[View]
    problems: list[Problem]
    """Frames that were left out and why."""
    num_lost: int
    """Frames of the whole capture that are lost, as far as those that were read tell."""


def read_views(scene: Scene) -> Views:
    """Read at most `MAX_VIEWS` of a scene's views; the poses of all are looked at."""
    problems = {
        index: Problem("pose", f"{frame.name} left out: {problem}.")
        for index, frame in enumerate(scene.frames)
        if (problem := pose_problem(frame.camera.world_from_camera))
    }
    posed = [index for index in range(len(scene.frames)) if index not in problems]
    num_lost = len(problems)
    places = np.linspace(0, len(posed) - 1, min(len(posed), MAX_VIEWS)).round().astype(int)
    num_probes = min(500, max(50, 250_000 // max(len(places), 1) ** 2))
    generator = torch.Generator().manual_seed(0)
    views = []
    for index in (posed[place] for place in places):
        frame = scene.frames[index]
        try:
            views.append(_read_view(frame, num_probes, generator))
        except (UserError, OSError) as error:
            problems[index] = Problem.of_frame(frame.name, error)
    unreadable = (len(problems) - num_lost) / max(len(places), 1)
    return Views(views, [problems[index] for index in sorted(problems)], num_lost + round(unreadable * len(posed)))


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: tensors here are small, and threads wait for each other longer than they take."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def num_probes(views: list[View]) -> Int64[Tensor, "V"]:
    """Count the probes of each view; one at least, so that it can be divided by."""
    return torch.stack([(view.probes > 0).sum() for view in views]).clamp(min=1)


def poses_of(views: list[View]) -> Float64[Tensor, "V 4 4"]:
    """Stack the views' poses, as given."""
    return torch.stack([view.camera.world_from_camera for view in views])


def _read_view(frame: Frame, num_probes: int, generator: torch.Generator) -> View:
    camera = frame.camera
    image, depth = frame.read_image(), frame.read_depth()
    for what, (height, width) in (("image", image.shape[1:]), ("depth", depth.shape)):
        if (width, height) != (camera.width, camera.height):
            raise InputError(f"its {what} is {width} x {height}, its camera {camera.width} x {camera.height}.")
    photo = _measure_photo(image, depth)
    camera, depth = thin(camera, depth)
    valid = torch.nonzero(depth.flatten() > 0).squeeze(1)
    probes = torch.zeros_like(depth)
    chosen = valid[torch.randperm(len(valid), generator=generator)[:num_probes]]
    probes.view(-1)[chosen] = depth.view(-1)[chosen]
    return View(frame.name, camera, depth, probes, photo)


def thin_photo(image: Float32[Tensor, "3 H W"]) -> Float32[Tensor, "p q"]:
    """Return the brightness of an image, thinned to about `PHOTO_WIDTH` pixels."""
    return functional.avg_pool2d(image.mean(dim=0)[None], _step_of(image))[0]


def _step_of(image: Float32[Tensor, "3 H W"]) -> int:
    return max(1, round(image.shape[2] / PHOTO_WIDTH))


def _measure_photo(image: Float32[Tensor, "3 H W"], depth: Float32[Tensor, "H W"]) -> Photo:
    step, gray = _step_of(image), thin_photo(image)
    depth = depth[step // 2 :: step, step // 2 :: step][: gray.shape[0], : gray.shape[1]]
    laplacian = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * gray[1:-1, 1:-1]
    brightness = gray.mean().item()
    edges, jumps = edges_of(gray), jumps_of(depth)
    return Photo(
        offsets=correlate(edges, jumps.float()),
        thinned_by=step,
        edges=edges.half(),
        jumps=jumps,
        sharpness=laplacian.var().item() / max(brightness, 1e-3) ** 2,
        brightness=brightness,
        median=gray.median().item(),
        white=(gray >= WHITE).double().mean().item(),
    )
