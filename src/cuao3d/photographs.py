"""Photographs that a store keeps of a scene: places are shown in them on any machine, without the data."""

import heapq
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from cuao3d.formats.images import as_pixels, jpeg
from cuao3d.fusion import View, Visibility
from cuao3d.geometry import project
from cuao3d.scene import Camera, Frame, Scene
from cuao3d.schema import parse
from cuao3d.store import PHOTOGRAPHS_FILE, StoredScene
from cuao3d.store.schemas import FLOATS, check_shapes

MOST = 12
"""Photographs that are kept of a scene at most."""

LONG_SIDE = 640
"""Longer side of a photograph at most, pixels."""

QUALITY = 85
"""Quality of the JPEG."""

MIDDLE = (0.02, 0.98)
"""An outline leaves out the outermost points on each side, by these quantiles: a few are often wrong."""

NEARLY = 0.75
"""A photograph sees nearly as much of a place as another if it sees this part of the other's samples."""

PADDING, SMALLEST = 0.05, 24.0
"""Free space between an outline and its points, as a part of its size; and its smallest side, pixels."""

QUARTER = torch.tensor([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
"""Turns the axes of a camera by a quarter, counter-clockwise: `world_from_camera @ QUARTER`."""


@dataclass(frozen=True)
class Photograph:
    """A photograph of a scene."""

    name: str
    """Name of its frame."""
    jpeg: bytes
    """The photograph as a JPEG file; upright, as the teachers saw it."""
    camera: Camera
    """Its camera."""
    sees: Bool[Tensor, "S"]
    """Which samples of the scene it sees."""


@dataclass(frozen=True)
class Outline:
    """Where a place lies in a photograph."""

    photograph: Photograph
    left: float
    """Left edge, pixels; as the others, within the photograph."""
    top: float
    right: float
    bottom: float


class Album:
    """Keeps some of the images of a scene when they are read for its first teacher, so that none is read again."""

    def __init__(self, scene: Scene, visibility: Visibility, quarters: Sequence[int]) -> None:
        """Choose the frames whose images are kept.

        Args:
            scene: The scene.
            visibility: What its frames see.
            quarters: For each frame by how many quarters, counter-clockwise, its image is turned to be upright.
        """
        self._views = {view.frame: view for view in choose(visibility)}
        self._frames = {index: scene.frames[index] for index in self._views}
        self._quarters = {index: quarters[index] for index in self._views}
        self._cameras = {index: turned(scene.frames[index].camera, quarters[index]) for index in self._views}
        self._jpegs: dict[int, bytes] = {}

    def watch(self, scene: Scene) -> Scene:
        """Return the scene with frames that, when they are read, leave their images here."""
        frames = list(scene.frames)
        for index in self._views:
            frames[index] = replace(frames[index], read_image=partial(self._read, index, frames[index]))
        return replace(scene, frames=tuple(frames))

    def tensors(self, visibility: Visibility) -> dict[str, Tensor]:
        """Return what was kept, as a store writes it. Images that were read before an interruption are read again.

        Args:
            visibility: The visibility after lifting: frames that were left out then are left out here.
        """
        kept = [view for view in visibility.views if view.frame in self._views]
        for view in kept:
            if view.frame not in self._jpegs:
                self._read(view.frame, self._frames[view.frame])
        if not kept:
            return {}
        cameras = [self._cameras[view.frame] for view in kept]
        cameras = [camera.resized(*small_size(camera.width, camera.height)) for camera in cameras]
        sizes = torch.tensor([[camera.width, camera.height] for camera in cameras], dtype=torch.float64)
        lenses = [torch.cat([camera.focal, camera.center, size]) for camera, size in zip(cameras, sizes, strict=True)]
        names = json.dumps([self._frames[view.frame].name for view in kept]).encode()
        num_samples = len(visibility.num_views)
        return {
            "names": _as_tensor(names),
            "intrinsics": torch.stack(lenses),
            "world_from_camera": torch.stack([camera.world_from_camera for camera in cameras]),
            "sees": torch.stack([_pack(view.sample, num_samples) for view in kept]),
            **{f"jpeg.{index:02}": _as_tensor(self._jpegs[view.frame]) for index, view in enumerate(kept)},
        }

    def _read(self, index: int, frame: Frame) -> Tensor:
        image = frame.read_image()
        if index not in self._jpegs:
            self._jpegs[index] = encode_jpeg(image.rot90(self._quarters[index], (1, 2)))
        return image


def choose(visibility: Visibility, most: int = MOST) -> list[View]:
    """Choose views one after the other, each time the one that sees most samples that none of them has seen yet.

    Args:
        visibility: What the frames of a scene see.
        most: Number of views at most; fewer, if they see everything that any view sees.

    Returns:
        The views; of equally good ones the first was taken.
    """
    covered = torch.zeros(len(visibility.num_views), dtype=torch.bool)
    # What a view adds only shrinks. So the best one is found when the view that added most before still does.
    best_first = [(-len(view.sample), number) for number, view in enumerate(visibility.views)]
    heapq.heapify(best_first)
    chosen: list[View] = []
    while best_first and len(chosen) < most:
        _, number = heapq.heappop(best_first)
        view = visibility.views[number]
        now = (-int((~covered[view.sample]).sum()), number)
        if best_first and now > best_first[0]:
            heapq.heappush(best_first, now)
        elif now[0] == 0:
            break
        else:
            chosen.append(view)
            covered[view.sample] = True
    return chosen


def read_photographs(scene: StoredScene) -> tuple[Photograph, ...]:
    """Read the photographs that a store keeps of a scene.

    Args:
        scene: The scene.

    Returns:
        The photographs, in capture order; none if the scene was lifted without teachers, or by an earlier version.

    Raises:
        InputError: Their file is damaged.
    """
    if PHOTOGRAPHS_FILE not in scene.files:
        return ()
    return _photographs(scene.read(PHOTOGRAPHS_FILE), len(scene.num_views), scene.folder / PHOTOGRAPHS_FILE)


def outline(
    photographs: Iterable[Photograph],
    points: Float32[Tensor, "S 3"],
    place: Int64[Tensor, "n"],
    *,
    shown: Container[str] = (),
) -> Outline | None:
    """Outline a place in the photograph that sees most of its samples.

    Args:
        photographs: The photographs of a scene.
        points: World positions of the scene's samples, metres.
        place: The samples of the place.
        shown: Names of photographs that are shown anyway: one of them is taken if it sees nearly as much.

    Returns:
        The outline; None if no photograph sees any of the samples. Of photographs that see nearly as much, the place is
        largest in this one.
    """
    seen = [(photograph, place[photograph.sees[place]]) for photograph in photographs]
    most = max((len(samples) for _, samples in seen), default=0)
    good = [(photograph, samples) for photograph, samples in seen if most and len(samples) >= NEARLY * most]
    good = [(photograph, samples) for photograph, samples in good if photograph.name in shown] or good
    outlines = [_around(photograph, points[samples]) for photograph, samples in good]
    return max(outlines, key=lambda one: (one.right - one.left) * (one.bottom - one.top), default=None)


def turned(camera: Camera, quarters: int) -> Camera:
    """Return the camera of an image turned counter-clockwise by quarters.

    Args:
        camera: Camera of the image as it is.
        quarters: Number of quarters, as of `torch.rot90`.
    """
    for _ in range(quarters % 4):
        camera = Camera(
            focal=camera.focal.flip(0),
            center=torch.stack([camera.center[1], camera.width - 1 - camera.center[0]]),
            width=camera.height,
            height=camera.width,
            world_from_camera=camera.world_from_camera @ QUARTER,
        )
    return camera


def small_size(width: int, height: int) -> tuple[int, int]:
    """Return the size, width and height, at which an image is kept."""
    scale = min(1.0, LONG_SIDE / max(width, height))
    return max(2, round(width * scale)), max(2, round(height * scale))


_CURE = "delete the folder of the scene and run the same `cuao3d fuse` again"


def encode_jpeg(image: Float32[Tensor, "3 H W"]) -> bytes:
    """Return an image, RGB in [0, 1], as a JPEG file of the size at which it is kept."""
    width, height = small_size(image.shape[2], image.shape[1])
    if (height, width) != image.shape[1:]:
        image = functional.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
    return jpeg(as_pixels(image), quality=QUALITY)


def _photographs(tensors: Mapping[str, Tensor], num_samples: int, path: Path) -> tuple[Photograph, ...]:
    check_shapes(tensors, {"names": ((torch.uint8,), "B")}, path, _CURE, needed=("names",))
    names: list[str] = parse(tensors["names"].numpy().tobytes(), list[str], f"{path}, names", _CURE)
    expected = {
        "intrinsics": (FLOATS, f"{len(names)} 6"),
        "world_from_camera": (FLOATS, f"{len(names)} 4 4"),
        "sees": ((torch.uint8,), f"{len(names)} {-(-num_samples // 8)}"),
        **{f"jpeg.{index:02}": ((torch.uint8,), f"B{index}") for index in range(len(names))},
    }
    check_shapes(tensors, expected, path, _CURE, needed=tuple(expected))
    return tuple(
        Photograph(
            name,
            tensors[f"jpeg.{index:02}"].numpy().tobytes(),
            Camera(lens[:2], lens[2:4], int(lens[4]), int(lens[5]), tensors["world_from_camera"][index]),
            torch.from_numpy(np.unpackbits(tensors["sees"][index].numpy(), count=num_samples).astype(np.bool_)),
        )
        for index, (name, lens) in enumerate(zip(names, tensors["intrinsics"], strict=True))
    )


def _around(photograph: Photograph, points: Tensor) -> Outline:
    """Outline points (n, 3), n > 0, in a photograph that sees them."""
    camera = photograph.camera
    pixels, _ = project(points, camera)
    low, high = torch.quantile(pixels, torch.tensor(MIDDLE, dtype=pixels.dtype), dim=0)
    size = (high - low) * (1 + 2 * PADDING)
    half, middle = size.clamp(min=SMALLEST) / 2, (low + high) / 2 + 0.5
    limit = torch.tensor([camera.width, camera.height], dtype=pixels.dtype)
    left, top = (middle - half).clamp(min=0).minimum(limit).tolist()
    right, bottom = (middle + half).clamp(min=0).minimum(limit).tolist()
    return Outline(photograph, left, top, right, bottom)


def _pack(samples: Tensor, num_samples: int) -> UInt8[Tensor, "B"]:
    """Return which of all samples are among some, eight to a byte."""
    among = np.zeros(num_samples, dtype=np.bool_)
    among[samples.numpy()] = True
    return torch.from_numpy(np.packbits(among))


def _as_tensor(content: bytes) -> UInt8[Tensor, "B"]:
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())
