"""Measure depth that is drawn from a cloud against the true depth of made rooms, and against a sensor's.

python scripts/measure_cloud_depth.py --rooms 4 --lounge LOUNGE

Each room is sampled at random, with a mean spacing of 1, 2.5 and 5 cm. LOUNGE is the folder of a real capture, whose
cloud is made from its depth. Visibility and mIoU of `mini-lseg` are those of the scene's own cloud.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from cuao3d import pipeline
from cuao3d.fusion import sample_cells, see
from cuao3d.predictor import Predictor
from cuao3d.rays import cast_depth
from cuao3d.readers import open_dataset
from cuao3d.readers.capture import OCCLUSION_TOLERANCE
from cuao3d.readers.splats import cover, splat_depth
from cuao3d.scene import Camera, Scene
from cuao3d.teachers import load_teacher
from cuao3d.worlds.rendering import Room
from cuao3d.worlds.rooms import KINDS, furnish, make_room
from cuao3d.worlds.survey import sample_surfaces

FIRST_SEED = 7000
SPACINGS = (0.01, 0.025, 0.05)

ReadDepth = Callable[[Camera], Tensor]


@dataclass(frozen=True)
class Held:
    """Scenes in memory."""

    scenes: list[Scene]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the scenes."""
        return tuple(scene.name for scene in self.scenes)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Scene:
        return self.scenes[index]


def main(rooms: int = 4, lounge: Path | None = None) -> None:
    """Print both tables."""
    seeds = range(FIRST_SEED, FIRST_SEED + rooms)
    scenes = [replace(make_room(seed, split="val"), occlusion_tolerance=OCCLUSION_TOLERANCE) for seed in seeds]
    models = [furnish(np.random.default_rng([seed, 2025]), KINDS[seed % len(KINDS)]) for seed in seeds]
    print("| depth | within 5 cm | none | too far | pairs: common | only of the sensor | only of the cloud | mIoU |")
    print("|---|---|---|---|---|---|---|---|")
    print(f"| depth of the sensor | | | | | | | {miou(scenes):.1f} |")
    for spacing in SPACINGS:
        depths = [partial(splat_depth, cover(sampled(room, spacing))) for room in models]
        drawn = [seen_by(scene, depth) for scene, depth in zip(scenes, depths, strict=True)]
        exact = np.mean([errors(*pair) for pair in zip(scenes, models, depths, strict=True)], axis=0)
        pairs = np.sum([common(*pair) for pair in zip(scenes, drawn, strict=True)], axis=0)
        print(f"| random, {100 * spacing:g} cm | {shares(exact)} | {in_words(pairs)} | {miou(drawn):.1f} |", flush=True)
    if lounge:
        scene = open_dataset(lounge)[0]
        depth = partial(splat_depth, cover(scene.points))
        pairs = in_words(common(scene, seen_by(scene, depth)))
        print(f"| lounge, from depth | {shares(against_sensor(scene, depth))} | {pairs} | |")


def sampled(room: Room, spacing: float) -> Tensor:
    """Sample the surfaces of a room."""
    points = sample_surfaces(room, np.random.default_rng(0), spacing).points
    return torch.from_numpy(points.astype(np.float32))


def seen_by(scene: Scene, depth: ReadDepth) -> Scene:
    """Return a scene whose frames have another depth."""
    frames = tuple(replace(frame, read_depth=partial(depth, frame.camera)) for frame in scene.frames)
    return replace(scene, frames=frames)


def errors(scene: Scene, room: Room, depth: ReadDepth) -> Tensor:
    """Compare the depth of a scene's views with that of its model; see `compared`."""
    return torch.stack(
        [compared(cast_depth(room.embree, frame.camera), depth(frame.camera)) for frame in scene.frames]
    ).mean(dim=0)


def against_sensor(scene: Scene, depth: ReadDepth) -> Tensor:
    """Compare the depth of a scene's views with the sensor's; see `compared`."""
    return torch.stack([compared(frame.read_depth(), depth(frame.camera)) for frame in scene.frames]).mean(dim=0)


def compared(true: Tensor, drawn: Tensor) -> Tensor:
    """Return shares of the pixels with true depth: right within 5 cm, without depth, and too far to be visible."""
    true, drawn = true[true > 0], drawn[true > 0]
    behind = (drawn > 0) & (drawn - true > (OCCLUSION_TOLERANCE * true).clamp(min=0.05))
    right = (drawn > 0) & ((drawn - true).abs() <= 0.05)
    return torch.stack([right, drawn == 0, behind]).double().mean(dim=1)


def common(scene: Scene, other: Scene) -> list[int]:
    """Count the pairs of a view and a sample in both scenes, in the first alone and in the second alone."""
    samples = sample_cells(scene.points, 0.02)
    first, second = (
        {(view.frame, sample) for view in see(each, samples).views for sample in view.sample.tolist()}
        for each in (scene, other)
    )
    return [len(first & second), len(first - second), len(second - first)]


def miou(scenes: list[Scene]) -> float:
    """Lift scenes with the small segmenter, and segment them by class names."""
    with tempfile.TemporaryDirectory() as temporary:
        store = pipeline.fuse(Held(scenes), [load_teacher("mini-lseg")], Path(temporary) / "store")
        return pipeline.evaluate(store, Predictor.open(store))[0].miou


def shares(values: np.ndarray | Tensor) -> str:
    """Format shares."""
    return " | ".join(f"{100 * float(value):.2f} %" for value in values)


def in_words(pairs: np.ndarray | list[int]) -> str:
    """Format counts of pairs as parts of those that the sensor's depth gives."""
    both, sensor, cloud = (int(count) for count in pairs)
    return " | ".join(f"{100 * count / (both + sensor):.1f} %" for count in (both, sensor, cloud))


if __name__ == "__main__":
    tyro.cli(main)
