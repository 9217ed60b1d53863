"""Lifted scenes on disk: one folder per scene, one visibility for all teachers, a file per teacher, manifest last.

- `STORE/store.json`: what all scenes share: cell, teachers, settings.
- `STORE/scenes.json`: the scenes that it should hold; why one of them is missing.
- `STORE/labels/NAME.csv`: label sets of the scenes' labels, unless they come with the package.
- `STORE/scenes/NAME/points.safetensors`: the cloud, its labels, its samples and how many views see each.
- `STORE/bases/TEACHER.SHA.basis.safetensors`: where the codec has bases, that of a teacher; `store.json` has SHA-256s.
- `STORE/scenes/NAME/TEACHER.features.safetensors`: a row per seen sample, in the codec; how far its views disagree.
- `STORE/scenes/NAME/photographs.safetensors`: some images that teachers saw, to show places in; see `photographs.py`.
- `STORE/scenes/NAME/lifting.json`: how long each teacher took and how well its views agree; nothing depends on it.
- `STORE/scenes/NAME/unfinished.safetensors`: only while a long capture is lifted; see `pipeline/unfinished.py`.
- `STORE/scenes/NAME/sources.json`: size, time and SHA-256 of each file that the scene was read from.
- `STORE/scenes/NAME/manifest.json`: SHA-256s of all that readers use, and what decided it; last: it means finished.

A file is compared with its manifest at its first use in a process, a JSON file with the SHA-256 that it holds.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from cuao3d import __version__
from cuao3d.codecs import Basis, Codec, Coded
from cuao3d.durable import make_folder, remove, synced_once
from cuao3d.errors import InputError, NotFoundError
from cuao3d.files import nearby, read_whole_json
from cuao3d.fusion import Samples, Visibility
from cuao3d.labels import LabelSet
from cuao3d.labels.kept import find_label_set, keep_label_set, kept_label_set
from cuao3d.names import check_file_name, check_local, url_of
from cuao3d.scene import Scene, Split
from cuao3d.schema import fit
from cuao3d.seals import read_sealed, sha256_once, write_sealed
from cuao3d.store.encoding import encode, feature_files, read_basis, write_basis
from cuao3d.store.header import CODED_VERSION, FORMAT, FORMAT_VERSION, LABELS, difference, for_all, is_beginning
from cuao3d.store.header import Setting as Setting
from cuao3d.store.roll import AGAIN, ROLL, UNFINISHED, Entry, count_of, read_roll, remove_damaged_roll, write_roll
from cuao3d.store.schemas import codec_of_scenes, read_cloud, read_header, read_manifest
from cuao3d.store.sources import Record
from cuao3d.store.stored import LIFTING_FILE as LIFTING_FILE
from cuao3d.store.stored import PHOTOGRAPHS_FILE as PHOTOGRAPHS_FILE
from cuao3d.store.stored import (
    POINTS_FILE,
    Coding,
    check_file,
    check_size,
    cloud_fields,
    cloud_tensors,
    cure,
    damaged,
    read_problem,
    remove_others,
    write_file,
    write_lifting,
)
from cuao3d.store.stored import Lifting as Lifting
from cuao3d.store.stored import SceneSummary as SceneSummary
from cuao3d.store.stored import StoredScene as StoredScene
from cuao3d.teachers.teacher import TeacherCard as TeacherCard

CELL = 0.02
"""Default edge of a sample cell, metres."""


class Store:
    """Scenes and their lifted features in a folder. Made by `create`, read by `open`.

    Attributes:
        path: Folder of the store.
        cell: Edge of a sample cell, metres.
        teachers: Card of each teacher whose features every scene holds; may be empty.
        settings: How the scenes were lifted.
        codec: How their features are kept.
        bases: SHA-256 of the basis of each teacher that has one.
        url: Where it lies, if not on this machine; `path` is then a copy of what was read so far.
    """

    url: str | None = None

    def __init__(
        self,
        path: Path,
        cell: float,
        teachers: dict[str, TeacherCard],
        settings: dict[str, Setting],
        codec: Codec | None = None,
        bases: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self.cell, self.teachers, self.settings = path, cell, teachers, settings
        self.codec, self.bases = codec or Codec(), dict(bases or {})
        self._read_bases: dict[str, Basis] = {}

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        cell: float = CELL,
        teachers: Mapping[str, TeacherCard] | None = None,
        settings: Mapping[str, Setting] | None = None,
        codec: Codec | None = None,
        revise: bool = False,
    ) -> "Store":
        """Start a store, or go on with one that was started with the same settings.

        Args:
            path: Folder of the store; made if it is not there.
            cell: Edge of a sample cell, metres.
            teachers: Card of each teacher whose features the scenes will hold.
            settings: Whatever else decides the features: the dataset, the lifting.
            codec: How features are kept; None: as the store that is there keeps them, and fp16 in a new one.
            revise: Go on with a store of other teachers or `OF_SCENES` too, or whose `store.json` cannot be read. What
                the store should hold then is written by `expect`.

        Returns:
            The store, with the scenes that it holds already.

        Raises:
            InputError: The folder holds something else.
        """
        check_local(path, "store")
        store = cls(path := Path(path), cell, dict(teachers or {}), dict(settings or {}), codec)
        for teacher in store.teachers:
            check_file_name(teacher, "teacher")
        begins = path.is_dir() and is_beginning(path)
        has_header = (path / "store.json").is_file()
        if has_header and (there := cls._opened(path, damaged_too=revise or begins)):
            store.codec = codec or there.codec
            alike = {name for name, card in store.teachers.items() if there.teachers.get(name) == card}
            store.bases = {name: sha256 for name, sha256 in there.bases.items() if name in alike}
            mine, other = there._settled(), store._settled()
            if revise:
                mine, other = for_all(mine), for_all(other)
            if mine != other:
                raise InputError(
                    f"{path} was made with other settings: its {difference(mine, other)}. "
                    "Choose another folder, or delete this one."
                )
            if revise:
                remove_damaged_roll(path)
            return store
        if path.exists() and not (begins or has_header):
            raise InputError(f"{path} is there already and is no store. Choose a new or an empty folder.")
        if has_header and codec is None:
            store.codec = codec_of_scenes(path)
        make_folder(path / "scenes")
        store._write_header()
        return store

    @classmethod
    def _opened(cls, path: Path, *, damaged_too: bool) -> "Store | None":
        """Open a store; None for one whose header cannot be read, where that is allowed: it will be written again."""
        try:
            read_sealed(path / "store.json", "")
        except InputError:
            if damaged_too:
                return None
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> "Store":
        """Return a store to read; its scenes are read when asked for.

        Args:
            path: Folder of the store, or its URL; see `store/remote.py`.

        Raises:
            NotFoundError: There is no store.
            InputError: Its `store.json` is damaged or of another version.
            NotInstalledError: It is at a URL, and a package that opens such URLs is not installed.
        """
        if url := url_of(path):
            from cuao3d.store.remote import open_remote

            return open_remote(url)
        path = Path(path)
        if not (path / "store.json").is_file():
            raise NotFoundError(
                f"{path} is no store (no {path / 'store.json'}). Make one: cuao3d fuse DATA --out {path}."
                f"{nearby(path, 'store.json')}"
            )
        header = read_sealed(path / "store.json", AGAIN)
        if header.get("format") != FORMAT or header.get("format_version") not in (FORMAT_VERSION, CODED_VERSION):
            raise InputError(
                f"{path / 'store.json'} is not a {FORMAT} of version {FORMAT_VERSION} or {CODED_VERSION}. Make the "
                "store again with `cuao3d fuse`, or open it with the version of cuao3d that wrote it."
            )
        return cls(path, *read_header(header, path / "store.json", AGAIN))

    def names(self, split: Split | None = None) -> tuple[str, ...]:
        """Return the names of the finished scenes of a `split`, or of all, in alphabetical order.

        Raises:
            InputError: A file is damaged, and which scenes there are is not known.
        """
        roll = read_roll(self.path)
        found = sorted(path.parent.name for path in (self.path / "scenes").glob("*/manifest.json"))
        manifests = {name: self._manifest(name, roll) for name in found}
        return tuple(name for name, about in manifests.items() if about and split in (None, about["split"]))

    def missing(self) -> dict[str, str]:
        """Return the scenes that the store should hold but does not, and why."""
        roll = read_roll(self.path)
        return {name: entry.reason for name, entry in roll.items() if self._manifest(name, roll) is None}

    def has(self, name: str) -> bool:
        """Say whether the scene `name` is finished."""
        return self._manifest(name, read_roll(self.path)) is not None

    def __getitem__(self, name: str) -> StoredScene:
        """Return a finished scene; its features are mapped when asked for.

        Args:
            name: Name of the scene.

        Raises:
            NotFoundError: There is no such scene, or it is not finished.
            InputError: A file of it is damaged.
        """
        folder, roll = self._folder(name), read_roll(self.path)
        manifest = self._manifest(name, roll)
        if manifest is None:
            reason = "is half-written" if folder.is_dir() else "is not in the store"
            if name in roll and roll[name].reason != UNFINISHED:
                reason = f"was left out: {roll[name].reason}"
            raise NotFoundError(
                f"Scene {name!r} {reason} ({folder}). Run the same `cuao3d fuse` again to make it, or choose from "
                f"{', '.join(self.names()) or 'none'}."
            )
        self._check_belongs(manifest, folder)
        for file, entry in self._needed(manifest["files"]).items():
            check_size(folder / file, entry)
        return StoredScene(
            name=name,
            split=manifest["split"],
            label_set=kept_label_set(self.path / LABELS, manifest["label_set"], manifest.get("label_set_sha256")),
            problems=tuple(map(read_problem, manifest["problems"])),
            **cloud_fields(read_cloud(folder, manifest)),
            sha256=sha256_once(folder / "manifest.json"),
            folder=folder,
            files=manifest["files"],
            coding=None if self.codec == Codec() else Coding(self.codec, self.basis),
            is_finite=manifest.get("is_finite", False),
        )

    def basis(self, teacher: str) -> Basis | None:
        """Return the basis in which a teacher's features are kept; None where they are kept without one.

        Args:
            teacher: Name of the teacher.

        Raises:
            InputError: It is missing or damaged, or does not fit.
        """
        width = self.teachers[teacher].num_channels
        if (rank := self.codec.rank_of(width)) is None:
            return None
        if teacher not in self._read_bases:
            self._read_bases[teacher] = read_basis(self.path, teacher, self.bases.get(teacher), (rank, width), AGAIN)
        return self._read_bases[teacher]

    def keep_basis(self, teacher: str, basis: Basis) -> None:
        """Write the basis of a teacher; `store.json` states it once the header is written again, by `expect`.

        Args:
            teacher: Name of the teacher.
            basis: Its basis.
        """
        check_local(self.url or self.path, "store")
        write_basis(self.path, teacher, basis)
        self.bases[teacher], self._read_bases[teacher] = basis.sha256, basis

    def add_scene(
        self,
        scene: Scene,
        samples: Samples,
        visibility: Visibility,
        features: Mapping[str, Float[Tensor, "V _"]],
        *,
        disagreement: Mapping[str, Float[Tensor, "V"]] | None = None,
        errors: Mapping[str, float | None] | None = None,
        lifting: Mapping[str, Lifting] | None = None,
        photographs: Mapping[str, Tensor] | None = None,
        source: Record | None = None,
    ) -> None:
        """Write a scene; it counts once its manifest is there, which is written last.

        Args:
            scene: The scene.
            samples: Its sample points, of this store's cell.
            visibility: What its views see of the samples.
            features: For each of this store's teachers a row for each of `visibility.seen_samples`; or, where the
                teacher has a basis, its code.
            disagreement: For each teacher how far the views of each of these samples disagree, where that was measured.
            errors: Mean cosine error of each teacher whose codes are given; of features it is measured here.
            lifting: For each teacher how its lifting went, if that was measured.
            photographs: What `photographs.Album` kept.
            source: What the scene was read from, if that is known.

        Raises:
            InputError: The features are not those of the store's teachers and the scene's seen samples, a label does
                not fit into 16 bits, or the store keeps another label set of the same name.
        """
        check_local(self.url or self.path, "store")
        self._check_teachers(scene.name, features)
        kept, coded = self._encode(scene.name, len(visibility.seen_samples), features, errors)
        cloud = cloud_tensors(scene, samples, visibility)
        folder = self._folder(scene.name)
        self._expect_anew(scene.name)
        remove(folder / "manifest.json")
        labels = (None, None) if scene.label_set is None else keep_label_set(self.path / LABELS, scene.label_set)
        contents = {POINTS_FILE: cloud} | feature_files(kept, disagreement or {})
        contents |= {PHOTOGRAPHS_FILE: dict(photographs)} if photographs else {}
        with synced_once(folder):
            files = {file: write_file(folder / file, tensors) for file, tensors in contents.items()}
            if lifting:
                write_lifting(folder, lifting)
            if source:
                source.write(folder)
        about = self._about(scene, samples, visibility, labels, source)
        about |= {"is_finite": True, **({"codecs": coded} if coded else {}), "files": files}
        write_sealed(folder / "manifest.json", about)
        remove_others(folder, files)

    def label_set(self, name: str) -> LabelSet:
        """Return a label set.

        Args:
            name: Name of a set of the package or of one that the store keeps, or the path of a CSV.

        Raises:
            InputError: There is no such set, or its CSV is wrong.
        """
        return find_label_set(self.path / LABELS, name)

    def lifting(self, name: str) -> dict[str, Lifting]:
        """Return how the lifting of the scene `name` went, by teacher; of those for which it was measured.

        Raises:
            InputError: The file is damaged.
        """
        path = self._folder(name) / LIFTING_FILE
        if not path.is_file():
            return {}
        read: dict[str, Lifting] = fit(read_sealed(path, cure(path)), dict[str, Lifting], str(path), cure(path))
        return read

    def summary(self, name: str) -> SceneSummary:
        """Return what the manifest of a finished scene says of it; neither its points nor its features are read.

        Args:
            name: Name of the scene.

        Raises:
            InputError: The manifest is damaged.
        """
        manifest = read_manifest(self._folder(name))
        points, samples, seen = (manifest[key] for key in ("num_points", "num_samples", "num_seen"))
        return SceneSummary(points, samples, seen, tuple(map(read_problem, manifest["problems"])))

    def verify(self, name: str) -> int:
        """Return the bytes of a finished scene, once all of them have been read and compared with its manifest.

        Args:
            name: Name of the scene.

        Raises:
            NotFoundError: There is no such scene.
            InputError: A file is not the one that was written.
        """
        scene = self[name]
        for file, entry in scene.files.items():
            check_file(scene.folder / file, entry)
        self.lifting(name)
        return sum(entry["bytes"] for entry in scene.files.values())

    def count_of_scenes(self) -> str:
        """Return how many of its scenes the store holds, in words: "1 of 2 scenes; room-4 unfinished"."""
        return count_of(len(self.names()), self.missing())

    def _needed(self, files: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the files of a manifest that must be there when a scene is opened."""
        return files

    def _folder(self, name: str) -> Path:
        check_file_name(name, "scene")
        return self.path / "scenes" / name

    def _header(self) -> dict[str, Any]:
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "cell": self.cell,
            "teachers": {name: asdict(card) for name, card in self.teachers.items()},
            "settings": self.settings,
        }
        coding = {"format_version": CODED_VERSION, "codec": str(self.codec), "bases": dict(sorted(self.bases.items()))}
        return header if self.codec == Codec() else header | coding

    def _settled(self) -> dict[str, Any]:
        """Return what two stores of the same settings have in common."""
        header = self._header() | {"codec": str(self.codec)}
        return {key: value for key, value in header.items() if key not in ("format_version", "bases")}

    def _write_header(self) -> None:
        write_sealed(self.path / "store.json", self._header() | {"code_version": __version__})

    def _about(
        self,
        scene: Scene,
        samples: Samples,
        visibility: Visibility,
        labels: tuple[str | None, str | None],
        source: Record | None,
    ) -> dict[str, Any]:
        """Return what a manifest says of a scene besides its files; `labels` names its label set, with its SHA-256."""
        return {
            "name": scene.name,
            "split": scene.split,
            "label_set": labels[0],
            "label_set_sha256": labels[1],
            "problems": [asdict(problem) for problem in (*scene.problems, *visibility.problems)],
            "occlusion_tolerance": visibility.occlusion_tolerance,
            "num_points": len(scene.points),
            "num_samples": len(samples.index_of_sample),
            "num_seen": len(visibility.seen_samples),
            "cell": self.cell,
            "teachers": self._header()["teachers"],
            "source": source.as_json() if source else None,
            "code_version": __version__,
        }

    def _manifest(self, name: str, roll: Mapping[str, Entry]) -> dict[str, Any] | None:
        """Return the manifest of a finished scene; None for one that is not.

        Raises:
            InputError: It is damaged, or not the one that was written.
        """
        path, entry = self._folder(name) / "manifest.json", roll.get(name, Entry())
        if not path.is_file():
            return None
        if (found := sha256_once(path)) == entry.outdated:
            return None
        try:
            manifest = read_manifest(path.parent)
        except InputError:
            if entry.sha256 is None and (name in roll or read_whole_json(path) is None):
                return None  # the machine lost power while it was written
            raise
        if entry.sha256 not in (None, found):
            raise damaged(path, f"it is not the one that {self.path / ROLL} knows")
        if manifest.get("name") != name:
            raise damaged(path, f"it is that of the scene {manifest.get('name')!r}")
        return manifest

    def _check_belongs(self, manifest: Mapping[str, Any], folder: Path) -> None:
        """Raise InputError if a scene was lifted with another cell or by other teachers than those of this store."""
        other = f"{folder} does not belong to {self.path / 'store.json'}"
        again = "Run the same `cuao3d fuse` again."
        if manifest.get("cell", self.cell) != self.cell:
            raise InputError(
                f"{other}: its cells are {manifest['cell']:g} m, those of the store {self.cell:g} m. {again}"
            )
        cards = self._header()["teachers"]
        for teacher, card in manifest.get("teachers", cards).items():
            if teacher in cards and card != cards[teacher]:
                raise InputError(f"{other}: its features of {teacher} are of other weights, options or code; {AGAIN}.")
        for teacher in self.teachers:
            if not self._keeps(manifest, teacher):
                raise InputError(f"{other}: its features of {teacher} are kept by another codec or basis; {AGAIN}.")

    def _keeps(self, manifest: Mapping[str, Any], teacher: str) -> bool:
        """Say whether a scene's features of a teacher are kept by this store's codec, in this store's basis."""
        about = manifest.get("codecs", {}).get(teacher)
        if self.codec == Codec() or about is None:
            return about is None and (self.codec == Codec() or teacher not in manifest.get("teachers", {}))
        return bool(about.get("codec") == str(self.codec) and about.get("basis_sha256") == self.bases.get(teacher))

    def _expect_anew(self, name: str) -> None:
        """Note that a scene is about to be written, in a store that has noted it as finished or not at all."""
        roll = read_roll(self.path)
        if roll and (name not in roll or roll[name].sha256):
            write_roll(self.path, roll | {name: Entry()})

    def _check_teachers(self, scene: str, features: Mapping[str, Tensor]) -> None:
        if set(features) != set(self.teachers):
            raise InputError(f"The store holds {sorted(self.teachers)}; scene {scene} came with {sorted(features)}.")

    def _encode(
        self, scene: str, num_seen: int, features: Mapping[str, Tensor], errors: Mapping[str, float | None] | None
    ) -> tuple[dict[str, Coded], dict[str, dict[str, Any]]]:
        """Encode the features of a scene; see `encode`."""
        given = {teacher: features[teacher] for teacher in self.teachers if teacher in features}
        bases = {teacher: self.basis(teacher) for teacher in given}
        return encode(scene, num_seen, given, errors or {}, self.codec, bases, self.teachers)
