"""Damage files of a store, of runs and of checkpoints, and run six commands: each refuses them by name, or is right.

Makes a small store, a finished run, an unfinished one and a student alone; then, as often as asked, damages one file
(flips bits, overwrites a block, cuts it off, exchanges files or folders, changes a value of a JSON file) and runs
`evaluate` twice, `query`, `compare`, `distill` and `fuse` in this process. A command that ends as if all were well must
have written what it wrote before. Prints a line for each damage that was not noticed, and counts.

    python scripts/damage.py --times 400
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cuao3d.cli import main as cuao3d
from cuao3d.files import sha256_of
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.scene import Scene
from cuao3d.student import ARCHITECTURES, Architecture
from cuao3d.worlds.rooms import make_room

ARCHITECTURES["tiny"] = Architecture((4,) * 8, (1,) * 8, num_stem=4)

TIMES = ("seconds", "lifting.json", "sources.json", "training.png", "tensorboard")
"""What differs between two equal runs, or decides no number: not compared."""

OK, LEFT_OUT, REFUSED = 0, 3, 2
EXCHANGED = "exchanged with "


@dataclass(frozen=True)
class World:
    """What is damaged, and how it answers while it is whole."""

    folder: Path
    data: Path
    """Captures, which are not damaged."""

    @property
    def commands(self) -> dict[str, list[str]]:
        """The six commands, by name; what they write is in `out`."""
        store, run, out = (str(self.folder / name) for name in ("store", "run", "out"))
        evaluate = ["evaluate", store, "--split", "all"]
        return {
            "evaluate fused": [*evaluate, "--json", f"{out}/fused.json"],
            "evaluate run": [*evaluate, "--run", run, "--allow-overlap", "--json", f"{out}/run.json"],
            "query": ["query", store, "bed", "--run", f"{self.folder}/student.safetensors", "--out", f"{out}/bed.json"],
            "compare": ["compare", store, "--json", f"{out}/compare.json"],
            "distill": ["distill", store, "--out", f"{self.folder}/begun", *CONFIG],
            "fuse": ["fuse", str(self.data), "--out", store, *LIFT],
        }


LIFT = ["--teachers", "mini-lseg", "--cell", "0.1"]
CONFIG = ["--steps", "4", "--voxel-size", "0.1", "--config.architecture", "tiny", "--config.checkpoint-every", "2"]


def make_world(folder: Path) -> World:
    """Make captures, a store, a finished run, one that was interrupted, and a student alone."""
    world = World(folder / "world", folder / "data")
    for seed in (0, 1):
        write_capture(_thinned(make_room(seed, num_views=1)), world.data / f"room-{seed}")
    _must("fuse", str(world.data), "--out", str(world.folder / "store"), *LIFT)
    distill = ["distill", str(world.folder / "store"), *CONFIG]
    _must(*distill, "--out", str(world.folder / "run"), "--config.keep-every", "2")
    shutil.copyfile(world.folder / "run" / "student.safetensors", world.folder / "student.safetensors")
    _interrupt(world)
    return world


def _thinned(scene: Scene) -> Scene:
    """Keep one point in twenty: what is damaged here need not be large."""
    columns = {name: getattr(scene, name) for name in ("points", "colors", "labels", "normals")}
    return replace(scene, **{name: None if column is None else column[::20] for name, column in columns.items()})


def _interrupt(world: World) -> None:
    """Interrupt the run `begun` at its first checkpoint."""
    from cuao3d import run

    save, saved = run.save_checkpoint, []

    def stop(*arguments: Any) -> None:
        save(*arguments)
        saved.append(arguments)
        if len(saved) == 1:
            raise KeyboardInterrupt

    run.save_checkpoint = stop
    try:
        with _silent():
            cuao3d(world.commands["distill"])
    finally:
        run.save_checkpoint = save


def answers(world: World, names: Sequence[str] = ()) -> dict[str, tuple[int, str, Any]]:
    """Run the commands on a world; return exit code, what was said, and what was written, by command."""
    found = {}
    for name, command in world.commands.items():
        if names and name not in names:
            continue
        (world.folder / "out").mkdir(exist_ok=True)
        with _silent() as said:
            code = cuao3d(command)
        found[name] = code, said.getvalue(), _written(world, name) if code in (OK, LEFT_OUT) else None
        shutil.rmtree(world.folder / "out")
    return found


def _written(world: World, name: str) -> Any:
    """Return what a command wrote, without what differs between two equal runs."""
    if name == "distill":
        return sha256_of(world.folder / "begun" / "student.safetensors")
    if name == "fuse":
        files = sorted(path for path in (world.folder / "store").rglob("*") if path.is_file())
        return {path.relative_to(world.folder).as_posix(): sha256_of(path) for path in files if path.name not in TIMES}
    (file,) = (world.folder / "out").iterdir()
    return _without_times(json.loads(file.read_text()))


def _without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_times(value) for key, value in content.items() if "seconds" not in key}
    return [_without_times(value) for value in content] if isinstance(content, list) else content


def damage(folder: Path, dice: random.Random) -> tuple[str, tuple[str, ...]]:
    """Damage a world; return what was done, and names of which an error must say one."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    path = dice.choice([path for path in files if path.stat().st_size and path.suffix in (".json", ".safetensors")])
    kinds: list[Callable[[Path, random.Random], str]] = [_flip, _overwrite, _cut, partial(_exchange, folder)]
    kinds += [_change_value] * 2 if path.suffix == ".json" else []
    what = dice.choice(kinds)(path, dice)
    other = what.removeprefix(EXCHANGED).split("/") if what.startswith(EXCHANGED) else []  # damaged as well
    return f"{path.relative_to(folder)}: {what}", (path.name, path.parent.name, path.stem, *other)


def _flip(path: Path, dice: random.Random) -> str:
    content = bytearray(path.read_bytes())
    for _ in range(dice.randint(1, 3)):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)
    return "bits flipped"


def _overwrite(path: Path, dice: random.Random) -> str:
    content = bytearray(path.read_bytes())
    start, length = dice.randrange(len(content)), dice.choice([16, 512, 4096])
    content[start : start + length] = bytes(len(content[start : start + length]))
    path.write_bytes(content)
    return f"{length} bytes of zeros from {start} on"


def _cut(path: Path, dice: random.Random) -> str:
    content = path.read_bytes()
    path.write_bytes(content[: dice.randrange(len(content))])
    return "cut off"


def _exchange(folder: Path, path: Path, dice: random.Random) -> str:
    """Exchange a file with another of its kind, or its folder with that of another scene or run."""
    of_kind = [other for other in sorted(folder.rglob(f"*{path.suffix}")) if other != path and other.is_file()]
    if path.parent.parent.name == "scenes" and dice.random() < 0.3:
        path, of_kind = path.parent, [other for other in sorted(path.parents[1].iterdir()) if other != path.parent]
    other = dice.choice(of_kind)
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)
    return f"{EXCHANGED}{other.parent.name}/{other.name}"


def _change_value(path: Path, dice: random.Random) -> str:
    """Change one value of a JSON file, wherever it stands; what it cannot read it leaves to the others."""
    content = json.loads(path.read_text())
    holders = _holders(content)
    holder, key = dice.choice(holders)
    before = holder[key]
    numbers = isinstance(before, int | float) and not isinstance(before, bool)
    holder[key] = (
        dice.choice([before + 1, before * 2, -before]) if numbers else dice.choice([None, "x", 0, [], {}, True])
    )
    path.write_text(json.dumps(content, indent=1) + "\n")
    return f"{key} is {holder[key]!r}, was {before!r}"


def _holders(content: Any) -> list[tuple[Any, Any]]:
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else []
    own: list[tuple[Any, Any]] = [(content, key) for key in keys]
    return own + [place for key in keys for place in _holders(content[key])]


@contextlib.contextmanager
def _silent() -> Iterator[io.StringIO]:
    """Keep what the program says from the terminal; what it says on standard error is in what is yielded."""
    from cuao3d.console import console

    said, before = io.StringIO(), console._file
    console.file = said
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            yield said
    finally:
        console._file = before


def try_once(world: World, whole: dict[str, Any], scratch: Path, seed: int) -> tuple[str, list[str]]:
    """Damage a copy of a world once and run the commands; return what was done and which did not notice it.

    `fuse` runs last, and then `evaluate` once more: what `fuse` does not mend, that one must refuse by name.
    """
    copy = World(scratch / "world", world.data)
    shutil.rmtree(copy.folder, ignore_errors=True)
    shutil.copytree(world.folder, copy.folder)
    done, names = damage(copy.folder, random.Random(seed))
    failures = []
    found = [*answers(copy).items(), *answers(copy, ["evaluate fused"]).items()]
    for name, (code, said, written) in found:
        same = written == whole[name][2]
        named = code == REFUSED and any(part in said for part in names)
        told = code == LEFT_OUT and "missing" in said
        is_fuse = name == "fuse" and code in (OK, LEFT_OUT)  # its result is what `evaluate` then reads
        if not (named or told or is_fuse or (code == OK and same)):
            failures.append(
                f"{done}; {name}: exit code {code}, {'same' if same else 'other'} result; {said.strip()[-300:]}"
            )
    return done, failures


def _must(*command: str) -> None:
    with _silent() as said:
        code = cuao3d(list(command))
    if code:
        raise SystemExit(f"{command} ended with {code}: {said.getvalue()}")


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=400, help="files to damage")
    parser.add_argument("--seed", type=int, default=0, help="of the first damage; the next takes the next one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder))
        whole = answers(World(Path(shutil.copytree(world.folder, Path(folder) / "whole")), world.data))
        if any(code for code, _, _ in whole.values()):
            raise SystemExit(f"the undamaged world does not answer: {whole}")
        for seed in range(options.seed, options.seed + options.times):
            done, unnoticed = try_once(world, whole, Path(folder) / "scratch", seed)
            kinds[Path(done.partition(":")[0]).name] += 1
            failures += [f"seed {seed}: {line}" for line in unnoticed]
            for line in unnoticed:
                print(f"seed {seed}: {line}", flush=True)
    print(f"{options.times} damages, {7 * options.times} commands: {len(failures)} not noticed; {dict(kinds)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
