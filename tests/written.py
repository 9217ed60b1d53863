"""Captures written for tests, in each layout that is read, and what damages their files."""

import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.spatial.transform import Rotation
from torch import Tensor

from cuao3d.errors import UserError
from cuao3d.files import sha256_of
from cuao3d.formats.ply import write_ply
from cuao3d.readers import open_dataset
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.scene import Camera, Frame, Scene
from cuao3d.seals import read_sealed, write_sealed
from cuao3d.store import Store
from cuao3d.store.roll import Entry, read_roll, write_roll

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def eight_bit(image: Tensor) -> np.ndarray:
    """RGB of 8 bits, (H, W, 3)."""
    return (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def save_color(frame: Frame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(eight_bit(frame.read_image())).save(path)


def save_depth(frame: Frame, path: Path, scale: float = 1000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((frame.read_depth() * scale).round().numpy().astype(np.uint16)).save(path)


def save_numbers(values: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, np.atleast_2d(np.asarray(values, np.float64)), fmt="%.17g")


def save_cloud(scene: Scene, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert scene.colors is not None
    columns = dict(zip("xyz", scene.points.numpy().T, strict=True))
    colors = (scene.colors * 255).round().to(torch.uint8).numpy()
    write_ply(path, columns | dict(zip(("red", "green", "blue"), colors.T, strict=True)))


def save_triangle(path: Path) -> None:
    """A mesh of one triangle at y = 2, which fills the views of the synthetic scene."""
    path.write_text(
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
        "element face 1\nproperty list uchar int vertex_indices\nend_header\n-9 2 -9\n9 2 -9\n0 2 15\n3 0 1 2\n"
    )


def intrinsics(camera: Camera) -> np.ndarray:
    (fx, fy), (cx, cy) = camera.focal.tolist(), camera.center.tolist()
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def pose(frame: Frame) -> np.ndarray:
    return frame.camera.world_from_camera.numpy()


def write_sevenscenes(scene: Scene, folder: Path) -> Path:
    write_capture(scene, folder)
    return folder


def write_folder(scene: Scene, folder: Path) -> Path:
    for index, frame in enumerate(scene.frames):
        save_color(frame, folder / "color" / f"{index}.png")
        save_depth(frame, folder / "depth" / f"{index}.png")
        save_numbers(pose(frame), folder / "pose" / f"{index}.txt")
    for kind in ("color", "depth"):
        save_numbers(intrinsics(scene.frames[0].camera), folder / "intrinsic" / f"intrinsic_{kind}.txt")
    save_cloud(scene, folder / "points.ply")
    return folder


def write_nerfstudio(scene: Scene, folder: Path) -> Path:
    entries = []
    for index, frame in enumerate(scene.frames):
        save_color(frame, folder / "images" / f"{index}.png")
        save_depth(frame, folder / "depth" / f"{index}.png")
        transform = (pose(frame) @ OPENGL).tolist()
        names = {"file_path": f"images/{index}.png", "depth_file_path": f"depth/{index}.png"}
        entries.append(names | {"transform_matrix": transform})
    camera = scene.frames[0].camera
    (fx, fy), (cx, cy) = camera.focal.tolist(), camera.center.tolist()
    shared = {"fl_x": fx, "fl_y": fy, "cx": cx + 0.5, "cy": cy + 0.5, "w": camera.width, "h": camera.height}
    (folder / "transforms.json").write_text(json.dumps(shared | {"frames": entries}))
    return folder


def write_tum(scene: Scene, folder: Path) -> Path:
    colors, depths, poses = ["# time file"], [], []
    for index, frame in enumerate(scene.frames):
        time = 1305031102.1753 + index
        save_color(frame, folder / "rgb" / f"{time:.6f}.png")
        save_depth(frame, folder / "depth" / f"{time + 0.011:.6f}.png", 5000)
        colors.append(f"{time:.6f} rgb/{time:.6f}.png")
        depths.append(f"{time + 0.011:.6f} depth/{time + 0.011:.6f}.png")
        turn = Rotation.from_matrix(pose(frame)[:3, :3]).as_quat()
        poses.append(" ".join(f"{value:.17g}" for value in (time - 0.004, *pose(frame)[:3, 3], *turn)))
    for name, lines in (("rgb.txt", colors), ("depth.txt", depths), ("groundtruth.txt", poses)):
        (folder / name).write_text("\n".join(lines) + "\n")
    camera = scene.frames[0].camera
    save_numbers([*camera.focal, *camera.center], folder / "camera.txt")
    return folder


def write_replica(scene: Scene, folder: Path) -> Path:
    for index, frame in enumerate(scene.frames):
        save_color(frame, folder / "results" / f"frame{index:06d}.png")
        save_depth(frame, folder / "results" / f"depth{index:06d}.png", 6553.5)
    save_numbers([pose(frame).reshape(-1) for frame in scene.frames], folder / "traj.txt")
    camera = scene.frames[0].camera
    (fx, fy), (cx, cy) = camera.focal.tolist(), camera.center.tolist()
    about = {"w": camera.width, "h": camera.height, "fx": fx, "fy": fy, "cx": cx, "cy": cy, "scale": 6553.5}
    (folder / "cam_params.json").write_text(json.dumps({"camera": about}))
    save_cloud(scene, folder.parent / f"{folder.name}_mesh.ply")
    return folder


def write_arkitscenes(scene: Scene, folder: Path) -> Path:
    rows = []
    for index, frame in enumerate(scene.frames):
        name = f"{folder.name}_{305.375 + index:.3f}"
        save_color(frame, folder / "lowres_wide" / f"{name}.png")
        save_depth(frame, folder / "lowres_depth" / f"{name}.png")
        (folder / "confidence").mkdir(exist_ok=True)
        Image.new("L", (frame.camera.width, frame.camera.height), 2).save(folder / "confidence" / f"{name}.png")
        camera = frame.camera
        lens = [camera.width, camera.height, *camera.focal, *camera.center]
        save_numbers(lens, folder / "lowres_wide_intrinsics" / f"{name}.pincam")
        camera_from_world = np.linalg.inv(pose(frame))
        turn = Rotation.from_matrix(camera_from_world[:3, :3]).as_rotvec()
        rows.append([305.3751 + index, *turn, *camera_from_world[:3, 3]])
    save_numbers(rows, folder / "lowres_wide.traj")
    save_cloud(scene, folder / f"{folder.name}_3dod_mesh.ply")
    return folder


def write_scannetpp(scene: Scene, folder: Path) -> Path:
    about: dict[str, Any] = {"frame_000777": {"aligned_pose": np.eye(4).tolist()}}  # one whose images are not extracted
    for index, frame in enumerate(scene.frames):
        name = f"frame_{10 * index:06d}"
        save_color(frame, folder / "iphone" / "rgb" / f"{name}.png")
        save_depth(frame, folder / "iphone" / "depth" / f"{name}.png")
        lens = intrinsics(frame.camera).tolist()
        about[name] = {"timestamp": 0.1, "pose": [], "aligned_pose": pose(frame).tolist(), "intrinsic": lens}
    (folder / "iphone" / "pose_intrinsic_imu.json").write_text(json.dumps(about))
    save_cloud(scene, folder / "scans" / "mesh_aligned_0.05.ply")
    return folder


def write_hypersim(scene: Scene, folder: Path, *, unit: float = 0.0254) -> Path:
    h5py = pytest.importorskip("h5py", reason="needs cuao3d[hdf5]")

    def save(array: Any, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["dataset"] = array

    detail, images, camera = folder / "_detail", folder / "images", scene.frames[0].camera
    poses = np.stack([pose(frame) @ OPENGL for frame in scene.frames])
    numbers = 10 * np.arange(len(poses))
    save(poses[:, :3, 3] / unit, detail / "cam_00" / "camera_keyframe_positions.hdf5")
    save(poses[:, :3, :3], detail / "cam_00" / "camera_keyframe_orientations.hdf5")
    save(numbers, detail / "cam_00" / "camera_keyframe_frame_indices.hdf5")
    (detail / "metadata_scene.csv").write_text(f"parameter_name,parameter_value\nmeters_per_asset_unit,{unit}\n")
    angle = 2 * math.atan(camera.width / 2 / float(camera.focal[0]))
    (folder / "metadata_camera_parameters.csv").write_text(
        f"scene_name,settings_camera_fov,M_cam_from_uv_00,M_cam_from_uv_01\n{folder.name},{angle!r},1,0.0\n"
    )
    x = (np.arange(camera.width) - camera.center[0].item()) / camera.focal[0].item()
    y = (np.arange(camera.height) - camera.center[1].item()) / camera.focal[1].item()
    rays = np.sqrt(1 + x**2 + y[:, None] ** 2)
    for number, frame in zip(numbers, scene.frames, strict=True):
        name, metres = f"frame.{number:04d}", frame.read_depth().numpy() * rays
        (images / "scene_cam_00_final_preview").mkdir(parents=True, exist_ok=True)
        color = images / "scene_cam_00_final_preview" / f"{name}.tonemap.jpg"
        Image.fromarray(eight_bit(frame.read_image())).save(color, format="PNG")  # exact, whatever its ending says
        metres = np.where(metres > 0, metres, np.nan)
        save(metres, images / "scene_cam_00_geometry_hdf5" / f"{name}.depth_meters.hdf5")
    return folder


def write_habitat(scene: Scene, folder: Path) -> Path:
    rows = []
    for index, frame in enumerate(scene.frames):
        save_color(frame, folder / "rgb" / f"{index:06d}.png")
        (folder / "depth").mkdir(exist_ok=True)
        np.save(folder / "depth" / f"{index:06d}.npy", frame.read_depth().numpy())
        turned = pose(frame)[:3, :3] @ OPENGL[:3, :3]
        numbers = [*pose(frame)[:3, 3], *Rotation.from_matrix(turned).as_quat()]
        rows.append("\t".join(f"{value:.17g}" for value in numbers))
    (folder / "poses.txt").write_text("\n".join(rows))
    np.savetxt(folder / "intrinsics.txt", intrinsics(scene.frames[0].camera), fmt="%.17g")
    return folder


def write_polycam(scene: Scene, folder: Path) -> Path:
    for index, frame in enumerate(scene.frames):
        name, camera, keyframes = f"{72513413100 + 91 * index}", frame.camera, folder / "keyframes"
        save_color(frame, keyframes / "images" / f"{name}.png")
        save_depth(frame, keyframes / "depth" / f"{name}.png")
        (keyframes / "confidence").mkdir(exist_ok=True)
        Image.new("L", (camera.width, camera.height), 255).save(keyframes / "confidence" / f"{name}.png")
        (fx, fy), (cx, cy) = camera.focal.tolist(), camera.center.tolist()
        about = {"fx": fx, "fy": fy, "cx": cx + 0.5, "cy": cy + 0.5, "width": camera.width, "height": camera.height}
        transform = pose(frame) @ OPENGL
        about |= {f"t_{row}{column}": transform[row, column] for row in range(3) for column in range(4)}
        (keyframes / "cameras").mkdir(exist_ok=True)
        (keyframes / "cameras" / f"{name}.json").write_text(json.dumps(about))
    return folder


def write_open3d(scene: Scene, folder: Path) -> Path:
    lines = []
    for index, frame in enumerate(scene.frames):
        save_color(frame, folder / "color" / f"{index:06d}.png")
        save_depth(frame, folder / "depth" / f"{index:06d}.png")
        lines += [f"{index} {index} {index + 1}"]
        lines += [" ".join(f"{value:.17g}" for value in row) for row in pose(frame)]
    (folder / "scene").mkdir()
    (folder / "scene" / "trajectory.log").write_text("\n".join(lines) + "\n")
    camera = scene.frames[0].camera
    about = {"width": camera.width, "height": camera.height, "intrinsic_matrix": intrinsics(camera).T.ravel().tolist()}
    (folder / "camera_intrinsic.json").write_text(json.dumps(about))
    return folder


def write_colmap(scene: Scene, folder: Path, *, binary: bool = False, model: str = "PINHOLE") -> Path:
    camera, sparse = scene.frames[0].camera, folder / "sparse" / "0"
    (fx, fy), (cx, cy) = camera.focal.tolist(), (camera.center + 0.5).tolist()
    sparse.mkdir(parents=True)
    kept = [fx, fy, cx, cy] if model == "PINHOLE" else [fx, cx, cy] if model == "SIMPLE_PINHOLE" else [fx, cx, cy, 0, 0]
    number = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "RADIAL": 3}[model]
    values = " ".join(f"{value:.17g}" for value in kept)
    cameras = f"# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n7 {model} {camera.width} {camera.height} {values}\n"
    about, packed = "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n", b""
    for index, frame in enumerate(scene.frames):
        save_color(frame, folder / "images" / f"a {index}.png")
        save_depth(frame, folder / "depth" / f"a {index}.png")
        rotation = pose(frame)[:3, :3].T
        x, y, z, w = Rotation.from_matrix(rotation).as_quat()
        numbers = [w, x, y, z, *(-rotation @ pose(frame)[:3, 3])]
        points = "1.5 2.5 -1" if index else ""  # the line of points of the first image is empty
        about += f"{index + 1} {' '.join(f'{value:.17g}' for value in numbers)} 7 a {index}.png\n{points}\n"
        packed += struct.pack("<I7dI", index + 1, *numbers, 7) + f"a {index}.png".encode() + b"\0"
        packed += struct.pack("<Q", index) + index * struct.pack("<ddq", 1.5, 2.5, -1)
    if binary:
        packed_camera = struct.pack("<QiiQQ", 1, 7, number, camera.width, camera.height)
        (sparse / "cameras.bin").write_bytes(packed_camera + np.array(kept, "<f8").tobytes())
        (sparse / "images.bin").write_bytes(struct.pack("<Q", len(scene.frames)) + packed)
    else:
        (sparse / "cameras.txt").write_text(cameras)
        (sparse / "images.txt").write_text(about)
    return folder


def write_stray(scene: Scene, folder: Path) -> Path:
    lines = ["timestamp, frame, x, y, z, qx, qy, qz, qw"]
    for index, frame in enumerate(scene.frames):
        save_color(frame, folder / "rgb" / f"{index:06d}.png")
        save_depth(frame, folder / "depth" / f"{index:06d}.png")
        (folder / "confidence").mkdir(exist_ok=True)
        size = frame.camera.width, frame.camera.height
        Image.new("L", size, 2).save(folder / "confidence" / f"{index:06d}.png")
        numbers = [*pose(frame)[:3, 3], *Rotation.from_matrix(pose(frame)[:3, :3]).as_quat()]
        lines.append(f"{98.5 + index / 60:.6f}, {index:06d}, " + ", ".join(f"{value:.17g}" for value in numbers))
    (folder / "odometry.csv").write_text("\n".join(lines) + "\n")
    np.savetxt(folder / "camera_matrix.csv", intrinsics(scene.frames[0].camera), fmt="%.17g", delimiter=", ")
    return folder


def write_scannerapp(scene: Scene, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "info.json").write_text(json.dumps({"device": "an iPhone"}))
    for index, frame in enumerate(scene.frames):
        save_color(frame, folder / f"frame_{index:05d}.png")
        save_depth(frame, folder / f"depth_{index:05d}.png")
        Image.new("L", (frame.camera.width, frame.camera.height), 2).save(folder / f"conf_{index:05d}.png")
        about: dict[str, Any] = {"cameraPoseARFrame": (pose(frame) @ OPENGL).ravel().tolist(), "frame_index": index}
        about["intrinsics"] = intrinsics(frame.camera).ravel().tolist()
        (folder / f"frame_{index:05d}.json").write_text(json.dumps(about))
    return folder


def write_record3d(scene: Scene, folder: Path) -> Path:
    poses, camera = [], scene.frames[0].camera
    for index, frame in enumerate(scene.frames):
        save_color(frame, folder / "rgb" / f"{index}.png")
        save_depth(frame, folder / "depth" / f"{index}.png")
        turn = Rotation.from_matrix(pose(frame)[:3, :3] @ OPENGL[:3, :3]).as_quat()
        poses.append([*turn.tolist(), *pose(frame)[:3, 3].tolist()])
    about = {"w": camera.width, "h": camera.height, "fps": 30, "poses": poses}
    (folder / "metadata.json").write_text(json.dumps(about | {"K": intrinsics(camera).T.ravel().tolist()}))
    return folder


def write_pointcloud(scene: Scene, folder: Path) -> Path:
    save_cloud(scene, folder / "cloud.ply")
    return folder / "cloud.ply"


def write_video(path: Path, grays: list[int], *, width: int = 64, height: int = 48) -> None:
    """Write a video whose frames are even, each of a grey of its own."""
    av = pytest.importorskip("av", reason="PyAV is not installed (the extra [video])")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 4_000_000
        for gray in grays:
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), gray, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


WRITERS: dict[str, Callable[[Scene, Path], Path]] = {
    "sevenscenes": write_sevenscenes,
    "folder": write_folder,
    "nerfstudio": write_nerfstudio,
    "tum": write_tum,
    "replica": write_replica,
    "arkitscenes": write_arkitscenes,
    "scannetpp": write_scannetpp,
    "habitat": write_habitat,
    "hypersim": write_hypersim,
    "polycam": write_polycam,
    "open3d": write_open3d,
    "colmap": write_colmap,
    "stray": write_stray,
    "scannerapp": write_scannerapp,
    "record3d": write_record3d,
    "pointcloud": write_pointcloud,
}
"""Writes a scene in the layout of each reader; returns what to open."""


def read_all(path: Path) -> Scene:
    """Open a capture and read all its pixels."""
    scene = open_dataset(path)[0]
    for frame in scene.frames:
        frame.read_image()
        frame.read_depth()
    return scene


def damage(path: Path, read: Callable[[], object], *, times: int, seed: int = 0) -> float:
    """Damage a file again and again, and read; whatever is raised must be UserError or OSError.

    A quarter of the times is enough for every day; `FUZZ=4 pytest` takes all of them, and more takes more.

    Returns:
        In what share of the times something was raised.
    """
    whole, rng = path.read_bytes(), np.random.default_rng(seed)
    times = times * int(os.environ.get("FUZZ", "1")) // 4
    raised = 0
    try:
        for _ in range(times):
            path.write_bytes(damaged(whole, rng))
            try:
                read()
            except (UserError, OSError):
                raised += 1
    finally:
        path.write_bytes(whole)
    return raised / times


WORDS = (
    b"nan",
    b"-inf",
    b"1e999",
    b"-1",
    b"0",
    b"9" * 25,
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'"',
    b'"../a"',
    b"\xff",
    b" ",
)
"""What damage likes to write."""


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Change some bytes, cut or double a piece, write a word, or end early."""
    data = bytearray(content)
    kind, start = rng.integers(5), int(rng.integers(len(data)))
    end = start + int(rng.integers(1, 40))
    if kind == 0:
        for place in rng.integers(len(data), size=rng.integers(1, 5)):
            data[place] = rng.integers(256)
    elif kind == 1:
        del data[start:end]
    elif kind == 2:
        data[start:start] = data[start:end]
    elif kind == 3:
        data[start : start + int(rng.integers(8))] = WORDS[rng.integers(len(WORDS))]
    else:
        del data[start:]
    return bytes(data)


def same_views(one: Scene, other: Scene, *, depth_unit: float) -> None:
    """Fail unless two scenes hold the same views: poses to 1e-6, depth to its unit, colours to the bit."""
    assert len(one.frames) == len(other.frames)
    for view, expected in zip(one.frames, other.frames, strict=True):
        camera, true = view.camera, expected.camera
        assert (camera.width, camera.height) == (true.width, true.height)
        for got, wanted in (
            (camera.world_from_camera, true.world_from_camera),
            (camera.focal, true.focal),
            (camera.center, true.center),
        ):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(view.read_depth(), expected.read_depth(), rtol=0, atol=0.51 * depth_unit)
        exact = torch.from_numpy(eight_bit(expected.read_image()).astype(np.float32) / 255).permute(2, 0, 1)
        assert view.read_image().equal(exact)


def spoil(store: Store, scene: str, teacher: str, rows: slice) -> None:
    """Write a store in which a channel of some features is no number."""
    folder = store[scene].folder
    file = folder / f"{teacher}.features.safetensors"
    features = load_file(file)["features"].clone()
    features[rows, 1] = torch.nan
    save_file({"features": features}, file)
    manifest = read_sealed(folder / "manifest.json", "")
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    manifest.pop("is_finite", None)  # as in stores of earlier versions
    write_sealed(folder / "manifest.json", manifest)
    entries = read_roll(store.path)
    write_roll(store.path, {**entries, scene: Entry(sha256=sha256_of(folder / "manifest.json"))} if entries else {})
