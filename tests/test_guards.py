"""Before a distillation: what a constant output would get, and what a person is told about it."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from cuao3d import guards
from cuao3d.batches import BatchConfig, TrainingScene
from cuao3d.distill import distill
from cuao3d.geometry import group_mean, voxelize
from cuao3d.guards import Lesson, check_targets
from cuao3d.objective import LOSSES, best_constant, fit_normalizer
from test_distill import CONFIG, make_store
from test_objective import materialised_loss

KINDS = ("cosine", "demeaned-cosine", "l1", "l2", "smooth-l1", "cosine+smooth-l1")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss_of(output, features, kind):
    """Loss of the same output (C,) at every point: a head that reads the number 1."""
    return materialised_loss(torch.ones(len(features), 1).double(), output[None], features.double(), kind)


def lowest_loss(features, kind):
    """Loss of the best constant as gradient descent finds it, or the one of NumPy's median."""
    if kind == "l1":
        return float(loss_of(torch.from_numpy(np.median(features.double(), axis=0)), features, kind))
    constant = (features.mean(dim=0).double() + 0.1).requires_grad_()
    descent = torch.optim.LBFGS([constant], max_iter=200, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def loss():
        descent.zero_grad()
        value = loss_of(constant, features, kind)
        value.backward()
        return value

    descent.step(loss)
    return loss().item()


def test_best_constants_by_hand():
    apart = torch.tensor([[2.0, 0.0], [0.0, 5.0]])  # unit features whose mean has length 1 / sqrt(2)
    assert best_constant(apart, "cosine").loss == pytest.approx(1 - math.sqrt(0.5))
    assert best_constant(apart, "demeaned-cosine").loss == pytest.approx(1)  # (1, -1) and (-1, 1)
    numbers = torch.tensor([[1.0], [1.0], [7.0]])
    assert vars(best_constant(numbers, "l1")) == {"loss": 2, "loss_of_zero": 3}
    assert vars(best_constant(numbers, "l2")) == {"loss": pytest.approx(8), "loss_of_zero": 17}
    assert best_constant(numbers, "smooth-l1").loss == pytest.approx((0.125 + 0.125 + 5.5 - 0.5) / 3)  # at 1.5
    assert best_constant(torch.zeros(3, 2), "l1").share == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalizer", ["none", "phi-s"])
def test_no_constant_has_a_lower_loss(kind, normalizer):
    features = randn(60, 4) * torch.tensor([0.3, 1.0, 2.0, 4.0]) + torch.tensor([5.0, 1.0, 0.0, -3.0])
    fitted = fit_normalizer(normalizer, [features])
    learned = features if fitted is None else fitted(features.double())
    lowest = lowest_loss(learned, kind)
    constant = best_constant(features, kind, fitted)
    if kind == "cosine+smooth-l1":
        assert lowest <= constant.loss + 1e-5 <= 1.05 * lowest
    else:
        assert constant.loss == pytest.approx(lowest, rel=1e-4)
    assert constant.loss_of_zero == pytest.approx(float(loss_of(torch.zeros(4).double(), learned, kind)), rel=1e-5)


def make_scenes(*features, num_points=300):
    """Scenes of random points; `features` holds a function of the points for each teacher."""
    scenes = []
    for seed in range(2):
        points = torch.rand(num_points, 3, generator=torch.Generator().manual_seed(seed))
        targets = tuple(make(points).half() for make in features)
        scenes.append(TrainingScene(str(seed), points, torch.arange(num_points), targets))
    return scenes


def place(points):
    return torch.cat([points, 1 - points], dim=1) - 0.5


def lesson(name, loss="cosine", kind="none", features=None):
    return Lesson(name, loss, kind, None if features is None else fit_normalizer(kind, features))


def warnings_of(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]


@pytest.mark.parametrize("loss", ["cosine", "l1", "l2", "smooth-l1", "cosine+smooth-l1"])
def test_a_nearly_constant_target_is_named_with_the_cure_which_cures_it(capsys, loss):
    scenes = make_scenes(place, lambda points: place(points) / 10 + torch.tensor([30.0, 0, 0, 0, 0, 0]))
    config = BatchConfig(voxel_size=0.1)
    first, flat = lesson("place"), lesson("flat", loss)
    results = check_targets(scenes, [first, flat], config)
    assert results["flat"]["constant_share"] < guards.NEARLY_CONSTANT < results["place"]["constant_share"]
    (warning,) = warnings_of(capsys)
    assert "teacher 'flat' is nearly constant" in warning
    assert "--config.normalizers none standardize (a constant then has " in warning
    assert "leave it out (--teachers place)" in warning
    features = [scene.targets[1] for scene in scenes]
    cured = check_targets(scenes, [first, lesson("flat", loss, "standardize", features)], config)
    assert cured["flat"]["constant_share"] > 0.5
    (said,) = re.findall(r"a constant then has ([\d.]+)", warning)
    assert float(said) == pytest.approx(cured["flat"]["constant_share"], abs=0.02)
    assert warnings_of(capsys) == []


@pytest.mark.parametrize("kind", ["none", "standardize", "phi-s"])
@pytest.mark.parametrize(
    ("features", "words"),
    [
        (lambda points: torch.full((len(points), 4), 0.3), "are constant: the same at every point"),
        (lambda points: torch.zeros(len(points), 4), "are constant"),
        (lambda points: 30 + torch.rand(len(points), 4) / 100, "are constant"),  # half precision steps by 1 / 64
        (lambda points: points[:, :1] * torch.tensor([1.0, -2.0, 0.5, 0.01]) + 1, "are of rank one: 9"),
        (lambda points: points[:, :1].expand(-1, 4), "are of rank one"),
    ],
)
def test_constant_features_and_those_of_rank_one_have_messages_of_their_own(capsys, kind, features, words):
    scenes = make_scenes(place, features)
    given = lesson("odd", "demeaned-cosine", kind, [scene.targets[1] for scene in scenes])
    results = check_targets(scenes, [lesson("place"), given], BatchConfig(voxel_size=0.1))
    (warning,) = warnings_of(capsys)
    assert f"features of teacher 'odd' {words}" in warning
    assert "leave it out (--teachers place)" in warning
    assert results["odd"]["rank"] < 1.3
    assert results["place"]["rank"] == pytest.approx(3, abs=0.05)  # three coordinates, each told twice


def test_one_channel_may_be_of_rank_one(capsys):
    scenes = make_scenes(lambda points: points[:, :1])
    check_targets(scenes, [lesson("height", "l1")], BatchConfig(voxel_size=0.1))
    assert warnings_of(capsys) == []


def test_all_voxels_are_looked_at_where_they_fit_and_else_a_part_of_each_scene(monkeypatch):
    scenes, config = make_scenes(place, num_points=2000), BatchConfig(voxel_size=0.2, points_per_scene=10)
    pooled = []
    for scene in scenes:
        voxels = voxelize(scene.points, 0.2)
        pooled.append(group_mean(scene.targets[0].float(), voxels.voxel_of_point, len(voxels.coordinates)))
    whole = check_targets(scenes, [lesson("place")], config)["place"]
    assert (whole["exact"], whole["num_voxels"]) == (True, sum(map(len, pooled)))
    assert whole["constant_loss"] == pytest.approx(best_constant(torch.cat(pooled), "cosine").loss, abs=1e-4)
    monkeypatch.setattr(guards, "SAMPLE_VALUES", 6 * 2 * 80)
    part = check_targets(scenes, [lesson("place")], config)["place"]
    assert (part["exact"], part["num_voxels"]) == (False, 2 * 80)
    assert part == check_targets(scenes, [lesson("place")], config)["place"]
    assert part["constant_loss"] == pytest.approx(whole["constant_loss"], abs=0.1)
    monkeypatch.setattr(guards, "SAMPLE_VALUES", 6 * 70)  # too few for both scenes
    assert check_targets(scenes, [lesson("place")], config)["place"]["num_voxels"] == 70


def test_a_run_records_the_figures_and_says_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(LOSSES, "own", lambda predicted, target: (predicted - target).square().mean(dim=1))
    config = replace(CONFIG, teachers=("place", "height", "noise"), losses=("cosine", "l1", "own"), num_steps=0)
    run = distill(make_store(tmp_path / "store"), config, tmp_path / "run")
    targets = json.loads((run / "run.json").read_text())["targets"]
    assert targets["place"]["constant_loss"] == pytest.approx(1 - math.sqrt(0.5), abs=0.01)  # one of two walls
    assert targets["height"]["constant_share"] == pytest.approx(0.5, abs=0.05)  # uniform in [0, 1]: 1/4 of 1/2
    assert targets["noise"].keys() == {"rank", "num_voxels", "exact", "skipped"}
    said = capsys.readouterr().err
    assert "best constant output: place 0.28" in said
    assert "noise not known (a custom loss)" in said
    assert "'height' are of rank one" in said
