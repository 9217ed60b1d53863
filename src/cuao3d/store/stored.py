"""A scene as a store holds it: what its folder holds, read and written."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cuao3d.codecs import Basis, Codec, Coded
from cuao3d.durable import remove
from cuao3d.errors import InputError, NotFoundError
from cuao3d.files import sha256_of, write_tensors
from cuao3d.fusion import Samples, Visibility
from cuao3d.gravity import Z, up_of
from cuao3d.scene import Camera, Problem, Scene, Split, narrow_labels
from cuao3d.seals import sha256_once, write_sealed

POINTS_FILE = "points.safetensors"
PHOTOGRAPHS_FILE = "photographs.safetensors"
LIFTING_FILE = "lifting.json"
DISAGREEMENT = "disagreement"


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
class Coding:
    """How a store keeps features, where not in plain 16 bits."""

    codec: Codec
    """The codec."""
    basis: Callable[[str], Basis | None]
    """Returns the basis of a teacher, by its name; None where it has none."""


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
    up: Float64[Tensor, "3"] | None
    """Unit vector that points up in the world; None where it could not be told, see `gravity.up_of`."""
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
    files: Mapping[str, Mapping[str, Any]]
    """Size and SHA-256 of each of its files, by the manifest."""
    coding: Coding | None = None
    """How its features are kept; None: in plain 16 bits."""
    is_finite: bool = False
    """Whether all features were found to be finite when they were written; not known of stores made before that was."""
    _features: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    _bring: Callable[[str, bool], object] | None = field(default=None, repr=False, compare=False)
    """Brings a file of a store at a URL before it is read, unless it is here; compared with the manifest or not."""

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
        """Return a teacher's fp16 features of `seen_samples`; read at the first call and kept.

        Those that are kept in plain 16 bits are mapped from disk, others are decoded into memory.

        Args:
            teacher: Name of the teacher, as in `Store.teachers`.

        Raises:
            NotFoundError: The scene has no features of this teacher.
            InputError: Their file is damaged.
        """
        if teacher not in self._features:
            self._features[teacher] = self.coded(teacher).decoded()
        return self._features[teacher]

    def coded(self, teacher: str, *, is_checked: bool = True) -> Coded:
        """Return a teacher's features of `seen_samples` as the store keeps them; mapped from disk.

        Args:
            teacher: Name of the teacher, as in `Store.teachers`.
            is_checked: Compare the file with the manifest at its first use in a process, for which it is read whole;
                otherwise only its size is compared.

        Raises:
            NotFoundError: The scene has no features of this teacher.
            InputError: Their file is damaged.
        """
        file = features_file(teacher)
        if file not in self.files:
            held = sorted(name.removesuffix(features_file("")) for name in self.files if features_file("") in name)
            raise NotFoundError(f"Scene {self.name} has no features of teacher {teacher!r}, only of {held}.")
        path, entry = self._here(file, is_checked), self.files[file]
        tensors = read_checked(path, entry) if is_checked else read_mapped(path, entry)
        codec, basis = (Codec(), None) if self.coding is None else (self.coding.codec, self.coding.basis(teacher))
        if (found := Coded.read(tensors, len(self.seen_samples), codec, basis)) is None:
            raise damaged(path, f"it holds no row of features for each of {len(self.seen_samples)}, kept as {codec}")
        return found

    def check(self, teachers: Iterable[str]) -> None:
        """Compare the files of teachers' features with the manifest; they are read whole once in a process.

        Args:
            teachers: Names of the teachers.

        Raises:
            InputError: One is not the one that was written.
        """
        for file in map(features_file, teachers):
            check_file(self._here(file), self.files[file])

    def rows(self, teacher: str, index: Int64[Tensor, "n"]) -> Float[Tensor, "n C"]:
        """Return a teacher's features of some of `seen_samples`; the rest of the file is not read.

        What is not read whole cannot be compared with its SHA-256: here the size of the file is all that is checked.
        `Store.verify` reads everything.

        Args:
            teacher: Name of the teacher, as in `Store.teachers`.
            index: Which of `seen_samples`.

        Raises:
            NotFoundError: The scene has no features of this teacher.
            InputError: Their file is damaged.
        """
        return self.coded(teacher, is_checked=False)[index]

    def disagreement(self, teacher: str) -> Float32[Tensor, "V"] | None:
        """Return how far the views of each of `seen_samples` disagree; None in stores made before that was kept.

        Args:
            teacher: Name of the teacher, as in `Store.teachers`.

        Returns:
            Values in [0, 1], NaN where there are not two views; see `fusion.Lifted`.

        Raises:
            NotFoundError: The scene has no features of this teacher.
            InputError: Their file is damaged.
        """
        self.coded(teacher)
        file = features_file(teacher)
        found = self.read(file).get(DISAGREEMENT)
        if found is not None and (tuple(found.shape) != self.seen_samples.shape or found.dtype != torch.float16):
            raise damaged(self.folder / file, f"it holds no disagreement for each of {len(self.seen_samples)} samples")
        return None if found is None else found.float()

    def read(self, file: str) -> dict[str, Tensor]:
        """Return the tensors of a file of the scene; it is compared with the manifest at its first use in a process.

        Args:
            file: Its name in the folder of the scene.

        Raises:
            InputError: It is damaged.
        """
        return read_checked(self._here(file), self.files[file])

    def _here(self, file: str, is_checked: bool = True) -> Path:
        """Return the path of a file, once it is on this machine."""
        if self._bring is not None:
            self._bring(file, is_checked)
        return self.folder / file


def cloud_tensors(scene: Scene, samples: Samples, visibility: Visibility) -> dict[str, Tensor]:
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
    if (up := up_of(scene)) is None or not up.equal(Z):
        tensors["up"] = torch.zeros(3, dtype=torch.float64) if up is None else up
    if scene.colors is not None:
        tensors["colors"] = (scene.colors * 255).round().clamp(0, 255).to(torch.uint8)
    if scene.labels is not None:
        tensors["labels"] = narrow_labels(scene.labels)
    if scene.normals is not None:
        tensors["normals"] = scene.normals.half()
    return tensors


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a file of a scene; return what the manifest says of it."""
    write_tensors(path, tensors)
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def remove_others(folder: Path, files: Mapping[str, Any]) -> None:
    """Remove tensor files of a scene that are not of its manifest: those of teachers that it had before."""
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in files:
            remove(path)


def write_lifting(folder: Path, lifting: Mapping[str, Lifting]) -> None:
    """Write how the lifting of a scene went."""
    write_sealed(folder / LIFTING_FILE, {teacher: asdict(about) for teacher, about in lifting.items()})


def read_cameras(tensors: Mapping[str, Tensor]) -> tuple[Camera, ...]:
    """Return the cameras that `cloud_tensors` kept; none for a scene without views."""
    if "intrinsics" not in tensors:
        return ()
    pairs = zip(tensors["intrinsics"], tensors["world_from_camera"], strict=True)
    return tuple(Camera(lens[:2], lens[2:4], int(lens[4]), int(lens[5]), pose) for lens, pose in pairs)


def cloud_fields(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what `cloud_tensors` kept as fields of `StoredScene`."""
    colors, labels, normals = (tensors.get(name) for name in ("colors", "labels", "normals"))
    num_views, up = tensors["num_views"].long(), tensors.get("up", Z)
    return {
        "points": tensors["points"],
        "colors": None if colors is None else colors.float() / 255,
        "labels": None if labels is None else labels.long(),
        "normals": None if normals is None else normals.float(),
        "cameras": read_cameras(tensors),
        "up": up if up.any() else None,
        "capture_from_world": tensors.get("capture_from_world"),
        "index_of_sample": tensors["index_of_sample"].long(),
        "sample_of_point": tensors["sample_of_point"].long(),
        "num_views": num_views,
        "seen_samples": torch.nonzero(num_views).squeeze(1),
    }


def read_problem(entry: dict[str, Any] | str) -> Problem:
    """Read a problem of a manifest; those of older stores are lines without a kind."""
    return Problem("other", entry) if isinstance(entry, str) else Problem(**entry)


def features_file(teacher: str) -> str:
    """Return the name of the file that holds a teacher's features."""
    return f"{teacher}.features.safetensors"


def check_size(path: Path, entry: Mapping[str, Any]) -> None:
    """Raise InputError unless a file has the size that its manifest states."""
    if not path.is_file():
        raise damaged(path, "it is missing")
    if path.stat().st_size != entry["bytes"]:
        raise damaged(path, f"it has {path.stat().st_size} bytes, not {entry['bytes']}")


def check_file(path: Path, entry: Mapping[str, Any]) -> None:
    """Raise InputError unless a file is the one that its manifest states; it is read whole once in a process."""
    check_size(path, entry)
    if sha256_once(path) != entry["sha256"]:
        raise damaged(path, "its SHA-256 is not the manifest's")


def read_checked(path: Path, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read a file of a stored scene; its tensors are mapped.

    Raises:
        InputError: It is not the one that was written.
    """
    check_file(path, entry)
    return read_mapped(path, entry)


def read_mapped(path: Path, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """Map the tensors of a file of a stored scene; of what it holds only the header is read.

    Raises:
        InputError: It is not of the size of the one that was written, or no file of tensors.
    """
    check_size(path, entry)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise damaged(path, str(error)) from None


def damaged(path: Path, reason: str) -> ValueError:
    """Return the error for a damaged file."""
    return InputError(f"{path} is damaged: {reason}; {cure(path)}.")


def cure(path: Path) -> str:
    """Say what to do about a damaged file of a scene."""
    return f"delete {path.parent} and run the same `cuao3d fuse` again"
