"""What a stored scene was lifted from, and what of it has changed since."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from cuao3d.errors import InputError, UserError
from cuao3d.scene import Scene, Source
from cuao3d.seals import read_sealed, sha256_once, stamp_of, tensors_sha256, write_sealed

SOURCES_FILE = "sources.json"


@dataclass(frozen=True)
class Record:
    """The source of a scene at a moment."""

    settings: Mapping[str, Any]
    """How it was read and lifted, as JSON gives it back."""
    files: Mapping[str, tuple[tuple[int, ...], str]]
    """Stamp and SHA-256 of each file, by its name in the source; see `stamp_of`."""
    folder: str | None
    """Where the files lay."""

    @property
    def files_sha256(self) -> str:
        """One SHA-256 over names and contents of all files."""
        lines = "".join(f"{name} {sha256}\n" for name, (_, sha256) in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Return what the manifest of the scene says: nothing that differs between two copies of the same files."""
        return {"settings": dict(self.settings), "files_sha256": self.files_sha256}

    def write(self, scene: Path) -> None:
        """Write the files with their stamps into the folder of the scene, so that they need not be hashed again."""
        files = {name: [*stamp, sha256] for name, (stamp, sha256) in sorted(self.files.items())}
        write_sealed(scene / SOURCES_FILE, {"folder": self.folder, "files": files})


def source_of(dataset: Any, index: int) -> Source | None:
    """Return what decides a scene of a dataset; None if the dataset does not tell, or if it cannot be found."""
    tell = getattr(dataset, "source", None)
    with suppress(UserError, OSError):
        return None if tell is None else cast(Source, tell(index))
    return None


def source_of_scene(scene: Scene) -> Source:
    """Return what decides a scene whose dataset does not tell: all of it but the pixels."""
    tensors = {"points": scene.points, "colors": scene.colors, "labels": scene.labels, "normals": scene.normals}
    cameras = [frame.camera for frame in scene.frames]
    if cameras:
        tensors["poses"] = torch.stack([camera.world_from_camera for camera in cameras])
        tensors["lenses"] = torch.stack([torch.cat([camera.focal, camera.center]) for camera in cameras])
    there = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    about = {
        "frames": [frame.name for frame in scene.frames],
        "split": scene.split,
        "label_set": scene.label_set and Path(scene.label_set).name,
        "tolerance": scene.occlusion_tolerance,
    }
    return Source({"content_sha256": tensors_sha256(there, about)})


def record(source: Source, known: Record | None = None) -> Record:
    """Record a source: hash its files.

    Args:
        source: What decides a scene.
        known: An earlier record; files that have not been touched since are not read again.
    """
    files, before = {}, known.files if known else {}
    for name, path in source.files.items():
        stamp = stamp_of(path)
        is_known = name in before and before[name][0] == stamp
        files[name] = stamp, before[name][1] if is_known else sha256_once(path)
    folder = None if source.folder is None else str(source.folder)
    return Record(json.loads(json.dumps(dict(source.settings))), files, folder)


def read_record(scene: Path, about: Mapping[str, Any]) -> Record | None:
    """Read the record of a stored scene.

    Args:
        scene: Folder of the scene.
        about: What its manifest says of the source.

    Returns:
        The record; None if the file is missing, damaged or of another lifting.
    """
    try:
        content = read_sealed(scene / SOURCES_FILE, "")
        files = {name: (tuple(entry[:-1]), str(entry[-1])) for name, entry in content["files"].items()}
        read = Record(about["settings"], files, content["folder"])
    except (OSError, InputError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return read if read.files_sha256 == about["files_sha256"] else None


def differences(then: Mapping[str, Any], known: Record | None, now: Record) -> Iterator[str]:
    """Say in what a source differs from the one that a scene was lifted from; nothing if it does not.

    Args:
        then: What the manifest says of the source.
        known: The record beside the manifest, if it is there.
        now: The source now.
    """
    before = then["settings"]
    for key in sorted({*before, *now.settings}):
        if before.get(key) != now.settings.get(key):
            yield f"{key} is {json.dumps(now.settings.get(key))}, was {json.dumps(before.get(key))}"
    if then["files_sha256"] == now.files_sha256:
        return
    if known is None:
        yield "its files have changed"
        return
    of_kind = {
        "new": [name for name in now.files if name not in known.files],
        "gone": [name for name in known.files if name not in now.files],
        "changed": [name for name in now.files if name in known.files and known.files[name][1] != now.files[name][1]],
    }
    for kind, names in of_kind.items():
        if names:
            more = f" and {len(names) - 1} more files" if len(names) > 1 else ""
            verb = {"new": "are new", "gone": "are gone", "changed": "have changed"}[kind]
            alone = {"new": "is new", "gone": "is gone", "changed": "has changed"}[kind]
            yield f"{sorted(names)[0]}{more} {verb if more else alone}"
