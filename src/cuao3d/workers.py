"""Independent jobs in parallel processes, each with its share of the processor's cores.

A small network gains little from a second thread; two networks in parallel use two cores fully.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.queues import SimpleQueue
from typing import TypeVar

import torch

from cuao3d.errors import KilledError
from cuao3d.progress import OnStep

T = TypeVar("T")

POLL_SECONDS = 0.2
"""Time between two progress updates."""


def side_by_side(
    jobs: Sequence[Callable[[OnStep], T]], num_workers: int, on_step: Callable[[int, int, int, str], None]
) -> list[T]:
    """Run jobs in parallel and return their results, in order.

    Processes are spawned, so a script that uses several workers needs `if __name__ == "__main__":`.

    Args:
        jobs: Each is called with a progress callback. Jobs and their results must be picklable.
        num_workers: Number of processes; 1: run in this process, one job after another.
        on_step: Called with the index of a job, its steps done, their total, and a line of text.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the jobs are terminated.
        KilledError: A process was killed; what the jobs had kept on disk by then is there.
        Exception: The error of the first job in the list that failed, after the others have ended.
    """
    num_workers = min(num_workers, len(jobs))
    if num_workers <= 1:
        return [job(partial(on_step, index)) for index, job in enumerate(jobs)]
    spawn = multiprocessing.get_context("spawn")
    num_threads = max(1, (os.cpu_count() or 1) // num_workers)
    with ExitStack() as stack:
        with _ignoring_interrupts():
            others = multiprocessing.active_children()
            progress = spawn.SimpleQueue()
            stack.callback(progress.close)
            pool = stack.enter_context(ProcessPoolExecutor(num_workers, spawn, _begin, (num_threads, progress)))
            running = [pool.submit(job, partial(_tell, index)) for index, job in enumerate(jobs)]
        try:
            while wait(running, timeout=POLL_SECONDS).not_done:
                _pass_on(progress, on_step)
        except KeyboardInterrupt:
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()
            raise
        _pass_on(progress, on_step)
        try:
            return [future.result() for future in running]
        except BrokenProcessPool as error:
            raise KilledError(
                f"One of {num_workers} worker processes was killed from outside, perhaps because memory ran out. What "
                "was finished is kept; type the same command again, with fewer --workers where memory is short."
            ) from error


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Let processes started here ignore Ctrl-C: this process handles it and terminates them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_told: "SimpleQueue[tuple[int, int, int, str]]"
"""Where a worker process tells its progress; set in workers only."""


def _begin(num_threads: int, progress: "SimpleQueue[tuple[int, int, int, str]]") -> None:
    """Prepare a worker process: its share of the cores, where it tells its progress, and an end with its parent."""
    global _told
    _told = progress
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has ended, however that was: a killed parent can tell nobody."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _tell(index: int, done: int, total: int, line: str) -> None:
    _told.put((index, done, total, line))


def _pass_on(progress: "SimpleQueue[tuple[int, int, int, str]]", on_step: Callable[[int, int, int, str], None]) -> None:
    while not progress.empty():
        on_step(*progress.get())
