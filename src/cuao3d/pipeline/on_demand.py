"""Training without a store: the features of a scene are lifted before its turn, and dropped where room is short."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Any

from torch import Tensor

from cuao3d.batches import TrainingScene
from cuao3d.console import note, progress_bar
from cuao3d.durable import locked, remove
from cuao3d.errors import InputError
from cuao3d.files import write_whole
from cuao3d.pipeline.fusing import _Lift, _plan_scene, _why_broken
from cuao3d.ranks import num_ranks
from cuao3d.readers import Dataset
from cuao3d.store import CELL, Setting, Store, StoredScene
from cuao3d.store.header import is_beginning
from cuao3d.store.plan import Change, begin, check_names, end, manifest_sha256
from cuao3d.store.revise import manifest_of
from cuao3d.store.sources import source_of
from cuao3d.store.stored import POINTS_FILE, features_file
from cuao3d.teachers import Teacher, cards_of

CACHE_GB = 10.0
"""Gigabytes of features that are kept unless told otherwise."""

MARK = "on-demand"
"""Empty file in each folder that was made here: no other is ever deleted."""


class OnDemandStore(Store):
    """A store whose clouds are all there, and whose features are lifted when their turn comes; see `lifted_on_demand`.

    While the scenes of one step are trained on, a thread lifts those of the next ones, as far as there is room. What is
    needed last is dropped first, for the order of all steps is known. The features are those of a store: the same code
    lifts them.
    """

    def __init__(self, store: Store, dataset: Dataset, lift: _Lift, limit: int) -> None:
        super().__init__(store.path, store.cell, store.teachers, store.settings)
        self._index = {name: index for index, name in enumerate(dataset.names)}
        self._dataset, self._lift, self._limit = dataset, lift, limit
        self._turns: list[str] = []
        self._turn = 0
        self._lifting, self._changed = Lock(), Condition()
        self._thread: Thread | None = None
        self._failed: BaseException | None = None
        self._is_asked = self._is_closed = False
        self._bytes: dict[str, int] = {}
        """Bytes of the features of each scene that was lifted before."""
        self._there: set[str] = set()
        self.num_lifted = 0
        """Scenes that were lifted so far, each time counted."""

    def begin(self) -> None:
        """Find out which scenes were lifted before, from what the data are now."""
        changes = {
            name: _plan_scene(self._dataset, index, self, self._lift.upright) for name, index in self._index.items()
        }
        begin(self, changes)
        manifests = {name: manifest_of(self, name) for name in self._index}
        self._bytes = {name: self._size(manifest) for name, manifest in manifests.items() if manifest}
        self._there = {name for name in self._bytes if all(path.is_file() for path in self._features(name))}

    def take(self, scene: StoredScene, teachers: tuple[str, ...]) -> TrainingScene:
        """Return what training needs of a scene; its targets are lifted whenever they are asked for and not there."""
        taken = TrainingScene.of(scene, scene.seen_samples, ())
        known = {entry.name: getattr(taken, entry.name) for entry in fields(TrainingScene)}
        return _LazyScene(**known, read=partial(self._read, scene.name, teachers))

    def follow(self, turns: Sequence[str]) -> None:
        """Lift the scenes of the next turns ahead, in a thread."""
        self._turns, self._turn = list(turns), 0
        self._thread = Thread(target=self._run_ahead, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def lift_all(self) -> dict[str, str]:
        """Lift each scene once, as far as that was not done; return the reason of each that is broken."""
        todo, broken = [name for name in self._index if name not in self._bytes], {}
        with progress_bar() as bar:
            task = bar.add_task("lifting once", total=len(self._index), completed=len(self._index) - len(todo))
            for name in todo:
                if reason := self._bring(name):
                    broken[name] = reason
                bar.advance(task)
        return broken

    def _needed(self, files: Mapping[str, Any]) -> Mapping[str, Any]:
        return {POINTS_FILE: files[POINTS_FILE]}

    def _read(self, name: str, teachers: tuple[str, ...]) -> tuple[Tensor, ...]:
        """Return the features of a scene, mapped, so that they stay after they were dropped; lift it if it must be."""
        with self._changed:
            if self._failed is not None:
                raise self._failed
            if name in self._turns[self._turn :]:
                self._turn = self._turns.index(name, self._turn) + 1
            if name in self._there:
                self._changed.notify_all()
                return self._mapped(name, teachers)
            self._is_asked = True
        with self._lifting:
            if reason := self._bring(name):
                raise InputError(f"Scene {name!r}, which could be lifted before, cannot be lifted again: {reason}")
            with self._changed:
                self._is_asked = False
                self._changed.notify_all()
                return self._mapped(name, teachers)

    def _mapped(self, name: str, teachers: tuple[str, ...]) -> tuple[Tensor, ...]:
        scene = self[name]
        return tuple(scene.features(teacher) for teacher in teachers)

    def _run_ahead(self) -> None:
        """Lift the scenes of the next turns, as far as there is room; who asks for a scene now goes first."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or (self._next() is not None and not self._is_asked))
                if self._is_closed:
                    return
            try:
                with self._lifting:
                    name = self._next()
                    if name is not None and (reason := self._bring(name)):
                        raise InputError(f"Scene {name!r}, which could be lifted before, cannot be now: {reason}")
            except BaseException as error:
                self._failed = error  # raised where the next scene is asked for
                return

    def _next(self) -> str | None:
        """Return the first scene of the coming turns that is not there, if there is room beside those before it."""
        room = self._limit
        for name in dict.fromkeys(self._turns[self._turn :]):
            room -= self._bytes[name]
            if name not in self._there:
                return name if room >= 0 else None
        return None

    def _bring(self, name: str) -> str | None:
        """Lift a scene whose features are not there; return the reason if it is broken."""
        if name in self._there:
            return None
        self._make_room(self._bytes.get(name, max(self._bytes.values(), default=0)))
        before, change = manifest_of(self, name), Change("again", outdated=manifest_sha256(self, name))
        if reason := _why_broken(self._dataset, self._index[name], self._lift, change, lambda line: None):
            return reason
        after = manifest_of(self, name)
        assert after is not None
        if before and before["files"][POINTS_FILE] != after["files"][POINTS_FILE]:
            raise InputError(f"Scene {name!r} has changed since it was lifted first; begin the training again.")
        with self._changed:
            self.num_lifted += 1
            self._bytes[name] = self._size(after)
            self._make_room(self._bytes[name])
            self._there.add(name)
        return None

    def _make_room(self, size: int) -> None:
        """Drop features until so many bytes more have room: of scenes whose next turn is the furthest first."""
        with self._changed:
            turn = {name: turn for turn, name in reversed(list(enumerate(self._turns[self._turn :])))}
            furthest = sorted(self._there, key=lambda name: (turn.get(name, len(self._turns)), name))
            while furthest and size + sum(self._bytes[name] for name in furthest) > self._limit:
                dropped = furthest.pop()
                self._there.remove(dropped)
                for path in self._features(dropped):
                    remove(path)

    def _size(self, manifest: Mapping[str, Any]) -> int:
        return sum(manifest["files"][features_file(teacher)]["bytes"] for teacher in self.teachers)

    def _features(self, name: str) -> list[Path]:
        return [self.path / "scenes" / name / features_file(teacher) for teacher in self.teachers]


@dataclass(frozen=True)
class _LazyScene(TrainingScene):
    """A training scene whose targets are read when they are asked for."""

    read: Any = field(default=None, compare=False)
    """Returns the targets."""

    @property  # type: ignore[misc]
    def targets(self) -> tuple[Tensor, ...]:
        """For each head, the targets of the samples."""
        found: tuple[Tensor, ...] = self.read()
        return found

    @targets.setter
    def targets(self, _: tuple[Tensor, ...]) -> None:
        """Keep none: they are read again."""


@contextmanager
def lifted_on_demand(
    dataset: Dataset,
    teachers: Sequence[Teacher],
    folder: Path,
    *,
    cache_gb: float = CACHE_GB,
    cell: float = CELL,
    settings: Mapping[str, Setting] | None = None,
    batch_size: int = 1,
    upright: bool = True,
) -> Iterator[OnDemandStore]:
    """Make a store to train on that holds few features at a time; every scene is lifted once before it is there.

    Args:
        dataset: The scenes.
        teachers: The teachers.
        folder: Where clouds and features are kept meanwhile; deleted when the block ends without an error. Where it is
            there already, of a training that was interrupted, clouds are not made again.
        cache_gb: Gigabytes of features that are kept at a time; the scenes of a step are kept even if they take more.
        cell: Edge of a sample cell, metres.
        settings: As of `fuse`.
        batch_size: Views shown to a teacher at a time.
        upright: As of `fuse`.

    Yields:
        The store, for `distill`.

    Raises:
        InputError: No scene could be lifted, several processes train together, another process uses the folder, or
            it was not made here.
    """
    if num_ranks() > 1:
        raise InputError("--lift is for one process; several that train together need a store: cuao3d fuse.")
    check_names(dataset.names, partial(source_of, dataset))
    if folder.exists() and not (folder / MARK).is_file() and not (folder.is_dir() and is_beginning(folder)):
        raise InputError(
            f"{folder} is there already, and no training made it: its files are not touched. Move it away."
        )
    with locked(folder):
        asked = {**(settings or {}), "upright": upright}
        plain = Store.create(folder, cell=cell, teachers=cards_of(teachers), settings=asked)
        store = OnDemandStore(plain, dataset, _Lift(plain, batch_size, upright, teachers), int(cache_gb * 1e9))
        write_whole(folder / MARK, lambda path: path.touch())
        store.begin()
        try:
            broken = store.lift_all()
            end(plain, broken, list(broken))
            for name, reason in broken.items():
                note(f"{name}: {reason}", head="left out")
            if len(broken) == len(dataset):
                raise InputError(f"No scene could be lifted. {next(iter(broken.values()), 'The dataset is empty.')}")
            yield store
        finally:
            store.close()
        shutil.rmtree(folder)
