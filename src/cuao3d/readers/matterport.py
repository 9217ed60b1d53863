"""Raw Matterport3D: undistorted views, cameras and labelled regions of buildings."""

import re
from collections.abc import Sequence
from functools import cache, partial
from glob import escape
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy.typing import NDArray
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, PoseError, UserError
from cuao3d.formats.images import image_size, read_colors, read_depth, resize_nearest
from cuao3d.formats.ply import read_mesh
from cuao3d.formats.points import as_points
from cuao3d.labels import convert, label_set
from cuao3d.readers.capture import build_scene, open_frames
from cuao3d.readers.options import annotations_of, correct_pose, given_annotations, read_options, source_of, turn_up
from cuao3d.readers.splits import categories, split_of
from cuao3d.scene import OPENGL, UNLABELLED, Camera, Frame, Problem, Scene, Source, pose_problem

LABEL_SETS = ("matterport21", "matterport40", "matterport80", "matterport160", "nyu40")
"""Label sets of the package that the labels of a region can be read in; the first is the default."""

BY_NAME = ("matterport40", "matterport80", "matterport160")
"""Those whose classes are the dataset's own names of categories; the others are reached through NYU40."""

CAMERAS, COLOR, DEPTH = "undistorted_camera_parameters", "undistorted_color_images", "undistorted_depth_images"
REGIONS = "region_segmentations"

UNITS_PER_METRE = 4000
"""Depth images hold quarters of a millimetre."""

OCCLUSION_TOLERANCE = 0.02

NEAREST_VIEWS = 100
"""A region in which no camera stands takes so many views, the nearest."""


class Matterport:
    """Raw buildings of Matterport3D; each region is a scene.

    ```
    FOLDER/v1/scans/ID/                               or FOLDER/scans/ID/, FOLDER/ID/, or FOLDER is one building;
                                                      ID/ID/, as the archives unpack, is found too
        undistorted_camera_parameters/ID.conf         intrinsics and poses of all views
        undistorted_color_images/PANORAMA_iC_Y.jpg    colour of camera C in direction Y
        undistorted_depth_images/PANORAMA_dC_Y.png    depth, 16-bit, quarters of a millimetre
        region_segmentations/region0.ply              mesh of a region; each face names its category
    ```
    A view belongs to the regions whose bounding box its camera stands in; a region without any takes the 100 nearest. A
    point takes the class that most of its faces have. Buildings that the official lists do not know count as "train".

    The .conf counts the principal point from the bottom row of the image; it is turned to count from the top. The
    official pipeline takes it as it is, which moves each view by |H - 1 - 2 cy| rows of its H.

    Args:
        path: The folder.
        annotations: Label set that labels are read in: one of `LABEL_SETS`, or the path of a CSV with NYU40 ids. Unless
            given, the one that `capture.json` names, or matterport21.
        size: Width and height to which views are resized, pixels.
        official: Take the principal point as the official pipeline does.
    """

    layout = f"ID/{CAMERAS}/ID.conf and ID/{REGIONS}, in the folder, in scans/ or in v1/scans/"

    def __init__(
        self,
        path: Path | str,
        *,
        annotations: str | None = None,
        size: tuple[int, int] = (640, 512),
        official: bool = False,
    ) -> None:
        self.annotations = given_annotations(annotations, LABEL_SETS)
        if min(size) < 1:
            raise InputError(f"size is {size}; expected whole numbers from 1 on.")
        self.regions = [region for building in _buildings(Path(path).resolve()) for region in _regions(building)]
        if not self.regions:
            raise NotFoundError(f"No region of a building in {path}. Expected {self.layout}.")
        self.folders = [region.parents[1] for region in self.regions]
        self.names = tuple(f"{region.parents[1].name}_{region.stem}" for region in self.regions)
        self.size, self.official = size, official

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether a folder looks like this layout."""
        return bool(_buildings(path.resolve()))

    def __len__(self) -> int:
        return len(self.regions)

    def source(self, index: int) -> Source:
        """Return what decides a scene; all views of its building count, as any may belong to it."""
        region, building = self.regions[index], self.folders[index]
        return source_of(
            building,
            [f"{REGIONS}/{region.name}", f"{CAMERAS}/{escape(building.name)}.conf", f"{COLOR}/*", f"{DEPTH}/*"],
            annotations=self.annotations,
            size="x".join(map(str, self.size)),
            official=self.official,
        )

    def __getitem__(self, index: int) -> Scene:
        """Read a region: everything but the pixels.

        Raises:
            InputError: No view is usable, or the mesh is empty or damaged.
        """
        region, building = self.regions[index], self.folders[index]
        mesh = read_mesh(region)
        if "category_id" not in mesh.faces:
            raise InputError(f"{region} has faces without category_id; download it again.")
        label_set = annotations_of(building, self.annotations, LABEL_SETS)
        classes = _classes(mesh.faces["category_id"], label_set)
        num_points = len(next(iter(mesh.vertices.values()), ()))
        cloud = as_points(region, mesh.vertices | {"label": majority(mesh.triangles, classes, num_points)})
        views, problems = _read_conf(building / CAMERAS / f"{building.name}.conf")
        options = read_options(building)
        positions = [correct_pose(view.world_from_camera, options)[:3, 3] for view in views]
        near = near_region(positions, turn_up(cloud, options).points)
        view_of = {view.name: view for view in compress(views, near)}
        frames, left_out = open_frames(
            view_of, lambda name: _frame(building, view_of[name], self.size, official=self.official)
        )
        return build_scene(
            building,
            frames,
            [*problems, *left_out],
            cloud,
            name=self.names[index],
            labels=cloud.labels,
            label_set=label_set,
            split=split_of("matterport", building.name),
            occlusion_tolerance=OCCLUSION_TOLERANCE,
        )


def near_region(positions: Sequence[Float64[Tensor, "3"]], points: Float32[Tensor, "N 3"]) -> list[bool]:
    """Choose the cameras that stand within the bounding box of a region, or else the nearest to its middle.

    Args:
        positions: Where the cameras of a building stand, metres.
        points: The region's cloud, metres.

    Returns:
        Whether each camera belongs to the region.
    """
    if not positions or not len(points):
        return [False] * len(positions)
    places, lower, upper = torch.stack([*positions]), points.amin(0).double(), points.amax(0).double()
    inside = ((places > lower) & (places < upper)).all(1)
    if not inside.any():
        distance = (places - (lower + upper) / 2).norm(dim=1)
        inside[distance.argsort(stable=True)[:NEAREST_VIEWS]] = True
    chosen: list[bool] = inside.tolist()
    return chosen


def majority(triangles: NDArray[np.int64], class_of_face: NDArray[np.int64], num_vertices: int) -> NDArray[np.int64]:
    """Return the class that most faces of each vertex have; 255 where most have none, or where there is no face.

    As in the official code, a tie goes to no class before any class, and then to the lowest.

    Args:
        triangles: Corners of each face, (F, 3).
        class_of_face: (F,), 0 to 254, or 255 for none.
        num_vertices: Number of vertices.
    """
    rank = (class_of_face + 1) % (UNLABELLED + 1)  # none comes first
    keys, votes = np.unique((triangles * (UNLABELLED + 1) + rank[:, None]).ravel(), return_counts=True)
    vertex = keys // (UNLABELLED + 1)
    order = np.lexsort((keys, -votes, vertex))
    voted, first = np.unique(vertex[order], return_index=True)
    labels = np.full(num_vertices, UNLABELLED, dtype=np.int64)
    labels[voted] = (keys[order][first] % (UNLABELLED + 1) - 1) % (UNLABELLED + 1)
    return labels


class _View(NamedTuple):
    """A line of the .conf."""

    color: str
    depth: str
    intrinsics: Float64[Tensor, "3 3"]
    world_from_camera: Float64[Tensor, "4 4"]

    @property
    def name(self) -> str:
        return Path(self.color).stem


def _buildings(path: Path) -> list[Path]:
    """List the buildings in a folder, which may itself be one; sorted by name."""
    folders = [path, path / "scans", path / "v1" / "scans"]
    found = [path, *(building for folder in folders if folder.is_dir() for building in folder.iterdir())]
    nested = [inner for building in found for inner in (building, building / building.name)]
    buildings = [building for building in nested if (building / CAMERAS / f"{building.name}.conf").is_file()]
    return sorted((building for building in buildings if (building / REGIONS).is_dir()), key=lambda path: path.name)


def _regions(building: Path) -> list[Path]:
    """List the meshes of a building's regions by their number."""
    numbers = {path: re.fullmatch(r"region(\d+)\.ply", path.name) for path in (building / REGIONS).iterdir()}
    return sorted((path for path in numbers if numbers[path]), key=lambda path: int(path.stem.removeprefix("region")))


def _read_conf(path: Path) -> tuple[list[_View], list[Problem]]:
    """Read the cameras of a building; also say which lines are left out."""
    views, problems = [], []
    intrinsics: Float64[Tensor, "3 3"] | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            match line.split():
                case ["intrinsics_matrix", *numbers]:
                    intrinsics = None  # a line that cannot be read must not leave its views to the camera before it
                    intrinsics = _read_intrinsics(numbers)
                case ["scan", *words]:
                    views.append(_read_view(words, intrinsics))
        except UserError as error:
            problems.append(Problem.of_frame(f"{path.name}, line {number}", error))
    return views, problems


def _read_intrinsics(numbers: list[str]) -> Float64[Tensor, "3 3"]:
    matrix = _matrix(numbers, 3)
    if not (matrix.isfinite().all() and matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise InputError("it has no focal lengths")
    return matrix


def _read_view(words: list[str], intrinsics: Float64[Tensor, "3 3"] | None) -> _View:
    depth, color = [*words[:2], "", ""][:2]
    if not all(re.fullmatch(r"\w[\w.-]*", name) for name in (depth, color)):  # no way out of the building's folder
        raise InputError(f"{depth!r} or {color!r} is not the name of a file")
    if intrinsics is None:
        raise InputError("its camera has no intrinsics")
    pose = _matrix(words[2:], 4) @ OPENGL
    if problem := pose_problem(pose):
        raise PoseError(problem)
    return _View(color, depth, intrinsics, pose)


def _matrix(numbers: list[str], size: int) -> Float64[Tensor, "n n"]:
    if len(numbers) != size * size:
        raise InputError(f"it has {len(numbers)} numbers, expected {size * size}")
    try:
        values = [float(number) for number in numbers]
    except ValueError as error:
        raise InputError(str(error)) from error
    return torch.tensor(values, dtype=torch.float64).reshape(size, size)


def _frame(building: Path, view: _View, size: tuple[int, int], *, official: bool) -> Frame:
    color, depth = building / COLOR / view.color, building / DEPTH / view.depth
    width, height = image_size(color)
    if image_size(depth) != (width, height) or min(width, height) < 2:
        raise InputError(f"{view.depth} and {view.color} differ in size or have none; copy them again")
    center = view.intrinsics[:2, 2].clone()
    if not official:
        center[1] = height - 1 - center[1]
    camera = Camera(view.intrinsics[[0, 1], [0, 1]], center, width, height, view.world_from_camera)
    return Frame(view.name, camera.resized(*size), partial(_read_image, color, size), partial(_read_depth, depth, size))


def _read_image(path: Path, size: tuple[int, int]) -> Float32[Tensor, "3 H W"]:
    return resize_nearest(read_colors(path), *size)


def _read_depth(path: Path, size: tuple[int, int]) -> Float32[Tensor, "H W"]:
    return resize_nearest(read_depth(path, 1 / UNITS_PER_METRE), *size)


def _classes(category_of_face: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Look up the class of each face's category; 255 where it has none."""
    table = _class_of_category(name)
    known = (category_of_face > 0) & (category_of_face < len(table))
    return table[np.where(known, category_of_face, 0).astype(np.int64)]


@cache
def _class_of_category(name: str) -> NDArray[np.int64]:
    """Return the class of each category by its number, looked up by name in some sets and through NYU40 in others."""
    rows = categories("matterport")
    table = np.full(max(int(row["index"]) for row in rows) + 1, UNLABELLED, dtype=np.int64)
    numbers = [int(row["index"]) for row in rows]
    if name not in BY_NAME:
        nyu40 = torch.tensor([int(row["nyu40id"] or 0) for row in rows])
        table[numbers] = convert(nyu40, label_set("nyu40"), label_set(name)).numpy()
    else:
        classes = label_set(name)
        class_of_name = dict(zip(classes.names, classes.ids, strict=True))
        table[numbers] = [class_of_name.get(row["nyuClass"], UNLABELLED) for row in rows]
    return table
