"""Independent jobs side by side, each in a process of its own with its share of the processor's cores.

A small network gains little from a second thread, but two of them gain all of it.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch

from cuao3d.progress import OnStep

T = TypeVar("T")

POLL_SECONDS = 0.2
"""Time between two looks at how far the jobs are."""


def side_by_side(
    jobs: Sequence[Callable[[OnStep], T]], num_workers: int, on_step: Callable[[int, int, int, str], None]
) -> list[T]:
    """Do jobs at the same time and return what each of them returns.

    Processes are spawned, so a script that asks for several workers needs `if __name__ == "__main__":`.

    Args:
        jobs: Each is called with a function to tell its progress to; it must be picklable, and what it returns too.
        num_workers: How many run at a time; 1: in this process, one after the other.
        on_step: Told the index of a job, its steps done, their total, and a line.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the jobs are ended where they are.
        Exception: What the first job in the row that failed has raised; the others are done by then.
    """
    num_workers = min(num_workers, len(jobs))
    if num_workers <= 1:
        return [job(partial(on_step, index)) for index, job in enumerate(jobs)]
    spawn = multiprocessing.get_context("spawn")
    num_threads = max(1, (os.cpu_count() or 1) // num_workers)
    with ExitStack() as stack:
        with _deaf_to_interrupts():
            others = multiprocessing.active_children()
            told = stack.enter_context(spawn.Manager()).Queue()
            pool = stack.enter_context(ProcessPoolExecutor(num_workers, spawn, torch.set_num_threads, (num_threads,)))
            running = [pool.submit(job, partial(_tell, told, index)) for index, job in enumerate(jobs)]
        try:
            while wait(running, timeout=POLL_SECONDS).not_done:
                _pass_on(told, on_step)
        except KeyboardInterrupt:
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()
            raise
        _pass_on(told, on_step)
        return [future.result() for future in running]


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Start processes that ignore Ctrl-C: it is this one that is interrupted, and that ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _tell(told: Any, index: int, done: int, total: int, line: str) -> None:
    told.put((index, done, total, line))


def _pass_on(told: Any, on_step: Callable[[int, int, int, str], None]) -> None:
    while not told.empty():
        on_step(*told.get())
