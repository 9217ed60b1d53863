import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import uniform_filter

from cuao3d.augment import Augmentation, augment, rotation_matrix, smooth_noise

NOTHING = Augmentation(flip=False, rotation=0.0, tilt=0.0, scale=0.0, elastic=False, shift=False)
SWITCHES = [{"flip": True}, {"rotation": 180.0}, {"tilt": 3.0}, {"scale": 0.1}, {"elastic": True}, {"shift": True}]


def cloud(seed: int = 0) -> torch.Tensor:
    return torch.rand(200, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor([4.0, 3.0, 2.5])


def change(augmentation: Augmentation, seed: int = 0) -> torch.Tensor:
    return augment(cloud(), augmentation, 0.8, torch.Generator().manual_seed(seed))


def distances(points: torch.Tensor) -> torch.Tensor:
    return torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")


def test_nothing_switched_on_only_centres_the_scene():
    torch.testing.assert_close(change(NOTHING), cloud().double() - cloud().double().mean(dim=0))


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: next(iter(switch)))
def test_each_switch_changes_the_scene_and_differently_each_time(switch):
    assert {next(iter(each)) for each in SWITCHES} == {field.name for field in fields(Augmentation)}
    changed = [change(replace(NOTHING, **switch), seed) for seed in range(8)]
    assert any(not torch.allclose(each, change(NOTHING)) for each in changed)
    assert any(not torch.allclose(each, changed[0]) for each in changed)
    torch.testing.assert_close(change(replace(NOTHING, **switch), 3), changed[3], rtol=0, atol=0)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_all_but_scale_and_elastic_keep_distances_and_up_stays_up(seed):
    rigid = Augmentation(flip=True, rotation=180.0, tilt=0.0, scale=0.0, elastic=False, shift=True)
    moved = change(rigid, seed)
    torch.testing.assert_close(distances(moved), distances(cloud()))
    height = moved[:, 2] - cloud()[:, 2]
    torch.testing.assert_close(height, height[:1].expand(200), atol=1e-6, rtol=0)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_scale_stays_within_its_limit(seed):
    ratio = distances(change(replace(NOTHING, scale=0.1), seed))[0, 1:] / distances(cloud())[0, 1:]
    torch.testing.assert_close(ratio, ratio[:1].expand(199))
    assert 0.9 <= ratio[0] <= 1.1


def test_shift_covers_its_reach():
    moves = torch.stack([change(replace(NOTHING, shift=True), seed)[0] - change(NOTHING)[0] for seed in range(300)])
    assert moves.min() >= 0
    assert moves.max() < 0.8
    assert (moves.amax(dim=0) - moves.amin(dim=0)).min() > 0.7


def test_quarter_turns_by_hand():
    quarter = math.pi / 2
    x, y, z = torch.eye(3, dtype=torch.float64)
    for angles, start, end in (((quarter, 0, 0), y, z), ((0, quarter, 0), z, x), ((0, 0, quarter), x, y)):
        rotation = rotation_matrix(torch.tensor(angles, dtype=torch.float64))
        torch.testing.assert_close(rotation @ start, end)
    both = rotation_matrix(torch.tensor([quarter, 0, quarter], dtype=torch.float64))
    torch.testing.assert_close(both @ y, z)  # about x first (y -> z), then about z (z stays)


def test_smooth_noise_equals_blurred_noise_on_a_grid_interpolated_by_scipy():
    points, grain = cloud().double(), 0.4
    ours = smooth_noise(points, grain, torch.Generator().manual_seed(5))
    low = points.amin(dim=0) - grain
    size = [int(cells) + 3 for cells in (points.amax(dim=0) - low) / grain]
    noise = torch.randn(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))[0].numpy()
    axes = [low[axis].item() + grain * torch.arange(size[axis]).numpy() for axis in range(3)]
    for channel in range(3):
        blurred = uniform_filter(uniform_filter(noise[channel], 3, mode="constant"), 3, mode="constant")
        expected = torch.from_numpy(RegularGridInterpolator(axes, blurred)(points.numpy()))
        torch.testing.assert_close(ours[:, channel], expected)
