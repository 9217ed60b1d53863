"""Weights of published models: where they come from, what their licences mean, and where they lie on this machine."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

HUGGING_FACE_FILES = ("*.json", "*.txt", "*.safetensors")
"""What is needed of a model repository: settings, vocabularies, weights. Never code, never pickles."""

FREE = "free, also commercially; a student distilled from it is yours"


@dataclass(frozen=True)
class Weights:
    """Published weights."""

    repository: str
    """Repository on the Hugging Face hub, or the address of a page to download a file from."""
    licence: str
    """Licence, SPDX where there is one."""
    distilled: str
    """What the licence means for a model distilled from it, in short."""
    megabytes: int
    """Size of what is needed, about."""
    files: tuple[str, ...] = HUGGING_FACE_FILES
    """Patterns of the files that are needed; for a page, the one file."""
    mirrors: tuple[str, ...] = ()
    """Repositories that hold the same, tried in this order when the first one is gone."""
    sha256: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """SHA-256 of files, where it is known."""

    @property
    def on_page(self) -> bool:
        """Whether a person has to download it from a page."""
        return "://" in self.repository


WEIGHTS: dict[str, Weights] = {}
"""Weights by name."""


def cache_folder() -> Path:
    """Return the folder in which cuao3d keeps what can be made or fetched again; `CUAO3D_CACHE` decides it."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cuao3d"
    return Path(os.environ.get("CUAO3D_CACHE") or default)


def find(name: str) -> Path:
    """Return where named weights lie on this machine; never touches the network.

    Returns:
        The folder of a model (with its `config.json` or `model_index.json`), or the one file of weights from a page.

    Raises:
        ValueError: There are no weights of that name.
        FileNotFoundError: They are not on this machine; says how to get them.
    """
    weights = named(name)
    for place in _places(name, weights):
        if place.exists():
            return place
    size = f"{weights.megabytes / 1000:.1f} GB" if weights.megabytes > 999 else f"{weights.megabytes} MB"
    raise FileNotFoundError(
        f"The weights {name!r} are not on this machine. Get them ({size}, {weights.licence}): "
        f"cuao3d weights fetch {name}. Or give the folder where they lie: {name}=FOLDER."
    )


def named(name: str) -> Weights:
    """Return what is known of named weights.

    Raises:
        ValueError: There are none of that name.
    """
    if name not in WEIGHTS:
        raise ValueError(f"Unknown weights {name!r}; choose from {sorted(WEIGHTS)}.")
    return WEIGHTS[name]


def _places(name: str, weights: Weights) -> list[Path]:
    """List where named weights may lie: our own folder, then the Hugging Face cache."""
    own = cache_folder() / "weights" / name
    if weights.on_page:
        return [own / weights.files[0]]
    places = [own]
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        return places
    for repository in (weights.repository, *weights.mirrors):
        try:
            places.append(Path(snapshot_download(repository, local_files_only=True)))
        except LocalEntryNotFoundError:
            continue
    return places
