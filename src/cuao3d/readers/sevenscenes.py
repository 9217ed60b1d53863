"""Captures as numbered colour images, depth images and poses: 7-Scenes, 3DMatch, nvblox's sample; read and written."""

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cuao3d.labels import LABEL_SETS
from cuao3d.readers.cloud import cloud_from_depth
from cuao3d.readers.ply import read_ply, write_ply
from cuao3d.scene import Camera, Frame, Scene, Split, pose_problem

MISSING = 65535
"""Depth by which 7-Scenes marks missing pixels; 0 marks them everywhere."""

COLOR, DEPTH, POSE = ".color.png", ".depth.png", ".pose.txt"
INTRINSICS, POINTS, ABOUT = "camera-intrinsics.txt", "points.ply", "scene.json"


class SevenScenes:
    """Captures in the layout of 7-Scenes; a folder of them is many scenes.

    ```
    FOLDER/camera-intrinsics.txt     3 x 3, pixels; may also lie one folder up
    FOLDER/frame-000000.color.png    8-bit RGB
    FOLDER/frame-000000.depth.png    16-bit, millimetres along the optical axis, 0 or 65535 = missing
    FOLDER/frame-000000.pose.txt     4 x 4, camera to world, metres, OpenCV axes
    FOLDER/points.ply                optional: cloud with x y z [red green blue] [nx ny nz] [label]
    FOLDER/scene.json                optional: label_set, split, occlusion_tolerance
    ```
    Colour and depth must be registered and of one size. Without points.ply the cloud is built from depth.
    """

    layout = f"{INTRINSICS} and frame-000000{{{COLOR},{DEPTH},{POSE}}}, in the folder or in its subfolders"

    def __init__(self, path: Path | str) -> None:
        path = Path(path).resolve()
        if not path.is_dir():
            raise FileNotFoundError(f"There is no folder {path}.")
        self.folders = (
            [path] if _has_frames(path) else sorted(folder for folder in path.iterdir() if _has_frames(folder))
        )
        if not self.folders:
            raise FileNotFoundError(f"No capture in {path}. Expected {self.layout}.")
        self.names = tuple(folder.name for folder in self.folders)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether a folder looks like this layout."""
        return _has_frames(path) or any(_has_frames(folder) for folder in path.iterdir())

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            FileNotFoundError: There are no intrinsics.
            ValueError: No frame is usable, or the cloud is empty or damaged.
        """
        return _read_capture(self.folders[index])


def write_capture(scene: Scene, folder: Path | str) -> None:
    """Write a scene in the layout of `SevenScenes`: reading it gives back poses, depth (to a millimetre) and labels.

    Args:
        scene: What to write; all its frames share one set of intrinsics.
        folder: Where; it must not hold anything yet.

    Raises:
        ValueError: The folder is not empty, or the layout cannot hold the scene.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; choose another folder.")
    camera = _shared_camera(scene)
    if scene.labels is not None and scene.label_set not in LABEL_SETS:
        raise ValueError(f"Scene {scene.name} has labels of {scene.label_set!r}; a capture holds only {LABEL_SETS}.")
    partial_folder = folder.with_name(f"{folder.name}.partial")
    partial_folder.mkdir(parents=True, exist_ok=True)
    matrix = [[camera.focal[0], 0, camera.center[0]], [0, camera.focal[1], camera.center[1]], [0, 0, 1]]
    np.savetxt(partial_folder / INTRINSICS, np.array(matrix, dtype=np.float64), fmt="%.17g")
    for index, frame in enumerate(scene.frames):
        _write_frame(frame, partial_folder / f"frame-{index:06d}")
    write_ply(partial_folder / POINTS, _columns(scene))
    about = {"label_set": scene.label_set, "split": scene.split, "occlusion_tolerance": scene.occlusion_tolerance}
    (partial_folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    partial_folder.replace(folder)


def _read_capture(folder: Path) -> Scene:
    frames, problems = _open_frames(folder)
    if (folder / POINTS).is_file():
        points = _read_points(folder / POINTS)
    else:
        cloud = cloud_from_depth(frames)
        points = _Points(cloud.points, cloud.colors, None, None)
        frames, problems = list(cloud.frames), [*problems, *cloud.problems]
    if not frames:
        raise ValueError(f"No usable frame in {folder}: {'; '.join(problems[:3])}{' ...' if len(problems) > 3 else ''}")
    if not len(points.points):
        raise ValueError(f"The cloud of {folder} is empty: its depth images hold no surface, or {POINTS} no point.")
    about = _read_about(folder / ABOUT)
    if points.labels is not None and about.get("label_set") is None:
        problems.append(f"The labels of {POINTS} are not used: {ABOUT} does not name their label_set.")
        points = points._replace(labels=None)
    return Scene(
        name=folder.name,
        points=points.points,
        frames=tuple(frames),
        colors=points.colors,
        labels=points.labels,
        label_set=about.get("label_set") if points.labels is not None else None,
        normals=points.normals,
        split=about.get("split", Scene.split),
        occlusion_tolerance=about.get("occlusion_tolerance", Scene.occlusion_tolerance),
        problems=tuple(problems),
    )


def _has_frames(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("frame-*.*"))


def _open_frames(folder: Path) -> tuple[list[Frame], list[str]]:
    """Open all frames whose files are in order; also say of each other one what is wrong with it."""
    intrinsics = _read_intrinsics(folder)
    names = sorted({match[0] for path in folder.iterdir() if (match := re.match(r"frame-[^.]+(?=\.)", path.name))})
    problems: dict[str, str] = {}
    found: dict[str, tuple[Tensor, tuple[int, int]]] = {}
    for name in names:
        try:
            found[name] = _read_pose(folder / f"{name}{POSE}"), _image_size(folder / name)
        except ValueError as error:
            problems[name] = str(error)
    usual = Counter(size for _, size in found.values()).most_common(1)[0][0] if found else (0, 0)
    frames = []
    for name, (pose, size) in found.items():
        if size == usual:
            camera = Camera(intrinsics[[0, 1], [0, 1]], intrinsics[:2, 2], *size, pose)
            color, depth = folder / f"{name}{COLOR}", folder / f"{name}{DEPTH}"
            frames.append(Frame(name, camera, partial(_read_image, color), partial(_read_depth, depth)))
        else:
            sizes = f"{size[0]} x {size[1]}, most frames are {usual[0]} x {usual[1]}"
            problems[name] = f"{name}{COLOR} is {sizes}; resize it, or remove the frame."
    return frames, [f"{name} left out: {problems[name]}" for name in sorted(problems)]


def _read_intrinsics(folder: Path) -> Float64[Tensor, "3 3"]:
    path = next((up / INTRINSICS for up in (folder, folder.parent) if (up / INTRINSICS).is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"No {INTRINSICS} in {folder} or above it. Write the 3 x 3 matrix there, in pixels (for 7-Scenes: "
            "585 0 320 / 0 585 240 / 0 0 1)."
        )
    matrix = _read_matrix(path, 3)
    if not torch.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise ValueError(f"{path} holds no focal lengths; expected fx 0 cx / 0 fy cy / 0 0 1, in pixels.")
    return matrix


def _read_pose(path: Path) -> Float64[Tensor, "4 4"]:
    if not path.is_file():
        raise ValueError(f"{path.name} is missing; restore it, or remove the frame's other files.")
    pose = _read_matrix(path, 4)
    if problem := pose_problem(pose):
        raise ValueError(f"{path.name}: {problem}; correct it, or remove the frame.")
    return pose


def _read_matrix(path: Path, size: int) -> Float64[Tensor, "n n"]:
    try:
        matrix = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} holds no matrix ({error}); expected {size} x {size} numbers.") from error
    if matrix.shape != (size, size):
        raise ValueError(f"{path} holds {matrix.shape[0]} x {matrix.shape[1]} numbers; expected {size} x {size}.")
    return torch.from_numpy(matrix)


def _image_size(frame: Path) -> tuple[int, int]:
    """Return width and height of a frame's two images, from their headers alone."""
    color, depth = frame.with_name(f"{frame.name}{COLOR}"), frame.with_name(f"{frame.name}{DEPTH}")
    with _open_png(color) as color_image, _open_png(depth) as depth_image:
        if not depth_image.mode.startswith("I"):
            raise ValueError(f"{depth.name} has mode {depth_image.mode}; expected 16-bit millimetres.")
        if color_image.size != depth_image.size:
            raise ValueError(
                f"{depth.name} is {depth_image.size[0]} x {depth_image.size[1]}, {color.name} "
                f"{color_image.size[0]} x {color_image.size[1]}; register depth to colour, at one size."
            )
        return color_image.size


def _open_png(path: Path) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"{path.name} is missing; restore it, or remove the frame's other files.")
    try:
        return Image.open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} is no readable image; copy it again.") from error


def _read_image(path: Path) -> Float32[Tensor, "3 H W"]:
    pixels = _read_pixels(path, "RGB").astype(np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _read_depth(path: Path) -> Float32[Tensor, "H W"]:
    millimetres = _read_pixels(path)
    return torch.from_numpy(np.where(millimetres == MISSING, 0, millimetres).astype(np.float32) / 1000)


def _read_pixels(path: Path, mode: str | None = None) -> NDArray[Any]:
    with _open_png(path) as image:
        try:
            return np.asarray(image.convert(mode) if mode else image)
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{path.name} is damaged ({error}); copy it again.") from error


class _Points(NamedTuple):
    points: Float32[Tensor, "N 3"]
    colors: Float32[Tensor, "N 3"] | None
    labels: Int64[Tensor, "N"] | None
    normals: Float32[Tensor, "N 3"] | None


def _read_points(path: Path) -> _Points:
    columns = read_ply(path)
    if not columns:
        return _Points(torch.empty(0, 3), None, None, None)
    points = _stack(columns, ("x", "y", "z"))
    if points is None or not torch.isfinite(points).all():
        raise ValueError(f"{path} needs a finite x, y and z for each point; remove the other points.")
    colors = _stack(columns, ("red", "green", "blue"))
    if colors is not None and columns["red"].dtype == np.uint8:
        colors = colors / 255
    labels = torch.from_numpy(columns["label"].astype(np.int64)) if "label" in columns else None
    return _Points(points, colors, labels, _stack(columns, ("nx", "ny", "nz")))


def _stack(columns: dict[str, NDArray[Any]], names: tuple[str, str, str]) -> Float32[Tensor, "N 3"] | None:
    if not all(name in columns for name in names):
        return None
    return torch.from_numpy(np.stack([columns[name] for name in names], axis=1).astype(np.float32))


def _read_about(path: Path) -> dict[str, Any]:
    """Read what the capture says of itself; all of it is optional."""
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); correct or remove it.") from error
    expected = {"label_set": (*LABEL_SETS, None), "split": get_args(Split)}
    if not isinstance(about, dict):
        raise ValueError(f"{path} should hold an object with {sorted(expected)}; correct or remove it.")
    for key, choices in expected.items():
        if key in about and about[key] not in choices:
            raise ValueError(f"{path}: {key} is {about[key]!r}; choose from {choices}.")
    tolerance = about.get("occlusion_tolerance", Scene.occlusion_tolerance)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not tolerance > 0:
        raise ValueError(f"{path}: occlusion_tolerance is {tolerance!r}; expected a number above 0.")
    return about


def _shared_camera(scene: Scene) -> Camera:
    """Return the first frame's camera; refuse a scene whose frames differ in more than the pose."""
    if not scene.frames:
        raise ValueError(f"Scene {scene.name} has no frames to write.")
    first = scene.frames[0].camera
    for camera in (frame.camera for frame in scene.frames):
        same_size = (camera.width, camera.height) == (first.width, first.height)
        if not (same_size and camera.focal.equal(first.focal) and camera.center.equal(first.center)):
            raise ValueError(f"The frames of scene {scene.name} differ in intrinsics; this layout holds one set.")
    return first


def _write_frame(frame: Frame, path: Path) -> None:
    image = (frame.read_image().permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    millimetres = (frame.read_depth() * 1000).round()
    depth = millimetres.where(millimetres < MISSING, 0).numpy().astype(np.uint16)
    Image.fromarray(image).save(path.with_name(f"{path.name}{COLOR}"))
    Image.fromarray(depth).save(path.with_name(f"{path.name}{DEPTH}"))
    np.savetxt(path.with_name(f"{path.name}{POSE}"), frame.camera.world_from_camera.numpy(), fmt="%.17g")


def _columns(scene: Scene) -> dict[str, NDArray[Any]]:
    """Return a scene's points as the columns of a PLY file."""
    columns: dict[str, NDArray[Any]] = dict(zip("xyz", scene.points.numpy().T, strict=True))
    if scene.colors is not None:
        colors = (scene.colors.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        columns.update(zip(("red", "green", "blue"), colors.T, strict=True))
    if scene.normals is not None:
        columns.update(zip(("nx", "ny", "nz"), scene.normals.numpy().T, strict=True))
    if scene.labels is not None:
        columns["label"] = scene.labels.numpy().astype(np.int32)
    return columns
