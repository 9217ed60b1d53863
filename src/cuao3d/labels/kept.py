"""Label sets that a store keeps: copies of CSVs in a folder of its own, so that the originals may move or change."""

import shutil
from functools import partial
from pathlib import Path

from cuao3d.errors import InputError
from cuao3d.files import sha256_of, write_whole
from cuao3d.labels import LABEL_SETS, LabelSet, label_set


def keep_label_set(folder: Path, name: str) -> tuple[str, str | None]:
    """Copy the CSV of a label set into a folder; sets of the package stay where they are.

    Args:
        folder: Where the copies lie; made if it is not there.
        name: One of `LABEL_SETS`, or the path of a CSV.

    Returns:
        What to note of the set: its name, or the name of the CSV and its SHA-256.

    Raises:
        InputError: The folder holds another CSV of the same name.
    """
    if name in LABEL_SETS:
        return name, None
    source, sha256 = Path(name), sha256_of(Path(name))
    copy = folder / source.name
    if not copy.is_file():
        write_whole(copy, partial(shutil.copyfile, source))
    if sha256_of(copy) != sha256:
        raise InputError(f"{folder} keeps another label set {source.name}; rename {source}.")
    return source.name, sha256


def kept_label_set(folder: Path, name: str | None, sha256: str | None) -> str | None:
    """Return a label set as `label_set` takes it, from what `keep_label_set` noted.

    Raises:
        InputError: The copy is missing, or has changed.
    """
    if name is None or sha256 is None:
        return name
    copy = folder / Path(name).name
    if not copy.is_file() or sha256_of(copy) != sha256:
        raise InputError(f"{copy} is missing, or is not the label set that the scenes were stored with; restore it.")
    return str(copy)


def find_label_set(folder: Path, name: str) -> LabelSet:
    """Read a label set by its name or the path of a CSV; those that a folder keeps are found by their names.

    Raises:
        InputError: There is no such set, or its CSV is wrong.
    """
    kept = {path.stem: path for path in sorted(folder.glob("*.csv"))}
    if name in LABEL_SETS or Path(name).is_file():
        return label_set(name)
    if name in kept:
        return label_set(kept[name])
    try:
        return label_set(name)
    except InputError as error:
        raise InputError(f"{error} The store keeps {', '.join(kept)}.") if kept else error from None
