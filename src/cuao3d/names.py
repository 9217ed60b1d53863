"""Names that people type: which one of several is meant, and which of them can be a file's."""

import re
from collections.abc import Iterable

from cuao3d.errors import InputError

NOT_IN_FILE_NAMES = '/\\:*?"<>|'
"""Characters that some file system does not allow in a name."""


def match_name(name: str, known: Iterable[str]) -> str:
    """Return the known name that is meant: "-", "_" and "." are the same, unless a name is spelled exactly so.

    Returns:
        The known name; `name` itself if none is meant.
    """
    names = tuple(known)
    return name if name in names else next((one for one in names if _plain(one) == _plain(name)), name)


def check_file_name(name: str, kind: str) -> None:
    """Raise an error unless a name can be that of a file.

    Args:
        name: The name.
        kind: What it names, for the error.

    Raises:
        InputError: It cannot.
    """
    if not name or not name.isprintable() or name.startswith(".") or set(name) & set(NOT_IN_FILE_NAMES):
        raise InputError(
            f"{name!r} cannot be the name of a {kind}, because it also names a file: it must not be empty, begin with "
            f"a dot, or contain any of {' '.join(NOT_IN_FILE_NAMES)}"
        )


def as_file_name(name: str) -> str:
    """Return a name as one that a file can have: what no file may be called becomes "-", dots in front go."""
    safe = "".join("-" if one in NOT_IN_FILE_NAMES or not one.isprintable() else one for one in name)
    return safe.lstrip(".") or "scene"


def _plain(name: str) -> str:
    return re.sub("[-_.]", "-", name)
