"""An index: the parts of the scenes of stores, a vector each, so that one question can be put to many scans.

- `INDEX/index.json`: what all parts share: the teacher or student whose features they have, and the text encoder.
- `INDEX/scenes/KEY-SHA256.safetensors`: the parts of a scene, written as soon as it is cut up; `about` tells of which.
- `INDEX/vectors-N.usearch`: the vectors of all parts.
- `INDEX/roll.json`: which scenes these are, and which file of vectors is theirs; written last. What it does not name
  does not count, so a killed `cuao3d index` leaves the index as it was, and the next one goes on after the last scene.
"""

import bisect
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cuao3d.console import counted, note, progress_bar
from cuao3d.coordinates import unit_of
from cuao3d.durable import is_own, locked, make_folder, remove
from cuao3d.errors import DiskFullError, InputError, NotFoundError, UserError
from cuao3d.files import nearby, sha256_of, write_tensors
from cuao3d.index.named_colors import NAMES
from cuao3d.index.parts import describe_parts
from cuao3d.index.vectors import Vectors
from cuao3d.memory import give_back
from cuao3d.names import url_of
from cuao3d.predictor import Predictor
from cuao3d.progress import waiting
from cuao3d.run import STUDENT
from cuao3d.schema import fit
from cuao3d.seals import read_sealed, write_sealed
from cuao3d.store import Store
from cuao3d.text import load_text_encoder

if TYPE_CHECKING:
    from cuao3d.index.search import Found

FORMAT, FORMAT_VERSION = "cuao3d-index", 1

COLOR_SCALE = 0.25
"""Length of the colours beside the unit vector of a part: short, so that neighbours in the graph are alike in kind."""


@dataclass(frozen=True)
class Entry:
    """A scene of the roll."""

    store: str
    """Folder of its store."""
    scene: str
    sha256: str
    """Of its manifest when it was cut up."""
    first: int
    """Key of its first part; those of the others follow."""
    count: int
    """Its parts."""


@dataclass(frozen=True)
class Hold:
    """Where a part belongs."""

    entry: Entry
    part: int


class Index:
    """Parts of scenes in a folder. Made by `update`, read by `open`.

    Attributes:
        path: Folder of the index.
        about: What all parts share.
        entries: Its scenes, by their keys.
        vectors: The vectors of their parts.
    """

    def __init__(self, path: Path, about: dict[str, Any], entries: dict[str, Entry], vectors: Vectors) -> None:
        self.path, self.about, self.entries, self.vectors = path, about, entries, vectors
        self._by_first = sorted((entry for entry in entries.values() if entry.count), key=lambda entry: entry.first)
        self._firsts = [entry.first for entry in self._by_first]

    @classmethod
    def open(cls, path: Path | str) -> "Index":
        """Open an index to search it.

        Args:
            path: Folder of the index.

        Returns:
            The index; what is told of its parts is read when asked for.

        Raises:
            NotFoundError: There is no index, or none that is finished.
            InputError: It is damaged, or of another version.
            NotInstalledError: usearch is not installed.
        """
        path = Path(path)
        about = read_about(path)
        if not (path / "roll.json").is_file():
            raise NotFoundError(f"{path} is not finished. Run the same `cuao3d index` again.")
        roll = _read_roll(path)
        if not roll.entries:
            raise InputError(f"{path} holds no scene. Add some: cuao3d index STORE --out {path}")
        return cls(path, about, roll.entries, Vectors.read(path / roll.file, width_of(about), _cure(path)))

    def search(self, question: str, *, top: int = 10) -> "Found":
        """Put a question to all scans.

        Args:
            question: What to look for; colour words, as in "red chair", are answered by the colours of the parts.
            top: Number of results at most.

        Returns:
            `hits`, the best parts first: each has the `score`, `hold.entry.scene` and `hold.entry.store`, and `about`,
            a place with its `center` and `box`. `words_known` says whether the text encoder knows the words.

        Raises:
            InputError: The question is blank, the number is not positive, or a file is damaged.
        """
        from cuao3d.index.search import search

        return search(self, load_text_encoder(self.about["text"]), question, top=top)

    def holder(self, key: int) -> Hold:
        """Return the scene and the number of the part of a `key`."""
        entry = self._by_first[bisect.bisect_right(self._firsts, key) - 1]
        return Hold(entry, key - entry.first)

    def part(self, hold: Hold) -> dict[str, Any]:
        """Return what is told of a part, see `Parts.about`, and the unit of its position, if that is the metre.

        Args:
            hold: Where it belongs.

        Raises:
            InputError: The file of its scene is damaged.
        """
        scene = _read_scene(self.path, _stem(hold.entry))[1]
        return {**scene["parts"][hold.part], "unit": scene.get("unit", "")}  # earlier versions did not keep the unit

    def count_in_words(self) -> str:
        """Return how much it holds: "2 scenes, 104 parts"."""
        parts = sum(entry.count for entry in self.entries.values())
        return f"{counted(len(self.entries), 'scene')}, {counted(parts, 'part')}"


@dataclass(frozen=True)
class Changes:
    """What an update did."""

    index: Index
    done: tuple[str, ...]
    """Scenes that were cut up."""
    removed: tuple[str, ...]
    """Scenes that are gone."""
    left_out: Mapping[str, str]
    """Why scenes could not be read."""


def index_stores(
    stores: Sequence[Store],
    out: Path | str,
    *,
    run: Path | str | None = None,
    teacher: str | None = None,
    text: str | None = None,
    device: str = "cpu",
) -> Changes:
    """Make the scenes of stores searchable: new and changed scenes are added, and those that are gone are removed.

    Args:
        stores: The stores.
        out: Folder of the index; the scenes of other stores that it holds stay, unless the store is gone.
        run: Folder of a finished run, or a student's .safetensors; without it the lifted features are indexed.
        teacher: Whose features, where several teachers have a text encoder; the first unless given.
        text: Text encoder for the words; the teacher's unless given.
        device: Where the student runs.

    Returns:
        `index`, the index; `done` and `removed`, names of scenes; and `left_out`, why a scene could not be read.

    Raises:
        InputError: The folder holds something else, or parts of another teacher, width, encoder or student.
        NotFoundError: There is no such run or teacher.
        NotInstalledError: usearch is not installed.
    """
    with waiting("opening the predictor"):
        predictors = [Predictor.open(one, run=run, teacher=teacher, text=text, device=device) for one in stores]
    return update(Path(out), stores, predictors, None if run is None else Path(run))


def update(path: Path, stores: Sequence[Store], predictors: Iterable[Predictor], student: Path | None) -> Changes:
    """Bring an index up to the scenes of stores: add new ones, redo changed ones, remove those that are gone.

    Scenes of stores that are not named stay, unless the folder of the store is gone.

    Args:
        path: Folder of the index; made if missing.
        stores: The stores.
        predictors: Describes the scenes of each store.
        student: The student's file where it describes them, not lifted features.

    Raises:
        InputError: The folder holds something else, or parts of another teacher, width, encoder or student.
    """
    with locked(path):
        pairs = list(zip(stores, predictors, strict=True))
        for store, predictor in pairs:
            _claim(path, identity(predictor, student), store.path)
        about, roll = read_about(path), _read_roll(path)
        Vectors.empty(width_of(about))  # a missing library is noticed before hours of work
        entries = {key: one for key, one in roll.entries.items() if url_of(one.store) or Path(one.store).is_dir()}
        done, left_out = list[str](), dict[str, str]()
        for store, predictor in pairs:
            _follow(path, store, predictor, entries, done, left_out)
        removed = tuple(one.scene for key, one in roll.entries.items() if key not in entries)
        _write_vectors(path, about, roll, entries)
    return Changes(Index.open(path) if entries else _empty(path, about), tuple(done), removed, left_out)


def _follow(
    path: Path,
    store: Store,
    predictor: Predictor,
    entries: dict[str, Entry],
    done: list[str],
    left_out: dict[str, str],
) -> None:
    """Bring the entries of a store's scenes up to date; note what was done and what was left out."""
    here = store.url or str(store.path.resolve())
    wanted = {key_of(here, name): name for name in store.names()}
    for key in [key for key, one in entries.items() if one.store == here and key not in wanted]:
        del entries[key]
    with progress_bar() as bar:
        for key, name in bar.track(list(wanted.items()), description=f"indexing {store.path.name}"):
            try:
                is_new, entry = _cut_up(path, store, name, predictor)
            except DiskFullError:
                raise
            except (UserError, OSError) as error:  # a broken scene does not stop the others
                left_out[name] = str(error)
                entries.pop(key, None)
                continue
            done += [name] if is_new else []
            if key not in entries or entries[key].sha256 != entry.sha256:
                entries[key] = entry
            give_back()


def identity(predictor: Predictor, student: Path | None) -> dict[str, Any]:
    """Return what decides whether vectors can be compared."""
    file = student / STUDENT if student is not None and student.is_dir() else student
    return {
        "teacher": predictor.teacher,
        "weights_sha256": predictor.fitted_for.get("weights_sha256"),
        "num_channels": predictor.encoder.num_channels,
        "text": predictor.text,
        "student_sha256": None if file is None else sha256_of(file),
    }


def read_about(path: Path) -> dict[str, Any]:
    """Read what all parts of an index share.

    Raises:
        NotFoundError: There is no index.
        InputError: It is damaged, or of another version.
    """
    file = path / "index.json"
    if not file.is_file():
        raise NotFoundError(
            f"{path} is no index (no {file}). Make one: cuao3d index STORE --out {path}.{nearby(path, 'index.json')}"
        )
    about = read_sealed(file, _cure(path))
    if (about.pop("format", None), about.pop("format_version", None)) != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"{file} is not a {FORMAT} of version {FORMAT_VERSION}. Make the index again with `cuao3d index`, in "
            "another folder, or open it with the version of cuao3d that wrote it."
        )
    return about


def key_of(store: str, scene: str) -> str:
    """Return the name of the file of a scene."""
    return hashlib.sha256(f"{store}\n{scene}".encode()).hexdigest()[:24]


def _stem(entry: "Entry") -> str:
    """Return the name of the file of a scene, without its ending: that of a changed scene is another."""
    return f"{key_of(entry.store, entry.scene)}-{entry.sha256[:16]}"


def width_of(about: Mapping[str, Any]) -> int:
    """Return the number of values of a part: its vector and its colours."""
    return int(about["num_channels"]) + len(NAMES)


def as_rows(vectors: Float[Tensor, "P C"], colors: Float[Tensor, "P 11"]) -> Float[np.ndarray, "P width"]:
    """Return parts as they are searched."""
    rows: np.ndarray = torch.cat([vectors.float(), COLOR_SCALE * colors.float()], dim=1).numpy()
    return rows


@dataclass(frozen=True)
class _Roll:
    entries: dict[str, Entry]
    file: str
    """File of the vectors; empty before there is one."""
    next: int
    """Key that the next part gets."""


def _read_roll(path: Path) -> _Roll:
    if not (path / "roll.json").is_file():
        return _Roll({}, "", 0)
    content = read_sealed(path / "roll.json", _cure(path))
    where = str(path / "roll.json")
    roll: _Roll = fit(content, _Roll, where, _cure(path))
    return roll


def _claim(path: Path, mine: dict[str, Any], store: Path) -> None:
    """Make the folder of an index, or refuse a store whose parts cannot be compared with those that it holds."""
    if (path / "index.json").is_file():
        about = read_about(path)
        differing = [name for name in mine if about.get(name) != mine[name]]
        if differing:
            said = ", ".join(f"{name} {about.get(name)!r}, not {mine[name]!r}" for name in differing)
            raise InputError(f"{path} holds parts of another kind than those of {store}: {said}. Choose another --out.")
        return
    if path.exists() and (not path.is_dir() or any(not is_own(one.name) for one in path.iterdir())):
        raise InputError(f"{path} is there already and is no index. Choose a new or an empty folder.")
    make_folder(path / "scenes")
    write_sealed(path / "index.json", {"format": FORMAT, "format_version": FORMAT_VERSION, **mine})


def _cut_up(path: Path, store: Store, name: str, predictor: Predictor) -> tuple[bool, Entry]:
    """Cut up a scene unless that is done; say whether it was now."""
    here = store.url or str(store.path.resolve())
    entry = Entry(here, name, sha256_of(store.path / "scenes" / name / "manifest.json"), -1, 0)
    with suppress(UserError):  # a damaged file is made again
        _, about = _read_scene(path, _stem(entry))
        return False, replace(entry, count=len(about["parts"]))
    scene = store[name]
    parts = describe_parts(scene, predictor.features(scene), predictor.known(scene))
    entry = replace(entry, sha256=scene.sha256, count=len(parts.about))
    about = {"store": here, "scene": name, "sha256": scene.sha256, "parts": parts.about}
    about["unit"] = unit_of(scene.capture_from_world).strip()
    text = torch.from_numpy(np.frombuffer(json.dumps(about).encode(), dtype=np.uint8).copy())
    tensors = {"vectors": parts.vectors.half(), "colors": parts.colors.half(), "about": text}
    write_tensors(path / "scenes" / f"{_stem(entry)}.safetensors", tensors)
    return True, entry


def _read_scene(path: Path, stem: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    file = path / "scenes" / f"{stem}.safetensors"
    try:
        tensors = load_file(file)
        about: dict[str, Any] = json.loads(tensors["about"].numpy().tobytes())
        if not len(tensors["vectors"]) == len(tensors["colors"]) == len(about["parts"]):
            raise ValueError("its parts are not as many as their vectors")
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{file} is damaged: {error}; {_cure(path)}.") from error
    return tensors, about


def _write_vectors(path: Path, about: Mapping[str, Any], roll: _Roll, entries: dict[str, Entry]) -> None:
    """Write the vectors of scenes, and then the roll, which makes them count."""
    new = {key: one for key, one in entries.items() if one.first < 0}
    gone = [one for key, one in roll.entries.items() if entries.get(key) != one]
    vectors = None
    if roll.file and not new and not gone:
        with suppress(InputError):
            Vectors.read(path / roll.file, width_of(about), "")
            return
    with suppress(InputError):  # a damaged file is made again from the scenes
        if roll.file:
            vectors = Vectors.read(path / roll.file, width_of(about), "", whole=True)
            if len(vectors) != sum(one.count for one in roll.entries.values()):
                vectors = None
    if vectors is None:
        vectors, new, gone = Vectors.empty(width_of(about)), dict(entries), []
    vectors.remove(key for one in gone for key in range(one.first, one.first + one.count))
    following = roll.next
    with progress_bar() as bar:
        for key, one in bar.track(list(new.items()), description="linking"):
            tensors, _ = _read_scene(path, _stem(one))
            rows = as_rows(tensors["vectors"], tensors["colors"])
            vectors.add(np.arange(following, following + len(rows)), rows)
            entries[key] = replace(one, first=following, count=len(rows))
            following += len(rows)
    number = 1 + max((int(old.stem.rpartition("-")[2]) for old in path.glob("vectors-*.usearch")), default=0)
    file = f"vectors-{number}.usearch"
    vectors.write(path / file)
    as_json = {key: vars(one) for key, one in entries.items()}
    write_sealed(path / "roll.json", {"entries": as_json, "file": file, "next": following})
    for old in path.glob("vectors-*.usearch"):
        if old.name != file:
            remove(old)
    kept = {_stem(one) for one in entries.values()}
    for old in (path / "scenes").glob("*.safetensors"):
        if old.stem not in kept:
            remove(old)


def _empty(path: Path, about: dict[str, Any]) -> Index:
    note(f"{path} holds no scene now.")
    return Index(path, about, {}, Vectors.empty(width_of(about)))


def _cure(path: Path) -> str:
    return f"run `cuao3d index STORE --out {path}` again, in a new folder if that does not help"
