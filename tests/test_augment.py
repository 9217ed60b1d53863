import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import uniform_filter
from scipy.spatial.transform import Rotation

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


def test_elastic_adds_fine_noise_of_0_4_m_and_then_coarse_noise_of_1_6_m():
    # OpenScene's pairs of grain and strength: (0.2, 0.4), (0.8, 1.6).
    generator = torch.Generator().manual_seed(3)
    torch.rand(4, 3, dtype=torch.float64, generator=generator)  # drawn for the other changes
    points = cloud().double() - cloud().double().mean(dim=0)
    points = points + 0.4 * smooth_noise(points, 0.2, generator)
    points = points + 1.6 * smooth_noise(points, 0.8, generator)
    torch.testing.assert_close(change(replace(NOTHING, elastic=True), 3), points)


def test_turns_go_both_ways_and_each_about_its_own_axis():
    for switch, limit, axis in (({"rotation": 60.0}, 60, 2), ({"tilt": 20.0}, 20, None)):
        turns = []
        for seed in range(60):
            moved = change(replace(NOTHING, **switch), seed)
            rotation = torch.linalg.lstsq(change(NOTHING), moved).solution.T
            turns.append(torch.tensor(Rotation.from_matrix(rotation.numpy()).as_euler("xyz", degrees=True)))
        low, high = torch.stack(turns).aminmax(dim=0)
        turned = [0, 1] if axis is None else [axis]
        assert ((low > -limit - 1e-6) & (high < limit + 1e-6)).all()
        assert (low[turned] < -0.8 * limit).all()
        assert (high[turned] > 0.8 * limit).all()
        still = [index for index in range(3) if index not in turned]
        assert low[still].abs().max() < 1e-6
        assert high[still].abs().max() < 1e-6


def test_mirroring_changes_x_and_y_each_by_itself_and_never_z():
    signs = {
        tuple(torch.sign(change(replace(NOTHING, flip=True), seed) / change(NOTHING))[0].tolist()) for seed in range(40)
    }
    assert signs == {(1, 1, 1), (-1, 1, 1), (1, -1, 1), (-1, -1, 1)}


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
