"""Words that an encoder of English does not know: of another language or script, nonsense, signs without a letter.

An encoder turns any text into a vector, and what it does not know into one that means nothing. Two signs together give
such texts away. CLIP's vocabulary was built from English, so other words fall into many short pieces; and their
vectors lie near no name of a thing.
"""

import functools
import re
import unicodedata
from collections.abc import Hashable, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from cuao3d.labels import LABEL_SETS, label_set
from cuao3d.text.clip_tokens import ClipTokenizer
from cuao3d.text.encoder import TextEncoder

LETTERS = 3.0
"""Letters that a piece of a broken English word has on average, at the least."""

LONELY = 0.1
"""A vector is near no name if its cosine with the nearest one is below this quantile of what names have among each
other. Both were fitted by `scripts/measure_words.py`, which tells how often they are wrong on other words."""

WORDS = re.compile(r"[^\W\d_]+")


def knows(encoder: TextEncoder, texts: Sequence[str], vectors: Float[Tensor, "K C"]) -> tuple[bool, ...]:
    """Say of texts whether an encoder knows their words; of one that does not say that it `reads` English, always.

    Args:
        encoder: The encoder.
        texts: The texts.
        vectors: Their unit vectors.
    """
    if getattr(encoder, "reads", None) != "English":
        return (True,) * len(texts)
    return tuple(
        _is_written_in_latin(text) and not (_is_broken(text) and _is_lonely(encoder, text, vector))
        for text, vector in zip(texts, vectors, strict=True)
    )


def _is_written_in_latin(text: str) -> bool:
    """Say whether a text has letters, and most of them are Latin."""
    letters = [letter for letter in text if letter.isalpha()]
    latin = [letter for letter in letters if unicodedata.name(letter, "").startswith("LATIN")]
    return 2 * len(latin) > len(letters)


def _is_broken(text: str) -> bool:
    """Say whether most letters are in words that fall into pieces, which are short or hold letters with accents."""
    words = WORDS.findall(unicodedata.normalize("NFC", text).lower())
    counts = [len(tokens) - 2 for tokens in _tokenizer()(words)]  # without the tokens of start and end
    broken = [(len(word), count) for word, count in zip(words, counts, strict=True) if count > 1]
    letters, num_pieces = (sum(one) for one in zip(*broken, strict=True)) if broken else (0, 1)
    return 2 * letters > sum(map(len, words)) and (letters < LETTERS * num_pieces or not "".join(words).isascii())


def _is_lonely(encoder: TextEncoder, text: str, vector: Float[Tensor, "C"]) -> bool:
    """Say whether a text's vector lies near no name of a thing."""
    names, vectors, least = _names(cast(Hashable, encoder))
    return text.strip().lower() not in names and float((vectors @ vector).max()) < least


@functools.cache
def _tokenizer() -> ClipTokenizer:
    return ClipTokenizer()


@functools.lru_cache(maxsize=4)
def _names(encoder: Hashable) -> tuple[frozenset[str], Float[Tensor, "N C"], float]:
    """Return the names of the classes of all label sets, their vectors, and the cosine below which one is lonely."""
    names = sorted({name for one in LABEL_SETS for name in label_set(one).names})
    vectors = cast(TextEncoder, encoder)(names)
    nearest = (vectors @ vectors.T).fill_diagonal_(-1).amax(dim=1)
    return frozenset(names), vectors, float(torch.quantile(nearest, LONELY))
