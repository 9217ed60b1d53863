"""Work shared among threads of one core each: many small products gain nothing from a second core, their blocks do."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

_pools: dict[int, ThreadPoolExecutor] = {}


def in_shares(work: Callable[[int, int], T], device: torch.device) -> list[T]:
    """Do the shares of some work at the same time.

    Args:
        work: Called with the index of a share and the number of shares, on a thread of its own where there are several.
            No gradients are recorded there.
        device: Where its tensors are. On a CPU there is a share for each of `torch.get_num_threads()`, elsewhere one.

    Returns:
        What each share returned, in order.

    Raises:
        Exception: What the first share that failed has raised; all are over by then.
    """
    num_shares = torch.get_num_threads() if device.type == "cpu" else 1
    if num_shares == 1:
        with torch.no_grad():
            return [work(0, 1)]
    running = [_pool(num_shares).submit(_without_gradients, work, share, num_shares) for share in range(num_shares)]
    failures = [failure for future in running if (failure := future.exception()) is not None]
    if failures:
        raise failures[0]
    return [future.result() for future in running]


def _without_gradients(work: Callable[[int, int], T], share: int, num_shares: int) -> T:
    with torch.no_grad():
        return work(share, num_shares)


def _pool(num_threads: int) -> ThreadPoolExecutor:
    """Threads that stay, each told once to use a single core."""
    if num_threads not in _pools:
        _pools[num_threads] = ThreadPoolExecutor(num_threads, "share", _use_one_core)
        started: list[Future[None]] = [_pools[num_threads].submit(lambda: None) for _ in range(num_threads)]
        for future in started:
            future.result()
        torch.set_num_threads(num_threads)  # what is asked for last holds for threads that are yet to start
    return _pools[num_threads]


def _use_one_core() -> None:
    torch.get_num_threads()  # a thread's first look takes over the number of all others; what it asks for then stays
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a forked process has none of its parent's threads
