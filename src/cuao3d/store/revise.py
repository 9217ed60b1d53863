"""Changes of a store that is there: which scenes it should hold, and the teachers of a scene."""

import json
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from cuao3d import __version__
from cuao3d.errors import InputError, NotFoundError
from cuao3d.seals import read_sealed, write_sealed
from cuao3d.store import Store
from cuao3d.store.encoding import feature_files
from cuao3d.store.roll import Entry, read_roll, write_roll
from cuao3d.store.schemas import read_cloud, read_manifest
from cuao3d.store.sources import Record
from cuao3d.store.stored import (
    PHOTOGRAPHS_FILE,
    POINTS_FILE,
    Lifting,
    features_file,
    remove_others,
    write_file,
    write_lifting,
)


def expect(store: Store, entries: Mapping[str, Entry]) -> None:
    """Write which scenes the store should hold, and its own settings if they are new.

    Args:
        store: The store.
        entries: What is known of each.
    """
    write_roll(store.path, entries)
    if not is_written(store):
        store._write_header()


def is_written(store: Store) -> bool:
    """Say whether the cell, teachers and settings of a store are those that its folder states."""
    try:
        there = read_sealed(store.path / "store.json", "")
    except (InputError, NotFoundError):
        return False
    return bool({key: there.get(key) for key in store._header()} == json.loads(json.dumps(store._header())))


def has_basis(store: Store, teacher: str) -> bool:
    """Say whether the basis of a teacher is there and whole."""
    try:
        return store.basis(teacher) is not None
    except InputError:
        return False


def change_teachers(
    store: Store,
    name: str,
    features: Mapping[str, Float[Tensor, "V _"]],
    lifting: Mapping[str, Lifting],
    source: Record | None,
    *,
    disagreement: Mapping[str, Float[Tensor, "V"]] | None = None,
    errors: Mapping[str, float | None] | None = None,
) -> None:
    """Give a finished scene features of further teachers, and drop those of teachers that the store does not have.

    Args:
        store: The store.
        name: Name of the scene.
        features: For each of the store's teachers that is new, or that has another card than that of the scene's
            features, a row for each of the scene's seen samples, or its code.
        lifting: For each of them how its lifting went.
        source: What the scene was read from; None: that is as it was.
        disagreement: For each of them how far the views of each seen sample disagree, where that was measured.
        errors: Mean cosine error of those whose codes are given.

    Raises:
        InputError: The features are not of those teachers, or of other samples.
    """
    folder = store._folder(name)
    manifest = read_manifest(folder)
    kept, coded = store._encode(name, manifest["num_seen"], features, errors)
    written = feature_files(kept, disagreement or {})
    files = {POINTS_FILE: manifest["files"].pop(POINTS_FILE)}
    for file in map(features_file, store.teachers):
        there = manifest["files"].pop(file, None)
        files[file] = write_file(folder / file, written[file]) if file in written else there
    dropped = [file for file in manifest["files"] if file != PHOTOGRAPHS_FILE]
    files |= {file: entry for file, entry in manifest["files"].items() if file not in dropped}
    measured = {**store.lifting(name), **lifting}
    write_lifting(folder, {teacher: measured[teacher] for teacher in store.teachers if teacher in measured})
    about = {"teachers": store._header()["teachers"], "code_version": __version__}
    if source is not None:
        source.write(folder)
        about["source"] = source.as_json()
    coded = {**manifest.get("codecs", {}), **coded}
    if coded:
        about["codecs"] = {teacher: coded[teacher] for teacher in store.teachers if teacher in coded}
    write_sealed(folder / "manifest.json", manifest | about | {"files": files})
    remove_others(folder, files)


def manifest_of(store: Store, name: str) -> dict[str, Any] | None:
    """Return the manifest of a finished scene; None for one that is missing, damaged or outdated."""
    try:
        return store._manifest(name, read_roll(store.path))
    except InputError:
        return None


def num_views(store: Store, name: str) -> Int64[Tensor, "S"]:
    """Return how many views see each sample of a scene, outdated or not."""
    folder = store._folder(name)
    return read_cloud(folder, read_manifest(folder))["num_views"].long()
