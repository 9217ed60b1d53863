"""What is computed in the cells: trainings and scores, each by a function that a worker process calls."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cuao3d import pipeline
from cuao3d.calibrate import fit_trust
from cuao3d.distill import DistillConfig, distill
from cuao3d.errors import CollapsedError
from cuao3d.files import sha256_of
from cuao3d.predictor import Predictor
from cuao3d.probe import probe, probe_geometry
from cuao3d.progress import OnStep
from cuao3d.readers import Dataset
from cuao3d.reproduce.cells import Cell
from cuao3d.run import STUDENT
from cuao3d.scene import Split
from cuao3d.store import Store
from cuao3d.store.plan import manifest_sha256
from cuao3d.supervise import SuperviseConfig, score, supervise

SECONDS_PER_STEP, SECONDS_PER_SCENE, SECONDS_PER_PROBE = 0.4, 1.5, 60.0
"""About what a step, the scoring of a scene, and the probes of a student take; the time left is estimated by them."""


@dataclass(frozen=True)
class Place:
    """A store, and what decides its content."""

    path: Path
    sha256: str
    num_scenes: int
    """Scenes of the split that is scored."""

    @classmethod
    def of(cls, store: Store, split: Split) -> "Place":
        """Return the place of a store; `split` is the one that is scored."""
        known = [f"{name} {manifest_sha256(store, name)}" for name in sorted(store.names())]
        return cls(store.path, hashlib.sha256("\n".join(known).encode()).hexdigest(), len(store.names(split)))


def training(
    name: str, place: Place, config: DistillConfig | SuperviseConfig, runs: Path, *, fit: str | None = None
) -> Cell:
    """Return the cell of a training; its value says where the run lies, and the hash of its student, or why its weights
    collapsed.

    Args:
        name: Its name; the run's folder has it too.
        place: The store.
        config: How to train.
        runs: Folder of the runs.
        fit: Label set in which the student's confidence is fitted on the validation scenes; None: it is not.
    """
    needs = {"store": place.sha256, "config": asdict(config), "fit": fit}
    cell = Cell(name, _nothing, needs, SECONDS_PER_STEP * (config.num_steps or 10_000))
    out = runs / f"{name}-{cell.key[:8]}"  # another configuration gets another folder
    return Cell(name, partial(_train, place.path, config, out, fit), needs, cell.weight)


def _nothing(on_step: OnStep) -> None: ...


def _train(
    store: Path, config: DistillConfig | SuperviseConfig, out: Path, fit: str | None, on_step: OnStep
) -> dict[str, Any]:
    if isinstance(config, DistillConfig):
        try:
            distill(Store.open(store), config, out, on_step=on_step)
        except CollapsedError as error:  # it is what a weighting does, and so a result
            return {"collapsed": str(error)}
        if fit is not None:
            fit_trust(Store.open(store), out, labels=fit, split="val", where="validation scenes", progress=_silent)
    else:
        supervise(Store.open(store), config, out, on_step=on_step)
    return {"run": str(out), "student_sha256": sha256_of(out / STUDENT)}


def scoring(
    name: str, place: Place, run: Mapping[str, Any] | None, *, labels: str, split: Split, **options: Any
) -> Cell:
    """Return a cell of scores; its value is a row of `evaluate` for each read-out, as JSON.

    Args:
        name: Its name.
        place: The store.
        run: What `training` computed; None: the lifted features.
        labels: Label set.
        split: Split to score.
        options: Further options of `pipeline.evaluate`.
    """
    needs = {
        "store": place.sha256,
        "student": run and run["student_sha256"],
        "labels": labels,
        "split": split,
        "options": options,
    }
    path = None if run is None else Path(run["run"])
    make = partial(_score, place.path, path, labels, split, options)
    passes = options.get("num_passes", 1)
    return Cell(name, make, needs, SECONDS_PER_SCENE * place.num_scenes * passes)


def _score(
    store: Path, run: Path | None, labels: str, split: Split, options: dict[str, Any], on_step: OnStep
) -> list[dict[str, Any]]:
    opened = Store.open(store)
    predictor = Predictor.open(opened, run=run)
    say = partial(_count, on_step)
    rows = pipeline.evaluate(opened, predictor, labels=labels, split=split, progress=say, **options)
    return [asdict(row) for row in rows]


def _silent(done: int, total: int) -> None: ...


def _count(on_step: OnStep, done: int, total: int) -> None:
    on_step(done, total, "")


def voting(name: str, place: Place, dataset: Dataset | Path, *, labels: str, split: Split) -> Cell:
    """Return the cell that scores the majority over single views; `dataset` is what the store was lifted from."""
    needs = {"store": place.sha256, "labels": labels, "split": split, "what": "voting"}
    make = partial(_vote, place.path, dataset, labels, split)
    return Cell(name, make, needs, 4 * SECONDS_PER_SCENE * place.num_scenes)


def _vote(store: Path, dataset: Dataset | Path, labels: str, split: Split, on_step: OnStep) -> list[dict[str, Any]]:
    opened = Store.open(store)
    say = partial(_count, on_step)
    row = pipeline.vote(opened, Predictor.open(opened), dataset, labels=labels, split=split, progress=say)
    return [asdict(row)]


def upper_bound(name: str, place: Place, run: Mapping[str, Any], *, labels: str, split: Split) -> Cell:
    """Return the cell that scores a supervised student; the arguments are those of `scoring`."""
    needs = {"store": place.sha256, "student": run["student_sha256"], "labels": labels, "split": split}
    make = partial(_score_supervised, place.path, Path(run["run"]), labels, split)
    return Cell(name, make, needs, SECONDS_PER_SCENE * place.num_scenes)


def _score_supervised(store: Path, run: Path, labels: str, split: Split, on_step: OnStep) -> list[dict[str, Any]]:
    return [asdict(score(Store.open(store), run, labels=labels, split=split))]


def probing(name: str, place: Place, run: Mapping[str, Any] | None, *, labels: str, split: Split, seed: int) -> Cell:
    """Return the cell of linear probes; its value is a row for each.

    The arguments are those of `scoring`; `seed` decides which samples the probes learn from.
    """
    return _probe(name, place, run, {"labels": labels, "split": split, "seed": seed}, "probe")


def geometry(name: str, place: Place, run: Mapping[str, Any] | None, *, labels: str, split: Split, seed: int) -> Cell:
    """Return the cell of probes of normals and depth, likewise; they need no labels."""
    return _probe(name, place, run, {"split": split, "seed": seed}, "probe_geometry")


def _probe(name: str, place: Place, run: Mapping[str, Any] | None, options: dict[str, Any], what: str) -> Cell:
    needs = {"store": place.sha256, "student": run and run["student_sha256"], "options": options, "probe": what}
    path = None if run is None else Path(run["run"])
    return Cell(name, partial(_run_probe, place.path, path, options, what), needs, SECONDS_PER_PROBE)


def _run_probe(
    store: Path, run: Path | None, options: dict[str, Any], what: str, on_step: OnStep
) -> list[dict[str, Any]]:
    probe_of = probe if what == "probe" else probe_geometry
    rows = probe_of(Store.open(store), run, teachers=None if run is None else (), **options)  # lifted ones apart
    return [asdict(row) for row in rows]
