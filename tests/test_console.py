"""What comes from outside is printed as it is: no markup, no escape sequences, nothing that cannot be encoded."""

import ast
import io
import json
import os
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from cuao3d import console
from cuao3d.cli import COMMANDS, main
from cuao3d.errors import InputError
from cuao3d.names import as_file_name
from cuao3d.progress import Stages, training_bars, waiting
from cuao3d.readers.sevenscenes import write_capture

PACKAGE = Path(__file__).parents[1] / "src" / "cuao3d"

HOSTILE = "scan[old] [/b] [link=x]y[/] :smile: \x1b[31m\x1b]0;title\x07 \x9b31m a\rb\nc \u202eabc \udcff"
SHOWN = r"scan[old] [/b] [link=x]y[/] :smile: \x1b[31m\x1b]0;title\x07 \x9b31m a\rb\nc \u202eabc \udcff"


@pytest.mark.parametrize(("number", "said"), [(0, "0 parts"), (1, "1 part"), (2, "2 parts"), (1234, "1,234 parts")])
def test_one_of_something_is_not_several(number, said):
    assert console.counted(number, "part") == said


def test_all_but_printable_characters_are_escaped():
    assert console.visible(HOSTILE) == SHOWN
    assert console.visible("Zürich, 45 °, σ, 東京, a\u00a0b") == "Zürich, 45 °, σ, 東京, a\u00a0b"


def test_lines_and_tables_show_text_as_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    console.tell(HOSTILE)
    console.tell_table(("name", "number"), [(HOSTILE, HOSTILE)])
    console.note(HOSTILE, head="left out")
    console.note_block(f"first\n{HOSTILE.replace(chr(10), '')}")
    with Stages()("lifting") as said:
        said.append(HOSTILE)
    out, err = capsys.readouterr()
    assert out.count(SHOWN) == 3
    assert err.count(SHOWN) == 2
    assert "\nlifting: scan[old]" in err
    assert not {character for character in out + err if not character.isprintable()} - {"\n"}


def test_progress_bars_show_text_as_it_is(monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=400, color_system=None)
    monkeypatch.setattr(console, "console", terminal)
    with waiting(HOSTILE):
        pass
    with training_bars([HOSTILE]) as (on_step,):
        on_step(1, 2, HOSTILE)
    assert terminal.file.getvalue().count(SHOWN) >= 3


def test_what_a_stream_cannot_encode_is_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    console.tell("σ of [b]")
    stream.flush()
    assert stream.buffer.getvalue() == b"\\u03c3 of [b]\n"


@pytest.mark.parametrize("error", [InputError(HOSTILE), FileNotFoundError(2, "No such file", HOSTILE)])
def test_errors_show_text_as_it_is(error, monkeypatch, capsys):
    def fail() -> int:
        """Fail."""
        sys.stderr.write(warnings.formatwarning(HOSTILE, UserWarning, "file.py", 1))
        raise error

    monkeypatch.setitem(COMMANDS, "compare", fail)
    assert main(["compare"]) == 2
    warning, said = capsys.readouterr().err.splitlines()
    assert warning == f"UserWarning: {SHOWN}"
    assert "scan[old] [/b] [link=x]y[/] :smile: \\x1b[31m\\x1b]0;title\\x07" in said
    assert said.isascii()
    assert said.isprintable()


@pytest.mark.parametrize(
    "arguments", [["fu\x1b[31mse"], ["evaluate", "store", "--split", "[/b]\x1b[31m"], ["compare", "a", "[/b]\x1b[31m"]]
)
def test_wrong_arguments_are_shown_as_they_are(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    said = capsys.readouterr().err
    assert "\\x1b[31m" in said
    assert "\x1b" not in said


def test_only_the_console_prints():
    """So that nothing from outside can reach the terminal another way."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in ("print", "sys.stdout.write", "sys.stderr.write") or name.endswith("console.print"):
                    found.append((path.name, name))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich"):
                found += [(path.name, f"{node.module}.{one.name}") for one in node.names]
    others = {(file, name) for file, name in found if file != "console.py"}
    assert others == {
        ("progress.py", f"rich.progress.{name}")
        for name in (
            "BarColumn",
            "MofNCompleteColumn",
            "Progress",
            "TaskID",
            "TaskProgressColumn",
            "TimeRemainingColumn",
        )
    }


@pytest.mark.parametrize("name", ["scan[old]", "[red\x1b[31m\x07 \u202eabc\nb " + os.fsdecode(b"no utf-8 \xff")])
def test_names_of_folders_and_files_are_shown_as_they_are(name, synthetic_scene, tmp_path, capsys):
    folder = tmp_path / "[" / "b]" / name  # its path holds [/b], which ends no bold text
    write_capture(synthetic_scene, folder)
    page, found = tmp_path / "page.html", tmp_path / "found.json"
    drawn = ["--html", str(page), "--picture", str(tmp_path / "a.png")] if "\n" in name else []
    main(["check", str(folder), *drawn, "--json", str(found)])
    main(["fuse", str(folder), "--out", str(tmp_path / "store" / name), "--teachers", "none", "--cell", "0.2"])
    main(["query", str(folder / "nowhere"), "a word", "--out", str(tmp_path / "out.json")])
    out, err = capsys.readouterr()
    assert out.startswith(f"{as_file_name(name)}: ")
    assert "[/b]" in err
    assert all(line.isprintable() for line in [*out.splitlines(), *err.splitlines()])
    assert "Traceback" not in err
    assert page.is_file() == bool(drawn)
    assert json.loads(found.read_text())["scenes"]
