"""`cuao3d distill`: a store becomes a student."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, Suppress

from cuao3d.cli.settings import flag_of, join_options
from cuao3d.cli.shared import check_device, note_missing, split_names
from cuao3d.cli.training import configurable, configure, train_shown
from cuao3d.console import tell
from cuao3d.errors import InputError
from cuao3d.schema import CountOrZero, Length, Range, Seed

if TYPE_CHECKING:
    from cuao3d.distill import DistillConfig
    from cuao3d.store import Store

Recipe = Literal["mini", "ours", "closed-set", "paper", "released-code", "openscene"]


def distill(
    store: Positional[Path | None] = None,
    *,
    out: Path,
    lift: Path | None = None,
    cache_gb: Annotated[float, Range(1e-3, 1e6)] = 10.0,
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
        store: Folder of the store; none with --lift.
        out: Folder of the run.
        lift: Instead of a store, the data: the teachers (--teachers, as of `cuao3d fuse`) lift the scenes of the next
            steps while the student trains, and again whenever their turn comes; see docs/scale.md.
        cache_gb: Gigabytes of features that --lift keeps at a time, in OUT.lifted beside the run until it is finished.
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
    check_device(device)
    options = {
        "--teachers": ("teachers", None if teachers is None else tuple(split_names(teachers))),
        "--voxel-size": ("voxel_size", voxel_size),
        "--steps": ("num_steps", steps),
        "--seed": ("seed", seed),
    }
    if (store is None) == (lift is None):
        raise InputError("Give either the folder of a store, or --lift DATA with --teachers.")
    settings = join_options(config or {}, options)

    def configure_for(held: "Store") -> "DistillConfig":
        named = {} if lift is None else {"teachers": tuple(held.teachers)}
        return _configure(held, recipe, config_file, settings | named)

    lifting = None
    if lift is not None:
        lifting = partial(_lifted, lift, teachers, out, cache_gb, voxel_size, configure_for, resume != "auto")
    return _train(store or out, lifting, configure_for, out, resume, device)


def _train(
    path: Path,
    lifting: "Callable[[str], AbstractContextManager[tuple[Store, DistillConfig] | None]] | None",
    configure_for: "Callable[[Store], DistillConfig]",
    out: Path,
    resume: str,
    device: str,
) -> int:
    """Train on the store at a path, or on one that `lifting` makes for a device; return the exit code."""
    from cuao3d import distill as room
    from cuao3d.files import read_whole_json
    from cuao3d.ranks import joined
    from cuao3d.store import Store

    with joined(device) as own, ExitStack() as stack:
        if lifting is None:
            opened = Store.open(path)
            config = configure_for(opened)
        else:
            if (made := stack.enter_context(lifting(own))) is None:
                tell(f"{out} is finished already")
                return note_missing((read_whole_json(out / "run.json") or {}).get("missing_scenes", {}))
            opened, config = made
        learned = ", ".join(config.teachers)
        train_shown(room.distill, opened, config, out, resume, own, title="distilling", learned=learned)
        missing = opened.missing()
    return note_missing(missing)


@contextmanager
def _lifted(
    data: Path,
    names: str | None,
    out: Path,
    cache_gb: float,
    voxel_size: float | None,
    configure_for: Callable[["Store"], "DistillConfig"],
    anew: bool,
    device: str,
) -> Iterator[tuple["Store", "DistillConfig"] | None]:
    """Load teachers and make a store that they lift on demand; the settings are checked before anything is lifted.

    Nothing is lifted for a run that is finished, unless it is to be trained `anew`.
    """
    from cuao3d.distill import is_finished
    from cuao3d.pipeline.on_demand import lifted_on_demand
    from cuao3d.progress import waiting
    from cuao3d.readers import open_dataset
    from cuao3d.store import CELL, Store
    from cuao3d.teachers import cards_of, load_teacher, parse_teachers

    if names is None:
        raise InputError("--lift needs the teachers: --teachers lseg,dinov2, or as `cuao3d fuse` takes them.")
    specs, folder = parse_teachers(names), out.with_name(f"{out.name}.lifted")
    dataset = open_dataset(data)
    with waiting("loading the teachers"):
        loaded = [load_teacher(spec, device=device) for spec in specs]
    settings, cell = {"data": data.resolve().name}, min(CELL, voxel_size or CELL)
    config = configure_for(asked := Store(folder, cell, cards_of(loaded), dict(settings)))
    if not anew and not folder.exists() and is_finished(out, config, asked, dataset.names):
        yield None
        return
    with lifted_on_demand(dataset, loaded, folder, cache_gb=cache_gb, cell=cell, settings=settings) as store:
        yield store, config


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
