"""Mistakes beyond the usual ones, planted in a made room: each is named and cured, and none invented."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import camera_at
from cuao3d.check import check
from cuao3d.check.cloud import share_beside, views_of_cells
from cuao3d.check.consistency import Consistency, likeliest_reading
from cuao3d.check.frames import stray_frames
from cuao3d.check.layers import _middle, lay
from cuao3d.check.options import capture_options
from cuao3d.check.readings import (
    ALONG_RAYS,
    AS_GIVEN,
    POSE_READINGS,
    RARER_POSE_READINGS,
    Reading,
    reading_named,
    with_depth_scale,
    with_rays,
)
from cuao3d.check.registration import REACH
from cuao3d.check.scale import fit_scale
from cuao3d.check.units import are_positions_off, round_factor, unit_of_depth, unit_of_positions
from cuao3d.check.views import read_views
from cuao3d.cli import main
from cuao3d.errors import InputError
from cuao3d.readers.options import CaptureOptions
from cuao3d.scene import Scene
from cuao3d.worlds.rooms import make_room
from planted import (
    MISTAKES,
    PAIRS,
    lens_of_seed,
    with_both,
    with_depth,
    with_poses,
    with_positions,
    with_shuffled_photographs,
    with_two_lenses,
)


@cache
def made() -> Scene:
    """A made room, rendered once."""
    return make_room(1, num_views=8)


@pytest.fixture(scope="module")
def room() -> Scene:
    return made()


@pytest.mark.parametrize(
    "mistake",
    [
        "depth in 1/6553.5 m",
        "depth along rays",
        "photographs of the next frames",
        *(
            pytest.param(mistake, marks=pytest.mark.slow)
            for mistake in (
                "ROS axes, positions x 0.41",
                "positions without a unit",
                "ROS axes",
                "mirrored world",
                "quaternions w first",
                "transposed rotations",
                "photographs upside down",
                "photographs mirrored",
                "cloud in another frame",
            )
        ),
    ],
)
def test_mistakes_beyond_the_usual_ones_are_named(mistake: str, room: Scene):
    cause, plant = MISTAKES[mistake]
    report = check(plant(room, 1))
    assert report.causes == (cause,), report.reasons
    assert (report.verdict, report.exit_code) == ("probably wrong", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair", [pytest.param(pair, marks=[pytest.mark.slow] * (index % 4 > 0)) for index, pair in enumerate(PAIRS)]
)
def test_two_mistakes_at_once_are_both_named(pair: tuple[str, str], room: Scene):
    report = check(with_both(pair)(room, 1))
    assert report.causes == PAIRS[pair], report.reasons


def test_depth_along_rays_is_told_from_the_pixels_that_agree_closely_whatever_else_is_wrong():
    def found(agreeing: int, tight: int) -> Consistency:
        whole = torch.full((3, 3), agreeing).fill_diagonal_(0)
        return Consistency(whole, whole, torch.zeros_like(whole), torch.full((3, 3), tight).fill_diagonal_(0), 0.01)

    inverse = POSE_READINGS[0]
    both = with_rays(inverse)
    assert (both.name, both.options) == (
        "inverse poses, depth along rays",
        {"pose": "camera_from_world", "depth_along": "rays"},
    )
    measured: dict[Reading, Consistency] = {AS_GIVEN: found(100, 40), ALONG_RAYS: found(90, 60)}
    assert likeliest_reading(measured) is AS_GIVEN  # fewer agree
    measured[ALONG_RAYS] = found(101, 60)
    assert likeliest_reading(measured) == ALONG_RAYS
    measured |= {inverse: found(200, 100), both: found(400, 119)}
    assert likeliest_reading(measured) is inverse  # many more agree roughly, but not closely
    measured[both] = found(201, 121)
    assert likeliest_reading(measured) == both


def test_two_lenses_are_named_with_ratio_and_shift(room: Scene):
    ratio, baseline = lens_of_seed(7)
    assert (ratio, baseline) == (0.9, 0.02)
    report = check(with_two_lenses(room, 7))
    assert report.causes == ("colours of another lens",)
    assert report.options["color_focal"] == pytest.approx(ratio, rel=0.02)
    near, middle = 288.9 * baseline / report.measurements["depth"]["median"], report.options["color_shift"][0]
    assert middle == pytest.approx(near, abs=3)


def test_a_shift_lies_in_the_middle_of_its_peak_and_not_where_one_surface_fits_best():
    profile = torch.full((2 * REACH + 1,), 0.1)
    profile[REACH + torch.arange(3, 7)] = torch.tensor([1.0, 0.9, 0.8, 0.4])
    assert _middle(profile) == pytest.approx((0.5 * 3 + 0.4 * 4 + 0.3 * 5) / 1.2)
    assert _middle(profile.flip(0)) == pytest.approx(-_middle(profile))


def test_colours_that_fit_nowhere_are_doubtful_and_no_cause_is_invented(room: Scene):
    report = check(with_shuffled_photographs(make_eleven(room), 0))
    assert (report.verdict, report.exit_code) == ("doubtful", 1)
    assert report.causes == ("colours not on depth",)
    assert report.options == {}


def make_eleven(room: Scene) -> Scene:
    """More frames, as a photograph must come from more than three frames away."""
    return replace(room, frames=(*room.frames, *room.frames[:3]))


def test_photographs_that_fit_a_little_by_chance_are_turned_too(room: Scene, monkeypatch: pytest.MonkeyPatch):
    mirrored = MISTAKES["photographs mirrored"].plant(room, 1)
    views = read_views(mirrored).views
    assert lay(mirrored, views).kind == "mirrored"
    monkeypatch.setattr("cuao3d.check.layers.PEAK", 0.001)  # so that any offset fits
    assert lay(mirrored, views).kind == "mirrored"


def test_few_views_with_jumps_say_nothing_about_colours(room: Scene):
    few = replace(room, frames=room.frames[:4])
    views = read_views(with_shuffled(few)).views
    assert lay(few, views).kind == "untold"


def with_shuffled(scene: Scene) -> Scene:
    images = [frame.read_image().flip(1) for frame in scene.frames]
    frames = [
        replace(frame, read_image=lambda image=image: image)
        for frame, image in zip(scene.frames, [*images[2:], *images[:2]], strict=True)
    ]
    return replace(scene, frames=tuple(frames))


def test_colours_are_moved_only_where_several_views_say_so(room: Scene):
    moved = MISTAKES["colours moved by 8 pixels"].plant(room, 0)
    assert lay(moved, read_views(moved).views).kind == "moved"
    pair = replace(moved, frames=moved.frames[:2])
    found = lay(pair, read_views(pair).views)
    assert not found.moved


@pytest.mark.parametrize(("factor", "of"), [(0.37, 1.0), (1.0, 25.4), (1.0, 0.0031)])
def test_the_factor_between_depth_and_positions_is_fitted(factor: float, of: float, room: Scene):
    views = read_views(with_depth(with_positions(room, factor), of)).views
    assert fit_scale(views, AS_GIVEN) == pytest.approx(factor / of, rel=0.012)


@pytest.mark.parametrize("factor", [3.90625, 4.0])
def test_known_units_that_lie_close_together_are_told_apart(factor: float, room: Scene):
    assert fit_scale(read_views(with_depth(room, 1 / factor)).views, AS_GIVEN) == factor


@pytest.mark.data
def test_a_plain_factor_is_taken_where_few_noisy_views_fit_a_range_of_them(lounge: Scene):
    few = replace(lounge, frames=lounge.frames[:3])  # 3.6 to 4.0 fit alike
    assert fit_scale(read_views(with_depth(few, 0.25)).views, AS_GIVEN) == 4


def test_factors_get_their_round_names():
    assert round_factor(0.2503) == 0.25
    assert round_factor(1009.0) == 1000.0
    assert round_factor(0.1531) == 0.152590 == pytest.approx(1000 / 6553.5, rel=1e-5)
    assert round_factor(2.437) == 2.44
    assert unit_of_depth(1000 / 6553.5) == "in 1/6553.5 m, read as millimetres"
    assert unit_of_depth(0.41) == ""
    assert unit_of_positions(0.3048) == "in feet"
    assert unit_of_positions(0.41) == ""


def test_what_is_off_is_told_by_the_depth_that_a_room_has():
    assert not are_positions_off(13.0, 0.15259)  # 2 m in units of Replica, read as millimetres
    assert are_positions_off(2.0, 0.41)
    assert are_positions_off(0.9, 2.44)  # no depth image has such a unit
    assert are_positions_off(2.0, 1000.0)  # 2 km: positions are millimetres
    assert not are_positions_off(2000.0, 0.001)
    assert not are_positions_off(0.5, 4.0)


def test_each_reading_undoes_what_its_options_say_and_is_found_by_its_name():
    camera = camera_at(0.25)
    names = [reading.name for reading in (*POSE_READINGS, *RARER_POSE_READINGS)]
    assert len(set(names)) == len(names)
    for reading in (*POSE_READINGS, *RARER_POSE_READINGS):
        assert reading_named(reading.name, camera) is reading
        scaled = with_depth_scale(reading, 0.15259)
        found = reading_named(scaled.name, camera)
        assert (found.name, found.depth_scale, found.options) == (scaled.name, 0.15259, scaled.options)
        along = reading_named(with_rays(scaled).name, camera)
        assert (along.name, along.depth_scale, along.along_rays) == (f"{scaled.name}, depth along rays", 0.15259, True)
        assert along.options == {**scaled.options, "depth_along": "rays"}
    assert reading_named("depth along rays", camera) == ALONG_RAYS


def test_a_cloud_in_another_frame_is_found_though_views_see_some_of_it(room: Scene):
    views = read_views(room).views
    clean = check(room).measurements["coverage"]
    assert clean["surface_with_points"] > 0.9
    assert clean["seen_through"] < 0.1
    moved = check(MISTAKES["cloud in another frame"].plant(room, 1)).measurements["coverage"]
    assert moved["seen"] > 0.02
    assert moved["surface_with_points"] < 0.5
    # By hand: half of the cloud is cut away, and half of the surfaces is bare; nothing is looked through.
    points = views_of_cells(room, views).points
    half = points[points[:, 0] < points[:, 0].median()]
    assert share_beside(half, views, AS_GIVEN) < clean["surface_with_points"] - 0.2
    assert check(replace(room, points=half, colors=None, labels=None, normals=None)).verdict == "ok"


def test_the_cloud_tells_the_convention_where_no_views_overlap(room: Scene):
    first = replace(room, frames=room.frames[:1])
    report = check(with_poses(first, torch.linalg.inv))
    assert report.causes == ("inverse poses",)


def test_a_frame_whose_pose_fits_no_other_is_named_and_left_out(tmp_path: Path):
    count = torch.full((10, 10), 50).fill_diagonal_(0)
    agreeing, contradicting = count.clone(), torch.zeros_like(count)
    for matrix, value in ((agreeing, 10), (contradicting, 40)):
        matrix[3], matrix[:, 3] = value, value
    views = read_views(made()).views
    views = [views[0]._replace(name=f"{index}") for index in range(10)]
    given = Consistency(count, agreeing, contradicting, agreeing, 0.01)
    assert stray_frames(views, given) == ["3"]
    noisy = given._replace(tight=agreeing // 5)
    assert stray_frames(views, noisy) == []


def test_worst_frames_are_written_to_capture_json_and_then_skipped(
    room_folder: Path, tmp_path: Path, monkeypatch, capsys
):
    folder = Path(shutil.copytree(room_folder, tmp_path / "room"))
    monkeypatch.setattr("cuao3d.check.stray_frames", lambda views, given: ["frame-000003"])
    assert main(["check", str(folder), "--drop-worst"]) == 0
    assert "frame-000003" in capsys.readouterr().out
    assert json.loads((folder / "capture.json").read_text()) == {"skip": ["frame-000003"]}
    monkeypatch.undo()
    main(["check", str(folder), "--json", str(tmp_path / "check.json")])
    scene = json.loads((tmp_path / "check.json").read_text())["scenes"]["room"]
    assert scene["measurements"]["num_frames"] == 5


def test_what_was_found_is_joined_to_what_capture_json_says():
    # Colours at c + (u - c) 0.9 + 4 of the file; what is found is relative to that.
    there = CaptureOptions(color_focal=0.9, color_shift=(4.0, 0.0), color_lag=1, axes="opengl", skip=("a",))
    found = {"color_focal": 1.1, "color_shift": [2.0, -1.0], "color_lag": -2, "axes": "opengl", "skip": ("a", "b")}
    joined = capture_options(found, there)
    assert joined.color_focal == pytest.approx(0.99)
    assert joined.color_shift == pytest.approx((4 + 0.9 * 2, -0.9))
    assert (joined.color_lag, joined.axes, joined.skip) == (-1, "opencv", ("a", "b"))
    assert capture_options({"depth_along": "rays"}, CaptureOptions(depth_along="rays")).depth_along == "axis"
    with pytest.raises(InputError, match="now it looks ros; remove it"):
        capture_options({"axes": "ros"}, CaptureOptions(axes="opengl"))
    with pytest.raises(InputError, match="remove axes"):
        capture_options({"rotation": "transposed"}, CaptureOptions(axes="ros"))


def test_a_cure_cures(room_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(room_folder, tmp_path / "room"))
    (folder / "points.ply").unlink()
    for path in folder.glob("*.pose.txt"):
        pose = np.loadtxt(path)
        pose[:3, 3] *= 0.41
        pose[:3, :3] = pose[:3, :3] @ np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]).T
        np.savetxt(path, pose, fmt="%.17g")
    assert main(["check", str(folder), "--fix"]) == 1
    said = json.loads((folder / "capture.json").read_text())
    assert said["axes"] == "ros"
    assert said["pose_scale"] == pytest.approx(1 / 0.41, rel=0.012)
    assert main(["check", str(folder)]) == 0
