"""`cuao3d demo`: the whole path on made rooms."""

import os
from pathlib import Path

from cuao3d.cli.shared import print_rows
from cuao3d.errors import InputError

MOST_WORKERS = 3
"""Processes that the demo uses at most: it trains two or three students."""


def demo(
    *,
    out: Path = Path("demo-out"),
    seed: int = 0,
    quick: bool = False,
    full: bool = False,
) -> int:
    """Make furnished rooms, lift three small teachers, distil two students, score and ask them, write a report.

    Args:
        out: Folder for report.html, results.json and scene.ply.
        seed: Decides the rooms and the students.
        quick: Do as little as shows that everything works; the scores mean nothing then.
        full: Do it at length, with the supervised ceiling (up to an hour).
    """
    from cuao3d import demo as room

    if quick and full:
        raise InputError("Choose --quick or --full, not both.")
    config = room.QUICK if quick else room.FULL if full else room.DemoConfig()
    results = room.demo(out, seed=seed, config=config, num_workers=min(os.cpu_count() or 1, MOST_WORKERS))
    print_rows(results["rows"])
    print(f"Open {out / 'report.html'} in a browser; the figures are in {out / 'results.json'}.")
    return 0
