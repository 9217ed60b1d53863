"""`cuao3d store`: check that a store is as it was written."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from cuao3d.cli.shared import note_missing
from cuao3d.console import note, progress_bar, tell
from cuao3d.errors import InputError, UserError


def store(action: Positional[Literal["verify"]], path: Positional[Path]) -> int:
    """Check that a store is as it was written.

    Args:
        action: "verify" reads every file of every scene and compares it with the SHA-256 that was recorded.
        path: Folder of the store.
    """
    from cuao3d.store import Store

    assert action == "verify"
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
