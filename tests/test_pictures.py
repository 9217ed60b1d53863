import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cuao3d.geometry import up_direction
from cuao3d.pictures import Dollhouse
from cuao3d.scene import Camera

SIZE = (96, 72)
FLOOR, CEILING, RED_CUBE = 0, 1, 6
COLORS = torch.tensor([[0, 0.8, 0], [0, 0, 0], [0, 0, 0.9], [0, 0.8, 0.8], [0.8, 0.8, 0], [0.8, 0, 0.8], [0.9, 0, 0.0]])
"""Colours of the floor, the ceiling, the four walls and the cube."""


def box_room(turned: float) -> tuple[Tensor, Tensor]:
    """A room of 4 x 4 x 2.4 m with a cube of 0.8 m in its middle, turned by an angle in degrees; points and parts."""
    line = torch.linspace(-1, 1, 41)
    u, v = (axis.reshape(-1) for axis in torch.meshgrid(line, line, indexing="ij"))
    one = torch.ones_like(u)
    sides = [(u, v, -one), (u, v, one), (-one, u, v), (one, u, v), (u, -one, v), (u, one, v)]
    room = [torch.stack(side, dim=1) * torch.tensor([2, 2, 1.2]) for side in sides]
    cube = torch.cat([torch.stack(side, dim=1) for side in sides]) * 0.4 - torch.tensor([0, 0, 0.8])
    a = math.radians(turned)
    turn = torch.tensor([[math.cos(a), math.sin(a), 0], [-math.sin(a), math.cos(a), 0], [0, 0, 1]])
    part = torch.arange(7).repeat_interleave(torch.tensor([len(side) for side in [*room, cube]]))
    return torch.cat([*room, cube]) @ turn, part


def parts_in(picture: np.ndarray) -> set[int]:
    """Which parts a picture shows: the nearest colour of each pixel, whatever light falls on it; at least 60 pixels."""
    pixels = torch.from_numpy(picture).reshape(-1, 3).float()
    pixels = pixels[pixels.amin(dim=1) < 100]
    brightness = pixels.amax(dim=1, keepdim=True).clamp(min=1)
    part = torch.cdist(pixels / brightness, COLORS / COLORS.amax(dim=1, keepdim=True).clamp(min=1e-3)).argmin(dim=1)
    return set((torch.bincount(part, minlength=7) >= 60).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("turned", [0, 20, 45, 77])
def test_one_sees_into_a_room_however_it_stands(turned):
    points, part = box_room(turned)
    seen = parts_in(Dollhouse(points, size=SIZE).draw(COLORS[part]))
    assert CEILING not in seen
    assert {FLOOR, RED_CUBE} <= seen
    assert len(seen) == 4, "two of the four walls"


def test_an_open_scan_is_drawn_whole():
    points, part = box_room(0)
    floor = part == FLOOR
    house = Dollhouse(points[floor], size=SIZE)
    assert parts_in(house.draw(COLORS[part[floor]])) == {FLOOR}


def test_a_near_point_hides_a_far_one():
    grid = torch.cartesian_prod(torch.linspace(-0.2, 0.2, 21), torch.linspace(-0.2, 0.2, 21))
    near = torch.cat([grid, torch.full((len(grid), 1), 0.3)], dim=1)
    far = near * torch.tensor([0.8, 0.8, 0])
    up = torch.tensor([0, 0, 1.0]).expand(2 * len(grid), 3)
    colors = torch.tensor([[1, 0, 0], [0, 0, 1.0]]).repeat_interleave(len(grid), dim=0)
    picture = Dollhouse(torch.cat([near, far]), up, size=SIZE, azimuth=0, elevation=90).draw(colors)
    red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
    assert (red > blue + 50).sum() > 1000
    assert not (blue > red + 50).any()


def test_a_picture_is_linear_in_the_colors():
    points, _ = box_room(10)
    house = Dollhouse(points, size=SIZE)
    first, second = torch.rand(2, len(points), 3, generator=torch.Generator().manual_seed(0))
    half_way = (house.draw(first).astype(float) + house.draw(second)) / 2
    np.testing.assert_allclose(house.draw((first + second) / 2), half_way, atol=1)


def test_surroundings_are_the_background_and_a_surface_covers_all_of_it():
    grid = torch.cartesian_prod(torch.linspace(-1, 1, 81), torch.linspace(-1, 1, 81))
    floor = torch.cat([grid, torch.zeros(len(grid), 1)], dim=1)
    house = Dollhouse(floor, size=(100, 100), azimuth=0, elevation=90)
    white = house.draw(torch.zeros(len(floor), 3))
    black = house.draw(torch.zeros(len(floor), 3), background=(0, 0, 0))
    assert (white[0] == 255).all()
    assert (white[10:-10, 10:-10] == 0).all()
    assert not black.any()


def test_one_point_can_be_drawn_and_none_cannot():
    picture = Dollhouse(torch.zeros(1, 3), size=SIZE).draw(torch.zeros(1, 3))
    assert picture.shape == (72, 96, 3)
    assert picture.min() == 0
    with pytest.raises(ValueError, match="without points"):
        Dollhouse(torch.zeros(0, 3))


def test_up_is_what_level_cameras_agree_on():
    # A world with y up and cameras that look down at 20 degrees while they turn about it.
    cameras = [_level_camera(heading, pitch=20) for heading in (0, 25, 50)]
    assert up_direction(cameras).tolist() == [0, 1, 0]
    assert up_direction(cameras[:1]).tolist() == pytest.approx([0, 1, 0], abs=0.4)


def test_cameras_turn_a_scene_upright():
    points, part = box_room(0)
    y_up = points[:, [1, 2, 0]]
    cameras = tuple(_level_camera(heading, pitch=20) for heading in (0, 90, 180))
    seen = parts_in(Dollhouse(y_up, size=SIZE, cameras=cameras).draw(COLORS[part]))
    assert {FLOOR, RED_CUBE} <= seen
    assert CEILING not in seen


def _level_camera(heading: float, *, pitch: float) -> Camera:
    h, p = math.radians(heading), math.radians(pitch)
    forward = torch.tensor([math.cos(p) * math.sin(h), -math.sin(p), math.cos(p) * math.cos(h)], dtype=torch.float64)
    right = torch.linalg.cross(forward, torch.tensor([0, 1, 0], dtype=torch.float64))
    right = right / right.norm()
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    two = torch.tensor([50.0, 50.0], dtype=torch.float64)
    return Camera(two, two, 100, 100, pose)
