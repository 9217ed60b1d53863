import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cuao3d.readers.open3d import Open3D, read_log
from cuao3d.scene import Scene
from written import damage, read_all, same_views, save_cloud, write_open3d


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path) -> Path:
    return write_open3d(synthetic_scene, tmp_path / "capture")


def test_a_written_capture_is_read_back(capture: Path, synthetic_scene: Scene):
    scene = Open3D(capture)[0]
    same_views(scene, synthetic_scene, depth_unit=0.001)
    assert scene.problems == ()
    assert [frame.name for frame in scene.frames] == ["000000", "000001"]


def test_intrinsics_stand_column_by_column_and_row_by_row_cannot_be_meant_otherwise(capture: Path):
    path = capture / "camera_intrinsic.json"
    for numbers in ([40, 0, 0, 0, 41, 0, 31, 22, 1], [40, 0, 31, 0, 41, 22, 0, 0, 1]):
        path.write_text(json.dumps({"width": 64, "height": 48, "intrinsic_matrix": numbers}))
        camera = Open3D(capture)[0].frames[0].camera
        assert (camera.focal.tolist(), camera.center.tolist()) == ([40, 41], [31, 22])


def test_a_frame_has_the_pose_of_its_number_and_of_its_place_where_numbers_come_twice(tmp_path: Path):
    matrix = "1 0 0 {0}\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"
    (tmp_path / "a.log").write_text("2 2 3\n" + matrix.format(5) + "\n0 0 1\n" + matrix.format(6))
    assert {number: pose[0, 3].item() for number, pose in read_log(tmp_path / "a.log").items()} == {2: 5, 0: 6}
    (tmp_path / "a.log").write_text("0 0 0\n" + matrix.format(5) + "0 0 0\n" + matrix.format(6))
    assert {number: pose[0, 3].item() for number, pose in read_log(tmp_path / "a.log").items()} == {0: 5, 1: 6}


def test_names_of_times_are_paired_in_their_order_and_only_if_there_are_as_many(capture: Path):
    for kind, add in (("color", 0), ("depth", 7)):
        for index, path in enumerate(sorted((capture / kind).iterdir())):
            path.rename(path.with_name(f"{index:07d}-{1000 * index + add:012d}.png"))
    scene = Open3D(capture)[0]
    assert scene.problems == ()
    assert len(scene.frames) == 2
    next((capture / "depth").glob("0000000-*")).unlink()
    with pytest.raises(
        ValueError, match=r"2 images of color/ and 1 of depth/ have no stem in common, such as 0000000-"
    ):
        Open3D(capture)[0]


def test_the_integrated_mesh_is_the_cloud_where_it_is_dense(capture: Path, synthetic_scene: Scene):
    save_cloud(synthetic_scene, capture / "scene" / "integrated.ply")
    (problem,) = Open3D(capture)[0].problems
    assert "integrated.ply is not used" in problem.text
    many = replace(synthetic_scene, points=torch.rand(50_000, 3), colors=torch.rand(50_000, 3), labels=None)
    save_cloud(many, capture / "scene" / "integrated.ply")
    assert len(Open3D(capture)[0].points) == 50_000


def test_frames_without_a_pose_and_poses_without_a_frame_are_told(capture: Path):
    path = capture / "scene" / "trajectory.log"
    path.write_text(path.read_text().replace("1 1 2", "7 7 8"))
    scene = Open3D(capture)[0]
    assert [str(problem) for problem in scene.problems] == [
        "1 photographs have no pose in trajectory.log: 000001.png",
        "1 poses of trajectory.log have no photograph: 7",
    ]
    path.write_text(path.read_text().replace("7 7 8\n1", "1 1 2\nnan"))
    (problem,) = Open3D(capture)[0].problems
    assert (problem.kind, "the pose is lost" in problem.text) == ("pose", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0\n", r"trajectory\.log, line 1: expected three whole numbers"),
        ("0 0 1\n1 0 0 0\n", r"line 1: expected three whole numbers and, in the next lines, a matrix"),
        ("x 0 1\n" + "1 0 0 0\n" * 4, r"line 1: this frame holds something else than numbers"),
        ("-1 0 1\n" + "1 0 0 0\n" * 4, r"line 1: expected the number of a frame"),
        ("0 0 1\n" + "1 0 0\n" * 4, r"line 1: expected the number of a frame and, in the next lines, 4 rows"),
        ("", r"No usable frame in .*2 photographs have no pose"),
    ],
)
def test_a_wrong_log_is_named_with_its_line(text: str, message: str, capture: Path):
    (capture / "scene" / "trajectory.log").write_text(text)
    with pytest.raises(ValueError, match=message):
        Open3D(capture)[0]


def test_wrong_intrinsics_are_named(capture: Path):
    path = capture / "camera_intrinsic.json"
    path.write_text('{"width": 64, "height": 48, "intrinsic_matrix": [1, 2]}')
    with pytest.raises(ValueError, match=r"camera_intrinsic\.json: intrinsic_matrix is \[1, 2\]; expected a list of 9"):
        Open3D(capture)[0]
    path.write_text(json.dumps({"intrinsic_matrix": np.zeros(9).tolist()}))
    with pytest.raises(ValueError, match=r"intrinsic_matrix holds no focal lengths"):
        Open3D(capture)[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no camera_intrinsic\.json in .*Write it, in pixels"):
        Open3D(capture)[0]


@pytest.mark.parametrize("name", ["camera_intrinsic.json", "scene/trajectory.log"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_cleanly(name: str, capture: Path):
    damage(capture / name, lambda: read_all(capture), times=60)
    assert Open3D(capture)[0].problems == ()
