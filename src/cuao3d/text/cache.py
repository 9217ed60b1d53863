"""Vectors kept on disk, by the hash of the model that made them and by their text."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cuao3d.files import cache_folder, sha256_of, write_tensors
from cuao3d.seals import is_settled, read_sealed, stamp_of, tensors_sha256, write_sealed
from cuao3d.text.encoder import TextEncoder

OF_A_MODEL = (".json", ".safetensors", ".bin", ".txt", ".model")
"""Endings of the files in a folder that decide what its model says."""


class Cached:
    """An encoder that remembers: its model is loaded when it meets a text for the first time, on any day."""

    def __init__(self, kind: str, load: Callable[[], TextEncoder], sha256: str, *, reads: str = "English") -> None:
        """Make the encoder; nothing is loaded yet.

        Args:
            kind: Kind of encoder; with the hash it names the folder of its vectors.
            load: Loads the encoder.
            sha256: Hash of its model.
            reads: The language that it knows; see `ModelEncoder`.
        """
        self.reads = reads
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
                sealed = (file.metadata() or {}).get("sha256")
        except (OSError, SafetensorError):
            return None
        return vector if sealed == tensors_sha256({"vector": vector}, {"text": text}) else None

    def _write(self, text: str, vector: Tensor) -> None:
        # Where nothing can be kept, or another process keeps the same just now, work goes on.
        with suppress(OSError, SafetensorError):
            sealed = tensors_sha256({"vector": vector}, {"text": text})
            write_tensors(self._file(text), {"vector": vector}, {"sha256": sealed}, durable=False)

    def _file(self, text: str) -> Path:
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def sha256_of_folder(folder: Path) -> str:
    """Return the SHA-256 of a model's files, names included; large ones are read again only when they change."""
    files = sorted(path for path in folder.iterdir() if path.suffix in OF_A_MODEL)
    together = "".join(f"{path.name} {known_sha256(path)}\n" for path in files)
    return hashlib.sha256(together.encode()).hexdigest()


def known_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; it is read again only if it has been touched since; see `stamp_of`.

    What was found is noted in the cache, for other processes.
    """
    path = path.resolve()
    now = {"path": str(path), "stamp": list(stamp_of(path))}
    note = cache_folder() / "sha256" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError):  # no note yet, or a damaged one
        noted = read_sealed(note, "")
        if {key: noted[key] for key in now} == now:
            return str(noted["found"])
    sha256 = sha256_of(path)
    if is_settled(stamp_of(path)):
        with suppress(OSError):
            write_sealed(note, now | {"found": sha256}, durable=False)
    return sha256
