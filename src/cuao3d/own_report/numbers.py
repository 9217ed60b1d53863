"""The tables of a report: what a store holds, and scores of its scenes."""

from collections.abc import Sequence
from dataclasses import asdict

from cuao3d import pipeline
from cuao3d.metrics import Row
from cuao3d.own_report.case import Case, Section, scored
from cuao3d.retrieval import Retrieval
from cuao3d.tables import Table, Value
from cuao3d.vocabulary import divisions

MOST_PROBLEMS = 12
"""Problems of scenes that are listed at most."""

SCORES = ("miou", "macc", "fmiou", "miou_official")

READOUTS = {"fused": "lifted: image networks alone", "distilled": "student: 3D alone", "2d3d": "both together"}


def inventory(case: Case) -> Section:
    """List what the store holds."""
    store, rows, problems = case.store, [], list[str]()
    for split in ("train", "val", "test", None):
        summaries = {name: store.summary(name) for name in store.names(split)}
        if not summaries:
            continue
        points, samples, seen = (
            sum(getattr(one, key) for one in summaries.values()) for key in ("num_points", "num_samples", "num_seen")
        )
        num_problems = sum(len(one.problems) for one in summaries.values())
        rows.append((split or "all", len(summaries), points, samples, 100 * seen / max(samples, 1), num_problems))
        if split is None:
            problems = [f"{name}: {problem}" for name, one in summaries.items() for problem in one.problems]
    titles = ("split", "scenes", "points", "sample points", "seen by a view, %", "problems")
    note = f"A sample point stands for all points in a cell of {100 * store.cell:g} cm."
    tables = [Table("scenes", "What the store holds, and how much of it some view sees.", titles, tuple(rows), note)]
    if store.teachers:
        lines: list[tuple[Value, ...]] = []
        for name, card in store.teachers.items():
            agreements = [about[name].agreement for scene in store.names() if name in (about := store.lifting(scene))]
            known = [one for one in agreements if one is not None]
            agreement = 100 * sum(known) / len(known) if known else None
            lines.append((name, card.num_channels, card.text or "none", agreement, card.licence or "not known"))
        caption = "The image networks whose features every scene holds."
        note = "Views agree: percent of the features' variance that the place explains and not the view; 100 is best."
        columns = ("teacher", "numbers per point", "words by", "views agree", "licence")
        tables.append(Table("teachers", caption, columns, tuple(lines), note))
    more = len(problems) - MOST_PROBLEMS
    shown = problems[:MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
    return Section("What is in the store", "", tuple(tables), lines=tuple(shown))


def scores(case: Case) -> Section | None:
    """Score the scenes with labels."""
    if case.scene.labels is None and scored(case.store)[1] is None:
        return None
    rows: list[Row] = []
    for who, predictor in (("of the lifted features", case.lifted), ("of the student", case.ours)):
        with case.part(f"Scores {who}"):
            if predictor is None:
                continue
            model = "none" if predictor.student is None else "student"
            rows += pipeline.evaluate(
                case.store, predictor, labels=case.spelled, split=case.split, model=model, progress=case.told
            )
    if not rows:
        return None
    case.written.missing |= rows[0].missing
    about = (
        f"Each point is named by its nearest class of {case.classes.name}, by words alone, and compared with its "
        f"label, in {rows[0].scenes} of the {case.split or 'whole store'}"
    )
    about += " split." if case.split else "."
    if case.ours is not None and case.ours.trained_on is None:
        about += (
            " Which scenes the student was trained on is not known; on those its scores would say nothing of others."
        )
    return Section("Scores", about, tuple(score_tables(rows)))


def score_tables(rows: Sequence[Row]) -> list[Table]:
    """Return the tables of rows of scores: the scores, seen and unseen words, questions, and every class.

    Args:
        rows: As of `pipeline.evaluate`.
    """
    asked = [(row, kind, found) for row in rows for kind, found in row.retrieval.items()]
    names = list(dict.fromkeys(name for row in rows for name in row.iou))
    of_classes = Table(
        "classes",
        "The same for each class that occurs: overlap of prediction and truth (IoU), percent.",
        ("class", *map(_who, rows)),
        tuple((name, *(row.iou.get(name) for row in rows)) for name in names),
    )
    return [_whole(rows), _seen_and_unseen(rows), *([_questions(asked)] if asked else []), of_classes]


def _whole(rows: Sequence[Row]) -> Table:
    return Table(
        "scores",
        "How well points are named: the higher the better, and far above both controls on the right.",
        ("read-out", "mIoU", "mAcc", "f-mIoU", "official mIoU", "points", "by chance", "most frequent"),
        tuple(
            (_who(row), *(getattr(row, score) for score in SCORES), row.num_points, row.chance_miou, row.constant_miou)
            for row in rows
        ),
        "Percent. mIoU, mAcc: mean over the classes that occur of overlap (IoU) and of the share found; a point "
        "without a prediction is wrong. f-mIoU: the same without wall, floor, ceiling and other. Official mIoU: over "
        "all classes, as the released code divides. Controls, mIoU: by chance, the same answers shuffled among the "
        "points; most frequent, everything called the most frequent class.",
    )


def _seen_and_unseen(rows: Sequence[Row]) -> Table:
    return Table(
        "seen-unseen",
        "Whether words are understood that nobody was trained with: mIoU of the names that were, and of the rest.",
        ("read-out", "trained", "words", "seen mIoU", "unseen mIoU", "harmonic mean"),
        tuple(
            (_who(row), who, about["vocabulary"], about["miou_seen"], about["miou_unseen"], about["harmonic"])
            for row in rows
            for who, about in divisions(asdict(row))
            if (row.readout, who) != ("fused", "student")
        ),
        "Percent; – where there is no such name, or the words are not known.",
    )


def _questions(asked: Sequence[tuple[Row, str, Retrieval]]) -> Table:
    return Table(
        "questions",
        "How well free text finds what it asks for: its points should be the most relevant ones of the scene.",
        ("read-out", "asked", "precision", "shuffled", "AUROC", "wrongly absent", "wrongly here"),
        tuple(
            (
                _who(row),
                f"{len(found.queries)} {kind}",
                found.ap,
                found.ap_shuffled,
                None if found.auroc is None else 100 * found.auroc,
                found.false_absent,
                found.false_here,
            )
            for row, kind, found in asked
        ),
        "Percent. Precision: average precision of the ranked points. AUROC: chance that a scene that holds the "
        "thing answers more strongly than one that does not; 50 says nothing. Wrongly: verdicts on what is there, "
        "and on what is not.",
    )


def _who(row: Row) -> str:
    return READOUTS.get(row.readout, row.readout)
