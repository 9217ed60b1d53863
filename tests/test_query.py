"""Facts about asking features with words."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from cuao3d import query
from cuao3d.query import CONTRAST, Questions, ask, classify, heat, parts, scores
from cuao3d.teachers import Calibration

VECTORS = {
    "chair": [1.0, 0.0, 0.0, 0.0],
    "seat": [0.8, 0.6, 0.0, 0.0],
    "elephant": [0.0, 0.0, 1.0, 0.0],
} | {word: [0.0, 0.0, 0.0, 1.0] for word in CONTRAST}


class Table:
    """Toy encoder: four channels; chair and seat are close, elephant is far, the contrast words fit nothing else."""

    num_channels = 4

    def __call__(self, texts):
        return torch.tensor([VECTORS[text] for text in texts])


@pytest.fixture
def chairs_and_clutter():
    """30 points that say chair, then 70 that say nothing in particular."""
    chair, clutter = torch.tensor([2.0, 0, 0, 0.2]), torch.tensor([0.1, 0.1, 0.1, 1.0])
    return torch.cat([chair.expand(30, 4), clutter.expand(70, 4)])


def test_what_no_class_of_the_teacher_is_near_is_unsure(chairs_and_clutter):
    # The elephant's best class is at cosine 0, the seat's, chair, at 0.8; near is 0.7.
    questions = Questions.read(Table(), ["seat", "elephant"], classes=["chair", "object"])
    assert questions.nearest_class == (None, "chair")
    elephants = chairs_and_clutter.clone()
    elephants[:30] = torch.tensor([0.0, 0, 1, 0])
    for features, num_answers in ((elephants, 30), (chairs_and_clutter, 0)):
        _, elephant = ask(features, questions)
        assert (elephant.verdict, elephant.nearest_class) == ("unsure", "chair")
        assert elephant.answers.sum() == num_answers
    seat, _ = ask(chairs_and_clutter, questions)
    assert (seat.verdict, seat.nearest_class) == ("here", None)
    assert Questions.read(Table(), ["elephant"]).nearest_class == (None,)


def test_verdicts_change_where_the_calibration_says(chairs_and_clutter):
    questions = Questions.read(Table(), ["chair"])
    (chair,) = ask(chairs_and_clutter, questions)
    for here, absent, verdict in ((chair.peak, 0, "here"), (2, chair.peak, "unsure"), (2, chair.peak + 0.01, "absent")):
        (chair,) = ask(chairs_and_clutter, questions, calibration=Calibration(here, absent, "a test"))
        assert chair.verdict == verdict


def test_a_peak_of_zero_is_answered_by_what_is_as_relevant():
    points = torch.zeros(100, 4)
    points[:, 3] = 1
    points[:20, 0] = points[:20, 3] = 1  # as near to a chair as to a contrast word
    points[20:40, 0] = 0.98
    (chair,) = ask(points, Questions.read(Table(), ["chair"]), calibration=Calibration(1, -1, "a test"))
    assert chair.peak == pytest.approx(0, abs=1e-6)
    assert chair.relevance[20].item() == pytest.approx(-0.02 / (1 + 0.98**2) ** 0.5, abs=1e-6)
    assert torch.equal(chair.answers, torch.arange(100) < 40)


def test_scores_are_cosines(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features, text = torch.randn(11, 8, generator=generator), torch.randn(3, 8, generator=generator)
    expected = functional.cosine_similarity(features[:, None], text[None], dim=2)
    torch.testing.assert_close(scores(features, text), expected)
    monkeypatch.setattr(query, "CHUNK", 32)
    torch.testing.assert_close(scores(features, text), expected)
    torch.testing.assert_close(scores(features.half(), 5 * text), expected, atol=2e-3, rtol=0)


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 20), st.sampled_from([1, 7, 64, 1 << 18]))
def test_scores_are_those_of_the_plain_product(num_rows, num_channels, num_texts, chunk):
    generator = torch.Generator().manual_seed(num_rows)
    features = torch.randn(num_rows, num_channels, generator=generator).half()
    features[::5] = 0
    text = torch.randn(num_texts, num_channels, generator=generator)
    rows = features.float() / features.float().norm(dim=1, keepdim=True).clamp(min=1e-12)
    expected = rows @ (text / text.norm(dim=1, keepdim=True).clamp(min=1e-12)).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query, "CHUNK", chunk)
        found = scores(features, text)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.is_contiguous()
    assert not found[::5].any()


def test_a_hundred_questions_are_answered_as_one_at_a_time(chairs_and_clutter):
    words = ["chair", "seat", "elephant"] * 34
    for word, found in zip(words, ask(chairs_and_clutter, Questions.read(Table(), words)), strict=True):
        (alone,) = ask(chairs_and_clutter, Questions.read(Table(), [word]))
        assert (found.words, found.verdict, found.peak) == (alone.words, alone.verdict, pytest.approx(alone.peak))
        torch.testing.assert_close(found.relevance, alone.relevance)
        assert torch.equal(found.answers, alone.answers)


def test_no_feature_has_no_score_and_no_class():
    class_scores = scores(torch.tensor([[0.0, 0.0], [0.0, -3.0]]), torch.eye(2))
    assert class_scores.tolist() == [[0, 0], [0, -1]]
    assert classify(class_scores).tolist() == [255, 0]


def test_what_is_there_is_found_where_it_is(chairs_and_clutter):
    chair, seat = ask(chairs_and_clutter, Questions.read(Table(), ["chair", "seat"]))
    assert chair.verdict == seat.verdict == "here"
    assert torch.equal(seat.answers, torch.arange(100) < 30)
    # The chairs' feature is (2, 0, 0, 0.2): cosine 0.995 to chair, 0.0995 to the contrast words.
    assert chair.scores[0].item() == pytest.approx(2 / 4.04**0.5)
    assert chair.relevance[0].item() == pytest.approx(1.8 / 4.04**0.5)


def test_what_is_not_there_is_not_found(chairs_and_clutter):
    (elephant,) = ask(chairs_and_clutter, Questions.read(Table(), ["elephant"]))
    assert elephant.verdict == "absent"
    assert not elephant.answers.any()
    assert elephant.scores.argmax() >= 30


def test_a_few_stray_points_are_no_answer(chairs_and_clutter):
    (chair,) = ask(chairs_and_clutter[20:], Questions.read(Table(), ["chair"]))
    assert chair.verdict == "absent"
    (chair,) = ask(chairs_and_clutter[20:], Questions.read(Table(), ["chair"]), min_points=10)
    assert chair.answers.sum() == 10


def test_a_faint_answer_is_unsure(chairs_and_clutter):
    # Chairs of (1, 0, 0, 0.8): their relevance is 0.2 / sqrt(1.64) = 0.16.
    faint = chairs_and_clutter.clone()
    faint[:30] = torch.tensor([1, 0, 0, 0.8])
    (chair,) = ask(faint, Questions.read(Table(), ["chair"]))
    assert chair.verdict == "unsure"
    assert chair.relevance[0].item() == pytest.approx(0.2 / 1.64**0.5)
    assert torch.equal(chair.answers, torch.arange(100) < 30)
    assert ask(faint[:0], Questions.read(Table(), ["chair"]))[0].verdict == "absent"


@pytest.mark.parametrize(
    ("relevance", "verdict"),
    [(0.31, "here"), (0.29, "unsure"), (0.06, "unsure"), (0.04, "absent")],
)
def test_the_verdict_rests_on_what_twenty_points_reach(relevance, verdict):
    # "Here" from 0.3 on, "absent" below 0.05. What is left of a unit is orthogonal to all words.
    points = torch.zeros(100, 4)
    points[:20, 0], points[:20, 1] = relevance, (1 - relevance**2) ** 0.5
    (chair,) = ask(points, Questions.read(Table(), ["chair"]))
    assert chair.peak == pytest.approx(relevance, abs=1e-6)
    assert chair.verdict == verdict
    assert chair.answers.sum() == (0 if verdict == "absent" else 20)
    (chair,) = ask(points[1:], Questions.read(Table(), ["chair"]))  # nineteen are no answer
    assert (chair.peak, chair.verdict) == (0, "absent")


def test_points_answer_that_are_half_as_relevant_as_the_best():
    points = torch.zeros(100, 4)
    points[:, 0] = torch.tensor([0.8] * 20 + [0.41] * 5 + [0.39] * 75)
    points[:, 1] = (1 - points[:, 0].square()).sqrt()
    (chair,) = ask(points, Questions.read(Table(), ["chair"]))
    assert torch.equal(chair.answers, torch.arange(100) < 25)


def test_the_nearest_contrast_word_counts_not_their_mean():
    class Words:
        num_channels = 4

        def __call__(self, texts):
            axes = {"chair": 0, CONTRAST[0]: 1}
            return torch.stack([torch.eye(4)[axes.get(text, 2)] for text in texts])

    points = torch.tensor([[0.8, 0.6, 0.0, 0.0]]).expand(20, 4)
    (chair,) = ask(points, Questions.read(Words(), ["chair"]))
    assert chair.peak == pytest.approx(0.8 - 0.6)


def test_a_contrast_word_itself_can_be_asked(chairs_and_clutter):
    assert bool(ask(chairs_and_clutter, Questions.read(Table(), ["stuff"]))[0].relevance.isfinite().all())


@given(st.lists(st.floats(-1, 1, width=32), max_size=30))
def test_heat_is_between_0_and_1_and_keeps_the_order(values):
    values = torch.tensor(values)
    hot = heat(values)
    assert bool(((hot >= 0) & (hot <= 1)).all())
    assert bool((hot[values.argsort()].diff() >= 0).all())


def test_heat_of_a_flat_scene_is_cold():
    assert heat(torch.full((5,), 0.3)).tolist() == [0] * 5
    assert heat(torch.tensor([-0.3, -0.3, -0.2, -0.2, 0.0])).tolist() == [0] * 5  # the last one no view has seen
    assert heat(torch.arange(101.0)).tolist()[:51] == [0] * 51


def test_parts_are_connected_groups_by_size():
    line = torch.arange(30)[:, None] * torch.tensor([[0.09, 0, 0]])
    other = torch.arange(25)[:, None] * torch.tensor([[0, 0.09, 0]]) + torch.tensor([0, 1.0, 0])
    stray = torch.tensor([[9.0, 9.0, 9.0]])
    assert parts(torch.cat([other, stray, line])).tolist() == [1] * 25 + [-1] + [0] * 30
    assert parts(line / 0.09 * 0.11).tolist() == [-1] * 30  # farther apart than 0.1 m
    assert parts(line[:20]).tolist() == [0] * 20
    assert parts(line[:19]).tolist() == [-1] * 19
    assert parts(torch.zeros(0, 3)).tolist() == []


def test_parts_do_not_depend_on_the_density_of_the_cloud():
    def patch(spacing: float, edge: float, x: float) -> Tensor:
        steps = (torch.arange(round(edge / spacing)) + 0.5) * spacing
        return torch.cartesian_prod(steps + x, torch.zeros(1), steps)

    for spacing in (0.02, 0.01, 0.004):
        # 10 x 10 cm are 25 cells of 2 cm and make a part, 8 x 8 cm are 16 and make none.
        large, small = patch(spacing, 0.1, 0.0), patch(spacing, 0.08, 1.0)
        assert parts(torch.cat([large, small])).tolist() == [0] * len(large) + [-1] * len(small)
    assert parts(patch(0.02, 0.1, 0.0), min_cells=26).tolist() == [-1] * 25


def by_all_pairs(points: Tensor, radius: float, min_cells: int) -> list[set[int]]:
    """Parts of points that lie in a cell of their own each, by the distances of all pairs."""
    near = (points[:, None].double() - points[None].double()).norm(dim=2) <= radius
    left, found = set(range(len(points))), []
    while left:
        part, reached = set(), {min(left)}
        while reached - part:
            part |= reached
            reached = set(near[sorted(part)].any(dim=0).nonzero()[:, 0].tolist())
        left -= part
        found.append(part)
    return sorted((part for part in found if len(part) >= min_cells), key=len, reverse=True)


@pytest.mark.parametrize("seed", range(8))
def test_parts_are_those_of_all_pairs(seed, monkeypatch):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.unique(torch.randint(-20, 20, (400 + 300 * seed, 3), generator=generator), dim=0)
    points = (cells + 0.1 + 0.8 * torch.rand(cells.shape, generator=generator)) * query.CELL
    monkeypatch.setattr(query, "PAIRS", (1 << 19, 200)[seed % 2])
    for radius in (0.03, 0.05, 0.1):
        part_of_point = parts(points, radius=radius, min_cells=3)
        expected = torch.full((len(points),), -1)
        for index, part in enumerate(by_all_pairs(points, radius, 3)):
            expected[list(part)] = index
        assert torch.equal(part_of_point, expected)


def test_a_block_of_cells_costs_memory_for_each_cell_not_for_each_pair(extra_memory):
    # A million cells, each with 523 others within 10 cm: 4 GB of pairs.
    steps = torch.arange(100) * query.CELL + 0.01
    points = torch.cartesian_prod(steps, steps, steps)
    with extra_memory(limit_mb=400):
        assert not parts(points).any()
