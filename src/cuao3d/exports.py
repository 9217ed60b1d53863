"""Exports: answers as files that other tools open, in the capture's own coordinates; the ending says which."""

import json
import math
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from cuao3d import __version__
from cuao3d.answers import (
    MAKE_AGAIN,
    UNLESS_LABELLED,
    Sureness,
    as_json,
    disagreement_of,
    how_sure,
    in_heat,
    page_of,
    where_is,
)
from cuao3d.console import note, progress_bar
from cuao3d.coordinates import in_capture, units_per_metre
from cuao3d.errors import InputError, UnseenError
from cuao3d.files import check_output, write_json, write_whole
from cuao3d.formats.glb import write_glb
from cuao3d.formats.las import las_positions, write_las
from cuao3d.formats.ply import read_mesh, write_ply
from cuao3d.geometry import distances
from cuao3d.labels import LabelSet
from cuao3d.memory import give_back
from cuao3d.predictor import Predictor
from cuao3d.progress import OnStep, waiting
from cuao3d.query import Answer
from cuao3d.scene import UNLABELLED
from cuao3d.seals import sha256_once
from cuao3d.store import Store, StoredScene
from cuao3d.store.schemas import read_manifest
from cuao3d.store.sources import read_record
from cuao3d.workers import side_by_side

OFF_MESH = 0.1
"""Farther than this from every sample, metres, a vertex of a mesh is not on what was scanned."""

STEP = 1e-4
"""Smallest difference between positions that a new LAS file keeps, metres."""

ABOUT = {
    "label": "id of the class that the point is taken for, 255: none",
    "confidence": "estimated chance that the label is right",
    "answer": "number of the question that the point answers, 0: none",
    "score": "cosine of the point and its most relevant question, 0: not seen",
    "margin": "relevance of the most relevant question: 1 = as the question itself, 0 = none or not seen",
    "disagreement": "between the views of the point, 0 to 1, NaN: fewer than two",
    "seen": "1: the point has a feature",
}
"""What the columns of a file are; with several questions `score_2` and `margin_2` are those of the second."""


LEFT_OUT = {"label": UNLABELLED, "disagreement": math.nan}
"""Values of a point that was left out when its file was read; of all other columns, 0."""


@dataclass(frozen=True)
class Asked:
    """What a file is made from."""

    predictor: Predictor
    store: Store
    scene: StoredScene
    answers: tuple[Answer, ...]
    sure: Sureness | None
    """How sure labels are, where that was fitted."""
    mesh: Path | None = None
    """A mesh whose vertices take the values."""

    @cached_property
    def apart(self) -> Float[Tensor, "N"] | None:
        """How far the views of each point disagree."""
        return disagreement_of(self.predictor, self.scene)

    @cached_property
    def labels(self) -> tuple[LabelSet, Int64[Tensor, "N"]] | str:
        """The class of each point, a row of a label set; or why there is none."""
        if self.sure is not None:
            return self.sure.classes, self.sure.judged.classes
        classes = self.store.label_set(self.scene.label_set or UNLESS_LABELLED)
        try:
            return classes, self.predictor.segment(self.scene, classes)
        except InputError as error:  # a table of words need not have those of the classes
            return f"no classes of {classes.name}: {error}"


class Writer(NamedTuple):
    """How one ending is written."""

    what: str
    write: Callable[[Path, Asked], None]
    takes_mesh: bool = True


def ask_store(
    store: Store,
    predictor: Predictor,
    words: Sequence[str],
    out: Path,
    *,
    scene: str | None = None,
    abstain: float | None = None,
    mesh: Path | None = None,
    num_workers: int = 1,
) -> list[str]:
    """Ask a store free-text questions and write the answers of the scene that answers best.

    Args:
        store: Scenes to ask.
        predictor: Answers the questions.
        words: The questions.
        out: File to write; see `WRITERS`.
        scene: Name of the scene; unless given, the one that answers best.
        abstain: As of `save_answers`.
        mesh: As of `save_answers`.
        num_workers: Processes that share the scenes, on the CPU.

    Returns:
        A line for each question.

    Raises:
        InputError: As of `save_answers`, or the store has no scene.
    """
    writer_of(out, mesh)
    names = store.names() if scene is None else (scene,)
    if not names:
        raise InputError(f"{store.path} holds no finished scene. Run `cuao3d fuse` again to finish it.")
    best = _best(store, predictor, words, names, num_workers)
    asked = save_answers(predictor.ask(store[best], words), out, abstain=abstain, mesh=mesh)
    if asked.apart is None and predictor.teacher in store.teachers:
        note(f"How far views disagree is left out: {store.path} was made before that was kept. {MAKE_AGAIN}")
    lines = [f"{asked.scene.name}: {one.words!r}: {where_is(asked.scene, one)}" for one in asked.answers]
    return [*lines, *([asked.sure.promise] if asked.sure is not None and abstain is not None else [])]


def save_answers(
    answers: Sequence[Answer], path: Path | str, *, abstain: float | None = None, mesh: Path | str | None = None
) -> Asked:
    """Write answers of one scene to a file, whole or not at all; `docs/outputs.md` describes each kind.

    Args:
        answers: What `Predictor.ask` returned, all of it or a part.
        path: File to write; its ending is one of `WRITERS`.
        abstain: Leave points out of the answers whose class is so unsure that more than this share of the classes that
            are left would be wrong; see `Predictor.judge`.
        mesh: A triangle mesh (.ply) in the capture's coordinates: its vertices are written, each with the values of the
            sample that is nearest to it.

    Returns:
        What was written.

    Raises:
        InputError: The ending is none of these, the answers are not those of one scene by one predictor, two are to one
            question, the mesh does not lie where the scene does, or there is no fit to abstain by.
        NotInstalledError: A package that writes such files is not installed.
    """
    path, mesh = Path(path), None if mesh is None else Path(mesh)
    writer = writer_of(path, mesh)
    check_output(path)
    origins = {(one.scene and (one.scene.folder, one.scene.sha256), id(one.predictor)) for one in answers}
    if len(origins) != 1 or answers[0].scene is None:
        raise InputError(
            "Only answers of one scene by one predictor, as Predictor.ask returns them, can be written to a file."
        )
    words = [answer.words for answer in answers]  # by which files tell answers apart
    if twice := next((one for one in words if words.count(one) > 1), None):
        raise InputError(f"{twice!r} is asked twice; ask each question once.")
    predictor, scene = answers[0].predictor, answers[0].scene
    store = Store.open(scene.folder.parents[1])
    sure = how_sure(store, predictor, scene, abstain)
    if sure is not None and abstain is not None:
        kept = sure.judged.classes != UNLABELLED
        answers = [replace(one, answers=one.answers & kept, _kept={}) for one in answers]
    asked = Asked(predictor, store, scene, tuple(answers), sure, mesh)
    with waiting(f"writing {path.name}"):
        writer.write(path, asked)
    return asked


def show_answers(answers: Sequence[Answer]) -> Path:
    """Show answers of one scene as a page with a 3D view: inside a notebook, or else in the browser.

    Args:
        answers: As of `save_answers`.

    Returns:
        The page, in a folder for temporary files; it needs nothing else and may be moved.
    """
    path = Path(tempfile.mkdtemp(prefix="cuao3d-")) / "answers.html"
    save_answers(answers, path)
    interactive: Any = sys.modules.get("IPython")  # there is no notebook where nobody has imported it
    if interactive is not None and hasattr(interactive.get_ipython(), "kernel"):
        page = escape(path.read_text(encoding="utf-8"))
        frame = f'<iframe srcdoc="{page}" width="100%" height="720"></iframe>'
        interactive.display.display(interactive.display.HTML(frame))
    elif not webbrowser.open(path.as_uri()):
        note(f"No browser could be opened; the page is {path}")
    return path


def writer_of(path: Path, mesh: Path | None = None) -> Writer:
    """Return what writes a file.

    Raises:
        InputError: Nothing does, or it does not take a mesh.
    """
    ending = next((one for one in WRITERS if path.name.lower().endswith(one)), None)
    if ending is None:
        *most, last = (f"{one} ({writer.what})" for one, writer in WRITERS.items())
        raise InputError(f"{path} should end in {', '.join(most)} or {last}.")
    if mesh is not None and not WRITERS[ending].takes_mesh:
        able = ", ".join(one for one, writer in WRITERS.items() if writer.takes_mesh)
        raise InputError(f"{path}: a mesh goes with {able}; leave --mesh out, or choose one of these endings.")
    return WRITERS[ending]


def _best(store: Store, predictor: Predictor, words: Sequence[str], names: Sequence[str], num_workers: int) -> str:
    """Return the scene that answers best; where no view saw anything of any, the first."""
    if len(names) == 1:
        return names[0]
    shares, done = [names[first::num_workers] for first in range(num_workers)], [0] * num_workers
    with progress_bar() as bar:
        task = bar.add_task("asking", total=len(names))

        def say(share: int, steps: int, total: int, line: str) -> None:
            done[share] = steps
            bar.update(task, completed=sum(done))

        jobs = [partial(_ask_share, store, predictor, words, share) for share in shares if share]
        found = dict(chain.from_iterable(of_share.items() for of_share in side_by_side(jobs, num_workers, say)))
    peaks = {name: found[name] for name in names if found[name] is not None}
    for name in [name for name in names if name not in peaks] if peaks else []:
        note(f"{name}: no view saw anything of it.", head="left out")
    return max(peaks, key=lambda name: peaks[name] or 0.0, default=names[0])


def _ask_share(
    store: Store, predictor: Predictor, words: Sequence[str], names: Sequence[str], on_step: OnStep
) -> dict[str, float | None]:
    """Ask some scenes; return of each how well it answers all the questions, or None where no view saw anything."""
    found: dict[str, float | None] = {}
    for done, name in enumerate(names, start=1):
        try:
            found[name] = sum(answer.peak for answer in predictor.ask(store[name], words))
        except UnseenError:
            found[name] = None
        give_back()
        on_step(done, len(names), name)
    return found


class _Rows(NamedTuple):
    """What the rows of a file stand for."""

    points: NDArray[np.floating[Any]]
    """Positions (M, 3) in the coordinates and the unit of the capture."""
    of_point: NDArray[np.int64]
    """The point of the cloud whose values each row has, (M,)."""
    triangles: NDArray[np.int64] | None = None

    @staticmethod
    def of(asked: Asked, *, samples: bool = False) -> "_Rows":
        """Return the vertices of the mesh; without one the samples, or all points."""
        scene = asked.scene
        if asked.mesh is None:
            rows = scene.index_of_sample if samples else torch.arange(len(scene.points))
            return _Rows(in_capture(scene.points[rows], scene.capture_from_world).numpy(), rows.numpy())
        mesh = read_mesh(asked.mesh)
        if not mesh.vertices or not len(mesh.vertices["x"]):
            raise InputError(f"{asked.mesh} has no vertices; give a mesh of the scene.")
        vertices = np.stack([mesh.vertices[axis].astype(np.float64) for axis in "xyz"], axis=1)
        if num_lost := int((~np.isfinite(vertices)).any(axis=1).sum()):
            raise InputError(f"{asked.mesh} has {num_lost} vertices at no finite position; remove them from the mesh.")
        sample_points = in_capture(scene.sample_points, scene.capture_from_world)
        distance, nearest = distances(torch.from_numpy(vertices), sample_points)
        off = distance / units_per_metre(scene.capture_from_world) > OFF_MESH
        if off.double().mean() > 0.5:
            raise InputError(
                f"{asked.mesh} does not lie where {scene.name} does: {100 * float(off.double().mean()):.0f} % of its "
                f"vertices are over {100 * OFF_MESH:g} cm from every sample. Give one in the capture's coordinates."
            )
        if off.any():
            text = f"{int(off.sum())} of {len(off)} vertices are over {100 * OFF_MESH:g} cm from every sample"
            note(f"{asked.mesh.name}: {text}; they have the values of the nearest.", head="far off")
        return _Rows(vertices, scene.index_of_sample[nearest].numpy(), mesh.triangles)


def _columns(asked: Asked) -> dict[str, NDArray[Any]]:
    """Return the values of each point of the cloud, (N,) each; `ABOUT` says what they are."""
    margins = torch.stack([answer.relevance for answer in asked.answers])
    scores = torch.stack([answer.scores for answer in asked.answers])
    answering = torch.stack([answer.answers for answer in asked.answers])
    best = margins.argmax(dim=0, keepdim=True)
    answered = margins.where(answering, -torch.inf).argmax(dim=0) + 1
    columns: dict[str, NDArray[Any]] = {}
    if not isinstance(asked.labels, str):
        columns["label"] = _ids(*asked.labels)
    if asked.sure is not None:
        columns["confidence"] = asked.sure.judged.confidence.numpy()
    columns |= {
        "answer": answered.where(answering.any(dim=0), 0).numpy().astype(np.uint16),
        "score": scores.gather(0, best)[0].numpy(),
        "margin": margins.gather(0, best)[0].numpy(),
    }
    if len(asked.answers) > 1:
        for number, (score, margin) in enumerate(zip(scores, margins, strict=True), start=1):
            columns |= {f"score_{number}": score.numpy(), f"margin_{number}": margin.numpy()}
    if asked.apart is not None:
        columns["disagreement"] = asked.apart.numpy()
    return columns | {"seen": asked.answers[0].seen.numpy().astype(np.uint8)}


def _ids(classes: LabelSet, rows: Int64[Tensor, "N"]) -> NDArray[np.uint8]:
    """Return the id of the class of each point; 255 for none."""
    ids = torch.full((UNLABELLED + 1,), UNLABELLED, dtype=torch.uint8)
    ids[: len(classes)] = torch.tensor(classes.ids, dtype=torch.uint8)
    table: NDArray[np.uint8] = ids[rows].numpy()
    return table


def _colors(asked: Asked) -> NDArray[np.uint8]:
    """Return the colour of each point, RGB (N, 3): its heat, over a grey picture of the scene."""
    colors: NDArray[np.uint8] = (in_heat(asked.scene, asked.answers) * 255).round().to(torch.uint8).numpy()
    return colors


def _said(asked: Asked, columns: dict[str, NDArray[Any]]) -> list[str]:
    """Return lines that say what a file holds: its origin, each column, each question, each class."""
    lines = [f"cuao3d {__version__}: scene {asked.scene.name}", asked.predictor.about]
    lines += [f"{name}: {ABOUT[name]}" for name in columns if name in ABOUT]
    lines += [
        f"question {number} {one.verdict}, answers from a margin of {_least(one)}: {one.words}"
        for number, one in enumerate(asked.answers, start=1)
    ]
    if asked.sure is None:
        lines.append("no confidence: nothing was fitted (cuao3d store calibrate)")
    if isinstance(asked.labels, str):
        return [*lines, f"no label: {asked.labels}"]
    classes, rows = asked.labels
    present = set(torch.bincount(rows).nonzero()[:, 0].tolist())
    legend = zip(classes.ids, classes.names, (classes.colors * 255).round().int().tolist(), strict=True)
    lines.append(f"classes: {classes.name}, those that are there, as id red green blue name")
    return lines + [
        f"class {number} {r} {g} {b} {name}" for row, (number, name, (r, g, b)) in enumerate(legend) if row in present
    ]


def _least(answer: Answer) -> str:
    """Return the smallest margin of a point that answers."""
    return f"{float(answer.relevance[answer.answers].min()):.4f}" if answer.answers.any() else "none"


def _write_ply(path: Path, asked: Asked) -> None:
    rows, columns = _Rows.of(asked), _columns(asked)
    vertices = dict(zip("xyz", rows.points.T, strict=True))
    vertices |= zip(("red", "green", "blue"), _colors(asked)[rows.of_point].T, strict=True)
    vertices |= {name: column[rows.of_point] for name, column in columns.items()}
    said = _said(asked, columns)
    write_whole(path, lambda temporary: write_ply(temporary, vertices, comments=said, triangles=rows.triangles))


def _write_glb(path: Path, asked: Asked) -> None:
    rows, columns = _Rows.of(asked), _columns(asked)
    values = {name: column[rows.of_point] for name, column in columns.items()}
    colors, said = _colors(asked)[rows.of_point], _said(asked, columns)
    points = rows.points.astype(np.float64)
    write_whole(
        path, lambda temporary: write_glb(temporary, points, colors, values, about=said, triangles=rows.triangles)
    )


def _write_las(path: Path, asked: Asked) -> None:
    rows, columns, scene = _Rows.of(asked), _columns(asked), asked.scene
    source = _las_source(scene) if asked.mesh is None else None
    of_point = rows.of_point
    if source is not None:
        positions = las_positions(source)
        if len(positions) != len(rows.points):  # what is far from all others was left out when it was read
            distance, nearest = distances(torch.from_numpy(positions), torch.from_numpy(rows.points))
            of_point = nearest.where(distance / units_per_metre(scene.capture_from_world) < OFF_MESH, -1).numpy()
    values = {name: _taken(column, of_point, LEFT_OUT.get(name, 0)) for name, column in columns.items()}
    points, colors = rows.points.astype(np.float64), _colors(asked)[rows.of_point]
    step = STEP * units_per_metre(scene.capture_from_world)
    write_whole(
        path,
        lambda temporary: write_las(temporary, points, colors, values, step=step, about=ABOUT, source=source),
    )


def _taken(column: NDArray[Any], of_point: NDArray[np.int64], missing: float) -> NDArray[Any]:
    """Return the value of each row, and what stands for none where the row has no point."""
    return np.where(of_point < 0, np.array(missing, column.dtype), column[of_point])


def _las_source(scene: StoredScene) -> Path | None:
    """Return the LAS file that a scene was read from, if that it was and the file is still the same."""
    about = read_manifest(scene.folder).get("source")
    record = None if about is None else read_record(scene.folder, about)
    if record is None or record.folder is None:
        return None
    for name, (_, sha256) in record.files.items():
        if name.lower().endswith(".las"):
            path = Path(record.folder) / name
            if path.is_file() and sha256_once(path) == sha256:
                return path
            note(f"{path} is not there any more, or has changed: its dimensions and CRS are not kept.", head="left out")
    return None


def _write_labels(path: Path, asked: Asked) -> None:
    if isinstance(asked.labels, str):
        raise InputError(f"{path} cannot be written: {asked.labels}")
    rows, (classes, of_point) = _Rows.of(asked).of_point, asked.labels
    colors = (classes.colors * 255).round().int().tolist()
    content: dict[str, Any] = {
        "scene": asked.scene.name,
        "label_set": classes.name,
        "ids": {
            str(number): {"name": name, "color": color}
            for number, name, color in zip(classes.ids, classes.names, colors, strict=True)
        },
        "unlabelled": UNLABELLED,
        "labels": _ids(classes, of_point)[rows].tolist(),
    }
    if asked.sure is not None:
        content["confidence"] = [round(value, 4) for value in asked.sure.judged.confidence[rows].tolist()]
        content["confidence_measured_on"] = asked.sure.measured_on
    write_json(path, content)


def _write_features(path: Path, asked: Asked) -> None:
    rows, columns, predictor, scene = _Rows.of(asked, samples=True), _columns(asked), asked.predictor, asked.scene
    sample_of_row = scene.sample_of_point[torch.from_numpy(rows.of_point)]
    words = [answer.words for answer in asked.answers]
    arrays: dict[str, Any] = {
        "points": rows.points,
        "features": predictor.features(scene)[sample_of_row].half().cpu().numpy(),
        "names": np.array(words),
        "text": predictor.encoder(words).float().cpu().numpy(),
        "scores": torch.stack([one.scores for one in asked.answers], dim=1).numpy()[rows.of_point],
        "margins": torch.stack([one.relevance for one in asked.answers], dim=1).numpy()[rows.of_point],
        **{name: columns[name][rows.of_point] for name in ("label", "confidence", "seen") if name in columns},
        "about": np.array(json.dumps(_said(asked, columns))),
    }
    if asked.mesh is None:
        arrays["row_of_point"] = scene.sample_of_point.numpy()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write_whole(path, write)


def _write_json(path: Path, asked: Asked) -> None:
    write_json(path, as_json(asked.scene, asked.answers, asked.store, asked.predictor, asked.sure, asked.apart))


def _write_html(path: Path, asked: Asked) -> None:
    page_of(path, asked.scene, asked.answers, asked.predictor, asked.sure, asked.apart)


WRITERS = {
    ".ply": Writer("a cloud, or a mesh with --mesh", _write_ply),
    ".glb": Writer("the same for browsers and Blender", _write_glb),
    ".las": Writer("the same for surveyors", _write_las),
    ".labels.json": Writer("the class of each point", _write_labels),
    ".npz": Writer("features", _write_features),
    ".json": Writer("places", _write_json, takes_mesh=False),
    ".html": Writer("a page to look at", _write_html, takes_mesh=False),
}
"""What is written by the ending of a file; a longer ending comes before one that it ends in."""
