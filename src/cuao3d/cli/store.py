"""`cuao3d store`: look into a store, check it, make others of it, or fit how sure its labels are."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from cuao3d.cli.shared import note_missing
from cuao3d.console import note, progress_bar, tell, tell_table
from cuao3d.errors import InputError, UserError
from cuao3d.names import check_local

if TYPE_CHECKING:
    from cuao3d.store import Store


def store(
    action: Positional[Literal["info", "verify", "convert", "merge", "drop", "add", "calibrate"]],
    store: Positional[Path],
    more: Positional[tuple[str, ...]] = (),
    *,
    out: Path | None = None,
    codec: str | None = None,
    data: Path | None = None,
    device: str | None = None,
    json: Path | None = None,
    run: Path | None = None,
    labels: str = "scannet20",
    split: Literal["train", "val", "test", "all"] = "val",
    teacher: str | None = None,
    text: str | None = None,
) -> int:
    """Look into a store, check it, make others of it, or fit on its labelled scenes how sure its labels are.

    Args:
        action: "info" says what it holds. "verify" reads every file of every scene and compares it with the SHA-256
            that was recorded. "convert" writes its scenes under another codec, into --out. "merge" writes the scenes of
            several stores into --out. "drop" removes teachers. "add" lifts further teachers. "calibrate" fits
            confidence, which `query` and `evaluate` then use; it is kept in the store or, with --run, in the run.
        store: Folder of the store; for info and verify, a URL will do.
        more: For merge, further stores; for drop and add, names of teachers, as `fuse` takes them.
        out: For convert and merge, folder of the store to make, or to go on with.
        codec: For convert, how features are kept: fp16, int8, pca:K or pca:K+int8, such as pca:256+int8.
        data: For add, the data that the store was made of; without it the command to run is said.
        device: For add, where the teachers run, such as cuda.
        json: For info, also write it as JSON, here.
        run: Folder of a finished run, to calibrate its student.
        labels: Label set of the classes: its name, or a CSV of your own.
        split: Split to fit on; nothing is to be scored on it afterwards, and the student should not have learned on it.
        teacher: Which teacher names the classes, where several have a text encoder; the first unless given.
        text: Text encoder for the names; the teacher's unless given.
    """
    from cuao3d.store import Store

    if action not in ("info", "verify"):
        places: tuple[Path | str, ...] = (store, *more)
        for place in places:
            check_local(place, f"`cuao3d store {action}`")
    _check_options(action, more, out=out, codec=codec, data=data, device=device, json=json)
    opened = Store.open(store)
    match action:
        case "info":
            return _tell_info(opened, json)
        case "verify":
            return _verify(opened)
        case "convert" | "merge":
            assert out is not None
            return _copy(opened, [Store.open(other) for other in more], out, codec)
        case "drop":
            return _drop(opened, more)
        case "add":
            return _add(opened, more, data, device or "cpu")
        case "calibrate":
            return _calibrate(opened, run, labels, split, teacher, text)


def _check_options(action: str, more: Sequence[str], **given: object) -> None:
    """Refuse an action without what it needs, or with what it does not take.

    Raises:
        InputError: Something is missing, or too much.
    """
    needs = {"convert": ("codec", "out"), "merge": ("out",)}.get(action, ())
    takes = {"info": ("json",), "add": ("data", "device")}.get(action, ())
    listed = {"merge": "other stores", "drop": "names of teachers", "add": "names of teachers"}.get(action)
    for name in needs:
        if given[name] is None:
            raise InputError(f"`cuao3d store {action}` needs --{name}.")
    for name, value in given.items():
        if value is not None and name not in (*needs, *takes):
            raise InputError(f"`cuao3d store {action}` takes no --{name}.")
    if listed and not more:
        raise InputError(f"`cuao3d store {action} STORE` needs {listed} after the store.")
    if more and not listed:
        raise InputError(f"`cuao3d store {action}` takes one store, and nothing after it; got {more[0]!r}.")


def _tell_info(opened: "Store", json: Path | None) -> int:
    """Print what a store holds; write it as JSON where asked for."""
    from cuao3d.files import check_output, write_json
    from cuao3d.store.inventory import inventory

    check_output(json)
    about = inventory(opened)
    rows = [
        (
            one.teacher,
            one.codec,
            one.num_channels,
            "-" if one.bytes_a_sample is None else f"{one.bytes_a_sample:.1f}",
            "-" if one.cosine_error is None else f"{one.cosine_error:.2g}",
            f"{one.num_bytes / 1e6:.1f}",
        )
        for one in about.teachers
    ]
    if rows:
        tell_table(("teacher", "codec", "channels", "bytes a sample", "cosine error", "MB"), rows, num_names=2)
    tell(f"{opened.count_of_scenes()}, {about.num_points} points, {about.num_seen} of {about.num_samples} samples seen")
    tell(f"{about.num_bytes / 1e6:.1f} MB in all, cells of {about.cell:g} m")
    tell(", ".join(f"{name} {value}" for name, value in about.settings.items()) or "no settings")
    if json is not None:
        write_json(json, asdict(about))
    return note_missing(opened.missing())


def _verify(opened: "Store") -> int:
    """Read everything that a store holds and compare it with what was recorded."""
    damaged, missing = 0, opened.missing()
    for teacher in opened.teachers:
        opened.basis(teacher)
    with progress_bar() as bar:
        names = sorted(folder.name for folder in (opened.path / "scenes").iterdir() if folder.name not in missing)
        for name in bar.track(names, description="verifying"):
            try:
                tell(f"{name}: {opened.verify(name) / 1e6:.1f} MB as written")
            except (UserError, OSError) as error:
                damaged += 1
                note(f"{error}", head="damaged", style="red")
    if damaged:
        raise InputError(f"{damaged} of {len(names)} scenes of {opened.url or opened.path} are damaged.")
    tell(opened.count_of_scenes())
    return note_missing(missing)


def _copy(opened: "Store", others: Sequence["Store"], out: Path, codec: str | None) -> int:
    """Convert a store, or merge several."""
    from cuao3d.codecs import Codec
    from cuao3d.progress import telling
    from cuao3d.store.convert import convert, merge

    with telling(None, "converting" if codec else "merging") as progress:
        if codec:
            made = convert(opened, Codec.parse(codec), out, progress=progress)
        else:
            made = merge([opened, *others], out, progress=progress)
    return _tell_info(made, None)


def _drop(opened: "Store", teachers: Sequence[str]) -> int:
    """Remove teachers from a store."""
    from cuao3d.progress import telling
    from cuao3d.store.drop import check_holds, drop_teacher

    for teacher in teachers:
        check_holds(opened, teacher)
    for teacher in teachers:
        with telling(None, f"dropping {teacher}") as progress:
            drop_teacher(opened, teacher, progress=progress)
    tell(f"{opened.count_of_scenes()}, teachers {', '.join(opened.teachers) or 'none'}")
    return note_missing(opened.missing())


def _add(opened: "Store", teachers: Sequence[str], data: Path | None, device: str) -> int:
    """Lift further teachers into a store by `fuse`, or say which command does.

    Raises:
        InputError: No data are given, or the teachers that are there cannot be loaded as they were.
    """
    from cuao3d.cli.fuse import fuse
    from cuao3d.store.header import OF_SCENES
    from cuao3d.teachers import parse_teachers

    typed = {spec.name for spec in parse_teachers(",".join(teachers))}
    stay = [name for name in opened.teachers if name not in typed]
    names = ",".join([*(_typed(name, dict(opened.teachers[name].options)) for name in stay), *teachers])
    precisions = sorted({str(opened.teachers[name].options.get("precision", "fp32")) for name in stay}) or ["fp32"]
    how = {key: value for key, value in opened.settings.items() if key in (*OF_SCENES, "upright", "view_weights")}
    flags = {key: f"--{key.replace('_', '-')}" for key in how}
    options = [f"{flags[key]} {value}" for key, value in how.items() if not isinstance(value, bool)]
    switches = {key: value for key, value in how.items() if isinstance(value, bool)}
    options += [f"--{'no-' * (not value)}{flags[key].removeprefix('--')}" for key, value in switches.items()]
    options += [] if precisions == ["fp32"] else [f"--precision {'|'.join(precisions)}"]
    told = f"cuao3d fuse {data or 'DATA'} --out {opened.path} --teachers {names} --cell {opened.cell:g}"
    if data is None:
        reason = f"Say where the data of {opened.path} lie, with --data,"
    else:
        reason = _why_not_alike(opened, stay, precisions, str(how.get("annotations", "")), device)
        if not reason:
            how |= {"precision": precisions[0], "device": device}
            return fuse(data, out=opened.path, teachers=names, cell=opened.cell, **how)  # type: ignore[arg-type]
    raise InputError(f"{reason} or run: {' '.join([told, *options])}. Teachers that are there stay as they are.")


def _why_not_alike(
    opened: "Store", teachers: Sequence[str], precisions: Sequence[str], annotations: str, device: str
) -> str:
    """Say why teachers that stay in a store would be lifted again; nothing if they would not be."""
    from cuao3d.cli.shared import check_device
    from cuao3d.memory import give_back
    from cuao3d.voting import lifting_teacher

    check_device(device)
    if len(precisions) > 1:
        return f"Teachers of {opened.path} compute in {' and '.join(precisions)}: lift them into a store each,"
    if annotations.endswith(".csv"):
        return f"The store does not say where {annotations} lies: write its folder before its name,"
    for name in teachers:
        try:
            lifting_teacher(opened, name, device=device)
        except UserError as error:
            return f"{error} Name it as it was lifted, as NAME=FOLDER or FILE.py:CLASS, beside the further teachers,"
        finally:
            give_back()
    return ""


def _typed(teacher: str, options: dict[str, object]) -> str:
    """Return a teacher as `--teachers` takes it."""
    pairs = ",".join(f"{key}={value}" for key, value in options.items() if key != "precision")
    return f"{teacher}:{pairs}" if pairs else teacher


def _calibrate(
    opened: "Store",
    run: Path | None,
    labels: str,
    split: Literal["train", "val", "test", "all"],
    teacher: str | None,
    text: str | None,
) -> int:
    """Fit confidence and say what came of it."""
    from cuao3d.calibrate import fit_trust
    from cuao3d.reliability import MISSES, SHARES

    which = None if split == "all" else split
    fits = fit_trust(opened, run, labels=labels, split=which, teacher=teacher, text=text)
    shown = [
        (name, f"{fit.temperature:.3f}", *("-" if one is None else f"{one:.2f}" for one in fit.thresholds))
        for name, fit in fits.items()
    ]
    titles = ("judge", "temperature", *(f"{100 * share:g} % wrong" for share in SHARES))
    tell_table(titles, shown)
    tell(f"confidence from which labels are kept, so that at most this share is wrong in {1 - MISSES:.0%} of scenes")
    if any(one is None for fit in fits.values() for one in fit.thresholds):
        tell(f"-: no confidence keeps this promise in these scenes; it takes {round(1 / MISSES) - 1} scenes at least")
    return note_missing(opened.missing())
