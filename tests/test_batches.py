import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuao3d.augment import Augmentation
from cuao3d.batches import STILL, Batch, BatchConfig, Batches, TrainingScene, hold_out, join, voxelize_scene
from cuao3d.objective import RowMeans

CONFIG = BatchConfig(voxel_size=0.1, num_steps=7, batch_size=2, augmentation=STILL)


def make_scene(seed: int, num_samples: int = 300) -> TrainingScene:
    """Random points in a cube of 0.5 m (voxels of 0.1 m hold two or three of them), half of which have a target.

    The cube lies about the origin, in several cells of the coarsest grid, as a batch norm needs.
    """
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(num_samples, 3, generator=generator) / 2 - 0.25
    rows = torch.randperm(num_samples, generator=generator)[: num_samples // 2].sort().values
    features = torch.randn(len(rows), 4, generator=generator)
    return TrainingScene(f"scene{seed}", points, rows, (features, features[:, :2].half()))


def cells_of(scene: TrainingScene) -> list[tuple[int, int, int]]:
    return [tuple(math.floor(value / 0.1) for value in point) for point in scene.points.tolist()]


def prepare(scene: TrainingScene, **changes):
    return voxelize_scene(scene, replace(CONFIG, **changes), RowMeans, torch.Generator().manual_seed(0))


def test_voxels_hold_all_samples_and_the_mean_of_the_features_that_meet():
    scene, batch = make_scene(0), prepare(make_scene(0))
    cells = cells_of(scene)
    assert [tuple(row) for row in batch.coordinates.tolist()] == [(0, *cell) for cell in sorted(set(cells))]
    members = {}
    for row, feature in zip(scene.rows.tolist(), scene.targets[0], strict=True):
        members.setdefault(cells[row], []).append(feature)
    supervised = [tuple(cell) for cell in batch.coordinates[batch.supervised, 1:].tolist()]
    assert supervised == sorted(members)
    assert len(supervised) < len(batch.coordinates)
    expected = torch.stack([torch.stack(members[cell]).mean(dim=0) for cell in supervised])
    torch.testing.assert_close(batch.targets[0][0][:], expected)
    torch.testing.assert_close(batch.targets[0][1][:].float(), expected[:, :2], atol=2e-3, rtol=2e-3)
    assert batch.targets[0][1][:].dtype == torch.float16


def test_a_budget_draws_some_of_the_supervised_voxels_with_their_targets():
    whole, part = prepare(make_scene(0)), prepare(make_scene(0), points_per_scene=20)
    assert torch.equal(part.coordinates, whole.coordinates)
    assert len(part.supervised) == 20
    place = torch.searchsorted(whole.supervised, part.supervised)
    assert torch.equal(whole.supervised[place], part.supervised)
    torch.testing.assert_close(part.targets[0][0][:], whole.targets[0][0][:][place])


def test_the_shift_covers_all_places_on_the_lattice_of_the_coarsest_grid():
    # After four halvings the grid repeats every 16 voxels.
    config = replace(CONFIG, augmentation=Augmentation(flip=False, shift=True))
    scene = TrainingScene("pair", torch.tensor([[0.0, 0, 0], [10.1, 10.1, 10.1]]), torch.arange(2), (torch.eye(2),))
    firsts = [
        voxelize_scene(scene, config, RowMeans, torch.Generator().manual_seed(seed)).coordinates[0, 1:]
        for seed in range(200)
    ]
    moved_by = torch.stack(firsts) + 51  # without a move the first point lies at -5.05 m, in cell -51
    for axis in range(3):
        assert set(moved_by[:, axis].tolist()) == set(range(17))  # from the middle of a cell: half a one at both ends


def test_points_are_drawn_by_their_own_chances():
    scene = make_scene(0)
    chances = torch.full((len(scene.rows),), 1e-12)
    chances[::3] = 1.0
    likely = replace(scene, chances=chances)
    config = replace(CONFIG, points_per_scene=10, voxel_size=0.001)  # every sample in a voxel of its own
    whole = prepare(scene, voxel_size=0.001)
    wanted = {tuple(row) for row in scene.targets[0][::3].tolist()}
    for seed in range(5):
        batch = voxelize_scene(likely, config, RowMeans, torch.Generator().manual_seed(seed))
        drawn = {tuple(row) for row in batch.targets[0][0][:].tolist()}
        assert len(drawn) == 10
        assert drawn <= wanted
    assert len(whole.supervised) == len(scene.rows)


def test_no_epoch_repeats_the_order_or_the_augmentation_of_another():
    scenes = [make_scene(seed) for seed in range(4)]
    config = replace(CONFIG, batch_size=1, voxel_size=0.01, num_steps=12, augmentation=Augmentation(rotation=180.0))
    batches = Batches(scenes, config, RowMeans)
    orders = [tuple(batches.scene_at(place).name for place in range(first, first + 4)) for first in (0, 4, 8)]
    assert len(set(orders)) == 3
    shown = [batches[place][0].coordinates for place in range(12) if batches.scene_at(place).name == "scene0"]
    assert len({tuple(coordinates.flatten().tolist()) for coordinates in shown}) == 3


def test_a_crop_keeps_the_voxels_nearest_to_one_that_has_a_target():
    whole, part = prepare(make_scene(0)), prepare(make_scene(0), crop=30)
    assert len(part.coordinates) == 30
    inside = {tuple(row) for row in part.coordinates.tolist()}
    outside = torch.tensor([row for row in whole.coordinates.tolist() if tuple(row) not in inside])
    radius = [(part.coordinates - center).square().sum(1).max() for center in part.coordinates[part.supervised]]
    gap = [(outside - center).square().sum(1).min() for center in part.coordinates[part.supervised]]
    assert any(far <= near for far, near in zip(radius, gap, strict=True))
    target_of = {
        tuple(row): target
        for row, target in zip(whole.coordinates[whole.supervised].tolist(), whole.targets[0][0][:], strict=True)
    }
    assert len(part.supervised) == sum(cell in inside for cell in target_of)
    for row, target in zip(part.coordinates[part.supervised].tolist(), part.targets[0][0][:], strict=True):
        torch.testing.assert_close(target, target_of[tuple(row)])


def test_joined_scenes_keep_their_voxels_and_targets():
    first, second = prepare(make_scene(0)), prepare(make_scene(1))
    both = join([first, second])
    assert torch.equal(both.coordinates[: len(first.coordinates)], first.coordinates)
    assert both.coordinates[len(first.coordinates) :, 0].eq(1).all()
    rows = both.coordinates[both.supervised]
    assert torch.equal(rows[rows[:, 0] == 1][:, 1:], second.coordinates[second.supervised, 1:])
    assert both.num_targets == [len(first.supervised), len(second.supervised)]
    assert torch.equal(both.targets[1][0][:], second.targets[0][0][:])


@given(num_scenes=st.integers(1, 5), batch_size=st.integers(1, 7), epochs=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_every_scene_comes_once_before_any_comes_again(num_scenes, batch_size, epochs):
    scenes = [make_scene(seed, 4) for seed in range(num_scenes)]
    config = replace(CONFIG, num_steps=None, num_epochs=epochs, batch_size=batch_size)
    batches = Batches(scenes, config, RowMeans)
    assert len(batches) == math.ceil(epochs * num_scenes / batch_size)
    seen = [batches.scene_at(place).name for place in range(len(batches) * batch_size)]
    for epoch in range(epochs):
        assert len(set(seen[epoch * num_scenes : (epoch + 1) * num_scenes])) == num_scenes


def test_a_batch_follows_from_seed_and_step():
    scenes = [make_scene(seed) for seed in range(3)]
    batches = Batches(scenes, replace(CONFIG, augmentation=Augmentation(rotation=180.0)), RowMeans)
    again, other = Batches(scenes, batches.config, RowMeans), replace(batches.config, seed=1)
    batches[0]
    assert same(batches[4], again[4])
    assert not same(batches[4], batches[5])
    assert not same(batches[4], Batches(scenes, other, RowMeans)[4])


def test_a_scene_smaller_than_the_coarsest_cell_is_refused():
    config = replace(CONFIG, batch_size=1, voxel_size=1.0, augmentation=Augmentation(shift=True))
    batches = Batches([make_scene(0)], config, RowMeans)
    with pytest.raises(ValueError, match=r"Scene scene0 lies in a single cell .* smaller than 1 m"):
        [batches[step] for step in range(20)]


def same(first: tuple[Batch, ...], second: tuple[Batch, ...]) -> bool:
    """Compare all voxels and targets of two steps."""
    return len(first) == len(second) and all(
        torch.equal(one.coordinates, two.coordinates)
        and torch.equal(one.supervised, two.supervised)
        and all(
            torch.equal(a[:], b[:])
            for of, by in zip(one.targets, two.targets, strict=True)
            for a, b in zip(of, by, strict=True)
        )
        for one, two in zip(first, second, strict=True)
    )


def test_parts_share_the_scenes_of_a_step_and_change_none():
    scenes = [make_scene(seed) for seed in range(5)]
    config = replace(CONFIG, batch_size=4, augmentation=Augmentation(rotation=180.0), points_per_scene=20, crop=90)
    whole, parts = Batches(scenes, config, RowMeans)[3], Batches(scenes, replace(config, num_parts=2), RowMeans)[3]
    assert [batch.num_targets for batch in parts] == [whole[0].num_targets[:2], whole[0].num_targets[2:]]
    joined = torch.cat([parts[0].coordinates, parts[1].coordinates + torch.tensor([2, 0, 0, 0])])
    assert torch.equal(joined, whole[0].coordinates)
    targets = [target for batch in parts for target in batch.targets]
    assert all(torch.equal(a[0][:], b[0][:]) for a, b in zip(targets, whole[0].targets, strict=True))


@pytest.mark.parametrize("first", [0, 5, 7])
def test_what_a_thread_prepares_ahead_is_what_would_have_been_prepared(first):
    config = replace(CONFIG, augmentation=Augmentation(rotation=180.0, elastic=True), points_per_scene=20)
    batches = Batches([make_scene(seed) for seed in range(3)], config, RowMeans)
    ahead = list(batches.ahead(first, "cpu"))
    assert len(ahead) == 7 - first
    assert all(same(batch, batches[step]) for step, batch in enumerate(ahead, start=first))


def test_what_goes_wrong_while_preparing_ahead_is_told():
    config = replace(CONFIG, batch_size=1, voxel_size=10.0, augmentation=Augmentation(shift=True))
    with pytest.raises(ValueError, match="Scene scene0 lies in a single cell"):
        list(Batches([make_scene(0)], config, RowMeans).ahead(0, "cpu"))


@given(num_scenes=st.integers(1, 8), num_held_out=st.integers(0, 8), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_held_out_scenes_are_some_of_those_named_and_follow_from_the_seed(num_scenes, num_held_out, seed):
    names, config = (
        [f"scene{index}" for index in range(num_scenes)],
        replace(CONFIG, num_held_out=num_held_out, seed=seed),
    )
    if 0 < num_scenes <= num_held_out:
        with pytest.raises(
            ValueError, match=r"cannot be held out: none is left to train on\. Lower --config\.num-held-out"
        ):
            hold_out(names, config)
        return
    found = hold_out(names, config)
    assert found == hold_out(names, config)
    assert len(set(found)) == num_held_out
    assert set(found) <= set(names)
    assert len({hold_out(names, replace(config, seed=other)) for other in range(20)}) > 1 or num_held_out in (
        0,
        num_scenes,
    )


def test_held_out_scenes_are_shown_as_they_are_and_whole():
    config = replace(CONFIG, augmentation=Augmentation(rotation=180.0), points_per_scene=20, crop=30)
    batches = Batches([make_scene(0)], config, RowMeans, held_out=[make_scene(1), make_scene(2)])
    shown = list(batches.still())
    assert same(tuple(shown), (prepare(make_scene(1)), prepare(make_scene(2))))
    assert same(tuple(shown), tuple(batches.still()))


def test_a_scene_is_augmented_anew_in_every_epoch():
    # Of one scene, place e in the sequence is its view in epoch e.
    config = replace(CONFIG, augmentation=Augmentation(flip=False, rotation=180.0))
    batches = Batches([make_scene(0)], config, RowMeans)
    shown = [batches._voxels_at(epoch).coordinates.tolist() for epoch in range(3)]
    assert shown[0] != shown[1] != shown[2] != shown[0]
    assert batches._voxels_at(1).coordinates.tolist() == shown[1]
