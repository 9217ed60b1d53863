"""Write a miniature Matterport3D: buildings of synthetic rooms, one per region, named from the official lists.

python scripts/make_fixture_matterport.py --out mini-matterport
cuao3d check mini-matterport
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from rich.progress import track
from scipy.spatial import cKDTree

from cuao3d.files import write_text
from cuao3d.formats.ply import Mesh, cloud_columns
from cuao3d.labels import convert, label_set
from cuao3d.readers import splits
from cuao3d.readers.matterport import CAMERAS, COLOR, DEPTH, REGIONS, UNITS_PER_METRE
from cuao3d.scene import OPENGL, UNLABELLED, Frame, Scene
from cuao3d.worlds.rooms import make_room
from make_fixture_scannet import eight_bit, refuse_full

SPACING = 20.0
"""Distance between the origins of two rooms, metres; large enough that rooms do not overlap."""


def main(out: Path, num_regions: int = 2, num_views: int = 6) -> None:
    """Write `out`/v1/scans/ID, one building per split, and the category table."""
    buildings = [splits.scenes("matterport", "train")[0], splits.scenes("matterport", "val")[0]]
    for number, name in enumerate(track(buildings, "writing")):
        seeds = range(number * num_regions, (number + 1) * num_regions)
        rooms = [make_room(seed, num_views=num_views) for seed in seeds]
        building = [moved(room, SPACING * place) for place, room in enumerate(rooms)]
        write_building(building, out / "v1" / "scans" / name)
    (out / "metadata").mkdir()
    shutil.copyfile(splits.FOLDER / "matterport_categories.tsv", out / "metadata" / "category_mapping.tsv")


def write_building(scenes: Sequence[Scene], folder: Path | str) -> None:
    """Write scenes as the regions of a raw building of Matterport3D.

    Reading it back restores points, poses, depth (to 0.25 mm) and labels (up to NYU40); the colours of views pass
    through JPEG. A view belongs to all regions that contain its camera.

    Args:
        scenes: Scenes to write, in one coordinate frame; their label sets come with the package.
        folder: Folder to write; its name becomes the building's, and it must be empty or missing.

    Raises:
        InputError: The folder is not empty.
    """
    folder = Path(folder)
    refuse_full(folder)
    partial_folder = folder.with_name(f"{folder.name}.partial")
    for name in (CAMERAS, COLOR, DEPTH, REGIONS):
        (partial_folder / name).mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for region, scene in enumerate(scenes):
        write_mesh(partial_folder / REGIONS / f"region{region}.ply", _surface(scene))
        for index, frame in enumerate(scene.frames):
            lines += _write_view(partial_folder, f"{region:016x}{index:016x}", frame)
    header = [
        "dataset matterport",
        f"n_images {len(lines) // 2}",
        f"depth_directory {DEPTH}",
        f"color_directory {COLOR}",
    ]
    write_text(partial_folder / CAMERAS / f"{folder.name}.conf", "\n".join([*header, "", *lines, ""]))
    partial_folder.replace(folder)


def write_mesh(path: Path, mesh: Mesh) -> None:
    """Write a mesh as a binary PLY file; properties are of type float32, uint8 or int32."""
    names = {"<f4": "float", "|u1": "uchar", "<i4": "int"}
    vertices = np.rec.fromarrays(list(mesh.vertices.values()), names=",".join(mesh.vertices))
    faces = np.rec.fromarrays(
        [np.full(len(mesh.triangles), 3, np.uint8), *mesh.triangles.T.astype("<i4"), *mesh.faces.values()]
    )
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property {names[column.dtype.str]} {name}" for name, column in mesh.vertices.items()]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    header += [f"property {names[column.dtype.str]} {name}" for name, column in mesh.faces.items()]
    path.write_bytes("\n".join([*header, "end_header", ""]).encode() + vertices.tobytes() + faces.tobytes())


def _surface(scene: Scene) -> Mesh:
    """Give each point a triangle with the two nearest points of its class, so that the majority vote keeps it."""
    num_points = len(scene.points)
    labels = torch.full((num_points,), UNLABELLED)
    if scene.labels is not None and scene.label_set is not None:
        labels = convert(scene.labels, label_set(scene.label_set), label_set("nyu40"))
    triangles = np.arange(num_points)[:, None].repeat(3, axis=1)
    category_of_face = np.full(num_points, -1, dtype=np.int32)
    for class_ in set(labels.tolist()):
        (members,) = np.nonzero(labels.numpy() == class_)
        if len(members) >= 3:
            positions = scene.points.numpy()[members]
            triangles[members, 1:] = members[cKDTree(positions).query(positions, k=3)[1][:, 1:]]
        if class_ != UNLABELLED:
            row = next(row for row in splits.categories("matterport") if row["nyu40id"] == str(class_))
            category_of_face[members] = int(row["index"])
    columns = cloud_columns(scene.points, scene.colors, scene.normals)
    return Mesh(columns, triangles.astype(np.int64), {"category_id": category_of_face})


def _write_view(folder: Path, panorama: str, frame: Frame) -> list[str]:
    """Write the images of a view; return its lines for the .conf file."""
    camera, depth, color = frame.camera, f"{panorama}_d0_0.png", f"{panorama}_i0_0.jpg"
    Image.fromarray(eight_bit(frame)).save(folder / COLOR / color, quality=95)
    units = (frame.read_depth() * UNITS_PER_METRE).round()
    Image.fromarray(units.where(units < 65536, 0).numpy().astype(np.uint16)).save(folder / DEPTH / depth)
    (fx, fy), (cx, cy) = camera.focal.tolist(), camera.center.tolist()
    pose = (camera.world_from_camera @ OPENGL).flatten().tolist()
    return [
        f"intrinsics_matrix {fx!r} 0 {cx!r}  0 {fy!r} {camera.height - 1 - cy!r}  0 0 1",
        f"scan {depth} {color} {' '.join(map(repr, pose))}",
    ]


def moved(scene: Scene, x: float) -> Scene:
    """Move a scene along x."""
    offset = torch.tensor([x, 0.0, 0.0])
    frames = tuple(_moved(frame, offset) for frame in scene.frames)
    return replace(scene, points=scene.points + offset, frames=frames)


def _moved(frame: Frame, offset: torch.Tensor) -> Frame:
    pose = frame.camera.world_from_camera.clone()
    pose[:3, 3] += offset
    return replace(frame, camera=replace(frame.camera, world_from_camera=pose))


if __name__ == "__main__":
    tyro.cli(main)
