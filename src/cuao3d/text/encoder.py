"""What text encoders have in common: what they are, batches of texts, and that no text is cut short."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

from cuao3d.errors import InputError

BATCH = 64
"""Texts encoded at a time."""


@runtime_checkable
class TextEncoder(Protocol):
    """Turns texts into unit vectors."""

    @property
    def num_channels(self) -> int:
        """Channels of the vectors."""

    def __call__(self, texts: Sequence[str], /) -> Float[Tensor, "K C"]:
        """Return a unit vector for each text.

        Args:
            texts: The texts.
        """


class ModelEncoder:
    """Base of encoders that are language models.

    A member sets the attributes and loads its model in its `__init__`; the rest is two steps: texts to tokens, tokens
    to vectors.
    """

    num_channels: int
    reads: str = "English"
    """Language that the model was trained on, whose words it knows; see `cuao3d.text.english`."""
    max_tokens: int
    """Tokens of a text that the model can read, those that mark start and end included."""

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float32[Tensor, "K C"]:
        """Encode texts, one unit vector each.

        Raises:
            InputError: A text is longer than the model can read.
        """
        tokens = self._tokens(list(texts)) if texts else []
        for text, one in zip(texts, tokens, strict=True):
            if len(one) > self.max_tokens:
                shown = text if len(text) <= 60 else f"{text[:60]}..."
                raise InputError(
                    f"The text {shown!r} is {len(one)} tokens long; this encoder reads {self.max_tokens}. Shorten it."
                )
        batches = [self._encode(tokens[start : start + BATCH]) for start in range(0, len(tokens), BATCH)]
        return functional.normalize(torch.cat([torch.zeros(0, self.num_channels), *batches]), dim=1)

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        """Return the tokens of each text, however many."""
        raise NotImplementedError

    def _encode(self, tokens: list[list[int]]) -> Float32[Tensor, "B C"]:
        """Encode a batch of texts."""
        raise NotImplementedError


def pad(tokens: Sequence[Sequence[int]], filler: int, length: int = 0) -> Int64[Tensor, "B T"]:
    """Bring texts to one number of tokens, that of the longest or `length`, by filling up on the right."""
    length = max(length, *map(len, tokens))
    return torch.tensor([[*one, *[filler] * (length - len(one))] for one in tokens])
