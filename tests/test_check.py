import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import camera_at
from cuao3d.check import check, depth_errors, draw
from cuao3d.readers import open_dataset
from cuao3d.readers.rooms import KINDS, make_room
from cuao3d.scene import Camera, Frame, Scene

LOUNGE = Path(__file__).parent / "fixtures" / "lounge"
OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


@pytest.fixture(scope="module")
def lounge() -> Scene:
    return open_dataset(LOUNGE)[0]


@pytest.fixture(scope="module")
def room() -> Scene:
    return make_room(0, num_views=8)


@pytest.fixture(scope="module", params=["bedroom", "living room", "kitchen", "lounge"])
def scene(request: pytest.FixtureRequest) -> Scene:
    """Rooms that were made, and a real one."""
    if request.param == "lounge":
        return open_dataset(LOUNGE)[0]
    return make_room(KINDS.index(request.param), num_views=8)


def with_cameras(scene: Scene, change: Callable[[Camera], Camera]) -> Scene:
    return replace(scene, frames=tuple(replace(frame, camera=change(frame.camera)) for frame in scene.frames))


def with_poses(scene: Scene, change: Callable[[Tensor], Tensor]) -> Scene:
    return with_cameras(
        scene, lambda camera: replace(camera, world_from_camera=change(camera.world_from_camera).clone())
    )


def with_depth(scene: Scene, scale: float) -> Scene:
    frames = [replace(frame, read_depth=lambda frame=frame: frame.read_depth() * scale) for frame in scene.frames]
    return replace(scene, frames=tuple(frames))


def test_depth_of_the_lounge_agrees_between_views_as_measured_before(lounge: Scene):
    # Frames 0, 2 and 116: 19 and 86 mm; with inverted poses 35 and 1007 mm.
    def median_mm(scene: Scene, second: int) -> float:
        views = [(frame.camera, frame.read_depth()) for frame in (scene.frames[0], scene.frames[second])]
        return 1000 * depth_errors(*views[0], *views[1]).abs().median().item()

    assert median_mm(lounge, 1) == pytest.approx(19.3, abs=0.1)
    assert median_mm(lounge, 2) == pytest.approx(85.6, abs=0.1)
    inverted = with_poses(lounge, torch.linalg.inv)
    assert median_mm(inverted, 1) == pytest.approx(35.4, abs=0.1)
    assert median_mm(inverted, 2) == pytest.approx(1007.2, abs=0.1)


def test_depth_errors_by_hand():
    # Both cameras look along +y. The second stands 0.5 m behind the first and expects its wall at 2.5 m, but measured
    # 2.6 m, on its left half only. A pixel u of the first moves to 31.5 + (u - 31.5) * 2 / 2.5.
    near, far = camera_at(0.0), camera_at(0.0)
    far.world_from_camera[1, 3] = -0.5
    measured = torch.full((48, 64), 2.6)
    measured[:, 32:] = 0
    errors = depth_errors(near, torch.full((48, 64), 2.0), far, measured)
    assert len(errors) == 48 * 32
    torch.testing.assert_close(errors, torch.full_like(errors, -0.1), atol=1e-6, rtol=0)


def test_a_clean_capture_is_ok(scene: Scene):
    report = check(scene)
    assert (report.verdict, report.exit_code) == ("ok", 0), report.reasons
    assert report.measurements["likeliest"] == "as given"


@pytest.mark.parametrize(
    ("plant", "likeliest"),
    [
        (lambda scene: with_poses(scene, torch.linalg.inv), "inverse poses"),
        (lambda scene: with_poses(scene, lambda pose: pose @ OPENGL), "OpenGL axes"),
        (
            lambda scene: with_poses(scene, lambda pose: OPENGL @ torch.linalg.inv(pose)),
            "inverse poses with OpenGL axes",
        ),
        (lambda scene: with_depth(scene, 10), "depth x 0.1"),
        (lambda scene: with_depth(scene, 0.25), "depth x 4"),
    ],
)
def test_planted_mistakes_are_named(scene: Scene, plant: Callable[[Scene], Scene], likeliest: str):
    report = check(plant(scene))
    assert (report.verdict, report.exit_code) == ("probably wrong", 1)
    assert report.measurements["likeliest"] == likeliest


def test_shuffled_poses_contradict_each_other(room: Scene):
    cameras = [frame.camera for frame in room.frames]
    frames = [
        replace(frame, camera=camera) for frame, camera in zip(room.frames, cameras[3:] + cameras[:3], strict=True)
    ]
    report = check(replace(room, frames=tuple(frames)))
    assert report.verdict == "probably wrong"
    assert "Views contradict each other" in report.reasons[0]


def test_intrinsics_of_another_image_size_are_named(synthetic_scene: Scene):
    report = check(with_cameras(synthetic_scene, lambda camera: replace(camera, center=camera.center * 2)))
    assert report.verdict == "probably wrong"
    assert "98 % of the width, 98 % of the height" in report.reasons[0]
    report = check(with_cameras(synthetic_scene, lambda camera: replace(camera, focal=camera.focal * 6)))
    assert "The camera opens by 15 x 11 degrees" in report.reasons[0]


def test_a_cloud_in_another_world_is_named(synthetic_scene: Scene):
    report = check(replace(synthetic_scene, points=synthetic_scene.points + 50))
    assert report.verdict == "probably wrong"
    assert "Views see 0.0% of the cloud" in report.reasons[0]


def test_depth_in_a_wrong_unit_is_named_where_no_view_can_tell(synthetic_scene: Scene):
    alone = replace(synthetic_scene, frames=synthetic_scene.frames[:1])
    assert "could not be tested" in check(alone).reasons[0]
    assert check(alone).verdict == "ok"
    report = check(with_depth(alone, 1000))
    assert report.verdict == "probably wrong"
    assert "median depth" in report.reasons[0]


def test_lost_frames_count_from_a_fifth_of_the_capture(synthetic_scene: Scene):
    scene = replace(synthetic_scene, frames=synthetic_scene.frames * 8, problems=("lost",) * 3)
    report = check(scene)
    assert report.verdict == "ok"
    assert report.reasons[:3] == ("lost",) * 3
    assert report.measurements["num_left_out"] == 3
    assert check(replace(scene, problems=("lost",) * 4)).reasons[0].startswith("4 frames, 20% of the capture")


def test_a_frame_that_cannot_be_read_is_left_out_and_named(synthetic_scene: Scene):
    def damaged() -> Tensor:
        raise ValueError("frame-7.depth.png is damaged")

    good, camera = synthetic_scene.frames[0], camera_at(0.0)
    broken = Frame("broken", camera, good.read_image, damaged)
    small = replace(good, name="small", read_depth=lambda: torch.ones(24, 32))
    lost = replace(good, name="lost", camera=replace(camera, world_from_camera=torch.full((4, 4), math.nan).double()))
    report = check(replace(synthetic_scene, frames=(*synthetic_scene.frames * 7, broken, small, lost)))
    assert report.verdict == "ok"
    assert report.reasons[:3] == (
        "broken left out: frame-7.depth.png is damaged",
        "small left out: its depth is 32 x 24, its camera 64 x 48.",
        "lost left out: the pose is lost (it holds NaN or infinity).",
    )
    report = check(replace(synthetic_scene, frames=(broken,)))
    assert (report.verdict, report.exit_code) == ("unreadable", 2)


def test_a_scene_on_its_side_is_mentioned(synthetic_scene: Scene, lounge: Scene):
    assert not any("Up" in reason for reason in check(synthetic_scene).reasons)
    assert any("Up looks like +y" in reason for reason in check(lounge).reasons)


def test_coverage_counts_cells_and_views(synthetic_scene: Scene):
    # 21 x 21 points of the wall, 0.1 m apart, one a cell; 12 x 12 of the picture, 0.04 m apart.
    one = check(replace(synthetic_scene, frames=synthetic_scene.frames[:1])).measurements["coverage"]
    two = check(synthetic_scene).measurements["coverage"]
    assert one["views_per_cell"] == 1
    assert 0.5 < one["seen"] < two["seen"] < 1
    assert 1 < two["views_per_cell"] < 2


def test_a_report_is_json_and_the_same_every_time(room: Scene):
    report = check(room)
    assert json.dumps(asdict(report), allow_nan=False) == json.dumps(asdict(check(room)))
    assert report.measurements["depth"]["near"] < report.measurements["depth"]["median"] < 5
    assert report.measurements["overlap"]["groups"] >= 1


def test_a_picture_is_drawn(lounge: Scene, tmp_path: Path):
    scene = with_poses(lounge, torch.linalg.inv)
    draw(scene, check(scene), tmp_path / "check.png")
    with Image.open(tmp_path / "check.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
