"""A table as an encoder: names and vectors that were made elsewhere. It knows its own words and no others."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from cuao3d.errors import InputError, NotFoundError
from cuao3d.labels import LABEL_SETS, label_set
from cuao3d.pickles import read_torch
from cuao3d.text.prompts import names_in

FORMATS = (".npy", ".pt", ".safetensors")


class Table:
    """Looks words up. Case, and "_" for a space, do not matter; a name may come in a prompt of `TEMPLATES`."""

    def __init__(self, names: Sequence[Sequence[str]], vectors: Float[Tensor, "K C"]) -> None:
        """Make the encoder.

        Args:
            names: What each row is called; it may have several names.
            vectors: A vector for each, of any length but 0.
        """
        self.num_channels = vectors.shape[1]
        self.vectors = functional.normalize(vectors.float(), dim=1)
        """All that it knows (K, C); a query is compared with it, since it may lack other words."""
        self._row_of_name = {_plain(name): row for row, several in enumerate(names) for name in several}

    @staticmethod
    def read(where: str = "") -> "Table":
        """Read a table.

        Args:
            where: `FILE` or `FILE@NAMES`. FILE is one matrix, a row per name: `.npy`, `.pt` or `.safetensors`. NAMES
                is a label set in whose order the rows are, or a text file with a name a line. By default it is the
                text file beside FILE that shares its beginning: `lvis_names.txt` for `lvis_clip_vitb32.npy`.

        Raises:
            NotFoundError: There is no such file.
            InputError: It holds something else, or names and rows do not fit each other.
        """
        file, _, given = where.rpartition("@") if not Path(where).is_file() and "@" in where else (where, "", "")
        path = Path(file)
        if not path.is_file():
            raise NotFoundError(f"There is no table {file!r}; give table:FILE or table:FILE@NAMES.")
        vectors = _read_matrix(path)
        source = given or _names_beside(path)
        names = _read_names(source)
        if len(names) != len(vectors):
            raise InputError(f"{path} has {len(vectors)} rows, but {source} has {len(names)} names.")
        return Table(names, vectors)

    def __call__(self, texts: Sequence[str]) -> Float32[Tensor, "K C"]:
        """Look texts up, one unit vector each.

        Raises:
            InputError: A text is not in the table; says which are nearly.
        """
        return self.vectors[torch.tensor([self._row(text) for text in texts], dtype=torch.int64)]

    def _row(self, text: str) -> int:
        rows = (self._row_of_name.get(name) for name in names_in(_plain(text)))
        found = next((row for row in rows if row is not None), None)
        if found is None:
            *_, bare = names_in(_plain(text))
            near = difflib.get_close_matches(bare, self._row_of_name, n=5)
            hint = f"it has {', '.join(near)}" if near else "nor anything like it"
            raise InputError(f"The table of words has no {bare!r}; {hint}.")
        return found


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ")


def _read_matrix(path: Path) -> Float32[Tensor, "K C"]:
    """Read the one matrix in a file."""
    try:
        match path.suffix:
            case ".npy":
                content = torch.from_numpy(np.load(path, allow_pickle=False))
            case ".pt":
                content = read_torch(path)
            case ".safetensors":
                (content,) = load_file(path).values()
            case _:
                raise InputError(f"it should end in one of {', '.join(FORMATS)}")
        vectors: Tensor = content.detach().float()
    except Exception as error:  # from damaged bytes anything can come
        raise InputError(f"{path} is no table of vectors: {error}") from None
    if vectors.ndim != 2 or not vectors.numel():
        raise InputError(
            f"{path} is no table of vectors: it has the shape {tuple(vectors.shape)}, not (names, channels)."
        )
    wrong = torch.nonzero(~vectors.isfinite().all(dim=1) | ~vectors.any(dim=1)).squeeze(1).tolist()
    if wrong:
        raise InputError(f"{path} is no table of vectors: row {wrong[0]} is zero or not finite.")
    return vectors


def _names_beside(path: Path) -> str:
    """Find the text file whose beginning the table shares."""
    words = path.stem.split("_")
    places = [path.with_name(f"{'_'.join(words[:count])}_names.txt") for count in range(len(words), 0, -1)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(
            f"The rows of {path} have no names. Write them into {places[0].name} beside it, one a line; or name the "
            f"label set in whose order they are: table:{path}@{LABEL_SETS[0]}."
        )
    return str(found)


def _read_names(source: str) -> list[tuple[str, ...]]:
    """Read the names of rows: from a text file, or those and the prompts of a label set."""
    if not source.endswith(".txt"):
        classes = label_set(source)
        return list(zip(classes.names, classes.prompts, strict=True))
    if not Path(source).is_file():
        raise NotFoundError(f"There is no file of names {source}.")
    try:
        return [(line,) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is no text in UTF-8 ({error}); save it again.") from error
