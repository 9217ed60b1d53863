"""Facts about recordings: what is in them is found without reading the pixels, and damage is named."""

import io
import math
import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cuao3d.formats.sens import SensFrame, open_sens
from cuao3d.scene import Scene
from make_fixture_scannet import write_sens

FRAME_HEADER = 96
"""Bytes of a pose, two times and two sizes."""


def recording(
    frames: Sequence[tuple[np.ndarray, bytes, bytes]],
    *,
    color_size: tuple[int, int] = (8, 6),
    depth_size: tuple[int, int] = (4, 3),
    kinds: tuple[int, int] = (1, 1),
    focal: float = 5.0,
    shift: float = 1000.0,
    version: int = 4,
    num_frames: int | None = None,
) -> bytes:
    """Put a recording together field by field, as the format's own reader takes it apart."""
    content = struct.pack("<I", version) + struct.pack("<Q", 8) + b"a sensor"
    color_intrinsics = np.array([[9, 0, 4, 0], [0, 9, 3, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    depth_intrinsics = np.array([[focal, 0, 1.5, 0], [0, 6, 1.25, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for matrix in (color_intrinsics, np.eye(4), depth_intrinsics, np.eye(4)):
        content += matrix.astype("<f4").tobytes()
    content += struct.pack("<ii", *kinds) + struct.pack("<IIII", *color_size, *depth_size) + struct.pack("<f", shift)
    content += struct.pack("<Q", len(frames) if num_frames is None else num_frames)
    for pose, color, depth in frames:
        content += pose.astype("<f4").tobytes() + struct.pack("<QQQQ", 17, 18, len(color), len(depth)) + color + depth
    return content


def png(pixels: np.ndarray) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "PNG")
    return packed.getvalue()


def views(number: int) -> list[tuple[np.ndarray, bytes, bytes]]:
    """Views of random pixels; the pose of view i stands at x = i."""
    rng = np.random.default_rng(3)
    made = []
    for index in range(number):
        pose = np.eye(4)
        pose[0, 3] = index
        color = png(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        made.append(
            (pose, color, zlib.compress(rng.integers(0, 65536, (3, 4), dtype=np.uint16).astype("<u2").tobytes()))
        )
    return made


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def depth_of(view: tuple[np.ndarray, bytes, bytes]) -> np.ndarray:
    return np.frombuffer(zlib.decompress(view[2]), "<u2").reshape(3, 4)


def test_a_recording_is_read_field_by_field(tmp_path: Path):
    made = views(3)
    sens = open_sens(write(tmp_path / "a.sens", recording(made, shift=2000)))
    assert sens.problem is None
    assert sens.header.depth_intrinsics.tolist() == [[5, 0, 1.5], [0, 6, 1.25], [0, 0, 1]]
    assert (sens.header.color_size, sens.header.depth_size) == ((8, 6), (4, 3))
    assert [frame.index for frame in sens.frames] == [0, 1, 2]
    for frame, view in zip(sens.frames, made, strict=True):
        assert frame.world_from_camera.tolist() == view[0].tolist()
        np.testing.assert_array_equal(frame.read_color(), np.asarray(Image.open(io.BytesIO(view[1]))))
        np.testing.assert_array_equal(frame.read_depth(), depth_of(view).astype(np.float32) / 2000)


def test_images_that_are_not_packed_are_read_too(tmp_path: Path):
    color, depth = np.arange(144, dtype=np.uint8).reshape(6, 8, 3), np.arange(12, dtype="<u2").reshape(3, 4)
    content = recording([(np.eye(4), color.tobytes(), depth.tobytes())], kinds=(0, 0))
    (frame,) = open_sens(write(tmp_path / "a.sens", content)).frames
    np.testing.assert_array_equal(frame.read_color(), color)
    np.testing.assert_allclose(frame.read_depth(), depth / 1000, rtol=1e-6)


def test_views_are_written_and_read_back(synthetic_scene: Scene, tmp_path: Path):
    write_sens(tmp_path / "a.sens", synthetic_scene.frames, color="png", every=3)
    sens = open_sens(tmp_path / "a.sens", every=3)
    assert [frame.index for frame in sens.frames] == [0, 3]
    assert len(open_sens(tmp_path / "a.sens").frames) == 6
    camera = synthetic_scene.frames[0].camera
    assert sens.header.depth_intrinsics[[0, 1], [0, 1]].equal(camera.focal)
    assert sens.header.depth_intrinsics[:2, 2].equal(camera.center)
    for recorded, frame in zip(sens.frames, synthetic_scene.frames, strict=True):
        torch.testing.assert_close(recorded.world_from_camera, frame.camera.world_from_camera, rtol=0, atol=1e-6)
        assert recorded.read_depth().equal(frame.read_depth())
        pixels = torch.from_numpy(recorded.read_color().copy()).permute(2, 0, 1) / 255
        torch.testing.assert_close(pixels, frame.read_image(), rtol=0, atol=0.5 / 255 + 1e-6)


def test_views_of_several_cameras_make_no_recording(synthetic_scene: Scene, tmp_path: Path):
    one, other = synthetic_scene.frames
    other = replace(other, camera=replace(other.camera, focal=other.camera.focal * 2))
    with pytest.raises(ValueError, match="differ in intrinsics"):
        write_sens(tmp_path / "a.sens", [one, other])
    with pytest.raises(ValueError, match="no frames"):
        write_sens(tmp_path / "a.sens", [])


def test_only_the_frames_asked_for_are_read(tmp_path: Path):
    made = views(7)
    for index in (1, 2, 4, 5):
        made[index] = (made[index][0], b"rubbish", b"")
    sens = open_sens(write(tmp_path / "a.sens", recording(made)), every=3)
    assert [frame.index for frame in sens.frames] == [0, 3, 6]
    np.testing.assert_array_equal(sens.frames[2].read_depth(), depth_of(made[6]).astype(np.float32) / 1000)


def test_a_large_recording_takes_little_memory(tmp_path: Path):
    # Pixels are holes in the file: whoever read them would hold 400 MB of zeros.
    path = write(tmp_path / "a.sens", recording([], num_frames=100))
    with path.open("r+b") as file:
        file.seek(0, 2)
        for _ in range(100):
            pose = np.eye(4, dtype="<f4").tobytes()
            file.write(pose + struct.pack("<QQQQ", 0, 0, 4_000_000, 50))
            file.seek(4_000_050, 1)
        file.truncate()
    tracemalloc.start()
    sens = open_sens(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(sens.frames), sens.problem) == (100, None)
    assert peak < 1_000_000


def test_frames_before_a_cut_are_read_and_the_rest_is_reported(tmp_path: Path):
    made = views(3)
    content = recording(made)
    ends = np.cumsum([FRAME_HEADER + len(color) + len(depth) for _, color, depth in made]) + len(recording([]))
    for length in sorted({*range(len(recording([])), len(content), 17), *ends[:-1], *(ends - 1)}):
        sens = open_sens(write(tmp_path / "a.sens", content[:length]))
        complete = int((ends <= length).sum())
        assert sens.problem == f"a.sens ends within frame {complete} of 3; copy it again."
        assert [frame.index for frame in sens.frames] == list(range(complete))
    for frame, view in zip(sens.frames, made, strict=False):
        np.testing.assert_array_equal(frame.read_depth(), depth_of(view).astype(np.float32) / 1000)


def test_a_cut_within_the_header_is_named(tmp_path: Path):
    content = recording(views(1))
    for length in range(0, len(recording([])), 9):
        with pytest.raises(ValueError, match=r"a\.sens ends within its header"):
            open_sens(write(tmp_path / "a.sens", content[:length]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": 5}, "its version is 5, expected 4"),
        ({"kinds": (1, 2)}, "packed as occi_ushort; convert it to zlib_ushort"),
        ({"kinds": (1, -1)}, "packed as way -1"),
        ({"kinds": (7, 1)}, "colour is packed in way 7"),
        ({"depth_size": (4_000_000_000, 3)}, "4000000000 x 3"),
        ({"color_size": (1, 6)}, "1 x 6"),
        ({"shift": 0.0}, "0 units a metre"),
        ({"shift": math.nan}, "nan units a metre"),
        ({"focal": 0.0}, "no focal lengths"),
        ({"focal": math.inf}, "no focal lengths"),
        ({"num_frames": 2**63}, "promises 9223372036854775808 frames"),
    ],
)
def test_a_header_that_cannot_be_is_named(tmp_path: Path, fields: dict, words: str):
    with pytest.raises(ValueError, match=rf"a\.sens is no recording that can be read: .*{words}"):
        open_sens(write(tmp_path / "a.sens", recording(views(1), **fields)))


@pytest.mark.parametrize(
    ("color", "depth", "words"),
    [
        (b"no picture", None, "frame 0: its colour is no readable image"),
        (png(np.zeros((6, 9, 3), np.uint8)), None, "frame 0: its colour is not 8 x 6"),
        (None, b"no depth", "frame 0: its depth is damaged"),
        (None, zlib.compress(bytes(22)), "frame 0: its depth is not 4 x 3"),
        (None, zlib.compress(bytes(26)), "frame 0: its depth is not 4 x 3"),
        (None, bytes(10_000), "frame 0: its depth takes 10000 bytes"),
    ],
)
def test_damaged_pixels_are_named(tmp_path: Path, color: bytes | None, depth: bytes | None, words: str):
    ((pose, good_color, good_depth),) = views(1)
    content = recording([(pose, color or good_color, depth or good_depth)])
    (frame,) = open_sens(write(tmp_path / "a.sens", content)).frames
    with pytest.raises(ValueError, match=rf"a\.sens, {words}"):
        read(frame)


def test_depth_that_unpacks_to_gigabytes_is_refused_in_little_memory(tmp_path: Path):
    bomb = zlib.compress(bytes(50_000_000), 9)
    content = recording([(np.eye(4), b"", bomb)], depth_size=(256, 128))
    (frame,) = open_sens(write(tmp_path / "a.sens", content)).frames
    tracemalloc.start()
    with pytest.raises(ValueError, match="its depth is not 256 x 128"):
        frame.read_depth()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_damaged_recording_is_read_or_refused(tmp_path: Path):
    rng, content = random.Random(0), recording(views(3))
    refused: list[str] = []
    start = time.monotonic()
    for _ in range(300):
        changed = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(changed))
            match rng.randrange(3):
                case 0:
                    changed[place] = rng.randrange(256)
                case 1:
                    changed[place:place] = rng.randbytes(rng.randint(1, 8))
                case 2:
                    del changed[place : place + rng.randint(1, 8)]
        try:
            for frame in open_sens(write(tmp_path / "a.sens", bytes(changed))).frames:
                read(frame)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all("a.sens" in message for message in refused)
    assert time.monotonic() - start < 20


def read(frame: SensFrame) -> None:
    assert frame.read_color().shape == (6, 8, 3)
    assert frame.read_depth().shape == (3, 4)
