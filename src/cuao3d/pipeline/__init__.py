"""The pipeline: the only place where stages are wired together, from data to scores and answers."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cuao3d.compare import Comparison, compare
from cuao3d.confidence import Ledger
from cuao3d.errors import InputError
from cuao3d.evaluate import Ensemble, Readout, check_overlap, labels_of, zero_shot
from cuao3d.imported import imported_card
from cuao3d.metrics import Row
from cuao3d.pipeline.fusing import fuse as fuse
from cuao3d.predictor import Predictor
from cuao3d.progress import OnCount, telling
from cuao3d.query import scores
from cuao3d.readers import Dataset, open_dataset
from cuao3d.retrieval import Queries, Tally
from cuao3d.run import keep_calibration
from cuao3d.scene import Split
from cuao3d.store import Store
from cuao3d.student import Checkpoint, read_checkpoint
from cuao3d.text import class_vectors
from cuao3d.verdicts import Peaks, fit_verdicts
from cuao3d.vocabulary import Told
from cuao3d.voting import lifting_teacher, score_voting

SHIPPED_STUDENT = Path(__file__).parents[1] / "students" / "rooms"
"""Run folder of the student that ships with the package: trained for longer, on more rooms than a demo has."""


def import_student(checkpoint: Path | str, out: Path | str) -> Checkpoint:
    """Write a student from an official checkpoint, with the cards of its teachers. No code in the file is run.

    Args:
        checkpoint: A `.pth.tar` or `.pth` of OpenScene or CUA-O3D, or a student in our format.
        out: File to write; it ends in .safetensors. `Predictor.open` and every `--run` take it.

    Returns:
        The student, and which tensors of the file it used.

    Raises:
        NotFoundError: There is no such checkpoint.
        InputError: It holds something else, or `out` has another ending.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise InputError(f"{out} should end in .safetensors, the format of students.")
    read = read_checkpoint(checkpoint)
    student = read.student
    if not student.teachers:
        student.teachers = {name: asdict(imported_card(name, width)) for name, width in student.num_channels.items()}
    student.save(out)
    return read


def evaluate(
    store: Store,
    predictor: Predictor,
    *,
    labels: str = "scannet20",
    split: Split | None = "val",
    model: str = "student",
    dataset: str = "",
    seen_only: bool = False,
    ensemble: Ensemble | Sequence[Ensemble] = "unit-average",
    num_passes: int = 1,
    train_mode: bool = False,
    allow_overlap: bool = False,
    num_workers: int = 1,
    progress: OnCount | None = None,
) -> tuple[Row, ...]:
    """Score a store's lifted features or, with a student, `distilled` and `2d3d`; see `zero_shot`.

    Args:
        store: Scenes with labels.
        predictor: Segments the scenes. Where the store lacks its teacher's features, only `distilled` is scored.
        labels: Name of a label set in the package or the store, or the path of a CSV.
        split: Split to evaluate; None for all scenes.
        model: Name of the student, for the rows.
        dataset: Name of the dataset, for the rows; the store's unless given.
        seen_only: Score only points whose sample at least one view sees.
        ensemble: How `2d3d` combines features; several rules give a row each.
        num_passes: Passes of the student whose scores are summed; see `Predictor.passes`, also for `train_mode`.
        train_mode: Run its batch norm in train mode.
        allow_overlap: Score scenes too that the student was trained on; the rows name them.
        num_workers: Processes that share the scenes, on the CPU.
        progress: Told after each scene, instead of a progress bar.

    Returns:
        A row for `fused`, or for `distilled` and each rule of `2d3d`; scores are percentages.

    Raises:
        InputError: There are no labels that can be scored in the set, or the student was trained on such a scene.
    """
    classes, student = store.label_set(labels), predictor.student is not None
    trained_on = check_overlap(store, split, predictor.trained_on or (), allowed=allow_overlap)
    readouts: tuple[Readout, ...] = ("distilled", "2d3d") if predictor.teacher in store.teachers else ("distilled",)
    how: dict[str, Any] = {"split": split, "seen_only": seen_only, "ensemble": ensemble, "num_workers": num_workers}
    how |= {"model": model, "dataset": dataset or store.path.name, "trained_on": trained_on}
    with telling(progress, f"evaluating {model if student else 'lifted features'}") as told:
        return zero_shot(
            store,
            classes,
            class_vectors(predictor.encoder, classes),
            teacher=predictor.teacher,
            readouts=readouts if student else ("fused",),
            predict=predictor.passes(num_passes, train_mode=train_mode) if student else None,
            told=predictor.told,
            queries=Queries.read(classes, predictor.encoder),
            calibration=predictor.calibration,
            ledger=Ledger(predictor.fits.get(classes.name, {})),
            progress=told,
            **how,
        )


def vote(
    store: Store,
    predictor: Predictor,
    data: Dataset | Path,
    *,
    labels: str = "scannet20",
    split: Split | None = "val",
    seen_only: bool = False,
    device: str = "cpu",
    progress: OnCount | None = None,
) -> Row:
    """Score the majority over views, each of which names the classes of its pixels; see `score_voting`.

    Args:
        store: Scenes with labels.
        predictor: Its teacher looks at the images once more, with the options that the store records.
        data: What the store was lifted from; a folder is read as it was then.
        labels: Name of a label set in the package or the store, or the path of a CSV.
        split: Split to evaluate; None for all scenes.
        seen_only: Score only points whose sample at least one view sees.
        device: Where the teacher runs.
        progress: Told after each scene, instead of a progress bar.

    Raises:
        InputError: The store was not lifted by this teacher, or from other data, or no scene of the split has labels.
    """
    classes, teacher = store.label_set(labels), lifting_teacher(store, predictor.teacher, device=device)
    if isinstance(data, Path):
        reading: dict[str, Any] = {
            key: store.settings[key] for key in ("tolerance", "every", "official") if key in store.settings
        }
        data = open_dataset(data, **reading)
    vectors = class_vectors(predictor.encoder, classes)
    how: dict[str, Any] = {"name": store.path.name, "split": split, "seen_only": seen_only}
    of_teacher = replace(predictor.told, student=Told.student)
    with telling(progress, "voting") as told:
        return score_voting(store, data, teacher, classes, vectors, **how, told=of_teacher, progress=told)


def ask_everything(store: Store, predictor: Predictor, *, labels: str, split: Split) -> dict[str, Peaks]:
    """Ask labelled scenes all that a label set asks, its names among it, and return the peaks; see `verdicts`.

    Args:
        store: Scenes with labels.
        predictor: Answers, by its student if it has one, else by lifted features.
        labels: Name of a label set, best one with synonyms and questions, or the path of a CSV.
        split: Split to ask.
    """
    classes = store.label_set(labels)
    queries = Queries.read(classes, predictor.encoder, names=True)
    assert queries is not None  # names are always there
    tally, readout = Tally(queries), "fused" if predictor.student is None else "distilled"
    for name in store.names(split):
        scene = store[name]
        cosines = {readout: scores(predictor.features(scene), queries.questions.texts)}
        tally.add(cosines, scene.seen, scene.sample_of_point, labels_of(scene, classes))
    return {str(kind): peaks for kind, peaks in tally.peaks(readout).items()}


def fit_student(store: Store, run: Path, *, labels: str, split: Split, where: str) -> dict[str, Peaks]:
    """Fit a student's verdicts on a split, and keep them in its file; return the peaks that they were fitted on.

    Args:
        store: Scenes with labels; none of them is to be scored or shown.
        run: Folder of a finished run.
        labels: Name of a label set, best one with synonyms and questions, or the path of a CSV.
        split: Split of the scenes.
        where: What the scenes are, in the plural.
    """
    peaks = ask_everything(store, Predictor.open(store, run=run), labels=labels, split=split)
    num_scenes = len(store.names(split))
    where = where if num_scenes > 1 else where.removesuffix("s")
    keep_calibration(run, fit_verdicts(peaks, f"this student in {num_scenes} {where}"))
    return peaks


def compare_teachers(store: Store, teachers: Sequence[str] = ()) -> list[Comparison]:
    """Compare the teachers of a store; see `compare`."""
    with telling(None, "comparing") as told:
        return compare(store, teachers, progress=told)
