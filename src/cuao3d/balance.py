"""Which points a student is shown: those of rare words as often as the balance says."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cuao3d.batches import TrainingScene
from cuao3d.objective import Table, parts_of, select

ROWS_AT_A_TIME = 20_000
"""Rows of features that are converted to float32 at a time."""

WHOLE_VALUES = 1 << 29
"""Values of a teacher's features that are read before the first step, at most, a gigabyte in 16 bits: words are counted
and normalisers fitted on all features, or where there are more on every n-th of each scene."""


@dataclass(frozen=True)
class Words:
    """Word vectors in the space of the language-aligned teacher."""

    teacher: int
    """Index of the teacher."""
    vectors: Float[Tensor, "K C"]
    """Unit vector of each word."""
    texts: tuple[str, ...]
    """The text of each."""
    unused: tuple[str, ...] = ()
    """Texts that no training point is nearest to."""


def balanced(scenes: list[TrainingScene], words: Words, balance: float) -> tuple[list[TrainingScene], Words]:
    """Set the sampling probability of each point by the frequency of its nearest word over all scenes.

    Returns:
        The scenes, and the words with those that no point is nearest to.
    """
    kinds = [_nearest_word(few(scene, scenes, words.teacher), words.vectors) for scene in scenes]
    frequency = torch.bincount(torch.cat(kinds), minlength=len(words.vectors)).float()
    words = replace(words, unused=tuple(words.texts[row] for row in torch.nonzero(frequency == 0)[:, 0].tolist()))
    if balance == 0:
        return scenes, words
    chance = (frequency / frequency.sum()).clamp(min=1e-6).pow(-balance)
    chances: list[Any] = [
        chance[kind]
        if len(kind) == len(scene.rows)
        else _Chances(partial(_of_teacher, scene, words.teacher), words.vectors, chance)
        for scene, kind in zip(scenes, kinds, strict=True)
    ]
    return [_with_chances(scene, own) for scene, own in zip(scenes, chances, strict=True)], words


def _with_chances(scene: TrainingScene, chances: Any) -> TrainingScene:
    """Return a scene with other chances; its targets, which may be lifted when they are read, are not read."""
    other = copy(scene)
    object.__setattr__(other, "chances", chances)
    return other


def _of_teacher(scene: TrainingScene, teacher: int) -> Table:
    features: Table = scene.targets[teacher]
    return features


@dataclass
class _Chances:
    """The sampling probability of each point of a scene, worked out when its turn has come."""

    read: Callable[[], Table]
    """Returns the features; they are read where they lie then."""
    vectors: Tensor
    of_word: Tensor
    found: Tensor | None = None

    def __call__(self) -> Tensor:
        if self.found is None:
            self.found = self.of_word[_nearest_word(self.read(), self.vectors)]
        return self.found


def few(scene: TrainingScene, scenes: list[TrainingScene], teacher: int) -> Table:
    """Return a teacher's features of a scene, or every n-th where those of all scenes are more than `WHOLE_VALUES`."""
    features = scene.targets[teacher]
    step = -(-sum(len(one.rows) for one in scenes) * features.shape[1] // WHOLE_VALUES)
    return features if step <= 1 else select(features, torch.arange(0, len(scene.rows), step))


def _nearest_word(features: Table, vectors: Float[Tensor, "K C"]) -> Int64[Tensor, "R"]:
    """Return the index of the nearest word of each feature."""
    return torch.cat([(part.float() @ vectors.T).argmax(dim=1) for part in parts_of(features, ROWS_AT_A_TIME)])
