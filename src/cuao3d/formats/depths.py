"""Depth in files that are no images: NumPy's arrays, OpenEXR, HDF5; floats are metres, integers its unit."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cuao3d.errors import InputError, NotInstalledError, UserError
from cuao3d.files import check_inside
from cuao3d.formats.hdf5 import hdf5_size, read_map

CHANNELS = ("Z", "Y", "R", "depth", "distance", "V")
"""Names of the channel of an EXR file that may hold depth, the first that is there first."""


def array_size(path: Path) -> tuple[int, int]:
    """Return width and height of a depth map of `ARRAYS`, from its header alone.

    Raises:
        InputError: The file is damaged, or no map of numbers.
        NotInstalledError: OpenEXR is not installed.
    """
    return ARRAYS[path.suffix.lower()][0](path)


def read_array(path: Path) -> NDArray[Any]:
    """Read a depth map (H, W) of `ARRAYS`, as `array_size` does."""
    return ARRAYS[path.suffix.lower()][1](path)


def _open_npy(path: Path) -> NDArray[Any]:
    check_inside(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header makes numpy fail in many ways
        raise InputError(f"{path} is no readable array ({error}); write it again with numpy.save.") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise InputError(f"{path} holds no numbers; write the depth map, H x W, with numpy.save.")
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2 or min(array.shape) < 2:
        raise InputError(f"{path} has the shape {array.shape}; expected a depth map, H x W.")
    depth: NDArray[Any] = array
    return depth


def _npy_size(path: Path) -> tuple[int, int]:
    height, width = _open_npy(path).shape
    return width, height


def _exr(path: Path, *, header_only: bool) -> Any:
    check_inside(path)
    try:
        import OpenEXR
    except ImportError as error:
        raise NotInstalledError(f"{path.name} needs OpenEXR: pip install 'cuao3d[exr]'") from error
    try:
        return OpenEXR.File(str(path), header_only=header_only)
    except Exception as error:  # the library raises many kinds
        raise InputError(f"{path} is no readable EXR file ({error}); write it again.") from error


def _exr_size(path: Path) -> tuple[int, int]:
    try:
        low, high = _exr(path, header_only=True).header()["dataWindow"]
        width, height = (int(size) for size in np.asarray(high, np.int64) - np.asarray(low, np.int64) + 1)
    except UserError:
        raise
    except Exception as error:
        raise InputError(f"{path} is no readable EXR file ({error}); write it again.") from error
    return width, height


def _read_exr(path: Path) -> NDArray[Any]:
    file = _exr(path, header_only=False)
    try:
        channels = {name.rpartition(".")[2]: channel for name, channel in file.channels().items()}
        found = next((name for name in CHANNELS if name in channels), None)
        if found is None and len(channels) == 1:
            found = next(iter(channels))
        pixels = None if found is None else np.asarray(channels[found].pixels)
    except Exception as error:  # the library raises many kinds
        raise InputError(f"{path} is no readable EXR file ({error}); write it again.") from error
    if pixels is None or pixels.ndim != 2:
        raise InputError(f"{path} has no channel of depth ({', '.join(channels)}); name it Z.")
    return pixels


ARRAYS = {".npy": (_npy_size, _open_npy), ".exr": (_exr_size, _read_exr), ".hdf5": (hdf5_size, read_map)}
"""How to measure and to read a depth map, by the ending of its file."""
