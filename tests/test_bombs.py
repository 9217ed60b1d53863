"""Small files that ask for gigabytes: each is refused, by name, before memory is taken for it."""

import pickle
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cuao3d.errors import UserError
from cuao3d.formats.images import image_size, read_colors, read_depth
from cuao3d.formats.ply import read_mesh
from cuao3d.formats.points import read_points
from cuao3d.formats.sens import FRAME, HEADER, open_sens
from cuao3d.memory import Budget
from cuao3d.pickles import read_torch
from cuao3d.student import read_checkpoint

MANY = 2_000_000_000
"""Numbers, or points; twenty times what any of these files holds."""


def stride_of_zero(path: Path) -> None:
    torch.save({"weight": torch.zeros(1).expand(MANY)}, path)


def one_storage_many_times(path: Path) -> None:
    storage = torch.zeros(500_000)
    torch.save([storage.view(500_000) for _ in range(4_000)], path)


def one_array_many_times(path: Path) -> None:
    array = np.zeros(500_000, np.float32)
    torch.save([array] * 1_000, path)


def deflated(path: Path) -> None:
    torch.save(torch.zeros(40_000_000, dtype=torch.uint8), path)
    with zipfile.ZipFile(path) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)


def bytes_by_number(path: Path) -> None:
    call = b"cbuiltins\nbytearray\n" + pickle.dumps(MANY, protocol=2)[2:-1] + b"\x85R."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + call)
        archive.writestr("a/version", "3")


def bytes_by_number_before_1_6(path: Path) -> None:
    call = b"\x80\x02cbuiltins\nbytearray\n" + pickle.dumps(MANY, protocol=2)[2:-1] + b"\x85R."
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    path.write_bytes(b"".join(pickle.dumps(one, protocol=2) for one in head) + call)


def wide_student(path: Path) -> None:
    plan = '{"heads": {"a": 30000000}, "architecture": "MinkUNet14Mini"}'
    save_file({"x": torch.zeros(1)}, path, {"student": plan})


def zeros_in_an_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("points.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (4_000_000, 3)})
        for _ in range(48):
            file.write(bytes(1_000_000))


def picture(mode: str, side: int) -> Callable[[Path], None]:
    """A picture of one value, whose pixels are packed as they are made."""

    def write(path: Path) -> None:
        kind = {"RGB": (8, 2), "I;16": (16, 0)}[mode]
        row = bytes(1 + side * kind[0] // 8 * (3 if mode == "RGB" else 1))
        packer = zlib.compressobj(9)
        packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
        chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, *kind, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b""))
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(
                struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
                for name, content in chunks
            )
        )

    return write


def ply(body: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(f"ply\nformat {body}end_header\n" + "0 " * 100)

    return write


XYZ = "property float x\nproperty float y\nproperty float z\n"
FACES = "element face {}\nproperty list uchar int vertex_indices\n"


def sens(path: Path) -> None:
    lens = np.eye(4)
    lens[0, 0] = lens[1, 1] = 500
    values = (*lens.flat, *lens.flat, *lens.flat, *lens.flat, 0, 1, 4096, 4096, 4096, 4096, 1000.0, 1_000_000)
    frame = FRAME.pack(*np.eye(4).flat, 0, 0, 50_331_648, 33_554_432)
    path.write_bytes(struct.pack("<IQ", 4, 0) + HEADER.pack(*values) + frame + bytes(100))


def read_sens(path: Path) -> None:
    found = open_sens(path)
    assert not found.frames
    raise UserError(found.problem)


@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        ("stride.pt", stride_of_zero, lambda path: read_torch(path)["weight"].float().clone()),
        ("shared.pt", one_storage_many_times, read_torch),
        ("array.pt", one_array_many_times, read_torch),
        ("deflated.pt", deflated, read_torch),
        ("number.pt", bytes_by_number, read_torch),
        ("old.pt", bytes_by_number_before_1_6, read_torch),
        ("wide.safetensors", wide_student, read_checkpoint),
        ("zeros.npz", zeros_in_an_archive, read_points),
        ("photo.png", picture("RGB", 4200), read_colors),
        ("header.png", picture("RGB", 4200), image_size),
        ("depth.png", picture("I;16", 4200), read_depth),
        ("text.ply", ply(f"ascii 1.0\nelement vertex {MANY}\n{XYZ}"), read_points),
        ("binary.ply", ply(f"binary_little_endian 1.0\nelement vertex {10**17}\n{XYZ}"), read_points),
        (
            "faces.ply",
            ply(f"binary_little_endian 1.0\nelement vertex 1\n{XYZ}" + FACES.format(10**17)),
            read_mesh,
        ),
        ("scan.sens", sens, read_sens),
    ],
)
def test_a_small_file_takes_little_memory(name, write, read, tmp_path, extra_memory):
    path = tmp_path / name
    write(path)
    assert path.stat().st_size < 3_000_000
    with extra_memory(limit_mb=100), pytest.raises(UserError, match=name):
        read(path)


def test_a_photograph_that_is_allowed_takes_no_more_than_it_needs(tmp_path, extra_memory):
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (2000, 2000, 3), np.uint8)).save(tmp_path / "a.png", compress_level=1)
    Image.fromarray(generator.integers(0, 9999, (2000, 2000), np.uint16)).save(tmp_path / "d.png", compress_level=1)
    with extra_memory(limit_mb=100):
        assert read_colors(tmp_path / "a.png").shape == (3, 2000, 2000)
    with extra_memory(limit_mb=60):
        assert read_depth(tmp_path / "d.png").shape == (2000, 2000)


def test_threads_wait_for_what_others_have_taken():
    budget, taken = Budget(100), []

    def take() -> None:
        with budget.take(60):
            taken.append(60)

    thread = threading.Thread(target=take, daemon=True)
    with budget.take(60):
        thread.start()
        with budget.take(40):
            thread.join(timeout=0.2)
            assert not taken
    thread.join(timeout=30)
    assert taken == [60]
    with budget.take(1000):  # more than there is: alone
        pass
