"""`cuao3d reproduce`: every table and figure of the talk."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from cuao3d.cli.shared import LEFT_OUT, note_missing, split_names
from cuao3d.console import note, tell
from cuao3d.errors import InputError
from cuao3d.schema import Count

if TYPE_CHECKING:
    from cuao3d.reproduce.worlds import Size, World


def reproduce(
    world: Positional[Literal["rooms", "houses", "scannet", "matterport"]],
    *,
    out: Path = Path("reproduction"),
    data: Path | None = None,
    transfer: Path | None = None,
    seeds: Count = 1,
    tables: str | None = None,
    protocol: Literal["paper", "released"] = "paper",
    teachers: str | None = None,
    steps: Count | None = None,
    quick: bool = False,
    workers: Count | None = None,
) -> int:
    """Make the tables and figures of the talk, cell by cell; the same command goes on where it was interrupted.

    Args:
        world: Rooms or houses are made here; of ScanNet and Matterport3D say where they lie.
        out: Folder for report.html, results.json, the tables as CSV and LaTeX, the pictures, stores and runs.
        data: The dataset, or a store of it.
        transfer: The other dataset, or a store of it: Matterport3D for scannet. Without it no student is taken there.
        seeds: Trainings of each student. A number comes with its 95 % interval from two on; further seeds add to what
            is there.
        tables: Only these, separated by commas: zero-shot, vocabularies, cross-dataset, ablation, linear-probe,
            geometry, trust.
        protocol: The whole pipeline as the paper describes it, or as the released code does it.
        teachers: Teachers in place of lseg, dinov2 and stable_diffusion, in this order, separated by commas.
        steps: Steps of every student; those of their recipes unless given.
        quick: Every stage in a few minutes; the numbers mean nothing.
        workers: Processes that share the cells; one a core, at most 4, unless given.
    """
    from cuao3d.reproduce import Reproduction
    from cuao3d.reproduce.results import draw_figures, make_tables, write_results
    from cuao3d.reproduce.worlds import OTHER, PROTOCOLS

    paths = {name: path for name, path in ((world, data), (OTHER[world], transfer)) if path is not None}
    done = Reproduction(
        _world(world, paths, teachers),
        out,
        seeds,
        _tables(tables),
        _size(world, steps, quick=quick),
        PROTOCOLS[protocol],
        workers or min(os.cpu_count() or 1, 4),
        paths,
    )
    done.run()
    made = make_tables(done)
    page = write_results(done, made, draw_figures(done))
    for claim, gain, _, verdict, why in (row for table in made if table.name == "claims" for row in table.texts):
        tell(f"{claim}: {gain}: {verdict} ({why})")
    for name, reason in done.cells.failures.items():
        note(f"{name}: {reason}", head="failed")
    for name, reason in done.left_out.items():
        note(f"{name}: {reason}", head="left out")
    code = note_missing({name: why for store in done.stores.values() for name, why in store.missing().items()})
    tell(f"Open {page} in a browser; the tables lie beside it as CSV and LaTeX.")
    return LEFT_OUT if done.cells.failures or done.left_out else code


def _world(name: str, paths: Mapping[str, Path], teachers: str | None) -> "World":
    """Return the world that is named, with the teachers that were typed.

    Raises:
        InputError: A made world was given data or teachers.
    """
    from dataclasses import replace

    from cuao3d.reproduce.arms import ROLES
    from cuao3d.reproduce.worlds import WORLDS

    world = WORLDS[name]
    if world.is_made and (paths or teachers):
        raise InputError(f"{name} are made here, with their own teachers; leave out --data, --transfer, --teachers.")
    return replace(world, stand_in=dict(zip(ROLES, split_names(teachers), strict=False))) if teachers else world


def _tables(typed: str | None) -> tuple[str, ...]:
    """Return the tables that were typed, or all.

    Raises:
        InputError: There is no such table.
    """
    from cuao3d.reproduce import TABLES

    asked = tuple(split_names(typed)) or TABLES
    if unknown := [name for name in asked if name not in TABLES]:
        raise InputError(f"There is no table {unknown[0]!r}; choose from {', '.join(TABLES)}.")
    return asked


def _size(world: str, steps: int | None, *, quick: bool) -> "Size":
    """Return how much is made and trained."""
    from dataclasses import replace

    from cuao3d.reproduce.worlds import QUICK, WORLDS, Size

    size = QUICK if quick else Size() if WORLDS[world].is_made else Size(num_steps=None, num_ablation=None)
    return size if steps is None else replace(size, num_steps=steps, num_ablation=steps)
