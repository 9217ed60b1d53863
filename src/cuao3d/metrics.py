"""Scores of zero-shot segmentation from counts of predicted against true classes, and the rows of tables.

`docs/method.md` says where scores differ from those of the released code.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.labels import LabelSet
from cuao3d.reliability import Trust
from cuao3d.retrieval import Retrieval
from cuao3d.scene import UNLABELLED
from cuao3d.store.roll import count_of
from cuao3d.vocabulary import BySeen, Told, by_seen

BACKGROUND = ("wall", "floor", "ceiling", "other", "otherfurniture", "otherstructure", "otherprop")
"""Classes that f-mIoU and the foreground mIoU leave out."""

Policy = Literal["strict", "official"]
"""How points without a prediction count. `strict`: wrong everywhere. `official`: excluded from IoU, wrong in mAcc."""

NOTHING_TOLD = Told()
"""A student that was told no word, or none; of the teacher nothing is known."""


@dataclass(frozen=True)
class Metrics:
    """Scores of one confusion matrix, 0 to 1; a mean over no class is NaN, and so is all where no point is labelled."""

    miou: float
    """Mean IoU of the classes that are present, that is, occur among the labels."""
    macc: float
    """Mean recall of the classes that are present."""
    foreground_miou: float
    """Mean IoU of the classes that are present, without `BACKGROUND`. Not the f-mIoU: here a chair taken for a wall is
    wrong, and so is a wall taken for a chair."""
    miou_all: float
    """Mean IoU over all classes as in the official code: absent classes count as 0."""
    macc_all: float
    """Mean recall over all classes, likewise."""
    iou: tuple[float, ...]
    """IoU of each class; NaN where it is absent."""


@dataclass(frozen=True)
class Row:
    """A row of a results table, in percent. Points without a prediction count as wrong unless the score is official."""

    model: str
    """Name of the student; "none" for lifted features."""
    readout: str
    """fused, distilled or 2d3d; voting for the majority over views; supervised for the upper bound."""
    dataset: str
    """Name of the dataset."""
    label_set: str
    """Name of the label set."""
    split: str
    """Split of the dataset, or "all"."""
    points: Literal["all", "seen"]
    """Which labelled points are scored: all, or those that some view saw."""
    miou: float
    """Mean IoU over present classes, strict."""
    macc: float
    """Mean recall over present classes."""
    fmiou: float
    """f-mIoU, by the rule of RegionPLC and Mosaic3D: wall, floor, ceiling and other can neither be predicted nor are
    their points scored; mean IoU over the other classes that are present, strict."""
    foreground_miou: float
    """Mean over the same classes of the IoU that `miou` averages: nothing is masked, all points are scored; strict."""
    miou_official: float
    """Mean IoU over all classes, points without a prediction left out."""
    macc_official: float
    """Mean recall over all classes."""
    scenes: str
    """Number of scenes scored; where some are missing, of how many, and which: "1 of 2 scenes; room-4 unfinished"."""
    missing: dict[str, str]
    """Why each scene is missing, by its name."""
    num_points: int
    """Labelled points."""
    coverage: float
    """Labelled points that have a prediction."""
    chance_miou: float
    """`miou` of the same predictions shuffled among the points."""
    constant_miou: float
    """`miou` of predicting the most frequent class everywhere."""
    iou: dict[str, float]
    """IoU of each present class, strict."""
    by_student: BySeen
    """Which present classes the student was trained with the names of, and the mIoU of these and of the others."""
    by_teacher: BySeen
    """The same for the teacher that names the classes."""
    retrieval: dict[str, Retrieval]
    """How well `synonyms` and `questions` of the label set find the points of their classes; of those that it has."""
    ensemble: str | None = None
    """The rule by which 2d3d combines features; None for other read-outs."""
    passes: int = 1
    """Passes whose scores are summed. 1: a plain one without augmentation; 5: five, each under its own rotation."""
    train_mode: bool = False
    """Whether batch norm ran in train mode, on the statistics of the scene itself."""
    by_group: dict[str, float] = field(default_factory=dict)
    """Mean IoU of the present classes of each group (ScanNet200: head, common, tail), strict; NaN where none is
    present. Empty where the label set has no groups."""
    trained_on: tuple[str, ...] = ()
    """Scenes that the student was trained on, by their names, and that are scored all the same."""
    trust: Trust | None = None
    """How well confidence tells wrong labels; None where that was not asked or no labelled point has a prediction."""


@dataclass(frozen=True)
class Counted:
    """Predictions compared with labels."""

    confusions: Mapping[str, Int64[Tensor, "rows K"]]
    """A confusion matrix for each read-out, summed over the scenes; see `confusion_matrix`."""
    foreground: Mapping[str, Int64[Tensor, "rows K"]]
    """The same where `BACKGROUND` cannot be predicted and its points are not counted."""
    num_scenes: int
    """Scenes that were compared."""
    missing: Mapping[str, str]
    """Why each of the others is missing: those that the store should hold, and those of the split without labels."""


def background_of(classes: LabelSet) -> Bool[Tensor, "K"]:
    """Return which classes of a label set are `BACKGROUND`."""
    return torch.tensor([name in BACKGROUND for name in classes.names])


def classify_foreground(class_scores: Float[Tensor, "V K"], background: Bool[Tensor, "K"]) -> Int64[Tensor, "V"]:
    """Return the foreground class with the highest score; 255 where all scores are 0, as in `classify`.

    Args:
        class_scores: Score of each class, for each point.
        background: Classes that are masked before the highest score is looked for.
    """
    masked = class_scores.masked_fill(background.to(class_scores.device), -math.inf).argmax(dim=1)
    return torch.where((class_scores != 0).any(dim=1), masked, UNLABELLED)


def confusion_matrix(
    predicted: Int64[Tensor, "N"], labels: Int64[Tensor, "N"], num_classes: int
) -> Int64[Tensor, "rows K"]:
    """Count predictions by predicted and true class.

    Args:
        predicted: Predicted class of each point; 255 for none.
        labels: True class of each point; 255 is ignored.
        num_classes: Number K of classes.

    Returns:
        Counts by predicted class (row) and true class (column); the last of the K + 1 rows counts points without a
        prediction.

    Raises:
        InputError: A class is none of these.
    """
    labelled = labels != UNLABELLED
    for what, of_point in (("predicted class", predicted[predicted != UNLABELLED]), ("label", labels[labelled])):
        if len(of_point) and not (int(of_point.min()) >= 0 and int(of_point.max()) < num_classes):
            raise InputError(f"A {what} is {int(of_point.abs().max())}; there are {num_classes} classes, from 0 on.")
    row = torch.where(predicted == UNLABELLED, num_classes, predicted)[labelled]
    cells = torch.bincount(row * num_classes + labels[labelled], minlength=(num_classes + 1) * num_classes)
    return cells.reshape(num_classes + 1, num_classes)


def measure(
    confusion: Int64[Tensor, "rows K"] | Float[Tensor, "rows K"],
    *,
    policy: Policy = "strict",
    background: Bool[Tensor, "K"] | None = None,
) -> Metrics:
    """Turn a confusion matrix into scores.

    Args:
        confusion: As of `confusion_matrix`.
        policy: How points without a prediction count.
        background: Classes that the foreground mIoU leaves out.
    """
    counts = confusion.double()
    correct = counts.diagonal()
    of_class = counts.sum(dim=0)
    in_iou = of_class if policy == "strict" else counts[:-1].sum(dim=0)
    iou = correct / (in_iou + counts[:-1].sum(dim=1) - correct).clamp(min=1)
    recall = correct / of_class.clamp(min=1)
    present = of_class > 0
    foreground = present if background is None else present & ~background
    return Metrics(
        miou=iou[present].mean().item(),
        macc=recall[present].mean().item(),
        foreground_miou=iou[foreground].mean().item(),
        miou_all=iou.mean().item() if present.any() else math.nan,
        macc_all=recall.mean().item() if present.any() else math.nan,
        iou=tuple(torch.where(present, iou, math.nan).tolist()),
    )


def named_iou(metrics: Metrics, classes: LabelSet) -> dict[str, float]:
    """Return the IoU of each class that is present, percent, by its name."""
    return {name: 100 * iou for name, iou in zip(classes.names, metrics.iou, strict=True) if not math.isnan(iou)}


def group_means(metrics: Metrics, classes: LabelSet) -> dict[str, float]:
    """Return the mean IoU of the present classes of each group, percent; NaN where none is; empty without groups."""
    of_group: dict[str, list[float]] = {group: [] for group in classes.groups or () if group}
    for group, iou in zip(classes.groups or (), metrics.iou, strict=False):
        if group and not math.isnan(iou):
            of_group[group].append(100 * iou)
    return {group: statistics.fmean(ious) if ious else math.nan for group, ious in of_group.items()}


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of some seeds' scores, and the half width of its 95 % interval by Student's t.

    Args:
        values: A score for each seed.

    Returns:
        The mean, NaN of none; and half the width, None where fewer than two seeds tell nothing of their spread.
    """
    if len(values) < 2:
        return (values[0] if values else math.nan), None
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), half


def chance(confusion: Int64[Tensor, "rows K"]) -> Float[Tensor, "rows K"]:
    """Return the expected confusion matrix of the same predictions shuffled among the points."""
    counts = confusion.double()
    return counts.sum(dim=1, keepdim=True) * counts.sum(dim=0, keepdim=True) / counts.sum().clamp(min=1)


def constant(confusion: Int64[Tensor, "rows K"]) -> Int64[Tensor, "rows K"]:
    """Return the confusion matrix of predicting the most frequent class (mostly wall) everywhere."""
    of_class = confusion.sum(dim=0)
    counts = torch.zeros_like(confusion)
    counts[of_class.argmax()] = of_class
    return counts


def make_row(
    counted: Counted,
    classes: LabelSet,
    *,
    model: str,
    readout: str,
    dataset: str,
    split: str,
    seen_only: bool = False,
    told: Told = NOTHING_TOLD,
    retrieval: Mapping[str, Retrieval] | None = None,
    ensemble: str | None = None,
    passes: int = 1,
    train_mode: bool = False,
    trained_on: Sequence[str] = (),
) -> Row:
    """Turn the confusion matrices of a read-out into a row of a results table, in percent.

    Args:
        counted: Predictions compared with labels.
        classes: The classes.
        model: Name of the student.
        readout: The read-out.
        dataset: Name of the dataset.
        split: Split of the dataset.
        seen_only: Whether only points were scored whose sample a view sees.
        told: Words that the student and the teacher were trained with.
        retrieval: How well synonyms and questions do.
        ensemble: The rule by which 2d3d combines features.
        passes: Passes whose scores were summed.
        train_mode: Whether batch norm ran in train mode.
        trained_on: Scenes that are scored though the student was trained on them.
    """
    confusion = counted.confusions[way := way_of(readout, ensemble)]
    strict = measure(confusion, background=background_of(classes))
    iou = named_iou(strict, classes)
    return Row(
        model=model,
        readout=readout,
        dataset=dataset,
        label_set=classes.name,
        split=split,
        points="seen" if seen_only else "all",
        scenes=count_of(counted.num_scenes, counted.missing),
        missing=dict(counted.missing),
        fmiou=100 * measure(counted.foreground[way]).miou,
        **_percentages(confusion, strict),
        iou=iou,
        by_student=by_seen(iou, classes, told.student),
        by_teacher=by_seen(iou, classes, told.teacher),
        retrieval=dict(retrieval or {}),
        ensemble=ensemble,
        passes=passes,
        train_mode=train_mode,
        by_group=group_means(strict, classes),
        trained_on=tuple(trained_on),
    )


def _percentages(confusion: Int64[Tensor, "rows K"], strict: Metrics) -> dict[str, Any]:
    """Return the columns of a row that are counted over all classes."""
    official, num_points = measure(confusion, policy="official"), int(confusion.sum())
    return {
        "miou": 100 * strict.miou,
        "macc": 100 * strict.macc,
        "foreground_miou": 100 * strict.foreground_miou,
        "miou_official": 100 * official.miou_all,
        "macc_official": 100 * official.macc_all,
        "num_points": num_points,
        "coverage": 100 * (1 - int(confusion[-1].sum()) / max(num_points, 1)),
        "chance_miou": 100 * measure(chance(confusion)).miou,
        "constant_miou": 100 * measure(constant(confusion)).miou,
    }


def way_of(readout: str, ensemble: str | None = None) -> str:
    """Return the key of a read-out in `Counted`; each rule of 2d3d has its own."""
    return readout if ensemble is None else f"{readout}, {ensemble}"
