"""What `capture.json` should say: the options that a check found, joined to those that the capture was read with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cuao3d.errors import InputError
from cuao3d.files import write_json

FILE = "capture.json"
"""Lies beside the data; readers honour it."""

DEFAULTS: dict[str, Any] = {
    "depth_scale": 1.0,
    "pose": "world_from_camera",
    "axes": "opencv",
    "up": "z",
    "swap_focal": False,
}
"""What readers take for granted; only what differs is written."""

_OTHER: dict[Any, Any] = {
    "world_from_camera": "camera_from_world",
    "opencv": "opengl",
    False: True,
}
_OTHER |= {other: one for one, other in _OTHER.items()}


def capture_options(found: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """Join what a check found to the options that the capture was read with.

    Findings are relative: "camera_from_world" says that poses are the inverse of what was read.

    Args:
        found: `Report.options`.
        there: The options that were honoured when the capture was read; others than a check's are kept.

    Returns:
        The options to read it with, without those that are at their default.

    Raises:
        InputError: Both together cannot be said in one set of options.
    """
    joined = {**DEFAULTS, **there}
    if "pose" in found and joined["axes"] != "opencv":
        raise InputError(f"Poses look inverted once axes are turned; remove axes from {FILE} and check again.")
    if "up" in found and joined["up"] != "z" and found["up"] != "-z":
        raise InputError(f"Up is neither +z nor -z once the scene is turned; remove up from {FILE} and check again.")
    for key, value in found.items():
        if key == "depth_scale":
            joined[key] = round(joined[key] * value, 9)
        elif key == "up":
            joined[key] = value if joined[key] == "z" else _negative(joined[key])
        else:
            joined[key] = _OTHER[joined[key]]
    return {key: value for key, value in joined.items() if key not in DEFAULTS or value != DEFAULTS[key]}


def fix(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Write what a check found into the `capture.json` of a folder; returns what it says now.

    Raises:
        InputError: The file that is there is damaged, or cannot be joined with what was found.
    """
    path = folder / FILE
    options = capture_options(found, _read(path))
    write_json(path, options)
    return options


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); correct or remove it.") from None
    if not isinstance(there, dict):
        raise InputError(f"{path} should hold an object with {sorted(DEFAULTS)}; correct or remove it.")
    return there


def _negative(axis: str) -> str:
    return axis[1:] if axis.startswith("-") else f"-{axis}"
