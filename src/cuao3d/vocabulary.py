"""Vocabularies: the words that a student or its teacher was trained with, and what that means for a score.

A name that was a training word is seen; zero-shot figures are those of the others. As in generalised zero-shot learning
(Xian et al., CVPR 2017), a table gives the mean over the seen names, over the unseen ones, and their harmonic mean.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cuao3d.errors import InputError, NotFoundError
from cuao3d.labels import LabelSet
from cuao3d.text.prompts import PROMPT, names_in

MISSPELT = {"refridgerator": "refrigerator"}
"""Words as label sets misspell them: NYU40's is the same word to those who ask whether a name was seen."""

PLURALS = {"ies": "y", "lves": "lf", "ives": "ife", "xes": "x", "shes": "sh", "ches": "ch", "sses": "ss"}
"""Endings of English plurals that take more than an s, and those of the singular."""

UNKNOWN = "not known"
"""What tables say of a vocabulary that nobody recorded."""


@dataclass(frozen=True)
class Vocabulary:
    """Words that something was trained with; an empty list for none. Where they are not known, None stands for it."""

    words: tuple[str, ...] = ()
    """The words, or texts with a place for one, such as "a chair in a scene"."""
    source: str = ""
    """Label set or file that they come from, or the teacher that was trained with them."""

    def __contains__(self, name: str) -> bool:
        """Return whether a name is among the words: case, plural, spaces, hyphens and underscores do not matter."""
        return bool(_forms(name) & self._known)

    @cached_property
    def _known(self) -> frozenset[str]:
        """The words in one spelling."""
        return frozenset(form for word in self.words for form in _forms(word))

    def holds(self, classes: LabelSet) -> tuple[bool, ...]:
        """Return of each class whether its name or one of its synonyms is among the words."""
        return tuple(
            any(name in self for name in (own, *others))
            for own, others in zip(classes.names, classes.synonyms, strict=True)
        )

    def __str__(self) -> str:
        """Return source and size, for tables."""
        return f"{self.source}, {len(self.words)} words" if self.words else "no vocabulary"


@dataclass(frozen=True)
class Told:
    """What was told to those who answer."""

    student: Vocabulary | None = Vocabulary()
    """Words that the student was trained with; empty where there is no student, None where they are not known."""
    teacher: Vocabulary | None = None
    """Words that the teacher was trained with; None where they are not known."""


@dataclass(frozen=True)
class BySeen:
    """A score divided by a vocabulary: the evaluated names that it holds, and those that it does not."""

    vocabulary: str
    """Its source and size, "no vocabulary", or "not known"."""
    seen: tuple[str, ...] | None
    """Evaluated names that are in the vocabulary; None where it is not known."""
    unseen: tuple[str, ...] | None
    """The other evaluated names."""
    miou_seen: float | None
    """Mean IoU over the seen names, percent; None if there is none."""
    miou_unseen: float | None
    """Mean IoU over the unseen names, percent; None if there is none."""
    harmonic: float | None
    """Harmonic mean of the two; None where one is missing."""
    reason: str
    """Why a mean is missing; empty where none is."""


def by_seen(iou: Mapping[str, float], classes: LabelSet, vocabulary: Vocabulary | None) -> BySeen:
    """Divide the IoU of classes by a vocabulary.

    Args:
        iou: IoU of each class that is present, percent, by name.
        classes: Their label set.
        vocabulary: The vocabulary; None if it is not known.
    """
    if vocabulary is None:
        return BySeen(UNKNOWN, None, None, None, None, None, "the vocabulary is not known")
    holds = dict(zip(classes.names, vocabulary.holds(classes), strict=True))
    seen, unseen = (tuple(name for name in iou if holds[name] is held) for held in (True, False))
    one, other = _mean(iou[name] for name in seen), _mean(iou[name] for name in unseen)
    reason = "no evaluated name is seen" if one is None else "no evaluated name is unseen" if other is None else ""
    return BySeen(str(vocabulary), seen, unseen, one, other, harmonic_mean(one, other), reason)


def divisions(row: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield "student" and "teacher" with the scores of a row divided by their words; a supervised one has no teacher.

    Args:
        row: A `Row` as a dictionary, or what is left of one.
    """
    for who in ("student", "teacher"):
        if (divided := row.get(f"by_{who}")) is not None and (who, row["readout"]) != ("teacher", "supervised"):
            yield who, divided


def harmonic_mean(one: float | None, other: float | None) -> float | None:
    """Return the harmonic mean of two scores; 0 where both are 0, None where one is missing."""
    if one is None or other is None:
        return None
    return 2 * one * other / (one + other) if one + other > 0 else 0.0


def read_vocabulary(spec: str, find: Callable[[str], LabelSet]) -> tuple[Vocabulary, tuple[str, ...]]:
    """Read the words to train with.

    Synonyms and questions of a label set are no training words.

    Args:
        spec: Name of a label set, the path of its CSV, or a text file (.txt) with a word a line; # begins a comment.
        find: Returns a label set by its name or path.

    Returns:
        The vocabulary, and the text of each entry that is encoded: the prompt of a class, or `PROMPT` of a word.

    Raises:
        NotFoundError: There is no such text file.
        InputError: There is no such label set, or a file holds something else.
    """
    if not spec.endswith(".txt"):
        classes = find(spec)
        worded = (prompt for name, prompt in zip(classes.names, classes.prompts, strict=True) if name not in prompt)
        return Vocabulary(tuple(dict.fromkeys((*classes.names, *worded))), spec), classes.prompts
    path = Path(spec)
    if not path.is_file():
        raise NotFoundError(f"There is no file of words {spec}.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{spec} is no text in UTF-8 ({error}); save it again.") from error
    stripped = (" ".join(line.split()) for line in lines)
    words = tuple(dict.fromkeys(word for word in stripped if word and not word.startswith("#")))
    if not words:
        raise InputError(f"{spec} has no word in it; write one a line, or train without a vocabulary.")
    return Vocabulary(words, spec), tuple(PROMPT.replace("{name}", word) for word in words)


def listed(names: Iterable[str], most: int = 12) -> str:
    """List names, the first of them where there are many."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _mean(values: Iterable[float]) -> float | None:
    """Return the mean; None of nothing."""
    held = list(values)
    return sum(held) / len(held) if held else None


def _forms(text: str) -> frozenset[str]:
    """Return what a text may name, in one spelling: itself, and what stands in the place of a template's name."""
    plain = re.sub(r"\ban\b", "a", re.sub(r"[\s_\-]+", " ", text.lower()).strip())
    bare = (re.sub(r"^(a|the) ", "", name) for name in names_in(plain))
    forms = ("".join(_singular(word) for word in re.findall(r"[^\W_]+", name)) for name in bare)
    return frozenset(form for form in forms if form)


def _singular(word: str) -> str:
    """Return the singular of an English noun, as far as its ending tells."""
    word = MISSPELT.get(word, word)
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    return next((word[: -len(plural)] + one for plural, one in PLURALS.items() if word.endswith(plural)), word[:-1])
