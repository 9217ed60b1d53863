"""From what a reader opened to a scene: `capture.json` corrects the layout, a missing cloud is built from depth."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.files import reading_inside
from cuao3d.formats.images import NoDepth
from cuao3d.formats.ply import read_triangles
from cuao3d.formats.points import Points
from cuao3d.labels import label_set
from cuao3d.names import as_file_name
from cuao3d.rays import cast_depth, embree_scene
from cuao3d.readers.cloud import cloud_from_depth
from cuao3d.readers.corrections import correct_frames
from cuao3d.readers.options import (
    CAPTURE,
    CaptureOptions,
    capture_of,
    given_annotations,
    read_options,
    source_of,
    turn_up,
)
from cuao3d.readers.splats import cover, splat_depth
from cuao3d.scene import UNLABELLED, Camera, Frame, Problem, Scene, Source

OCCLUSION_TOLERANCE = 0.1
"""Default for users' captures: a point is visible where its depth in the camera differs from the measured one by
at most this part of it. Chosen by the measurement in `docs/conventions.md`; ScanNet and Matterport3D have their own."""

DENSE = 10_000
"""A cloud of this many points may cover the surfaces of a room; fewer are what structure from motion leaves."""

ANY_IMAGE = tuple(
    f"**/*.{ending}" for end in ("png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp") for ending in (end, end.upper())
)
"""Patterns of the images of a layout that names them in a file."""

NO_LABEL = (UNLABELLED, 0, -1, -100)
"""What stands for no label in files, where it is no id of their label set."""


class NoDepthError(InputError):
    """No photograph of a capture has depth, and its cloud can give it."""

    options: Mapping[str, Any] = {"depth": "cloud"}
    """What `capture.json` must say."""


class Captures(ABC):
    """Captures of one layout, each in a folder of its own: a scene is read when it is asked for.

    Attributes:
        layout: The files that are looked for, in words.
        files: Patterns of the files that a capture is read from, `capture.json` apart; as of `Source.of_folder`, with
            {name} for the name of its folder.
        folders: Folder of each capture.
        names: Name of each scene, that of its folder.
        annotations: Label set of the clouds' labels, if given.
    """

    layout: str
    files: tuple[str, ...] = ("**/*",)

    def __init__(self, path: Path | str, *, annotations: str | None = None) -> None:
        """Find the captures.

        Args:
            path: A capture, or a folder of them.
            annotations: Label set of the labels in the clouds' files: a name or the path of a CSV. Unless given, each
                capture's `capture.json` names it.

        Raises:
            NotFoundError: There is no such folder, or nothing of this layout in it.
            InputError: There is no such label set.
        """
        self.annotations = given_annotations(annotations)
        path = Path(path).absolute()  # a link gives its own name to a scene, not that of its target
        path = path if path.name != ".." else path.resolve()
        if not path.is_dir():
            raise NotFoundError(f"There is no folder {path}.")
        if not (folders := self._find(path)):
            raise NotFoundError(f"No capture in {path}. Expected {self.layout}.")
        self.folders = folders
        self.names = tuple(as_file_name(folder.name) for folder in folders)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether a folder looks like this layout."""
        return bool(cls._find(path))

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> Scene:
        with reading_inside(self.folders[index]):
            return self.read(self.folders[index], self.annotations)

    def source(self, index: int) -> Source:
        """Return what decides a scene."""
        folder = self.folders[index]
        patterns = [pattern.format(name=escape(folder.name)) for pattern in self.files]
        return source_of(folder, patterns, annotations=self.annotations, reader=type(self).__name__)

    @classmethod
    @abstractmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Args:
            folder: The capture.
            annotations: Label set of the labels in the cloud's file; unless given, `capture.json` names it.
        """

    @classmethod
    def _find(cls, path: Path) -> list[Path]:
        """Find the captures in a folder: the folder itself, or those among its subfolders, by name."""
        if not path.is_dir():
            return []
        if cls.is_capture(path):
            return [path]
        return sorted(one for one in path.iterdir() if not one.name.startswith(".") and cls.is_capture(one))


def build_scene(
    folder: Path,
    frames: Sequence[Frame],
    problems: Sequence[Problem],
    points: Points | None,
    *,
    mesh: NDArray[np.float32] | None = None,
    name: str | None = None,
    lone: bool = False,
    annotations: str | None = None,
    **about: Any,
) -> Scene:
    """Make a scene of what a reader opened: apply `capture.json`, build the cloud if there is none.

    Args:
        folder: The capture; `capture.json` lies there.
        frames: Its views that are in order.
        problems: What was left out.
        points: Its cloud; None to build it from depth.
        mesh: Corners (T, 3, 3) of triangles; frames without a depth image have its depth.
        name: Name of the scene; that of the folder unless told.
        lone: Whether a cloud without views will do.
        annotations: Label set of the cloud's labels, if `capture.json` is not to name it.
        about: Further fields of the scene; `labels` take the place of the cloud's.

    Raises:
        NoDepthError: No frame has depth; the cloud could give it.
        InputError: No frame is usable, the cloud is empty, or `capture.json` is wrong.
    """
    options = read_options(folder)
    frames, options, skipped, offset = correct_frames(frames, options, points)
    turn = partial(turn_up, options=options, offset=offset)
    points = turn(points) if points is not None else None
    filled, lacking = _fill_depth(folder, frames, points, mesh, options, turn, lone)
    frames = filled[:: options.every]
    if points is None:
        cloud = cloud_from_depth(frames)
        colors = cloud.colors if any(frame.has_colors for frame in frames) else None
        points, frames = Points(cloud.points, colors, problems=cloud.problems), list(cloud.frames)
    problems = [*problems, *skipped, *lacking, *points.problems]
    if "labels" not in about:
        named = {"--annotations": annotations, CAPTURE: options.label_set, "scene.json": about.get("label_set")}
        about["label_set"], about["labels"], unknown = _labels(points, named)
        problems += unknown
    tolerance = options.occlusion_tolerance or about.get("occlusion_tolerance")
    about["occlusion_tolerance"] = tolerance or OCCLUSION_TOLERANCE
    if not frames and not lone:
        raise _no_frame(folder, problems)
    if not len(points.points):
        raise InputError(f"The cloud of {folder} is empty: its depth images hold no surface, or its file no point.")
    return Scene(
        name=name or as_file_name(folder.name),
        points=points.points,
        frames=tuple(frames),
        colors=points.colors,
        normals=points.normals,
        problems=tuple(problems),
        capture_from_world=capture_of(options, offset),
        **about | ({"label_set": None} if about["labels"] is None else {}),
    )


def _no_frame(folder: Path, problems: Sequence[Problem]) -> InputError:
    more = " ..." if len(problems) > 3 else ""
    return InputError(f"No usable frame in {folder}: {'; '.join(map(str, problems[:3])) or 'there is none'}{more}")


def _labels(
    points: Points, named: Mapping[str, str | None]
) -> tuple[str | None, Int64[Tensor, "N"] | None, list[Problem]]:
    """Find the label set of a cloud's labels.

    Args:
        points: The cloud.
        named: What may name the label set, the first that does first.

    Returns:
        The label set, the labels as its ids, 255 for unknown ids, and what was left out.
    """
    where, name = next(((where, name) for where, name in named.items() if name), ("", None))
    if points.labels is None:
        of_cloud = "the cloud" if points.file is None else points.file.name
        unused = f"{where} names the label set {name}, and {of_cloud} has no labels (a column named label)."
        return name, None, [Problem("labels", unused)] if name else []
    if name is None:
        unused = (
            "The labels of the cloud are not used: their label set is not known. Name it: --annotations SET, or "
            f'"label_set" in {CAPTURE}.'
        )
        return None, None, [Problem("labels", unused)]
    classes = label_set(name)
    known = classes.classes(points.labels) != UNLABELLED
    unknown = points.labels[~known & ~torch.isin(points.labels, torch.tensor(NO_LABEL))]
    if not len(unknown):
        return name, points.labels.where(known, UNLABELLED), []
    examples = ", ".join(map(str, torch.unique(unknown)[:3].tolist()))
    text = (
        f"{len(unknown)} labels of the cloud are left out: {classes.name} has no ids such as {examples}; its own go "
        f"from {min(classes.ids)} to {max(classes.ids)}, and no set has ids above {UNLABELLED - 1}."
    )
    return name, points.labels.where(known, UNLABELLED), [Problem("labels", text)]


def open_frames(names: Iterable[str], open_one: Callable[[str], Frame]) -> tuple[list[Frame], list[Problem]]:
    """Open views; one that cannot be opened is left out.

    Args:
        names: Names of the views.
        open_one: Opens the view with a name; raises UserError or OSError with the reason if it cannot.

    Returns:
        The views, and the problem of each view that was left out.
    """
    frames, problems = [], []
    for name in names:
        try:
            frames.append(open_one(name))
        except (UserError, OSError) as error:
            problems.append(Problem.of_frame(name, error))
    return frames, problems


def _fill_depth(
    folder: Path,
    frames: list[Frame],
    points: Points | None,
    mesh: NDArray[np.float32] | None,
    options: CaptureOptions,
    turn: Callable[[Points], Points],
    lone: bool,
) -> tuple[list[Frame], list[Problem]]:
    """Let frames without a depth image see the depth of the mesh or the cloud; return problems of those left out."""
    lacking = {frame.name: frame.read_depth for frame in frames if isinstance(frame.read_depth, NoDepth)}
    if not lacking:
        return frames, []
    if mesh is None and options.depth == "images":
        is_dense = points is not None and len(points.points) >= DENSE
        if is_dense and not lone and len(lacking) == len(frames):
            raise NoDepthError(
                f"No frame of {folder} has a depth image. If its cloud covers the surfaces, depth can be taken from "
                f'it: write {{"depth": "cloud"}} to {folder / CAPTURE}, or: cuao3d check --fix.'
            )
        hint = f' Or take depth from the cloud: {{"depth": "cloud"}} in {CAPTURE}.' if is_dense else ""
        problems = [Problem("frame", f"{name} left out: {depth.reason}{hint}") for name, depth in lacking.items()]
        return [frame for frame in frames if frame.name not in lacking], problems
    read_depth = _depth_reader(folder, points, mesh, turn)
    return [
        replace(frame, read_depth=partial(read_depth, frame.camera)) if frame.name in lacking else frame
        for frame in frames
    ], []


def _depth_reader(
    folder: Path, points: Points | None, mesh: NDArray[np.float32] | None, turn: Callable[[Points], Points]
) -> Callable[[Camera], Float32[Tensor, "H W"]]:
    """Return what draws the depth of the mesh, of the faces in the cloud's file, or of the (turned) cloud."""
    if mesh is None and points is not None and points.file is not None and points.file.suffix.lower() == ".ply":
        with suppress(UserError):  # without faces that can be read, the points will do
            mesh = read_triangles(points.file)
    if mesh is not None:
        corners = turn(Points(torch.from_numpy(mesh).reshape(-1, 3))).points
        return partial(cast_depth, embree_scene(corners.view(-1, 3, 3).numpy()))
    if points is None or not len(points.points):
        raise InputError(
            f'{folder / CAPTURE} says "depth": "cloud", but there is no cloud; add one, such as points.ply, or remove '
            "the entry."
        )
    return partial(splat_depth, cover(points.points))
