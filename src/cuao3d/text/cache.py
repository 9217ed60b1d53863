"""Vectors kept on disk, by the hash of the model that made them and by their text."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cuao3d.download import cache_folder
from cuao3d.files import read_json, sha256_of, write_json, write_tensors
from cuao3d.text.encoder import TextEncoder

OF_A_MODEL = (".json", ".safetensors", ".bin", ".txt", ".model")
"""Endings of the files in a folder that decide what its model says."""


class Cached:
    """An encoder that remembers: its model is loaded when it meets a text for the first time, on any day."""

    def __init__(self, kind: str, load: Callable[[], TextEncoder], sha256: str) -> None:
        """Make the encoder; nothing is loaded yet.

        Args:
            kind: Kind of encoder; with the hash it names the folder of its vectors.
            load: Loads the encoder.
            sha256: Hash of its model.
        """
        self.sha256 = sha256
        self._folder = cache_folder() / "text" / f"{kind}-{sha256[:16]}"
        self._load = load
        self._encoder: TextEncoder | None = None

    @property
    def num_channels(self) -> int:
        """Channels of its vectors."""
        return self([""]).shape[1]

    def __call__(self, texts: Sequence[str]) -> Float32[Tensor, "K C"]:
        """Encode texts, one unit vector each."""
        vectors = {text: self._read(text) for text in texts}
        new = [text for text, vector in vectors.items() if vector is None]
        if new:
            self._encoder = self._encoder or self._load()
            for text, vector in zip(new, self._encoder(new), strict=True):
                vectors[text] = vector
                self._write(text, vector)
        known = [vector for text in texts if (vector := vectors[text]) is not None]
        return torch.stack(known) if known else torch.zeros(0, self.num_channels)

    def _read(self, text: str) -> Float32[Tensor, "C"] | None:
        """Return the vector of a text if a sound one is kept."""
        try:
            with safe_open(self._file(text), framework="pt") as file:
                vector: Tensor = file.get_tensor("vector")
                same = (file.metadata() or {}).get("text") == text
        except (OSError, SafetensorError):
            return None
        unit = vector.ndim == 1 and vector.dtype == torch.float32 and abs(float(vector.norm()) - 1) < 1e-3
        return vector if same and unit else None

    def _write(self, text: str, vector: Tensor) -> None:
        # Where nothing can be kept, or another process keeps the same just now, work goes on.
        with suppress(OSError, SafetensorError):
            write_tensors(self._file(text), {"vector": vector}, {"text": text}, durable=False)

    def _file(self, text: str) -> Path:
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def sha256_of_folder(folder: Path) -> str:
    """Return the SHA-256 of a model's files, names included; large ones are read again only when they change."""
    files = sorted(path for path in folder.iterdir() if path.suffix in OF_A_MODEL)
    together = "".join(f"{path.name} {known_sha256(path)}\n" for path in files)
    return hashlib.sha256(together.encode()).hexdigest()


def known_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; it is read again only if its size or time has changed."""
    path = path.resolve()
    stat = path.stat()
    now = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    note = cache_folder() / "sha256" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # no note yet, or a damaged one
        noted = read_json(note)
        if {key: noted[key] for key in now} == now:
            return str(noted["sha256"])
    sha256 = sha256_of(path)
    with suppress(OSError):
        write_json(note, now | {"sha256": sha256}, durable=False)
    return sha256
