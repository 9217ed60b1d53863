"""Evaluation of zero-shot segmentation: one function for every read-out, always on the original points.

`docs/method.md` says where scores and read-outs differ from those of the released code.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cuao3d.confidence import Ledger, Scored
from cuao3d.errors import InputError
from cuao3d.labels import LabelSet, convert, label_set
from cuao3d.memory import give_back
from cuao3d.metrics import (
    NOTHING_TOLD,
    Counted,
    Row,
    background_of,
    classify_foreground,
    confusion_matrix,
    make_row,
    way_of,
)
from cuao3d.predictor import Passes, Predict
from cuao3d.progress import OnCount, OnStep
from cuao3d.query import classify, scores
from cuao3d.retrieval import Queries, Tally
from cuao3d.scene import UNLABELLED, Split
from cuao3d.store import Store, StoredScene
from cuao3d.teachers import Calibration
from cuao3d.vocabulary import Told
from cuao3d.workers import side_by_side

Readout = Literal["fused", "distilled", "2d3d"]
Ensemble = Literal["unit-average", "surer", "average"]
"""How 2D and 3D features are combined: the mean of both after normalisation (ours), the feature with the higher score
(OpenScene), or the plain mean (the released code; a cosine loss leaves the length of the student's features free)."""

Way = tuple[Readout, Ensemble | None]
"""A read-out, and for 2d3d its rule."""

JUDGED = {"fused": "fused", "distilled": "distilled", way_of("2d3d", "unit-average"): "2d3d"}
"""Ways whose labels get a confidence, and the read-outs that it is fitted for."""

NO_LABELS = "without labels"
"""Why a scene that is there is not scored."""

ScoreClasses = Callable[[StoredScene], Mapping[str, Float[Tensor, "S K"]]]
"""Scores every class at every sample of a scene, all 0 where there is no prediction, by one or several read-outs."""


def zero_shot(
    store: Store,
    classes: LabelSet,
    class_vectors: Float[Tensor, "K C"],
    *,
    teacher: str,
    readouts: Iterable[Readout] = ("fused",),
    predict: Predict | Passes | None = None,
    model: str = "none",
    dataset: str = "",
    split: Split | None = "val",
    ensemble: Ensemble | Sequence[Ensemble] = "unit-average",
    seen_only: bool = False,
    told: Told = NOTHING_TOLD,
    queries: Queries | None = None,
    calibration: Calibration | None = None,
    trained_on: Sequence[str] = (),
    ledger: Ledger | None = None,
    num_workers: int = 1,
    progress: OnCount | None = None,
) -> tuple[Row, ...]:
    """Segment the scenes of a store by the names of the classes; return a row for each read-out and rule of 2d3d.

    Args:
        store: Scenes with labels.
        classes: Label set to score in; labels in another set are converted.
        class_vectors: Unit vector of each class, in the teacher's text space.
        teacher: Teacher whose lifted features the `fused` read-out uses.
        readouts: Read-outs to score. All but `fused` need `predict`.
        predict: The student's features; see `student_features`. Scores of several `Predictor.passes` are summed.
        model: Name of the student, for the rows.
        dataset: Name of the dataset, for the rows.
        split: Split to evaluate; None for all scenes.
        ensemble: How `2d3d` combines features; several rules cost as much as one.
        seen_only: Score only points whose sample at least one view sees.
        told: Words that the student and the teacher were trained with.
        queries: Synonyms and questions of the classes, to be scored in the same pass.
        calibration: Relevance at which verdicts change: of the student if there is one, else of the lifted features.
        trained_on: Scenes that are scored though the student was trained on them; its rows name them.
        ledger: Counts how sure right and wrong labels are; see `Row.trust`.
        num_workers: Processes that share the scenes; only the last bits of how sure labels are depend on it.
        progress: Called after each scene.

    Raises:
        InputError: A read-out lacks its student, there is no such rule, or no scene of the split has labels.
    """
    ways = _ways(tuple(readouts), (ensemble,) if isinstance(ensemble, str) else tuple(ensemble), predict is not None)
    passes = predict if isinstance(predict, Passes) else Passes((predict,) if predict else ())
    tally = None if queries is None else Tally(queries)
    scoring = _Scoring(ways, teacher, passes, classes, class_vectors, seen_only, tally, ledger)
    sums = _score_all(store, store.names(split), scoring, num_workers, progress)
    counted = sums.counted(store, classes, split, seen_only)
    row = partial(make_row, counted, classes, dataset=dataset, split=split or "all", seen_only=seen_only)
    how = {"model": model, "passes": len(passes.predicts), "train_mode": passes.train_mode, "trained_on": trained_on}
    own = {"fused" if predict is None else "distilled": calibration}
    return tuple(_row(row, way, _about(way, how, told), tally, own.get(way[0]), ledger) for way in ways)


def count(
    store: Store,
    classes: LabelSet,
    score_classes: ScoreClasses,
    *,
    split: Split | None = "val",
    seen_only: bool = False,
    progress: OnCount | None = None,
) -> Counted:
    """Compare predictions with labels on all original points of a store.

    Args:
        store: The scenes; those without labels are skipped.
        classes: The classes that predictions index.
        score_classes: Returns the scores of each sample for each read-out.
        split: Split to evaluate; None for all scenes.
        seen_only: Count only points whose sample at least one view sees.
        progress: Called after each scene.

    Returns:
        Two confusion matrices for each read-out, over all classes and over the foreground alone, and which scenes are
        missing in them.

    Raises:
        InputError: No scene of the split has labels, or no point has one that is scored.
    """
    sums = _Sums.of(store, store.names(split), classes, score_classes, seen_only=seen_only, progress=progress)
    return sums.counted(store, classes, split, seen_only)


@dataclass
class _Sums:
    """What was counted of some scenes."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    """Confusion matrix of each read-out."""
    foreground: dict[str, Tensor] = field(default_factory=dict)
    """The same of the foreground alone."""
    num_scenes: int = 0
    """Scenes that were asked for."""
    missing: dict[str, str] = field(default_factory=dict)
    """Why some of them are not scored."""

    @staticmethod
    def of(
        store: Store,
        names: Sequence[str],
        classes: LabelSet,
        score_classes: ScoreClasses,
        *,
        seen_only: bool,
        progress: OnCount | None,
    ) -> "_Sums":
        """Score some scenes of a store; see `count`."""
        sums, background = _Sums(num_scenes=len(names)), background_of(classes)
        for done, name in enumerate(names, start=1):
            scene = store[name]
            if scene.labels is not None and scene.label_set is not None:
                labels = labels_of(scene, classes, seen_only=seen_only)
                for way, class_scores in score_classes(scene).items():
                    whole, masked = _compare(class_scores, scene.sample_of_point, labels, background)
                    sums._add({way: whole}, {way: masked})
            else:
                sums.missing[name] = NO_LABELS
            give_back()
            if progress:
                progress(done, len(names))
        return sums

    def _add(self, totals: Mapping[str, Tensor], foreground: Mapping[str, Tensor]) -> None:
        for own, other in ((self.totals, totals), (self.foreground, foreground)):
            own.update({way: own.get(way, 0) + confusion for way, confusion in other.items()})

    def add(self, other: "_Sums") -> None:
        """Add what was counted of other scenes."""
        self._add(other.totals, other.foreground)
        self.num_scenes += other.num_scenes
        self.missing |= other.missing

    def counted(self, store: Store, classes: LabelSet, split: Split | None, seen_only: bool) -> Counted:
        """Return it with the scenes that the store lacks; raise InputError if nothing was scored."""
        if not self.totals:
            what = "scene" if split is None else f"{split} scene"
            raise InputError(
                f"{store.path} has no {what} with labels ({self.num_scenes} without); choose another split."
            )
        if not any(int(confusion.sum()) for confusion in self.totals.values()):
            seen = " that a view sees" if seen_only else ""
            raise InputError(
                f"No point{seen} of the {self.num_scenes} scenes of {store.path} has a label of {classes.name}: there "
                "is nothing to score. Choose another label set or split."
            )
        num_scored = self.num_scenes - len(self.missing)
        return Counted(self.totals, self.foreground, num_scored, store.missing() | self.missing)


@dataclass
class _Scoring:
    """Scores the classes of scenes, and counts on the way how queries and confidence do."""

    ways: Sequence[Way]
    teacher: str
    passes: Passes
    classes: LabelSet
    class_vectors: Tensor
    seen_only: bool
    tally: Tally | None
    ledger: Ledger | None

    def __call__(self, scene: StoredScene) -> dict[str, Tensor]:
        """Score a scene; see `ScoreClasses`."""
        queries = [] if self.tally is None else [self.tally.queries.questions.texts]
        of_classes, *asked = _scores(self.ways, scene, self.teacher, self.passes, [self.class_vectors, *queries])
        labels = labels_of(scene, self.classes, seen_only=self.seen_only)
        _judge(self.ledger, scene, self.teacher, of_classes, self.class_vectors, labels)
        if self.tally is not None:
            self.tally.add(asked[0], scene.seen, scene.sample_of_point, labels)
        return of_classes


def _score_all(
    store: Store, names: Sequence[str], scoring: _Scoring, num_workers: int, progress: OnCount | None
) -> _Sums:
    """Score scenes, in several processes if so asked; return what they counted together, the scenes in their order."""
    num_workers = min(num_workers, len(names))
    if num_workers <= 1:  # a share in this process would count into what it is merged with
        return _Sums.of(store, names, scoring.classes, scoring, seen_only=scoring.seen_only, progress=progress)
    size = -(-len(names) // num_workers)
    shares = [names[first : first + size] for first in range(0, len(names), size)]
    done = [0] * len(shares)

    def say(share: int, steps: int, total: int, line: str) -> None:
        done[share] = steps
        if progress:
            progress(sum(done), len(names))

    sums = _Sums()
    for found, own in side_by_side(
        [partial(_score_share, store, share, scoring) for share in shares], num_workers, say
    ):
        sums.add(found)
        if scoring.tally is not None and own.tally is not None:
            scoring.tally.merge(own.tally)
        if scoring.ledger is not None and own.ledger is not None:
            scoring.ledger.merge(own.ledger)
    return sums


def _score_share(store: Store, names: Sequence[str], scoring: _Scoring, on_step: OnStep) -> tuple[_Sums, _Scoring]:
    """Score a share of the scenes in a process of its own, which has its own copy of what counts."""
    sums = _Sums.of(
        store,
        names,
        scoring.classes,
        scoring,
        seen_only=scoring.seen_only,
        progress=lambda done, total: on_step(done, total, ""),
    )
    return sums, replace(scoring, passes=Passes(()))  # the student need not travel back


def labels_of(scene: StoredScene, classes: LabelSet, *, seen_only: bool = False) -> Int64[Tensor, "N"]:
    """Return the class of each point of a scene with labels, as a row of a label set; 255 where it is not scored.

    Args:
        scene: The scene.
        classes: The label set.
        seen_only: Score only points whose sample at least one view sees.
    """
    assert scene.labels is not None
    assert scene.label_set is not None
    labels = classes.classes(convert(scene.labels, label_set(scene.label_set), classes))
    return labels.where(scene.seen[scene.sample_of_point], UNLABELLED) if seen_only else labels


def check_overlap(
    store: Store, split: Split | None, trained_on: Sequence[str], *, allowed: bool = False
) -> tuple[str, ...]:
    """Return which scenes of a split a student was trained on.

    Args:
        store: The scenes.
        split: Split to evaluate; None for all scenes.
        trained_on: Names of the student's training scenes.
        allowed: Whether such scenes may be scored.

    Raises:
        InputError: There are such scenes, and they may not be scored.
    """
    known = frozenset(trained_on)
    seen = tuple(name for name in store.names(split) if name in known)
    if seen and not allowed:
        some = ", ".join(seen[:5]) + (f" and {len(seen) - 5} more" if len(seen) > 5 else "")
        raise InputError(
            f"The student was trained on {len(seen)} of the scenes that it is to be scored on: {some}. Choose another "
            "split or store; cuao3d evaluate --allow-overlap scores them all the same, as where other scenes have "
            "these names."
        )
    return seen


def _ways(readouts: tuple[str, ...], rules: tuple[str, ...], has_student: bool) -> list[Way]:
    """Pair each read-out with its rules; raise InputError if one is unknown, or a read-out lacks its student."""
    for what, names, known in (("read-out", readouts, Readout), ("rule of 2d3d", rules, Ensemble)):
        unknown = [name for name in names if name not in get_args(known)]
        if unknown:
            raise InputError(f"Unknown {what} {unknown[0]!r}; choose from {get_args(known)}.")
    if not has_student and set(readouts) != {"fused"}:
        raise InputError("The distilled and 2d3d read-outs need a student; without a run only fused can be evaluated.")
    pairs = [(readout, rule) for readout in readouts for rule in (rules if readout == "2d3d" else (None,))]
    return cast(list[Way], pairs)


def _row(
    row: Callable[..., Row],
    way: Way,
    about: Mapping[str, Any],
    tally: Tally | None,
    calibration: Calibration | None,
    ledger: Ledger | None,
) -> Row:
    """Make the row of a read-out, with how well synonyms and questions do by it, and how well it knows its errors."""
    readout, rule = way
    retrieval = None if tally is None else tally.results(way_of(readout, rule), about["told"], calibration)
    made = row(readout=readout, ensemble=rule, retrieval=retrieval, **about)
    judged = JUDGED.get(way_of(readout, rule))
    return made if ledger is None or judged is None else replace(made, trust=ledger.trust(judged))


def _about(way: Way, how: Mapping[str, Any], told: Told) -> dict[str, Any]:
    """Return what a row says of its student; of lifted features, that there is none and that it was told nothing."""
    return (
        {**how, "told": told}
        if way[0] != "fused"
        else {"model": "none", "told": replace(told, student=NOTHING_TOLD.student)}
    )


def _judge(
    ledger: Ledger | None,
    scene: StoredScene,
    teacher: str,
    of_classes: Mapping[str, Tensor],
    vectors: Tensor,
    labels: Tensor,
) -> None:
    """Count how sure right and wrong labels of a scene are, by the ways that are judged."""
    judged = {readout: of_classes[way] for way, readout in JUDGED.items() if way in of_classes}
    if ledger is not None:
        ledger.add(judged, Scored.beside(scene, teacher, judged.get("distilled"), vectors), labels)


def _compare(
    class_scores: Tensor, sample_of_point: Tensor, labels: Tensor, background: Tensor
) -> tuple[Tensor, Tensor]:
    """Count the classes of a scene's points by the scores (S, K) of its samples, over all and over the foreground."""
    num_classes = len(background)
    of_sample, masked = classify(class_scores).cpu(), classify_foreground(class_scores, background).cpu()
    in_front = labels.where(~torch.isin(labels, background.nonzero()), UNLABELLED)
    return (
        confusion_matrix(of_sample[sample_of_point], labels, num_classes),
        confusion_matrix(masked[sample_of_point], in_front, num_classes),
    )


def _scores(
    ways: Sequence[Way],
    scene: StoredScene,
    teacher: str,
    passes: Passes,
    texts: Sequence[Tensor],
) -> list[dict[str, Tensor]]:
    """Score each group of texts at each sample (S, K) by each read-out; 0 where it has no feature."""
    found: list[dict[str, Tensor]] = [{} for _ in texts]
    if ("fused", None) in ways:
        for group, vectors in zip(found, texts, strict=True):
            group["fused"] = scene.spread(scores(scene.features(teacher), vectors))
    of_student = [way for way in ways if way != ("fused", None)]
    for predict in passes.predicts if of_student else ():
        described = predict(scene)
        for group, vectors in zip(found, texts, strict=True):
            for readout, rule in of_student:
                one = _of_pass(scene, teacher, described, vectors, rule) / len(passes.predicts)
                key = way_of(readout, rule)
                group[key] = group[key] + one if key in group else one
    return found


def _of_pass(scene: StoredScene, teacher: str, described: Tensor, vectors: Tensor, rule: Ensemble | None) -> Tensor:
    """Score texts at each sample (S, K) by what a pass says of it, alone or together with its lifted feature."""
    return scores(described, vectors) if rule is None else _ensemble(scene, teacher, described, vectors, rule)


def _ensemble(scene: StoredScene, teacher: str, described: Tensor, class_vectors: Tensor, ensemble: Ensemble) -> Tensor:
    """Score the classes at each sample (S, K) by its lifted feature and the student's together."""
    lifted = scene.features(teacher)
    if ensemble == "average":
        return scores((described.float().cpu() + scene.spread(lifted.float())) / 2, class_vectors)
    in_3d = scores(described, class_vectors).cpu()
    in_2d = scene.spread(scores(lifted, class_vectors))
    seen = scene.seen[:, None]
    if ensemble == "unit-average":
        return torch.where(seen, (in_2d + in_3d) / 2, in_3d)
    surer_in_2d = in_2d.amax(dim=1, keepdim=True) > in_3d.amax(dim=1, keepdim=True)
    return torch.where(seen & surer_in_2d, in_2d, in_3d)
