"""The whole path: data -> store -> student -> scores -> answers -> report. Stages are wired together only here."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cuao3d import __version__
from cuao3d.compare import Comparison, compare
from cuao3d.errors import InputError
from cuao3d.evaluate import Predict, Row, student_features, zero_shot
from cuao3d.files import write_json, write_whole
from cuao3d.formats.ply import cloud_columns, write_ply
from cuao3d.fusion import lift_measured, sample_cells, see
from cuao3d.labels import label_set
from cuao3d.progress import OnStep, console, progress_bar
from cuao3d.query import Answer, ask, askable_teacher, heat, parts
from cuao3d.readers import Dataset
from cuao3d.report import Gallery, Heat, heat_colors, write_report
from cuao3d.run import load_run
from cuao3d.scene import Scene, Split
from cuao3d.store import CELL, Lifting, Setting, Store, StoredScene, TeacherCard
from cuao3d.teachers import Teacher
from cuao3d.teachers.views import BATCH
from cuao3d.text import TextEncoder, class_vectors, load_text_encoder
from cuao3d.workers import side_by_side


def fuse(
    dataset: Dataset,
    teachers: Sequence[Teacher],
    out: Path,
    *,
    cell: float = CELL,
    settings: Mapping[str, Setting] | None = None,
    batch_size: int = BATCH,
    num_workers: int = 1,
) -> Store:
    """Lift every scene of a dataset into a store. Scenes that are done are passed over; a broken one is reported.

    Args:
        dataset: Where the scenes come from.
        teachers: Who describes their views; none for points alone.
        out: Folder of the store.
        cell: Edge of a sample cell, metres.
        settings: What else decides the scenes; a store made with other settings is refused, not mixed with.
        batch_size: Views shown to a teacher at a time, if it takes several.
        num_workers: Processes that share the scenes; see `side_by_side`.

    Raises:
        InputError: No scene could be read, or the folder holds something else.
    """
    cards = {
        teacher.name: TeacherCard(
            teacher.num_channels,
            getattr(teacher, "text", None),
            getattr(teacher, "loss", "cosine"),
            getattr(teacher, "weights_sha256", None),
            getattr(teacher, "licence", None),
        )
        for teacher in teachers
    }
    store = Store.create(out, cell=cell, teachers=cards, settings=settings)
    shares = [range(first, len(dataset), num_workers) for first in range(num_workers)]
    with progress_bar() as bar:
        task = bar.add_task("lifting", total=len(dataset))
        broken_of_share = side_by_side(
            [partial(_fuse_share, dataset, share, teachers, store, batch_size) for share in shares if share],
            num_workers,
            lambda share, done, total, name: bar.update(task, advance=1, description=f"lifting {name}"),
        )
    broken = sorted(chain.from_iterable(broken_of_share))
    for line in broken:
        console.print(f"[yellow]left out[/] {line}", highlight=False)
    if len(broken) == len(dataset):
        raise InputError(f"No scene could be lifted. {broken[0] if broken else 'The dataset is empty.'}")
    return store


def load_student(run: Path, store: Store) -> Predict:
    """Read a run and return how its word-aligned head describes the samples (S, C) of a store's scenes.

    Raises:
        NotFoundError: There is no finished run.
        InputError: The run and the store do not fit.
    """
    read = load_run(run)
    return student_features(read.student, store, head=askable_teacher(store), voxel_size=read.voxel_size)


def evaluate(
    store: Store,
    run: Path | None = None,
    *,
    labels: str = "scannet20",
    split: Split | None = "val",
    text: str | None = None,
    model: str = "student",
    dataset: str = "",
) -> tuple[Row, ...]:
    """Score the lifted features of a store or, with a run, the student and both together; see `zero_shot`."""
    classes, teacher = label_set(labels), askable_teacher(store)
    vectors = class_vectors(_words_of(store, teacher, text), classes)
    predict = None if run is None else load_student(run, store)
    with progress_bar() as bar:
        task = bar.add_task(f"evaluating {model if run else 'lifted features'}", total=None)
        return zero_shot(
            store,
            classes,
            vectors,
            teacher=teacher,
            readouts=("fused",) if predict is None else ("distilled", "2d3d"),
            predict=predict,
            model=model,
            dataset=dataset or store.path.name,
            split=split,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def compare_teachers(store: Store, teachers: Sequence[str] = ()) -> list[Comparison]:
    """Put teachers of a store side by side; see `compare`."""
    with progress_bar() as bar:
        task = bar.add_task("comparing", total=None)
        return compare(store, teachers, progress=lambda done, total: bar.update(task, completed=done, total=total))


def query(
    store: Store, scene: StoredScene, words: Sequence[str], run: Path | None = None, *, text: str | None = None
) -> tuple[Answer, ...]:
    """Ask a scene free-text questions; the answers hold a value for every point of its cloud.

    Args:
        store: Where the scene lies.
        scene: The scene.
        words: The questions.
        run: The student that answers; the lifted features unless given.
        text: Text encoder that reads the words; the one that the store names unless given.
    """
    teacher = askable_teacher(store)
    encoder = _words_of(store, teacher, text)
    features = _lifted(scene, teacher) if run is None else load_student(run, store)(scene)
    of_point = scene.sample_of_point
    return tuple(
        replace(
            answer,
            scores=answer.scores[of_point],
            relevance=answer.relevance[of_point],
            answers=answer.answers[of_point],
        )
        for answer in ask(features, encoder, words)
    )


def answer(
    store: Store,
    words: Sequence[str],
    out: Path,
    *,
    run: Path | None = None,
    scene: str | None = None,
    text: str | None = None,
) -> list[str]:
    """Ask a store free-text questions and write what the best scene answers.

    Args:
        store: Scenes to ask.
        words: The questions.
        out: File to write: `.ply` is the cloud, hot where it answers; `.json` lists the places; `.html` shows them.
        run: The student that answers; the lifted features unless given.
        scene: Which scene; of all of them the one that answers best unless given.
        text: Text encoder that reads the words; the one that the store names unless given.

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
    asked = {}
    with progress_bar() as bar:
        for name in bar.track(names, description="asking"):
            asked[name] = query(store, store[name], words, run, text=text)
    best = max(names, key=lambda name: sum(answer.peak for answer in asked[name]))
    stored, answers = store[best], asked[best]
    places = {answer.words: _places(stored, answer) for answer in answers}
    if out.suffix == ".json":
        write_json(out, {"store": store.path.name, "scene": best, "answers": places})
    elif out.suffix == ".ply":
        hottest = torch.stack([_glow(answer) for answer in answers]).amax(dim=0)
        write_cloud(out, stored.points, heat_colors(hottest, stored.colors))
    else:
        heats = {a.words: Heat(_glow(a), _in_words(a, places[a.words])) for a in answers}
        gallery = Gallery(best, stored.points, stored.colors, stored.normals, stored.cameras, heats=heats)
        write_report(out, {"version": __version__}, gallery)
    return [f"{best}: {answer.words!r}: {_in_words(answer, places[answer.words])}" for answer in answers]


def write_cloud(path: Path, points: Tensor, colors: Tensor) -> None:
    """Write a coloured cloud (binary PLY), whole or not at all.

    Args:
        path: File to write.
        points: Positions (N, 3), metres.
        colors: RGB (N, 3), in [0, 1].
    """
    columns = cloud_columns(points, colors)
    write_whole(path, lambda temporary: write_ply(temporary, columns))


def _fuse_share(
    dataset: Dataset,
    share: Sequence[int],
    teachers: Sequence[Teacher],
    store: Store,
    batch_size: int,
    on_step: OnStep,
) -> list[str]:
    """Lift some scenes of a dataset; return a line for each that is broken."""
    broken = []
    for done, index in enumerate(share, start=1):
        name = dataset.names[index]
        if not store.has(name):
            try:
                _fuse_scene(dataset[index], teachers, store, batch_size)
            except (ValueError, OSError) as error:
                broken.append(f"{name}: {error}")
        on_step(done, len(share), name)
    return broken


def _fuse_scene(scene: Scene, teachers: Sequence[Teacher], store: Store, batch_size: int) -> None:
    """Lift one scene into a store."""
    samples = sample_cells(scene.points, store.cell)
    visibility = see(scene, samples)
    features, lifting = {}, {}
    for teacher in teachers:
        begin = time.perf_counter()
        lifted = lift_measured(scene, visibility, teacher, batch_size=batch_size)
        features[teacher.name] = lifted.features
        agreement = None if math.isnan(lifted.agreement) else round(lifted.agreement, 4)
        lifting[teacher.name] = Lifting(round(time.perf_counter() - begin, 3), len(visibility.views), agreement)
    store.add_scene(scene, samples, visibility, features, lifting=lifting)


def _words_of(store: Store, teacher: str, text: str | None) -> TextEncoder:
    """Load the text encoder that is asked for, or else a teacher's own; its vectors must be as wide as the features."""
    spec = text or store.teachers[teacher].text or ""
    encoder = load_text_encoder(spec)
    if encoder.num_channels != (width := store.teachers[teacher].num_channels):
        raise InputError(
            f"The vectors of {spec} have {encoder.num_channels} channels, the features of {teacher} {width}."
        )
    return encoder


def _lifted(scene: StoredScene, teacher: str) -> Tensor:
    """Return a teacher's features of every sample (S, C); zero where no view sees it."""
    features = scene.features(teacher)
    of_samples = torch.zeros(len(scene.num_views), features.shape[1])
    of_samples[scene.seen_samples] = features.float()
    return of_samples


def _places(scene: StoredScene, answer: Answer) -> list[dict[str, Any]]:
    """List the connected parts of a scene that answer a question, the most relevant first; metres, world axes."""
    points, relevance = scene.points[answer.answers], answer.relevance[answer.answers]
    part_of_point = parts(points)
    places = []
    for part in range(int(part_of_point.max()) + 1 if len(points) else 0):
        own = points[part_of_point == part]
        places.append(
            {
                "center": [round(float(value), 3) for value in own.mean(dim=0)],
                "size": [round(float(value), 3) for value in own.amax(dim=0) - own.amin(dim=0)],
                "num_points": len(own),
                "relevance": round(float(relevance[part_of_point == part].mean()), 3),
            }
        )
    return sorted(places, key=lambda place: -place["relevance"])


def _glow(answer: Answer) -> Tensor:
    """Return how hot to draw each point (N,); a scene without the answer stays cold."""
    return torch.zeros_like(answer.relevance) if answer.verdict == "absent" else heat(answer.relevance)


def _in_words(answer: Answer, places: list[dict[str, Any]]) -> str:
    """Say where the answer is."""
    if answer.verdict == "absent" or not places:
        return "not in this scene"
    x, y, z = places[0]["center"]
    more = f", and {len(places) - 1} more" if len(places) > 1 else ""
    return f"{'perhaps ' if answer.verdict == 'unsure' else ''}at ({x:.2f}, {y:.2f}, {z:.2f}) m{more}"
