"""Memory: a budget that threads share, and giving back to the system what is free."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


class Budget:
    """Bytes that threads share; who finds too few left waits, and who wants more than there are waits to be alone."""

    def __init__(self, size: int) -> None:
        self._size, self._taken, self._returned = size, 0, threading.Condition()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Take bytes while the context is open."""
        size = min(size, self._size)
        with self._returned:
            self._returned.wait_for(lambda: self._taken + size <= self._size)
            self._taken += size
        try:
            yield
        finally:
            with self._returned:
                self._taken -= size
                self._returned.notify_all()


def give_back() -> None:
    """Give memory that is free back to the system, where its C library can.

    The memory of freed tensors lies between that of others, and by itself the C library keeps it. From scene to scene
    the holes differ, so a process that runs for days would grow.
    """
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Any:
    """Return `malloc_trim` of glibc; None elsewhere."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # other C libraries lack it, and Windows has no library of no name
        return None
