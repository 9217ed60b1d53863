"""Facts about words that an encoder of English does not know."""

from dataclasses import replace

import pytest
import torch

from cuao3d.answers import _about_answer, in_words
from cuao3d.labels import label_set
from cuao3d.query import Questions, ask
from cuao3d.text import CentredText, english

pytest.importorskip("tokenizers", reason="needs cuao3d[teachers]")

NONSENSE = "asdfgh qwrt"
"""CLIP's pieces: asdf gh q wr t, 10 letters in 5."""


class Names:
    """Encoder in whose space all names lie together, and nonsense lies apart; "zxqv chair" is broken, but near."""

    num_channels = 2
    reads = "English"

    def __call__(self, texts):
        apart = {NONSENSE, "espresso"}
        return torch.tensor([[0.0, 1.0] if text in apart else [1.0, 0.0] for text in texts]).reshape(-1, 2)


def known(*texts, encoder=None):
    encoder = encoder or Names()
    return english.knows(encoder, texts, encoder(texts))


def test_nonsense_is_broken_and_lies_near_no_name():
    assert known(NONSENSE, "zxqv", "espresso") == (False, True, True)  # broken and lonely; broken alone; lonely alone


def test_pieces_by_hand():
    assert english._is_broken(NONSENSE)
    assert not english._is_broken("somewhere to sit")  # three words, three pieces
    assert not english._is_broken("doorframe")  # door, frame: 4.5 letters a piece
    assert not english._is_broken(f"{NONSENSE} on the chair by the window")  # 10 of 31 letters
    assert english._is_broken("où puis-je m'asseoir")
    assert not english._is_broken("???")


@pytest.mark.parametrize("text", ["椅子", "стул", "🪑", "???", "12345", "где chair"])
def test_without_latin_letters_there_is_nothing_to_know(text):
    assert known(text, encoder=Names()) == (text == "где chair",)  # 5 of 8 letters are Latin


def test_a_name_of_a_thing_is_known_however_it_is_written():
    class Odd(Names):
        def __call__(self, texts):
            return torch.tensor([[0.0, 1.0] if text in ("urn", "Urn ") else [1.0, 0.0] for text in texts])

    assert "urn" in label_set("matterport160").names
    assert english._is_lonely(Odd(), "urnx", torch.tensor([0.0, -1.0]))
    assert not english._is_lonely(Odd(), "Urn ", torch.tensor([0.0, 1.0]))


def test_an_encoder_of_any_language_is_not_judged():
    class Any(Names):
        reads = "any language"

    assert known(NONSENSE, "椅子", encoder=Any()) == (True, True)
    assert CentredText(Any(), torch.zeros(2)).reads == "any language"
    assert CentredText(Names(), torch.zeros(2)).reads == "English"


def test_unknown_words_are_unsure_and_the_answer_says_why():
    # All points say what the nonsense says, so that by relevance alone it would be here.
    features = torch.tensor([0.0, 1.0]).expand(50, 2)
    nonsense, espresso = ask(features, Questions.read(Names(), [NONSENSE, "espresso"]))
    assert (nonsense.peak, espresso.peak) == (pytest.approx(1), pytest.approx(1))
    assert (nonsense.verdict, espresso.verdict) == ("unsure", "here")
    why = "; the text encoder does not know these words; ask in plain English"
    assert in_words(nonsense, []) == f"perhaps not in this scene{why}"
    assert _about_answer(nonsense, 2) == f"relevance 1.00, 2 places{why}"
    assert _about_answer(replace(nonsense, words_known=True), 2) == "relevance 1.00, 2 places"


@pytest.mark.slow
def test_minilm_knows_what_is_asked_for_in_rooms():
    pytest.importorskip("transformers")
    from cuao3d.text import minilm_centred

    encoder, classes = minilm_centred(), label_set("made100")
    asked = [text for texts in (*classes.synonyms, *classes.questions) for text in texts]
    assert all(known(*asked, encoder=encoder))
    foreign = ("Kühlschrank", "krzesło", "jääkaappi", "椅子", "где можно сесть", "🪑", NONSENSE, "blorptang fnizzle")
    assert not any(known(*foreign, encoder=encoder))
