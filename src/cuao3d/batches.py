"""Batches: augmented scenes as voxels with targets, one batch per training step."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor
from torch.nn import functional

from cuao3d.augment import Augmentation, augment
from cuao3d.errors import InputError
from cuao3d.geometry import Voxels, voxelize
from cuao3d.objective import Table, Targets
from cuao3d.objective.targets import move
from cuao3d.ranks import num_ranks, rank
from cuao3d.schema import Count, CountOrZero, Length, Seed, check_settings
from cuao3d.store import StoredScene

Target = Targets
"""Targets of N voxels: features (N, C) or classes (N,)."""

Pool = Callable[[Any, Int64[Tensor, "M"], Int64[Tensor, "N"]], Target]
"""Pools targets of samples into targets of voxels. Arguments: the targets of all samples, the rows to pool, sorted by
voxel, and the offset of each voxel in these rows."""

LATTICE = 16
"""Period of the student's coarsest grid, voxels; the random shift covers one period."""

STILL = Augmentation(flip=False, shift=False)
"""No augmentation at all."""


@dataclass(frozen=True)
class BatchConfig:
    """Which data each training step sees."""

    voxel_size: Length = 0.02
    """Edge of a voxel, metres; not finer than the store's cell."""
    num_epochs: Count = 50
    """Passes over the training scenes."""
    num_steps: CountOrZero | None = None
    """Optimiser steps; None: follows from `num_epochs`. 0: the student stays untrained."""
    batch_size: Count = 2
    """Scenes per step, over all processes."""
    num_parts: Count = 1
    """Micro-batches per step, to save memory: gradients accumulate, batch norm sees each one alone."""
    points_per_scene: Count | None = 20_000
    """Voxels per scene that the loss uses at most, drawn anew each time; None: all of them."""
    crop: Count | None = None
    """Voxels per scene that enter the network at most, those nearest to a random supervised one; None: all of them."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random transformations of the scenes."""
    num_held_out: CountOrZero = 0
    """Training scenes held out for validation; the student that does best on them is kept. 0: the last one is kept."""
    seed: Seed = 0
    """Seed of the initial weights, the choice of held-out scenes and the randomness of every step."""

    def validate(self) -> None:
        """Check that all numbers lie in their ranges; raises InputError."""
        check_settings(self)


@dataclass(frozen=True)
class TrainingScene:
    """The part of a stored scene that training keeps in memory."""

    name: str
    """Name of the scene, for messages."""
    points: Float[Tensor, "N 3"]
    """All points of the cloud, metres, for they make the voxels. The samples alone leave holes: turned or moved, two of
    them share a voxel and another voxel has none."""
    rows: Int64[Tensor, "R"]
    """Samples that have targets: which points they are."""
    targets: tuple[Table, ...]
    """For each head, the targets of those samples: features (R, C) or classes (R,)."""
    chances: Float32[Tensor, "R"] | Callable[[], Tensor] | None = None
    """Relative probability that the loss uses each of those samples, or what returns them; None: uniform."""
    row_of_point: Int32[Tensor, "N"] | None = None
    """Which of `rows` stands for each point in a voxel that holds none of them; -1: none. None: none for any."""
    check: Callable[[], object] | None = None
    """Called before the targets are read for training: raises InputError if their files are not as they were written.
    That reads them whole, and so it is not done before the scene's turn has come."""

    @staticmethod
    def of(scene: StoredScene, samples: Int64[Tensor, "R"], targets: tuple[Table, ...]) -> "TrainingScene":
        """Take a scene of a store; `samples` says which of its samples the targets are of."""
        row_of_sample = torch.full((len(scene.num_views),), -1, dtype=torch.int32)
        row_of_sample[samples] = torch.arange(len(samples), dtype=torch.int32)
        rows, row_of_point = scene.index_of_sample[samples], row_of_sample[scene.sample_of_point]
        return TrainingScene(scene.name, scene.points, rows, targets, row_of_point=row_of_point)


@dataclass(frozen=True)
class Batch:
    """Several augmented scenes as voxels."""

    coordinates: Int64[Tensor, "V 4"]
    """Index of the scene within the batch, and integer cell, of each voxel."""
    supervised: Int64[Tensor, "N"]
    """Voxels that the loss uses."""
    targets: tuple[tuple[Target, ...], ...]
    """For each scene and each head, the targets of those voxels."""

    @property
    def num_targets(self) -> list[int]:
        """Number of supervised voxels of each scene; `supervised` lists them scene by scene."""
        return [len(targets[0]) for targets in self.targets]

    def to(self, device: str) -> "Batch":
        """Return this batch on a device; away from the CPU its targets are averaged first."""
        if device == "cpu":
            return self
        targets = tuple(tuple(move(target, device) for target in scene) for scene in self.targets)
        return Batch(self.coordinates.to(device), self.supervised.to(device), targets)


class Batches:
    """All batches of a run; each depends on the seed and its step alone, so that a run can resume at any step.

    The randomness of a scene depends on its position in the run, so the number of processes and micro-batches of a step
    makes no difference.
    """

    def __init__(
        self,
        scenes: Sequence[TrainingScene],
        config: BatchConfig,
        pool: Pool,
        held_out: Sequence[TrainingScene] = (),
    ) -> None:
        """Plan the batches of a run.

        Args:
            scenes: Training scenes, shuffled anew for every pass.
            config: Number of steps, augmentation, crop and sampling.
            pool: Combines the targets of samples in the same voxel.
            held_out: Scenes for validation only.
        """
        self.scenes, self.config, self.pool, self.held_out = scenes, config, pool, held_out

    def __len__(self) -> int:
        """Return the number of steps of the run."""
        if self.config.num_steps is not None:
            return self.config.num_steps
        return math.ceil(self.config.num_epochs * len(self.scenes) / self.config.batch_size)

    def __getitem__(self, step: int) -> tuple[Batch, ...]:
        """Prepare this process's share of a step: one batch per micro-batch.

        Raises:
            InputError: A micro-batch has too few voxels to train on.
        """
        config = self.config
        num_scenes = config.batch_size // (config.num_parts * num_ranks())
        firsts = [
            step * config.batch_size + (part * num_ranks() + rank()) * num_scenes for part in range(config.num_parts)
        ]
        return tuple(join([self._voxels_at(place) for place in range(first, first + num_scenes)]) for first in firsts)

    def ahead(self, first: int, device: str) -> Generator[tuple[Batch, ...], None, None]:
        """Yield the steps from `first` on; a thread prepares the next one while the caller works on this one."""
        with ThreadPoolExecutor(max_workers=1) as thread:
            coming = [thread.submit(self._on, device, first)] if first < len(self) else []
            for step in range(first, len(self)):
                batches = coming.pop().result()
                if step + 1 < len(self):
                    coming.append(thread.submit(self._on, device, step + 1))
                yield batches

    def still(self) -> Iterator[Batch]:
        """Yield this process's share of the held-out scenes, without augmentation and with all targets."""
        config = replace(self.config, augmentation=STILL, crop=None, points_per_scene=None)
        for scene in self.held_out[rank() :: num_ranks()]:
            if scene.check:
                scene.check()
            yield voxelize_scene(scene, config, self.pool, generator_of(config.seed))

    def scene_at(self, place: int) -> TrainingScene:
        """Return the scene at a position in the endless sequence of shuffled passes over all scenes."""
        epoch, index = divmod(place, len(self.scenes))
        order = torch.randperm(len(self.scenes), generator=generator_of(self.config.seed, 0, epoch))
        return self.scenes[int(order[index])]

    def _voxels_at(self, place: int) -> Batch:
        """Return the voxels of the scene at a position; raise InputError where batch norm could not train on them."""
        scene, config = self.scene_at(place), self.config
        if scene.check:
            scene.check()
        batch = voxelize_scene(scene, config, self.pool, generator_of(config.seed, 1, place))
        coarsest = batch.coordinates // torch.tensor([1, LATTICE, LATTICE, LATTICE])
        if config.batch_size == config.num_parts and bool((coarsest == coarsest[0]).all()):
            raise InputError(
                f"Scene {scene.name} lies in a single cell of the student's coarsest grid; batch norm needs two. "
                f"Use voxels smaller than {config.voxel_size:g} m (--voxel-size), larger crops (--config.crop) or more "
                "scenes per step (--config.batch-size)."
            )
        return batch

    def _on(self, device: str, step: int) -> tuple[Batch, ...]:
        return tuple(batch.to(device) for batch in self[step])


def hold_out(names: Sequence[str], config: BatchConfig) -> tuple[str, ...]:
    """Choose the training scenes that are held out for validation.

    Args:
        names: Training scenes that have targets; never those of the evaluation split.
        config: Its `num_held_out` and `seed` are used.

    Raises:
        InputError: No scene would be left to train on.
    """
    if config.num_held_out and config.num_held_out >= len(names):
        raise InputError(
            f"Of {len(names)} training scenes {config.num_held_out} cannot be held out: none is left to train on. "
            "Lower --config.num-held-out, or lift more scenes."
        )
    order = torch.randperm(len(names), generator=generator_of(config.seed, 2))
    return tuple(sorted(names[index] for index in order[: config.num_held_out].tolist()))


def voxelize_scene(scene: TrainingScene, config: BatchConfig, pool: Pool, generator: torch.Generator) -> Batch:
    """Augment and voxelise a scene; choose the voxels that enter the network and those that the loss uses.

    Args:
        scene: The cloud, and the targets of its samples.
        config: Augmentation, voxel size, crop and number of supervised voxels.
        pool: Combines the targets of samples in the same voxel.
        generator: Source of all randomness.

    Returns:
        A batch of this scene alone.
    """
    is_still = config.augmentation == STILL  # then these are the very voxels of evaluation
    points = scene.points
    if not is_still:
        points = augment(points, config.augmentation, LATTICE * config.voxel_size, generator)
    voxels = voxelize(points, config.voxel_size)
    coordinates, (row, voxel_of_row) = voxels.coordinates, _place(scene, voxels)
    if config.crop is not None and len(coordinates) > config.crop:
        center = coordinates[voxel_of_row[torch.randint(len(voxel_of_row), (), generator=generator)]]
        distance = (coordinates - center).square().sum(dim=1)
        kept = torch.argsort(distance, stable=True)[: config.crop].sort().values
        voxel_of_row = _renumber(voxel_of_row, kept, len(coordinates))
        coordinates = coordinates[kept]
    order = torch.argsort(voxel_of_row, stable=True)[(voxel_of_row < 0).sum() :]
    supervised, counts = torch.unique_consecutive(voxel_of_row[order], return_counts=True)
    if config.points_per_scene is not None and len(supervised) > config.points_per_scene:
        kept = _draw(scene, row[order[counts.cumsum(0) - counts]], config.points_per_scene, generator)
        order = order[torch.isin(voxel_of_row[order], supervised[kept])]
        supervised, counts = supervised[kept], counts[kept]
    offsets = counts.cumsum(0) - counts
    targets = tuple(pool(target, row[order], offsets) for target in scene.targets)
    return Batch(functional.pad(coordinates, (1, 0)), supervised, (targets,))


def _place(scene: TrainingScene, voxels: Voxels) -> tuple[Int64[Tensor, "M"], Int64[Tensor, "M"]]:
    """Return rows of the targets, and the voxel that each is a target of: those of the samples in it, or else one's."""
    row, voxel_of_row = torch.arange(len(scene.rows)), voxels.voxel_of_point[scene.rows]
    if scene.row_of_point is None:
        return row, voxel_of_row
    row_of_voxel = torch.full((len(voxels.coordinates),), -1, dtype=torch.int32)
    row_of_voxel.scatter_reduce_(0, voxels.voxel_of_point, scene.row_of_point, "amax")
    row_of_voxel[voxel_of_row] = -1
    others = torch.nonzero(row_of_voxel >= 0).squeeze(1)
    return torch.cat([row, row_of_voxel[others].long()]), torch.cat([voxel_of_row, others])


def _draw(
    scene: TrainingScene, rows: Int64[Tensor, "N"], budget: int, generator: torch.Generator
) -> Int64[Tensor, "K"]:
    """Draw the voxels that the loss uses, ascending; `rows` names a sample of each."""
    if scene.chances is None:
        return torch.randperm(len(rows), generator=generator)[:budget].sort().values
    chances = scene.chances() if callable(scene.chances) else scene.chances
    return torch.multinomial(chances[rows], budget, generator=generator).sort().values


def join(batches: Sequence[Batch]) -> Batch:
    """Join batches of one scene each; the first column of the coordinates is the index of the scene."""
    coordinates = torch.cat([functional.pad(b.coordinates[:, 1:], (1, 0), value=i) for i, b in enumerate(batches)])
    first = accumulate((len(batch.coordinates) for batch in batches), initial=0)
    supervised = torch.cat([batch.supervised + start for batch, start in zip(batches, first, strict=False)])
    return Batch(coordinates, supervised, tuple(scene for batch in batches for scene in batch.targets))


def _renumber(rows: Int64[Tensor, "R"], kept: Int64[Tensor, "K"], count: int) -> Int64[Tensor, "R"]:
    """Renumber rows after selecting `kept` of `count`; -1 for the rest."""
    new_row = torch.full((count,), -1)
    new_row[kept] = torch.arange(len(kept))
    return new_row[rows]


def generator_of(*key: int) -> torch.Generator:
    """Make a generator seeded by a tuple of integers."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed)
