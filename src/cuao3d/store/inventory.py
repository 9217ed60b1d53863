"""What a store holds and what it takes up, from its manifests alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuao3d.store import Store
from cuao3d.store.header import Setting
from cuao3d.store.schemas import read_manifest
from cuao3d.store.stored import features_file


@dataclass(frozen=True)
class Held:
    """A teacher's features in a store."""

    teacher: str
    """Name of the teacher."""
    num_channels: int
    """Channels of its features."""
    codec: str
    """How they are kept; a teacher of no more channels than the store's basis has directions has none."""
    num_bytes: int
    """Size of its files, how far views disagree included."""
    bytes_a_sample: float | None
    """The same for each seen sample; None where there is none."""
    cosine_error: float | None
    """Mean of 1 - cos to the features before they were encoded, over the seen samples; None: not measured."""


@dataclass(frozen=True)
class Inventory:
    """Summary of a store."""

    path: str
    """Folder of the store, or its URL."""
    codec: str
    """How features are kept."""
    cell: float
    """Edge of a sample cell, metres."""
    settings: dict[str, Setting]
    """How the scenes were lifted."""
    num_scenes: int
    """Scenes that are finished."""
    missing: dict[str, str]
    """Reason of each that is not, by name."""
    num_points: int
    """Points of their clouds."""
    num_samples: int
    """Sample points."""
    num_seen: int
    """Samples that a view sees."""
    teachers: tuple[Held, ...]
    """Its teachers."""
    num_bytes: int
    """Size of all files of the store."""


def inventory(store: Store) -> Inventory:
    """Summarise a store; neither points nor features are read.

    Raises:
        InputError: A manifest is damaged.
    """
    manifests = [read_manifest(store._folder(name)) for name in store.names()]
    counts = {key: sum(manifest[key] for manifest in manifests) for key in ("num_points", "num_samples", "num_seen")}
    teachers = []
    for teacher, card in store.teachers.items():
        file, errors, weights = features_file(teacher), list[float](), list[int]()
        num_bytes = sum(manifest["files"].get(file, {"bytes": 0})["bytes"] for manifest in manifests)
        for manifest in manifests:
            error = manifest.get("codecs", {}).get(teacher, {}).get("cosine_error")
            if error is not None:
                errors.append(error * manifest["num_seen"])
                weights.append(manifest["num_seen"])
        is_coded = store.codec.rank_of(card.num_channels) is not None
        codec = str(store.codec) if is_coded else "int8" if store.codec.quantised else "fp16"
        a_sample = num_bytes / counts["num_seen"] if counts["num_seen"] else None
        mean = sum(errors) / sum(weights) if sum(weights) else None
        teachers.append(Held(teacher, card.num_channels, codec, num_bytes, a_sample, mean))
    return Inventory(
        store.url or str(store.path),
        str(store.codec),
        store.cell,
        store.settings,
        len(manifests),
        store.missing(),
        **counts,
        teachers=tuple(teachers),
        num_bytes=_size(store, manifests),
    )


def _size(store: Store, manifests: Sequence[Mapping[str, Any]]) -> int:
    """Return the bytes of the files that are here, and of those at a URL that were not read yet."""
    here = {path: path.stat().st_size for path in store.path.rglob("*") if path.is_file()}
    listed = ((store._folder(of["name"]) / file, entry) for of in manifests for file, entry in of["files"].items())
    files = {path: entry["bytes"] for path, entry in listed}
    return sum((files | here).values())
