"""Files of a folder by their stems, whatever the case of their endings; hidden ones do not count."""

from pathlib import Path

COLOR_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic")
"""Endings of photographs; what cannot be read is named when it is opened."""

DEPTH_ENDINGS = (".png", ".npy", ".exr", ".tif", ".tiff", ".pgm")
"""Endings of depth images; likewise."""


def by_stem(folder: Path, endings: tuple[str, ...], *, prefix: str = "") -> dict[str, Path]:
    """Find files of a folder.

    Args:
        folder: Where to look; it need not exist.
        endings: Their endings, in small letters; of two files with one stem the ending that stands first counts.
        prefix: What their names begin with; it is taken off the stems.

    Returns:
        The files by stem, in the order of their names.
    """
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = path.suffix.lower()
        if ending not in endings or path.name.startswith(".") or not path.name.startswith(prefix):
            continue
        stem = path.stem.removeprefix(prefix)
        if stem not in found or endings.index(ending) < endings.index(found[stem].suffix.lower()):
            found[stem] = path
    return found
