"""Captures in nerfstudio's format, which many converters write: one `transforms.json` describes all images."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.files import read_json
from cuao3d.formats.entries import (
    by_number,
    inside,
    number,
    only_file,
    pose_entry,
    positive,
    whole,
)
from cuao3d.formats.images import MILLIMETRE, NoDepth, image_size, open_frame
from cuao3d.formats.lens import Lens, Size
from cuao3d.formats.points import Points
from cuao3d.readers.capture import ANY_IMAGE, Captures, build_scene, open_frames
from cuao3d.readers.surface import read_surface
from cuao3d.scene import OPENGL, Frame, Problem, Scene
from cuao3d.schema import shown

TRANSFORMS = "transforms.json"

MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
"""Camera models that k1, k2, p1, p2 and k3 describe."""


class Nerfstudio(Captures):
    """Captures in nerfstudio's format; a folder of them is many scenes.

    ```
    FOLDER/transforms.json
      fl_x, fl_y, cx, cy           pixels; for all frames, or in each
      w, h                         size of the images; optional, read from the images
      k1, k2, p1, p2, k3           optional: distortion, OpenCV's; images are undistorted when they are read
      depth_unit_scale_factor      optional: unit of the depth images, metres; default 0.001
      ply_file_path                optional: cloud or mesh; default: the only .ply of the folder, or mesh.ply
      frames                       a list of
        file_path                    the image
        transform_matrix             camera to world, OpenGL axes (x right, y up, z backward)
        depth_file_path              optional: 16-bit, along the optical axis, 0 or 65535 = missing
    ```
    Names are relative to the folder. The format counts pixels from the corner of the image, so half a pixel is taken
    off cx and cy. Poses and cloud are in the frame that `applied_transform` led to; nothing is undone. Depth shows what
    its photograph shows, bent alike; it may be smaller. Where no frame has depth and the .ply has faces, depth is cast
    from the mesh.
    """

    layout = f"{TRANSFORMS}, in the folder or in its subfolders"
    files = (TRANSFORMS, "**/*.ply", *ANY_IMAGE)

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        return (folder / TRANSFORMS).is_file()

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            InputError: No frame is usable, there is neither depth nor a mesh, `transforms.json` or the .ply are
                damaged, or a name leads out of the folder.
        """
        path = folder / TRANSFORMS
        meta = read_json(path)
        entries = _entries(folder, meta)
        has_depth = any("depth_file_path" in entry for entry in entries.values())
        points, mesh, problems = _read_ply(folder, meta, has_depth=has_depth)
        no_depth = NoDepth(
            f"{path} names no depth images (depth_file_path) and no mesh to cast depth from (ply_file_path, a .ply "
            f"with faces); one of the two is needed.{' '.join(['', *map(str, problems)])}"
        )
        if not has_depth and (points is None or not entries):
            raise InputError(no_depth.reason)

        def open_one(name: str) -> Frame:
            entry, where = entries[name], f"{TRANSFORMS}, {name}"
            color = _existing(folder, name)
            pose, lens = _pose(entry, where), _lens(entry, image_size(color), where)
            depth: Path | NoDepth = no_depth
            if "depth_file_path" in entry:
                depth = inside(folder, entry["depth_file_path"], f"{where}, depth_file_path")
            elif has_depth:
                depth = NoDepth(f"{where} names no depth_file_path; add it, or remove the frame.")
            unit = positive(entry.get("depth_unit_scale_factor", MILLIMETRE), f"{where}, depth_unit_scale_factor")
            return open_frame(name, pose, color=color, lens=lens, depth=depth, depth_unit=unit)

        frames, unusable = open_frames(sorted(entries, key=by_number), open_one)
        return build_scene(
            folder, frames, [*unusable, *problems], points, mesh=None if has_depth else mesh, annotations=annotations
        )


def _entries(folder: Path, meta: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what is said of each image, by the name of its file; what is said of all goes for each that says nothing.

    Raises:
        InputError: There is no list of frames, or a name of a file is none or leads out of the capture.
    """
    path = folder / TRANSFORMS
    frames = meta.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f"{path}: frames is {shown(frames)}; expected a list of objects.")
    shared = {key: value for key, value in meta.items() if key not in ("frames", "file_path", "depth_file_path")}
    for index, frame in enumerate(frames):
        for key in ("file_path", "depth_file_path"):
            if key == "file_path" or key in frame:
                inside(folder, frame.get(key), f"{path}, frame {index}, {key}")
    return {frame["file_path"]: shared | frame for frame in frames}


def _read_ply(
    folder: Path, meta: dict[str, Any], *, has_depth: bool
) -> tuple[Points | None, NDArray[np.float32] | None, list[Problem]]:
    """Read the cloud and the mesh of the capture, if present; also return what is not used."""
    if "ply_file_path" in meta:
        ply: Path | None = inside(folder, meta["ply_file_path"], f"{folder / TRANSFORMS}, ply_file_path")
    else:
        ply = only_file(folder, "*.ply", "mesh.ply")
    if ply is None:
        return None, None, []
    if not ply.is_file():
        return None, None, [Problem("file", f"{ply.name} is missing; {TRANSFORMS} names it as ply_file_path.")]
    return read_surface(ply, has_depth=has_depth)


def _existing(folder: Path, name: str) -> Path:
    """Return the file of an image; some writers leave its ending out."""
    path = folder / name
    return path if path.suffix or path.is_file() else path.with_name(f"{path.name}.png")


def _pose(entry: dict[str, Any], where: str) -> Float64[Tensor, "4 4"]:
    transform = entry.get("transform_matrix")
    rows = 3 if isinstance(transform, list) and len(transform) == 3 else 4
    return pose_entry(transform, f"{where}, transform_matrix", rows=rows) @ OPENGL


def _lens(entry: dict[str, Any], size: Size, where: str) -> Lens:
    """Return the lens of an image of a size."""
    if (model := entry.get("camera_model", "OPENCV")) not in MODELS:
        raise InputError(f"{where}, camera_model is {shown(model)}; choose from {', '.join(MODELS)}, or undistort it.")

    def value(key: str, default: float | None = None) -> float:
        return number(entry.get(key, default), f"{where}, {key}")

    if value("k4", 0.0) != 0:
        raise InputError(f"{where}, k4 is {value('k4'):g}; only k1, k2, k3, p1 and p2 are known. Undistort the images.")
    width, height = (whole(entry.get(key, given), f"{where}, {key}") for key, given in zip("wh", size, strict=True))
    distortion = (value("k1", 0.0), value("k2", 0.0), value("p1", 0.0), value("p2", 0.0), value("k3", 0.0))
    focal, corner = (value("fl_x"), value("fl_y")), (value("cx"), value("cy"))
    lens = Lens(focal, (corner[0] - 0.5, corner[1] - 0.5), (width, height), distortion)
    return lens if "w" in entry else lens.as_stored()
