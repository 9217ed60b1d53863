"""Places: what is one thing is one place, and what is nothing is none."""

import torch
from torch import Tensor

from cuao3d.places import KEEP, SMALLEST, find_places


def slab(x: float, width: float, *, z: float = 0.4, depth: float = 0.8) -> Tensor:
    """A level patch of points 3 cm apart, from x on."""
    xs, ys = torch.meshgrid(torch.arange(x, x + width, 0.03), torch.arange(0, depth, 0.03), indexing="ij")
    return torch.stack([xs.flatten(), ys.flatten(), torch.full((xs.numel(),), z)], dim=1)


def found(*slabs: tuple[Tensor, float], least: float = 0.5) -> list[tuple[int, float]]:
    """Number of points and relevance of the places in patches, each of one relevance; `least` answers."""
    points = torch.cat([patch for patch, _ in slabs])
    relevance = torch.cat([torch.full((len(patch),), value) for patch, value in slabs])
    seen = torch.ones(len(points), dtype=torch.bool)
    places = find_places(points, relevance, relevance >= least, seen)
    return [(len(place.points), round(place.relevance, 3)) for place in places]


def test_a_sofa_in_pieces_is_one_place():
    pieces = [(slab(0.0, 0.9), 1.0), (slab(1.2, 0.9), 0.95), (slab(2.4, 0.5), 0.95)]
    assert [count for count, _ in found(*pieces)] == [sum(len(patch) for patch, _ in pieces)]


def test_two_stools_are_two_places_though_as_near_as_the_pieces_of_a_sofa():
    stool, other = slab(0.0, 0.35, depth=0.35), slab(0.6, 0.35, depth=0.35)
    assert found((stool, 1.0), (other, 1.0)) == [(len(stool), 1.0), (len(other), 1.0)]


def test_a_gap_in_which_something_else_was_seen_parts_them():
    one, other, between = slab(0.0, 0.9), slab(1.2, 0.9), slab(0.93, 0.24)
    assert len(found((one, 1.0), (other, 1.0), (between, 0.1))) == 2
    assert len(found((one, 1.0), (other, 1.0), (between, 0.4))) == 1


def test_what_stands_on_another_height_is_another_place():
    assert len(found((slab(0.0, 0.9), 1.0), (slab(1.2, 0.9, z=0.6), 1.0))) == 1
    assert len(found((slab(0.0, 0.9), 1.0), (slab(1.2, 0.9, z=0.7), 1.0))) == 2


def test_the_best_place_comes_first_and_weak_and_tiny_ones_are_left_out():
    far = (slab(9.0, 0.9), KEEP + 0.01)
    assert [value for _, value in found(far, (slab(0.0, 0.9), 1.0))] == [1.0, round(KEEP + 0.01, 3)]
    assert [value for _, value in found((slab(9.0, 0.9), KEEP - 0.01), (slab(0.0, 0.9), 1.0))] == [1.0]
    assert len(found((slab(9.0, 0.9 * SMALLEST + 0.06), 1.0), (slab(0.0, 0.9), 1.0))) == 2
    assert len(found((slab(9.0, 0.9 * SMALLEST - 0.06), 1.0), (slab(0.0, 0.9), 1.0))) == 1


def test_the_relevance_of_a_place_is_that_of_the_best_quarter_of_its_points():
    whole = slab(0.0, 0.99)
    quarter = len(whole) // 4
    relevance = torch.cat([torch.full((quarter,), 0.9), torch.full((len(whole) - quarter,), 0.5)])
    everywhere = torch.ones(len(whole), dtype=torch.bool)
    (place,) = find_places(whole, relevance, everywhere, everywhere)
    assert round(place.relevance, 4) == 0.9
    assert place.best.tolist() == list(range(quarter))


def test_nothing_that_answers_makes_no_place():
    assert found((slab(0.0, 0.9), 0.1)) == []


def test_where_all_are_less_relevant_than_contrast_words_the_best_is_kept():
    nearly, far = (slab(9.0, 0.9), -0.21), (slab(18.0, 0.9), -0.23)
    assert [value for _, value in found((slab(0.0, 0.9), -0.2), nearly, far, least=-0.5)] == [-0.2, -0.21]
