"""Answers to questions about a store's scenes, as people and programs read them: places, pictures, clouds and JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cuao3d import __version__
from cuao3d.colors import heat_colors
from cuao3d.console import note, progress_bar
from cuao3d.coordinates import as_matrix, describe_place, in_capture, unit_of
from cuao3d.errors import InputError, UnseenError
from cuao3d.files import write_json, write_whole
from cuao3d.formats.ply import cloud_columns, write_ply
from cuao3d.memory import give_back
from cuao3d.photographs import outline, read_photographs
from cuao3d.predictor import Predictor
from cuao3d.query import MIN_POINTS, Answer, heat, parts
from cuao3d.store import Store, StoredScene

if TYPE_CHECKING:
    from cuao3d.finds import Finds
    from cuao3d.report import Cloud, Heat

ALL_SEEN = 0.995
"""Coverage from which an answer is about the whole scene."""

OF_CAPTURE = "Positions are in the coordinates of the capture's pose files."

NUM_SHOWN = 3
"""Places of a question that are shown in photographs at most."""

NO_PHOTOGRAPHS = (
    "The store holds no photographs of this scene. `cuao3d fuse` keeps some of those that it shows to teachers; an "
    "earlier version kept none."
)

BEST_SHARE = 4
"""The relevance and the centre of a place are those of the best of its points, one in so many: the others would hide a
small place behind a large one, and pull the centre off the thing."""


def answer(
    store: Store, predictor: Predictor, words: Sequence[str], out: Path, *, scene: str | None = None
) -> list[str]:
    """Ask a store free-text questions and write the answers of the scene that answers best.

    Args:
        store: Scenes to ask.
        predictor: Answers the questions.
        words: The questions.
        out: File to write: `.ply`, the cloud as a heat map; `.json`, the places; `.html`, a page with pictures.
        scene: Name of the scene; unless given, the one that answers best.

    Returns:
        A line for each question.

    Raises:
        InputError: The ending of the file is none of these, or the store has no scene.
    """
    if out.suffix not in (".ply", ".json", ".html"):
        raise InputError(f"{out} should end in .ply (a cloud), .json (places) or .html (a page to look at).")
    names = store.names() if scene is None else (scene,)
    if not names:
        raise InputError(f"{store.path} holds no finished scene. Run `cuao3d fuse` again to finish it.")
    best, answers, most, unseen = names[0], tuple[Answer, ...](), -math.inf, dict[str, UnseenError]()
    with progress_bar() as bar:
        for name in bar.track(names, description="asking"):
            try:
                asked = predictor.ask(store[name], words)
            except UnseenError as error:
                unseen[name] = error
                continue
            if (relevance := sum(answer.peak for answer in asked)) > most:  # only the best are kept: they are large
                best, answers, most = name, asked, relevance
            del asked
            give_back()
    for name, unanswered in unseen.items():
        if len(unseen) == len(names):
            raise unanswered
        note(f"{name}: no view saw anything of it.", head="left out")
    stored = store[best]
    if out.suffix == ".json":
        write_json(out, _as_json(stored, answers, store, predictor))
    elif out.suffix == ".ply":
        write_cloud(out, in_capture(stored.points, stored.capture_from_world), _colors(stored, answers))
    else:
        from cuao3d.report import Gallery, write_report  # a page needs what draws; the other files do not

        heats = {answer.words: as_heat(stored, answer) for answer in answers}
        finds = as_finds(stored, answers)
        gallery = Gallery(best, stored.points, stored.colors, stored.normals, stored.cameras, heats=heats, finds=finds)
        about = predictor.about if stored.capture_from_world is None else f"{predictor.about} {OF_CAPTURE}"
        write_report(out, {"version": __version__, "answered_by": about}, gallery)
    return [f"{best}: {answer.words!r}: {where_is(stored, answer)}" for answer in answers]


def places(scene: StoredScene, answer: Answer) -> list[dict[str, Any]]:
    """List the connected parts of a scene that answer a question, the most relevant first; none if it is absent.

    They are described in the coordinates of the capture's pose files; see `describe_place`.
    """
    return [place for place, _ in _places_and_points(scene, answer)]


def as_finds(scene: StoredScene, answers: Sequence[Answer]) -> "Finds":
    """Return answers to be shown in the photographs that the store keeps of the scene, or with a word that it has none.

    Args:
        scene: The scene that was asked.
        answers: Its answers.
    """
    from cuao3d.finds import Find, Finds, Place

    photographs, points = read_photographs(scene), scene.sample_points
    finds = []
    for answer in answers:
        found = _places_and_points(scene, answer)
        shown: set[str] = set()
        own_places = []
        for place, own in found[:NUM_SHOWN]:
            where = outline(photographs, points, torch.unique(scene.sample_of_point[own]), shown=shown)
            shown |= {where.photograph.name} if where else set()
            own_places.append(Place(_about_place(place, unit_of(scene.capture_from_world)), where))
        finds.append(Find(answer.words, answer.verdict, _about_answer(answer, len(found)), own_places))
    return Finds(finds) if photographs else Finds(finds, about=NO_PHOTOGRAPHS)


def where_is(scene: StoredScene, answer: Answer) -> str:
    """Say where the answer is, in coordinates of the capture's pose files, and which part of the scene it covers."""
    return in_words(answer, places(scene, answer), unit=unit_of(scene.capture_from_world))


def in_words(answer: Answer, found: Sequence[Mapping[str, Any]], *, unit: str = " m") -> str:
    """Say where the answer is, and which part of the scene it covers; `unit` follows the position."""
    part = "" if answer.coverage > ALL_SEEN else f"the {100 * answer.coverage:.0f} % that was seen"
    if answer.verdict == "absent":
        return f"not in {part or 'this scene'}"
    if not found:
        return f"perhaps not in {part or 'this scene'}{_doubt(answer)}"
    x, y, z = found[0]["center"]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    seen = (f" (in {part})" if part else "") + _doubt(answer)
    return f"{'perhaps ' if answer.verdict == 'unsure' else ''}at ({x:.2f}, {y:.2f}, {z:.2f}){unit}{more}{seen}"


def as_heat(scene: StoredScene, answer: Answer, *, of_gallery: bool = True) -> "Heat":
    """Return the heat map of an answer; `of_gallery`: its scene is the one that the page is about."""
    from cuao3d.report import Heat

    shown = None if of_gallery else as_cloud(scene)
    return Heat(_glow(answer), where_is(scene, answer), shown, answer.seen)


def as_cloud(scene: StoredScene) -> "Cloud":
    """Return the point cloud of a scene, to be drawn."""
    from cuao3d.report import Cloud

    return Cloud(scene.name, scene.points, scene.colors, scene.normals, scene.cameras)


def write_cloud(path: Path, points: Tensor, colors: Tensor) -> None:
    """Write a coloured cloud (binary PLY), whole or not at all.

    Args:
        path: File to write.
        points: Positions (N, 3), metres.
        colors: RGB (N, 3), in [0, 1].
    """
    columns = cloud_columns(points, colors)
    write_whole(path, lambda temporary: write_ply(temporary, columns))


def _as_json(scene: StoredScene, answers: Sequence[Answer], store: Store, predictor: Predictor) -> dict[str, Any]:
    """Return the answers as JSON."""
    about = {
        "teacher": predictor.teacher,
        "student": predictor.student is not None,
        "text_encoder": predictor.text,
        "thresholds": asdict(predictor.calibration),
        "coverage": round(answers[0].coverage, 4),
    }
    return {
        "store": store.path.name,
        "scenes": store.count_of_scenes(),
        "scene": scene.name,
        "capture_from_world": as_matrix(scene.capture_from_world),
        "answers": {
            answer.words: {
                "verdict": answer.verdict,
                "peak": round(answer.peak, 4),
                "nearest_class": answer.nearest_class,
                **about,
                "places": places(scene, answer),
            }
            for answer in answers
        },
    }


def _places_and_points(scene: StoredScene, answer: Answer) -> list[tuple[dict[str, Any], Tensor]]:
    """List the places that answer a question, and the points of the cloud that each is made of; worked out once."""
    if "places" not in answer._kept:
        answer._kept["places"] = _find_places(scene, answer)
    found: list[tuple[dict[str, Any], Tensor]] = answer._kept["places"]
    return found


def _find_places(scene: StoredScene, answer: Answer) -> list[tuple[dict[str, Any], Tensor]]:
    """Work out what `_places_and_points` returns."""
    index = torch.nonzero(answer.answers).squeeze(1)
    part_of_point = parts(scene.points[index])
    by_part = torch.argsort(part_of_point, stable=True)[int((part_of_point < 0).sum()) :]
    found = []
    for own in torch.split(index[by_part], torch.bincount(part_of_point[by_part]).tolist()):
        relevance = answer.relevance[own]
        least = relevance.topk(max(min(MIN_POINTS, len(own)), len(own) // BEST_SHARE)).values[-1]
        best = relevance >= least  # all that are equal, so that the centre of an even place is its middle
        points = scene.points[own]
        place = {
            **describe_place(points, points[best], scene.capture_from_world),
            "num_points": len(own),
            "relevance": round(float(relevance[best].mean()), 3),
        }
        found.append((place, own))
    return sorted(found, key=lambda one: -one[0]["relevance"])


def _about_answer(answer: Answer, num_places: int) -> str:
    """Say how relevant an answer is and how many places it has."""
    if not num_places:
        return f"relevance {answer.peak:.2f}, {in_words(answer, [])}"
    part = "" if answer.coverage > ALL_SEEN else f" in the {100 * answer.coverage:.0f} % that was seen"
    return f"relevance {answer.peak:.2f}, {num_places} place{'s' if num_places > 1 else ''}{part}{_doubt(answer)}"


def _doubt(answer: Answer) -> str:
    """Say that the teacher has no class near the words, if it has none."""
    nearest = answer.nearest_class
    return f"; no class of the teacher is near these words, the nearest is {nearest!r}" if nearest else ""


def _about_place(place: Mapping[str, Any], unit: str) -> str:
    """Say how relevant a place is, and where it is."""
    x, y, z = place["center"]
    return f"relevance {place['relevance']:.2f}, at ({x:.2f}, {y:.2f}, {z:.2f}){unit}"


def _colors(scene: StoredScene, answers: Sequence[Answer]) -> Tensor:
    """Colour points by their most relevant answer; points that no view saw have their own colour."""
    hottest = torch.stack([_glow(answer) for answer in answers]).amax(dim=0)
    return heat_colors(hottest, scene.colors, answers[0].seen)


def _glow(answer: Answer) -> Tensor:
    """Return the heat of each point (N,), 0 to 1; an absent answer is cold everywhere."""
    return torch.zeros_like(answer.relevance) if answer.verdict == "absent" else heat(answer.relevance)
