"""Options of a teacher: the arguments of its constructor, as they are written on the command line and in a store."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cuao3d.errors import InputError
from cuao3d.schema import Range, check_option

Option = str | int | float | bool | None
"""Value of an option as a store holds it; several numbers are written with + between them: "0+1+2"."""

ON_CARD = ("name", "num_channels", "text", "loss", "weights_sha256", "licence")
"""Arguments that a teacher's card holds already."""

LongSide = Annotated[int, Range(16, 16_384)]
"""Longer side of the images that a network is shown, pixels."""

WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}


def options_of(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a constructor that have a name."""
    try:
        signature = inspect.signature(make, eval_str=True)
    except NameError:  # an annotation that is there for the type checker only
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # nothing tells
        return {}
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {name: parameter for name, parameter in signature.parameters.items() if parameter.kind in named}


def read_options(given: Mapping[str, str], known: Mapping[str, inspect.Parameter], teacher: str) -> dict[str, Any]:
    """Turn options as they are written into arguments of a constructor.

    Args:
        given: Value by option.
        known: The options that there are, as of `options_of`.
        teacher: Whose they are, for errors.

    Raises:
        InputError: There is no such option, or its value is of another type or out of the range of its annotation.
    """
    for name in given:
        if name not in known:
            raise InputError(f"{teacher} has no option {name!r}; it has {', '.join(known) or 'none'}.")
    return {name: _read(text, known[name], teacher) for name, text in given.items()}


def options_in_use(teacher: Any) -> dict[str, Option]:
    """Return what a teacher was made with, where that is not the default, and its precision.

    Read are the attributes that have the names of its constructor's arguments.
    """
    in_use = {}
    for name, parameter in options_of(type(teacher)).items():
        value = _written(getattr(teacher, name, parameter.default))
        if name not in ON_CARD and isinstance(value, Option) and value != _written(parameter.default):
            in_use[name] = value
    precision = getattr(teacher, "precision", None)
    return in_use | ({"precision": precision} if precision not in (None, "fp32") else {})


def _read(text: str, parameter: inspect.Parameter, teacher: str) -> Any:
    kinds = _kinds(parameter)
    if NoneType in kinds and text.lower() == "none":
        return None
    for kind in kinds:
        try:
            value = _as(text, kind)
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
        check_option(f"{teacher}: {parameter.name}", value, parameter.annotation)
        return value
    expected = " or ".join(_in_words(kind) for kind in kinds)
    raise InputError(f"{teacher}: {parameter.name} should be {expected}; got {text!r}.")


def _kinds(parameter: inspect.Parameter) -> tuple[Any, ...]:
    """Return the types that an argument may have; without an annotation, that of its default."""
    kind = parameter.annotation
    if kind is parameter.empty or isinstance(kind, str):
        default = parameter.default
        kind = str if default is parameter.empty or default is None else type(default)
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(get_args(one)[0] if get_origin(one) is Annotated else one for one in kinds)


def _as(text: str, kind: Any) -> Any:
    """Read a value of a type.

    Raises:
        ValueError, KeyError, TypeError: It cannot be read so.
    """
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if kind in (int, float, str, Path):
        return kind(text)
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    if origin is Literal:
        return {str(choice): choice for choice in arguments}[text]
    if origin not in (tuple, list, Sequence):
        raise TypeError(kind)
    inner = arguments[0] if arguments else str
    several = [_as(one, inner) for one in re.split("[+]" if inner is str else "[+x]", text)]
    if origin is tuple and arguments and arguments[-1] is not Ellipsis and len(several) != len(arguments):
        raise ValueError(text)
    return several if origin is list else tuple(several)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) in (tuple, list, Sequence):
        return "values with + between them, such as 1+2"
    return "none" if kind is NoneType else WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")


def _written(value: Any) -> Any:
    """Return a value as a store holds it; what cannot be held, as it is."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple) and all(isinstance(one, str | int | float) for one in value):
        return "+".join(map(str, value))
    return value
