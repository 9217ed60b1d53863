import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import camera_at
from cuao3d.formats.ply import read_ply, write_ply
from cuao3d.readers import cloud, open_dataset
from cuao3d.readers.cloud import cloud_from_depth, depth_edges
from cuao3d.readers.sevenscenes import SevenScenes, write_capture
from cuao3d.scene import Frame, Scene


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path) -> Path:
    """A capture of three frames without a cloud."""
    frames = (*synthetic_scene.frames, synthetic_scene.frames[0])
    write_capture(replace(synthetic_scene, frames=frames), tmp_path / "capture")
    (tmp_path / "capture" / "points.ply").unlink()
    (tmp_path / "capture" / "scene.json").unlink()
    return tmp_path / "capture"


@pytest.mark.data
def test_the_lounge_is_read_as_its_files_say(lounge_folder: Path, lounge: Scene):
    assert [frame.name for frame in lounge.frames] == [f"frame-{number:06d}" for number in (0, 1, 2, 116, 422)]
    assert lounge.problems == ()
    frame = lounge.frames[0]
    assert (frame.camera.width, frame.camera.height) == (640, 480)
    assert frame.camera.focal.tolist() == [570.342205, 570.342205]
    assert frame.camera.center.tolist() == [320, 240]
    assert frame.camera.world_from_camera[:3, 3].tolist() == [1.973046, 1.125734, 0.30982]
    millimetres = np.asarray(Image.open(lounge_folder / "frame-000000.depth.png"))
    np.testing.assert_allclose(frame.read_depth().numpy(), millimetres / 1000, rtol=1e-6)
    assert frame.read_image().shape == (3, 480, 640)


@pytest.mark.data
def test_the_lounges_cloud_has_one_point_per_two_centimetre_voxel_and_keeps_to_the_room(lounge: Scene):
    voxels = torch.floor(lounge.points.double() / 0.02).long()
    on_a_border = ((lounge.points.double() / 0.02).frac().abs() < 1e-4).any(1)  # rounding may move these
    assert len(torch.unique(voxels[~on_a_border], dim=0)) == int((~on_a_border).sum())
    assert 130_000 < len(lounge.points) < 190_000  # of five frames
    extent = lounge.points.amax(0) - lounge.points.amin(0)
    assert (extent < 9).all()
    assert lounge.colors is not None
    assert lounge.colors.min() >= 0
    assert lounge.colors.max() <= 1


def test_a_written_capture_is_read_back_unchanged(synthetic_scene: Scene, tmp_path: Path):
    normals = torch.nn.functional.normalize(torch.ones_like(synthetic_scene.points), dim=1)
    scene = replace(synthetic_scene, normals=normals, split="val", occlusion_tolerance=0.05)
    write_capture(scene, tmp_path / "room")
    back = SevenScenes(tmp_path / "room")[0]
    assert (back.name, back.label_set, back.split, back.occlusion_tolerance) == ("room", "scannet20", "val", 0.05)
    assert back.points.equal(scene.points)
    torch.testing.assert_close(back.normals, normals, rtol=0, atol=0)
    torch.testing.assert_close(back.labels, scene.labels, rtol=0, atol=0)
    torch.testing.assert_close(back.colors, scene.colors, rtol=0, atol=0.5 / 255)
    for one, other in zip(back.frames, scene.frames, strict=True):
        assert one.camera.world_from_camera.equal(other.camera.world_from_camera)
        assert one.camera.focal.equal(other.camera.focal)
        assert one.camera.center.equal(other.camera.center)
        assert one.read_depth().equal(other.read_depth())
        torch.testing.assert_close(one.read_image(), other.read_image(), rtol=0, atol=0.5 / 255 + 1e-6)


def test_a_folder_of_captures_is_many_scenes_and_may_share_intrinsics(capture: Path, tmp_path: Path):
    shutil.copytree(capture, tmp_path / "set" / "b")
    shutil.copytree(capture, tmp_path / "set" / "a")
    (tmp_path / "set" / "empty").mkdir()
    (tmp_path / "set" / "a" / "camera-intrinsics.txt").rename(tmp_path / "set" / "camera-intrinsics.txt")
    dataset = open_dataset(tmp_path / "set")
    assert dataset.names == ("a", "b")
    assert len(dataset) == 2
    assert dataset[0].points.equal(dataset[1].points)


def test_the_missing_value_of_7_scenes_is_missing_depth(capture: Path):
    depth = np.asarray(Image.open(capture / "frame-000000.depth.png")).copy()
    depth[3, 4] = 65535
    Image.fromarray(depth).save(capture / "frame-000000.depth.png")
    assert open_dataset(capture)[0].frames[0].read_depth()[3, 4] == 0


def test_cloud_averages_what_falls_into_one_voxel():
    # Two cameras at one place see a wall at 2.001 m and 2.003 m, black and white.
    frames = [_flat_frame(2.001, 0.0), _flat_frame(2.003, 1.0)]
    cloud = cloud_from_depth(frames, voxel_size=0.1)
    torch.testing.assert_close(cloud.points[:, 1], torch.full((len(cloud.points),), 2.002))
    inner = (cloud.points[:, 0].abs() < 1) & ((cloud.points[:, 2] - 1).abs() < 1)
    torch.testing.assert_close(cloud.colors[inner], torch.full((int(inner.sum()), 3), 0.5), rtol=0, atol=0.1)


def test_no_more_frames_are_read_ahead_than_are_merged_at_once(monkeypatch: pytest.MonkeyPatch):
    reads, merge = [], cloud._merge
    ahead = []

    def watched(parts: list[cloud._VoxelSums]) -> cloud._VoxelSums:
        ahead.append(len(reads))
        reads.clear()
        return merge(parts)

    depth = torch.full((48, 64), 2.0)
    frame = Frame("wall", camera_at(0.0), lambda: torch.zeros(3, 48, 64), lambda: reads.append(1) or depth)
    monkeypatch.setattr(cloud, "_merge", watched)
    long = cloud_from_depth([frame] * 70)
    assert ahead[:3] == [cloud.MERGE_AFTER, cloud.MERGE_AFTER, 70 - 2 * cloud.MERGE_AFTER]
    assert len(long.frames) == 70
    torch.testing.assert_close(long.points, cloud_from_depth([frame]).points)


def test_pixels_beside_a_step_in_depth_are_edges_and_missing_ones_make_none():
    depth = torch.full((5, 8), 2.0)
    depth[:, 4:] = 3.0
    depth[0, 0] = 0.0
    assert depth_edges(depth)[1:].any(0).tolist() == [False, False, False, True, True, False, False, False]
    assert not depth_edges(depth)[:, :3].any()


def test_ply_round_trip(tmp_path: Path):
    columns = {
        "x": np.array([0.1, -2], np.float32),
        "y": np.array([0.1, 1e-300], np.float64),
        "z": np.array([0, 1e30], np.float32),
        "red": np.array([0, 255], np.uint8),
        "label": np.array([-1, 70000], np.int32),
    }
    write_ply(tmp_path / "points.ply", columns)
    back = read_ply(tmp_path / "points.ply")
    assert list(back) == list(columns)
    for name, column in columns.items():
        np.testing.assert_array_equal(back[name], column)


def test_ascii_ply_with_faces_is_read(tmp_path: Path):
    (tmp_path / "mesh.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
        "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0.5\n3 0 1 2\n"
    )
    columns = read_ply(tmp_path / "mesh.ply")
    np.testing.assert_array_equal(np.stack([columns[axis] for axis in "xyz"], 1), [[0, 0, 0], [1, 0, 0], [0, 1, 0.5]])


def _remove_color(capture: Path) -> None:
    (capture / "frame-000001.color.png").unlink()


def _lose_pose(capture: Path) -> None:
    (capture / "frame-000001.pose.txt").write_text("1 0 0 0\n0 1 0 nan\n0 0 1 0\n0 0 0 1\n")


def _scale_pose(capture: Path) -> None:
    (capture / "frame-000001.pose.txt").write_text("2 0 0 0\n0 2 0 0\n0 0 2 0\n0 0 0 1\n")


def _cut_pose(capture: Path) -> None:
    (capture / "frame-000001.pose.txt").write_text("1 0 0 0\n0 1 0\n")


def _shrink_depth(capture: Path) -> None:
    path = capture / "frame-000001.depth.png"
    Image.open(path).resize((32, 24), Image.Resampling.NEAREST).save(path)


def _shrink_both(capture: Path) -> None:
    _shrink_depth(capture)
    path = capture / "frame-000001.color.png"
    Image.open(path).resize((32, 24)).save(path)


def _flatten_depth(capture: Path) -> None:
    Image.new("L", (64, 48)).save(capture / "frame-000001.depth.png")


def _garble_color(capture: Path) -> None:
    (capture / "frame-000001.color.png").write_bytes(b"no picture")


def _truncate_depth(capture: Path) -> None:
    path = capture / "frame-000001.depth.png"
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("harm", "file", "cause"),
    [
        (_remove_color, "frame-000001.color.png", "missing"),
        (_lose_pose, "frame-000001.pose.txt", "lost"),
        (_scale_pose, "frame-000001.pose.txt", "no rotation"),
        (_cut_pose, "frame-000001.pose.txt", "4 x 4"),
        (_shrink_depth, "frame-000001.depth.png", "32 x 24"),
        (_shrink_both, "frame-000001.color.png", "32 x 24"),
        (_flatten_depth, "frame-000001.depth.png", "16-bit"),
        (_garble_color, "frame-000001.color.png", "no readable image"),
        (_truncate_depth, "frame-000001.depth.png", "damaged"),
    ],
)
def test_a_bad_frame_is_left_out_and_named(capture: Path, harm: Callable[[Path], None], file: str, cause: str):
    harm(capture)
    scene = open_dataset(capture)[0]
    assert [frame.name for frame in scene.frames] == ["frame-000000", "frame-000002"]
    (problem,) = map(str, scene.problems)
    assert file in problem
    assert cause in problem


def test_a_capture_without_a_usable_frame_says_why(capture: Path):
    for path in capture.glob("*.pose.txt"):
        path.unlink()
    with pytest.raises(ValueError, match=r"No usable frame in .*capture: .*frame-000000\.pose\.txt is missing"):
        open_dataset(capture)[0]


def test_missing_and_wrong_intrinsics_are_named(capture: Path):
    path = capture / "camera-intrinsics.txt"
    path.write_text("0 0 1\n0 0 1\n0 0 1\n")
    with pytest.raises(ValueError, match=r"camera-intrinsics\.txt holds no focal lengths"):
        open_dataset(capture)[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"No camera-intrinsics\.txt in .*capture"):
        open_dataset(capture)[0]


def test_an_empty_cloud_is_named(capture: Path):
    for path in capture.glob("*.depth.png"):
        Image.fromarray(np.zeros((48, 64), np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"The cloud of .*capture is empty"):
        open_dataset(capture)[0]
    write_ply(capture / "points.ply", {axis: np.empty(0, np.float32) for axis in "xyz"})
    with pytest.raises(ValueError, match=r"The cloud of .*capture is empty"):
        open_dataset(capture)[0]


@pytest.mark.parametrize(
    "content", [b"", b"ply\n", b"ply\nformat ascii 1.0\nelement vertex 9\nproperty float x\nend_header\n1\n"]
)
def test_a_damaged_cloud_is_named(capture: Path, content: bytes):
    (capture / "points.ply").write_bytes(content)
    with pytest.raises(ValueError, match=r"points\.ply"):
        open_dataset(capture)[0]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "should hold a JSON object"),
        ('{"label_set": "../../secrets.csv"}', "choose from"),
        ('{"split": "holdout"}', "choose from"),
        ('{"occlusion_tolerance": "wide"}', "expected a number between 0 and 1"),
    ],
)
def test_a_wrong_description_is_named(capture: Path, about: str, message: str):
    (capture / "scene.json").write_text(about)
    with pytest.raises(ValueError, match=rf"scene\.json.* {message}"):
        open_dataset(capture)[0]


def test_labels_without_a_label_set_are_not_used(synthetic_scene: Scene, tmp_path: Path):
    write_capture(synthetic_scene, tmp_path / "room")
    (tmp_path / "room" / "scene.json").write_text(json.dumps({"split": "test"}))
    scene = open_dataset(tmp_path / "room")[0]
    assert (scene.labels, scene.label_set, scene.split) == (None, None, "test")
    assert "label_set" in scene.problems[0].text


def test_a_capture_is_not_written_over_files(synthetic_scene: Scene, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        write_capture(synthetic_scene, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def _flat_frame(distance: float, gray: float) -> Frame:
    """A wall that fills the view."""
    image, depth = torch.full((3, 48, 64), gray), torch.full((48, 64), distance)
    return Frame("wall", camera_at(0.0), lambda: image, lambda: depth)
