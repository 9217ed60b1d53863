import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cuao3d.readers.scannetpp import ScanNetpp
from cuao3d.scene import Scene
from written import damage, read_all, same_views, write_scannetpp, write_video

POSES = "iphone/pose_intrinsic_imu.json"


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path) -> Path:
    return write_scannetpp(synthetic_scene, tmp_path / "0a5c013435")


def change(capture: Path, name: str, **changes: Any) -> None:
    about = json.loads((capture / POSES).read_text())
    about[name] |= changes
    (capture / POSES).write_text(json.dumps(about))


def test_a_written_capture_is_read_back(capture: Path, synthetic_scene: Scene):
    scene = ScanNetpp(capture)[0]
    same_views(scene, synthetic_scene, depth_unit=0.001)
    assert [frame.name for frame in scene.frames] == ["frame_000000", "frame_000010"]
    assert scene.problems == ()  # frame_000777 has a pose, but was not extracted
    assert scene.points.equal(synthetic_scene.points)


def test_colours_are_brought_to_the_smaller_depth(capture: Path, synthetic_scene: Scene):
    for path in (capture / "iphone" / "rgb").iterdir():
        with Image.open(path) as image:
            image.resize((256, 192), Image.Resampling.NEAREST).save(path)
    large = [[160, 0, 4 * 31.5 + 1.5], [0, 160, 4 * 23.5 + 1.5], [0, 0, 1]]
    for name in ("frame_000000", "frame_000010"):
        change(capture, name, intrinsic=large)
    (capture / "iphone" / "rgb").rename(capture / "iphone" / "frames")
    scene = ScanNetpp(capture)[0]
    for frame, expected in zip(scene.frames, synthetic_scene.frames, strict=True):
        assert frame.camera.focal.tolist() == [40, 40]
        torch.testing.assert_close(frame.camera.center, expected.camera.center)  # the centre of both images
        torch.testing.assert_close(frame.read_image(), expected.read_image(), rtol=0, atol=0.6 / 255)


def test_without_the_mesh_the_cloud_is_built_from_depth(capture: Path):
    (capture / "scans" / "mesh_aligned_0.05.ply").unlink()
    assert len(ScanNetpp(capture)[0].points) > 1000


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"aligned_pose": None}, "frame_000010, aligned_pose should be a list of 4 rows"),
        ({"aligned_pose": [[1, 0, 0, 0]] * 3}, "aligned_pose should be a list of 4 rows"),
        ({"aligned_pose": (np.eye(4) * math.nan).tolist()}, "the pose is lost"),
        ({"aligned_pose": (np.eye(4) * 2).tolist()}, "no rotation"),
        ({"intrinsic": {}}, "intrinsic should be a list of 3 rows"),
        ({"intrinsic": np.zeros((3, 3)).tolist()}, "frame_000010, intrinsic holds no focal lengths"),
    ],
)
def test_a_frame_with_a_wrong_entry_is_left_out_and_named(changes: dict[str, Any], cause: str, capture: Path):
    change(capture, "frame_000010", **changes)
    scene = ScanNetpp(capture)[0]
    assert [frame.name for frame in scene.frames] == ["frame_000000"]
    (problem,) = map(str, scene.problems)
    assert problem.startswith("frame_000010 left out: ")
    assert cause in problem


def test_frames_without_a_file_or_an_entry_are_named(capture: Path):
    images = capture / "iphone"
    (images / "depth" / "frame_000010.png").rename(images / "depth" / "frame_000020.png")
    (images / "rgb" / "frame_000000.png").rename(images / "rgb" / "frame_000030.png")
    with pytest.raises(ValueError, match="No usable frame") as caught:
        ScanNetpp(capture)[0]
    gone = "frame_000010.png, frame_000030.png"
    assert f"2 colour images have no depth image, and are not used: {gone}" in str(caught.value)
    assert "2 depth images have no colour image: frame_000000.png, frame_000020.png" in str(caught.value)


def test_a_subset_of_the_depth_images_is_no_loss_of_frames(capture: Path):
    (capture / "iphone" / "depth" / "frame_000010.png").unlink()
    scene = ScanNetpp(capture)[0]
    assert [frame.name for frame in scene.frames] == ["frame_000000"]
    assert [problem.kind for problem in scene.problems] == ["file"]


def test_a_frame_without_an_entry_is_named(capture: Path):
    for kind in ("rgb", "depth"):
        (capture / "iphone" / kind / "frame_000010.png").rename(capture / "iphone" / kind / "frame_000030.png")
    (problem,) = ScanNetpp(capture)[0].problems
    assert "has no entry frame_000030" in problem.text


def test_videos_that_were_not_extracted_are_named(capture: Path):
    (capture / "iphone" / "depth").rename(capture / "iphone" / "other")
    with pytest.raises(FileNotFoundError, match=r"no folder .*iphone/depth.*toolbox extracts their images"):
        ScanNetpp(capture)[0]


@pytest.mark.parametrize("name", [POSES, "scans/mesh_aligned_0.05.ply"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_cleanly(name: str, capture: Path):
    assert damage(capture / name, lambda: read_all(capture), times=150) > 0.2
    assert ScanNetpp(capture)[0].problems == ()


def test_colours_come_out_of_the_video_by_their_number(capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    shutil.rmtree(capture / "iphone" / "rgb")
    write_video(capture / "iphone" / "rgb.mkv", [10 * number for number in range(12)])
    scene = ScanNetpp(capture)[0]
    assert ([frame.name for frame in scene.frames], scene.problems) == (["frame_000000", "frame_000010"], ())
    grays = [frame.read_image().mean().item() * 255 for frame in scene.frames]
    np.testing.assert_allclose(grays, [0, 100], atol=4)
    assert len(list((tmp_path / "cache").rglob("*.jpg"))) == 2
    (capture / "iphone" / "depth" / "frame_000010.png").rename(capture / "iphone" / "depth" / "frame_000020.png")
    assert "1 depth images have no colour image: frame_000020.png" in map(str, ScanNetpp(capture)[0].problems)
