"""Run the paper's ablation of teachers and weightings with its controls, and write docs/ablation.md.

    python scripts/ablation_store.py rooms --out ablation/rooms
    python scripts/ablation_store.py houses --out ablation/houses
    python scripts/ablate.py ablation

Each arm has the same steps, voxels and batches in each of two worlds: rooms, where the language teacher was trained,
and houses, where it was not. Its learning rate is the best of a grid on a third split, and the grid grows until the
best is not at its edge. The curve against steps comes from one run at a constant rate: from its checkpoints branch
short runs whose rate falls to 0. Finished runs are skipped, so the queue can be interrupted and resumed; it goes world
by world and seed by seed, the most important arms first, so that an interrupted one leaves a table.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from ablation_page import World, write_page
from cuao3d import pipeline, recipes
from cuao3d.checkpoints import COOLDOWN, kept_name
from cuao3d.distill import DistillConfig, distill
from cuao3d.files import write_json
from cuao3d.predictor import Predictor
from cuao3d.probe import probe
from cuao3d.progress import OnStep, training_bars
from cuao3d.reproduce.arms import ARMS, LSEG, MINI
from cuao3d.scene import Split
from cuao3d.store import Store
from cuao3d.workers import side_by_side

TUNING_SEED = 100
FACTOR = 2.0
"""Ratio of neighbours in the grid of learning rates."""
MOST_RATES = 7


@dataclass(frozen=True)
class Job:
    """One run of an arm: at a constant rate, or a branch that cools down, and its score."""

    out: Path
    store: Path
    config: DistillConfig
    split: Split
    begins: Path | None = None
    """Checkpoint that it branches from."""

    @property
    def score(self) -> dict[str, Any] | None:
        """What was scored; None before. A weighting that collapsed has no score but a reason."""
        file = self.out / "score.json"
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def __call__(self, on_step: OnStep) -> None:
        """Train and score, unless done already; a collapsed weighting counts as a result."""
        if self.score is not None:
            return
        store = Store.open(self.store)
        branches = self.begins is not None and self.begins.is_file() and not self.out.exists()
        try:
            distill(store, self.config, self.out, resume=self.begins if branches else "auto", on_step=on_step)
        except ValueError as error:
            if "collapsed" not in str(error):
                raise
            write_json(self.out / "score.json", {"collapsed": str(error)})
            return
        rows = pipeline.evaluate(store, Predictor.open(store, run=self.out), labels="made100", split=self.split)
        seconds = json.loads((self.out / "run.json").read_text(encoding="utf-8"))["seconds"]
        write_json(self.out / "score.json", {"seconds": seconds} | {row.readout: figures(row) for row in rows})


@dataclass
class Arm:
    """The runs of an arm in one world."""

    name: str
    store: Path
    out: Path
    lengths: tuple[int, ...]
    """Steps at which the curve is read, in ascending order."""
    rates: list[float]
    """Grid of learning rates, ascending."""
    tries: dict[float, Job] = field(default_factory=dict)

    def tuning(self) -> Iterator[Job]:
        """Yield the runs of the grid that are missing; the grid grows where its best is at an edge."""
        while True:
            for rate in self.rates:
                self.tries.setdefault(rate, self._job(f"tune-{rate:g}", rate, self.lengths[0], TUNING_SEED, "val"))
            missing = [job for job in self.tries.values() if job.score is None]
            if missing:
                yield from missing
                return
            best = self.rate
            if len(self.rates) >= MOST_RATES or best not in (self.rates[0], self.rates[-1]):
                return
            self.rates = sorted({*self.rates, best * FACTOR if best == self.rates[-1] else best / FACTOR})

    @property
    def rate(self) -> float:
        """The best learning rate of those tried."""
        return max(self.tries, key=lambda rate: distilled(self.tries[rate].score))

    def runs(self, seed: int) -> list[Job]:
        """Return the run of the longest length and, after it, the branches of the others."""
        *short, longest = self.lengths
        trunk = self._job(f"{longest}-{seed}", self.rate, longest, seed, "test")
        return [
            trunk,
            *(
                replace(
                    self._job(f"{steps}-{seed}", self.rate, steps, seed, "test"),
                    begins=trunk.out / kept_name(round((1 - COOLDOWN) * steps)),
                )
                for steps in short
            ),
        ]

    def _job(self, name: str, rate: float, steps: int, seed: int, split: Split) -> Job:
        arm, cards = ARMS[self.name], Store.open(self.store).teachers
        teachers = {teacher: cards[teacher] for teacher in arm.names(MINI)}
        config = recipes.mini(teachers=teachers, num_steps=steps, seed=seed)
        keep = round((1 - COOLDOWN) * self.lengths[0])  # divides the beginning of every cool-down
        config = replace(config, learning_rate=rate, schedule="cooldown", keep_every=keep, **arm.changes)
        return Job(self.out / f"{list(ARMS).index(self.name):02d}-{name}", self.store, config, split)


def main(
    folder: tyro.conf.Positional[Path],
    *,
    worlds: tuple[str, ...] = ("houses", "rooms"),
    lengths: tuple[int, ...] = (500, 1000, 2000, 4000),
    rates: tuple[float, ...] = (8e-3, 1.6e-2, 3.2e-2),
    seeds: int = 3,
    arms: int = len(ARMS),
    workers: int = 2,
    page: Path = Path("docs/ablation.md"),
    write_only: bool = False,
) -> None:
    """Run the missing jobs, and write the page from the finished ones.

    Args:
        folder: Holds the stores, WORLD/store, and the runs, WORLD/runs.
        worlds: Worlds to run in.
        lengths: Steps at which the curves are read; each is to be a multiple of the first.
        rates: Learning rates to begin with.
        seeds: Runs of each arm.
        arms: Run only the first so many of `ARMS`.
        workers: Parallel runs, each with its share of the cores.
        page: Page to write.
        write_only: Run nothing; write the page from the finished runs.
    """
    of_world = {
        world: [
            Arm(arm, folder / world / "store", folder / world / "runs", lengths, sorted(rates))
            for arm in list(ARMS)[:arms]
        ]
        for world in worlds
        if (folder / world / "store").is_dir()
    }
    for own in of_world.values():
        while (jobs := [job for arm in own for job in arm.tuning()]) and not write_only:
            work(jobs, workers)
    for seed in range(seeds):
        for own in of_world.values():
            if not write_only:
                work((job for arm in own for job in arm.runs(seed)[:1]), workers)
                work((job for arm in own for job in arm.runs(seed)[1:]), workers)
            write_page(page, [_results(name, folder / name, own, seeds) for name, own in of_world.items()])


def _results(world: str, folder: Path, arms: Iterable[Arm], seeds: int) -> World:
    """Collect what is done in a world."""
    done, rates, lengths = {}, {}, ()
    for arm in arms:
        lengths = arm.lengths
        if all(job.score is None for job in arm.tries.values()):
            continue
        rates[arm.name] = (arm.rate, arm.rate not in (arm.rates[0], arm.rates[-1]))
        for seed in range(seeds):
            for job in arm.runs(seed):
                if (score := job.score) is not None:
                    done[arm.name, job.config.num_steps, seed] = score
    return World(world, lengths, rates, headroom(folder), done)


def headroom(folder: Path) -> float:
    """Return what a linear probe finds more in all teachers than in the language teacher; measured once."""
    file = folder / "headroom.json"
    if not file.is_file():
        store = Store.open(folder / "store")
        rows = probe(store, labels="made100", split="test", teachers=tuple(recipes.SMALL_TEACHERS))
        found = {row.readout: row.miou for row in rows}
        language = found[f"probe: lifted {MINI[LSEG]}"]
        write_json(file, {"all": found["probe: lifted concatenated"], "language": language})
    probes = json.loads(file.read_text(encoding="utf-8"))
    return float(probes["all"] - probes["language"])


def work(jobs: Iterable[Job], workers: int) -> None:
    """Run those of the jobs that are not done."""
    left: Sequence[Job] = [job for job in jobs if job.score is None]
    if left:
        with training_bars([job.out.name for job in left]) as bars:
            side_by_side(left, workers, lambda job, done, total, line: bars[job](done, total, line))


def figures(row: Any) -> dict[str, Any]:
    """Return the scores of a read-out that the page shows."""
    asked = {kind: {"ap": found.ap, "auroc": found.auroc} for kind, found in row.retrieval.items()}
    return {"miou": row.miou, "taught": row.by_teacher.miou_seen, "held_out": row.by_teacher.miou_unseen, **asked}


def distilled(score: dict[str, Any] | None) -> float:
    """Return the mIoU of a student; minus infinity where there is none."""
    return -math.inf if score is None or "collapsed" in score else float(score["distilled"]["miou"])


if __name__ == "__main__":
    tyro.cli(main)
