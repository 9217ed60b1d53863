"""`cuao3d distill`: a store becomes a student."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from cuao3d.cli.shared import split_names


def distill(
    store: Positional[Path],
    *,
    out: Path,
    recipe: Literal["mini", "ours", "paper", "released-code", "openscene"] = "mini",
    teachers: str | None = None,
    voxel_size: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: str = "auto",
) -> int:
    """Train a student on the lifted features of a store's training scenes.

    Several processes train one student together: torchrun --nproc-per-node 2 -m cuao3d distill ...

    Args:
        store: Folder of the store.
        out: Folder of the run.
        recipe: Complete configuration to start from; "mini" suits a laptop, "ours" is its like at the
            paper's size.
        teachers: Names of the teachers to learn from, separated by commas; all of the store unless given.
        voxel_size: Edge of a voxel, metres; the recipe's unless given, and never finer than the store's cell.
        steps: Steps of the optimiser; the recipe's length unless given.
        seed: Decides the initial weights and all that is random.
        device: Where to train, such as cuda.
        resume: "auto" goes on from where the run was interrupted, if it was; "never" begins it again; otherwise the
            checkpoint to go on from, or the folder of an unfinished run.
    """
    from dataclasses import replace
    from functools import partial

    from cuao3d import distill as room
    from cuao3d import recipes
    from cuao3d.history import draw_history, read_history
    from cuao3d.progress import Stages, training_bars
    from cuao3d.ranks import joined, rank
    from cuao3d.store import Store

    opened = Store.open(store)
    names = tuple(split_names(teachers) or opened.teachers)
    if recipe in ("mini", "ours"):
        config = (recipes.mini if recipe == "mini" else recipes.ours)(teachers=names, seed=seed)
    else:
        recipe_of = {"paper": recipes.paper, "released-code": recipes.released_code, "openscene": recipes.openscene}
        config = recipe_of[recipe](seed=seed)
        config = replace(config, teachers=names, losses=())
    config = replace(config, voxel_size=max(config.voxel_size, opened.cell) if voxel_size is None else voxel_size)
    config = replace(config, num_steps=config.num_steps if steps is None else steps)
    with joined(device) as device:
        train = partial(room.distill, opened, config, out, resume=resume, device=device)
        if rank() > 0:
            train()
            return 0
        with Stages()("distilling") as said, training_bars(["distilling"]) as (on_step,):
            train(on_step=on_step)
            draw_history(read_history(out), out / "training.png")
            said.append(f"{', '.join(names)} into {out}, its course in {out / 'training.png'}")
    return 0
