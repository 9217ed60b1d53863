"""Photographs and depth images: files read robustly, lenses undistorted, colour and depth brought to one camera."""

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from cuao3d.errors import InputError, PoseError, UserError
from cuao3d.files import check_inside
from cuao3d.formats.depths import ARRAYS, array_size, read_array
from cuao3d.formats.hdf5 import hdf5_size, read_radiance
from cuao3d.formats.lens import Lens, Size, distort, fold, pair
from cuao3d.memory import Budget
from cuao3d.scene import Frame, pose_problem

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
"""Formats that are read; some others would start programs or load further files."""

COLOR_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of photographs, in lower case."""

PHOTOGRAPHS = (*COLOR_ENDINGS, ".heic")
"""Endings of the photographs of phones, in lower case; those that are not read are named when they are opened."""

RADIANCE = ".hdf5"
"""Ending of linear colours, as a renderer saves them."""

DEPTH_ENDINGS = (".png", ".tif", ".tiff", ".pgm", *ARRAYS)
"""Endings of depth images, in lower case."""

MAX_PIXELS = 1 << 26
"""Images of more pixels (8192 x 8192) are refused: a small file can claim any size."""

LARGE = 1 << 22
"""Images of more pixels, 2048 x 2048, must take at least a byte for every `SPARSE` of them."""

SPARSE = 100
"""Even a black photograph in a JPEG has fewer pixels a byte; files that claim more are made to exhaust memory."""

ROWS = 256
"""Rows of an image that are worked out in double precision at a time."""

DECODING = 1 << 30
"""Bytes that all threads together may use to decode images, about; a larger image is decoded alone."""

BYTES_PER_PIXEL = 20
"""What decoding takes at most: the file's pixels, their copy, and three floats."""

MISSING = 65535
"""The largest 16-bit value is no depth: 7-Scenes marks missing pixels by it, other writers clip to it."""

MILLIMETRE = 0.001
"""The usual unit of depth images, metres."""

LONGEST_EDGE = 1024
"""Photographs without depth are reduced to this width or height, pixels: depth is computed for each of their pixels."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image upright, for each EXIF orientation; 1 is upright."""


@dataclass(frozen=True)
class NoDepth:
    """Stands for the depth of a photograph that has none; `build_scene` replaces it, or leaves the frame out."""

    reason: str
    """Which file is missing, and what to do about it."""

    def __call__(self) -> Float32[Tensor, "H W"]:
        """Raise InputError."""
        raise InputError(self.reason)


def open_depth(
    name: str, world_from_camera: Float64[Tensor, "4 4"], *, depth: Path, lens: Lens, depth_unit: float = MILLIMETRE
) -> Frame:
    """Open a view of a capture without photographs; the arguments are those of `open_frame`, `lens` that of the depth.

    Raises:
        InputError: The file is missing or damaged, or pose, size or intrinsics do not fit.
    """
    if problem := pose_problem(world_from_camera):
        raise PoseError(f"{problem}; correct it, or remove the frame.")
    _check_size(depth, depth_size(depth), lens.size)
    read_depth = partial(_read_depth_for, depth, lens, lens, depth_unit, None)
    return Frame(name, lens.camera(world_from_camera), _no_image, read_depth, has_colors=False)


def lens_of(intrinsics: Float64[Tensor, "R C"], size: Size, where: str) -> Lens:
    """Return the lens that a 3 x 3 or 4 x 4 matrix of intrinsics describes.

    Args:
        intrinsics: fx 0 cx / 0 fy cy / 0 0 1, pixels. Transposed, as column by column, it is read too: a last row of
            cx cy 1 can mean nothing else.
        size: Width and height of the images, upright. See `Lens.as_stored`.
        where: Where the matrix stands, for messages.

    Raises:
        InputError: It holds no focal lengths.
    """
    if not intrinsics[:2, 2:].any() and intrinsics[2, :2].all():
        intrinsics = intrinsics.T
    try:
        return Lens(pair(intrinsics.diagonal()[:2]), pair(intrinsics[:2, 2]), size).as_stored()
    except UserError as error:
        raise InputError(f"{where} holds no focal lengths ({error}); expected fx 0 cx / 0 fy cy / 0 0 1.") from error


def open_frame(
    name: str,
    world_from_camera: Float64[Tensor, "4 4"],
    *,
    color: Path,
    lens: Lens,
    depth: Path | NoDepth,
    depth_lens: Lens | None = None,
    depth_unit: float = MILLIMETRE,
    confidence: Path | None = None,
) -> Frame:
    """Open a view: its files are there and fit together; pixels are read later.

    The frame's camera is that of the depth image, undistorted; colours are sampled where its pixels look. Without a
    depth image it is that of the photograph, undistorted and at most `LONGEST_EDGE` wide and high.

    Args:
        name: Name of the view.
        world_from_camera: Pose, metres.
        color: File of the colours.
        lens: Their lens.
        depth: File of the depth along the optical axis, or why there is none. Without it the frame is one of
            `without_depth`.
        depth_lens: Its lens; unless given the colours' lens, resized: both images then show the same view.
        depth_unit: What 1 in the depth image means, metres.
        confidence: Image of the sensor's confidence; depth is left out where it is 0.

    Raises:
        InputError: The photograph is missing, a file is damaged, or pose, sizes or intrinsics do not fit; the message
            names the file.
    """
    if problem := pose_problem(world_from_camera):
        raise PoseError(f"{problem}; correct it, or remove the frame.")
    _check_size(color, image_size(color, fitting=lens.size), lens.size)
    if isinstance(depth, Path) and not depth.is_file():
        depth = NoDepth(_missing(depth))
    if isinstance(depth, NoDepth):
        return _open_photograph(name, world_from_camera, color, lens, depth)
    size = depth_size(depth)
    if depth_lens is None:
        try:
            depth_lens = lens.at(size)
        except UserError as error:
            raise InputError(f"{called(color)} and {called(depth)}: {error}.") from error
    _check_size(depth, size, depth_lens.size)
    if confidence is not None:
        check_inside(confidence)
    return Frame(
        name,
        depth_lens.camera(world_from_camera),
        partial(_read_colors_for, color, lens, depth_lens.pinhole()),
        partial(_read_depth_for, depth, depth_lens, lens, depth_unit, confidence),
    )


def called(path: Path) -> str:
    """Return what messages call a file: its name and that of its folder."""
    return "/".join(path.parts[-2:])


def usual_size(paths: Iterable[Path], measure: Callable[[Path], Size]) -> Size:
    """Return the size that most images have; those that cannot be read do not count.

    Args:
        paths: The images.
        measure: `image_size` or `depth_size`.

    Raises:
        InputError: None of them can be read.
    """
    sizes: Counter[Size] = Counter()
    problem = "there is none"
    for path in paths:
        try:
            sizes[measure(path)] += 1
        except (UserError, OSError) as error:
            problem = str(error)
    if not sizes:
        raise InputError(f"no image can be read: {problem}")
    return sizes.most_common(1)[0][0]


def image_size(path: Path, *, fitting: Size | None = None) -> Size:
    """Return width and height of an image, upright, from its header alone.

    Args:
        path: The image.
        fitting: Size that intrinsics are for. Where only the image as it is stored has it, and not as its EXIF turns
            it, it is taken as stored: the intrinsics are those of the sensor.

    Raises:
        InputError: The file is missing, no image, or too large.
    """
    if path.suffix.lower() == RADIANCE:
        return _check_pixels(path, hdf5_size(path))
    with _open(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image, fitting) >= 5 else (width, height)


def depth_size(path: Path) -> Size:
    """Return width and height of a depth image, from its header alone.

    Raises:
        InputError: The file is missing, no image, too large, or no depth image.
    """
    if path.suffix.lower() in ARRAYS:
        if not path.is_file():
            raise InputError(_missing(path))
        return _check_pixels(path, array_size(path))
    with _open(path) as image:
        _check_depth_mode(image, path)
        size: Size = image.size
        return size


def read_colors(path: Path, *, fitting: Size | None = None) -> Float32[Tensor, "3 H W"]:
    """Read a photograph: RGB in [0, 1], upright; what is transparent is seen over white.

    Args:
        path: The file.
        fitting: As of `image_size`.

    Raises:
        InputError: The file is missing, damaged, no image, or too large.
    """
    if path.suffix.lower() == RADIANCE:
        return as_image(read_radiance(path))
    return as_image(_read_pixels(path, partial(_as_rgb, fitting=fitting)))


def read_depth(path: Path, unit: float = MILLIMETRE) -> Float32[Tensor, "H W"]:
    """Read a depth image of 16 bits a pixel, or a map of floats: TIFF, NPY or EXR.

    Args:
        path: The file.
        unit: What 1 means, metres; floats are metres.

    Returns:
        Depth along the optical axis, metres; 0 = missing, in the file 0 or 65535, or no finite number above 0.

    Raises:
        InputError: The file is missing, damaged, too large, or no depth image.
    """
    depth_size(path)
    units = read_array(path) if path.suffix.lower() in ARRAYS else _read_pixels(path, np.asarray)
    if units.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is too large for a float is infinite, and so missing
            metres = np.asarray(units, np.float32)
        return torch.from_numpy(np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0)))
    depth = np.empty(units.shape, np.float32)
    for start in range(0, len(units), ROWS):
        values = units[start : start + ROWS].astype(np.float64)  # so that 1.234 m is the float nearest to it
        depth[start : start + ROWS] = np.where((values == MISSING) | (values < 0), 0, values) * unit
    return torch.from_numpy(depth)


def as_image(pixels: NDArray[Any]) -> Float32[Tensor, "3 H W"]:
    """Turn RGB pixels (H, W, 3), bytes or floats in [0, 1], into an image in [0, 1]."""
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return image.float().div_(255) if image.dtype == torch.uint8 else image


def as_pixels(image: Float32[Tensor, "3 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Turn an image in [0, 1] into RGB bytes."""
    pixels: NDArray[np.uint8] = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return pixels


def jpeg(image: UInt8[np.ndarray, "H W 3"], *, quality: int = 88) -> bytes:
    """Return a picture as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()


def resize_nearest(image: Float32[Tensor, "*C H W"], width: int, height: int) -> Float32[Tensor, "*C h w"]:
    """Bring an image to a size as the official code does: pixel x of the result is floor(x * old / new) of the source.

    Args:
        image: (H, W), or (channels, H, W).
        width: New width, pixels.
        height: New height, pixels.
    """
    rows = torch.arange(height) * image.shape[-2] // height
    columns = torch.arange(width) * image.shape[-1] // width
    return image[..., rows[:, None], columns]


def _open_photograph(
    name: str, world_from_camera: Float64[Tensor, "4 4"], color: Path, lens: Lens, depth: NoDepth
) -> Frame:
    """Open a view without depth."""
    scale = min(1.0, LONGEST_EDGE / max(lens.size))
    seen = lens.at((round(lens.size[0] * scale), round(lens.size[1] * scale))).pinhole()
    return Frame(name, seen.camera(world_from_camera), partial(_read_colors_for, color, lens, seen), depth)


def _no_image() -> Float32[Tensor, "3 H W"]:
    raise InputError("the capture has no colour images")


def _missing(path: Path) -> str:
    return f"{called(path)} is missing; restore it, or remove the frame's other files."


def _open(path: Path) -> Image.Image:
    check_inside(path)
    if not path.is_file():
        raise InputError(_missing(path))
    try:
        image = Image.open(path, formats=FORMATS)
    except Exception as error:  # a damaged header makes the decoders fail in many ways
        raise InputError(f"{called(path)} is no readable image; copy it again.") from error
    width, height = image.size
    try:
        _check_pixels(path, image.size)
    except UserError:
        image.close()
        raise
    if width * height > max(LARGE, SPARSE * path.stat().st_size):
        image.close()
        raise InputError(f"{called(path)} is {width} x {height} and has too few bytes for that; copy it again.")
    return image


def _check_pixels(path: Path, size: Size) -> Size:
    if min(size) < 2 or math.prod(size) > MAX_PIXELS:
        raise InputError(
            f"{called(path)} is {size[0]} x {size[1]}; expected 2 x 2 to {MAX_PIXELS >> 20} million pixels."
        )
    return size


def _read_pixels(path: Path, convert: Callable[[Image.Image], NDArray[Any]]) -> NDArray[Any]:
    with _open(path) as image:
        try:
            return convert(image)
        except Exception as error:  # a damaged file makes the decoders fail in many ways
            raise InputError(f"{called(path)} is damaged ({error}); copy it again.") from error


def _orientation(image: Image.Image, fitting: Size | None = None) -> int:
    """Return the EXIF orientation by which an image is to be turned; see `image_size` for `fitting`."""
    # The EXIF of a PNG may lie behind its pixels; there it does not count, else every header would cost a whole file.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF makes the parser fail in many ways, and the pixels may be fine
        return 1
    is_fine = orientation >= 5 and image.size == fitting and image.width != image.height
    return orientation if orientation in _TURNS and not is_fine else 1


def _as_rgb(image: Image.Image, *, fitting: Size | None = None) -> NDArray[Any]:
    """Return (H, W, 3), upright: 8 bits, or floats in [0, 1] where the file holds 16 bits of grey."""
    if (orientation := _orientation(image, fitting)) != 1:
        image = image.transpose(_TURNS[orientation])
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.float32) / MISSING
        return np.repeat(gray[..., None], 3, axis=2)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _check_depth_mode(image: Image.Image, path: Path) -> None:
    if not image.mode.startswith(("I", "F")):
        raise InputError(f"{called(path)} has mode {image.mode}; expected 16-bit depth, or floats in metres.")


def _check_size(path: Path, size: Size, expected: Size) -> None:
    if size != expected:
        raise InputError(
            f"{called(path)} is {size[0]} x {size[1]}, the intrinsics are for {expected[0]} x {expected[1]}; resize "
            "it, correct them, or remove the frame."
        )


def _read_colors_for(path: Path, lens: Lens, seen: Lens) -> Float32[Tensor, "3 H W"]:
    """Read a photograph as the pinhole `seen` would have taken it; black where its lens did not look."""
    with _budget.take(BYTES_PER_PIXEL * math.prod(lens.size)):
        return _colors_for(path, lens, seen)


def _colors_for(path: Path, lens: Lens, seen: Lens) -> Float32[Tensor, "3 H W"]:
    if lens == seen:
        return read_colors(path, fitting=lens.size)
    return seen_through(read_colors(path, fitting=lens.size), lens, seen)


def seen_through(image: Float32[Tensor, "3 H W"], lens: Lens, seen: Lens) -> Float32[Tensor, "3 h w"]:
    """Return an image of a lens as the pinhole `seen` would have taken it; black where the lens did not look."""
    # Where many pixels fall on one they are averaged first, else fine texture turns into noise.
    step = max(1, int(min(lens.focal[0] / seen.focal[0], lens.focal[1] / seen.focal[1], min(lens.size) // 2)))
    photograph = functional.avg_pool2d(image[None], step, ceil_mode=True)
    look = _look(lens, seen)
    # Position x of the photograph is (x + 0.5) / step - 0.5 of the reduced one, and grid_sample counts from -1 to 1.
    extent = step * torch.tensor([photograph.shape[3], photograph.shape[2]])
    grid = (look.positions + 0.5) * 2 / extent - 1
    colors = functional.grid_sample(photograph, grid[None], padding_mode="border", align_corners=False)[0]
    return colors * look.inside


def _read_depth_for(
    path: Path, lens: Lens, color_lens: Lens, unit: float, confidence: Path | None
) -> Float32[Tensor, "H W"]:
    """Read depth as a pinhole would have measured it; missing where its lens, or that of the colours, did not look."""
    with _budget.take(BYTES_PER_PIXEL * math.prod(lens.size)):
        depth = read_depth(path, unit)
    if confidence is not None:
        depth = depth * (_read_confidence(confidence, lens.size) > 0)
    if any(lens.distortion):
        nearest = _nearest(lens)
        depth = depth.flatten()[nearest.clamp(min=0)] * (nearest >= 0)
    if color_lens != lens:
        depth = depth * _look(color_lens, lens.pinhole()).inside
    return depth


def _read_confidence(path: Path, size: Size) -> Tensor:
    _check_size(path, image_size(path), size)
    return torch.from_numpy(_read_pixels(path, lambda image: np.asarray(image.convert("L"))).copy())


_budget = Budget(DECODING)


class _Look(NamedTuple):
    """Where the pixels of one image look in another."""

    positions: Float32[Tensor, "H W 2"]
    """Pixel positions (x, y)."""
    inside: Bool[Tensor, "H W"]
    """Whether there is a pixel."""


@lru_cache(maxsize=4)
def _look(lens: Lens, seen: Lens) -> _Look:
    """Find what each pixel of the pinhole `seen` sees in an image of `lens`."""
    width, height = seen.size
    x = (torch.arange(width, dtype=torch.float64) - seen.center[0]) / seen.focal[0]
    y = (torch.arange(height, dtype=torch.float64) - seen.center[1]) / seen.focal[1]
    focal, center = torch.tensor([lens.focal, lens.center], dtype=torch.float64)
    found = _Look(torch.empty(height, width, 2), torch.empty(height, width, dtype=torch.bool))
    for start in range(0, height, ROWS):
        rows = slice(start, start + ROWS)
        rays = torch.stack(torch.meshgrid(x, y[rows], indexing="xy"), dim=-1)
        positions = center + distort(rays, lens.distortion) * focal
        inside = ((positions >= -0.5) & (positions < torch.tensor(lens.size) - 0.5)).all(-1)
        if any(lens.distortion):
            inside &= rays.norm(dim=-1) < fold(lens.distortion)
        found.positions[rows], found.inside[rows] = positions, inside
    return found


@lru_cache(maxsize=4)
def _nearest(lens: Lens) -> Int64[Tensor, "H W"]:
    """Find for each undistorted pixel the one of the file, as row * width + column; -1 where there is none."""
    look = _look(lens, lens.pinhole())
    column, row = look.positions.round().long().unbind(-1)
    width, height = lens.size
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    return index.where(look.inside, -1)
