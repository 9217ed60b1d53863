"""Supervision: train the student's network on ground-truth labels, as an upper bound of distillation."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from cuao3d.batches import Batch, Batches, TrainingScene, hold_out
from cuao3d.errors import InputError
from cuao3d.evaluate import check_overlap, count, labels_of
from cuao3d.labels import LabelSet
from cuao3d.metrics import Row, make_row
from cuao3d.predictor import student_features
from cuao3d.progress import OnCount, OnStep
from cuao3d.run import Run, begin_run, check_finished, finish_run, load_student, only_writer
from cuao3d.scene import UNLABELLED, Split
from cuao3d.store import Store, StoredScene
from cuao3d.student import Student
from cuao3d.training import TrainConfig, make_student, student_group, supervised_features, train
from cuao3d.vocabulary import Told, Vocabulary

HEAD = "classes"
"""Name of the supervised student's only head: a logit per class of the label set, in its order."""

OTHER_SET = "Choose the label set to learn with --labels."


@dataclass(frozen=True)
class SuperviseConfig(TrainConfig):
    """How the upper bound is trained: the student's network, end to end, on ground-truth labels."""

    label_set: str | None = None
    """Label set to learn, by name or CSV; None: the one that the scenes are labelled in."""
    class_weights: Literal["inverse-root", "equal"] = "inverse-root"
    """Weight of a class in the cross-entropy: one over the square root of its frequency, or the same for all."""


def supervise(
    store: Store,
    config: SuperviseConfig,
    out: Path,
    *,
    resume: str | Path = "auto",
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> Path:
    """Train a student on the labels of a store's training scenes, as an upper bound of distillation.

    Args:
        store: Store of the scenes; features are not read.
        config: How to train.
        out: Folder of the run, laid out as in `distill`; the student's only head is `HEAD`.
        resume: What to resume from; see `begin_run`.
        device: Device to train on.
        on_step: Called after each step; see `training_bars`.

    Returns:
        The folder of the run.

    Raises:
        NotFoundError: There is no checkpoint to resume from.
        InputError: The training scenes have no labels, none of the label set, or labels of several sets, the voxels are
            finer than the store's cells, the folder holds another run, or training diverges.
    """
    stored = [store[name] for name in store.names("train")]
    name = config.label_set or _common_label_set(store, stored)
    classes = store.label_set(name)
    labelled = [_take_classes(scene, classes) for scene in stored if scene.labels is not None]
    usable = [scene for scene in labelled if len(scene.rows)]
    if not usable:
        raise InputError(f"No sample of the training scenes of {store.path} has a label of {classes.name}. {OTHER_SET}")
    held_out = hold_out([scene.name for scene in usable], config)
    with only_writer(out):
        if begin_run(out, config, store, stored, held_out=held_out, resume=resume):
            check_finished(out)
            return out
        scenes, apart = ([scene for scene in usable if (scene.name in held_out) == held] for held in (False, True))
        num_classes = len(classes)
        student = make_student({HEAD: num_classes}, config)
        student.vocabulary = as_vocabulary(classes)
        supervisor = _Supervisor(student, class_weights(scenes, num_classes, config), config)
        batches = Batches(scenes, config, majority_class, apart)
        groups = [student_group(student, config)]
        outcome = train(supervisor, groups, batches, config, out, device=device, on_step=on_step)
        summary = {"teachers": {}, "vocabulary": asdict(as_vocabulary(classes)), "label_set": classes.name}
        finish_run(out, student, {**summary, "held_out": held_out, **asdict(outcome)})
    return out


def is_supervised(run: Path) -> bool:
    """Say whether a finished run is one of `supervise`.

    Args:
        run: Folder of the run, or a student's `.safetensors`.
    """
    return load_student(run).label_set is not None


def score(
    store: Store,
    run: Path,
    *,
    labels: str | None = None,
    dataset: str = "",
    split: Split | None = "val",
    seen_only: bool = False,
    allow_overlap: bool = True,
    device: str = "cpu",
    progress: OnCount | None = None,
) -> Row:
    """Score a supervised student on the scenes of a store, in a single pass without augmentation.

    Args:
        store: Scenes with labels.
        run: Folder of a finished run of `supervise`.
        labels: Label set to score in: the one that the student learned, which it is unless given.
        dataset: Name of the dataset, for the row.
        split: Split to evaluate; None for all scenes.
        seen_only: Score only points whose sample at least one view sees.
        allow_overlap: Score scenes too that the student was trained on; the row names them.
        device: Device to run on.
        progress: Told after each scene.

    Returns:
        A row of metrics, for tables.

    Raises:
        NotFoundError: There is no finished run.
        InputError: The run is not one of `supervise`, learned other classes than those of the label set, or was trained
            on a scene of the split.
    """
    loaded = load_student(run)
    classes = _learned_classes(store, run, loaded, labels)
    trained_on = check_overlap(store, split, loaded.scenes or (), allowed=allow_overlap)
    predict = student_features(loaded.student.to(device), store, head=HEAD, voxel_size=loaded.voxel_size, device=device)
    counted = count(
        store,
        classes,
        lambda scene: {"supervised": predict(scene)},
        split=split,
        seen_only=seen_only,
        progress=progress,
    )
    return make_row(
        counted,
        classes,
        model="supervised",
        readout="supervised",
        dataset=dataset,
        split=split or "all",
        seen_only=seen_only,
        told=Told(as_vocabulary(classes)),
        trained_on=trained_on,
    )


def as_vocabulary(classes: LabelSet) -> Vocabulary:
    """Return the vocabulary of a student that was trained on labels: it has seen every name."""
    return Vocabulary(classes.names, f"labels of {classes.name}")


def _learned_classes(store: Store, run: Path, loaded: Run, labels: str | None) -> LabelSet:
    """Return the classes that a supervised run learned.

    Raises:
        InputError: It is not supervised, they are not those of `labels`, or the label set has changed since.
    """
    if loaded.label_set is None:
        raise InputError(
            f"{run} is no run of labels, which the upper bound needs; make one: cuao3d supervise STORE --out RUN."
        )
    asked = None if labels is None else store.label_set(labels)
    if asked is not None and asked.name != loaded.label_set:
        raise InputError(
            f"{run} has learned the classes of {loaded.label_set} and can be scored in no other set. Score with "
            f"--labels {loaded.label_set}, or train one: cuao3d supervise STORE --labels {asked.name} --out RUN."
        )
    classes = asked or store.label_set(loaded.label_set)
    words = () if loaded.vocabulary is None else loaded.vocabulary.words
    if words != classes.names:
        missing = [word for word in words if word not in classes.names]
        raise InputError(
            f"{run} predicts {len(words)} classes and the label set {classes.name} has {len(classes)}"
            + (f", without {', '.join(missing)}" if missing else "")
            + "; give --labels the set that it has learned."
        )
    return classes


class _Supervisor(nn.Module):
    """The student and the class weights of its loss."""

    weights: Tensor

    def __init__(self, student: Student, weights: Float[Tensor, "K"], config: SuperviseConfig) -> None:
        super().__init__()
        self.student, self.config = student, config
        self.register_buffer("weights", weights)

    def finished(self) -> Student:
        return self.student

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        logits = self.student.heads[HEAD](supervised_features(self.student, batch, self.config))
        classes = torch.cat([targets[0][:] for targets in batch.targets])
        # Divided by the number of voxels, not by the sum of weights, so that micro-batches add up.
        loss = functional.cross_entropy(logits, classes, self.weights, reduction="sum") / len(classes)
        return loss, {"losses": {HEAD: loss.item()}}


def class_weights(scenes: list[TrainingScene], num_classes: int, config: SuperviseConfig) -> Float[Tensor, "K"]:
    """Compute class weights from class frequencies; the mean weight of a labelled sample is 1.

    Args:
        scenes: Scenes with the class of each labelled sample.
        num_classes: Number of classes; those that never occur have weight 0.
        config: Its `class_weights` is used.
    """
    counts = torch.bincount(
        torch.cat([cast(Tensor, scene.targets[0]) for scene in scenes]), minlength=num_classes
    ).float()
    weights = counts.rsqrt() if config.class_weights == "inverse-root" else torch.ones_like(counts)
    weights = torch.where(counts > 0, weights, 0)
    return weights * counts.sum() / (weights * counts).sum()


def majority_class(
    classes: Int64[Tensor, "R"], rows: Int64[Tensor, "M"], offsets: Int64[Tensor, "N"]
) -> Int64[Tensor, "N"]:
    """Return the most frequent class of the samples of each voxel, the lowest on a tie; the `Pool` of supervision."""
    num_classes = int(classes.max()) + 1
    voxel_of_row = torch.repeat_interleave(offsets.diff(append=torch.tensor([len(rows)])))
    votes = torch.bincount(voxel_of_row * num_classes + classes[rows], minlength=len(offsets) * num_classes)
    return votes.view(len(offsets), num_classes).argmax(dim=1)


def _common_label_set(store: Store, scenes: list[StoredScene]) -> str:
    """Return the label set that all labelled scenes share."""
    names = sorted({scene.label_set for scene in scenes if scene.labels is not None and scene.label_set is not None})
    if len(names) != 1:
        raise InputError(
            f"{store.path} has training scenes with labels of {names or 'no set'}; supervision needs one label set."
            + (f" {OTHER_SET}" if names else " Fuse scenes with labels, some of them in the split train.")
        )
    return names[0]


def _take_classes(scene: StoredScene, classes: LabelSet) -> TrainingScene:
    """Read what supervision needs of a labelled scene: the class of each sample that has one."""
    class_of_sample = labels_of(scene, classes)[scene.index_of_sample]
    labelled = torch.nonzero(class_of_sample != UNLABELLED).squeeze(1)
    return TrainingScene.of(scene, labelled, (class_of_sample[labelled],))
