"""What is to be done to each scene of a store so that it is what a command asks for; what is so already stays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cuao3d.durable import remove
from cuao3d.errors import InputError, UserError
from cuao3d.scene import Source
from cuao3d.seals import sha256_once
from cuao3d.store import Store
from cuao3d.store.encoding import remove_other_bases
from cuao3d.store.revise import expect, is_written, manifest_of
from cuao3d.store.roll import Entry, read_roll
from cuao3d.store.schemas import read_manifest
from cuao3d.store.sources import Record, differences, read_record, record
from cuao3d.store.stored import check_size


class OtherCaptureError(InputError):
    """A store holds a scene of the same name that comes from another capture."""


Kind = Literal["there", "new", "again", "teachers"]


@dataclass(frozen=True)
class Change:
    """What a scene needs."""

    kind: Kind
    """Nothing: it is there; to be lifted: it is new, or again; or features of some teachers only."""
    reason: str = ""
    """Why it is lifted again."""
    teachers: tuple[str, ...] = ()
    """Teachers whose features are to be lifted, where only some are; the others stay as they are."""
    outdated: str | None = None
    """SHA-256 of a manifest that does not count any more; None where it is damaged and is deleted."""


def plan(store: Store, name: str, source: Source) -> Change:
    """Compare a scene of a store with what is asked for.

    Args:
        store: The store, with the cell and the teachers that are asked for.
        name: Name of the scene.
        source: What decides the scene now.

    Raises:
        OtherCaptureError: The store holds a scene of this name of another capture, which is still there.
        OSError: A file of the source cannot be read.
    """
    folder = store.path / "scenes" / name
    path = folder / "manifest.json"
    if not path.is_file():
        return Change("new")
    outdated = sha256_once(path)
    try:
        manifest = read_manifest(folder)
        for file, entry in store._needed(manifest["files"]).items():
            check_size(folder / file, entry)
        if manifest["name"] != name or read_roll(store.path).get(name, Entry()).sha256 not in (None, outdated):
            return Change("again", "its manifest was that of another scene")
    except UserError:
        return Change("again", "a file of it was damaged")
    if reason := _reason(store, manifest, source, folder):
        return Change("again", reason, outdated=outdated)
    had, cards = manifest["teachers"], {teacher: asdict(card) for teacher, card in store.teachers.items()}
    changed = tuple(
        teacher for teacher, card in cards.items() if had.get(teacher) != card or not store._keeps(manifest, teacher)
    )
    if not changed and set(had) == set(cards):
        return Change("there")
    if len(changed) == len(cards):
        other = [teacher for teacher in changed if teacher in had]
        recoded = [teacher for teacher in other if had[teacher] == cards[teacher]]
        reason = f"{', '.join(other)} has other weights, options or code" if other else "its teachers are others"
        if recoded == other and other:
            reason = f"features of {', '.join(other)} were kept by another codec or basis"
        return Change("again", reason, outdated=outdated)
    return Change("teachers", teachers=changed, outdated=outdated)


def begin(store: Store, changes: Mapping[str, Change], others: Sequence[str] = ()) -> None:
    """Write down which scenes a store should hold, and which of those that it holds do not count any more.

    Args:
        store: The store.
        changes: What each scene of the dataset needs. Scenes of the store that are none of the dataset stay in it.
        others: Scenes of the dataset that other processes look after; what is known of them stays.
    """
    entries = _of_others(store, others)
    for name, change in changes.items():
        if change.kind == "again" and change.outdated is None:
            remove(store.path / "scenes" / name / "manifest.json")
        entries[name] = Entry(outdated=change.outdated) if change.kind != "there" else _finished(store, name)
    for path in sorted((store.path / "scenes").glob("*/manifest.json")):
        if (name := path.parent.name) in entries or (manifest := manifest_of(store, name)) is None:
            continue
        left = Entry("it is no longer in the data, and was lifted otherwise", outdated=sha256_once(path))
        entries[name] = _finished(store, name) if _fits(store, manifest) else left
    expect(store, entries)


def end(store: Store, broken: Mapping[str, str], names: Sequence[str] | None = None) -> None:
    """Write down which scenes of a store are finished, and why others are not.

    Args:
        store: The store.
        broken: Reason of each scene that was left out, by name.
        names: Scenes to look at; None for all.
    """
    entries = read_roll(store.path)
    for name in list(entries) if names is None else names:
        entry = entries.get(name, Entry())
        if store.has(name):
            entries[name] = _finished(store, name)
        elif name in broken:
            entries[name] = Entry(broken[name], outdated=entry.outdated)
    expect(store, entries)
    remove_other_bases(store.path, store.bases)


def check_names(names: Sequence[str], source_of: Callable[[int], Source | None]) -> None:
    """Refuse two scenes of one name: a store could hold only one of them.

    Args:
        names: Name of each scene.
        source_of: Returns what decides a scene, if that is known.

    Raises:
        InputError: Two have the same name; says where they lie.
    """
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if (other := first.setdefault(name, index)) != index:
            one, two = _places((source_of(other), source_of(index)), (other, index))
            raise InputError(
                f"Two scenes have the name {name!r}: {one} and {two}. Rename one of them, or make a store for each."
            )


def manifest_sha256(store: Store, name: str) -> str | None:
    """Return the SHA-256 of a scene's manifest, whatever it says; None where there is none."""
    path = store.path / "scenes" / name / "manifest.json"
    return sha256_once(path) if path.is_file() else None


def _of_others(store: Store, names: Sequence[str]) -> dict[str, Entry]:
    """Return what is known of scenes that other processes look after.

    Where the store gets other teachers, a scene that was lifted by those before does not count any more.
    """
    roll, may_differ = read_roll(store.path), not is_written(store)
    entries = {name: roll.get(name, Entry()) for name in names}
    for name in names if may_differ else ():
        manifest = manifest_of(store, name)
        if manifest is not None and not _fits(store, manifest):
            entries[name] = Entry(outdated=manifest_sha256(store, name))
    return entries


def _fits(store: Store, manifest: Mapping[str, Any]) -> bool:
    """Say whether a scene has the cells and the teachers of a store, kept as the store keeps them."""
    cards = {teacher: asdict(card) for teacher, card in store.teachers.items()}
    same = manifest.get("cell") == store.cell and manifest.get("teachers") == cards
    return bool(same and all(store._keeps(manifest, teacher) for teacher in cards))


def _reason(store: Store, manifest: Mapping[str, Any], source: Source, folder: Path) -> str:
    """Say why a scene is to be lifted again; nothing if it is not."""
    if manifest.get("source") is None:
        return "it is not known what it was lifted from"
    if manifest["cell"] != store.cell:
        return f"its cells are {manifest['cell']:g} m, not {store.cell:g} m"
    known = read_record(folder, manifest["source"])
    now = record(source, known)
    reason = "; ".join(differences(manifest["source"], known, now))
    if reason:
        _check_place(store, folder.name, known, now)
    elif known != now:
        now.write(folder)  # the same content with other times: not to be hashed again each time
    return reason


def _check_place(store: Store, name: str, known: Record | None, now: Record) -> None:
    """Raise InputError if a scene comes from another capture than the one of its name in the store."""
    if known is None or known.folder in (None, now.folder) or now.folder is None or not Path(known.folder).is_dir():
        return
    raise OtherCaptureError(
        f"{store.path} holds a scene {name!r} of {known.folder}; that of {now.folder} has the same name and another "
        "content. Rename one of them, or choose another folder for the store."
    )


def _finished(store: Store, name: str) -> Entry:
    return Entry("", sha256=sha256_once(store.path / "scenes" / name / "manifest.json"))


def _places(sources: tuple[Source | None, Source | None], indices: tuple[int, int]) -> tuple[str, str]:
    """Say where two scenes lie: their folders, or in one folder the first file of each that the other does not use."""
    one, two = (source or Source() for source in sources)
    if one.folder != two.folder:
        return str(one.folder), str(two.folder)
    own = [
        next((str(path) for path in source.files.values() if path not in other.files.values()), f"scene {index + 1}")
        for source, other, index in zip((one, two), (two, one), indices, strict=True)
    ]
    return own[0], own[1]
