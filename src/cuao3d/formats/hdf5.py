"""Arrays in HDF5 files: maps of numbers, and colours as a renderer saves them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cuao3d.errors import InputError, NotInstalledError, UserError
from cuao3d.files import check_inside

DATASET = "dataset"
"""Name of the one array of a file, as Hypersim writes it."""

MAX_NUMBERS = 1 << 26
"""Arrays of more numbers are refused: a small file can claim any size."""

BRIGHT, SHOWN = 0.9, 0.8
"""Colours are scaled so that this quantile of their brightness is shown this bright, as Hypersim's own pictures are."""

GAMMA = 2.2


def hdf5_size(path: Path) -> tuple[int, int]:
    """Return width and height of a map (H, W) or an image (H, W, 3), from its header alone.

    Raises:
        InputError: The file is damaged, or holds something else.
        NotInstalledError: h5py is not installed.
    """
    shape = _open(path, pixels=False).shape
    if len(shape) not in (2, 3):
        raise InputError(f"{path} has the shape {shape}; expected a map, H x W, or colours, H x W x 3.")
    return shape[1], shape[0]


def read_hdf5(path: Path) -> NDArray[Any]:
    """Read an array of numbers, whatever its shape; errors as of `hdf5_size`."""
    return _open(path)


def read_map(path: Path) -> NDArray[Any]:
    """Read a map (H, W); errors as of `hdf5_size`."""
    array = _open(path)
    if array.ndim != 2:
        raise InputError(f"{path} has the shape {array.shape}; expected a map, H x W.")
    return array


def read_radiance(path: Path) -> NDArray[np.float32]:
    """Read linear colours (H, W, 3) and bring them to [0, 1] as a picture shows them; errors as of `hdf5_size`.

    The method is that of Hypersim's `dataset_generate_images_tonemap.py`: a scale by the brightness of most pixels, and
    a gamma.
    """
    linear = _open(path)
    if linear.ndim != 3 or linear.shape[2] != 3:
        raise InputError(f"{path} has the shape {linear.shape}; expected colours, H x W x 3.")
    linear = np.nan_to_num(linear.astype(np.float32), posinf=0, neginf=0).clip(min=0)
    brightness = linear @ np.array([0.3, 0.59, 0.11], np.float32)
    bright = float(np.quantile(brightness, BRIGHT))
    scale = SHOWN**GAMMA / bright if bright > 1e-4 else 0.0
    colors: NDArray[np.float32] = (linear * np.float32(scale)).clip(0, 1) ** np.float32(1 / GAMMA)
    return colors


def _open(path: Path, *, pixels: bool = True) -> NDArray[Any]:
    """Return the array of a file, or one of zeros that has its shape and takes no memory."""
    check_inside(path)
    if not path.is_file():
        raise InputError(f"{'/'.join(path.parts[-2:])} is missing; restore it, or remove the frame's other files.")
    try:
        import h5py
    except ImportError as error:
        raise NotInstalledError(f"{path.name} needs h5py: pip install 'cuao3d[hdf5]'") from error
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get(DATASET, getlink=True), h5py.HardLink):
                raise InputError(f"{path} holds no {DATASET!r} of its own; it holds {', '.join(list(file)[:5])}.")
            array = file[DATASET]
            _check(path, array)
            return np.asarray(array[()]) if pixels else np.broadcast_to(np.zeros((), array.dtype), array.shape)
    except UserError:
        raise
    except Exception as error:  # a damaged file makes the library fail in many ways
        raise InputError(f"{path} is no readable HDF5 file ({error}); copy it again.") from error


def _check(path: Path, array: Any) -> None:
    """Refuse what is no plain array of numbers in this file, or is too large to be one.

    Raises:
        InputError: It is so.
    """
    shape = getattr(array, "shape", None)
    if not shape or array.dtype.kind not in "fiu" or array.external or array.is_virtual:
        raise InputError(f"{path}: {DATASET!r} is no array of numbers that lies in this file; copy it again.")
    for extent in (shape, array.chunks or (1,)):
        if min(extent) < 1 or np.prod(np.array(extent, dtype=object)) > MAX_NUMBERS:
            raise InputError(f"{path}: {DATASET!r} has the shape {shape}; expected at most {MAX_NUMBERS} numbers.")
