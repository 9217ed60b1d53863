"""Evaluation of zero-shot segmentation: one function for every read-out, always on the original points.

`docs/method.md` says where scores and read-outs differ from those of the released code.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

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
)
from cuao3d.predictor import Predict
from cuao3d.progress import OnCount
from cuao3d.query import classify, scores
from cuao3d.retrieval import Queries, Tally
from cuao3d.scene import UNLABELLED, Split
from cuao3d.store import Store, StoredScene
from cuao3d.teachers import Calibration
from cuao3d.vocabulary import Told

Readout = Literal["fused", "distilled", "2d3d"]
Ensemble = Literal["unit-average", "surer", "average"]
"""How 2D and 3D features are combined: the mean of both after normalisation (ours), the feature with the higher score
(OpenScene), or the plain mean (the released code; a cosine loss leaves the length of the student's features free)."""

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
    predict: Predict | None = None,
    model: str = "none",
    dataset: str = "",
    split: Split | None = "val",
    ensemble: Ensemble = "unit-average",
    seen_only: bool = False,
    told: Told = NOTHING_TOLD,
    queries: Queries | None = None,
    calibration: Calibration | None = None,
    ledger: Ledger | None = None,
    progress: OnCount | None = None,
) -> tuple[Row, ...]:
    """Segment the scenes of a store by the names of the classes, in a single pass without augmentation.

    Args:
        store: Scenes with labels.
        classes: Label set to score in; labels in another set are converted.
        class_vectors: Unit vector of each class, in the teacher's text space.
        teacher: Teacher whose lifted features the `fused` read-out uses.
        readouts: Read-outs to score. All but `fused` need `predict`.
        predict: The student's features; see `student_features`.
        model: Name of the student, for the rows.
        dataset: Name of the dataset, for the rows.
        split: Split to evaluate; None for all scenes.
        ensemble: How `2d3d` combines features.
        seen_only: Score only points whose sample at least one view sees.
        told: Words that the student and the teacher were trained with.
        queries: Synonyms and questions of the classes, to be scored in the same pass.
        calibration: Relevance at which verdicts change: of the student if there is one, else of the lifted features.
        ledger: Counts how sure right and wrong labels are; see `Row.trust`.
        progress: Called after each scene.

    Raises:
        InputError: A read-out lacks its student, or no scene of the split has labels.
    """
    _check_readouts(readouts := tuple(readouts), has_student=predict is not None)
    tally = None if queries is None else Tally(queries)

    def score_classes(scene: StoredScene) -> dict[str, Tensor]:
        described = None if predict is None or set(readouts) == {"fused"} else predict(scene)
        score = partial(_scores, readouts, scene, teacher, described, ensemble)
        found, labels = score(class_vectors), labels_of(scene, classes, seen_only=seen_only)
        if tally is not None:
            tally.add(score(tally.queries.questions.texts), scene.seen, scene.sample_of_point, labels)
        if ledger is not None:
            ledger.add(found, Scored.of(scene, teacher, described, class_vectors), labels)
        return found

    counted = count(store, classes, score_classes, split=split, seen_only=seen_only, progress=progress)
    row = partial(make_row, counted, classes, dataset=dataset, split=split or "all", seen_only=seen_only)
    calibrations = {"fused" if predict is None else "distilled": calibration}
    return tuple(_row(row, readout, model, told, tally, calibrations, ledger) for readout in readouts)


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
    names = store.names(split)
    missing = store.missing()
    background = background_of(classes)
    totals: dict[str, Tensor] = {}
    foreground: dict[str, Tensor] = {}
    for done, name in enumerate(names, start=1):
        scene = store[name]
        if scene.labels is not None and scene.label_set is not None:
            labels = labels_of(scene, classes, seen_only=seen_only)
            for way, class_scores in score_classes(scene).items():
                whole, masked = _compare(class_scores, scene.sample_of_point, labels, background)
                totals[way] = totals.get(way, 0) + whole
                foreground[way] = foreground.get(way, 0) + masked
        else:
            missing[name] = NO_LABELS
        give_back()
        if progress:
            progress(done, len(names))
    if not totals:
        what = "scene" if split is None else f"{split} scene"
        raise InputError(f"{store.path} has no {what} with labels ({len(names)} without); choose another split.")
    if not any(int(confusion.sum()) for confusion in totals.values()):
        seen = " that a view sees" if seen_only else ""
        raise InputError(
            f"No point{seen} of the {len(names)} scenes of {store.path} has a label of {classes.name}: there is "
            "nothing to score. Choose another label set or split."
        )
    return Counted(totals, foreground, sum(name not in missing for name in names), missing)


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


def _row(
    row: Callable[..., Row],
    readout: Readout,
    model: str,
    told: Told,
    tally: Tally | None,
    calibrations: Mapping[str, Calibration | None],
    ledger: Ledger | None,
) -> Row:
    """Make the row of a read-out; `calibrations` has that of the read-out whose verdicts are counted."""
    who, words = ("none", replace(told, student=NOTHING_TOLD.student)) if readout == "fused" else (model, told)
    found = {} if tally is None else tally.results(readout, words, calibrations.get(readout))
    made = row(model=who, readout=readout, told=words, retrieval=found)
    return made if ledger is None else replace(made, trust=ledger.trust(readout))


def _check_readouts(readouts: tuple[str, ...], *, has_student: bool) -> None:
    """Raise InputError for an unknown read-out, or one that lacks its student."""
    unknown = [readout for readout in readouts if readout not in get_args(Readout)]
    if unknown:
        raise InputError(f"Unknown read-out {unknown[0]!r}; choose from {get_args(Readout)}.")
    if not has_student and set(readouts) != {"fused"}:
        raise InputError("The distilled and 2d3d read-outs need a student; without a run only fused can be evaluated.")


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
    readouts: tuple[Readout, ...],
    scene: StoredScene,
    teacher: str,
    described: Tensor | None,
    ensemble: Ensemble,
    vectors: Tensor,
) -> dict[str, Tensor]:
    """Score texts at each sample (S, K) by each read-out; 0 where it has no feature."""
    found = {}
    for readout in readouts:
        if readout == "fused" or described is None:
            found["fused"] = scene.spread(scores(scene.features(teacher), vectors))
        elif readout == "distilled":
            found["distilled"] = scores(described, vectors)
        else:
            found["2d3d"] = _ensemble(scene, teacher, described, vectors, ensemble)
    return found


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
