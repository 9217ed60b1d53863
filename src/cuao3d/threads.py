"""Threads of one core each: small matrix products gain nothing from a second core, but blocks of them do."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

_pools: dict[int, ThreadPoolExecutor] = {}


def in_shares(work: Callable[[int, int], T], device: torch.device) -> list[T]:
    """Run the shares of some work in parallel, without recording gradients.

    Args:
        work: Called with the index of a share and the number of shares, each in its own thread.
        device: Device of its tensors. On a CPU there are `torch.get_num_threads()` shares, elsewhere one.

    Returns:
        The result of each share, in order.

    Raises:
        Exception: The error of the first share that failed, after all have ended.
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
    """Return a pool of persistent threads, each set to use a single core."""
    if num_threads not in _pools:
        _pools[num_threads] = ThreadPoolExecutor(num_threads, "share", _use_one_core)
        started: list[Future[None]] = [_pools[num_threads].submit(lambda: None) for _ in range(num_threads)]
        for future in started:
            future.result()
        torch.set_num_threads(num_threads)  # the last setting holds for threads that start later
    return _pools[num_threads]


def _use_one_core() -> None:
    torch.get_num_threads()  # the first call in a thread adopts the global number; set afterwards, it stays
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a forked process has none of its parent's threads
