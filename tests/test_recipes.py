import json
from dataclasses import asdict, replace
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional

from cuao3d.batches import Batches
from cuao3d.distill import distill
from cuao3d.fusion import Visibility, sample_cells
from cuao3d.objective import LossKind, RowMeans, WeightingKind
from cuao3d.recipes import (
    FOR_ANY_TEACHERS,
    MINI_TEACHERS,
    PAPER_TEACHERS,
    RECIPES,
    closed_set,
    mini,
    mini_supervised,
    openscene,
    ours,
    paper,
    released_code,
    with_teachers,
)
from cuao3d.run import load_run
from cuao3d.scene import Scene
from cuao3d.store import Store, TeacherCard
from cuao3d.student import ARCHITECTURES
from cuao3d.training import OPTIMIZERS, STUDENT_GROUP, train
from test_batches import make_scene


@pytest.mark.parametrize("recipe", [paper, released_code, openscene, ours, closed_set, mini, mini_supervised])
def test_recipes_name_only_what_exists_and_can_be_written_down(recipe):
    config = recipe(seed=5)
    assert config.seed == 5
    assert config.architecture in ARCHITECTURES
    assert config.optimizer in OPTIMIZERS
    assert json.loads(json.dumps(asdict(config)))["voxel_size"] == config.voxel_size
    if recipe is not mini_supervised:
        assert len(config.losses) == len(config.teachers)
        assert set(config.losses) <= set(get_args(LossKind))
        assert config.weighting in get_args(WeightingKind)


def test_the_paper_and_its_code_differ_as_the_method_says():
    told, theirs = paper(), released_code()
    assert (told.learning_rate, told.schedule, told.batch_size, told.num_epochs) == (1e-4, "exponential", 2, 50)
    assert (theirs.learning_rate, theirs.schedule, theirs.batch_size, theirs.num_epochs) == (1e-3, "poly", 4, 250)
    assert (told.points_per_scene, theirs.points_per_scene) == (20_000, 300_000)
    assert told.losses == ("cosine", "l1", "demeaned-cosine")
    assert theirs.losses == ("cosine", "cosine", "demeaned-cosine")
    assert (told.weighting, theirs.weighting) == ("uncertainty", "uncertainty-squared")
    assert told.augmentation.elastic
    assert not theirs.augmentation.elastic
    assert (theirs.augmentation.rotation, theirs.augmentation.tilt, theirs.augmentation.scale) == (180, 2.8, 0.1)


def test_the_whole_plan_of_the_paper_and_of_those_before_it():
    # docs/method.md and docs/differences.md, sections 4 to 6.
    for config in (paper(), released_code(), openscene()):
        assert (config.voxel_size, config.architecture, config.head) == (0.02, "MinkUNet18A", "linear")
        assert (config.optimizer, config.weight_decay, config.clip_norm) == ("adam", 0, None)
        assert (config.words, config.balance, config.sigma_lr, config.num_held_out) == (None, 0, None, 0)
        assert config.augmentation.flip
        assert config.augmentation.shift
        assert config.crop is None
    assert (paper().augmentation.rotation, paper().augmentation.tilt, paper().augmentation.scale) == (0, 0, 0)
    assert (released_code().seed, openscene().seed) == (1463, 1463)
    theirs = openscene()
    assert (theirs.teachers, theirs.losses, theirs.weighting) == (("lseg",), ("cosine",), "equal")
    assert (theirs.num_epochs, theirs.batch_size, theirs.points_per_scene) == (500, 8, 20_000)
    assert (theirs.learning_rate, theirs.schedule) == (1e-3, "poly")
    plan = ARCHITECTURES["MinkUNet18A"]
    assert (plan.planes, plan.num_blocks, plan.num_stem) == ((32, 64, 128, 256, 128, 128, 96, 96), (2,) * 8, 32)


class Pulled(nn.Module):
    """A student of one vector whose gradient at each step is given."""

    def __init__(self, gradients: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.gradients, self.seen = nn.Parameter(torch.zeros(4)), gradients, []

    def forward(self, batch):
        gradient = self.gradients[len(self.seen)]
        self.seen.append(self.weight.detach().clone())
        return (self.weight * gradient).sum(), {"losses": {"lseg": 0.0}}

    def finished(self):
        return self


def openscene_as_written(gradients: torch.Tensor) -> tuple[list[torch.Tensor], list[float]]:
    """Weights before, and rates of, each step of OpenScene's `run/distill.py` with its settings."""
    base_lr, power, index_split = 1e-4, 0.9, 0
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adam([weight], lr=base_lr)
    weights, rates = [], []
    for done, gradient in enumerate(gradients, start=1):
        weights.append(weight.detach().clone())
        rates.append(optimizer.param_groups[0]["lr"])
        weight.grad = gradient.clone()
        optimizer.step()
        current_lr = base_lr * (1 - done / len(gradients)) ** power
        for group in optimizer.param_groups[:index_split]:
            group["lr"] = current_lr
        for group in optimizer.param_groups[index_split:]:
            group["lr"] = current_lr * 10
    return weights, rates


def test_openscene_steps_as_its_code_does_from_the_second_step_on(tmp_path):
    # Eight scenes, five times an epoch, eight a batch: five steps an epoch.
    config = openscene(epochs=1)
    batches = Batches([make_scene(seed, 20) for seed in range(8)], config, RowMeans)
    gradients = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    learner = Pulled(gradients)
    group = {"name": STUDENT_GROUP, "params": [learner.weight]}
    group |= {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    train(learner, [group], batches, config, tmp_path)

    weights, rates = openscene_as_written(gradients)
    ours = [json.loads(line)["rate"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert ours[1:] == pytest.approx(rates[1:])
    assert (ours[0], rates[0]) == (pytest.approx(1e-3), 1e-4)  # the one step at the stated rate is not repeated
    steps, theirs = torch.stack(learner.seen).diff(dim=0), torch.stack(weights).diff(dim=0)
    torch.testing.assert_close(steps[1:], theirs[1:])
    torch.testing.assert_close(steps[0], 10 * theirs[0])


def test_openscene_runs_for_100_epochs_and_in_the_paper_for_50():
    assert openscene().num_epochs == 100 * 5
    assert openscene(epochs=50) == replace(openscene(), num_epochs=50 * 5)


def test_teachers_without_a_text_encoder_are_standardized_whatever_they_are_called():
    assert ours().normalizers == mini().normalizers == ("none", "standardize", "standardize")
    strangers = {"dinov2": TeacherCard(4, text="clip"), "gray": TeacherCard(1), "siglip2": TeacherCard(4, text=None)}
    for recipe in (ours, mini):
        assert recipe(teachers=strangers).normalizers == ("none", "standardize", "standardize")
        assert recipe(teachers=strangers).losses == ("cosine",) * 3


def test_a_recipe_keeps_its_losses_for_the_teachers_that_it_knows():
    strangers = {"gray": TeacherCard(1, loss="smooth-l1"), "stable_diffusion": TeacherCard(4, loss="l2")}
    teachers = strangers | {"dinov2": TeacherCard(4, loss="cosine")}
    assert paper(teachers=teachers).losses == ("smooth-l1", "demeaned-cosine", "l1")
    assert released_code(teachers=teachers).losses == ("smooth-l1", "demeaned-cosine", "cosine")
    assert openscene(teachers=teachers).losses == ("smooth-l1", "l2", "cosine")
    for recipe in (paper, released_code, openscene):
        assert recipe(teachers=teachers).teachers == ("gray", "stable_diffusion", "dinov2")
        assert recipe(teachers=teachers).normalizers == ("none",) * 3


def test_other_teachers_keep_the_loss_and_the_normalizer_that_a_configuration_gives_them():
    changed = with_teachers(mini(), {"new": TeacherCard(1, loss="l1"), "mini-dino": MINI_TEACHERS["mini-dino"]})
    assert (changed.losses, changed.normalizers) == (("l1", "cosine"), ("none", "standardize"))
    assert with_teachers(mini(), MINI_TEACHERS) == mini()


def test_recipes_have_names():
    assert [recipe() for recipe in RECIPES.values()] == [
        mini(),
        ours(),
        closed_set(),
        paper(),
        released_code(),
        openscene(),
    ]
    assert openscene().teachers == ("lseg",)
    assert paper().teachers == released_code().teachers == ours().teachers == tuple(PAPER_TEACHERS)
    assert set(FOR_ANY_TEACHERS) <= set(RECIPES)


def test_no_recipe_but_the_closed_set_is_told_a_word():
    for name, recipe in RECIPES.items():
        assert (recipe().words, recipe().balance) == (("nyu40", 0.5) if name == "closed-set" else (None, 0))
    closed, own = asdict(closed_set("mine.txt", seed=3)), asdict(ours(seed=3))
    assert {name: closed[name] for name in closed if closed[name] != own[name]} == {"words": "mine.txt", "balance": 0.5}


def test_mini_is_ours_at_another_size():
    own, small = asdict(ours(seed=3)), asdict(mini(seed=3))
    size = {"voxel_size", "architecture", "num_steps", "num_epochs", "points_per_scene", "crop", "learning_rate"}
    assert {name for name in own if own[name] != small[name]} <= size | {"teachers"}


def test_the_bound_differs_from_mini_only_in_what_is_learned():
    bound, own = asdict(mini_supervised(num_steps=7)), asdict(mini(num_steps=7))
    # Labels cost nothing, so the bound looks at all of them, and they have a learning rate of their own.
    shared = own.keys() & bound.keys() - {"points_per_scene", "learning_rate"}
    assert {name: bound[name] for name in shared} == {name: own[name] for name in shared}


@pytest.mark.parametrize("teachers", [MINI_TEACHERS, {"mini-lseg": MINI_TEACHERS["mini-lseg"]}])
def test_mini_trains(tmp_path, teachers, toy_words):
    toy_words(4)
    cards = {name: replace(card, num_channels=4) for name, card in MINI_TEACHERS.items()}
    store = Store.create(tmp_path / "store", cell=0.05, teachers=cards)
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    samples = sample_cells(points, store.cell)
    num_seen = len(samples.index_of_sample)
    visibility = Visibility((), torch.ones(num_seen, dtype=torch.int64))
    store.add_scene(
        Scene("a", points, ()), samples, visibility, {name: torch.ones(num_seen, 4) for name in MINI_TEACHERS}
    )
    run = distill(store, mini(teachers=teachers, num_steps=2), tmp_path / "run")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(last["losses"]) == set(teachers)
    assert "words" not in last
    assert ("sigmas" in last) == (len(teachers) > 1)


@pytest.mark.parametrize("normalizer", ["standardize", "phi-s"])
def test_wordless_teachers_are_learned_normalised_though_channels_are_nearly_constant(tmp_path, normalizer):
    cards = {"wall": TeacherCard(num_channels=3, text="minilm"), "other": TeacherCard(num_channels=4, loss="l1")}
    store = Store.create(tmp_path / "store", cell=0.05, teachers=cards)
    points = torch.rand(400, 3, generator=torch.Generator().manual_seed(0))
    wall = torch.arange(400) % 2
    points[torch.arange(400), wall] = 0.0
    samples = sample_cells(points, store.cell)
    on_wall, index = functional.one_hot(wall, 3).float(), samples.index_of_sample
    height, quantum = points[:, 2], (torch.arange(400) == index[0]) / 2  # the spacing of half precision at 1000
    other = torch.stack([1000 + quantum, torch.full((400,), 3.0), height, 1 - height], dim=1)
    visibility = Visibility((), torch.ones(len(index), dtype=torch.int64))
    store.add_scene(Scene("a", points, ()), samples, visibility, {"wall": on_wall[index], "other": other[index]})
    recipe = replace(ours(teachers=cards), words=None, balance=0.0, voxel_size=0.1, architecture="MinkUNet14Mini")
    assert recipe.losses == ("cosine", "cosine")
    config = replace(recipe, normalizers=("none", normalizer), num_steps=4, learning_rate=2e-2, weighting="equal")
    run = distill(store, config, tmp_path / "run")
    losses = [json.loads(line)["losses"]["other"] for line in (run / "metrics.jsonl").open()]
    assert losses[-1] < 0.8 * losses[0]
    head = load_run(run).student.heads["other"]
    assert head.bias[:2].tolist() == pytest.approx([1000, 3], rel=1e-3)
    assert head.weight.isfinite().all()
