import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from conftest import camera_at
from cuao3d.check import check
from cuao3d.check.consistency import land
from cuao3d.check.page import write_page
from cuao3d.check.pictures import draw
from cuao3d.check.registration import agreement_by_offset, find_offset
from cuao3d.errors import InputError
from cuao3d.geometry import back_project
from cuao3d.gravity import find_up
from cuao3d.scene import OPENGL, Camera, Frame, Problem, ProblemKind, Scene
from cuao3d.worlds.rooms import KINDS, make_room
from planted import (
    MISTAKES,
    OFFSETS,
    with_cameras,
    with_depth,
    with_intrinsics_of_another_size,
    with_moved_colours,
    with_poses,
    with_shuffled_poses,
)

LOST = Problem("frame", "lost")


@cache
def made(seed: int) -> Scene:
    """A made room, rendered once."""
    return make_room(seed, num_views=6)


@pytest.fixture(scope="module")
def room() -> Scene:
    return made(0)


@pytest.fixture(scope="module", params=["bedroom", pytest.param("lounge", marks=pytest.mark.data)])
def scene(request: pytest.FixtureRequest) -> Scene:
    """Rooms that were made, and a real one."""
    if request.param == "lounge":
        return request.getfixturevalue("lounge")
    return made(KINDS.index(request.param))


def depth_errors(first: Camera, first_depth: Tensor, second: Camera, second_depth: Tensor) -> Tensor:
    """Depth of the first view's pixels in the second, less what was measured there, metres."""
    points, _ = back_project(first_depth, first)
    landed, measured = land(points, second, second_depth)
    return landed.depth - measured


@pytest.mark.data
def test_depth_of_the_lounge_agrees_between_views_as_measured_before(lounge: Scene):
    # Frames 0, 2 and 116: 19 and 86 mm; with inverted poses 35 and 1007 mm.
    def median_mm(scene: Scene, second: int) -> float:
        views = [(frame.camera, frame.read_depth()) for frame in scene.frames if int(frame.name[6:]) in (0, second)]
        return 1000 * depth_errors(*views[0], *views[1]).abs().median().item()

    assert median_mm(lounge, 2) == pytest.approx(19.3, abs=0.1)
    assert median_mm(lounge, 116) == pytest.approx(85.6, abs=0.1)
    inverted = with_poses(lounge, torch.linalg.inv)
    assert median_mm(inverted, 2) == pytest.approx(35.4, abs=0.1)
    assert median_mm(inverted, 116) == pytest.approx(1007.2, abs=0.1)


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


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "mistake",
    [
        "fx and fy swapped",
        "30 % of the poses NaN",
        "squeezed, but right",
        *(
            pytest.param(mistake, marks=pytest.mark.slow)
            for mistake in (
                "intrinsics of another size",
                "inverted, depth x 10",
                "poses shuffled",
                "colours moved by 8 pixels",
                "world upside down",
            )
        ),
    ],
)
def test_planted_mistakes_have_one_cause(mistake: str, seed: int):
    cause, plant = MISTAKES[mistake]
    report = check(plant(made(seed), seed))
    assert report.causes == (() if cause is None else (cause,)), report.reasons
    assert report.exit_code == (cause is not None)


@pytest.mark.slow
@pytest.mark.data
def test_a_single_pair_of_views_names_no_mistake(lounge: Scene):
    # Walls of two views come to lie on each other under some wrong reading by chance: 3 in 180 made pairs did.
    inverted = with_poses(lounge, torch.linalg.inv)
    assert check(inverted).causes == ("inverse poses",)
    pair = tuple(frame for frame in inverted.frames if frame.name in ("frame-000000", "frame-000116"))
    report = check(replace(inverted, frames=pair))
    readings = report.measurements["readings"]
    assert readings["inverse poses"]["agreeing"] > 1.2 * readings["as given"]["agreeing"]
    assert report.measurements["likeliest"] == "as given"
    assert "inverse poses" not in report.causes


def test_views_of_which_not_one_pixel_agrees_contradict_each_other(synthetic_scene: Scene):
    first, second = synthetic_scene.frames
    other = replace(second, read_depth=lambda: second.read_depth() * 4)
    report = check(replace(synthetic_scene, frames=(first, other)))
    assert report.measurements["readings"]["as given"]["agreeing"] == 0
    assert (report.verdict, report.exit_code) == ("doubtful", 1)
    assert report.causes == ("views contradict each other",)


@pytest.mark.slow
def test_shuffled_poses_contradict_each_other(room: Scene):
    report = check(with_shuffled_poses(room, 0))
    assert "Views contradict each other" in report.reasons[0]
    assert "6 of 6 views meet the cloud under the pose of another frame" in report.reasons[0]


@pytest.mark.parametrize(("seed", "where"), [(0, "to the right"), (1, "to the left"), (2, "down"), (3, "up")])
def test_colours_off_depth_are_said_with_size_and_direction(room: Scene, seed: int, where: str):
    report = check(with_moved_colours(room, seed))
    offset = report.measurements["registration"]
    assert (offset["x"], offset["y"]) == OFFSETS[seed]
    assert f"Colours lie 8 pixels {where} of depth" in report.reasons[0]


def test_an_offset_is_found_by_hand():
    # A box at 1 m before a wall at 2 m; in the photograph it lies 5 pixels further right and 3 further up.
    depth, gray = torch.full((60, 80), 2.0), torch.zeros(60, 80)
    depth[20:40, 30:50], gray[17:37, 35:55] = 1.0, 1.0
    agreement = agreement_by_offset(gray, depth)
    offset = find_offset(agreement[None], thinned_by=2, width=160)
    assert offset == (10, -6, True, True)
    blank = agreement_by_offset(torch.zeros(60, 80), depth)
    assert not find_offset(blank[None], thinned_by=2, width=160).certain


def test_the_size_that_intrinsics_were_made_for_is_said_with_the_right_matrix(room: Scene):
    # Twice as large: focal lengths of 577.87, and the middle of 640 x 480 at (319.5, 239.5).
    report = check(with_intrinsics_of_another_size(room, 0))
    assert "made for images of 640 x 480, these are 320 x 240" in report.reasons[0]
    assert "288.94 0 159.50 / 0 288.94 119.50 / 0 0 1" in report.reasons[0]


def test_a_photographer_on_the_head_is_no_world_upside_down(room: Scene):
    # The camera is turned about its optical axis and the pictures with it: floors still face +z.
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    frames = [
        replace(
            frame,
            camera=replace(frame.camera, world_from_camera=frame.camera.world_from_camera @ turn),
            read_image=lambda frame=frame: frame.read_image().flip(1, 2),
            read_depth=lambda frame=frame: frame.read_depth().flip(0, 1),
        )
        for frame in room.frames
    ]
    report = check(replace(room, frames=tuple(frames)))
    assert report.verdict == "ok"
    assert report.measurements["up"]["axis"] == "-z"
    assert report.measurements["up"]["facing"] < 0.4
    assert "if cameras were held upright" in report.reasons[-1]


def test_odd_photographs_are_remarked_but_never_wrong(room: Scene):
    blurred, dark, *others = room.frames
    box = torch.full((3, 1, 9, 9), 1 / 81)
    blurred = replace(
        blurred,
        read_image=lambda frame=blurred: functional.conv2d(frame.read_image(), box, padding="same", groups=3),
    )
    dark = replace(dark, read_image=lambda frame=dark: frame.read_image() * 0.1)
    report = check(replace(room, frames=(blurred, dark, *others)))
    assert report.verdict == "ok"
    assert report.measurements["photos"]["blurred"] == ["000000"]
    assert report.measurements["photos"]["dark"] == ["000001"]
    assert not check(room).measurements["photos"]["blurred"]


def test_poses_in_millimetres_are_not_called_depth_in_another_unit(room: Scene):
    def in_millimetres(pose: Tensor) -> Tensor:
        pose = pose.clone()
        pose[:3, 3] *= 1000
        return pose

    report = check(with_poses(room, in_millimetres))
    assert report.causes[0] == "poses in another unit"
    assert "multiply them by 0.001" in report.reasons[0]


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
    scene = replace(synthetic_scene, frames=synthetic_scene.frames * 8, problems=(LOST,) * 3)
    report = check(scene)
    assert report.verdict == "ok"
    assert report.reasons[:3] == ("lost",) * 3
    assert report.measurements["num_left_out"] == 3
    assert check(replace(scene, problems=(LOST,) * 4)).reasons[0].startswith("4 frames, 20% of the capture")


@pytest.mark.parametrize(
    ("kinds", "cause"),
    [
        (("frame", "frame", "pose", "pose", "pose"), "lost poses"),
        (("frame", "frame", "frame", "pose", "pose"), "lost frames"),
    ],
)
def test_lost_frames_are_told_from_lost_poses_by_the_kind_of_their_problems(synthetic_scene: Scene, kinds, cause):
    problems = tuple(Problem(kind, "frame-pose-7 left out") for kind in kinds)
    assert check(replace(synthetic_scene, problems=problems)).causes == (cause,)


def test_problems_that_cost_no_frame_do_not_count_as_lost_frames(synthetic_scene: Scene):
    kinds: tuple[ProblemKind, ...] = ("file", "cloud", "labels", "features", "other")
    report = check(replace(synthetic_scene, problems=tuple(Problem(kind, "a pose is lost") for kind in kinds)))
    assert (report.verdict, report.causes) == ("ok", ())
    assert report.reasons[: len(kinds)] == ("a pose is lost",) * len(kinds)


def test_a_frame_that_cannot_be_read_is_left_out_and_named(synthetic_scene: Scene):
    def damaged() -> Tensor:
        raise InputError("frame-7.depth.png is damaged")

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


def test_an_upright_scene_is_not_said_to_lie_on_its_side(synthetic_scene: Scene):
    assert not any("Up" in reason for reason in check(synthetic_scene).reasons)


@pytest.mark.data
def test_a_scene_on_its_side_is_mentioned(lounge: Scene):
    assert any("Up looks like +y" in reason for reason in check(lounge).reasons)


def test_coverage_counts_cells_and_views(synthetic_scene: Scene):
    # 21 x 21 points of the wall, 0.1 m apart, one a cell; 12 x 12 of the picture, 0.04 m apart.
    one = check(replace(synthetic_scene, frames=synthetic_scene.frames[:1])).measurements["coverage"]
    two = check(synthetic_scene).measurements["coverage"]
    assert one["views_per_cell"] == 1
    assert 0.5 < one["seen"] < two["seen"] < 1
    assert 1 < two["views_per_cell"] < 2


def test_coverage_goes_by_the_tolerance_of_the_scene(synthetic_scene: Scene):
    behind = synthetic_scene.points * torch.tensor([1.0, 1.1, 1.0])  # a tenth of the depth
    for tolerance, is_seen in ((0.25, True), (0.05, False)):
        scene = replace(synthetic_scene, points=behind, colors=None, labels=None, occlusion_tolerance=tolerance)
        assert (check(scene).measurements["coverage"]["seen"] > 0) == is_seen


def test_a_report_is_json_and_the_same_every_time(room: Scene):
    report = check(room)
    assert json.dumps(asdict(report), allow_nan=False) == json.dumps(asdict(check(room)))
    assert report.measurements["depth"]["near"] < report.measurements["depth"]["median"] < 5
    assert report.measurements["overlap"]["groups"] >= 1


@pytest.mark.slow
def test_a_picture_is_drawn(room: Scene, tmp_path: Path):
    scene = with_poses(room, torch.linalg.inv)
    odd = r"$\frac$ <b onload='x'>[/b]" + "\x1b[31m\udcff"  # neither formulas nor markup, though they look like it
    frames = tuple(replace(frame, name=f'{index}{odd}"') for index, frame in enumerate(scene.frames))
    scene = replace(scene, name=odd, frames=frames)
    draw(scene, report := check(scene), tmp_path / "check.png")
    write_page(scene, report, tmp_path / "check.html")
    page = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert "&lt;b onload" in page
    assert "<b onload" not in page
    with Image.open(tmp_path / "check.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300


def test_up_is_told_though_all_cameras_look_down():
    # Pitched by 55 degrees their mean up vector lies nearer to where they look than to up; their rows stay level.
    cameras = []
    for yaw in (-30.0, 0.0, 30.0):
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = torch.from_numpy(Rotation.from_euler("ZX", [yaw, -90 - 55], degrees=True).as_matrix())
        cameras.append(replace(camera_at(0.0), world_from_camera=pose))
    up = find_up(cameras, [torch.zeros(48, 64)] * 3)
    assert up["mean"][1] > up["mean"][2] > 0
    assert (up["axis"], up["facing"], up["certain"]) == ("z", None, False)
