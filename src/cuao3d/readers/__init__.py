"""Files to scenes: every reader is a dataset of scenes, `open_dataset` finds the one that knows a folder's layout."""

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cuao3d.errors import InputError, NotFoundError
from cuao3d.files import nearby
from cuao3d.formats.entries import fraction
from cuao3d.readers.arkitscenes import ArkitScenes
from cuao3d.readers.capture import Captures
from cuao3d.readers.colmap import Colmap
from cuao3d.readers.folder import Folder
from cuao3d.readers.habitat import Habitat
from cuao3d.readers.hypersim import Hypersim
from cuao3d.readers.matterport import Matterport
from cuao3d.readers.nearest import nearest, recording, subfolders
from cuao3d.readers.nerfstudio import Nerfstudio
from cuao3d.readers.open3d import Open3D
from cuao3d.readers.openscene import OpenScene
from cuao3d.readers.pointcloud import PointCloud
from cuao3d.readers.polycam import Polycam
from cuao3d.readers.record3d import Record3D
from cuao3d.readers.replica import Replica
from cuao3d.readers.scannerapp import ScannerApp
from cuao3d.readers.scannet import ScanNet
from cuao3d.readers.scannetpp import ScanNetpp
from cuao3d.readers.scenezoo import PREFIX, SceneZoo
from cuao3d.readers.sevenscenes import SevenScenes
from cuao3d.readers.stray import Stray
from cuao3d.readers.tum import Tum
from cuao3d.scene import Scene, Source


@runtime_checkable
class Dataset(Protocol):
    """Scenes that are read when asked for."""

    names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Scene: ...


@runtime_checkable
class Opened(Dataset, Protocol):
    """A dataset that is read from files."""

    @property
    def folders(self) -> Sequence[Path]:
        """Return, for each scene, the folder whose `capture.json` is honoured."""
        ...

    def source(self, index: int, /) -> Source:
        """Return what decides a scene: its files and how they are read."""
        ...


@runtime_checkable
class Reader(Opened, Protocol):
    """A dataset that reads one layout of files."""

    layout: str

    def __init__(self, path: Path | str) -> None: ...

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether a path looks like this layout."""
        ...


DATASETS: dict[str, type[Reader]] = {
    "sevenscenes": SevenScenes,
    "scannet": ScanNet,
    "matterport": Matterport,
    "openscene": OpenScene,
    # Users' captures and other datasets of rooms, recognised by files that only they have.
    "scannetpp": ScanNetpp,
    "arkitscenes": ArkitScenes,
    "hypersim": Hypersim,
    "tum": Tum,
    "replica": Replica,
    "nerfstudio": Nerfstudio,
    "polycam": Polycam,
    "stray": Stray,
    "scannerapp": ScannerApp,
    "record3d": Record3D,
    "habitat": Habitat,
    "folder": Folder,
    "open3d": Open3D,
    "colmap": Colmap,
    "pointcloud": PointCloud,
}
"""Readers by name, each for one `layout`; the first that recognises a path reads it."""


def open_dataset(path: Path | str, *, tolerance: float | None = None, **options: Any) -> Opened:
    """Open a capture, a folder of captures, or the file of a lone cloud, by its layout.

    Args:
        path: The folder, or the file; or `scenezoo:NAME:PATH`, a dataset that the package scenezoo reads.
        tolerance: A point is visible where |z - depth| <= tolerance * depth. Unless given, each scene has that of its
            `capture.json` or of its dataset.
        options: Arguments for the reader of this layout, such as `annotations`, `every` or `official`.

    Returns:
        The dataset: `names`, a length, and by index scenes, which are read when asked for.

    Raises:
        NotFoundError: There is no such folder or file, or it has none of the layouts in `DATASETS`; the message names
            the layout that it comes nearest to.
        InputError: The file is a recording, or the reader of this layout does not take an option, or not this value.
    """
    if str(path).startswith(PREFIX):
        if options:
            raise InputError(f"{path} is read by scenezoo, which does not take --{next(iter(options))}.")
        zoo = SceneZoo(path)
        return zoo if tolerance is None else _WithTolerance(zoo, fraction(tolerance, "--tolerance"))
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"There is no folder {path}, and no file.{nearby(path)}")
    if path.is_file() and (problem := recording(path)):
        raise InputError(problem)
    name = "pointcloud" if path.is_file() else _layout(path)
    if name is None:
        raise NotFoundError(f"{path} has no layout that is known. {_elsewhere(path) or nearest(path)}")
    for option in options:
        takers = [other for other, reader in DATASETS.items() if option in signature(reader).parameters]
        if name not in takers:
            raise InputError(
                f"{path} is read as {name}, which does not take --{option}; it is for {', '.join(takers)}."
            )
    dataset = DATASETS[name](path, **options)
    return dataset if tolerance is None else _WithTolerance(dataset, fraction(tolerance, "--tolerance"))


def _layout(path: Path) -> str | None:
    """Return the name of the layout of a folder, if it is known."""
    return next((name for name, reader in DATASETS.items() if reader.recognises(path)), None)


def _elsewhere(path: Path) -> str | None:
    """Say that the folder around a path is a capture, or that captures lie deeper in it; None if neither is so."""
    around = path.resolve().parent
    for name, reader in DATASETS.items():
        if issubclass(reader, Captures) and reader.is_capture(around):
            return f"It is a part of {around}, which is read as {name}; give that folder."
    for folder in subfolders(path):
        if (layout := _layout(folder)) is not None:
            return f"In it lies {folder}, which is read as {layout}; give that folder."
    return None


class _WithTolerance:
    """A dataset whose scenes all have one tolerance of occlusion."""

    def __init__(self, dataset: Opened, tolerance: float) -> None:
        self.names, self.folders = dataset.names, dataset.folders
        self._dataset, self._tolerance = dataset, tolerance

    def __len__(self) -> int:
        return len(self._dataset)

    def source(self, index: int) -> Source:
        source = self._dataset.source(index)
        return replace(source, settings={**source.settings, "tolerance": self._tolerance})

    def __getitem__(self, index: int) -> Scene:
        return replace(self._dataset[index], occlusion_tolerance=self._tolerance)
