import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuao3d.readers.replica import Replica
from cuao3d.scene import Scene
from written import damage, read_all, same_views, write_replica


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path) -> Path:
    return write_replica(synthetic_scene, tmp_path / "room0")


def change(capture: Path, **changes: Any) -> None:
    path = capture / "cam_params.json"
    path.write_text(json.dumps({"camera": json.loads(path.read_text())["camera"] | changes}))


def test_a_written_capture_is_read_back(capture: Path, synthetic_scene: Scene):
    scene = Replica(capture)[0]
    same_views(scene, synthetic_scene, depth_unit=1 / 6553.5)
    assert (scene.name, scene.problems) == ("room0", ())
    assert scene.points.equal(synthetic_scene.points)


def test_rooms_share_the_camera_above_them(capture: Path, tmp_path: Path):
    (capture / "cam_params.json").rename(tmp_path / "cam_params.json")
    shutil.copytree(capture, tmp_path / "room1")
    dataset = Replica(tmp_path)
    assert dataset.names == ("room0", "room1")
    assert len(dataset[0].points) == 585
    assert len(dataset[1].points) > 1000  # without a mesh of its name the cloud is built from depth


def test_the_scale_is_what_a_metre_is(capture: Path, synthetic_scene: Scene):
    change(capture, scale=1000)
    metres = Replica(capture)[0].frames[0].read_depth()
    torch.testing.assert_close(metres, synthetic_scene.frames[0].read_depth() * 6.5535, rtol=0, atol=0.001)


def lose_pose(capture: Path) -> None:
    rows = np.loadtxt(capture / "traj.txt")
    rows[1, 3] = np.nan
    np.savetxt(capture / "traj.txt", rows)


def forget_pose(capture: Path) -> None:
    np.savetxt(capture / "traj.txt", np.loadtxt(capture / "traj.txt")[:1])


def lose_depth(capture: Path) -> None:
    (capture / "results" / "depth000001.png").unlink()


def cut_color(capture: Path) -> None:
    (capture / "results" / "frame000001.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "cause"),
    [
        (lose_pose, "the pose is lost"),
        (forget_pose, "traj.txt has only 1 rows"),
        (lose_depth, "results/depth000001.png is missing"),
        (cut_color, "results/frame000001.png is no readable image"),
    ],
)
def test_a_bad_frame_is_left_out_and_named(harm, cause: str, capture: Path):
    harm(capture)
    scene = Replica(capture)[0]
    assert [frame.name for frame in scene.frames] == ["000000"]
    (problem,) = map(str, scene.problems)
    assert problem.startswith("000001 left out: ")
    assert cause in problem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fx": None}, "fx is None; expected a number"),
        ({"cx": "600"}, "cx is '600'"),
        ({"w": 64.5}, "w is 64.5; expected a whole number"),
        ({"scale": 0}, "scale is 0; expected a number above 0"),
        ({"fy": 0}, "the focal lengths are 40 and 0"),
        ({"h": 680}, "64 x 48, the intrinsics are for 64 x 680"),
    ],
)
def test_wrong_camera_parameters_are_named(changes: dict[str, Any], message: str, capture: Path):
    change(capture, **changes)
    with pytest.raises(ValueError, match=r"cam_params\.json|No usable frame") as caught:
        Replica(capture)[0]
    assert message in str(caught.value)


def test_missing_camera_parameters_and_wrong_rows_are_named(capture: Path):
    (capture / "cam_params.json").write_text('{"camera": [1]}')
    with pytest.raises(ValueError, match=r'cam_params\.json has no "camera"'):
        Replica(capture)[0]
    (capture / "cam_params.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"No cam_params\.json in .*room0 or above it"):
        Replica(capture)[0]


def test_a_wrong_row_is_named(capture: Path):
    (capture / "traj.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    with pytest.raises(ValueError, match=r"traj\.txt, line 1: expected 16 numbers, got 4"):
        Replica(capture)[0]


@pytest.mark.parametrize("name", ["cam_params.json", "traj.txt", "../room0_mesh.ply"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_cleanly(name: str, capture: Path):
    assert damage(capture / name, lambda: read_all(capture), times=100) > 0.05
    assert Replica(capture)[0].problems == ()
