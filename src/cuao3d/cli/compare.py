"""`cuao3d compare`: compare the teachers of a store."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from cuao3d.cli.shared import note_missing, split_names
from cuao3d.console import tell, tell_table

if TYPE_CHECKING:
    from cuao3d.compare import Comparison


def compare(store: Positional[Path], *, teachers: str | None = None, json: Path | None = None) -> int:
    """Compare the teachers of a store: time, size, agreement between views and, where there are labels, mIoU.

    Args:
        store: Folder of the store.
        teachers: Names of its teachers, separated by commas; all of them unless given.
        json: Also write the rows here.
    """
    from cuao3d import pipeline
    from cuao3d.files import check_output, write_json
    from cuao3d.store import Store

    check_output(json)
    rows = pipeline.compare_teachers(Store.open(store), tuple(split_names(teachers)))
    _print_comparison(rows)
    if json:
        write_json(json, {"rows": [asdict(row) for row in rows]})
    return note_missing(rows[0].missing if rows else {})


def _print_comparison(rows: Sequence["Comparison"]) -> None:
    """Print how teachers compare."""
    lines = []
    for row in rows:
        figures = (
            (row.seconds_per_view, "{:.3f}"),
            (row.gigabytes, "{:.3f}"),
            (row.agreement, "{:.2f}"),
            (row.zero_shot_miou, "{:.1f}"),
            (row.by_teacher and row.by_teacher.miou_seen, "{:.1f}"),
            (row.by_teacher and row.by_teacher.miou_unseen, "{:.1f}"),
            (row.by_teacher and row.by_teacher.harmonic, "{:.1f}"),
            (row.probe_miou, "{:.1f}"),
        )
        said = ["-" if value is None else form.format(value) for value, form in figures]
        lines.append((row.teacher, row.num_channels, *said))
    scores = ("zero-shot", "seen", "unseen", "harmonic", "probe")
    tell_table(("teacher", "channels", "s/view", "GB", "agreement", *scores), lines)
    tell(rows[0].scenes if rows else "the store has no teachers")
    on = next((row.probe_split for row in rows if row.probe_split), None)
    tell("agreement: share of the features' variance that the place explains, not the view (1 is best)")
    for row in rows:
        if row.by_teacher is not None:
            about = row.by_teacher
            which = "not known" if about.seen is None else ", ".join(about.seen) or "none"
            tell(f"{row.teacher} was trained with: {about.vocabulary}; seen names: {which}")
    tell(f"zero-shot, probe: mIoU, percent; the probe is scored on {on}" if on else "no labels: no scores")
