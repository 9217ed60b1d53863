"""Teachers side by side on one's own scenes: time, size, agreement between views, quality where there are labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.evaluate import confusion_matrix, measure
from cuao3d.labels import LabelSet, label_set
from cuao3d.query import classify, scores
from cuao3d.scene import UNLABELLED
from cuao3d.store import Store, StoredScene
from cuao3d.text import class_vectors, load_text_encoder

BLOCK = 1.0
"""Edge of the blocks of space that a probe learns from or is scored on in turn, metres."""

MOST_ROWS = 30_000
"""Samples that a probe learns from, at most."""

RIDGE = 1e-2
"""Penalty of the probe, a share of the mean variance of its standardised inputs."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Comparison:
    """A line of the comparison."""

    teacher: str
    num_channels: int
    seconds_per_view: float | None
    """Mean time to describe and lift one view; None where it was not measured."""
    gigabytes: float
    """Size of its features in the store."""
    agreement: float | None
    """How well the views of a sample agree, the mean over the scenes; see `fusion.Lifted`."""
    zero_shot_miou: float | None
    """Segmentation by the names of the classes, percent; None without words or labels."""
    probe_miou: float | None
    """Segmentation by a linear probe of the features, percent; None without labels."""
    probe_split: Literal["other scenes", "other blocks"] | None
    """What the probe is scored on: scenes of other splits than train, or every other block of space of each scene."""
    licence: str | None


def compare(store: Store, teachers: Sequence[str] = (), *, progress: Progress | None = None) -> list[Comparison]:
    """Compare the teachers of a store. Scores are on the original points, those without features count as wrong.

    The probe is a ridge regression to the classes on standardised features, in closed form: it has no rate and no seed
    to choose. It learns from the training scenes and is scored on the others; where only one of the two has labels,
    each scene is cut into blocks of a metre, and it learns from every other one.

    Args:
        store: Scenes that were lifted.
        teachers: Names of teachers of the store; all of them unless given.
        progress: Told after each teacher.

    Raises:
        InputError: The store has no such teacher, or no scenes.
    """
    names = tuple(teachers) or tuple(store.teachers)
    if unknown := [name for name in names if name not in store.teachers]:
        raise InputError(
            f"{store.path} has no features of {', '.join(unknown)}, only of {', '.join(store.teachers) or 'none'}. "
            "Lift them first: cuao3d fuse DATA --teachers ... --out STORE"
        )
    scenes = store.names()
    if not scenes:
        raise InputError(f"{store.path} holds no finished scene. Run `cuao3d fuse` again to finish it.")
    labelled = [name for name in scenes if store[name].labels is not None]
    classes = _classes(store, labelled)
    rows = []
    for done, name in enumerate(names, start=1):
        lifting = [about[name] for scene in scenes if name in (about := store.lifting(scene))]
        num_views = sum(about.num_views for about in lifting)
        agreements = [about.agreement for about in lifting if about.agreement is not None]
        card = store.teachers[name]
        zero_shot = _zero_shot(store, labelled, name, classes) if classes and card.text else None
        probed = _probe(store, labelled, name, classes) if classes else (None, None)
        rows.append(
            Comparison(
                teacher=name,
                num_channels=card.num_channels,
                seconds_per_view=sum(about.seconds for about in lifting) / num_views if num_views else None,
                gigabytes=sum(store[scene].features(name).nbytes for scene in scenes) / 1e9,
                agreement=sum(agreements) / len(agreements) if agreements else None,
                zero_shot_miou=zero_shot,
                probe_miou=probed[0],
                probe_split=probed[1],
                licence=card.licence,
            )
        )
        if progress:
            progress(done, len(names))
    return rows


def _classes(store: Store, labelled: Sequence[str]) -> LabelSet | None:
    """Return the classes that the labelled scenes speak, if there are any and they agree."""
    names = {store[name].label_set for name in labelled}
    return label_set(name) if len(names) == 1 and (name := names.pop()) is not None else None


def _zero_shot(store: Store, labelled: Sequence[str], teacher: str, classes: LabelSet) -> float:
    vectors = class_vectors(load_text_encoder(store.teachers[teacher].text or ""), classes)
    scenes = (store[name] for name in labelled)
    predicted = ((scene, classify(scores(scene.features(teacher), vectors)), None) for scene in scenes)
    return _miou(predicted, classes)


def _probe(store: Store, labelled: Sequence[str], teacher: str, classes: LabelSet) -> tuple[float, Any]:
    """Return the score of a linear probe, and what it is of."""
    apart = {name: store[name].split != "train" for name in labelled}
    by_scene = len(set(apart.values())) == 2
    share = max(1, MOST_ROWS // max(1, len(labelled)))
    features, targets = [], []
    for name in labelled:
        scene = store[name]
        of_seen = classes.classes(_labels(scene))[scene.index_of_sample[scene.seen_samples]]
        learned = torch.full_like(of_seen, not apart[name], dtype=torch.bool)
        if not by_scene:
            learned = ~_held_out(scene.sample_points[scene.seen_samples])
        rows = torch.nonzero(learned & (of_seen != UNLABELLED)).squeeze(1)
        rows = rows[:: max(1, len(rows) // share)]
        features.append(scene.features(teacher)[rows].float())
        targets.append(of_seen[rows])
    if not sum(map(len, targets)):
        return float("nan"), None
    predict = _ridge(torch.cat(features), torch.cat(targets), len(classes))

    def predicted() -> Iterator[tuple[StoredScene, Tensor, Tensor | None]]:
        for name in labelled:
            if apart[name] or not by_scene:
                scene = store[name]
                yield scene, predict(scene.features(teacher).float()), None if by_scene else _held_out(scene.points)

    return _miou(predicted(), classes), "other scenes" if by_scene else "other blocks"


def _ridge(features: Float[Tensor, "R C"], targets: Int64[Tensor, "R"], num_classes: int) -> Callable[[Tensor], Tensor]:
    """Fit a linear map from features to classes by least squares; every class counts as much as its square root."""
    mean, deviation = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    inputs = torch.nn.functional.pad((features - mean) / deviation, (0, 1), value=1.0)
    counts = torch.bincount(targets, minlength=num_classes)
    weights = counts[targets].float().rsqrt()[:, None]
    wanted = torch.nn.functional.one_hot(targets, num_classes).float()
    gram = inputs.T @ (weights * inputs)
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, inputs.T @ (weights * wanted))
    absent = torch.where(counts == 0, -torch.inf, 0.0)

    def predict(described: Tensor) -> Tensor:
        scaled = torch.nn.functional.pad((described - mean) / deviation, (0, 1), value=1.0)
        classes: Tensor = (scaled @ solution + absent).argmax(dim=1)
        return classes

    return predict


def _miou(predicted: Iterator[tuple[StoredScene, Tensor, Tensor | None]], classes: LabelSet) -> float:
    """Score the classes of the seen samples of scenes on the original points, or on some of these."""
    confusion = torch.zeros(len(classes) + 1, len(classes), dtype=torch.int64)
    for scene, of_seen, chosen in predicted:
        of_sample = torch.full((len(scene.num_views),), UNLABELLED)
        of_sample[scene.seen_samples] = of_seen
        of_point, labels = of_sample[scene.sample_of_point], classes.classes(_labels(scene))
        if chosen is not None:
            of_point, labels = of_point[chosen], labels[chosen]
        confusion += confusion_matrix(of_point, labels, len(classes))
    return 100 * measure(confusion).miou


def _labels(scene: StoredScene) -> Int64[Tensor, "N"]:
    assert scene.labels is not None
    return scene.labels


def _held_out(points: Float[Tensor, "N 3"]) -> Bool[Tensor, "N"]:
    """Say which points lie in the blocks that a probe is scored on: a chessboard seen from above."""
    return (points[:, :2] / BLOCK).floor().sum(dim=1).remainder(2) == 1
