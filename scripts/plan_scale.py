"""Plan the lifting of a large dataset from what `cuao3d check --teachers` measured on one of its scenes.

    cuao3d check SCENE --teachers lseg,dinov2,stable-diffusion --json check.json
    python scripts/plan_scale.py check.json
    python scripts/plan_scale.py check.json --page docs/scale.md    # also writes the tables between its marks

What check could not measure here, for its weights are not here, is asked for: --seconds lseg=0.1 dinov2=0.05. Without
that, hours are given for several times a view. Everything that was assumed stands above the tables.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from cuao3d.check.cost import BYTES_LIFTED, BYTES_OF_POINT, BYTES_STORED
from cuao3d.console import tell

SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Times a view, all teachers together, for which hours are given where they were not measured."""

WORKERS = {"one GPU": 1, "eight GPUs": 8, "CPU cluster, 16 nodes of 4 workers": 64}
"""Machines, and how many workers lift on each."""

MARKS = ("<!-- plan -->", "<!-- end of plan -->")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", type=Path, nargs="+", help="what `cuao3d check --teachers --json` wrote; a plan each")
    parser.add_argument("--scenes", type=int, default=1513)
    parser.add_argument("--views", type=int, default=83, help="views of a scene")
    parser.add_argument("--points", type=int, default=150_000, help="points of a scene")
    parser.add_argument("--samples", type=int, default=135_000, help="cells of a scene that a view sees")
    parser.add_argument(
        "--seconds", nargs="*", default=[], metavar="TEACHER=S", help="seconds a view, where not measured"
    )
    parser.add_argument("--page", type=Path, help="page to write the tables into")
    options = parser.parse_args()
    given = {name: float(seconds) for name, seconds in (pair.split("=") for pair in options.seconds)}
    lines = [
        f"Assumed: {options.scenes:,} scenes of {options.views} views, {options.points:,} points and "
        f"{options.samples:,} cells that a view sees; every worker has a GPU, or a group of cores, for itself, and "
        "files are read as fast as they are lifted.",
    ]
    for path in options.check:
        lines += ["", *plan(json.loads(path.read_text())["teachers"], given, options)]
    for line in lines:
        tell(line)
    if options.page:
        text, between = options.page.read_text(), "\n".join([MARKS[0], *lines, MARKS[1]])
        options.page.write_text(re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: between, text, flags=re.DOTALL))


def plan(teachers: list[dict[str, Any]], given: dict[str, float], options: argparse.Namespace) -> list[str]:
    """Return the tables as lines of Markdown."""
    views, features = options.scenes * options.views, options.samples * sum(row["num_channels"] for row in teachers)
    cloud, weights = BYTES_OF_POINT * options.points, sum(row["gigabytes"] for row in teachers)
    store = options.scenes * (BYTES_STORED * features + cloud) / 1e9
    memory = weights + ((BYTES_STORED + BYTES_LIFTED) * features + cloud) / 1e9
    lines = [
        "| teacher | channels | seconds a view | from |",
        "|---|---|---|---|",
    ]
    seconds: list[float | None] = []
    for row in teachers:
        measured, told = row["seconds_per_view"], given.get(row["teacher"])
        seconds.append(measured if told is None else told)
        origin = "given" if told is not None else "measured here" if measured is not None else "not here: a parameter"
        shown = "t" if seconds[-1] is None else f"{seconds[-1]:.2f}"
        lines.append(f"| {row['teacher']} | {row['num_channels']} | {shown} | {origin} |")
    known = [one for one in seconds if one is not None]
    each = [sum(known)] if len(known) == len(seconds) else list(SECONDS)
    lines += [
        "",
        f"Store: {store:,.0f} GB in 16 bits, {store / options.scenes:.2f} GB a scene. Memory of a worker: {memory:.1f} "
        f"GB, {weights:.1f} of them weights (on the GPU, if there is one), besides what a network takes for a view.",
        "",
        "Hours = scenes x views x seconds a view / workers / 3600:",
        "",
        f"| seconds a view, all teachers | {' | '.join(f'{name} ({count})' for name, count in WORKERS.items())} |",
        f"|---|{'---|' * len(WORKERS)}",
    ]
    for one in each:
        hours = [f"{views * one / count / 3600:,.1f}" for count in WORKERS.values()]
        lines.append(f"| {one:.3g} | {' | '.join(hours)} |")
    return lines


if __name__ == "__main__":
    main()
