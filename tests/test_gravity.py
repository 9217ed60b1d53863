"""Which way is up: told to a degree from level surfaces, or not told; what `capture.json` then says and readers do."""

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import camera_at, turned
from cuao3d.check import check
from cuao3d.check.options import capture_options, fix
from cuao3d.cli import main
from cuao3d.geometry import move
from cuao3d.gravity import _join, _surfaces, find_up, up_of
from cuao3d.readers import open_dataset
from cuao3d.readers.options import CaptureOptions, named_up, read_options, rotation_of
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.scene import Camera, Frame, Scene
from cuao3d.worlds.rooms import make_room
from plant_errors import off_up, tilt_of
from planted import turned as with_turned_world
from planted import with_poses


@cache
def made(seed: int) -> Scene:
    """A made room, rendered once."""
    return make_room(seed, num_views=6)


def looking_down(pitch: float, *, yaw: float = 0.0) -> Camera:
    """A camera 1.5 m above the origin, 64 x 48 pixels, that looks down by a pitch, degrees."""
    yaw, pitch = math.radians(yaw), math.radians(pitch)
    forward = torch.tensor([math.cos(pitch) * math.cos(yaw), math.cos(pitch) * math.sin(yaw), -math.sin(pitch)])
    right = torch.tensor([math.sin(yaw), -math.cos(yaw), 0.0])
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1).double()
    pose[2, 3] = 1.5
    return replace(camera_at(0.0), world_from_camera=pose)


def depth_of_plane(camera: Camera, normal: Tensor, offset: float) -> Tensor:
    """Depth of the plane `normal . x = offset`, 0 where a pixel's ray does not meet it."""
    column, row = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="xy")
    rays = torch.stack([(column - 31.5) / 40, (row - 23.5) / 40, torch.ones_like(row)], dim=-1).double()
    along = rays @ camera.world_from_camera[:3, :3].T @ normal
    depth = (offset - camera.world_from_camera[:3, 3] @ normal) / along
    return torch.where((depth > 0) & depth.isfinite(), depth, 0).float()


LEVEL = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
RAMP = torch.tensor([-math.sin(math.radians(20)), 0.0, math.cos(math.radians(20))], dtype=torch.float64)


def test_normals_and_areas_of_a_plane_are_exact_however_grazing_it_is_seen():
    # The middle row of a camera that looks down by 6 degrees meets the floor at 6 degrees, 14 m away.
    camera = looking_down(6)
    depth = depth_of_plane(camera, LEVEL, 0.0)
    seen = _surfaces(camera, depth, 0)
    assert len(seen.area) > 500
    torch.testing.assert_close(seen.normals, LEVEL.expand_as(seen.normals), atol=1e-4, rtol=0)
    # At 30 degrees a pixel in the middle covers z^2 / (fx fy cos), with z = 1.5 / sin(30) and cos = sin(30).
    camera = looking_down(30)
    seen = _surfaces(camera, depth_of_plane(camera, LEVEL, 0.0), 0)
    middle = int((seen.area - 9 / 1600 / 0.5).abs().argmin())
    assert seen.area[middle].item() == pytest.approx(9 / 1600 / 0.5, rel=0.05)


def test_windows_that_hold_two_things_or_holes_tell_no_normal():
    camera = looking_down(30)
    depth = depth_of_plane(camera, LEVEL, 0.0)
    whole = len(_surfaces(camera, depth, 0).area)
    depth[20:30, 20:30] *= 0.7
    depth[40, 50] = 0
    seen = _surfaces(camera, depth, 0)
    assert 25 < whole - len(seen.area) < 250
    assert _join([seen, seen]).part.unique().tolist() == [0, 1]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_up_of_a_tilted_room_is_found_within_a_degree(seed: int):
    world = tilt_of(seed)
    off = off_up(with_turned_world(made(seed), world), world[:3, 2])
    assert off is not None
    assert off < 0.5


@pytest.mark.parametrize("quarters", [1, 3])
def test_up_is_found_though_all_cameras_lie_on_their_side(quarters: int):
    world = tilt_of(0)
    scene = replace(made(0), frames=tuple(turned(frame, quarters) for frame in made(0).frames))
    off = off_up(with_turned_world(scene, world), world[:3, 2])
    assert off is not None
    assert off < 0.5


@pytest.mark.parametrize(
    ("second", "offset", "why"),
    [(RAMP, -1.8, "a ramp as large as the floor"), (LEVEL, 3.0, "the ceiling alone, for one of two views")],
)
def test_up_is_not_told_where_surfaces_contradict_each_other(second: Tensor, offset: float, why: str):
    down = [looking_down(40), looking_down(40 if offset < 0 else -40, yaw=30)]
    planes = [depth_of_plane(down[0], LEVEL, 0.0), depth_of_plane(down[1], second, offset)]
    up = find_up(down, planes)
    assert (up["axis"], up["certain"], up["direction"], up["tilt"]) == ("z", False, None, None), why
    floors = find_up(down[:1], planes[:1])
    assert floors["certain"]
    assert floors["tilt"] < 0.01


def test_up_that_rests_on_half_a_view_is_not_known_to_a_degree():
    camera = looking_down(50)
    depth = depth_of_plane(camera, LEVEL, 0.0)
    depth[:, 32:] = 0
    up = find_up([camera], [depth])
    assert (up["axis"], up["certain"], up["direction"]) == ("z", True, None)


def test_up_is_not_known_to_a_degree_where_views_differ_by_more():
    # The floor of one view leans by 2.2 degrees one way, that of the other as much the other way.
    down, lean = [looking_down(40), looking_down(40, yaw=40)], math.radians(2.2)
    floors = [torch.tensor([sign * math.sin(lean), 0, math.cos(lean)]).double() for sign in (1, -1)]
    up = find_up(down, [depth_of_plane(camera, floor, 0.0) for camera, floor in zip(down, floors, strict=True)])
    assert (up["axis"], up["certain"], up["direction"]) == ("z", True, None)


def test_a_surface_to_which_cameras_would_be_rolled_is_not_level():
    # A roof that slopes by 50 degrees to the side; images are level with the floor.
    roof = torch.tensor([0.0, math.sin(math.radians(50)), math.cos(math.radians(50))], dtype=torch.float64)
    cameras = [looking_down(60), looking_down(20)]
    depths = [depth_of_plane(cameras[0], LEVEL, 0.0), depth_of_plane(cameras[1], roof, -1.5)]
    depths[1][depths[1] > 5] = 0
    assert find_up(cameras, depths)["tilt"] == pytest.approx(0, abs=0.01)


def floor_and_wall(reach: float) -> tuple[Camera, Tensor]:
    """A view of a floor, as far as depth reaches, metres, and of a wall at its left."""
    camera = looking_down(30)
    floor, wall = depth_of_plane(camera, LEVEL, 0.0), depth_of_plane(camera, camera.world_from_camera[:3, 0], -0.6)
    floor[floor > reach] = 0
    depth = torch.where((wall > 0) & ((wall < floor) | (floor == 0)), wall, floor)
    depth[depth > 6] = 0
    return camera, depth


def test_up_is_not_told_where_cameras_on_their_side_would_explain_more():
    # Turned by a quarter, the wall lies below: it would be level.
    camera, depth = floor_and_wall(6)
    lying = turned(Frame("lying", camera, lambda: depth, lambda: depth), 1)
    up = find_up([lying.camera], [lying.read_depth()])
    assert (up["axis"], up["facing"], up["certain"], up["direction"]) == ("-y", 1.0, False, None)


@pytest.mark.parametrize(("reach", "is_told"), [(6, True), (3, True), (2.2, False)])
def test_in_doubt_cameras_are_upright_unless_much_more_speaks_for_their_side(
    reach: float, is_told: bool, synthetic_scene: Scene
):
    # The wall explains a third of what the floor does, then 1.5 times as much, then the floor is too small to be seen.
    camera, depth = floor_and_wall(reach)
    x_up = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    camera = replace(camera, world_from_camera=x_up @ camera.world_from_camera)
    up = up_of(replace(synthetic_scene, frames=(Frame("one", camera, lambda: depth, lambda: depth),)))
    assert (up is not None) == is_told
    if up is not None:
        torch.testing.assert_close(up, x_up[:3, 2], atol=1e-3, rtol=0)


def test_too_little_level_surface_is_said(synthetic_scene: Scene):
    report = check(synthetic_scene)
    assert report.measurements["up"]["direction"] is None
    assert any("could not be told: too little level surface" in reason for reason in report.reasons)


@pytest.mark.slow
def test_a_fix_levels_a_tilted_capture_and_then_check_is_silent(tmp_path: Path, capsys):
    world = tilt_of(1)
    write_capture(replace(with_turned_world(made(1), world), normals=None), tmp_path / "room")
    assert main(["check", str(tmp_path / "room"), "--fix"]) == 0
    angle = math.degrees(math.acos(float(world[2, 2])))
    assert f"The world is tilted by {angle:.0f}." in capsys.readouterr().out
    up = torch.tensor(json.loads((tmp_path / "room" / "capture.json").read_text())["up"], dtype=torch.float64)
    assert float(up @ world[:3, 2]) > math.cos(math.radians(0.5))
    report = check(open_dataset(tmp_path / "room")[0])
    assert report.reasons == ()
    assert report.measurements["up"]["tilt"] < 0.5


def test_a_world_within_a_degree_of_z_is_left_alone():
    assert check(made(0)).reasons == ()
    assert check(made(0)).options == {}


def test_a_world_upside_down_and_tilted_is_told_with_its_vector():
    over = tilt_of(2) @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
    report = check(with_turned_world(made(2), over))
    assert report.causes == ("upside down",)
    assert float(torch.tensor(report.options["up"], dtype=torch.float64) @ over[:3, 2]) > math.cos(math.radians(0.5))


@pytest.mark.data
def test_the_floor_of_the_lounge_is_found(lounge: Scene):
    # Views of one floor differ by 2 degrees there, as the poses drift.
    up = check(lounge).measurements["up"]
    assert up["axis"] == "y"
    floor = torch.nn.functional.normalize(torch.tensor([-0.024, 0.999, -0.036]).double(), dim=0)  # of the first three
    assert float(torch.tensor(up["direction"], dtype=torch.float64) @ floor) > math.cos(math.radians(1.0))


def test_a_vector_is_turned_to_z_by_the_smallest_angle_for_poses_cloud_and_normals(
    synthetic_scene: Scene, tmp_path: Path
):
    normals = torch.nn.functional.normalize(torch.rand_like(synthetic_scene.points), dim=1)
    write_capture(replace(synthetic_scene, normals=normals), tmp_path / "room")
    (tmp_path / "room" / "capture.json").write_text('{"up": [3, 0, 4]}')
    scene = open_dataset(tmp_path / "room")[0]
    # (3, 0, 4) / 5 goes to z and (4, 0, -3) / 5 to x; y stays.
    rotation = torch.tensor([[0.8, 0, -0.6], [0, 1, 0], [0.6, 0, 0.8]])
    torch.testing.assert_close(scene.points, synthetic_scene.points @ rotation.T, rtol=0, atol=1e-6)
    assert scene.normals is not None
    torch.testing.assert_close(scene.normals, normals @ rotation.T, rtol=0, atol=1e-6)
    for frame, before in zip(scene.frames, synthetic_scene.frames, strict=True):
        seen = frame.camera.camera_from_world(scene.points)
        torch.testing.assert_close(seen, before.camera.camera_from_world(synthetic_scene.points), rtol=0, atol=1e-6)
    assert scene.capture_from_world is not None
    torch.testing.assert_close(move(scene.points, scene.capture_from_world), synthetic_scene.points)


@pytest.mark.parametrize("up", [(0.6, 0.0, -0.8), (0.0, 0.0, -1.0), (1e-6, 0.0, -1.0), (0.0, 1.0, 0.0)])
def test_rotations_bring_any_vector_to_z(up: tuple[float, float, float]):
    rotation = rotation_of(up)
    torch.testing.assert_close(rotation @ torch.tensor(up, dtype=torch.float64), LEVEL, atol=2e-6, rtol=0)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(rotation).item() == pytest.approx(1)


def test_an_axis_is_written_where_up_lies_within_a_degree_of_it():
    near, far = (
        torch.tensor([0.0, -math.cos(a), math.sin(a)]).double() for a in (math.radians(0.9), math.radians(1.1))
    )
    assert named_up(near) == "-y"
    assert named_up(far) == (0.0, -0.99982, 0.0192)


def test_up_that_was_found_is_joined_to_the_up_that_was_honoured(tmp_path: Path):
    # The world was turned so that y became z. Up is 30 degrees from that z, towards x, which was x before.
    found = {"up": (0.5, 0.0, math.sqrt(0.75))}
    joined = capture_options(found, CaptureOptions(up="y")).up
    assert joined == pytest.approx((0.5, math.sqrt(0.75), 0.0), abs=1e-5)
    assert capture_options({"up": "y"}, CaptureOptions(up="-y")) == CaptureOptions()
    assert fix(tmp_path, found) == found
    assert read_options(tmp_path).up == pytest.approx(found["up"])


@pytest.mark.parametrize(
    ("up", "message"),
    [
        ("[0, 0, 0]", "expected a vector that is not zero"),
        ("[0, 1]", 'expected an axis such as "-y", or a vector [x, y, z]'),
        ('[0, 1, "z"]', "up is 'z'"),
        ("3", "expected an axis"),
        ('"up"', "up is 'up'; choose from 'x', 'y', 'z'"),
    ],
)
def test_a_wrong_up_is_named(up: str, message: str, tmp_path: Path):
    (tmp_path / "capture.json").write_text(f'{{"up": {up}}}')
    with pytest.raises(ValueError, match=r"capture\.json: up") as caught:
        read_options(tmp_path)
    assert message in str(caught.value)


@pytest.mark.slow
def test_poses_and_cloud_in_millimetres_are_cured_by_a_scale(tmp_path: Path):
    scene = made(0)
    millimetres = with_poses(replace(scene, points=scene.points * 1000, normals=None), in_millimetres)
    write_capture(millimetres, tmp_path / "room")
    assert main(["check", str(tmp_path / "room"), "--fix"]) == 1
    assert json.loads((tmp_path / "room" / "capture.json").read_text()) == {"world_scale": 0.001}
    read = open_dataset(tmp_path / "room")[0]
    assert check(read).reasons == ()
    torch.testing.assert_close(read.points, scene.points, atol=1e-5, rtol=0)
    torch.testing.assert_close(read.frames[3].camera.world_from_camera, scene.frames[3].camera.world_from_camera)


def in_millimetres(pose: Tensor) -> Tensor:
    pose = pose.clone()
    pose[:3, 3] *= 1000
    return pose
