"""Comparison of teachers on a store: time, size, agreement between views and, where there are labels, mIoU."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.labels import LabelSet, label_set
from cuao3d.linear import fit_classes
from cuao3d.metrics import Metrics, confusion_matrix, measure, named_iou
from cuao3d.progress import OnCount
from cuao3d.query import classify, scores
from cuao3d.scene import UNLABELLED
from cuao3d.store import Store, StoredScene, TeacherCard
from cuao3d.teachers import canonical, vocabulary_of
from cuao3d.text import class_vectors, load_text_encoder
from cuao3d.vocabulary import BySeen, by_seen

BLOCK = 1.0
"""Edge of the blocks of space that a probe learns from or is scored on in turn, metres."""

MOST_ROWS = 30_000
"""Samples that a probe learns from, at most."""


@dataclass(frozen=True)
class Comparison:
    """A row of the comparison."""

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
    by_teacher: BySeen | None
    """Which of these names the teacher was trained with, and the mIoU of these and of the others; likewise None."""
    probe_miou: float | None
    """Segmentation by a linear probe of the features, percent; None without labels to learn from."""
    probe_split: Literal["other scenes", "other blocks"] | None
    """What the probe is scored on: scenes of other splits than train, or every other block of space of each scene."""
    licence: str | None
    scenes: str
    """How many scenes were compared; where some are missing, of how many, and which."""
    missing: dict[str, str]
    """Why each scene is missing, by its name."""


def compare(store: Store, teachers: Sequence[str] = (), *, progress: OnCount | None = None) -> list[Comparison]:
    """Compare the teachers of a store. Scores are on the original points, those without features count as wrong.

    The probe is a linear map from standardised features to the classes, fitted by `linear.fit_classes`. It learns
    from the training scenes and is scored on the others; where only one of the two has labels, each scene is cut into
    blocks of a metre, and it learns from every other one.

    Args:
        store: Scenes that were lifted.
        teachers: Names of teachers of the store, in any spelling; all of them unless given.
        progress: Told after each teacher.

    Raises:
        InputError: The store has no such teacher, or no scenes.
    """
    names = tuple(canonical(name, store.teachers) for name in teachers) or tuple(store.teachers)
    if unknown := [name for name in names if name not in store.teachers]:
        raise InputError(
            f"{store.path} has no features of {', '.join(unknown)}, only of {', '.join(store.teachers) or 'none'}. "
            "Lift them first: cuao3d fuse DATA --teachers ... --out STORE"
        )
    if not store.names():
        raise InputError(f"{store.path} holds no finished scene. Run `cuao3d fuse` again to finish it.")
    num_bytes, labelled = _open_scenes(store, names)
    classes = _classes(labelled)
    rows = []
    for done, name in enumerate(names, start=1):
        lifting = [about[name] for scene in store.names() if name in (about := store.lifting(scene))]
        num_views = sum(about.num_views for about in lifting)
        agreements = [about.agreement for about in lifting if about.agreement is not None]
        card = store.teachers[name]
        zero_shot = _zero_shot(labelled, name, classes, card) if classes and card.text else None
        probed = _probe(labelled, name, classes) if classes else (None, None)
        rows.append(
            Comparison(
                teacher=name,
                num_channels=card.num_channels,
                seconds_per_view=sum(about.seconds for about in lifting) / num_views if num_views else None,
                gigabytes=num_bytes[name] / 1e9,
                agreement=sum(agreements) / len(agreements) if agreements else None,
                zero_shot_miou=zero_shot and zero_shot[0],
                by_teacher=zero_shot and zero_shot[1],
                probe_miou=probed[0],
                probe_split=probed[1],
                licence=card.licence,
                scenes=store.count_of_scenes(),
                missing=store.missing(),
            )
        )
        if progress:
            progress(done, len(names))
    return rows


@dataclass(frozen=True)
class _Labelled:
    """What scores need of a labelled scene once it is closed: much less than its points."""

    label_set: str | None
    is_train: bool
    features: Mapping[str, Float[Tensor, "V C"]]
    """Features of each teacher, mapped from disk."""
    label_of_seen: Int64[Tensor, "V"]
    """Label of each seen sample's own point."""
    held_out: Bool[Tensor, "V"]
    """Whether that point lies in a block that a probe is scored on."""
    row: Int64[Tensor, "G"]
    """Points are counted in groups: which row of the features describes them; -1 where no view sees their sample."""
    label: Int64[Tensor, "G"]
    """Their label."""
    in_block: Bool[Tensor, "G"]
    """Whether they lie in a block that a probe is scored on."""
    count: Int64[Tensor, "G"]
    """How many they are."""


def _open_scenes(store: Store, teachers: Sequence[str]) -> tuple[Counter[str], list[_Labelled]]:
    """Open each scene of a store once; return the bytes of each teacher's features, and the labelled scenes."""
    num_bytes: Counter[str] = Counter()
    labelled = []
    for name in store.names():
        scene = store[name]
        num_bytes.update(
            {teacher: sum(one.nbytes for one in scene.coded(teacher).tensors.values()) for teacher in teachers}
        )
        if scene.labels is not None:
            labelled.append(_without_points(scene, scene.labels, teachers))
    return num_bytes, labelled


def _without_points(scene: StoredScene, labels: Int64[Tensor, "N"], teachers: Sequence[str]) -> _Labelled:
    row_of_sample = torch.full((len(scene.num_views),), -1)
    row_of_sample[scene.seen_samples] = torch.arange(len(scene.seen_samples))
    labels = labels.where((labels >= 0) & (labels <= UNLABELLED), UNLABELLED)
    in_block, own = _held_out(scene.points), scene.index_of_sample[scene.seen_samples]
    # One number a group: `torch.unique(dim=0)` of its three takes many times as long.
    key = ((row_of_sample[scene.sample_of_point] + 1) * 2 + in_block) * (UNLABELLED + 1) + labels
    group, count = torch.unique(key, return_counts=True)
    row_and_block = group // (UNLABELLED + 1)
    return _Labelled(
        label_set=scene.label_set,
        is_train=scene.split == "train",
        features={teacher: scene.features(teacher) for teacher in teachers},
        label_of_seen=labels[own],
        held_out=in_block[own],
        row=row_and_block // 2 - 1,
        label=group % (UNLABELLED + 1),
        in_block=row_and_block % 2 == 1,
        count=count,
    )


def _classes(labelled: Sequence[_Labelled]) -> LabelSet | None:
    """Return the classes that the labelled scenes are labelled with, if there are any and they agree."""
    names = {scene.label_set for scene in labelled}
    return label_set(name) if len(names) == 1 and (name := names.pop()) is not None else None


def _zero_shot(
    labelled: Sequence[_Labelled], teacher: str, classes: LabelSet, card: TeacherCard
) -> tuple[float, BySeen] | None:
    """Return the score of segmentation by names, and the same by the names that the teacher was trained with."""
    vectors = class_vectors(load_text_encoder(card.text or ""), classes)
    predicted = ((scene, classify(scores(scene.features[teacher], vectors))) for scene in labelled)
    if (metrics := _measure(predicted, classes)) is None:
        return None
    vocabulary = vocabulary_of(teacher, card.weights_sha256)
    return 100 * metrics.miou, by_seen(named_iou(metrics, classes), classes, vocabulary)


def _probe(labelled: Sequence[_Labelled], teacher: str, classes: LabelSet) -> tuple[float | None, Any]:
    """Return the score of a linear probe, and what it is of; None and None where it has no label to learn from."""
    by_scene = len({scene.is_train for scene in labelled}) == 2
    share = max(1, MOST_ROWS // len(labelled))
    features, targets = [], []
    for scene in labelled:
        of_seen = classes.classes(scene.label_of_seen)
        learned = torch.full_like(scene.held_out, scene.is_train) if by_scene else ~scene.held_out
        rows = torch.nonzero(learned & (of_seen != UNLABELLED)).squeeze(1)
        rows = rows[:: max(1, len(rows) // share)]
        features.append(scene.features[teacher][rows].float())
        targets.append(of_seen[rows])
    if not sum(map(len, targets)):
        return None, None
    linear = fit_classes(torch.cat(features), torch.cat(targets), len(classes))
    scored = (scene for scene in labelled if not (by_scene and scene.is_train))
    predicted = ((scene, linear(scene.features[teacher]).argmax(dim=1)) for scene in scored)
    score = _miou(predicted, classes, in_blocks=not by_scene)
    return score, None if score is None else "other scenes" if by_scene else "other blocks"


def _miou(
    predicted: Iterable[tuple[_Labelled, Int64[Tensor, "V"]]], classes: LabelSet, *, in_blocks: bool = False
) -> float | None:
    """Return the mIoU of `_measure`, percent."""
    metrics = _measure(predicted, classes, in_blocks=in_blocks)
    return None if metrics is None else 100 * metrics.miou


def _measure(
    predicted: Iterable[tuple[_Labelled, Int64[Tensor, "V"]]], classes: LabelSet, *, in_blocks: bool = False
) -> Metrics | None:
    """Score the classes of the seen samples of scenes on the original points, or on those in blocks held out.

    Returns:
        The scores; None where no point has a label.
    """
    confusion = torch.zeros(len(classes) + 1, len(classes), dtype=torch.int64)
    for scene, of_seen in predicted:
        of_group = torch.nn.functional.pad(of_seen, (0, 1), value=UNLABELLED)[scene.row]  # the last for row -1
        count = scene.count * scene.in_block if in_blocks else scene.count
        labels = classes.classes(scene.label)
        confusion += confusion_matrix(of_group.repeat_interleave(count), labels.repeat_interleave(count), len(classes))
    return measure(confusion) if int(confusion.sum()) else None


def _held_out(points: Float[Tensor, "N 3"]) -> Bool[Tensor, "N"]:
    """Say which points lie in the blocks that a probe is scored on: a chessboard seen from above."""
    return (points[:, :2] / BLOCK).floor().sum(dim=1).remainder(2) == 1
