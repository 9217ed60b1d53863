"""Sums over views, and the weights of views, by hand."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import ColorTeacher, golden_camera
from cuao3d import fusion
from cuao3d.errors import InputError
from cuao3d.fusion import lift_measured, sample_cells, see
from cuao3d.geometry import normals_of
from cuao3d.pipeline import fuse
from cuao3d.scene import Camera
from cuao3d.sums import Spread, Sums
from cuao3d.view_weights import geometry_weights
from test_fuse_reads import Scenes

ONE = torch.tensor([0])


def map_of(*values):
    """A map that has these values everywhere."""
    return torch.tensor(values)[:, None, None].expand(len(values), 2, 3)


def added(values, **how):
    """Sums of one sample, of which each view says one of the values."""
    sums = Sums(1, 2, weighted=bool(how))
    for value in values:
        sums.add([map_of(value, 1.0)], ONE, torch.tensor([[5.0, 4.0]], dtype=torch.float64), (9, 6), **how)
    return sums


def test_a_view_that_disagrees_counts_less_by_its_distance():
    # Mean 1, mean squared distance (1 + 1 + 4) / 3 = 2: weights 2/3, 2/3 and 1/3, so the weighted mean is 0.6.
    values = (0.0, 0.0, 3.0)
    spread = added(values).spread(torch.tensor([3]))
    assert spread.means.tolist() == [[pytest.approx(1), pytest.approx(1)]]
    assert spread.scatter.tolist() == [pytest.approx(2, rel=1e-5)]
    sums = added(values, spread=spread)
    assert sums.weights.tolist() == [[pytest.approx(5 / 3, rel=1e-5), pytest.approx(1, rel=1e-5)]]
    features, _, disagreement = sums.finish(torch.tensor([3]))
    assert features.tolist() == [[pytest.approx(0.6, rel=1e-5), pytest.approx(1)]]
    # Of the weighted squared lengths, (2/3 + 2/3 + 10/3) / (5/3) = 2.8, the mean's 0.36 + 1 is lacking the rest.
    assert disagreement.item() == pytest.approx(1 - 1.36 / 2.8, rel=1e-5)


def test_two_views_or_views_that_agree_all_count_the_same():
    for values in ((1.0, 4.0), (2.0, 2.0, 2.0), (5.0,)):
        number = torch.tensor([len(values)])
        sums = added(values, spread=added(values).spread(number))
        weight, squared = sums.weights[0].tolist()
        assert weight**2 / squared == pytest.approx(len(values), rel=1e-4)
        assert sums.finish(number)[0][0, 0].item() == pytest.approx(sum(values) / len(values), rel=1e-4)


def test_equal_weights_change_nothing():
    generator = torch.Generator().manual_seed(0)
    rows, pixels = torch.arange(40), torch.rand(40, 2, generator=generator, dtype=torch.float64) * 40
    plain, weighted = Sums(40, 3), Sums(40, 3, weighted=True)
    for _ in range(4):
        maps = [torch.randn(3, 5, 5, generator=generator)]
        plain.add(maps, rows, pixels, (40, 40))
        weighted.add(maps, rows, pixels, (40, 40), weights=torch.full((40,), 2.5))
    number = torch.full((40,), 4)
    for one, other in zip(plain.finish(number), weighted.finish(number), strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-4, atol=1e-5)


def test_geometry_weighs_by_incidence_depth_and_border():
    # A camera at the origin that looks along z. Straight ahead at 2 m: 1 / 2. At 60 degrees of slant: 0.5 / 2. A normal
    # that is not known: taken to face the camera. Half as far from the border as counts fully: half.
    intrinsics = torch.tensor([100.0, 100.0], dtype=torch.float64), torch.tensor([79.5, 59.5], dtype=torch.float64)
    camera = Camera(*intrinsics, 160, 120, torch.eye(4, dtype=torch.float64))
    points = torch.tensor([[0.0, 0, 2], [0, 0, 2], [0, 0, 4], [0, 0, 2], [0, 0, 2]])
    slanted = [math.sin(math.radians(60)), 0, math.cos(math.radians(60))]
    normals = torch.tensor([[0.0, 0, -1], slanted, [0, 0, 0], [0, 0, 1], [1, 0, 0]])
    middle = [79.5, 59.5]
    pixels = torch.tensor([middle, middle, middle, [79.5, 14.5], middle], dtype=torch.float64)
    found = geometry_weights(points, normals, camera, pixels)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.25, 0.25, 0.25, 0.05]))


def test_normals_are_those_of_the_plane(golden):
    camera = golden_camera(golden, 0)
    axes = camera.world_from_camera[:3, :2]
    points = (torch.rand(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ axes.T).float()
    cosine = normals_of(points).double() @ camera.world_from_camera[:3, 2]
    torch.testing.assert_close(cosine.abs(), torch.ones(200, dtype=torch.float64), rtol=0, atol=1e-4)
    assert normals_of(points[:2]).tolist() == [[0.0] * 3] * 2


class Reddened:
    """The brightness of an image, which one view of three has wrong."""

    name, num_channels = "reddened", 2

    def __call__(self, image):
        value = 9.0 if float(image[0, 0, 0]) == 2 else 1.0
        return map_of(value, 1.0)


def test_lifting_weighs_views_where_that_is_asked(synthetic_scene):
    frames = [
        replace(synthetic_scene.frames[0], read_image=lambda number=number: torch.full((3, 48, 64), float(number)))
        for number in range(3)
    ]
    scene = replace(synthetic_scene, frames=tuple(frames))
    visibility = see(scene, sample_cells(scene.points, 0.05))
    means = {
        how: lift_measured(scene, visibility, Reddened(), view_weights=how).features[0, 0].item()
        for how in ("none", "robust", "geometry")
    }
    # As above, eight times as far apart: 1 + 8 * (1/3) / (5/3). The three views are one, so geometry weighs them alike.
    assert means == {"none": pytest.approx(11 / 3), "robust": pytest.approx(2.6), "geometry": pytest.approx(11 / 3)}


def test_the_store_records_weights_and_is_not_gone_on_with_under_others(synthetic_scene, tmp_path):
    robust = fuse(Scenes(synthetic_scene), [ColorTeacher()], tmp_path / "store", cell=0.05, view_weights="robust")
    assert robust.settings["view_weights"] == "robust"
    visibility = see(synthetic_scene, sample_cells(synthetic_scene.points, 0.05))
    by_hand = lift_measured(synthetic_scene, visibility, ColorTeacher(), view_weights="robust")
    assert torch.equal(robust["synthetic"].features("color"), by_hand.features.half())
    with pytest.raises(InputError, match=r'settings\.view_weights is "robust", not the default'):
        fuse(Scenes(synthetic_scene), [ColorTeacher()], tmp_path / "store", cell=0.05)
    plain = fuse(Scenes(synthetic_scene), [ColorTeacher()], tmp_path / "plain", cell=0.05)
    assert "view_weights" not in plain.settings


@pytest.mark.parametrize("how", ["none", "robust", "geometry"])
def test_a_scene_that_no_view_sees_has_no_rows(synthetic_scene, how):
    behind = replace(synthetic_scene, points=synthetic_scene.points - torch.tensor([0, 20.0, 0]))
    visibility = see(behind, sample_cells(behind.points, 0.05))
    lifted = lift_measured(behind, visibility, ColorTeacher(), view_weights=how)
    assert lifted.features.shape == (0, 3)
    assert lifted.disagreement.shape == (0,)
    assert math.isnan(lifted.agreement)


def test_what_views_say_together_is_brought_to_the_device_of_the_maps(synthetic_scene, monkeypatch):
    visibility, given = see(synthetic_scene, sample_cells(synthetic_scene.points, 0.05)), []
    monkeypatch.setattr(Sums, "add", lambda _sums, _maps, *_where, spread, **_how: given.append(spread))
    parts = fusion._parts([teacher := ColorTeacher()], len(visibility.seen_samples), {}, 0)
    walk = fusion._Walk(synthetic_scene, visibility, [teacher], parts, "bicubic", 1, True, False, "robust")
    walk._spread = {teacher.name: Spread(torch.zeros(len(walk.seen), 3), torch.ones(len(walk.seen)).double())}
    for _ in range(2):
        walk._add(visibility.views[0], [(torch.zeros(3, 6, 8, device="meta"),)])
    assert [(one.means.device.type, one.scatter.device.type) for one in given] == [("meta", "meta")] * 2
    assert given[0].means is given[1].means  # moved once


def test_sums_do_not_depend_on_the_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(24, *size, generator=generator) for size in ((3, 4), (15, 20), (60, 80))]
    pixels = torch.rand(3000, 2, generator=generator, dtype=torch.float64) * torch.tensor([639.0, 479.0])
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            sums = Sums(3000, 72)
            sums.add(maps, torch.randperm(3000, generator=generator.manual_seed(1)), pixels, (640, 480))
            found.append(sums.tensors())
    finally:
        torch.set_num_threads(threads)
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name])
