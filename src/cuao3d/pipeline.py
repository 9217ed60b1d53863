"""The pipeline: the only place where stages are wired together, from data to scores and answers."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.markup import escape
from torch import Tensor

from cuao3d import __version__
from cuao3d.colors import heat_colors
from cuao3d.compare import Comparison, compare
from cuao3d.coordinates import as_matrix, describe_place, in_capture, unit_of
from cuao3d.errors import DiskFullError, InputError, TeacherError, UserError
from cuao3d.evaluate import Readout, Row, zero_shot
from cuao3d.files import write_json, write_whole
from cuao3d.formats.ply import cloud_columns, write_ply
from cuao3d.fusion import lift_measured, sample_cells, see
from cuao3d.imported import imported_card
from cuao3d.objective import find_loss
from cuao3d.photographs import Album, outline, read_photographs
from cuao3d.predictor import Predictor
from cuao3d.progress import OnStep, console, progress_bar
from cuao3d.query import ABSENT, HERE, Answer, heat, parts
from cuao3d.readers import Dataset
from cuao3d.scene import Scene, Split
from cuao3d.store import CELL, Lifting, Setting, Store, StoredScene, TeacherCard
from cuao3d.student import Checkpoint, read_checkpoint
from cuao3d.teachers import Teacher, cards_of, known_card
from cuao3d.teachers.views import BATCH
from cuao3d.text import class_vectors, load_text_encoder
from cuao3d.workers import side_by_side

if TYPE_CHECKING:
    from cuao3d.finds import Finds
    from cuao3d.report import Cloud, Heat

ALL_SEEN = 0.995
"""Coverage from which an answer is about the whole scene."""

OF_CAPTURE = "Positions are in the coordinates of the capture's pose files."

NUM_SHOWN = 3
"""Places of a question that are shown in photographs at most."""

NO_PHOTOGRAPHS = (
    "The store holds no photographs of this scene. `cuao3d fuse` keeps some of those that it shows to teachers; an "
    "earlier version kept none."
)


def fuse(
    dataset: Dataset,
    teachers: Sequence[Teacher],
    out: Path | str,
    *,
    cell: float = CELL,
    settings: Mapping[str, Setting] | None = None,
    batch_size: int = BATCH,
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
        num_workers: Processes that share the scenes; see `side_by_side`. The store is the same whatever their number.
        load: How each of several processes gets the teachers; they are copied to it unless given.

    Returns:
        The store, with every scene that could be lifted.

    Raises:
        InputError: A teacher is invalid, no scene could be read, or the folder holds something else.
    """
    cards = cards_of(teachers)
    _check_cards(cards)
    store = Store.create(out, cell=cell, teachers=cards, settings=settings)
    shares = [range(first, len(dataset), num_workers) for first in range(num_workers)]
    load = partial(list, teachers) if load is None or num_workers == 1 else load
    num_done = [0] * num_workers
    with progress_bar() as bar:
        task = bar.add_task("lifting", total=len(dataset))

        def say(share: int, done: int, total: int, line: str) -> None:
            num_done[share] = done
            bar.update(task, completed=sum(num_done), description=f"lifting {line}")

        broken_of_share = side_by_side(
            [partial(_fuse_share, dataset, share, load, store, batch_size) for share in shares if share],
            num_workers,
            say,
        )
    broken = sorted(chain.from_iterable(broken_of_share))
    for line in broken:
        console.print(f"[yellow]left out[/] {escape(line)}", highlight=False)
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


def answer(
    store: Store, predictor: Predictor, words: Sequence[str], out: Path, *, scene: str | None = None
) -> list[str]:
    """Ask a store free-text questions and write the answers of the scene that answers best.

    Args:
        store: Scenes to ask.
        predictor: Answers the questions.
        words: The questions.
        out: File to write: `.ply`, the cloud as a heat map; `.json`, the places; `.html`, a page with pictures.
        scene: Name of the scene; unless given, the one that answers best.

    Returns:
        A line for each question.

    Raises:
        InputError: The ending of the file is none of these, or the store has no scene.
    """
    if out.suffix not in (".ply", ".json", ".html"):
        raise InputError(f"{out} should end in .ply (a cloud), .json (places) or .html (a page to look at).")
    names = store.names() if scene is None else (scene,)
    if not names:
        raise InputError(f"{store.path} holds no finished scene. Run `cuao3d fuse` again to finish it.")
    asked: dict[str, tuple[Answer, ...]] = {}
    with progress_bar() as bar:
        for name in bar.track(names, description="asking"):
            asked[name] = predictor.ask(store[name], words)
    best = max(names, key=lambda name: sum(answer.peak for answer in asked[name]))
    stored, answers = store[best], asked[best]
    if out.suffix == ".json":
        write_json(out, _as_json(stored, answers, store, predictor))
    elif out.suffix == ".ply":
        write_cloud(out, in_capture(stored.points, stored.capture_from_world), _colors(stored, answers))
    else:
        from cuao3d.report import Gallery, write_report  # a page needs what draws; the other files do not

        heats = {answer.words: as_heat(stored, answer) for answer in answers}
        finds = as_finds(stored, answers)
        gallery = Gallery(best, stored.points, stored.colors, stored.normals, stored.cameras, heats=heats, finds=finds)
        about = predictor.about if stored.capture_from_world is None else f"{predictor.about} {OF_CAPTURE}"
        write_report(out, {"version": __version__, "answered_by": about}, gallery)
    return [f"{best}: {answer.words!r}: {where_is(stored, answer)}" for answer in answers]


def places(scene: StoredScene, answer: Answer) -> list[dict[str, Any]]:
    """List the connected parts of a scene that answer a question, the most relevant first.

    They are described in the coordinates of the capture's pose files; see `describe_place`.
    """
    return [place for place, _ in _places_and_points(scene, answer)]


def as_finds(scene: StoredScene, answers: Sequence[Answer]) -> "Finds":
    """Return answers to be shown in the photographs that the store keeps of the scene, or with a word that it has none.

    Args:
        scene: The scene that was asked.
        answers: Its answers.
    """
    from cuao3d.finds import Find, Finds, Place

    photographs, points = read_photographs(scene), scene.sample_points
    finds = []
    for answer in answers:
        found = _places_and_points(scene, answer)
        shown: set[str] = set()
        own_places = []
        for place, own in found[:NUM_SHOWN]:
            where = outline(photographs, points, torch.unique(scene.sample_of_point[own]), shown=shown)
            shown |= {where.photograph.name} if where else set()
            own_places.append(Place(_about_place(place, unit_of(scene.capture_from_world)), where))
        finds.append(Find(answer.words, answer.verdict, _about_answer(answer, len(found)), own_places))
    return Finds(finds) if photographs else Finds(finds, about=NO_PHOTOGRAPHS)


def where_is(scene: StoredScene, answer: Answer) -> str:
    """Say where the answer is, in coordinates of the capture's pose files, and which part of the scene it covers."""
    return in_words(answer, places(scene, answer), unit=unit_of(scene.capture_from_world))


def in_words(answer: Answer, found: Sequence[Mapping[str, Any]], *, unit: str = " m") -> str:
    """Say where the answer is, and which part of the scene it covers; `unit` follows the position."""
    part = "" if answer.coverage > ALL_SEEN else f"the {100 * answer.coverage:.0f} % that was seen"
    if answer.verdict == "absent" or not found:
        return f"not in {part or 'this scene'}"
    x, y, z = found[0]["center"]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    seen = f" (in {part})" if part else ""
    return f"{'perhaps ' if answer.verdict == 'unsure' else ''}at ({x:.2f}, {y:.2f}, {z:.2f}){unit}{more}{seen}"


def as_heat(scene: StoredScene, answer: Answer, *, of_gallery: bool = True) -> "Heat":
    """Return the heat map of an answer; `of_gallery`: its scene is the one that the page is about."""
    from cuao3d.report import Heat

    shown = None if of_gallery else as_cloud(scene)
    return Heat(_glow(answer), where_is(scene, answer), shown, answer.seen)


def as_cloud(scene: StoredScene) -> "Cloud":
    """Return the point cloud of a scene, to be drawn."""
    from cuao3d.report import Cloud

    return Cloud(scene.name, scene.points, scene.colors, scene.normals, scene.cameras)


def write_cloud(path: Path, points: Tensor, colors: Tensor) -> None:
    """Write a coloured cloud (binary PLY), whole or not at all.

    Args:
        path: File to write.
        points: Positions (N, 3), metres.
        colors: RGB (N, 3), in [0, 1].
    """
    columns = cloud_columns(points, colors)
    write_whole(path, lambda temporary: write_ply(temporary, columns))


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
                _fuse_scene(dataset[index], teachers, store, batch_size, say)
            except (TeacherError, DiskFullError):
                raise  # it would break every other scene too
            except (UserError, OSError) as error:
                broken.append(f"{name}: {error}")
        on_step(done + 1, len(share), name)
    return broken


def _fuse_scene(
    scene: Scene, teachers: Sequence[Teacher], store: Store, batch_size: int, say: Callable[[str], None]
) -> None:
    """Lift one scene into a store."""

    def progress(what: str) -> Callable[[int, int], None]:
        return lambda done, total: say(f"{scene.name}, {what}, view {done} of {total}")

    if teachers and scene.frames and not any(frame.has_colors for frame in scene.frames):
        raise InputError("it has no colour images, which teachers look at; add them, or lift none: --teachers none.")
    samples = sample_cells(scene.points, store.cell)
    visibility = see(scene, samples, progress=progress("visibility"))
    album = Album(scene, visibility)
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
            skip_unreadable=not features,
            progress=progress(teacher.name),
        )
        features[teacher.name], visibility = lifted.features, lifted.visibility
        agreement = None if math.isnan(lifted.agreement) else round(lifted.agreement, 4)
        lifting[teacher.name] = Lifting(round(time.perf_counter() - begin, 3), len(visibility.views), agreement)
    kept = album.tensors(visibility)
    store.add_scene(scene, samples, visibility, features, lifting=lifting, photographs=kept)


def _as_json(scene: StoredScene, answers: Sequence[Answer], store: Store, predictor: Predictor) -> dict[str, Any]:
    """Return the answers as JSON."""
    about = {
        "teacher": predictor.teacher,
        "student": predictor.student is not None,
        "text_encoder": predictor.text,
        "thresholds": {"here": HERE, "absent": ABSENT},
        "coverage": round(answers[0].coverage, 4),
    }
    return {
        "store": store.path.name,
        "scene": scene.name,
        "capture_from_world": as_matrix(scene.capture_from_world),
        "answers": {
            answer.words: {
                "verdict": answer.verdict,
                "peak": round(answer.peak, 4),
                **about,
                "places": places(scene, answer),
            }
            for answer in answers
        },
    }


def _places_and_points(scene: StoredScene, answer: Answer) -> list[tuple[dict[str, Any], Tensor]]:
    """List the places that answer a question, and the points of the cloud that each is made of."""
    index = torch.nonzero(answer.answers).squeeze(1)
    part_of_point = parts(scene.points[index])
    found = []
    for part in range(int(part_of_point.max()) + 1 if len(index) else 0):
        own = index[part_of_point == part]
        points = scene.points[own]
        place = {
            **describe_place(points, scene.capture_from_world),
            "num_points": len(own),
            "relevance": round(float(answer.relevance[own].mean()), 3),
        }
        found.append((place, own))
    return sorted(found, key=lambda one: -one[0]["relevance"])


def _about_answer(answer: Answer, num_places: int) -> str:
    """Say how relevant an answer is and how many places it has."""
    if not num_places:
        return f"relevance {answer.peak:.2f}, {in_words(answer, [])}"
    part = "" if answer.coverage > ALL_SEEN else f" in the {100 * answer.coverage:.0f} % that was seen"
    return f"relevance {answer.peak:.2f}, {num_places} place{'s' if num_places > 1 else ''}{part}"


def _about_place(place: Mapping[str, Any], unit: str) -> str:
    """Say how relevant a place is, and where it is."""
    x, y, z = place["center"]
    return f"relevance {place['relevance']:.2f}, at ({x:.2f}, {y:.2f}, {z:.2f}){unit}"


def _colors(scene: StoredScene, answers: Sequence[Answer]) -> Tensor:
    """Colour points by their most relevant answer; points that no view saw have their own colour."""
    hottest = torch.stack([_glow(answer) for answer in answers]).amax(dim=0)
    return heat_colors(hottest, scene.colors, answers[0].seen)


def _glow(answer: Answer) -> Tensor:
    """Return the heat of each point (N,), 0 to 1; an absent answer is cold everywhere."""
    return torch.zeros_like(answer.relevance) if answer.verdict == "absent" else heat(answer.relevance)
