"""Run the paper's ablation of teachers and weightings on the embedded rooms, and write docs/ablation.md.

for seed in 0 1; do cuao3d demo --full --seed $seed --out full-$seed; done
python scripts/ablate.py --tuning full-1/store --table full-0/store --out ablation

Every arm has the same number of steps, voxel size and batch size. Its learning rate is tuned on the rooms of one store,
in runs of half the length. The tables report the rooms of another: one table of all arms, and one of the most important
arms in runs of twice the length. Finished runs are skipped, so the queue can be interrupted and resumed.
"""

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import scipy.stats
import tyro

from cuao3d import pipeline, recipes
from cuao3d.distill import DistillConfig, distill
from cuao3d.files import write_json
from cuao3d.predictor import Predictor
from cuao3d.probe import SuperviseConfig, score, supervise
from cuao3d.progress import OnStep, machine, training_bars
from cuao3d.store import Store
from cuao3d.workers import side_by_side

LSEG, DINO, DIFFUSION = recipes.MINI_TEACHERS
TUNING_SEED = 100
PLAIN = ("cosine", "l1", "cosine")
PAPER = ("cosine", "l1", "demeaned-cosine")
AS_PAPER: dict[str, Any] = {"normalizers": (), "words": None, "balance": 0.0}
"""Switches off what `ours` adds to the paper."""
ALL = tuple(recipes.MINI_TEACHERS)
ARMS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "LSeg only": ((LSEG,), {"losses": PLAIN[:1], "weighting": "equal", **AS_PAPER}),
    "+ DINOv2": ((LSEG, DINO), {"losses": PLAIN[:2], "weighting": "equal", **AS_PAPER}),
    "+ SD": ((LSEG, DIFFUSION), {"losses": PLAIN[::2], "weighting": "equal", **AS_PAPER}),
    "all, equal": (ALL, {"losses": PLAIN, "weighting": "equal", **AS_PAPER}),
    "all + sigma": (ALL, {"losses": PLAIN, "weighting": "uncertainty", **AS_PAPER}),
    "all + sigma + demean": (ALL, {"losses": PAPER, "weighting": "uncertainty", **AS_PAPER}),
    "random control": (ALL, {"losses": PAPER, "weighting": "random", **AS_PAPER}),
    "free": (ALL, {"losses": PAPER, "weighting": "free", **AS_PAPER}),
    "ours()": (ALL, {}),
    "ours(), LSeg only": ((LSEG,), {}),
}
"""Rows of the table: teachers, and differences from `recipes.mini`."""

PAPERS, OURS, ALONE = "all + sigma + demean", "ours()", "ours(), LSeg only"
FIRST = (next(iter(ARMS)), PAPERS, OURS, ALONE)
"""Arms that run first, and that the second table lists."""

CEILINGS = (1, 2, 4)
"""Lengths of the supervised runs, in multiples of `steps`: they show how far the tables are from convergence."""

Runs = dict[tuple[str, int], "Job"]
"""Run of each (arm, seed)."""


@dataclass(frozen=True)
class Job:
    """One run and its score."""

    out: Path
    store: Path
    config: DistillConfig | SuperviseConfig

    @property
    def is_done(self) -> bool:
        """Whether it has been scored."""
        return (self.out / "score.json").is_file()

    def __call__(self, on_step: OnStep) -> None:
        """Train and score, unless done already; a collapsed weighting counts as a result."""
        if self.is_done:
            return
        store = Store.open(self.store)
        learn: Any = distill if isinstance(self.config, DistillConfig) else supervise
        try:
            learn(store, self.config, self.out, on_step=on_step)
        except ValueError as error:
            if "collapsed" not in str(error):
                raise
            write_json(self.out / "score.json", {"collapsed": str(error)})
            return
        if isinstance(self.config, SuperviseConfig):
            rows = [score(store, self.out)]
        else:
            rows = list(pipeline.evaluate(store, Predictor.open(store, run=self.out)))
        write_json(self.out / "score.json", {row.readout: row.miou for row in rows})


def main(
    tuning: Path,
    table: Path,
    out: Path,
    *,
    steps: int = 1000,
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3),
    seeds: int = 5,
    long_seeds: int = 3,
    workers: int = 2,
    page: Path = Path("docs/ablation.md"),
    write_only: bool = False,
) -> None:
    """Run the missing jobs, and write the page from the finished ones.

    Args:
        tuning: Store for tuning the learning rates.
        table: Store for the runs of the tables.
        out: Folder of the runs.
        steps: Steps of every run in the first table; runs of the second take twice as many.
        rates: Learning rates to choose from.
        seeds: Runs per arm in the first table.
        long_seeds: Runs per arm in the second table.
        workers: Parallel runs, each with its share of the cores.
        page: Page to write.
        write_only: Run nothing; write the page from the finished runs.
    """
    tries = {
        (arm, rate): Job(out / f"tune-{index}-{rate:g}", tuning, _config(arm, rate, steps // 2, TUNING_SEED))
        for rate in rates
        for index, arm in enumerate(ARMS)
    }
    ceilings = {
        times * steps: Job(out / f"labels-{times * steps}", table, recipes.mini_supervised(num_steps=times * steps))
        for times in CEILINGS
    }
    if not write_only:
        _work([*ceilings.values(), *tries.values()], workers)
    best = {arm: max(rates, key=lambda rate: _score(tries[arm, rate], "distilled")) for arm in ARMS}
    runs: Runs = {
        (arm, seed): Job(out / f"run-{index}-{seed}", table, _config(arm, best[arm], steps, seed))
        for seed in range(seeds)
        for index, arm in enumerate(ARMS)
    }
    long: Runs = {
        (arm, seed): Job(out / f"long-{index}-{seed}", table, _config(arm, best[arm], 2 * steps, seed))
        for seed in range(long_seeds)
        for index, arm in enumerate(ARMS)
        if arm in FIRST
    }
    for seed in range(seeds):  # seed by seed, the most important arms first: an interrupted queue leaves a table
        if not write_only:
            _work([runs[arm, seed] for arm in sorted(ARMS, key=lambda arm: arm not in FIRST)], workers)
        _write(page, steps, rates, best, runs, long, ceilings)
    if not write_only:
        _work(list(long.values()), workers)
        _write(page, steps, rates, best, runs, long, ceilings)


def _config(arm: str, rate: float, steps: int, seed: int) -> DistillConfig:
    teachers, changes = ARMS[arm]
    cards = {name: recipes.MINI_TEACHERS[name] for name in teachers}
    return replace(recipes.mini(teachers=cards, num_steps=steps, seed=seed), learning_rate=rate, **changes)


def _work(jobs: Sequence[Job], workers: int) -> None:
    left = [job for job in jobs if not job.is_done]
    if left:
        with training_bars([job.out.name for job in left]) as bars:
            side_by_side(left, workers, lambda job, done, total, line: bars[job](done, total, line))


def _score(job: Job, readout: str) -> float:
    return float(json.loads((job.out / "score.json").read_text()).get(readout, -math.inf))


def _seconds(job: Job) -> float:
    return float(json.loads((job.out / "run.json").read_text())["seconds"])


def _write(
    page: Path,
    steps: int,
    rates: Sequence[float],
    best: dict[str, float],
    runs: Runs,
    long: Runs,
    ceilings: dict[int, Job],
) -> None:
    """Write the page from the finished runs."""
    ceiling = ", ".join(
        f"{_score(job, 'supervised'):.1f} after {count}" for count, job in ceilings.items() if job.is_done
    )
    lines = [
        "# Ablation: teachers and weightings",
        "",
        "The paper's ablation on the embedded rooms, written by `python scripts/ablate.py` on",
        f"{time.strftime('%Y-%m-%d')}, {machine()}; one core per run. Voxels of "
        f"{100 * recipes.MINI_VOXEL:g} cm, two rooms per step, the small",
        "student; scored on all points of 25 held-out rooms. Each arm's learning rate was chosen from "
        f"{', '.join(f'{rate:g}' for rate in rates)}, in",
        f"runs of {steps // 2} steps on the rooms of another store. Intervals are 95 % (Student's t). The teachers are",
        "the package's small ones, listed under the names of the teachers that they stand for. All other settings are",
        "those of `recipes.mini`, which is `ours()` at this size. As a measure of convergence, students trained on",
        f"ground-truth labels reach {ceiling} steps.",
        "",
        *_table(f"{steps} steps", best, runs),
    ]
    if any("collapsed" in line for line in lines):
        lines += ["", "Freely learned weights collapse: a negative weight rewards a growing loss."]
    if any(job.is_done for job in long.values()):
        lines += ["", *_table(f"Twice the length: {2 * steps} steps", best, long)]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(title: str, best: dict[str, float], runs: Runs) -> list[str]:
    """Return a section: a row for each arm with a finished run, and the differences between arms."""
    baseline = next(iter(ARMS))
    done = {arm: [job for (one, _), job in runs.items() if one == arm and job.is_done] for arm in ARMS}
    slowest = max(_seconds(job) for jobs in done.values() for job in jobs if (job.out / "run.json").is_file())
    lines = [
        f"## {title}",
        "",
        f"The longest run took {slowest / 60:.1f} minutes.",
        "",
        "| arm | learning rate | distilled mIoU | per seed, from 0 | paired difference from first row | 2D3D mIoU |",
        "|---|---|---|---|---|---|",
    ]
    for arm, jobs in done.items():
        scored = [(_score(job, "distilled"), _score(job, "2d3d")) for job in jobs]
        if any(math.isinf(distilled) for distilled, _ in scored):
            at = [len((job.out / "metrics.jsonl").read_text().splitlines()) for job in jobs]
            lines.append(f"| {arm} | {best[arm]:g} | collapsed | after {', '.join(map(str, at))} steps | | |")
        elif jobs:
            distilled, both = zip(*scored, strict=True)
            lines.append(
                f"| {arm} | {best[arm]:g} | **{_interval(distilled)}** "
                f"| {', '.join(f'{score:.1f}' for score in distilled)} "
                f"| {'' if arm == baseline else _apart(runs, arm, baseline)} | {_interval(both)} |"
            )
    added = {
        "Gain from further teachers, with the paper's objective": (PAPERS, baseline),
        "Gain from further teachers, with ours": (OURS, ALONE),
        "Gain from our objective, with LSeg alone": (ALONE, baseline),
    }
    return [*lines, "", *(f"- {what}: {_apart(runs, *arms)}" for what, arms in added.items())]


def _apart(runs: Runs, arm: str, other: str) -> str:
    """Format the difference between two arms, over the seeds for which both are done."""
    pairs = [(job, runs[other, seed]) for (one, seed), job in runs.items() if one == arm]
    done = [(job, rival) for job, rival in pairs if job.is_done and rival.is_done]
    return _interval([_score(job, "distilled") - _score(rival, "distilled") for job, rival in done], sign=True)


def _interval(values: Sequence[float], sign: bool = False) -> str:
    """Format a mean and the half width of its 95 % interval."""
    if not values:
        return "not yet known"
    mean = f"{statistics.mean(values):+.1f}" if sign else f"{statistics.mean(values):.1f}"
    if len(values) < 2:
        return mean
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean} ± {half:.1f}"


if __name__ == "__main__":
    tyro.cli(main)
