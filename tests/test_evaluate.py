"""Facts about scores and read-outs."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn
from torch.nn import functional

from conftest import PICTURE, PICTURE_COLOR, WALL, WALL_COLOR, ColorTeacher, ToyWords
from cuao3d.cli.shared import print_rows, readout_of
from cuao3d.errors import InputError
from cuao3d.evaluate import _ensemble, _ways, check_overlap, count, zero_shot
from cuao3d.fusion import lift, sample_cells, see
from cuao3d.labels import label_set
from cuao3d.metrics import chance, confusion_matrix, constant, make_row, measure
from cuao3d.predictor import TURNED, Passes, Predictor, student_features
from cuao3d.query import classify, scores
from cuao3d.store import Store, TeacherCard
from cuao3d.student import Student
from cuao3d.vocabulary import Told, Vocabulary

SCANNET20 = label_set("scannet20")


@pytest.fixture
def color_vectors():
    """What the classes of ScanNet20 are called in the colour teacher's space: wall and picture by their colours."""
    vectors = torch.full((20, 3), -1.0)
    vectors[WALL], vectors[PICTURE] = torch.tensor(WALL_COLOR), torch.tensor(PICTURE_COLOR)
    return functional.normalize(vectors, dim=1)


def test_confusion_and_means_equal_the_official_ones(golden):
    labels, predicted = (torch.from_numpy(golden[f"metric_{name}"]).long() for name in ("gt", "pred"))
    confusion = confusion_matrix(predicted, labels, 20)
    assert torch.equal(confusion[:20], torch.from_numpy(golden["metric_confusion_pred_by_gt"]))
    assert confusion[20].sum() == 0
    for policy in ("strict", "official"):
        metrics = measure(confusion, policy=policy)
        assert metrics.miou == pytest.approx(golden["metric_miou_over_present_classes"].item(), abs=1e-12)
        assert metrics.miou_all == pytest.approx(golden["metric_official_miou"].item(), abs=1e-12)
        assert metrics.macc == pytest.approx(golden["metric_macc_over_present_classes"].item(), abs=1e-12)
        present = [iou for iou in metrics.iou if not math.isnan(iou)]
        official = golden["metric_iou_per_class"]
        assert present == pytest.approx(official[official > 0].tolist(), abs=1e-12)


def test_points_without_a_prediction_are_treated_as_officially(golden):
    labels = torch.from_numpy(golden["metric_gt"]).long()
    predicted = torch.from_numpy(golden["metric_nofeature_pred"].astype("int64")).clamp(max=255)
    confusion = confusion_matrix(predicted, labels, 20)
    assert torch.equal(confusion[:20], torch.from_numpy(golden["metric_nofeature_confusion_pred_by_gt"]))
    official = measure(confusion, policy="official")
    assert official.miou_all == pytest.approx(golden["metric_nofeature_official_miou"].item(), abs=1e-12)
    assert official.macc_all == pytest.approx(golden["metric_nofeature_official_macc"].item(), abs=1e-12)


@settings(max_examples=10)
@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_scores_are_those_of_scikit_learn(num_classes, seed):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, num_classes, (2, 30)), rng.integers(0, num_classes, 30)
    labels = labels.min(axis=0)  # some classes are rare, or absent
    labels[rng.random(30) < 0.2] = 255
    labels[0] = 0  # one is scored
    scored = labels != 255
    confusion = confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(labels), num_classes)
    classes = np.arange(num_classes)
    expected = sklearn.confusion_matrix(labels[scored], predicted[scored], labels=classes)
    assert torch.equal(confusion[:-1], torch.from_numpy(expected).T)
    measured, present = measure(confusion), np.isin(classes, labels)
    iou = sklearn.jaccard_score(labels[scored], predicted[scored], labels=classes, average=None, zero_division=0)
    recall = sklearn.recall_score(labels[scored], predicted[scored], labels=classes, average=None, zero_division=0)
    assert measured.miou == pytest.approx(iou[present].mean())
    assert measured.macc == pytest.approx(recall[present].mean())
    assert (measured.miou_all, measured.macc_all) == pytest.approx((iou.mean(), recall.mean()))


def test_scores_by_hand():
    # Class 0: 3 points, 2 right, 1 without a prediction. Class 1: 2 points, 1 right, 1 called 0. Class 2: absent.
    labels = torch.tensor([0, 0, 0, 1, 1, 255])
    predicted = torch.tensor([0, 0, 255, 1, 0, 2])
    confusion = confusion_matrix(predicted, labels, 3)
    assert confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]]
    strict = measure(confusion, background=torch.tensor([True, False, False]))
    assert strict.iou[:2] == pytest.approx([2 / 4, 1 / 2])
    assert math.isnan(strict.iou[2])
    assert (strict.miou, strict.macc, strict.foreground_miou) == pytest.approx((0.5, (2 / 3 + 1 / 2) / 2, 0.5))
    official = measure(confusion, policy="official")
    assert official.iou[:2] == pytest.approx([2 / 3, 1 / 2])
    assert official.macc == strict.macc
    assert official.miou_all == pytest.approx((2 / 3 + 1 / 2) / 3)


class Relabelled(Store):
    """The synthetic store with other labels; if they are fewer than its points, of so many samples alone."""

    def __init__(self, store, class_of_point, classes):
        vars(self).update(vars(store))
        self.labels, self.label_set = torch.tensor(classes.ids)[class_of_point], classes.name

    def __getitem__(self, name):
        scene, few = super().__getitem__(name), torch.arange(len(self.labels))
        changes = {"labels": self.labels, "label_set": self.label_set}
        if len(few) < len(scene.points):
            changes |= {"points": scene.points[few], "colors": None, "index_of_sample": few, "sample_of_point": few}
            changes |= {"num_views": torch.ones_like(few), "seen_samples": few}
        return replace(scene, **changes)


def plain_fmiou(class_scores, labels, classes):
    """f-mIoU of RegionPLC and Mosaic3D, class by class and point by point; no scores: no class. In percent."""
    front = [
        k for k, name in enumerate(classes.names) if name not in ("wall", "floor", "ceiling") and "other" not in name
    ]
    called = [max(front, key=row.__getitem__) if any(row) else None for row in class_scores]
    kept = [(is_, says) for is_, says in zip(labels, called, strict=True) if is_ in front]
    ious = []
    for k in {is_ for is_, _ in kept}:
        both = sum(is_ == says == k for is_, says in kept)
        ious.append(both / sum(k in pair for pair in kept))
    return 100 * sum(ious) / len(ious)


def test_fmiou_by_hand(synthetic_store):
    # True class, and scores of wall, chair and table; in the last row no view sees anything.
    planned = [
        ("chair", (0.9, 0.5, 0.1)),  # a wall, but that is masked: a chair
        ("chair", (0.1, 0.5, 0.2)),
        ("table", (0.9, 0.5, 0.1)),  # masked, it is a chair all the same
        ("table", (0.1, 0.2, 0.5)),
        ("table", (0.0, 0.0, 0.0)),
        ("wall", (0.1, 0.5, 0.2)),  # left out
        ("otherfurniture", (0.1, 0.2, 0.5)),  # left out
    ]
    named = [SCANNET20.names.index(name) for name in ("wall", "chair", "table")]
    class_scores = torch.zeros(len(planned), 20)
    class_scores[:, named] = torch.tensor([values for _, values in planned])
    truth = [SCANNET20.names.index(name) for name, _ in planned]
    store = Relabelled(synthetic_store, truth, SCANNET20)
    counted = count(store, SCANNET20, lambda scene: {"hand": class_scores}, split="train")
    row = make_row(counted, SCANNET20, model="", readout="hand", dataset="", split="")
    chair, table = 2 / 3, 1 / 3
    assert row.fmiou == pytest.approx(100 * (chair + table) / 2)
    assert plain_fmiou(class_scores.tolist(), truth, SCANNET20) == pytest.approx(row.fmiou)
    chair, table = 1 / 3, 1 / 4  # a chair lost to the wall, and one found in it; a table found in other furniture
    assert row.foreground_miou == pytest.approx(100 * (chair + table) / 2)
    assert row.num_points == len(planned)


@pytest.mark.parametrize("name", ["scannet20", "nyu40", "matterport21"])
def test_fmiou_is_the_published_one_for_every_readout(synthetic_store, name):
    classes = label_set(name)
    generator = torch.Generator().manual_seed(0)
    scene = synthetic_store["synthetic"]
    num_samples, num_points = len(scene.num_views), len(scene.points)
    truth = torch.randint(0, len(classes), (num_points,), generator=generator)
    vectors = torch.randn(len(classes), 3, generator=generator)
    described = torch.randn(num_samples, 3, generator=generator)
    rows = zero_shot(
        Relabelled(synthetic_store, truth, classes),
        classes,
        vectors,
        teacher="color",
        readouts=("fused", "distilled", "2d3d"),
        predict=lambda scene: described,
        split="train",
    )
    lifted = scene.spread(scene.features("color").float())
    in_2d, in_3d = (functional.cosine_similarity(features[:, None], vectors, dim=2) for features in (lifted, described))
    both = torch.where(scene.seen[:, None], (in_2d + in_3d) / 2, in_3d)
    for row, of_sample in zip(rows, (in_2d, in_3d, both), strict=True):
        expected = plain_fmiou(of_sample[scene.sample_of_point].tolist(), truth.tolist(), classes)
        assert row.fmiou == pytest.approx(expected)
        assert row.fmiou != pytest.approx(row.foreground_miou)


def test_chance_is_what_shuffled_predictions_reach():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2000,), generator=generator).square() // 3
    predicted = torch.where(torch.rand(2000, generator=generator) < 0.7, labels, 1)
    shuffles = [predicted[torch.randperm(2000, generator=generator)] for _ in range(100)]
    reached = [measure(confusion_matrix(shuffled, labels, 4)).miou for shuffled in shuffles]
    expected = measure(chance(confusion_matrix(predicted, labels, 4))).miou
    assert sum(reached) / len(reached) == pytest.approx(expected, abs=0.003)


def test_calling_everything_wall_by_hand():
    confusion = confusion_matrix(torch.arange(4), torch.tensor([0, 0, 0, 1]), 4)
    metrics = measure(constant(confusion))
    assert (metrics.miou, metrics.macc) == pytest.approx((0.75 / 2, 1 / 2))


def test_fused_colours_find_wall_and_picture(synthetic_scene, synthetic_store, color_vectors):
    (row,) = zero_shot(synthetic_store, SCANNET20, color_vectors, teacher="color", split="train", dataset="synthetic")
    scene = synthetic_store["synthetic"]
    seen = scene.num_views[scene.sample_of_point] > 0
    assert row.coverage == pytest.approx(100 * seen.double().mean().item())
    assert (row.model, row.readout, row.dataset, row.split) == ("none", "fused", "synthetic", "train")
    assert row.num_points == len(synthetic_scene.points)
    assert set(row.iou) == {"wall", "picture"}
    # Every point of the picture is seen; near its edges a map cell mixes in some wall, as bleeding features do.
    assert row.macc > 60
    assert row.iou["wall"] < 100 * seen[synthetic_scene.labels == WALL].double().mean().item() + 1e-6
    assert row.foreground_miou == row.iou["picture"]
    assert row.fmiou == 100  # every point of the picture is seen, and may not be called a wall
    assert row.chance_miou < row.miou
    assert row.constant_miou == pytest.approx(100 * 441 / 585 / 2)


def colors_of_samples(scene):
    return scene.colors[scene.index_of_sample]


def test_a_student_that_knows_the_colours_is_right_everywhere(synthetic_store, color_vectors):
    rows = zero_shot(
        synthetic_store,
        SCANNET20,
        color_vectors,
        teacher="color",
        readouts=("fused", "distilled", "2d3d"),
        predict=colors_of_samples,
        model="oracle",
        split=None,
    )
    assert [(row.model, row.readout) for row in rows] == [
        ("none", "fused"),
        ("oracle", "distilled"),
        ("oracle", "2d3d"),
    ]
    fused, distilled, joined = rows
    assert distilled.miou == distilled.macc == distilled.coverage == joined.coverage == 100
    assert distilled.miou_official == pytest.approx(10)
    assert joined.miou > fused.miou


def test_rows_are_divided_by_what_student_and_teacher_were_told(synthetic_store, color_vectors):
    told = Told(Vocabulary(("pictures",), "mine.txt"), Vocabulary(("wall",), "color"))
    fused, distilled, joined = zero_shot(
        synthetic_store,
        SCANNET20,
        color_vectors,
        teacher="color",
        readouts=("fused", "distilled", "2d3d"),
        predict=colors_of_samples,
        split=None,
        told=told,
    )
    for row in (distilled, joined):
        assert (row.by_student.vocabulary, row.by_student.seen, row.by_student.unseen) == (
            "mine.txt, 1 words", ("picture",), ("wall",)
        )  # fmt: skip
        assert (row.by_student.miou_seen, row.by_student.miou_unseen) == (row.iou["picture"], row.iou["wall"])
    assert (fused.by_student.vocabulary, fused.by_student.miou_unseen) == ("no vocabulary", fused.miou)
    assert (fused.by_teacher.seen, fused.by_teacher.miou_seen) == (("wall",), fused.iou["wall"])
    harmonic = 2 / (1 / fused.iou["wall"] + 1 / fused.iou["picture"])
    assert fused.by_teacher.harmonic == pytest.approx(harmonic)


def two_samples(store, lifted):
    """A scene of two points, of which only the first is seen, with a feature."""
    scene = store["synthetic"]
    return replace(
        scene,
        points=scene.points[:2],
        colors=None,
        labels=torch.tensor([WALL, PICTURE]),
        index_of_sample=torch.arange(2),
        sample_of_point=torch.arange(2),
        num_views=torch.tensor([1, 0]),
        seen_samples=torch.tensor([0]),
        _features={"color": torch.tensor([lifted])},
    )


@pytest.mark.parametrize(
    ("ensemble", "lifted", "expected"),
    [
        # 2D says wall with cosine 0.8, 3D says picture with cosine 0.6 / 0.61: the surer is 3D, but 2D is ten times
        # as long and wins the mean.
        ("surer", [8.0, 0.0, 6.0], PICTURE),
        ("average", [8.0, 0.0, 6.0], WALL),
        ("surer", [1.0, 0.0, 0.0], WALL),
        ("average", [0.1, 0.0, 0.0], PICTURE),
        # Unit features add 0.8 to wall, and 0.6 / 0.61 to picture; then 1 to wall.
        ("unit-average", [8.0, 0.0, 6.0], PICTURE),
        ("unit-average", [0.1, 0.0, 0.0], WALL),
    ],
)
def test_2d3d_ensembles_by_hand(synthetic_store, ensemble, lifted, expected):
    vectors = torch.full((20, 3), 0.0)
    vectors[:, 2] = -1
    vectors[WALL], vectors[PICTURE] = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    scene = two_samples(synthetic_store, lifted)
    described = torch.tensor([[0.0, 0.6, 0.1], [0.0, 0.3, 0.3]])
    predicted = classify(_ensemble(scene, "color", described, vectors, ensemble))
    assert predicted.tolist() == [expected, PICTURE]  # the unseen point is the student's alone
    assert described.tolist()[0] == pytest.approx([0.0, 0.6, 0.1])


def test_all_rules_of_2d3d_at_once_are_those_of_each_alone(synthetic_store, color_vectors, capsys):
    generator = torch.Generator().manual_seed(0)
    described = torch.randn(len(synthetic_store["synthetic"].num_views), 3, generator=generator)
    rules = ("unit-average", "surer", "average")

    def rows(readouts, ensemble):
        how = {"teacher": "color", "split": None, "predict": lambda scene: described, "model": "noise"}
        return zero_shot(synthetic_store, SCANNET20, color_vectors, readouts=readouts, ensemble=ensemble, **how)

    fused, *joined = rows(("fused", "2d3d"), rules)
    assert (fused.ensemble, *(row.ensemble for row in joined)) == (None, *rules)
    assert joined == [row for rule in rules for row in rows(("2d3d",), rule)]
    assert len({row.miou for row in joined}) == 3
    print_rows([asdict(row) for row in (fused, *joined)])
    told = capsys.readouterr().out
    assert all(f"2d3d, {rule}, 1x" in told for rule in rules)
    with pytest.raises(InputError, match="Unknown rule of 2d3d 'surest'"):
        _ways(("2d3d",), ("surest",), True)


class Wavy(Student):
    """Toy student: the feature of a voxel is a wave of its place."""

    def __init__(self):
        super().__init__({"color": 3}, "MinkUNet14Mini")

    def forward(self, coords, feats, heads=None):
        return {"color": torch.sin(coords[:, 1:].float())}


def wavy_predictor():
    return Predictor("color", "", ToyWords(3), Wavy(), voxel_size=0.1)


def test_five_passes_are_five_single_ones_summed(synthetic_store, color_vectors):
    passes = wavy_predictor().passes(5)
    scene = synthetic_store["synthetic"]
    summed = sum(scores(predict(scene), color_vectors) for predict in passes.predicts)
    fused = scores(scene.features("color"), color_vectors)
    joined = sum(
        (scores(predict(scene), color_vectors) + scene.spread(fused)).div(2) for predict in passes.predicts
    ).where(scene.seen[:, None], summed)
    how = {"teacher": "color", "split": None, "predict": passes, "readouts": ("distilled", "2d3d")}
    rows = zero_shot(synthetic_store, SCANNET20, color_vectors, **how)
    counted = count(synthetic_store, SCANNET20, lambda scene: {"distilled": summed, "2d3d": joined}, split=None)
    for row in rows:
        alone = make_row(counted, SCANNET20, model="", readout=row.readout, dataset="", split="all")
        assert (row.passes, row.iou) == (5, pytest.approx(alone.iou))
    singles = [predict(scene) for predict in passes.predicts]
    assert not any(torch.equal(singles[0], other) for other in singles[1:])
    assert all(torch.equal(one, predict(scene)) for one, predict in zip(singles, passes.predicts, strict=True))
    assert not torch.equal(singles[0], passes.predicts[0](replace(scene, name="another")))


def test_a_pass_moves_a_scene_as_officially():
    # FusedFeatureLoader of OpenScene: rotation by pi / 64 about x and y and pi about z, scale 0.9 to 1.1; no flips.
    assert (TURNED.rotation, TURNED.tilt, TURNED.scale) == (180, pytest.approx(math.degrees(math.pi / 64)), 0.1)
    assert (TURNED.flip, TURNED.elastic, TURNED.shift) == (False, False, False)


def test_a_single_pass_is_plain(synthetic_store):
    predictor, scene = wavy_predictor(), synthetic_store["synthetic"]
    assert torch.equal(predictor.passes().predicts[0](scene), predictor.features(scene))
    with pytest.raises(InputError, match="lifted features have none"):
        Predictor("color", "", ToyWords(3)).passes(5)
    with pytest.raises(InputError, match="0 passes"):
        predictor.passes(0)


def test_train_mode_normalises_by_the_scene_and_leaves_no_trace(synthetic_store, color_vectors):
    scene = synthetic_store["synthetic"]
    student = Student({"color": 3}, "MinkUNet14Mini").eval()
    predictor = Predictor("color", "", ToyWords(3), student, voxel_size=0.25)
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    (predict,) = predictor.passes(train_mode=True).predicts
    described = predict(scene)
    assert all(torch.equal(before[name], buffer) for name, buffer in student.named_buffers())
    assert not student.training
    assert not torch.allclose(described, predictor.features(scene))  # by the running statistics, 0 and 1 so far
    passes = Passes((lambda scene: described,), train_mode=True)
    how = {"teacher": "color", "split": None, "readouts": ("fused", "distilled")}
    rows = zero_shot(synthetic_store, SCANNET20, color_vectors, predict=passes, **how)
    assert [row.train_mode for row in rows] == [False, True]
    assert readout_of(asdict(rows[1])) == "distilled, 1x, train mode"


def test_scenes_that_the_student_was_trained_on_are_refused_by_name(synthetic_store):
    assert check_overlap(synthetic_store, "train", ["another"]) == ()
    with pytest.raises(InputError, match=r"trained on 1 of the scenes that it is to be scored on: synthetic\. Choose"):
        check_overlap(synthetic_store, None, ["another", "synthetic"])
    assert check_overlap(synthetic_store, "train", ["synthetic"], allowed=True) == ("synthetic",)
    assert check_overlap(synthetic_store, "val", ["synthetic"]) == ()


class ByHeight(Student):
    """Toy student: the feature of a voxel is its height, in voxels. It wants its inputs as they should be."""

    def __init__(self):
        super().__init__({"color": 1, "other": 2}, "MinkUNet14Mini")

    def forward(self, coords, feats, heads=None):
        assert heads == ["color"]
        assert not self.training
        assert torch.equal(feats, torch.ones(len(coords), 3))
        assert torch.equal(coords[:, 0], torch.zeros(len(coords), dtype=torch.int64))
        return {"color": coords[:, 3:].float()}


def test_a_students_features_are_those_of_the_samples_voxels(synthetic_store):
    scene = synthetic_store["synthetic"]
    student = ByHeight()
    predict = student_features(student, synthetic_store, head="color", voxel_size=0.25)
    assert torch.equal(predict(scene)[:, 0], torch.floor(scene.sample_points[:, 2].double() / 0.25).float())
    assert student.training


def test_voxels_finer_than_the_store_are_refused(synthetic_store):
    with pytest.raises(ValueError, match=r"voxels of 0.02 m are finer than the cells of .*, 0.05 m"):
        student_features(ByHeight(), synthetic_store, head="color", voxel_size=0.02)
    with pytest.raises(ValueError, match="no head 'lseg'"):
        student_features(ByHeight(), synthetic_store, head="lseg", voxel_size=0.05)


def all_wall(classes):
    """Score wall, the first class, highest at every sample."""
    return lambda scene: {"wall": torch.eye(len(classes))[:1].expand(len(scene.num_views), -1)}


def test_scenes_are_summed_and_unlabelled_ones_passed_over(synthetic_scene, synthetic_store):
    for name, labels in (("again", synthetic_scene.labels), ("bare", None)):
        scene = replace(synthetic_scene, name=name, labels=labels)
        samples = sample_cells(scene.points, synthetic_store.cell)
        visibility = see(scene, samples)
        synthetic_store.add_scene(scene, samples, visibility, {"color": lift(scene, visibility, ColorTeacher())})
    calls = []
    counted = count(
        synthetic_store,
        SCANNET20,
        all_wall(SCANNET20),
        split="train",
        progress=lambda *call: calls.append(call),
    )
    assert counted.confusions["wall"].sum() == 2 * len(synthetic_scene.points)
    row = make_row(counted, SCANNET20, model="", readout="wall", dataset="", split="train")
    (unlabelled,) = row.missing
    assert row.scenes == f"2 of 3 scenes; {unlabelled} without labels"
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_labels_are_converted_to_the_classes_asked_for(synthetic_store):
    nyu40 = label_set("nyu40")
    counted = count(synthetic_store, nyu40, all_wall(nyu40), split="train")
    assert set(make_row(counted, nyu40, model="", readout="wall", dataset="", split="").iou) == {"wall", "picture"}


def test_nothing_to_evaluate_is_said(synthetic_store, color_vectors, tmp_path):
    with pytest.raises(ValueError, match=r"has no val scene with labels"):
        zero_shot(synthetic_store, SCANNET20, color_vectors, teacher="color")
    with pytest.raises(ValueError, match="need a student"):
        zero_shot(synthetic_store, SCANNET20, color_vectors, teacher="color", readouts=("2d3d",))
    empty = Store.create(tmp_path / "empty", teachers={"color": TeacherCard(3)})
    with pytest.raises(ValueError, match=r"has no scene with labels \(0 without\)"):
        zero_shot(empty, SCANNET20, color_vectors, teacher="color", split=None)


def test_without_a_labelled_point_there_is_no_score(synthetic_scene, tmp_path):
    store = Store.create(tmp_path, cell=0.05)
    samples = sample_cells(synthetic_scene.points, store.cell)
    unlabelled = replace(synthetic_scene, labels=torch.full_like(synthetic_scene.labels, 255))
    store.add_scene(unlabelled, samples, see(unlabelled, samples), {})
    with pytest.raises(ValueError, match=r"No point of the 1 scenes .* has a label of scannet20: there is nothing"):
        count(store, SCANNET20, all_wall(SCANNET20), split=None)
