"""Training: augmented scenes become voxels with targets, and one loop minimises whatever is said of them."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from cuao3d import __version__
from cuao3d.augment import Augmentation, augment
from cuao3d.files import sha256_of, write_json, write_tensors, write_text
from cuao3d.geometry import voxelize
from cuao3d.objective import RowMeans
from cuao3d.store import Store, StoredScene, TeacherCard
from cuao3d.student import HeadKind, Student

OnStep = Callable[[int, int, str], None]
"""Called after each step with the number of steps done, their total and a line of losses and noise levels."""

Target = Tensor | RowMeans
"""What is to be said of some voxels: features (N, C) or classes (N,)."""

Pool = Callable[[Tensor, Int64[Tensor, "M"], Int64[Tensor, "N"]], Target]
"""Makes the targets of voxels from those of samples: called with the targets of all samples, the rows of those that
count, sorted by voxel, and where in these each voxel begins."""

OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adam": lambda groups: torch.optim.Adam(groups, fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=True),
}

LATTICE = 16
"""Voxels after which the student's coarsest grid repeats; the random shift covers all places on it."""


@dataclass(frozen=True)
class TrainConfig:
    """How a student is trained, whatever it learns."""

    voxel_size: float = 0.02
    """Edge of a voxel, metres; not finer than the store's cell."""
    architecture: str = "MinkUNet18A"
    """Name of the student's network."""
    num_epochs: int = 50
    """Passes over the training scenes."""
    num_steps: int | None = None
    """Optimiser steps; takes the place of `num_epochs` where given."""
    batch_size: int = 2
    """Scenes in a step."""
    points_per_scene: int | None = 20_000
    """Most voxels of a scene that the loss looks at, drawn anew each time; None: all of them."""
    crop: int | None = None
    """Most voxels of a scene that enter the network, those nearest to a random one with a target; None: all of them."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser; `sgd` has momentum 0.9."""
    learning_rate: float = 1e-4
    """Rate at the start."""
    weight_decay: float = 0.0
    """Weight decay of the student."""
    schedule: Literal["constant", "exponential", "poly", "cosine"] = "exponential"
    """How the rate falls: to `final_rate` (exponential), to 0 as (1 - t)^0.9 (poly), to 0 as a half wave (cosine)."""
    final_rate: float = 0.1
    """Rate at the end of the exponential schedule, as a fraction of the start."""
    clip_norm: float | None = None
    """Largest norm of the student's gradient; None: not clipped."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes of the scenes."""
    checkpoint_every: int = 200
    """Steps between the checkpoints from which an interrupted run goes on."""
    seed: int = 0
    """Decides the initial weights and all that is random in every step."""


@dataclass(frozen=True)
class TrainingScene:
    """What training holds of a stored scene."""

    name: str
    """Name of the scene, for messages."""
    points: Float[Tensor, "S 3"]
    """Sample points, metres."""
    rows: Int64[Tensor, "R"]
    """Samples that have targets."""
    targets: tuple[Tensor, ...]
    """For each thing to learn, what is known of those samples: features (R, C) or classes (R,)."""
    chances: Float32[Tensor, "R"] | None = None
    """How likely each of those samples is looked at, relative to the others; None: all alike."""


@dataclass(frozen=True)
class Batch:
    """Several augmented scenes as voxels."""

    coordinates: Int64[Tensor, "V 4"]
    """Scene within the batch and integer cell of each voxel."""
    supervised: Int64[Tensor, "N"]
    """Voxels that the loss looks at."""
    targets: tuple[tuple[Target, ...], ...]
    """For each scene, and for each thing to learn, what is to be said of those voxels."""

    @property
    def num_targets(self) -> list[int]:
        """Number of supervised voxels of each scene; in `supervised` they follow each other."""
        return [len(targets[0]) for targets in self.targets]

    def to(self, device: str) -> "Batch":
        """Return this batch on a device; away from the CPU its targets are averaged first."""
        if device == "cpu":
            return self
        targets = tuple(tuple(target[:].to(device) for target in scene) for scene in self.targets)
        return Batch(self.coordinates.to(device), self.supervised.to(device), targets)


class Batches:
    """All batches of a run; each follows from the seed and its step alone, so a run can go on from any step."""

    def __init__(self, scenes: Sequence[TrainingScene], config: TrainConfig, pool: Pool) -> None:
        """Lay out the run.

        Args:
            scenes: What to draw from; every scene once, in random order, before any comes again.
            config: How many steps, and how scenes are augmented, cropped and drawn.
            pool: How the targets of samples that meet in a voxel become one.
        """
        self.scenes, self.config, self.pool = scenes, config, pool

    def __len__(self) -> int:
        """Return the number of steps of the run."""
        if self.config.num_steps is not None:
            return self.config.num_steps
        return math.ceil(self.config.num_epochs * len(self.scenes) / self.config.batch_size)

    def __getitem__(self, step: int) -> Batch:
        """Prepare the batch of a step.

        Raises:
            ValueError: Its voxels are too few to train on.
        """
        generator = _generator(self.config.seed, 1, step)
        first = step * self.config.batch_size
        drawn = [self.scene_at(place) for place in range(first, first + self.config.batch_size)]
        batch = join([voxelize_scene(scene, self.config, self.pool, generator) for scene in drawn])
        coarsest = batch.coordinates // torch.tensor([1, LATTICE, LATTICE, LATTICE])
        if bool((coarsest == coarsest[0]).all()):
            raise ValueError(
                f"Scene {drawn[0].name} lies in a single cell of the student's coarsest grid; batch norm needs two. "
                f"Use voxels smaller than {self.config.voxel_size:g} m, larger crops or more scenes a step."
            )
        return batch

    def scene_at(self, place: int) -> TrainingScene:
        """Return the scene at a place of the endless row of shuffled passes over all scenes."""
        epoch, index = divmod(place, len(self.scenes))
        order = torch.randperm(len(self.scenes), generator=_generator(self.config.seed, 0, epoch))
        return self.scenes[int(order[index])]


def train(
    learner: nn.Module,
    groups: list[dict[str, Any]],
    batches: Batches,
    out: Path,
    *,
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> float:
    """Minimise what a learner says of each batch; goes on from the folder's checkpoint if there is one.

    Args:
        learner: Called with a batch; returns the loss and what to report of it.
        groups: Parameter groups with their rates at the start; the gradient of the first is the one that is clipped.
        batches: The batch of each step, and the configuration of the run.
        out: Folder of the run, for `metrics.jsonl` and the checkpoint.
        device: Where the learner is.
        on_step: Told after each step.

    Returns:
        Seconds spent, those before an interruption included.

    Raises:
        ValueError: The loss is no number.
    """
    config, rates = batches.config, [group["lr"] for group in groups]
    learner.to(device)
    optimizer = OPTIMIZERS[config.optimizer](groups)
    first, seconds = _restore(out, learner, optimizer)
    started = time.perf_counter() - seconds
    learner.train()
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        for step in range(first, len(batches)):
            fraction = rate_fraction(step / len(batches), config)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * fraction
            batch = batches[step].to(device)
            loss, report = learner(batch)
            rate = optimizer.param_groups[0]["lr"]
            row = {"step": step, "loss": loss.item(), **report, "rate": rate, "voxels": len(batch.supervised)}
            if not math.isfinite(row["loss"]):
                raise ValueError(
                    f"Training in {out} diverged: at step {step} the loss is {row['loss']} ({report}). "
                    f"Lower learning_rate (now {config.learning_rate:g}) or set clip_norm."
                )
            optimizer.zero_grad()
            loss.backward()
            if config.clip_norm is not None:
                nn.utils.clip_grad_norm_(groups[0]["params"], config.clip_norm)
            optimizer.step()
            metrics.write(json.dumps(row) + "\n")
            if (step + 1) % config.checkpoint_every == 0:
                metrics.flush()
                _checkpoint(out, learner, optimizer, step + 1, time.perf_counter() - started)
            if on_step is not None:
                on_step(step + 1, len(batches), _line(row))
    return time.perf_counter() - started


def rate_fraction(progress: float, config: TrainConfig) -> float:
    """Return the learning rate as a fraction of the one at the start.

    Args:
        progress: Steps done as a fraction of all.
        config: Its `schedule` and `final_rate` count.
    """
    match config.schedule:
        case "exponential":
            return math.pow(config.final_rate, progress)
        case "poly":
            return math.pow(1 - progress, 0.9)
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "constant":
            return 1.0


def make_student(
    heads: dict[str, int], config: TrainConfig, *, head: HeadKind = "linear", noise: bool = False
) -> Student:
    """Make a student whose initial weights follow from the seed.

    Args:
        heads: Width of each head.
        config: Its `architecture` and `seed` count.
        head: Kind of the heads.
        noise: Whether it learns how unsure it is, voxel by voxel.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Student(heads, config.architecture, head=head, noise=noise)


def student_group(student: Student, config: TrainConfig) -> dict[str, Any]:
    """Return the optimiser's settings for a student."""
    return {"params": list(student.parameters()), "lr": config.learning_rate, "weight_decay": config.weight_decay}


def supervised_features(student: Student, batch: Batch) -> Float[Tensor, "N H"]:
    """Run the student on a batch of bare geometry and return its features where the batch has targets."""
    constant = torch.ones(len(batch.coordinates), 3, device=batch.coordinates.device)
    return student.hidden(batch.coordinates, constant).index_select(0, batch.supervised)


def begin_run(out: Path, config: TrainConfig, store: Store, scenes: Sequence[StoredScene]) -> bool:
    """Begin a run in a folder, or go on with it.

    Args:
        out: Folder of the run; made if it is not there.
        config: Configuration of the run.
        store: Where the scenes lie.
        scenes: Scenes that it trains on.

    Returns:
        Whether the very same run is already finished there.

    Raises:
        ValueError: The folder holds something else, or the voxels are finer than the store's cells.
    """
    if config.voxel_size < store.cell:
        raise ValueError(
            f"Voxels of {config.voxel_size:g} m are finer than the {store.cell:g} m cells of {store.path}. "
            "Use larger voxels, or lift the scenes again with a smaller cell."
        )
    hashes = "".join(f"{scene.name} {scene.sha256}\n" for scene in scenes)
    description = {
        "kind": type(config).__name__,
        "config": asdict(config),
        "scenes_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
        "code_version": __version__,
    }
    file = out / "config.json"
    if file.is_file() and file.read_text(encoding="utf-8") == json.dumps(description, indent=1) + "\n":
        return (out / "run.json").is_file()
    if out.is_file() or (out.is_dir() and any(_is_worth_keeping(path) for path in out.iterdir())):
        raise ValueError(
            f"{out} holds something else than this run (another configuration, other scenes or another version; see "
            f"{file}). Choose another folder, or delete this one."
        )
    write_json(file, description)
    return False


def _is_worth_keeping(path: Path) -> bool:
    """Say whether a file in a run's folder is more than what a run writes before its first checkpoint."""
    return path.name not in ("config.json", "metrics.jsonl") and path.suffix != ".partial"


def finish_run(out: Path, student: Student, summary: dict[str, Any]) -> None:
    """Write the student and, last, `run.json`, which says that the run is finished.

    Args:
        out: Folder of the run.
        student: What was trained.
        summary: What `run.json` says besides the SHA-256 of the student.
    """
    file = out / "student.safetensors"
    student.save(file)
    write_json(out / "run.json", {**summary, "student_sha256": sha256_of(file)})
    (out / "checkpoint.safetensors").unlink(missing_ok=True)


def voxelize_scene(scene: TrainingScene, config: TrainConfig, pool: Pool, generator: torch.Generator) -> Batch:
    """Augment a scene, quantise it, and choose the voxels that enter the network and those that the loss looks at.

    Args:
        scene: Sample points and their targets.
        config: Augmentation, voxel size, crop and number of supervised voxels.
        pool: How the targets of samples that meet in a voxel become one.
        generator: Source of all randomness.

    Returns:
        A batch of this scene alone.
    """
    points = augment(scene.points, config.augmentation, LATTICE * config.voxel_size, generator)
    voxels = voxelize(points, config.voxel_size)
    coordinates, voxel_of_row = voxels.coordinates, voxels.voxel_of_point[scene.rows]
    if config.crop is not None and len(coordinates) > config.crop:
        center = coordinates[voxel_of_row[torch.randint(len(voxel_of_row), (), generator=generator)]]
        distance = (coordinates - center).square().sum(dim=1)
        kept = torch.argsort(distance, stable=True)[: config.crop].sort().values
        voxel_of_row = _renumber(voxel_of_row, kept, len(coordinates))
        coordinates = coordinates[kept]
    rows = torch.argsort(voxel_of_row, stable=True)[(voxel_of_row < 0).sum() :]
    supervised, counts = torch.unique_consecutive(voxel_of_row[rows], return_counts=True)
    if config.points_per_scene is not None and len(supervised) > config.points_per_scene:
        kept = _draw(scene, rows[counts.cumsum(0) - counts], config.points_per_scene, generator)
        rows = rows[torch.isin(voxel_of_row[rows], supervised[kept])]
        supervised, counts = supervised[kept], counts[kept]
    offsets = counts.cumsum(0) - counts
    targets = tuple(pool(target, rows, offsets) for target in scene.targets)
    return Batch(functional.pad(coordinates, (1, 0)), supervised, (targets,))


def _draw(
    scene: TrainingScene, rows: Int64[Tensor, "N"], budget: int, generator: torch.Generator
) -> Int64[Tensor, "K"]:
    """Choose which voxels the loss looks at, ascending; `rows` names a sample of each."""
    if scene.chances is None:
        return torch.randperm(len(rows), generator=generator)[:budget].sort().values
    return torch.multinomial(scene.chances[rows], budget, generator=generator).sort().values


def join(batches: Sequence[Batch]) -> Batch:
    """Put batches of one scene each into one; the first column of the coordinates tells them apart."""
    coordinates = torch.cat([functional.pad(b.coordinates[:, 1:], (1, 0), value=i) for i, b in enumerate(batches)])
    first = accumulate((len(batch.coordinates) for batch in batches), initial=0)
    supervised = torch.cat([batch.supervised + start for batch, start in zip(batches, first, strict=False)])
    return Batch(coordinates, supervised, tuple(scene for batch in batches for scene in batch.targets))


def _renumber(rows: Int64[Tensor, "R"], kept: Int64[Tensor, "K"], count: int) -> Int64[Tensor, "R"]:
    """Translate rows of `count` into rows of those that are kept; -1 for the others."""
    new_row = torch.full((count,), -1)
    new_row[kept] = torch.arange(len(kept))
    return new_row[rows]


@dataclass(frozen=True)
class Run:
    """A finished run, read back."""

    student: Student
    """What was trained."""
    voxel_size: float
    """Edge of the voxels that it was trained with, metres."""
    teachers: dict[str, TeacherCard]
    """Card of each teacher that it learned from; they tell which heads answer words."""
    label_set: str | None
    """Name of the label set that it learned, if it was supervised."""


def load_run(path: Path) -> Run:
    """Read a finished run.

    Args:
        path: Folder of the run.

    Raises:
        FileNotFoundError: There is no finished run.
        ValueError: A file of it is damaged.
    """
    if not (path / "run.json").is_file():
        raise FileNotFoundError(
            f"{path} is no finished run (no {path / 'run.json'}). Start it, or go on with it: cuao3d distill STORE "
            f"--out {path}"
        )
    try:
        summary = json.loads((path / "run.json").read_text(encoding="utf-8"))
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))["config"]
        cards = {name: TeacherCard(**card) for name, card in summary["teachers"].items()}
        voxel_size, digest = float(config["voxel_size"]), summary["student_sha256"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete it and train again.") from None
    file = path / "student.safetensors"
    if not file.is_file() or sha256_of(file) != digest:
        raise ValueError(f"{file} is not the student of this run. Delete {path} and train again.")
    return Run(Student.load(file), voxel_size, cards, summary.get("label_set"))


@contextmanager
def training_bars(titles: Sequence[str]) -> Iterator[list[OnStep]]:
    """Draw trainings as progress bars with the time left, losses and noise levels.

    Args:
        titles: What is being trained; each has a bar of its own.
    """
    title, line = TextColumn("{task.fields[title]}"), TextColumn("{task.description}")
    columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), line)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks = [progress.add_task("", total=None, title=title) for title in titles]
        yield [partial(_move, progress, task) for task in tasks]


def _move(progress: Progress, task: TaskID, done: int, total: int, line: str) -> None:
    progress.update(task, completed=done, total=total, description=line)


def _line(row: dict[str, Any]) -> str:
    """Say a step's losses and noise levels in one short line."""
    sigmas = row.get("sigmas", {})
    parts = [
        f"{name} {loss:.3f}" + (f" (σ {sigmas[name]:.2f})" if name in sigmas else "")
        for name, loss in row["losses"].items()
    ]
    return "  ".join([*parts, f"words {row['words']:.3f}"] if "words" in row else parts)


def _checkpoint(out: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    """Keep all that later steps depend on; their randomness follows from the seed and the step."""
    tensors = {f"learner.{name}": tensor for name, tensor in learner.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items() if tensor is not None}
    write_tensors(out / "checkpoint.safetensors", tensors, {"step": str(step), "seconds": str(seconds)})


def _restore(out: Path, learner: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Take up a checkpoint and cut the metrics back to it; return the next step and the seconds spent so far."""
    file, metrics = out / "checkpoint.safetensors", out / "metrics.jsonl"
    if not file.is_file():
        metrics.unlink(missing_ok=True)
        return 0, 0.0
    with safe_open(file, framework="pt") as opened:
        metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    learner.load_state_dict(_part(tensors, "learner."))
    states = optimizer.state_dict()
    for name, tensor in _part(tensors, "optimizer.").items():
        index, key = name.split(".")
        states["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(states)
    step = int(metadata["step"])
    kept = metrics.read_text(encoding="utf-8").splitlines(keepends=True)[:step]
    write_text(metrics, "".join(kept))
    return step, float(metadata["seconds"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _generator(*key: int) -> torch.Generator:
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed)
