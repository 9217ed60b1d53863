"""A run: the folder of one training, with its configuration, metrics, checkpoints and finished student."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

import torch

from cuao3d import __version__
from cuao3d.batches import BatchConfig
from cuao3d.checkpoints import CHECKPOINT as CHECKPOINT
from cuao3d.checkpoints import MADE_WITH, may_branch
from cuao3d.checkpoints import Best as Best
from cuao3d.checkpoints import TrainingState as TrainingState
from cuao3d.checkpoints import kept_name as kept_name
from cuao3d.checkpoints import restore as restore
from cuao3d.checkpoints import save_checkpoint as save_checkpoint
from cuao3d.console import note
from cuao3d.durable import is_own, locked, naming_disk_errors, remove
from cuao3d.errors import InputError, NotFoundError
from cuao3d.files import (
    nearby,
    read_json,
    read_whole_json,
    sha256_of,
    to_json,
    write_json,
    write_text,
    write_whole,
)
from cuao3d.labels import LABEL_SETS, label_set
from cuao3d.ranks import from_first, num_ranks, rank
from cuao3d.schema import CountOrZero, Length, fit, parse, shown
from cuao3d.seals import read_sealed, say_again, write_sealed
from cuao3d.store import Store, StoredScene, TeacherCard
from cuao3d.student import Student, read_checkpoint
from cuao3d.teachers import Calibration
from cuao3d.vocabulary import Vocabulary, read_vocabulary

STUDENT = "student.safetensors"
"""File of the student of a finished run."""

Config = TypeVar("Config", bound=BatchConfig)

_CURE = "delete the folder and train again"


class _Common(TypedDict):
    """What is read of a configuration of any kind."""

    voxel_size: Length
    words: NotRequired[str | None]


class _Settings(TypedDict):
    """What is read of a finished run's `config.json`."""

    config: _Common
    scenes_sha256: NotRequired[dict[str, str]]


class _Summary(TypedDict):
    """What is read of a `run.json`."""

    teachers: dict[str, TeacherCard]
    student_sha256: str
    config_sha256: NotRequired[str]
    label_set: NotRequired[str | None]


class _Line(TypedDict):
    """What every line of a `metrics.jsonl` says."""

    step: CountOrZero


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder."""

    student: Student
    """The trained student."""
    voxel_size: float
    """Edge of the voxels that it was trained with, metres."""
    teachers: dict[str, TeacherCard]
    """Card of each teacher that it learned from; the cards tell which heads are language-aligned."""
    label_set: str | None
    """Label set that it was trained on, if it was supervised."""
    vocabulary: Vocabulary | None
    """Words that it was trained with; None where they are not known."""
    scenes: tuple[str, ...] | None = None
    """Names of the scenes that it was trained on, those held out among them; None where the file does not tell."""


def begin_run(
    out: Path,
    config: BatchConfig,
    store: Store,
    scenes: Sequence[StoredScene],
    *,
    held_out: Sequence[str] = (),
    own_code: Mapping[str, str | None] | None = None,
    vocabulary: Vocabulary | None = None,
    resume: str | Path = "auto",
) -> bool:
    """Begin a run in a folder, or resume it.

    Args:
        out: Folder of the run; created if missing.
        config: Configuration of the run.
        store: Store of the scenes.
        scenes: Training scenes of the store.
        held_out: Names of those that are held out for validation.
        own_code: SHA-256 of custom code that the run depends on; if it changes, it is another run.
        vocabulary: Words that it is trained with, likewise.
        resume: `auto`: resume from the folder's checkpoint, if there is one. `never`: begin again and delete what the
            same run has left in the folder. Otherwise a checkpoint, or the folder of an unfinished run, to resume from.

    Returns:
        Whether the same run is already finished there.

    Raises:
        NotFoundError: There is no such checkpoint.
        InputError: A setting is out of range, the folder or the checkpoint belongs to another run, the voxels are finer
            than the store's cells, or the batch size cannot be divided among processes and micro-batches.
    """
    config.validate()
    if config.voxel_size < store.cell:
        raise InputError(
            f"Voxels of {config.voxel_size:g} m are finer than the {store.cell:g} m cells of {store.path}. Use larger "
            "ones (--voxel-size), or lift the scenes again with smaller cells (cuao3d fuse --cell)."
        )
    if config.batch_size % (config.num_parts * num_ranks()):
        raise InputError(
            f"The {config.batch_size} scenes of a step cannot be shared by {num_ranks()} processes in "
            f"{config.num_parts} parts. Set --config.batch-size to a multiple of {config.num_parts * num_ranks()}."
        )
    description = {
        "kind": type(config).__name__,
        "config": asdict(config),
        "held_out": list(held_out),
        "scenes_sha256": {scene.name: scene.sha256 for scene in scenes},
        "code_version": __version__,
    }
    description |= {"own_code_sha256": dict(own_code)} if own_code else {}
    description |= {"vocabulary": asdict(vocabulary)} if vocabulary and vocabulary.words else {}
    return from_first(lambda: _begin(out, json.loads(json.dumps(description)), resume))


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Keep other processes from writing a run while the block runs; of several ranks, the first holds the lock.

    Args:
        out: Folder of the run.

    Raises:
        InputError: Another process writes it; the message names it.
    """
    with ExitStack() as held:
        from_first(lambda: held.enter_context(locked(out)))
        yield


def finish_run(out: Path, student: Student, summary: dict[str, Any]) -> None:
    """Write the student and, last, `run.json`, which marks the run as finished.

    Args:
        out: Folder of the run.
        student: The trained student.
        summary: Content of `run.json`, besides the SHA-256 of the student.
    """

    def finish() -> None:
        file = out / STUDENT
        student.save(file)
        hashes = {"student_sha256": sha256_of(file), "config_sha256": sha256_of(out / "config.json")}
        write_sealed(out / "run.json", summary | hashes)
        remove(out / CHECKPOINT)

    from_first(finish)


def load_run(path: Path) -> Run:
    """Read a finished run.

    Args:
        path: Folder of the run.

    Raises:
        NotFoundError: There is no finished run.
        InputError: One of its files is damaged.
    """
    if not (path / "run.json").is_file():
        raise NotFoundError(
            f"{path} is not a finished run (no {path / 'run.json'}). Start or resume it: cuao3d distill STORE "
            f"--out {path}.{nearby(path, 'run.json')}"
        )
    summary = check_finished(path)
    settings: _Settings = fit(read_json(path / "config.json", _CURE), _Settings, f"{path / 'config.json'}", _CURE)
    student, voxel_size = Student.load(path / STUDENT), settings["config"]["voxel_size"]
    if student.voxel_size not in (None, voxel_size):
        raise InputError(
            f"{path / STUDENT} was trained with voxels of {student.voxel_size:g} m, not of the {voxel_size:g} m that "
            f"{path / 'config.json'} states; {_CURE}."
        )
    vocabulary = student.vocabulary or _vocabulary_of(settings["config"])
    scenes = tuple(settings["scenes_sha256"]) if "scenes_sha256" in settings else None
    return Run(student, voxel_size, summary["teachers"], summary.get("label_set"), vocabulary, scenes)


def load_student(path: Path) -> Run:
    """Read a student from the folder of its run, or from its `.safetensors` alone.

    Args:
        path: Folder of a finished run, or a file that `Student.save` wrote with its voxel size. A file in the folder of
            its run is read as that run.

    Raises:
        NotFoundError: There is no such file, or no finished run.
        InputError: A file is damaged, or does not state its voxel size.
    """
    if path.suffix != ".safetensors":
        return load_run(path)
    if path.name == STUDENT and (path.parent / "run.json").is_file():
        return load_run(path.parent)
    student = read_checkpoint(path).student
    if student.voxel_size is None:
        raise InputError(
            f"{path} does not state its voxel size. Give the folder of its run, or make the file again: "
            "cuao3d import CHECKPOINT --out STUDENT.safetensors"
        )
    cards = fit({**student.teachers}, dict[str, TeacherCard], f"The teachers of {path}")
    return Run(student, student.voxel_size, cards, None, student.vocabulary)


def run_folder(path: Path) -> Path | None:
    """Return the folder of the finished run that a path names, itself or by its student; None for a lone file."""
    folder = path.parent if path.name == STUDENT else path
    return folder if (folder / "run.json").is_file() else None


def keep_calibration(path: Path, calibration: Calibration) -> None:
    """Write the relevance at which verdicts change into the student of a finished run.

    Args:
        path: Folder of the run.
        calibration: What was fitted.
    """
    file, summary = path / STUDENT, read_sealed(path / "run.json", _CURE)
    say_again(file, "student", {"calibration": asdict(calibration)})
    write_sealed(path / "run.json", summary | {"student_sha256": sha256_of(file)})


def read_config(path: Path, kind: type[Config]) -> Config:
    """Read the saved configuration of a run.

    Args:
        path: Its `config.json`, or the folder of the run.
        kind: Type of the configuration, such as `DistillConfig`.

    Raises:
        NotFoundError: There is no such file.
        InputError: It does not hold a configuration of this type.
    """
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(
            f"There is no {file}. Name the folder of a run, or the config.json in it.{nearby(path, 'config.json')}"
        )
    if file.name == "config.json" and (file.parent / "run.json").is_file():
        check_finished(file.parent)
    content = parse(file.read_bytes(), Any, str(file))
    if not isinstance(content, dict) or content.get("kind") != kind.__name__:
        found = shown(content.get("kind")) if isinstance(content, dict) else "no object"
        raise InputError(f"{file} should hold a {kind.__name__}, as runs save it; it holds {found}.")
    config: Config = fit(content.get("config"), kind, f"The config of {file}")
    return config


def check_finished(path: Path) -> "_Summary":
    """Compare the files of a finished run with what it recorded of them; return its summary.

    Raises:
        InputError: One is damaged.
    """
    summary: _Summary = fit(read_sealed(path / "run.json", _CURE), _Summary, f"{path / 'run.json'}", _CURE)
    recorded = {STUDENT: summary["student_sha256"], "config.json": summary.get("config_sha256")}
    for name, sha256 in recorded.items():
        file = path / name
        if not file.is_file() or (sha256 is not None and sha256_of(file) != sha256):
            what = "student" if name == STUDENT else "configuration"
            raise InputError(f"{file} is not the {what} of this run. Delete {path} and train again.")
    return summary


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a `metrics.jsonl`, each a JSON object, up to the first that a power failure has cut off."""
    lines: list[str] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                is_whole = line.endswith("\n") and bool(parse(line, _Line, str(path)))
            except InputError:
                is_whole = False
            if not is_whole:
                break
            lines.append(line)
    return lines


class MetricsFile:
    """Writes a line for each step to `metrics.jsonl`, and the same to TensorBoard if that is installed."""

    def __init__(self, out: Path, first: int) -> None:
        """Open the metrics of a run for appending.

        Args:
            out: Folder of the run; only the first process writes there.
            first: Number of steps whose lines are kept; later ones are dropped.
        """
        self.path, self._board = Path(os.devnull), None
        self._note: dict[str, Any] = {}
        if rank() == 0:
            self.path = out / "metrics.jsonl"
            kept = [line for line in whole_lines(self.path) if json.loads(line)["step"] < first]
            write_text(self.path, "".join(kept))
            if first and (other := _made_otherwise(out)):
                self._note = {"resumed_with": other}
                note(
                    f"{out} was begun with another {' and '.join(other)}: its numbers may differ from those of a run "
                    "that was not interrupted; metrics.jsonl says from which step on."
                )
            with suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(out / "tensorboard"), purge_step=first)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Add the line of a step."""
        with naming_disk_errors(self.path):
            self._file.write(to_json(row | self._note) + "\n")
        self._note = {}
        if self._board is not None:
            for name, value in _scalars({name: value for name, value in row.items() if name != "step"}):
                self._board.add_scalar(name, value, row["step"])

    def flush(self) -> None:
        """Sync all lines, before a checkpoint is saved."""
        with naming_disk_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flush and close the files."""
        with naming_disk_errors(self.path):
            self._file.close()
        if self._board is not None:
            self._board.close()


def _begin(out: Path, description: dict[str, Any], resume: str | Path) -> bool:
    """Prepare the folder; see `begin_run`."""
    source = None if resume in ("auto", "never") else _find_checkpoint(Path(resume), description)
    if not _is_of(out, description):
        if out.is_file() or (out.is_dir() and any(_is_worth_keeping(path) for path in out.iterdir())):
            if not (out / "config.json").is_file():
                raise InputError(f"{out} exists already and is not a run. Choose a new or an empty folder.")
            raise InputError(
                f"{out} holds another run (another configuration, other scenes or another version; "
                f"see {out / 'config.json'}). Choose another folder, or delete this one."
            )
        _forget(out, "metrics.jsonl", "tensorboard")
        write_json(out / "config.json", description | _made_with())
    if resume == "auto":
        if is_finished := read_whole_json(out / "run.json") is not None:
            remove(out / CHECKPOINT)  # of a run that was interrupted after its last file
        return is_finished
    _forget(out, "run.json", "student.safetensors")
    if source is None:
        _forget(out, "checkpoint*.safetensors", "best.safetensors", "metrics.jsonl", "tensorboard")
    else:
        for file, name in ((source, CHECKPOINT), (source.with_name("metrics.jsonl"), "metrics.jsonl")):
            if file.is_file() and file.resolve() != (out / name).resolve():
                write_whole(out / name, partial(shutil.copyfile, file))
    return False


def _find_checkpoint(path: Path, description: dict[str, Any]) -> Path:
    """Return a checkpoint given by its path or by its folder, if it belongs to the run described."""
    file = path / CHECKPOINT if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(
            f"There is no checkpoint {file}. Name one, or the folder of an unfinished run: a finished one keeps only "
            f"the checkpoints of --config.keep-every.{nearby(path)}"
        )
    if not _is_of(file.parent, description) and not may_branch(file, description):
        raise InputError(
            f"{file} is not of this run: {file.parent / 'config.json'} is missing, or names another configuration, "
            "other scenes or another version. A checkpoint can be resumed only with the settings of its run; with the "
            "schedule cooldown also with another number of steps, before either run cools down."
        )
    return file


def _is_of(folder: Path, description: dict[str, Any]) -> bool:
    """Return whether a folder holds the run described; further keys of its configuration file are ignored."""
    held = read_whole_json(folder / "config.json") or {}
    return {name: held.get(name) for name in description} == description


def _is_worth_keeping(path: Path) -> bool:
    """Return whether a file is anything but what a run writes before its first checkpoint."""
    return path.name not in ("config.json", "metrics.jsonl", "tensorboard") and not is_own(path.name)


def _vocabulary_of(config: "_Common") -> Vocabulary | None:
    """Return the vocabulary of a run of an earlier version, which recorded only where its words came from."""
    if "words" not in config:
        return None
    source = config["words"]
    if source is None:
        return Vocabulary()
    return read_vocabulary(source, label_set)[0] if source in LABEL_SETS else None


def _forget(out: Path, *patterns: str) -> None:
    """Delete the files of a run that match, in this order."""
    for path in (path for pattern in patterns for path in sorted(out.glob(pattern))):
        shutil.rmtree(path) if path.is_dir() else remove(path)


def _made_with() -> dict[str, str]:
    """Return what else decides the numbers of a run, though another does not make it another run."""
    return dict(zip(MADE_WITH, (_code_sha256(), torch.__version__), strict=True))


def _made_otherwise(out: Path) -> dict[str, str]:
    """Return what a run is resumed with where that is not what it was begun with."""
    held = read_whole_json(out / "config.json") or {}
    return {name: value for name, value in _made_with().items() if held.get(name) not in (None, value)}


def _code_sha256() -> str:
    """Return one SHA-256 over the package's code and tables: it also tells edited copies of a version apart."""
    package = Path(__file__).parent
    files = sorted(path for suffix in ("py", "csv") for path in package.rglob(f"*.{suffix}"))
    lines = "".join(f"{path.relative_to(package).as_posix()} {sha256_of(path)}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _scalars(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a line; nested ones are named outer/inner."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value
