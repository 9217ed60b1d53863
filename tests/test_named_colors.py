"""Colour words: what a question asks for, and which colour a point has."""

import pytest
import torch

from cuao3d.index.named_colors import NAMES, color_of_points, split_colors


@pytest.mark.parametrize(
    ("question", "words", "colors"),
    [
        ("red chair", "chair", ("red",)),
        ("a red chair", "a chair", ("red",)),
        ("an orange sofa", "a sofa", ("orange",)),
        ("a Gray or violet armchair", "a armchair", ("grey", "purple")),
        ("a black and white cabinet", "a cabinet", ("black", "white")),
        ("a chair that is red", "a chair that is", ("red",)),
        ("a whiteboard", "a whiteboard", ()),
        ("an orange", "an orange", ()),
        ("something white", "something white", ()),
        ("somewhere to sit", "somewhere to sit", ()),
    ],
)
def test_colour_words_are_split_off_where_something_is_left(question, words, colors):
    assert split_colors(question) == (words, colors)


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ((255, 0, 0), "red"),
        ((0, 0, 255), "blue"),
        ((0, 128, 0), "green"),
        ((255, 255, 0), "yellow"),
        ((255, 165, 0), "orange"),
        ((139, 69, 19), "brown"),  # saddle brown
        ((255, 192, 203), "pink"),
        ((128, 0, 128), "purple"),
        ((0, 0, 0), "black"),
        ((255, 255, 255), "white"),
        ((128, 128, 128), "grey"),
        ((90, 20, 20), "red"),  # in the shade
    ],
)
def test_the_web_colours_have_their_names(color, name):
    assert NAMES[int(color_of_points(torch.tensor([color]) / 255)[0])] == name


def test_no_points_have_no_colours():
    assert color_of_points(torch.zeros(0, 3)).tolist() == []
