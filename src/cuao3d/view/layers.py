"""One scene as the viewer shows it: which of its points are drawn, and the colours that each layer gives them."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from cuao3d.answers import UNLESS_LABELLED, disagreement_of, doubt_of, how_sure
from cuao3d.colors import NOTHING, heat_colors
from cuao3d.console import counted
from cuao3d.errors import InputError, UnseenError
from cuao3d.figures.palette import palette
from cuao3d.geometry import up_direction
from cuao3d.labels import LabelSet
from cuao3d.labels.kept import find_label_set
from cuao3d.predictor import Predictor
from cuao3d.query import Answer, classify, scores
from cuao3d.scene import UNLABELLED
from cuao3d.store import Store, StoredScene
from cuao3d.store.header import LABELS
from cuao3d.text import class_vectors
from cuao3d.view.asking import Question, answer_questions
from cuao3d.view.painted import Painted, paint_classes, paint_numbers, rgb, thin

T = TypeVar("T")

MOST_POINTS = 500_000
"""Points that are drawn at most; of larger clouds one is taken from each cell of a grid that leaves so many."""

LAYERS = (
    "photograph",
    "truth",
    "prediction",
    "relevance",
    "features",
    "segments",
    "views per point",
    "disagreement between views",
    "confidence",
    "2D against 3D",
    "like the clicked point",
)
"""What the points of a scene can be coloured by."""

NUM_WORDS = 5
"""Words that are told of a point that was clicked."""

RADIUS = 1.0
"""Radius of the disc that a point is drawn as, in units of `Layers.spacing`; a click meets the
nearest disc."""

REACH = 0.02
"""Half the angle of the cone in which a click that meets no disc finds a point, radians."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Features of a scene, one row for each sample that has any."""

    features: Float[Tensor, "R C"]
    row_of_sample: Int64[Tensor, "S"]
    """-1 for none."""


@dataclass(frozen=True)
class Click:
    """A point of a scene that was clicked."""

    point: int
    """Which of those that are drawn."""
    words: tuple[tuple[str, float], ...]
    """The nearest words, and their cosines."""
    nothing: str = ""
    """Why there are none, if so."""


@dataclass(eq=False)
class Layers:
    """The layers of a scene. They are worked out when asked for, one at a time, and kept."""

    store: Store
    models: Mapping[str, Predictor]
    """Who can be asked, by name; may be empty."""
    scene: StoredScene
    most_points: int = MOST_POINTS
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while a layer is worked out: two who look at one scene do not work out the same twice."""
    _kept: dict[tuple[object, ...], object] = field(default_factory=dict)

    @cached_property
    def drawn(self) -> Int64[Tensor, "M"]:
        """Which points of the cloud are drawn."""
        return thin(self.scene, self.most_points, self.store.cell)

    @cached_property
    def middle(self) -> Float32[Tensor, "3"]:
        """The middle of the scene, metres; positions are drawn relative to it, as single precision needs."""
        low, high = self.scene.points.amin(dim=0), self.scene.points.amax(dim=0)
        return (low + high) / 2

    @cached_property
    def positions(self) -> Float32[Tensor, "M 3"]:
        """Positions of the points that are drawn, metres, relative to `middle`."""
        return self.scene.points[self.drawn] - self.middle

    @cached_property
    def spacing(self) -> float:
        """Usual distance of a point that is drawn to its fourth neighbour, metres."""
        some = self.positions[:: max(1, len(self.positions) // 500)].numpy()
        num_neighbours = min(4, len(self.positions) - 1)
        if num_neighbours < 1:
            return self.store.cell
        distance = cKDTree(self.positions.numpy()).query(some, k=num_neighbours + 1)[0][:, -1]
        return max(float(np.median(distance)), 1e-4)

    @cached_property
    def up(self) -> Float[Tensor, "3"]:
        """Which way is up."""
        return up_direction(self.scene.cameras) if self.scene.cameras else torch.tensor([0.0, 0.0, 1.0])

    @cached_property
    def photograph(self) -> Float32[Tensor, "M 3"]:
        """Colours of the cloud; grey without."""
        return torch.full((len(self.drawn), 3), 0.7) if self.scene.colors is None else self.scene.colors[self.drawn]

    @cached_property
    def classes(self) -> LabelSet:
        """The label set in which points are named: that of the labels; without labels, the one of everyday rooms."""
        fitted = next((name for one in self.models.values() for name in one.fits), UNLESS_LABELLED)
        return find_label_set(self.store.path / LABELS, self.scene.label_set or fitted)

    def described_by(self) -> list[str]:
        """List whose features there are: those of the store's teachers, and those of the heads of the students."""
        heads = [f"{name}: {head}" for name, one in self.models.items() if one.student for head in one.student.heads]
        return [*self.store.teachers, *heads]

    def offered(self, model: str) -> dict[str, str]:
        """Return the layers that this scene has for a model, and for each of the others why it is not there, if so.

        Returns:
            For each of `LAYERS` an empty text, or the reason.
        """
        return self._once(("offered", model), lambda: self._offered(model))

    def paint(self, layer: str, model: str, described: str = "") -> Painted:
        """Colour the points by a layer that needs no words and no click.

        Args:
            layer: One of `LAYERS`.
            model: Who is asked; one of `models`.
            described: Whose features are shown; one of `described_by`.

        Raises:
            InputError: The scene does not have this layer.
        """
        painters: dict[str, Callable[[str], Painted]] = {
            "photograph": lambda _: Painted(self.photograph),
            "truth": lambda _: self._truth(),
            "prediction": self._prediction,
            "features": lambda _: self._principal(described),
            "segments": lambda _: self._segments(described),
            "views per point": lambda _: self._views(),
            "disagreement between views": self._disagreement,
            "confidence": self._confidence,
            "2D against 3D": self._agreement,
        }
        if layer not in painters or (model not in self.models and self.models):
            raise InputError(f"There is no layer {layer!r} of {model!r}.")
        if reason := self.offered(model)[layer]:
            raise InputError(f"{layer[:1].upper()}{layer[1:]} cannot be shown: {reason}.")
        if layer in ("features", "segments") and described not in self.described_by():
            raise InputError(f"There are no features of {described!r}.")
        key = layer, model, described if layer in ("features", "segments") else ""
        return self._once(key, lambda: painters[layer](model))

    def answers(self, model: str, questions: tuple[Question, ...]) -> tuple[Answer, ...]:
        """Return the answers to questions, with a value for each row of `rows`; the last are kept."""
        with self.lock:
            for key in [key for key in self._kept if key[0] == "answers" and key != ("answers", model, questions)]:
                del self._kept[key]
            rows = self.rows(model)
            if not len(rows.features):
                raise UnseenError("No view saw anything of this scene; only a student can answer: --run RUN")
            asked = self.models[model]
            return self._once(("answers", model, questions), lambda: answer_questions(asked, rows.features, questions))

    def relevance(self, model: str, questions: tuple[Question, ...], threshold: float) -> Painted:
        """Colour the points by how well they answer questions.

        Args:
            model: Who is asked.
            questions: One: its heat map. Several: a point has the colour of the one that it answers best.
            threshold: Points glow from this share of the peak of their question on.

        Raises:
            InputError: The text encoder does not know a word.
        """
        if model not in self.models:
            raise InputError(f"There is nobody {model!r} to ask.")
        found, seen = self.answers(model, questions), self.to_drawn(self.rows(model).row_of_sample) >= 0
        glow = torch.stack([_glow(one) for one in found])
        best, which = glow.max(dim=0)
        best = self._of_rows(model, best.where(best >= threshold, 0), 0)
        note = "; ".join(f"{one.words}: {_verdict(one)}" for one in found)
        grey = heat_colors(torch.zeros(len(best)), self.photograph, seen)
        values = self._of_rows(model, torch.stack([one.relevance for one in found]).amax(dim=0), math.nan)
        if len(found) == 1:
            return Painted(heat_colors(best, self.photograph, seen), note, values=values)
        entry = torch.where(best > 0, self._of_rows(model, which, -1), -1)
        table = palette()
        strength = ((best - 0.15) / 0.4).clamp(0.35, 1)[:, None]
        colors = torch.where(entry[:, None] >= 0, grey * (1 - strength) + table[entry] * strength, grey)
        legend = tuple((one.words, rgb(table[index])) for index, one in enumerate(found))
        return Painted(colors, note, entry, legend, values)

    def click(
        self, origin: Sequence[float], direction: Sequence[float], among: Bool[Tensor, "M"] | None = None
    ) -> int | None:
        """Find the point that a ray meets first.

        Args:
            origin: Where the ray begins, metres, relative to `middle`.
            direction: Where it goes.
            among: Points that can be met; all that are drawn unless given.

        Returns:
            Which of the points that are drawn; None if the ray passes by all of them.
        """
        begin, way = torch.tensor(origin), functional.normalize(torch.tensor(direction), dim=0)
        offset = self.positions - begin
        along = offset @ way
        off = (offset.square().sum(dim=1) - along.square()).clamp(min=0).sqrt()
        angle = off / along.clamp(min=1e-6)
        ahead = along > 0.05 if among is None else (along > 0.05) & among
        for met in (off < RADIUS * self.spacing, angle < REACH):
            if (near := torch.nonzero(ahead & met)[:, 0]).numel():
                return int(near[along[near].argmin()])
        return None

    def about_click(self, model: str, point: int) -> Click:
        """Name the words that are nearest to a point.

        Args:
            model: Who is asked.
            point: Which of the points that are drawn.
        """
        rows = self.rows(model)
        row = int(rows.row_of_sample[self.scene.sample_of_point[self.drawn[point]]])
        if row < 0:
            return Click(point, (), "No view saw this point: nothing is known of it.")
        try:
            names, vectors = self._words(model)
        except InputError as error:  # a table of words need not have those of the classes
            return Click(point, (), f"No words can be told: {error}")
        similar = scores(rows.features[row : row + 1], vectors)[0]
        best = similar.topk(min(NUM_WORDS, len(names)))
        return Click(point, tuple((names[k], float(similar[k])) for k in best.indices.tolist()))

    def like(self, model: str, point: int, threshold: float) -> Painted:
        """Colour the points by how like their features are to those of one of them.

        Args:
            model: Who is asked.
            point: Which of the points that are drawn.
            threshold: Points glow from this share of the range of cosines on.
        """
        rows = self.rows(model)
        row = int(rows.row_of_sample[self.scene.sample_of_point[self.drawn[point]]])
        if row < 0:
            return Painted(heat_colors(torch.zeros(len(self.drawn)), self.photograph), "This point has no feature.")
        cosine = scores(rows.features, rows.features[row : row + 1].float())[:, 0]
        usual = cosine.median()
        warm = ((cosine - usual) / (1 - usual).clamp(min=1e-6)).clamp(0, 1)
        warm = self._of_rows(model, warm.where(warm >= threshold, 0), 0)
        seen = self.to_drawn(rows.row_of_sample) >= 0
        note = "Yellow to violet: ever more like the point that was clicked."
        return Painted(heat_colors(warm, self.photograph, seen), note, values=self._of_rows(model, cosine, math.nan))

    def rows(self, model: str) -> Rows:
        """Return the features that a model answers by; those of a student are worked out once and kept in 16 bits."""
        return self._rows_of(self.models[model])

    def to_drawn(self, of_sample: Tensor) -> Tensor:
        """Return for each point that is drawn the value (M, ...) of its sample."""
        return of_sample[self.scene.sample_of_point[self.drawn]]

    def _offered(self, model: str) -> dict[str, str]:
        asked = self.models.get(model)
        nobody = "" if asked else "no teacher of the store can be asked with words, and there is no run"
        teacher = asked.teacher if asked else next(iter(self.store.teachers), "")
        missing = dict.fromkeys(LAYERS, "")
        missing["truth"] = "" if self.scene.labels is not None else "the scene has no labels"
        for layer in ("prediction", "relevance", "like the clicked point"):
            missing[layer] = nobody
        missing["features"] = missing["segments"] = "" if self.described_by() else "there are no features"
        missing["views per point"] = "" if self.scene.cameras else "the scene has no views"
        is_kept = teacher in self.store.teachers and self.scene.disagreement(teacher) is not None
        missing["disagreement between views"] = "" if is_kept else "the store does not hold it"
        fitted = "nothing was fitted for it: cuao3d store calibrate"
        missing["confidence"] = nobody or ("" if asked and asked.fits else fitted)
        both = asked is not None and asked.student is not None and teacher in self.store.teachers
        missing["2D against 3D"] = "" if both else "it needs a run, and the features of its teacher in the store"
        return missing

    def _rows_of(self, asked: Predictor) -> Rows:
        if asked.student is None:
            return Rows(self.scene.features(asked.teacher), self._row_of_seen)

        def describe() -> Rows:
            directions = functional.normalize(asked.features(self.scene).float(), dim=1).half().cpu()
            return Rows(directions, torch.arange(len(directions)))

        return self._once(("rows", id(asked.student), asked.teacher), describe)

    @cached_property
    def _row_of_seen(self) -> Int64[Tensor, "S"]:
        return self.scene.spread(torch.arange(len(self.scene.seen_samples)), fill=-1)

    def _of_rows(self, model: str, of_row: Tensor, nothing: float) -> Tensor:
        """Return for each point that is drawn the value (M, ...) of its row of features."""
        row = self.to_drawn(self.rows(model).row_of_sample)
        found = of_row.cpu()[row.clamp(min=0)]
        found[row < 0] = nothing
        return found

    def _truth(self) -> Painted:
        assert self.scene.labels is not None
        return paint_classes(
            self.classes.classes(self.scene.labels[self.drawn]), self.classes, "what each point is, by its label"
        )

    def _prediction(self, model: str) -> Painted:
        classes, vectors = self.classes, self._words(model)[1]
        found = self._of_rows(model, classify(scores(self.rows(model).features, vectors)), UNLABELLED)
        names = counted(len(classes), "name")
        return paint_classes(found, self.classes, f"what each point is taken for, of the {names} of {classes.name}")

    def _described(self, name: str) -> Rows:
        if name in self.store.teachers:
            return Rows(self.scene.features(name), self._row_of_seen)
        model, _, head = name.rpartition(": ")
        return self._rows_of(replace(self.models[model], teacher=head))

    def _principal(self, described: str) -> Painted:
        from cuao3d.figures.segments import pca_colors

        rows = self._described(described)
        colors = pca_colors(rows.features) if len(rows.features) else torch.zeros(0, 3)
        row = self.to_drawn(rows.row_of_sample)
        padded = torch.cat([colors, torch.full((1, 3), NOTHING)])
        return Painted(padded[row], f"the three principal components of {described}: like colours, like features")

    def _segments(self, described: str) -> Painted:
        """Paint K-Means segments in the colours that the report has: matched to those of the first teacher."""
        from cuao3d.figures.segments import alike

        own, first = self._clusters(described), self._clusters(self.described_by()[0])
        number = alike(own, first)[self.drawn] if bool((own >= 0).any() & (first >= 0).any()) else own[self.drawn]
        present = torch.unique(number[number >= 0])
        entry = torch.full((len(number),), -1)
        for index, segment in enumerate(present.tolist()):
            entry[number == segment] = index
        legend = tuple((f"segment {segment + 1}", rgb(palette()[segment])) for segment in present.tolist())
        return Painted(palette()[number], f"what {described} tells apart without words (K-Means)", entry, legend)

    def _clusters(self, described: str) -> Int64[Tensor, "N"]:
        """Return the segment of each point of the cloud; -1 for none."""
        from cuao3d.figures.segments import NUM_SEGMENTS, clusters, spread

        def find() -> Tensor:
            rows = self._described(described)
            row_of_point = rows.row_of_sample[self.scene.sample_of_point]
            if not len(rows.features):
                return torch.full_like(row_of_point, -1)
            return spread(clusters(rows.features, NUM_SEGMENTS), row_of_point, -1)

        return self._once(("clusters", described), find)

    def _views(self) -> Painted:
        views = self.to_drawn(self.scene.num_views).float()
        most = float(views.max()) if len(views) else 0.0
        note = f"how many views see each point: from 1, pale, to {most:.0f}, dark; blue-grey: none"
        share = ((views - 1) / max(most - 1, 1)).clamp(0, 1)
        return paint_numbers(share.where(views > 0, math.nan), note, values=views)

    def _disagreement(self, model: str) -> Painted:
        asked = self.models.get(model)
        teacher = asked.teacher if asked else next(iter(self.store.teachers))
        found = self.scene.disagreement(teacher) if asked is None else None
        apart = disagreement_of(asked, self.scene) if asked else None
        if apart is None:
            assert found is not None
            apart = self.scene.spread(found, math.nan)[self.scene.sample_of_point]
        apart = apart[self.drawn]
        known = apart[apart.isfinite()]
        high = float(known.quantile(0.99)) if 0 < len(known) < 1 << 24 else 1.0
        note = f"how far the views of a point disagree, to {teacher}: dark, most; blue-grey: there are not two views"
        return paint_numbers((apart / max(high, 1e-6)).clamp(0, 1), note, values=apart)

    def _confidence(self, model: str) -> Painted:
        sure = how_sure(self.store, self.models[model], self.scene)
        assert sure is not None
        found = sure.judged.confidence[self.drawn]
        has_class = sure.judged.classes[self.drawn] != UNLABELLED
        note = (
            f"chance that the class of a point is right: dark, 100 %; {sure.classes.name}, fitted on {sure.measured_on}"
        )
        return paint_numbers(found.where(has_class, math.nan), note)

    def _agreement(self, model: str) -> Painted:
        asked = self.models[model]
        lifted, learned = self.scene.features(asked.teacher), self._rows_of(asked).features
        cosine = torch.empty(len(lifted))
        for start in range(0, len(lifted), 1 << 13):
            part = slice(start, start + (1 << 13))
            own = learned[self.scene.seen_samples[part]].float()
            cosine[part] = functional.cosine_similarity(lifted[part].float(), own, dim=1)
        found = self.to_drawn(self.scene.spread(cosine, math.nan))
        note = "cosine between lifted features and the student's: dark, 1; pale, 0; blue-grey: no view"
        return paint_numbers(found.clamp(0, 1), note, values=found)

    def _words(self, model: str) -> tuple[tuple[str, ...], Float[Tensor, "K C"]]:
        """Return the names of the classes and their vectors."""

        def encode() -> tuple[tuple[str, ...], Tensor]:
            classes = self.classes
            return classes.names, class_vectors(self.models[model].encoder, classes)

        return self._once(("words", model), encode)

    def _once(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        with self.lock:
            if key not in self._kept:
                self._kept[key] = make()
            found: T = self._kept[key]  # type: ignore[assignment]
            return found


def _glow(answer: Answer) -> Float32[Tensor, "R"]:
    """Return the relevance of each row as a share of the peak, 0 to 1; an absent answer is cold everywhere."""
    if answer.verdict == "absent" or answer.peak <= 0:
        return torch.zeros_like(answer.relevance)
    return (answer.relevance / answer.peak).clamp(0, 1)


def _verdict(answer: Answer) -> str:
    """Say whether something was found, and how relevant it is."""
    found = {"here": "here", "unsure": "perhaps here", "absent": "not here"}[answer.verdict]
    return f"{found}, relevance {answer.peak:.2f}{doubt_of(answer)}"
