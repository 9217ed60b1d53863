"""Broken and hostile inputs of every format: each must be read, or refused in one line, quickly and in little memory.

python scripts/fuzz.py [--inputs 10000] [--seed 0] [--only NAME ...] [--no-bombs]

A small valid input is made of every format, changed where its structure is (a number of a text, a value of JSON, the
header of safetensors, the size of an image, a member of an archive, any byte), and read as the commands read it. Inputs
are read in a forked process with limits of time and memory; one that exceeds them, or raises anything but an error for
users, is a finding. Named bombs, made by hand, follow. Exit code 1 if anything was found.
"""

import argparse
import importlib
import multiprocessing
import os
import pkgutil
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cuao3d
from cuao3d.errors import UserError
from cuao3d.progress import peak_memory

for module in pkgutil.walk_packages(cuao3d.__path__, "cuao3d."):  # all, before the tests' helpers have types checked
    with suppress(ImportError):  # one that needs a GPU's libraries
        _ = module.name != "cuao3d.__main__" and importlib.import_module(module.name)
sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("tests", "scripts")]

from fuzz_bombs import BOMBS, Bomb  # noqa: E402
from fuzz_mutations import mutate  # noqa: E402
from fuzz_subjects import SUBJECTS, Subject  # noqa: E402

SECONDS = 2.0
"""Time of the processor that an input may take."""

MEGABYTES = 500
"""Memory that an input may take."""


Task = Callable[[], Callable[[], object]]
"""Makes an input; returns what reads it."""


@dataclass(frozen=True)
class Finding:
    """An input that was neither read nor refused as it should be."""

    name: str
    """Which input: format, file and number; or the name of a bomb."""
    what: str
    """What happened."""
    where: str
    """Where it happened."""


class TooSlowError(BaseException):
    """An input takes more than its time."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="mutated inputs, of all formats together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--no-bombs", action="store_true", help="leave out the inputs that were made by hand")
    given = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        counts, findings = run(Path(folder), given.only, given.inputs, given.seed, bombs=not given.no_bombs)
    for finding, number in Counter((one.what, one.where) for one in findings).most_common():
        names = [one.name for one in findings if (one.what, one.where) == finding]
        print(f"{number} x {finding[0]}\n    {finding[1]}\n    {', '.join(names[:5])}")
    print(
        f"{counts['mutated']} mutated inputs and {counts['bomb']} bombs in {time.perf_counter() - start:.0f} s: "
        f"{counts['read']} read, {counts['refused']} refused, {len(findings)} findings; slowest "
        f"{counts['slowest'] / 1000:.2f} s, largest {counts['largest']} MB"
    )
    return 1 if findings else 0


def run(
    folder: Path, names: Sequence[str], inputs: int, seed: int, *, bombs: bool
) -> tuple[Counter[str], list[Finding]]:
    """Read mutated inputs of some formats, and the bombs.

    Args:
        folder: Scratch folder.
        names: Formats.
        inputs: How many mutated inputs, shared evenly.
        seed: Decides the mutations.
        bombs: Whether to read the bombs as well.

    Returns:
        Counts of inputs, and what was found.
    """
    each = -(-inputs // max(1, len(names)))
    tasks: list[tuple[str, Task]] = []
    for name in names:
        subject = SUBJECTS[name]
        subject.make(folder / name)
        subject.read(folder / name)  # what is whole is read: otherwise every refusal would mean nothing
        tasks += [(f"{name} {index}", partial(_mutated, subject, folder / name, seed, index)) for index in range(each)]
    tasks = tasks[:inputs] if len(tasks) > inputs else tasks
    counts: Counter[str] = Counter(mutated=len(tasks))
    if bombs:
        tasks += [(name, prepared(bomb, folder / "bombs" / name)) for name, bomb in BOMBS.items()]
        counts["bomb"] = len(BOMBS)
    findings = []
    for name, outcome in outcomes(tasks):
        if outcome["what"] in ("read", "refused"):
            counts[outcome["what"]] += 1
        else:
            findings.append(Finding(name, outcome["what"], outcome["where"]))
        counts["slowest"] = max(counts["slowest"], outcome["milliseconds"])
        counts["largest"] = max(counts["largest"], outcome["megabytes"])
    return counts, findings


def _mutated(subject: Subject, folder: Path, seed: int, index: int) -> Callable[[], object]:
    """Change a file of a valid input; return what reads the input and puts the file back."""
    rng = np.random.default_rng([seed, index, *subject.name.encode()])
    files = subject.files(folder)
    path = files[rng.integers(len(files))]
    whole = path.read_bytes()
    path.write_bytes(mutate(whole, path.name, rng))

    def read() -> None:
        try:
            subject.read(folder)
        finally:
            path.write_bytes(whole)

    return read


def prepared(bomb: Bomb, folder: Path) -> Task:
    """Return a task that makes a bomb in a folder, then reads and removes it."""

    def prepare() -> Callable[[], object]:
        folder.mkdir(parents=True, exist_ok=True)
        read_bomb = bomb(folder)

        def read() -> None:
            try:
                read_bomb()
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        return read

    return prepare


def outcomes(tasks: Sequence[tuple[str, Task]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run tasks in a forked process, which is replaced where it dies; yield what became of each."""
    fork, index = multiprocessing.get_context("fork"), 0
    while index < len(tasks):
        here, there = fork.Pipe(duplex=False)
        worker = fork.Process(target=_work, args=(tasks[index:], there), daemon=True)
        worker.start()
        there.close()
        while index < len(tasks):
            try:
                outcome = here.recv() if here.poll(10 * SECONDS) else None
            except EOFError:
                outcome = None
            if outcome is None:
                worker.kill()
                worker.join()
                how = "hangs" if worker.exitcode == -signal.SIGKILL else f"ends the process ({worker.exitcode})"
                outcome = {"what": how, "where": "", "milliseconds": 0, "megabytes": 0}
                yield tasks[index][0], outcome
                index += 1
                break
            yield tasks[index][0], outcome
            index += 1
        worker.join()


def _work(tasks: Sequence[tuple[str, Task]], there: Connection) -> None:
    """Run tasks one after the other, each with a limit of time; the memory that all may use is limited too."""
    torch.set_num_threads(1)  # the pool of threads does not survive a fork
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, _too_slow)
    before = peak_memory()
    for _, task in tasks:
        read = task()
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        what, where = "read", ""
        try:
            read()
        except (UserError, OSError):
            what = "refused"
        except TooSlowError:
            what, where = f"takes more than {SECONDS:g} s", _where()
        except BaseException as error:
            what, where = f"{type(error).__name__}: {str(error)[:100]}", _where()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = time.process_time() - start
        there.send(
            {
                "what": what,
                "where": where,
                "milliseconds": round(1000 * seconds),
                "megabytes": round(peak_memory() - before),
            }
        )


def _too_slow(*_: object) -> None:
    raise TooSlowError


def _where() -> str:
    """Return the last lines of our own code that an error passed through."""
    frames = [frame for frame in traceback.extract_tb(sys.exc_info()[2]) if "cuao3d" in frame.filename]
    own = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    return " < ".join(reversed(own[-3:]))


if __name__ == "__main__":
    sys.exit(main())
