"""The list of breakages stays true: every line that is broken is there, and so is every test that must notice it."""

import re
from dataclasses import replace
from functools import cache

import pytest

import mutate
from mutate import CHECKOUT, Mutant, read_mutants

MUTANTS = read_mutants()


def test_every_breakage_changes_one_line_that_is_there_and_names_tests_that_are():
    wrong = []
    for mutant in MUTANTS:
        whole = (CHECKOUT / "src" / "cuao3d" / mutant.file).read_text(encoding="utf-8")
        try:
            broken = mutant.apply(whole)
        except ValueError as error:
            wrong.append(str(error))
            continue
        changed = [one for one, other in zip(whole.split("\n"), broken.split("\n"), strict=True) if one != other]
        if len(changed) != 1:
            wrong.append(f"{mutant.name} changes {len(changed)} lines")
        wrong += [f"{mutant.name} names {test}, which is not there" for test in mutant.tests if not _is_there(test)]
    assert not wrong, "\n".join(wrong)


@cache
def _is_there(test: str) -> bool:
    file, _, name = test.partition("::")
    path, line = CHECKOUT / file, rf"^def {name}\(" if name else "^def test_"
    return path.is_file() and re.search(line, path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_a_line_that_does_not_occur_once_is_reported():
    mutant = replace(MUTANTS[0], old="x = 1")
    for text, times in (("", 0), ("x = 1\nx = 1\n", 2)):
        with pytest.raises(ValueError, match=rf"'x = 1' occurs {times} times in {re.escape(mutant.file)}"):
            mutant.apply(text)


def test_a_line_is_broken_while_its_tests_run_and_restored_afterwards(tmp_path, monkeypatch):
    copy, path = object.__new__(mutate.Copy), tmp_path / "src" / "cuao3d" / "a.py"
    copy.folder = tmp_path
    path.parent.mkdir(parents=True)
    path.write_text("x = 1\ny = 2\n")
    seen = []
    monkeypatch.setattr(mutate.Copy, "run", lambda self, tests: seen.append((path.read_text(), tests)))
    assert copy.try_out(Mutant("a.b", "a.py", "y = 2", "y = 3", ("tests/test_a.py",))) is None
    assert seen == [("x = 1\ny = 3\n", ("tests/test_a.py",))]
    assert path.read_text() == "x = 1\ny = 2\n"
