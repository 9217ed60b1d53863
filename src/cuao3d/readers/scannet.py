"""Raw ScanNet: recordings, point clouds and labels of scans, read without exporting anything."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from glob import escape
from pathlib import Path
from typing import TypedDict

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.files import read_json
from cuao3d.formats.images import as_image, resize_nearest
from cuao3d.formats.ply import read_ply
from cuao3d.formats.points import read_points, whole_labels
from cuao3d.formats.sens import Sens, SensFrame, open_sens
from cuao3d.geometry import move
from cuao3d.labels import convert, label_set
from cuao3d.readers.capture import build_scene
from cuao3d.readers.options import annotations_of, given_annotations, source_of
from cuao3d.readers.splits import categories, split_of
from cuao3d.scene import UNLABELLED, Camera, Frame, Problem, Scene, Source, pose_problem
from cuao3d.schema import fit

LABEL_SETS = ("scannet20", "scannet200")
"""Label sets of the package that the labels of a scan can be read in; the first is the default."""

RECORDING, ABOUT = ".sens", ".txt"
POINTS, LABELS = "_vh_clean_2.ply", "_vh_clean_2.labels.ply"
OBJECTS, SEGMENTS = ".aggregation.json", "_vh_clean_2.0.010000.segs.json"

OFFICIAL_FOCAL, OFFICIAL_CENTER, OFFICIAL_SIZE = 577.870605, (319.5, 239.5), (640, 480)
"""The one camera that the official pipeline uses for all scans, pixels: the first scan's colour camera, resized."""

OCCLUSION_TOLERANCE = 0.25


class ScanNet:
    """Raw scans of ScanNet.

    ```
    FOLDER/scans/ID/                       or FOLDER/scans_test/ID/, FOLDER/ID/, or FOLDER is the folder of one scan
        ID.sens                            colour, depth and poses
        ID_vh_clean_2.ply                  the cloud
        ID_vh_clean_2.labels.ply           for scannet20: NYU40 ids of its points; may be missing
        ID.aggregation.json                for scannet200: objects, their names and segments; may be missing
        ID_vh_clean_2.0.010000.segs.json   for scannet200: the segment of each point; may be missing
        ID.txt                             for axis_align
    ```
    Only the frames asked for are read from the .sens. Colour is brought to the depth images' grid pixel by pixel, as
    its authors advise: they publish both as aligned. Scans that the official lists do not know count as "train".

    Args:
        path: The folder.
        annotations: Label set that labels are read in: scannet20, scannet200, or the path of a CSV with NYU40 ids.
            Unless given, the one that `capture.json` names, or scannet20.
        every: Every n-th frame is used.
        size: Width and height to which views are resized, pixels.
        axis_align: Turn points and poses so that walls run along the axes, where ID.txt says how.
        official: Use the official pipeline's one camera for all scans instead of each recording's depth camera.
    """

    layout = f"ID/ID{RECORDING} and ID/ID{POINTS}, in the folder, in scans/ or in scans_test/"

    def __init__(
        self,
        path: Path | str,
        *,
        annotations: str | None = None,
        every: int = 20,
        size: tuple[int, int] = (320, 240),
        axis_align: bool = False,
        official: bool = False,
    ) -> None:
        self.annotations = given_annotations(annotations, LABEL_SETS)
        if every < 1 or min(size) < 1:
            raise InputError(f"every is {every} and size {size}; expected whole numbers from 1 on.")
        self.folders = _scans(Path(path).resolve())
        if not self.folders:
            raise NotFoundError(f"No scan in {path}. Expected {self.layout}.")
        self.names = tuple(folder.name for folder in self.folders)
        self.every, self.size = every, size
        self.axis_align, self.official = axis_align, official

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether a folder looks like this layout."""
        return bool(_scans(path.resolve()))

    def __len__(self) -> int:
        return len(self.folders)

    def source(self, index: int) -> Source:
        """Return what decides a scene."""
        endings = (RECORDING, POINTS, LABELS, OBJECTS, SEGMENTS, ABOUT)
        return source_of(
            self.folders[index],
            [escape(self.names[index]) + ending for ending in endings],
            annotations=self.annotations,
            every=self.every,
            size="x".join(map(str, self.size)),
            axis_align=self.axis_align,
            official=self.official,
        )

    def __getitem__(self, index: int) -> Scene:
        """Read a scan: everything but the pixels. Labels that cannot be read are left out and reported.

        Raises:
            NotFoundError: A file that every scan needs is missing.
            InputError: No frame is usable, or the cloud is empty or damaged.
        """
        scan = self.folders[index] / self.names[index]
        for suffix in (POINTS, RECORDING):
            if not _at(scan, suffix).is_file():
                raise NotFoundError(f"{_at(scan, suffix)} is missing; download it, or remove the scan.")
        cloud = read_points(_at(scan, POINTS))
        name = annotations_of(self.folders[index], self.annotations, LABEL_SETS)
        labels, problems = _labels(scan, name, len(cloud.points))
        frames, lost = _frames(open_sens(_at(scan, RECORDING), every=self.every), self.size, official=self.official)
        scene = build_scene(
            self.folders[index],
            frames,
            [*problems, *lost],
            cloud,
            labels=labels,
            label_set=name if labels is not None else None,
            split=split_of("scannet", scan.name),
            occlusion_tolerance=OCCLUSION_TOLERANCE,
        )
        return _aligned(scene, _at(scan, ABOUT)) if self.axis_align else scene


def _scans(path: Path) -> list[Path]:
    """List the scans in a folder, which may itself be one; sorted by name."""
    folders = [path, path / "scans", path / "scans_test"]
    found = [path, *(scan for folder in folders if folder.is_dir() for scan in folder.iterdir())]
    return sorted((scan for scan in found if _at(scan / scan.name, RECORDING).is_file()), key=lambda scan: scan.name)


def _at(scan: Path, suffix: str) -> Path:
    """Return a file of a scan; all begin with its name."""
    return scan.with_name(scan.name + suffix)


def _frames(sens: Sens, size: tuple[int, int], *, official: bool) -> tuple[list[Frame], list[Problem]]:
    """Make a frame of each recorded frame with a pose; also return what was left out."""
    frames, problems = [], [Problem("file", sens.problem)] if sens.problem else []
    for recorded in sens.frames:
        name, pose = f"{recorded.index:06d}", recorded.world_from_camera
        if problem := pose_problem(pose):
            problems.append(Problem("pose", f"{name} left out: {problem}"))
            continue
        camera = _camera(sens, pose, official=official).resized(*size)
        frames.append(Frame(name, camera, partial(_read_image, recorded, size), partial(_read_depth, recorded, size)))
    return frames, problems


def _camera(sens: Sens, world_from_camera: Float64[Tensor, "4 4"], *, official: bool) -> Camera:
    if official:
        focal, center = torch.tensor([(OFFICIAL_FOCAL, OFFICIAL_FOCAL), OFFICIAL_CENTER], dtype=torch.float64)
        return Camera(focal, center, *OFFICIAL_SIZE, world_from_camera)
    intrinsics = sens.header.depth_intrinsics
    return Camera(intrinsics[[0, 1], [0, 1]], intrinsics[:2, 2], *sens.header.depth_size, world_from_camera)


def _read_image(recorded: SensFrame, size: tuple[int, int]) -> Float32[Tensor, "3 H W"]:
    return resize_nearest(as_image(recorded.read_color()), *size)


def _read_depth(recorded: SensFrame, size: tuple[int, int]) -> Float32[Tensor, "H W"]:
    return resize_nearest(recorded.read_depth(), *size)


def _labels(scan: Path, name: str, num_points: int) -> tuple[Int64[Tensor, "N"] | None, list[Problem]]:
    """Return the labels, or none and what is wrong with them, if they are there at all."""
    try:
        labels = _read_scannet200(scan) if name == "scannet200" else _read_nyu40(scan, name)
        if labels is not None and len(labels) != num_points:
            raise InputError(f"there are {len(labels)} for {num_points} points")
    except UserError as error:
        return None, [Problem("labels", f"The labels of {scan.name} are not used: {error}")]
    return labels, []


def _read_nyu40(scan: Path, name: str) -> Int64[Tensor, "N"] | None:
    """Read the NYU40 ids of the points, in another set."""
    path = _at(scan, LABELS)
    if not path.is_file():
        return None
    columns = read_ply(path)
    if "label" not in columns:
        raise InputError(f"{path} has no property 'label'")
    return convert(whole_labels(columns["label"])[0], label_set("nyu40"), label_set(name))


class _Object(TypedDict):
    segments: list[int]
    label: str


class _Objects(TypedDict):
    """What is read of the file that says which segments make an object, and what it is called."""

    segGroups: list[_Object]


class _Segments(TypedDict):
    """What is read of the file that says which segment each point belongs to."""

    segIndices: list[int]


def _read_scannet200(scan: Path) -> Int64[Tensor, "N"] | None:
    """Look up the name of the object that each point's segment belongs to; an object without a class has no label."""
    objects, segments = _at(scan, OBJECTS), _at(scan, SEGMENTS)
    if not (objects.is_file() and segments.is_file()):
        return None
    class_of_name, class_of_segment = _scannet200_of_name(), {}
    cure = "copy it again"
    groups: _Objects = fit(read_json(objects, cure), _Objects, objects.name, cure)
    indices: _Segments = fit(read_json(segments, cure), _Segments, segments.name, cure)
    for group in groups["segGroups"]:
        for segment in group["segments"]:
            class_of_segment[segment] = class_of_name.get(group["label"], UNLABELLED)
    classes = [class_of_segment.get(segment, UNLABELLED) for segment in indices["segIndices"]]
    return torch.tensor(classes, dtype=torch.int64)


def _scannet200_of_name() -> Mapping[str, int]:
    """Return the class of scannet200 that each name annotators chose stands for; several may share an id."""
    classes = label_set("scannet200")
    id_of_name = {row["raw_category"]: row["id"] for row in categories("scannet")}
    class_of_id = {id_of_name[name]: label for name, label in zip(classes.names, classes.ids, strict=True)}
    return {name: class_of_id[id_] for name, id_ in id_of_name.items() if id_ in class_of_id}


def _aligned(scene: Scene, path: Path) -> Scene:
    """Move a scene so that walls run along the axes, as the file about its scan says."""
    try:
        aligned_from_scan = _read_alignment(path)
    except (UserError, OSError) as error:
        return replace(scene, problems=(*scene.problems, Problem("other", f"The scan is not turned: {error}")))
    frames = tuple(
        replace(
            frame, camera=replace(frame.camera, world_from_camera=aligned_from_scan @ frame.camera.world_from_camera)
        )
        for frame in scene.frames
    )
    normals = None if scene.normals is None else (scene.normals.double() @ aligned_from_scan[:3, :3].T).float()
    points = move(scene.points, aligned_from_scan)
    capture_from_scan = (
        torch.eye(4, dtype=torch.float64) if scene.capture_from_world is None else scene.capture_from_world
    )
    capture_from_world = capture_from_scan @ torch.linalg.inv(aligned_from_scan)
    return replace(scene, points=points, normals=normals, frames=frames, capture_from_world=capture_from_world)


def _read_alignment(path: Path) -> Float64[Tensor, "4 4"]:
    """Return the motion that turns a scan upright and along the axes."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = (line.partition("=") for line in text.splitlines())
    numbers = next((value.split() for key, _, value in lines if key.strip() == "axisAlignment"), [])
    try:
        matrix = torch.tensor([float(number) for number in numbers], dtype=torch.float64).reshape(4, 4)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path} has no axisAlignment of 16 numbers") from error
    if problem := pose_problem(matrix):
        raise InputError(f"{path} has an axisAlignment that cannot be used: {problem}")
    return matrix
