"""What lifting would take: hours, gigabytes on disk and in memory, before anything is lifted."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cuao3d.download import CARDS
from cuao3d.fusion import lift_measured, sample_cells, see
from cuao3d.memory import give_back
from cuao3d.names import match_name
from cuao3d.progress import forget_peak, peak_memory
from cuao3d.scene import Scene
from cuao3d.teachers import TeacherSpec, load_teacher, parse_teacher

BYTES_STORED, BYTES_LIFTED = 2, 4
"""Of a feature in the store, and while it is summed; all teachers' are held in both ways when a scene is written."""

BYTES_OF_POINT = 28
"""Of a point of the cloud in the store: position, colour, label, normal, sample."""


@dataclass(frozen=True)
class Prospect:
    """What is known of a teacher before it is used."""

    teacher: str
    num_channels: int
    seconds_per_view: float | None
    """Measured on a view of the capture; None where its weights are not here."""
    gigabytes: float
    """Of its weights in memory, about."""
    memory: float | None = None
    """Gigabytes that this process held at most while it lifted a view; None where it did not."""


@dataclass(frozen=True)
class Estimate:
    """What lifting a scene would take."""

    hours: float | None
    """None where a teacher could not be measured."""
    gigabytes: float
    """In the store."""
    memory: float
    """Gigabytes held at a time: what this process held while a teacher lifted a view, the other teachers' weights, and
    all features of the scene."""


def prospects(specs: Sequence[TeacherSpec | str], scene: Scene, *, cell: float) -> list[Prospect]:
    """Measure teachers on one view; for those whose weights are not here, return what their cards tell.

    Args:
        specs: Of `parse_teachers`, or as they are written.
        scene: Whose first readable view is lifted.
        cell: Edge of a sample cell, metres.

    Raises:
        InputError: A teacher is neither here nor known.
    """
    read = [parse_teacher(spec) if isinstance(spec, str) else spec for spec in specs]
    return [_prospect(spec, scene, cell) for spec in read]


def estimate(scene: Scene, teachers: Sequence[Prospect], *, cell: float, seen: float) -> Estimate:
    """Estimate what lifting a scene by teachers would take.

    Args:
        scene: The scene.
        teachers: Of `prospects`.
        cell: Edge of a sample cell, metres.
        seen: Share of the cells that a view sees, as `check` measured it.
    """
    num_seen = seen * len(sample_cells(scene.points, cell).index_of_sample)
    features = num_seen * sum(teacher.num_channels for teacher in teachers)
    seconds = [teacher.seconds_per_view for teacher in teachers if teacher.seconds_per_view is not None]
    cloud = BYTES_OF_POINT * len(scene.points)
    held, of_held = max(
        ((teacher.memory, teacher.gigabytes) for teacher in teachers if teacher.memory is not None),
        default=(peak_memory() / 1e3, 0.0),
    )
    weights = sum(teacher.gigabytes for teacher in teachers) - of_held
    return Estimate(
        sum(seconds) * len(scene.frames) / 3600 if len(seconds) == len(teachers) else None,
        (features * BYTES_STORED + cloud) / 1e9,
        held + weights + (features * (BYTES_STORED + BYTES_LIFTED) + cloud) / 1e9,
    )


def _prospect(spec: TeacherSpec, scene: Scene, cell: float) -> Prospect:
    name = spec.name
    card = CARDS.get(match_name(name, CARDS))
    gigabytes = card.megabytes / 1000 if card else 0.0
    give_back()
    forget_peak()  # what checking took is no part of lifting
    try:
        teacher: Any = load_teacher(spec)
    except (FileNotFoundError, ImportError):
        if card is None or spec.weights:
            raise
        return Prospect(name, card.num_channels, None, gigabytes)
    seconds = _seconds_per_view(scene, teacher, cell)
    return Prospect(teacher.name, teacher.num_channels, seconds, gigabytes, peak_memory() / 1e3)


def _seconds_per_view(scene: Scene, teacher: Any, cell: float) -> float | None:
    """Lift one view twice: the first time a network still warms up."""
    for frame in scene.frames:
        alone = replace(scene, frames=(frame,))
        visibility, seconds = see(alone, sample_cells(scene.points, cell)), 0.0
        for _ in range(2):
            begin = time.perf_counter()
            visibility = lift_measured(alone, visibility, teacher, skip_unreadable=True).visibility
            seconds = time.perf_counter() - begin
        if visibility.views:
            return seconds
    return None
