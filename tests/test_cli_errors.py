"""What the program says when something goes wrong: to a user's mistake, a defect, an interrupt, a closed pipe."""

import ast
import errno
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from safetensors import SafetensorError

from cuao3d.cli import COMMANDS, CONFIGURABLE, main
from cuao3d.cli.settings import options_of
from cuao3d.demo import DemoConfig
from cuao3d.distill import DistillConfig
from cuao3d.errors import DiskFullError, InputError, TerminatedError
from cuao3d.store import Store
from test_cli import says

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "cuao3d"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9.-]*[a-z0-9]")
OF_OTHERS = {"--nproc-per-node", "--force-reinstall", "--debug", "--help", "--version", "--config"}
OF_OTHERS |= {"--input", "--output", "--raw"}
"""Options of torchrun, pip, the scripts of Open3D and ARKitScenes, and the program itself, and the beginning of those
that are put together."""


@pytest.fixture
def breaks(monkeypatch, capsys):
    """Runs a command that raises an error; returns its exit code and what it printed."""

    def breaks(error, *options, command="compare"):
        def fail() -> int:
            """Fail."""
            raise error

        monkeypatch.setitem(COMMANDS, command, fail)
        return main([*options, command]), capsys.readouterr().err

    return breaks


def test_a_mistake_is_one_line_and_a_defect_a_traceback(breaks):
    code, said = breaks(InputError("Use [red] or\n  blue."))
    assert (code, said) == (2, "error Use [red] or blue.\n")
    code, said = breaks(ValueError("shapes do not fit"))
    assert code == 1
    assert "Traceback" in said
    assert "ValueError: shapes do not fit" in said
    assert "defect" in said


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_where_a_mistake_was_noticed(monkeypatch, capsys, place):
    def fail() -> int:
        """Fail."""
        raise InputError("Use blue.")

    monkeypatch.setitem(COMMANDS, "compare", fail)
    assert main(["--debug", "compare"] if place == "before" else ["compare", "--debug"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("error Use blue.\n")


def test_errors_of_the_disk_name_the_file(breaks, tmp_path):
    denied = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "store"))
    assert breaks(denied) == (2, f"error {tmp_path / 'store'}: Permission denied.\n")
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
        assert breaks(OSError(code, os.strerror(code))) == (2, f"error {os.strerror(code)}.\n")
        text = f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})"  # as safetensors words it
        assert breaks(SafetensorError(text)) == (2, f"error {os.strerror(code)}.\n")
    assert breaks(SafetensorError("Error while deserializing: header too small"))[0] == 1
    assert breaks(DiskFullError("There is no space for a.")) == (2, "error There is no space for a.\n")
    assert breaks(ConnectionResetError("peer"))[0] == 1


def test_what_cannot_be_written_is_named_as_it_was_asked_for(synthetic_store, tmp_path, capsys):
    (tmp_path / "file").touch()
    says(
        capsys,
        ["distill", synthetic_store.path, "--out", tmp_path / "file" / "run"],
        f"{tmp_path / 'file'}",
        "directory",
    )


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_an_interrupt_says_whether_the_command_goes_on(breaks, command, monkeypatch):
    monkeypatch.setattr("cuao3d.cli.CONFIGURABLE", {})
    code, said = breaks(KeyboardInterrupt(), command=command)
    assert code == 130
    assert breaks(TerminatedError(), command=command) == (143, said)
    assert said.startswith("Stopped. ")
    goes_on = {"demo", "fuse", "distill", "supervise", "import", "index", "reproduce", "store", "weights"}
    assert ("starts over" in said) == (command not in goes_on)
    assert "Traceback" not in said


TALKS = """
import sys
from cuao3d.cli import COMMANDS, main

def talk() -> int:
    print("words")
    return 0

COMMANDS["compare"] = talk
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["fuse", "--help"], ["compare"]])
def test_a_closed_pipe_is_no_error(arguments):
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-c", TALKS, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=buffered,
        text=True,
    )
    process.stdout.close()  # before it prints: it takes longer to start
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() != 0


def test_what_is_not_there_is_answered_with_what_is(synthetic_store, tmp_path, capsys):
    runs = tmp_path / "runs"
    for name in ("one", "two"):
        (runs / name).mkdir(parents=True)
        (runs / name / "run.json").touch()
    (runs / "notes").mkdir()
    store, out = synthetic_store.path, tmp_path / "heat.ply"
    for run in (runs, runs / "three"):
        says(capsys, ["evaluate", store, "--run", run], "is not a finished run", f"{runs} holds one/, two/.")
    says(capsys, ["compare", tmp_path], "is no store", f"{tmp_path} holds store/.")
    says(capsys, ["compare", tmp_path / "stor"], "is no store", f"{tmp_path} holds store/.")
    says(capsys, ["fuse", tmp_path / "scan", "--out", out], "no folder", f"{tmp_path} holds runs/, store/.")
    with pytest.raises(FileNotFoundError, match=r"'cellar' is not in the store .* choose from synthetic\."):
        Store.open(store)["cellar"]


def test_an_option_that_is_not_there_is_answered_with_those_that_are(capsys):
    says(capsys, ["compare", "store", "--foo"], "no option --foo of cuao3d compare", "There are --teachers, --json.")
    says(capsys, ["fuse", "scan", "--cel=1"], "--cel", "Did you mean --cell?")
    says(capsys, ["demo", "--config.zyxw", "1"], "--config.zyxw", "--config.num-views", "--config.no-supervised")
    says(capsys, ["distill", "--config.lerning_rate", "1"], "Did you mean --config.learning-rate?")
    says(capsys, ["weights", "list", "--foo"], "There are none.")


def test_options_without_effect_or_sense_are_refused(synthetic_store, tmp_path, capsys):
    scan, out = synthetic_store.path, tmp_path / "out"
    says(capsys, ["check", scan, "--cell", "0.1"], "--cell", "--teachers")
    says(capsys, ["check", scan, "--cell", "0", "--teachers", "mini-dino"], "--cell is 0")
    says(capsys, ["import", tmp_path / "a.pth", "--out", tmp_path / "a.safetensors", "--text", "clip"], "--text")
    says(capsys, ["import", tmp_path / "a.pth", "--out", tmp_path / "a.safetensors", "--cell", "1"], "--cell")
    for option, value in (("--cell", "-1"), ("--cell", "nan"), ("--workers", "0"), ("--batch-size", "0")):
        says(capsys, ["fuse", scan, "--out", out, option, value], option, value)
    for command in ("query", "evaluate", "fuse", "distill"):
        words = ["a sofa"] if command == "query" else []
        rest = [] if command == "evaluate" else ["--out", out]
        says(capsys, [command, scan, *words, *rest, "--device", "abacus"], "--device abacus", "cpu")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_options_are_those_of_the_help(command, flags):
    made = CONFIGURABLE[command]([command]) if command in CONFIGURABLE else COMMANDS[command]
    assert set(options_of(made)) == flags[command] - OF_OTHERS


def flags_of(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    return set(FLAG.findall(capsys.readouterr().out))


@pytest.fixture
def flags(capsys, monkeypatch):
    """The options of each command."""
    return {command: flags_of(command, capsys, monkeypatch) for command in COMMANDS}


def test_every_option_that_is_mentioned_exists(flags):
    known = set().union(*flags.values()) | OF_OTHERS
    unknown = {
        (str(path.relative_to(PACKAGE)), flag)
        for path in PACKAGE.rglob("*.py")
        for text in texts(ast.parse(path.read_text(encoding="utf-8")))
        for flag in FLAG.findall(text)
        if flag not in known
    }
    assert unknown == set()


def test_every_command_of_the_documentation_has_the_options_that_it_is_given(flags):
    shown = [
        (page.name, *match.groups())
        for page in PAGES
        for match in re.finditer(r"cuao3d ([a-z]+)([^`\n#]*)", page.read_text(encoding="utf-8"))
        if match[1] in COMMANDS
    ]
    assert len(shown) > 10
    wrong = {
        (page, command, flag)
        for page, command, line in shown
        for flag in FLAG.findall(line)
        if flag not in flags[command] | OF_OTHERS
    }
    assert wrong == set()


def test_errors_spell_settings_as_options():
    settings = {field.name for config in (DistillConfig, DemoConfig) for field in fields(config) if "_" in field.name}
    named = {
        (str(path.relative_to(PACKAGE)), word)
        for path in PACKAGE.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "").endswith("Error")
        for text in texts(call)
        for word in re.findall(r"\w+", text)
        if word in settings
    }
    assert named == set()


def texts(tree):
    """The texts in a piece of code; of f-strings their fixed parts."""
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
