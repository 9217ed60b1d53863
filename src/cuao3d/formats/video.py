"""Frames of a video, decoded once and kept as small JPEGs in the cache."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cuao3d.errors import InputError, NotFoundError, NotInstalledError
from cuao3d.files import cache_folder, check_inside, read_whole_json, write_chunks, write_json
from cuao3d.formats.images import LONGEST_EDGE, MAX_PIXELS, jpeg
from cuao3d.formats.lens import Size

CONTAINERS = {".mp4": "mov", ".mov": "mov", ".m4v": "mov", ".mkv": "matroska", ".avi": "avi"}
"""FFmpeg's name for the container of each ending. Others are not tried: playlists, say, would open further files."""

QUALITY = 92
"""Quality of the JPEGs."""


@dataclass(frozen=True)
class Frames:
    """Frames that were taken out of a video."""

    files: dict[int, Path]
    """JPEG of each frame by its number, from 0 on; frames beyond the end of the video are not there."""
    size: Size
    """Width and height of the video, pixels; the JPEGs are at most `LONGEST_EDGE` wide and high."""


def extract_frames(video: Path, numbers: Iterable[int]) -> Frames:
    """Take frames out of a video.

    A video is decoded from its start, as seeking finds the wrong frames in many. What was decoded is kept in the cache
    (`CUAO3D_CACHE`), a small JPEG for each frame, so that the next call with these numbers decodes nothing; that folder
    may be deleted at any time. Frames are as they are stored: what a player would turn is not turned, for intrinsics
    are those of stored frames.

    Args:
        video: The file, of one of the endings in `CONTAINERS`.
        numbers: Frames to take, in the order in which they are shown, from 0 on.

    Raises:
        NotFoundError: There is no such file.
        NotInstalledError: PyAV is not installed.
        InputError: The file is damaged, or holds no video, or one whose codec is not known.
    """
    check_inside(video)
    if not video.is_file():
        raise NotFoundError(f"There is no file {video}.")
    folder = _folder_of(video)
    files = {number: folder / f"{number:06d}.jpg" for number in numbers}
    about = read_whole_json(folder / "video.json")
    if about is None or not _is_kept(files, about["frames"], ended=about["ended"]):
        about = _decode(video, files)
        write_json(folder / "video.json", about, durable=False)
    width, height = about["size"]
    return Frames({number: path for number, path in files.items() if path.is_file()}, (width, height))


def _folder_of(video: Path) -> Path:
    """Return the folder of a video's frames in the cache; it is another one once the file is changed or moved."""
    status = video.stat()
    key = f"{os.path.abspath(video)} {status.st_size} {status.st_mtime_ns} {LONGEST_EDGE} {QUALITY}"
    return cache_folder() / "video" / f"{video.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _is_kept(files: dict[int, Path], num_frames: int, *, ended: bool) -> bool:
    """Say whether all frames are kept, but for those beyond the end of the video."""
    return all(path.is_file() if number < num_frames else ended for number, path in files.items())


def _decode(video: Path, files: dict[int, Path]) -> dict[str, Any]:
    """Write the frames of a video that are not there yet; return its size, how many frames were seen, and if it ended.

    Writing is done outside of what catches the decoders' errors: a full disk is no damaged video.
    """
    last, num_frames, size = max(files, default=-1), 0, (0, 0)
    for width, height, pixels in _stored(video, {number for number, path in files.items() if not path.is_file()}):
        if num_frames > last:
            return {"size": [width, height], "frames": num_frames, "ended": False}
        if pixels is not None:
            write_chunks(files[num_frames], [jpeg(pixels, quality=QUALITY)], durable=False)
        size, num_frames = (width, height), num_frames + 1
    if not num_frames:
        raise InputError(f"{video} holds no frame; copy it again.")
    return {"size": list(size), "frames": num_frames, "ended": True}


def _stored(video: Path, wanted: set[int]) -> Iterator[tuple[int, int, NDArray[np.uint8] | None]]:
    """Yield width and height of each frame, and, if it is wanted, its pixels, reduced; what follows damage is left out.

    Raises:
        NotInstalledError: PyAV is not installed.
        InputError: Already the first frame cannot be decoded.
    """
    try:
        import av
    except ImportError:
        raise NotInstalledError(
            f"Reading {video} needs PyAV: pip install 'cuao3d[video]'. Or extract its frames: "
            f"ffmpeg -i {video.name} -start_number 0 {video.stem}/%06d.jpg"
        ) from None
    container, frames, number = None, None, 0
    try:
        while True:
            try:
                if container is None or frames is None:
                    options = {"protocol_whitelist": "file"}
                    kind = CONTAINERS[video.suffix.lower()]
                    container = av.open(os.path.abspath(video), format=kind, options=options)
                    frames = container.decode(_stream(container, video))
                frame = next(frames, None)
                pixels = _reduced(frame) if frame is not None and number in wanted else None
            except InputError:
                raise
            except Exception as error:  # a damaged file makes the decoders fail in many ways
                if number:  # what came before the damage is right
                    return
                raise InputError(
                    f"{video} cannot be read as a video ({str(error) or type(error).__name__}): it is damaged, or its "
                    f"codec is not known. Convert it (ffmpeg -i {video.name} -c:v libx264 new.mp4), or copy it again."
                ) from error
            if frame is None:
                return
            yield frame.width, frame.height, pixels
            number += 1
    finally:
        if container is not None:
            container.close()


def _stream(container: Any, video: Path) -> Any:
    """Return the first track of pictures, if they are not too large to be decoded."""
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise LookupError("no decoder is here")
    width, height = stream.codec_context.width, stream.codec_context.height
    if min(width, height) < 2 or width * height > MAX_PIXELS:
        raise InputError(f"{video} is {width} x {height}; expected 2 x 2 to {MAX_PIXELS >> 20} million pixels.")
    stream.thread_type = "AUTO"
    return stream


def _reduced(frame: Any) -> NDArray[np.uint8]:
    """Return the pixels of a frame, at most `LONGEST_EDGE` wide and high."""
    scale = min(1.0, LONGEST_EDGE / max(frame.width, frame.height))
    width, height = max(2, round(frame.width * scale)), max(2, round(frame.height * scale))
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    return pixels
