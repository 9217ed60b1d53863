"""Files to scenes: every reader is a dataset of scenes, `open_dataset` finds the one that knows a folder's layout."""

from pathlib import Path
from typing import Protocol, runtime_checkable

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
from cuao3d.scene import Scene


@runtime_checkable
class Dataset(Protocol):
    """Scenes that are read when asked for."""

    names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Scene: ...


class Reader(Dataset, Protocol):
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
    # Captures of one's own, and other datasets of rooms; by files that only they have.
    "scannetpp": ScanNetpp,
    "arkitscenes": ArkitScenes,
    "tum": Tum,
    "replica": Replica,
    "nerfstudio": Nerfstudio,
    "folder": Folder,
    "pointcloud": PointCloud,
}
"""Readers by name, each for one `layout`; the first that recognises a path reads it."""


def open_dataset(path: Path | str) -> Dataset:
    """Open a capture, a folder of captures, or the file of a lone cloud, by its layout.

    Args:
        path: The folder, or the file.

    Raises:
        FileNotFoundError: There is no such folder or file, or it has none of the layouts in `DATASETS`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no folder {path}, and no file.")
    if path.is_file():
        return PointCloud(path)
    for dataset in DATASETS.values():
        if dataset.recognises(path):
            return dataset(path)
    layouts = "; ".join(f"{name}: {dataset.layout}" for name, dataset in DATASETS.items())
    raise FileNotFoundError(f"{path} has no layout that is known. Looked for {layouts}.")
