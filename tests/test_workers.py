"""Jobs side by side: results in order, progress told, failures raised."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cuao3d.errors import KilledError
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


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_results_come_in_the_order_of_the_jobs_and_every_step_is_told(num_workers):
    told = []
    results = side_by_side([CountTo(3), CountTo(1)], num_workers, lambda *step: told.append(step))
    assert [number for number, _ in results] == [3, 1]
    assert sorted(told) == [(0, 1, 3, "at 1"), (0, 2, 3, "at 2"), (0, 3, 3, "at 3"), (1, 1, 1, "at 1")]
    assert (os.getpid() in [process for _, process in results]) == (num_workers == 1)


@pytest.mark.slow
def test_a_failure_is_raised_as_it_was():
    with pytest.raises(ValueError, match="room 7 is broken"):
        side_by_side([CountTo(1), fail], 2, lambda *step: None)


def die(on_step):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_is_killed_is_said_in_a_line_that_names_the_cure():
    with pytest.raises(KilledError, match=r"One of 2 worker processes was killed .* fewer --workers"):
        side_by_side([CountTo(1), die], 2, lambda *step: None)


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


class SayAndSleep:
    """A job that says which process it runs in, then sleeps."""

    def __call__(self, on_step):
        on_step(0, 1, str(os.getpid()))
        time.sleep(90)


PARENT = """
import sys
from test_workers import SayAndSleep, side_by_side
if __name__ == "__main__":
    side_by_side([SayAndSleep(), SayAndSleep()], 2, lambda *step: print(step[-1], flush=True))
"""


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}
    ) as parent:
        workers = {int(parent.stdout.readline()) for _ in range(2)}
        parent.kill()  # with SIGKILL, of which a parent hears nothing
        assert len(workers) == 2
        assert parent.stdout.read() == ""  # the end of the file comes when nobody holds it any more
    assert not any(map(is_running, workers))


def is_running(process):
    """Whether there is a process that is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
