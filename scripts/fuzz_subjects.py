"""What is fuzzed: for every format how a small valid input is made, and how the commands read it."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from conftest import make_synthetic_scene, make_synthetic_store
from cuao3d.check import check
from cuao3d.distill import DistillConfig
from cuao3d.errors import InputError
from cuao3d.files import sha256_of
from cuao3d.formats.images import read_depth
from cuao3d.formats.ply import read_triangles, write_ply
from cuao3d.fusion import sample_cells, see
from cuao3d.history import read_history
from cuao3d.imported import import_features
from cuao3d.labels import label_set
from cuao3d.photographs import Album, read_photographs
from cuao3d.pretrained.huggingface import read_preprocessing, weight_files
from cuao3d.readers import open_dataset
from cuao3d.readers.openscene import OpenScene
from cuao3d.run import TrainingState, load_student, read_config, restore, save_checkpoint
from cuao3d.scene import Scene
from cuao3d.store import Store
from cuao3d.student import Student, read_checkpoint
from cuao3d.text.table import Table
from make_fixture_matterport import write_building
from make_fixture_openscene import write_processed
from make_fixture_scannet import write_scan
from test_pointcloud import write_colored_ply, write_las, write_npz, write_pcd
from test_student import as_official
from written import WRITERS, write_colmap, write_video

SCAN, BUILDING, REGION = "scene0568_00", "17DRP5sb8fy", "17DRP5sb8fy_region0"


@dataclass(frozen=True)
class Subject:
    """A format."""

    name: str
    """Its name."""
    make: Callable[[Path], None]
    """Writes a valid input into a folder."""
    read: Callable[[Path], None]
    """Reads the input of a folder, as commands do."""
    pattern: str = "*"
    """Which of its files are changed."""

    def files(self, folder: Path) -> list[Path]:
        """Return the files that are changed, the same ones in the same order every time."""
        return sorted(path for path in folder.rglob(self.pattern) if path.is_file())


def _scene() -> Scene:
    return make_synthetic_scene()


def read_scenes(path: Path) -> None:
    """Read a dataset as `fuse` does: cloud, poses, all pixels, visibility."""
    dataset = open_dataset(path)
    for index in range(len(dataset)):
        scene = dataset[index]
        see(scene, sample_cells(scene.points, 0.05))
        for frame in scene.frames:
            frame.read_image()


def _make_capture(layout: str, folder: Path) -> None:
    WRITERS[layout](_scene(), folder / "capture")
    options = {"pose": "world_from_camera", "axes": "opencv", "up": "z", "depth_scale": 1.0, "world_scale": 1.0}
    (folder / "capture" / "capture.json").write_text(json.dumps(options | {"every": 1, "label_set": "scannet20"}))


def _capture_of(folder: Path) -> Path:
    return next((folder / "capture").glob("cloud.ply"), folder / "capture")


def _make_recording(folder: Path) -> None:
    """Make a recording of Stray Scanner with its video."""
    capture = WRITERS["stray"](_scene(), folder / "capture")
    for path in (capture / "rgb").iterdir():
        path.unlink()
    write_video(capture / "rgb.mp4", [50, 150])


def _read_recording(folder: Path) -> None:
    """Read the recording; frames of its video are kept beside it, not in the cache of whoever fuzzes."""
    os.environ["CUAO3D_CACHE"] = str(folder / "cache")
    try:
        read_scenes(folder / "capture")
    finally:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        os.environ.pop("CUAO3D_CACHE")


def _make_clouds(folder: Path) -> None:
    for write, name in ((write_colored_ply, "a.ply"), (write_npz, "a.npz"), (write_las, "a.las")):
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / name)
    for data in ("ascii", "binary"):
        write_pcd(folder / f"{data}.pcd", data)
    (folder / "mesh.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
        "property int label\n"
        "element face 2\nproperty list uchar int vertex_indices\nend_header\n0 0 0 1\n1 0 0 1\n0 1 0 2\n1 1 0 3\n"
        "3 0 1 2\n3 1 3 2\n"
    )
    (folder / "ragged.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
        "property list uchar float descriptor\nelement face 2\nproperty list uchar int vertex_indices\nend_header\n"
        "0 0 0 0\n1 0 0 2 0.5 0.5\n0 1 0 1 2\n1 1 0 0\n3 0 1 2\n4 1 3 2 0\n"
    )
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", *(f"scale_{i}" for i in range(3))]
    names += [f"rot_{i}" for i in range(4)]
    values = np.random.default_rng(0).random((20, len(names))).astype(np.float32)
    write_ply(folder / "splats.ply", dict(zip(names, values.T, strict=True)))


def _make_depths(folder: Path) -> None:
    """Depth as 16-bit images and as floats."""
    folder.mkdir(parents=True, exist_ok=True)
    depth = np.linspace(0.5, 3, 48, dtype=np.float32).reshape(6, 8)
    np.save(folder / "a.npy", depth)
    np.save(folder / "b.npy", (depth * 1000).astype(np.uint16))
    Image.fromarray(depth).save(folder / "c.tif")
    Image.fromarray((depth * 1000).astype(np.uint16)).save(folder / "d.tif")
    Image.fromarray((depth * 1000).astype(np.uint16)).save(folder / "e.pgm")
    with suppress(ImportError):
        import OpenEXR

        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        OpenEXR.File(header, {"Z": depth}).write(str(folder / "f.exr"))


def _read_depths(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        with suppress(InputError):
            depth = read_depth(path)
            assert bool((depth >= 0).all() and depth.isfinite().all())


def _read_clouds(folder: Path) -> None:
    """Read every cloud by itself; one that is refused must not hide the others."""
    for path in sorted(folder.iterdir()):
        try:
            scene = open_dataset(path)[0]
            sample_cells(scene.points, 0.05)
            if path.suffix == ".ply":
                read_triangles(path)
        except (ValueError, OSError) as error:
            if type(error).__module__ != "cuao3d.errors" and not isinstance(error, OSError):
                raise


def _make_store(folder: Path) -> None:
    scene = _scene()
    store = make_synthetic_store(scene, folder / "store")
    visibility = see(scene, samples := sample_cells(scene.points, store.cell))
    album = Album(scene, visibility, [0] * len(scene.frames))
    for frame in album.watch(scene).frames:
        frame.read_image()
    features = {"color": store["synthetic"].features("color").float()}
    store.add_scene(scene, samples, visibility, features, photographs=album.tensors(visibility))


def _read_store(folder: Path) -> None:
    store = Store.open(folder / "store")
    store.names("train")
    for name in store.names():
        store.summary(name)
        store.lifting(name)
        scene = store[name]
        for teacher in store.teachers:
            scene.features(teacher)
            scene.spread(scene.features(teacher))
        read_photographs(scene)
        store.verify(name)


def _make_unsealed(folder: Path) -> None:
    """Make a store without seals, as an earlier version or somebody with bad intentions would."""
    _make_store(folder)
    for path in sorted(folder.rglob("*.json")):
        content = json.loads(path.read_text())
        content.pop("sha256", None)
        path.write_text(json.dumps(content))
    (folder / "store" / "scenes.json").unlink(missing_ok=True)


def _read_unsealed(folder: Path) -> None:
    """Read the store after its manifest has been made to fit its files."""
    path = folder / "store" / "scenes" / "synthetic" / "manifest.json"
    whole = path.read_bytes()
    with suppress(ValueError, LookupError, TypeError, AttributeError, OSError):
        manifest = json.loads(whole)
        for name, entry in manifest["files"].items():
            entry |= {"bytes": (path.parent / name).stat().st_size, "sha256": sha256_of(path.parent / name)}
        path.write_text(json.dumps(manifest))
    try:
        _read_store(folder)
    finally:
        path.write_bytes(whole)


def _make_run(folder: Path) -> None:
    from cuao3d.distill import distill
    from test_distill import CONFIG, make_store

    distill(make_store(folder.parent / f"{folder.name} store"), replace(CONFIG, num_steps=2), folder)


def _read_run(folder: Path) -> None:
    read_config(folder, DistillConfig)
    read_history(folder)
    load_student(folder)


def _make_student(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    student = Student({"lseg": 8, "dinov2": 4}, "MinkUNet14Mini", noise=True)
    student.voxel_size, student.teachers = 0.1, {"lseg": {"num_channels": 8, "text": "minilm"}}
    student.save(folder / "student.safetensors")


def _learner() -> tuple[nn.Module, torch.optim.Optimizer]:
    learner = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(learner.parameters())
    learner(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return learner, optimizer


def _make_checkpoint(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "checkpoint.safetensors", *_learner(), TrainingState(1, 2.0))


def _make_official(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = as_official(Student({"openseg": 768}, "MinkUNet14Mini"))
    torch.save({"state_dict": tensors, "epoch": 3}, folder / "model.pth")


def _make_features(folder: Path) -> None:
    write_processed([replace(_scene(), name=SCAN, split="val")], folder)
    num_points = len(_scene().points)
    (folder / "lseg").mkdir()
    mask = torch.ones(num_points, dtype=torch.bool)
    torch.save({"feat": torch.ones(num_points, 4).half(), "mask_full": mask}, folder / "lseg" / f"{SCAN}_0.pt")


def _read_features(folder: Path) -> None:
    shutil.rmtree(folder / "store", ignore_errors=True)
    try:
        import_features({"lseg": folder / "lseg"}, OpenScene(folder / "scannet_3d"), folder / "store")
    finally:
        shutil.rmtree(folder / "store", ignore_errors=True)


def _make_labels(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.csv").write_text(
        "id,name,r,g,b,prompt,group,nyu40id\n0,wall,1,2,3,a wall,x,1\n7,sofa,4,5,6,,y,5;7\n"
    )


def _make_table(folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    vectors = torch.rand(3, 4)
    np.save(folder / "a.npy", vectors.numpy())
    torch.save(vectors, folder / "b.pt")
    save_file({"vectors": vectors}, folder / "c.safetensors")
    for name in "abc":
        (folder / f"{name}_names.txt").write_text("wall\nfloor\nsofa\n")


def _read_tables(folder: Path) -> None:
    for name in ("a.npy", "b.pt", "c.safetensors"):
        try:
            Table.read(str(folder / name))(["wall"])
        except ValueError as error:
            if type(error).__module__ != "cuao3d.errors":
                raise


def _make_model(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "a.bin", "b": "a.bin"}}))
    (folder / "a.bin").write_bytes(b"")


def _read_model(folder: Path) -> None:
    read_preprocessing(folder)
    weight_files(folder)


def _subjects() -> list[Subject]:
    captures = [
        Subject(
            layout, lambda folder, layout=layout: _make_capture(layout, folder), lambda f: read_scenes(_capture_of(f))
        )
        for layout in WRITERS
        if layout != "hypersim" or find_spec("h5py")
    ]
    if find_spec("av"):
        captures.append(Subject("video", _make_recording, _read_recording, "*.mp4"))
    return [
        *captures,
        Subject(
            "colmap, binary",
            lambda folder: write_colmap(_scene(), folder / "capture", binary=True) and None,
            lambda folder: read_scenes(folder / "capture"),
        ),
        Subject(
            "scannet",
            lambda folder: write_scan(_scene(), folder / "scans" / SCAN, color="png", every=1),
            lambda folder: read_scenes(folder / "scans" / SCAN),
        ),
        Subject(
            "matterport",
            lambda folder: write_building([_scene()], folder / "scans" / BUILDING),
            lambda folder: read_scenes(folder / "scans" / BUILDING),
        ),
        Subject(
            "openscene",
            lambda folder: write_processed([replace(_scene(), name=SCAN, split="val")], folder),
            lambda folder: read_scenes(folder / "scannet_3d"),
        ),
        Subject("clouds", _make_clouds, _read_clouds),
        Subject("depths", _make_depths, _read_depths),
        Subject(
            "check",
            lambda folder: _make_capture("sevenscenes", folder),
            lambda folder: check(open_dataset(folder / "capture")[0]) and None,
        ),
        Subject("store", _make_store, _read_store),
        Subject("store without seals", _make_unsealed, _read_unsealed),
        Subject("run", _make_run, _read_run),
        Subject("student", _make_student, lambda folder: load_student(folder / "student.safetensors") and None),
        Subject("checkpoint", _make_checkpoint, lambda folder: restore(folder, *_learner()) and None),
        Subject("official", _make_official, lambda folder: read_checkpoint(folder / "model.pth") and None),
        Subject("features", _make_features, _read_features),
        Subject("labels", _make_labels, lambda folder: label_set(folder / "labels.csv") and None),
        Subject("table", _make_table, _read_tables),
        Subject("model", _make_model, _read_model, "*.json"),
    ]


SUBJECTS = {subject.name: subject for subject in _subjects()}
"""All formats, by name."""
