"""Schemas: what JSON from outside and settings must be, said by types and ranges; what differs is named.

A schema is a type: a dataclass (exactly its fields), a `TypedDict` (at least its keys; others are ignored), `dict[str,
T]`, `list[T]`, `tuple[T, ...]`, `Literal`, `T | None`, `bool`, `int`, `float` or `str`. Numbers are finite and fit 64
bits; `Annotated[int, Range(1, 9)]` also bounds them.
"""

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypeGuard,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from cuao3d.errors import InputError

LONGEST_KEY = 60
"""Keys of more characters are cut in messages."""

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both allowed unless the range is open."""

    least: float
    """Smallest value."""
    most: float
    """Largest value."""
    is_open: bool = False
    """Whether the bounds themselves are excluded."""

    def __contains__(self, value: float) -> bool:
        """Say whether a number lies in the range; NaN never does."""
        return self.least < value < self.most if self.is_open else self.least <= value <= self.most

    def __str__(self) -> str:
        """Describe the range, to follow "expected"."""
        if self.is_open:
            return f"a number between {self.least:g} and {self.most:g}, both excluded"
        return f"a number from {self.least:g} to {self.most:g}"


Count = Annotated[int, Range(1, 10**9)]
"""A number of things, at least one."""

CountOrZero = Annotated[int, Range(0, 10**9)]
"""A number of things, or 0."""

Width = Annotated[int, Range(1, 10**6)]
"""Channels of features."""

Seed = Annotated[int, Range(0, 2**32 - 1)]
"""A random seed."""

Length = Annotated[float, Range(1e-6, 1e6)]
"""Metres."""

Share = Annotated[float, Range(0, 1)]
"""A part of a whole."""

Fraction = Annotated[float, Range(0, 1, is_open=True)]
"""A part of a whole, neither none nor all of it."""

Positive = Annotated[float, Range(1e-9, 1e9)]
"""A factor above 0, of a size that a unit may have."""

Weight = Annotated[float, Range(0, 1e6)]
"""A rate, weight or other factor, or 0."""


def parse(text: str | bytes, schema: Any, where: str, cure: str = "") -> Any:
    """Read JSON that must fit a schema; see `fit`.

    Raises:
        InputError: It is no JSON, is nested too deeply, or does not fit.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON ({error}){f'; {cure}' if cure else ''}.") from error
    return fit(content, schema, where, cure)


def fit(value: Any, schema: Any, where: str, cure: str = "") -> Any:
    """Return a value of JSON as a schema wants it: objects as dataclasses, lists as tuples where it says so.

    Args:
        value: What `json.loads` returned.
        schema: The schema.
        where: What is read, for messages, such as a file.
        cure: What to do about a value that does not fit, for messages.

    Raises:
        InputError: The value does not fit; the message names the key, the value and what is expected.
    """
    try:
        return _fit(value, schema, "")
    except _Misfit as misfit:
        raise InputError(f"{where}{misfit}{f'; {cure}' if cure else ''}.") from None


def check_settings(settings: object, prefix: str = "--config.") -> None:
    """Check the numbers of a configuration against the ranges of its fields; None is always allowed.

    Args:
        settings: A dataclass, which may hold others.
        prefix: What its options begin with, for messages.

    Raises:
        InputError: A number is out of range; the message names the option.
    """
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        option = f"{prefix}{name.replace('_', '-')}"
        value = getattr(settings, name)
        if is_dataclass(value):
            check_settings(value, f"{option}.")
        else:
            check_option(option, value, hint)


def check_option(option: str, value: Any, hint: Any) -> None:
    """Check a number, or several, against the range that its type names.

    Args:
        option: Name of the option, for the message.
        value: The number; None and what is no number is not checked.
        hint: Its type.

    Raises:
        InputError: It is out of range.
    """
    if isinstance(value, list | tuple):
        for one in value:
            check_option(option, one, hint)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        for bounds in _ranges(hint):
            if value not in bounds:
                raise InputError(f"{option} is {value:g}; expected {bounds}.")


def is_number(entry: object) -> TypeGuard[int | float]:
    """Say whether an entry of JSON is a finite number that fits 64 bits."""
    return is_number_or_lost(entry) and math.isfinite(entry)


def is_number_or_lost(entry: object) -> TypeGuard[int | float]:
    """Say whether an entry of JSON is a number; it may be NaN or infinite."""
    if isinstance(entry, int) and not isinstance(entry, bool):
        return abs(entry) < 1 << 63  # more does not fit a float, or a tensor
    return isinstance(entry, float)


def shown(entry: object) -> str:
    """Show an entry in a message; `repr` escapes what could harm a terminal, and deep or long ones are cut."""
    cut = reprlib.Repr()
    cut.maxstring, cut.maxother = 60, 60
    if isinstance(entry, int) and abs(entry) >= 1 << 63:  # Python refuses to print one of thousands of digits
        return "a whole number of more than 64 bits"
    return cut.repr(entry)


class _Misfit(Exception):
    """A value does not fit its schema."""

    def __init__(self, keys: str, text: str) -> None:
        super().__init__(f": {keys} {text}" if keys else f" {text}")


def _fit(value: Any, schema: Any, keys: str) -> Any:
    """Fit a value that stands at some keys; see `fit`."""
    if schema is Any:
        return value
    origin, arguments = get_origin(schema), get_args(schema)
    if origin is Annotated:
        return _in_range(_fit(value, arguments[0], keys), schema, keys)
    if origin is NotRequired:
        return _fit(value, arguments[0], keys)
    if origin in (Union, UnionType):
        return _fit_one_of(value, arguments, keys)
    if origin is Literal:
        if not any(value is one or (isinstance(one, str) and value == one) for one in arguments):
            raise _Misfit(keys, f"is {shown(value)}; expected {' or '.join(map(repr, arguments))}")
        return value
    if is_dataclass(schema) or is_typeddict(schema):
        return _fit_object(value, schema, keys)
    if origin in (dict, Mapping):
        items = _of_type(value, dict, keys).items()
        return {name: _fit(one, arguments[1], _below(keys, name)) for name, one in items}
    if origin in (list, tuple, Sequence):
        return _fit_list(value, origin, arguments, keys)
    if schema in (int, float):
        if not is_number(value) or (schema is int and not isinstance(value, int)):
            raise _Misfit(keys, f"is {shown(value)}; expected {_WORDS[schema]}")
        return schema(value)
    return _of_type(value, schema, keys)


def _fit_one_of(value: Any, schemas: Sequence[Any], keys: str) -> Any:
    """Fit a value to the first schema of several that it fits."""
    reasons: list[_Misfit] = []
    for schema in schemas:
        try:
            return _fit(value, schema, keys)
        except _Misfit as misfit:
            reasons.append(misfit)
    own = [schema for schema in schemas if schema is not NoneType]
    if len(own) == 1:
        raise reasons[schemas.index(own[0])]
    raise _Misfit(keys, f"is {shown(value)}; expected {' or '.join(_WORDS.get(one, str(one)) for one in schemas)}")


@cache
def _hints_of(schema: Any) -> dict[str, Any]:
    return get_type_hints(schema, include_extras=True)


def _fit_object(value: Any, schema: Any, keys: str) -> Any:
    """Fit an object to a dataclass, or to a TypedDict, which leaves out keys that it does not know."""
    content, hints = _of_type(value, dict, keys), _hints_of(schema)
    if is_typeddict(schema):  # its `__required_keys__` are wrong where annotations are postponed
        needed = {name for name, hint in hints.items() if schema.__total__ and get_origin(hint) is not NotRequired}
    else:
        needed = {one.name for one in fields(schema) if one.default is MISSING and one.default_factory is MISSING}
        if unknown := sorted(content.keys() - hints.keys()):
            raise _Misfit(keys, f"has no setting {shown(unknown[0])}; choose from {', '.join(hints)}")
    if missing := sorted(needed - content.keys()):
        raise _Misfit(keys, f"lacks {', '.join(missing)}")
    return schema(**{name: _fit(content[name], hints[name], _below(keys, name)) for name in hints if name in content})


def _fit_list(value: Any, origin: Any, arguments: tuple[Any, ...], keys: str) -> Any:
    items = _of_type(value, list, keys)
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(items) != len(arguments):
            raise _Misfit(keys, f"is {shown(value)}; expected a list of {len(arguments)}")
        pairs = enumerate(zip(items, arguments, strict=True))
        return tuple(_fit(one, hint, f"{keys}[{index}]") for index, (one, hint) in pairs)
    inner = arguments[0]
    is_plain = inner in (int, float) and set(map(type, items)) <= {inner} and all(map(is_number, items))  # a long list
    fitted = items if is_plain else [_fit(one, inner, f"{keys}[{index}]") for index, one in enumerate(items)]
    return tuple(fitted) if origin is tuple else fitted


def _below(keys: str, name: str) -> str:
    """Return the keys down to an entry of an object; its name is shown as JSON writes it unless it is a plain one."""
    name = name if name.isprintable() and len(name) <= LONGEST_KEY else shown(name)
    return f"{keys}.{name}" if keys else name


def _of_type(value: Any, kind: Any, keys: str) -> Any:
    if type(value) is not kind:
        raise _Misfit(keys, f"is {shown(value)}; expected {_WORDS.get(kind, str(kind))}")
    return value


def _in_range(value: Any, schema: Any, keys: str) -> Any:
    for bounds in _ranges(schema):
        if value not in bounds:
            raise _Misfit(keys, f"is {value:g}; expected {bounds}")
    return value


def _ranges(hint: Any) -> list[Range]:
    """Return the ranges that a type names, for itself or for what it holds."""
    own = [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Range)]
    if get_origin(hint) is Annotated:
        return own + _ranges(get_args(hint)[0])
    return own + [found for one in get_args(hint) if not isinstance(one, str) for found in _ranges(one)]
