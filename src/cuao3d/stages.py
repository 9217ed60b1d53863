"""Stages: what a command does one after the other, each with its time, its memory and a line at its end."""

import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cuao3d.training import peak_memory

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
