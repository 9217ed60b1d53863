"""Files to scenes: every reader is a dataset of scenes, `open_dataset` finds the one that knows a folder's layout."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from cuao3d.readers.matterport import Matterport
from cuao3d.readers.scannet import ScanNet
from cuao3d.readers.sevenscenes import SevenScenes
from cuao3d.scene import Scene


@runtime_checkable
class Dataset(Protocol):
    """Scenes that are read when asked for."""

    names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Scene: ...


class Reader(Protocol):
    """A class of datasets, each for one layout of files."""

    layout: str
    """What a folder must hold, in a few words."""

    def recognises(self, path: Path, /) -> bool:
        """Say whether a folder looks like this layout."""

    def __call__(self, path: Path | str, /) -> Dataset:
        """Open the folder."""


DATASETS: dict[str, Reader] = {
    "sevenscenes": SevenScenes,
    "scannet": ScanNet,
    "matterport": Matterport,
}
"""Readers by name, each for one `layout`; the first that recognises a folder reads it."""


def open_dataset(path: Path | str) -> Dataset:
    """Open a capture, or a folder of captures, by its layout.

    Args:
        path: The folder.

    Raises:
        FileNotFoundError: There is no such folder, or it has none of the layouts in `DATASETS`.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path}.")
    for dataset in DATASETS.values():
        if dataset.recognises(path):
            return dataset(path)
    layouts = "; ".join(f"{name}: {dataset.layout}" for name, dataset in DATASETS.items())
    raise FileNotFoundError(f"{path} has no layout that is known. Looked for {layouts}.")
