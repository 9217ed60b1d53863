"""The whole path: data -> store -> student -> scores -> answers -> report. Stages are wired together only here."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from cuao3d import __version__, recipes
from cuao3d.compare import Comparison, compare
from cuao3d.distill import distill
from cuao3d.evaluate import Predict, Row, student_features, zero_shot
from cuao3d.files import write_json, write_whole
from cuao3d.fusion import lift_measured, sample_cells, see
from cuao3d.history import read_history
from cuao3d.labels import label_set
from cuao3d.probe import score, supervise
from cuao3d.query import Answer, ask, askable_teacher, classify, heat, parts, scores
from cuao3d.readers import Dataset
from cuao3d.readers.ply import cloud_columns, write_ply
from cuao3d.readers.rooms import TEACHER_SEEDS, Rooms, make_room
from cuao3d.report import Cloud, Gallery, Heat, class_colors, heat_colors, write_report
from cuao3d.run import load_run
from cuao3d.scene import Scene, Split
from cuao3d.stages import Stages, console, machine
from cuao3d.store import CELL, Lifting, Setting, Store, StoredScene, TeacherCard
from cuao3d.teachers import Teacher, load_teacher
from cuao3d.teachers.views import BATCH
from cuao3d.text import TextEncoder, class_vectors, load_text_encoder
from cuao3d.training import OnStep, TrainConfig, training_bars
from cuao3d.workers import side_by_side

QUESTIONS = (
    "somewhere to sit",
    "a place to sleep",
    "somewhere to keep food cold",
    "where are the books",
    "work at a computer",
)
"""What the demo asks; none is the name of a class."""

SEED_STRIDE = 1000
"""Seeds of rooms that belong to one seed of the demo: training rooms from its start on, held-out ones from its half."""

SHIPPED_STUDENT = Path(__file__).parent / "students" / "rooms"
"""Run folder of the three-teacher student of a full demo, shipped with the package."""


@dataclass(frozen=True)
class DemoConfig:
    """How much the demo does."""

    num_train_rooms: int = 20
    """Rooms that the students learn from."""
    num_val_rooms: int = 15
    """Rooms that scores are measured on; the five kinds take turns."""
    num_views: int = 12
    """Views of each room."""
    num_steps: int = 250
    """Steps of each student."""
    supervised: bool = False
    """Whether the supervised ceiling is trained too."""


QUICK = DemoConfig(num_train_rooms=5, num_val_rooms=5, num_views=5, num_steps=12)
FULL = DemoConfig(num_train_rooms=40, num_val_rooms=25, num_views=16, num_steps=1400, supervised=True)


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
        ValueError: No scene could be read, or the folder holds something else.
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
    with _bar() as bar:
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
        raise ValueError(f"No scene could be lifted. {broken[0] if broken else 'The dataset is empty.'}")
    return store


def load_student(run: Path, store: Store) -> Predict:
    """Read a run and return how its word-aligned head describes the samples (S, C) of a store's scenes.

    Raises:
        FileNotFoundError: There is no finished run.
        ValueError: The run and the store do not fit.
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
    with _bar() as bar:
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
    with _bar() as bar:
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
        ValueError: The ending of the file is none of these, or the store has no scene.
    """
    if out.suffix not in (".ply", ".json", ".html"):
        raise ValueError(f"{out} should end in .ply (a cloud), .json (places) or .html (a page to look at).")
    names = store.names() if scene is None else (scene,)
    if not names:
        raise ValueError(f"{store.path} holds no finished scene. Run `cuao3d fuse` again to finish it.")
    asked = {}
    with _bar() as bar:
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


def demo(out: Path, *, seed: int = 0, config: DemoConfig | None = None, num_workers: int = 1) -> dict[str, Any]:
    """Make rooms, lift three teachers, distil two students, score and ask them, and write it all down.

    Args:
        out: Folder for `report.html`, `results.json`, `scene.ply`, the store and the runs.
        seed: Decides the rooms and the students.
        config: How much to do.
        num_workers: Processes that share the rooms, then the students; see `side_by_side`.

    Returns:
        What `results.json` holds.
    """
    config = config or DemoConfig()
    if not 0 <= seed < TEACHER_SEEDS // SEED_STRIDE:
        raise ValueError(f"The seed must lie in [0, {TEACHER_SEEDS // SEED_STRIDE}); it is {seed}.")
    stages = Stages(num_workers)
    store = _make_rooms(out / "store", seed, config, stages, num_workers)
    taught_by = {"three-teachers": recipes.MINI_TEACHERS, "single-teacher": recipes.MINI_TEACHERS[:1]}
    runs, supervised = {name: out / "runs" / name for name in taught_by}, out / "runs" / "supervised"
    settings = {"num_steps": config.num_steps, "seed": seed}
    jobs = {
        name: partial(_train, distill, store, recipes.mini(teachers=taught_by[name], **settings), run)
        for name, run in runs.items()
    }
    if config.supervised:
        jobs["supervised"] = partial(_train, supervise, store, recipes.mini_supervised(**settings), supervised)
    with stages("training") as said, training_bars(tuple(jobs)) as bars:
        if num_workers > 1:
            stages.num_workers = len(jobs)  # all at once: the last of three alone would leave a core without work
        side_by_side(
            list(jobs.values()), stages.num_workers, lambda job, done, total, line: bars[job](done, total, line)
        )
        said.append(f"{', '.join(jobs)}: {config.num_steps} steps each")
    ceiling: tuple[Row, ...] = ()
    with stages("evaluating") as said:
        rows = [*evaluate(store, dataset="rooms")]
        for name, run in runs.items():
            rows += evaluate(store, run, model=name, dataset="rooms")
        shipped = evaluate(store, SHIPPED_STUDENT, model="three-teachers", dataset="rooms")
        if config.supervised:
            ceiling = (score(store, supervised, split="train"), score(store, supervised))
        said.append(", ".join(f"{row.model} {row.readout} {row.miou:.1f}" for row in rows) + " mIoU")
    results = {
        "rows": [asdict(row) for row in rows],
        "ceiling": [asdict(row) for row in ceiling],
        "shipped": [asdict(row) for row in shipped],
        "chance_miou": rows[0].chance_miou,
        "constant_miou": rows[0].constant_miou,
        "sigma_steps": _sigma_steps(runs["three-teachers"]),
        "stages": stages.rows,
        "seed": seed,
        "config": asdict(config),
        "voxel_size": recipes.MINI_VOXEL,
        "version": __version__,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    write_json(out / "results.json", results)  # before anything is drawn: the figures must not be lost with a picture
    with stages("asking and drawing") as said:
        gallery, results["answers"] = _gallery(store, runs, config)
        write_cloud(
            out / "scene.ply", gallery.points, class_colors(gallery.predictions["distilled"], label_set("scannet20"))
        )
        said.append(f"{len(QUESTIONS)} questions")
    write_json(out / "results.json", results)
    write_report(out / "report.html", results, gallery)
    return results


def _train(learn: Callable[..., Path], store: Store, config: TrainConfig, out: Path, on_step: OnStep) -> None:
    learn(store, config, out, on_step=on_step)


def _make_rooms(out: Path, seed: int, config: DemoConfig, stages: Stages, num_workers: int) -> Store:
    """Make the rooms of a demo and lift the three mini teachers to them."""
    teachers = [load_teacher(name) for name in recipes.MINI_TEACHERS]
    first = seed * SEED_STRIDE
    splits: tuple[tuple[int, int, Split], ...] = (
        (first, config.num_train_rooms, "train"),
        (first + SEED_STRIDE // 2, config.num_val_rooms, "val"),
    )
    rooms = _Together(
        [Rooms(range(start, start + count), split=split, num_views=config.num_views) for start, count, split in splits]
    )
    settings: dict[str, Setting] = {"data": "rooms", "seed": seed, "num_views": config.num_views}
    with stages("making and lifting rooms") as said:
        store = fuse(rooms, teachers, out, cell=recipes.MINI_CELL, settings=settings, num_workers=num_workers)
        num_rooms = len(store.names())
        said.append(f"{num_rooms} rooms, {num_rooms * config.num_views} views, {len(teachers)} teachers")
    return store


class _Together:
    """Several datasets as one."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._places = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
        self.names = tuple(name for dataset in datasets for name in dataset.names)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> Scene:
        dataset, own = self._places[index]
        return dataset[own]


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


def _gallery(store: Store, runs: Mapping[str, Path], config: DemoConfig) -> tuple[Gallery, dict[str, Any]]:
    """Gather what the report shows: one held-out room in full, and each question in the room that answers it best."""
    teacher, classes = askable_teacher(store), label_set("scannet20")
    vectors = class_vectors(load_text_encoder(store.teachers[teacher].text or ""), classes)
    scenes = {name: store[name] for name in store.names("val")}
    scene = max(scenes.values(), key=lambda scene: 0 if scene.labels is None else len(torch.unique(scene.labels)))
    described = {"fused": _lifted(scene, teacher)}
    for name, run in {**runs, "full-run student, shipped": SHIPPED_STUDENT}.items():
        described[{"three-teachers": "distilled"}.get(name, name)] = load_student(run, store)(scene)
    read = load_run(runs["three-teachers"])
    segments = {}
    for name in store.teachers:
        segments[f"{name}, lifted"] = (scene.features(name).float(), _row_of_point(scene))
        predict = student_features(read.student, store, head=name, voxel_size=read.voxel_size)
        segments[f"{name}, our student"] = (predict(scene), scene.sample_of_point)
    asked = {name: query(store, each, QUESTIONS) for name, each in scenes.items()}
    heats, answers = {}, {}
    for index, question in enumerate(QUESTIONS):
        best = max(asked, key=lambda name: asked[name][index].peak)
        found, places = asked[best][index], _places(scenes[best], asked[best][index])
        heats[question] = Heat(_glow(found), _in_words(found, places), _cloud(scenes[best]))
        answers[question] = {"scene": best, "verdict": found.verdict, "places": places[:3]}
    photographed = make_room(int(scene.name.rpartition("-")[2]), num_views=config.num_views)
    cloud = _cloud(scene)
    gallery = Gallery(
        scene=cloud.scene,
        points=cloud.points,
        colors=cloud.colors,
        normals=cloud.normals,
        cameras=cloud.cameras,
        label_set=classes,
        labels=None if scene.labels is None else classes.classes(scene.labels),
        predictions={
            name: classify(scores(features, vectors))[scene.sample_of_point] for name, features in described.items()
        },
        photos=[frame.read_image() for frame in photographed.frames[:4]],
        heats=heats,
        segments=segments,
        history=read_history(runs["three-teachers"]),
    )
    return gallery, answers


def _words_of(store: Store, teacher: str, text: str | None) -> TextEncoder:
    """Load the text encoder that is asked for, or else a teacher's own; its vectors must be as wide as the features."""
    spec = text or store.teachers[teacher].text or ""
    encoder = load_text_encoder(spec)
    if encoder.num_channels != (width := store.teachers[teacher].num_channels):
        raise ValueError(
            f"The vectors of {spec} have {encoder.num_channels} channels, the features of {teacher} {width}."
        )
    return encoder


def _cloud(scene: StoredScene) -> Cloud:
    """Return what is drawn of a scene."""
    return Cloud(scene.name, scene.points, scene.colors, scene.normals, scene.cameras)


def _row_of_point(scene: StoredScene) -> Tensor:
    """Return the row among the seen samples of each point (N,); -1 where no view sees its sample."""
    row_of_sample = torch.full((len(scene.num_views),), -1)
    row_of_sample[scene.seen_samples] = torch.arange(len(scene.seen_samples))
    return row_of_sample[scene.sample_of_point]


def _sigma_steps(run: Path) -> dict[str, Any]:
    """Return every tenth noise level of each teacher."""
    history = read_history(run)
    return {"steps": history.steps[::10], "sigmas": {name: line[::10] for name, line in history.sigmas.items()}}


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


def _bar() -> Progress:
    """Return a progress bar that goes away when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
