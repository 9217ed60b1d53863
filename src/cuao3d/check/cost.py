"""What lifting would take: hours, gigabytes on disk and in memory, before anything is lifted."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cuao3d.download import WEIGHTS
from cuao3d.fusion import lift_measured, sample_cells, see
from cuao3d.scene import Scene
from cuao3d.teachers import TEACHERS, load_teacher

CHANNELS = {
    "lseg": 512,
    "dinov2": 1024,
    "dinov2-small": 384,
    "dinov2-base": 768,
    "dinov2-giant": 1536,
    "dinov2-registers": 1024,
    "dinov2-small-registers": 384,
    "dinov2-base-registers": 768,
    "dinov2-giant-registers": 1536,
    "dinov3": 1024,
    "dinov3-small": 384,
    "dinov3-base": 768,
    "stable-diffusion": 3200,
    "stable-diffusion-2.1": 3200,
    "clip": 512,
    "clip-large": 768,
    "siglip2": 768,
    "siglip2-large": 1024,
    "radio": 1280,
    "vit": 1024,
}
"""Channels of teachers whose weights need not be here to say what they would take."""

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


@dataclass(frozen=True)
class Estimate:
    """What lifting a scene would take."""

    hours: float | None
    """None where a teacher could not be measured."""
    gigabytes: float
    """In the store."""
    memory: float
    """Gigabytes held at a time: the teachers' weights, and all features of the scene."""


def prospects(specs: Sequence[str], scene: Scene, *, cell: float) -> list[Prospect]:
    """Measure teachers on one view; of those whose weights are not here, say what is known.

    Args:
        specs: As of `load_teacher`.
        scene: Whose first readable view is lifted.
        cell: Edge of a sample cell, metres.

    Raises:
        InputError: A teacher is neither here nor known.
    """
    return [_prospect(spec, scene, cell) for spec in specs]


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
    return Estimate(
        sum(seconds) * len(scene.frames) / 3600 if len(seconds) == len(teachers) else None,
        (features * BYTES_STORED + cloud) / 1e9,
        (features * (BYTES_STORED + BYTES_LIFTED) + cloud) / 1e9 + sum(teacher.gigabytes for teacher in teachers),
    )


def _prospect(spec: str, scene: Scene, cell: float) -> Prospect:
    name, _, _ = spec.partition("=")
    known = name.replace("_", "-")
    gigabytes = WEIGHTS[known].megabytes / 1000 if known in WEIGHTS else 0.0
    absent = Prospect(name, CHANNELS.get(known, 0), None, gigabytes)
    if known in CHANNELS and known not in TEACHERS:
        return absent
    try:
        teacher: Any = load_teacher(spec)
    except (FileNotFoundError, ImportError):
        if known not in CHANNELS or "=" in spec:
            raise
        return absent
    return Prospect(name, teacher.num_channels, _seconds_per_view(scene, teacher, cell), gigabytes)


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
