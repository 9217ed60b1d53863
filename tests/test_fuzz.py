"""Broken inputs are refused in one line, quickly and in little memory; `scripts/fuzz.py` tries many more."""

import os
import time
from collections import Counter
from pathlib import Path

import pytest

import fuzz
from cuao3d.errors import InputError


def test_broken_inputs_are_read_or_refused(tmp_path: Path):
    slow = ("run", "check", "matterport", "features", "openscene", "scannet")
    counts, findings = fuzz.run(tmp_path, [name for name in fuzz.SUBJECTS if name not in slow], 100, 0, bombs=False)
    assert findings == []
    assert counts["mutated"] == counts["read"] + counts["refused"] == 100
    assert min(counts["read"], counts["refused"]) > 20


BOMBS = [
    "store: manifest.json is nested 200,000 levels deep",
    "nerfstudio: transforms.json is nested 200,000 levels deep",
    "student: a thousand heads of 10^6 channels",
    "student: a header of 2^63 bytes",
    "official: a tensor of stride 0",
    "official: a pickle that runs a command",
    "cloud: a binary .ply that promises 10^12 points",
    "cloud: an .npz that promises 10^12 points",
    "scannet: a frame of 2^63 bytes",
    "sevenscenes: capture.json is a pipe",
    "model: an index that leads out",
]


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name: str, tmp_path: Path):
    (found,) = fuzz.outcomes([(name, fuzz.prepared(fuzz.BOMBS[name], tmp_path / "bomb"))])
    assert found[1]["what"] in ("read", "refused"), found


def test_there_are_many_bombs():
    assert len(fuzz.BOMBS) >= 60
    assert set(BOMBS) <= set(fuzz.BOMBS)


def hang() -> None:
    time.sleep(60)


def spin() -> None:
    while True:
        pass


def refuse() -> None:
    raise InputError("no")


def fail() -> None:
    raise KeyError("a")


def allocate() -> None:
    bytearray(2 * fuzz.MEGABYTES * 2**20)


@pytest.mark.slow
def test_every_kind_of_finding_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.3)
    cases = {
        "read": lambda: None,
        "refused": refuse,
        "KeyError": fail,
        "MemoryError": allocate,
        "takes more than 0.3 s": spin,
        "hangs": hang,
        "ends the process (7)": lambda: os._exit(7),
    }
    tasks = [(name, lambda read=read: read) for name, read in [*cases.items(), ("read", lambda: None)]]
    found = Counter()
    for name, outcome in fuzz.outcomes(tasks):
        assert outcome["what"].startswith(name)
        found[name] += 1
    assert found == Counter([*cases, "read"])
