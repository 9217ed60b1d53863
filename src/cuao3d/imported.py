"""Fused features on disk become a store: OpenScene's and CUA-O3D's files of a feature per point, teacher by teacher."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from cuao3d.durable import locked
from cuao3d.errors import DiskFullError, InputError, NotFoundError
from cuao3d.fusion import Samples, Visibility, sample_cells
from cuao3d.pickles import read_torch
from cuao3d.readers import Dataset
from cuao3d.readers.openscene import OpenScene
from cuao3d.scene import Problem, Scene, Source
from cuao3d.store import CELL, Setting, Store, TeacherCard
from cuao3d.store.plan import begin, check_names, end, plan
from cuao3d.store.sources import Record, record, source_of
from cuao3d.teachers import canonical, known_card

CHUNK = 1 << 15
"""Features that are brought to single precision at a time."""

OnScene = Callable[[int, int, str], None]
"""Called after each scene with the number done, the total, and a line with its name and what was left out."""


def import_features(
    folders: Mapping[str, Path | str],
    dataset: Dataset,
    out: Path | str,
    *,
    cell: float = CELL,
    text: Mapping[str, str] | None = None,
    settings: Mapping[str, Setting] | None = None,
    on_scene: OnScene | None = None,
) -> Store:
    """Make a store from fused features of a dataset's scenes; scenes that have not changed since are skipped.

    A scene's files are NAME.pt, or NAME_0.pt, NAME_1.pt and so on, each for points of its own: a point takes the mean
    over the files that have it, a sample the mean over the points of its cell that have a feature. With several
    teachers, samples count that all of them describe. A feature of zeros, or one that is not finite, is none. Scenes
    without features, or with damaged ones, are left out and reported.

    Args:
        folders: The folder of each teacher's files, by its name in any spelling; see `canonical`.
        dataset: The scenes that they belong to, as `OpenScene` reads them: with the same points in the same order.
        out: Folder of the store.
        cell: Edge of a sample cell, metres.
        text: Text encoder of teachers whose own is not known here; see `load_text_encoder`.
        settings: What else decides the scenes.
        on_scene: Called after each scene.

    Returns:
        The store, with every scene that has features of all teachers.

    Raises:
        NotFoundError: There is no such folder.
        InputError: No scene has features, `out` holds something else, or another process writes the store.
    """
    folders = {canonical(teacher): folder for teacher, folder in folders.items()}
    paths = {teacher: _files(Path(folder)) for teacher, folder in folders.items()}
    cards = _cards(paths, {canonical(teacher): spec for teacher, spec in (text or {}).items()})
    sources, broken = [_source(dataset, index, paths) for index in range(len(dataset))], dict[str, str]()
    check_names(dataset.names, sources.__getitem__)
    with locked(Path(out)):
        settings = {"features": "imported", **(settings or {})}
        store = Store.create(out, cell=cell, teachers=cards, settings=settings, revise=True)
        changes = {name: plan(store, name, source) for name, source in zip(dataset.names, sources, strict=True)}
        begin(store, changes)
        for index, name in enumerate(dataset.names):
            try:
                line = name
                if changes[name].kind != "there":
                    of_scene = {teacher: _files_of(files, name, folders[teacher]) for teacher, files in paths.items()}
                    made_from, cloud = record(sources[index]), _cloud_of(dataset, index)
                    line = "; ".join([name, *map(str, _add_scene(store, dataset[index], of_scene, cloud, made_from))])
            except DiskFullError:
                raise  # nothing could be written for any other scene either
            except (ValueError, OSError) as error:
                broken[name], line = str(error), f"{name} left out: {error}"
            if on_scene:
                on_scene(index + 1, len(dataset), line)
        end(store, broken)
    if len(broken) == len(dataset):
        raise InputError(f"No scene could be imported. {next(iter(broken.values()), 'The dataset is empty.')}")
    return store


def _cards(paths: Mapping[str, Sequence[Path]], text: Mapping[str, str]) -> dict[str, TeacherCard]:
    return {
        teacher: imported_card(teacher, _width(teacher, files), text.get(teacher)) for teacher, files in paths.items()
    }


def _source(dataset: Dataset, index: int, paths: Mapping[str, Sequence[Path]]) -> Source:
    """Return what decides a scene: its files, and those of its features."""
    of_scene, name = source_of(dataset, index) or Source(), dataset.names[index]
    features = {
        f"features/{teacher}/{path.name}": path
        for teacher, files in paths.items()
        for path in files
        if _is_of(path, name)
    }
    return replace(of_scene, files={**of_scene.files, **features})


def _files(folder: Path) -> list[Path]:
    """List the files of features in a folder, by name."""
    if not folder.is_dir():
        raise NotFoundError(f"There is no folder {folder} of fused features.")
    paths = sorted(path for path in folder.glob("*.pt") if not path.name.startswith("."))
    if not paths:
        raise NotFoundError(f"No fused features in {folder}. Expected NAME_0.pt, NAME_1.pt or NAME.pt.")
    return paths


def _files_of(files: Sequence[Path], name: str, folder: Path | str) -> list[Path]:
    found = [path for path in files if _is_of(path, name)]
    if not found:
        raise InputError(f"it has no features in {folder}")
    return found


def _is_of(path: Path, name: str) -> bool:
    return re.fullmatch(rf"{re.escape(name)}(_\d+)?", path.stem) is not None


def _cloud_of(dataset: Dataset, index: int) -> str:
    """Say where a scene's points come from."""
    return str(dataset.clouds[index]) if isinstance(dataset, OpenScene) else f"scene {dataset.names[index]}"


def imported_card(teacher: str, num_channels: int, text: str | None = None) -> TeacherCard:
    """Return the card of an imported teacher: what is known by its name, and the width of its features.

    Args:
        teacher: Name of the teacher.
        num_channels: Width of its features.
        text: Text encoder of its features, where the name does not tell.
    """
    known = known_card(teacher) or TeacherCard(num_channels)
    return replace(known, num_channels=num_channels, text=text or known.text)


def _width(teacher: str, files: Sequence[Path]) -> int:
    """Return the number of channels in the first file that can be read."""
    problem: Exception | None = None
    for path in files:
        try:
            return _read(path).features.shape[1]
        except ValueError as error:
            problem = problem or error
    raise InputError(f"No file of the features of {teacher} can be read. {problem}")


def _add_scene(
    store: Store, scene: Scene, files: Mapping[str, Sequence[Path]], cloud: str, source: Record
) -> Sequence[Problem]:
    """Bring the features of a scene from its points to its samples and write it; return what was left out."""
    samples = sample_cells(scene.points, store.cell)
    described = torch.ones(len(samples.index_of_sample), dtype=torch.bool)
    means, problems = {}, []
    for teacher, paths in files.items():
        pieces = [_read(path) for path in paths]
        for path, piece in zip(paths, pieces, strict=True):
            _check(path, piece, len(scene.points), store.teachers[teacher].num_channels, cloud)
            if piece.num_empty:
                text = f"{piece.num_empty} features of {path.name} left out: they are zero or not finite."
                problems.append(Problem("features", text))
        means[teacher], has_feature = _means(pieces, samples)
        described &= has_feature
    if not described.any():
        raise InputError("no sample has a feature of every teacher")
    # How many views saw a point is not on file; once stands for at least once.
    visibility = Visibility((), described.long(), tuple(problems))
    of_described = {teacher: rows[described] for teacher, rows in means.items()}
    store.add_scene(scene, samples, visibility, of_described, source=source)
    return problems


class _Piece(NamedTuple):
    """What a file holds."""

    num_points: int
    """Points of the scene that it is for."""
    points: Int64[Tensor, "n"]
    """Which of them have a feature here, ascending."""
    features: Float[Tensor, "n C"]
    num_empty: int
    """Features left out because they are zero or not finite."""


def _read(path: Path) -> _Piece:
    """Read a file of features.

    Files of today hold `feat`, a row for each point of `mask_full`. Older ones, such as those of LSeg that OpenScene
    offers, hold also `mask`: which of these rows are features.
    """
    content = read_torch(path, mapped=True)
    try:
        features, on_file = _tensor(content["feat"]), _tensor(content["mask_full"]).bool()
        features = features[..., 0] if features.ndim > 2 else features
        points = torch.nonzero(on_file).squeeze(1)
        if features.ndim != 2 or on_file.ndim != 1 or len(features) != len(points) or not features.is_floating_point():
            raise InputError(f"feat is {tuple(features.shape)}, and mask_full chooses {len(points)} points")
        usable = features.isfinite().all(dim=1) & features.any(dim=1)
        if "mask" in content:
            listed = torch.zeros_like(usable)
            listed[_tensor(content["mask"])] = True
            features, points, usable = features[listed], points[listed], usable[listed]
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{path} holds no fused features ({error}); expected a dict of feat, a row per point, and mask_full."
        ) from error
    num_empty = int((~usable).sum())
    return _Piece(len(on_file), points[usable], features[usable] if num_empty else features, num_empty)


def _tensor(entry: Any) -> Tensor:
    return torch.from_numpy(entry) if isinstance(entry, np.ndarray) else entry.detach()


def _check(path: Path, piece: _Piece, num_points: int, num_channels: int, cloud: str) -> None:
    """Raise ValueError unless a file is for a scene, and as wide as the others."""
    if piece.num_points != num_points:
        raise InputError(f"{path} is for {piece.num_points} points, but {cloud} has {num_points}; they do not belong")
    if (width := piece.features.shape[1]) != num_channels:
        raise InputError(f"{path} has features of {width} channels, the first file of its folder {num_channels}")


def _means(pieces: Sequence[_Piece], samples: Samples) -> tuple[Float32[Tensor, "S C"], Bool[Tensor, "S"]]:
    """Average features over files, then over the points of a sample; also say which samples have any."""
    num_files = torch.zeros(len(samples.sample_of_point))
    for piece in pieces:
        num_files[piece.points] += 1
    num_points = torch.bincount(samples.sample_of_point[num_files > 0], minlength=len(samples.index_of_sample))
    means = torch.zeros(len(num_points), pieces[0].features.shape[1])
    for piece in pieces:
        for start in range(0, len(piece.points), CHUNK):
            points, features = piece.points[start : start + CHUNK], piece.features[start : start + CHUNK]
            of_sample = samples.sample_of_point[points]
            weights = 1 / (num_files[points] * num_points[of_sample])
            means.index_add_(0, of_sample, features.float() * weights[:, None])
    return means, num_points > 0
