"""The demo: a real room and questions to it; made rooms, three small teachers, two students, scores, and a report."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cuao3d import __version__, recipes
from cuao3d.answers import as_cloud, as_finds, as_heat, places, write_cloud
from cuao3d.colors import class_colors
from cuao3d.console import counted, note
from cuao3d.datasets import lounge
from cuao3d.distill import distill
from cuao3d.errors import InputError, NotFoundError, NotInstalledError
from cuao3d.evaluate import labels_of
from cuao3d.files import write_json
from cuao3d.finds import Finds
from cuao3d.history import read_history
from cuao3d.labels import label_set
from cuao3d.metrics import Row
from cuao3d.pipeline import SHIPPED_STUDENT, evaluate, fit_student, fuse
from cuao3d.predictor import Predictor
from cuao3d.progress import OnStep, Stages, machine, training_bars, waiting
from cuao3d.readers import Dataset, open_dataset
from cuao3d.report import Gallery, Heat, write_report
from cuao3d.scene import Scene, Source, Split
from cuao3d.schema import Count, check_settings
from cuao3d.store import Setting, Store, StoredScene
from cuao3d.store.sources import source_of
from cuao3d.supervise import score, supervise
from cuao3d.teachers import load_teacher
from cuao3d.training import TrainConfig
from cuao3d.workers import side_by_side
from cuao3d.worlds.rooms import TEACHER_SEEDS, Rooms, make_room

QUESTIONS = ("a couch", "a bookcase", "a fridge", "somewhere to wash clothes", "something to flush", "somewhere to sit")
"""Questions of the demo, synonyms and uses: none is a class name, or a word that a teacher was trained with."""

LABELS = "made100"
"""Label set of the made rooms: everything in them has a class of its own, with synonyms and questions."""

COARSE = "scannet20"
"""Label set in which the same is scored again."""

LOUNGE_QUESTIONS = ("somewhere to sit", "a sofa", "an office chair", "a table", "a printer", "a bicycle")
"""Questions to the real room; the last is for what is not there."""

PAGE_TITLE = "A real room, and synthetic rooms to score in"

LOUNGE_ABOUT = (
    "A lounge, in five photographs with depth from 3DMatch. {} Each question has up to three places, the most relevant "
    "first; dashed: unsure. This room has no labels, so nothing is scored here; the synthetic rooms below have them."
)

SEED_STRIDE = 1000
"""Number of room seeds for each seed of the demo; training rooms use the first half, held-out rooms the second."""


@dataclass(frozen=True)
class DemoConfig:
    """Size of the demo."""

    num_train_rooms: Count = 24
    """Number of training rooms."""
    num_val_rooms: Count = 8
    """Number of held-out rooms to score on; the eight kinds of room alternate."""
    num_views: Count = 12
    """Views of each room."""
    num_steps: Count = 250
    """Training steps of each student."""
    supervised: bool = False
    """Whether to train the supervised upper bound too."""


QUICK = DemoConfig(num_train_rooms=5, num_val_rooms=5, num_views=5, num_steps=12)


FULL = DemoConfig(num_train_rooms=40, num_val_rooms=24, num_views=16, num_steps=1400, supervised=True)


def demo(out: Path, *, seed: int = 0, config: DemoConfig | None = None, num_workers: int = 1) -> dict[str, Any]:
    """Ask a real room; make rooms, lift three teachers, distil two students, score them, ask them; write a report.

    Without a network or an optional package the real room may be left out, which one line says.

    Args:
        out: Folder for `report.html`, `results.json`, `scene.ply`, the stores and the runs.
        seed: Random seed of the rooms and the students.
        config: Size of the demo.
        num_workers: Processes that share the rooms, then the students; see `side_by_side`.

    Returns:
        The content of `results.json`.
    """
    config = config or DemoConfig()
    if not 0 <= seed < TEACHER_SEEDS // SEED_STRIDE:
        raise InputError(f"The seed must lie in [0, {TEACHER_SEEDS // SEED_STRIDE}); it is {seed}.")
    check_settings(config)
    stages = Stages(num_workers)
    real_room = _ask_lounge(out / "lounge", stages)
    store = _make_rooms(out / "store", seed, config, stages, num_workers)
    runs, supervised = _train_students(store, out / "runs", seed, config, stages, num_workers)
    ceiling: tuple[Row, ...] = ()
    with stages("evaluating") as said:
        fine, coarse = _scores(store, runs, stages, num_workers)
        of_shipped = fine.pop("shipped")
        rows = [row for of_model in fine.values() for row in of_model]
        if config.supervised:
            ceiling = (score(store, supervised, split="train"), score(store, supervised))
        said.append(", ".join(f"{row.model} {row.readout} {row.miou:.1f}" for row in rows) + " mIoU")
    results = {
        "rows": [asdict(row) for row in rows],
        "ceiling": [asdict(row) for row in ceiling],
        "shipped": [asdict(row) for row in of_shipped],
        "coarse": [asdict(row) for of_model in coarse.values() for row in of_model],
        "missing": store.missing(),
        "chance_miou": rows[0].chance_miou,
        "constant_miou": rows[0].constant_miou,
        "real_room": real_room.as_json,
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
    with stages("asking and drawing") as said, waiting("asking and drawing"):
        gallery, results["answers"] = _gallery(store, runs, config)
        gallery = replace(gallery, finds=real_room.finds, elsewhere=real_room.heats)
        write_cloud(
            out / "scene.ply", gallery.points, class_colors(gallery.predictions["distilled"], label_set(LABELS))
        )
        said.append(f"{len(QUESTIONS)} questions")
    write_json(out / "results.json", results)
    write_report(out / "report.html", results, gallery)
    return results


def _scores(
    store: Store, runs: Mapping[str, Path], stages: Stages, num_workers: int
) -> tuple[dict[str, tuple[Row, ...]], ...]:
    """Score lifted features, students and the shipped student in both label sets: the rows of each, by name."""
    of_named = {"none": None, **runs, "shipped": SHIPPED_STUDENT}
    jobs = [partial(_score, store.path, name, run, name in runs) for name, run in of_named.items()]
    with training_bars(tuple(of_named)) as bars:
        stages.num_workers = num_workers
        rows = side_by_side(jobs, num_workers, lambda job, done, total, line: bars[job](done, total, line))
    return tuple(dict(zip(of_named, of_labels, strict=True)) for of_labels in zip(*rows, strict=True))


def _score(store: Path, name: str, run: Path | None, is_own: bool, on_step: OnStep) -> list[tuple[Row, ...]]:
    """Fit the verdicts of an own student in the training rooms, and score in both label sets."""
    opened = Store.open(store)
    if is_own and run is not None:
        fit_student(opened, run, labels=LABELS, split="train", where="training rooms")
    predictor = Predictor.open(opened, run=run)

    def scored(labels: str) -> tuple[Row, ...]:
        said = partial(_counted, on_step, f"in {labels}")
        return evaluate(opened, predictor, model=name, dataset="rooms", labels=labels, progress=said)

    return [scored(LABELS), scored(COARSE)]


def _counted(on_step: OnStep, line: str, done: int, total: int) -> None:
    on_step(done, total, line)


class RealRoom(NamedTuple):
    """What a real room answers; empty if the room or the teacher is missing."""

    finds: Finds | None = None
    """The answers, to be outlined in its photographs."""
    heats: Mapping[str, Heat] = {}
    """The answers, to be shown in 3D."""
    as_json: Mapping[str, Any] = {}


def _ask_lounge(out: Path, stages: Stages) -> RealRoom:
    """Lift the teacher for photographs onto a real room, and ask it questions."""
    try:
        folder = lounge()
        with stages("asking a real room") as said:
            with waiting("loading the teacher"):
                teacher = load_teacher("photo")
            for line in getattr(teacher, "notes", ()):
                note(line)
            store = fuse(open_dataset(folder), [teacher], out, settings={"data": "lounge"})
            predictor, scene = Predictor.open(store), store[store.names()[0]]
            answers = predictor.ask(scene, LOUNGE_QUESTIONS)
            said.append(", ".join(f"{answer.words}: {answer.verdict}" for answer in answers))
    except (NotFoundError, NotInstalledError, InputError) as error:
        note(f"the real room: {error}", head="left out")
        return RealRoom()
    about = LOUNGE_ABOUT.format(predictor.about)
    found = replace(as_finds(scene, answers), title="A real room", about=about, page_title=PAGE_TITLE)
    as_json = {answer.words: {"verdict": answer.verdict, "places": places(scene, answer)[:3]} for answer in answers}
    cloud = as_cloud(scene)
    heats = {answer.words: replace(as_heat(scene, answer), cloud=cloud) for answer in answers}
    return RealRoom(found, heats, {"answered_by": predictor.about, "answers": as_json})


def _train_students(
    store: Store, out: Path, seed: int, config: DemoConfig, stages: Stages, num_workers: int
) -> tuple[dict[str, Path], Path]:
    """Train the students of a demo side by side; return the folders of their runs and that of the ceiling."""
    with_words = {name: card for name, card in store.teachers.items() if card.text is not None}
    taught_by = {"three-teachers": store.teachers, "single-teacher": with_words}
    runs, supervised = {name: out / name for name in taught_by}, out / "supervised"
    jobs = {
        name: partial(
            _train, distill, store, recipes.mini(teachers=teachers, num_steps=config.num_steps, seed=seed), runs[name]
        )
        for name, teachers in taught_by.items()
    }
    if config.supervised:
        ceiling = recipes.mini_supervised(num_steps=config.num_steps, seed=seed)
        jobs["supervised"] = partial(_train, supervise, store, ceiling, supervised)
    with stages("training") as said, training_bars(tuple(jobs)) as bars:
        if num_workers > 1:
            stages.num_workers = len(jobs)  # all at once: the last of three alone would leave a core without work
        side_by_side(
            list(jobs.values()), stages.num_workers, lambda job, done, total, line: bars[job](done, total, line)
        )
        said.append(f"{', '.join(jobs)}: {config.num_steps} steps each")
    return runs, supervised


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
    rooms = Together(
        [
            Rooms(range(start, start + count), split=split, num_views=config.num_views, label_set=LABELS)
            for start, count, split in splits
        ]
    )
    settings: dict[str, Setting] = {"data": "rooms", "seed": seed, "num_views": config.num_views}
    with stages("making and lifting rooms") as said:
        store = fuse(rooms, teachers, out, cell=recipes.MINI_CELL, settings=settings, num_workers=num_workers)
        num_rooms = len(store.names())
        numbers = {"room": num_rooms, "view": num_rooms * config.num_views, "teacher": len(teachers)}
        said.append(", ".join(counted(number, what) for what, number in numbers.items()))
    return store


class Together:
    """Several datasets as one."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._places = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
        self.names = tuple(name for dataset in datasets for name in dataset.names)

    def __len__(self) -> int:
        return len(self._places)

    def source(self, index: int, /) -> Source | None:
        """Return what decides a scene, where its dataset says."""
        dataset, own = self._places[index]
        return source_of(dataset, own)

    def __getitem__(self, index: int, /) -> Scene:
        dataset, own = self._places[index]
        return dataset[own]


def _gallery(store: Store, runs: Mapping[str, Path], config: DemoConfig) -> tuple[Gallery, dict[str, Any]]:
    """Gather what the report shows: one held-out room in full, and each question in the room that answers it best."""
    classes, lifted = label_set(LABELS), Predictor.open(store)
    scenes = {name: store[name] for name in store.names("val")}
    scene = max(scenes.values(), key=lambda scene: 0 if scene.labels is None else len(torch.unique(scene.labels)))
    students = {
        {"three-teachers": "distilled"}.get(name, name): Predictor.open(store, run=run)
        for name, run in {**runs, "shipped student": SHIPPED_STUDENT}.items()
    }
    predictors = {"fused": lifted, **students}
    heats, answers = _ask_rooms(scenes, lifted)
    photographed = make_room(int(scene.name.rpartition("-")[2]), num_views=config.num_views)
    cloud = as_cloud(scene)
    gallery = Gallery(
        scene=cloud.scene,
        points=cloud.points,
        colors=cloud.colors,
        normals=cloud.normals,
        cameras=cloud.cameras,
        label_set=classes,
        labels=None if scene.labels is None else labels_of(scene, classes),
        predictions={name: predictor.segment(scene, classes) for name, predictor in predictors.items()},
        photos=[frame.read_image() for frame in photographed.frames[:4]],
        heats=heats,
        segments=_segments(store, scene, students["distilled"]),
        history=read_history(runs["three-teachers"]),
    )
    return gallery, answers


def _ask_rooms(
    scenes: Mapping[str, StoredScene], predictor: Predictor
) -> tuple[dict[str, Heat], dict[str, dict[str, Any]]]:
    """Ask every question in every room; return what the room that answers it best says."""
    asked = {name: predictor.ask(scene, QUESTIONS) for name, scene in scenes.items()}
    heats, answers = {}, {}
    for index, question in enumerate(QUESTIONS):
        best = max(asked, key=lambda name: asked[name][index].peak)
        found = asked[best][index]
        heats[question] = as_heat(scenes[best], found, of_gallery=False)
        answers[question] = {"scene": best, "verdict": found.verdict, "places": places(scenes[best], found)[:3]}
    return heats, answers


def _segments(store: Store, scene: StoredScene, student: Predictor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the features of each teacher, lifted and by the student, and the row of each point in them; -1: none."""
    row_of_point = scene.spread(torch.arange(len(scene.seen_samples)), -1)[scene.sample_of_point]
    segments = {}
    for name in store.teachers:
        segments[f"{name}, lifted"] = (scene.features(name).float(), row_of_point)
        segments[f"{name}, our student"] = (replace(student, teacher=name).features(scene), scene.sample_of_point)
    return segments


def _sigma_steps(run: Path) -> dict[str, Any]:
    """Return every tenth noise level of each teacher."""
    history = read_history(run)
    return {"steps": history.steps[::10], "sigmas": {name: line[::10] for name, line in history.sigmas.items()}}
