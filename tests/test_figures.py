import math
import re
import sys
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import conftest
from conftest import PICTURE, WALL, ColorTeacher
from cuao3d.errors import InputError
from cuao3d.figures.ambiguity import (
    Vote,
    choose_object,
    crops,
    rank_correlation,
    study,
    tally,
    upright_scene,
)
from cuao3d.figures.histograms import draw_histograms, feature_histograms
from cuao3d.figures.palette import palette
from cuao3d.figures.panels import MOST_NAMED, Panel, class_legend, draw_panels, grid
from cuao3d.figures.segments import (
    Described,
    alike,
    clusters,
    draw_maps,
    draw_segments,
    embed,
    of_lifted,
    pca_colors,
    segment,
)
from cuao3d.figures.sides import draw_sides
from cuao3d.figures.training import draw_sigmas
from cuao3d.figures.views import draw_crops, draw_disagreement, errors_by_disagreement
from cuao3d.history import History
from cuao3d.labels import label_set

SCANNET = label_set("scannet20")
COLORS = torch.tensor([[0.0, 0, 1]]).repeat(20, 1)
COLORS[WALL], COLORS[PICTURE] = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
"""Words of `ColorTeacher`: walls are red, pictures green, all else is blue."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Clouds are drawn small, and maps laid out by PCA: UMAP compiles itself for many seconds."""
    monkeypatch.setattr("cuao3d.figures.panels.SIZE", (48, 36))
    monkeypatch.setitem(sys.modules, "umap", None)


def words_in(figure):
    """All that a figure says."""
    texts = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return " ".join(" ".join(texts).split())


def test_separate_groups_are_separate_segments_the_largest_first():
    generator = torch.Generator().manual_seed(0)
    kind = torch.tensor([0] * 30 + [1] * 60 + [2] * 10)
    features = torch.eye(3, 40)[kind] + 0.01 * torch.randn(100, 40, generator=generator)
    assert clusters(features, 3).tolist() == [1] * 30 + [0] * 60 + [2] * 10
    assert torch.equal(clusters(features, 3, seed=5), clusters(features, 3, seed=5))


def test_like_segments_have_like_numbers():
    first = torch.tensor([0, 0, 0, 1, 1, 2, -1])
    second = torch.tensor([2, 2, 2, 0, 0, 1, 1])
    assert alike(second, first).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert alike(first, second).tolist() == [2, 2, 2, 0, 0, 1, -1]


def test_principal_colors_follow_what_varies_most():
    # A ramp along one direction of 8 channels: red runs from dark to bright, or back.
    features = torch.linspace(0, 1, 200)[:, None] * torch.tensor([3.0, 1, 0, 0, 0, 0, 0, 0])
    red = pca_colors(features)[:, 0]
    assert red.amin() == pytest.approx(0.08)
    assert red.amax() == pytest.approx(0.95)
    assert (red.diff() >= 0).all()


def test_features_narrower_than_colors_are_drawn_too():
    assert pca_colors(torch.rand(30, 2)).shape == (30, 3)
    assert clusters(torch.rand(5, 2), 12).amax() < 5


def test_like_segments_of_several_features_have_one_number_and_color():
    kind = torch.tensor([0] * 30 + [1] * 60 + [2] * 10)
    row_of_point = torch.tensor([*range(100), -1])
    seen = torch.tensor([*range(35), *range(90, 100)])  # of the largest group only 5 points: here it is the smallest
    row_of_seen = torch.full((101,), -1).index_copy(0, seen, torch.arange(45))
    one, other = torch.eye(3)[kind] * 5, torch.eye(4, 6)[torch.tensor([3, 0, 2])[kind[seen]]]
    described = [Described("one", one, row_of_point), Described("other", other, row_of_seen)]
    first, second = segment(described, num_segments=3)
    assert first.of_point.tolist() == [1] * 30 + [0] * 60 + [2] * 10 + [-1]
    assert second.of_point.tolist() == [1] * 30 + [0] * 5 + [-1] * 55 + [2] * 10 + [-1]
    assert second.of_row.tolist() == [1] * 30 + [0] * 5 + [2] * 10


def test_features_that_tell_nothing_apart_say_so(synthetic_store):
    scene = synthetic_store["synthetic"]
    constant = Described("flat", torch.full((5, 3), 0.5), torch.zeros(len(scene.points), dtype=torch.int64))
    empty = Described("blind", torch.zeros(0, 3), torch.full((len(scene.points),), -1))
    flat, blind, color = segment([constant, empty, of_lifted(scene, "color")], num_segments=2)
    assert set(color.of_point.tolist()) == {-1, 0, 1}, "wall, picture, and the wall behind it"
    said = words_in(draw_segments(scene, [flat, blind], "a $cost$ <b>"))
    assert "All points have the same" in said
    assert "No view saw" in said
    assert "a $cost$ <b>" in said
    assert "nothing to show" in words_in(draw_maps([], "maps"))
    assert "No view saw" in words_in(draw_maps([blind, color], "maps"))


def test_a_map_keeps_what_is_alike_together_with_and_without_umap(monkeypatch):
    rows = torch.eye(3, 8)[torch.tensor([0, 1, 2] * 10)] * torch.linspace(1, 1.1, 30)[:, None]
    monkeypatch.setitem(sys.modules, "umap", None)
    laid_out, method = embed(rows)
    assert (laid_out.shape, method) == ((30, 2), "PCA")
    distance = torch.cdist(laid_out, laid_out)
    assert distance[0, 3] < 0.1 * distance[0, 1]
    asked = {}

    def umap(**settings):
        asked.update(settings)
        return SimpleNamespace(fit_transform=lambda rows: np.asarray(rows)[:, :3])

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=umap))
    laid_out, method = embed(rows, 3, seed=7)
    assert (laid_out.shape, method) == ((30, 3), "UMAP")
    assert (asked["n_components"], asked["random_state"]) == (3, 7)


def test_segments_have_the_colors_that_everybody_tells_apart():
    assert palette()[0].tolist() == pytest.approx([0, 0x72 / 255, 0xB2 / 255])
    assert len(set(palette()[-1].tolist())) == 1, "grey stands for none"


def test_a_histogram_counts_every_value_of_the_rows(synthetic_store):
    (found,) = feature_histograms(synthetic_store)
    rows = synthetic_store["synthetic"].features("color").float()
    assert (found.num_rows, found.num_channels) == rows.shape
    assert found.mean == pytest.approx(rows.mean().item())
    assert found.deviation == pytest.approx(rows.double().std(correction=0).item())
    inside = (rows >= found.edges[0]) & (rows <= found.edges[-1])
    assert found.share.sum().item() == pytest.approx(inside.float().mean().item())
    few = feature_histograms(synthetic_store, num_rows=50)[0]
    assert few.num_rows == 50
    assert "50 points × 3 numbers" in words_in(draw_histograms([few], "spread"))
    assert feature_histograms(synthetic_store, "val") == []
    same = replace(found, deviation=0.0, mean=0.25)
    assert "Every number is 0.25" in words_in(draw_histograms([same], "spread"))


def votes_of(table):
    """Votes of views (rows) on samples (columns); None: not seen."""
    seen = [[sample for sample, row in enumerate(view) if row is not None] for view in table]
    return [
        Vote(index, torch.tensor(samples, dtype=torch.int64), torch.tensor([view[one] for one in samples]).long())
        for index, (view, samples) in enumerate(zip(table, seen, strict=True))
    ]


def test_disagreement_is_the_chance_that_two_views_differ():
    # All agree; 2 of 3 pairs differ; both differ; one view; one view and one without a class; 4 views in halves.
    table = [
        [3, 0, 0, 1, 1, 0],
        [3, 0, 1, None, 255, 0],
        [3, 2, None, None, None, 1],
        [None, None, None, None, None, 1],
    ]
    found = tally(votes_of(table), 6, 4)
    torch.testing.assert_close(
        found.disagreement, torch.tensor([0, 2 / 3, 1, math.nan, math.nan, 4 / 6]), equal_nan=True
    )
    assert found.num_votes.tolist() == [3, 3, 2, 1, 1, 4]


@settings(max_examples=20)
@given(st.lists(st.lists(st.sampled_from([None, 0, 1, 2, 255]), min_size=3, max_size=3), min_size=1, max_size=6))
def test_disagreement_is_that_of_a_loop_over_pairs(table):
    found = tally(votes_of(table), 3, 3).disagreement.tolist()
    for sample in range(3):
        pairs = list(combinations([view[sample] for view in table if view[sample] not in (None, 255)], 2))
        expected = sum(a != b for a, b in pairs) / len(pairs) if pairs else math.nan
        assert found[sample] == pytest.approx(expected, nan_ok=True)


def test_rank_correlation_of_disagreement_with_error():
    is_wrong = torch.tensor([False, False, True, True, True])
    disagreement = torch.tensor([0.0, 0.0, 0.5, 0.5, math.nan])
    assert rank_correlation(disagreement, is_wrong) == pytest.approx(1)
    assert rank_correlation(-disagreement, is_wrong) == pytest.approx(-1)
    assert rank_correlation(disagreement, torch.ones(5, dtype=torch.bool)) is None
    assert rank_correlation(torch.zeros(5), is_wrong) is None


def test_errors_are_grouped_by_disagreement():
    disagreement = torch.tensor([0.0, 0.0, 0.2, 0.21, 1.0, math.nan])
    is_wrong = torch.tensor([False, True, True, False, True, True])
    groups = errors_by_disagreement(disagreement, is_wrong)
    assert groups == [("none", 2, 0.5), ("0–0.2", 1, 1.0), ("0.2–0.4", 1, 0.0), ("0.8–1", 1, 1.0)]


def test_the_object_is_what_is_disputed_most_and_no_wall_if_there_is_another():
    heap = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)) * 0.2
    points = torch.cat([heap, heap + 2, heap + 4, heap + 6])
    classes = torch.tensor([1, 1, 2, 0]).repeat_interleave(30)  # two chairs, a table, a wall
    disagreement = torch.tensor([0.1, 0.4, 0.3, 0.9]).repeat_interleave(30)
    background = torch.tensor([True, False, False])
    found = choose_object(points, classes, disagreement, background)
    assert found.nonzero()[:, 0].tolist() == list(range(30, 60)), "the second chair, not both"
    assert not choose_object(points, classes, torch.zeros(120), background).any()
    only_walls = choose_object(points, torch.zeros_like(classes), disagreement, background)
    assert only_walls.nonzero()[:, 0].tolist() == list(range(90, 120))


@pytest.mark.parametrize("quarters", [0, 1])
def test_single_views_name_what_they_see(synthetic_scene, synthetic_store, quarters, monkeypatch):
    monkeypatch.setattr("cuao3d.figures.ambiguity.image_quarters", lambda scene: [-quarters % 4] * 2)
    stored = synthetic_store["synthetic"]
    lying = replace(synthetic_scene, frames=tuple(conftest.turned(one, quarters) for one in synthetic_scene.frames))
    scene = upright_scene(lying)
    torch.testing.assert_close(scene.frames[0].read_image(), synthetic_scene.frames[0].read_image())
    found = study(scene, stored, ColorTeacher(), COLORS)
    assert torch.equal(found.num_votes, stored.num_views)
    labels = stored.labels[stored.index_of_sample]
    named = torch.cat([vote.classes[labels[vote.sample] == PICTURE] for vote in found.votes])
    assert (named == PICTURE).float().mean() > 0.9
    shown = crops(scene, stored, found, labels == PICTURE)
    assert [crop.frame for crop in shown] == ["x=-0.25", "x=0.25"]
    for crop in shown:
        x, y = crop.pixels.round().long().T
        assert (crop.image[y, x] == np.array([64, 191, 64])).all(), "the picture is green where its samples are drawn"
        assert crop.image.shape[0] == crop.image.shape[1]
    said = words_in(draw_crops(shown, SCANNET, "One object"))
    assert "View x=-0.25" in said
    assert re.search(r"picture \d+ %", said)


def test_another_scene_is_not_studied(synthetic_scene, synthetic_store):
    moved = replace(synthetic_scene, points=synthetic_scene.points + 1)
    with pytest.raises(InputError, match="its points are others"):
        study(moved, synthetic_store["synthetic"], ColorTeacher(), COLORS)


def test_disagreement_is_drawn_with_and_without_labels(synthetic_store):
    stored = synthetic_store["synthetic"]
    num_samples = len(stored.num_views)
    nobody = tally([], num_samples, 20)
    assert "nothing can disagree" in words_in(draw_disagreement(stored, nobody, "views"))
    rows = torch.arange(num_samples)
    views = tally([Vote(0, rows, rows % 2), Vote(1, rows, rows % 2 * 0)], num_samples, 20)
    assert "More disagreement" not in words_in(draw_disagreement(stored, views, "views"))
    everywhere = torch.ones(num_samples, dtype=torch.bool)
    said = words_in(draw_disagreement(stored, views, "views", is_wrong=rows % 2 == 1, is_labelled=everywhere))
    assert "rank correlation 1.00" in said


def test_sides_show_input_truth_and_any_number_of_predictors(synthetic_store):
    stored = synthetic_store["synthetic"]
    wrong = torch.full_like(stored.labels, 3)
    predictions = {"baseline": stored.labels, "ours": wrong}
    figure = draw_sides(stored, SCANNET, predictions, "A scene", labels=stored.labels)
    said = words_in(figure)
    for words in ("Input", "Truth", "baseline", "ours", "mIoU 100 in this scene", "mIoU 0 in this scene"):
        assert words in said
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["wall", SCANNET.names[3], "picture"]
    assert "mIoU" not in words_in(draw_sides(stored, SCANNET, {"ours": wrong}, "A scene"))


def test_a_legend_holds_what_occurs_and_the_largest_of_many():
    legend = class_legend(SCANNET, [torch.tensor([5, 5, 2]), torch.tensor([255])])
    assert [name for name, _ in legend] == [SCANNET.names[2], SCANNET.names[5], "none"]
    many = label_set("scannet200")
    names = [name for name, _ in class_legend(many, [torch.cat([torch.arange(30), torch.arange(6, 30)])])]
    assert names == [*many.names[6:30], "and 6 rarer classes"]
    assert len(names) == MOST_NAMED + 1


def test_panels_fill_their_bands():
    assert [grid(number) for number in (1, 4, 5, 9)] == [(1, 1), (4, 1), (3, 2), (3, 3)]
    assert "There is nothing to show" in words_in(draw_panels("Empty", []))
    assert "No picture here" in words_in(draw_panels("Words", [Panel("one", ("No picture here",))]))


def test_noise_levels_are_drawn_or_said_to_be_none():
    history = History((0, 1), {"$a": (1.0, 0.5)}, (1e-3, 0), sigmas={"$a": (1.0, 0.9)})
    assert "Noise level σ" in words_in(draw_sigmas(history, "σ"))
    assert "no noise level was learned" in words_in(draw_sigmas(replace(history, sigmas={}, weighting="fixed"), "σ"))
