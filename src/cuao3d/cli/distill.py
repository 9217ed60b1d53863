"""`cuao3d distill`: a store becomes a student."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional, Suppress

from cuao3d.cli.settings import flag_of, join_options
from cuao3d.cli.shared import check_device, note_missing, split_names
from cuao3d.cli.training import configurable, configure, train_shown
from cuao3d.errors import InputError
from cuao3d.schema import CountOrZero, Length, Seed

if TYPE_CHECKING:
    from cuao3d.distill import DistillConfig
    from cuao3d.store import Store

Recipe = Literal["mini", "ours", "closed-set", "paper", "released-code", "openscene"]


def distill(
    store: Positional[Path],
    *,
    out: Path,
    recipe: Recipe = "mini",
    config_file: Path | None = None,
    teachers: str | None = None,
    voxel_size: Length | None = None,
    steps: CountOrZero | None = None,
    seed: Seed | None = None,
    device: str = "cpu",
    resume: str = "auto",
    config: Suppress[Any] = None,
) -> int:
    """Train a student on the lifted features of a store's training scenes.

    Several processes train one student together: torchrun --nproc-per-node 2 -m cuao3d distill ...

    Args:
        store: Folder of the store.
        out: Folder of the run.
        recipe: Configuration to start from; "mini" suits a laptop, "ours" is the same at the paper's size. "closed-set"
            adds a vocabulary (--config.words), whose words count as seen in every table.
        config_file: Start from the configuration of a run instead: its config.json, or its folder.
        teachers: Names of the teachers to learn from, separated by commas. Unless given: all of the store for the
            recipes "mini", "ours" and "closed-set", otherwise those of the recipe or of the configuration file.
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
    from cuao3d import distill as room
    from cuao3d.ranks import joined
    from cuao3d.store import Store

    check_device(device)
    options = {
        "--teachers": ("teachers", None if teachers is None else tuple(split_names(teachers))),
        "--voxel-size": ("voxel_size", voxel_size),
        "--steps": ("num_steps", steps),
        "--seed": ("seed", seed),
    }
    settings = join_options(config or {}, options)
    opened = Store.open(store)
    with joined(device) as own:
        config = _configure(opened, recipe, config_file, settings)
        learned = ", ".join(config.teachers)
        train_shown(room.distill, opened, config, out, resume, own, title="distilling", learned=learned)
    return note_missing(opened.missing())


def configurable_distill(arguments: list[str]) -> Callable[..., int]:
    """Return the command with an option for each setting; the defaults are those of the recipe or file it is given."""
    from cuao3d import recipes
    from cuao3d.distill import DistillConfig

    return configurable(distill, recipes.RECIPES, DistillConfig, arguments)


def _configure(store: "Store", recipe: str, file: Path | None, settings: dict[str, Any]) -> "DistillConfig":
    """Fit a recipe or a run's configuration to a store, and change the settings that were typed.

    Raises:
        InputError: The store lacks a teacher, or a setting has no effect.
    """
    from cuao3d import recipes
    from cuao3d.distill import DistillConfig, idle_settings
    from cuao3d.run import read_config
    from cuao3d.teachers import canonical

    start = recipes.RECIPES[recipe]() if file is None else read_config(file, DistillConfig)
    all_of_store = file is None and recipe in recipes.FOR_ANY_TEACHERS
    names = settings.pop("teachers", tuple(store.teachers) if all_of_store else start.teachers)
    names = tuple(canonical(name, store.teachers) for name in names)
    missing = [name for name in names if name not in store.teachers]
    if missing:
        raise InputError(
            f"{store.path} has no features of {', '.join(missing)}; it holds those of "
            f"{', '.join(store.teachers) or 'no teacher'}. Choose among these with --teachers, or lift the others with "
            "`cuao3d fuse`."
        )
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"--teachers names {'a teacher twice' if names else 'no teacher'}; {store.path} has features of "
            f"{', '.join(store.teachers) or 'none'}."
        )
    cards = {name: store.teachers[name] for name in names}
    start = recipes.RECIPES[recipe](teachers=cards) if file is None else recipes.with_teachers(start, cards)
    config: DistillConfig = configure(start, settings, store, f"the recipe {recipe!r}" if file is None else str(file))
    for setting, reason in idle_settings(config, cards).items():
        if setting in settings:
            raise InputError(f"{flag_of(setting)} has no effect {reason}.")
    return config
