"""The runtime type checker of the tests: beartype, to which a whole number is a float too, as to mypy (PEP 484)."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))

ARRAYS = re.compile(r"jaxtyping|\b(Shaped|Num|Real|Float|Inexact|Complex|Integer|U?Int|Bool)\d*\[")
"""What the annotation of an array looks like, be it a type or a string."""

_jaxtyped = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    """Decorate what jaxtyping's import hook decorates: as it does where there are arrays, else by `check` alone.

    Three calls of four have no array in their signature, and to compare shapes costs fifty times what `check` does.
    """

    def decorate(what: Any) -> Any:
        if getattr(what, "__module__", None) == "cuao3d.compiled":  # a compiler reads these, not Python
            return what
        annotations = getattr(what, "__annotations__", {}).values()
        has_arrays = any(ARRAYS.search(str(annotation)) for annotation in annotations)
        # beartype needs the names that are imported for mypy alone; jaxtyping makes nothing of them.
        knows_less = "TYPE_CHECKING" in getattr(what, "__globals__", {})
        if isinstance(what, type) or has_arrays or knows_less:
            return _jaxtyped(typechecker=typechecker)(what)
        return _unless_disabled(check(what), what)

    return decorate


def _unless_disabled(checked: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs) if jaxtyping.config.jaxtyping_disable else checked(*args, **kwargs)

    return call


jaxtyping.jaxtyped = jaxtyped
