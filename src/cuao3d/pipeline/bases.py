"""The bases of a store: fitted to what each teacher sees of a sample of the dataset, before a scene is lifted."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cuao3d.codecs import Basis
from cuao3d.console import progress_bar
from cuao3d.errors import InputError, TeacherError, UserError
from cuao3d.fusion import Samples, lift_measured, sample_cells, see
from cuao3d.memory import give_back
from cuao3d.readers import Dataset
from cuao3d.scene import Scene
from cuao3d.store import Store
from cuao3d.store.revise import has_basis
from cuao3d.teachers import Teacher

NUM_SCENES, NUM_FRAMES, NUM_SAMPLES = 16, 8, 2048
"""Scenes of the sample, frames of each and samples of each, at most; all spread evenly."""

NUM_EXACT = 256
"""Samples of a scene that are lifted without compression as well, to measure its error."""


def fit_bases(store: Store, dataset: Dataset, teachers: Sequence[Teacher], *, batch_size: int, upright: bool) -> None:
    """Fit the bases that a store lacks, and write them; the same dataset and teachers give the same.

    Args:
        store: The store.
        dataset: Scenes that it will hold.
        teachers: Its teachers.
        batch_size: Views shown to a teacher at a time.
        upright: Show views upright.

    Raises:
        InputError: No scene of the sample gives a teacher's features.
    """
    ranks = {one.name: store.codec.rank_of(one.num_channels) for one in teachers}
    for teacher in (one for one in teachers if ranks[one.name] is not None and not has_basis(store, one.name)):
        rows = _sample(dataset, teacher, store.cell, batch_size, upright)
        try:
            store.keep_basis(teacher.name, Basis.fit(rows, ranks[teacher.name] or 0))
        except InputError as error:
            raise InputError(f"No basis of {teacher.name} for --codec {store.codec}: {error}.") from None


def _sample(dataset: Dataset, teacher: Teacher, cell: float, batch_size: int, upright: bool) -> Iterator[Tensor]:
    """Yield what a teacher sees of some samples of some scenes, in a few views of each; broken scenes are passed by."""
    left = NUM_SCENES
    with progress_bar() as bar:
        for index in bar.track(_spread(len(dataset)), description=f"basis of {teacher.name}"):
            try:
                scene = _few_frames(dataset[index])
                visibility = see(scene, _few_samples(scene, cell))
                lifted = lift_measured(
                    scene, visibility, teacher, batch_size=batch_size, upright=upright, skip_unreadable=True
                )
            except TeacherError:
                raise
            except (UserError, OSError):
                continue  # `fuse` says which scenes it leaves out and why
            if len(lifted.features):
                yield lifted.features.cpu()
                left -= 1
            give_back()
            if not left:
                return


def _spread(count: int) -> list[int]:
    """Order scenes so that the first of them are spread evenly, and others follow in case some are broken."""
    first = torch.linspace(0, count - 1, min(count, NUM_SCENES), dtype=torch.float64).round().long().tolist()
    return [*first, *sorted(set(range(count)) - set(first))]


def _few_frames(scene: Scene) -> Scene:
    step = -(-len(scene.frames) // NUM_FRAMES) or 1
    return replace(scene, frames=scene.frames[::step])


def _few_samples(scene: Scene, cell: float) -> Samples:
    samples = sample_cells(scene.points, cell)
    step = -(-len(samples.index_of_sample) // NUM_SAMPLES) or 1
    return Samples(samples.index_of_sample[::step], samples.sample_of_point)
