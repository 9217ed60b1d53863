"""Sums of a scene that is still being lifted: after an interruption a long capture goes on at the view, not anew."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from cuao3d import __version__
from cuao3d.console import note
from cuao3d.errors import DiskFullError, InputError
from cuao3d.files import write_tensors
from cuao3d.seals import check_tensors, sealed
from cuao3d.store import Store

LONG = 200
"""Sums of captures of more views than this are kept while they are lifted."""

EVERY = 50
"""Views after which sums are written, at the earliest."""

SHARE = 0.05
"""Share of the time that is spent on writing them, at most."""

FILE = "unfinished.safetensors"
"""The file, in the folder of the scene. No manifest names it, so no reader meets it, and a finished scene has none."""


class KeptSums:
    """Keeps the sums of a scene in its folder; see `fusion.Unfinished`."""

    def __init__(self, file: Path, key: str) -> None:
        self._file, self._key, self._last, self._free_at = file, key, 0, 0.0

    @staticmethod
    def of(store: Store, scene: str, about: Mapping[str, Any]) -> "KeptSums":
        """Return what keeps the sums of a scene.

        Args:
            store: The store that it is lifted into.
            scene: Its name.
            about: What decides the sums, besides cell, teachers and settings of the store, and the code.
        """
        decides = {"store": store._header(), "about": dict(about), "version": __version__}
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        return KeptSums(store._folder(scene) / FILE, key)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return what was kept of the same walk; None if there is nothing, or if it is damaged."""
        if not self._file.is_file():
            return None
        try:
            with safe_open(self._file, framework="pt") as opened:
                said = opened.metadata()["sums"]
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            check_tensors(tensors, said, has_seal=True)
        except (SafetensorError, InputError, KeyError, TypeError, ValueError, OSError):
            return None
        about: dict[str, Any] = json.loads(said)
        if about["key"] != self._key:
            return None
        self._last = about["done"]
        return tensors, about

    def is_due(self, done: int, total: int) -> bool:
        """Say whether sums are to be written after so many views."""
        far = done - self._last if done > self._last else done
        return far >= EVERY and total - done >= EVERY // 2 and time.perf_counter() >= self._free_at

    def save(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write the sums; a disk that is too full for them does without."""
        begun = time.perf_counter()
        try:
            write_tensors(self._file, tensors, {"sums": sealed(tensors, {**about, "key": self._key})})
        except DiskFullError as error:
            note(f"{self._file.parent.name}: it could not go on from here after an interruption. {error}")
        self._last = about["done"]
        now = time.perf_counter()
        self._free_at = now + (now - begun) / SHARE
