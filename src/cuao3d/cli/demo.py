"""`cuao3d demo`: the whole pipeline on made rooms."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tyro.conf import Suppress

from cuao3d.cli.settings import with_config
from cuao3d.cli.shared import note_missing, print_rows
from cuao3d.console import tell
from cuao3d.errors import InputError
from cuao3d.schema import Seed

MOST_WORKERS = 3
"""Processes that the demo uses at most: it trains two or three students."""


def demo(
    *,
    out: Path = Path("demo-out"),
    seed: Seed = 0,
    quick: bool = False,
    full: bool = False,
    config: Suppress[Any] = None,
) -> int:
    """Make furnished rooms, lift three small teachers, distil two students, score them, ask questions, write a report.

    Args:
        out: Folder for report.html, results.json and scene.ply.
        seed: Random seed of the rooms and the students.
        quick: Run the smallest demo that exercises every stage; its scores mean nothing.
        full: Run the long demo, with the supervised upper bound (up to an hour).
        config: How much to do. --help shows the defaults, and with --quick or --full theirs.
    """
    from dataclasses import replace

    from cuao3d import demo as room

    if quick and full:
        raise InputError("Choose --quick or --full, not both.")
    start = room.QUICK if quick else room.FULL if full else room.DemoConfig()
    results = room.demo(
        out, seed=seed, config=replace(start, **(config or {})), num_workers=min(os.cpu_count() or 1, MOST_WORKERS)
    )
    print_rows(results["rows"])
    tell(f"Open {out / 'report.html'} in a browser; the figures are in {out / 'results.json'}.")
    return note_missing(results["missing"])


def configurable_demo(arguments: list[str]) -> Callable[..., int]:
    """Return the command with an option for each setting."""
    from cuao3d.demo import FULL, QUICK, DemoConfig

    start = QUICK if "--quick" in arguments else FULL if "--full" in arguments else DemoConfig()
    return with_config(demo, start, arguments)
