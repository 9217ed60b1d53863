"""Bombs: inputs made by hand that ask for much time, memory or trust; each by name."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzz_subjects import SUBJECTS, Subject

DEEP = "[" * 200_000
"""JSON that is nested deeply."""

Bomb = Callable[[Path], Callable[[], object]]
"""Makes an input in an empty folder; returns what reads it."""

JSON_FILES = {
    "sevenscenes": ("capture/capture.json", "capture/scene.json"),
    "nerfstudio": ("capture/transforms.json",),
    "replica": ("capture/cam_params.json",),
    "scannetpp": ("capture/iphone/pose_intrinsic_imu.json",),
    "scannet": ("scans/scene0568_00/scene0568_00.aggregation.json",),
    "store": ("store/store.json", "store/scenes/synthetic/manifest.json"),
    "run": ("run.json", "config.json", "metrics.jsonl"),
    "model": ("preprocessor_config.json", "model.safetensors.index.json"),
}
"""JSON files of formats, which are replaced by bombs."""

STUDENT, OFFICIAL, LABELS = ("student", "student.safetensors"), ("official", "model.pth"), ("labels", "labels.csv")
RECORDING = ("scannet", "scans/scene0568_00/scene0568_00.sens")

HUGE = "9" * 5000
"""A number of more digits than Python reads."""


def _replaced(name: str, file: str, content: bytes, folder: Path) -> Callable[[], object]:
    """Replace a file of a format."""
    subject = SUBJECTS[name]
    subject.make(folder)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(content)
    return partial(subject.read, folder)


def _cloud(name: str, content: bytes | Callable[[Path], object], folder: Path) -> Callable[[], object]:
    """Write a lone cloud."""
    from fuzz_subjects import read_scenes

    if callable(content):
        content(folder / name)
    else:
        (folder / name).write_bytes(content)
    return partial(read_scenes, folder / name)


def _ply(header: str, body: bytes = b"") -> bytes:
    return f"ply\nformat {header}\nend_header\n".encode() + body


def _pcd(width: int, data: str, fields: str = "x y z", counts: str = "1 1 1", body: bytes = b"") -> bytes:
    number = len(fields.split())
    return (
        f"VERSION 0.7\nFIELDS {fields}\nSIZE {' '.join(['4'] * number)}\nTYPE {' '.join(['F'] * number)}\n"
        f"COUNT {counts}\n"
        f"WIDTH {width}\nHEIGHT 1\nPOINTS {width}\nDATA {data}\n"
    ).encode() + body


def _png(width: int, height: int, *, bits: int = 8, kind: int = 2, rows: int | None = None) -> bytes:
    """A PNG of zeros, which packs them a thousand times smaller."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer, packed = zlib.compressobj(9), []
    line = bytes(1 + width * {0: 1, 2: 3}[kind] * bits // 8)
    for _ in range(height if rows is None else rows):
        packed.append(packer.compress(line))
    packed.append(packer.flush())
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(packed)) + chunk(b"IEND", b"")


def _npz(path: Path, **arrays: tuple[str, tuple[int, ...]]) -> None:
    """An archive of arrays of zeros, packed a thousand times smaller."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (kind, shape) in arrays.items():
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(header.getvalue())
                left = int(np.prod(shape)) * np.dtype(kind).itemsize
                while left > 0:
                    member.write(bytes(min(left, 1 << 20)))
                    left -= 1 << 20


def _safetensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    packed = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(packed) if length is None else length) + packed + body


def _student(plan: Any, **tensors: Any) -> bytes:
    text = plan if isinstance(plan, str) else json.dumps(plan)
    return _safetensors({"__metadata__": {"student": text}, **tensors})


def _sens(**fields: int) -> bytes:
    """The beginning of a recording of ScanNet that promises a lot."""
    told = {"version": 4, "name": 0, "color": 2, "depth": 1, "size": 64, "frames": 1, "packed": 10} | fields
    head = struct.pack("<IQ", told["version"], told["name"]) + np.eye(4, dtype="<f4").tobytes() * 4
    head += struct.pack("<iiIIIIfQ", told["color"], told["depth"], *[told["size"]] * 4, 1000.0, told["frames"])
    return head + np.eye(4, dtype="<f4").tobytes() + struct.pack("<QQQQ", 0, 0, told["packed"], told["packed"])


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("sleep 30",)


def _saved(content: Any) -> bytes:
    packed = io.BytesIO()
    torch.save(content, packed)
    return packed.getvalue()


def _at_path(name: str, make: Callable[[Path], object], file: str, folder: Path) -> Callable[[], object]:
    """Put something else where a format has a file."""
    subject: Subject = SUBJECTS[name]
    subject.make(folder)
    (folder / file).unlink(missing_ok=True)
    make(folder / file)
    return partial(subject.read, folder)


def swap(file: tuple[str, str], content: bytes) -> Bomb:
    """Replace the file of a format, both by name."""
    return partial(_replaced, *file, content)


def cloud(name: str, content: bytes | Callable[[Path], object]) -> Bomb:
    """Write a lone cloud."""
    return partial(_cloud, name, content)


def _json_bombs() -> dict[str, Bomb]:
    """Make bombs of every JSON file."""
    bombs: dict[str, Bomb] = {}
    for name, files in JSON_FILES.items():
        for file in files:
            short = f"{name}: {file.rpartition('/')[2]}"
            bombs[f"{short} is nested 200,000 levels deep"] = swap((name, file), DEEP.encode())
            bombs[f"{short} holds a number of 5,000 digits"] = swap((name, file), b'{"a": %s}' % HUGE.encode())
    return bombs


def _nerfstudio(changes: dict[str, Any], folder: Path) -> Callable[[], object]:
    subject = SUBJECTS["nerfstudio"]
    subject.make(folder)
    path = folder / "capture" / "transforms.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return partial(subject.read, folder)


def _npz_promise(path: Path) -> None:
    header = io.BytesIO()
    told = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 3)}
    np.lib.format.write_array_header_1_0(header, told)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("points.npy", header.getvalue())


_SHARED = torch.zeros(10**6)

_VERTICES = "property float x\nproperty float y\nproperty float z"

BOMBS: dict[str, Bomb] = _json_bombs() | {
    "student: metadata nested 200,000 levels deep": swap(STUDENT, _student(DEEP)),
    "student: a head of 10^9 channels": swap(
        STUDENT,
        _student({"heads": {"a": 10**9}, "architecture": "MinkUNet14Mini"}),
    ),
    "student: a thousand heads of 10^6 channels": swap(
        STUDENT,
        _student({"heads": {str(i): 10**6 for i in range(1000)}, "architecture": "MinkUNet34C"}),
    ),
    "student: heads are a list": swap(STUDENT, _student({"heads": [1], "architecture": "MinkUNet34C"})),
    "student: a header of 2^63 bytes": swap(STUDENT, _safetensors({}, length=2**63)),
    "student: a header of 60 MB": swap(STUDENT, _safetensors(b'{"__metadata__":{"a":"' + b"x" * 60_000_000 + b'"}}')),
    "student: a tensor of 2^60 values without bytes": swap(
        STUDENT,
        _safetensors({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 0]}}),
    ),
    "store: keys that share their bytes": swap(
        ("store", "store/scenes/synthetic/points.safetensors"),
        _safetensors(
            {str(i): {"dtype": "U8", "shape": [10**6], "data_offsets": [0, 10**6]} for i in range(9000)},
            bytes(10**6),
        ),
    ),
    "official: a tensor of stride 0": swap(OFFICIAL, _saved({"module.final.kernel": torch.zeros(1).expand(10**9)})),
    "official: 7,000 names of one tensor": swap(
        OFFICIAL, _saved({f"module.block{i}.kernel": _SHARED for i in range(7000)})
    ),
    "official: a pickle that runs a command": swap(OFFICIAL, pickle.dumps(_Evil())),
    "official: code in an archive": swap(OFFICIAL, _saved({"a": _Evil()})),
    "official: a pickle nested 100,000 levels deep": swap(
        OFFICIAL, b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b"."
    ),
    "features: a tensor of stride 0": swap(
        ("features", "lseg/scene0568_00_0.pt"),
        _saved({"feat": torch.zeros(1).expand(585, 10**7), "mask_full": torch.ones(585, dtype=torch.bool)}),
    ),
    "table: a tensor of stride 0": swap(("table", "b.pt"), _saved(torch.zeros(1, 1).expand(10**5, 10**5))),
    "table: a .npy that promises 10^12 rows": swap(
        ("table", "a.npy"),
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4), }".ljust(117)
        + b"\n",
    ),
    "table: names in no encoding": swap(("table", "a_names.txt"), b"\xff\xfe\x00" * 1000),
    "labels: a field of 10 MB": swap(LABELS, b"id,name,r,g,b\n0," + b"x" * 10_000_000 + b",1,2,3\n"),
    "labels: a million columns": swap(LABELS, b"id,name,r,g,b" + b"," * 10**6 + b"\n0,a,1,2,3\n"),
    "labels: null bytes": swap(LABELS, b"id,name,r,g,b\n0,a\x00,1,2,3\n"),
    "model: an index that leads out": swap(
        ("model", "model.safetensors.index.json"), b'{"weight_map": {"a": "../../../../etc/passwd"}}'
    ),
    "cloud: a binary .ply that promises 10^12 points": cloud(
        "a.ply", _ply(f"binary_little_endian 1.0\nelement vertex 1000000000000\n{_VERTICES}", bytes(1200))
    ),
    "cloud: a .ply of text that promises 10^12 points": cloud(
        "a.ply", _ply(f"ascii 1.0\nelement vertex 1000000000000\n{_VERTICES}", b"0 0 0\n" * 9)
    ),
    "cloud: a .ply of 100,000 properties": cloud(
        "a.ply",
        _ply(
            "binary_little_endian 1.0\nelement vertex 9\n" + "\n".join(f"property double p{i}" for i in range(100_000))
        ),
    ),
    "cloud: a .ply of points without properties": cloud(
        "a.ply", _ply("binary_little_endian 1.0\nelement vertex 1000000000000\nelement face 0")
    ),
    "cloud: a .ply whose lists promise 2^32 entries": cloud(
        "a.ply",
        _ply(
            f"binary_little_endian 1.0\nelement vertex 3\n{_VERTICES}\nelement face 2\n"
            "property list uint int vertex_indices",
            bytes(36) + b"\xff" * 80,
        ),
    ),
    "cloud: a .ply header without end": cloud("a.ply", b"ply\nformat ascii 1.0\n" + b"comment x\n" * 10**6),
    "cloud: a .ply at the ends of what a float holds": cloud(
        "a.ply", _ply(f"ascii 1.0\nelement vertex 3\n{_VERTICES}", b"1e38 0 0\n-1e38 0 0\n0 1e38 0\n")
    ),
    "cloud: one point 10^9 m away": cloud(
        "a.ply", _ply(f"ascii 1.0\nelement vertex 3\n{_VERTICES}", b"1e9 0 0\n0 0 0\n0 1 0\n")
    ),
    "cloud: a .pcd that promises 10^12 points": cloud("a.pcd", _pcd(10**12, "binary")),
    "cloud: a .pcd of text that promises 10^12 points": cloud("a.pcd", _pcd(10**12, "ascii", body=b"0 0 0\n")),
    "cloud: a .pcd with a field of 2^31 numbers": cloud("a.pcd", _pcd(1, "binary", "x y z f", f"1 1 1 {2**31}")),
    "cloud: a .las that promises 2^32 points": cloud(
        "a.las",
        b"LASF"
        + bytes(20)
        + b"\x01\x02"
        + bytes(68)
        + struct.pack("<HIIBHI", 227, 227, 0, 2, 26, 2**32 - 1)
        + bytes(200),
    ),
    "cloud: an .npz of 600 MB of zeros": cloud("a.npz", partial(_npz, points=("<f8", (25_000_000, 3)))),
    "cloud: an .npz of objects": cloud("a.npz", lambda path: np.savez(path, points=np.array([_Evil()], dtype=object))),
    "cloud: an .npz that promises 10^12 points": cloud("a.npz", _npz_promise),
    "scannet: a recording of 2^64 frames": swap(RECORDING, _sens(frames=2**64 - 1)),
    "scannet: a frame of 2^63 bytes": swap(RECORDING, _sens(packed=2**63)),
    "scannet: images of 2^31 pixels": swap(RECORDING, _sens(size=2**31 - 1)),
    "scannet: a name of 2^63 bytes": swap(RECORDING, _sens(name=2**63)),
    "scannet: segments of the right name and 10^6 wrong entries": swap(
        ("scannet", "scans/scene0568_00/scene0568_00_vh_clean_2.0.010000.segs.json"),
        json.dumps({"segIndices": ["x"] * 10**6}).encode(),
    ),
    "folder: a colour image of 12,000 x 12,000 zeros": swap(("folder", "capture/color/0.png"), _png(12_000, 12_000)),
    "folder: a colour image of 100,000 x 100,000 that ends early": swap(
        ("folder", "capture/color/0.png"), _png(100_000, 100_000, rows=1)
    ),
    "folder: a depth image of 12,000 x 12,000 zeros": swap(
        ("folder", "capture/depth/0.png"), _png(12_000, 12_000, bits=16, kind=0)
    ),
    "folder: a pose of a million numbers": swap(("folder", "capture/pose/0.txt"), b"1 " * 10**6),
    "folder: a pose of one line of 20 MB": swap(("folder", "capture/pose/0.txt"), b"1" * 20_000_000),
    "tum: a million poses at one time": swap(
        ("tum", "capture/groundtruth.txt"), b"1305031102.17 0 0 0 0 0 0 1\n" * 200_000
    ),
    "nerfstudio: 100,000 frames without images": swap(
        ("nerfstudio", "capture/transforms.json"),
        json.dumps({"frames": [{"file_path": f"{i}.png", "transform_matrix": []} for i in range(100_000)]}).encode(),
    ),
    "nerfstudio: an image of /dev/zero": swap(
        ("nerfstudio", "capture/transforms.json"), b'{"frames": [{"file_path": "/dev/zero"}]}'
    ),
    "nerfstudio: images in a size of 10^9": partial(_nerfstudio, {"w": 10**9, "h": 10**9}),
    "nerfstudio: a focal length of 1e-320": partial(_nerfstudio, {"fl_x": 1e-320, "fl_y": 1e300}),
    "nerfstudio: a distortion of 1e300": partial(_nerfstudio, {"k1": 1e300, "k2": -1e300, "p1": 1e300}),
    "sevenscenes: a cloud that is a pipe": partial(_at_path, "sevenscenes", os.mkfifo, "capture/points.ply"),
    "sevenscenes: capture.json is a pipe": partial(_at_path, "sevenscenes", os.mkfifo, "capture/capture.json"),
    "sevenscenes: a cloud that is /dev/zero": partial(
        _at_path, "sevenscenes", lambda path: path.symlink_to("/dev/zero"), "capture/points.ply"
    ),
    "sevenscenes: a cloud that links to itself": partial(
        _at_path, "sevenscenes", lambda path: path.symlink_to(path), "capture/points.ply"
    ),
    "sevenscenes: an image that is a folder": partial(
        _at_path, "sevenscenes", Path.mkdir, "capture/frame-000000.color.png"
    ),
}
"""All bombs, by name."""
