"""Distributed training: the processes that `torchrun` starts, and what they exchange."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, distributed

T = TypeVar("T")


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the process group of `torchrun`, if there is one, and yield the device of this process.

    Args:
        device: Device to train on; with `cuda` each process takes its own GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not distributed.is_torchelastic_launched():
        yield device
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def in_group() -> bool:
    """Return whether this process has joined a group, be it the only one there."""
    return distributed.is_available() and distributed.is_initialized()


def num_ranks() -> int:
    """Return the number of processes that train together; 1 without `torchrun`."""
    return distributed.get_world_size() if in_group() else 1


def rank() -> int:
    """Return the rank of this process; rank 0 writes files and prints."""
    return distributed.get_rank() if in_group() else 0


def from_first(make: Callable[[], T]) -> T:
    """Call a function in the first process; return its result, or raise its error, in all of them."""
    if not in_group():
        return make()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome = [make(), None]
        except Exception as error:
            outcome = [None, error]
    distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def gather(items: list[T]) -> list[T]:
    """Return the items of all processes, in the order of ranks."""
    if not in_group():
        return items
    lists: list[list[T]] = [[]] * num_ranks()
    distributed.all_gather_object(lists, items)
    return list(chain.from_iterable(lists))


def mean_over_ranks(mean: Float[Tensor, "C"], count: int) -> tuple[Float[Tensor, "C"], int]:
    """Return the mean over the rows of all processes, and the number of rows.

    Args:
        mean: Mean over the rows of this process.
        count: Number of rows of this process.
    """
    if not in_group():
        return mean, count
    sums = torch.cat([mean.double() * count, mean.new_tensor([count], dtype=torch.float64)])
    distributed.all_reduce(sums)
    return (sums[:-1] / sums[-1]).to(mean.dtype), int(sums[-1])
