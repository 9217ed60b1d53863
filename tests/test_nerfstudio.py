import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cuao3d.formats.ply import write_ply
from cuao3d.readers.nerfstudio import Nerfstudio
from cuao3d.scene import Scene
from written import damage, read_all, same_views, save_cloud, write_nerfstudio


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path) -> Path:
    return write_nerfstudio(synthetic_scene, tmp_path / "capture")


def change(capture: Path, **changes: Any) -> None:
    """Change entries of transforms.json; None removes one."""
    path = capture / "transforms.json"
    meta = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in meta.items() if value is not None}))


def change_frame(capture: Path, index: int, **changes: Any) -> None:
    """Change entries of a frame; None removes one."""
    frames = json.loads((capture / "transforms.json").read_text())["frames"]
    frame = frames[index] | changes
    frames[index] = {key: value for key, value in frame.items() if value is not None}
    change(capture, frames=frames)


def write_mesh(path: Path, *, faces: str) -> None:
    """The wall and the picture of the synthetic scene, a rectangle each."""
    wall = ((-1, 2, 0), (1, 2, 0), (1, 2, 2), (-1, 2, 2))
    picture = ((-0.25, 1, 0.75), (0.25, 1, 0.75), (0.25, 1, 1.25), (-0.25, 1, 1.25))
    corners = [" ".join(map(str, corner)) for corner in (*wall, *picture)]
    indices = {"quads": ["4 0 1 2 3", "4 4 5 6 7"], "triangles": ["3 0 1 2", "3 0 2 3", "3 4 5 6", "3 4 6 7"]}[faces]
    header = ["ply", "format ascii 1.0", "element vertex 8", *(f"property float {axis}" for axis in "xyz")]
    header += [f"element face {len(indices)}", "property list uchar int vertex_indices", "end_header"]
    path.write_text("\n".join([*header, *corners, *indices]) + "\n")


def test_a_written_capture_is_read_back(capture: Path, synthetic_scene: Scene):
    scene = Nerfstudio(capture)[0]
    same_views(scene, synthetic_scene, depth_unit=0.001)
    assert scene.problems == ()
    assert [frame.name for frame in scene.frames] == ["images/0.png", "images/1.png"]
    assert ((scene.points[:, 1:2] - torch.tensor([1.0, 2.0])).abs() < 1e-3).any(1).all()


def test_what_a_frame_says_goes_before_what_all_say(capture: Path, synthetic_scene: Scene):
    change(capture, fl_x=50.0, depth_unit_scale_factor=0.002, applied_transform=[[0, 1, 0, 0]] * 3)
    change_frame(capture, 0, fl_x=40.0, depth_unit_scale_factor=0.001)
    first, second = Nerfstudio(capture)[0].frames
    assert (first.camera.focal.tolist(), second.camera.focal.tolist()) == ([40, 40], [50, 40])
    assert first.read_depth().equal(synthetic_scene.frames[0].read_depth())
    assert second.read_depth().equal(2 * synthetic_scene.frames[1].read_depth())


def test_a_matrix_may_lack_its_last_row_and_a_name_its_ending(capture: Path, synthetic_scene: Scene):
    matrix = json.loads((capture / "transforms.json").read_text())["frames"][0]["transform_matrix"]
    change_frame(capture, 0, transform_matrix=matrix[:3], file_path="./images/0")
    change(capture, w=None, h=None, camera_model="PINHOLE")
    same_views(Nerfstudio(capture)[0], synthetic_scene, depth_unit=0.001)


def test_smaller_depth_gives_the_camera(capture: Path, synthetic_scene: Scene):
    for index in range(2):
        with Image.open(capture / "depth" / f"{index}.png") as image:
            image.reduce(1).resize((32, 24), Image.Resampling.NEAREST).save(capture / "depth" / f"{index}.png")
    scene = Nerfstudio(capture)[0]
    camera = scene.frames[0].camera
    assert (camera.width, camera.height, camera.focal.tolist()) == (32, 24, [20, 20])
    assert camera.center.tolist() == [31.5 * 31 / 63, 23.5 * 23 / 47]
    assert scene.frames[0].read_image().shape == (3, 24, 32)


def test_bent_images_are_straightened(capture: Path, synthetic_scene: Scene):
    change(capture, k1=-0.3, k2=0.1)
    frame, pinhole = Nerfstudio(capture)[0].frames[0], synthetic_scene.frames[0]
    assert not frame.read_depth().equal(pinhole.read_depth())
    # Pixel (x, y) of the straight image is 40 x_d + 31.5, 40 y_d + 23.5 of the bent one.
    x, y = (50 - 31.5) / 40, (30 - 23.5) / 40
    radial = 1 - 0.3 * (x * x + y * y) + 0.1 * (x * x + y * y) ** 2
    column, row = round(40 * x * radial + 31.5), round(40 * y * radial + 23.5)
    assert frame.read_depth()[30, 50] == pinhole.read_depth()[row, column]


@pytest.mark.parametrize("faces", ["quads", "triangles"])
@pytest.mark.parametrize("named", [True, False])
def test_without_depth_it_is_cast_from_the_mesh(faces: str, named: bool, capture: Path, synthetic_scene: Scene):
    for index in range(2):
        change_frame(capture, index, depth_file_path=None)
    write_mesh(capture / "room.ply", faces=faces)
    change(capture, ply_file_path="room.ply" if named else None)
    scene = Nerfstudio(capture)[0]
    assert len(scene.points) == 8
    for frame, expected in zip(scene.frames, synthetic_scene.frames, strict=True):
        torch.testing.assert_close(frame.read_depth(), expected.read_depth(), rtol=0, atol=1e-5)
        assert frame.read_image().shape == (3, 48, 64)


def test_cast_depth_follows_poses_that_capture_json_corrects(capture: Path, synthetic_scene: Scene):
    for index, frame in enumerate(synthetic_scene.frames):
        # What nerfstudio would read as OpenGL is OpenCV here, and y is up.
        y_up = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
        pose = y_up @ frame.camera.world_from_camera.numpy()
        change_frame(capture, index, depth_file_path=None, transform_matrix=pose.tolist())
    write_mesh(capture / "mesh.ply", faces="quads")
    text = (capture / "mesh.ply").read_text()
    header, body = text.split("end_header\n")
    rows = [line.split() for line in body.splitlines()]
    turned = [[row[0], row[2], str(-float(row[1]))] if len(row) == 3 else row for row in rows]
    (capture / "mesh.ply").write_text(f"{header}end_header\n" + "\n".join(map(" ".join, turned)) + "\n")
    (capture / "capture.json").write_text('{"axes": "opengl", "up": "y"}')
    scene = Nerfstudio(capture)[0]
    for frame, expected in zip(scene.frames, synthetic_scene.frames, strict=True):
        torch.testing.assert_close(frame.camera.world_from_camera, expected.camera.world_from_camera)
        torch.testing.assert_close(frame.read_depth(), expected.read_depth(), rtol=0, atol=1e-5)


def test_large_photographs_without_depth_are_reduced(capture: Path):
    Image.new("RGB", (2048, 1536), "red").save(capture / "images" / "0.png")
    change_frame(capture, 0, depth_file_path=None, fl_x=1280.0, fl_y=1280.0, cx=1024.0, cy=768.0, w=2048, h=1536)
    change_frame(capture, 1, depth_file_path=None)
    write_mesh(capture / "mesh.ply", faces="quads")
    large, small = Nerfstudio(capture)[0].frames
    assert (large.camera.width, large.camera.height, large.camera.focal.tolist()) == (1024, 768, [640, 640])
    assert large.read_depth().shape == (768, 1024)
    torch.testing.assert_close(large.read_image()[:, 5, 5], torch.tensor([1.0, 0, 0]))
    assert small.camera.width == 64


def test_a_sparse_cloud_gives_way_to_depth_and_a_mesh_does_not(capture: Path, synthetic_scene: Scene):
    save_cloud(synthetic_scene, capture / "sparse_pc.ply")
    change(capture, ply_file_path="sparse_pc.ply")
    scene = Nerfstudio(capture)[0]
    assert len(scene.points) > len(synthetic_scene.points)
    assert tuple(map(str, scene.problems)) == (
        "sparse_pc.ply is not used: it has only 585 points; the cloud is made from depth.",
    )
    write_mesh(capture / "sparse_pc.ply", faces="triangles")
    assert len(Nerfstudio(capture)[0].points) == 8
    columns = {axis: np.random.default_rng(0).random(50_000, np.float32) for axis in "xyz"}
    write_ply(capture / "sparse_pc.ply", columns)
    assert len(Nerfstudio(capture)[0].points) == 50_000
    (capture / "sparse_pc.ply").unlink()
    scene = Nerfstudio(capture)[0]
    assert tuple(map(str, scene.problems)) == ("sparse_pc.ply is missing; transforms.json names it as ply_file_path.",)
    assert len(scene.points) > 1000


def test_without_depth_and_mesh_the_capture_is_refused(capture: Path, synthetic_scene: Scene):
    for index in range(2):
        change_frame(capture, index, depth_file_path=None)
    with pytest.raises(ValueError, match=r"names no depth images .* and no mesh"):
        Nerfstudio(capture)[0]
    save_cloud(synthetic_scene, capture / "points.ply")  # no faces
    with pytest.raises(ValueError, match=r"names no depth images .* and no mesh"):
        Nerfstudio(capture)[0]


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"file_path": "images/9.png"}, "9.png is missing"),
        ({"depth_file_path": "depth/9.png"}, "9.png is missing"),
        ({"depth_file_path": None}, "names no depth_file_path"),
        ({"transform_matrix": None}, "transform_matrix should be a list of 4 rows"),
        ({"transform_matrix": [[1, 0, 0, math.nan], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}, "the pose is lost"),
        ({"transform_matrix": [["1", 0, 0, 0]] * 4}, "transform_matrix should be"),
        ({"transform_matrix": [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]}, "no rotation"),
        ({"w": 640}, "64 x 48, the intrinsics are for 640 x 48"),
        ({"w": "64"}, "w is '64'"),
        ({"fl_x": 0}, "focal lengths are 0 and 40"),
        ({"fl_x": True}, "fl_x is True"),
        ({"fl_y": []}, "fl_y is []"),
        ({"k1": {}}, "k1 is {}"),
        ({"k4": 0.1}, "k4 is 0.1"),
        ({"camera_model": "OPENCV_FISHEYE"}, "camera_model is 'OPENCV_FISHEYE'; choose from OPENCV"),
        ({"depth_unit_scale_factor": 0}, "depth_unit_scale_factor is 0"),
    ],
)
def test_a_bad_frame_is_left_out_and_named(changes: dict[str, Any], cause: str, capture: Path):
    change_frame(capture, 1, **changes)
    scene = Nerfstudio(capture)[0]
    assert [frame.name for frame in scene.frames] == ["images/0.png"]
    (problem,) = map(str, scene.problems)
    assert cause in problem


@pytest.mark.parametrize("key", ["file_path", "depth_file_path"])
@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", 7, ["a"]])
def test_a_name_that_leads_out_of_the_capture_is_refused(key: str, name: object, capture: Path):
    change_frame(capture, 1, **{key: name})
    with pytest.raises(ValueError, match=rf"transforms\.json, frame 1, {key} is .*relative to"):
        Nerfstudio(capture)[0]


def test_other_wrong_entries_are_named(capture: Path):
    change(capture, ply_file_path="../other.ply")
    with pytest.raises(ValueError, match=r"transforms\.json, ply_file_path is '\.\./other\.ply', which leads out"):
        Nerfstudio(capture)[0]
    change(capture, ply_file_path=None, frames={"0": {}})
    with pytest.raises(ValueError, match=r"transforms\.json: frames is .*expected a list of objects"):
        Nerfstudio(capture)[0]
    change(capture, frames=[])
    with pytest.raises(ValueError, match="names no depth images"):
        Nerfstudio(capture)[0]


@pytest.mark.parametrize(("name", "times"), [("transforms.json", 150), ("images/0.png", 15), ("depth/0.png", 15)])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_cleanly(name: str, times: int, capture: Path):
    damage(capture / name, lambda: read_all(capture), times=times)
    assert Nerfstudio(capture)[0].problems == ()


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_mesh_is_refused_cleanly(capture: Path):
    for index in range(2):
        change_frame(capture, index, depth_file_path=None)
    write_mesh(capture / "mesh.ply", faces="triangles")
    assert damage(capture / "mesh.ply", lambda: read_all(capture), times=75) > 0.2
    corners = torch.tensor([[0.0, 2, 0], [1, 2, 0], [1, 2, 2]])
    save_cloud(Scene("triangle", corners, (), colors=torch.ones(3, 3)), capture / "mesh.ply")
    content = (capture / "mesh.ply").read_bytes()
    header, body = content.split(b"end_header\n")
    faces = b"element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    index = b"\x03" + np.array([0, 1, 2], "<i4").tobytes()
    (capture / "mesh.ply").write_bytes(header + faces + body + index)
    assert Nerfstudio(capture)[0].frames[0].read_depth().any()
    assert damage(capture / "mesh.ply", lambda: read_all(capture), times=75) > 0.2


@pytest.mark.parametrize("index", [-1, 3, 2**31 - 1])
def test_a_face_without_its_vertex_is_named(index: int, capture: Path):
    for frame in range(2):
        change_frame(capture, frame, depth_file_path=None)
    write_mesh(capture / "mesh.ply", faces="triangles")
    text = (capture / "mesh.ply").read_text().replace("3 4 6 7", f"3 4 6 {index if index != 3 else 8}")
    (capture / "mesh.ply").write_text(text)
    with pytest.raises(ValueError, match=r"mesh\.ply has faces between vertices that are not there"):
        Nerfstudio(capture)[0]
