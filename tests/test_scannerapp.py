import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cuao3d.readers.scannerapp import ScannerApp
from cuao3d.scene import Scene
from written import damage, read_all, same_views, write_scannerapp


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path) -> Path:
    return write_scannerapp(synthetic_scene, tmp_path / "capture")


def edit(capture: Path, **changes: Any) -> None:
    path = capture / "frame_00001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_written_capture_is_read_back(capture: Path, synthetic_scene: Scene):
    scene = ScannerApp(capture)[0]
    same_views(scene, synthetic_scene, depth_unit=0.001)
    assert scene.problems == ()


def test_numbers_stand_row_by_row_and_the_camera_looks_along_its_minus_z(capture: Path):
    edit(
        capture,
        cameraPoseARFrame=[1, 0, 0, 5, 0, 1, 0, 6, 0, 0, 1, 7, 0, 0, 0, 1],
        intrinsics=[50, 0, 30, 0, 51, 20, 0, 0, 1],
    )
    camera = ScannerApp(capture)[0].frames[1].camera
    forward = camera.world_from_camera @ torch.tensor([0, 0, 1, 1]).double()
    assert forward.tolist() == [5, 6, 6, 1]
    assert (camera.focal.tolist(), camera.center.tolist()) == ([50, 51], [30, 20])


def test_depth_of_low_confidence_is_left_out(capture: Path):
    confidence = np.full((48, 64), 1, np.uint8)
    confidence[20, 30] = 0
    Image.fromarray(confidence).save(capture / "conf_00000.png")
    depth = ScannerApp(capture)[0].frames[0].read_depth()
    assert depth[20, 30] == 0
    assert depth[20, 31] > 0


def test_frames_without_a_photograph_are_told_in_one_line(capture: Path):
    (capture / "frame_00001.png").unlink()
    (problem,) = ScannerApp(capture)[0].problems
    assert problem.text == "1 frames have no photograph and are not used: frame_00001.json"


def test_other_files_of_such_names_are_not_this_layout(tmp_path: Path):
    (tmp_path / "frame_00000.json").write_text('{"shapes": []}')
    assert not ScannerApp.recognises(tmp_path)


@pytest.mark.parametrize(
    ("changes", "kind", "cause"),
    [
        ({"cameraPoseARFrame": [float("nan")] * 16}, "pose", "the pose is lost"),
        ({"cameraPoseARFrame": [1.0] * 12}, "pose", "frame_00001.json, cameraPoseARFrame is [1.0, 1.0"),
        ({"intrinsics": None}, "frame", "frame_00001.json, intrinsics is None; expected a list of 9 numbers"),
        ({"intrinsics": [0] * 9}, "frame", "frame_00001.json, intrinsics holds no focal lengths"),
    ],
)
def test_a_bad_frame_is_left_out_and_named(changes: dict[str, Any], kind: str, cause: str, capture: Path):
    edit(capture, **changes)
    (problem,) = ScannerApp(capture)[0].problems
    assert (problem.kind, cause in problem.text) == (kind, True)


def test_missing_files_are_named(capture: Path):
    (capture / "frame_00001.json").unlink()
    (problem,) = ScannerApp(capture)[0].problems
    assert "00001 left out: frame_00001.json is missing" in problem.text
    for path in capture.glob("depth_*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r'There is no depth_00000\.png or the like.*export "All Data"'):
        ScannerApp(capture)[0]


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_cleanly(capture: Path):
    damage(capture / "frame_00000.json", lambda: read_all(capture), times=60)
    assert ScannerApp(capture)[0].problems == ()
