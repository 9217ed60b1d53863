"""Captures as numbered colour images, depth images and poses: 7-Scenes, 3DMatch, nvblox's sample; read and written."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.files import read_json
from cuao3d.formats.entries import choice, fraction, read_matrix, read_pose
from cuao3d.formats.images import (
    COLOR_ENDINGS,
    DEPTH_ENDINGS,
    MISSING,
    depth_size,
    image_size,
    lens_of,
    open_depth,
    open_frame,
    usual_size,
)
from cuao3d.formats.listing import files_in
from cuao3d.formats.ply import write_ply
from cuao3d.formats.points import read_points
from cuao3d.labels import LABEL_SETS
from cuao3d.readers.capture import Captures, build_scene, open_frames
from cuao3d.readers.options import named_label_set
from cuao3d.scene import Camera, Frame, Problem, Scene, Split

COLOR, DEPTH, POSE = ".color.png", ".depth.png", ".pose.txt"
INTRINSICS, POINTS, ABOUT = "camera-intrinsics.txt", "points.ply", "scene.json"


class SevenScenes(Captures):
    """Captures in the layout of 7-Scenes; a folder of them is many scenes.

    ```
    FOLDER/camera-intrinsics.txt     3 x 3, pixels; may also lie one folder up
    FOLDER/frame-000000.color.png    8-bit RGB; or .jpg and others
    FOLDER/frame-000000.depth.png    16-bit, millimetres along the optical axis, 0 or 65535 = missing; or floats, metres
                                     (.tiff, .npy, .exr)
    FOLDER/frame-000000.pose.txt     4 x 4, camera to world, metres, OpenCV axes
    FOLDER/points.ply                optional: cloud with x y z [red green blue] [nx ny nz] [label]
    FOLDER/scene.json                optional: label_set (a name, or a CSV in the folder), split, occlusion_tolerance
    ```
    Colour and depth must be registered and of one size. Without points.ply the cloud is built from depth. Where there
    is no colour image at all, the scene has points and depth, and no teacher can lift it.
    """

    layout = f"{INTRINSICS} and frame-000000{{{COLOR},{DEPTH},{POSE}}}, in the folder or in its subfolders"
    files = ("frame-*", INTRINSICS, f"../{INTRINSICS}", POINTS, ABOUT, "**/*.csv")

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        found = _files(folder)
        return sum(bool(of_kind) for of_kind in found.values()) > 1 or bool(found["pose"] and _intrinsics_near(folder))

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            NotFoundError: There are no intrinsics.
            InputError: No frame is usable, or the cloud is empty or damaged.
        """
        frames, problems = _open_frames(folder)
        points = read_points(folder / POINTS) if (folder / POINTS).is_file() else None
        about = _read_about(folder / ABOUT)
        return build_scene(folder, frames, problems, points, annotations=annotations, **about)


def write_capture(scene: Scene, folder: Path | str) -> None:
    """Write a scene in the layout of `SevenScenes`: reading it gives back poses, depth (to a millimetre) and labels.

    Args:
        scene: What to write; all its frames share one set of intrinsics.
        folder: Where; it must not hold anything yet.

    Raises:
        InputError: The folder is not empty, or the layout cannot hold the scene.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; choose another folder.")
    camera = _shared_camera(scene)
    if scene.labels is not None and scene.label_set is None:
        raise InputError(f"Scene {scene.name} has labels without a label set; name it.")
    partial_folder = folder.with_name(f"{folder.name}.partial")
    partial_folder.mkdir(parents=True, exist_ok=True)
    matrix = [[camera.focal[0], 0, camera.center[0]], [0, camera.focal[1], camera.center[1]], [0, 0, 1]]
    np.savetxt(partial_folder / INTRINSICS, np.array(matrix, dtype=np.float64), fmt="%.17g")
    for index, frame in enumerate(scene.frames):
        _write_frame(frame, partial_folder / f"frame-{index:06d}")
    write_ply(partial_folder / POINTS, _columns(scene))
    label_set = scene.label_set
    if label_set is not None and label_set not in LABEL_SETS:
        shutil.copy(label_set, partial_folder)
        label_set = Path(label_set).name
    about = {"label_set": label_set, "split": scene.split, "occlusion_tolerance": scene.occlusion_tolerance}
    (partial_folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    partial_folder.replace(folder)


def _files(folder: Path) -> dict[str, dict[str, Path]]:
    """Return the files of each kind, by the name of their frame; endings count in any case."""
    kinds = {"color": COLOR_ENDINGS, "depth": DEPTH_ENDINGS, "pose": (".txt",)}
    endings = {kind: tuple(f".{kind}{ending}" for ending in of_kind) for kind, of_kind in kinds.items()}
    found = {kind: files_in(folder, of_kind) for kind, of_kind in endings.items()}
    return {
        kind: {name: path for name, path in of_kind.items() if name.lower().startswith("frame-")}
        for kind, of_kind in found.items()
    }


def _open_frames(folder: Path) -> tuple[list[Frame], list[Problem]]:
    """Open all frames; also return the problems of those that cannot be opened."""
    intrinsics = _intrinsics_of(folder)
    matrix, files = read_matrix(intrinsics, 3), _files(folder)
    has_colors = bool(files["color"])
    measured, measure = (files["color"], image_size) if has_colors else (files["depth"], depth_size)
    try:
        size = usual_size(measured.values(), measure)
    except UserError as error:
        raise InputError(f"No usable frame in {folder}: {error}") from error
    lens = lens_of(matrix, size, str(intrinsics))

    def open_one(name: str) -> Frame:
        color, depth, pose = (
            files[kind].get(name, folder / f"{name}{ending}")
            for kind, ending in (("color", COLOR), ("depth", DEPTH), ("pose", POSE))
        )
        if not has_colors:
            return open_depth(name, read_pose(pose), depth=depth, lens=lens)
        return open_frame(name, read_pose(pose), color=color, lens=lens, depth=depth, depth_lens=lens)

    return open_frames(sorted({name for of_kind in files.values() for name in of_kind}), open_one)


def _intrinsics_near(folder: Path) -> Path | None:
    return next((up / INTRINSICS for up in (folder, folder.parent) if (up / INTRINSICS).is_file()), None)


def _intrinsics_of(folder: Path) -> Path:
    if (path := _intrinsics_near(folder)) is None:
        raise NotFoundError(
            f"No {INTRINSICS} in {folder} or above it. Write the 3 x 3 matrix there, in pixels (for 7-Scenes: "
            "585 0 320 / 0 585 240 / 0 0 1)."
        )
    return path


def _read_about(path: Path) -> dict[str, Any]:
    """Read the capture's own description of itself; every entry is optional."""
    content = read_json(path) if path.is_file() else {}
    about: dict[str, Any] = {}
    if content.get("label_set") is not None:
        about["label_set"] = named_label_set(path.parent, content["label_set"], f"{path}: label_set")
    if "split" in content:
        about["split"] = choice(get_args(Split), content["split"], f"{path}: split")
    if "occlusion_tolerance" in content:
        about["occlusion_tolerance"] = fraction(content["occlusion_tolerance"], f"{path}: occlusion_tolerance")
    return about


def _shared_camera(scene: Scene) -> Camera:
    """Return the first frame's camera; refuse a scene whose frames differ in more than the pose."""
    if not scene.frames:
        raise InputError(f"Scene {scene.name} has no frames to write.")
    first = scene.frames[0].camera
    for camera in (frame.camera for frame in scene.frames):
        same_size = (camera.width, camera.height) == (first.width, first.height)
        if not (same_size and camera.focal.equal(first.focal) and camera.center.equal(first.center)):
            raise InputError(f"The frames of scene {scene.name} differ in intrinsics; this layout holds one set.")
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
