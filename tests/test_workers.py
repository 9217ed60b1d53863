"""Jobs side by side: results in order, progress told, failures raised."""

import multiprocessing
import os
import signal
import time

import pytest

from cuao3d.workers import side_by_side


def count_to(number, on_step):
    for done in range(1, number + 1):
        on_step(done, number, f"at {done}")
    return number, os.getpid()


def fail(on_step):
    raise ValueError("room 7 is broken")


class CountTo:
    """A job that counts to a number."""

    def __init__(self, number):
        self.number = number

    def __call__(self, on_step):
        return count_to(self.number, on_step)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs_and_every_step_is_told(num_workers):
    told = []
    results = side_by_side([CountTo(3), CountTo(1)], num_workers, lambda *step: told.append(step))
    assert [number for number, _ in results] == [3, 1]
    assert sorted(told) == [(0, 1, 3, "at 1"), (0, 2, 3, "at 2"), (0, 3, 3, "at 3"), (1, 1, 1, "at 1")]
    assert (os.getpid() in [process for _, process in results]) == (num_workers == 1)


def test_a_failure_is_raised_as_it_was():
    with pytest.raises(ValueError, match="room 7 is broken"):
        side_by_side([CountTo(1), fail], 2, lambda *step: None)


class HearInterrupts:
    """A job that says what a process of its kind does on Ctrl-C, then sleeps."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, on_step):
        on_step(0, 1, str(signal.getsignal(signal.SIGINT) == signal.SIG_IGN))
        time.sleep(self.seconds)


def test_an_interrupt_ends_all_jobs_at_once_and_they_do_not_hear_it_themselves():
    told, began, before = [], [], multiprocessing.active_children()

    def interrupt(job, done, total, line):
        told.append(line)
        began.append(time.perf_counter())
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        side_by_side([HearInterrupts(90), HearInterrupts(90)], 2, interrupt)
    assert time.perf_counter() - began[0] < 60
    assert told == ["True"]
    assert multiprocessing.active_children() == before
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
