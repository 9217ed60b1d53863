"""The configuration of a stage as its user meets it: every setting is an option, and none is silently ignored."""

import json
from dataclasses import asdict, replace
from itertools import count

import pytest
import torch

from cuao3d import recipes
from cuao3d.cli import main
from cuao3d.cli.distill import Recipe
from cuao3d.fusion import Visibility, sample_cells
from cuao3d.run import load_run
from cuao3d.scene import Scene
from cuao3d.store import Store, TeacherCard
from test_cli import says

NO_STEPS = ("--steps", "0")


def make_store(path, cards, cell=0.02):
    """A scene of 60 points, of which teachers of 4 channels say something at random."""
    store = Store.create(
        path, cell=cell, teachers={name: replace(card, num_channels=4) for name, card in cards.items()}
    )
    points = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    samples = sample_cells(points, cell)
    num_samples = len(samples.index_of_sample)
    visibility = Visibility((), torch.ones(num_samples, dtype=torch.int64))
    store.add_scene(Scene("a", points, ()), samples, visibility, {name: torch.randn(num_samples, 4) for name in cards})
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("paper") / "store", recipes.PAPER_TEACHERS)


@pytest.fixture(scope="module")
def mini_store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("mini") / "store", recipes.MINI_TEACHERS)


@pytest.fixture(autouse=True)
def words_of_four_channels(toy_words):
    toy_words(4)


@pytest.fixture
def distil(store, tmp_path):
    """Distils a store for no steps, into a folder that is new unless told, and returns what its run says of itself."""
    number = count()

    def distil(*options, store=store, out=None):
        out = out or tmp_path / str(next(number))
        assert main(["distill", str(store.path), "--out", str(out), *NO_STEPS, *options]) == 0
        return saved(out)

    return distil


def saved(run):
    return json.loads((run / "config.json").read_text())["config"]


def as_json(config):
    return json.loads(json.dumps(asdict(config)))


@pytest.mark.parametrize("name", Recipe.__args__)
def test_a_recipe_is_what_runs(name, store, tmp_path):
    out = tmp_path / "run"
    assert main(["distill", str(store.path), "--out", str(out), "--recipe", name, *NO_STEPS]) == 0
    recipe = recipes.RECIPES[name](**({"teachers": store.teachers} if name == "mini" else {}))
    assert saved(out) == as_json(recipe) | {"num_steps": 0}
    assert tuple(load_run(out).student.num_channels) == recipe.teachers


def test_the_command_line_knows_the_recipes():
    assert Recipe.__args__ == tuple(recipes.RECIPES)


def test_mini_is_made_for_the_teachers_of_the_store(distil, mini_store):
    assert distil(store=mini_store) == as_json(recipes.mini(num_steps=0))
    assert distil("--recipe", "ours", store=mini_store) == as_json(
        replace(recipes.ours(teachers=recipes.MINI_TEACHERS), num_steps=0)
    )


def test_no_steps_leave_the_initial_student(distil, tmp_path):
    for seed in ("0", "1"):
        distil("--seed", seed, out=tmp_path / seed)
    first, other = (load_run(tmp_path / seed).student.state_dict() for seed in ("0", "1"))
    assert (tmp_path / "0" / "metrics.jsonl").read_text() == ""
    assert not (tmp_path / "0" / "training.png").exists()
    assert all(bool(tensor.isfinite().all()) for tensor in first.values())
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_every_setting_is_an_option(distil):
    typed = distil(
        *("--config.weighting", "kendall", "--config.batch-size=4", "--config.precision", "bf16"),
        *("--config.losses", "l1", "l2", "cosine", "--config.augmentation.rotation", "5", "--config.clip-norm", "None"),
        *("--config.augmentation.no-flip", "--voxel-size", "0.2", "--seed", "7"),
    )
    augmentation = replace(recipes.mini().augmentation, rotation=5.0, flip=False)
    plain = recipes.mini(teachers=recipes.PAPER_TEACHERS, num_steps=0, seed=7)
    changed = replace(plain, weighting="kendall", batch_size=4, precision="bf16", losses=("l1", "l2", "cosine"))
    assert typed == as_json(replace(changed, augmentation=augmentation, clip_norm=None, voxel_size=0.2))


def test_what_is_typed_counts_even_where_it_is_the_recipes_default(distil):
    assert distil("--recipe", "ours", "--teachers", "lseg")["weighting"] == "equal"
    assert distil("--recipe", "ours", "--teachers", "lseg", "--config.weighting", "uncertainty")["weighting"] == (
        recipes.ours().weighting
    )


def test_a_number_of_epochs_takes_the_place_of_a_recipes_steps(store, tmp_path):
    command = [
        "distill",
        str(store.path),
        "--out",
        str(tmp_path),
        "--config.num-epochs",
        "2",
        "--config.batch-size",
        "1",
    ]
    assert main(command) == 0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_goes_where_another_went(distil, store, tmp_path):
    first, run = ("--config.weighting", "kendall", "--config.losses", "l1", "l2", "cosine"), tmp_path / "first"
    config = distil(*first, "--seed", "3", out=run)
    assert (config["weighting"], config["losses"], config["seed"]) == ("kendall", ["l1", "l2", "cosine"], 3)
    for file in (run / "config.json", run):
        assert distil("--config-file", str(file)) == config
    other = distil("--config-file", str(run), "--teachers", "dinov2", "--config.weighting", "equal")
    assert (other["teachers"], other["losses"], other["weighting"]) == (["dinov2"], ["l2"], "equal")


def test_a_damaged_configuration_is_named(store, tmp_path, capsys):
    command = ["distill", store.path, "--out", tmp_path / "run", "--config-file", tmp_path / "config.json"]
    says(capsys, command, "config.json")
    for content, *words in (
        ("{", "is not valid JSON"),
        ('{"kind": "SuperviseConfig", "config": {}}', "DistillConfig", "SuperviseConfig"),
        ('{"kind": "DistillConfig", "config": {"lerning_rate": 1}}', "lerning_rate", "learning_rate"),
        ('{"kind": "DistillConfig", "config": {"learning_rate": "fast"}}', "learning_rate", "'fast'", "a number"),
        ('{"kind": "DistillConfig", "config": {"weighting": "fair"}}', "'fair'", "kendall"),
        (
            '{"kind": "DistillConfig", "config": {"augmentation": {"flip": 1}}}',
            "augmentation.flip is 1",
            "true or false",
        ),
    ):
        (tmp_path / "config.json").write_text(content)
        says(capsys, command, tmp_path / "config.json", *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--steps", "1", "--config.num-steps", "2"), ("--steps", "--config.num-steps")),
        (("--seed", "1", "--config.seed", "2"), ("--seed", "--config.seed")),
        (("--voxel-size", "1", "--config.voxel-size", "2"), ("--voxel-size", "--config.voxel-size")),
        (("--teachers", "lseg", "--config.teachers", "dinov2"), ("--teachers", "--config.teachers")),
        (("--steps", "1", "--config.num-epochs", "2"), ("--steps", "--config.num-epochs")),
        (("--recipe", "mini", "--config-file", "x"), ("--recipe", "--config-file")),
        (("--config.final-rate", "0.1"), ("--config.final-rate", "--config.schedule exponential")),
        (("--config.fixed-weights", "1"), ("--config.fixed-weights", "--config.weighting fixed")),
        (("--config.sigma-lr", "1", "--config.weighting", "equal"), ("--config.sigma-lr", "equal")),
        (("--config.words", "nyu40", "--teachers", "dinov2"), ("--config.words", "text encoder")),
        (("--config.balance", "1", "--config.words", "None"), ("--config.balance", "--config.words")),
        (
            ("--config.balance", "1", "--config.words", "nyu40", "--config.points-per-scene", "None"),
            ("--config.points-per-scene",),
        ),
        (("--config.weighting", "fixed"), ("--config.fixed-weights",)),
        (("--config.losses", "l1"), ("--config.losses",)),
        (("--config.batch-size", "3", "--config.num-parts", "2"), ("--config.batch-size",)),
        (("--config.num-held-out", "1"), ("--config.num-held-out",)),
        (("--config.architecture", "UNet"), ("'UNet'", "MinkUNet18A")),
        (("--config.words", "nyu"), ("'nyu'", "nyu40")),
        (("--config.num-steps", "-1"), ("--config.num-steps",)),
        (("--config.learning-rate", "nan"), ("--config.learning-rate",)),
        (("--config.batch-size", "0"), ("--config.batch-size",)),
        (("--voxel-size", "0.01"), ("--voxel-size", "--cell")),
        (("--config.voxel-size", "0.01"), ("--voxel-size", "--cell")),
        (("--teachers", "lseg,lsg"), ("lsg", "--teachers", "lseg, dinov2, stable_diffusion")),
        (("--teachers", ""), ("--teachers", "lseg, dinov2, stable_diffusion")),
        (("--teachers", "lseg,lseg"), ("--teachers", "twice")),
        (("--device", "cuda:7"), ("--device", "cpu")),
    ],
    ids=lambda part: " ".join(part),
)
def test_contradictions_and_settings_without_effect_are_refused(store, tmp_path, capsys, options, words):
    says(capsys, ["distill", store.path, "--out", tmp_path / "run", *options], *words)
    assert not (tmp_path / "run").exists()


def test_a_recipe_whose_teachers_the_store_lacks_says_how_to_choose(mini_store, tmp_path, capsys):
    for name in ("paper", "released-code", "openscene"):
        command = ["distill", mini_store.path, "--out", tmp_path / "run", "--recipe", name]
        says(capsys, command, "lseg", "mini-lseg, mini-dino", "--teachers")


def test_a_recipe_learns_from_other_teachers_by_their_own_loss(distil, mini_store):
    config = distil("--recipe", "paper", "--teachers", "mini-dino,mini-diffusion", store=mini_store)
    assert (config["teachers"], config["losses"]) == (["mini-dino", "mini-diffusion"], ["l1", "demeaned-cosine"])
    assert config["schedule"] == "exponential"


def test_a_recipe_finer_than_the_store_says_so(tmp_path, capsys):
    store = make_store(tmp_path / "store", {"lseg": TeacherCard(4, text="lseg")}, cell=0.05)
    command = ["distill", str(store.path), "--out", str(tmp_path / "run"), "--recipe", "openscene", *NO_STEPS]
    assert main(command) == 0
    assert "Voxels of 0.05 m" in capsys.readouterr().err
    assert saved(tmp_path / "run")["voxel_size"] == 0.05


def test_the_demo_takes_its_settings_too(monkeypatch, tmp_path):
    from cuao3d import demo

    asked = []

    def stand_in(out, *, seed, config, num_workers):
        asked.append(config)
        return {"rows": [], "missing": {}}

    monkeypatch.setattr(demo, "demo", stand_in)
    assert main(["demo", "--quick", "--config.num-views", "2", "--config.supervised", "--out", str(tmp_path)]) == 0
    assert asked == [replace(demo.QUICK, num_views=2, supervised=True)]
