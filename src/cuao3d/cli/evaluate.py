"""`cuao3d evaluate`: score zero-shot segmentation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from cuao3d.cli.shared import check_workers, note_missing, print_rows
from cuao3d.cli.trust import check_picture, draw_trust, print_trust
from cuao3d.console import note, tell
from cuao3d.errors import InputError
from cuao3d.schema import Count

if TYPE_CHECKING:
    from cuao3d.metrics import Row
    from cuao3d.predictor import Predictor
    from cuao3d.store import Store


def evaluate(
    store: Positional[Path],
    *,
    run: Path | None = None,
    labels: str = "scannet20",
    split: Literal["train", "val", "test", "all"] = "val",
    teacher: str | None = None,
    text: str | None = None,
    seen: bool = False,
    ensemble: tuple[Literal["unit-average", "surer", "average"], ...] = ("unit-average",),
    passes: Count = 1,
    train_mode: bool = False,
    voting: Path | None = None,
    allow_overlap: bool = False,
    workers: Count = 1,
    device: str = "cpu",
    json: Path | None = None,
    curves: Path | None = None,
) -> int:
    """Segment the scenes of a store by class names alone and score the result: fused, or distilled and 2D3D with --run.

    Args:
        store: Folder of the store.
        run: Folder of a finished run, or a student's .safetensors.
        labels: Label set to score in: its name, or a CSV of your own.
        split: Split to evaluate.
        teacher: Which teacher names the classes, where several have a text encoder; the first unless given.
        text: Text encoder for the names, such as table:FILE for vectors of your own; the teacher's unless given.
        seen: Score only points whose sample some view saw.
        ensemble: How 2D3D joins the lifted feature and the student's: the mean of both unit vectors; the surer one, as
            OpenScene does; or the average of the raw ones, as the released CUA-O3D. Several give a row each.
        passes: Passes of the student, whose scores are summed; 5 as officially, each rotated.
        train_mode: Run batch norm on the statistics of each scene, as the released code does in validation.
        voting: Also score the majority over views, from the folder that the store was lifted from.
        allow_overlap: Score scenes too that the student was trained on.
        workers: Processes that share the scenes and the cores.
        device: Where the student and, for --voting, the teacher run, such as cuda.
        json: Also write the rows here.
        curves: Also draw how reliable confidence is, and the errors against the labels kept, here (.png, .pdf, .svg).
    """
    from cuao3d import pipeline
    from cuao3d.supervise import is_supervised

    check_workers(workers, device)
    _check_outputs(json, curves)
    given = {"--ensemble": ensemble != ("unit-average",), "--passes": passes > 1, "--train-mode": train_mode}
    where: dict[str, Any] = {"labels": labels, "split": None if split == "all" else split, "seen_only": seen}
    if run and is_supervised(run):
        of_words = {"--teacher": teacher, "--text": text, "--voting": voting, "--curves": curves}
        given |= {name: bool(value) for name, value in of_words.items()} | {"--workers": workers > 1}
        return _evaluate_supervised(store, run, json, given, device=device, allow_overlap=allow_overlap, **where)
    how: dict[str, Any] = {"ensemble": ensemble, "num_passes": passes, "train_mode": train_mode}
    how |= {"allow_overlap": allow_overlap, "num_workers": workers, "model": run.stem if run else "none"}
    opened, predictor = _open(store, run, teacher, text, device, given)
    rows = pipeline.evaluate(opened, predictor, **where, **how)
    if voting:
        rows += (pipeline.vote(opened, predictor, voting, device=device, **where),)
    tell(predictor.about)
    return _show(rows, curves, json)


def _check_outputs(json: Path | None, curves: Path | None) -> None:
    from cuao3d.files import check_output

    check_output(json)
    check_output(curves)
    check_picture(curves)


def _show(rows: Sequence["Row"], curves: Path | None, json: Path | None) -> int:
    """Print rows, draw and write what was asked for; return the exit code."""
    from cuao3d.files import write_json

    print_rows([asdict(row) for row in rows])
    print_trust(rows)
    if curves:
        draw_trust(curves, rows)
    if json:
        write_json(json, {"rows": [asdict(row) for row in rows]})
    return note_missing(rows[0].missing)


def _evaluate_supervised(path: Path, run: Path, json: Path | None, given: Mapping[str, bool], **options: Any) -> int:
    """Score a run of `cuao3d supervise`, which answers by classes and not by words; refuse options about words."""
    from cuao3d.progress import telling
    from cuao3d.store import Store
    from cuao3d.supervise import score

    if idle := [name for name, is_given in given.items() if is_given]:
        raise InputError(f"{idle[0]} has no effect on {run}, which was trained on labels; leave it out.")
    store = Store.open(path)
    with telling(None, "evaluating the upper bound") as told:
        row = score(store, run, dataset=store.path.name, progress=told, **options)
    return _show([row], None, json)


def _open(
    path: Path, run: Path | None, teacher: str | None, text: str | None, device: str, given: Mapping[str, bool]
) -> tuple["Store", "Predictor"]:
    """Open a store and what segments its scenes; refuse options that were given and do not fit."""
    from cuao3d.predictor import Predictor
    from cuao3d.progress import waiting
    from cuao3d.store import Store

    if run is None and (of_student := [name for name, is_given in given.items() if is_given]):
        raise InputError(f"{of_student[0]} is about a student; name one: --run RUN. Lifted features have none.")
    store = Store.open(path)
    with waiting("opening the predictor"):
        predictor = Predictor.open(store, run=run, teacher=teacher, text=text, device=device)
    if run and predictor.trained_on is None:
        note(f"{run} does not tell which scenes its student was trained on; they may be among those scored.")
    if run and predictor.teacher not in store.teachers:
        lacks = f"{store.path} has no features of {predictor.teacher}, so 2D3D cannot be scored."
        if given["--ensemble"]:
            raise InputError(f"{lacks} Lift them first (cuao3d fuse --teachers), or leave out --ensemble.")
        note(lacks)
    return store, predictor
