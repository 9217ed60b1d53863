"""Upright boxes and the floor: numbers worked out by hand, a slow loop, and what must not matter."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cuao3d.boxes import floor_height, moved, upright_box

CORNERS = torch.tensor([[x, y, z] for x in (0.0, 2.0) for y in (0.0, 0.5) for z in (0.25, 1.25)])


def turned(points: torch.Tensor, degrees: float) -> torch.Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return points.double() @ torch.tensor([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], dtype=torch.float64)


@pytest.mark.parametrize("degrees", [0, 30, 90, 135, 179])
def test_a_box_is_found_however_it_is_turned(degrees):
    box = upright_box(turned(CORNERS, degrees) + torch.tensor([5.0, -3.0, 1.0]))
    assert box.size.tolist() == pytest.approx([2, 0.5, 1])
    assert box.bottom == pytest.approx(1.25)
    middle = turned(torch.tensor([[1.0, 0.25, 0.75]]), degrees)[0] + torch.tensor([5.0, -3.0, 1.0])
    assert box.center.tolist() == pytest.approx(middle.tolist())
    off = (math.degrees(box.yaw) - degrees) % 180
    assert min(off, 180 - off) == pytest.approx(0, abs=1e-6)


def test_the_corners_of_a_box_are_numbered_along_length_width_and_height():
    box = upright_box(CORNERS)
    assert box.corners[0].tolist() == pytest.approx([0, 0, 0.25])
    assert box.corners[1].tolist() == pytest.approx([2, 0, 0.25])
    assert box.corners[2].tolist() == pytest.approx([0, 0.5, 0.25])
    assert box.corners[7].tolist() == pytest.approx([2, 0.5, 1.25])


@given(st.integers(0, 1000), st.integers(3, 30))
def test_no_direction_in_steps_of_a_degree_has_a_smaller_footprint_and_all_points_are_inside(seed, count):
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    box = upright_box(points)
    extents = (turned(points, degrees) for degrees in range(90))
    assert float(box.size[:2].prod()) <= min(float((one.amax(0) - one.amin(0))[:2].prod()) for one in extents) + 1e-9
    assert box.size[0] >= box.size[1]
    assert (((points - box.center) @ box.axes.T).abs() <= box.size / 2 + 1e-9).all()


def test_points_on_a_line_and_single_points_have_a_box_too():
    line = torch.tensor([[0.0, 0, 0], [1, 1, 0], [3, 3, 0.5]])
    box = upright_box(line)
    assert box.size.tolist() == pytest.approx([3 * math.sqrt(2), 0, 0.5], abs=1e-8)
    assert math.degrees(box.yaw) == pytest.approx(45)
    assert upright_box(line[:1]).size.tolist() == [0, 0, 0]


def grid(width: float, depth: float, z: float) -> torch.Tensor:
    x, y = torch.meshgrid(torch.arange(0, width, 0.05), torch.arange(0, depth, 0.05), indexing="ij")
    return torch.stack([x.flatten(), y.flatten(), torch.full((x.numel(),), z)], dim=1)


def test_the_floor_is_found_beneath_tables_and_above_strays():
    noise = 0.004 * torch.randn(5, 4000, generator=torch.Generator().manual_seed(0))
    floor = grid(3, 3, 1.5)
    floor[:, 2] += noise.flatten()[: len(floor)]
    table, ceiling = grid(1.5, 3, 2.2), grid(3, 3, 4.0)
    strays = torch.tensor([[0.3 * i, 0.2 * i, -2.0 - i] for i in range(8)])
    hidden = floor[floor[:, 0] > 1.3]  # of the floor beneath the table little was seen
    found = floor_height(torch.cat([hidden, table, ceiling, strays]))
    assert found == pytest.approx(1.5, abs=0.012)


def test_the_floor_counts_though_more_columns_end_in_tables():
    assert floor_height(torch.cat([grid(1.2, 3, 0.0), grid(3.0, 3, 0.75)])) == pytest.approx(0, abs=1e-6)


def test_a_cloud_of_a_few_points_has_no_floor():
    assert floor_height(torch.zeros(0, 3)) is None
    assert floor_height(grid(0.4, 0.4, 0.0)) is None
    assert floor_height(grid(0.5, 0.4, 0.0)) == pytest.approx(0)


def test_a_yaw_is_counted_from_the_x_axis_of_the_capture_as_seen_from_above():
    box = upright_box(turned(CORNERS, 30))
    turn = torch.eye(4, dtype=torch.float64)
    assert moved(box, turn)[1] == pytest.approx(30)
    turn[:2, :2] = torch.tensor([[0.0, -1], [1, 0]]) * 1000  # our x is the capture's y; it measures in millimetres
    center, yaw = moved(box, turn)
    assert yaw == pytest.approx(120)
    x, y, z = box.center.tolist()
    assert center.tolist() == pytest.approx([-1000 * y, 1000 * x, z])


def test_in_a_world_that_is_turned_by_20_degrees_a_yaw_is_20_degrees_more():
    turn = torch.eye(4, dtype=torch.float64)
    cos, sin = math.cos(math.radians(20)), math.sin(math.radians(20))
    turn[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
    assert moved(upright_box(turned(CORNERS, 30)), turn)[1] == pytest.approx(50)


def test_where_x_points_up_a_yaw_is_counted_from_y():
    upright = torch.eye(4, dtype=torch.float64)
    upright[:3, :3] = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # the capture's x is our z, its y our x
    assert moved(upright_box(turned(CORNERS, 30)), upright)[1] == pytest.approx(30)
