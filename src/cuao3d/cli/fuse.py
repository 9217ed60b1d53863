"""`cuao3d fuse`: a capture or a dataset becomes a store."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from cuao3d.cli.shared import LEFT_OUT, check_device, reading_options
from cuao3d.console import counted, note
from cuao3d.errors import InputError, UserError
from cuao3d.schema import Count, Fraction, Length, Range

DEFAULT = "photo"
"""Teacher of a store unless others are named."""

if TYPE_CHECKING:
    from cuao3d.pipeline.on_ray import RayCluster
    from cuao3d.pipeline.shards import Shard
    from cuao3d.readers import Dataset
    from cuao3d.store import Store
    from cuao3d.teachers import Teacher, TeacherSpec
    from cuao3d.teachers.network import Precision


def fuse(
    path: Positional[Path],
    *,
    out: Path,
    teachers: str | None = None,
    cell: Length = 0.02,
    device: str = "cpu",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    batch_size: Count = 4,
    upright: bool = True,
    codec: str | None = None,
    view_weights: Literal["none", "robust", "geometry"] = "none",
    workers: Annotated[int, Range(1, 1024)] | None = None,
    shard: str | None = None,
    ray: Annotated[tuple[str, ...] | None, arg(metavar="[ADDRESS]")] = None,
    annotations: str | None = None,
    tolerance: Fraction | None = None,
    every: Count | None = None,
    official: bool = False,
) -> int:
    """Lift the features of 2D teachers to the points of a capture, or of every scene of a dataset.

    Args:
        path: Folder of the capture or of the dataset, or the file of a lone cloud; scenezoo:NAME:FOLDER by scenezoo.
        out: Folder of the store to make, or to go on with.
        teachers: Names of the teachers, separated by commas; "none" for points alone. The default, photo, learned from
            photographs; mini-lseg,mini-dino,mini-diffusion learned from made rooms. NAME:KEY=VALUE,... sets options,
            NAME=FOLDER says where weights lie, FILE.py:CLASS is your own. Other teachers of a store are dropped.
        cell: Edge of a sample cell, metres.
        device: Where the teachers run, such as cuda.
        precision: What the teachers compute in.
        batch_size: Views shown to a teacher at a time; halved where memory runs out.
        upright: Show each view turned by the nearest quarter so that the world's up is up.
        codec: How features are kept: fp16; int8; pca:K, in the K directions that fit each teacher best; or pca:K+int8,
            such as pca:256+int8. Settled when the store is made, fp16 unless given; `store convert` makes another.
        view_weights: How much each view counts in the mean of a point's features: none, all the same; robust, less the
            farther it lies from what all say together; geometry, less from afar, at a slant and near a border.
        workers: Processes that share the scenes, one unless given, or with --ray one a GPU or four cores.
        shard: Lift only a share of the scenes, i/n: the i-th of n, also beside others; see docs/scale.md.
        ray: Lift on the Ray cluster of ADDRESS (HOST:PORT or auto) or of $RAY_ADDRESS, or on one started here.
        annotations: Label set in which the labels of the data are read: a name such as scannet200, or your own CSV.
        tolerance: Part of the measured depth by which a point may lie off it and still be visible, such as 0.1.
        every: Use only every n-th frame, where the dataset is a recording, such as raw ScanNet.
        official: Read cameras as the official pipeline does, where it differs; see docs/conventions.md.
    """
    from cuao3d.pipeline.shards import Shard
    from cuao3d.readers import open_dataset
    from cuao3d.teachers import parse_teachers

    cluster, share = _cluster(ray, device, workers), Shard.read(shard) if shard else None
    _check_nothing_is_dropped_unasked(teachers, out)
    reading = reading_options(annotations, tolerance, every, official=official)
    dataset = open_dataset(path, **reading)
    load = partial(_load_teachers, specs := parse_teachers(teachers or DEFAULT), device, precision)
    loaded = _load_with_notes(load if cluster is None else partial(_load_teachers, specs, "cpu", precision))
    reading |= {"annotations": Path(annotations).name} if annotations else {}  # a CSV may move
    how = {"settings": {"data": path.resolve().name, **reading}, "cell": cell, "codec": codec, "upright": upright}
    how |= {"view_weights": view_weights, "batch_size": batch_size, "num_workers": workers or 1} | {"load": load}
    how["ray"] = cluster
    return _fuse_shown(dataset, loaded, out, how, share)


def _fuse_shown(
    dataset: "Dataset", teachers: "Sequence[Teacher]", out: Path, how: dict[str, Any], share: "Shard | None"
) -> int:
    """Lift, and say how it went; return the exit code."""
    from cuao3d import pipeline
    from cuao3d.pipeline.shards import missing_of
    from cuao3d.progress import Stages

    with Stages()("lifting") as said:
        store = pipeline.fuse(dataset, teachers, out, shard=share, **how)
        missing = missing_of(store.missing(), dataset.names, share)
        if share:
            held = f"{len(share.of(len(dataset)))} of {counted(len(dataset), 'scene')}"
            said.append(f"share {share.number}/{share.count}: {held}, {len(missing)} left out")
        said.append(_summarise(store))
    return LEFT_OUT if missing else 0


def _cluster(address: tuple[str, ...] | None, device: str, workers: int | None) -> "RayCluster | None":
    """Read --ray; raise InputError where it does not go together with --device, or this machine has no such device."""
    from cuao3d.pipeline.on_ray import RayCluster

    if address is None:
        check_device(device)
        return None
    if len(address) > 1:
        raise InputError(f"--ray takes one address, not {' '.join(address)}; write DATA first: cuao3d fuse DATA --ray.")
    if device not in ("cpu", "cuda"):
        raise InputError(f"With --ray, --device is cpu or cuda, not {device}: Ray chooses which GPU a worker gets.")
    return RayCluster(address[0] if address else None, num_gpus=float(device == "cuda"), num_workers=workers)


def _check_nothing_is_dropped_unasked(teachers: str | None, out: Path) -> None:
    """Refuse to drop the teachers of a store, hours of work perhaps, where none were typed.

    Raises:
        InputError: The store holds teachers other than the default.
    """
    from cuao3d.store import Store

    if teachers is None and (out / "store.json").is_file():
        held = set[str]()
        with suppress(UserError):  # of a store that cannot be opened the pipeline says more
            held = set(Store.open(out).teachers) - {DEFAULT}
        if held:
            names = ",".join(sorted(held))
            raise InputError(
                f"{out} holds features of {names}. Say which teachers it is to hold: --teachers {names} to go on, "
                f"--teachers {DEFAULT} to drop the others."
            )


def _summarise(store: "Store") -> str:
    """Print what was left out of the scenes of a store; return their number and coverage."""
    scenes = [store.summary(name) for name in store.names()]
    for line in (problem for scene in scenes for problem in scene.problems):
        note(f"left out: {line}")
    seen, total = sum(scene.num_seen for scene in scenes), sum(scene.num_samples for scene in scenes)
    teachers = ", ".join(store.teachers) or "none"
    return f"{store.count_of_scenes()}, {seen} of {total} samples seen, teachers {teachers}"


def _load_with_notes(load: Callable[[], list["Teacher"]]) -> list["Teacher"]:
    """Load teachers, and print what a teacher has to say about itself, such as that a part of it is missing."""
    from cuao3d.progress import waiting

    with waiting("loading the teachers"):
        loaded = load()
    for line in (line for teacher in loaded for line in getattr(teacher, "notes", ())):
        note(line)
    return loaded


def _load_teachers(specs: Sequence["TeacherSpec"], device: str, precision: "Precision") -> list["Teacher"]:
    """Load teachers; each process calls this for itself."""
    from cuao3d.teachers import load_teacher

    return [load_teacher(spec, device=device, precision=precision) for spec in specs]
