"""Mutation testing: break one line of the package at a time, and list the mutants that survive the tests.

`mutants.toml`, beside this file, lists the mutants: a file of `src/cuao3d`, a text that occurs in it exactly once, its
replacement, and the tests of which at least one must then fail. Mutants are made in a copy of the checkout, in which
the tests must first pass unchanged.

    python scripts/mutate.py                          run all, about ten minutes on one core
    python scripts/mutate.py --only geometry.         run those whose name begins with this
    python scripts/mutate.py --list                   print the name and change of each
"""

import argparse
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import SimpleQueue

import hypothesis  # noqa: F401  imported before the forks, as are torch and what it loads at its first comparison
import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("mutants.toml")

TIMEOUT = 300
"""Seconds after which tests are stopped; a mutant that hangs them counts as killed."""


@dataclass(frozen=True)
class Mutant:
    """One mutation of a file."""

    name: str
    """Name of the file, a dot, and the mutant's own name."""
    file: str
    """File to mutate, relative to `src/cuao3d`."""
    old: str
    """Part of a line, found exactly once in the file."""
    new: str
    """Its replacement."""
    tests: tuple[str, ...]
    """Test files or single tests, as arguments of pytest; at least one must fail."""

    def apply(self, text: str) -> str:
        """Return the mutated text of the file."""
        if (times := text.count(self.old)) != 1:
            raise ValueError(
                f"{self.name}: {self.old!r} occurs {times} times in {self.file}, not once; correct {LIST.name}."
            )
        return text.replace(self.old, self.new)


def read_mutants(path: Path = LIST) -> tuple[Mutant, ...]:
    """Read the list of mutants."""
    mutants = []
    for file, entries in tomllib.loads(path.read_text(encoding="utf-8")).items():
        usual, room = entries.pop("tests"), file.removesuffix("/__init__.py").removesuffix(".py")
        for name, (old, new, *tests) in entries.items():
            chosen = tuple(f"tests/{test}" for test in tests or usual)
            mutants.append(Mutant(f"{room}.{name}", file, old, new, chosen))
    return tuple(mutants)


class Copy:
    """A copy of the checkout, in which mutants are applied and reverted."""

    clock = count(1_000_000_000)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            if (CHECKOUT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(CHECKOUT / name, folder / name)

    def try_out(self, mutant: Mutant) -> str | None:
        """Apply a mutant, run its tests, revert it; return what killed it, or None."""
        path = self.folder / "src" / "cuao3d" / mutant.file
        whole = path.read_text(encoding="utf-8")
        try:
            self._write(path, mutant.apply(whole))
            return self.run(mutant.tests)
        finally:
            self._write(path, whole)

    def run(self, tests: Sequence[str], timeout: float | None = TIMEOUT) -> str | None:
        """Run tests until one fails; return its name, or None if all pass."""
        log = self.folder.with_suffix(".log")
        process = multiprocessing.get_context("fork").Process(target=_run_pytest, args=(self.folder, tests, log))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            return f"timeout after {TIMEOUT} s"
        if process.exitcode == 0:
            return None
        output = log.read_text(encoding="utf-8", errors="replace")
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        if process.exitcode not in (1, 2) or failed is None:
            raise RuntimeError(f"pytest {' '.join(tests)} ended with {process.exitcode}:\n{output}")
        return failed[1]

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        now = next(self.clock)  # a unique time, or Python might reuse bytecode of another text
        os.utime(path, (now, now))


def _run_pytest(folder: Path, tests: Sequence[str], log: Path) -> None:
    """Run tests of a copy in a forked process, so that torch and other large packages are not imported again."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    sys.dont_write_bytecode = False  # most files of a copy never change, and are compiled only once
    os.environ["PYTHONPATH"] = str(folder / "src")
    os.environ.setdefault("CUAO3D_DATA", str(CHECKOUT.parent / "shared" / "data"))
    sys.path.insert(0, os.environ["PYTHONPATH"])
    slow_too = ["-m", ""] if any("::" in test for test in tests) else []  # a test that is named runs, slow or not
    code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-W", "ignore", *slow_too, *tests])
    sys.stdout.flush()
    os._exit(code)


def main() -> int:
    """Run the selected mutants; return exit code 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="NAME", help="name of a mutant, or a prefix of names")
    parser.add_argument("--list", action="store_true", help="print the mutants and run none")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="copies that are tested in parallel")
    arguments = parser.parse_args()
    mutants = [mutant for mutant in read_mutants() if mutant.name.startswith(arguments.only)]
    if not mutants:
        parser.error(f"no name begins with {arguments.only!r}; --list prints them")
    if arguments.list:
        for mutant in mutants:
            print(f"{mutant.name}\n  {mutant.file}: {mutant.old}\n  -> {mutant.new}")
        return 0
    torch.testing.assert_close(torch.zeros(1), torch.zeros(1))
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Copy(Path(folder) / str(number)) for number in range(arguments.jobs)]
        if failed := copies[0].run(sorted({test for mutant in mutants for test in mutant.tests}), timeout=None):
            raise RuntimeError(f"{failed} fails without a mutation")
        survivors = _try_all(mutants, copies)
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants were killed.")
    for mutant in survivors:
        print(f"survivor: {mutant.name} ({mutant.file}: {mutant.old} -> {mutant.new})")
    return 1 if survivors else 0


def _try_all(mutants: Sequence[Mutant], copies: Sequence[Copy]) -> list[Mutant]:
    """Run mutants, each in a free copy; print each result, and return the survivors."""
    free: SimpleQueue[Copy] = SimpleQueue()
    for copy in copies:
        free.put(copy)

    def try_out(mutant: Mutant) -> str | None:
        copy = free.get()
        try:
            return copy.try_out(mutant)
        finally:
            free.put(copy)

    survivors = []
    with ThreadPoolExecutor(len(copies)) as threads:
        for mutant, noticed in zip(mutants, threads.map(try_out, mutants), strict=True):
            print(f"{mutant.name:45} {'killed by ' + noticed if noticed else 'SURVIVED'}", flush=True)
            if noticed is None:
                survivors.append(mutant)
    return survivors


if __name__ == "__main__":
    sys.exit(main())
