"""Recordings of ScanNet (.sens): the frames are found by walking from header to header, and read one at a time.

A recording may hold gigabytes; of it only the headers are read, until a frame is asked for.
"""

import io
import math
import os
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cuao3d.errors import InputError, UserError

VERSION = 4
"""Version of the format that ScanNet is published in."""

COLORS = {0: "raw", 1: "png", 2: "jpeg"}
DEPTHS = {0: "raw_ushort", 1: "zlib_ushort", 2: "occi_ushort"}
"""How the pixels of a frame are packed, by the number in the file."""

MAX_SIDE = 4096
"""Largest width or height that is decoded, pixels: no camera here has more, and a damaged header may claim anything."""

MAX_FRAMES = 1_000_000
"""Most frames that a recording can have: nine hours of them."""

HEADER = struct.Struct("<16f16f16f16f2i4IfQ")
"""Intrinsics and extrinsics of colour and of depth, two kinds of packing, two sizes, depth units, number of frames."""

FRAME = struct.Struct("<16f4Q")
"""Pose, two times, bytes of colour, bytes of depth; then those bytes."""


@dataclass(frozen=True)
class SensHeader:
    """What all frames of a recording share."""

    path: Path
    depth_intrinsics: Float64[Tensor, "3 3"]
    """Of the depth camera, pixels."""
    color: str
    """How colour is packed: "raw", "png" or "jpeg"."""
    depth: str
    """How depth is packed: "raw_ushort" or "zlib_ushort"."""
    color_size: tuple[int, int]
    """Width and height of the colour images, pixels."""
    depth_size: tuple[int, int]
    """Width and height of the depth images, pixels."""
    depth_shift: float
    """Depth units a metre."""


@dataclass(frozen=True)
class SensFrame:
    """A frame of a recording, whose pixels are read when asked for."""

    header: SensHeader = field(repr=False)
    index: int
    """Place in the recording."""
    world_from_camera: Float64[Tensor, "4 4"]
    """Pose, metres; infinite or NaN where tracking was lost."""
    start: int
    """Where the packed colour begins; the packed depth follows it."""
    color_bytes: int
    depth_bytes: int

    def read_color(self) -> NDArray[np.uint8]:
        """Read the colours, RGB, (H, W, 3).

        Raises:
            InputError: They are damaged; the message names recording and frame.
        """
        header, name = self.header, f"{self.header.path.name}, frame {self.index}: its colour"
        width, height = header.color_size
        packed = self._read(self.start, self.color_bytes, width * height * 3, name)
        if header.color == "raw":
            pixels = np.frombuffer(packed, np.uint8)
            shape: tuple[int, ...] = (height, width, 3) if pixels.size == height * width * 3 else pixels.shape
            pixels = pixels.reshape(shape)
        else:
            pixels = _decode(packed, name, header.color_size)
        if pixels.shape != (height, width, 3):
            raise InputError(f"{name} is not {width} x {height}, as the recording says; copy it again.")
        return pixels

    def read_depth(self) -> Float32[Tensor, "H W"]:
        """Read the depth along the optical axis, metres, 0 = missing.

        Raises:
            InputError: It is damaged; the message names recording and frame.
        """
        header, name = self.header, f"{self.header.path.name}, frame {self.index}: its depth"
        width, height = header.depth_size
        content = self._read(self.start + self.color_bytes, self.depth_bytes, width * height * 2, name)
        if header.depth == "zlib_ushort":
            try:
                content = zlib.decompressobj().decompress(content, width * height * 2 + 1)
            except zlib.error as error:
                raise InputError(f"{name} is damaged ({error}); copy it again.") from error
        if len(content) != width * height * 2:
            raise InputError(f"{name} is not {width} x {height}, as the recording says; copy it again.")
        units = np.frombuffer(content, "<u2").reshape(height, width)
        return torch.from_numpy(units.astype(np.float32) / np.float32(header.depth_shift))

    def _read(self, start: int, size: int, unpacked: int, name: str) -> bytes:
        if size > 2 * unpacked + MAX_SIDE:
            raise InputError(f"{name} takes {size} bytes, more than unpacked; copy it again.")
        with self.header.path.open("rb") as file:
            file.seek(start)
            return file.read(size)


@dataclass(frozen=True)
class Sens:
    """A recording: what its frames share, and those frames that were asked for."""

    header: SensHeader
    frames: tuple[SensFrame, ...]
    problem: str | None
    """What is wrong with the file as a whole, if anything is."""


def open_sens(path: Path, *, every: int = 1) -> Sens:
    """Find the frames of a recording, from their headers alone.

    Args:
        path: The file.
        every: Only every n-th frame is taken, from the first one on.

    Raises:
        InputError: The file is no such recording, or packs its images in a way that cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:  # a buffer would read on into the pixels
        try:
            header, num_frames = _read_header(file, path, size)
        except UserError as error:
            raise InputError(f"{path} is no recording that can be read: {error}.") from error
        except struct.error as error:
            raise InputError(f"{path} ends within its header; copy it again.") from error
        position = file.tell()
        frames: list[SensFrame] = []
        for index in range(num_frames):
            file.seek(position)
            content = file.read(FRAME.size)
            values = FRAME.unpack(content) if len(content) == FRAME.size else None
            start = position + FRAME.size
            if values is None or start + values[-2] + values[-1] > size:
                problem = f"{path.name} ends within frame {index} of {num_frames}; copy it again."
                return Sens(header, tuple(frames), problem)
            if index % every == 0:
                pose = torch.tensor(values[:16], dtype=torch.float64).reshape(4, 4)
                frames.append(SensFrame(header, index, pose, start, values[-2], values[-1]))
            position = start + values[-2] + values[-1]
    return Sens(header, tuple(frames), None)


def _decode(packed: bytes, name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG image of a size, RGB, (H, W, 3)."""
    try:
        with Image.open(io.BytesIO(packed), formats=("JPEG", "PNG")) as image:
            if image.size != size:
                raise InputError(f"{name} is not {size[0]} x {size[1]}, as the recording says; copy it again.")
            return np.asarray(image.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # damaged bytes make the decoders fail in many ways
        raise InputError(f"{name} is no readable image ({error}); copy it again.") from error


def _read_header(file: BinaryIO, path: Path, size: int) -> tuple[SensHeader, int]:
    """Read up to the first frame; also return the number of frames that the file promises."""
    version, length = struct.unpack("<IQ", file.read(12))
    if version != VERSION:
        raise InputError(f"its version is {version}, expected {VERSION}")
    file.seek(min(length, size), os.SEEK_CUR)
    values = HEADER.unpack(file.read(HEADER.size))
    color, depth, *sides, depth_shift, num_frames = values[64:]
    if color not in COLORS:
        raise InputError(f"its colour is packed in way {color}, expected one of {COLORS}")
    if DEPTHS.get(depth) not in ("raw_ushort", "zlib_ushort"):
        name = DEPTHS.get(depth, f"way {depth}")
        raise InputError(f"its depth is packed as {name}; convert it to zlib_ushort, as ScanNet has it")
    if not all(2 <= side <= MAX_SIDE for side in sides):
        raise InputError(f"its images are {sides[0]} x {sides[1]} and {sides[2]} x {sides[3]}")
    if not (math.isfinite(depth_shift) and depth_shift > 0):
        raise InputError(f"its depth has {depth_shift:g} units a metre")
    if num_frames > MAX_FRAMES:
        raise InputError(f"it promises {num_frames} frames")
    intrinsics = torch.tensor(values[32:48], dtype=torch.float64).reshape(4, 4)[:3, :3]
    if not (intrinsics.isfinite().all() and intrinsics[0, 0] > 0 and intrinsics[1, 1] > 0):
        raise InputError("its depth camera has no focal lengths")
    color_size, depth_size = (sides[0], sides[1]), (sides[2], sides[3])
    header = SensHeader(path, intrinsics, COLORS[color], DEPTHS[depth], color_size, depth_size, depth_shift)
    return header, num_frames
