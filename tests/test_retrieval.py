"""Facts about how well free text finds things, beside slow versions of the same and scikit-learn's scores."""

from dataclasses import asdict, replace

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn import functional

from conftest import PICTURE_COLOR, WALL, WALL_COLOR
from cuao3d.cli.shared import print_rows
from cuao3d.evaluate import zero_shot
from cuao3d.labels import label_set
from cuao3d.query import CONTRAST, MIN_POINTS, Questions, ask
from cuao3d.retrieval import Queries, Tally, auroc, average_precision
from cuao3d.teachers import Calibration
from cuao3d.text import Table
from cuao3d.vocabulary import Told, Vocabulary

SCANNET20 = label_set("scannet20")


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    total = torch.randint(0, 5, (60,), generator=generator)
    right = (torch.rand(60, generator=generator) * (total + 1)).long()
    relevance = torch.randint(0, 20, (60,), generator=generator) / 20  # many are equal
    relevance[:9] = -torch.inf
    of_point = relevance.clamp(min=-1).repeat_interleave(total)
    is_right = torch.cat([torch.arange(n) < r for n, r in zip(total.tolist(), right.tolist(), strict=True)])
    expected = average_precision_score(is_right.numpy(), of_point.numpy())
    assert average_precision(relevance, right, total) == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_hand():
    # Ranks 1 and 3 of four points are right: (1/1 + 2/3) / 2.
    right = torch.tensor([1, 0, 1, 0])
    assert average_precision(torch.tensor([4.0, 3, 2, 1]), right, torch.ones(4).long()) == pytest.approx(5 / 6)
    # All equal: as good as the share of right points, whatever their order.
    assert average_precision(torch.zeros(4), right, torch.ones(4).long()) == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_that_of_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    present, absent = (torch.randint(0, 9, (n,), generator=generator).float() + up for n, up in ((13, 2.0), (29, 0.0)))
    labels = [1] * len(present) + [0] * len(absent)
    expected = roc_auc_score(labels, torch.cat([present, absent]).numpy())
    assert auroc(present.tolist(), absent.tolist()) == pytest.approx(expected, abs=1e-12)


def test_without_one_side_there_is_no_auroc():
    assert auroc([], [1.0]) is auroc([1.0], []) is None
    assert (auroc([1.0], [1.0]), auroc([2.0], [1.0]), auroc([1.0], [2.0])) == (0.5, 1, 0)


class Toy:
    """Text encoder of 16 channels: each text has a direction of its own."""

    num_channels = 16

    def __call__(self, texts):
        seeds = [sum(ord(character) * 31**i for i, character in enumerate(text)) % 2**31 for text in texts]
        rows = [torch.randn(16, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return functional.normalize(torch.stack([torch.zeros(16), *rows])[1:], dim=1)


def asked_set(**lists):
    """ScanNet20 with synonyms and questions: name -> texts."""
    return replace(
        SCANNET20,
        **{kind: tuple(tuple(of_name.get(name, ())) for name in SCANNET20.names) for kind, of_name in lists.items()},
    )


CLASSES = asked_set(
    synonyms={"sofa": ["couch", "settee"], "bed": ["cot"], "toilet": ["lavatory"]},
    questions={"sofa": ["somewhere to sit"], "chair": ["somewhere to sit"], "bed": ["somewhere to sleep"]},
)
CHAIR, SOFA, BED, TOILET = (SCANNET20.names.index(name) for name in ("chair", "sofa", "bed", "toilet"))


def scene_of(seed, num_samples=90, kinds=(CHAIR, SOFA, WALL, 255)):
    generator = torch.Generator().manual_seed(seed)
    sample_of_point = torch.randint(0, num_samples, (400,), generator=generator)
    labels = torch.tensor(kinds)[torch.randint(0, len(kinds), (400,), generator=generator)]
    features = torch.randn(num_samples, 16, generator=generator)
    seen = torch.rand(num_samples, generator=generator) < 0.7
    return sample_of_point, labels, features, seen


@pytest.mark.parametrize("readout", ["fused", "distilled"])
def test_scores_are_those_of_the_slow_way(readout):
    queries = Queries.read(CLASSES, Toy())
    tally, further = Tally(queries), Tally(queries)
    scenes = [scene_of(0), scene_of(1, kinds=(BED, WALL)), scene_of(2, kinds=(CHAIR, TOILET, 255))]
    for into, (sample_of_point, labels, features, seen) in zip((tally, further, further), scenes, strict=True):
        cosines = functional.normalize(features, dim=1) @ queries.questions.texts.T
        into.add({readout: cosines}, seen, sample_of_point, labels)
    tally.merge(further)
    expected = {kind: slowly(kind, scenes, readout) for kind in ("synonyms", "questions")}
    found = tally.results(readout, Told())
    for kind, (ap, share, area) in expected.items():
        assert found[kind].ap == pytest.approx(ap, rel=1e-5)
        assert found[kind].ap_shuffled == pytest.approx(share)
        assert found[kind].auroc == pytest.approx(area)
    assert (found["synonyms"].num_present, found["synonyms"].num_absent) == (4, 8)
    assert (found["questions"].num_present, found["questions"].num_absent) == (3, 3)


def slowly(kind, scenes, readout):
    """Ask scene by scene and query by query, as a user would, and score by scikit-learn."""
    texts = dict.fromkeys(text for of_class in getattr(CLASSES, kind) for text in of_class)
    aps, shares, peaks, present = [], [], [], []
    for text in texts:
        worded = f"a {text} in a scene" if kind == "synonyms" else text
        rows = [row for row, of_class in enumerate(getattr(CLASSES, kind)) if text in of_class]
        for sample_of_point, labels, features, seen in scenes:
            known = seen if readout == "fused" else torch.ones_like(seen)
            (answer,) = ask(features, Questions.read(Toy(), [worded]), seen=known)
            right = torch.isin(labels, torch.tensor(rows))
            peaks.append(answer.peak)
            present.append(bool(right.any()))
            if present[-1]:
                relevance = answer.relevance.where(known, -99.0)[sample_of_point]
                scored = labels != 255
                aps.append(average_precision_score(right[scored].numpy(), relevance[scored].numpy()))
                shares.append(right[scored].float().mean().item())
    return 100 * sum(aps) / len(aps), 100 * sum(shares) / len(shares), roc_auc_score(present, peaks)


def test_a_question_is_answered_by_every_class_that_lists_it():
    queries = Queries.read(CLASSES, Toy())
    index = queries.questions.words.index("somewhere to sit")
    assert queries.kinds[index] == "questions"
    assert torch.nonzero(queries.answers[index])[:, 0].tolist() == [CHAIR, SOFA]
    assert queries.questions.words.count("somewhere to sit") == 1
    assert torch.allclose(queries.questions.vectors[index], Toy()(["somewhere to sit"])[0])


def test_a_synonym_is_asked_as_names_are():
    queries = Queries.read(CLASSES, Toy())
    index = queries.questions.words.index("couch")
    assert torch.allclose(queries.questions.vectors[index], Toy()(["a couch in a scene"])[0])


@pytest.mark.parametrize(
    ("num_samples", "sides"), [(0, (0, 1)), (1, (0, 0)), (MIN_POINTS - 1, (0, 0)), (MIN_POINTS, (1, 0))]
)
def test_a_scene_holds_a_class_from_as_many_samples_on_as_a_peak_needs(num_samples, sides):
    queries = Queries.read(asked_set(synonyms={"sofa": ["couch"]}), Toy())
    tally = Tally(queries)
    labels = torch.full((300,), WALL)
    labels[: 3 * num_samples] = SOFA
    sample_of_point = torch.arange(300) // 3
    tally.add({"distilled": torch.rand(100, 1 + len(CONTRAST))}, torch.ones(100).bool(), sample_of_point, labels)
    found = tally.results("distilled", Told(None))["synonyms"]
    assert (found.num_present, found.num_absent) == sides
    assert found.auroc is None
    assert found.reason == ("every scene holds an answer" if num_samples == MIN_POINTS else "no scene holds an answer")
    assert (found.ap is None) == (num_samples < MIN_POINTS)
    assert [query.is_seen for query in found.queries] == [None]


def test_queries_tell_whether_the_student_was_trained_with_them():
    tally = Tally(Queries.read(CLASSES, Toy()))
    words = Vocabulary(("cots", "somewhere to sit", "lavatories"))
    found = tally.results("distilled", Told(words, Vocabulary(("settee",))))
    seen = {query.words: query.is_seen for retrieval in found.values() for query in retrieval.queries}
    # Beds were taught by one of their synonyms, so the question for them is no question for an unseen thing.
    assert seen == {
        "couch": False, "settee": False, "cot": True, "lavatory": True,
        "somewhere to sleep": True, "somewhere to sit": True,
    }  # fmt: skip
    known = [query.words for retrieval in found.values() for query in retrieval.queries if query.is_known]
    assert known == ["couch", "settee", "somewhere to sit"]
    assert [query.classes for query in found["questions"].queries] == [("bed",), ("chair", "sofa")]


def test_a_fixed_vocabulary_may_lack_a_query():
    table = Table([("couch",), ("somewhere to sit",), ("tree",)], torch.eye(3))
    queries = Queries.read(CLASSES, table)
    assert queries.questions.words == ("couch", "somewhere to sit")
    assert queries.unreadable == {"synonyms": ("cot", "settee", "lavatory"), "questions": ("somewhere to sleep",)}
    assert Tally(queries).results("fused", Told())["synonyms"].unreadable == ("cot", "settee", "lavatory")
    assert Queries.read(CLASSES, Table([("tree",)], torch.eye(1))) is None
    assert Queries.read(SCANNET20, Toy()) is None


class Colors:
    """Text encoder in the colour teacher's space."""

    num_channels = 3

    def __call__(self, texts):
        known = {"a canvas in a scene": PICTURE_COLOR, "something red": WALL_COLOR}
        rows = [torch.tensor(known.get(text, (-1.0, -1.0, -1.0))) for text in texts]
        return functional.normalize(torch.stack(rows), dim=1)


def test_evaluation_scores_queries_in_the_same_pass(synthetic_store, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    classes = asked_set(synonyms={"picture": ["canvas"], "sofa": ["couch"]}, questions={"wall": ["something red"]})
    described = []

    def predict(scene):
        described.append(scene.name)
        return scene.colors[scene.index_of_sample]

    fused, distilled, joined = zero_shot(
        synthetic_store,
        classes,
        functional.normalize(torch.rand(20, 3), dim=1),
        teacher="color",
        readouts=("fused", "distilled", "2d3d"),
        predict=predict,
        split=None,
        told=Told(Vocabulary(("canvas",), "mine.txt")),
        queries=Queries.read(classes, Colors()),
        calibration=Calibration(-1, -1, "a test: all is here"),
    )
    assert described == ["synthetic"]
    assert distilled.retrieval["synonyms"].ap == distilled.retrieval["questions"].ap == 100
    assert distilled.retrieval["synonyms"].auroc == 1
    assert distilled.retrieval["questions"].auroc is None  # there is a wall in the only scene
    # Every point of the picture is seen; of the wall some are not, which the lifted features rank last.
    assert fused.retrieval["questions"].ap < 100 == joined.retrieval["questions"].ap
    assert [query.is_seen for query in distilled.retrieval["synonyms"].queries] == [False, True]
    assert [query.is_seen for query in fused.retrieval["synonyms"].queries] == [False, False]
    wrong = [(found.false_absent, found.false_here) for row in (distilled, joined) for found in row.retrieval.values()]
    assert wrong == [(0, 100), (0, None), (None, None), (None, None)]  # 2d3d is asked by nobody
    print_rows([asdict(row) for row in (fused, distilled)])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    share = 100 * 144 / 585
    assert f"none distilled synonyms 100.0 {share:.1f} 1.00 1 1 1 of 2 not known" in lines
    said = "0.0 % of what is there is called absent, 100.0 % of what is absent is called here"
    assert f"verdicts of none, distilled, synonyms: {said}" in " ".join(lines)


def test_a_label_set_without_queries_prints_none(synthetic_store, capsys):
    rows = zero_shot(
        synthetic_store,
        SCANNET20,
        functional.normalize(torch.rand(20, 3), dim=1),
        teacher="color",
        split=None,
        queries=Queries.read(SCANNET20, Colors()),
    )
    assert rows[0].retrieval == {}
    print_rows([asdict(row) for row in rows])
    assert "AUROC" not in capsys.readouterr().out
