"""Lifted scenes on disk: one folder per scene, one visibility for all teachers, a file per teacher, manifest last.

- `STORE/store.json`: what all scenes share: cell, teachers, settings.
- `STORE/labels/NAME.csv`: label sets of the scenes' labels, unless they come with the package.
- `STORE/scenes/NAME/points.safetensors`: the cloud, its labels, its samples and how many views see each.
- `STORE/scenes/NAME/TEACHER.features.safetensors`: fp16, a row per seen sample.
- `STORE/scenes/NAME/photographs.safetensors`: some images that teachers saw, to show places in; see `photographs.py`.
- `STORE/scenes/NAME/lifting.json`: how long each teacher took and how well its views agree; nothing depends on it.
- `STORE/scenes/NAME/manifest.json`: SHA-256 of the files above but lifting.json. A scene without it is not finished.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cuao3d import __version__
from cuao3d.durable import is_own, make_folder, remove
from cuao3d.errors import InputError, NotFoundError
from cuao3d.files import nearby, read_json, read_whole_json, sha256_of, write_json, write_tensors
from cuao3d.fusion import Samples, Visibility
from cuao3d.labels import LabelSet
from cuao3d.labels.kept import find_label_set, keep_label_set, kept_label_set
from cuao3d.names import check_file_name
from cuao3d.scene import Camera, Problem, Scene, Split, narrow_labels
from cuao3d.teachers.teacher import TeacherCard as TeacherCard

FORMAT = "cuao3d-store"
FORMAT_VERSION = 1
LIFTING_FILE = "lifting.json"
PHOTOGRAPHS_FILE = "photographs.safetensors"
LABELS = "labels"
CELL = 0.02
"""Default edge of a sample cell, metres."""

Setting = str | int | float | bool | None


@dataclass(frozen=True)
class Lifting:
    """How the lifting of a scene by one teacher went."""

    seconds: float
    """Time it took, reading the images included."""
    num_views: int
    """Views that were described."""
    agreement: float | None
    """How well the views of a sample agree; see `fusion.Lifted`. None where no sample is in two views."""


@dataclass(frozen=True)
class SceneSummary:
    """Summary of a scene from its manifest."""

    num_points: int
    """Points of its cloud."""
    num_samples: int
    """Sample points, one an occupied cell."""
    num_seen: int
    """Samples that at least one view sees."""
    problems: tuple[Problem, ...]
    """What was left out when the scene was read and lifted."""


@dataclass(frozen=True)
class StoredScene:
    """A scene as the store holds it: all its points, and features of those of its samples that a view sees."""

    name: str
    """Name of the scene."""
    split: Split
    """Part of its dataset that the scene belongs to."""
    label_set: str | None
    """Label set of `labels`: one of `labels.LABEL_SETS`, or the path of the CSV that the store keeps."""
    problems: tuple[Problem, ...]
    """What was left out when the scene was read and lifted."""
    points: Float32[Tensor, "N 3"]
    """World positions of the original cloud, metres."""
    colors: Float32[Tensor, "N 3"] | None
    """RGB of each point, in [0, 1]."""
    labels: Int64[Tensor, "N"] | None
    """Class of each point; 255 where unlabelled."""
    normals: Float32[Tensor, "N 3"] | None
    """Unit surface normals, world axes."""
    cameras: tuple[Camera, ...]
    """Cameras of the scene's frames; they also tell which way is up."""
    capture_from_world: Float64[Tensor, "4 4"] | None
    """As of `Scene`: takes world positions to the coordinates of the capture's pose files; None: they are the same."""
    index_of_sample: Int64[Tensor, "S"]
    """Which point each sample is."""
    sample_of_point: Int64[Tensor, "N"]
    """The sample that stands for each point."""
    num_views: Int64[Tensor, "S"]
    """Number of views that see each sample."""
    seen_samples: Int64[Tensor, "V"]
    """Samples with features: those that at least one view sees, ascending."""
    sha256: str
    """SHA-256 of the scene's manifest, which holds those of its files."""
    folder: Path
    _features: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sample_points(self) -> Float32[Tensor, "S 3"]:
        """World positions of the samples, metres."""
        return self.points[self.index_of_sample]

    @property
    def seen(self) -> Bool[Tensor, "S"]:
        """Whether at least one view sees each sample."""
        return self.num_views > 0

    def spread(self, of_seen: Shaped[Tensor, "V *rest"], fill: float = 0) -> Shaped[Tensor, "S *rest"]:
        """Spread values of the seen samples over all samples.

        Args:
            of_seen: A value or a row for each of `seen_samples`.
            fill: What samples get that no view sees.

        Returns:
            A value or a row for each sample, on the CPU; index it by `sample_of_point` for the points.
        """
        values = torch.full((len(self.num_views), *of_seen.shape[1:]), fill, dtype=of_seen.dtype)
        values[self.seen_samples] = of_seen.cpu()
        return values

    def features(self, teacher: str) -> Float[Tensor, "V C"]:
        """Return a teacher's fp16 features of `seen_samples`; mapped from disk at the first call and kept.

        Args:
            teacher: Name of the teacher, as in `Store.teachers`.

        Raises:
            NotFoundError: The scene has no features of this teacher.
        """
        if teacher not in self._features:
            path = self.folder / _features_file(teacher)
            if not path.is_file():
                held = sorted(
                    file.name.removesuffix(_features_file("")) for file in self.folder.glob(_features_file("*"))
                )
                raise NotFoundError(f"Scene {self.name} has no features of teacher {teacher!r}, only of {held}.")
            self._features[teacher] = read_tensors(path)["features"]
        return self._features[teacher]


class Store:
    """Scenes and their lifted features in a folder. Made by `create`, read by `open`.

    Attributes:
        path: Folder of the store.
        cell: Edge of a sample cell, metres.
        teachers: Card of each teacher whose features every scene holds; may be empty.
        settings: How the scenes were lifted.
    """

    def __init__(self, path: Path, cell: float, teachers: dict[str, TeacherCard], settings: dict[str, Setting]) -> None:
        self.path, self.cell, self.teachers, self.settings = path, cell, teachers, settings

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        cell: float = CELL,
        teachers: Mapping[str, TeacherCard] | None = None,
        settings: Mapping[str, Setting] | None = None,
    ) -> "Store":
        """Start a store, or go on with one that was started with the same settings.

        Args:
            path: Folder of the store; made if it is not there.
            cell: Edge of a sample cell, metres.
            teachers: Card of each teacher whose features the scenes will hold.
            settings: Whatever else decides the features: the dataset, the lifting.

        Returns:
            The store, with the scenes that it holds already.

        Raises:
            InputError: The folder holds something else.
        """
        path = Path(path)
        store = cls(path, cell, dict(teachers or {}), dict(settings or {}))
        for teacher in store.teachers:
            check_file_name(teacher, "teacher")
        begins = path.is_dir() and _is_beginning(path)
        if (path / "store.json").is_file() and not (begins and read_whole_json(path / "store.json") is None):
            there = cls.open(path)
            if there._header() != store._header():
                raise InputError(
                    f"{path} was made with other settings: its {_difference(there._header(), store._header())}. "
                    "Choose another folder, or delete this one."
                )
            return there
        if path.exists() and not begins:
            raise InputError(f"{path} is there already and is no store. Choose a new or an empty folder.")
        make_folder(path / "scenes")
        write_json(path / "store.json", store._header() | {"code_version": __version__})
        return store

    @classmethod
    def open(cls, path: Path | str) -> "Store":
        """Return a store to read; its scenes are read when asked for.

        Args:
            path: Folder of the store.

        Raises:
            NotFoundError: There is no store.
            InputError: Its `store.json` is damaged or of another version.
        """
        path = Path(path)
        if not (path / "store.json").is_file():
            raise NotFoundError(
                f"{path} is no store (no {path / 'store.json'}). Make one: cuao3d fuse DATA --out {path}."
                f"{nearby(path, 'store.json')}"
            )
        header = _read_json(path / "store.json")
        if header.get("format") != FORMAT or header.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{path / 'store.json'} is not a {FORMAT} of version {FORMAT_VERSION}. Make the store again with "
                "`cuao3d fuse`, or open it with the version of cuao3d that wrote it."
            )
        try:
            teachers = {name: TeacherCard(**card) for name, card in header["teachers"].items()}
            return cls(path, float(header["cell"]), teachers, dict(header["settings"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path / 'store.json'} is damaged ({error}). Make the store again.") from None

    def names(self, split: Split | None = None) -> tuple[str, ...]:
        """Return the names of the finished scenes of a `split`, or of all, in alphabetical order."""
        found = {path: read_whole_json(path) for path in sorted((self.path / "scenes").glob("*/manifest.json"))}
        return tuple(path.parent.name for path, about in found.items() if about and split in (None, about.get("split")))

    def has(self, name: str) -> bool:
        """Say whether the scene `name` is finished."""
        return bool(read_whole_json(self._folder(name) / "manifest.json"))

    def __getitem__(self, name: str) -> StoredScene:
        """Return a finished scene; its features are mapped when asked for.

        Args:
            name: Name of the scene.

        Raises:
            NotFoundError: There is no such scene, or it is not finished.
            InputError: A file of it is damaged.
        """
        folder = self._folder(name)
        if not self.has(name):
            reason = "is half-written" if folder.is_dir() else "is not in the store"
            raise NotFoundError(
                f"Scene {name!r} {reason} ({folder}). Run the same `cuao3d fuse` again to make it, or choose from "
                f"{', '.join(self.names()) or 'none'}."
            )
        manifest = _read_json(folder / "manifest.json")
        for file, entry in manifest["files"].items():
            _check_size(folder / file, entry["bytes"])
        stored = read_tensors(folder / "points.safetensors")
        num_views = stored["num_views"].long()
        colors, labels, normals = stored.get("colors"), stored.get("labels"), stored.get("normals")
        return StoredScene(
            name=name,
            split=manifest["split"],
            label_set=kept_label_set(self.path / LABELS, manifest["label_set"], manifest.get("label_set_sha256")),
            problems=tuple(map(_problem, manifest["problems"])),
            points=stored["points"],
            colors=None if colors is None else colors.float() / 255,
            labels=None if labels is None else labels.long(),
            normals=None if normals is None else normals.float(),
            cameras=_cameras(stored),
            capture_from_world=stored.get("capture_from_world"),
            index_of_sample=stored["index_of_sample"].long(),
            sample_of_point=stored["sample_of_point"].long(),
            num_views=num_views,
            seen_samples=torch.nonzero(num_views).squeeze(1),
            sha256=sha256_of(folder / "manifest.json"),
            folder=folder,
        )

    def add_scene(
        self,
        scene: Scene,
        samples: Samples,
        visibility: Visibility,
        features: Mapping[str, Float[Tensor, "V _"]],
        *,
        lifting: Mapping[str, Lifting] | None = None,
        photographs: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write a scene; it counts once its manifest is there, which is written last.

        Args:
            scene: The scene.
            samples: Its sample points, of this store's cell.
            visibility: What its views see of the samples.
            features: For each of this store's teachers a row for each of `visibility.seen_samples`.
            lifting: For each teacher how its lifting went, if that was measured.
            photographs: What `photographs.Album` kept.

        Raises:
            InputError: The features are not those of the store's teachers and the scene's seen samples, or the store
                keeps another label set of the same name.
        """
        halves = {teacher: rows.to("cpu", torch.float16) for teacher, rows in features.items()}
        self._check_features(scene.name, visibility, halves)
        folder = self._folder(scene.name)
        remove(folder / "manifest.json")
        label_set, label_set_sha256 = scene.label_set, None
        if label_set is not None:
            label_set, label_set_sha256 = keep_label_set(self.path / LABELS, label_set)
        contents = {"points.safetensors": _cloud(scene, samples, visibility)}
        contents |= {_features_file(teacher): {"features": rows} for teacher, rows in halves.items()}
        contents |= {PHOTOGRAPHS_FILE: dict(photographs)} if photographs else {}
        files = {}
        for file, tensors in contents.items():
            write_tensors(folder / file, tensors)
            files[file] = {"bytes": (folder / file).stat().st_size, "sha256": sha256_of(folder / file)}
        if lifting:
            write_json(folder / LIFTING_FILE, {teacher: asdict(about) for teacher, about in lifting.items()})
        manifest = {
            "name": scene.name,
            "split": scene.split,
            "label_set": label_set,
            "label_set_sha256": label_set_sha256,
            "problems": [asdict(problem) for problem in (*scene.problems, *visibility.problems)],
            "occlusion_tolerance": visibility.occlusion_tolerance,
            "num_points": len(scene.points),
            "num_samples": len(samples.index_of_sample),
            "num_seen": len(visibility.seen_samples),
            "code_version": __version__,
            "files": files,
        }
        write_json(folder / "manifest.json", manifest)

    def label_set(self, name: str) -> LabelSet:
        """Return a label set.

        Args:
            name: Name of a set of the package or of one that the store keeps, or the path of a CSV.

        Raises:
            InputError: There is no such set, or its CSV is wrong.
        """
        return find_label_set(self.path / LABELS, name)

    def lifting(self, name: str) -> dict[str, Lifting]:
        """Return how the lifting of the scene `name` went, by teacher; of those for which it was measured."""
        path = self._folder(name) / LIFTING_FILE
        return {teacher: Lifting(**about) for teacher, about in _read_json(path).items()} if path.is_file() else {}

    def summary(self, name: str) -> SceneSummary:
        """Return what the manifest of a finished scene says of it; neither its points nor its features are read.

        Args:
            name: Name of the scene.

        Raises:
            InputError: The manifest is damaged.
        """
        path = self._folder(name) / "manifest.json"
        manifest = _read_json(path)
        try:
            points, samples, seen = (int(manifest[key]) for key in ("num_points", "num_samples", "num_seen"))
            return SceneSummary(points, samples, seen, tuple(map(_problem, manifest["problems"])))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, f"{error}") from None

    def verify(self, name: str) -> None:
        """Read every byte of a finished scene and compare with its manifest.

        Args:
            name: Name of the scene.

        Raises:
            InputError: A file is not the one that was written.
        """
        folder = self._folder(name)
        for file, entry in _read_json(folder / "manifest.json")["files"].items():
            _check_size(folder / file, entry["bytes"])
            if sha256_of(folder / file) != entry["sha256"]:
                raise _damaged(folder / file, "its SHA-256 is not the manifest's")

    def _folder(self, name: str) -> Path:
        check_file_name(name, "scene")
        return self.path / "scenes" / name

    def _header(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "cell": self.cell,
            "teachers": {name: asdict(card) for name, card in self.teachers.items()},
            "settings": self.settings,
        }

    def _check_features(self, scene: str, visibility: Visibility, features: Mapping[str, Tensor]) -> None:
        if set(features) != set(self.teachers):
            raise InputError(f"The store holds {sorted(self.teachers)}; scene {scene} came with {sorted(features)}.")
        for teacher, rows in features.items():
            expected = (len(visibility.seen_samples), self.teachers[teacher].num_channels)
            if tuple(rows.shape) != expected:
                raise InputError(
                    f"Scene {scene}, teacher {teacher!r}: expected {expected} features, got {tuple(rows.shape)}."
                )
            if not bool(torch.isfinite(rows).all()):
                raise InputError(f"Scene {scene}, teacher {teacher!r}: a feature is not finite in 16 bits.")


def _cloud(scene: Scene, samples: Samples, visibility: Visibility) -> dict[str, Tensor]:
    """Return what is kept of a scene besides features, in small types."""
    tensors = {
        "points": scene.points,
        "index_of_sample": samples.index_of_sample.int(),
        "sample_of_point": samples.sample_of_point.int(),
        "num_views": visibility.num_views.int(),
    }
    if scene.frames:
        cameras = [frame.camera for frame in scene.frames]
        sizes = torch.tensor([[camera.width, camera.height] for camera in cameras], dtype=torch.float64)
        lenses = [torch.cat([camera.focal, camera.center, size]) for camera, size in zip(cameras, sizes, strict=True)]
        tensors["intrinsics"] = torch.stack(lenses)
        tensors["world_from_camera"] = torch.stack([camera.world_from_camera for camera in cameras])
    if scene.capture_from_world is not None:
        tensors["capture_from_world"] = scene.capture_from_world
    if scene.colors is not None:
        tensors["colors"] = (scene.colors * 255).round().clamp(0, 255).to(torch.uint8)
    if scene.labels is not None:
        tensors["labels"] = narrow_labels(scene.labels)
    if scene.normals is not None:
        tensors["normals"] = scene.normals.half()
    return tensors


def _cameras(tensors: Mapping[str, Tensor]) -> tuple[Camera, ...]:
    """Return the cameras that `_cloud` kept; none for a scene without views."""
    if "intrinsics" not in tensors:
        return ()
    pairs = zip(tensors["intrinsics"], tensors["world_from_camera"], strict=True)
    return tuple(Camera(lens[:2], lens[2:4], int(lens[4]), int(lens[5]), pose) for lens, pose in pairs)


def _problem(entry: dict[str, Any] | str) -> Problem:
    """Read a problem of a manifest; those of older stores are lines without a kind."""
    return Problem("other", entry) if isinstance(entry, str) else Problem(**entry)


def _features_file(teacher: str) -> str:
    return f"{teacher}.features.safetensors"


def _difference(there: dict[str, Any], asked: dict[str, Any]) -> str:
    """Name the first setting in which two headers differ, as deep as both have it."""
    key = next(key for key in there | asked if there.get(key) != asked.get(key))
    if isinstance(there.get(key), dict) and isinstance(asked.get(key), dict):
        if key == "teachers" and set(there[key]) != set(asked[key]):
            return f"teachers are {', '.join(there[key]) or 'none'}, not {', '.join(asked[key]) or 'none'}"
        return f"{key}.{_difference(there[key], asked[key])}"
    mine, other = (json.dumps(header[key]) if key in header else "the default" for header in (there, asked))
    return f"{key} is {mine}, not {other}"


def _check_size(path: Path, num_bytes: int) -> None:
    if not path.is_file():
        raise _damaged(path, "it is missing")
    if path.stat().st_size != num_bytes:
        raise _damaged(path, f"it has {path.stat().st_size} bytes, not {num_bytes}")


def _damaged(path: Path, reason: str) -> ValueError:
    return InputError(f"{path} is damaged: {reason}; {_cure(path)}.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of a stored scene; a damaged one is an InputError."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, str(error)) from None


def _is_beginning(path: Path) -> bool:
    """Say whether a folder holds only what `Store.create` leaves where it is interrupted before store.json is whole."""
    empty = {path / "scenes"} if not any((path / "scenes").glob("*")) else set()
    return all(entry in empty or entry.name == "store.json" or is_own(entry.name) for entry in path.iterdir())


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, _cure(path))


def _cure(path: Path) -> str:
    return f"delete {path.parent} and run the same `cuao3d fuse` again"
