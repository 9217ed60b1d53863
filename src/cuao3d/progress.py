"""Progress reports: bars of trainings, timed stages, peak memory, and a description of the machine."""

import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TaskProgressColumn, TimeRemainingColumn

from cuao3d.console import Words, note, progress_bar
from cuao3d.products import processor

OnCount = Callable[[int, int], None]
"""Called with the number of items that are done and their total."""

OnStep = Callable[[int, int, str], None]
"""Called after each step with the number of steps done, their total and a line of losses, noise levels and memory."""


@dataclass
class Stages:
    """Times the stages of a pipeline and prints a line when each ends."""

    num_workers: int = 0
    """Worker processes whose memory counts as well."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Name, seconds and peak memory so far (MB) of each stage; every worker counts as much as the largest one."""
    _peak: float = 0.0
    _of_worker: float = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[list[str]]:
        """Time a stage; the lines added to the yielded list are printed at its end."""
        summary: list[str] = []
        start = time.perf_counter()
        yield summary
        seconds = time.perf_counter() - start
        peak, of_worker = peak_memory(), peak_memory(resource.RUSAGE_CHILDREN)
        if of_worker > self._of_worker:  # workers ran in parallel; the system reports only the largest of them
            peak += self.num_workers * of_worker
        self._peak, self._of_worker = max(self._peak, peak), of_worker
        self.rows.append({"name": name, "seconds": round(seconds, 2), "peak_rss_mb": round(self._peak)})
        note(f"{'; '.join(summary)} ({seconds:.1f} s)", head=f"{name}:", style="bold")


def machine() -> str:
    """Describe the machine: processor, threads in use, torch version."""
    return f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


@contextmanager
def training_bars(titles: Sequence[str]) -> Iterator[list[OnStep]]:
    """Show progress bars of trainings, with the time left, losses, noise levels and memory.

    Args:
        titles: Name of each training; each has its own bar.

    Yields:
        The `on_step` callback of each training.
    """
    columns = (Words("title"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), Words("description"))
    with progress_bar(*columns) as progress:
        tasks = [progress.add_task("", total=None, title=title) for title in titles]
        yield [partial(_move, progress, task) for task in tasks]


def share_bar() -> Progress:
    """Return a progress bar that shows the share of the work that is done instead of a count."""
    return progress_bar(Words("description"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """Show a moving bar while something takes its time that has no steps.

    Args:
        title: What is being done.
    """
    with progress_bar() as bar:
        bar.add_task(title, total=None)
        yield


@contextmanager
def telling(progress: OnCount | None, title: str) -> Iterator[OnCount]:
    """Yield what is told of progress; a progress bar unless given.

    Args:
        progress: What is told, if it is given.
        title: What is being done, for the bar.
    """
    if progress is not None:
        yield progress
        return
    with progress_bar() as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def peak_memory(whose: int = resource.RUSAGE_SELF) -> float:
    """Return the peak memory of a process so far, megabytes.

    Args:
        whose: This process, or `resource.RUSAGE_CHILDREN`: the largest of its child processes that have ended.
    """
    return resource.getrusage(whose).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)


def forget_peak() -> None:
    """Let the peak memory of this process begin anew with what it holds, where the system can: on Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _move(progress: Progress, task: TaskID, done: int, total: int, line: str) -> None:
    progress.update(task, completed=done, total=total, description=line)
