"""The report of a store of one's own: one page on what it holds, how well it is understood, and what was left out."""

from collections.abc import Callable
from datetime import date
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from cuao3d import __version__
from cuao3d.console import counted, progress_bar
from cuao3d.errors import InputError
from cuao3d.files import write_text
from cuao3d.own_report.case import Case, Section, Written, open_case
from cuao3d.own_report.numbers import inventory, scores
from cuao3d.pane import Exhibit, for_page
from cuao3d.progress import machine
from cuao3d.store import Store

TEMPLATE = "own_report.html.j2"


def report(
    store: Store,
    out: Path,
    *,
    run: Path | None = None,
    data: Path | None = None,
    labels: str | None = None,
    scene: str | None = None,
) -> Written:
    """Write one page that needs nothing else on what a store holds and how well it is understood.

    Args:
        store: The scenes; with labels they are scored, without them shown.
        out: File to write, .html.
        run: Folder of a finished run, or a student's .safetensors.
        data: What the store was made from: its images are looked at again, to see where views disagree.
        labels: Label set to name and score points in; that of the labels unless given.
        scene: Scene to show; the first of those that are scored unless given.

    Returns:
        What is missing.

    Raises:
        NotFoundError: There is no such scene, run or data.
        InputError: The store holds no scene, the file should have another ending, the student's voxels are finer than
            the store's cells, or `data` does not hold the scene that is shown.
    """
    if out.suffix != ".html":
        raise InputError(f"{out} should end in .html: the report is a page to look at.")
    from cuao3d.own_report.pictures import disagreement, histograms, segments, sides, training

    case = open_case(store, run, data, labels, scene)
    parts: list[Callable[[Case], Section | None]] = [
        inventory, scores, sides, segments, disagreement, histograms, training,
    ]  # fmt: skip
    with progress_bar() as bar:
        part = bar.add_task("scenes or views", total=None)
        case.told = lambda done, total: bar.update(part, completed=done, total=total)
        made = [make(case) for make in bar.track(parts, description="reporting")]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parents[1]), autoescape=True, trim_blocks=True)
    page = environment.get_template(TEMPLATE).render(
        title=store.path.resolve().name,
        about=_about(case),
        pane=for_page([Exhibit(case.scene.name, case.looks.view, case.layers)] if case.layers else []),
        sections=[section for section in made if section is not None],
        left_out=case.written.left_out,
        missing=case.written.missing,
        provenance=_provenance(case),
    )
    write_text(out, page.encode("utf-8", errors="backslashreplace").decode())
    return case.written


def _about(case: Case) -> str:
    """Say in a few sentences what this is."""
    store, summaries = case.store, [case.store.summary(name) for name in case.store.names()]
    points = sum(one.num_points for one in summaries)
    said = f"{store.count_of_scenes()} with {counted(points, 'point')}. "
    if store.teachers:
        said += f"Image networks ({', '.join(store.teachers)}) looked at the photographs; what they see was lifted "
        said += "onto the points. "
    if case.student is not None:
        said += "A 3D network, the student, says the same from geometry alone. "
    return f"{said}The pictures show the scene {case.scene.name}."


def _provenance(case: Case) -> list[tuple[str, str]]:
    """List what is needed to get the same again."""
    store, data = case.store.url or str(case.store.path), str(case.store.settings.get("data"))
    listed = [("store", store), ("run", str(case.run)), ("data", data)]
    listed += [("classes", case.classes.name), ("scene shown", case.scene.name)]
    listed += [("cuao3d", __version__), ("machine", machine()), ("date", date.today().isoformat())]
    return [(name, value) for name, value in listed if value != "None"]
