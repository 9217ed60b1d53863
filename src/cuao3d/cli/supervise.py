"""`cuao3d supervise`: a store with labels becomes an upper bound."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional, Suppress

from cuao3d.cli.settings import join_options
from cuao3d.cli.shared import check_device, note_missing
from cuao3d.cli.training import configurable, configure, train_shown
from cuao3d.schema import CountOrZero, Length, Seed

SupervisedRecipe = Literal["mini", "paper"]


def supervise(
    store: Positional[Path],
    *,
    out: Path,
    recipe: SupervisedRecipe = "mini",
    config_file: Path | None = None,
    labels: str | None = None,
    voxel_size: Length | None = None,
    steps: CountOrZero | None = None,
    seed: Seed | None = None,
    device: str = "cpu",
    resume: str = "auto",
    config: Suppress[Any] = None,
) -> int:
    """Train the student's network on the labels of a store's training scenes: the upper bound of what is distilled.

    Score it with `cuao3d evaluate`.

    Args:
        store: Folder of the store.
        out: Folder of the run.
        recipe: Configuration to start from; "mini" suits a laptop, "paper" is the published one.
        config_file: Start from the configuration of a run instead: its config.json, or its folder.
        labels: Label set to learn; short for --config.label-set. The one of the scenes unless given.
        voxel_size: Edge of a voxel, metres; short for --config.voxel-size. A recipe's is enlarged to the store's cell
            where it is finer.
        steps: Steps of the optimiser; short for --config.num-steps. 0 writes the untrained student.
        seed: Decides the initial weights and all that is random; short for --config.seed.
        device: Where to train, such as cuda.
        resume: "auto" goes on from where the run was interrupted, if it was; "never" begins it again; otherwise the
            checkpoint to go on from, or the folder of an unfinished run.
        config: Every setting of the training. What is not given is the recipe's; --help shows that of the recipe that
            it is given.
    """
    from cuao3d import recipes
    from cuao3d import supervise as room
    from cuao3d.ranks import joined
    from cuao3d.run import read_config
    from cuao3d.store import Store

    check_device(device)
    options = {
        "--labels": ("label_set", labels),
        "--voxel-size": ("voxel_size", voxel_size),
        "--steps": ("num_steps", steps),
        "--seed": ("seed", seed),
    }
    settings = join_options(config or {}, options)
    opened = Store.open(store)
    with joined(device) as own:
        if config_file is None:
            start, source = recipes.SUPERVISED_RECIPES[recipe](), f"the recipe {recipe!r}"
        else:
            start, source = read_config(config_file, room.SuperviseConfig), str(config_file)
        made = configure(start, settings, opened, source)
        learned = f"labels of {made.label_set}" if made.label_set else "labels"
        train_shown(room.supervise, opened, made, out, resume, own, title="supervising", learned=learned)
    return note_missing(opened.missing())


def configurable_supervise(arguments: list[str]) -> Callable[..., int]:
    """Return the command with an option for each setting; the defaults are those of the recipe or file it is given."""
    from cuao3d import recipes
    from cuao3d.supervise import SuperviseConfig

    return configurable(supervise, recipes.SUPERVISED_RECIPES, SuperviseConfig, arguments)
