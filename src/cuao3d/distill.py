"""Distillation: a sparse 3D student learns to say what the 2D teachers say of the same points."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from jaxtyping import Float, Int64
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from torch.nn import functional

from cuao3d.objective import (
    WEIGHTINGS,
    LossKind,
    RowMeans,
    UncertaintyWeighting,
    WeightingKind,
    anchor_loss,
    teacher_loss,
)
from cuao3d.store import Store, StoredScene
from cuao3d.student import Student
from cuao3d.training import (
    Batch,
    Batches,
    OnStep,
    TrainConfig,
    TrainingScene,
    begin_run,
    finish_run,
    make_student,
    student_group,
    supervised_features,
    train,
)

NUM_KINDS = 64
"""Clusters of features that `DistillConfig.balance` tells apart and `anchor_weight` chooses among."""

KIND_SAMPLES = 20_000
"""Points that they are found from."""


@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    """How the student learns from the teachers."""

    teachers: tuple[str, ...] = ("lseg", "dinov2", "stable_diffusion")
    """Teachers to learn from; each gets its own head."""
    losses: tuple[LossKind, ...] = ()
    """Loss of each teacher; empty: what the store's card of the teacher says."""
    weighting: WeightingKind = "uncertainty"
    """How the losses are combined: by learned noise levels with log(1 + sigma), log(1 + sigma²), or as they are."""
    balance: float = 0.0
    """How far frequent kinds of points give way to rare ones when the loss draws its `points_per_scene`: a point is
    drawn with the frequency of its kind to the power of -`balance`. Kinds are clusters of the first teacher's features,
    so no label is read; 0: evenly, as in the paper."""
    anchor_weight: float = 0.0
    """Weight of `anchor_loss` beside each cosine loss; its anchors are clusters of the teacher's features. 0: none, as
    in the paper."""
    sigma_lr: float | None = None
    """Rate of the noise levels at the start; None: the student's. It follows the same schedule."""


def distill(
    store: Store, config: DistillConfig, out: Path, *, device: str = "cpu", on_step: OnStep | None = None
) -> Path:
    """Train a student on the lifted features of a store's training scenes.

    Args:
        store: Where the scenes and the features of every teacher lie.
        config: How to train. A finished run of the same configuration, scenes and code is left as it is; one that
            was interrupted goes on from its checkpoint.
        out: Folder of the run: `config.json`, `metrics.jsonl`, `student.safetensors` and, last, `run.json`.
        device: Where the student is trained.
        on_step: Told after each step; see `training_bars`.

    Returns:
        The folder of the run.

    Raises:
        ValueError: The store lacks a teacher or holds features that are no numbers, no scene can be used, the voxels
            are finer than the store's cells, the folder holds another run, or training diverges.
    """
    config = _settle_losses(config, store)
    stored = [store[name] for name in store.names("train")]
    seen = [scene for scene in stored if len(scene.seen_samples)]
    if not seen:
        raise ValueError(
            f"{store.path} has no training scene that a view sees ({len(stored)} training scenes in all). Look for the "
            "reason with `cuao3d check`, or lift more scenes with `cuao3d fuse`."
        )
    if begin_run(out, config, store, stored):
        return out
    scenes = [_take_features(scene, config.teachers) for scene in seen]
    anchors = _anchors(scenes, config)
    scenes = _balanced(scenes, config)
    student = make_student({name: store.teachers[name].num_channels for name in config.teachers}, config)
    distiller = _Distiller(student, config, anchors)
    batches = Batches(scenes, config, RowMeans)
    seconds = train(distiller, distiller.parameter_groups(), batches, out, device=device, on_step=on_step)
    cards = {name: asdict(store.teachers[name]) for name in config.teachers}
    skipped = [scene.name for scene in stored if not len(scene.seen_samples)]
    finish_run(out, student, {"teachers": cards, "skipped_scenes": skipped, "seconds": seconds})
    return out


class _Distiller(nn.Module):
    """The student and the noise levels of its teachers."""

    def __init__(self, student: Student, config: DistillConfig, anchors: dict[int, Tensor]) -> None:
        super().__init__()
        self.student, self.config, self.anchors = student, config, anchors
        self.weighting = WEIGHTINGS[config.weighting](len(config.teachers))

    def parameter_groups(self) -> list[dict[str, Any]]:
        config = self.config
        sigma_rate = config.learning_rate if config.sigma_lr is None else config.sigma_lr
        groups = [student_group(self.student, config)]
        noise_levels = list(self.weighting.parameters())
        return [*groups, {"params": noise_levels, "lr": sigma_rate, "weight_decay": 0.0}] if noise_levels else groups

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        hidden = torch.split(supervised_features(self.student, batch), batch.num_targets)
        losses = torch.stack([self._loss(index, hidden, batch) for index in range(len(self.config.teachers))])
        report = {"losses": dict(zip(self.config.teachers, losses.tolist(), strict=True))}
        if isinstance(self.weighting, UncertaintyWeighting):
            report["sigmas"] = dict(zip(self.config.teachers, self.weighting.sigma.tolist(), strict=True))
        return self.weighting(losses), report

    def _loss(self, index: int, hidden: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """Return the loss of one teacher, mean over the voxels of all scenes."""
        weight = cast(Tensor, self.student.heads[self.config.teachers[index]].weight)
        parts = []
        for rows, targets in zip(hidden, batch.targets, strict=True):
            loss = teacher_loss(rows, weight, targets[index], self.config.losses[index])
            if index in self.anchors:
                anchors = self.anchors[index].to(rows.device)
                loss = loss + self.config.anchor_weight * anchor_loss(rows, weight, targets[index], anchors)
            parts.append(loss * (len(rows) / len(batch.supervised)))
        return torch.stack(parts).sum()


def _settle_losses(config: DistillConfig, store: Store) -> DistillConfig:
    """Check that the store has the teachers, and fill in their own losses where the configuration names none."""
    missing = [name for name in config.teachers if name not in store.teachers]
    if missing or not config.teachers:
        raise ValueError(
            f"{store.path} has no features of {', '.join(missing) or 'no teacher'}; it holds those of "
            f"{', '.join(store.teachers) or 'none'}. Choose among these, or lift the others with `cuao3d fuse`."
        )
    losses = config.losses or tuple(cast(LossKind, store.teachers[name].loss) for name in config.teachers)
    if len(losses) != len(config.teachers) or not set(losses) <= set(get_args(LossKind)):
        raise ValueError(f"Losses {losses} do not fit teachers {config.teachers}; one each of {get_args(LossKind)}.")
    return replace(config, losses=losses)


def _anchors(scenes: list[TrainingScene], config: DistillConfig) -> dict[int, Float[Tensor, "K C"]]:
    """Return the anchors of each teacher that has a cosine loss, by its place among the teachers."""
    if config.anchor_weight == 0:
        return {}
    places = [index for index, kind in enumerate(config.losses) if kind == "cosine"]
    return {index: functional.normalize(_centers(scenes, index, config.seed), dim=1) for index in places}


def _balanced(scenes: list[TrainingScene], config: DistillConfig) -> list[TrainingScene]:
    """Say how likely each point is drawn, by how frequent its kind is among all scenes."""
    if config.balance == 0:
        return scenes
    centers = _centers(scenes, 0, config.seed)
    kinds = [_nearest_center(scene.targets[0], centers) for scene in scenes]
    frequency = torch.bincount(torch.cat(kinds), minlength=NUM_KINDS).float()
    chance = (frequency / frequency.sum()).clamp(min=1e-6).pow(-config.balance)
    return [replace(scene, chances=chance[kind]) for scene, kind in zip(scenes, kinds, strict=True)]


def _centers(scenes: list[TrainingScene], teacher: int, seed: int) -> Float[Tensor, "K C"]:
    """Cluster the directions of a teacher's features in all scenes (K-Means on a sample of them)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for scene in scenes:
        rows = torch.randint(len(scene.rows), (KIND_SAMPLES // len(scenes) + 1,), generator=generator)
        drawn.append(functional.normalize(scene.targets[teacher][rows].float(), dim=1))
    features = torch.cat(drawn).numpy()
    clusters = MiniBatchKMeans(min(NUM_KINDS, len(features)), n_init=1, random_state=seed).fit(features)
    return torch.from_numpy(clusters.cluster_centers_).float()


def _nearest_center(features: Float[Tensor, "R C"], centers: Float[Tensor, "K C"]) -> Int64[Tensor, "R"]:
    """Return the cluster of each feature, by its direction."""
    offset = centers.square().sum(dim=1) / 2
    parts = torch.split(features, KIND_SAMPLES)
    return torch.cat([(functional.normalize(part.float(), dim=1) @ centers.T - offset).argmax(dim=1) for part in parts])


def _take_features(scene: StoredScene, teachers: tuple[str, ...]) -> TrainingScene:
    """Hold what distillation needs of a scene that a view sees."""
    features = tuple(scene.features(teacher) for teacher in teachers)
    for teacher, rows in zip(teachers, features, strict=True):
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(
                f"Features of teacher {teacher!r} in scene {scene.name} are not all finite. Delete {scene.folder} and "
                "lift the scene again with `cuao3d fuse`."
            )
    return TrainingScene(scene.name, scene.sample_points, scene.seen_samples, features)
