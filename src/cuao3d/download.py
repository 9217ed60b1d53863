"""Weights of published models: where they lie on this machine, and how they get here."""

import fnmatch
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from cuao3d.cards import CARDS as CARDS
from cuao3d.cards import OLD_WEIGHTS as OLD_WEIGHTS
from cuao3d.cards import SEGMENTER, WEIGHT_FILES, WeightsCard, segmenter_card
from cuao3d.errors import InputError, NotFoundError
from cuao3d.files import cache_folder, check_sha256, sha256_of, write_json, write_whole
from cuao3d.names import match_name
from cuao3d.pinned import download_pinned
from cuao3d.schema import parse

Basis = Literal["published", "recorded at download", "recorded at first use", "not recorded"]
"""What a file's SHA-256 is compared with."""


class Place(NamedTuple):
    """Where a set of weights lies."""

    path: Path
    """The folder of a model, or the one file that a page offers."""
    repository: str | None
    """Repository that gave it, which is in the Hugging Face cache; None where a person put the files there."""
    revision: str | None
    """Commit of that repository."""


@dataclass(frozen=True)
class Record:
    """What a set of weights was when it was fetched."""

    repository: str | None
    """Repository that gave it; None where a person put the files there."""
    revision: str | None
    """Commit of that repository."""
    sha256: Mapping[str, str]
    """SHA-256 by file, relative to the folder."""


@dataclass(frozen=True)
class CheckedFile:
    """A file of weights that lies here, and what its SHA-256 was compared with."""

    file: str
    """Relative to the folder of the weights."""
    sha256: str
    basis: Basis
    """Where the expected SHA-256 comes from; a file that is not recorded was compared with nothing."""


def data_folder() -> Path | None:
    """Return the folder that is looked into before the cache, `CUAO3D_DATA`: what a person keeps there is used."""
    folder = os.environ.get("CUAO3D_DATA")
    return Path(folder) if folder else None


def is_offline() -> bool:
    """Say whether `CUAO3D_OFFLINE` forbids downloads."""
    return os.environ.get("CUAO3D_OFFLINE", "0").lower() not in ("", "0", "false", "no")


def find(name: str) -> Path:
    """Return where named weights lie on this machine; never touches the network.

    Looked into are the folder NAME in `CUAO3D_DATA`, the one in cuao3d's cache, and the cache of the Hugging Face hub.

    Returns:
        The folder of a model, or the one file that a page offers.

    Raises:
        InputError: There are no weights of that name, or their record is damaged.
        NotFoundError: They are not on this machine, or not all of them; says how to get them.
    """
    return _find(match_name(name, CARDS)).path


def is_here(name: str) -> bool:
    """Say whether named weights are on this machine, all of them."""
    name = match_name(name, CARDS)
    return _place(name, card_of(name)) is not None


def fetch(name: str) -> Path:
    """Download named weights: from the first repository that still has them, or the one file from its address.

    The commit that was downloaded and the SHA-256 of each file are recorded; `verify` compares with them, and a
    later download takes the same commit. Weights that are here are verified without touching the network.

    Returns:
        Where they lie.

    Raises:
        InputError: There are no weights of that name, or a file is not the expected one.
        NotFoundError: No repository gave them, a person has to download them, or `HF_HUB_OFFLINE` or `CUAO3D_OFFLINE`
            is set; says how.
    """
    name = match_name(name, CARDS)
    card = card_of(name)
    place = _place(name, card)
    if place is None and card.on_page:
        raise NotFoundError(
            f"{card.files[0]} is offered on a page that only a browser can open: {card.repository}. "
            f"Download it there, and put it at {_own_path(name, card)}."
        )
    place = place or (_download_file(name, card) if card.address else _download(name, card))
    if _record_of(name, place) is None:
        _write_record(name, card, place)
    verify(name)
    return place.path


def add(name: str, files: Iterable[Path]) -> Path:
    """Copy named weights that somebody has on disk to where they are found.

    Args:
        name: Name of the weights.
        files: All files of the model, or the one file under any name.

    Returns:
        Where they lie now.

    Raises:
        InputError: There are no weights of that name, they have no such file, or a file is not the published one.
        NotFoundError: A file is not there, or one that is needed was not given.
    """
    name, given = match_name(name, CARDS), list(files)
    card = card_of(name)
    own = _own_path(name, card)
    targets = [own if card.is_file and len(given) == 1 else own / file.name for file in given]
    for file, target in zip(given, targets, strict=True):
        if not file.is_file():
            raise NotFoundError(f"There is no file {file}.")
        if not _matches(target.name, card.files):
            raise InputError(f"{file} is no file of the weights {name!r}, which are {', '.join(card.files)}.")
        if expected := card.sha256.get(target.name):
            check_sha256(file, expected, what="the file that was published")
    for file, target in zip(given, targets, strict=True):
        write_whole(target, partial(shutil.copyfile, file))
    place = _find(name)
    _write_record(name, card, place)
    return place.path


def verify(name: str) -> tuple[CheckedFile, ...]:
    """Compare each file of weights that lie here with its published SHA-256, or with that recorded by `fetch`.

    Returns:
        The files; each is as expected, or nothing is known of it.

    Raises:
        NotFoundError: The weights, or some of their files, are not on this machine.
        InputError: A file is not the expected one.
    """
    name = match_name(name, CARDS)
    card, place = card_of(name), _find(name)
    record = _record_of(name, place)
    if lost := _lost(record, place):
        raise NotFoundError(
            f"{place.path} lacks {', '.join(sorted(lost))}, recorded at first use. Put it back; if it is not needed, "
            f"delete {_record_path(name)}."
        )
    return tuple(_check(name, record, file, path) for file, path in _files(card, place.path).items())


def lost_files(name: str) -> set[str]:
    """Return files that `fetch` downloaded and that are gone, of weights whose other files are still in the cache."""
    from huggingface_hub import try_to_load_from_cache

    record = _read_record(name)
    if record is None or record.repository is None:
        return set()
    found = {file: try_to_load_from_cache(record.repository, file, revision=record.revision) for file in record.sha256}
    lost = {file for file, path in found.items() if not isinstance(path, str)}
    return lost if len(lost) < len(found) else set()


def size_in_words(card: WeightsCard) -> str:
    """Return the size of weights in gigabytes or megabytes."""
    if not card.megabytes:
        return "size unknown"
    return f"{card.megabytes / 1000:.1f} GB" if card.megabytes > 999 else f"{card.megabytes} MB"


def card_of(name: str) -> WeightsCard:
    """Return the card of named weights.

    Raises:
        InputError: There are no weights of that name.
    """
    if name.startswith(SEGMENTER):
        return segmenter_card(name.removeprefix(SEGMENTER))
    if name not in CARDS:
        raise InputError(f"Unknown weights {name!r}; choose from {', '.join(CARDS)}.")
    return CARDS[name]


def _find(name: str) -> Place:
    card = card_of(name)
    if place := _place(name, card):
        return place
    if lost := lost_files(name):
        raise NotFoundError(
            f"The weights {name!r} lack {', '.join(sorted(lost))}. Get what is missing: cuao3d weights fetch {name}."
        )
    raise NotFoundError(
        f"The weights {name!r} are not on this machine ({size_in_words(card)}, licence: {card.licence}). "
        f"Get them: cuao3d weights fetch {name}. Or say where they lie: {name}=FOLDER."
    )


def _own_path(name: str, card: WeightsCard) -> Path:
    """Return where a person puts weights: a folder, or the one file."""
    folder = cache_folder() / "weights" / _slug(name)
    return folder / card.files[0] if card.is_file else folder


def _place(name: str, card: WeightsCard) -> Place | None:
    """Return where all files of weights lie: cuao3d's own folder, or the Hugging Face cache."""
    own, data = _own_path(name, card), data_folder()
    for path in (*([data / own.relative_to(cache_folder() / "weights")] if data else []), own):
        if path.is_file() if card.is_file else _has_weights(path, card):
            return Place(path, None, None)
    cached = (_in_cache(repository, revision, card) for repository, revision in _sources(name, card))
    return next((place for place in cached if place and not _lost(_record_of(name, place), place)), None)


def _sources(name: str, card: WeightsCard) -> Iterator[tuple[str, str]]:
    """List repositories and their revisions in the order in which they are asked: first what was fetched before."""
    if card.is_file:
        return
    record = _read_record(name)
    if record and record.repository and record.revision:
        yield record.repository, record.revision
    yield card.repository, card.revision
    for mirror in card.mirrors:
        yield mirror, "main"


def _in_cache(repository: str, revision: str, card: WeightsCard) -> Place | None:
    """Return the folder of a repository in the Hugging Face cache, if all files that are needed are in it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # The patterns of the download: without them, newer versions of the library miss README.md and its like.
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=list(card.files), local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    return _cached_place(Path(folder), repository, card)


def _cached_place(folder: Path, repository: str, card: WeightsCard) -> Place | None:
    """Return the place of a folder of the cache, whose name is its commit; None where a stopped download left it."""
    return Place(folder, repository, folder.name) if _has_weights(folder, card) else None


def _has_weights(folder: Path, card: WeightsCard) -> bool:
    """Say whether each part of a model has weights; older versions of the library do not look."""
    expected = {PurePosixPath(file).parent for file in card.files if _matches(PurePosixPath(file).name, WEIGHT_FILES)}
    weights = (PurePosixPath(file) for file, path in _files(card, folder).items() if path.is_file())
    return expected <= {file.parent for file in weights if _matches(file.name, WEIGHT_FILES)}


def _files(card: WeightsCard, place: Path) -> dict[str, Path]:
    """Return the files of weights by their names relative to the folder."""
    if place.is_file():
        return {place.name: place}
    paths = {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if not path.is_dir()}
    return {file: path for file, path in paths.items() if _matches(file, (*card.files, *WEIGHT_FILES))}


def _matches(file: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(file, pattern) for pattern in patterns)


def _download(name: str, card: WeightsCard) -> Place:
    """Download weights from the first repository that gives all of them."""
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise NotFoundError(f"The weights {name!r} are not on this machine, and HF_HUB_OFFLINE forbids downloading.")
    reasons: dict[str, str] = {}
    for repository, revision in _sources(name, card):
        try:
            folder = snapshot_download(repository, revision=revision, allow_patterns=list(card.files))
        except Exception as error:  # of requests, httpx or xet: what carries it differs between versions
            reasons[repository] = str(error).strip().partition("\n")[0] or type(error).__name__
            continue
        if place := _cached_place(Path(folder), repository, card):
            return place
        reasons[repository] = "it holds no such weights, or the download was stopped"
    raise NotFoundError(
        f"No repository gave the weights {name!r} ({'; '.join(f'{name}: {why}' for name, why in reasons.items())}). "
        "Is there a network? If the model's page asks to accept a licence, do so there and then run: hf auth login"
    )


def _download_file(name: str, card: WeightsCard) -> Place:
    """Download the one file of weights from its address."""
    assert card.address is not None
    if is_offline():
        raise NotFoundError(
            f"The weights {name!r} are not on this machine, and CUAO3D_OFFLINE forbids downloading. Unset it, or take "
            f"the file from elsewhere: cuao3d weights add {name} FILE."
        )
    path = _own_path(name, card)
    download_pinned(card.address, path, card.sha256[path.name])
    return Place(path, None, None)


def _record_path(name: str) -> Path:
    return cache_folder() / "weights" / f"{_slug(name)}.json"


def _slug(name: str) -> str:
    """Return a name of weights as that of a file."""
    return name.replace(":", "-").replace("/", "--")


def _read_record(name: str) -> Record | None:
    path = _record_path(name)
    if not path.is_file():
        return None
    record: Record = parse(
        path.read_bytes(), Record, str(path), f"delete it, and record the weights again: cuao3d weights fetch {name}"
    )
    return record


def _record_of(name: str, place: Place) -> Record | None:
    """Return the record of the weights at a place; None where it is of another place or commit."""
    record = _read_record(name)
    return record if record and (record.repository, record.revision) == place[1:] else None


def _lost(record: Record | None, place: Place) -> set[str]:
    """Return recorded files that are no longer at their place."""
    folder = place.path.parent if place.path.is_file() else place.path
    return {file for file in record.sha256 if not (folder / file).is_file()} if record else set()


def _write_record(name: str, card: WeightsCard, place: Place) -> None:
    sha256 = {file: _sha256_of_hub(path) or sha256_of(path) for file, path in _files(card, place.path).items()}
    write_json(_record_path(name), asdict(Record(place.repository, place.revision, sha256)))


def _sha256_of_hub(path: Path) -> str | None:
    """Return the SHA-256 by which the hub names a large file; None for a small one, or in a cache without links."""
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    return name if re.fullmatch("[0-9a-f]{64}", name) else None


def _check(name: str, record: Record | None, file: str, path: Path) -> CheckedFile:
    """Compare a file with what is known of it."""
    basis: Basis = "not recorded"
    published, expected = card_of(name).sha256, None
    if file in published:
        basis, expected = "published", published[file]
    elif record and file in record.sha256:
        basis, expected = "recorded at download" if record.revision else "recorded at first use", record.sha256[file]
    if expected is None:
        return CheckedFile(file, sha256_of(path), basis)
    # A cached file is a link: were only the link deleted, the same content would be linked again.
    cure = f"Delete {path.resolve()} and run: cuao3d weights fetch {name}."
    check_sha256(path, expected, what=f"the file that was {basis}", cure=cure)
    return CheckedFile(file, expected, basis)
