import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cuao3d.readers.polycam import Polycam
from cuao3d.scene import Scene
from written import damage, read_all, same_views, save_triangle, write_polycam


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path) -> Path:
    return write_polycam(synthetic_scene, tmp_path / "capture")


def edit(capture: Path, change: Callable[[dict[str, Any]], object], index: int = 1) -> None:
    path = sorted((capture / "keyframes" / "cameras").iterdir())[index]
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


def test_a_written_capture_is_read_back(capture: Path, synthetic_scene: Scene):
    scene = Polycam(capture)[0]
    same_views(scene, synthetic_scene, depth_unit=0.001)
    assert scene.problems == ()
    assert ((scene.points[:, 1:2] - torch.tensor([1.0, 2.0])).abs() < 1e-3).any(1).all()


def test_a_pose_is_that_of_a_camera_that_looks_along_its_minus_z(capture: Path):
    rows = [[1, 0, 0, 5], [0, 1, 0, 6], [0, 0, 1, 7]]
    edit(capture, lambda about: about.update({f"t_{i}{j}": rows[i][j] for i in range(3) for j in range(4)}))
    forward = Polycam(capture)[0].frames[1].camera.world_from_camera @ torch.tensor([0, 0, 1.0, 1]).double()
    assert forward.tolist() == [5, 6, 6, 1]


def test_the_principal_point_counts_from_the_corner_and_sizes_may_be_missing(capture: Path):
    def change(about: dict[str, Any]) -> None:
        about.update(cx=32.0, cy=24.0)
        del about["width"], about["height"]

    edit(capture, change, 0)
    edit(capture, change, 1)
    scene = Polycam(capture)[0]
    assert scene.problems == ()
    assert scene.frames[0].camera.center.tolist() == [31.5, 23.5]


def test_corrected_cameras_count_where_the_app_made_them(capture: Path):
    keyframes = capture / "keyframes"
    for kind in ("images", "cameras"):
        (keyframes / f"corrected_{kind}").mkdir()
        for path in (keyframes / kind).iterdir():
            (keyframes / f"corrected_{kind}" / path.name).write_bytes(path.read_bytes())
    for path in (keyframes / "corrected_cameras").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"t_03": 9.0}))
    assert [frame.camera.world_from_camera[0, 3] for frame in Polycam(capture)[0].frames] == [9, 9]


def test_depth_of_low_confidence_is_left_out(capture: Path):
    path = sorted((capture / "keyframes" / "confidence").iterdir())[0]
    confidence = np.full((48, 64), 54, np.uint8)
    confidence[20, 30] = 0
    Image.fromarray(confidence).save(path)
    depth = Polycam(capture)[0].frames[0].read_depth()
    assert depth[20, 30] == 0
    assert depth[20, 31] > 0


def test_without_depth_the_line_says_what_can_still_be_done_and_a_mesh_does_it(capture: Path):
    for path in (capture / "keyframes" / "depth").iterdir():
        path.unlink()
    with pytest.raises(
        ValueError, match=r"has no depth/: Polycam .*still be done: put the mesh.*mesh\.ply.*scan again"
    ):
        Polycam(capture)[0]
    save_triangle(capture / "room.ply")
    frame = Polycam(capture)[0].frames[0]
    torch.testing.assert_close(frame.read_depth(), torch.full((48, 64), 2.0))


@pytest.mark.parametrize(
    ("change", "kind", "cause"),
    [
        (lambda about: about.update(t_03=float("nan")), "pose", "the pose is lost"),
        (lambda about: about.pop("t_12"), "pose", "the pose t_00 to t_23 should be a list of 3 rows of 4 numbers"),
        (lambda about: about.update(t_00=5.0), "pose", "the pose is no rotation"),
        (lambda about: about.update(fx=0.0), "frame", "the focal lengths are 0 and 40"),
        (lambda about: about.pop("cy"), "frame", "cy is None; expected a number"),
        (lambda about: about.update(width=128), "frame", "the intrinsics are for 128 x 48"),
    ],
)
def test_a_bad_camera_leaves_its_frame_out_and_is_named(change: Any, kind: str, cause: str, capture: Path):
    edit(capture, change)
    scene = Polycam(capture)[0]
    assert len(scene.frames) == 1
    (problem,) = scene.problems
    assert problem.kind == kind
    assert "72513413191" in problem.text
    assert cause in problem.text


def test_missing_files_are_named(capture: Path):
    keyframes = capture / "keyframes"
    (keyframes / "depth" / "72513413100.png").unlink()
    (keyframes / "cameras" / "1.json").write_text("{}")
    scene = Polycam(capture)[0]
    assert [str(problem) for problem in scene.problems] == [
        "1 files of cameras/ have no photograph: 1.json",
        "72513413100 left out: depth/72513413100.png is missing; restore it, or remove the frame's other files.",
    ]
    for path in (keyframes / "images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no photograph in .*images; export"):
        Polycam(capture)[0]


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_cleanly(capture: Path):
    path = sorted((capture / "keyframes" / "cameras").iterdir())[0]
    damage(path, lambda: read_all(capture), times=60)
    assert Polycam(capture)[0].problems == ()
