from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cuao3d.readers import open_dataset
from cuao3d.readers.folder import Folder
from cuao3d.scene import Scene
from written import damage, read_all, same_views, save_cloud, write_folder


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path) -> Path:
    return write_folder(replace(synthetic_scene, frames=synthetic_scene.frames * 2), tmp_path / "capture")


def test_a_written_capture_is_read_back(synthetic_scene: Scene, tmp_path: Path):
    scene = Folder(write_folder(synthetic_scene, tmp_path / "capture"))[0]
    same_views(scene, synthetic_scene, depth_unit=0.001)
    assert (scene.name, scene.problems) == ("capture", ())
    assert [frame.name for frame in scene.frames] == ["0", "1"]
    assert scene.points.equal(synthetic_scene.points)
    torch.testing.assert_close(scene.colors, synthetic_scene.colors, rtol=0, atol=0.5 / 255)


def test_frames_are_in_the_order_of_their_numbers(synthetic_scene: Scene, tmp_path: Path):
    capture = write_folder(replace(synthetic_scene, frames=synthetic_scene.frames * 6), tmp_path / "capture")
    assert [frame.name for frame in Folder(capture)[0].frames] == [str(index) for index in range(12)]


def test_without_a_cloud_it_is_built_from_depth(capture: Path, synthetic_scene: Scene):
    (capture / "points.ply").unlink()
    scene = Folder(capture)[0]
    wall, picture = (scene.points[:, 1] - 2).abs() < 1e-3, (scene.points[:, 1] - 1).abs() < 1e-3
    assert (wall | picture).all()
    assert wall.any()
    assert picture.any()


def test_larger_colours_are_brought_to_the_depths_camera(capture: Path, synthetic_scene: Scene):
    for path in (capture / "color").iterdir():
        with Image.open(path) as image:
            image.resize((128, 96), Image.Resampling.NEAREST).save(path)
    # Pixel x of the small image is pixels 2 x and 2 x + 1 of the large one: its centre is at 2 x + 0.5.
    lens = np.array([[80, 0, 2 * 31.5 + 0.5], [0, 80, 2 * 23.5 + 0.5], [0, 0, 1]])
    np.savetxt(capture / "intrinsic" / "intrinsic_color.txt", lens)
    scene = Folder(capture)[0]
    for frame, expected in zip(scene.frames, synthetic_scene.frames * 2, strict=True):
        assert frame.camera.focal.tolist() == [40, 40]
        torch.testing.assert_close(frame.read_image(), expected.read_image(), rtol=0, atol=0.6 / 255)
        assert frame.read_depth().equal(expected.read_depth())


@pytest.mark.parametrize("kept", ["intrinsic/intrinsic_color.txt", "intrinsic/intrinsic_depth.txt", "intrinsics.txt"])
def test_one_matrix_is_enough(kept: str, capture: Path, synthetic_scene: Scene):
    matrix = np.eye(4)
    matrix[:3, :3] = np.loadtxt(capture / "intrinsic" / "intrinsic_color.txt")
    for kind in ("color", "depth"):
        (capture / "intrinsic" / f"intrinsic_{kind}.txt").unlink()
    np.savetxt(capture / kept, matrix)
    same_views(Folder(capture)[0], replace(synthetic_scene, frames=synthetic_scene.frames * 2), depth_unit=0.001)


def remove(capture: Path, name: str) -> None:
    (capture / name).unlink()


def write(capture: Path, name: str, text: str) -> None:
    (capture / name).write_text(text)


def shrink(capture: Path, name: str) -> None:
    with Image.open(capture / name) as image:
        image.resize((32, 24), Image.Resampling.NEAREST).save(capture / name)


@pytest.mark.parametrize(
    ("harm", "name", "cause"),
    [
        (remove, "depth/1.png", "missing"),
        (remove, "pose/1.txt", "missing"),
        (partial(write, text="1 0 0 -inf\n0 1 0 -inf\n0 0 1 -inf\n0 0 0 1"), "pose/1.txt", "lost"),
        (partial(write, text="1 0 0 0\n0 2 0 0\n0 0 1 0\n0 0 0 1"), "pose/1.txt", "no rotation"),
        (partial(write, text="1 0 0 0\n0 1 0\n"), "pose/1.txt", "expected 4 x 4"),
        (partial(write, text="-"), "pose/1.txt", "no matrix"),
        (partial(write, text="GIF89a"), "color/1.png", "no readable image"),
        (shrink, "color/1.png", "32 x 24"),
        (shrink, "depth/1.png", "32 x 24"),
    ],
)
def test_a_bad_frame_is_left_out_and_named(harm: Callable[[Path, str], None], name: str, cause: str, capture: Path):
    harm(capture, name)
    scene = Folder(capture)[0]
    assert [frame.name for frame in scene.frames] == ["0", "2", "3"]
    (problem,) = map(str, scene.problems)
    assert problem.startswith("1 left out: ")
    assert Path(name).name in problem
    assert cause in problem


def test_depth_without_colour_is_named_in_one_line(capture: Path):
    (capture / "color" / "1.png").unlink()
    (capture / "color" / "3.png").unlink()
    scene = Folder(capture)[0]
    assert [frame.name for frame in scene.frames] == ["0", "2"]
    assert tuple(map(str, scene.problems)) == ("2 depth images have no colour image in color/: 1.png, 3.png",)


def test_missing_and_wrong_intrinsics_and_clouds_are_named(capture: Path, synthetic_scene: Scene):
    save_cloud(synthetic_scene, capture / "other.ply")
    (capture / "points.ply").rename(capture / "scan.ply")
    with pytest.raises(ValueError, match=r"2 files \*\.ply \(other\.ply, scan\.ply\); rename the right one"):
        Folder(capture)[0]
    (capture / "other.ply").unlink()
    assert Folder(capture)[0].points.equal(synthetic_scene.points)
    (capture / "scan.ply").write_bytes(b"ply\n")
    with pytest.raises(ValueError, match=r"scan\.ply is no readable PLY"):
        Folder(capture)[0]
    path = capture / "intrinsic" / "intrinsic_depth.txt"
    path.write_text("0 0 1\n0 0 1\n0 0 1\n")
    with pytest.raises(ValueError, match=r"intrinsic_depth\.txt holds no focal lengths"):
        Folder(capture)[0]
    for kind in ("color", "depth"):
        (capture / "intrinsic" / f"intrinsic_{kind}.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"No intrinsic/intrinsic_depth\.txt and no intrinsics\.txt in"):
        Folder(capture)[0]
    for path in (*(capture / "color").iterdir(), *(capture / "depth").iterdir()):
        path.unlink()
    (capture / "intrinsics.txt").write_text("9 0 1\n0 9 1\n0 0 1\n")
    with pytest.raises(ValueError, match=r"No usable frame in .*capture: no image can be read: there is none"):
        Folder(capture)[0]


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("pose/0.txt", 80),
        ("intrinsic/intrinsic_color.txt", 80),
        ("color/0.png", 40),
        ("depth/0.png", 40),
        ("points.ply", 80),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_cleanly(name: str, times: int, synthetic_scene: Scene, tmp_path: Path):
    capture = write_folder(synthetic_scene, tmp_path / "capture")
    damage(capture / name, lambda: read_all(capture), times=times)
    assert open_dataset(capture)[0].problems == ()
