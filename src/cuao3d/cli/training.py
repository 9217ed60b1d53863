"""What `cuao3d distill` and `cuao3d supervise` share: where a configuration starts, and how a training shows itself."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuao3d.cli.settings import typed_option, with_config
from cuao3d.console import note
from cuao3d.errors import InputError

if TYPE_CHECKING:
    from cuao3d.store import Store
    from cuao3d.training import TrainConfig


def configurable(
    command: Callable[..., int],
    recipes: Mapping[str, Callable[..., Any]],
    kind: Any,
    arguments: list[str],
) -> Callable[..., int]:
    """Return a command with an option for each setting; the defaults are those of the recipe or file it is given.

    Args:
        command: The command; it has the options --config-file and --recipe.
        recipes: Its recipes, by name; "mini" is the one that it starts from unless told.
        kind: Type of their configurations.
        arguments: What was typed.

    Raises:
        InputError: Both a recipe and a file were typed, or the file holds no such configuration.
    """
    from cuao3d.run import read_config

    file, recipe = typed_option(arguments, "--config-file"), typed_option(arguments, "--recipe")
    if file is not None and recipe is not None:
        raise InputError("--recipe and --config-file both say where to start; give one of them.")
    if file is not None:
        return with_config(command, read_config(Path(file), kind), arguments)
    return with_config(command, recipes.get(recipe or "mini", recipes["mini"])(), arguments)


def configure(start: Any, settings: dict[str, Any], store: "Store", source: str) -> Any:
    """Change the settings that were typed; voxels become no finer than a store's cells unless they were typed.

    Args:
        start: The configuration to start from.
        settings: Settings that were typed, by name.
        store: The store to train on.
        source: Where the configuration is from, for a line on its voxels.
    """
    from dataclasses import replace

    from cuao3d.ranks import rank

    if "voxel_size" not in settings and start.voxel_size < store.cell:
        if rank() == 0:
            note(
                f"Voxels of {store.cell:g} m, the cells of {store.path}, instead of the {start.voxel_size:g} m of "
                f"{source}: those need smaller cells (cuao3d fuse --cell)."
            )
        start = replace(start, voxel_size=store.cell)
    if "num_epochs" in settings and "num_steps" not in settings:
        start = replace(start, num_steps=None)
    return replace(start, **settings)


def train_shown(
    learn: Callable[..., Path],
    store: "Store",
    config: "TrainConfig",
    out: Path,
    resume: str,
    device: str,
    *,
    title: str,
    learned: str,
) -> None:
    """Train; the first process says how it goes and draws the losses.

    Args:
        learn: Trains: `distill.distill` or `supervise.supervise`.
        store: The store.
        config: How to train.
        out: Folder of the run.
        resume: What to resume from.
        device: This process's device.
        title: What is done.
        learned: What is learned, for the last line.
    """
    from cuao3d.history import draw_history, read_history
    from cuao3d.progress import Stages, training_bars
    from cuao3d.ranks import rank

    if rank() > 0:
        learn(store, config, out, resume=resume, device=device)
        return
    with Stages()(title) as said, training_bars([title]) as (on_step,):
        learn(store, config, out, resume=resume, device=device, on_step=on_step)
        history, picture = read_history(out), out / "training.png"
        if history.steps:
            draw_history(history, picture)
        course = f"losses and rates in {picture}" if history.steps else "no step was taken"
        said.append(f"{learned} into {out}; {course}")
