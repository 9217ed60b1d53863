"""Retrieval: how well free text finds what it asks for, for the synonyms of the classes and for questions.

Two scores for each read-out. Average precision: in each scene that holds what is asked for, its points are ranked by
their relevance (see `cuao3d.query`). AUROC of present against absent: the peak relevance of a query in a scene, which
decides the verdict, is to be higher where the scene holds what is asked for; all pairs of query and scene are compared.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.labels import LabelSet
from cuao3d.query import MIN_POINTS, Questions, peaks, relevance_of
from cuao3d.scene import UNLABELLED
from cuao3d.teachers import Calibration
from cuao3d.text import TextEncoder
from cuao3d.text.prompts import PROMPT
from cuao3d.verdicts import Peaks, wrong_verdicts
from cuao3d.vocabulary import Told, Vocabulary

Kind = Literal["names", "synonyms", "questions"]
"""What is asked: the prompts of the classes themselves, to fit verdicts only, their synonyms, or questions."""


@dataclass(frozen=True)
class QueryScore:
    """How well one query does."""

    words: str
    """The query."""
    classes: tuple[str, ...]
    """Names of the classes that answer it."""
    is_seen: bool | None
    """Whether the query, or the name of such a class, is a training word of the student; None where that is unknown."""
    is_known: bool | None
    """The same for the teacher's training words."""
    ap: float | None
    """Average precision, the mean over the scenes that hold an answer, percent; None if none does."""
    num_present: int
    """Scenes that hold an answer: at least `min_samples` samples of these classes, as many as a peak needs."""
    num_absent: int
    """Scenes without a single point of them. A scene with fewer than `min_samples` counts on neither side."""


@dataclass(frozen=True)
class Retrieval:
    """How well all queries of a kind do."""

    ap: float | None
    """Average precision, percent: the mean over all pairs of a query and a scene that holds an answer."""
    ap_shuffled: float | None
    """The same for points in random order: the mean share of the points that are right."""
    auroc: float | None
    """Chance that a pair of query and scene that holds an answer has a higher peak than one without, 0 to 1."""
    num_present: int
    """Pairs of a query and a scene that holds an answer."""
    num_absent: int
    """Pairs without."""
    reason: str
    """Why a score is missing; empty where none is."""
    unreadable: tuple[str, ...]
    """Queries that the text encoder does not know, as one with a fixed vocabulary may not."""
    queries: tuple[QueryScore, ...]
    """Each query by itself."""
    false_absent: float | None = None
    """Share of the pairs that hold an answer where the verdict is "absent", percent; None without a calibration."""
    false_here: float | None = None
    """Share of the other pairs where the verdict is "here", percent; None without a calibration."""


@dataclass(frozen=True)
class Queries:
    """Synonyms and questions of a label set, encoded."""

    classes: LabelSet
    """The label set."""
    kinds: tuple[Kind, ...]
    """Kind of each query."""
    answers: Bool[Tensor, "Q K"]
    """Which classes answer each query: all that list the same text."""
    questions: Questions
    """The queries, in the space of the features."""
    unreadable: Mapping[Kind, tuple[str, ...]]
    """Queries of each kind that the text encoder does not know."""
    min_samples: int = MIN_POINTS
    """Number of samples from which a scene holds a class."""

    @staticmethod
    def read(
        classes: LabelSet, encoder: TextEncoder, *, min_samples: int = MIN_POINTS, names: bool = False
    ) -> "Queries | None":
        """Encode the synonyms and questions of a label set.

        A synonym is asked as names are, by `PROMPT`; a question as it stands.

        Args:
            classes: The label set.
            encoder: Turns words into unit vectors.
            min_samples: Number of samples from which a scene holds a class.
            names: Whether to ask for the names of the classes too.

        Returns:
            The queries; None where there is none, or none that the encoder knows.
        """
        asked: dict[tuple[Kind, str], list[int]] = {}
        lists: dict[Kind, tuple[tuple[str, ...], ...]] = {"synonyms": classes.synonyms, "questions": classes.questions}
        lists |= {"names": tuple((prompt,) for prompt in classes.prompts)} if names else {}
        for kind, of_class in lists.items():
            for row, texts in enumerate(of_class):
                for text in texts:
                    asked.setdefault((kind, text), []).append(row)
        known = _known(encoder, [text for _, text in asked])
        unreadable = {kind: tuple(text for one, text in asked if one == kind and text not in known) for kind in lists}
        read = {key: rows for key, rows in asked.items() if key[1] in known}
        if not read:
            return None
        answers = torch.zeros(len(read), len(classes), dtype=torch.bool)
        for query, rows in enumerate(read.values()):
            answers[query, rows] = True
        worded = [PROMPT.replace("{name}", text) if kind == "synonyms" else text for kind, text in read]
        questions = replace(Questions.read(encoder, worded), words=tuple(text for _, text in read))
        return Queries(classes, tuple(kind for kind, _ in read), answers, questions, unreadable, min_samples)


class _Pair(NamedTuple):
    """A query in a scene."""

    query: int
    is_present: bool
    peak: float
    ap: float
    """Average precision, and the share of the points that are right; 0 where the scene holds no answer."""
    share: float


@dataclass
class Tally:
    """Collects the scores of queries scene by scene, for each read-out."""

    queries: Queries
    """The queries."""
    _pairs: dict[str, list[_Pair]] = field(default_factory=dict)

    def add(
        self,
        cosines: Mapping[str, Float[Tensor, "S T"]],
        seen: Bool[Tensor, "S"],
        sample_of_point: Int64[Tensor, "N"],
        labels: Int64[Tensor, "N"],
    ) -> None:
        """Ask a scene.

        Args:
            cosines: For each read-out, the cosine of each sample with `Questions.texts`.
            seen: Which samples a view sees: in the read-out `fused` the others have no feature, and are ranked last.
            sample_of_point: The sample that stands for each point.
            labels: Class of each point; 255 where it is not scored.
        """
        queries, scored = self.queries, labels != UNLABELLED
        class_of_point, sample_of_point = labels[scored], sample_of_point[scored]
        counts = (queries.answers * torch.bincount(class_of_point, minlength=len(queries.classes))).sum(dim=1)
        total = torch.bincount(sample_of_point, minlength=len(seen))
        right = {}
        for query in torch.nonzero(counts)[:, 0].tolist():
            answer = sample_of_point[queries.answers[query][class_of_point]]
            points_of_sample = torch.bincount(answer, minlength=len(seen))
            if int((points_of_sample > 0).sum()) >= queries.min_samples:
                right[query] = points_of_sample
        asked = [query for query in range(len(counts)) if query in right or not counts[query]]
        for readout, texts in cosines.items():
            relevance = relevance_of(texts, queries.questions).cpu()
            known = seen if readout == "fused" else torch.ones_like(seen)
            peak = peaks(relevance[known]).tolist()
            relevance[~known] = -torch.inf
            of_query = relevance.T.contiguous()
            pairs = self._pairs.setdefault(readout, [])
            for query in asked:
                ap, share = 0.0, 0.0
                if query in right:
                    ap = average_precision(of_query[query], right[query], total)
                    share = float(counts[query]) / int(total.sum())
                pairs.append(_Pair(query, query in right, peak[query], ap, share))

    def merge(self, other: "Tally") -> None:
        """Add what the same queries got in further scenes."""
        for readout, pairs in other._pairs.items():
            self._pairs.setdefault(readout, []).extend(pairs)

    def results(self, readout: str, told: Told, calibration: Calibration | None = None) -> dict[str, Retrieval]:
        """Return the scores of a read-out for each kind of which there is a query.

        Args:
            readout: The read-out.
            told: Words that the student and the teacher were trained with.
            calibration: Relevance at which its verdicts change, to count the wrong ones.
        """
        found = {kind: self._of_kind(kind, readout, told, calibration) for kind in get_args(Kind)}
        return {kind: retrieval for kind, retrieval in found.items() if retrieval.queries}

    def peaks(self, readout: str) -> dict[Kind, Peaks]:
        """Return the peaks of each kind of query in a read-out."""
        return {kind: _peaks(*self._sides(kind, readout)) for kind in get_args(Kind)}

    def _sides(self, kind: Kind, readout: str) -> tuple[list[_Pair], list[_Pair]]:
        """Return the pairs that hold an answer, and those that do not."""
        pairs = [pair for pair in self._pairs.get(readout, []) if self.queries.kinds[pair.query] == kind]
        return [pair for pair in pairs if pair.is_present], [pair for pair in pairs if not pair.is_present]

    def _of_kind(self, kind: Kind, readout: str, told: Told, calibration: Calibration | None) -> Retrieval:
        own = [query for query, one in enumerate(self.queries.kinds) if one == kind]
        present, absent = self._sides(kind, readout)
        peaks = _peaks(present, absent)
        wrong = (None, None) if calibration is None else wrong_verdicts(peaks, calibration)
        seen, known = self._holds(told.student), self._holds(told.teacher)
        reason = "no scene holds an answer" if not present else "every scene holds an answer" if not absent else ""
        return Retrieval(
            ap=_percent(pair.ap for pair in present),
            ap_shuffled=_percent(pair.share for pair in present),
            auroc=auroc(*peaks),
            num_present=len(present),
            num_absent=len(absent),
            reason=reason,
            unreadable=self.queries.unreadable.get(kind, ()),
            queries=tuple(self._of_query(query, (*present, *absent), seen, known) for query in own),
            false_absent=wrong[0],
            false_here=wrong[1],
        )

    def _holds(self, vocabulary: Vocabulary | None) -> list[bool | None]:
        """Return of each query whether a vocabulary holds it, or a class that answers it."""
        words, answers = self.queries.questions.words, self.queries.answers
        if vocabulary is None:
            return [None] * len(words)
        holds_class = (answers & torch.tensor(vocabulary.holds(self.queries.classes))).any(dim=1).tolist()
        return [text in vocabulary or held for text, held in zip(words, holds_class, strict=True)]

    def _of_query(
        self, query: int, pairs: Iterable[_Pair], seen: Sequence[bool | None], known: Sequence[bool | None]
    ) -> QueryScore:
        words = self.queries.questions.words[query]
        rows = torch.nonzero(self.queries.answers[query])[:, 0].tolist()
        own = [pair for pair in pairs if pair.query == query]
        present = [pair.ap for pair in own if pair.is_present]
        names = tuple(self.queries.classes.names[row] for row in rows)
        marks = seen[query], known[query]
        return QueryScore(words, names, *marks, _percent(present), len(present), len(own) - len(present))


def average_precision(relevance: Float[Tensor, "S"], right: Int64[Tensor, "S"], total: Int64[Tensor, "S"]) -> float:
    """Return the average precision of points that are ranked by the relevance of their samples, 0 to 1.

    Points of equal relevance are taken together, whatever their order: that of one sample always are.

    Args:
        relevance: Relevance of each sample.
        right: Points of each sample that answer the query.
        total: All its points.
    """
    counted = total > 0
    ordered, order = relevance[counted].sort(descending=True)
    is_last = torch.ones(len(ordered), dtype=torch.bool)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    found = right[counted][order].cumsum(dim=0)[is_last].double()
    looked_at = total[counted][order].cumsum(dim=0)[is_last].double()
    gained: Float64[Tensor, "G"] = found.diff(prepend=found.new_zeros(1))
    return float((gained * found / looked_at).sum() / found[-1])


def auroc(present: Sequence[float], absent: Sequence[float]) -> float | None:
    """Return the chance that a value of the first kind is higher than one of the second; a tie counts half.

    Args:
        present: Values that should be high.
        absent: Values that should be low.

    Returns:
        The area under the ROC curve, 0 to 1; None where one kind has no value.
    """
    if not present or not absent:
        return None
    from scipy.stats import rankdata  # takes a second to import, which commands without scores need not wait for

    ranks = rankdata([*present, *absent])[: len(present)]
    return float((ranks.sum() - len(present) * (len(present) + 1) / 2) / (len(present) * len(absent)))


def _peaks(present: Sequence[_Pair], absent: Sequence[_Pair]) -> Peaks:
    """Return the peaks of pairs that hold an answer, and of those that do not."""
    return Peaks([pair.peak for pair in present], [pair.peak for pair in absent])


def _percent(shares: Iterable[float]) -> float | None:
    """Return the mean, percent; None of nothing."""
    held = list(shares)
    return 100 * sum(held) / len(held) if held else None


def _known(encoder: TextEncoder, texts: Sequence[str]) -> set[str]:
    """Return the texts that an encoder knows; one without a fixed vocabulary knows all."""
    if getattr(encoder, "vectors", None) is None:
        return set(texts)
    known = set()
    for text in texts:
        with suppress(InputError):
            encoder([text])
            known.add(text)
    return known
