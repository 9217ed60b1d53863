import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cuao3d import labels, recipes
from cuao3d.cli import main
from cuao3d.distill import distill
from cuao3d.fusion import Samples, Visibility
from cuao3d.labels import label_set
from cuao3d.probe import CONSTANT, SHUFFLED, learn, probe, probe_geometry, surface_error
from cuao3d.run import load_run
from cuao3d.scene import Scene
from cuao3d.store import Store, TeacherCard
from cuao3d.student import Student
from cuao3d.subjects import Subjects
from cuao3d.supervise import supervise
from test_cli import says

CLASSES = label_set("scannet20")
TEACHERS = {"clear": TeacherCard(4), "blind": TeacherCard(3)}
SPLITS = {"a": "train", "b": "train", "c": "val"}


def add_scene(store, name, split, *, num_seen=80, labelled=True, classes=(0, 1, 2)):
    """A hundred points, a sample each, whose height and class "clear" knows and of which "blind" knows nothing."""
    generator = torch.Generator().manual_seed(len(store.names()))
    points = 2 * torch.rand(100, 3, generator=generator)
    kind = torch.arange(100) % len(classes)
    of_point = torch.tensor(CLASSES.ids)[torch.tensor(classes)[kind]] if labelled else None
    scene = Scene(name, points, (), labels=of_point, label_set="scannet20" if labelled else None, split=split)
    every = torch.arange(100)
    views = (every < num_seen).long()
    clear = torch.cat([torch.eye(3)[kind], points[:, 2:]], dim=1)
    features = {"clear": clear[:num_seen], "blind": torch.randn(num_seen, 3, generator=generator)}
    features = {teacher: features[teacher] for teacher in store.teachers}
    store.add_scene(scene, Samples(every, every), Visibility((), views), features)


def make_store(folder, teachers=TEACHERS, splits=SPLITS, **options):
    store = Store.create(folder, cell=0.01, teachers=teachers)
    for name, split in splits.items():
        add_scene(store, name, split, **options)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("probe") / "store")


def student_file(folder, *heads, voxel_size=0.3):
    student = Student({name: TEACHERS[name].num_channels for name in heads}, "MinkUNet14Mini")
    student.voxel_size = voxel_size
    student.save(folder / f"{'-'.join(heads)}.safetensors")
    return folder / f"{'-'.join(heads)}.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A student that has learned nothing."""
    torch.manual_seed(0)
    return student_file(tmp_path_factory.mktemp("student"), "clear", "blind")


def test_probes_find_what_features_know_and_not_what_they_do_not(store, run, capsys):
    found = {row.readout: row for row in probe(store, run, baseline=run, seen_only=True)}
    heads = ["probe: concatenated", "probe: averaged", "probe: head clear", "probe: head blind", "probe: baseline"]
    lifted = ["probe: lifted clear", "probe: lifted blind", "probe: lifted concatenated"]
    assert set(found) == {*heads, *lifted, SHUFFLED, CONSTANT}
    assert list(found)[-2:] == [SHUFFLED, CONSTANT]
    assert found["probe: lifted clear"].miou == found["probe: lifted concatenated"].miou == 100
    assert found["probe: lifted blind"].miou < 45
    assert [found[readout].model for readout in heads[:4]] == ["clear-blind"] * 4
    assert found["probe: lifted clear"].model == found[SHUFFLED].model == "none"
    for control in (found[SHUFFLED], found[CONSTANT]):
        assert control.miou < control.chance_miou + 15
    # Of 80 points 27, 27 and 26 are of a class: all of them called by one have an IoU of a third.
    assert found[CONSTANT].miou == found[CONSTANT].constant_miou == pytest.approx(100 * 27 / 80 / 3)
    said = " ".join(capsys.readouterr().err.split())
    assert "each probe learns from 160 samples of 2 training scenes" in said
    assert "converged after at most" in said
    assert "no training sample shows cabinet" not in said  # it is one of the three
    assert "no training sample shows bed, chair" in said


def test_shuffled_labels_leave_nothing_of_what_clear_features_know(store):
    found = {row.readout: row for row in probe(store, teachers=["clear"], seen_only=True)}
    assert found["probe: lifted clear"].miou == 100
    assert found[SHUFFLED].miou < 50


def test_points_that_no_view_sees_have_no_lifted_feature_and_count_as_wrong(store, run):
    found = {row.readout: row for row in probe(store, run, teachers=["clear"])}
    assert (found["probe: lifted clear"].coverage, found["probe: head clear"].coverage) == (80, 100)
    assert found["probe: lifted clear"].miou == pytest.approx(80, abs=1)
    assert found["probe: lifted clear"].num_points == 100


def test_scores_are_those_of_the_maps_by_hand(store, run):
    subjects = Subjects.open(store, run)
    probes = learn(subjects, CLASSES)
    scene = store["c"]
    described, scores = subjects.describe(scene, torch.arange(100)), probes.scores(scene)
    clear, blind = (probes.maps[name](described[name]) for name in ("head clear", "head blind"))
    torch.testing.assert_close(scores["averaged"], (clear + blind) / 2)
    both = torch.cat([described["head clear"], described["head blind"]], dim=1)
    torch.testing.assert_close(scores["concatenated"], probes.maps["concatenated"](both))
    lifted = scene.features("clear").float()
    torch.testing.assert_close(scores["lifted clear"][:80], probes.maps["lifted clear"](lifted))
    assert scores["lifted clear"][80:].unique().tolist() == [0]


def test_all_probes_learn_from_the_same_seen_samples_and_their_own_labels(store, run):
    taken = []

    def take(scene):
        return torch.tensor([3, 5, 7]), torch.tensor([0.0, 1.0, 2.0])

    subjects = Subjects.open(store, run)
    lessons = subjects.gather(take, what="", most=4, seed=0)
    assert lessons.about == "each probe learns from 4 samples of 2 training scenes, drawn at random from 6"
    for row, (scene, target) in enumerate(zip("aabb", lessons.targets.tolist(), strict=True)):
        sample = [3, 5, 7][int(target)]
        taken.append(sample)
        expected = subjects.describe(store[scene], torch.tensor([sample]))
        for name, of_row in expected.items():
            torch.testing.assert_close(lessons.features[name][row], of_row[0])
    assert len(set(taken[:2])) == len(set(taken[2:])) == 2


def test_batch_norm_stays_as_it_was(store, run):
    subjects = Subjects.open(store, run)
    (read,) = subjects.students.values()
    before = {name: tensor.clone() for name, tensor in read.student.state_dict().items()}
    probes = learn(subjects, CLASSES, optimiser="paper")
    probes.score(split="val")
    assert not read.student.training
    after = read.student.state_dict()
    assert any("running_mean" in name for name in after)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert "20 steps of four scenes" in " ".join(probes.about)


def test_a_store_without_teachers_teaches_by_all_its_labels(tmp_path, run, capsys):
    bare = make_store(tmp_path / "bare", {}, num_seen=0)
    rows = probe(bare, run)
    assert {row.readout for row in rows} >= {"probe: concatenated", "probe: averaged", SHUFFLED}
    assert "200 samples of 2 training scenes" in " ".join(capsys.readouterr().err.split())
    assert {row.quantity for row in probe_geometry(bare, run)} == {"height"}


def test_errors_of_geometry_by_hand():
    x, z = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, 0, 1.0]])
    angles = [surface_error("normal", predicted, z).item() for predicted in (5 * z, x, x + z, -z)]
    assert angles == pytest.approx([0, 90, 45, 180], abs=0.1)
    predicted, true = torch.tensor([[-30.0], [60.0], [120.0]]), torch.tensor([[10.0], [10.0], [10.0]])
    assert surface_error("inclination", predicted, true).tolist() == [10, 50, 80]
    assert surface_error("height", predicted, true).tolist() == [40, 50, 110]


def test_height_is_found_where_features_hold_it(store, run, capsys):
    rows = probe_geometry(store, run, teachers=["clear", "blind"])
    found = {row.readout: row for row in rows if row.quantity == "height"}
    heights = {name: store[name].points[:80, 2] - store[name].points[:, 2].min() for name in SPLITS}
    mean = torch.cat([heights["a"], heights["b"]]).mean()
    assert found["control: mean"].error == pytest.approx((heights["c"] - mean).abs().mean().item(), abs=1e-3)
    assert found["probe: lifted clear"].error < 0.1 * found["control: mean"].error
    assert found["probe: lifted blind"].error > 0.9 * found["control: mean"].error
    assert {row.num_samples for row in rows} == {80}
    assert {row.quantity for row in rows} == {"height"}
    said = " ".join(capsys.readouterr().err.split())
    assert "inclination: left out, as the clouds have no normals" in said
    assert "normal and depth: left out. No sample of the 2 training scenes" in said


@pytest.fixture(scope="module")
def bound(store, tmp_path_factory):
    config = recipes.mini_supervised(num_steps=1)
    return supervise(store, replace(config, batch_size=1, voxel_size=0.1), tmp_path_factory.mktemp("bound") / "bound")


def test_the_commands_train_and_score_and_print(store, run, tmp_path, capsys):
    where, out, rows = str(store.path), tmp_path / "bound", tmp_path / "rows.json"
    train = ["supervise", where, "--out", str(out), "--steps", "1", "--voxel-size", "0.1", "--labels", "nyu40"]
    assert main(train) == 0
    assert load_run(out).label_set == "nyu40"
    assert main(["evaluate", where, "--run", str(out), "--labels", "nyu40", "--json", str(rows)]) == 0
    (alone,) = json.loads(rows.read_text())["rows"]
    assert alone["readout"] == "supervised"
    options = ["--labels", "nyu40", "--bound", str(out), "--baseline", str(run), "--optimiser", "paper"]
    assert main(["probe", where, "--run", str(run), *options, "--json", str(rows)]) == 0
    printed = capsys.readouterr()
    assert "the paper's optimiser took 20 steps" in printed.err
    for readout in ("probe: concatenated", "probe: baseline", "probe: lifted clear", SHUFFLED, "supervised"):
        assert readout in printed.out
    table = json.loads(rows.read_text())["rows"]
    assert table[-1] == alone
    assert main(["probe", where, "--geometry", "--json", str(rows)]) == 0
    assert "height: above the floor" in " ".join(capsys.readouterr().out.split())
    assert json.loads(rows.read_text())["rows"][0]["unit"] == "metres"


def test_scenes_that_were_learned_from_are_not_scored(store, run, bound, tmp_path, capsys):
    says(capsys, ["probe", store.path, "--split", "train"], "Probes learn from a, b, so", "another --split")
    says(capsys, ["probe", store.path, "--split", "all", "--geometry"], "Probes learn from a, b, so")
    other = make_store(tmp_path / "other", splits={"b": "val", "x": "train"})
    says(capsys, ["probe", other.path, "--bound", bound], "The student of --bound has learned from b, so")
    says(capsys, ["evaluate", other.path, "--run", bound], "was trained on 1 of the scenes", ": b.", "--allow-overlap")
    assert main(["evaluate", str(other.path), "--run", str(bound), "--allow-overlap"]) == 0
    distilled = distill(other, replace(recipes.mini(teachers=TEACHERS, num_steps=0), voxel_size=0.1), tmp_path / "run")
    again = make_store(tmp_path / "again", splits={"b": "train", "x": "val"})
    says(capsys, ["probe", again.path, "--run", distilled], "The student of --run has learned from x, so")
    says(capsys, ["probe", again.path, "--baseline", distilled], "The student of --baseline has learned from x, so")


def test_what_cannot_be_probed_is_said_in_a_line(store, run, bound, tmp_path, capsys):
    path = store.path
    says(capsys, ["probe", path, "--run", bound], "was trained on labels", f"--bound {bound}")
    says(capsys, ["probe", path, "--bound", run], "is no run of labels", "cuao3d supervise STORE")
    says(capsys, ["probe", path, "--bound", bound, "--labels", "nyu40"], "has learned the classes of scannet20")
    says(capsys, ["evaluate", path, "--run", bound, "--labels", "nyu40"], "--labels scannet20")
    says(capsys, ["evaluate", path, "--run", bound, "--passes", "5"], "--passes has no effect on", "trained on labels")
    says(capsys, ["probe", path, "--split", "test"], "no finished scene in the split test", "another --split")
    says(capsys, ["probe", path, "--teachers", "dinov2"], "no features of dinov2, only of clear, blind")
    says(capsys, ["probe", path, "--teachers", "none"], "name a student to probe: --run RUN")
    says(capsys, ["probe", path, "--geometry", "--labels", "nyu40"], "--labels has no effect with --geometry")
    fine = student_file(tmp_path, "clear", voxel_size=0.001)
    says(capsys, ["probe", path, "--run", fine], "are finer than the cells")
    only_val = make_store(tmp_path / "val", splits={"a": "val"})
    says(capsys, ["probe", only_val.path], "no finished scene in the split train", "cuao3d compare")
    bare = make_store(tmp_path / "bare", labelled=False)
    says(capsys, ["probe", bare.path], "of the 2 training scenes", "has a label of scannet20")
    says(capsys, ["supervise", bare.path, "--out", tmp_path / "run"], "labels of no set", "Fuse scenes with labels")
    some = make_store(tmp_path / "some", splits={"a": "train"})
    add_scene(some, "b", "val", labelled=False)
    says(capsys, ["probe", some.path], "no val scene with labels")


def test_a_label_set_that_has_lost_a_class_since_is_refused(store, bound, tmp_path, capsys):
    package = Path(labels.__file__).with_name("scannet20.csv").read_text(encoding="utf-8").splitlines()
    without = tmp_path / "scannet20.csv"
    without.write_text("\n".join(line for line in package if ",chair," not in line), encoding="utf-8")
    options = ["--run", bound, "--labels", without]
    says(capsys, ["evaluate", store.path, *options], "predicts 20 classes", "has 19", "without chair")
