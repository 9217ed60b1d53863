"""Measure the effect of the occlusion tolerance on a real capture, and on synthetic rooms with exact labels.

python scripts/measure_tolerance.py --lounge LOUNGE --rooms 20

LOUNGE is the folder of a capture with `objects.json` and `pointing.py`, which locate its objects; without it, only
synthetic rooms are measured. They have sensor noise; in the second half of the table their cameras drift as well.
"""

import contextlib
import io
import json
import runpy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from scipy.spatial.transform import Rotation

from cuao3d import pipeline
from cuao3d.exports import ask_store
from cuao3d.predictor import Predictor
from cuao3d.readers import Dataset, open_dataset
from cuao3d.scene import Frame, Scene
from cuao3d.store import Store
from cuao3d.teachers import load_teacher
from cuao3d.worlds.rooms import make_room

TOLERANCES = (0.02, 0.05, 0.1, 0.25)
FIRST_SEED = 7000
DRIFT = 0.03, 0.5
"""Standard deviation of a drifting camera's position (metres, per axis) and angles (degrees)."""


@dataclass(frozen=True)
class Held:
    """Scenes in memory, with one tolerance."""

    scenes: Sequence[Scene]
    tolerance: float

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the scenes."""
        return tuple(scene.name for scene in self.scenes)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Scene:
        return replace(self.scenes[index], occlusion_tolerance=self.tolerance)


def main(lounge: Path | None = None, rooms: int = 20) -> None:
    """Print a table for the capture, and one each for the rooms without and with drift."""
    if lounge:
        print(
            "| tolerance | views of samples | seen | agreement of lseg, dino, diffusion | first place right | AUROC |"
        )
        print("|---|---|---|---|---|---|")
        for tolerance in TOLERANCES:
            print(f"| {tolerance:g} | {measure_capture(lounge, tolerance)} |", flush=True)
    exact = [make_room(FIRST_SEED + seed, split="val") for seed in range(rooms)]
    for name, scenes in (("noise", exact), ("noise and drift", [drifting(scene) for scene in exact])):
        print(f"\n| {name}: tolerance | views of samples | seen | agreement | mIoU | mIoU of seen points |")
        print("|---|---|---|---|---|---|")
        for tolerance in TOLERANCES:
            print(f"| {tolerance:g} | {measure_rooms(scenes, tolerance)} |", flush=True)


def measure_capture(folder: Path, tolerance: float) -> str:
    """Lift a capture with the three small teachers and run the pointing game on it."""
    truth = json.loads((folder / "objects.json").read_text())
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        store = fuse(open_dataset(folder), ("mini-lseg", "mini-dino", "mini-diffusion"), tolerance, out / "store")
        words = [*truth["present"], *truth["absent"]]
        ask_store(store, Predictor.open(store), words, out / "answers.json")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            runpy.run_path(str(folder / "pointing.py"))["main"](out / "answers.json")
        first, auroc = said.getvalue().split("first place right ")[1].split(",")[0], said.getvalue().split()[-1]
        return f"{describe(store)} | {first} | {auroc}"


def measure_rooms(scenes: Sequence[Scene], tolerance: float) -> str:
    """Lift rooms with the small segmenter and segment them by class names."""
    with tempfile.TemporaryDirectory() as temporary:
        store = fuse(Held(scenes, tolerance), ("mini-lseg",), tolerance, Path(temporary) / "store")
        rows = [pipeline.evaluate(store, Predictor.open(store), seen_only=seen)[0] for seen in (False, True)]
        return f"{describe(store)} | {rows[0].miou:.2f} | {rows[1].miou:.2f}"


def fuse(dataset: Dataset, teachers: Sequence[str], tolerance: float, out: Path) -> Store:
    held = Held([dataset[index] for index in range(len(dataset))], tolerance)
    return pipeline.fuse(held, [load_teacher(name) for name in teachers], out)


def describe(store: Store) -> str:
    """Format the number of (view, visible sample) pairs, the fraction of seen samples, and the agreement of views."""
    scenes = [store[name] for name in store.names()]
    pairs = sum(int(scene.num_views.sum()) for scene in scenes)
    seen = sum(len(scene.seen_samples) for scene in scenes) / sum(len(scene.num_views) for scene in scenes)
    agreement = {
        teacher: np.mean([store.lifting(scene.name)[teacher].agreement for scene in scenes])
        for teacher in store.teachers
    }
    return f"{pairs:,} | {100 * seen:.1f} % | {', '.join(f'{value:.3f}' for value in agreement.values())}"


def drifting(scene: Scene) -> Scene:
    """Move each camera a little; cloud, depth and colours are unchanged."""
    rng = np.random.default_rng(len(scene.points))

    def move(frame: Frame) -> Frame:
        drift = np.eye(4)
        drift[:3, 3] = rng.normal(0, DRIFT[0], 3)
        drift[:3, :3] = Rotation.from_euler("xyz", rng.normal(0, DRIFT[1], 3), degrees=True).as_matrix()
        pose = frame.camera.world_from_camera @ torch.from_numpy(drift)
        return replace(frame, camera=replace(frame.camera, world_from_camera=pose))

    return replace(scene, frames=tuple(move(frame) for frame in scene.frames))


if __name__ == "__main__":
    tyro.cli(main)
