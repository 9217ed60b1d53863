"""Stores made of stores: the same scenes under another codec, or the scenes of several in one."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cuao3d import __version__
from cuao3d.codecs import Basis, Codec
from cuao3d.durable import locked, remove
from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.files import write_whole
from cuao3d.labels.kept import keep_label_set
from cuao3d.names import check_local
from cuao3d.progress import OnCount
from cuao3d.seals import sha256_once, write_sealed
from cuao3d.store import Store, TeacherCard
from cuao3d.store.encoding import feature_files
from cuao3d.store.header import LABELS, difference
from cuao3d.store.plan import end
from cuao3d.store.revise import expect, has_basis, manifest_of
from cuao3d.store.roll import Entry
from cuao3d.store.schemas import read_manifest
from cuao3d.store.sources import SOURCES_FILE
from cuao3d.store.stored import (
    LIFTING_FILE,
    PHOTOGRAPHS_FILE,
    POINTS_FILE,
    check_file,
    check_size,
    features_file,
    remove_others,
    write_file,
)

NUM_SCENES, NUM_ROWS = 64, 2048
"""Scenes, and rows of each, that a basis is fitted to at most; both spread evenly."""

FROM = "copied_from"
"""Key of a manifest: SHA-256 of the manifest that the scene was copied from."""


def convert(store: Store, codec: Codec, out: Path | str, *, progress: OnCount | None = None) -> Store:
    """Write the scenes of an fp16 store under another codec; scenes that are there already stay.

    The result decodes to features that differ from the originals by the error that each manifest states. It can be
    stopped at any moment and goes on when it is called again, to the same bytes.

    Args:
        store: The store to read.
        codec: How features are to be kept.
        out: Folder of the store to make, or to go on with.
        progress: Called after each scene.

    Raises:
        InputError: The store is compressed already or holds a damaged file, or `out` holds something else.
    """
    if store.codec != Codec():
        raise InputError(
            f"{store.path} is kept as {store.codec}, and what that lost does not come back. Convert the fp16 store "
            f"that it was made of, or lift anew: cuao3d fuse DATA --codec {codec}."
        )
    if codec == store.codec:
        raise InputError(f"{store.path} is kept as {codec} already. Name another codec; choose from {Codec.FORMS}.")
    out = _elsewhere(out, [store])
    with locked(out):
        _check_teachers(out, store)
        target = Store.create(
            out, cell=store.cell, teachers=store.teachers, settings=store.settings, codec=codec, revise=True
        )
        for teacher, card in store.teachers.items():
            rank = codec.rank_of(card.num_channels)
            if rank is not None and not has_basis(target, teacher):
                try:
                    target.keep_basis(teacher, Basis.fit(_sample(store, teacher), rank))
                except InputError as error:
                    raise InputError(f"{store.path}, teacher {teacher}: {error}.") from None
        _fill(target, [store], progress)
    return target


def merge(stores: Sequence[Store], out: Path | str, *, progress: OnCount | None = None) -> Store:
    """Write the scenes of several stores into one; scenes that are there already stay.

    Args:
        stores: The stores; alike in cell, teachers, settings and codec, and without a name in common.
        out: Folder of the store to make, or to go on with.
        progress: Called after each scene.

    Raises:
        InputError: They are not alike or hold scenes of one name, one holds a damaged file, or `out` holds something
            else.
    """
    if len(stores) < 2:
        raise InputError("Name two stores at least: cuao3d store merge A B --out C.")
    first, holder = stores[0], dict[str, Store]()
    for store in stores:
        if _alike(store) != _alike(first):
            told = difference(_alike(store), _alike(first))
            raise InputError(f"{store.path} and {first.path} cannot be merged: of the one the {told}.")
        if other := next((name for name in first.teachers if store.bases.get(name) != first.bases.get(name)), None):
            raise InputError(
                f"{store.path} and {first.path} cannot be merged: they keep {other} in other bases. Merge the fp16 "
                "stores that they were made of, and convert the result."
            )
        for name in store.names():
            if name in holder:
                raise InputError(
                    f"Scene {name!r} is in {holder[name].path} and in {store.path}; a store holds one of a name."
                )
            holder[name] = store
    out = _elsewhere(out, stores)
    data = [str(store.settings["data"]) for store in stores if "data" in store.settings]
    settings = dict(first.settings) | ({"data": "+".join(dict.fromkeys(data))} if data else {})
    with locked(out):
        _check_teachers(out, first)
        target = Store.create(
            out, cell=first.cell, teachers=first.teachers, settings=settings, codec=first.codec, revise=True
        )
        for teacher in first.teachers:
            if (basis := first.basis(teacher)) is not None and not has_basis(target, teacher):
                target.keep_basis(teacher, basis)
        _fill(target, stores, progress)
    return target


def _elsewhere(out: Path | str, stores: Sequence[Store]) -> Path:
    """Return the path of the result, if it is not one of the stores."""
    for store in stores:
        check_local(store.url or store.path, "store")
        if Path(out).resolve() == store.path.resolve():
            raise InputError(f"{out} is the store that is read. Choose another folder for the result.")
    return Path(out)


def _check_teachers(out: Path, store: Store) -> None:
    """Raise InputError where a store that is there has teachers that the one to be read has not: they would go."""
    there = dict[str, TeacherCard]()
    with suppress(InputError, NotFoundError):  # what cannot be opened is made again
        there = Store.open(out).teachers
    if others := [name for name, card in there.items() if store.teachers.get(name) != card]:
        raise InputError(
            f"{out} holds features of {', '.join(others)}, which are not those of {store.path} and would be lost. "
            "Choose another folder, or delete this one."
        )


def _alike(store: Store) -> dict[str, Any]:
    """Return what stores that are merged have in common: all but where their data lay."""
    settled = store._settled()
    return settled | {"settings": {key: value for key, value in store.settings.items() if key != "data"}}


def _sample(store: Store, teacher: str) -> Iterator[Tensor]:
    """Yield some rows of a teacher from some scenes."""
    names = store.names()
    for place in torch.linspace(0, len(names) - 1, min(NUM_SCENES, len(names)), dtype=torch.float64).round().long():
        rows = store[names[int(place)]].coded(teacher)
        step = -(-len(rows) // NUM_ROWS) or 1
        yield rows[::step]


def _fill(target: Store, stores: Sequence[Store], progress: OnCount | None) -> None:
    """Write the scenes of stores into one that has been begun."""
    holder = {name: store for store in stores for name in store.names()}
    missing = {name: reason for store in stores for name, reason in store.missing().items() if name not in holder}
    if others := sorted(set(target.names()) - set(holder)):
        raise InputError(f"{target.path} holds other scenes too, such as {others[0]}. Choose another folder.")
    there = {name for name, store in holder.items() if _is_there(target, store, name)}
    known = {name: Entry("", sha256=sha256_once(target._folder(name) / "manifest.json")) for name in there}
    expect(
        target,
        {name: known.get(name, Entry()) for name in holder} | {name: Entry(why) for name, why in missing.items()},
    )
    for done, (name, store) in enumerate(sorted(holder.items()), start=1):
        if name not in there:
            _copy_scene(target, store, name)
        if progress:
            progress(done, len(holder))
    end(target, missing)


def _is_there(target: Store, store: Store, name: str) -> bool:
    """Say whether a scene has been copied already, from what the store holds now."""
    manifest, folder = manifest_of(target, name), target._folder(name)
    if manifest is None or manifest.get(FROM) != sha256_once(store._folder(name) / "manifest.json"):
        return False
    try:
        for file, entry in manifest["files"].items():
            check_size(folder / file, entry)
    except UserError:
        return False
    return all(target._keeps(manifest, teacher) for teacher in target.teachers)


def _copy_scene(target: Store, store: Store, name: str) -> None:
    """Copy a scene; its manifest is written last. Features are encoded where the codec is another.

    Raises:
        InputError: A file of it is not the one that was written.
    """
    scene, folder = store[name], target._folder(name)
    manifest = read_manifest(scene.folder)
    remove(folder / "manifest.json")
    if scene.label_set is not None:
        keep_label_set(target.path / LABELS, scene.label_set)
    encoded, about = dict[str, dict[str, Tensor]](), manifest.get("codecs", {})
    if target.codec != store.codec:
        encoded, about = _encoded(target, store, name)
    files, own = dict[str, Mapping[str, Any]](), {POINTS_FILE, PHOTOGRAPHS_FILE, *map(features_file, target.teachers)}
    for file, entry in ((file, entry) for file, entry in scene.files.items() if file in own):
        check_file(scene.folder / file, entry)
        if file in encoded:
            files[file] = write_file(folder / file, encoded[file])
        else:
            write_whole(folder / file, partial(shutil.copyfile, scene.folder / file))
            files[file] = entry
    for file in (LIFTING_FILE, SOURCES_FILE):
        if (scene.folder / file).is_file():
            write_whole(folder / file, partial(shutil.copyfile, scene.folder / file))
    kept = {"codecs": about} if about else {}
    new = {"teachers": target._header()["teachers"], "files": files, FROM: scene.sha256, "code_version": __version__}
    write_sealed(folder / "manifest.json", manifest | kept | new)
    remove_others(folder, files)


def _encoded(target: Store, store: Store, name: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Any]]]:
    """Encode the features of a scene by the codec of another store; return the files, and what a manifest says."""
    scene, files, about = store[name], dict[str, dict[str, Tensor]](), dict[str, dict[str, Any]]()
    for teacher in store.teachers:
        if features_file(teacher) in scene.files:
            kept, told = target._encode(name, len(scene.seen_samples), {teacher: scene.features(teacher)}, None)
            apart = scene.disagreement(teacher)
            files |= feature_files(kept, {} if apart is None else {teacher: apart})
            about |= told
    return files, about
