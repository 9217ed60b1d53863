"""Recipes: complete configurations, one function each."""

from dataclasses import replace
from typing import Any

from cuao3d.augment import Augmentation
from cuao3d.distill import DistillConfig
from cuao3d.objective import LossKind, NormalizerKind
from cuao3d.probe import SuperviseConfig

MINI_TEACHERS = ("mini-lseg", "mini-dino", "mini-diffusion")
"""Teachers of the embedded rooms, the one that understands words first."""

PAPER_TEACHERS = ("lseg", "dinov2", "stable_diffusion")
"""Teachers of the paper, the one that understands words first."""

WORDLESS = (
    "dinov2",
    "dinov3",
    "radio",
    "stable_diffusion",
    "stable_diffusion_2_1",
    "vit",
    "mini-dino",
    "mini-diffusion",
)
"""Teachers that answer no words: their features are standardised before a cosine compares them. As they are, those of
the small diffusion teacher all point nearly one way: its loss falls to nothing and its weight to a dozen, while it
teaches little."""

MINI_CELL = 0.05
"""Edge of the cells that sample the embedded rooms, metres."""

MINI_VOXEL = 0.12
"""Edge of a student's voxel there, metres; the paper's is 0.02. In a few hundred steps, coarse voxels learn more."""


def paper(*, seed: int = 0) -> DistillConfig:
    """Return what the paper describes.

    It names an exponential decay without its pace (here: to a tenth), and no seed.

    Args:
        seed: Decides the initial weights and all that is random in training.
    """
    return DistillConfig(
        teachers=PAPER_TEACHERS,
        losses=("cosine", "l1", "demeaned-cosine"),
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


def released_code(*, seed: int = 1463) -> DistillConfig:
    """Return what the released code does.

    From its second step on it runs at ten times the rate it states; that rate stands here. Its "epoch" shows every
    scene five times. It also augments validation and picks the checkpoint by a validation score measured in training
    mode; neither is repeated.

    Args:
        seed: Decides the initial weights and all that is random in training; 1463 for ScanNet, 3407 for Matterport.
    """
    return DistillConfig(
        teachers=PAPER_TEACHERS,
        losses=("cosine", "cosine", "demeaned-cosine"),
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


def openscene(*, seed: int = 1463) -> DistillConfig:
    """Return what OpenScene distils one language teacher with: `config/scannet/ours_lseg.yaml` of its repository.

    Its "epoch" shows every scene five times, and the fused features that it published hold 20,000 points of a scene.

    Args:
        seed: Decides the initial weights and all that is random in training.
    """
    return replace(
        released_code(seed=seed),
        teachers=("lseg",),
        losses=("cosine",),
        weighting="equal",
        num_epochs=100 * 5,
        batch_size=8,
        points_per_scene=20_000,
        learning_rate=1e-4,
    )


def ours(*, teachers: tuple[str, ...] = PAPER_TEACHERS, seed: int = 0) -> DistillConfig:
    """Return what wins on the embedded rooms (docs/ablation.md), at the paper's size.

    A cosine for every teacher, the wordless ones standardised; the paper's sigmas at a rate of their own; a loss that
    chooses among the names of NYU40, and points of rare names drawn more often, whatever set is asked for later. No
    label is read. That table was made by small students in made rooms: on real scans this is untested.

    Args:
        teachers: Teachers to learn from.
        seed: Decides the initial weights and all that is random in training.
    """
    cosine: LossKind = "cosine"
    wordless: NormalizerKind = "standardize"
    return replace(
        paper(seed=seed),
        teachers=teachers,
        losses=(cosine,) * len(teachers),
        normalizers=tuple(wordless if teacher in WORDLESS else "none" for teacher in teachers),
        weighting="uncertainty" if len(teachers) > 1 else "equal",
        sigma_lr=1e-2,
        words="nyu40",
        balance=0.5,
        **_OPTIMIZATION,
    )


def mini(*, teachers: tuple[str, ...] = MINI_TEACHERS, num_steps: int = 1500, seed: int = 0) -> DistillConfig:
    """Return `ours` for the embedded rooms and two processor cores: a small student, coarse voxels, a high rate.

    Args:
        teachers: Teachers to learn from, of `MINI_TEACHERS`.
        num_steps: Optimiser steps.
        seed: Decides the initial weights and all that is random in training.
    """
    return replace(ours(teachers=teachers, seed=seed), **_mini_training(num_steps))


def mini_supervised(*, num_steps: int = 1500, seed: int = 0) -> SuperviseConfig:
    """Return the upper bound of `mini`: the same student, data and schedule, but true labels.

    Args:
        num_steps: Optimiser steps.
        seed: Decides the initial weights and all that is random in training.
    """
    training = _mini_training(num_steps) | {"points_per_scene": None}
    return SuperviseConfig(class_weights="inverse-root", seed=seed, **training)


_OPTIMIZATION: dict[str, Any] = {
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "weight_decay": 1e-2,
    "clip_norm": 1.0,
    "schedule": "cosine",
    "augmentation": Augmentation(flip=True, rotation=180.0, scale=0.1),
}
"""How `ours` and students of its kind are trained."""


def _mini_training(num_steps: int) -> dict[str, Any]:
    """What distillation and its upper bound on the embedded rooms have in common."""
    return _OPTIMIZATION | {
        "voxel_size": MINI_VOXEL,
        "architecture": "MinkUNet14Mini",
        "num_steps": num_steps,
        "batch_size": 2,
        "points_per_scene": 6_000,
        "learning_rate": 4e-3,
    }
