"""Progress: what a person is told while work goes on. Bars, stages with their time, peak memory, the machine."""

import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

OnStep = Callable[[int, int, str], None]
"""Called after each step with the number of steps done, their total and a line of losses, noise levels and memory."""


console = Console(stderr=True)


@dataclass
class Stages:
    """Times the stages of a pipeline and says a line when each ends."""

    num_workers: int = 0
    """Processes besides this one whose memory counts."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Name, seconds and peak memory (MB, up to then) of each stage; workers count as much as the largest of them."""
    _peak: float = 0.0
    _of_worker: float = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[list[str]]:
        """Time a stage; what is put into the list that it gives is said at its end."""
        summary: list[str] = []
        start = time.perf_counter()
        yield summary
        seconds = time.perf_counter() - start
        peak, of_worker = peak_memory(), peak_memory(resource.RUSAGE_CHILDREN)
        if of_worker > self._of_worker:  # workers ran beside this process; the system knows only the largest of them
            peak += self.num_workers * of_worker
        self._peak, self._of_worker = max(self._peak, peak), of_worker
        self.rows.append({"name": name, "seconds": round(seconds, 2), "peak_rss_mb": round(self._peak)})
        console.print(f"[bold]{name}[/]: {'; '.join(summary)} ({seconds:.1f} s)", highlight=False)


def machine() -> str:
    """Say what machine this is: processor, threads in use, torch."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"


@contextmanager
def training_bars(titles: Sequence[str]) -> Iterator[list[OnStep]]:
    """Draw trainings as progress bars with the time left, losses, noise levels and memory.

    Args:
        titles: What is being trained; each has a bar of its own.
    """
    title, line = TextColumn("{task.fields[title]}"), TextColumn("{task.description}")
    columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), line)
    with Progress(*columns, console=console, transient=True) as progress:
        tasks = [progress.add_task("", total=None, title=title) for title in titles]
        yield [partial(_move, progress, task) for task in tasks]


def progress_bar() -> Progress:
    """Return a progress bar that goes away when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def peak_memory(whose: int = resource.RUSAGE_SELF) -> float:
    """Return the most memory that a process has had so far, megabytes.

    Args:
        whose: This process, or `resource.RUSAGE_CHILDREN`: the largest of those that it started and that ended.
    """
    return resource.getrusage(whose).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)


def _move(progress: Progress, task: TaskID, done: int, total: int, line: str) -> None:
    progress.update(task, completed=done, total=total, description=line)
