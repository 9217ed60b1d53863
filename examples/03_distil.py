"""Distil two teachers into one student that sees geometry only, and ask it about points that no view saw.

Lifted features exist only where a camera looked. A student learns to predict them from the shape of the scene, so it
describes every point, also those of scenes without any images. Twenty steps on two made rooms show that the loss falls;
for answers that are worth something take more rooms and the recipe's own length.

    python examples/03_distil.py
    python examples/03_distil.py STORE

The same on the command line, where every setting of the recipe is an option (`--config.NAME`):

    cuao3d distill STORE --out RUN --steps 20 --voxel-size 0.2
    cuao3d query STORE --run RUN "a bed" --out places.json
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import cuao3d


def make_store(folder: Path) -> cuao3d.Store:
    """Lift two small teachers onto two made rooms."""
    teachers = [cuao3d.load_teacher(name) for name in ("mini-lseg", "mini-dino")]
    return cuao3d.fuse(cuao3d.Rooms([0, 1], num_views=4), teachers, folder / "store", cell=0.1)


def main(path: str | None = None, num_steps: int = 20) -> None:
    """Train a student on a store, or on made rooms."""
    with tempfile.TemporaryDirectory() as folder:
        store = cuao3d.Store.open(path) if path else make_store(Path(folder))
        config = cuao3d.recipes.mini(teachers=store.teachers, num_steps=num_steps)
        config = replace(config, voxel_size=0.2)  # coarse, to be quick; the recipe's are 0.12 m
        run = cuao3d.distill_student(store, config, Path(folder) / "run")
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for teacher in config.teachers:
            first, last = (steps[index]["losses"][teacher] for index in (0, -1))
            print(f"loss of {teacher}: {first:.3f} in the first step, {last:.3f} in step {len(steps)}")

        scene = store[store.names()[0]]
        for predictor in (cuao3d.Predictor.open(store), cuao3d.Predictor.open(store, run=run)):
            (answer,) = predictor.ask(scene, ["a bed"])
            print(predictor.about, f"{answer.coverage:.0%} of the points of {scene.name} are described.")


if __name__ == "__main__":
    main(*sys.argv[1:2])
