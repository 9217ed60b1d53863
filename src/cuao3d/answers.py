"""Answers to questions about a store's scenes, as people and programs read them: places, pictures, clouds and JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cuao3d import __version__
from cuao3d.colors import heat_colors
from cuao3d.confidence import UNFITTED, Judged
from cuao3d.console import counted
from cuao3d.coordinates import as_matrix, size_in_words, unit_of
from cuao3d.errors import NotFoundError
from cuao3d.evaluate import labels_of
from cuao3d.files import write_whole
from cuao3d.formats.ply import cloud_columns, write_ply
from cuao3d.labels import LabelSet
from cuao3d.photographs import outline, read_photographs
from cuao3d.places import Upright, find_places
from cuao3d.predictor import Predictor
from cuao3d.query import Answer, heat
from cuao3d.scene import UNLABELLED
from cuao3d.store import Store, StoredScene

if TYPE_CHECKING:
    from cuao3d.finds import Finds
    from cuao3d.report import Cloud, Heat

ALL_SEEN = 0.995
"""Coverage from which an answer is about the whole scene."""

OF_CAPTURE = "Positions are in the coordinates of the capture's pose files."

UNKNOWN_WORDS = "the text encoder does not know these words; ask in plain English"

UNLESS_LABELLED = "scannet20"
"""Classes that points are named in where neither a fit nor a scene says which."""

NUM_SHOWN = 3
"""Places of a question that are shown in photographs at most."""

NO_PHOTOGRAPHS = (
    "The store holds no photographs of this scene. `cuao3d fuse` keeps some of those that it shows to teachers; an "
    "earlier version kept none."
)

MAKE_AGAIN = "Make it again to have it: cuao3d fuse DATA --out ANOTHER"


@dataclass(frozen=True)
class Sureness:
    """How sure it is what the points of a scene are."""

    classes: LabelSet
    """The label set whose classes they are given."""
    judged: Judged
    """Class and confidence of each point."""
    measured_on: str
    """What the confidence was fitted on."""
    abstain: float | None
    """Largest share of wrong labels among those that are not withheld; None: none is withheld."""

    @property
    def about(self) -> dict[str, Any]:
        """What is said of it in JSON."""
        kept = float((self.judged.classes != UNLABELLED).float().mean()) if len(self.judged.classes) else 0.0
        return {
            "label_set": self.classes.name,
            "measured_on": self.measured_on,
            "abstain": self.abstain,
            "labelled": round(kept, 4),
        }

    @property
    def promise(self) -> str:
        """How many points keep a label, and what is promised of these."""
        kept, wrong = 100 * self.about["labelled"], 100 * (self.abstain or 0)
        of = f"{self.classes.name} (fitted on {self.measured_on})"
        if not kept:
            return f"no point keeps a label of {of}: none is so sure that the promise of {wrong:g} % could be kept"
        promise = f"at most {wrong:g} % of these are wrong, in 19 of 20 such scenes"
        return f"{kept:.0f} % of the points keep a label of {of}: {promise}"


def page_of(
    out: Path,
    stored: StoredScene,
    answers: Sequence[Answer],
    predictor: Predictor,
    sure: Sureness | None,
    apart: Tensor | None,
) -> None:
    """Write answers as a page to look at, with photographs, pictures and a 3D view.

    Args:
        out: File to write.
        stored: The scene that was asked.
        answers: Its answers.
        predictor: Who answered.
        sure: How sure labels are, where that was fitted.
        apart: How far the views of each point disagree (N,), where that is kept.
    """
    from cuao3d.report import Gallery, write_report  # a page needs what draws; the other files do not

    gallery = Gallery(
        stored.name,
        stored.points,
        stored.colors,
        stored.normals,
        stored.cameras,
        heats={answer.words: as_heat(stored, answer) for answer in answers},
        finds=as_finds(stored, answers),
        layers=_layers(stored, sure, apart),
        **({} if sure is None else _named(stored, sure)),
    )
    about = predictor.about if stored.capture_from_world is None else f"{predictor.about} {OF_CAPTURE}"
    write_report(out, {"version": __version__, "answered_by": about}, gallery)


def how_sure(store: Store, predictor: Predictor, scene: StoredScene, abstain: float | None = None) -> Sureness | None:
    """Say how sure it is what the points of a scene are, in the label set in which that was fitted; None without.

    Args:
        store: The store of the scene.
        predictor: Names the classes.
        scene: The scene.
        abstain: As of `exports.save_answers`.

    Raises:
        InputError: Nothing was fitted to abstain by.
    """
    if not predictor.fits:
        if abstain is not None:
            UNFITTED.threshold(abstain)
        return None
    name, fits = next(iter(predictor.fits.items()))
    classes = store.label_set(name)
    judged = predictor.judge(scene, classes, abstain=abstain)
    return Sureness(classes, judged, next(iter(fits.values())).measured_on, abstain)


def disagreement_of(predictor: Predictor, scene: StoredScene) -> Tensor | None:
    """Return how far the views of each point (N,) disagree, NaN where there are not two; None where it is not kept.

    Args:
        predictor: Whose teacher's features are looked at.
        scene: The scene; stores of earlier versions do not have it, nor do those without this teacher.
    """
    try:
        found = scene.disagreement(predictor.teacher)
    except NotFoundError:
        return None
    return None if found is None else scene.spread(found, math.nan)[scene.sample_of_point]


def places(scene: StoredScene, answer: Answer) -> list[dict[str, Any]]:
    """List the places of a scene that answer a question, the most relevant first; none if it is absent.

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
        return f"perhaps not in {part or 'this scene'}{doubt_of(answer)}"
    x, y, z = found[0]["center"]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    seen = (f" (in {part})" if part else "") + doubt_of(answer)
    where = f"at ({x:.2f}, {y:.2f}, {z:.2f}){unit}, {size_in_words(found[0])}"
    return f"{'perhaps ' if answer.verdict == 'unsure' else ''}{where}{more}{seen}"


def as_heat(scene: StoredScene, answer: Answer, *, of_gallery: bool = True) -> "Heat":
    """Return the heat map of an answer; `of_gallery`: its scene is the one that the page is about."""
    from cuao3d.report import Heat

    shown = None if of_gallery else as_cloud(scene)
    return Heat(_glow(answer), where_is(scene, answer), shown, answer.seen)


def as_cloud(scene: StoredScene) -> "Cloud":
    """Return the point cloud of a scene, to be drawn."""
    from cuao3d.report import Cloud

    return Cloud(scene.name, scene.points, scene.colors, scene.normals, scene.cameras)


def write_cloud(path: Path, points: Tensor, colors: Tensor, more: Mapping[str, Any] | None = None) -> None:
    """Write a coloured cloud (binary PLY), whole or not at all.

    Args:
        path: File to write.
        points: Positions (N, 3), metres.
        colors: RGB (N, 3), in [0, 1].
        more: Further columns (N,), by name.
    """
    columns = cloud_columns(points, colors) | dict(more or {})
    write_whole(path, lambda temporary: write_ply(temporary, columns))


def _layers(scene: StoredScene, sure: Sureness | None, apart: Tensor | None) -> dict[str, "Heat"]:
    """Return what the page shows beside the answers: how unsure the points are, and where views disagree."""
    from cuao3d.report import Heat

    layers = {}
    if sure is not None:
        what = f"one minus the confidence; classes of {sure.classes.name}, fitted on {sure.measured_on}"
        labelled = sure.judged.confidence > 0
        layers["How unsure it is what a point is"] = Heat(1 - sure.judged.confidence, what, seen=labelled)
        if sure.abstain is not None:
            withheld = (sure.judged.classes == UNLABELLED).float()
            layers["Where the label is withheld"] = Heat(withheld, sure.promise, seen=labelled)
    if apart is not None:
        what = "disagreement between the views of a point; grey: one view or none"
        layers["Where views disagree"] = Heat(heat(apart.nan_to_num(0)), what)
    return layers


def _named(scene: StoredScene, sure: Sureness) -> dict[str, Any]:
    """Return what the page shows of the classes of the points: what they are taken for and, where known, the truth."""
    is_known = scene.labels is not None and Path(scene.label_set or "").stem == sure.classes.name
    truth = labels_of(scene, sure.classes) if is_known else None
    kept = "" if sure.abstain is None else ", where it is sure enough"
    return {
        "label_set": sure.classes,
        "labels": truth,
        "predictions": {f"Classes of {sure.classes.name}{kept}": sure.judged.classes},
    }


def _mean(values: Tensor) -> float | None:
    """Return the mean of the values that are there; None of none."""
    return round(float(values.nanmean()), 4) if bool(values.isfinite().any()) else None


def as_json(
    scene: StoredScene,
    answers: Sequence[Answer],
    store: Store,
    predictor: Predictor,
    sure: Sureness | None,
    apart: Tensor | None,
) -> dict[str, Any]:
    """Return the answers as JSON can hold them: verdicts, and places in the capture's coordinates."""
    columns = {"disagreement": apart, "confidence": None if sure is None else sure.judged.confidence}
    measured = {name: values for name, values in columns.items() if values is not None}
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
        **({} if sure is None else {"confidence": sure.about}),
        "answers": {
            answer.words: {
                "verdict": answer.verdict,
                "peak": round(answer.peak, 4),
                "nearest_class": answer.nearest_class,
                "words_known": answer.words_known,
                **about,
                "places": [
                    {**place, **{name: _mean(values[own]) for name, values in measured.items()}}
                    for place, own in _places_and_points(scene, answer)
                ],
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
    upright, found = Upright.of(scene), []
    for part in find_places(upright.turn(scene.points), answer.relevance, answer.answers, answer.seen):
        own, best = scene.points[part.points], scene.points[part.best]
        place = {
            **upright.describe(own, best),
            "num_points": len(part.points),
            "relevance": round(part.relevance, 3),
        }
        found.append((place, part.points))
    return found


def _about_answer(answer: Answer, num_places: int) -> str:
    """Say how relevant an answer is and how many places it has."""
    if not num_places:
        return f"relevance {answer.peak:.2f}, {in_words(answer, [])}"
    part = "" if answer.coverage > ALL_SEEN else f" in the {100 * answer.coverage:.0f} % that was seen"
    return f"relevance {answer.peak:.2f}, {counted(num_places, 'place')}{part}{doubt_of(answer)}"


def doubt_of(answer: Answer) -> str:
    """Say that the text encoder does not know the words, or that the teacher has no class near them, if it is so."""
    if not answer.words_known:
        return f"; {UNKNOWN_WORDS}"
    nearest = answer.nearest_class
    return f"; no class of the teacher is near these words, the nearest is {nearest!r}" if nearest else ""


def _about_place(place: Mapping[str, Any], unit: str) -> str:
    """Say how relevant a place is, and where it is."""
    x, y, z = place["center"]
    return f"relevance {place['relevance']:.2f}, at ({x:.2f}, {y:.2f}, {z:.2f}){unit}; {size_in_words(place)}"


def in_heat(scene: StoredScene, answers: Sequence[Answer]) -> Tensor:
    """Colour points by their most relevant answer, RGB (N, 3); points that no view saw have a colour of their own."""
    hottest = torch.stack([_glow(answer) for answer in answers]).amax(dim=0)
    return heat_colors(hottest, scene.colors, answers[0].seen)


def _glow(answer: Answer) -> Tensor:
    """Return the heat of each point (N,), 0 to 1; an absent answer is cold everywhere."""
    return torch.zeros_like(answer.relevance) if answer.verdict == "absent" else heat(answer.relevance)
