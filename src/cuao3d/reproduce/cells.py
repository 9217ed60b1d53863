"""Cells of the tables: each is computed once, and kept by the hash of what it depends on.

A cell that fails costs itself alone: its reason is kept for the report, and the next run tries it again.
"""

import hashlib
import json
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cuao3d import __version__
from cuao3d.errors import DiskFullError, InputError, UserError
from cuao3d.files import read_json, write_json
from cuao3d.progress import OnStep, peak_memory, share_bar
from cuao3d.workers import side_by_side


@dataclass(frozen=True)
class Cell:
    """Something to compute for a table: a training, a score."""

    name: str
    """Its path among the cells, such as "rooms/zero-shot/ours-0"."""
    make: Callable[[OnStep], Any]
    """Computes it and returns JSON; it can be pickled. It is told of its progress."""
    needs: Mapping[str, Any] = field(default_factory=dict)
    """What it depends on, as JSON: settings, hashes of stores and of students."""
    weight: float = 1.0
    """About how long it takes, seconds; only the time left depends on it."""

    @property
    def key(self) -> str:
        """Hash of what it depends on, and of the version of the program."""
        needs = json.dumps({"code_version": __version__, **self.needs}, sort_keys=True)
        return hashlib.sha256(needs.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Result:
    """What became of a cell."""

    value: Any
    """What it computed; None where it failed."""
    failed: str | None
    """Why it failed."""
    seconds: float
    """How long it took, in one process."""
    peak_rss_mb: int
    """Largest memory of the process that computed it, so far."""


class Cells:
    """The folder of the cells of a reproduction."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, Result] = {}
        """Result of each cell that was asked for."""

    def fill(self, cells: Iterable[Cell], title: str, num_workers: int) -> None:
        """Compute those cells that are not kept, under one progress bar; after it `results` holds all of them.

        Args:
            cells: The cells; each name only once.
            title: What is done, for the bar.
            num_workers: Processes that share them.
        """
        missing = []
        for cell in cells:
            if kept := self._read(cell):
                self.results[cell.name] = kept
            else:
                missing.append(cell)
        missing.sort(key=lambda cell: -cell.weight)  # a long one that begins last would leave a core idle
        jobs = [partial(_compute, cell, self._file(cell)) for cell in missing]
        done = [0.0] * len(missing)
        with share_bar() as bar:
            task = bar.add_task(title, total=sum(cell.weight for cell in missing) or None)

            def say(index: int, steps: int, total: int, line: str) -> None:
                done[index] = missing[index].weight * steps / max(total, 1)
                bar.update(task, completed=sum(done), description=f"{title} {missing[index].name} {line}".rstrip())

            for cell, result in zip(missing, side_by_side(jobs, num_workers, say), strict=True):
                self.results[cell.name] = result

    def value(self, name: str) -> Any:
        """Return what a cell computed; None where it failed or was not asked for."""
        result = self.results.get(name)
        return None if result is None else result.value

    @property
    def failures(self) -> dict[str, str]:
        """Why cells failed, by their names."""
        return {name: result.failed for name, result in self.results.items() if result.failed is not None}

    def _file(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.json"

    def _read(self, cell: Cell) -> Result | None:
        """Read a cell that was computed from the same; one that failed is tried again."""
        file = self._file(cell)
        if not file.is_file():
            return None
        try:
            kept = read_json(file)
        except InputError:  # damaged: it is computed again
            return None
        if kept.get("key") != cell.key or kept.get("failed") is not None:
            return None
        return Result(kept["value"], None, kept["seconds"], kept["peak_rss_mb"])


def _compute(cell: Cell, file: Path, on_step: OnStep) -> Result:
    """Compute a cell and keep it; an error of the user's is its result."""
    start, value, failed = time.perf_counter(), None, None
    try:
        value = cell.make(on_step)
    except DiskFullError:
        raise
    except UserError as error:
        failed = str(error)
    result = Result(value, failed, round(time.perf_counter() - start, 2), round(peak_memory(resource.RUSAGE_SELF)))
    kept = {"key": cell.key, "needs": dict(cell.needs), "value": result.value, "failed": failed}
    write_json(file, {**kept, "seconds": result.seconds, "peak_rss_mb": result.peak_rss_mb})
    on_step(1, 1, "")
    return result
