"""A reproduction that is killed again and again ends with the numbers of one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import make_synthetic_scene
from cuao3d.tables import read_tables
from make_fixture_scannet import write_scan

SCRIPT = """
import sys
from dataclasses import replace
from cuao3d import recipes
from cuao3d.cli import main

def small(whole, **given):
    return replace(whole(**given), architecture="MinkUNet14Mini", voxel_size=0.1)

if __name__ == "__main__":
    from functools import partial
    import cuao3d.reproduce.results
    for recipe in ("openscene", "supervised"):
        setattr(recipes, recipe, partial(small, getattr(recipes, recipe)))
    cuao3d.reproduce.results.draw_figures = lambda done: []
    sys.exit(main(sys.argv[1:]))
"""
"""The command, with small students and without figures."""


@pytest.mark.slow
def test_kills_at_random_moments_change_no_number(tmp_path):
    for name in ("scene0000_00", "scene0568_00"):
        write_scan(make_synthetic_scene(), tmp_path / "data" / "scans" / name, color="png")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    with started(script, tmp_path / "data", alone) as process:
        assert process.wait() == 0
    num_files, draw = count(alone), random.Random(1)
    moments = sorted(draw.randrange(num_files) for _ in range(5))
    for moment in moments:
        with started(script, tmp_path / "data", killed) as process:
            while count(killed) < moment and process.poll() is None:
                time.sleep(0.01)
            time.sleep(draw.random() / 5)
            os.killpg(process.pid, signal.SIGKILL)
    with started(script, tmp_path / "data", killed) as process:
        assert process.wait() == 0
    assert numbers(killed) == numbers(alone)
    assert not list(killed.rglob("*.partial*"))


def started(script, data, out):
    """Start the command in a process group of its own."""
    command = [
        sys.executable,
        script,
        "reproduce",
        "scannet",
        "--data",
        data,
        "--teachers",
        "mini-lseg",
        "--steps",
        "3",
    ]
    command += ["--tables", "zero-shot,linear-probe", "--out", out, "--workers", "1"]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths, "CUAO3D_OFFLINE": "1"}
    return subprocess.Popen(
        list(map(str, command)), env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=sys.stderr
    )


def count(folder):
    """Number of files that are there, whole or not."""
    return sum(path.is_file() for path in folder.rglob("*"))


def numbers(folder):
    """All tables but that of the costs."""
    return [table for table in read_tables(folder) if table.name != "costs"]
