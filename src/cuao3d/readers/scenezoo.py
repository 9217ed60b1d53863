"""Datasets that the package `scenezoo` reads, where a user has installed it: for layouts that we do not read."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, NotInstalledError, PoseError
from cuao3d.formats.images import as_image, lens_of, seen_through
from cuao3d.formats.lens import STRAIGHT, Lens, Size
from cuao3d.names import as_file_name
from cuao3d.readers.capture import build_scene, open_frames
from cuao3d.readers.corrections import along_axis
from cuao3d.readers.options import CAPTURE
from cuao3d.scene import Frame, Scene, Source, pose_problem

PREFIX = "scenezoo:"
"""What a path begins with that is not one: scenezoo:NAME:PATH, or scenezoo:NAME/SOURCE:PATH."""

CAMERAS = ("rgb_intrinsics", "depth_intrinsics", "world_to_camera")
MODELS = (None, "PINHOLE", "OPENCV")
"""Cameras whose distortion we know, if they have any."""


class SceneZoo:
    """Scenes of a dataset as `scenezoo` gives them: photographs, depth in metres, poses.

    Clouds are built from depth; meshes and annotations are not read. A `capture.json` in the dataset's folder counts
    for all scenes. Whether files have changed since a scene was lifted is not noticed.

    Args:
        spec: `scenezoo:NAME:PATH`, with the package's name of the dataset and its folder; where the dataset has several
            sources of frames, `scenezoo:NAME/SOURCE:PATH`.

    Raises:
        NotInstalledError: scenezoo is not installed.
        NotFoundError: There is no such folder, or no scene in it.
        InputError: There is no such dataset or source, or it has no depth.
    """

    layout = f"{PREFIX}NAME:PATH, with the package scenezoo"

    def __init__(self, spec: Path | str) -> None:
        named, _, where = str(spec).removeprefix(PREFIX).partition(":")
        self.dataset, _, self.frames_of = named.partition("/")
        self.path = Path(where).absolute()
        if not self.dataset or not where:
            raise InputError(f"{spec} should be {PREFIX}NAME:PATH, such as {PREFIX}3rscan:data/3rscan.")
        try:
            import scenezoo
        except ImportError as error:
            raise NotInstalledError(f"{spec} needs scenezoo: pip install scenezoo") from error
        if not self.path.is_dir():
            raise NotFoundError(f"There is no folder {self.path}.")
        self._version = str(scenezoo.__version__)
        try:
            self._zoo: Any = scenezoo.get_dataset(self.dataset, self.path, offline=True)
            listed = [str(one) for one in self._zoo.get_ids()]
        except Exception as error:  # a package of others, which reads files of others
            raise InputError(f"scenezoo cannot open {self.path} as {self.dataset!r}: {error}") from error
        self._check_depth()
        there = {Path(name).stem for _, *here in os.walk(self.path) for names in here for name in names}
        ids = [one for one in listed if one in there]  # its lists are those of the whole dataset
        if not ids:
            raise NotFoundError(f"scenezoo finds no scene of {self.dataset!r} in {self.path}.")
        self.ids = tuple(ids)
        self.names: tuple[str, ...] = tuple(map(as_file_name, ids))
        self.folders: tuple[Path, ...] = (self.path,) * len(ids)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether a path is such a spec."""
        return str(path).startswith(PREFIX)

    def __len__(self) -> int:
        return len(self.names)

    def source(self, index: int) -> Source:
        """Return what decides the scene, as far as it is known."""
        about = {"reader": "SceneZoo", "dataset": self.dataset, "frames": self.frames_of, "version": self._version}
        return Source.of_folder(self.path, (CAPTURE,), **about, scene=self.ids[index])

    def __getitem__(self, index: int) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            InputError: scenezoo cannot read it, or no frame is usable.
        """
        reading = _Reading(self._zoo, self.ids[index], {"source": self.frames_of} if self.frames_of else {})
        cameras = reading.frames(CAMERAS)
        if not len(cameras.indices):
            raise InputError(f"No usable frame in {self.path}, scene {self.ids[index]}: scenezoo finds none.")
        first = reading.frames(("rgb", "depth", *CAMERAS), [int(cameras.indices[0])])
        keys = cameras.frame_keys or [f"{number:06d}" for number in cameras.indices]
        of_name = {as_file_name(str(key)): place for place, key in enumerate(keys)}
        frames, problems = open_frames(of_name, lambda name: reading.open(name, cameras, of_name[name], first))
        return build_scene(self.path, frames, problems, None, name=self.names[index])

    def _check_depth(self) -> None:
        """Refuse a dataset without depth, and a source of frames that it has not."""
        sources = {source.name: source.items for source in self._zoo.spec.frame_sources}
        if self.frames_of and self.frames_of not in sources:
            raise InputError(f"{self.dataset} has no source {self.frames_of!r}; it has {', '.join(sources) or 'none'}.")
        offered = [sources[self.frames_of]] if self.frames_of else list(sources.values())
        if not any("depth" in items and "world_to_camera" in items for items in offered):
            raise InputError(f"scenezoo's {self.dataset!r} has no frames with depth and poses, which are needed.")


@dataclass(frozen=True)
class _Reading:
    """What reads the frames of a scene."""

    zoo: Any
    scene: str
    source: Mapping[str, str]

    def frames(self, items: tuple[str, ...], indices: list[int] | None = None) -> Any:
        """Return a batch of frames, all of them unless told.

        Raises:
            InputError: scenezoo fails.
        """
        try:
            return self.zoo.get_frames(self.scene, items=items, indices=indices, rotate_to_up=False, **self.source)
        except Exception as error:  # a package of others, which reads files of others
            raise InputError(f"scenezoo cannot read {', '.join(items)} of {self.scene}: {error}") from error

    def open(self, name: str, cameras: Any, place: int, first: Any) -> Frame:
        """Open a view; its pixels are read later. Those of the first view tell the sizes of all."""
        number = int(cameras.indices[place])
        if cameras.camera_model not in MODELS or first.depth_mode not in (None, "z", "ray_distance"):
            raise InputError(f"its camera is {cameras.camera_model}, its depth {first.depth_mode}; no pinhole's.")
        pose, is_singular = torch.linalg.inv_ex(torch.from_numpy(cameras.world_to_camera[place]).double())
        if is_singular:
            raise PoseError("its pose has no inverse; scenezoo gives it so.")
        if problem := pose_problem(pose):
            raise PoseError(f"{problem}; scenezoo gives it so.")
        lens, depth_lens = (_lens(name, of, cameras, place, first) for of in ("rgb", "depth"))
        frame = Frame(
            name,
            depth_lens.camera(pose),
            partial(self._colors, number, _bent(lens, cameras.distortion, place), depth_lens),
            partial(self._depth, number, depth_lens.size),
        )
        return along_axis(frame) if first.depth_mode == "ray_distance" else frame

    def _colors(self, number: int, lens: Lens, seen: Lens) -> Float32[Tensor, "3 H W"]:
        image = as_image(self._pixels("rgb", number, lens.size))
        return image if lens == seen else seen_through(image, lens, seen)

    def _depth(self, number: int, size: Size) -> Float32[Tensor, "H W"]:
        return torch.from_numpy(self._pixels("depth", number, size))

    def _pixels(self, what: str, number: int, size: Size) -> Any:
        pixels = getattr(self.frames((what,), [number]), what)[0]
        if pixels.shape[1::-1] != size:
            raise InputError(f"{what} of frame {number} is {pixels.shape[1::-1]}, that of the first {size}.")
        return pixels


def _lens(name: str, of: str, cameras: Any, place: int, first: Any) -> Lens:
    """Return the lens of a frame's colours or depth.

    Intrinsics that are asked for without pixels are for the images that the dataset usually has; those that come with
    pixels are for these.
    """
    pixels, what = getattr(first, of), f"{of}_intrinsics"
    matrix, usual, with_pixels = getattr(cameras, what)[place], getattr(cameras, what)[0], getattr(first, what)[0]
    scale = float(usual[0, 0]) / float(with_pixels[0, 0])
    size = pixels.shape[2], pixels.shape[1]
    usual_size = round(size[0] * scale), round(size[1] * scale)
    return lens_of(torch.from_numpy(matrix).double(), usual_size, f"{name}, {what}").at(size)


def _bent(lens: Lens, distortion: Any, place: int) -> Lens:
    """Return a lens with the distortion of a frame, as OpenCV orders it."""
    found = [] if distortion is None else [float(value) for value in distortion[place]]
    if not any(found):
        return lens
    if len(found) > len(STRAIGHT) and any(found[len(STRAIGHT) :]):
        raise InputError(f"its lens has {len(found)} numbers of distortion; only k1, k2, p1, p2 and k3 are known.")
    k1, k2, p1, p2, k3 = (*found, *STRAIGHT)[: len(STRAIGHT)]
    return Lens(lens.focal, lens.center, lens.size, (k1, k2, p1, p2, k3))
