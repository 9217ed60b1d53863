"""From data to a store: every scene of a dataset is seen, lifted and written."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from socket import gethostname
from typing import Any, cast

import torch
from torch import Tensor

from cuao3d.codecs import Codec, Coded, Projection
from cuao3d.console import note, progress_bar
from cuao3d.durable import locked, sweep_lock
from cuao3d.errors import DiskFullError, InputError, TeacherError, UserError
from cuao3d.fusion import Lifted, Visibility, image_quarters, lift_together, sample_cells, see
from cuao3d.memory import give_back
from cuao3d.objective import find_loss
from cuao3d.photographs import Album
from cuao3d.pipeline.bases import NUM_EXACT, fit_bases
from cuao3d.pipeline.on_ray import RayCluster, check_sees, run_on_ray
from cuao3d.pipeline.shards import OtherTeachersError, Shard, check_is_written, roll_locked, scene_locked, still_needed
from cuao3d.pipeline.unfinished import LONG, KeptSums
from cuao3d.progress import OnCount, OnStep
from cuao3d.readers import Dataset
from cuao3d.scene import Scene, Source
from cuao3d.seals import tensors_sha256
from cuao3d.store import CELL, Lifting, Setting, Store, TeacherCard
from cuao3d.store.plan import Change, OtherCaptureError, begin, check_names, end, manifest_sha256, plan
from cuao3d.store.revise import change_teachers, manifest_of, num_views
from cuao3d.store.sources import Record, record, source_of, source_of_scene
from cuao3d.teachers import Teacher, cards_of, known_card
from cuao3d.teachers.views import BATCH
from cuao3d.text import load_text_encoder
from cuao3d.view_weights import ViewWeights
from cuao3d.workers import side_by_side


def fuse(
    dataset: Dataset,
    teachers: Sequence[Teacher],
    out: Path | str,
    *,
    cell: float = CELL,
    settings: Mapping[str, Setting] | None = None,
    batch_size: int = BATCH,
    upright: bool = True,
    codec: str | None = None,
    view_weights: ViewWeights = "none",
    num_workers: int = 1,
    load: Callable[[], Sequence[Teacher]] | None = None,
    shard: Shard | None = None,
    ray: RayCluster | None = None,
) -> Store:
    """Lift every scene of a dataset into a store; a broken one is reported.

    A scene that is there is lifted again if what decides it changed: its files, `capture.json`, the cell, `upright`,
    weights, options or code of the teachers. Teachers that are new are added; those that are not asked for are dropped.

    Args:
        dataset: The scenes; one that has `source(index)` need not be read to know whether it has changed.
        teachers: The teachers; empty for points alone.
        out: Folder of the store.
        cell: Edge of a sample cell, metres.
        settings: Further settings that all depend on; a store made with others, apart from `OF_SCENES`, is refused.
        batch_size: Views shown to a teacher at a time, if it takes several.
        upright: Show each view turned by the nearest quarter so that the world's up is up; the store records it.
        codec: How the store keeps features; see `Codec.FORMS`. None: as the store that is there, fp16 in a new one.
        view_weights: How much each view counts in a mean; see `view_weights.py`.
        num_workers: Processes that share the scenes; see `side_by_side`.
        load: How each of several processes gets the teachers; they are copied to it unless given.
        shard: Lift only this share; others may lift theirs into the same store meanwhile, on other machines too.
        ray: Lift on a Ray cluster whose nodes see data and store under the same paths; not with `num_workers`.

    Returns:
        The store, with every scene that could be lifted; `Store.missing` names the others.

    Raises:
        InputError: A teacher or the codec is invalid, two scenes have one name, no scene of all could be read, the
            folder holds something else, or another process writes the store, other than a share of the same.
        NotInstalledError: Ray is not installed.
    """
    _check_cards(cards := cards_of(teachers))
    check_names(dataset.names, partial(source_of, dataset))
    share = range(len(dataset)) if shard is None else shard.of(len(dataset))
    with locked(Path(out), shared=shard is not None):
        asked = {**(settings or {}), "upright": upright} | _weighted(view_weights)
        kept = None if codec is None else Codec.parse(codec)
        how: dict[str, Any] = {"codec": kept, "cell": cell, "teachers": cards, "settings": asked}
        store, changes = _begin(dataset, share, Path(out), teachers, how, batch_size)
        load = partial(list, teachers) if load is None or (num_workers == 1 and ray is None) else load
        lift = partial(_Lift, store, batch_size, upright)
        broken = _fuse_in_parallel(dataset, changes, load, lift, ray or num_workers)
        with roll_locked(store.path):
            check_is_written(store)
            end(store, broken, list(changes))
    _say_broken(broken, is_all=shard is None and len(broken) == len(dataset))
    return store


def _weighted(view_weights: ViewWeights) -> dict[str, Setting]:
    return {} if view_weights == "none" else {"view_weights": view_weights}


def _begin(
    dataset: Dataset,
    share: Sequence[int],
    out: Path,
    teachers: Sequence[Teacher],
    asked: Mapping[str, Any],
    batch_size: int,
) -> tuple[Store, dict[str, Change]]:
    """Make a store or go on with one, and write down what its scenes need; of several processes one at a time."""
    with roll_locked(out):
        store = Store.create(out, **asked, revise=True)
        upright = bool(store.settings["upright"])
        fit_bases(store, dataset, teachers, batch_size=batch_size, upright=upright)
        changes = _plan(dataset, share, store, upright)
        begin(store, changes, [name for name in dataset.names if name not in changes])
    _say_changes(changes)
    return store, changes


def _check_cards(cards: Mapping[str, TeacherCard]) -> None:
    """Check losses and text encoders of teachers before any scene is lifted.

    Raises:
        InputError: There is no such loss, or the text encoder cannot be loaded or does not fit the features.
    """
    for name, card in cards.items():
        try:
            find_loss(card.loss, card.num_channels)
        except UserError as error:
            raise InputError(f"Teacher {name!r}: {error}") from error
        known = known_card(name)
        if card.text is None or (known and (known.text, known.num_channels) == (card.text, card.num_channels)):
            continue
        try:
            encoder = load_text_encoder(card.text)
            width = encoder.num_channels
        except UserError as error:
            raise InputError(f"Teacher {name!r} names the text encoder {card.text!r}: {error}") from error
        if width != card.num_channels:
            raise InputError(
                f"Teacher {name!r} has {card.num_channels} channels, the vectors of its text encoder {card.text!r} "
                f"{width}: its words could never be compared with its features."
            )


def _upright_too(source: Source, upright: bool) -> Source:
    return replace(source, settings={**source.settings, "upright": upright})


def _plan(dataset: Dataset, share: Sequence[int], store: Store, upright: bool) -> dict[str, Change]:
    """Find out what each scene of a share needs."""
    changes = {dataset.names[index]: _plan_scene(dataset, index, store, upright) for index in share}
    for name in [name for name, change in changes.items() if change.kind == "there"]:
        sweep_lock(store.path / "scenes" / name)  # nobody will take it again
    return changes


def _plan_scene(dataset: Dataset, index: int, store: Store, upright: bool) -> Change:
    """Find out what a scene needs; where the dataset does not tell and it is there, it is read for it."""
    name = dataset.names[index]
    try:
        source = source_of(dataset, index)
        if source is None and manifest_of(store, name) is not None:
            source = source_of_scene(dataset[index])
        return plan(store, name, _upright_too(source or Source(), upright))
    except (UserError, OSError) as error:
        if isinstance(error, OtherCaptureError):
            raise
        return Change("again", str(error), outdated=manifest_sha256(store, name))


def _say_changes(changes: Mapping[str, Change]) -> None:
    """Print what of a store stays as it is, and what is lifted again and why."""
    there = sum(change.kind == "there" for change in changes.values())
    lines = [f"{_scenes(there)} {'was' if there == 1 else 'were'} there already"] if there else []
    again = [f"{name} ({change.reason})" for name, change in changes.items() if change.kind == "again"]
    lines += [f"{_scenes(len(again))} lifted again: {', '.join(again)}"] if again else []
    further = Counter(change.teachers for change in changes.values() if change.kind == "teachers")
    for teachers, count in further.items():
        what = f"only {', '.join(teachers)} lifted" if teachers else "features of other teachers dropped"
        lines.append(f"{_scenes(count)}: {what}")
    for line in lines:
        note(line)


def _say_broken(broken: Mapping[str, str], *, is_all: bool) -> None:
    """Print why scenes were left out; raise InputError if these are all."""
    lines = [f"{name}: {reason}" for name, reason in broken.items()]
    for line in lines:
        note(line, head="left out")
    if is_all:
        raise InputError(f"No scene could be lifted. {lines[0] if lines else 'The dataset is empty.'}")


def _scenes(count: int) -> str:
    return f"{count} scene{'' if count == 1 else 's'}"


def _fuse_in_parallel(
    dataset: Dataset,
    changes: Mapping[str, Change],
    load: Callable[[], Sequence[Teacher]],
    how: Callable[[Sequence[Teacher]], "_Lift"],
    num_workers: int | RayCluster,
) -> dict[str, str]:
    """Lift the scenes that need it; return the reason of each that is broken, by name."""
    todo = [index for index, name in enumerate(dataset.names) if name in changes and changes[name].kind != "there"]
    if isinstance(num_workers, RayCluster):
        return _fuse_on_ray(dataset, changes, todo, partial(_on_node, dataset, changes, load, how), num_workers)
    shares = [todo[first::num_workers] for first in range(num_workers)]
    num_done = [len(changes) - len(todo), *[0] * num_workers]
    with progress_bar() as bar:
        task = bar.add_task("lifting", total=len(changes), completed=num_done[0])

        def say(share: int, done: int, total: int, line: str) -> None:
            num_done[share + 1] = done
            bar.update(task, completed=sum(num_done), description=f"lifting {line}")

        broken_of_share = side_by_side(
            [partial(_fuse_share, dataset, share, load, how, changes) for share in shares if share], num_workers, say
        )
    return dict(sorted(chain.from_iterable(of_share.items() for of_share in broken_of_share)))


def _fuse_on_ray(
    dataset: Dataset,
    changes: Mapping[str, Change],
    todo: Sequence[int],
    prepare: Callable[[list[Path]], Callable[[int], str | None]],
    cluster: RayCluster,
) -> dict[str, str]:
    """Lift scenes on a Ray cluster; return the reason of each that is broken, by name."""
    if not todo:
        return {}
    folders = [folder for folder in getattr(dataset, "folders", ()) if folder.exists()]
    with progress_bar() as bar:
        num_there = len(changes) - len(todo)
        task = bar.add_task("lifting on Ray", total=len(changes), completed=num_there)

        def say(done: int, name: str) -> None:
            bar.update(task, completed=num_there + done, description=f"lifting on Ray, {name} done")

        reasons, lost = run_on_ray(partial(prepare, folders), todo, dataset.names, cluster, say)
    broken = {index: reason for index, reason in reasons.items() if reason} | lost
    return {dataset.names[index]: broken[index] for index in sorted(broken, key=lambda index: dataset.names[index])}


def _on_node(
    dataset: Dataset,
    changes: Mapping[str, Change],
    load: Callable[[], Sequence[Teacher]],
    how: Callable[[Sequence[Teacher]], "_Lift"],
    folders: Sequence[Path],
) -> Callable[[int], str | None]:
    """Return what lifts a scene on a node of a Ray cluster, once data, store and teachers are those of the command."""
    lift = how(load())
    check_sees([*dict.fromkeys(folders), lift.store.path / "store.json"])
    here = cards_of(lift.teachers)
    if other := [name for name, card in lift.store.teachers.items() if here.get(name) != card]:
        raise InputError(
            f"On the node {gethostname()} of the Ray cluster the teacher {other[0]} has other weights, options or code "
            "than here. Install the same version of cuao3d and of the weights on every node."
        )

    def lift_scene(index: int) -> str | None:
        return _why_broken(dataset, index, lift, changes[dataset.names[index]], lambda line: None)

    return lift_scene


@dataclass(frozen=True)
class _Lift:
    """How scenes are lifted."""

    store: Store
    batch_size: int
    upright: bool
    teachers: Sequence[Teacher] = ()


def _fuse_share(
    dataset: Dataset,
    share: Sequence[int],
    load: Callable[[], Sequence[Teacher]],
    how: Callable[[Sequence[Teacher]], _Lift],
    changes: Mapping[str, Change],
    on_step: OnStep,
) -> dict[str, str]:
    """Lift some scenes of a dataset; return the reason of each that is broken, by name."""
    lift, broken = how(load()), {}
    for done, index in enumerate(share):
        name = dataset.names[index]
        say = partial(on_step, done, len(share))
        say(name)
        if reason := _why_broken(dataset, index, lift, changes[name], say):
            broken[name] = reason
        on_step(done + 1, len(share), name)
    return broken


def _why_broken(dataset: Dataset, index: int, lift: _Lift, change: Change, say: Callable[[str], None]) -> str | None:
    """Lift one scene into a store, unless another process has meanwhile; return the reason if it is broken."""
    name, store = dataset.names[index], lift.store
    try:
        with scene_locked(store, name, say):
            change = still_needed(store, name, change, partial(_plan_scene, dataset, index, store, lift.upright))
            if change.kind != "there":
                _fuse_scene(dataset, index, lift, change, say)
    except (TeacherError, DiskFullError, OtherTeachersError):
        raise  # it would break every other scene too
    except (UserError, OSError) as error:
        return str(error) or type(error).__name__
    finally:
        give_back()
    return None


def _fuse_scene(dataset: Dataset, index: int, lift: _Lift, change: Change, say: Callable[[str], None]) -> None:
    """Lift one scene into a store, or only the teachers that it lacks."""
    source = source_of(dataset, index)
    before = None if source is None else record(_upright_too(source, lift.upright))
    if change.kind == "teachers" and not change.teachers and before:
        change_teachers(lift.store, dataset.names[index], {}, {}, before)
        return
    scene = dataset[index]
    made_from = before or record(_upright_too(source_of_scene(scene), lift.upright))
    if change.kind != "teachers" or not _add_teachers(scene, lift, change.teachers, made_from, say):
        _lift_scene(scene, lift, made_from, say)


def _add_teachers(
    scene: Scene, lift: _Lift, names: Sequence[str], made_from: Record, say: Callable[[str], None]
) -> bool:
    """Lift some teachers onto the samples of a scene that is there; say whether they see the same samples."""
    samples = sample_cells(scene.points, lift.store.cell)
    visibility = see(scene, samples, progress=_progress(scene, "visibility", say))
    teachers = [one for one in lift.teachers if one.name in names]
    lifted = _lifted(scene, visibility, teachers, lift, made_from, say)
    there = num_views(lift.store, scene.name)
    if not all(torch.equal(one.visibility.num_views, there) for one in lifted.values()):
        return False  # a view that the others could read is gone, or one is back
    found = _Found.of(lifted, lift.store)
    change_teachers(
        lift.store,
        scene.name,
        found.features,
        found.lifting,
        made_from,
        disagreement=found.disagreement,
        errors=found.errors,
    )
    return True


def _lift_scene(scene: Scene, lift: _Lift, made_from: Record, say: Callable[[str], None]) -> None:
    """Lift one scene into a store."""
    if lift.teachers and scene.frames and not any(frame.has_colors for frame in scene.frames):
        raise InputError("it has no colour images, which teachers look at; add them, or lift none: --teachers none.")
    samples = sample_cells(scene.points, lift.store.cell)
    visibility = see(scene, samples, progress=_progress(scene, "visibility", say))
    album = Album(scene, visibility, image_quarters(scene, upright=lift.upright and bool(lift.teachers)))
    lifted = _lifted(album.watch(scene), visibility, lift.teachers, lift, made_from, say)
    for one in lifted.values():
        visibility = one.visibility
    found = _Found.of(lifted, lift.store)
    lift.store.add_scene(
        scene,
        samples,
        visibility,
        found.features,
        disagreement=found.disagreement,
        errors=found.errors,
        lifting=found.lifting,
        photographs=album.tensors(visibility) if lift.teachers else None,
        source=made_from,
    )


@dataclass(frozen=True)
class _Found:
    """What teachers saw of a scene, by their names."""

    features: dict[str, Tensor]
    disagreement: dict[str, Tensor]
    errors: dict[str, float | None]
    lifting: dict[str, Lifting]

    @staticmethod
    def of(lifted: Mapping[str, Lifted], store: Store) -> "_Found":
        """Collect it, and measure how far what the store keeps lies from what was not projected."""
        features = {name: one.features for name, one in lifted.items()}
        errors = dict[str, float | None]()
        for name, one in lifted.items():
            if one.exact is not None and (basis := store.basis(name)) is not None:
                features[name] = Projection(basis).codes(one.features)
                which, exact = one.exact
                coded = Coded.of(features[name].cpu(), store.codec, basis)
                errors[name] = coded.cosine_error(exact.cpu(), which)
        disagreement = {name: one.disagreement for name, one in lifted.items()}
        return _Found(features, disagreement, errors, {name: _about(one) for name, one in lifted.items()})


def _lifted(
    scene: Scene,
    visibility: Visibility,
    teachers: Sequence[Teacher],
    lift: _Lift,
    made_from: Record,
    say: Callable[[str], None],
) -> dict[str, Lifted]:
    """Lift teachers onto a scene; a walk that was interrupted goes on.

    Raises:
        InputError: No view is left, for a teacher gives no finite values.
    """
    frames = torch.tensor([view.frame for view in visibility.views])
    about = {"source": made_from.as_json(), "batch_size": lift.batch_size, "teachers": [one.name for one in teachers]}
    about["seen"] = tensors_sha256({"frames": frames, "num_views": visibility.num_views}, {})
    bases = {one.name: lift.store.basis(one.name) for one in teachers}
    lifted = lift_together(
        scene,
        visibility,
        teachers,
        batch_size=lift.batch_size,
        upright=lift.upright,
        skip_unreadable=True,
        view_weights=cast(ViewWeights, lift.store.settings.get("view_weights", "none")),
        through={name: Projection(basis) for name, basis in bases.items() if basis is not None},
        num_exact=NUM_EXACT,
        unfinished=KeptSums.of(lift.store, scene.name, about) if len(visibility.views) > LONG else None,
        progress=_progress(scene, "lifting", say),
    )
    for seen in (one.visibility for one in lifted.values()):
        if not seen.views and (why := [problem.text for problem in seen.problems if problem.kind == "features"]):
            raise InputError(f"no view is left. {why[0]}")
    return lifted


def _about(lifted: Lifted) -> Lifting:
    """Note how the lifting of a teacher went."""
    agreement = None if math.isnan(lifted.agreement) else round(lifted.agreement, 4)
    return Lifting(round(lifted.seconds, 3), len(lifted.visibility.views), agreement)


def _progress(scene: Scene, what: str, say: Callable[[str], None]) -> OnCount:
    return lambda done, total: say(f"{scene.name}, {what}, view {done} of {total}")
