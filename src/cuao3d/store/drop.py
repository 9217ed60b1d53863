"""Dropping a teacher from a store that is there: its features go, all else stays as it is."""

from dataclasses import replace

from cuao3d.durable import locked
from cuao3d.errors import NotFoundError
from cuao3d.names import check_local
from cuao3d.progress import OnCount
from cuao3d.store import Store
from cuao3d.store.encoding import has_files_of, remove_other_bases
from cuao3d.store.plan import end
from cuao3d.store.revise import change_teachers, manifest_of
from cuao3d.store.roll import read_roll, write_roll
from cuao3d.store.stored import features_file


def drop_teacher(store: Store, teacher: str, *, progress: OnCount | None = None) -> None:
    """Remove a teacher from a store, in place.

    First `store.json` forgets it; then each scene gets a manifest without it, and only after that the scene's file
    goes. A reader finds whole scenes at any moment. Where it is stopped, the same call goes on.

    Args:
        store: The store; it lacks the teacher afterwards.
        teacher: Name of the teacher.
        progress: Called after each scene.

    Raises:
        NotFoundError: The store has no such teacher.
        InputError: Another process writes the store, or a manifest is damaged.
    """
    check_local(store.url or store.path, "store")
    with locked(store.path):
        roll, finished = read_roll(store.path), store.names()
        holding = [name for name in finished if _holds(store, name, teacher)]
        check_holds(store, teacher)
        if roll:
            write_roll(store.path, roll | {name: replace(roll[name], sha256=None) for name in holding if name in roll})
        store.teachers = {name: card for name, card in store.teachers.items() if name != teacher}
        store.bases = {name: sha256 for name, sha256 in store.bases.items() if name != teacher}
        store._write_header()
        for done, name in enumerate(holding, start=1):
            change_teachers(store, name, {}, {}, None)
            if progress:
                progress(done, len(holding))
        if roll:
            end(store, {})
        remove_other_bases(store.path, store.bases)


def check_holds(store: Store, teacher: str) -> None:
    """Check that a store has a teacher, or that dropping it was begun.

    Raises:
        NotFoundError: Neither is so.
    """
    if teacher in store.teachers or has_files_of(store.path, teacher):
        return
    roll, finished = read_roll(store.path), store.names()
    if any(_holds(store, name, teacher) or (name in roll and roll[name].sha256 is None) for name in finished):
        return
    held = ", ".join(store.teachers) or "none"
    raise NotFoundError(f"{store.path} holds no features of {teacher!r}, only of {held}.")


def _holds(store: Store, name: str, teacher: str) -> bool:
    """Say whether a scene's manifest has a teacher, or its folder what is left of it."""
    manifest = manifest_of(store, name) or {}
    return teacher in manifest.get("teachers", {}) or (store._folder(name) / features_file(teacher)).is_file()
