"""The command line: `cuao3d demo | check | fuse | distill | evaluate | query | view | report | ...`."""

import inspect
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from typing import Any

import tyro
from safetensors import SafetensorError

from cuao3d import __version__
from cuao3d.cli.check import check
from cuao3d.cli.compare import compare
from cuao3d.cli.demo import configurable_demo, demo
from cuao3d.cli.distill import configurable_distill, distill
from cuao3d.cli.evaluate import evaluate
from cuao3d.cli.fuse import fuse
from cuao3d.cli.index import index
from cuao3d.cli.probe import probe
from cuao3d.cli.query import query
from cuao3d.cli.report import report
from cuao3d.cli.reproduce import reproduce
from cuao3d.cli.search import search
from cuao3d.cli.settings import bound, check_options, refuse_unknown_options
from cuao3d.cli.store import store
from cuao3d.cli.supervise import configurable_supervise, supervise
from cuao3d.cli.takeover import import_official
from cuao3d.cli.view import view
from cuao3d.cli.weights import weights
from cuao3d.console import note, note_block, tell, visible
from cuao3d.errors import TerminatedError, UserError

COMMANDS: dict[str, Any] = {
    "demo": demo,
    "check": check,
    "fuse": fuse,
    "distill": distill,
    "supervise": supervise,
    "evaluate": evaluate,
    "probe": probe,
    "query": query,
    "view": view,
    "index": index,
    "search": search,
    "compare": compare,
    "report": report,
    "reproduce": reproduce,
    "import": import_official,
    "store": store,
    "weights": weights,
}

CONFIGURABLE: dict[str, Callable[[list[str]], Any]] = {
    "demo": configurable_demo,
    "distill": configurable_distill,
    "supervise": configurable_supervise,
}
"""Commands with a configuration: what makes them, from what was typed, with an option for each of its settings."""

AFTER_STOP = {
    "demo": "Finished rooms and students are kept; the same command goes on from there.",
    "fuse": "Finished scenes are kept; the same command goes on with the next one.",
    "distill": "With --resume auto, the default, the same command goes on from the last checkpoint, if it saved one.",
    "supervise": "With --resume auto, the default, the same command goes on from the last checkpoint, if it saved one.",
    "index": "Finished scenes are kept; the same command goes on with the next one.",
    "import": "Finished scenes are kept; the same command goes on with the next one.",
    "store": "Finished scenes are kept; the same command goes on with the next one.",
    "reproduce": "Finished scenes, students and cells are kept; the same command goes on with the next ones.",
    "weights": "Files that arrived whole are kept; the same command fetches the others.",
}
"""What is true of a command that was interrupted; those that are not here start over."""

DESCRIPTION = """Posed RGB-D in, a 3D model that understands any words out.

`cuao3d COMMAND --help` explains a command. --debug, anywhere, shows where in the code an error arose. --version says
what is installed, and how this processor multiplies matrices."""

USER_ERROR, DEFECT, INTERRUPTED, BROKEN_PIPE, TERMINATED = 2, 1, 130, 141, 143
"""Exit codes."""


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit code.

    A mistake of the user is one line on standard error and exit code 2. Any other error is a defect: a traceback and
    exit code 1.
    """
    words = [word for word in (sys.argv[1:] if arguments is None else arguments) if word != "--debug"]
    is_debugged = len(words) < len(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in words if not word.startswith("-")), "")
    if words == ["--version"]:
        from cuao3d.products import describe
        from cuao3d.progress import machine

        tell(f"cuao3d {__version__}, {machine()}")
        tell(describe())
        return 0
    try:
        try:
            with _plain_warnings():
                return _run(command, words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # of `cuao3d --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt as error:
        note(f"Stopped. {AFTER_STOP.get(command, 'The same command starts over.')}")
        return TERMINATED if isinstance(error, TerminatedError) else INTERRUPTED
    except Exception as error:
        line = _line(error)
        if line is None or is_debugged:
            note_block(traceback.format_exc())
        if line is None:
            note("This is a defect of cuao3d, not a mistake of yours. Please report it.")
            return DEFECT
        note(line, head="error", style="red")
        return USER_ERROR


def _run(command: str, words: list[str]) -> int:
    """Run a command; the options of its configuration are made only if it has one."""
    commands = {name: _unwrapped(function) for name, function in COMMANDS.items()}
    if command in CONFIGURABLE:
        commands[command] = CONFIGURABLE[command](words)
    if command in commands:
        refuse_unknown_options(commands[command], command, words)
    said = io.StringIO()
    try:
        with redirect_stderr(said):  # tyro would print what was typed as it is, escape sequences included
            run: partial[int] = tyro.extras.subcommand_cli_from_dict(
                {name: bound(function) for name, function in commands.items()},
                prog="cuao3d",
                description=DESCRIPTION,
                args=words,
                use_underscores=False,
            )
    except SystemExit:
        note_block(said.getvalue())
        raise
    check_options(run)
    return run()


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings on one line, without the line of code that they come from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {visible(message)}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _line(error: Exception) -> str | None:
    """Return what to tell a user in one line; None where the error is a defect."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror}." if error.filename is None else f"{error.filename}: {error.strerror}."
    if isinstance(error, SafetensorError) and (found := re.search(r"os error (\d+)", str(error))):
        return f"{os.strerror(int(found[1]))}."
    return None


def _unwrapped(function: Callable[..., int]) -> Callable[..., int]:
    """Put each argument's text on one line: `--help` breaks lines where the terminal ends."""
    function.__doc__ = re.sub(r"\n {8}", " ", inspect.cleandoc(function.__doc__ or ""))
    return function
