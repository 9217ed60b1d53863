"""Stores at URLs, to read: small files are brought when a store is opened, those of a scene when they are used."""

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cuao3d.codecs import Basis
from cuao3d.download import is_offline
from cuao3d.durable import is_own, locked
from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.files import sha256_of
from cuao3d.names import check_file_name
from cuao3d.progress import waiting
from cuao3d.remote import RemoteFolder
from cuao3d.seals import sha256_once
from cuao3d.store import Store
from cuao3d.store.encoding import basis_path
from cuao3d.store.header import LABELS
from cuao3d.store.roll import ROLL, Entry, read_roll
from cuao3d.store.schemas import read_manifest
from cuao3d.store.stored import LIFTING_FILE, POINTS_FILE, Lifting, StoredScene

FITTED = "confidence.json"
"""File of a store that holds how sure its labels are; see `confidence.py`."""

AT_ONCE = 16
"""Manifests that are asked for at a time."""


def open_remote(url: str) -> Store:
    """Open a store at a URL, to be read; all that is read of it is kept in the cache.

    What the store holds is asked for each time, and scenes that have changed are brought anew. With `CUAO3D_OFFLINE`
    nothing is asked for, and what was read before is there.

    Args:
        url: Its folder, as fsspec takes it.

    Raises:
        NotFoundError: There is no store, or the place cannot be reached.
        InputError: A file of it is damaged, or the URL cannot be opened.
        NotInstalledError: fsspec, or what it needs for this URL, is not installed.
    """
    place = RemoteFolder(url if url.endswith("://") else url.rstrip("/"))
    with _naming(place):
        if is_offline():
            if not (place.copy / "store.json").is_file():
                raise NotFoundError(f"{url} was not read before, and CUAO3D_OFFLINE forbids to ask for it. Unset it.")
        else:
            with waiting(f"asking {url}"), locked(place.copy.parent, on_wait=lambda holder: None):
                _follow(place)
        return RemoteStore(place, Store.open(place.copy))


class RemoteStore(Store):
    """A store at a URL: its folder is a copy that holds all small files, and those of scenes that were used."""

    def __init__(self, place: RemoteFolder, copy: Store) -> None:
        super().__init__(copy.path, copy.cell, copy.teachers, copy.settings, copy.codec, copy.bases)
        self.url, self._place = place.url, place

    def __getitem__(self, name: str) -> StoredScene:
        """Return a finished scene, as `Store` does; its cloud is brought now, features when they are asked for."""
        with _naming(self._place):
            if manifest := self._manifest(name, read_roll(self.path)):
                self._bring(name, manifest["files"], POINTS_FILE)
            scene = super().__getitem__(name)
        return replace(scene, _bring=partial(self._bring, name, scene.files))

    def basis(self, teacher: str) -> Basis | None:
        """Return the basis in which a teacher's features are kept, as `Store` does; brought when it is first used."""
        path = basis_path(self.path, teacher, self.bases.get(teacher))
        check_file_name(path.name, "basis")
        if teacher in self.bases and not path.is_file():
            self._place.bring(_at(self.path, path), path)
        try:
            with _naming(self._place):
                return super().basis(teacher)
        except InputError:
            path.unlink(missing_ok=True)  # the next time it is asked for again
            raise

    def lifting(self, name: str) -> dict[str, Lifting]:
        """Return how the lifting of a scene went, as `Store` does."""
        path = self._folder(name) / LIFTING_FILE
        if not path.is_file() and not is_offline():
            self._place.bring(_at(self.path, path), path)
        return super().lifting(name)

    def verify(self, name: str) -> int:
        """Return the bytes of a finished scene, once all of its files have been brought anew and compared."""
        for file, entry in read_manifest(self._folder(name))["files"].items():
            self._fetch(self._folder(name) / file, entry)
        return super().verify(name)

    def _needed(self, files: Mapping[str, Any]) -> Mapping[str, Any]:
        return {POINTS_FILE: files[POINTS_FILE]}

    def _bring(self, name: str, files: Mapping[str, Any], file: str, is_checked: bool = True) -> None:
        """Bring a file of a scene, unless it is here as its manifest states it."""
        path, entry = self._folder(name) / file, files[file]
        is_here = path.is_file() and path.stat().st_size == entry["bytes"]
        if not is_here or (is_checked and sha256_once(path) != entry["sha256"]):
            self._fetch(path, entry)

    def _fetch(self, path: Path, entry: Mapping[str, Any]) -> None:
        file = _at(self.path, path)
        if not self._place.bring(file, path, sha256=entry["sha256"], num_bytes=entry["bytes"]):
            raise self._place.damaged(file, "it is missing")


def _follow(place: RemoteFolder) -> None:
    """Bring what a store is and which scenes it holds; drop what was brought of scenes that changed or are gone."""
    place.forget()
    copy = place.copy
    if not place.bring("store.json", copy / "store.json"):
        raise NotFoundError(f"{place.url} is no store (no {place.url}/store.json). Name the folder that holds it.")
    Store.open(copy)
    for file in (ROLL, FITTED):
        if not place.bring(file, copy / file):
            (copy / file).unlink(missing_ok=True)
    roll = read_roll(copy) or dict.fromkeys(_listed(place), Entry())
    for name in roll:
        check_file_name(name, "scene")
    for folder in (copy / "scenes").glob("*"):
        if folder.name not in roll:
            shutil.rmtree(folder)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(partial(_follow_scene, place), roll, roll.values()))
    _bring_label_sets(place, roll)


def _follow_scene(place: RemoteFolder, name: str, entry: Entry) -> None:
    """Bring the manifest of a scene, if it is finished; where it changed, drop what was brought of the scene."""
    folder = place.copy / "scenes" / name
    manifest, new = folder / "manifest.json", folder / "manifest.new"
    if manifest.is_file() and sha256_of(manifest) == entry.sha256:
        return
    if not place.bring(f"scenes/{name}/manifest.json", new, sha256=entry.sha256):
        shutil.rmtree(folder, ignore_errors=True)
    elif manifest.is_file() and sha256_of(new) == sha256_of(manifest):
        new.unlink()
    else:
        for path in folder.iterdir():
            if path != new and not is_own(path.name):
                path.unlink()
        os.replace(new, manifest)  # last: a process that was stopped before finds the change again


def _bring_label_sets(place: RemoteFolder, roll: Mapping[str, Entry]) -> None:
    """Bring the label sets that the scenes name, unless they are here."""
    sets = dict[str, str]()
    for name in roll:
        with suppress(UserError):  # it is unfinished or damaged, which is said where it is used
            about = read_manifest(place.copy / "scenes" / name)
            if sha256 := about.get("label_set_sha256"):
                sets[about["label_set"]] = sha256
    for name, sha256 in sets.items():
        check_file_name(name, "label set")
        path = place.copy / LABELS / name
        if not path.is_file() or sha256_of(path) != sha256:
            place.bring(_at(place.copy, path), path, sha256=sha256)


def _listed(place: RemoteFolder) -> Iterator[str]:
    """List the scenes of a store that does not say which it holds."""
    for name in place.names("scenes"):
        with suppress(InputError):  # of a listing for people, with links to other places
            check_file_name(name, "scene")
            yield name


def _at(copy: Path, path: Path) -> str:
    """Return where a file lies below the URL."""
    return path.relative_to(copy).as_posix()


@contextmanager
def _naming(place: RemoteFolder) -> Iterator[None]:
    """Name the URL in errors, not the copy."""
    try:
        yield
    except UserError as error:
        if str(place.copy) not in str(error):
            raise
        raise type(error)(str(error).replace(str(place.copy), place.url)) from None
