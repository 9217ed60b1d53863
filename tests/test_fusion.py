"""Facts about sampling, visibility and lifting."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from conftest import CAMERAS_X, PICTURE, PICTURE_COLOR, ColorTeacher, golden_camera
from cuao3d.errors import InputError
from cuao3d.fusion import Samples, lift, lift_measured, sample_cells, see
from cuao3d.geometry import visible_points, voxelize
from cuao3d.scene import Frame, Scene


class Maps:
    """A teacher that returns given maps: the image of view i holds the number i."""

    name = "maps"

    def __init__(self, *maps_of_view):
        self.maps_of_view = maps_of_view
        self.num_channels = sum(len(one) for one in maps_of_view[0])

    def __call__(self, image):
        maps = self.maps_of_view[int(image[0, 0, 0])]
        return maps if len(maps) > 1 else maps[0]


def every_point(points):
    index = torch.arange(len(points))
    return Samples(index, index)


def golden_scene(golden):
    depths = torch.from_numpy(golden["depth_mm"].astype("float32") / 1000)
    images = torch.arange(5.0)[:, None, None, None].expand(5, 3, 240, 320)
    frames = tuple(
        Frame(str(view), golden_camera(golden, view), lambda v=view: images[v], lambda v=view: depths[v])
        for view in range(5)
    )
    return Scene("golden", torch.from_numpy(golden["points"]).float(), frames)


def test_fused_features_equal_the_official_ones(golden):
    scene = golden_scene(golden)
    maps = Maps(*((feature_map,) for feature_map in torch.from_numpy(golden["feature_maps"])))
    visibility = see(scene, every_point(scene.points))
    assert torch.equal(visibility.num_views, torch.from_numpy(golden["num_views"]).long())
    fused = torch.from_numpy(golden["fused"])[visibility.seen_samples]
    torch.testing.assert_close(lift(scene, visibility, maps), fused, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_lifting_equals_upsampling_then_indexing(synthetic_scene, mode):
    # Whole pixels, so that bilinear interpolation at the exact position is an index too.
    generator = torch.Generator().manual_seed(0)
    sizes = ((7, 3, 5), (4, 12, 16))
    maps = [tuple(torch.randn(size, generator=generator) for size in sizes) for _ in range(2)]
    scene = at_whole_pixels(synthetic_scene)
    visibility = see(scene, every_point(scene.points), border=2)
    total = torch.zeros(len(scene.points), 11)
    for view, maps_of_view in zip(visibility.views, maps, strict=True):
        upsampled = torch.cat([functional.interpolate(one[None], (48, 64), mode=mode)[0] for one in maps_of_view])
        column, row = view.pixels.round().long().unbind(1)
        total[view.sample] += upsampled[:, row, column].T
    expected = (total / visibility.num_views[:, None])[visibility.seen_samples]
    torch.testing.assert_close(lift(scene, visibility, Maps(*maps), mode=mode), expected, rtol=1e-5, atol=1e-5)


def at_whole_pixels(scene):
    images = [torch.full((3, 48, 64), float(view)) for view in range(2)]
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    frames = tuple(
        replace(frame, camera=replace(frame.camera, center=frame.camera.center + half), read_image=lambda i=image: i)
        for frame, image in zip(scene.frames, images, strict=True)
    )
    column, row = torch.meshgrid(torch.arange(8, 56, 3), torch.arange(8, 40, 3), indexing="ij")
    points = torch.stack([(column - 32) / 20 - 0.25, torch.full(column.shape, 2.0), 1 - (row - 24) / 20], dim=-1)
    return replace(scene, points=points.reshape(-1, 3), frames=frames, colors=None, labels=None)


def test_both_views_see_the_picture_and_neither_sees_through_it(synthetic_scene):
    visibility = see(synthetic_scene, every_point(synthetic_scene.points))
    is_picture = synthetic_scene.labels == PICTURE
    assert (visibility.num_views[is_picture] == 2).all()
    x, _, z = synthetic_scene.points.unbind(1)
    for view, camera_x in zip(visibility.views, CAMERAS_X, strict=True):
        inside = ((x + camera_x).abs() < 0.45) & ((z - 1).abs() < 0.45)
        hidden = torch.nonzero(~is_picture & inside).squeeze(1)
        assert not set(hidden.tolist()) & set(view.sample.tolist())


def test_a_view_keeps_a_bit_for_each_sample_and_tells_exactly_what_was_seen(golden):
    scene = golden_scene(golden)
    points = scene.points.repeat(5, 1)
    for view in see(replace(scene, points=points), every_point(points)).views:
        frame = scene.frames[view.frame]
        tolerance = scene.occlusion_tolerance
        seen = visible_points(points, frame.camera, frame.read_depth(), occlusion_tolerance=tolerance)
        assert torch.equal(view.sample, seen.index)
        assert torch.equal(view.pixels, seen.pixels)
        assert len(view.seen) <= len(points) / 8 + 32


def test_a_scene_is_seen_by_its_own_tolerance(synthetic_scene):
    # Wall and picture, and their copies a tenth of the depth behind and 4 % before them.
    moves = synthetic_scene.points[:, 1:2] * torch.tensor([0.0, 1.0, 0.0])
    points = torch.cat([synthetic_scene.points + part * moves for part in (0.0, 0.1, -0.04)])
    for tolerance, seen in ((0.25, (True, True, True)), (0.05, (True, False, True)), (0.02, (True, False, False))):
        scene = replace(synthetic_scene, points=points, colors=None, labels=None, occlusion_tolerance=tolerance)
        num_views = see(scene, every_point(points)).num_views
        assert tuple(bool(part.any()) for part in num_views.chunk(3)) == seen


def test_the_picture_is_lifted_in_its_own_colour(synthetic_scene):
    samples = sample_cells(synthetic_scene.points, 0.05)
    visibility = see(synthetic_scene, samples)
    features = lift(synthetic_scene, visibility, ColorTeacher(), mode="bilinear")
    points = synthetic_scene.points[samples.index_of_sample[visibility.seen_samples]]
    middle = (points[:, 1] == 1) & (points[:, 0].abs() < 0.12) & ((points[:, 2] - 1).abs() < 0.12)
    assert middle.any()
    torch.testing.assert_close(features[middle], torch.tensor(PICTURE_COLOR).expand(int(middle.sum()), 3))


def test_a_frame_whose_depth_is_bad_is_left_out_and_named(synthetic_scene):
    first, second = synthetic_scene.frames
    bad = replace(first, name="7", read_depth=lost)
    small = replace(second, name="small", read_depth=lambda: torch.ones(24, 32))
    scene = replace(synthetic_scene, frames=(bad, small, second))
    visibility = see(scene, every_point(scene.points))
    assert [view.frame for view in visibility.views] == [2]
    assert len(visibility.problems) == 2
    assert visibility.problems[0].text == "synthetic, frame 7 left out: frame-7.png is cut short"


def lost():
    raise InputError("frame-7.png is cut short")


def unreadable():
    raise OSError("frame-8.png is on a disk that failed")


class Batches(ColorTeacher):
    """The colour teacher, shown several images at a time."""

    def batch(self, images):
        return (torch.stack([self(image) for image in images]),)


@pytest.mark.parametrize("teacher", [ColorTeacher(), Batches()])
def test_frames_whose_colours_are_bad_are_skipped_as_if_they_had_never_been_there(synthetic_scene, teacher):
    first, second = synthetic_scene.frames
    bad = replace(first, name="7", read_image=lost)
    worse = replace(second, name="8", read_image=unreadable)
    dark = replace(first, name="dark", read_image=lambda: torch.zeros(3, 24, 32))
    scene = replace(synthetic_scene, frames=(bad, worse, dark, second))
    samples = every_point(scene.points)
    all_views = see(scene, samples)
    assert len(all_views.views) == 4
    lifted = lift_measured(scene, all_views, teacher, skip_unreadable=True)
    assert tuple(map(str, lifted.visibility.problems)) == (
        "synthetic, frame 7 left out: frame-7.png is cut short",
        "synthetic, frame 8 left out: frame-8.png is on a disk that failed",
        "synthetic, frame dark left out: The image is 32 x 24, its camera 64 x 48.",
    )
    alone = replace(synthetic_scene, frames=(second,))
    expected = see(alone, samples)
    assert [view.frame for view in lifted.visibility.views] == [3]
    assert torch.equal(lifted.visibility.num_views, expected.num_views)
    assert len(expected.seen_samples) < len(all_views.seen_samples)  # some samples were seen by bad frames alone
    torch.testing.assert_close(lifted.features, lift(alone, expected, teacher), rtol=0, atol=0)
    torch.testing.assert_close(lift(scene, lifted.visibility, teacher), lifted.features, rtol=0, atol=0)


def test_agreement_does_not_count_skipped_frames(synthetic_scene):
    scene = replace(
        synthetic_scene, frames=(*synthetic_scene.frames, replace(synthetic_scene.frames[0], name="7", read_image=lost))
    )
    lifted = lift_measured(scene, see(scene, every_point(scene.points)), ColorTeacher(), skip_unreadable=True)
    visibility = see(synthetic_scene, every_point(synthetic_scene.points))
    assert lifted.agreement == lift_measured(synthetic_scene, visibility, ColorTeacher()).agreement


def test_a_frame_that_may_not_be_skipped_is_an_error(synthetic_scene):
    scene = replace(synthetic_scene, frames=(replace(synthetic_scene.frames[0], name="7", read_image=lost),))
    visibility = see(scene, every_point(scene.points))
    with pytest.raises(InputError, match=r"^synthetic, frame 7: frame-7.png is cut short$"):
        lift(scene, visibility, ColorTeacher())
    assert not lift_measured(scene, visibility, ColorTeacher(), skip_unreadable=True).visibility.views


def test_a_defect_of_a_reader_is_not_taken_for_a_bad_frame(synthetic_scene):
    def defect():
        raise ValueError("too many values to unpack")

    broken = replace(synthetic_scene, frames=(replace(synthetic_scene.frames[0], read_image=defect),))
    visibility = see(broken, every_point(broken.points))
    with pytest.raises(ValueError, match="too many values"):
        lift_measured(broken, visibility, ColorTeacher(), skip_unreadable=True)
    with pytest.raises(ValueError, match="too many values"):
        see(
            replace(synthetic_scene, frames=(replace(broken.frames[0], read_depth=defect),)), every_point(broken.points)
        )


def test_a_teacher_that_breaks_its_promise_is_named(synthetic_scene):
    teacher = ColorTeacher()
    teacher.num_channels = 4
    with pytest.raises(ValueError, match="'color' promises 4 channels but gave"):
        lift(synthetic_scene, see(synthetic_scene, every_point(synthetic_scene.points)), teacher)


def test_progress_counts_to_the_number_of_views(synthetic_scene):
    calls = []
    visibility = see(synthetic_scene, every_point(synthetic_scene.points), progress=lambda *call: calls.append(call))
    lift(synthetic_scene, visibility, ColorTeacher(), progress=lambda *call: calls.append(call))
    assert calls == [(1, 2), (2, 2)] * 2


def test_the_sample_is_the_point_nearest_the_centroid_and_the_first_of_equals():
    # One cell: centroid x = 0.4, nearest 0.3. Another: two points equally near their centroid.
    points = torch.tensor([[0.8, 0, 0], [0.1, 0, 0], [0.3, 0, 0], [1.7, 0, 0], [1.3, 0, 0]])
    samples = sample_cells(points, 1.0)
    assert samples.index_of_sample.tolist() == [2, 3]
    assert samples.sample_of_point.tolist() == [0, 0, 0, 1, 1]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.05, 2))
def test_every_sample_lies_in_the_cell_of_its_points(seed, cell):
    points = torch.rand(40, 3, generator=torch.Generator().manual_seed(seed)) * 4 - 2
    samples = sample_cells(points, cell)
    voxels = voxelize(points, cell)
    assert torch.equal(samples.sample_of_point, voxels.voxel_of_point)
    assert torch.equal(samples.sample_of_point[samples.index_of_sample], torch.arange(len(voxels.coordinates)))


def test_agreement_is_the_intraclass_correlation_of_a_sample_s_views(synthetic_scene):
    """ICC(1), worked out by hand from one feature in two views of every sample: variances between and within."""
    scene = synthetic_scene
    visibility = see(scene, sample_cells(scene.points, 0.05))
    generator = torch.Generator().manual_seed(0)
    maps = [(torch.randn(2, 12, 16, generator=generator),) for _ in range(2)]
    lifted = lift_measured(two_views(scene), visibility, Maps(*maps), mode="bilinear")
    per_view = [[] for _ in visibility.num_views]
    for view in visibility.views:
        alone = replace_views(visibility, view)
        features = lift(two_views(scene), alone, Maps(*maps), mode="bilinear")
        for sample, feature in zip(view.sample.tolist(), features, strict=True):
            per_view[sample].append(feature.double())
    pairs = torch.stack([torch.stack(seen) for seen in per_view if len(seen) == 2])  # (samples, 2, channels)
    between = 2 * (pairs.mean(1) - pairs.mean((0, 1))).square().sum() / (len(pairs) - 1)
    within = (pairs - pairs.mean(1, keepdim=True)).square().sum() / len(pairs)
    assert lifted.agreement == pytest.approx(float((between - within) / (between + within)), abs=1e-6)


def test_views_that_say_the_same_agree_wholly_and_one_view_tells_nothing(synthetic_scene):
    visibility = see(synthetic_scene, sample_cells(synthetic_scene.points, 0.05))
    assert lift_measured(synthetic_scene, visibility, ColorTeacher()).agreement > 0.95
    alone = replace_views(visibility, visibility.views[0])
    assert math.isnan(lift_measured(synthetic_scene, alone, ColorTeacher()).agreement)


def two_views(scene):
    """The scene, its images numbered for `Maps`."""
    frames = tuple(
        replace(frame, read_image=lambda number=number: torch.full((3, 48, 64), float(number)))
        for number, frame in enumerate(scene.frames)
    )
    return replace(scene, frames=frames)


def replace_views(visibility, view):
    """A visibility of one view alone."""
    num_views = torch.zeros_like(visibility.num_views)
    num_views[view.sample] = 1
    return replace(visibility, views=(view,), num_views=num_views)


def test_disagreement_is_what_the_mean_of_a_sample_s_views_lacks(synthetic_scene):
    visibility = see(synthetic_scene, sample_cells(synthetic_scene.points, 0.05))
    generator = torch.Generator().manual_seed(0)
    maps = [(torch.randn(2, 12, 16, generator=generator),) for _ in range(2)]
    scene = two_views(synthetic_scene)
    found = lift_measured(scene, visibility, Maps(*maps), mode="bilinear").disagreement
    per_view = {sample: [] for sample in visibility.seen_samples.tolist()}
    for view in visibility.views:
        features = lift(scene, replace_views(visibility, view), Maps(*maps), mode="bilinear")
        for sample, feature in zip(view.sample.tolist(), features, strict=True):
            per_view[sample].append(feature.double())
    for value, seen in zip(found.tolist(), per_view.values(), strict=True):
        if len(seen) < 2:
            assert math.isnan(value)
        else:
            views = torch.stack(seen)
            lacking = (views - views.mean(0)).square().sum() / views.square().sum()
            assert value == pytest.approx(float(lacking), abs=1e-5)
    assert 0.2 < float(found.nanmean()) < 0.8
    same = lift_measured(synthetic_scene, visibility, Maps((torch.ones(2, 12, 16),), (torch.ones(2, 12, 16),)))
    assert float(same.disagreement.nan_to_num().abs().max()) < 1e-5
