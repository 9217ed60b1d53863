"""OpenScene's processed scenes, which CUA-O3D uses too: clouds as PyTorch files, and small views in folders beside."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from glob import escape
from itertools import compress
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, PoseError, UserError
from cuao3d.formats.entries import by_number, read_matrix, read_pose
from cuao3d.formats.images import COLOR_ENDINGS, MILLIMETRE, image_size, lens_of, open_frame, usual_size
from cuao3d.formats.lens import Lens
from cuao3d.formats.points import Points
from cuao3d.labels import LABEL_SETS, label_set
from cuao3d.pickles import read_torch
from cuao3d.readers.capture import build_scene, open_frames
from cuao3d.readers.matterport import OCCLUSION_TOLERANCE as MATTERPORT_TOLERANCE
from cuao3d.readers.matterport import UNITS_PER_METRE, near_region
from cuao3d.readers.options import CaptureOptions, correct_pose, given_annotations, read_options, source_of, turn_up
from cuao3d.readers.scannet import OCCLUSION_TOLERANCE, OFFICIAL_CENTER, OFFICIAL_FOCAL, OFFICIAL_SIZE
from cuao3d.readers.splits import split_of
from cuao3d.scene import UNLABELLED, Frame, Problem, Scene, Source, Split

ENDING, CLOUD_SUFFIX, INTRINSICS = ".pth", "_vh_clean_2", "intrinsics.txt"

IGNORED = (UNLABELLED, -100)
"""What stands for no label."""


@dataclass(frozen=True)
class Processing:
    """Properties of a dataset that its files do not tell."""

    depth_unit: float = MILLIMETRE
    """What 1 means in a depth image, metres."""
    occlusion_tolerance: float = OCCLUSION_TOLERANCE
    center_from_bottom: bool = False
    """Whether the principal point counts from the bottom row of the image."""
    labels: str | None = None
    """Label set of its folder without a number."""


SOURCES = {
    "scannet": Processing(labels="scannet20"),
    "matterport": Processing(1 / UNITS_PER_METRE, MATTERPORT_TOLERANCE, center_from_bottom=True, labels="matterport21"),
    "replica": Processing(1 / 6553.5),
}
"""Datasets, by how their folders begin."""


class OpenScene:
    """Processed scenes of OpenScene: ScanNet, regions of Matterport3D, Replica.

    ```
    FOLDER/scannet_3d/train/scene0000_00_vh_clean_2.pth   (points, colours in [-1, 1], labels); train/, val/, test/,
                                                          or right in scannet_3d/
    FOLDER/scannet_2d/intrinsics.txt                      4 x 4, of the views of all scenes
    FOLDER/scannet_2d/scene0000_00/color/0.jpg            the views; without them the scene is a lone cloud
    FOLDER/scannet_2d/scene0000_00/depth/0.png            16-bit, millimetres (Replica: 1 / 6553.5 m), 0 = missing
    FOLDER/scannet_2d/scene0000_00/pose/0.txt             4 x 4, camera to world, metres, OpenCV axes; -inf = lost
    FOLDER/matterport_3d/val/ID_region0.pth               matterport_3d_40/, _80/, _160/ hold other labels
    FOLDER/matterport_2d/ID/color/PANORAMA_i0_0.jpg       the views of a building
    FOLDER/matterport_2d/ID/depth/PANORAMA_d0_0.png       16-bit, quarters of a millimetre
    FOLDER/matterport_2d/ID/pose/PANORAMA_i0_0.txt
    FOLDER/matterport_2d/ID/intrinsic/PANORAMA_i0_0.txt   3 x 3
    ```
    The path is the folder of clouds, one split of it, or a folder with just one of them. What labels mean follows from
    its name: scannet_3d, scannet200_3d, matterport_3d, matterport_3d_40 ... A region takes the views whose camera
    stands in its bounding box, or the 100 nearest. Nothing that a cloud's file may hold is run.

    The official scripts copied Matterport's principal point, which counts from the bottom row of the image, into
    intrinsic/; it is turned to count from the top, as `Matterport` does.

    Args:
        path: The folder.
        annotations: Label set of the labels, a name or the path of a CSV, where neither the folder's name nor
            `capture.json` names it; labels count from 0 in the set's order.
        official: Take Matterport's principal point as the official pipeline does.
    """

    layout = f"scannet_3d/train/ID{CLOUD_SUFFIX}{ENDING} or matterport_3d/val/ID_region0{ENDING}"

    def __init__(self, path: Path | str, *, annotations: str | None = None, official: bool = False) -> None:
        self.annotations = given_annotations(annotations)
        folders = _folders(Path(path).resolve())
        if not folders:
            raise NotFoundError(f"No processed scene in {path}. Expected {self.layout}.")
        if len(folders) > 1:
            names = ", ".join(folder.name for folder in folders)
            raise InputError(f"{path} holds several folders of processed scenes ({names}); name one of them.")
        self.clouds = _clouds(folders[0])
        self.names = tuple(_name(cloud) for cloud in self.clouds)
        folder = folders[0].parent if folders[0].name in get_args(Split) else folders[0]
        self.folders = [folder] * len(self.clouds)
        beginning, _, variant = folder.name.partition("_3d")
        self.dataset = next((name for name in SOURCES if beginning.startswith(name)), beginning)
        self.processing = SOURCES.get(self.dataset, Processing())
        labels = beginning + variant.strip("_")
        named = labels if labels in LABEL_SETS else None
        self.label_set = self.processing.labels if labels == self.dataset else named
        self.views = folder.with_name(f"{self.dataset}_2d")
        self.official = official

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether a folder looks like this layout."""
        return bool(_folders(path.resolve()))

    def __len__(self) -> int:
        return len(self.clouds)

    def source(self, index: int) -> Source:
        """Return what decides a scene; all views of its building count, as any may belong to it."""
        folder, name, views = self.folders[index], self.names[index], escape(self.views.name)
        of_views = [
            f"../{views}/{escape(each)}/{kind}/*"
            for each in dict.fromkeys((name, _building(name)))
            for kind in ("color", "depth", "pose", "intrinsic")
        ]
        return source_of(
            folder,
            [escape(self.clouds[index].relative_to(folder).as_posix()), f"../{views}/{INTRINSICS}", *of_views],
            annotations=self.annotations,
            official=self.official,
        )

    def __getitem__(self, index: int) -> Scene:
        """Read a scene: everything but the pixels. Views and labels that cannot be used are left out and reported.

        Raises:
            InputError: The cloud is empty or damaged, or its file holds something else.
        """
        name, options = self.names[index], read_options(self.folders[index])
        label_set = self.annotations or options.label_set or self.label_set
        cloud = _read_cloud(self.clouds[index], label_set)
        try:
            frames, problems = self._frames(name, turn_up(cloud, options), options)
        except (UserError, OSError) as error:
            frames, problems = [], [Problem("file", f"The views of {name} are not used: {error}")]
        return build_scene(
            self.folders[index],
            frames,
            problems,
            cloud,
            name=name,
            lone=True,
            labels=cloud.labels,
            label_set=label_set if cloud.labels is not None else None,
            split=self._split(self.clouds[index], name),
            occlusion_tolerance=self.processing.occlusion_tolerance,
        )

    def _split(self, cloud: Path, name: str) -> Split:
        if cloud.parent.name in get_args(Split):
            return cast(Split, cloud.parent.name)
        if self.dataset == "scannet":
            return split_of("scannet", name)
        return split_of("matterport", _building(name)) if self.dataset == "matterport" else "train"

    def _frames(self, name: str, cloud: Points, options: CaptureOptions) -> tuple[list[Frame], list[Problem]]:
        """Open the views of a scene, if there are any; also return what was left out."""
        folder = next((self.views / each for each in (name, _building(name)) if (self.views / each).is_dir()), None)
        if folder is None or not (folder / "color").is_dir():
            return [], []
        images = [path for path in (folder / "color").iterdir() if path.suffix.lower() in COLOR_ENDINGS]
        colors = {path.stem: path for path in sorted(images, key=lambda path: by_number(path.stem))}
        poses, problems = {}, []
        for view in colors:
            try:
                poses[view] = read_pose(folder / "pose" / f"{view}.txt")
            except PoseError as error:
                problems.append(Problem.of_frame(view, error))
        if folder.name != name:  # a building
            positions = [correct_pose(pose, options)[:3, 3] for pose in poses.values()]
            poses = dict(compress(poses.items(), near_region(positions, cloud.points)))
        lens_of_view = self._lenses(folder, list(colors.values()))

        def open_one(view: str) -> Frame:
            color, depth, lens = colors[view], folder / "depth" / f"{_depth_name(view)}.png", lens_of_view(colors[view])
            unit = self.processing.depth_unit
            return open_frame(view, poses[view], color=color, lens=lens, depth=depth, depth_lens=lens, depth_unit=unit)

        frames, left_out = open_frames(poses, open_one)
        return frames, problems + left_out

    def _lenses(self, folder: Path, colors: Sequence[Path]) -> Callable[[Path], Lens]:
        """Return the file with the intrinsics of a colour image: one per image, or one for all."""
        if (folder / "intrinsic").is_dir():
            return lambda color: self._own_lens(folder / "intrinsic" / f"{color.stem}.txt", color)
        size, shared = usual_size(colors, image_size), self.views / INTRINSICS
        if shared.is_file():
            lens = lens_of(read_matrix(shared, 3, 4), size, str(shared))
        elif self.dataset == "scannet":
            lens = Lens((OFFICIAL_FOCAL, OFFICIAL_FOCAL), OFFICIAL_CENTER, OFFICIAL_SIZE).at(size)
        else:
            raise NotFoundError(f"There is no {shared}; write the 4 x 4 matrix of the views there, in pixels.")
        return lambda color: lens

    def _own_lens(self, path: Path, color: Path) -> Lens:
        lens = lens_of(read_matrix(path, 3, 4), image_size(color), path.name)
        if self.official or not self.processing.center_from_bottom:
            return lens
        return replace(lens, center=(lens.center[0], lens.size[1] - 1 - lens.center[1]))


def _folders(path: Path) -> list[Path]:
    """List the folders of processed clouds: the path itself, or those in it."""
    whole = path.parent if path.name in get_args(Split) else path
    if _clouds(path) and ("_3d" in whole.name or any(cloud.parent != path for cloud in _clouds(path))):
        return [path]
    return sorted(folder for folder in path.glob("*_3d*") if _clouds(folder))


def _clouds(folder: Path) -> list[Path]:
    """List the clouds in a folder and in those of its splits."""
    places = [folder, *(folder / split for split in get_args(Split))]
    return [path for place in places for path in sorted(place.glob(f"*{ENDING}")) if not path.name.startswith(".")]


def _name(cloud: Path) -> str:
    return cloud.stem.removesuffix(CLOUD_SUFFIX) or cloud.stem


def _building(name: str) -> str:
    return re.sub(r"(?<=.)_region\d+$", "", name)


def _depth_name(view: str) -> str:
    """Return what the depth image of a view is called; Matterport's differ from the colours' in a letter."""
    return re.sub(r"_i(\d+_\d+)$", r"_d\1", view)


def _read_cloud(path: Path, labels_name: str | None) -> Points:
    content = read_torch(path)
    if not isinstance(content, tuple | list) or len(content) != 3:
        raise InputError(f"{path} is no cloud of OpenScene: expected points, colours and labels.")
    found, colors, labels = (_numbers(entry, path) for entry in content)
    if found.ndim != 2 or found.shape[1] != 3 or not len(found):
        raise InputError(f"{path} is no cloud of OpenScene: its points have the shape {found.shape}, not (N, 3).")
    with np.errstate(over="ignore"):
        points = torch.from_numpy(found.astype(np.float32))
    if not points.isfinite().all():
        raise InputError(f"{path} is no cloud of OpenScene: a point of it is not finite.")
    for what, array, shape in (("colours", colors, (len(points), 3)), ("labels", labels, (len(points),))):
        if array.ndim and array.shape != shape:
            raise InputError(f"{path} is no cloud of OpenScene: its {what} have the shape {array.shape}, not {shape}.")
    in_unit, color_problems = _colors(colors, path)
    ids, label_problems = _labels(labels, path, labels_name)
    return Points(points, in_unit, None, ids, (*color_problems, *label_problems))


def _numbers(entry: Any, path: Path) -> NDArray[Any]:
    """Return what should be numbers as an array; a lone number, which stands for "none", has no dimension."""
    try:
        array = entry.detach().double().numpy() if isinstance(entry, Tensor) else np.asarray(entry)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no cloud of OpenScene: {error}") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path} is no cloud of OpenScene: it holds {type(entry).__name__} where numbers should be.")
    return array


def _colors(colors: NDArray[Any], path: Path) -> tuple[Float32[Tensor, "N 3"] | None, list[Problem]]:
    if not colors.ndim:
        return None, []
    if not (np.abs(colors) < 1.01).all():
        return None, [Problem("cloud", f"The colours of {path.name} are not used: they do not lie in [-1, 1].")]
    return torch.from_numpy(((colors.astype(np.float64) + 1) / 2).astype(np.float32)).clamp(0, 1), []


def _labels(labels: NDArray[Any], path: Path, name: str | None) -> tuple[Int64[Tensor, "N"] | None, list[Problem]]:
    """Turn numbers that count the classes of a set into its ids."""
    if not labels.ndim or np.isin(labels, IGNORED).all():
        return None, []
    if name is None:
        unknown_set = f"The labels of {path.name} are not used: the name of its folder does not tell their label set."
        return None, [Problem("labels", unknown_set)]
    ids = np.array(label_set(name).ids)
    known = np.isin(labels, np.arange(len(ids)))
    unknown = int((~known & ~np.isin(labels, IGNORED)).sum())
    rows = np.where(known, labels, 0).astype(np.int64)
    text = f"{unknown} labels of {path.name} left out: they are not among the {len(ids)} classes of {name}."
    return torch.from_numpy(np.where(known, ids[rows], UNLABELLED)), [Problem("labels", text)] if unknown else []
