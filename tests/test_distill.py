import json
import math
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cuao3d.augment import Augmentation
from cuao3d.batches import STILL, Batches, TrainingScene, voxelize_scene
from cuao3d.distill import DistillConfig, distill
from cuao3d.fusion import Visibility, sample_cells
from cuao3d.geometry import voxelize
from cuao3d.labels import label_set
from cuao3d.objective import RowMeans
from cuao3d.run import load_run
from cuao3d.scene import Scene
from cuao3d.store import Store, TeacherCard
from cuao3d.student import Norm, Student
from cuao3d.training import make_student
from written import spoil

CARDS = {
    "place": TeacherCard(num_channels=6, text="minilm", loss="cosine"),
    "height": TeacherCard(num_channels=4, loss="l1"),
    "noise": TeacherCard(num_channels=5, loss="demeaned-cosine"),
}
CONFIG = DistillConfig(
    teachers=("place", "height"),
    voxel_size=0.1,
    architecture="MinkUNet14Mini",
    num_steps=4,
    batch_size=2,
    optimizer="adamw",
    learning_rate=1e-2,
    schedule="cosine",
    augmentation=Augmentation(rotation=10.0),
    checkpoint_every=2,
)


def add_room(store: Store, name: str, *, seen: bool = True, split: str = "train") -> None:
    """Two walls in a corner; one teacher tells which wall, one the height, one makes up its answers."""
    generator = torch.Generator().manual_seed(len(name))
    points = torch.rand(400, 3, generator=generator)
    wall = torch.arange(400) % 2
    points[torch.arange(400), wall] = 0.0
    scene = Scene(name, points, (), labels=wall, label_set="scannet20", split=split)
    samples = sample_cells(points, store.cell)
    num_views = torch.ones(len(samples.index_of_sample), dtype=torch.int64) * int(seen)
    num_views[::5] = 0
    visibility = Visibility((), num_views)
    index = samples.index_of_sample[visibility.seen_samples]
    features = {
        "place": torch.eye(6)[wall[index]],
        "height": points[index, 2:].expand(-1, 4),
        "noise": torch.randn(len(index), 5, generator=generator) + 3,
    }
    store.add_scene(scene, samples, visibility, {teacher: features[teacher] for teacher in store.teachers})


def make_store(path: Path) -> Store:
    store = Store.create(path, cell=0.05, teachers=CARDS)
    for name in ("a", "bb", "ccc"):
        add_room(store, name)
    add_room(store, "dddd", split="val")
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("corners"))


@pytest.fixture(scope="module")
def plain_run(store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distill(store, CONFIG, tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def short_run(store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distill(store, replace(CONFIG, num_steps=2), tmp_path_factory.mktemp("short") / "run")


def read(run: Path, file: str) -> dict:
    return json.loads((run / file).read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first.keys() & second.keys())


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_student_its_configuration_its_metrics_and_the_cards_of_its_teachers(plain_run):
    run = plain_run
    assert {path.name for path in run.iterdir()} - {"tensorboard"} == {
        "config.json",
        "metrics.jsonl",
        "run.json",
        "student.safetensors",
    }
    assert read(run, "config.json")["config"]["losses"] == ["cosine", "l1"]
    assert read(run, "config.json")["config"]["augmentation"]["rotation"] == 10.0
    assert read(run, "run.json")["teachers"]["place"] == {
        "num_channels": 6,
        "text": "minilm",
        "loss": "cosine",
        "weights_sha256": None,
        "licence": None,
        "options": {},
        "code_sha256": None,
    }
    rows = metrics(run)
    assert [set(row["losses"]) for row in rows] == [{"place", "height"}] * 4
    assert rows[0]["sigmas"] == {"place": 1.0, "height": 1.0}
    assert rows[-1]["sigmas"] != rows[0]["sigmas"]


def test_same_seed_same_result(store, tmp_path, plain_run):
    again = distill(store, CONFIG, tmp_path / "again")
    other = distill(store, replace(CONFIG, seed=1), tmp_path / "other")
    assert equal(weights(plain_run), weights(again))
    assert not equal(weights(plain_run), weights(other))
    for file in ("config.json", "metrics.jsonl"):
        assert (plain_run / file).read_bytes() == (again / file).read_bytes()
        assert (plain_run / file).read_bytes() != (other / file).read_bytes()


def test_a_finished_run_is_left_as_it_is_and_an_interrupted_one_goes_on(store, tmp_path, plain_run):
    steps: list[int] = []

    def stop_after_three(done: int, total: int, line: str) -> None:
        steps.append(done)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(store, CONFIG, tmp_path, on_step=stop_after_three)
    with pytest.raises(FileNotFoundError, match=r"is not a finished run .*Start or resume it: cuao3d distill"):
        load_run(tmp_path)
    distill(store, CONFIG, tmp_path, on_step=stop_after_three)
    assert steps == [1, 2, 3, 3, 4]
    assert equal(weights(plain_run), weights(tmp_path))
    assert (plain_run / "metrics.jsonl").read_bytes() == (tmp_path / "metrics.jsonl").read_bytes()
    distill(store, CONFIG, tmp_path, on_step=stop_after_three)
    assert len(steps) == 5


def test_a_finished_run_is_read_back_and_a_damaged_one_is_refused(store, plain_run, tmp_path):
    run = load_run(plain_run)
    assert run.teachers == {name: CARDS[name] for name in CONFIG.teachers}
    assert (run.voxel_size, run.label_set) == (0.1, None)
    assert run.student.num_channels == {"place": 6, "height": 4}
    copy = shutil.copytree(plain_run, tmp_path / "copy")
    with (copy / "student.safetensors").open("ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match=r"student.safetensors is not the student of this run"):
        load_run(copy)
    (copy / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run.json lacks"):
        load_run(copy)


def test_the_student_learns_what_the_teachers_say(store, tmp_path):
    run = distill(store, replace(CONFIG, num_steps=10, weighting="equal"), tmp_path / "run")
    first, last = metrics(run)[0], metrics(run)[-1]
    assert last["losses"]["place"] < 0.7 * first["losses"]["place"]
    assert last["losses"]["height"] < 0.9 * first["losses"]["height"]
    assert "sigmas" not in last


def test_a_hopeless_teacher_gets_the_larger_sigma(store, tmp_path):
    config = replace(CONFIG, teachers=("place", "noise"), num_steps=6, sigma_lr=0.1, schedule="constant")
    sigmas = metrics(distill(store, config, tmp_path / "run"))[-1]["sigmas"]
    assert sigmas["noise"] > sigmas["place"] + 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"losses": ("l1", "l1")},
        {"losses": ("demeaned-cosine", "l2")},
        {"losses": ("smooth-l1", "cosine+smooth-l1")},
        *({"normalizers": ("none", kind)} for kind in ("demean", "standardize", "phi-s")),
        {"head": "mlp"},
        *({"weighting": kind} for kind in ("equal", "uncertainty-squared", "kendall", "free", "random")),
        {"weighting": "heteroscedastic"},
        {"weighting": "fixed", "fixed_weights": (1.0, 5.0)},
        {"sigma_lr": 0.5},
        {"teachers": ("place", "noise")},
        {"clip_norm": 1e-3},
        {"points_per_scene": 30},
        {"words": "nyu40"},
        {"points_per_scene": 30, "words": "nyu40", "balance": 1.0},
        {"crop": 60},
        {"num_parts": 2},
        {"num_held_out": 1},
        {"precision": "bf16"},
        {"voxel_size": 0.2},
        {"augmentation": Augmentation()},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_setting_changes_the_result(store, tmp_path, short_run, changes, toy_words):
    toy_words(CARDS["place"].num_channels)
    run = distill(store, replace(CONFIG, num_steps=2, **changes), tmp_path)
    assert not equal(weights(short_run), weights(run))


@pytest.mark.slow
def test_a_student_of_normalised_features_says_them_as_they_were(store, tmp_path):
    config = replace(CONFIG, num_steps=20, normalizers=("standardize", "phi-s"), losses=("l2", "l2"))
    run = load_run(distill(store, config, tmp_path))
    assert run.student.heads["height"].bias is not None
    scene = store["a"]
    points = scene.sample_points[scene.seen_samples]
    voxels = voxelize(points, CONFIG.voxel_size)
    coords = torch.nn.functional.pad(voxels.coordinates, (1, 0))
    with torch.no_grad():
        said = run.student.eval()(coords, torch.ones(len(coords), 3))["height"][voxels.voxel_of_point]
    height = points[:, 2:]
    assert (said - height).abs().mean() < 0.8 * (height.mean() - height).abs().mean()


@pytest.mark.slow
def test_a_heteroscedastic_student_knows_where_it_is_unsure(tmp_path):
    store = make_store(tmp_path / "store")
    config = replace(
        CONFIG,
        teachers=("place", "noise"),
        losses=("l2", "l2"),
        num_steps=15,
        batch_size=1,
        weighting="heteroscedastic",
    )
    student = load_run(distill(store, config, tmp_path / "run")).student
    coords = torch.nn.functional.pad(store["a"].sample_points.mul(10).long().unique(dim=0), (1, 0))
    with torch.no_grad():
        unsure = student.eval().unsureness(coords, torch.ones(len(coords), 3))
    assert unsure["noise"].mean() > 1.3 * unsure["place"].mean()
    assert unsure["place"].std() > 0


def change_new_students(monkeypatch, change) -> list[Student]:
    """Change students before they are trained; returns the list that they will be in."""
    made: list[Student] = []

    def make_changed(*args, **settings) -> Student:
        student = make_student(*args, **settings)
        change(student)
        made.append(deepcopy(student))
        return student

    monkeypatch.setattr("cuao3d.distill.make_student", make_changed)
    return made


def test_heteroscedastic_losses_are_the_likelihood_of_a_gaussian(store, tmp_path, monkeypatch):
    # -log N(T; F, sigma) = |T - F|^2 / (2 sigma^2) + log sigma + log(2 pi) / 2.
    sigmas = {"place": 0.5, "height": 3.0}

    def plant(student: Student) -> None:
        student.noise.bias.data = 2 * torch.tensor(list(sigmas.values())).log()

    change_new_students(monkeypatch, plant)
    config = replace(CONFIG, losses=("l2", "l2"), num_steps=1, weighting="heteroscedastic")
    (row,) = metrics(distill(store, config, tmp_path))
    assert row["sigmas"] == pytest.approx(sigmas)
    expected = sum(row["losses"][name] / (2 * sigma**2) + math.log(sigma) for name, sigma in sigmas.items())
    assert row["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("clip_norm", [1e-9, None])
def test_sigmas_step_by_their_own_rate_and_are_not_clipped(store, tmp_path, clip_norm):
    # d/dsigma of L / (2 sigma^2) + log(1 + sigma) is 1/2 - L at sigma = 1.
    config = replace(CONFIG, optimizer="sgd", sigma_lr=0.2, schedule="constant", num_steps=2, clip_norm=clip_norm)
    first, second = metrics(distill(store, config, tmp_path))
    for name, loss in first["losses"].items():
        assert second["sigmas"][name] == pytest.approx(1 - 0.2 * (0.5 - loss), rel=1e-5)


def two_words(path: Path) -> Store:
    """Ten lone samples whose teacher says one word, and in another scene forty that say another."""
    store = Store.create(path, cell=0.05, teachers=CARDS)
    for word, (name, num_samples) in enumerate((("few", 10), ("many", 40))):
        points = torch.arange(num_samples)[:, None] * torch.tensor([0.2, 0.4, 0.0])
        samples = sample_cells(points, store.cell)
        features = {teacher: torch.ones(num_samples, card.num_channels) for teacher, card in CARDS.items()}
        features["place"] = torch.eye(6)[word].expand(num_samples, 6)
        visibility = Visibility((), torch.ones(num_samples, dtype=torch.int64))
        store.add_scene(Scene(name, points, ()), samples, visibility, features)
    return store


def test_every_voxel_counts_alike_whichever_scene_it_is_of(tmp_path, monkeypatch, toy_words):
    def blindfold(student: Student) -> None:
        for module in student.modules():
            if isinstance(module, Norm):
                module.weight.data.zero_()
                module.bias.data.fill_(1)

    toy_words(6)
    store, made = two_words(tmp_path / "store"), change_new_students(monkeypatch, blindfold)
    config = replace(CONFIG, teachers=("height", "place"), words="nyu40", weighting="equal", augmentation=STILL)
    row = metrics(distill(store, replace(config, num_steps=1), tmp_path / "run"))[0]
    with torch.no_grad():
        said = made[0].eval()(torch.tensor([[0, 0, 0, 0]]), torch.ones(1, 3))["place"][0]  # whatever the voxel
    toward = torch.nn.functional.normalize(said, dim=0)
    words = torch.eye(6)[torch.arange(len(label_set("nyu40"))) % 6]
    of_few, of_many = (
        torch.nn.functional.cross_entropy(words @ toward / 0.05, (words @ words[word] / 0.05).softmax(dim=0)).item()
        for word in (0, 1)
    )
    assert row["words"] == pytest.approx((10 * of_few + 40 * of_many) / 50, rel=1e-4)
    assert row["losses"]["place"] == pytest.approx(1 - ((10 * toward[0] + 40 * toward[1]) / 50).item(), rel=1e-4)
    assert row["loss"] == pytest.approx(sum(row["losses"].values()) + row["words"], rel=1e-5)


@pytest.fixture
def shown(monkeypatch) -> dict[str, TrainingScene]:
    """What batches are drawn from, by scene."""
    scenes_by_name: dict[str, TrainingScene] = {}

    class Spy(Batches):
        def __init__(self, scenes, *rest):
            scenes_by_name.update({scene.name: scene for scene in scenes})
            super().__init__(scenes, *rest)

    monkeypatch.setattr("cuao3d.distill.Batches", Spy)
    return scenes_by_name


@pytest.mark.parametrize(("balance", "ratio"), [(0.5, 2.0), (1.0, 4.0)])
def test_balance_draws_rare_words_more_often(tmp_path, shown, toy_words, balance, ratio):
    toy_words(6)
    config = replace(CONFIG, words="nyu40", balance=balance, num_steps=1)
    distill(two_words(tmp_path / "store"), config, tmp_path / "run")
    few, many = shown["few"].chances, shown["many"].chances
    torch.testing.assert_close(few / many[0], torch.full((10,), ratio))
    torch.testing.assert_close(many, many[:1].expand(40))


def test_rows_without_a_finite_feature_are_taken_out_of_all_teachers_alike(tmp_path, shown):
    store = make_store(tmp_path / "store")
    spoil(store, "bb", "height", slice(3, 5))
    spoil(store, "bb", "place", slice(4, 8))
    scene = store["bb"]
    kept = torch.tensor([row for row in range(len(scene.seen_samples)) if row not in range(3, 8)])
    with pytest.warns(UserWarning, match="Scene bb"):
        distill(store, replace(CONFIG, num_steps=1), tmp_path / "run")
    assert torch.equal(shown["bb"].rows, scene.index_of_sample[scene.seen_samples[kept]])
    assert set(shown["bb"].row_of_point.tolist()) == {-1, *range(len(kept))}
    for name, target in zip(CONFIG.teachers, shown["bb"].targets, strict=True):
        assert torch.equal(target, scene.features(name)[kept])


def test_a_student_without_noise_says_how_to_get_it(plain_run):
    student = load_run(plain_run).student
    with pytest.raises(ValueError, match=r"--config\.weighting heteroscedastic"):
        student.unsureness(torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 3))


def test_the_language_teacher_must_stay_as_it_is_where_words_are_compared(store, tmp_path, toy_words):
    toy_words(CARDS["place"].num_channels)
    with pytest.raises(ValueError, match="its normalizer must be 'none'"):
        distill(store, replace(CONFIG, words="nyu40", normalizers=("phi-s", "none")), tmp_path / "run")


def test_words_do_nothing_where_no_teacher_understands_them(store, tmp_path):
    without = replace(CONFIG, teachers=("height",), num_steps=2)
    runs = [distill(store, replace(without, words=words), tmp_path / str(words)) for words in (None, "nyu40")]
    assert equal(*(weights(run) for run in runs))


def test_scenes_that_no_view_sees_are_left_out_and_reported(tmp_path):
    store = make_store(tmp_path / "store")
    add_room(store, "eeeee", seen=False)
    run = distill(store, replace(CONFIG, num_steps=1), tmp_path / "run")
    assert read(run, "run.json")["skipped_scenes"] == ["eeeee"]


def test_bad_input_is_refused_before_anything_is_written(store, tmp_path):
    with pytest.raises(ValueError, match=r"no features of lseg; it holds those of place, height, noise"):
        distill(store, replace(CONFIG, teachers=("lseg", "place")), tmp_path / "run")
    with pytest.raises(ValueError, match=r"\(--config.losses\) do not fit teachers"):
        distill(store, replace(CONFIG, losses=("l1",)), tmp_path / "run")
    with pytest.raises(ValueError, match=r"Normalizers \('phi-s',\) \(--config.normalizers\) do not fit teachers"):
        distill(store, replace(CONFIG, normalizers=("phi-s",)), tmp_path / "run")
    with pytest.raises(ValueError, match=r"finer than the 0.05 m cells"):
        distill(store, replace(CONFIG, voxel_size=0.02), tmp_path / "run")
    empty = Store.create(tmp_path / "empty", cell=0.05, teachers=CARDS)
    add_room(empty, "a", seen=False)
    with pytest.raises(ValueError, match=r"no training scene that a view sees \(1 training scenes in all\)"):
        distill(empty, CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_samples_whose_features_are_no_numbers_are_named_and_not_learned_from(tmp_path):
    store = make_store(tmp_path / "store")
    spoil(store, "bb", "height", slice(3, 5))
    spoil(store, "bb", "place", slice(4, 8))
    spoil(store, "ccc", "place", slice(None))
    with pytest.warns(UserWarning, match="non-finite features") as warned:
        run = distill(store, CONFIG, tmp_path / "run")
    num_seen = len(store["ccc"].seen_samples)
    said = [str(warning.message) for warning in warned]
    assert any(
        "Scene bb: " in line and "4 samples by teacher 'place', 2 samples by teacher 'height'" in line for line in said
    )
    assert read(run, "run.json")["masked_samples"] == {"bb": {"place": 4, "height": 2}, "ccc": {"place": num_seen}}
    assert read(run, "run.json")["skipped_scenes"] == ["ccc"]
    assert all(row["loss"] == row["loss"] for row in metrics(run))
    assert all(bool(tensor.isfinite().all()) for tensor in weights(run).values())


def test_a_store_of_no_numbers_at_all_is_refused(tmp_path):
    store = make_store(tmp_path / "store")
    for name in store.names("train"):
        spoil(store, name, "place", slice(None))
    with (
        pytest.warns(UserWarning, match="non-finite features"),
        pytest.raises(ValueError, match=r"too few training scenes"),
    ):
        distill(store, CONFIG, tmp_path / "run")


def test_held_out_scenes_are_training_scenes_and_choose_the_student(store, tmp_path):
    seen: set[str] = set()
    config = replace(CONFIG, num_held_out=1, checkpoint_every=1, learning_rate=0.1, schedule="constant")
    for seed in range(4):
        run = distill(store, replace(config, seed=seed, num_steps=0 if seed else 4), tmp_path / str(seed))
        (name,) = read(run, "run.json")["held_out"]
        assert read(run, "config.json")["held_out"] == [name]
        seen.add(name)
    assert len(seen) > 1
    assert seen <= set(store.names("train"))
    run, rows = tmp_path / "0", metrics(tmp_path / "0")
    looks = [row["validation"] for row in rows]
    assert [look["loss"] for look in looks] == [pytest.approx(sum(look["losses"].values())) for look in looks]
    best = min(range(4), key=lambda step: looks[step]["loss"])
    assert read(run, "run.json")["best_step"] == best + 1
    assert read(run, "run.json")["best_loss"] == looks[best]["loss"]
    assert (run / "student.safetensors").read_bytes() == (run / "best.safetensors").read_bytes()
    with pytest.raises(ValueError, match="Of 3 training scenes 3 cannot be held out"):
        distill(store, replace(CONFIG, num_held_out=3), tmp_path / "none")


def test_held_out_losses_are_those_of_the_finished_student_in_evaluation_mode(store, tmp_path):
    config = replace(CONFIG, num_held_out=1, num_steps=2)
    run = distill(store, config, tmp_path)
    (name,) = read(run, "run.json")["held_out"]
    scene, student = store[name], load_run(run).student.eval()
    features = tuple(scene.features(teacher) for teacher in CONFIG.teachers)
    shown = TrainingScene.of(scene, scene.seen_samples, features)
    whole = replace(config, augmentation=STILL, points_per_scene=None)
    batch = voxelize_scene(shown, whole, RowMeans, torch.Generator())
    with torch.no_grad():
        said = student(batch.coordinates, torch.ones(len(batch.coordinates), 3))
    place, height = (said[teacher][batch.supervised] for teacher in CONFIG.teachers)
    expected = {
        "place": 1 - torch.nn.functional.cosine_similarity(place, batch.targets[0][0][:].float()).mean().item(),
        "height": (height - batch.targets[0][1][:].float()).abs().mean().item(),
    }
    assert metrics(run)[-1]["validation"]["losses"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_from_a_checkpoint_of_another_folder(store, tmp_path, plain_run):
    config = replace(CONFIG, keep_every=3)
    whole = distill(store, config, tmp_path / "whole")
    assert equal(weights(whole), weights(plain_run))
    on = distill(store, config, tmp_path / "on", resume=whole / "checkpoint-000003.safetensors")
    again = distill(store, config, whole, resume="never")
    for run in (on, again):
        assert (run / "student.safetensors").read_bytes() == (plain_run / "student.safetensors").read_bytes()
        assert (run / "metrics.jsonl").read_bytes() == (plain_run / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="is not of this run"):
        distill(store, replace(config, seed=1), tmp_path / "other", resume=whole / "checkpoint-000003.safetensors")


def test_half_precision_starts_the_same_up_to_its_rounding_and_learns(store, tmp_path, plain_run):
    rows = metrics(distill(store, replace(CONFIG, precision="bf16"), tmp_path))
    assert rows[0]["losses"] != metrics(plain_run)[0]["losses"]
    assert rows[0]["losses"] == pytest.approx(metrics(plain_run)[0]["losses"], rel=0.01)
    assert rows[-1]["losses"]["place"] < 0.8 * rows[0]["losses"]["place"]
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights(tmp_path).values())
