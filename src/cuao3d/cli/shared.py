"""What several commands share: names and options as they are typed, tables as they are printed."""

import math
from collections.abc import Mapping
from typing import Any

from cuao3d.console import note, tell, tell_table
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


def check_workers(workers: int, device: str) -> None:
    """Refuse a device that this machine does not have, and several processes on one that they would have to share."""
    check_device(device)
    if workers > 1 and device != "cpu":
        raise InputError(f"--workers {workers} share the cores of the CPU; with --device {device} leave it out.")


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print a results table, and beneath it the scores of the names that student and teacher were trained with."""
    lines = []
    for row in rows:
        scores = [f"{row[key]:.1f}" for key in ("miou", "macc", "fmiou", "miou_official")]
        lines.append((row["model"], readout_of(row), row["split"], *scores, row["scenes"]))
    tell_table(("model", "read-out", "split", "mIoU", "mAcc", "f-mIoU", "official mIoU", "scenes"), lines, num_names=3)
    for scenes in dict.fromkeys(tuple(row.get("trained_on", ())) for row in rows if row.get("trained_on")):
        tell(f"the student was trained on {len(scenes)} of the scenes: {', '.join(scenes)}")
    _print_by_group(rows)
    _print_by_seen(rows)
    _print_retrieval(rows)


def readout_of(row: dict[str, Any]) -> str:
    """Return the read-out of a row with all that names it: its rule, its passes and the mode of its batch norm."""
    parts = [row["readout"], row.get("ensemble")]
    parts += [] if row["readout"] in ("fused", "voting") else [f"{row.get('passes', 1)}x"]
    parts += ["train mode"] if row.get("train_mode") else []
    return ", ".join(part for part in parts if part)


def _short_names(rows: list[dict[str, Any]]) -> list[str]:
    """Return the read-out of each row, with what else names it only where the model has two of that read-out."""
    of_model = [(row["model"], row["readout"]) for row in rows]
    return [readout_of(row) if of_model.count(pair) > 1 else pair[1] for row, pair in zip(rows, of_model, strict=True)]


def _print_by_group(rows: list[dict[str, Any]]) -> None:
    """Print the mIoU of each group of classes, such as head, common and tail, where the label set has groups."""
    groups = list(dict.fromkeys(group for row in rows for group in row.get("by_group", {})))
    lines = []
    for row in (row for row in rows if row.get("by_group")):
        means = [row["by_group"].get(group, math.nan) for group in groups]
        scores = ["-" if math.isnan(mean) else f"{mean:.1f}" for mean in means]
        lines.append((row["model"], readout_of(row), row["split"], *scores))
    if lines:
        tell_table(("model", "read-out", "split", *(f"{group} mIoU" for group in groups)), lines, num_names=3)


def _print_retrieval(rows: list[dict[str, Any]]) -> None:
    """Print how well synonyms and questions find what they ask for, where the label set has any."""
    lines: list[tuple[str, ...]] = []
    unreadable: dict[str, None] = {}
    wrong = []
    for row, readout in zip(rows, _short_names(rows), strict=True):
        for kind, found in row.get("retrieval", {}).items():
            shares = [(found["false_absent"], "there is called absent"), (found["false_here"], "absent is called here")]
            said = [f"{share:.1f} % of what is {how}" for share, how in shares if share is not None]
            wrong += [f"verdicts of {row['model']}, {readout}, {kind}: {', '.join(said)}"] if said else []
            scores = [(found["ap"], ".1f"), (found["ap_shuffled"], ".1f"), (found["auroc"], ".2f")]
            shown = ["-" if score is None else format(score, form) for score, form in scores]
            marks = ([query[mark] for query in found["queries"]] for mark in ("is_seen", "is_known"))
            counts = ["not known" if None in held else f"{sum(held)} of {len(held)}" for held in marks]
            shown += [str(found["num_present"]), str(found["num_absent"]), *counts]
            lines.append((row["model"], readout, kind, *shown))
            unreadable |= dict.fromkeys(found["unreadable"])
    if lines:
        titles = ("AP", "AP, shuffled", "AUROC", "present", "absent", "student's words", "teacher's words")
        tell_table(("model", "read-out", "asked", *titles), lines, num_names=3)
    for line in wrong:
        tell(line)
    if unreadable:
        tell(f"not asked, as the text encoder does not know them: {', '.join(unreadable)}")


def _print_by_seen(rows: list[dict[str, Any]]) -> None:
    """Print the mIoU over seen and unseen names, which names these are, and why a mean is missing."""
    from cuao3d.vocabulary import divisions

    lines: list[tuple[str, ...]] = []
    named: dict[str, Any] = {}
    for row, readout in zip(rows, _short_names(rows), strict=True):
        for who, divided in divisions(row):
            means = [divided[key] for key in ("miou_seen", "miou_unseen", "harmonic")]
            scores = ["-" if mean is None else f"{mean:.1f}" for mean in means]
            lines.append((row["model"], readout, f"{who}: {divided['vocabulary']}", *scores))
            named[f"{who} ({divided['vocabulary']})"] = divided
    if lines:
        tell_table(("model", "read-out", "trained with", "seen mIoU", "unseen mIoU", "harmonic"), lines, num_names=3)
    for who, divided in named.items():
        if divided["seen"]:
            rest = f"; unseen: {', '.join(divided['unseen'])}" if divided["unseen"] else ""
            tell(f"seen by the {who}: {', '.join(divided['seen'])}{rest}")
        elif divided["seen"] is not None:
            tell(f"{who}: all {len(divided['unseen'])} evaluated names are unseen")


def note_missing(missing: Mapping[str, str]) -> int:
    """Print why scenes of a store are missing; return the exit code of a command that worked on the others."""
    for name, reason in missing.items():
        note(f"{name}: {reason}", head="missing")
    return LEFT_OUT if missing else 0
