"""A thread that does the newest of what it is asked, so that nobody waits for work that is out of date."""

import threading
from collections.abc import Callable

Work = Callable[[Callable[[], bool]], None]
"""Work; it is given a function that says whether newer work waits, so that it can drop what it has found."""


class Newest:
    """Does work in a thread of its own; work that has not begun when newer work comes is never done."""

    def __init__(self, name: str) -> None:
        """Start the thread; `name` is its name."""
        self._waiting: Work | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Do some work soon, in place of what still waits."""
        with self._changed:
            self._waiting = work
            self._changed.notify()

    def close(self) -> None:
        """Begin no more work, and call what runs out of date."""
        with self._changed:
            self._is_closed, self._waiting = True, None
            self._changed.notify()

    def join(self, seconds: float) -> bool:
        """Wait for a closed thread; return whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._waiting is None and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                work, self._waiting = self._waiting, None
            assert work is not None
            work(self._is_outdated)
            del work

    def _is_outdated(self) -> bool:
        return self._is_closed or self._waiting is not None
