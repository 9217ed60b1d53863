"""Names that people type: which one of several is meant, which can be a file's, and which are URLs."""

import re
from collections.abc import Iterable
from pathlib import Path

from cuao3d.errors import InputError

NOT_IN_FILE_NAMES = '/\\:*?"<>|'
"""Characters that some file system does not allow in a name."""

_SCHEME = "[a-z][a-z0-9+.-]+"

_IN_PATH = re.compile(f"(?:{_SCHEME}::)*{_SCHEME}:/")
"""How a URL begins that was made a path, which leaves one slash of several."""


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


def url_of(place: Path | str) -> str | None:
    """Return the URL that a place is, whole again where it was made a path; None for a place on this machine."""
    text = str(place)
    if isinstance(place, Path):
        if not _IN_PATH.match(text) or Path(place.parts[0]).exists():
            return None
        text = re.sub(f"(^|::)({_SCHEME}):/", r"\1\2://", text)
        text = re.sub("(^|::)(file|local)://", r"\1\2:///", text)
    return text if "://" in text else None


def check_local(place: Path | str, what: str) -> None:
    """Refuse a URL where only a place on this machine will do.

    Args:
        place: The place.
        what: What it was given for, for the error.

    Raises:
        InputError: It is a URL.
    """
    if url := url_of(place):
        raise InputError(
            f"{what}: {url} is a URL, where stores can be read but nothing can be written. Name a folder of this "
            "machine, and copy from or to the URL with the tool of that place, such as `rclone copy`."
        )


def _plain(name: str) -> str:
    return re.sub("[-_.]", "-", name)
