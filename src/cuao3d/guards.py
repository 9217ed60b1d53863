"""Guards before a distillation: can a student learn anything from these targets that a constant would not say?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cuao3d.batches import STILL, BatchConfig, TrainingScene, generator_of, voxelize_scene
from cuao3d.console import note
from cuao3d.objective import (
    RESOLUTION,
    ConstantLoss,
    LossKind,
    Normalizer,
    NormalizerKind,
    OwnLoss,
    best_constant,
    fit_normalizer,
    row_means,
)
from cuao3d.trunk import effective_rank

NEARLY_CONSTANT = 0.02
"""A target is nearly constant if the best constant output has at most this share of the loss of an output of zeros."""

ONE_DIRECTION = 0.99
"""Features are of rank one if one direction has at least this share of the variance of their standardised channels."""

SAMPLE_VALUES = 1 << 24
"""Values of a teacher's features that are looked at, at most: the voxels of all scenes, or a part of each scene's."""

MIN_VOXELS = 64
"""Voxels of a scene that are looked at, at least: of very many scenes, some that are spread evenly over them."""

ROWS_AT_A_TIME = 4096
"""Rows of features that are converted to float64 at a time."""


@dataclass(frozen=True)
class Lesson:
    """What the student is to learn from one teacher."""

    teacher: str
    """Name of the teacher."""
    loss: LossKind | OwnLoss
    """How the student's output is compared with the features."""
    normalizer_kind: NormalizerKind
    """Kind of the normaliser."""
    normalizer: Normalizer | None
    """Normaliser of the features, fitted."""


def check_targets(
    scenes: Sequence[TrainingScene], lessons: Sequence[Lesson], config: BatchConfig
) -> dict[str, dict[str, Any]]:
    """Compare the loss of each teacher's best constant output with the loss's floor, and warn where it is near.

    All voxels of the scenes are looked at, each once, as training would see them without augmentation; where those hold
    more than `SAMPLE_VALUES`, the same part of each scene, drawn at random. The same scenes and seed give the same.

    Args:
        scenes: Training scenes with the features of each teacher, in the order of `lessons`.
        lessons: What is to be learned from each teacher.
        config: Its `voxel_size` and `seed` are used.

    Returns:
        By teacher: `constant_loss`, `zero_loss` (of an output of zeros) and `constant_share`, the one divided by the
        other, or for a custom loss `skipped`, the reason; `rank`, the effective rank of the features after their
        channels are standardised; `num_voxels`, how many were looked at, and `exact`, whether these are all.
    """
    features, is_whole = _sample(scenes, config)
    results: dict[str, dict[str, Any]] = {}
    for lesson, of_teacher in zip(lessons, features, strict=True):
        spectrum = _Spectrum.of(of_teacher)
        result: dict[str, Any] = {"rank": spectrum.rank, "num_voxels": len(of_teacher), "exact": is_whole}
        constant = None
        if callable(lesson.loss):
            result["skipped"] = "a custom loss: its best constant output is not known"
        else:
            constant = best_constant(of_teacher, lesson.loss, lesson.normalizer)
            result["constant_loss"], result["zero_loss"] = constant.loss, constant.loss_of_zero
            result["constant_share"] = constant.share
        results[lesson.teacher] = result
        if warning := _warning(lesson, lessons, of_teacher, spectrum, constant):
            note(warning, head="warning:")
    note(
        "; ".join(_figures(name, result) for name, result in results.items()),
        head="best constant output:",
        style="bold",
    )
    return results


def _sample(scenes: Sequence[TrainingScene], config: BatchConfig) -> tuple[list[Float[Tensor, "N _"]], bool]:
    """Return each teacher's features at the voxels of all scenes, or at a part of them, and whether these are all."""
    budget = max(MIN_VOXELS, SAMPLE_VALUES // max(target.shape[1] for target in scenes[0].targets))
    looked_at = scenes[:: max(1, math.ceil(len(scenes) * MIN_VOXELS / budget))]
    part = budget / sum(len(scene.rows) for scene in looked_at)
    plain = replace(config, augmentation=STILL, crop=None, points_per_scene=None)
    batches = []
    for index, scene in enumerate(looked_at):
        own = plain if part >= 1 else replace(plain, points_per_scene=max(1, round(part * len(scene.rows))))
        random = generator_of(config.seed, 3, index)
        batches.append(voxelize_scene(replace(scene, chances=None), own, row_means, random))
    features = [
        torch.cat([batch.targets[0][teacher][:] for batch in batches]) for teacher in range(len(scenes[0].targets))
    ]
    return features, part >= 1 and len(looked_at) == len(scenes)


@dataclass(frozen=True)
class _Spectrum:
    """How a teacher's features vary, after each channel is standardised."""

    rank: float
    """Effective rank; 0 if no channel varies."""
    share_of_first: float
    """Share of the variance that lies in one direction."""

    @staticmethod
    def of(features: Float[Tensor, "N C"]) -> "_Spectrum":
        """Decompose features; a channel whose variation is the rounding of half precision does not vary."""
        count, parts = len(features), torch.split(features, ROWS_AT_A_TIME)
        mean, squares = (
            torch.stack([part.double().pow(power).sum(dim=0) for part in parts]).sum(dim=0) / count for power in (1, 2)
        )
        variance = torch.stack([(part.double() - mean).square_().sum(dim=0) for part in parts]).sum(dim=0) / count
        varies = variance > RESOLUTION**2 * squares
        if not bool(varies.any()):
            return _Spectrum(0.0, 1.0)
        moments = torch.zeros(2 * (int(varies.sum()),), dtype=torch.float64)
        for part in parts:
            standard = (part.double()[:, varies] - mean[varies]) * variance[varies].rsqrt()
            moments.addmm_(standard.T, standard, alpha=1 / count)
        eigenvalues = torch.linalg.eigvalsh(moments)
        return _Spectrum(effective_rank(eigenvalues), float(eigenvalues[-1] / eigenvalues.sum()))


def _warning(
    lesson: Lesson,
    lessons: Sequence[Lesson],
    features: Float[Tensor, "N C"],
    spectrum: _Spectrum,
    constant: ConstantLoss | None,
) -> str:
    """Say what is wrong with a teacher's features and what to do about it; "" if nothing is."""
    others = ",".join(other.teacher for other in lessons if other is not lesson)
    drop = f"leave it out (--teachers {others})" if others else "choose another teacher"
    if not spectrum.rank:
        return (
            f"The features of teacher {lesson.teacher!r} are constant: the same at every point up to rounding, so a "
            f"student can learn nothing from it. Lift them again (cuao3d fuse), or {drop}."
        )
    if features.shape[1] > 1 and spectrum.share_of_first >= ONE_DIRECTION:
        return (
            f"The features of teacher {lesson.teacher!r} are of rank one: {100 * spectrum.share_of_first:.1f} % of "
            f"their variance lies in one direction, so its {features.shape[1]} channels hold one number for each "
            f"point, and no normalizer adds to that. Lift them again (cuao3d fuse), or {drop}."
        )
    if constant is None or constant.share > NEARLY_CONSTANT:
        return ""
    cure = f"{drop[0].upper()}{drop[1:]}."
    if lesson.normalizer_kind in ("none", "demean") and not callable(lesson.loss):
        kinds = " ".join("standardize" if other is lesson else other.normalizer_kind for other in lessons)
        conditioned = best_constant(features, lesson.loss, fit_normalizer("standardize", [features]))
        cure = (
            f"Set --config.normalizers {kinds} (a constant then has {conditioned.share:.2f}) or phi-s there, or {drop}."
        )
    return (
        f"The target of teacher {lesson.teacher!r} is nearly constant: the best constant output has "
        f"{constant.share:.3f} of the loss of an output of zeros (loss {constant.loss:.4g}). The student gets there "
        f"without looking, and learned weights then favour this teacher. {cure}"
    )


def _figures(teacher: str, result: dict[str, Any]) -> str:
    """Say in a few words what a constant output gets."""
    if "skipped" in result:
        return f"{teacher} not known ({result['skipped'].partition(':')[0]})"
    return f"{teacher} {result['constant_loss']:.3g} of {result['zero_loss']:.3g}"
