"""Distil by a loss of your own: here the angle between predicted and lifted feature, in radians.

A loss is a function of predicted features (n, C) and a teacher's features (n, C) that returns a loss for each of the n
rows. It is called with a few rows at a time and differentiated by autograd, so nothing as large as all points times
all channels is ever made; the loss of a row must not depend on other rows.

    python examples/08_own_loss.py
    python examples/08_own_loss.py STORE

In Python it is registered under a name. On the command line it goes by its file, which is run; the run's `config.json`
records the file's SHA-256, so another file is another run:

    cuao3d distill STORE --out RUN --teachers mini-lseg --steps 20 --config.losses ./examples/08_own_loss.py:angle
"""

import json
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.nn import functional

import cuao3d


def angle(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the angle between each two rows, radians."""
    cosine = functional.cosine_similarity(predicted, target, dim=1)
    return cosine.clamp(-0.999, 0.999).acos()  # its slope is infinite at 1


cuao3d.LOSSES["angle"] = angle


def main(path: str | None = None, num_steps: int = 20) -> None:
    """Train a student on the first teacher of a store, or on a made room."""
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            rooms, teacher = cuao3d.Rooms([0, 3], num_views=4), cuao3d.load_teacher("mini-lseg")
            store = cuao3d.fuse(rooms, [teacher], Path(folder) / "store", cell=0.1)
        else:
            store = cuao3d.Store.open(path)
        name, card = next(iter(store.teachers.items()))
        config = cuao3d.recipes.mini(teachers={name: card}, num_steps=num_steps)
        config = replace(config, losses=("angle",), voxel_size=0.2)  # coarse voxels, to be quick
        run = cuao3d.distill_student(store, config, Path(folder) / "run")
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        recorded = json.loads((run / "config.json").read_text())["own_code_sha256"]
    first, last = (math.degrees(steps[index]["losses"][name]) for index in (0, -1))
    print(f"angle to the features of {name}: {first:.0f} degrees in the first step, {last:.0f} in step {len(steps)}")
    print(f"the run records the loss by its code: angle, SHA-256 {recorded['angle'][:16]}...")


if __name__ == "__main__":
    main(*sys.argv[1:2])
