"""Batches: what a step of training is shown, augmented scenes as voxels with targets."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

from cuao3d.augment import Augmentation, augment
from cuao3d.errors import InputError
from cuao3d.geometry import voxelize
from cuao3d.objective import RowMeans
from cuao3d.ranks import num_ranks, rank

Target = Tensor | RowMeans
"""What is to be said of some voxels: features (N, C) or classes (N,)."""

Pool = Callable[[Tensor, Int64[Tensor, "M"], Int64[Tensor, "N"]], Target]
"""Makes the targets of voxels from those of samples: called with the targets of all samples, the rows of those that
count, sorted by voxel, and where in these each voxel begins."""

LATTICE = 16
"""Voxels after which the student's coarsest grid repeats; the random shift covers all places on it."""

STILL = Augmentation(flip=False, shift=False)
"""No augmentation at all."""


@dataclass(frozen=True)
class BatchConfig:
    """What the steps of a training are shown."""

    voxel_size: float = 0.02
    """Edge of a voxel, metres; not finer than the store's cell."""
    num_epochs: int = 50
    """Passes over the training scenes."""
    num_steps: int | None = None
    """Steps of the optimiser; None: as many as `num_epochs` takes. 0: the student stays untrained."""
    batch_size: int = 2
    """Scenes in a step, of all processes together."""
    num_parts: int = 1
    """Parts of a step, one after the other, to save memory: gradients add up, batch norm sees each part alone."""
    points_per_scene: int | None = 20_000
    """Most voxels of a scene that the loss looks at, drawn anew each time; None: all of them."""
    crop: int | None = None
    """Most voxels of a scene that enter the network, those nearest to a random one with a target; None: all of them."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes of the scenes."""
    num_held_out: int = 0
    """Training scenes that are not trained on; the student that does best on them is kept. 0: the last one is kept."""
    seed: int = 0
    """Decides the initial weights, the scenes that are held out and all that is random in every step."""

    def validate(self) -> None:
        """Refuse numbers that no training could use; raises InputError."""
        check_least(self, num_epochs=1, num_steps=0, batch_size=1, num_parts=1, points_per_scene=1, crop=1)
        check_least(self, num_held_out=0, voxel_size=1e-6)


def check_least(config: object, **least: float) -> None:
    """Refuse settings below their least values.

    Args:
        config: Where they stand; None is no number and always allowed.
        least: The least value of each.

    Raises:
        InputError: One is below, or not a number.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and not bound <= value < math.inf:
            raise InputError(f"--config.{name.replace('_', '-')} is {value:g}; expected at least {bound:g}.")


@dataclass(frozen=True)
class TrainingScene:
    """What training holds of a stored scene."""

    name: str
    """Name of the scene, for messages."""
    points: Float[Tensor, "S 3"]
    """Sample points, metres."""
    rows: Int64[Tensor, "R"]
    """Samples that have targets."""
    targets: tuple[Tensor, ...]
    """For each thing to learn, what is known of those samples: features (R, C) or classes (R,)."""
    chances: Float32[Tensor, "R"] | None = None
    """How likely each of those samples is looked at, relative to the others; None: all alike."""


@dataclass(frozen=True)
class Batch:
    """Several augmented scenes as voxels."""

    coordinates: Int64[Tensor, "V 4"]
    """Scene within the batch and integer cell of each voxel."""
    supervised: Int64[Tensor, "N"]
    """Voxels that the loss looks at."""
    targets: tuple[tuple[Target, ...], ...]
    """For each scene, and for each thing to learn, what is to be said of those voxels."""

    @property
    def num_targets(self) -> list[int]:
        """Number of supervised voxels of each scene; in `supervised` they follow each other."""
        return [len(targets[0]) for targets in self.targets]

    def to(self, device: str) -> "Batch":
        """Return this batch on a device; away from the CPU its targets are averaged first."""
        if device == "cpu":
            return self
        targets = tuple(tuple(target[:].to(device) for target in scene) for scene in self.targets)
        return Batch(self.coordinates.to(device), self.supervised.to(device), targets)


class Batches:
    """All batches of a run; each follows from the seed and its step alone, so a run can go on from any step.

    What is random about a scene follows from its place in the run, so it does not matter how many processes and parts
    share a step.
    """

    def __init__(
        self,
        scenes: Sequence[TrainingScene],
        config: BatchConfig,
        pool: Pool,
        held_out: Sequence[TrainingScene] = (),
    ) -> None:
        """Lay out the run.

        Args:
            scenes: What to draw from; every scene once, in random order, before any comes again.
            config: How many steps, and how scenes are augmented, cropped and drawn.
            pool: How the targets of samples that meet in a voxel become one.
            held_out: Scenes that are only validated on.
        """
        self.scenes, self.config, self.pool, self.held_out = scenes, config, pool, held_out

    def __len__(self) -> int:
        """Return the number of steps of the run."""
        if self.config.num_steps is not None:
            return self.config.num_steps
        return math.ceil(self.config.num_epochs * len(self.scenes) / self.config.batch_size)

    def __getitem__(self, step: int) -> tuple[Batch, ...]:
        """Prepare what this process has of a step: a batch for each part.

        Raises:
            InputError: The voxels of a part are too few to train on.
        """
        config = self.config
        num_scenes = config.batch_size // (config.num_parts * num_ranks())
        firsts = [
            step * config.batch_size + (part * num_ranks() + rank()) * num_scenes for part in range(config.num_parts)
        ]
        return tuple(join([self._voxels_at(place) for place in range(first, first + num_scenes)]) for first in firsts)

    def ahead(self, first: int, device: str) -> Generator[tuple[Batch, ...], None, None]:
        """Walk through the steps from `first` on; a thread prepares the next one while the caller works on this one."""
        with ThreadPoolExecutor(max_workers=1) as thread:
            coming = [thread.submit(self._on, device, first)] if first < len(self) else []
            for step in range(first, len(self)):
                batches = coming.pop().result()
                if step + 1 < len(self):
                    coming.append(thread.submit(self._on, device, step + 1))
                yield batches

    def still(self) -> Iterator[Batch]:
        """Walk through this process's share of the held-out scenes, as they are and with all their targets."""
        config = replace(self.config, augmentation=STILL, crop=None, points_per_scene=None)
        for scene in self.held_out[rank() :: num_ranks()]:
            yield voxelize_scene(scene, config, self.pool, generator_of(config.seed))

    def scene_at(self, place: int) -> TrainingScene:
        """Return the scene at a place of the endless row of shuffled passes over all scenes."""
        epoch, index = divmod(place, len(self.scenes))
        order = torch.randperm(len(self.scenes), generator=generator_of(self.config.seed, 0, epoch))
        return self.scenes[int(order[index])]

    def _voxels_at(self, place: int) -> Batch:
        """Return the voxels of the scene at a place, refused where they alone are a part and batch norm fails."""
        scene, config = self.scene_at(place), self.config
        batch = voxelize_scene(scene, config, self.pool, generator_of(config.seed, 1, place))
        coarsest = batch.coordinates // torch.tensor([1, LATTICE, LATTICE, LATTICE])
        if config.batch_size == config.num_parts and bool((coarsest == coarsest[0]).all()):
            raise InputError(
                f"Scene {scene.name} lies in a single cell of the student's coarsest grid; batch norm needs two. "
                f"Use voxels smaller than {config.voxel_size:g} m (--voxel-size), larger crops (--config.crop) or more "
                "scenes a step (--config.batch-size)."
            )
        return batch

    def _on(self, device: str, step: int) -> tuple[Batch, ...]:
        return tuple(batch.to(device) for batch in self[step])


def hold_out(names: Sequence[str], config: BatchConfig) -> tuple[str, ...]:
    """Choose by the seed which training scenes are only validated on.

    Args:
        names: Training scenes that have targets; never those of the split that scores are measured on.
        config: Its `num_held_out` and `seed` count.

    Raises:
        InputError: None would be left to train on.
    """
    if config.num_held_out and config.num_held_out >= len(names):
        raise InputError(
            f"Of {len(names)} training scenes {config.num_held_out} cannot be held out: none is left to train on. "
            "Lower --config.num-held-out, or lift more scenes."
        )
    order = torch.randperm(len(names), generator=generator_of(config.seed, 2))
    return tuple(sorted(names[index] for index in order[: config.num_held_out].tolist()))


def voxelize_scene(scene: TrainingScene, config: BatchConfig, pool: Pool, generator: torch.Generator) -> Batch:
    """Augment a scene, quantise it, and choose the voxels that enter the network and those that the loss looks at.

    Args:
        scene: Sample points and their targets.
        config: Augmentation, voxel size, crop and number of supervised voxels.
        pool: How the targets of samples that meet in a voxel become one.
        generator: Source of all randomness.

    Returns:
        A batch of this scene alone.
    """
    points = augment(scene.points, config.augmentation, LATTICE * config.voxel_size, generator)
    voxels = voxelize(points, config.voxel_size)
    coordinates, voxel_of_row = voxels.coordinates, voxels.voxel_of_point[scene.rows]
    if config.crop is not None and len(coordinates) > config.crop:
        center = coordinates[voxel_of_row[torch.randint(len(voxel_of_row), (), generator=generator)]]
        distance = (coordinates - center).square().sum(dim=1)
        kept = torch.argsort(distance, stable=True)[: config.crop].sort().values
        voxel_of_row = _renumber(voxel_of_row, kept, len(coordinates))
        coordinates = coordinates[kept]
    rows = torch.argsort(voxel_of_row, stable=True)[(voxel_of_row < 0).sum() :]
    supervised, counts = torch.unique_consecutive(voxel_of_row[rows], return_counts=True)
    if config.points_per_scene is not None and len(supervised) > config.points_per_scene:
        kept = _draw(scene, rows[counts.cumsum(0) - counts], config.points_per_scene, generator)
        rows = rows[torch.isin(voxel_of_row[rows], supervised[kept])]
        supervised, counts = supervised[kept], counts[kept]
    offsets = counts.cumsum(0) - counts
    targets = tuple(pool(target, rows, offsets) for target in scene.targets)
    return Batch(functional.pad(coordinates, (1, 0)), supervised, (targets,))


def _draw(
    scene: TrainingScene, rows: Int64[Tensor, "N"], budget: int, generator: torch.Generator
) -> Int64[Tensor, "K"]:
    """Choose which voxels the loss looks at, ascending; `rows` names a sample of each."""
    if scene.chances is None:
        return torch.randperm(len(rows), generator=generator)[:budget].sort().values
    return torch.multinomial(scene.chances[rows], budget, generator=generator).sort().values


def join(batches: Sequence[Batch]) -> Batch:
    """Put batches of one scene each into one; the first column of the coordinates tells them apart."""
    coordinates = torch.cat([functional.pad(b.coordinates[:, 1:], (1, 0), value=i) for i, b in enumerate(batches)])
    first = accumulate((len(batch.coordinates) for batch in batches), initial=0)
    supervised = torch.cat([batch.supervised + start for batch, start in zip(batches, first, strict=False)])
    return Batch(coordinates, supervised, tuple(scene for batch in batches for scene in batch.targets))


def _renumber(rows: Int64[Tensor, "R"], kept: Int64[Tensor, "K"], count: int) -> Int64[Tensor, "R"]:
    """Translate rows of `count` into rows of those that are kept; -1 for the others."""
    new_row = torch.full((count,), -1)
    new_row[kept] = torch.arange(len(kept))
    return new_row[rows]


def generator_of(*key: int) -> torch.Generator:
    """Make a source of randomness that follows from some numbers alone."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed)
