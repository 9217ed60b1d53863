"""Distillation: a sparse 3D student learns to predict the features of 2D teachers at the same points."""

import json
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast, get_args, runtime_checkable

import torch
from torch import Tensor

from cuao3d import __version__
from cuao3d.balance import ROWS_AT_A_TIME, Words, balanced, few
from cuao3d.batches import Batch, Batches, TrainingScene, hold_out
from cuao3d.console import note
from cuao3d.errors import InputError
from cuao3d.files import read_whole_json
from cuao3d.guards import Lesson, check_targets
from cuao3d.heads import Head, HeadKind
from cuao3d.labels import label_set
from cuao3d.memory import give_back
from cuao3d.objective import (
    LossKind,
    Normalizer,
    NormalizerKind,
    WeightingKind,
    code_of_losses,
    find_loss,
    finite_rows,
    fit_normalizer,
    make_weighting,
    parts_of,
    row_means,
    select,
    table_of,
    voxel_losses,
    word_loss,
)
from cuao3d.progress import OnStep
from cuao3d.ranks import from_first, rank
from cuao3d.run import begin_run, check_finished, finish_run, only_writer
from cuao3d.schema import Weight
from cuao3d.store import Store, StoredScene, TeacherCard
from cuao3d.student import Student
from cuao3d.teachers import canonical
from cuao3d.text import load_text_encoder
from cuao3d.training import (
    NOISE_GROUP,
    Learner,
    TrainConfig,
    make_student,
    student_group,
    supervised_features,
    train,
)
from cuao3d.trunk import measure_trunk
from cuao3d.vocabulary import Vocabulary, listed, read_vocabulary

WORD_LOSS = "word loss"
"""Name of the loss over words among those of the teachers."""


@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    """How the student learns from the teachers."""

    teachers: tuple[str, ...] = ("lseg", "dinov2", "stable_diffusion")
    """Teachers to learn from; each gets its own head."""
    losses: tuple[str, ...] = ()
    """Loss of each teacher: cosine, demeaned-cosine, l1, l2, smooth-l1, cosine+smooth-l1, a name in `LOSSES`, or
    FILE.py:NAME, your own function; see `find_loss`. Empty: the loss on each teacher's card in the store."""
    normalizers: tuple[NormalizerKind, ...] = ()
    """Normaliser of each teacher's features before the loss; empty: none. It is undone in the finished student."""
    head: HeadKind = "linear"
    """Kind of the student's heads."""
    weighting: WeightingKind = "uncertainty"
    """How the teachers' losses are combined; docs/method.md explains each way."""
    fixed_weights: tuple[Weight, ...] = ()
    """Weight of each loss, for the weighting `fixed`."""
    words: str | None = None
    """Vocabulary of a softmax loss over words, if a teacher has a text encoder: a label set, by name or CSV, or a text
    file with a word a line. Names that are evaluated later count as seen if they are in it. None: no such loss."""
    balance: Weight = 0.0
    """Points are drawn with probability (frequency of their nearest name in `words`)^-balance; 0: uniformly."""
    sigma_lr: Weight | None = None
    """Initial learning rate of the noise levels; None: the student's. It follows the same schedule."""


@runtime_checkable
class OnDemand(Protocol):
    """A store that holds the features of a scene only while their turn is near."""

    def take(self, scene: StoredScene, teachers: tuple[str, ...], /) -> TrainingScene:
        """Return what training needs of a scene; its targets are there whenever they are asked for."""
        ...

    def follow(self, turns: Sequence[str], /) -> None:
        """Be told the names of the scenes in the order of training, from the step on at which it begins or goes on."""
        ...


def distill(
    store: Store,
    config: DistillConfig,
    out: Path,
    *,
    resume: str | Path = "auto",
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> Path:
    """Train a student on the lifted features of a store's training scenes.

    Args:
        store: Store of the scenes, with features of every teacher.
        config: How to train. A finished run of the same configuration, scenes and code is left untouched; an
            interrupted one resumes from its checkpoint.
        out: Folder of the run: `config.json`, `metrics.jsonl`, `student.safetensors` and, last, `run.json`.
        resume: `auto`: as above. `never`: begin again. Otherwise the checkpoint to resume from; see `begin_run`.
        device: Device to train on.
        on_step: Called after each step; see `training_bars`.

    Returns:
        The folder of the run.

    Raises:
        NotFoundError: There is no such checkpoint, or no such file of a custom loss.
        InputError: The store lacks a teacher, there is no such loss, no scene is usable, the voxels are finer than the
            store's cells, the folder or the checkpoint belongs to another run, or training diverges.
        DiskFullError: There is no space left for a checkpoint.
    """
    config, stored = _settle(config, store), [store[name] for name in store.names("train")]
    seen = [scene for scene in stored if len(scene.seen_samples)]
    if not seen:
        raise InputError(
            f"{store.path} has no training scene that a view sees ({len(stored)} training scenes in all). Find the "
            "reason with `cuao3d check`, or lift more scenes with `cuao3d fuse`."
        )
    held_out, own_code = hold_out([scene.name for scene in seen], config), code_of_losses(config.losses)
    told, _ = _vocabulary(store, config)
    with only_writer(out):
        if begin_run(out, config, store, stored, held_out=held_out, own_code=own_code, vocabulary=told, resume=resume):
            check_finished(out)
            return out
        _say_seen(told, stored)
        taken = [_take(store, scene, config.teachers) for scene in seen]
        used, apart = _part((scene for scene, _ in taken), held_out, store)
        distiller, scenes = _make_distiller(store, used, config)
        targets = from_first(lambda: check_targets(scenes, distiller.lessons(), config))
        of_store = partial(_FollowedBatches, store) if isinstance(store, OnDemand) else Batches
        batches = of_store(scenes, config, row_means, apart)
        outcome = train(distiller, distiller.parameter_groups(), batches, config, out, device=device, on_step=on_step)
        _check_all((*scenes, *apart))
        give_back()
        left = {"held_out": held_out, "missing_scenes": store.missing()} | _left_out(stored, taken)
        finish_run(out, distiller.finished(), distiller.about() | {"targets": targets} | left | asdict(outcome))
    return out


def is_finished(out: Path, config: DistillConfig, store: Store, names: Sequence[str]) -> bool:
    """Say whether a run of a configuration is finished in a folder; of the store only the header is looked at.

    Args:
        out: Folder of the run.
        config: The configuration.
        store: A store with its cell and teachers, which need not be on disk.
        names: Names of the scenes that there are.

    Raises:
        InputError: A file of the run is damaged.
    """
    there = read_whole_json(out / "config.json")
    if there is None or read_whole_json(out / "run.json") is None:
        return False
    config = _settle(config, store)
    asked = {"config": asdict(config), "code_version": __version__, "kind": type(config).__name__}
    if code_of_losses(config.losses) or {key: there.get(key) for key in asked} != json.loads(json.dumps(asked)):
        return False
    check_finished(out)
    return set(there["scenes_sha256"]) <= set(names)


def idle_settings(config: DistillConfig, cards: Mapping[str, TeacherCard]) -> dict[str, str]:
    """Find the settings that have no effect given the others.

    Args:
        config: The configuration.
        cards: Card of each of its teachers.

    Returns:
        The reason for each such setting, by name.
    """
    reasons = {}
    if config.num_steps is not None:
        reasons["num_epochs"] = "where --steps (--config.num-steps) says how long to train"
    if config.schedule != "exponential":
        reasons["final_rate"] = "without --config.schedule exponential"
    if config.weighting != "fixed":
        reasons["fixed_weights"] = "without --config.weighting fixed"
    if not list(make_weighting(config.weighting, 1, weights=(1.0,)).parameters()):
        reasons["sigma_lr"] = f"with --config.weighting {config.weighting}, which learns no noise levels"
    if all(cards[name].text is None for name in config.teachers):
        reasons["words"] = reasons["balance"] = "where none of the teachers has a text encoder"
    elif config.words is None:
        reasons["balance"] = "without --config.words"
    elif config.points_per_scene is None:
        reasons["balance"] = "where the loss uses all points (--config.points-per-scene None)"
    return reasons


class _FollowedBatches(Batches):
    """Batches whose order a store on demand is told, from the step on at which the training goes on."""

    def __init__(self, store: OnDemand, *about: Any) -> None:
        super().__init__(*about)
        self._store = store

    def ahead(self, first: int, device: str) -> Generator[tuple[Batch, ...], None, None]:
        places = range(first * self.config.batch_size, len(self) * self.config.batch_size)
        self._store.follow([self.scene_at(place).name for place in places])
        return super().ahead(first, device)


class _Distiller(Learner):
    """The student and the noise levels of its teachers."""

    def __init__(
        self,
        student: Student,
        config: DistillConfig,
        words: "Words | None",
        normalizers: tuple[Normalizer | None, ...],
    ) -> None:
        super().__init__()
        self.student, self.config, self.words, self.normalizers = student, config, words, normalizers
        widths = [student.num_channels[name] for name in config.teachers]
        self.losses = [find_loss(spec, width) for spec, width in zip(config.losses, widths, strict=True)]
        self.weighting = make_weighting(
            config.weighting, len(config.teachers), weights=config.fixed_weights, seed=config.seed
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        config = self.config
        sigma_rate = config.learning_rate if config.sigma_lr is None else config.sigma_lr
        groups = [student_group(self.student, config)]
        if noise_levels := list(self.weighting.parameters()):
            groups.append({"name": NOISE_GROUP, "params": noise_levels, "lr": sigma_rate, "weight_decay": 0.0})
        return groups

    def lessons(self) -> list[Lesson]:
        """Return what is to be learned from each teacher."""
        config = self.config
        of_teachers = zip(config.teachers, self.losses, config.normalizers, self.normalizers, strict=True)
        return [Lesson(*parts) for parts in of_teachers]

    def about(self) -> dict[str, Any]:
        """Return what `run.json` says of what the student was taught."""
        assert self.student.vocabulary is not None
        return {
            "teachers": dict(self.student.teachers),
            "vocabulary": asdict(self.student.vocabulary),
            "words_without_points": list(self.words.unused) if self.words else [],
        }

    def finished(self) -> Student:
        """Return a copy of the student whose heads predict the teachers' features, without normaliser."""
        student = deepcopy(self.student)
        for name, normalizer in zip(self.config.teachers, self.normalizers, strict=True):
            _lead_back(student.heads[name], normalizer)
        return student

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        config = self.config
        rows = supervised_features(self.student, batch, config)
        hidden = torch.split(rows, batch.num_targets)
        log_variances = None if self.student.noise is None else self.student.noise(rows)
        weights = rows.new_ones(len(config.teachers), len(rows))
        if log_variances is not None:
            weights = (-log_variances.T).exp() / 2
        sums, losses = zip(
            *(self._teacher_loss(hidden, batch, i, weights[i]) for i in range(len(config.teachers))), strict=True
        )
        total = self.weighting(torch.stack(sums))
        report: dict[str, Any] = {"losses": dict(zip(config.teachers, losses, strict=True))}
        weights_of_losses = cast(Tensor, self.weighting.weights)
        addends = [part * weight for part, weight in zip(sums, weights_of_losses.detach(), strict=True)]
        if log_variances is not None:
            total = total + log_variances.mean(dim=0).sum() / 2
            addends = [part + own.mean() / 2 for part, own in zip(addends, log_variances.T, strict=True)]
            sigmas = (log_variances / 2).exp().mean(dim=0)
            report["sigmas"] = dict(zip(config.teachers, sigmas.tolist(), strict=True))
        else:
            report["weights"] = dict(zip(config.teachers, weights_of_losses.tolist(), strict=True))
        if hasattr(self.weighting, "sigma"):
            report["sigmas"] = dict(zip(config.teachers, cast(Tensor, self.weighting.sigma).tolist(), strict=True))
        by_name = dict(zip(config.teachers, addends, strict=True))
        if self.words is not None:
            by_name[WORD_LOSS] = self._word_loss(hidden, batch, self.words)
            total, report["words"] = total + by_name[WORD_LOSS], by_name[WORD_LOSS].item()
        if self.watched and self.training:
            report["trunk"] = measure_trunk(rows, by_name)
        return total, report

    def _head(self, index: int) -> Head:
        return self.student.heads[self.config.teachers[index]]

    def _teacher_loss(
        self, hidden: tuple[Tensor, ...], batch: Batch, index: int, weights: Tensor
    ) -> tuple[Tensor, float]:
        """Return the loss of a teacher's head, weighted by voxel and unweighted, both as means over all voxels."""
        head, count = self._head(index), len(batch.supervised)
        parts = [
            voxel_losses(
                head.before(rows),
                head.weight,
                targets[index],
                of_scene / count,
                self.losses[index],
                self.normalizers[index],
            )
            for rows, targets, of_scene in zip(
                hidden, batch.targets, torch.split(weights, batch.num_targets), strict=True
            )
        ]
        plain = sum(float(of_voxels.double().sum()) for _, of_voxels in parts) / count
        return torch.stack([weighted for weighted, _ in parts]).sum(), plain

    def _word_loss(self, hidden: tuple[Tensor, ...], batch: Batch, words: "Words") -> Tensor:
        """Return the softmax loss over words, as a mean over all voxels."""
        head, vectors = self._head(words.teacher), words.vectors.to(hidden[0].device)
        return torch.stack(
            [
                word_loss(head.before(rows), head.weight, targets[words.teacher], vectors)
                * (len(rows) / len(batch.supervised))
                for rows, targets in zip(hidden, batch.targets, strict=True)
            ]
        ).sum()


def _part(
    taken: Iterable[TrainingScene], held_out: Sequence[str], store: Store
) -> tuple[list[TrainingScene], list[TrainingScene]]:
    """Return the scenes with targets: those to train on, and those that are held out."""
    usable = [scene for scene in taken if len(scene.rows)]
    scenes, apart = ([scene for scene in usable if (scene.name in held_out) == held] for held in (False, True))
    if not scenes or (held_out and not apart):
        raise InputError(f"{store.path} has too few training scenes with finite features. Lift them again.")
    return scenes, apart


def _make_distiller(
    store: Store, scenes: list[TrainingScene], config: DistillConfig
) -> tuple[_Distiller, list[TrainingScene]]:
    """Make the learner, and set the sampling probability of each point of the scenes."""
    words = _word_vectors(store, config)
    if words is not None:
        scenes, words = balanced(scenes, words, config.balance)
        if words.unused and rank() == 0:
            note(f"no training point is nearest to {len(words.unused)} of the words: {listed(words.unused)}")
    student = make_student(
        {name: store.teachers[name].num_channels for name in config.teachers},
        config,
        head=config.head,
        noise=config.weighting == "heteroscedastic",
    )
    student.teachers = {name: asdict(store.teachers[name]) for name in config.teachers}
    student.vocabulary, _ = _vocabulary(store, config)
    return _Distiller(student, config, words, _fit_normalizers(scenes, config)), scenes


def _settle(config: DistillConfig, store: Store) -> DistillConfig:
    """Check the configuration before anything is written; fill in losses and normalisers where it names none."""
    config = replace(config, teachers=tuple(canonical(name, store.teachers) for name in config.teachers))
    missing = [name for name in config.teachers if name not in store.teachers]
    if missing or not config.teachers:
        raise InputError(
            f"{store.path} has no features of {', '.join(missing) or 'no teacher'}; it holds those of "
            f"{', '.join(store.teachers) or 'none'}. Choose among these, or lift the others with `cuao3d fuse`."
        )
    losses = config.losses or tuple(store.teachers[name].loss for name in config.teachers)
    if len(losses) != len(config.teachers):
        raise InputError(
            f"Losses {losses} (--config.losses) do not fit teachers {config.teachers}; give one each of "
            f"{', '.join(get_args(LossKind))}, or FILE.py:NAME."
        )
    for spec, name in zip(losses, config.teachers, strict=True):
        find_loss(spec, store.teachers[name].num_channels)
    none: NormalizerKind = "none"
    normalizers = config.normalizers or (none,) * len(config.teachers)
    if len(normalizers) != len(config.teachers) or not set(normalizers) <= set(get_args(NormalizerKind)):
        raise InputError(
            f"Normalizers {normalizers} (--config.normalizers) do not fit teachers {config.teachers}; give one each of "
            f"{', '.join(get_args(NormalizerKind))}."
        )
    make_weighting(config.weighting, len(config.teachers), weights=config.fixed_weights)
    if config.words is not None:
        read_vocabulary(config.words, store.label_set)
    return replace(config, losses=losses, normalizers=normalizers)


def _fit_normalizers(scenes: list[TrainingScene], config: DistillConfig) -> tuple[Normalizer | None, ...]:
    """Fit each teacher's normaliser to its features in all training scenes, or to some of each; see `few`."""
    return tuple(
        fit_normalizer(kind, (part for scene in scenes for part in parts_of(few(scene, scenes, i), ROWS_AT_A_TIME)))
        for i, kind in enumerate(config.normalizers)
    )


def _lead_back(head: Head, normalizer: Normalizer | None) -> None:
    """Make a head that learned normalised features predict the teacher's own, by undoing the normaliser."""
    if normalizer is not None:
        head.weight.data = normalizer.undo_linear(head.weight.data.double()).float()
        head.bias = normalizer.shift.float().to(head.weight.device)


def _vocabulary(store: Store, config: DistillConfig) -> tuple[Vocabulary, tuple[str, ...]]:
    """Return the words that a student is trained with, and their texts; none where no teacher can read them."""
    if config.words is None or all(store.teachers[name].text is None for name in config.teachers):
        return Vocabulary(), ()
    return read_vocabulary(config.words, store.label_set)


def _say_seen(told: Vocabulary, stored: list[StoredScene]) -> None:
    """Say which names of the label sets of the training scenes are training words."""
    if not told.words or rank() > 0:
        return
    note(f"trained with a vocabulary: {told}")
    for name in sorted({scene.label_set for scene in stored if scene.label_set is not None}):
        classes = label_set(name)
        seen = [own for own, held in zip(classes.names, told.holds(classes), strict=True) if held]
        if seen:
            count = f"{len(seen)} of the {len(classes)} names of {classes.name}"
            note(f"{count} are training words and count as seen in every table: {listed(seen)}")


def _word_vectors(store: Store, config: DistillConfig) -> Words | None:
    """Encode the configured words for the first teacher with a text encoder."""
    for index, name in enumerate(config.teachers):
        encoder = store.teachers[name].text
        if config.words is not None and encoder is not None:
            if config.normalizers[index] != "none":
                raise InputError(
                    f"The loss over words needs unnormalised features of {name!r}: its normalizer must be 'none' "
                    "(--config.normalizers), or --config.words None."
                )
            _, texts = _vocabulary(store, config)
            return Words(index, load_text_encoder(encoder)(texts), texts)
    return None


def _take(store: Store, scene: StoredScene, teachers: tuple[str, ...]) -> tuple[TrainingScene, dict[str, int]]:
    """Read what distillation needs of a scene; of a store on demand, whose features are finite, nothing yet."""
    return (store.take(scene, teachers), {}) if isinstance(store, OnDemand) else _take_features(scene, teachers)


def _take_features(scene: StoredScene, teachers: tuple[str, ...]) -> tuple[TrainingScene, dict[str, int]]:
    """Read what distillation needs of a scene, and count the samples that each teacher masks.

    A sample with a non-finite feature of any teacher has no target at all. Of features that were found to be finite
    when they were written nothing is read yet.
    """
    features = {teacher: table_of(scene.coded(teacher, is_checked=not scene.is_finite)) for teacher in teachers}
    if scene.is_finite:
        taken = TrainingScene.of(scene, scene.seen_samples, tuple(features.values()))
        return replace(taken, check=partial(scene.check, teachers)), {}
    finite = {teacher: finite_rows(rows) for teacher, rows in features.items()}
    masked = {teacher: int((~rows).sum()) for teacher, rows in finite.items() if not bool(rows.all())}
    if not masked:
        return TrainingScene.of(scene, scene.seen_samples, tuple(features.values())), masked
    warnings.warn(
        f"Scene {scene.name}: non-finite features, of "
        + ", ".join(f"{count} samples by teacher {teacher!r}" for teacher, count in masked.items())
        + f"; these samples are masked. To repair them, delete {scene.folder} and run `cuao3d fuse` again.",
        stacklevel=3,
    )
    kept = torch.stack(list(finite.values())).all(dim=0)
    targets = tuple(select(rows, kept) for rows in features.values())
    return TrainingScene.of(scene, scene.seen_samples[kept], targets), masked


def _check_all(scenes: Iterable[TrainingScene]) -> None:
    """Check the files of scenes whose turn never came: what was sampled of them counted too."""
    for scene in scenes:
        if scene.check:
            scene.check()


def _left_out(
    stored: list[StoredScene], taken: list[tuple[TrainingScene, dict[str, int]]]
) -> dict[str, list[str] | dict[str, dict[str, int]]]:
    """Say which scenes, and which samples of the others, were not learned from."""
    used = {scene.name for scene, _ in taken if len(scene.rows)}
    return {
        "skipped_scenes": [scene.name for scene in stored if scene.name not in used],
        "masked_samples": {scene.name: counts for scene, counts in taken if counts},
    }
