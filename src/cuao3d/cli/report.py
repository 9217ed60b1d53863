"""`cuao3d report`: a page on what a store holds and how well it is understood."""

from pathlib import Path

from tyro.conf import Positional

from cuao3d.cli.shared import note_missing
from cuao3d.console import note, tell


def report(
    store: Positional[Path],
    *,
    run: Path | None = None,
    data: Path | None = None,
    labels: str | None = None,
    scene: str | None = None,
    out: Path = Path("report.html"),
) -> int:
    """Write a page on any store: what it holds, scores where there are labels, pictures, and what was left out and why.

    Args:
        store: Folder of the store.
        run: Folder of a finished run, or a student's .safetensors, to be reported on too.
        data: What the store was made from: its photographs are looked at again, to show where views disagree.
        labels: Label set to name and score points in: its name, or a CSV of your own; that of the labels unless given.
        scene: Scene to show; unless given, the first that is scored.
        out: Page to write.
    """
    from cuao3d.files import check_output
    from cuao3d.own_report import report as write_report
    from cuao3d.store import Store

    check_output(out)
    written = write_report(Store.open(store), out, run=run, data=data, labels=labels, scene=scene)
    for name, reason in written.left_out:
        note(f"{name}: {reason}", head="left out")
    tell(f"wrote {out}")
    return note_missing(written.missing)
