"""Pixels of colour and depth images: decoded with errors that name the file, and brought to a size."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

MAX_SIDE = 4096
"""Largest width or height that is decoded, pixels: no camera here has more, and a damaged header may claim anything."""


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image file, from its header alone.

    Raises:
        ValueError: The file is missing or is no readable image.
    """
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            return image.size
    except Exception as error:  # a damaged file makes the decoder fail in many ways
        raise _unreadable(path.name, error) from error


def read_pixels(source: Path | bytes, name: str, mode: str | None = None) -> NDArray[Any]:
    """Decode a JPEG or PNG image.

    Args:
        source: The file, or its content.
        name: What to call it in messages.
        mode: Convert to this of Pillow's modes ("RGB"); as it is unless told.

    Returns:
        Its pixels, (H, W) or (H, W, channels).

    Raises:
        ValueError: It is no readable image.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=("JPEG", "PNG")) as image:
            if max(image.size) > MAX_SIDE:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            return np.asarray(image.convert(mode) if mode else image)
    except Exception as error:
        raise _unreadable(name, error) from error


def resize_nearest(pixels: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    """Bring pixels to a size as the official code does: pixel x of the result is floor(x * old / new) of the source.

    Args:
        pixels: (H, W) or (H, W, channels).
        width: New width, pixels.
        height: New height, pixels.
    """
    rows = np.arange(height) * pixels.shape[0] // height
    columns = np.arange(width) * pixels.shape[1] // width
    resized: NDArray[Any] = pixels[rows[:, None], columns]
    return resized


def as_image(pixels: NDArray[np.uint8]) -> Float32[Tensor, "3 H W"]:
    """Turn RGB pixels (H, W, 3) into an image in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1).contiguous()


def _unreadable(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name} is no readable image ({error}); copy it again.")
