"""Loading a teacher: by name or out of a file, with its options, to where it runs."""

import copyreg
import inspect
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cuao3d.errors import InputError
from cuao3d.plugins import errors_of, file_of, run_file
from cuao3d.teachers.known import TEACHERS
from cuao3d.teachers.network import NetworkTeacher, Precision
from cuao3d.teachers.options import options_of, read_options
from cuao3d.teachers.spec import TeacherSpec, known_options, parse_teacher
from cuao3d.teachers.teacher import Teacher, card_of


def load_teacher(spec: TeacherSpec | str, *, device: str = "cpu", precision: Precision = "fp32") -> Teacher:
    """Load a teacher.

    Args:
        spec: A name in `TEACHERS` ("dinov2"), with options ("lseg:long_side=1280,mirror=sum") and where its weights lie
            ("dinov2=models/dinov2-large"); or a Python file and a class in it ("./my_teacher.py:MyTeacher"). Such a
            file is run: give none that you do not trust. See `parse_teachers`.
        device: Where it runs.
        precision: What it computes in.

    Returns:
        The teacher, ready to describe images.

    Raises:
        InputError: There is no teacher of that name, it has no such option, the object is no teacher, or it cannot be
            moved to the device or compute in the precision.
        NotFoundError: The file or the weights are not there.
        NotInstalledError: The teacher needs a package that is not installed.
    """
    spec = parse_teacher(spec) if isinstance(spec, str) else spec
    teacher: Any = _named(spec) if spec.file is None else _own(spec)
    _move(teacher, device, precision)
    if spec.file is not None:
        # Made again in another process: what it holds, such as a session of another library, need not be picklable.
        with suppress(AttributeError):  # it has slots; then it travels by what they hold
            object.__setattr__(teacher, "_made_by", (spec, device, precision))
            copyreg.pickle(type(teacher), _pickle)
    made: Teacher = teacher
    return made


def _named(spec: TeacherSpec) -> Any:
    """Make a teacher of `TEACHERS`."""
    make = TEACHERS[spec.name]
    arguments = read_options(spec.options, known_options(spec.name), spec.name)
    if "name" in options_of(make):
        arguments["name"] = spec.name
    return make(spec.weights, **arguments)


def _own(spec: TeacherSpec) -> Any:
    """Make a teacher that a file defines."""
    assert spec.file is not None
    make = _class_in(spec.file, spec.name)
    known, who = options_of(make), f"{spec.name} of {spec.file}"
    needed = [name for name, one in known.items() if one.default is one.empty and name not in spec.options]
    if needed:
        given = ",".join(f"{name}=..." for name in needed)
        raise InputError(f"{who} needs {', '.join(needed)}: write {spec.file}:{spec.name}:{given}")
    options = read_options(spec.options, known, who)
    with errors_of(f"{who} cannot be made", spec.file.resolve()):
        teacher = make(**options)
    card_of(teacher)
    unknown = [name for name in spec.options if not hasattr(teacher, name)]
    if unknown:
        raise InputError(
            f"{who} should keep its option {unknown[0]} as an attribute of that name (self.{unknown[0]} = "
            f"{unknown[0]}); otherwise the store cannot record it."
        )
    return teacher


def _class_in(file: Path, name: str) -> type[Any]:
    """Run a Python file and return a class that it defines."""
    module = run_file(file_of(f"{file}:{name}"))
    found = getattr(module, name, None)
    if not isinstance(found, type):
        own = [key for key, one in vars(module).items() if getattr(one, "__module__", None) == module.__name__]
        classes = ", ".join(key for key in own if isinstance(getattr(module, key), type)) or "none"
        raise InputError(f"{file} defines no {name}; the classes in it are {classes}.")
    return found


def _move(teacher: Any, device: str, precision: Precision) -> None:
    """Bring a teacher to a device and a precision.

    Raises:
        InputError: It cannot be moved, computes in one precision only, or is to compute in fp16 on a CPU.
    """
    move = getattr(teacher, "to", None)
    of_torch = isinstance(teacher, nn.Module) and type(teacher).to is nn.Module.to  # its second argument is a dtype
    has_precision = move is not None and not of_torch and len(inspect.signature(move).parameters) > 1
    if precision != "fp32" and not has_precision:
        raise InputError(
            f"--precision {precision}: {teacher.name} has no method to(device, precision), so it computes in its own."
        )
    if precision == "fp16" and isinstance(teacher, NetworkTeacher) and torch.device(device).type == "cpu":
        raise InputError("--precision fp16 is for a GPU: a CPU would take up to a thousand times as long as in fp32.")
    if device != "cpu" and move is None:
        raise InputError(
            f"--device {device}: {teacher.name} has no method to(device, precision), so it cannot be moved."
        )
    if move is not None:
        with errors_of(f"--device {device}: {teacher.name} cannot be moved there"):
            move(device, precision) if has_precision else move(device)
    if has_precision and getattr(teacher, "precision", "fp32") != precision:
        teacher.precision = precision  # for its card


def _pickle(teacher: Any) -> tuple[Any, ...]:
    return _load_again, teacher._made_by


def _load_again(spec: TeacherSpec, device: str, precision: Precision) -> Teacher:
    return load_teacher(spec, device=device, precision=precision)
