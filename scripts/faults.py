"""Break every file operation of fuse, import, distill, query and check, run the same command again, compare the bytes.

python scripts/faults.py            every operation, every fault (tens of minutes)
python scripts/faults.py --short    a sample over all commands and faults (seconds)

Each command runs on a made capture of two tiny scenes, first without a fault: that gives the list of its operations
(opening for writing, writing, renaming, syncing, deleting, making a folder) and what it should write. Then, in another
process each time, one operation is broken:

- kill: SIGKILL before the operation;
- torn: half of what is to be written is written, then SIGKILL;
- ENOSPC, EDQUOT: from this operation on, nothing takes space any more;
- EIO: this operation fails, later ones do not.

The same command then runs again without a fault. Reported are: other bytes than without a fault, a refusal of the same
command, files that are left over, tracebacks, a full disk that is not named in one line, and commands that say that all
went well although what they wrote is not whole. The exit code is 1 if there is any.
"""

import builtins
import errno
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from PIL import Image

from cuao3d.cli import main as run_command
from cuao3d.durable import is_own
from cuao3d.geometry import back_project
from cuao3d.products import chosen
from cuao3d.readers.capture import DENSE
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.scene import Camera, Frame, Scene
from cuao3d.student import ARCHITECTURES, Architecture
from make_fixture_openscene import write_processed

FULL = {"ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT}
FAULTS = ("kill", "torn", *FULL, "EIO")
TAKES_SPACE = ("open", "write", "mkdir", "sync")
CODECS = ("int8", "pca:2", "pca:2+int8")
"""Codecs that a store is made in; the teacher has three channels."""
SHORT = {"fuse": 2, "import": 1, "distill": 1}
"""Operations that the short form breaks by each fault; of a command that writes one file, one, by three faults."""

TEACHER = """
from torch.nn import functional

class Color:
    name = "color"
    num_channels = 3
    text = "table:{table}@scannet20"

    def __call__(self, image):
        return functional.avg_pool2d(image, 4)
"""


class Shim:
    """Stands between Python and the system: notes each operation on the files of a folder, and breaks one of them."""

    def __init__(self, root: Path, fault: str = "", at: int = -1) -> None:
        self.root, self.fault, self.at = str(root), fault, at
        self.operations: list[tuple[str, str]] = []
        """Kind and path of each operation so far."""

    def install(self) -> None:
        """Patch the functions by which Python code changes files."""
        for kind, names in {"rename": ("replace", "rename"), "delete": ("unlink", "remove", "rmdir")}.items():
            for name in names:
                setattr(os, name, self._on_path(kind, getattr(os, name)))
        os.mkdir = self._on_path("mkdir", os.mkdir)
        os.fsync = self._on_descriptor("sync", os.fsync)
        os.ftruncate = self._on_descriptor("write", os.ftruncate)
        os.sendfile = self._on_descriptor("write", os.sendfile)
        os.write, self._write = self._write_part, os.write
        os.open, self._os_open = self._open_descriptor, os.open
        builtins.open = io.open = self._open
        self._io_open = io.open.__wrapped__ if hasattr(io.open, "__wrapped__") else _OPEN

    def meet(self, kind: str, path: str, tear: Callable[[], object] | None = None) -> None:
        """Note an operation; break it if it is the one, or if the disk is full."""
        if not path.startswith(self.root):
            return
        index = len(self.operations)
        self.operations.append((kind, path))
        if index == self.at and self.fault in ("kill", "torn"):
            if self.fault == "torn" and tear:
                tear()
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.at and self.fault == "EIO":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.fault in FULL and 0 <= self.at <= index and kind in TAKES_SPACE:
            if tear and index == self.at:
                tear()
            raise OSError(FULL[self.fault], os.strerror(FULL[self.fault]))

    def _on_path(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            where = options.get("dir_fd")
            name = os.fsdecode(path) if not where else f"{_path_of(where)}/{os.fsdecode(path)}"
            self.meet(kind, os.path.abspath(name))
            return real(path, *args, **options)

        return call

    def _on_descriptor(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *args: Any, **options: Any) -> Any:
            self.meet(kind, _path_of(descriptor))
            return real(descriptor, *args, **options)

        return call

    def _write_part(self, descriptor: int, content: Any) -> int:
        half = memoryview(content)[: max(len(content) // 2, 1)]
        self.meet("write", _path_of(descriptor), lambda: self._write(descriptor, half))
        return self._write(descriptor, content)

    def _open_descriptor(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self.meet("open", os.path.abspath(os.fsdecode(path)))
        return self._os_open(path, flags, mode, dir_fd=dir_fd)

    def _open(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
        """Open a file as Python does; what is written to it goes through `os.write`."""
        path = "" if isinstance(file, int) else os.path.abspath(os.fsdecode(file))
        if not path.startswith(self.root) or not set(mode) & set("wax+"):
            return self._io_open(file, mode, buffering, *args, **options)
        self.meet("open", path)
        raw = _Raw(path, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, *args, **options)


_OPEN = io.open


def _draw_nothing(_: Figure, file: Any, **options: Any) -> None:
    """Stand in for drawing, which takes most of the time of a command: write the file and no picture."""
    if isinstance(file, str | Path):
        Path(file).write_bytes(b"a picture")
    else:
        Image.new("L", (1, 1)).save(file, format="png")


class _Raw(io.FileIO):
    def write(self, content: Any) -> int:
        return os.write(self.fileno(), content)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


@dataclass(frozen=True)
class Command:
    """A command to break."""

    name: str
    arguments: Callable[[Path], list[str]]
    """What is typed, given the folder in which it writes."""
    prepare: Callable[[Path], object] | None = None
    """Puts what the command changes into that folder."""
    codes: tuple[int, ...] = (0,)
    """Exit codes with which it may end where nothing is broken."""


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    errors: str
    operations: list[tuple[str, str]] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)


def run(command: Command, folder: Path, fault: str = "", at: int = -1) -> Outcome:
    """Run a command in a process of its own, with one of its operations broken."""
    return start(command, folder, fault, at)()


def start(command: Command, folder: Path, fault: str = "", at: int = -1, number: int = 0) -> Callable[[], Outcome]:
    """Start a command in a process of its own; return what waits for its end."""
    report, errors = (folder.parent / f"{number}-{name}" for name in ("report.json", "errors.txt"))
    report.unlink(missing_ok=True)
    if (process := os.fork()) == 0:
        code = 1
        try:
            _become(errors)
            shim = Shim(folder, fault, at)
            shim.install()
            code = run_command(command.arguments(folder))
            with _OPEN(report, "w") as file:
                json.dump([shim.operations, sorted(sys.modules)], file)
        finally:
            sys.stderr.flush()
            os._exit(code)

    def wait() -> Outcome:
        _, status = os.waitpid(process, 0)
        operations, modules = json.loads(report.read_text()) if report.is_file() else ([], [])
        return Outcome(os.waitstatus_to_exitcode(status), errors.read_text(errors="replace"), operations, modules)

    return wait


def _become(errors: Path) -> None:
    """Make a process the one of a command: its output goes to a file, its clock stands still."""
    for stream, path in ((1, os.devnull), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    torch.set_num_threads(1)
    time.perf_counter = lambda: 0.0  # seconds that a run took are among what is compared
    Figure.savefig = _draw_nothing


def content_of(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder but those of the cache, and every folder; a lock or a temporary file counts."""
    found = {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
    return {name: held for name, held in found.items() if not name.startswith("cache") or is_own(Path(name).name)}


def break_one(command: Command, scratch: Path, whole: Outcome, expected: dict[str, bytes], fault: str, at: int) -> str:
    """Break an operation of a command and run it again; return what went wrong, or nothing."""
    folder = begin(command, scratch)
    broken = run(command, folder, fault, at)
    if "Traceback" in broken.errors:
        return f"traceback: {broken.errors.strip().splitlines()[-1]}"
    found = {name: held for name, held in content_of(folder).items() if not is_own(Path(name).name)}
    told = [line for line in broken.errors.splitlines() if line.startswith(("error", "left out"))]
    is_refused = any(line.startswith("error") for line in told)
    if broken.code == whole.code and not is_refused and found != expected:
        return f"exit code {broken.code}, but {difference(found, expected)}"
    if fault in FULL and broken.code != whole.code and not (len(told) == 1 and told[0].startswith("error")):
        return f"no one line about the disk: {broken.errors.strip()[-200:]!r}"
    again = run(command, folder)
    if again.code not in command.codes:
        return f"refused again, exit code {again.code}: {again.errors.strip()[-300:]}"
    found = content_of(folder)
    return "" if found == expected else difference(found, expected)


def run_two(command: Command, other: Command, scratch: Path, expected: dict[str, bytes], pause: float) -> str:
    """Run two commands at once on one folder, the other after a pause; return what went wrong, or nothing."""
    folder = begin(command, scratch)
    waits = [start(command, folder)]
    time.sleep(pause)
    waits.append(start(other, folder, number=1))
    first, second = (wait() for wait in waits)
    for outcome in (first, second):
        is_refusal = outcome.code == 2 and "is being written by process" in outcome.errors
        is_reading = outcome is second and other is not command and outcome.code in (0, 2, 3)
        if "Traceback" in outcome.errors or not (outcome.code == 0 or is_refusal or is_reading):
            return f"exit code {outcome.code}: {outcome.errors.strip()[-300:]}"
    if first.code and second.code:
        return "both were refused"
    found = content_of(folder)
    return "" if found == expected else difference(found, expected)


def difference(found: dict[str, bytes], expected: dict[str, bytes]) -> str:
    """Say how two folders differ."""
    if left := sorted(set(found) - set(expected)):
        return f"left over: {', '.join(left)}"
    if lacking := sorted(set(expected) - set(found)):
        return f"missing: {', '.join(lacking)}"
    return f"other bytes: {', '.join(sorted(name for name in found if found[name] != expected[name]))}"


def begin(command: Command, scratch: Path) -> Path:
    """Return an empty folder for a command to write in."""
    folder = scratch / "out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.environ["CUAO3D_CACHE"] = str(folder / "cache")
    if command.prepare:
        command.prepare(folder)
    return folder


def break_all(command: Command, scratch: Path, *, short: bool) -> Iterator[tuple[str, str, str]]:
    """Break the operations of a command; yield each fault, the operation, and what went wrong."""
    whole = run(command, folder := begin(command, scratch))
    if whole.code not in command.codes or not whole.operations:
        raise SystemExit(f"{command.name} fails without a fault:\n{whole.errors}")
    expected = content_of(folder)
    for name in whole.modules:
        if name not in sys.modules:
            with suppress(Exception):
                import_module(name)  # so that later processes have it from the start
    choice = random.Random(0)
    for fault in ("kill", "ENOSPC", "EIO") if short and command.name not in SHORT else FAULTS:
        indices = [
            index
            for index, (kind, _) in enumerate(whole.operations)
            if (fault != "torn" or kind == "write") and (fault not in FULL or kind in TAKES_SPACE)
        ]
        if short:
            indices = sorted(choice.sample(indices, min(SHORT.get(command.name, 1), len(indices))))
        for at in indices:
            kind, path = whole.operations[at]
            operation = f"{at} {kind} {os.path.relpath(path, folder)}"
            yield fault, operation, break_one(command, scratch, whole, expected, fault, at)


def make_scene(name: str, shift: float) -> Scene:
    """A wall of coloured squares, two metres away, seen by two cameras."""
    row, column = torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij")
    square = ((row // 6 + column // 8) % 3).long()
    image = torch.eye(3)[square].permute(2, 0, 1) * 0.8 + 0.1
    depth = 2 + 0.02 * square.float()
    frames = []
    for index, x in enumerate((shift, shift + 0.1)):
        pose = torch.tensor([[1, 0, 0, x], [0, 0, 1, 0], [0, -1, 0, 1], [0, 0, 0, 1]], dtype=torch.float64)
        camera = Camera(torch.tensor([30.0, 30.0]).double(), torch.tensor([15.5, 11.5]).double(), 32, 24, pose)
        frames.append(Frame(str(index), camera, lambda: image, lambda: depth))
    points, _ = back_project(depth, frames[0].camera)
    colors, labels = image.reshape(3, -1).T.contiguous(), square.reshape(-1)
    return Scene(name, points, tuple(frames), colors=colors, labels=labels, label_set="scannet20", split="train")


def make_inputs(folder: Path) -> None:
    """Make captures, fused features, a teacher, a table of words, a store."""
    scenes = [make_scene("scene0000_00", 0.0), make_scene("scene0001_00", 0.3)]
    for scene in scenes:
        write_capture(scene, folder / "captures" / scene.name)
    write_processed(scenes, folder)
    (folder / "features").mkdir()
    for scene in scenes:
        features = torch.arange(3.0 * len(scene.points)).reshape(-1, 3).half() + 1
        content = {"feat": features, "mask_full": torch.ones(len(scene.points), dtype=torch.bool)}
        torch.save(content, folder / "features" / f"{scene.name}_0.pt")
    np.save(folder / "words.npy", np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
    (folder / "teacher.py").write_text(TEACHER.format(table=folder / "words.npy"))
    flat = torch.rand(DENSE, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.0, 2.0])
    points = flat - torch.tensor([1.0, -2.0, 0.0])
    write_capture(replace(scenes[0], points=points, colors=None, labels=None), folder / "wrong")
    for path in (folder / "wrong").glob("*.depth.png"):
        path.unlink()  # the cure: depth from the cloud


def commands(inputs: Path) -> list[Command]:
    """List the commands to break."""
    captures, store = str(inputs / "captures"), str(inputs / "store")
    fuse = ["fuse", captures, "--teachers", f"{inputs / 'teacher.py'}:Color", "--cell", "0.1", "--out"]
    take = ["import", str(inputs / "features"), "--data", str(inputs / "scannet_3d"), "--teacher", "color"]
    train = ["--config.architecture", "tiny", "--config.batch-size", "1", "--config.checkpoint-every", "2"]
    train += ["--config.keep-every", "2", "--config.words", "None", "--steps", "3", "--voxel-size", "0.1"]
    ask = ["query", store, "wall", "chair", "--scene", "scene0000_00", "--out"]
    check = ["check", str(inputs / "captures" / "scene0000_00")]
    return [
        Command("fuse", lambda out: [*fuse, str(out / "store")]),
        *(Command(f"fuse --codec {codec}", partial(_fuse_coded, fuse, codec)) for codec in CODECS),
        *(Command(f"store convert {codec}", partial(_convert, store, codec)) for codec in CODECS),
        Command(
            "store merge",
            lambda out: [
                "store",
                "merge",
                str(inputs / "store-a"),
                str(inputs / "store-b"),
                "--out",
                str(out / "store"),
            ],
        ),
        *(
            Command(
                f"store drop {kind}",
                lambda out: ["store", "drop", str(out / "store"), "color"],
                partial(_copy_store, inputs / f"store-{kind}"),
                codes=(0, 2),  # 2: there is nothing left to drop
            )
            for kind in ("a", "coded")
        ),
        Command("import", lambda out: [*take, "--cell", "0.1", "--out", str(out / "store")]),
        Command("distill", lambda out: ["distill", store, "--out", str(out / "run"), *train]),
        Command("query --out .json", lambda out: [*ask, str(out / "answers.json")]),
        Command("query --out .ply", lambda out: [*ask, str(out / "heat.ply")]),
        Command("query --out .html", lambda out: [*ask, str(out / "page.html")]),
        Command("check --json", lambda out: [*check, "--json", str(out / "check.json")], codes=(0, 1)),
        Command(
            "check --html --picture",
            lambda out: [*check, "--html", str(out / "c.html"), "--picture", str(out / "c.png")],
            codes=(0, 1),
        ),
        Command(
            "check --fix",
            lambda out: ["check", str(out / "wrong"), "--fix"],
            lambda out: shutil.copytree(inputs / "wrong", out / "wrong"),
            codes=(0, 1, 2),  # 2: unreadable before it is fixed
        ),
    ]


def _fuse_coded(fuse: list[str], codec: str, out: Path) -> list[str]:
    return [*fuse, str(out / "store"), "--codec", codec]


def _convert(store: str, codec: str, out: Path) -> list[str]:
    return ["store", "convert", store, "--codec", codec, "--out", str(out / "store")]


def _copy_store(store: Path, out: Path) -> None:
    shutil.copytree(store, out / "store")


def make_stores(inputs: Path) -> None:
    """Make the stores that commands begin with: of all captures, of each, and one of them in another codec."""
    fuse = ["--teachers", f"{inputs / 'teacher.py'}:Color", "--cell", "0.1", "--out"]
    first, second = sorted((inputs / "captures").iterdir())
    for words in (
        ["fuse", str(inputs / "captures"), *fuse, str(inputs / "store")],
        ["fuse", str(first), *fuse, str(inputs / "store-a")],
        ["fuse", str(second), *fuse, str(inputs / "store-b")],
        ["store", "convert", str(inputs / "store"), "--codec", CODECS[-1], "--out", str(inputs / "store-coded")],
    ):
        if (made := run(Command("make", lambda _, words=words: words), inputs)).code:
            raise SystemExit(f"no store to begin with:\n{made.errors}")


def race_all(commands_: list[Command], scratch: Path, times: int) -> Iterator[tuple[str, str]]:
    """Run what makes a store or a run twice at once, and `evaluate` beside `fuse`; yield what went wrong."""
    dice = random.Random(0)
    look = Command("evaluate", lambda out: ["evaluate", str(out / "store"), "--split", "all"])
    made = [command for command in commands_ if command.name in SHORT]
    for command, other in [*((one, one) for one in made), (made[0], look)]:
        begun = time.monotonic()
        run(command, folder := begin(command, scratch))
        seconds, expected = time.monotonic() - begun, content_of(folder)
        for _ in range(times):
            yield (
                f"{command.name} beside {other.name}",
                run_two(command, other, scratch, expected, dice.uniform(0, seconds)),
            )


def main(*, short: bool = False, only: str = "") -> int:
    """Break file operations of commands.

    Args:
        short: Break a few operations of each command instead of all.
        only: Break only the commands whose name begins with this.
    """
    begun, counts, failures = time.monotonic(), Counter[str](), 0
    ARCHITECTURES["tiny"] = Architecture((4,) * 8, (1,) * 8, num_stem=4)
    torch.set_num_threads(1)
    chosen()  # measured once: all processes multiply in the same way
    with tempfile.TemporaryDirectory(prefix="cuao3d-faults-") as name:
        scratch = Path(name).resolve()
        make_inputs(inputs := scratch / "inputs")
        os.environ |= {"CUAO3D_OFFLINE": "1", "CUAO3D_CACHE": str(scratch / "cache")}
        all_commands = commands(inputs)
        make_stores(inputs)
        chosen_ones = [command for command in all_commands if command.name.startswith(only)]
        if short:  # the page takes longest, and is written as the other answers are
            chosen_ones = [command for command in chosen_ones if command.name != "query --out .html"]
        for command in chosen_ones:
            of_command = Counter[str]()
            for fault, operation, problem in break_all(command, scratch, short=short):
                of_command[fault] += 1
                if problem:
                    failures += 1
                    print(f"FAILED {command.name}: {fault} at {operation}: {problem}", flush=True)
            counts += of_command
            told = ", ".join(f"{number} {fault}" for fault, number in of_command.items())
            print(f"{command.name}: {told} ({time.monotonic() - begun:.0f} s so far)", flush=True)
        pairs = list(race_all(all_commands, scratch, 1 if short else 20)) if not only else []
    for pair, problem in pairs:
        if problem:
            failures += 1
            print(f"FAILED {pair}: {problem}")
    print(
        f"{counts.total()} faults, each followed by the same command, {len(pairs)} pairs at once: {failures} failures"
    )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
