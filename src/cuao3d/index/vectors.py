"""The vectors of all parts in one file: a graph of near neighbours, searched where it lies, by the library usearch."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from cuao3d.errors import InputError, NotInstalledError
from cuao3d.files import write_whole

EXPANSION = 512
"""Candidates that a search follows in the graph: more find more of the true neighbours, and take longer."""

THREADS = 1
"""With one thread, the same vectors in the same order make the same graph."""


class Vectors:
    """Vectors by key, compared by their inner product."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._index.expansion_search = EXPANSION

    @staticmethod
    def empty(width: int) -> "Vectors":
        """Return no vectors, to be filled.

        Raises:
            NotInstalledError: usearch is not installed.
        """
        return Vectors(_library().Index(ndim=width, metric="ip", dtype="f16"))

    @staticmethod
    def read(path: Path, width: int, cure: str, *, whole: bool = False) -> "Vectors":
        """Read vectors.

        Args:
            path: The file.
            width: Number of values of each.
            cure: What to do where it is damaged, for the error message.
            whole: Read them into memory, so that they can be changed; else they are searched where they lie.

        Raises:
            InputError: The file is missing, damaged or of another width.
            NotInstalledError: usearch is not installed.
        """
        library = _library()
        index = library.Index(ndim=width, metric="ip", dtype="f16")
        try:
            about = library.Index.metadata(str(path))
            if about is None or int(about["dimensions"]) != width:
                raise ValueError("it is no index of this width")
            (index.load if whole else index.view)(str(path))
        except Exception as error:  # the library raises what it likes
            raise InputError(f"{path} is damaged: {error}; {cure}.") from error
        return Vectors(index)

    def __len__(self) -> int:
        return len(self._index)

    def add(self, keys: Int64[np.ndarray, "n"], rows: Float[np.ndarray, "n width"]) -> None:
        """Add vectors by keys that are not there yet."""
        if len(keys):
            self._index.add(keys, rows.astype(np.float16), threads=THREADS)

    def remove(self, keys: Iterable[int]) -> None:
        """Remove vectors."""
        gone = np.fromiter(keys, dtype=np.int64)
        if len(gone):
            self._index.remove(gone, threads=THREADS)

    def nearest(
        self, row: Float[np.ndarray, "width"], count: int, *, exact: bool = False
    ) -> tuple[Int64[np.ndarray, "k"], Float32[np.ndarray, "k width"]]:
        """Return the keys and the vectors with the largest inner product, the largest first.

        Args:
            row: What they are multiplied by.
            count: How many; fewer where there are fewer.
            exact: Compare with all vectors instead of following the graph.
        """
        count = min(count, len(self))
        if not count:
            return np.zeros(0, dtype=np.int64), np.zeros((0, len(row)), dtype=np.float32)
        found = self._index.search(row.astype(np.float16), count, exact=exact, threads=THREADS)
        keys = np.asarray(found.keys).astype(np.int64)
        return keys, np.asarray(self._index.get(keys), dtype=np.float32).reshape(len(keys), -1)

    def write(self, path: Path) -> None:
        """Write the vectors, whole or not at all."""
        write_whole(path, lambda temporary: self._index.save(str(temporary)))


def _library() -> Any:
    try:
        import usearch.index
    except ImportError:
        raise NotInstalledError("Search over many scans needs usearch: pip install 'cuao3d[search]'") from None
    return usearch.index
