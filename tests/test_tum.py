from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cuao3d.readers.tum import Tum
from cuao3d.scene import Scene
from written import damage, read_all, same_views, write_tum


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path) -> Path:
    return write_tum(replace(synthetic_scene, frames=synthetic_scene.frames * 2), tmp_path / "capture")


def test_a_written_capture_is_read_back(synthetic_scene: Scene, tmp_path: Path):
    scene = Tum(write_tum(synthetic_scene, tmp_path / "capture"))[0]
    same_views(scene, synthetic_scene, depth_unit=1 / 5000)
    assert scene.problems == ()
    assert ((scene.points[:, 1:2] - torch.tensor([1.0, 2.0])).abs() < 1e-3).any(1).all()


def test_a_quaternion_turns_as_worked_out_by_hand(capture: Path):
    # A quarter turn about z: (0, 0, sin 45, cos 45) takes x to y.
    rows = [f"{1305031102.1753 + index} 1 2 3 0 0 0.7071 0.7071" for index in range(4)]
    (capture / "groundtruth.txt").write_text("\n".join(rows))
    pose = Tum(capture)[0].frames[0].camera.world_from_camera
    expected = torch.tensor([[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(pose, expected)


def test_a_colour_image_takes_the_depth_and_the_pose_nearest_in_time(capture: Path):
    # Depth 0.011 s after colour, a decoy 0.012 s before; two poses, the nearer one is shifted by 5 m.
    lines = (capture / "depth.txt").read_text().splitlines()
    (capture / "depth.txt").write_text("\n".join(["1305031102.163 depth/decoy.png", *lines]))
    rows = np.loadtxt(capture / "groundtruth.txt")
    near = rows[0].copy()
    near[:2] += (0.005, 5)
    np.savetxt(capture / "groundtruth.txt", [*rows, near], fmt="%.17g")
    scene = Tum(capture)[0]
    assert scene.problems == ()
    assert scene.frames[0].camera.world_from_camera[0, 3] == near[1]


def test_images_without_a_partner_within_a_fiftieth_of_a_second_are_named_in_one_line(capture: Path):
    lines = (capture / "depth.txt").read_text().splitlines()
    (capture / "depth.txt").write_text("\n".join([lines[0], f"1305031103.2 {lines[1].split()[1]}", *lines[2:]]))
    rows = np.loadtxt(capture / "groundtruth.txt")
    rows[3, 0] -= 0.02
    np.savetxt(capture / "groundtruth.txt", rows, fmt="%.17g")
    scene = Tum(capture)[0]
    assert [frame.name for frame in scene.frames] == ["1305031102.175300.png", "1305031104.175300.png"]
    gone = "1305031103.175300.png, 1305031105.175300.png"
    assert tuple(map(str, scene.problems)) == (f"2 colour images have no depth or no pose within 0.02 s: {gone}",)


@pytest.mark.parametrize(("number", "fx", "bent"), [("1", 517.3, True), ("2", 520.9, True), ("3", 535.4, False)])
def test_the_cameras_of_the_dataset_are_known_by_name(
    number: str, fx: float, bent: bool, tmp_path: Path, synthetic_scene: Scene
):
    capture = write_tum(synthetic_scene, tmp_path / f"rgbd_dataset_freiburg{number}_desk")
    (capture / "camera.txt").unlink()
    row, column = np.indices((480, 640))
    for path in (capture / "rgb").iterdir():
        Image.fromarray(np.stack([column // 3, row // 2, row * 0], axis=2).astype(np.uint8)).save(path)
    for path in (capture / "depth").iterdir():
        Image.fromarray((column + 5000).astype(np.uint16)).save(path)
    frame = Tum(capture)[0].frames[0]
    assert frame.camera.focal[0] == fx
    depth = frame.read_depth()
    assert depth[240].equal((torch.arange(640) + 5000).double().mul(1 / 5000).float()) != bent
    near = depth[225:285, 290:350]  # near the centre little is bent: at most a pixel, a five-thousandth of a metre
    torch.testing.assert_close(near, (torch.arange(290, 350).expand(60, 60) + 5000) / 5000, rtol=0, atol=1.01 / 5000)


def test_an_unknown_camera_says_what_to_write(capture: Path):
    (capture / "camera.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"camera of .*capture is not known.*Write fx fy cx cy.*camera\.txt"):
        Tum(capture)[0]
    (capture / "camera.txt").write_text("525 525 319.5")
    with pytest.raises(ValueError, match=r"camera\.txt should hold 4 or 8 or 9 numbers; it holds \[525"):
        Tum(capture)[0]
    (capture / "camera.txt").write_text("0 525 319.5 239.5")
    with pytest.raises(ValueError, match=r"camera\.txt: the focal lengths are 0 and 525"):
        Tum(capture)[0]
    (capture / "camera.txt").write_text("40 40 31.5 23.5\n-0.3 0.1 0 0")
    assert Tum(capture)[0].frames[0].camera.focal.tolist() == [40, 40]


@pytest.mark.parametrize(
    ("file", "row", "text", "cause"),
    [
        ("groundtruth.txt", 1, "{time} nan 0 0 0 0 0 1", "the pose is lost"),
        ("groundtruth.txt", 1, "{time} 0 0 0 0 0 0 0", "groundtruth.txt: its quaternion has length 0, not 1"),
        ("groundtruth.txt", 1, "{time} 0 0 0 0 0 0 1.2", "length 1.2"),
        ("rgb.txt", 2, "{time} rgb/gone.png", "gone.png is missing"),
        ("depth.txt", 1, "{time} depth/gone.png", "gone.png is missing"),
        ("depth.txt", 1, "{time} rgb.txt", "rgb.txt is no readable image"),
    ],
)
def test_a_bad_frame_is_left_out_and_named(file: str, row: int, text: str, cause: str, capture: Path):
    lines = (capture / file).read_text().splitlines()
    lines[row] = text.format(time=lines[row].split()[0])
    (capture / file).write_text("\n".join(lines))
    scene = Tum(capture)[0]
    assert len(scene.frames) == 3
    (problem,) = map(str, scene.problems)
    assert cause in problem


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("rgb.txt", "1.0 ../a.png", r"rgb\.txt, line 1 is '\.\./a\.png', which leads out of the capture"),
        ("depth.txt", "1.0 /a.png", r"depth\.txt, line 1 is '/a\.png', which leads out"),
        ("rgb.txt", "\n1.0", r"rgb\.txt, line 2 is ''; expected the name of a file"),
        ("depth.txt", "x a.png", r"depth\.txt, line 1: expected a time"),
        ("groundtruth.txt", "1 2 3", r"groundtruth\.txt, line 1: expected 8 numbers, got 3"),
        ("groundtruth.txt", "", r"No usable frame in .*4 colour images have no depth or no pose"),
        ("rgb.txt", "", r"no image can be read"),
    ],
)
def test_wrong_lists_are_named(file: str, text: str, message: str, capture: Path):
    (capture / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        Tum(capture)[0]


@pytest.mark.parametrize("name", ["rgb.txt", "depth.txt", "groundtruth.txt", "camera.txt"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_cleanly(name: str, synthetic_scene: Scene, tmp_path: Path):
    capture = write_tum(synthetic_scene, tmp_path / "capture")
    damage(capture / name, lambda: read_all(capture), times=60)
    assert Tum(capture)[0].problems == ()
