"""What `capture.json` should say: what a check found, joined to the options that the capture was read with."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cuao3d.errors import InputError
from cuao3d.files import check_inside, read_json, reading_inside, write_json
from cuao3d.readers.options import CAPTURE, CaptureOptions, named_up, read_options, rotation_of

_OTHER: dict[Any, Any] = {
    "world_from_camera": "camera_from_world",
    "opencv": "opengl",
    "images": "cloud",
    False: True,
}
_OTHER |= {other: one for one, other in _OTHER.items()}


def capture_options(found: Mapping[str, Any], there: CaptureOptions) -> CaptureOptions:
    """Join what a check found to the options that the capture was read with.

    Findings are relative: "camera_from_world" says that poses are the inverse of what was read.

    Args:
        found: `Report.options`.
        there: The options that the capture was read with.

    Returns:
        The options to read it with.

    Raises:
        InputError: No single set of options expresses both.
    """
    if "pose" in found and there.axes != "opencv":
        raise InputError(f"Poses look inverted once axes are turned; remove axes from {CAPTURE} and check again.")
    joined: dict[str, Any] = {}
    for key, value in found.items():
        before = getattr(there, key)
        if key in ("depth_scale", "world_scale"):
            joined[key] = round(before * value, 9)
        elif key == "up":
            joined[key] = value if before == "z" else named_up(rotation_of(value)[2] @ rotation_of(before))
        else:
            joined[key] = _OTHER[before]
    return replace(there, **joined)


def fix(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Write what a check found into the `capture.json` of a folder.

    Args:
        folder: The capture.
        found: `Report.options`.

    Returns:
        What the file says now: what it said and what was found, without options at their default.

    Raises:
        InputError: The file that is there is damaged, or cannot be joined with what was found.
    """
    path, default = folder / CAPTURE, asdict(CaptureOptions())
    with reading_inside(folder):
        check_inside(path)  # a link that leads out of the capture must not decide what is written
    options = asdict(capture_options(found, read_options(folder)))
    there = read_json(path) if path.is_file() else {}
    content = there | {key: options[key] for key in found}
    content = {key: value for key, value in content.items() if value != default[key]}
    write_json(path, content)
    return content
