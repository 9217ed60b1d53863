"""What is typed into the viewer: several questions at once, each with words that must not be meant."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cuao3d.console import visible
from cuao3d.errors import InputError
from cuao3d.predictor import Predictor
from cuao3d.query import LEAST_MARGIN, SAME, Answer, Verdict, ask, peaks, scores
from cuao3d.text.english import knows

SYNTAX = "Several questions: a chair; a table. Exceptions: a chair, not an office chair"
"""How questions are written, for the reader."""

MOST_LETTERS, MOST_QUESTIONS = 300, 8
"""Longest text that is read, and most questions in it: there are as many colours that can be told apart."""

_EXCEPT = re.compile(r"\s*,\s*not\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """One question."""

    words: str
    """What is looked for."""
    exceptions: tuple[str, ...] = ()
    """What is not meant, though it may be like it."""

    def __str__(self) -> str:
        """Return the question as it is written."""
        return ", not ".join([self.words, *self.exceptions])


def read_questions(text: str) -> tuple[Question, ...]:
    """Read questions as they are typed; see `SYNTAX`.

    Args:
        text: What was typed.

    Returns:
        The questions, each once; none for a blank text.

    Raises:
        InputError: There are too many letters or questions.
    """
    if len(text) > MOST_LETTERS:
        raise InputError(f"These are {len(text):,} letters; ask in {MOST_LETTERS} at most.")
    found: dict[Question, None] = {}
    for part in visible(" ".join(text.split())).split(";"):
        words, *exceptions = (one.strip(" ,") for one in _EXCEPT.split(part.strip()))
        if words:
            found[Question(words, tuple(dict.fromkeys(one for one in exceptions if one)))] = None
    if len(found) > MOST_QUESTIONS:
        raise InputError(f"These are {len(found)} questions; ask {MOST_QUESTIONS} at most.")
    return tuple(found)


def answer_questions(
    predictor: Predictor, features: Float[Tensor, "V C"], questions: Sequence[Question]
) -> tuple[Answer, ...]:
    """Ask features of a scene, as `Predictor.ask` does, and take exceptions into account.

    An exception counts like one more contrast word: a point that is as near to it as to the question has relevance 0.

    Args:
        predictor: Reads the words, and knows where verdicts change.
        features: Features of what some view saw, or that a student described.
        questions: The questions.

    Returns:
        An answer for each, with a value for each row.

    Raises:
        InputError: The text encoder does not know a word.
    """
    encoded = predictor.questions([one.words for one in questions])
    asked = ask(features, encoded, calibration=predictor.calibration)
    return tuple(_without(predictor, features, one, found) for one, found in zip(questions, asked, strict=True))


def _without(predictor: Predictor, features: Tensor, question: Question, found: Answer) -> Answer:
    """Take the exceptions of a question off its answer."""
    if not question.exceptions:
        return found
    words, *others = predictor.encoder([question.words, *question.exceptions])
    words_known = found.words_known and all(knows(predictor.encoder, question.exceptions, torch.stack(others)))
    relevance = found.relevance
    for other, cosine in zip(others, scores(features, torch.stack(others)).T, strict=True):
        of_itself = (1 - words @ other).clamp(min=SAME)
        relevance = relevance.minimum((found.scores - cosine) / of_itself.to(cosine.device))
    peak, calibration = peaks(relevance[:, None]).item(), predictor.calibration
    verdict: Verdict = "here" if peak >= calibration.here else "absent" if peak < calibration.absent else "unsure"
    verdict = verdict if found.nearest_class is None and words_known else "unsure"
    least = torch.inf if peak < calibration.absent else min(peak / 2, peak - LEAST_MARGIN)
    changed = replace(found, peak=peak, relevance=relevance, answers=relevance >= least, _kept={})
    return replace(changed, words=str(question), verdict=verdict, words_known=words_known)
