"""Several processes that fill one store: which scenes each looks after, and whose turn it is with a scene."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cuao3d.console import note
from cuao3d.durable import LOCK, locked
from cuao3d.errors import InputError
from cuao3d.store import Store
from cuao3d.store.plan import Change, manifest_sha256
from cuao3d.store.revise import is_written

PATIENCE = 2.0
"""Seconds for which a share waits for another one without a word."""


class OtherTeachersError(InputError):
    """Another process has begun to fill the store with other teachers or settings; every further scene would fail."""


@dataclass(frozen=True)
class Shard:
    """One of several shares of a dataset; together they are all of it, and no scene is in two."""

    number: int = 1
    """Which share, from 1 to `count`."""
    count: int = 1
    """How many there are."""

    @classmethod
    def read(cls, text: str) -> "Shard":
        """Read a share as it is written: "3/16" is the third of sixteen.

        Raises:
            InputError: It is not written so.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise InputError(
                f"--shard is {text!r}; expected i/n, the i-th of n shares, from 1/n to n/n. In an array of 16 "
                "jobs of slurm: --shard $SLURM_ARRAY_TASK_ID/16."
            )
        return cls(number, count)

    def of(self, num_scenes: int) -> range:
        """Return the indices of the scenes of this share: every n-th one, so that long scenes are spread."""
        return range(self.number - 1, num_scenes, self.count)


@contextmanager
def roll_locked(store: Path) -> Iterator[None]:
    """Let one process at a time change what a store says of all its scenes; others wait.

    That takes a moment, or as long as bases are fitted; who waits longer than `PATIENCE` says for whom, once.
    """
    begun, told = time.monotonic(), list[str]()

    def say(holder: str) -> None:
        if not told and time.monotonic() - begun >= PATIENCE:
            told.append(holder)
            note(f"{store}: waits for {holder}, which fits bases or writes the list of scenes")

    with locked(store, name=f"{LOCK}-roll", on_wait=say):
        yield


@contextmanager
def scene_locked(store: Store, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time write a scene, whoever started it; others wait until it has ended.

    Args:
        store: The store.
        name: Name of the scene.
        say: Told whom it waits for.

    Raises:
        OtherTeachersError: The store has other teachers or settings by now.
    """
    with locked(store.path / "scenes" / name, on_wait=lambda holder: say(f"{name}: {holder} lifts it")):
        check_is_written(store)
        yield


def check_is_written(store: Store) -> None:
    """Raise OtherTeachersError if the store has other teachers or settings by now."""
    if not is_written(store):
        raise OtherTeachersError(
            f"{store.path / 'store.json'} has changed meanwhile: another command fills the store with other "
            "teachers or settings. Give all that fill one store the same options, or a store each."
        )


def still_needed(store: Store, name: str, change: Change, look_again: Callable[[], Change]) -> Change:
    """Return what a scene needs now: another process may have lifted it since that was planned.

    Args:
        store: The store.
        name: Name of the scene; its lock is held.
        change: What was planned.
        look_again: Plans anew.
    """
    return change if manifest_sha256(store, name) in (None, change.outdated) else look_again()


def missing_of(missing: Mapping[str, str], names: tuple[str, ...], shard: Shard | None) -> dict[str, str]:
    """Return those of the missing scenes that a share should have made; all without a share.

    Args:
        missing: Reason of each missing scene, by name.
        names: Names of the dataset's scenes.
        shard: The share.
    """
    if shard is None:
        return dict(missing)
    return {names[index]: missing[names[index]] for index in shard.of(len(names)) if names[index] in missing}
