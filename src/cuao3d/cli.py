"""The command line: `cuao3d demo | check | fuse | distill | evaluate | query | compare | import | weights`."""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from cuao3d.errors import InputError

if TYPE_CHECKING:
    from cuao3d.check import Report
    from cuao3d.check.cost import Estimate, Prospect
    from cuao3d.compare import Comparison

MOST_WORKERS = 3
"""Processes that the demo uses at most: it trains two or three students."""


def demo(
    *,
    out: Path = Path("demo-out"),
    seed: int = 0,
    quick: bool = False,
    full: bool = False,
) -> int:
    """Make furnished rooms, lift three small teachers, distil two students, score and ask them, write a report.

    Args:
        out: Folder for report.html, results.json and scene.ply.
        seed: Decides the rooms and the students.
        quick: Do as little as shows that everything works; the scores mean nothing then.
        full: Do it at length, with the supervised ceiling (up to an hour).
    """
    from cuao3d import demo as room

    if quick and full:
        raise InputError("Choose --quick or --full, not both.")
    config = room.QUICK if quick else room.FULL if full else room.DemoConfig()
    results = room.demo(out, seed=seed, config=config, num_workers=min(os.cpu_count() or 1, MOST_WORKERS))
    _print_rows(results["rows"])
    print(f"Open {out / 'report.html'} in a browser; the figures are in {out / 'results.json'}.")
    return 0


def check(
    path: Positional[Path],
    *,
    json: Path | None = None,
    html: Path | None = None,
    picture: Path | None = None,
    fix: bool = False,
    teachers: str | None = None,
    cell: float = 0.02,
    labels: str | None = None,
    every: int | None = None,
    official: bool = False,
) -> int:
    """Look a capture over before anything is computed: exit code 0 = ok, 1 = probably wrong, 2 = unreadable.

    Args:
        path: Folder of the capture, or of a dataset.
        json: Also write the findings here; docs/check.md says what they mean.
        html: Also write a page with pictures; of several scenes one each, with the scene's name in the file's.
        picture: Also draw how well the views agree (PNG); of several scenes the first.
        fix: Write the options that cure what was found to the capture.json beside the data.
        teachers: Names of teachers, separated by commas: also say what lifting by them would take.
        cell: Edge of a sample cell of that lifting, metres.
        labels: Label set to read annotations in, where the dataset has several, such as scannet200.
        every: Use every so manyth frame, where the dataset is a recording, such as raw ScanNet.
        official: Read cameras as the official pipeline does, where it differs; see docs/conventions.md.
    """
    from cuao3d.check import Report
    from cuao3d.check import check as check_scene
    from cuao3d.check.cost import Estimate, Prospect, estimate, prospects
    from cuao3d.check.options import FILE
    from cuao3d.check.options import fix as write_fix
    from cuao3d.check.page import write_page
    from cuao3d.check.pictures import draw
    from cuao3d.files import write_json
    from cuao3d.readers import open_dataset

    dataset = open_dataset(path, **_reading(labels, every, official=official))
    reports: dict[str, Report] = {}
    known: list[Prospect] = []
    estimates: dict[str, Estimate] = {}
    for index, name in enumerate(dataset.names):
        try:
            scene = dataset[index]
        except (ValueError, OSError) as error:
            reports[name] = Report("unreadable", (str(error),))
            _print_report(name, reports[name])
            continue
        reports[name] = report = check_scene(scene)
        _print_report(name, report)
        if html:
            write_page(scene, report, html if len(dataset) == 1 else html.with_stem(f"{html.stem}-{name}"))
        if picture and index == 0:
            draw(scene, report, picture)
        if fix and report.options:
            folder = dataset.folders[index]
            print(f"  {folder / FILE} now says {write_fix(folder, report.options)}; check again")
        if teachers and report.verdict != "unreadable":
            known = known or prospects(_names(teachers), scene, cell=cell)
            estimates[name] = estimate(scene, known, cell=cell, seen=report.measurements["coverage"]["seen"])
    if estimates:
        _print_estimates(known, list(estimates.values()))
    if json:
        scenes = {name: asdict(report) | {"exit_code": report.exit_code} for name, report in reports.items()}
        for name, one in estimates.items():
            scenes[name]["estimate"] = asdict(one)
        header = {"format": "cuao3d-check", "format_version": 1, "teachers": [asdict(teacher) for teacher in known]}
        write_json(json, header | {"scenes": scenes})
    code: int = max(report.exit_code for report in reports.values())
    return code


def fuse(
    path: Positional[Path],
    *,
    out: Path,
    teachers: str = "mini-lseg,mini-dino,mini-diffusion",
    cell: float = 0.02,
    device: str = "cpu",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    batch_size: int = 4,
    labels: str | None = None,
    every: int | None = None,
    official: bool = False,
) -> int:
    """Lift the features of 2D teachers to the points of a capture, or of every scene of a dataset.

    Args:
        path: Folder of the capture or of the dataset, or the file of a lone cloud.
        out: Folder of the store to make, or to go on with.
        teachers: Names of the teachers, separated by commas; "none" for points alone. NAME=FOLDER says where
            weights lie, my_teacher.py:MyTeacher is a class of your own.
        cell: Edge of a sample cell, metres.
        device: Where the teachers run, such as cuda.
        precision: What the teachers compute in.
        batch_size: Views shown to a teacher at a time; halved where memory runs out.
        labels: Label set to read annotations in, where the dataset has several, such as scannet200.
        every: Use every so manyth frame, where the dataset is a recording, such as raw ScanNet.
        official: Read cameras as the official pipeline does, where it differs; see docs/conventions.md.
    """
    from cuao3d import pipeline
    from cuao3d.progress import Stages
    from cuao3d.readers import open_dataset
    from cuao3d.teachers import load_teacher

    names = [] if teachers == "none" else _names(teachers)
    reading = _reading(labels, every, official=official)
    dataset = open_dataset(path, **reading)
    loaded = [load_teacher(name, device=device, precision=precision) for name in names]
    with Stages()("lifting") as said:
        settings = {"data": path.resolve().name, **reading} | ({} if precision == "fp32" else {"precision": precision})
        store = pipeline.fuse(dataset, loaded, out, cell=cell, settings=settings, batch_size=batch_size)
        scenes = [store[name] for name in store.names()]
        for line in (problem for scene in scenes for problem in scene.problems):
            print(f"left out: {line}", file=sys.stderr)
        seen, total = sum(len(scene.seen_samples) for scene in scenes), sum(len(scene.num_views) for scene in scenes)
        said.append(f"{len(scenes)} scenes, {seen} of {total} samples seen, teachers {', '.join(names) or 'none'}")
    return 0


def distill(
    store: Positional[Path],
    *,
    out: Path,
    recipe: Literal["mini", "ours", "paper", "released-code", "openscene"] = "mini",
    teachers: str | None = None,
    voxel_size: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: str = "auto",
) -> int:
    """Train a student on the lifted features of a store's training scenes.

    Several processes train one student together: torchrun --nproc-per-node 2 -m cuao3d distill ...

    Args:
        store: Folder of the store.
        out: Folder of the run.
        recipe: Complete configuration to start from; "mini" suits a laptop, "ours" is its like at the
            paper's size.
        teachers: Names of the teachers to learn from, separated by commas; all of the store unless given.
        voxel_size: Edge of a voxel, metres; the recipe's unless given, and never finer than the store's cell.
        steps: Steps of the optimiser; the recipe's length unless given.
        seed: Decides the initial weights and all that is random.
        device: Where to train, such as cuda.
        resume: "auto" goes on from where the run was interrupted, if it was; "never" begins it again; otherwise the
            checkpoint to go on from, or the folder of an unfinished run.
    """
    from dataclasses import replace
    from functools import partial

    from cuao3d import distill as room
    from cuao3d import recipes
    from cuao3d.history import draw_history, read_history
    from cuao3d.progress import Stages, training_bars
    from cuao3d.ranks import joined, rank
    from cuao3d.store import Store

    opened = Store.open(store)
    names = tuple(_names(teachers) or opened.teachers)
    if recipe in ("mini", "ours"):
        config = (recipes.mini if recipe == "mini" else recipes.ours)(teachers=names, seed=seed)
    else:
        recipe_of = {"paper": recipes.paper, "released-code": recipes.released_code, "openscene": recipes.openscene}
        config = recipe_of[recipe](seed=seed)
        config = replace(config, teachers=names, losses=())
    config = replace(config, voxel_size=max(config.voxel_size, opened.cell) if voxel_size is None else voxel_size)
    config = replace(config, num_steps=config.num_steps if steps is None else steps)
    with joined(device) as device:
        train = partial(room.distill, opened, config, out, resume=resume, device=device)
        if rank() > 0:
            train()
            return 0
        with Stages()("distilling") as said, training_bars(["distilling"]) as (on_step,):
            train(on_step=on_step)
            draw_history(read_history(out), out / "training.png")
            said.append(f"{', '.join(names)} into {out}, its course in {out / 'training.png'}")
    return 0


def evaluate(
    store: Positional[Path],
    *,
    run: Path | None = None,
    labels: str = "scannet20",
    split: Literal["train", "val", "test", "all"] = "val",
    text: str | None = None,
    json: Path | None = None,
) -> int:
    """Segment the scenes of a store by class names alone and score it: fused, or with a run distilled and 2D3D.

    Args:
        store: Folder of the store.
        run: Folder of a finished run.
        labels: Name of a label set, or a CSV of one's own.
        split: Which scenes.
        text: Text encoder that reads the names, such as table:FILE for vectors of one's own; the store's unless given.
        json: Also write the rows here.
    """
    from cuao3d import pipeline
    from cuao3d.files import write_json
    from cuao3d.store import Store

    rows = pipeline.evaluate(
        Store.open(store),
        run,
        labels=labels,
        split=None if split == "all" else split,
        text=text,
        model=run.name if run else "none",
    )
    _print_rows([asdict(row) for row in rows])
    if json:
        write_json(json, {"rows": [asdict(row) for row in rows]})
    return 0


def query(
    store: Positional[Path],
    words: Positional[tuple[str, ...]],
    *,
    out: Path,
    run: Path | None = None,
    scene: str | None = None,
    text: str | None = None,
) -> int:
    """Find words in a scene: a coloured cloud (.ply), the places (.json) or a page to look at (.html).

    Args:
        store: Folder of the store.
        words: What to look for, each in quotes.
        out: File to write; its ending says what.
        run: Folder of a finished run; the lifted features answer unless given.
        scene: Name of the scene; where there are several, the one that answers best.
        text: Text encoder that reads the words; the store's unless given.
    """
    from cuao3d import pipeline
    from cuao3d.store import Store

    if not words:
        raise InputError('Say what to look for: cuao3d query STORE "somewhere to sit" --out heat.html')
    found = pipeline.answer(Store.open(store), words, out, run=run, scene=scene, text=text)
    for line in found:
        print(line)
    return 0


def compare(store: Positional[Path], *, teachers: str | None = None, json: Path | None = None) -> int:
    """Put the teachers of a store side by side: time, size, agreement between views, and quality where labels are.

    Args:
        store: Folder of the store.
        teachers: Names of its teachers, separated by commas; all of them unless given.
        json: Also write the rows here.
    """
    from cuao3d import pipeline
    from cuao3d.files import write_json
    from cuao3d.store import Store

    rows = pipeline.compare_teachers(Store.open(store), tuple(_names(teachers)))
    _print_comparison(rows)
    if json:
        write_json(json, {"rows": [asdict(row) for row in rows]})
    return 0


def import_official(
    sources: Positional[tuple[Path, ...]],
    *,
    out: Path,
    data: Path | None = None,
    teacher: str | None = None,
    text: str | None = None,
    cell: float = 0.02,
) -> int:
    """Take over what OpenScene or CUA-O3D left on disk: a checkpoint becomes a student, fused features a store.

    Nothing that the files may hold is run.

    Args:
        sources: A checkpoint (`.pth.tar` or `.pth`, or a student of ours); or the folder of a teacher's fused features,
            or one for each of several teachers.
        out: Student to write, which ends in .safetensors; or folder of the store to make, or to go on with.
        data: For features: folder of the processed scenes that they belong to, such as scannet_3d.
        teacher: For features: name of the teacher of each folder, separated by commas: lseg,dinov2,stable_diffusion
        text: For features: text encoder that understands the first teacher's, where its name does not say.
        cell: For features: edge of a sample cell, metres.
    """
    from cuao3d.imported import import_features
    from cuao3d.progress import Stages
    from cuao3d.readers import open_dataset
    from cuao3d.student import read_checkpoint

    names = _names(teacher)
    if data is None and not names and len(sources) == 1 and not sources[0].is_dir():
        if out.suffix != ".safetensors":
            raise InputError(f"{out} should end in .safetensors, the format of students.")
        read = read_checkpoint(sources[0])
        read.student.save(out)
        print(f"{read.describe()}\nwritten to {out}")
        return 0
    if data is None or not names or len(set(names)) != len(sources):
        raise InputError(
            "Give one checkpoint alone; or folders of fused features, the scenes that they belong to, and the name of "
            "each folder's teacher: cuao3d import scannet_multiview_lseg --data scannet_3d --teacher lseg --out STORE"
        )
    with Stages()("taking over") as said:
        folders, settings = dict(zip(names, sources, strict=True)), {"data": data.resolve().name}
        texts = {names[0]: text} if text else None

        def say(done: int, total: int, line: str) -> None:
            print(f"{done}/{total} {line}", file=sys.stderr)

        store = import_features(
            folders, open_dataset(data), out, cell=cell, text=texts, settings=settings, on_scene=say
        )
        said.append(f"{len(store.names())} scenes, teachers {', '.join(names)}")
    return 0


def weights(
    action: Positional[Literal["list", "fetch", "verify"]],
    names: Positional[tuple[str, ...]] = (),
) -> int:
    """List the published weights of teachers, download some, or check what lies here against its SHA-256.

    Args:
        action: "list" tells source, licence, size and place of each; "fetch" and "verify" take names.
        names: Which weights; to verify: all that are here unless given.
    """
    from cuao3d import download

    if unknown := sorted(set(names) - set(download.WEIGHTS)):
        raise InputError(f"Unknown weights {', '.join(unknown)}; choose from {', '.join(download.WEIGHTS)}.")
    if action == "list":
        _print_weights(names or tuple(download.WEIGHTS))
    elif action == "fetch":
        if not names:
            raise InputError("Say which weights: cuao3d weights fetch lseg dinov2 stable-diffusion")
        for name in names:
            about = download.WEIGHTS[name]
            print(f"{name}: {download.size_in_words(about)}, licence {about.licence}: {about.distilled}.")
            print(f"{name}: {download.fetch(name)}")
    else:
        here = names or tuple(name for name in download.WEIGHTS if download.is_here(name))
        for name in here:
            for file, sha256 in download.verify(name).items():
                known = "as published" if file in download.WEIGHTS[name].sha256 else "nothing to compare with is known"
                print(f"{name}: {file} {sha256} ({known})")
        if not here:
            print("No published weights are on this machine. See: cuao3d weights list")
    return 0


COMMANDS: dict[str, Any] = {
    "demo": demo,
    "check": check,
    "fuse": fuse,
    "distill": distill,
    "evaluate": evaluate,
    "query": query,
    "compare": compare,
    "import": import_official,
    "weights": weights,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit code. Mistakes of the user are one line on standard error and exit code 2."""
    try:
        code: int = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="cuao3d", description=__doc__, args=arguments, use_underscores=False
        )
    except (ValueError, FileNotFoundError, ImportError, OSError) as error:
        Console(stderr=True).print(f"[red]error[/] {error}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        print("Stopped; what was finished is kept, and the same command goes on from there.", file=sys.stderr)
        return 130
    return code


def _names(text: str | None) -> list[str]:
    """Read names that are separated by commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _reading(labels: str | None, every: int | None, *, official: bool) -> dict[str, Any]:
    """Return the options of a reader that were given."""
    options = {"label_set": labels, "every": every, "official": official or None}
    return {name: value for name, value in options.items() if value is not None}


def _print_comparison(rows: Sequence["Comparison"]) -> None:
    """Print how teachers compare."""
    table = Table(box=None)
    table.add_column("teacher", no_wrap=True)
    for title in ("channels", "s/view", "GB", "agreement", "zero-shot", "probe"):
        table.add_column(title, justify="right")
    for row in rows:
        figures = (
            (row.seconds_per_view, "{:.3f}"),
            (row.gigabytes, "{:.3f}"),
            (row.agreement, "{:.2f}"),
            (row.zero_shot_miou, "{:.1f}"),
            (row.probe_miou, "{:.1f}"),
        )
        said = ["-" if value is None else form.format(value) for value, form in figures]
        table.add_row(row.teacher, str(row.num_channels), *said)
    Console().print(table)
    on = next((row.probe_split for row in rows if row.probe_split), None)
    print("agreement: share of the features' variance that the place explains, not the view (1 is best)")
    print(f"zero-shot, probe: mIoU, percent; the probe is scored on {on}" if on else "no labels: no scores")


def _print_report(name: str, report: "Report") -> None:
    """Print a verdict and its reasons."""
    print(f"{name}: {report.verdict}")
    for reason in report.reasons:
        print(f"  {reason}")


def _print_estimates(known: Sequence["Prospect"], estimates: Sequence["Estimate"]) -> None:
    """Print what lifting all scenes would take."""
    table = Table("teacher", box=None)
    for title in ("channels", "s/view, here"):
        table.add_column(title, justify="right")
    for teacher in known:
        seconds = "not here" if teacher.seconds_per_view is None else f"{teacher.seconds_per_view:.3f}"
        table.add_row(teacher.teacher, str(teacher.num_channels), seconds)
    Console().print(table)
    hours = [one.hours for one in estimates if one.hours is not None]
    took = f"{sum(hours):.2g} hours on this processor" if len(hours) == len(estimates) else "hours unknown"
    gigabytes, memory = sum(one.gigabytes for one in estimates), max(one.memory for one in estimates)
    print(f"lifting {len(estimates)} scene(s): {took}, {gigabytes:.2g} GB of store, {memory:.2g} GB of memory")


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """Print a results table."""
    table = Table("model", "read-out", "split", "mIoU", "mAcc", "f-mIoU", "official mIoU", box=None)
    for row in rows:
        scores = [f"{row[key]:.1f}" for key in ("miou", "macc", "fmiou", "miou_official")]
        table.add_row(row["model"], row["readout"], row["split"], *scores)
    Console().print(table)


def _print_weights(names: tuple[str, ...]) -> None:
    """Print what is known of weights."""
    from cuao3d import download

    table = Table("weights", "size", "licence", "for a student distilled from it", box=None)
    table.add_column("source, mirrors", overflow="fold")
    table.add_column("here", overflow="fold")
    for name in names:
        about = download.WEIGHTS[name]
        table.add_row(
            name,
            download.size_in_words(about),
            about.licence,
            about.distilled,
            ", ".join((about.repository, *about.mirrors)),
            str(download.find(name)) if download.is_here(name) else "-",
        )
    Console().print(table)
