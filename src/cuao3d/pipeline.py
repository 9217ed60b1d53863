"""The pipeline: the only place where stages are wired together, from data to scores and answers."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path

from torch import Tensor

from cuao3d.compare import Comparison, compare
from cuao3d.console import note, progress_bar
from cuao3d.durable import locked
from cuao3d.errors import DiskFullError, InputError, TeacherError, UserError
from cuao3d.evaluate import Readout, Row, zero_shot
from cuao3d.fusion import image_quarters, lift_measured, sample_cells, see
from cuao3d.imported import imported_card
from cuao3d.memory import give_back
from cuao3d.objective import find_loss
from cuao3d.photographs import Album
from cuao3d.predictor import Predictor
from cuao3d.progress import OnStep
from cuao3d.readers import Dataset
from cuao3d.scene import Scene, Split
from cuao3d.store import CELL, Lifting, Setting, Store, TeacherCard
from cuao3d.student import Checkpoint, read_checkpoint
from cuao3d.teachers import Teacher, cards_of, known_card
from cuao3d.teachers.views import BATCH
from cuao3d.text import class_vectors, load_text_encoder
from cuao3d.workers import side_by_side


def fuse(
    dataset: Dataset,
    teachers: Sequence[Teacher],
    out: Path | str,
    *,
    cell: float = CELL,
    settings: Mapping[str, Setting] | None = None,
    batch_size: int = BATCH,
    upright: bool = True,
    num_workers: int = 1,
    load: Callable[[], Sequence[Teacher]] | None = None,
) -> Store:
    """Lift every scene of a dataset into a store. Finished scenes are skipped; a broken one is reported.

    Args:
        dataset: The scenes.
        teachers: The teachers; empty for points alone.
        out: Folder of the store.
        cell: Edge of a sample cell, metres.
        settings: Further settings that the result depends on; a store made with others is refused.
        batch_size: Views shown to a teacher at a time, if it takes several.
        upright: Show each view turned by the nearest quarter so that the world's up is up; the store records it.
        num_workers: Processes that share the scenes; see `side_by_side`. The store is the same whatever their number.
        load: How each of several processes gets the teachers; they are copied to it unless given.

    Returns:
        The store, with every scene that could be lifted.

    Raises:
        InputError: A teacher is invalid, no scene could be read, the folder holds something else, or another process
            writes the store.
    """
    cards = cards_of(teachers)
    _check_cards(cards)
    with locked(Path(out)):
        store = Store.create(out, cell=cell, teachers=cards, settings={**(settings or {}), "upright": upright})
        shares = [range(first, len(dataset), num_workers) for first in range(num_workers)]
        load = partial(list, teachers) if load is None or num_workers == 1 else load
        num_done = [0] * num_workers
        with progress_bar() as bar:
            task = bar.add_task("lifting", total=len(dataset))

            def say(share: int, done: int, total: int, line: str) -> None:
                num_done[share] = done
                bar.update(task, completed=sum(num_done), description=f"lifting {line}")

            broken_of_share = side_by_side(
                [partial(_fuse_share, dataset, share, load, store, batch_size, upright) for share in shares if share],
                num_workers,
                say,
            )
    broken = sorted(chain.from_iterable(broken_of_share))
    for line in broken:
        note(line, head="left out")
    if len(broken) == len(dataset):
        raise InputError(f"No scene could be lifted. {broken[0] if broken else 'The dataset is empty.'}")
    return store


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

    Returns:
        A row for `fused`, or for `distilled` and `2d3d`; scores are percentages.

    Raises:
        InputError: There is no such label set, no scene of the split has labels, or they cannot be converted.
    """
    classes = store.label_set(labels)
    student = predictor.student is not None
    readouts: tuple[Readout, ...] = ("fused",)
    if student:
        readouts = ("distilled", "2d3d") if predictor.teacher in store.teachers else ("distilled",)
    with progress_bar() as bar:
        task = bar.add_task(f"evaluating {model if student else 'lifted features'}", total=None)
        return zero_shot(
            store,
            classes,
            class_vectors(predictor.encoder, classes),
            teacher=predictor.teacher,
            readouts=readouts,
            predict=predictor.features if student else None,
            model=model,
            dataset=dataset or store.path.name,
            split=split,
            seen_only=seen_only,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def compare_teachers(store: Store, teachers: Sequence[str] = ()) -> list[Comparison]:
    """Compare the teachers of a store; see `compare`."""
    with progress_bar() as bar:
        task = bar.add_task("comparing", total=None)
        return compare(store, teachers, progress=lambda done, total: bar.update(task, completed=done, total=total))


def _check_cards(cards: Mapping[str, TeacherCard]) -> None:
    """Check losses and text encoders of teachers before any scene is lifted.

    Raises:
        InputError: There is no such loss, or the text encoder cannot be loaded or does not fit the features.
    """
    for name, card in cards.items():
        try:
            find_loss(card.loss, card.num_channels)
        except UserError as error:
            raise InputError(f"Teacher {name!r}: {error}") from error
        known = known_card(name)
        if card.text is None or (known and (known.text, known.num_channels) == (card.text, card.num_channels)):
            continue
        try:
            encoder = load_text_encoder(card.text)
            width = encoder.num_channels
        except UserError as error:
            raise InputError(f"Teacher {name!r} names the text encoder {card.text!r}: {error}") from error
        if width != card.num_channels:
            raise InputError(
                f"Teacher {name!r} has {card.num_channels} channels, the vectors of its text encoder {card.text!r} "
                f"{width}: its words could never be compared with its features."
            )


def _fuse_share(
    dataset: Dataset,
    share: Sequence[int],
    load: Callable[[], Sequence[Teacher]],
    store: Store,
    batch_size: int,
    upright: bool,
    on_step: OnStep,
) -> list[str]:
    """Lift some scenes of a dataset; return a line for each that is broken."""
    teachers, broken = load(), []
    for done, index in enumerate(share):
        name = dataset.names[index]
        say = partial(on_step, done, len(share))
        say(name)
        if not store.has(name):
            try:
                _fuse_scene(dataset[index], teachers, store, batch_size, upright, say)
            except (TeacherError, DiskFullError):
                raise  # it would break every other scene too
            except (UserError, OSError) as error:
                broken.append(f"{name}: {error}")
        give_back()
        on_step(done + 1, len(share), name)
    return broken


def _fuse_scene(
    scene: Scene, teachers: Sequence[Teacher], store: Store, batch_size: int, upright: bool, say: Callable[[str], None]
) -> None:
    """Lift one scene into a store."""

    def progress(what: str) -> Callable[[int, int], None]:
        return lambda done, total: say(f"{scene.name}, {what}, view {done} of {total}")

    if teachers and scene.frames and not any(frame.has_colors for frame in scene.frames):
        raise InputError("it has no colour images, which teachers look at; add them, or lift none: --teachers none.")
    samples = sample_cells(scene.points, store.cell)
    visibility = see(scene, samples, progress=progress("visibility"))
    album = Album(scene, visibility, image_quarters(scene, upright=upright and bool(teachers)))
    watched = album.watch(scene)
    features: dict[str, Tensor] = {}
    lifting = {}
    for teacher in teachers:
        begin = time.perf_counter()
        lifted = lift_measured(
            watched,
            visibility,
            teacher,
            batch_size=batch_size,
            upright=upright,
            skip_unreadable=not features,
            progress=progress(teacher.name),
        )
        features[teacher.name], visibility = lifted.features, lifted.visibility
        agreement = None if math.isnan(lifted.agreement) else round(lifted.agreement, 4)
        lifting[teacher.name] = Lifting(round(time.perf_counter() - begin, 3), len(visibility.views), agreement)
    kept = album.tensors(visibility)
    store.add_scene(scene, samples, visibility, features, lifting=lifting, photographs=kept)
