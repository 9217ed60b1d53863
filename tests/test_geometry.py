"""Facts about projection, visibility and voxels."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import camera_at, golden_camera
from cuao3d.geometry import Packing, back_project, group_mean, nearest, project, visible_points, voxelize

COORDINATE = st.integers(-(2**18), 2**18)


def test_projection_is_the_pinhole_formula():
    # 0.1 m right and 0.2 m up of the axis at 2 m, focal 40: 2 px right and 4 px up of the centre.
    pixels, depth = project(torch.tensor([[0.35, 2.0, 1.2]]), camera_at(0.25))
    assert pixels[0].tolist() == pytest.approx([31.5 + 2, 23.5 - 4])
    assert depth.item() == pytest.approx(2)


@pytest.mark.parametrize("view", range(5))
def test_visibility_equals_the_official_mapping(golden, view):
    depth = torch.from_numpy(golden["depth_mm"][view].astype("float32") / 1000)
    points = torch.from_numpy(golden["points"])
    seen = visible_points(points, golden_camera(golden, view), depth, occlusion_tolerance=0.25, border=10)
    mapping = torch.from_numpy(golden["mapping_row_col_visible"][view]).long()
    assert torch.equal(seen.index, torch.nonzero(mapping[:, 2]).squeeze(1))
    assert torch.equal(seen.pixels.round().long().flip(1), mapping[seen.index, :2])


def test_missing_depth_hides_and_points_behind_the_camera_are_not_seen(synthetic_scene):
    points = torch.tensor([[0.0, 2.0, 1.0], [0.0, -2.0, 1.0]])
    camera = camera_at(0.0)
    assert visible_points(points, camera, torch.full((48, 64), 2.0)).index.tolist() == [0]
    assert visible_points(points, camera, torch.zeros(48, 64)).index.tolist() == []


@pytest.mark.parametrize("surface", [0.5, 1.0, 4.0, 8.0])
def test_the_tolerance_is_a_part_of_the_depth(surface):
    # tau = 0.25 unless told: method, section 3.
    z = surface * torch.tensor([0.74, 0.76, 1.0, 1.24, 1.26])
    points = torch.stack([torch.zeros(5), z, torch.ones(5)], dim=1)
    depth = torch.full((48, 64), surface)
    assert visible_points(points, camera_at(0.0), depth).index.tolist() == [1, 2, 3]
    narrow = visible_points(points, camera_at(0.0), depth, occlusion_tolerance=0.02)
    assert narrow.index.tolist() == [2]


@pytest.mark.parametrize(("border", "told"), [(10, {}), (0, {"border": 0}), (7, {"border": 7})])
def test_pixels_are_seen_from_the_border_on_to_the_same_distance_from_the_other_side(border, told):
    # 10 pixels unless told: method, section 3.
    column, row = torch.meshgrid(torch.arange(-3, 67), torch.arange(-3, 51), indexing="ij")
    pixels = torch.stack([column, row], dim=-1).reshape(-1, 2)
    points = torch.stack([(pixels[:, 0] - 31.5) / 20, torch.full((len(pixels),), 2.0), 1 - (pixels[:, 1] - 23.5) / 20])
    seen = pixels[visible_points(points.T, camera_at(0.0), torch.full((48, 64), 2.0), **told).index]
    assert seen.amin(dim=0).tolist() == [border, border]
    assert seen.amax(dim=0).tolist() == [63 - border, 47 - border]
    assert len(seen) == (64 - 2 * border) * (48 - 2 * border)


def test_nothing_behind_the_camera_is_seen_whatever_the_tolerance():
    points = torch.tensor([[0.0, -2.0, 1.0], [0.0, 9.0, 1.0]])
    seen = visible_points(points, camera_at(0.0), torch.ones(48, 64), occlusion_tolerance=math.inf)
    assert seen.index.tolist() == [1]


def test_a_depth_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="32 x 24, its camera 64 x 48"):
        visible_points(torch.zeros(1, 3), camera_at(0.0), torch.ones(24, 32))


def test_back_projected_pixels_project_to_where_they_came_from(synthetic_scene):
    frame = synthetic_scene.frames[0]
    depth = frame.read_depth()
    points, pixel = back_project(depth, frame.camera)
    pixels, z = project(points, frame.camera)
    torch.testing.assert_close(pixels[:, 1] * 64 + pixels[:, 0], pixel.double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.float(), depth.flatten()[pixel])
    assert set(points[:, 1].round(decimals=4).tolist()) == {1.0, 2.0}  # the picture's plane and the wall's


def test_voxels_equal_the_official_ones(golden):
    points = torch.from_numpy(golden["points"])
    voxels = voxelize(points, 0.05)
    lowest = voxels.coordinates.min(dim=0).values
    assert torch.equal(voxels.coordinates - lowest, torch.from_numpy(golden["voxels_sorted"]).long())
    of_points = voxels.coordinates[voxels.voxel_of_point] - lowest
    assert torch.equal(of_points, torch.from_numpy(golden["voxel_of_point_coords"]).long())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), COORDINATE, COORDINATE, COORDINATE), min_size=1, max_size=20))
def test_packed_keys_are_as_different_as_the_cells_and_sort_like_them(rows):
    coordinates = torch.tensor(rows)
    cloud, cells = coordinates[:, 0], coordinates[:, 1:]
    packing = Packing.of(cells, cloud)
    keys = packing.keys(cells, cloud)
    assert len(keys.unique()) == len(set(rows))
    assert 0 <= int(keys.min()) <= int(keys.max()) < packing.num_cells
    assert torch.equal(torch.argsort(keys, stable=True), torch.tensor(sorted(range(len(rows)), key=rows.__getitem__)))
    alone = Packing.of(cells).keys(cells)
    by_cell = sorted(range(len(rows)), key=lambda index: rows[index][1:])
    assert torch.equal(torch.argsort(alone, stable=True), torch.tensor(by_cell))


def test_no_points_have_no_voxels():
    voxels = voxelize(torch.zeros(0, 3), 0.1)
    assert (len(voxels.coordinates), len(voxels.voxel_of_point)) == (0, 0)


def test_voxels_too_small_for_the_extent_are_refused():
    with pytest.raises(ValueError, match="larger voxels"):
        voxelize(torch.tensor([[1e6, 0, 0]]), 0.02)


def test_a_scene_far_from_the_origin_has_the_same_voxels():
    points = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)).double()
    moved = voxelize(points + torch.tensor([10.0, -20.0, 5.0]), 0.25)
    assert torch.equal(moved.voxel_of_point, voxelize(points, 0.25).voxel_of_point)


def test_nearest_points_are_those_of_the_distance_matrix():
    generator = torch.Generator().manual_seed(0)
    queries, points = torch.rand(20, 3, generator=generator), torch.rand(50, 3, generator=generator)
    assert torch.equal(nearest(queries, points), torch.cdist(queries, points).argmin(dim=1))


def test_group_means_by_hand():
    means = group_mean(torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([0, 0, 2]), 3)
    assert means.tolist() == [[2.0], [0.0], [8.0]]


def test_resizing_a_camera_moves_pixels_by_the_scale():
    camera = replace(camera_at(0.0), width=65, height=49, center=torch.tensor([32.0, 24.0]).double())
    points = torch.tensor([[0.0, 1.0, 1.0]])
    assert project(points, camera.resized(33, 25))[0][0].tolist() == pytest.approx([16, 12])
