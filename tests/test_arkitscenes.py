import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cuao3d.readers.arkitscenes import ArkitScenes
from cuao3d.scene import Scene
from written import damage, read_all, same_views, write_arkitscenes


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path) -> Path:
    return write_arkitscenes(synthetic_scene, tmp_path / "41069021")


def test_a_written_capture_is_read_back(capture: Path, synthetic_scene: Scene):
    scene = ArkitScenes(capture)[0]
    same_views(scene, synthetic_scene, depth_unit=0.001)
    assert scene.problems == ()
    assert [frame.name for frame in scene.frames] == ["41069021_305.375", "41069021_306.375"]
    assert scene.points.equal(synthetic_scene.points)


def test_a_row_takes_the_world_to_the_camera_as_worked_out_by_hand(capture: Path):
    # x_camera = R x_world + t, R a quarter turn about z: x to y, y to -x. The camera stands at -R^T t = (-2, 1, -3).
    rows = np.array([[305.375, 0, 0, math.pi / 2, 1, 2, 3]] * 2)
    rows[1, 0] += 1
    np.savetxt(capture / "lowres_wide.traj", rows, fmt="%.17g")
    camera = ArkitScenes(capture)[0].frames[0].camera
    expected = torch.tensor([[0, 1, 0, -2], [-1, 0, 0, 1], [0, 0, 1, -3], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(camera.world_from_camera, expected)
    seen = camera.camera_from_world(torch.tensor([[5.0, 0, 0]]))
    torch.testing.assert_close(seen, torch.tensor([[1, 7, 3]], dtype=torch.float64))


def test_depth_of_low_confidence_is_left_out(capture: Path, synthetic_scene: Scene):
    confidence = np.full((48, 64), 2, np.uint8)
    confidence[:, :32], confidence[:24, 32:] = 0, 1
    Image.fromarray(confidence).save(capture / "confidence" / "41069021_305.375.png")
    (capture / "confidence" / "41069021_306.375.png").unlink()
    first, second = ArkitScenes(capture)[0].frames
    expected = synthetic_scene.frames[0].read_depth().clone()
    expected[:, :32] = 0
    assert first.read_depth().equal(expected)
    assert second.read_depth().equal(synthetic_scene.frames[1].read_depth())


def test_images_between_two_poses_are_named_in_one_line(synthetic_scene: Scene, tmp_path: Path):
    capture = write_arkitscenes(replace(synthetic_scene, frames=synthetic_scene.frames * 4), tmp_path / "1")
    rows = np.loadtxt(capture / "lowres_wide.traj")
    rows[1::2, 0] += 0.0052
    np.savetxt(capture / "lowres_wide.traj", rows, fmt="%.17g")
    scene = ArkitScenes(capture)[0]
    assert len(scene.frames) == 4
    gone = "1_306.375.png, 1_308.375.png, 1_310.375.png, ..."
    assert tuple(map(str, scene.problems)) == (f"4 colour images have no pose within 0.005 s: {gone}",)


def test_a_name_rounded_differently_and_a_mesh_one_folder_up_are_found(capture: Path):
    folder = capture / "lowres_wide_intrinsics"
    (folder / "41069021_306.375.pincam").rename(folder / "41069021_306.376.pincam")
    frames = capture / "41069021_frames"
    frames.mkdir()
    for path in list(capture.iterdir()):
        if path not in (frames, capture / "41069021_3dod_mesh.ply"):
            path.rename(frames / path.name)
    scene = ArkitScenes(capture)[0]
    assert (len(scene.frames), len(scene.points)) == (2, 585)


def test_without_a_mesh_the_cloud_is_built_from_depth(capture: Path):
    (capture / "41069021_3dod_mesh.ply").unlink()
    assert len(ArkitScenes(capture)[0].points) > 1000


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        (
            "lowres_depth/41069021_306.375.png",
            None,
            "1 colour images have no depth image, and are not used: 4",
        ),
        ("lowres_wide/41069021_306.375.png", "no", "306.375.png is no readable image"),
        ("lowres_wide_intrinsics/41069021_306.375.pincam", None, "306.375.pincam is missing"),
        ("lowres_wide_intrinsics/41069021_306.375.pincam", "64 48 40", "should hold 6 numbers"),
        ("lowres_wide_intrinsics/41069021_306.375.pincam", "64 48 0 40 31 23", "focal lengths are 0 and 40"),
        ("lowres_wide_intrinsics/41069021_306.375.pincam", "256 192 4 40 31 23", "64 x 48, the intrinsics are for 256"),
        ("lowres_wide.traj", "305.375 0 0 0 0 0 0\n306.375 0 0 nan 0 0 0", "the pose is lost"),
    ],
)
def test_a_bad_frame_is_left_out_and_named(name: str, content: str | None, cause: str, capture: Path):
    if content is None:
        (capture / name).unlink()
    else:
        (capture / name).write_text(content)
    scene = ArkitScenes(capture)[0]
    assert [frame.name for frame in scene.frames] == ["41069021_305.375"]
    (problem,) = map(str, scene.problems)
    assert cause in problem


def test_a_missing_folder_and_a_wrong_row_are_named(capture: Path):
    (capture / "lowres_wide.traj").write_text("305.375 0 0 0\n")
    with pytest.raises(ValueError, match=r"lowres_wide\.traj, line 1: expected 7 numbers, got 4"):
        ArkitScenes(capture)[0]
    (capture / "lowres_wide_intrinsics").rename(capture / "other")
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*lowres_wide_intrinsics"):
        ArkitScenes(capture)[0]


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("lowres_wide.traj", 150),
        ("lowres_wide_intrinsics/41069021_305.375.pincam", 100),
        ("confidence/41069021_305.375.png", 50),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_cleanly(name: str, times: int, capture: Path):
    damage(capture / name, lambda: read_all(capture), times=times)
    assert ArkitScenes(capture)[0].problems == ()
