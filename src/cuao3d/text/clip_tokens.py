"""Texts as OpenAI's CLIP reads them: pieces of words, numbered. The vocabulary is in the package."""

import gzip
from pathlib import Path
from typing import Any

from cuao3d.errors import NotInstalledError

MERGES_FILE = Path(__file__).parent / "clip_merges.txt.gz"
"""Pairs of pieces that become one, a line each, the most frequent first."""

END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"

PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What merges do not cross: words, single digits, runs of signs."""


class ClipTokenizer:
    """Byte-pair encoding of lower-cased text, between a token that starts it and one that ends it."""

    def __init__(self) -> None:
        """Read the vocabulary.

        Raises:
            NotInstalledError: tokenizers is not installed.
        """
        try:
            from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
            from tokenizers.models import BPE
        except ImportError:
            raise NotInstalledError("CLIP's text side needs tokenizers: pip install 'cuao3d[teachers]'") from None
        vocabulary = {piece: number for number, piece in enumerate(pieces())}
        self.num_tokens = len(vocabulary)
        self._start, self._end = vocabulary[START], vocabulary[END]
        self._tokenizer: Any = Tokenizer(BPE(vocabulary, _merges(), end_of_word_suffix=END_OF_WORD))
        self._tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Return the tokens of each text, however many."""
        return [[self._start, *one.ids, self._end] for one in self._tokenizer.encode_batch(texts)]


def pieces() -> list[str]:
    """Return the vocabulary, in the order of its numbers."""
    letters = byte_letters()
    return [*letters, *(letter + END_OF_WORD for letter in letters), *map("".join, _merges()), START, END]


def byte_letters() -> list[str]:
    """Return the letters that stand for the 256 bytes in the vocabulary, in its order.

    Bytes that print stand for themselves and come first; the others borrow letters from 256 on.
    """
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printed] + [chr(256 + index) for index in range(256 - len(printed))]


def _merges() -> list[tuple[str, str]]:
    lines = gzip.decompress(MERGES_FILE.read_bytes()).decode().splitlines()
    return [(first, second) for first, second in (line.split(" ") for line in lines)]
