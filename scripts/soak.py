"""Soak test: many small rooms in one process, with injected faults; does anything grow?

Each room is written as a capture, in one layout after the other, lifted with the three mini teachers, distilled for a
few steps, evaluated and asked. One room in two meets a fault: a damaged photograph, a full disk, an interrupt while
lifting or training, a teacher that fails, a capture that cannot be read. The same call is then made again and must
succeed. At the end: counts of runs, faults and resumes, and memory, open files, threads and child processes. The exit
code is 1 if memory grew by more than 5 % after the first 20 rooms or anything else grew at all.

    python scripts/soak.py                      200 rooms, about fifteen minutes on one core
    python scripts/soak.py --rooms 30           fewer
    python scripts/soak.py --log memory.csv     also write a line for each room
"""

import argparse
import contextlib
import errno
import gc
import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import torch

from cuao3d import recipes
from cuao3d.distill import distill
from cuao3d.errors import UserError
from cuao3d.exports import ask_store
from cuao3d.geometry import nearest
from cuao3d.memory import give_back
from cuao3d.pipeline import evaluate, fuse
from cuao3d.predictor import Predictor
from cuao3d.readers import Dataset, open_dataset
from cuao3d.scene import Scene
from cuao3d.store import Store
from cuao3d.teachers import Teacher, load_teacher
from cuao3d.worlds.rooms import make_room

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from written import WRITERS

LAYOUTS = tuple(name for name in WRITERS if name != "pointcloud")
FAULTS = (
    "damaged photograph",
    "full disk",
    "interrupted lifting",
    "interrupted training",
    "teacher fails",
    "no capture",
)
"""What every second room meets, one after the other."""

ENDINGS = (".json", ".html", ".ply")
"""Of the files that answers are written to."""

Kinds = type[BaseException] | tuple[type[BaseException], ...]

WARM_UP = 20
"""Rooms after which memory must stay."""

GROWTH = 0.05
"""Part by which memory may grow after them."""

NUM_STEPS, NUM_VIEWS = 3, 3


class StopError(Exception):
    """The injected end of a stage."""


@dataclass
class Soak:
    """Counts of what was done."""

    teachers: Sequence[Teacher]
    folder: Path
    counts: Counter[str] = field(default_factory=Counter)

    def room(self, number: int) -> None:
        """Run all stages on one room."""
        layout, fault = LAYOUTS[number % len(LAYOUTS)], FAULTS[number // 2 % len(FAULTS)] if number % 2 else ""
        scene = make_room(number, num_views=NUM_VIEWS)
        folder = self.folder / f"room-{number}"
        folder.mkdir()
        path = WRITERS[layout](scene, folder / "room")
        self.counts[f"layout {layout}"] += 1
        if fault == "damaged photograph":
            photographs = sorted([*path.rglob("*.color.*"), *path.rglob("*.png")])
            photographs[0].write_bytes(photographs[0].read_bytes()[:100])
            self.counts["faults"] += 1
        store = self._fuse(scene, path, folder / "store", fault)
        run = self._distill(store, folder / "run", fault)
        self._score_and_ask(store, run, ENDINGS[number % len(ENDINGS)])
        shutil.rmtree(folder)

    def _fuse(self, scene: Scene, path: Path, out: Path, fault: str) -> Store:
        def lift(teachers: Sequence[Teacher]) -> Store:
            return fuse(_ToLearnFrom(open_dataset(path), scene), teachers, out, cell=recipes.MINI_CELL)

        if fault == "no capture":
            self._fails(lambda: open_dataset(path / "not-there"), UserError)
        if fault == "teacher fails":
            self._fails(lambda: lift([_Failing(teacher) for teacher in self.teachers]), (StopError, UserError))
        if fault == "full disk":
            with _full_disk(after=3):
                self._fails(lambda: lift(self.teachers), (UserError, OSError))
        if fault == "interrupted lifting":
            with mock.patch("cuao3d.store.stored.write_tensors", _interrupt):
                self._fails(lambda: lift(self.teachers), KeyboardInterrupt)
        store = lift(self.teachers)
        self.counts["fuse"] += 1
        self.counts["resumes"] += fault in ("teacher fails", "full disk", "interrupted lifting")
        assert store.names() == ("room",), store.names()
        return store

    def _distill(self, store: Store, run: Path, fault: str) -> Path:
        config = recipes.mini(teachers=store.teachers, num_steps=NUM_STEPS)

        def on_step(done: int, total: int, line: str) -> None:
            if fault == "interrupted training" and done == 2:
                raise KeyboardInterrupt

        if fault == "interrupted training":
            self._fails(lambda: distill(store, config, run, on_step=on_step), KeyboardInterrupt)
            self.counts["resumes"] += 1
        distill(store, config, run)
        self.counts["distill"] += 1
        return run

    def _score_and_ask(self, store: Store, run: Path, ending: str) -> None:
        for predictor in (Predictor.open(store), Predictor.open(store, run=run)):
            evaluate(store, predictor, split=None, allow_overlap=True)
            self.counts["evaluate"] += 1
        lines = ask_store(store, predictor, ["somewhere to sit", "a door"], run.parent / f"answer{ending}")
        assert len(lines) == 2
        self.counts["query"] += 1

    def _fails(
        self, work: Callable[[], object], expected: type[BaseException] | tuple[type[BaseException], ...]
    ) -> None:
        """Run work that must fail."""
        try:
            work()
        except expected:
            self.counts["faults"] += 1
            return
        raise AssertionError("a fault went unnoticed")


class _ToLearnFrom:
    """A dataset whose scenes are all to learn from and have the labels of a room, whatever their layout has."""

    def __init__(self, dataset: Dataset, room: Scene) -> None:
        self._dataset, self._room, self.names, self.folders = dataset, room, dataset.names, dataset.folders

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Scene:
        scene = self._dataset[index]
        labels = self._room.labels[nearest(scene.points, self._room.points)]
        return replace(scene, split="train", labels=labels, label_set=self._room.label_set)


class _Failing:
    """A teacher that fails at its second image."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher, self.name, self.num_channels, self._seen = teacher, teacher.name, teacher.num_channels, 0

    def __getattr__(self, name: str) -> object:
        if name == "batch":
            raise AttributeError(name)
        return getattr(self._teacher, name)

    def __call__(self, image: torch.Tensor) -> object:
        self._seen += 1
        if self._seen == 2:
            raise StopError
        return self._teacher(image)


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _full_disk(*, after: int) -> Iterator[None]:
    """Let renames fail, after some of them, as on a full disk."""
    done, rename_file = 0, os.replace

    def rename(source: str | Path, target: str | Path) -> None:
        nonlocal done
        done += 1
        if done > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        rename_file(source, target)

    with mock.patch("os.replace", rename):
        yield


def measure() -> dict[str, int]:
    """Return memory (MB), open files, threads and child processes of this process."""
    gc.collect()
    give_back()  # what the last room left behind is no growth
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    children = sum(
        len(Path(f"/proc/self/task/{task}/children").read_text().split()) for task in os.listdir("/proc/self/task")
    )
    return {
        "memory": int(status["VmRSS"].split()[0]) // 1024,
        "own": int(status["RssAnon"].split()[0]) // 1024,
        "files": len(os.listdir("/proc/self/fd")),
        "maps": len(Path("/proc/self/maps").read_text().splitlines()),
        "threads": int(status["Threads"]),
        "python_threads": threading.active_count(),
        "processes": max(children, len(multiprocessing.active_children())),
    }


def soak(num_rooms: int, log: Path | None) -> int:
    """Run the rooms; print what was done and what grew; return the exit code."""
    started, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory(prefix="cuao3d-soak-") as folder:
        work = Soak([load_teacher(name) for name in recipes.MINI_TEACHERS], Path(folder))
        for number in range(num_rooms):
            with contextlib.redirect_stderr(io.StringIO()):
                work.room(number)
            rows.append(measure())
            line = ", ".join(f"{name} {value}" for name, value in rows[-1].items())
            print(f"room {number + 1} of {num_rooms}: {line}", flush=True)
            if log:
                log.write_text("\n".join([",".join(rows[0])] + [",".join(map(str, row.values())) for row in rows]))
    warm, last = rows[min(WARM_UP, num_rooms) - 1], rows[-1]
    grown = [name for name in ("files", "threads", "processes") if last[name] > warm[name]]
    grown += ["memory"] if last["memory"] > (1 + GROWTH) * warm["memory"] else []
    print(json.dumps({"seconds": round(time.perf_counter() - started), **work.counts}))
    print(json.dumps({"after the first rooms": warm, "at the end": last, "grown": grown}))
    return int(bool(grown))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=200, help="number of rooms")
    parser.add_argument("--log", type=Path, help="CSV of what was measured after each room")
    arguments = parser.parse_args()
    sys.exit(soak(arguments.rooms, arguments.log))
