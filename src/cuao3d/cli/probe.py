"""`cuao3d probe`: linear probes of frozen features."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from cuao3d.cli.shared import check_device, note_missing, print_rows, split_names
from cuao3d.console import tell, tell_table
from cuao3d.errors import InputError
from cuao3d.schema import Count, Seed

if TYPE_CHECKING:
    from cuao3d.probe import SurfaceRow

OF_WORDS = ("by_student", "by_teacher", "retrieval")
"""What a row says of words; probes have seen all of them."""


def probe(
    store: Positional[Path],
    *,
    run: Path | None = None,
    labels: str | None = None,
    split: Literal["train", "val", "test", "all"] = "val",
    geometry: bool = False,
    baseline: Path | None = None,
    bound: Path | None = None,
    teachers: str | None = None,
    optimiser: Literal["converged", "paper"] | None = None,
    samples: Count = 30_000,
    seed: Seed = 0,
    seen: bool = False,
    device: str = "cpu",
    json: Path | None = None,
) -> int:
    """Fit linear maps from frozen features to labels, or to geometry, and score them on scenes of another split.

    Args:
        store: Folder of the store; probes learn from its scenes of the split train.
        run: Folder of a distilled run, or a student's .safetensors; without it only lifted features are probed.
        labels: Label set to learn and to score in, its name or a CSV of your own; scannet20 unless given.
        split: Split to evaluate: scenes that neither probes nor students learned from.
        geometry: Probe surface normals, height and depth instead of labels.
        baseline: Another student to compare with, such as one of a single teacher.
        bound: A run of `cuao3d supervise`, whose score is added.
        teachers: Teachers of the store whose lifted features are probed, separated by commas, or "none"; else all.
        optimiser: "paper" is the paper's, Adam for 20 epochs; "converged", the default, fits until no loss is to gain.
        samples: Samples that a probe learns from at most, drawn at random.
        seed: Decides which; and the order of the paper's optimiser.
        seen: Score only points whose sample some view saw.
        device: Where students and probes run, such as cuda.
        json: Also write the rows here.
    """
    from cuao3d import probe as room
    from cuao3d.files import check_output, write_json
    from cuao3d.store import Store

    check_device(device)
    check_output(json)
    opened = Store.open(store)
    of_both: dict[str, Any] = {"baseline": baseline, "most": samples, "seed": seed, "device": device}
    of_both["split"] = None if split == "all" else split
    of_both["teachers"] = None if teachers is None else () if teachers == "none" else tuple(split_names(teachers))
    if geometry:
        _check_idle({"--labels": labels, "--bound": bound, "--seen": seen or None, "--optimiser": optimiser})
        surfaces = room.probe_geometry(opened, run, **of_both)
        found = [asdict(row) for row in surfaces]
        _print_surfaces(surfaces)
    else:
        how: dict[str, Any] = {"bound": bound, "seen_only": seen, "optimiser": optimiser or "converged"}
        found = [asdict(row) for row in room.probe(opened, run, labels=labels or "scannet20", **of_both, **how)]
        print_rows([{key: row[key] for key in row if key not in OF_WORDS} for row in found])
    if json:
        write_json(json, {"rows": found})
    return note_missing(found[0]["missing"] if found else {})


def _check_idle(options: Mapping[str, object]) -> None:
    """Refuse options that have no effect on geometry.

    Raises:
        InputError: One was given.
    """
    for flag, value in options.items():
        if value is not None:
            raise InputError(f"{flag} has no effect with --geometry, which needs no labels; leave it out.")


def _print_surfaces(rows: "Sequence[SurfaceRow]") -> None:
    """Print a table of geometry: a line for each read-out, a column for each quantity."""
    from cuao3d.surfaces import KINDS

    quantities = list(dict.fromkeys(row.quantity for row in rows))
    errors = {(row.model, row.readout, row.quantity): row.error for row in rows}
    lines: list[tuple[str, ...]] = []
    for model, readout in sorted({(row.model, row.readout): 0 for row in rows}, key=lambda of: "control" in of[1]):
        shown = (errors.get((model, readout, quantity)) for quantity in quantities)
        forms = [".1f" if KINDS[quantity].unit == "degrees" else ".3f" for quantity in quantities]
        cells = ("-" if error is None else format(error, form) for error, form in zip(shown, forms, strict=True))
        lines.append((model, readout, *cells))
    titles = [f"{quantity}, {'°' if KINDS[quantity].unit == 'degrees' else 'm'}" for quantity in quantities]
    tell_table(("model", "read-out", *titles), lines, num_names=2)
    for quantity in quantities:
        number = next(row.num_samples for row in rows if row.quantity == quantity)
        what = "angle between directions" if quantity == "normal" else "absolute error"
        tell(f"{quantity}: {KINDS[quantity].about}; mean {what} over {number:,} samples")
    if rows:
        tell(f"{rows[0].scenes} of the split {rows[0].split}; -: features of a place cannot know what is of a view")
