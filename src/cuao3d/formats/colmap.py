"""COLMAP's sparse models: cameras and images, as text or binary."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, PoseError, UserError
from cuao3d.files import check_inside
from cuao3d.formats.lens import Lens
from cuao3d.formats.poses import from_quaternion

MODELS: dict[str, tuple[str, ...]] = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
}
"""Parameters of each camera model that is read, in the order of the files."""

_BY_NUMBER = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
)
"""Name and number of parameters of the models, by their number in binary files."""

_CAMERA, _IMAGE = struct.Struct("<iiQQ"), struct.Struct("<I7dI")
_POINT_OF_AN_IMAGE = 24
"""Bytes of what an image says of each of its points: x, y, and the number of a point in space."""

LONGEST_NAME = 4096
"""Bytes that the name of an image may have."""


@dataclass(frozen=True)
class Photograph:
    """An image of a model, as its file says it."""

    name: str
    """Name of its file, relative to the folder of images."""
    camera: int
    """Number of its camera."""
    quaternion: Float64[Tensor, "4"]
    """Rotation from the world to the camera: w x y z."""
    translation: Float64[Tensor, "3"]
    """Translation of that motion, in the model's unit of length."""

    def world_from_camera(self, where: str) -> Float64[Tensor, "4 4"]:
        """Return the pose, in the model's unit of length, OpenCV axes.

        Raises:
            PoseError: It is lost, or no rotation.
        """
        camera_from_world = from_quaternion(self.quaternion.roll(-1), self.translation, where)
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = camera_from_world[:3, :3].T
        pose[:3, 3] = -camera_from_world[:3, :3].T @ camera_from_world[:3, 3]
        if not pose.isfinite().all():
            raise PoseError(f"{where}: the pose is lost (it holds NaN or infinity).")
        return pose


def find_model(folder: Path) -> Path | None:
    """Return the folder of a capture's model: the folder itself, sparse/0/, sparse/ or colmap/sparse/0/."""
    for name in (".", "sparse/0", "sparse", "colmap/sparse/0"):
        if all(any((folder / name / f"{kind}{end}").is_file() for end in ENDINGS) for kind in ("cameras", "images")):
            return folder / name
    return None


ENDINGS = (".bin", ".txt")
"""Endings of the files of a model; the binary ones count where both are there, as in COLMAP."""


def read_cameras(model: Path) -> dict[int, Lens | str]:
    """Read the cameras of a model.

    COLMAP counts pixels from the corner of the image; half a pixel is taken off the principal points.

    Args:
        model: Folder of the model.

    Returns:
        The lens of each camera by its number, or why it cannot be used (a fisheye, or no focal length).

    Raises:
        NotFoundError: There is no such file.
        InputError: The file is damaged.
    """
    path = _find(model, "cameras")
    return _binary_cameras(path) if path.suffix == ".bin" else _text_cameras(path)


def read_images(model: Path) -> list[Photograph]:
    """Read the images of a model, without their points.

    Raises:
        NotFoundError: There is no such file.
        InputError: The file is damaged.
    """
    path = _find(model, "images")
    return _binary_images(path) if path.suffix == ".bin" else _text_images(path)


def _find(model: Path, kind: str) -> Path:
    path = next((model / f"{kind}{end}" for end in ENDINGS if (model / f"{kind}{end}").is_file()), None)
    if path is None:
        raise NotFoundError(f"There is no {kind}.bin and no {kind}.txt in {model}.")
    check_inside(path)
    return path


def _lens(model: str, size: tuple[int, int], values: tuple[float, ...], where: str) -> Lens | str:
    if model not in MODELS:
        kind = "a fisheye, which is not read" if "FISHEYE" in model or model == "FOV" else "not read"
        return (
            f"{where}: the camera model {model} is {kind}; undistort the photographs (colmap image_undistorter), or "
            f"choose from {', '.join(MODELS)}."
        )
    if len(values) != len(MODELS[model]):
        raise InputError(f"{where}: {model} has {len(MODELS[model])} parameters, not {len(values)}.")
    of = dict(zip(MODELS[model], values, strict=True))
    focal = (of["f"], of["f"]) if "f" in of else (of["fx"], of["fy"])
    bent = (of.get("k1", 0.0), of.get("k2", 0.0), of.get("p1", 0.0), of.get("p2", 0.0), 0.0)
    try:
        return Lens(focal, (of["cx"] - 0.5, of["cy"] - 0.5), size, bent)
    except UserError as error:
        return f"{where}: {error}."


def _binary_cameras(path: Path) -> dict[int, Lens | str]:
    content, cameras = path.read_bytes(), {}
    start = 8
    for index in range(_count(content, path, _CAMERA.size)):
        number, kind, width, height = _unpack(_CAMERA, content, start, path)
        start += _CAMERA.size
        where = f"{path}, camera {number}"
        if not 0 <= kind < len(_BY_NUMBER) or not (0 < width < 1 << 31 and 0 < height < 1 << 31):
            raise InputError(
                f"{path}: camera {index} has model {kind} and {width} x {height} pixels; write the model again."
            )
        model, num_values = _BY_NUMBER[kind]
        values = _unpack(struct.Struct(f"<{num_values}d"), content, start, path)
        start += 8 * num_values
        cameras[number] = _lens(model, (width, height), values, where)
    return cameras


def _binary_images(path: Path) -> list[Photograph]:
    content, images = path.read_bytes(), []
    start = 8
    for _ in range(_count(content, path, _IMAGE.size + 9)):
        _, *motion, camera = _unpack(_IMAGE, content, start, path)
        start += _IMAGE.size
        end = content.find(b"\0", start, start + LONGEST_NAME)
        if end < 0:
            raise InputError(f"{path}: an image has no name; write the model again.")
        name = content[start:end].decode("utf-8", errors="replace")
        (num_points,) = _unpack(struct.Struct("<Q"), content, end + 1, path)
        start = end + 9 + _POINT_OF_AN_IMAGE * num_points
        if start > len(content):
            raise InputError(f"{path} ends within the points of image {name[:60]!r}; write the model again.")
        images.append(_photograph(name, camera, motion))
    return images


def _count(content: bytes, path: Path, least: int) -> int:
    """Return how many entries a file claims, if it is long enough for them."""
    if len(content) < 8:
        raise InputError(f"{path} is empty or cut off; write the model again.")
    count = int.from_bytes(content[:8], "little")
    if 8 + count * least > len(content):
        raise InputError(f"{path} claims {count} entries, more than its {len(content)} bytes hold; write it again.")
    return count


def _unpack(layout: struct.Struct, content: bytes, start: int, path: Path) -> tuple[Any, ...]:
    if start + layout.size > len(content):
        raise InputError(f"{path} ends too early, after {len(content)} bytes; write the model again.")
    return layout.unpack_from(content, start)


def _text_cameras(path: Path) -> dict[int, Lens | str]:
    cameras = {}
    for where, line in _lines(path):
        words = line.split()
        try:
            number, model, width, height = int(words[0]), words[1], int(words[2]), int(words[3])
            values = tuple(map(float, words[4:]))
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{where}: expected the number of a camera, its model, width, height and parameters."
            ) from error
        if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
            raise InputError(f"{where}: {width} x {height} is no size of images.")
        cameras[number] = _lens(model, (width, height), values, where)
    return cameras


def _text_images(path: Path) -> list[Photograph]:
    images = []
    lines = _lines(path, keep_empty=True)
    for where, line in lines:
        if not line:
            continue
        words = line.split(maxsplit=9)
        try:
            motion, camera, name = [float(word) for word in words[1:8]], int(words[8]), words[9]
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{where}: expected the number of an image, qw qx qy qz tx ty tz, the number of a camera and a name."
            ) from error
        images.append(_photograph(name, camera, motion))
        next(lines, None)  # its points, a line that may be empty
    return images


def _photograph(name: str, camera: int, motion: list[float]) -> Photograph:
    values = torch.tensor(motion, dtype=torch.float64)
    return Photograph(name, camera, values[:4], values[4:])


def _lines(path: Path, *, keep_empty: bool = False) -> Iterator[tuple[str, str]]:
    """Yield where each line stands, and the line; comments do not count."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text ({error}); write it again.") from error
    for index, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line.startswith("#") and (line or keep_empty):
            yield f"{path}, line {index}", line
