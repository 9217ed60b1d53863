"""`cuao3d check`: is a capture fit to be lifted?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from cuao3d.cli.shared import reading_options
from cuao3d.console import progress_bar, tell, tell_table
from cuao3d.errors import InputError, UserError
from cuao3d.schema import Count, Fraction, Length

if TYPE_CHECKING:
    from cuao3d.check import Report
    from cuao3d.check.cost import Estimate, Prospect
    from cuao3d.readers import Opened
    from cuao3d.scene import Scene


def check(
    path: Positional[Path],
    *,
    json: Path | None = None,
    html: Path | None = None,
    picture: Path | None = None,
    fix: bool = False,
    drop_worst: bool = False,
    teachers: str | None = None,
    cell: Length | None = None,
    annotations: str | None = None,
    tolerance: Fraction | None = None,
    every: Count | None = None,
    official: bool = False,
) -> int:
    """Check a capture before anything is computed. Exit code 0: ok, 1: probably wrong or doubtful, 2: unreadable.

    Args:
        path: Folder of the capture, or of a dataset.
        json: Also write the findings to this file; docs/check.md explains them.
        html: Also write a page with pictures; with several scenes, one page each, named after the scene.
        picture: Also draw how well the views agree (PNG); with several scenes, the first.
        fix: Write options that correct what was found to the capture.json beside the data.
        drop_worst: Write the names of frames whose poses do not fit the others' to capture.json, which leaves them out.
        teachers: Also estimate time and size of lifting with these teachers, named as in `fuse`.
        cell: Edge of a sample cell for that estimate, metres; 0.02 unless given.
        annotations: Label set in which the labels of the data are read: a name such as scannet200, or your own CSV.
        tolerance: Part of the measured depth by which a point may lie off it and still be visible, such as 0.1.
        every: Use only every n-th frame, where the dataset is a recording, such as raw ScanNet.
        official: Read cameras as the official pipeline does, where it differs; see docs/conventions.md.
    """
    from cuao3d.check.dataset import check_dataset
    from cuao3d.files import check_output, write_json
    from cuao3d.store import CELL
    from cuao3d.teachers import parse_teachers

    if cell is not None and not teachers:
        raise InputError("--cell has no effect without --teachers: a check alone samples no cells.")
    edge = CELL if cell is None else cell
    for output in (json, html, picture):
        check_output(output)
    specs = parse_teachers(teachers) if teachers else []
    dataset = _open(path, reading_options(annotations, tolerance, every, official=official), json, html, picture)
    task = (bar := progress_bar()).add_task("checking", total=len(dataset))

    def say(index: int, scene: "Scene | None", report: "Report") -> None:
        bar.stop()  # it would draw standard output to standard error
        _print_report(dataset.names[index], report)
        page = html if html is None or len(dataset) == 1 else html.with_stem(f"{html.stem}-{dataset.names[index]}")
        _draw(scene or dataset.names[index], report, page, picture if index == 0 else None)
        _write_options(dataset.folders[index], report, fix=fix, drop_worst=drop_worst)
        bar.update(task, completed=index + 1)
        bar.start()

    with bar:
        checked = check_dataset(dataset, teachers=specs, cell=edge, on_scene=say)
    _print_estimates(checked.teachers, list(checked.estimates.values()))
    if json:
        write_json(json, checked.as_json())
    return checked.exit_code


def _open(path: Path, options: dict[str, Any], json: Path | None, page: Path | None, picture: Path | None) -> "Opened":
    """Open a dataset; if that fails, files of an earlier check that said "ok" do not stay."""
    from cuao3d.check import Report
    from cuao3d.check.dataset import Checked
    from cuao3d.files import write_json
    from cuao3d.readers import open_dataset

    try:
        return open_dataset(path, **options)
    except (UserError, OSError) as error:
        report = Report("unreadable", (str(error),))
        _draw(path.name, report, page, picture)
        if json:
            write_json(json, Checked({path.name: report}, (), {}).as_json())
        raise


def _draw(scene: "Scene | str", report: "Report", page: Path | None, picture: Path | None) -> None:
    """Write the page and the picture of a scene; of one that could not be read, known by name, no older ones stay."""
    if page:
        from cuao3d.check.page import write_page

        write_page(scene, report, page)
    if picture and (isinstance(scene, str) or report.verdict == "unreadable"):
        if picture.is_file():  # no device
            picture.unlink()
        tell(f"  no {picture}: there is no view to draw")
    elif picture and not isinstance(scene, str):
        from cuao3d.check.pictures import draw

        draw(scene, report, picture)


def _write_options(folder: Path, report: "Report", *, fix: bool, drop_worst: bool) -> None:
    """Write the options that correct what was found, and the names of the worst frames, as far as asked for."""
    from cuao3d.check.options import fix as write
    from cuao3d.readers.options import CAPTURE

    stray = report.measurements.get("stray")
    if found := (report.options if fix else {}) | ({"skip": tuple(stray)} if drop_worst and stray else {}):
        try:
            tell(f"  {folder / CAPTURE} now says {write(folder, found)}; check again")
        except InputError as error:  # one capture that cannot be mended costs no other its report
            tell(f"  not mended: {error}")


def _print_report(name: str, report: "Report") -> None:
    """Print a verdict and its reasons."""
    tell(f"{name}: {report.verdict}")
    for reason in report.reasons:
        tell(f"  {reason}")


def _print_estimates(known: Sequence["Prospect"], estimates: Sequence["Estimate"]) -> None:
    """Print what lifting all scenes would take, if that was asked for."""
    if not estimates:
        return
    seconds = ["not here" if one.seconds_per_view is None else f"{one.seconds_per_view:.3f}" for one in known]
    rows = [(one.teacher, one.num_channels, own) for one, own in zip(known, seconds, strict=True)]
    tell_table(("teacher", "channels", "s/view, here"), rows)
    hours = [one.hours for one in estimates if one.hours is not None]
    took = f"{sum(hours):.2g} hours on this processor" if len(hours) == len(estimates) else "hours unknown"
    gigabytes, memory = sum(one.gigabytes for one in estimates), max(one.memory for one in estimates)
    tell(f"lifting {len(estimates)} scene(s): {took}, {gigabytes:.2g} GB of store, {memory:.2g} GB of memory")
