import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cuao3d.formats.images import read_depth
from cuao3d.readers.record3d import Record3D
from cuao3d.scene import Scene
from written import damage, read_all, same_views, write_record3d


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path) -> Path:
    return write_record3d(synthetic_scene, tmp_path / "capture")


def edit(capture: Path, **changes: Any) -> None:
    path = capture / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_written_capture_is_read_back(capture: Path, synthetic_scene: Scene):
    scene = Record3D(capture)[0]
    same_views(scene, synthetic_scene, depth_unit=0.001)
    assert scene.problems == ()


def test_depth_in_exr_is_metres(capture: Path, synthetic_scene: Scene):
    OpenEXR = pytest.importorskip("OpenEXR")
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    for path in [*(capture / "depth").iterdir()]:
        OpenEXR.File(header, {"Y": read_depth(path).numpy()}).write(str(path.with_suffix(".exr")))
        path.unlink()
    same_views(Record3D(capture)[0], synthetic_scene, depth_unit=1e-6)


def test_a_pose_is_a_quaternion_with_w_last_of_a_camera_that_looks_along_its_minus_z(capture: Path):
    # A quarter turn about y, (0, sin 45, 0, cos 45), takes z to x: the camera at (1, 2, 3) looks along -x.
    half = 0.5**0.5
    edit(capture, poses=[[0, half, 0, half, 1, 2, 3]] * 2)
    pose = Record3D(capture)[0].frames[0].camera.world_from_camera
    torch.testing.assert_close(pose @ torch.tensor([0, 0, 1, 1.0]).double(), torch.tensor([0, 2, 3, 1.0]).double())


def test_intrinsics_stand_column_by_column_and_those_of_a_frame_count(capture: Path):
    edit(capture, K=[50, 0, 0, 0, 51, 0, 30, 20, 1])
    camera = Record3D(capture)[0].frames[0].camera
    assert (camera.focal.tolist(), camera.center.tolist()) == ([50, 51], [30, 20])
    edit(capture, perFrameIntrinsicCoeffs=[[60, 61, 31, 21]])
    cameras = [frame.camera for frame in Record3D(capture)[0].frames]
    assert [camera.focal.tolist() for camera in cameras] == [[60, 61], [50, 51]]


def test_depth_compressed_by_lzfse_is_refused_by_name_with_the_cure(capture: Path):
    (capture / "rgb").rename(capture / "rgbd")
    (capture / "metadata.json").rename(capture / "metadata")
    (capture / "rgbd" / "0.depth").write_bytes(b"bvx2")
    with pytest.raises(ValueError, match=r"rgbd holds depth .* by LZFSE .*not read\. Export .* as EXR \+ RGB"):
        Record3D(capture)[0]


@pytest.mark.parametrize(
    ("changes", "kind", "cause"),
    [
        ({"poses": [[0, 0, 0, 1, 0, 0, 0], [float("nan")] * 7]}, "pose", "metadata.json, pose 1: the pose is lost"),
        ({"poses": [[0, 0, 0, 1, 0, 0, 0], [1, 2]]}, "pose", "metadata.json, pose 1 is [1, 2]; expected 7 numbers"),
        ({"poses": [[0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 2, 0, 0, 0]]}, "pose", "its quaternion has length 2"),
        ({"poses": [[0, 0, 0, 1, 0, 0, 0]]}, "pose", "metadata.json has 1 poses, and none of this number"),
        ({"perFrameIntrinsicCoeffs": [[40, 40, 31.5, 23.5], [1]]}, "frame", "expected 4 numbers: fx fy cx cy"),
    ],
)
def test_a_bad_frame_is_left_out_and_named(changes: dict[str, Any], kind: str, cause: str, capture: Path):
    edit(capture, **changes)
    (problem,) = Record3D(capture)[0].problems
    assert (problem.kind, cause in problem.text) == (kind, True)


def test_what_goes_for_all_frames_is_named(capture: Path):
    edit(capture, K=[1, 2])
    with pytest.raises(ValueError, match=r"metadata\.json, K is \[1, 2\]; expected a list of 9 numbers"):
        Record3D(capture)[0]
    edit(capture, poses=None)
    with pytest.raises(ValueError, match=r"metadata\.json: poses is None; expected a list"):
        Record3D(capture)[0]
    for path in (capture / "depth").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no image in .*depth; export the recording as EXR \+ RGB"):
        Record3D(capture)[0]


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_cleanly(capture: Path):
    damage(capture / "metadata.json", lambda: read_all(capture), times=60)
    assert Record3D(capture)[0].problems == ()
