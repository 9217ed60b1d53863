import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from conftest import ColorTeacher
from cuao3d.cli import main
from cuao3d.compare import BLOCK, _held_out, _miou, _without_points, compare
from cuao3d.fusion import Visibility, lift, lift_measured, sample_cells, see
from cuao3d.labels import label_set
from cuao3d.scene import Scene
from cuao3d.store import Lifting, Store, TeacherCard
from cuao3d.vocabulary import Vocabulary


class Blind:
    """A teacher that sees nothing."""

    name = "blind"
    num_channels = 3

    def __call__(self, image):
        return torch.ones(3, 4, 4)


@pytest.fixture
def store(synthetic_scene, tmp_path):
    """A red wall and a green picture, lifted by colours and by a teacher that sees nothing."""
    teachers = (ColorTeacher(), Blind())
    store = Store.create(tmp_path / "store", cell=0.05, teachers={one.name: TeacherCard(3) for one in teachers})
    samples = sample_cells(synthetic_scene.points, store.cell)
    visibility = see(synthetic_scene, samples)
    lifted = {one.name: lift_measured(synthetic_scene, visibility, one) for one in teachers}
    lifting = {"color": Lifting(seconds=3.0, num_views=2, agreement=0.9)}
    features = {name: one.features for name, one in lifted.items()}
    store.add_scene(synthetic_scene, samples, visibility, features, lifting=lifting)
    return store


def test_a_teacher_that_sees_the_classes_is_told_from_one_that_does_not(store):
    color, blind = compare(store)
    assert color.probe_split == blind.probe_split == "other blocks"
    assert color.probe_miou > 60  # what no view sees counts as wrong
    assert blind.probe_miou < 0.7 * color.probe_miou
    assert color.zero_shot_miou is None  # it knows no words


def test_time_size_and_agreement_are_those_that_were_measured(store):
    color, blind = compare(store)
    assert color.seconds_per_view == 1.5
    assert color.agreement == 0.9
    assert blind.seconds_per_view is None
    assert blind.agreement is None
    (scene,) = store.names()
    assert color.gigabytes * 1e9 == len(store[scene].seen_samples) * 3 * 2  # three channels of two bytes


def add_again(store, scene, name, split, visible=True):
    """Put a scene into the store once more, as another one; without what was measured, and if told unseen."""
    samples = sample_cells(scene.points, store.cell)
    scene = replace(scene, name=name, split=split, frames=scene.frames if visible else ())
    visibility = see(scene, samples)
    features = {one.name: lift(scene, visibility, one) for one in (ColorTeacher(), Blind())}
    store.add_scene(scene, samples, visibility, features)


@pytest.mark.parametrize("split", ["train", "val"])
def test_each_scene_is_opened_once_however_many_teachers_there_are(store, synthetic_scene, monkeypatch, split):
    add_again(store, synthetic_scene, "other", split)
    add_again(store, replace(synthetic_scene, labels=None, label_set=None), "unlabelled", "val")
    opened, read = [], Store.__getitem__
    monkeypatch.setattr(Store, "__getitem__", lambda store, name: opened.append(name) or read(store, name))
    color, _ = compare(store)
    assert sorted(opened) == ["other", "synthetic", "unlabelled"]
    assert color.probe_split == ("other blocks" if split == "train" else "other scenes")
    assert color.gigabytes * 1e9 == sum(len(read(store, name).seen_samples) for name in store.names()) * 3 * 2


def test_points_that_no_view_sees_count_as_wrong(store, synthetic_scene):
    """A probe that learns from the synthetic scene names the same points of its copy, and no unseen ones."""
    add_again(store, synthetic_scene, "copy", "val")
    scene, classes = store["copy"], label_set("scannet20")
    assert compare(store)[0].probe_miou == pytest.approx(best_miou(scene, classes), abs=2)
    add_again(store, synthetic_scene, "unseen", "val", visible=False)
    assert compare(store)[0].probe_miou == pytest.approx(best_miou(scene, classes) / 2, abs=1)


def best_miou(scene, classes):
    """The score of a scene whose seen points are all right and whose others are all wrong, in percent."""
    seen = scene.num_views[scene.sample_of_point] > 0
    labels = classes.classes(scene.labels)
    return 100 * sum(float(seen[labels == label].float().mean()) for label in labels.unique()) / len(labels.unique())


@pytest.mark.parametrize("in_blocks", [False, True])
def test_points_that_are_counted_in_groups_score_as_each_on_its_own(store, in_blocks):
    scene, classes = store["synthetic"], label_set("scannet20")
    predicted = torch.randint(len(classes), (len(scene.seen_samples),))
    of_sample = dict(zip(scene.seen_samples.tolist(), predicted.tolist(), strict=True))
    hits, union = Counter(), Counter()
    for point, sample in enumerate(scene.sample_of_point.tolist()):
        if in_blocks and not _held_out(scene.points[point : point + 1]):
            continue
        true, found = int(classes.classes(scene.labels)[point]), of_sample.get(sample)
        union.update({true, found})
        hits[true] += true == found
    expected = [hits[label] / union[label] for label in hits]
    labelled = _without_points(scene, scene.labels, ["color"])
    assert _miou([(labelled, predicted)], classes, in_blocks=in_blocks) == pytest.approx(100 * sum(expected) / 2)


def test_the_probe_is_scored_where_it_did_not_learn(tmp_path):
    # In the block from 0 to 1 m a feature means one class, in the next the other: what is learned there is wrong here.
    points = torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 1.0, 1.0])
    kind, in_next = torch.arange(400) % 2, points[:, 0] > 1
    labels = torch.where(in_next, 1 - kind, kind)
    store = Store.create(tmp_path, cell=0.001, teachers={"color": TeacherCard(2)})
    samples = sample_cells(points, store.cell)
    scene = Scene("turned", points, (), labels=labels, label_set="scannet20")
    visibility = Visibility((), torch.ones(400, dtype=torch.int64))
    store.add_scene(scene, samples, visibility, {"color": torch.eye(2)[kind[samples.index_of_sample]]})
    (row,) = compare(store)
    assert (row.probe_miou, row.probe_split) == (0, "other blocks")


def test_the_probe_learns_from_no_block_that_it_is_scored_on():
    points = torch.tensor([[0.5, 0.5, 0], [1.5, 0.5, 0], [1.5, 1.5, 9], [-0.5, 0.5, 0]]) * BLOCK
    assert _held_out(points).tolist() == [False, True, False, True]


def test_a_teacher_that_the_store_lacks_is_named(store):
    with pytest.raises(ValueError, match=r"no features of dinov2, only of color, blind"):
        compare(store, ["dinov2"])


def test_the_command_prints_and_writes_the_rows(store, tmp_path, capsys):
    assert main(["compare", str(store.path), "--teachers", "color", "--json", str(tmp_path / "rows.json")]) == 0
    assert "color" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["teacher"] == "color"


def test_zero_shot_scores_are_divided_by_the_teachers_words(synthetic_scene, tmp_path, monkeypatch, capsys):
    vectors = torch.full((20, 3), -1.0)
    vectors[0], vectors[10] = torch.tensor([0.75, 0.25, 0.25]), torch.tensor([0.25, 0.75, 0.25])
    torch.save(vectors, tmp_path / "colors.pt")
    card = TeacherCard(3, text=f"table:{tmp_path / 'colors.pt'}@scannet20")
    store = Store.create(tmp_path / "store", cell=0.05, teachers={"color": card})
    samples = sample_cells(synthetic_scene.points, store.cell)
    visibility = see(synthetic_scene, samples)
    store.add_scene(synthetic_scene, samples, visibility, {"color": lift(synthetic_scene, visibility, ColorTeacher())})
    (strange,) = compare(store)
    assert (strange.by_teacher.vocabulary, strange.by_teacher.seen) == ("not known", None)
    monkeypatch.setattr("cuao3d.compare.vocabulary_of", lambda name, sha256: Vocabulary(("walls",), name))
    (row,) = compare(store)
    assert (row.by_teacher.seen, row.by_teacher.unseen) == (("wall",), ("picture",))
    assert (row.by_teacher.miou_seen + row.by_teacher.miou_unseen) / 2 == pytest.approx(row.zero_shot_miou)
    assert main(["compare", str(store.path)]) == 0
    assert "color was trained with: color, 1 words; seen names: wall" in capsys.readouterr().out
