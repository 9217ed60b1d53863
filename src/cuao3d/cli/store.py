"""`cuao3d store`: check that a store is as it was written, or fit how sure its labels are."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from cuao3d.cli.shared import note_missing
from cuao3d.console import note, progress_bar, tell, tell_table
from cuao3d.errors import InputError, UserError

if TYPE_CHECKING:
    from cuao3d.store import Store


def store(
    action: Positional[Literal["verify", "calibrate"]],
    path: Positional[Path],
    *,
    run: Path | None = None,
    labels: str = "scannet20",
    split: Literal["train", "val", "test", "all"] = "val",
    teacher: str | None = None,
    text: str | None = None,
) -> int:
    """Check that a store is as it was written, or fit on its labelled scenes how sure its labels are.

    Args:
        action: "verify" reads every file of every scene and compares it with the SHA-256 that was recorded. "calibrate"
            fits confidence, which `query` and `evaluate` then use; it is kept in the store or, with --run, in the run.
        path: Folder of the store.
        run: Folder of a finished run, to calibrate its student.
        labels: Label set of the classes: its name, or a CSV of your own.
        split: Split to fit on; nothing is to be scored on it afterwards, and the student should not have learned on it.
        teacher: Which teacher names the classes, where several have a text encoder; the first unless given.
        text: Text encoder for the names; the teacher's unless given.
    """
    from cuao3d.store import Store

    if action == "calibrate":
        return _calibrate(Store.open(path), run, labels, split, teacher, text)
    opened = Store.open(path)
    damaged = 0
    with progress_bar() as bar:
        names = sorted(folder.name for folder in (path / "scenes").iterdir() if folder.name not in opened.missing())
        for name in bar.track(names, description="verifying"):
            try:
                tell(f"{name}: {opened.verify(name) / 1e6:.1f} MB as written")
            except (UserError, OSError) as error:
                damaged += 1
                note(f"{error}", head="damaged", style="red")
    if damaged:
        raise InputError(f"{damaged} of {len(names)} scenes of {path} are damaged.")
    tell(opened.count_of_scenes())
    return note_missing(opened.missing())


def _calibrate(
    opened: "Store",
    run: Path | None,
    labels: str,
    split: Literal["train", "val", "test", "all"],
    teacher: str | None,
    text: str | None,
) -> int:
    """Fit confidence and say what came of it."""
    from cuao3d.calibrate import fit_trust
    from cuao3d.reliability import MISSES, SHARES

    which = None if split == "all" else split
    fits = fit_trust(opened, run, labels=labels, split=which, teacher=teacher, text=text)
    shown = [
        (name, f"{fit.temperature:.3f}", *("-" if one is None else f"{one:.2f}" for one in fit.thresholds))
        for name, fit in fits.items()
    ]
    titles = ("judge", "temperature", *(f"{100 * share:g} % wrong" for share in SHARES))
    tell_table(titles, shown)
    tell(f"confidence from which labels are kept, so that at most this share is wrong in {1 - MISSES:.0%} of scenes")
    if any(one is None for fit in fits.values() for one in fit.thresholds):
        tell(f"-: no confidence keeps this promise in these scenes; it takes {round(1 / MISSES) - 1} scenes at least")
    return note_missing(opened.missing())
