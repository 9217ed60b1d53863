"""What `capture.json` should say: what a check found, joined to the options that the capture was read with."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cuao3d.errors import InputError
from cuao3d.files import check_inside, read_json, reading_inside, write_json
from cuao3d.readers.options import CAPTURE, CaptureOptions, named_up, read_options, rotation_of, turn_of

_DEFAULT = CaptureOptions()


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
    early = {"rotation", "quaternion", "pose"} & set(found)  # what is put right before axes are turned
    if early and there.axes != "opencv":
        raise InputError(f"Poses look wrong once axes are turned; remove axes from {CAPTURE} and check again.")
    if early - {"pose"} and there.pose != _DEFAULT.pose:
        raise InputError(f"Rotations look wrong once poses are inverted; remove pose from {CAPTURE} and check again.")
    return replace(there, **{key: _joined(key, value, there) for key, value in found.items()})


def _joined(key: str, value: Any, there: CaptureOptions) -> Any:
    """Return an option that expresses what was found of a capture that was read with the options that are there."""
    before = getattr(there, key)
    if key in ("depth_scale", "world_scale", "pose_scale", "color_focal"):
        return round(before * value, 9)
    if key == "up":
        return value if before == "z" and there.axes != "unity" else named_up(rotation_of(value)[2] @ turn_of(there))
    if key == "color_lag":
        return before + value
    if key == "color_shift":  # found in colours that were brought nearer already
        return tuple(round(one + there.color_focal * more, 4) for one, more in zip(before, value, strict=True))
    if key == "skip":
        return (*before, *(name for name in value if name not in before))
    default = getattr(_DEFAULT, key)
    if before == default:
        return value
    if before == value or key in ("pose", "depth", "swap_focal"):  # each undoes itself
        return default
    raise InputError(f'{CAPTURE} says "{key}": "{before}", and now it looks {value}; remove it and check again.')


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
