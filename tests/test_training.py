import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cuao3d.augment import Augmentation
from cuao3d.objective import RowMeans
from cuao3d.training import (
    Batches,
    TrainConfig,
    TrainingScene,
    begin_run,
    join,
    rate_fraction,
    train,
    training_bars,
    voxelize_scene,
)

STILL = Augmentation(flip=False, shift=False)
CONFIG = TrainConfig(voxel_size=0.1, num_steps=7, batch_size=2, augmentation=STILL, checkpoint_every=3)


def make_scene(seed: int, num_samples: int = 300) -> TrainingScene:
    """Random points in a cube of 0.5 m (voxels of 0.1 m hold two or three of them), half of which have a target."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(num_samples, 3, generator=generator) / 2
    rows = torch.randperm(num_samples, generator=generator)[: num_samples // 2].sort().values
    features = torch.randn(len(rows), 4, generator=generator)
    return TrainingScene(f"scene{seed}", points, rows, (features, features[:, :2].half()))


def centred_cells(scene: TrainingScene) -> list[tuple[int, int, int]]:
    points = scene.points.double() - scene.points.double().mean(dim=0)
    return [tuple(math.floor(value / 0.1) for value in point) for point in points.tolist()]


def prepare(scene: TrainingScene, **changes):
    return voxelize_scene(scene, replace(CONFIG, **changes), RowMeans, torch.Generator().manual_seed(0))


def test_voxels_hold_all_samples_and_the_mean_of_the_features_that_meet():
    scene, batch = make_scene(0), prepare(make_scene(0))
    cells = centred_cells(scene)
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
    assert torch.equal(batches[4].coordinates, again[4].coordinates)
    assert not torch.equal(batches[4].coordinates, batches[5].coordinates)
    assert not torch.equal(batches[4].coordinates, Batches(scenes, other, RowMeans)[4].coordinates)


def test_a_scene_smaller_than_the_coarsest_cell_is_refused():
    config = replace(CONFIG, batch_size=1, voxel_size=1.0, augmentation=Augmentation(shift=True))
    batches = Batches([make_scene(0)], config, RowMeans)
    with pytest.raises(ValueError, match=r"Scene scene0 lies in a single cell .* smaller than 1 m"):
        [batches[step] for step in range(20)]


def test_rates_by_hand():
    half = {"constant": 1.0, "exponential": 0.1, "poly": 0.5**0.9, "cosine": 0.5}
    for schedule, fraction in half.items():
        config = replace(CONFIG, schedule=schedule, final_rate=0.01)
        assert rate_fraction(0.0, config) == pytest.approx(1)
        assert rate_fraction(0.5, config) == pytest.approx(fraction)


class Guess(nn.Module):
    """Learns one vector, the mean target."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(4))

    def forward(self, batch):
        loss = (torch.cat([targets[0][:] for targets in batch.targets]) - self.mean).square().mean()
        return loss, {"losses": {"guess": loss.item()}}


class Killed(Exception):
    pass


def run_guess(out, *, stop_after=None, **changes):
    out.mkdir(exist_ok=True)
    learner, config = Guess(), replace(CONFIG, **{"schedule": "cosine", **changes})
    batches = Batches([make_scene(seed) for seed in range(3)], config, RowMeans)

    def on_step(done, total, line):
        assert total == 7
        assert line.startswith("guess ")
        if done == stop_after:
            raise Killed

    groups = [{"params": list(learner.parameters()), "lr": 0.1}]
    train(learner, groups, batches, out, on_step=on_step)
    return learner.mean.detach(), (out / "metrics.jsonl").read_text()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("stop_after", [2, 3, 5])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, optimizer, stop_after):
    mean, metrics = run_guess(tmp_path / "whole", optimizer=optimizer)
    with pytest.raises(Killed):
        run_guess(tmp_path / "cut", optimizer=optimizer, stop_after=stop_after)
    mean_again, metrics_again = run_guess(tmp_path / "cut", optimizer=optimizer)
    assert torch.equal(mean, mean_again)
    assert metrics == metrics_again


def test_metrics_tell_the_rate_that_was_used(tmp_path):
    rows = [json.loads(line) for line in run_guess(tmp_path)[1].splitlines()]
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["rate"] for row in rows] == [pytest.approx(0.05 * (1 + math.cos(math.pi * i / 7))) for i in range(7)]
    assert all(row["loss"] == row["losses"]["guess"] for row in rows)


@pytest.mark.parametrize("changes", [{"optimizer": "sgd"}, {"schedule": "poly"}, {"batch_size": 1}, {"seed": 1}])
def test_every_setting_of_the_loop_changes_the_result(tmp_path, changes):
    plain, changed = run_guess(tmp_path / "plain")[0], run_guess(tmp_path / "changed", **changes)[0]
    assert not torch.equal(plain, changed)


def test_clipping_bounds_the_gradient(tmp_path):
    start, _ = run_guess(tmp_path, optimizer="sgd", clip_norm=1e-6)
    assert 0 < start.norm() < 1e-5


def test_divergence_names_the_step_and_the_cure(tmp_path):
    learner = Guess()
    batches = Batches([make_scene(0)], CONFIG, RowMeans)
    with pytest.raises(ValueError, match=r"diverged: at step [1-7] .*guess.*Lower learning_rate"):
        train(learner, [{"params": list(learner.parameters()), "lr": 1e30}], batches, tmp_path)


def test_a_folder_holds_one_run(tmp_path, synthetic_store):
    scenes = [synthetic_store["synthetic"]]
    assert not begin_run(tmp_path / "run", CONFIG, synthetic_store, scenes)
    assert not begin_run(tmp_path / "run", CONFIG, synthetic_store, scenes)
    (tmp_path / "run" / "run.json").write_text("{}")
    assert begin_run(tmp_path / "run", CONFIG, synthetic_store, scenes)
    with pytest.raises(ValueError, match=r"another configuration.*Choose another folder"):
        begin_run(tmp_path / "run", replace(CONFIG, seed=3), synthetic_store, scenes)
    with pytest.raises(ValueError, match=r"finer than the 0\.05 m cells"):
        begin_run(tmp_path / "new", replace(CONFIG, voxel_size=0.04), synthetic_store, scenes)
    assert not (tmp_path / "new").exists()


def test_the_bar_takes_steps():
    with training_bars(["guess"]) as (on_step,):
        on_step(1, 2, "guess 0.5")
