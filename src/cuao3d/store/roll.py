"""The names that a store should hold, with what is known of each scene: `STORE/scenes.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

from cuao3d.console import counted
from cuao3d.durable import remove
from cuao3d.errors import InputError
from cuao3d.schema import fit
from cuao3d.seals import is_settled, read_sealed, stamp_of, write_sealed

ROLL = "scenes.json"

UNFINISHED = "unfinished"
"""Reason of a scene that is missing because its lifting has not ended."""

AGAIN = "run the same `cuao3d fuse` again"
"""What cures a damaged file of a store as a whole."""

SHORT = 20
"""A reason of fewer characters is said in a line; a longer one is in the files."""

LISTED = 3
"""Missing scenes that a line names at most."""


@dataclass(frozen=True)
class Entry:
    """A scene that a store should hold."""

    reason: str = UNFINISHED
    """Why it is missing, if it is."""
    sha256: str | None = None
    """SHA-256 of its manifest; None until its lifting is known to have ended."""
    outdated: str | None = None
    """SHA-256 of a manifest that does not count any more: the scene is to be lifted again."""


class _Roll(TypedDict):
    scenes: dict[str, Entry]


_ROLLS: dict[str, tuple[tuple[int, ...], dict[str, Entry]]] = {}
"""Stamp of each file that was read, and what it holds: each scene of thousands asks for it."""


def read_roll(store: Path) -> dict[str, Entry]:
    """Read the names that a store should hold; of one that no command filled there are none.

    Within a process the file is read again only if it has changed.

    Raises:
        InputError: The file is damaged.
    """
    path = store / ROLL
    if not path.is_file():
        return {}
    key, stamp = str(path.resolve()), stamp_of(path)
    known, entries = _ROLLS.get(key, ((), {}))
    if known != stamp:
        read: _Roll = fit(read_sealed(path, AGAIN), _Roll, str(path), AGAIN)
        entries = read["scenes"]
        if is_settled(stamp):
            _ROLLS[key] = stamp, entries
    return dict(entries)


def write_roll(store: Path, entries: Mapping[str, Entry]) -> None:
    """Write the names that a store should hold."""
    write_sealed(store / ROLL, {"scenes": {name: asdict(entry) for name, entry in sorted(entries.items())}})


def remove_damaged_roll(store: Path) -> None:
    """Remove the file if it is damaged: a fuse finds out again what it held."""
    try:
        read_roll(store)
    except InputError:
        remove(store / ROLL)


def count_of(held: int, missing: Mapping[str, str]) -> str:
    """Say how many scenes of how many there are, and which are missing: "1 of 2 scenes; room-4 unfinished".

    Args:
        held: Scenes that are there.
        missing: Reason of each that is not, by name.
    """
    total = held + len(missing)
    scenes = counted(total, "scene")
    if not missing:
        return scenes
    listed = [f"{name} {why if len(why) < SHORT else 'left out'}" for name, why in missing.items()][:LISTED]
    more = [f"and {len(missing) - LISTED} more"] if len(missing) > LISTED else []
    return f"{held} of {scenes}; {', '.join([*listed, *more])}"
