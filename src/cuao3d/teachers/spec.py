"""Teachers as they are written: `lseg:long_side=1280,mirror=sum,dinov2=models/dinov2,my_teacher.py:MyTeacher`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from inspect import Parameter
from pathlib import Path

from cuao3d.errors import InputError
from cuao3d.teachers.known import TEACHERS, canonical
from cuao3d.teachers.options import options_of, read_options

PLUG_IN = re.compile(r"(?P<file>.*\.py):(?P<name>\w+)(?::(?P<option>.*))?")


@dataclass(frozen=True)
class TeacherSpec:
    """A parsed teacher spec."""

    name: str
    """Name in `TEACHERS`, or of a class in `file`."""
    file: Path | None = None
    """Python file that defines the class; None for a teacher of `TEACHERS`."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Arguments of the constructor, as they are written."""
    weights: Path | None = None
    """File or folder of its weights; None: it finds its own."""

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        place = f"{self.file}:" if self.file else ""
        return place + self.name + (f":{options}" if options else "") + (f"={self.weights}" if self.weights else "")


def parse_teachers(text: str) -> list[TeacherSpec]:
    """Read a list of teachers.

    Args:
        text: Teachers with commas between them, or "none". A teacher is `NAME[:KEY=VALUE,KEY=VALUE][=WEIGHTS]`, a name
            of `TEACHERS`; or `FILE.py:CLASS[:KEY=VALUE,...]`; or `segmenter:WEIGHTS[,KEY=VALUE,...]`. The keys are
            arguments of its constructor; a value of several numbers is written 1+2.

    Raises:
        InputError: There is no such teacher or option, a value is of another type, or a teacher is named twice.
    """
    if text.strip() == "none":
        return []
    specs: list[TeacherSpec] = []
    for part in filter(None, map(str.strip, text.split(","))):
        key, equals, _ = part.partition("=")
        if specs and equals and key.isidentifier() and canonical(key) not in TEACHERS:
            specs[-1] = _with_option(specs[-1], part)
        else:
            specs.append(_parse(part))
    if not specs:
        raise InputError(f'No teacher is named in {text!r}. Choose from {", ".join(TEACHERS)}, or write "none".')
    for spec in specs:
        if spec.file is None:
            read_options(spec.options, known_options(spec.name), spec.name)
        if specs.count(spec) > 1 or (spec.file is None and [one.name for one in specs].count(spec.name) > 1):
            raise InputError(f"{spec.name} is named twice in {text!r}. Lift it into a store for each of its options.")
    return specs


def parse_teacher(text: str) -> TeacherSpec:
    """Read one teacher; see `parse_teachers`."""
    specs = parse_teachers(text)
    if len(specs) != 1:
        raise InputError(f"Expected one teacher, got {text!r}.")
    return specs[0]


def known_options(name: str) -> dict[str, Parameter]:
    """Return the options of a teacher of `TEACHERS`."""
    return {key: one for key, one in options_of(TEACHERS[name]).items() if key not in ("weights", "name")}


def _parse(part: str) -> TeacherSpec:
    """Read a teacher with at most one option."""
    name = canonical(re.split("[:=]", part)[0])
    if name not in TEACHERS and (match := PLUG_IN.fullmatch(part)):
        spec = TeacherSpec(match["name"], Path(match["file"]))
        return spec if match["option"] is None else _with_option(spec, match["option"])
    if name not in TEACHERS:
        raise InputError(
            f"Unknown teacher {part!r}; choose from {sorted(TEACHERS)}, or give a class of your own: "
            "my_teacher.py:MyTeacher."
        )
    rest = part[len(re.split("[:=]", part)[0]) :]
    if name == "segmenter" and rest.startswith(":") and "=" not in rest:
        return TeacherSpec(name, weights=_weights("=" + rest[1:], name))
    if not rest.startswith(":"):
        return TeacherSpec(name, weights=_weights(rest, name))
    return _with_option(TeacherSpec(name), rest[1:])


def _with_option(spec: TeacherSpec, text: str) -> TeacherSpec:
    """Add an option, KEY=VALUE, or the last one and where weights lie, KEY=VALUE=WEIGHTS."""
    key, equals, value = text.partition("=")
    where = ""
    if spec.file is None:
        value, second, where = value.partition("=")
        where = second + where
    if not equals or not key.isidentifier() or (spec.file is None and key not in known_options(spec.name)):
        known = "" if spec.file else f"; it has {', '.join(known_options(spec.name)) or 'none'}"
        raise InputError(
            f"{text!r} is neither a teacher nor an option of {spec.name}{known}. An option is written KEY=VALUE; "
            "where weights lie is written NAME=FOLDER."
        )
    if key in spec.options:
        raise InputError(f"{spec.name} has the option {key} twice.")
    return replace(spec, options={**spec.options, key: value}, weights=_weights(where, spec.name) or spec.weights)


def _weights(text: str, name: str) -> Path | None:
    """Read "=WEIGHTS"; None of nothing."""
    if text == "=":
        raise InputError(f"{name}= names no file or folder of weights.")
    return Path(text[1:]) if text else None
