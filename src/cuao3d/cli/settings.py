"""`--config.NAME VALUE`: every setting of a stage's configuration is an option of its command."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from cuao3d.errors import InputError
from cuao3d.names import check_local
from cuao3d.schema import check_option, check_settings

PREFIX = "--config."

READ = ("store", "stores")
"""Arguments that are stores, which may be URLs."""


def with_config(command: Callable[..., int], config: Any, arguments: list[str]) -> Callable[..., int]:
    """Give a command an option for each setting of a configuration.

    The type of a configuration is known only once its stage is imported, which takes seconds; hence this is done for
    the command that is run, not for all of them.

    Args:
        command: Its argument `config` receives the settings that were typed, by name.
        config: The defaults, which `--help` shows.
        arguments: What was typed.
    """
    typed, default = typed_settings(arguments), config

    def configured(*args: Any, config: Any = default, **options: Any) -> int:
        return command(*args, config={name: getattr(config, name) for name in typed}, **options)

    signature = inspect.signature(command)
    own = signature.parameters["config"].replace(default=default)
    parameters = {**signature.parameters, "config": own}
    signed = _signed(configured, signature.replace(parameters=list(parameters.values())), command)
    signed.__annotations__ = command.__annotations__ | {"config": type(default)}
    return signed


def bound(command: Callable[..., int]) -> Callable[..., partial[int]]:
    """Return a function with the signature of a command that binds its arguments instead of running it."""

    def bind(*args: Any, **options: Any) -> partial[int]:
        return partial(command, *args, **options)

    return _signed(bind, inspect.signature(command), command)


def options_of(command: Callable[..., int]) -> list[str]:
    """Return the options of a command, those of its configuration included."""
    parameters = inspect.signature(command).parameters.values()
    own = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    options = []
    for parameter in own:
        if is_dataclass(parameter.default):
            options += _flags(parameter.default, f"--{parameter.name}.")
        elif parameter.name != "config":
            options += _flag("--", parameter.name, isinstance(parameter.default, bool))
    return options


def check_options(run: partial[int]) -> None:
    """Check the numbers that a command was given against their ranges, and that files to write are on this machine.

    Args:
        run: The command with its arguments, as of `bound`.

    Raises:
        InputError: One is out of range or a URL; the message names the option.
    """
    given = inspect.signature(run.func).bind(*run.args, **run.keywords)
    for name, value in given.arguments.items():
        option = f"--{name.replace('_', '-')}"
        if is_dataclass(value):
            check_settings(value, f"--{name}.")
            continue
        check_option(option, value, run.func.__annotations__.get(name))
        for place in value if isinstance(value, tuple) else (value,):
            if isinstance(place, Path) and name not in READ:
                is_option = given.signature.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
                check_local(place, option if is_option else name.upper())


def refuse_unknown_options(command: Callable[..., int], name: str, arguments: list[str]) -> None:
    """Check the options that were typed; an unknown one is answered with those that exist.

    Raises:
        InputError: There is no such option.
    """
    options = options_of(command)
    for word in arguments:
        typed = word.partition("=")[0].replace("_", "-")
        if typed.startswith("--") and typed not in (*options, "--help"):
            prefix = PREFIX if typed.startswith(PREFIX) else "--"
            like = [option for option in options if option.startswith(PREFIX) == (prefix == PREFIX)]
            near = get_close_matches(typed.removeprefix(prefix), [option.removeprefix(prefix) for option in like], n=1)
            hint = f"Did you mean {prefix}{near[0]}?" if near else f"There are {', '.join(like) or 'none'}."
            raise InputError(f"There is no option {typed} of cuao3d {name}. {hint}")


def _signed(function: Callable[..., Any], signature: inspect.Signature, like: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function a signature, and the annotations and words of another one."""
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__annotations__, function.__doc__ = like.__annotations__, like.__doc__
    vars(function).pop("__wrapped__", None)  # that of a type checker, through which tyro would look
    return function


def _flags(config: Any, prefix: str) -> list[str]:
    """Return the options of a configuration."""
    flags: list[str] = []
    for setting in fields(config):
        value = getattr(config, setting.name)
        if is_dataclass(value):
            flags += _flags(value, f"{prefix}{setting.name}.")
        else:
            flags += _flag(prefix, setting.name, isinstance(value, bool))
    return flags


def _flag(prefix: str, name: str, is_switch: bool) -> list[str]:
    """Return the option of a setting; of a switch also the one that turns it off."""
    names = [name, f"no-{name}"] if is_switch else [name]
    return [(prefix + one).replace("_", "-") for one in names]


def typed_settings(arguments: list[str]) -> list[str]:
    """Return the settings of `config` that were typed; of nested ones the outer name."""
    options = [word.removeprefix(PREFIX) for word in arguments if word.startswith(PREFIX)]
    names = [option.partition("=")[0].partition(".")[0].replace("-", "_") for option in options]
    return list(dict.fromkeys(name.removeprefix("no_") for name in names))


def typed_option(arguments: list[str], flag: str) -> str | None:
    """Return the value of an option before the command line is parsed; None where it was not typed."""
    value = None
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, is_joined, joined = word.partition("=")
        if name.replace("_", "-") == flag:
            value = joined if is_joined else following
    return value


def flag_of(setting: str) -> str:
    """Return the option of a setting."""
    return PREFIX + setting.replace("_", "-")


def join_options(settings: Mapping[str, Any], options: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """Join short options, such as `--steps`, to the settings that were typed in full.

    Args:
        settings: Settings that were typed, by name.
        options: For each short option the setting that it stands for, and its value; None where it was not typed.

    Raises:
        InputError: Both were typed, and contradict each other.
    """
    joined = dict(settings)
    for flag, (setting, value) in options.items():
        if value is None:
            continue
        if joined.setdefault(setting, value) != value:
            raise InputError(f"{flag} and {flag_of(setting)} contradict each other; give one of them.")
    return joined
