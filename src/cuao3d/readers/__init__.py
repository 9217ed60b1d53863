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
from cuao3d.readers.folder import Folder
from cuao3d.readers.matterport import Matterport
from cuao3d.readers.nerfstudio import Nerfstudio
from cuao3d.readers.openscene import OpenScene
from cuao3d.readers.pointcloud import PointCloud
from cuao3d.readers.replica import Replica
from cuao3d.readers.scannet import ScanNet
from cuao3d.readers.scannetpp import ScanNetpp
from cuao3d.readers.sevenscenes import SevenScenes
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
    "tum": Tum,
    "replica": Replica,
    "nerfstudio": Nerfstudio,
    "folder": Folder,
    "pointcloud": PointCloud,
}
"""Readers by name, each for one `layout`; the first that recognises a path reads it."""


def open_dataset(path: Path | str, *, tolerance: float | None = None, **options: Any) -> Opened:
    """Open a capture, a folder of captures, or the file of a lone cloud, by its layout.

    Args:
        path: The folder, or the file.
        tolerance: A point is visible where |z - depth| <= tolerance * depth. Unless given, each scene has that of its
            `capture.json` or of its dataset.
        options: Arguments for the reader of this layout, such as `annotations`, `every` or `official`.

    Returns:
        The dataset: `names`, a length, and by index scenes, which are read when asked for.

    Raises:
        NotFoundError: There is no such folder or file, or it has none of the layouts in `DATASETS`.
        InputError: The reader of this layout does not take an option, or not this value.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"There is no folder {path}, and no file.{nearby(path)}")
    recognised = (name for name, reader in DATASETS.items() if reader.recognises(path))
    name = "pointcloud" if path.is_file() else next(recognised, None)
    if name is None:
        layouts = "; ".join(f"{name}: {dataset.layout}" for name, dataset in DATASETS.items())
        raise NotFoundError(f"{path} has no layout that is known. Looked for {layouts}.")
    for option in options:
        takers = [other for other, reader in DATASETS.items() if option in signature(reader).parameters]
        if name not in takers:
            raise InputError(
                f"{path} is read as {name}, which does not take --{option}; it is for {', '.join(takers)}."
            )
    dataset = DATASETS[name](path, **options)
    return dataset if tolerance is None else _WithTolerance(dataset, fraction(tolerance, "--tolerance"))


class _WithTolerance:
    """A dataset whose scenes all have one tolerance of occlusion."""

    def __init__(self, dataset: Reader, tolerance: float) -> None:
        self.names, self.folders = dataset.names, dataset.folders
        self._dataset, self._tolerance = dataset, tolerance

    def __len__(self) -> int:
        return len(self._dataset)

    def source(self, index: int) -> Source:
        source = self._dataset.source(index)
        return replace(source, settings={**source.settings, "tolerance": self._tolerance})

    def __getitem__(self, index: int) -> Scene:
        return replace(self._dataset[index], occlusion_tolerance=self._tolerance)
