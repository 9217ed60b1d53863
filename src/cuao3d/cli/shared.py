"""What several commands share: names and options as they are typed, tables as they are printed."""

from collections.abc import Mapping
from typing import Any

from cuao3d.console import note, tell_table
from cuao3d.errors import InputError

LEFT_OUT = 3
"""Exit code of a command that did its work but for something that it had to leave out; it says what."""


def split_names(text: str | None) -> list[str]:
    """Read names that are separated by commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def reading_options(
    annotations: str | None, tolerance: float | None, every: int | None, *, official: bool
) -> dict[str, Any]:
    """Return the options of `open_dataset` that were given."""
    options = {"annotations": annotations, "tolerance": tolerance, "every": every, "official": official or None}
    return {name: value for name, value in options.items() if value is not None}


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        InputError: There is no such device.
    """
    import torch

    here = ["cpu"]
    if (accelerator := torch.accelerator.current_accelerator(check_available=True)) is not None:
        kind = accelerator.type
        here += [kind, *(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))]
    if name not in here:
        raise InputError(f"--device {name} is not on this machine; choose from {', '.join(here)}.")


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print a results table."""
    lines = []
    for row in rows:
        scores = [f"{row[key]:.1f}" for key in ("miou", "macc", "fmiou", "miou_official")]
        lines.append((row["model"], row["readout"], row["split"], *scores, row["scenes"]))
    tell_table(("model", "read-out", "split", "mIoU", "mAcc", "f-mIoU", "official mIoU", "scenes"), lines, num_names=3)


def note_missing(missing: Mapping[str, str]) -> int:
    """Print why scenes of a store are missing; return the exit code of a command that worked on the others."""
    for name, reason in missing.items():
        note(f"{name}: {reason}", head="missing")
    return LEFT_OUT if missing else 0
