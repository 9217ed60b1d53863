"""Recipes: complete training configurations, one function each."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cuao3d.augment import Augmentation
from cuao3d.distill import DistillConfig
from cuao3d.objective import LossKind, NormalizerKind
from cuao3d.store import TeacherCard
from cuao3d.supervise import SuperviseConfig
from cuao3d.teachers import known_card

Teachers = Mapping[str, TeacherCard]
"""Teachers to learn from, by name: `store.teachers`, or some of them."""


def _known(*names: str) -> Teachers:
    return {name: card for name in names if (card := known_card(name)) is not None}


MINI_TEACHERS = _known("mini-lseg", "mini-dino", "mini-diffusion")
"""Teachers of the embedded rooms: they stand for the paper's."""

SMALL_TEACHERS = _known("mini-lseg", "mini-vit", "mini-dino", "mini-diffusion")
"""All teachers that come with the package."""

PAPER_TEACHERS = _known("lseg", "dinov2", "stable_diffusion")
"""Teachers of the paper."""

OPENSCENE_TEACHERS: Teachers = {"lseg": PAPER_TEACHERS["lseg"]}
"""The teacher of OpenScene's published configurations."""

MINI_CELL = 0.05
"""Edge of the cells that sample the embedded rooms, metres."""

MINI_VOXEL = 0.12
"""Voxel size of students of the embedded rooms, metres; the paper's is 0.02. In a few hundred steps, a student with
coarse voxels learns more."""


def paper(*, teachers: Teachers = PAPER_TEACHERS, seed: int = 0) -> DistillConfig:
    """Return the configuration that the paper describes.

    The paper gives neither the rate of its exponential decay (here: to a tenth) nor a seed.

    Args:
        teachers: Teachers to learn from; those that are not in the paper get the loss of their card.
        seed: Seed of the initial weights and of all randomness in training.
    """
    config = DistillConfig(
        teachers=tuple(PAPER_TEACHERS),
        losses=("cosine", "l1", "demeaned-cosine"),
        normalizers=("none",) * 3,
        weighting="uncertainty",
        voxel_size=0.02,
        architecture="MinkUNet18A",
        num_epochs=50,
        batch_size=2,
        points_per_scene=20_000,
        optimizer="adam",
        learning_rate=1e-4,
        schedule="exponential",
        augmentation=Augmentation(flip=True, elastic=True),
        seed=seed,
    )
    return with_teachers(config, teachers)


def released_code(*, teachers: Teachers = PAPER_TEACHERS, seed: int = 1463) -> DistillConfig:
    """Return the configuration of the released code.

    The learning rate is the effective one: from its second step on, the released code uses ten times its setting. Its
    "epoch" shows every scene five times. It also augments validation and picks the checkpoint by a validation score
    measured in training mode; neither is reproduced.

    Args:
        teachers: Teachers to learn from; those that are not in the released code get the loss of their card.
        seed: Seed of the initial weights and of all randomness in training; 1463 for ScanNet, 3407 for Matterport.
    """
    config = DistillConfig(
        teachers=tuple(PAPER_TEACHERS),
        losses=("cosine", "cosine", "demeaned-cosine"),
        normalizers=("none",) * 3,
        weighting="uncertainty-squared",
        voxel_size=0.02,
        architecture="MinkUNet18A",
        num_epochs=50 * 5,
        batch_size=4,
        points_per_scene=300_000,
        optimizer="adam",
        learning_rate=1e-3,
        schedule="poly",
        augmentation=Augmentation(flip=True, rotation=180.0, tilt=2.8, scale=0.1),
        seed=seed,
    )
    return with_teachers(config, teachers)


def openscene(*, teachers: Teachers = OPENSCENE_TEACHERS, seed: int = 1463, epochs: int = 100) -> DistillConfig:
    """Return OpenScene's configuration for one language teacher: `config/scannet/ours_lseg.yaml` of its repository.

    The learning rate is the effective one: like the released code of CUA-O3D, OpenScene's uses ten times its setting of
    1e-4 from its second step on. Its "epoch" shows every scene five times, and its published fused features hold 20,000
    points per scene.

    Args:
        teachers: Teachers to learn from; OpenScene has one. Others get the loss of their card.
        seed: Seed of the initial weights and of all randomness in training.
        epochs: OpenScene's epochs, of five passes each: 100; 50 in the baseline that CUA-O3D compares with.
    """
    config = replace(
        released_code(seed=seed),
        teachers=("lseg",),
        losses=("cosine",),
        normalizers=("none",),
        weighting="equal",
        num_epochs=epochs * 5,
        batch_size=8,
        points_per_scene=20_000,
    )
    return with_teachers(config, teachers)


def ours(*, teachers: Teachers = PAPER_TEACHERS, seed: int = 0) -> DistillConfig:
    """Return our open-vocabulary configuration, at the paper's size: the student is told no word, and no label is read.

    Every teacher has a cosine loss; features of teachers without a text encoder are standardised first. Without that, a
    teacher whose features all point in nearly the same direction has a vanishing loss and takes a growing weight. The
    noise levels have their own learning rate. The figures in docs/ablation.md are of small students in synthetic rooms;
    on real scans this recipe is untested.

    Args:
        teachers: Teachers to learn from.
        seed: Seed of the initial weights and of all randomness in training.
    """
    cosine: LossKind = "cosine"
    wordless: NormalizerKind = "standardize"
    return replace(
        paper(seed=seed),
        teachers=tuple(teachers),
        losses=(cosine,) * len(teachers),
        normalizers=tuple(wordless if card.text is None else "none" for card in teachers.values()),
        weighting="uncertainty" if len(teachers) > 1 else "equal",
        sigma_lr=1e-2,
        words=None,
        balance=0.0,
        learning_rate=2e-3,
        **_OPTIMIZATION,
    )


def closed_set(words: str = "nyu40", *, teachers: Teachers = PAPER_TEACHERS, seed: int = 0) -> DistillConfig:
    """Return `ours` for a closed set of words: a softmax loss over them, and points of rare words are drawn more often.

    It is no zero-shot recipe. A name that is among the words counts as seen in every table, and for other words the
    student is worse than that of `ours`.

    Args:
        words: The vocabulary: a label set, by name or CSV, or a text file with a word a line.
        teachers: Teachers to learn from.
        seed: Seed of the initial weights and of all randomness in training.
    """
    return replace(ours(teachers=teachers, seed=seed), words=words, balance=0.5)


def mini(*, teachers: Teachers = MINI_TEACHERS, num_steps: int = 3000, seed: int = 0) -> DistillConfig:
    """Return `ours` scaled to the embedded rooms and two cores: small student, coarse voxels, high learning rate.

    Without words, what makes a good student is the right rate and enough steps (docs/ablation.md).

    Args:
        teachers: Teachers to learn from.
        num_steps: Optimiser steps.
        seed: Seed of the initial weights and of all randomness in training.
    """
    return replace(ours(teachers=teachers, seed=seed), learning_rate=1.6e-2, **_mini_training(num_steps))


def mini_supervised(*, num_steps: int = 3000, seed: int = 0) -> SuperviseConfig:
    """Return the supervised upper bound of `mini`: same student and data, but ground-truth labels, and a rate for them.

    Args:
        num_steps: Optimiser steps.
        seed: Seed of the initial weights and of all randomness in training.
    """
    training = _mini_training(num_steps) | {"points_per_scene": None}
    return SuperviseConfig(class_weights="inverse-root", learning_rate=4e-3, seed=seed, **training)


def supervised(*, seed: int = 0) -> SuperviseConfig:
    """Return the paper's fully supervised upper bound: its U-Net, on ground-truth labels.

    The paper gives SGD, its rate, weight decay, epochs and batch. As in the code that it starts from, an epoch shows
    every scene five times, the rate falls as (1 - t)^0.9, all voxels count, and their classes alike.

    Args:
        seed: Seed of the initial weights and of all randomness in training.
    """
    return SuperviseConfig(
        class_weights="equal",
        voxel_size=0.02,
        architecture="MinkUNet18A",
        num_epochs=50 * 5,
        batch_size=8,
        points_per_scene=None,
        optimizer="sgd",
        learning_rate=0.01,
        weight_decay=1e-4,
        schedule="poly",
        augmentation=Augmentation(flip=True, elastic=True),
        seed=seed,
    )


SUPERVISED_RECIPES: dict[str, Callable[..., SuperviseConfig]] = {"mini": mini_supervised, "paper": supervised}
"""Recipes of the upper bound by their name on the command line; each takes `seed`."""

RECIPES: dict[str, Callable[..., DistillConfig]] = {
    "mini": mini,
    "ours": ours,
    "closed-set": closed_set,
    "paper": paper,
    "released-code": released_code,
    "openscene": openscene,
}
"""Recipes by their name on the command line; each takes `teachers` and `seed`."""

FOR_ANY_TEACHERS = ("mini", "ours", "closed-set")
"""Recipes that by default learn from all teachers of a store; the others have their own."""


def with_teachers(config: DistillConfig, teachers: Teachers) -> DistillConfig:
    """Replace the teachers of a configuration; those that it has already keep its loss and normaliser.

    Args:
        config: Configuration whose other settings are kept.
        teachers: Teachers to learn from; new ones get the loss of their card, and no normaliser.

    Returns:
        The configuration with these teachers.
    """
    if tuple(teachers) == config.teachers:
        return config
    none: NormalizerKind = "none"
    losses = dict(zip(config.teachers, config.losses, strict=False))
    normalizers = dict(zip(config.teachers, config.normalizers, strict=False))
    return replace(
        config,
        teachers=tuple(teachers),
        losses=tuple(losses.get(name, card.loss) for name, card in teachers.items()),
        normalizers=tuple(normalizers.get(name, none) for name in teachers),
    )


_OPTIMIZATION: dict[str, Any] = {
    "optimizer": "adamw",
    "weight_decay": 1e-2,
    "clip_norm": 1.0,
    "schedule": "cosine",
    "augmentation": Augmentation(flip=True, rotation=180.0, scale=0.1),
}
"""Optimisation settings of `ours` and `mini`."""


def _mini_training(num_steps: int) -> dict[str, Any]:
    """Return the settings that distillation and its upper bound share on the embedded rooms."""
    return _OPTIMIZATION | {
        "voxel_size": MINI_VOXEL,
        "architecture": "MinkUNet14Mini",
        "num_steps": num_steps,
        "batch_size": 2,
        "points_per_scene": 6_000,
    }
