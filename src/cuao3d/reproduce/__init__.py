"""Reproduction: every table and figure of the talk from one command, cell by cell, with how sure each number is.

Trainings and scores are cells; each is kept by the hash of what it depends on, so that an interrupted reproduction goes
on, further seeds add to the same tables, and a change computes anew what it touches.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cuao3d.calibrate import fit_trust
from cuao3d.progress import Stages
from cuao3d.readers import Dataset
from cuao3d.reproduce.arms import ARMS, BASE, OURS, PAPERS_WAY, VIT
from cuao3d.reproduce.cells import Cell, Cells
from cuao3d.reproduce.controls import add_controls
from cuao3d.reproduce.measures import Place, geometry, probing, scoring, training, upper_bound, voting
from cuao3d.reproduce.worlds import (
    OTHER,
    WORLDS,
    Protocol,
    Size,
    World,
    config_of,
    make_store,
    supervised_config,
)
from cuao3d.store import Store

TABLES = ("zero-shot", "vocabularies", "cross-dataset", "ablation", "linear-probe", "geometry", "trust")
"""Tables that can be asked for; claims and costs come with any."""

MODELS = (BASE, OURS, PAPERS_WAY)
"""Students of the large tables."""

SUPERVISED, CONTROLLED = "supervised", "controlled"
RULES = ("unit-average", "surer", "average")
PASSES = 5
"""Passes of the official evaluation."""


@dataclass
class Reproduction:
    """What is reproduced: the cells of the tables that are asked for, stage by stage."""

    world: World
    out: Path
    num_seeds: int
    asked: tuple[str, ...]
    """Some of `TABLES`."""
    size: Size
    protocol: Protocol
    num_workers: int
    data: Mapping[str, Path] = field(default_factory=dict)
    """Where datasets lie, or stores of them, by the names of their worlds."""
    stages: Stages = field(default_factory=Stages)
    stores: dict[str, Store] = field(default_factory=dict)
    """Stores of the worlds, once they are lifted."""
    datasets: dict[str, Dataset | None] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Why nothing is scored in a label set, by its name."""

    @cached_property
    def cells(self) -> Cells:
        """What was computed."""
        return Cells(self.out / "cells")

    @cached_property
    def other(self) -> World | None:
        """The world that students are taken to; None where it is not asked for, or the user has no data of it."""
        other = WORLDS[OTHER[self.world.name]]
        return other if "cross-dataset" in self.asked and (other.is_made or other.name in self.data) else None

    @property
    def seeds(self) -> range:
        """Seeds of the trainings."""
        return range(self.num_seeds)

    @property
    def ladder(self) -> tuple[str, ...]:
        """Students of the ablation: those whose teachers the world has."""
        has_vit = VIT in self.world.stand_in
        return tuple(name for name, arm in ARMS.items() if has_vit or VIT not in arm.teachers)

    def run(self) -> None:
        """Compute all cells; `cells` then holds them."""
        self._lift()
        self._fill("training", self._trainings())
        self._fill("scoring", self._scores())

    def _fill(self, title: str, cells: Iterator[Cell]) -> None:
        asked = list(cells)
        with self.stages(title) as said:
            before = len(self.cells.failures)
            self.cells.fill(asked, title, self.num_workers)
            failed = len(self.cells.failures) - before
            said.append(f"{len(asked)} cells" + (f", {failed} failed" if failed else ""))

    def _lift(self) -> None:
        """Lift the worlds, and for the ablation add the teachers that are controls."""
        for world in (self.world, *([self.other] if self.other else [])):
            folder = self.out / "stores" / (f"{world.name}-{self.size.key}" if world.is_made else world.name)
            with self.stages(f"lifting {world.name}") as said:
                store, self.datasets[world.name] = make_store(
                    world, folder, self.size, self.data.get(world.name), self.protocol, self.num_workers
                )
                said.append(f"{store.count_of_scenes()}, teachers {', '.join(store.teachers) or 'none'}")
            if world.is_made:  # of datasets there is no split that no table shows
                fit_trust(store, labels=world.labels[0], split="val", where="validation scenes")
            self.stores[world.name], self.places[world.name] = store, Place.of(store, world.split)
            found, left_out = world.named_by(store).scored_in(store)
            if {"vocabularies", "cross-dataset"} & set(self.asked):  # other tables have the usual label set alone
                self.left_out |= left_out
            if world is self.world:
                self.world = found
            else:
                self.other = found
        if "ablation" in self.asked:
            lifted = self.stores[self.world.name]
            key = self.places[self.world.name].sha256[:8]
            folder = self.out / "stores" / f"{self.world.name}-{CONTROLLED}-{key}"
            if not folder.is_dir():
                add_controls(lifted, folder)
            self.stores[CONTROLLED] = Store.open(folder)
            self.places[CONTROLLED] = Place.of(self.stores[CONTROLLED], self.world.split)

    def _trainings(self) -> Iterator[Cell]:
        """Yield the trainings of the tables."""
        if set(self.asked) - {"ablation"}:
            yield from self._students(self.world, self.world.name, MODELS, self.size.num_steps)
        if {"zero-shot", "linear-probe"} & set(self.asked):
            for seed in self.seeds:
                config = supervised_config(self.world, self.size.num_steps, seed)
                name = f"{self.world.name}/{SUPERVISED}-{seed}"
                yield training(name, self.places[self.world.name], config, self.out / "runs")
        if self.other is not None:
            yield from self._students(self.other, self.other.name, (BASE, OURS), self.size.num_steps)
        if "ablation" in self.asked:
            yield from self._students(self.world, CONTROLLED, self.ladder, self.size.num_ablation)

    def _students(self, world: World, where: str, arms: Sequence[str], num_steps: int | None) -> Iterator[Cell]:
        """Yield the trainings of students on a store."""
        known = self.stores[where].teachers
        for seed in self.seeds:
            for arm in arms:
                names = ARMS[arm].names(world.stand_in)
                if all(name in known for name in names):
                    cards = {name: known[name] for name in names}
                    config = config_of(world, arm, cards, self.protocol, num_steps, seed)
                    fit = world.labels[0] if world.is_made and where != CONTROLLED else None
                    yield training(f"{where}/{arm}-{seed}", self.places[where], config, self.out / "runs", fit=fit)

    def _scores(self) -> Iterator[Cell]:
        """Yield the scores of the tables; those of a student that failed are left out, as its training says why."""
        world, place = self.world, self.places[self.world.name]
        main = world.labels[0]
        labels = world.labels if "vocabularies" in self.asked else (main,)
        if {"zero-shot", "vocabularies", "trust", "cross-dataset", "linear-probe"} & set(self.asked):
            for one in labels:
                yield scoring(f"{world.name}/lifted/{one}", place, None, labels=one, split=world.split)
                for arm, seed, run in self.trained(world.name, MODELS):
                    name = f"{world.name}/{arm}-{seed}/{one}"
                    yield scoring(name, place, run, labels=one, split=world.split, ensemble=RULES)
        if "zero-shot" in self.asked:
            dataset = self.datasets[world.name]
            if dataset is not None:  # of a store that was given, the photographs are not at hand
                name = f"{world.name}/voting/{main}"
                yield voting(name, place, dataset, labels=main, split=world.split)
            for arm, seed, run in self.trained(world.name, MODELS):
                name = f"{world.name}/{arm}-{seed}/{main}-{PASSES}-passes"
                train_mode = self.protocol.train_mode
                yield scoring(
                    name, place, run, labels=main, split=world.split, num_passes=PASSES, train_mode=train_mode
                )
        if {"zero-shot", "linear-probe"} & set(self.asked):
            for arm, seed, run in self.trained(world.name, (SUPERVISED,)):
                yield upper_bound(f"{world.name}/{arm}-{seed}/{main}", place, run, labels=main, split=world.split)
        if self.other is not None:
            yield from self._transfers(world, self.other, MODELS)
            yield from self._transfers(self.other, world, (BASE, OURS))
        if "ablation" in self.asked:
            for arm, seed, run in self.trained(CONTROLLED, self.ladder):
                name = f"{CONTROLLED}/{arm}-{seed}/{main}"
                yield scoring(name, self.places[CONTROLLED], run, labels=main, split=world.split)
        yield from self._probes(main)

    def _transfers(self, trained: World, scored: World, arms: Sequence[str]) -> Iterator[Cell]:
        """Yield the scores of students of one world in another."""
        for one in scored.labels:
            for arm, seed, run in self.trained(trained.name, arms):
                name = f"{trained.name}/{arm}-{seed}/in-{scored.name}-{one}"
                yield scoring(name, self.places[scored.name], run, labels=one, split=scored.split, allow_overlap=True)

    def _probes(self, labels: str) -> Iterator[Cell]:
        """Yield linear probes, of labels and of geometry, of lifted features and of students."""
        world, place = self.world, self.places[self.world.name]
        for table, probe in (("linear-probe", probing), ("geometry", geometry)):
            if table in self.asked:
                for seed in self.seeds:
                    name = f"{world.name}/lifted-{seed}/{table}"
                    yield probe(name, place, None, labels=labels, split=world.split, seed=seed)
                for arm, seed, run in self.trained(world.name, (BASE, OURS)):
                    name = f"{world.name}/{arm}-{seed}/{table}"
                    yield probe(name, place, run, labels=labels, split=world.split, seed=seed)

    def trained(self, where: str, arms: Sequence[str]) -> Iterator[tuple[str, int, Mapping[str, str]]]:
        """Yield the students that were trained on a store: arm, seed, and the value of their cell."""
        for arm in arms:
            for seed in self.seeds:
                value = self.cells.value(f"{where}/{arm}-{seed}")
                if value is not None and "collapsed" not in value:
                    yield arm, seed, value
