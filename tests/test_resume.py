"""A run that is killed, however often and whenever, ends as if it had not been; so does one that branches off."""

import json
import random
import signal
import time
from dataclasses import replace
from itertools import count
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from cuao3d.checkpoints import without_length
from cuao3d.distill import distill
from cuao3d.errors import InputError
from cuao3d.files import sha256_of
from cuao3d.store import Store
from cuao3d.student import ARCHITECTURES, Architecture
from test_distill import CONFIG, make_store

LONG = replace(
    CONFIG, architecture="tiny", num_steps=24, checkpoint_every=1, keep_every=7, num_held_out=1, clip_norm=1.0
)


def learn(store: Path, out: Path, begun: Event | None = None) -> None:
    torch.set_num_threads(1)
    ARCHITECTURES["tiny"] = Architecture((4,) * 8, (1,) * 8, num_stem=4)  # its checkpoints cost little
    if begun is not None:
        begun.set()
    distill(Store.open(store), LONG, out)


def kill_and_resume(store: Path, out: Path, seconds: float, most: int, dice: random.Random) -> int:
    """Start a run again and again, each time killed after at most some seconds; return how often, at `most`."""
    forks = get_context("forkserver")
    forks.set_forkserver_preload(["cuao3d.distill"])
    num_kills = 0
    while not (out / "run.json").is_file():
        begun = forks.Event()
        process = forks.Process(target=learn, args=(store, out, begun))
        process.start()
        assert begun.wait(timeout=60)
        process.join(timeout=dice.uniform(0, seconds) if num_kills < most else None)
        process.kill()  # SIGKILL: nothing is told to it, and nothing is tidied up
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        num_kills += process.exitcode == -signal.SIGKILL
    return num_kills


@pytest.mark.slow  # every day scripts/faults.py kills a training at some of its operations
@pytest.mark.parametrize("num_kills", [2, 20])
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(tmp_path, num_kills):
    store, whole = make_store(tmp_path / "store"), tmp_path / "whole"
    started = time.perf_counter()
    learn(store.path, whole)
    seconds, dice, killed = time.perf_counter() - started, random.Random(0), 0
    for attempt in count():
        out = tmp_path / f"killed-{attempt}"
        killed += kill_and_resume(store.path, out, seconds / 4, num_kills - killed, dice)
        assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
        for file in ("student.safetensors", "best.safetensors", "metrics.jsonl"):
            assert sha256_of(out / file) == sha256_of(whole / file), f"{file} after {killed} kills"
        print(f"{killed} kills, {attempt + 1} runs: all bytes equal")
        if killed >= num_kills:
            break


@pytest.mark.slow
def test_runs_of_several_lengths_begin_alike_where_the_rate_falls_last(tmp_path):
    store, (short, long) = (
        make_store(tmp_path / "store"),
        (replace(CONFIG, schedule="cooldown", num_steps=steps, keep_every=4) for steps in (5, 10)),
    )
    whole = distill(store, short, tmp_path / "short")
    trunk = distill(store, long, tmp_path / "long") / "checkpoint-000004.safetensors"
    branch = distill(store, short, tmp_path / "branch", resume=trunk)
    for file in ("student.safetensors", "metrics.jsonl"):
        assert (branch / file).read_bytes() == (whole / file).read_bytes()
    rates = [json.loads(line)["rate"] for line in (tmp_path / "long" / "metrics.jsonl").open()]
    assert rates == pytest.approx([CONFIG.learning_rate] * 9 + [CONFIG.learning_rate / 2])
    late, other = trunk.with_name("checkpoint-000008.safetensors"), replace(CONFIG, num_steps=5, keep_every=4)
    for config, checkpoint in ((short, late), (other, trunk), (replace(short, seed=1), trunk)):
        with pytest.raises(InputError, match="is not of this run"):
            distill(store, config, tmp_path / "no", resume=checkpoint)
    for schedule in ("cosine", "poly", "exponential", "constant"):  # nearly all begin otherwise
        assert without_length({"config": {"schedule": schedule, "num_steps": 5}})["config"]["num_steps"] == 5
