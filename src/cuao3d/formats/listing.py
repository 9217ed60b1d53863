"""Files of a capture by name: case does not count, hidden files are not seen, numbers may be padded differently."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def files_in(folder: Path | None, endings: Sequence[str], *, prefix: str = "") -> dict[str, Path]:
    """Return the files of a folder that end so, by what stands before the ending; none where there is no folder.

    Args:
        folder: The folder.
        endings: In lower case, each with its dot; names may have them in any case. Where one name has several endings,
            the first that is listed here counts.
        prefix: What the names begin with; it is taken off.

    Returns:
        The files, in the order of their names.
    """
    found: dict[str, Path] = {}
    paths = _visible(folder)
    for ending in reversed(endings):
        for path in paths:
            if path.name.startswith(prefix) and path.name.lower().endswith(ending) and path.is_file():
                found[path.name[len(prefix) : -len(ending)]] = path
    return dict(sorted(found.items()))


def entry_named(folder: Path, *names: str) -> Path | None:
    """Return the file or folder that has one of some names, in any case; the first name that is there counts."""
    there: dict[str, Path] = {}
    for path in sorted(_visible(folder), reverse=True):
        there[path.name.lower()] = path
    for name in names:
        if (folder / name).exists():
            return folder / name
        if name.lower() in there:
            return there[name.lower()]
    return None


def match_names(names: Iterable[str], files: Mapping[str, Path]) -> dict[str, Path]:
    """Find the file of each frame: the one of its name, else the only one with the same numbers in its name.

    Args:
        names: Names of the frames.
        files: Files by name.

    Returns:
        The files of the frames that have one.
    """
    found = {name: files[name] for name in names if name in files}
    lacking = [name for name in names if name not in found]
    if not lacking:
        return found
    frames = Counter(map(numbers_of, names))
    by_numbers: dict[tuple[int, ...], list[Path]] = {}
    for name, path in files.items():
        by_numbers.setdefault(numbers_of(name), []).append(path)
    for name in lacking:
        numbers = numbers_of(name)
        paths = by_numbers.get(numbers, [])
        if numbers and frames[numbers] == 1 and len(paths) == 1:
            found[name] = paths[0]
    return found


def numbers_of(name: str) -> tuple[int, ...]:
    """Return the numbers in a name: ("frame-000012.color") gives (12,)."""
    return tuple(int(digits) for digits in re.findall(r"\d+", name))


def what_lies_in(folder: Path) -> str:
    """Say what a folder holds: "8 .heic, 1 .txt and the folders a, b"."""
    paths = _visible(folder)
    files = Counter(path.suffix.lower() or path.name for path in paths if path.is_file())
    folders = sorted(path.name for path in paths if path.is_dir())
    said = [f"{count} {ending}" for ending, count in files.most_common(4)]
    if folders:
        said.append(f"the folder{'s' if len(folders) > 1 else ''} {', '.join(folders[:6])}")
    return " and ".join(filter(None, [", ".join(said[:-1]), *said[-1:]])) or "nothing"


def _visible(folder: Path | None) -> list[Path]:
    """List a folder; names that begin with a dot are a system's own, such as the ._0.jpg that a Mac writes."""
    if folder is None or not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if not path.name.startswith(".")]
