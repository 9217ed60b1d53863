"""What all scenes of a store share, and in what two stores differ there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cuao3d.durable import is_own

FORMAT = "cuao3d-store"
FORMAT_VERSION = 1
CODED_VERSION = 2
"""Version of a store that does not keep plain 16 bits: earlier code must not try to read it."""

LABELS = "labels"

Setting = str | int | float | bool | None

OF_SCENES = ("annotations", "tolerance", "every", "official")
"""Settings that the manifest of each scene holds too: a scene with others than those asked for is lifted again."""


def difference(there: dict[str, Any], asked: dict[str, Any]) -> str:
    """Name the first setting in which two headers differ, as deep as both have it."""
    key = next(key for key in there | asked if there.get(key) != asked.get(key))
    if isinstance(there.get(key), dict) and isinstance(asked.get(key), dict):
        if key == "teachers" and set(there[key]) != set(asked[key]):
            return f"teachers are {', '.join(there[key]) or 'none'}, not {', '.join(asked[key]) or 'none'}"
        return f"{key}.{difference(there[key], asked[key])}"
    mine, other = (json.dumps(header[key]) if key in header else "the default" for header in (there, asked))
    return f"{key} is {mine}, not {other}"


def for_all(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return a header without what a fuse may change scene by scene."""
    settings = {key: value for key, value in header["settings"].items() if key not in OF_SCENES}
    return {**header, "teachers": {}, "settings": settings}


def is_beginning(path: Path) -> bool:
    """Say whether a folder holds only what `Store.create` leaves where it is interrupted before store.json is whole."""
    empty = {path / "scenes"} if not any((path / "scenes").glob("*")) else set()
    return all(entry in empty or entry.name == "store.json" or is_own(entry.name) for entry in path.iterdir())
